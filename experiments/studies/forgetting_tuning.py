"""Chooses the strengths of the study of forgetting: on validation images and seeds that the study does not use.

``python -m experiments.studies.forgetting_tuning`` tries every point that ``experiments/results/forgetting/tuning.json`` lacks.
"""

import dataclasses
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from experiments.studies import common, forgetting

GRIDS: Mapping[str, Mapping[str, Sequence[float]]] = {
    "LoRA": {"learning_rate": (3e-3, 1e-2, 3e-2), "beta": (0.05, 0.2)},
    "GS-LoRA": {"alpha": (1e-3, 1e-2, 3e-2, 0.1, 0.3, 1.0)},
    "GS-LoRA++": {"away": (0.1, 0.3, 1.0), "near": (0.0, 0.1)},
    "full fine-tuning": {"learning_rate": (3e-4, 1e-3, 3e-3), "beta": (0.05, 0.2)},
    "gradient ascent": {"learning_rate": (3e-5, 1e-4, 2e-4, 3e-4, 5e-4, 1e-3)},
    "fine-tuning": {"learning_rate": (0.01, 0.03, 0.1, 0.2, 0.3, 0.5)},
    "l1-sparse": {"learning_rate": (0.03, 0.1), "l1": (3e-4, 1e-3, 3e-3)},
}
"""Six points for each method; in turn, since what one found is where the next begins."""
BEGINS = {"GS-LoRA": "LoRA", "GS-LoRA++": "GS-LoRA"}
"""Whose best point a grid adds to."""
FIXED = {"GS-LoRA": {"warm_up": forgetting.WARM_UP}}
SEEDS = (100, 101, 102, 103)
ALLOWED = 0.01
"""How far below the best of its grid the score of the strongest group lasso may be."""
OUT = Path("experiments/results/forgetting/tuning.json")


def best(name: str, points: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, float]:
    """The chosen point: that of the highest mean score, and for GS-LoRA the strongest group lasso of about that score.

    Args:
      name: of the method.
      points: by hyperparameters as JSON the ``score`` of every seed, among other measures.

    Returns:
      The hyperparameters.
    """
    scores = {point: np.mean(values["score"]) for point, values in points.items()}
    if name == "GS-LoRA":
        near = [json.loads(point) for point, value in scores.items() if value >= max(scores.values()) - ALLOWED]
        return max(near, key=lambda point: point["alpha"])
    return json.loads(max(scores, key=scores.__getitem__))


def tune(out: Path = OUT) -> dict[str, dict[str, Any]]:
    """Runs the points that a file lacks, and writes it after each.

    Args:
      out: the file.

    Returns:
      For each method, by hyperparameters as JSON: ``score`` (the harmonic mean), ``forgotten``, ``retained`` and ``quiet`` (the
      share of blocks that hardly changed) of each seed, on validation images, both classes at once.
    """
    config = dataclasses.replace(forgetting.ForgettingConfig(), judged_on="validation")
    found = json.loads(out.read_text()) if out.exists() else {}
    bench = None
    for name, grid in GRIDS.items():
        points = found.setdefault(name, {})
        base = best(BEGINS[name], found[BEGINS[name]]) if name in BEGINS else {}
        for values in itertools.product(*grid.values()):
            hyperparameters = {**base, **FIXED.get(name, {}), **dict(zip(grid, values, strict=True))}
            label = json.dumps(hyperparameters)
            if label not in points:
                bench = bench or forgetting.Bench(config, SEEDS)
                run = bench.run(forgetting.METHODS[name].kind, hyperparameters, "both")
                measured = forgetting.measure(run.outcome, bench)
                points[label] = {
                    part: common.rounded(measured[key])
                    for part, key in {"score": "h", "forgotten": "forgotten", "retained": "retained", "quiet": "quiet"}.items()
                }
                out.parent.mkdir(parents=True, exist_ok=True)
                out.write_text(json.dumps(found, indent=1) + "\n")
    return found


def main() -> int:
    """Prints each method's points, best first, and the chosen one; returns the exit status."""
    for name, points in tune().items():
        print(f"{name}: {json.dumps(best(name, points))}")
        ranked = sorted(points.items(), key=lambda item: -np.mean(item[1]["score"]))
        for label, values in ranked:
            print("  ", label, *(f"{part} {common.shown(common.statistic(x), 100)}" for part, x in values.items()))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
