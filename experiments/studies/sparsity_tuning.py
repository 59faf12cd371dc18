"""Chooses the hyperparameters of the study of sparsity: on validation images and seeds that the study does not use.

``python -m experiments.studies.sparsity_tuning`` tries every point that ``experiments/results/sparsity/tuning.json`` lacks. A
method has one point for all sparsities, that of the best mean accuracy over them.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.studies import common, sparsity
from experiments.studies.sparsity_training import Programs

RATES = (0.02, 0.05, 0.1, 0.2, 0.4)
SHARED = ("gradual, uniform", "one-shot, uniform", "one-shot, global")
"""The plainest methods, whose mean decides on the learning rate of all."""

# Shares of the budget.
CUBIC = [{"start": start, "end": end} for start, end in ((0.0, 0.3), (0.0, 0.5), (0.0, 0.7), (0.0, 0.85), (0.2, 0.7))]


def _grid(**values: Sequence[float]) -> list[dict[str, float]]:
    return [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]


CUT = (0.3, 0.5)
STRENGTH = _grid(cut=CUT, strength=(3e-3, 1e-2, 3e-2, 0.1))
# Lower ratios, added as the lowest was best.
RATIO = _grid(cut=CUT, ratio=(0.9, 0.95, 0.98)) + _grid(cut=(0.5,), ratio=(0.7, 0.8))
GRIDS: Mapping[str, Sequence[Mapping[str, float]]] = {
    **{name: STRENGTH for name in ("HyperSparse", "L1")},
    "proximal L1": STRENGTH + _grid(cut=(0.3,), strength=(0.3,)),  # added as 0.1 was best
    "ISS-P": RATIO,
    "hard thresholding": _grid(cut=CUT, ratio=(0.0,)),
    **{name: _grid(cut=(0.1, 0.3, 0.5)) for name in ("one-shot, uniform", "one-shot, global")},
    **{name: CUBIC for name in ("gradual, uniform", "gradual, ERK", "gradual, global", "gradual, saliency", "gradual, random")},
    "irrelevance decay": _grid(cut=CUT, decay=(3e-3, 1e-2, 3e-2), scale=(100.0, 1000.0)),
    "decay": _grid(cut=CUT, decay=(3e-3, 1e-2, 3e-2), scale=(0.0,)),
    "ART": _grid(cut=CUT, init=(1e-4, 1e-3), growth=(1.5, 2.0)),
    "supermask, top scores": _grid(factor=(0.01, 0.03, 0.1, 1.0, 3.0, 10.0)),
    "supermask, signs": _grid(factor=(0.1, 1.0, 10.0)),
    "soft subnetwork": _grid(factor=(0.1, 1.0, 10.0, 30.0)),
    **{name: _grid(cut=(0.3,), strength=(3e-3, 3e-2, 0.3)) for name in ("group lasso", "WGSEF", "DReSS")},
    "units, one-shot": _grid(cut=CUT),
}
"""The points of each method; those that are not named here have nothing to choose."""

SEEDS = (100, 101, 102, 103, 104)
OUT = Path("experiments/results/sparsity/tuning.json")


def best(points: Mapping[str, Sequence[float]]) -> str:
    """The point of the best mean accuracy."""
    return max(points, key=lambda label: np.mean(points[label]))


def tune(out: Path = OUT) -> dict[str, dict[str, list[float]]]:
    """Runs the points that a file lacks, and writes it after each.

    Args:
      out: the file.

    Returns:
      The validation accuracies of each method: the mean over sparsities, one a seed, by hyperparameters as JSON.
    """
    found = json.loads(out.read_text()) if out.exists() else {}

    def keep(name: str, label: str, values: Sequence[Any]) -> None:
        found.setdefault(name, {})[label] = common.rounded(np.mean(values, axis=0))
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=1) + "\n")

    accuracies = lambda outcomes: [outcome.accuracy for outcome in outcomes.values()]
    mean = lambda programs, names, values: np.mean(
        [row for name in names for row in accuracies(sparsity.train(programs, name, sparsity.METHODS[name], values(name)))],
        axis=0,
    )
    programs = Programs(sparsity.SparsityConfig(judged_on="validation"), SEEDS)
    for rate in RATES:
        if str(rate) not in found.get("learning rate", {}):
            with_rate = lambda name, rate=rate: {**sparsity.METHODS[name].hyperparameters, "learning_rate": rate}
            keep("learning rate", str(rate), [mean(programs, SHARED, with_rate)])
    for name, grid in GRIDS.items():
        for values in grid:
            if json.dumps(values) not in found.get(name, {}):
                keep(name, json.dumps(values), accuracies(sparsity.train(programs, name, sparsity.METHODS[name], values)))
    return found


def main() -> int:
    """Prints each method's points, best first; returns the exit status."""
    for name, points in tune().items():
        ranked = sorted(((common.statistic(values), label) for label, values in points.items()), reverse=True)
        print(f"{name:<22}" + "  ".join(f"{label} {common.shown(value, 100, 2)}" for value, label in ranked))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
