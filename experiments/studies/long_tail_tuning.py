"""Chooses the strengths of the study of long tails: on validation images and seeds that the study does not use.

``python -m experiments.studies.long_tail_tuning`` tries every point that ``experiments/results/long_tail/tuning.json`` lacks.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.compare import make_task
from experiments.studies import common, long_tail

# Radii of 1.2 and 2.4, tried first, broke the training of every method; 0.2 and 0.4 took their places.
RHO = (0.1, 0.2, 0.3, 0.4, 0.6)
# The best alone, taken over by the sums with it.
TAU = (long_tail.METHODS["logit adjustment"].hyperparameters["tau"],)
GRIDS: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "cross-entropy": {},
    "focal": {"gamma": (0.5, 1.0, 2.0, 3.0, 5.0)},
    "class-balanced": {"beta": (0.5, 0.8, 0.9, 0.99, 0.999)},
    "logit adjustment": {"tau": (0.5, 0.75, 1.0, 1.5, 2.0)},
    "SAM": {"rho": RHO},
    "GSAM": {"rho": RHO},
    "ImbSAM": {"rho": RHO},
    "ImbSAM, doubled tail": {"rho": RHO, "tail_weight": (2.0,)},
    "SAM + adjustment": {"rho": RHO, "tau": TAU},
    "ImbSAM + adjustment": {"rho": RHO, "tau": TAU},
}
SEEDS = (100, 101, 102, 103, 104)
OUT = Path("experiments/results/long_tail/tuning.json")


def tune(out: Path = OUT) -> dict[str, dict[str, list[float]]]:
    """Runs the points that a file lacks, and writes it after each.

    Args:
      out: the file.

    Returns:
      The validation accuracies of each method: one a seed, by hyperparameters as JSON.
    """
    task = make_task(long_tail.DATA, dataclasses.replace(long_tail.RUN, points=1), SEEDS, "validation")
    found = json.loads(out.read_text()) if out.exists() else {}
    for name, grid in GRIDS.items():
        points = found.setdefault(name, {})
        for values in itertools.product(*grid.values()):
            hyperparameters = dict(zip(grid, values, strict=True))
            label = json.dumps(hyperparameters)
            if label not in points:
                kept = long_tail.train(long_tail.METHODS[name]._replace(hyperparameters=hyperparameters), task)
                points[label] = common.rounded(kept.curves["accuracy"][:, -1])
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(found, indent=1) + "\n")
    return found


def main() -> int:
    """Prints each method's points, best first; returns the exit status."""
    for name, points in tune().items():
        ranked = sorted(((common.statistic(values), label) for label, values in points.items()), reverse=True)
        print(f"{name:<22}" + "  ".join(f"{label} {common.shown(value, 100)}" for value, label in ranked))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
