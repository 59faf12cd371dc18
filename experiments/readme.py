"""Keeps the README's list of techniques and demo table, and the benchmark's tables, equal to the catalogue and to the results.

``python -m experiments.readme`` writes them; ``python -m experiments.readme runs/demo`` first takes over the results of a
finished demo into ``experiments/results/demo``, and ``python -m experiments.readme runs/label_noise`` those of a study into
``experiments/results/label_noise``.
"""

import importlib
import json
import shutil
import sys
from pathlib import Path

from experiments.bench import results as tables
from experiments.bench.cards import measuring
from experiments.report import HEADER, cells, summarise
from regjax.catalog import STAGES, cards

ROOT = Path(__file__).parent.parent
STUDIES = Path("experiments/results")
RESULTS = STUDIES / "demo"
TUNING = Path("experiments/results/tuning.json")
BENCH = Path("experiments/bench")


def techniques() -> str:
    """The techniques by stage, as a list of links-free Markdown."""
    lines = []
    for stage in STAGES:
        names = ", ".join(f"`{card.name}`" for card in cards(stage))
        lines.append(f"- **{stage}**: {names}")
    return "\n".join(lines)


def demo(folder: Path) -> str:
    """The demo's table and picture in Markdown, from its ``results.json``."""
    results = json.loads((folder / "results.json").read_text())
    rows = [cells(row) for row in summarise(results)]
    table = ["| " + " | ".join(HEADER) + " |", "| --- " + "| ---: " * (len(HEADER) - 1) + "|"]
    table += ["| " + " | ".join(row) + " |" for row in rows]
    seeds = results["config"]["seeds"]
    tuned = json.loads((ROOT / TUNING).read_text())["recipes"]
    points = [len(tried) for name, tried in tuned.items() if name != "baseline"]
    text = f"""Digits, 30 labelled images a class, 30 % of the labels wrong, an MLP, {seeds} seeds. Accuracy on the 360 test
images is mean ± standard deviation over seeds; the difference to the baseline is paired over seeds, ± its standard error;
memorized is the share of wrong training labels that the model reproduces; time and FLOPs are those of a training step as
ratios to the baseline's. Optimiser, learning rate and length are the same for all, chosen so that the plain method learns
every label by heart; a tenth of that rate stops earlier and alone reaches 83.6 % on validation images. Each recipe's strength
is the best of {min(points)} to {max(points)} points on validation images and other seeds, with `python -m experiments.tune`;
some grids whose best point was their last were extended, so recipes had unequal search ({sum(points) + 1} points in all,
in `{TUNING}`). One exception:
`one_cycle` keeps peaks of at least the common rate, although lower ones did better there (86.6 % at a tenth)."""
    return "\n".join([text, "", *table, "", f"![Test accuracy of every recipe]({RESULTS}/bars.png)"])


def bench(folder: Path) -> str:
    """The tables of every run of a suite in a folder of results."""
    runs = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json")) if not path.name.startswith("cards-")]
    # A suite may have tables of its own kind.
    suites = [importlib.import_module(f"experiments.bench.{run['suite']}") for run in runs]
    return "\n\n".join(getattr(suite, "markdown", tables.markdown)(run) for suite, run in zip(suites, runs, strict=True))


def costs(folder: Path) -> str:
    """The cost of every technique, from each run of the cards' cases in a folder of results."""
    return "\n\n".join(measuring.markdown(json.loads(path.read_text())) for path in sorted(folder.glob("cards-*.json")))


def studies(root: Path) -> str:
    """The studies whose results lie in the project: what each asks, its first picture, and where its tables are."""
    parts = []
    for page in sorted((root / STUDIES).glob("*/README.md")):
        study = page.parent.name
        title, question, *_ = page.read_text().split("\n\n")
        picture = next(line for line in page.read_text().splitlines() if line.startswith("!["))
        tables = f"`python -m experiments.studies.{study}`: [tables and pictures]({STUDIES}/{study}/README.md)."
        parts.append(f"**{title.removeprefix('# ')}.** {question} {tables}\n\n{picture.replace('](', f']({STUDIES}/{study}/')}")
    return "\n\n".join(parts)


def take_over(folder: Path, root: Path) -> None:
    """Copies a finished demo's or study's files, as far as they belong to the project, into the results."""
    study = json.loads((folder / "results.json").read_text()).get("study")
    kept = lambda path: path.suffix in (".md", ".json", ".png")
    names = [path.name for path in folder.iterdir() if kept(path)] if study else ("results.json", "bars.png", "curves.png")
    target = root / (STUDIES / study if study else RESULTS)
    target.mkdir(parents=True, exist_ok=True)
    for name in names:
        shutil.copy(folder / name, target / name)


def fill(text: str, name: str, content: str) -> str:
    """Replaces what stands between the markers of a name."""
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, rest = text.split(begin)
    return f"{before}{begin}\n{content}\n{end}{rest.split(end)[1]}"


def main() -> int:
    """Rewrites the files; returns the exit status."""
    if len(sys.argv) > 1:
        take_over(Path(sys.argv[1]), ROOT)
    readme = ROOT / "README.md"
    text = fill(readme.read_text(), "techniques", techniques())
    if (ROOT / RESULTS / "results.json").exists():
        text = fill(text, "demo", demo(ROOT / RESULTS))
    text = fill(text, "studies", studies(ROOT))
    readme.write_text(text)
    readme = ROOT / BENCH / "README.md"
    readme.write_text(fill(readme.read_text(), "bench", bench(ROOT / BENCH / "results")))
    page = ROOT / BENCH / "COSTS.md"
    page.write_text(fill(page.read_text(), "costs", costs(ROOT / BENCH / "results")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
