"""Chooses the strengths of the study of label noise: on validation images and seeds that the study does not use.

``python -m experiments.studies.label_noise_tuning`` tries every point that ``experiments/results/label_noise/tuning.json`` lacks.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.compare import make_task
from experiments.engine import record
from experiments.studies import common, label_noise

GRIDS: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "baseline": {},
    "generalized_cross_entropy": {"q": (0.5, 0.7, 0.9)},
    "symmetric_cross_entropy": {"alpha": (0.01, 0.03, 0.1, 0.5), "beta": (1.0, 3.0)},
    "bootstrapping": {"beta": (0.3, 0.4, 0.5, 0.6, 0.8)},
    "elr": {"weight": (3.0, 5.0, 7.0, 12.0)},
    "ps_kd": {"alpha_final": (0.8, 0.95, 1.0)},
    "nested_dropout": {"scale": (0.1, 0.3, 1.0)},
    "label_smoothing": {"alpha": (0.1, 0.3, 0.6, 0.9)},
    "maxsup": {"weight": (0.1, 0.7, 1.5)},
    "mixup": {"alpha": (1.0, 4.0, 8.0, 16.0)},
}
SEEDS = (1000, 1001, 1002)
OUT = Path("experiments/results/label_noise/tuning.json")


def tune(out: Path = OUT) -> dict[str, dict[str, list[float]]]:
    """Runs the points that a file lacks, and writes it after each.

    Args:
      out: the file.

    Returns:
      The validation accuracies of each recipe: one a seed, by hyperparameters as JSON.
    """
    noise = label_noise.NOISES[label_noise.SHOWN]
    data = dataclasses.replace(label_noise.DATA, noise_kind=noise.kind, label_noise=noise.rate)
    task = make_task(data, dataclasses.replace(label_noise.RUN, points=1), SEEDS, "validation")
    found = json.loads(out.read_text()) if out.exists() else {}
    for name, grid in GRIDS.items():
        points = found.setdefault(name, {})
        for values in itertools.product(*grid.values()):
            hyperparameters = dict(zip(grid, values, strict=True))
            label = json.dumps(hyperparameters)
            if label not in points:
                points[label] = common.rounded(record(name, task, **hyperparameters).curves["accuracy"][:, -1])
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(found, indent=1) + "\n")
    return found


def main() -> int:
    """Prints each recipe's points, best first; returns the exit status."""
    for name, points in tune().items():
        ranked = sorted(((common.statistic(values), label) for label, values in points.items()), reverse=True)
        print(f"{name:<26}" + "  ".join(f"{label} {common.shown(value, 100)}" for value, label in ranked))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
