"""Chooses the strengths of the study of plasticity: on seeds that the study does not use.

``python -m experiments.studies.plasticity_tuning`` tries every point that ``experiments/results/plasticity/tuning.json`` lacks.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies import common, plasticity
from experiments.studies.plasticity_training import METHODS, STREAMS, load, make_program

GRID = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1, 0.3)
GRIDS: Mapping[str, Sequence[float]] = {method: (0.0,) if method == "none" else GRID for method in METHODS}
SEEDS = (100, 101, 102)
OUT = Path("experiments/results/plasticity/tuning.json")

Tried = dict[str, dict[str, dict[str, list[float]]]]


def tune(out: Path = OUT, config: plasticity.PlasticityConfig | None = None, seeds: Sequence[int] = SEEDS) -> Tried:
    """Runs the methods that a file lacks, and writes it after each.

    Args:
      out: the file.
      config: the setting; by default the study's.
      seeds: of the runs.

    Returns:
      By stream, method and strength the measure that the study judges the late tasks by, one number a seed.
    """
    config = config or plasticity.PlasticityConfig()
    found: Tried = json.loads(out.read_text()) if out.exists() else {}
    for kind in STREAMS:
        points = found.setdefault(kind, {})
        for method, grid in GRIDS.items():
            tried = points.setdefault(method, {})
            new = [strength for strength in grid if f"{strength:g}" not in tried]
            if not new:
                continue
            data = load(config, kind, seeds)
            every = jax.tree.map(lambda leaf: np.concatenate([leaf] * len(new)), data)  # noqa: B023
            strengths = jnp.repeat(jnp.array(new, jnp.float32), len(seeds))
            curves = jax.device_get(make_program(config, kind, method)(every, jnp.tile(jnp.array(seeds), len(new)), strengths))
            late = plasticity.measure(curves, kind)["late"].reshape(len(new), len(seeds))
            tried.update({f"{strength:g}": common.rounded(values) for strength, values in zip(new, late, strict=True)})
            out.parent.mkdir(parents=True, exist_ok=True)
            out.write_text(json.dumps(found, indent=1) + "\n")
    return found


def main() -> int:
    """Prints each method's points, best first; returns the exit status."""
    for kind, methods in tune().items():
        print(kind)
        for method, points in methods.items():
            ranked = sorted(((common.statistic(values), label) for label, values in points.items()), reverse=True)
            print(f"  {method:<22}" + "  ".join(f"{label} {common.shown(value, 100)}" for value, label in ranked))
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
