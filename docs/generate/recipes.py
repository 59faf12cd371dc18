"""The page of the named recipes: what each sets, what was tried for it, and how it fared in the comparison."""

import inspect
import json
from pathlib import Path
from typing import Any

from docs.generate import source
from docs.generate.pages import Pages, table, title
from experiments.recipes import GRIDS, RECIPES
from experiments.report import cells, summarise

_INTRO = """Each is a function of the setting (sizes, steps, learning rate) that returns a `Recipe`, in ``experiments/recipes``:
``python -m experiments.train --recipe sam`` trains one, ``python -m experiments.compare`` compares them, and
``python -m experiments.sweep`` varies their hyperparameters. The last columns are those of the comparison on digits
with few and partly wrong labels (:doc:`/studies/demo`): the difference of accuracy to the baseline in percentage points,
paired over seeds, with its standard error, and the time of a step."""


def used(root: Path) -> dict[str, set[str]]:
    """The techniques of every recipe."""
    found: dict[str, set[str]] = {}
    for path in sorted((root / "experiments/recipes").glob("*.py")):
        module = source.read(path)
        found |= {name: module.uses(fn) for name, fn in module.functions.items() if name in RECIPES}
    return found


def by_technique(root: Path) -> dict[str, list[str]]:
    """Links to the recipes of each technique."""
    inverted = source.inverted(used(root))
    return {full: [f":ref:`{name} <recipe-{name}>`" for name in sorted(names)] for full, names in inverted.items()}


def write(pages: Pages, root: Path) -> None:
    """Writes the page."""
    techniques = used(root)
    results = json.loads((root / "experiments/results/demo/results.json").read_text())
    fared = {row["recipe"]: cells(row) for row in summarise(results)}
    rows = []
    for name, recipe in RECIPES.items():
        accuracy = fared.get(name, ("",) * 9)
        label = f".. _recipe-{name}:\n\n**{name}**"
        summary = " ".join((inspect.getdoc(recipe) or "").split("\n\n")[0].split())
        links = ", ".join(f"`{full}`" for full in sorted(techniques.get(name, ())))
        rows.append(
            (label, f"{summary}\n\n{links}".strip(), _hyperparameters(recipe, GRIDS.get(name, {})), accuracy[2], accuracy[7])
        )
    body = table(
        ("recipe", "what it is", "hyperparameters", "accuracy", "time"), rows, widths="16 40 24 10 10", **{"class": "wide"}
    )
    pages.write("recipes/index.rst", "\n\n".join([title("Recipes"), _INTRO, body]) + "\n")


def _hyperparameters(recipe: Any, grid: dict[str, Any]) -> str:
    """The defaults, and the values that were tried."""
    lines = []
    for name, parameter in list(inspect.signature(recipe).parameters.items())[1:]:
        tried = f" of {', '.join(map(str, grid[name]))}" if name in grid else ""
        lines.append(f"``{name}={parameter.default}``{tried}")
    return "\n\n".join(lines)
