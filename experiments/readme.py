"""Keeps the README's numbers and tables, its picture and the benchmark's tables equal to the catalogue and to the results.

``python -m experiments.readme`` writes them; ``python -m experiments.readme runs/demo`` first takes over the results of a
finished demo into ``experiments/results/demo``, and ``python -m experiments.readme runs/label_noise`` those of a study into
``experiments/results/label_noise``.
"""

import importlib
import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import pipeline
from experiments.bench import results as tables
from experiments.bench.cards import measuring
from experiments.recipes import RECIPES
from experiments.report import HEADER, cells, summarise
from regjax.catalog import STAGES, cards

ROOT = Path(__file__).parent.parent
STUDIES = Path("experiments/results")
RESULTS = STUDIES / "demo"
TUNING = Path("experiments/results/tuning.json")
BENCH = Path("experiments/bench")
PICTURE = Path("docs/_static/pipeline.svg")


SHOWN = 12
"""The rows of the demo's table in the README: the best ones, and the baseline."""

PEERS = (
    ("RandAugment, 2 operations on 256 images of 32x32", "randaugment nearest", "keras RandAugment", "Keras on JAX"),
    ("CutMix of 256 images of 32x32", "cutmix", "timm cutmix", "timm"),
    ("NT-Xent of [256, 128], with gradient", "NT-Xent by label_smoothing", "optax.losses.ntxent", "optax"),
    ("label smoothing of [1024, 1000], with gradient", "label_smoothing", "label_smoothing, optax", "optax"),
    ("projection of a million weights to the l1 ball", "project_l1_ball", "optax projection_l1_ball", "optax"),
    ("mask of the largest fifth of 4.2 million weights", "global_magnitude_mask", "all weights, jnp.sort", "a sort"),
    ("a step of SAM on an MLP", "regjax sam", "PyTorch SAM", "PyTorch"),
    ("NKD of [1024, 1000], with gradient", "nkd", "nkd, PyTorch", "the authors' formula in PyTorch"),
    ("label smoothing of [1024, 1000], with gradient", "label_smoothing", "label_smoothing, PyTorch", "PyTorch's fused kernel"),
    ("the same mask", "global_magnitude_mask", "all weights, torch.kthvalue", "PyTorch's selection"),
)
"""What the README says of speed: the work, both subjects of the suite `peers`, and whose the other is; the worst stand last."""


def numbers(root: Path) -> str:
    """What there is, counted, and the speed beside peers, from the catalogue, the tests and the results."""
    found = cards()
    parts = sum(bool(card.use.part_of) for card in found)
    papers = {(r.title, r.year) for card in found for r in card.references}
    count = lambda folder, text: sum(path.read_text().count(text) for path in (root / "tests" / folder).glob("test_*.py"))
    laws, claims = count("contracts", "\ndef test_"), sum(count(stage, "@pytest.mark.slow") for stage in STAGES)
    studied = len(list((root / STUDIES).glob("*/README.md")))
    counted = f"""**{len(found) - parts} techniques** and {parts} parts of them, from {len(papers)} papers; each equals a float64
reference, and runs through {laws} contracts. {len(RECIPES)} recipes, {studied} studies, and {claims} tests that try published
claims by training."""
    run = json.loads((root / BENCH / "results" / "peers-amd-epyc-1.json").read_text())
    rows = [f"| {work} | {whose} | {_times_as_fast(run, ours, theirs)} |" for work, ours, theirs, whose in PEERS]
    machine = f"{run['machine']['device']}, one thread, JAX {run['machine']['jax']}"
    table = ["| work | beside | times as fast |", "| --- | --- | ---: |", *rows]
    note = f"{machine}; medians of one run by turns, of `python -m experiments.bench --suite peers`."
    return "\n".join([counted, "", *table, "", note])


def _times_as_fast(run: Mapping[str, Any], ours: str, theirs: str) -> str:
    panel = next(panel for panel in run["panels"] if {ours, theirs} <= set(panel["subjects"]))
    ratio = panel["subjects"][theirs]["median_ms"] / panel["subjects"][ours]["median_ms"]
    return f"{ratio:.0f}" if ratio >= 10 else f"{ratio:.1f}"


def demo(folder: Path, shown: int | None = None) -> str:
    """The demo's table and picture in Markdown, from its ``results.json``; all rows, or the best ``shown`` and the baseline."""
    results = json.loads((folder / "results.json").read_text())
    rows = [cells(row) for row in summarise(results)]
    if shown is not None:
        rows = rows[:shown] + [row for row in rows[shown:] if row[0] == "baseline"]
    table = ["| " + " | ".join(HEADER) + " |", "| --- " + "| ---: " * (len(HEADER) - 1) + "|"]
    table += ["| " + " | ".join(row) + " |" for row in rows]
    seeds = results["config"]["seeds"]
    tuned = json.loads((ROOT / TUNING).read_text())["recipes"]
    points = [len(tried) for name, tried in tuned.items() if name != "baseline"]
    text = f"""Digits, 30 labelled images a class, 30 % of the labels wrong, an MLP, {seeds} seeds. Accuracy on the 360 test
images is mean ± standard deviation over seeds; the difference to the baseline is paired over seeds, ± its standard error;
memorized is the share of wrong training labels that the model reproduces; NLL, ECE and AURC are of the softmax of the
logits, for `stablemax` too, whose own probabilities are others; time and FLOPs are those of a training step as ratios to the
baseline's. Optimiser, learning rate and length are the same for all, chosen so that the plain method learns
every label by heart; a tenth of that rate stops earlier and alone reaches 83.6 % on validation images. Each recipe's strength
is the best of {min(points)} to {max(points)} points on validation images and other seeds, with `python -m experiments.tune`;
some grids whose best point was their last were extended, so recipes had unequal search ({sum(points) + 1} points in all,
in `{TUNING}`). One exception:
`one_cycle` keeps peaks of at least the common rate, although lower ones did better there (86.6 % at a tenth)."""
    if shown is not None:
        text += f" Below stand the best {shown} of {len(results['recipes'])} recipes and the baseline; the picture shows all."
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
    """The studies whose results lie in the project: what each asks, and where its tables and pictures are."""
    parts = []
    for page in sorted((root / STUDIES).glob("*/README.md")):
        study = page.parent.name
        title, question, *_ = page.read_text().split("\n\n")
        question = " ".join(question.split()).split("? ")[0].removesuffix("?")
        parts.append(f"- [{title.removeprefix('# ')}]({STUDIES}/{study}/README.md): {question}?")
    return "\n".join(parts)


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
    text = fill(readme.read_text(), "numbers", numbers(ROOT))
    if (ROOT / RESULTS / "results.json").exists():
        text = fill(text, "demo", demo(ROOT / RESULTS, SHOWN))
    text = fill(text, "studies", studies(ROOT))
    readme.write_text(text)
    (ROOT / PICTURE).write_text(pipeline.svg())
    readme = ROOT / BENCH / "README.md"
    readme.write_text(fill(readme.read_text(), "bench", bench(ROOT / BENCH / "results")))
    page = ROOT / BENCH / "COSTS.md"
    page.write_text(fill(page.read_text(), "costs", costs(ROOT / BENCH / "results")))
    return 0


if __name__ == "__main__":
    sys.exit(main())
