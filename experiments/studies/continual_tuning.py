"""Chooses the strengths of the continual study: on validation images and seeds that the study does not use.

``python -m experiments.studies.continual_tuning`` tries every point that ``experiments/results/continual/tuning.json`` lacks.
"""

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from experiments.studies import common, continual
from experiments.studies.continual_training import load, recalls

Grid = Mapping[str, Sequence[float]]

# Strengths up to 100 alone, tried first, left the best of the MLP at the end.
TWELVE = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 50.0, 100.0, 200.0, 300.0, 500.0, 1000.0)
SUMMED: Grid = {"strength": (1.0, 2.0, 5.0, 10.0, 20.0, 50.0), "precision": (1.0, 10.0)}
GRIDS: Mapping[str, Grid] = {
    "fine-tuning": {"strength": (0.0,)},
    # Below the common rate: training that stops early forgets less.
    "fine-tuning, lower rate": {"strength": (0.0,), "rate": tuple(10 ** (-i / 4) for i in range(1, 13))},
    "L2-SP": {"strength": TWELVE},
    "SI": {"strength": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0), "xi": (0.1, 1.0)},
    "EWC, summed": SUMMED,
    # About the same points on the scale of the mean over a task's 192 images.
    "EWC, mean": {"strength": (200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0), "precision": (0.01, 0.05)},
    "EWC, mean, precision 1": {"strength": TWELVE, "precision": (1.0,)},
    # Strengths of 1 to 100 with radii of 1 to 30, tried first, were best at 1 and 30: a corner, which this grid surrounds.
    "neural consolidation": {"strength": (0.1, 0.3, 1.0, 3.0), "radius": (10.0, 30.0, 100.0)},
    "AQC": SUMMED,
    # Below 1, the least strength tried first, which was its best.
    "AQC, unclipped": {"strength": (0.1, 0.2, 0.5, 1.0, 2.0, 5.0), "precision": (1.0, 10.0)},
    "joint training": {"strength": (1.0,)},
}
"""Twelve points for each method, but for the two that have nothing to choose."""

SEEDS = (100, 101, 102, 103, 104)
OUT = Path("experiments/results/continual/tuning.json")


def points(name: str) -> list[dict[str, float]]:
    """A method's points, every one with a ``precision``."""
    grid = GRIDS[name]
    return [{"precision": 1.0, **dict(zip(grid, values, strict=True))} for values in itertools.product(*grid.values())]


def tune(out: Path = OUT) -> dict[str, dict[str, dict[str, list[float]]]]:
    """Runs the points that a file lacks, and writes it after each method.

    Args:
      out: the file.

    Returns:
      The final mean accuracy on validation images by head, method and point as JSON: one a seed.
    """
    config = continual.ContinualConfig()
    data = load(config, SEEDS, "validation")
    found = json.loads(out.read_text()) if out.exists() else {}
    for head in continual.HEADS:
        for name in [name for name in GRIDS if head in continual.METHODS[name].values]:
            tried = found.setdefault(head, {}).setdefault(name, {})
            missing = [point for point in points(name) if json.dumps(point) not in tried]
            if missing:
                run = continual.run(config, head, name, data, SEEDS, missing)
                for i, point in enumerate(missing):
                    tried[json.dumps(point)] = common.rounded(recalls(run.predicted[:, i], data.judged_labels)[:, -1].mean(-1))
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(found, indent=1) + "\n")
    return found


def main() -> int:
    """Prints each method's points, best first; returns the exit status."""
    for head, methods in tune().items():
        for name, tried in methods.items():
            ranked = sorted(((common.statistic(values), label) for label, values in tried.items()), reverse=True)
            print(f"{head} {name:<24}" + "  ".join(f"{label} {common.shown(value, 100)}" for value, label in ranked))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
