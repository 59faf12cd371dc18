"""The pages of the benchmark, and the measured times of the cards, from the results' JSON."""

import json
import re
from pathlib import Path
from typing import Any

from docs.generate import names
from docs.generate.pages import Pages, link, title, toctree
from regjax import catalog

BENCH = "experiments/bench"


def measured(root: Path) -> dict[str, list[str]]:
    """By technique: a sentence for each run in which its wall time was measured."""
    found: dict[str, list[str]] = {}
    for path in sorted((root / BENCH / "results").glob("cards-*.json")):
        run = json.loads(path.read_text())
        for full, row in run["techniques"].items():
            if "time" in row:
                found.setdefault(full, []).append(_sentence(row, run["machine"]))
    return found


def _sentence(row: dict[str, Any], machine: dict[str, Any]) -> str:
    time, number = row["time"], lambda x: f"{x:,.3g}" if x < 1000 else f"{x:,.0f}"
    ratio = f"**{number(time['ratio'])} times** (quartiles {number(time['low'])} to {number(time['high'])})"
    where = f"{machine['device']}, {machine['threads']} of {machine['cores']} threads, JAX {machine['jax']}"
    return f"Measured: {ratio} the time of {row['of']} at {row['at']}, {number(time['ms'])} ms; {where}."


def write(pages: Pages, root: Path) -> None:
    """Writes the page of the suites and that of the costs of all techniques."""
    pages.write("benchmarks/suites.md", f"```{{include}} ../../{BENCH}/README.md\n:relative-images:\n```\n")
    pages.write("benchmarks/costs.md", _linked((root / BENCH / "COSTS.md").read_text()))
    intro = """Ratios measured by turns in one run, and counts of XLA, which are the same on every run. All tables are
made from the results in ``experiments/bench/results``."""
    rows = (
        f"- {link('Suites', '/benchmarks/suites')}: beside optax, PyTorch, timm, torchvision, Keras and the authors' formulas\n"
        f"- {link('Cost of every technique', '/benchmarks/costs')}: beside its plain counterpart"
    )
    pages.write("benchmarks/index.rst", "\n\n".join([title("Benchmarks"), intro, rows, toctree(["suites", "costs"])]) + "\n")


def _linked(page: str) -> str:
    """The page of the costs with the techniques as links to their cards."""
    known, stage, lines = catalog.techniques(), "", []
    for line in page.splitlines():
        stage = line.removeprefix("## ").lower() if line.startswith("## ") else stage
        name = re.match(r"\| `(\w+)` \|", line)
        if name and f"{stage}.{name[1]}" in known:
            line = line.replace(f"`{name[1]}`", f"{{doc}}`{name[1]} </{names.slug(f'{stage}.{name[1]}')}>`", 1)
        lines.append(line)
    return "\n".join(lines) + "\n"
