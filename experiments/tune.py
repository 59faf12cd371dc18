"""Chooses the hyperparameters of the named recipes on validation splits, never on test.

``python -m experiments.tune`` tries the grids of `experiments.recipes.GRIDS` in the setting of the demo, on seeds that the demo
does not use, judged on validation images that no run trains on, and prints and writes the best of each.
"""

import dataclasses
import itertools
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from experiments import commands
from experiments.compare import DEMO, make_task
from experiments.data import DataConfig
from experiments.engine import RunConfig, run
from experiments.recipes import GRIDS, check_names


@dataclasses.dataclass(frozen=True)
class TuneConfig:
    """What is tried.

    Attributes:
      recipes: names; empty for every recipe with a grid.
      seeds: how many.
      first_seed: the first of them, beyond those of any comparison.
      data: the data set and its variants.
      run: the training.
      out: the file that holds every result; points already in it are not run again.
    """

    recipes: tuple[str, ...] = ()
    seeds: int = 8
    first_seed: int = 1000
    data: DataConfig = DEMO.data
    run: RunConfig = DEMO.run
    out: Path = Path("experiments/results/tuning.json")


def tune(config: TuneConfig) -> dict[str, list[tuple[str, float, float]]]:
    """Runs the points that the file lacks.

    Args:
      config: what is tried.

    Returns:
      For each recipe its points, best first: hyperparameters as JSON, mean validation accuracy and its standard error.

    Raises:
      ValueError: if a recipe has no grid, or the file is of another setting.
    """
    names = config.recipes or tuple(GRIDS)
    check_names(names)
    for name in names:
        if name not in GRIDS:
            raise ValueError(f"recipe {name!r} has no grid; those with one are {', '.join(GRIDS)}")
    described = {key: value for key, value in dataclasses.asdict(config).items() if key not in ("recipes", "out")}
    setting = json.loads(json.dumps(described, default=str))
    kept = json.loads(config.out.read_text()) if config.out.exists() else {"setting": setting, "recipes": {}}
    if kept["setting"] != setting:
        raise ValueError(f"{config.out} holds the results of another setting: choose another file with --out")
    task = make_task(config.data, config.run, range(config.first_seed, config.first_seed + config.seeds), "validation")
    best = {}
    for name in names:
        points = kept["recipes"].setdefault(name, {})
        for values in itertools.product(*GRIDS[name].values()):
            hyperparameters = dict(zip(GRIDS[name], values, strict=True))
            label = json.dumps(hyperparameters)
            if label not in points:
                points[label] = run(name, task, **hyperparameters).metrics["accuracy"]
                config.out.parent.mkdir(parents=True, exist_ok=True)
                config.out.write_text(json.dumps(kept, indent=1))
        spread = lambda x: float(np.std(x, ddof=1) / np.sqrt(len(x))) if len(x) > 1 else 0.0
        ranked = sorted(((label, float(np.mean(x)), spread(x)) for label, x in points.items()), key=lambda row: -row[1])
        best[name] = ranked
        print(
            f"{name:<26}" + "  ".join(f"{label} {100 * mean:.1f}±{100 * error:.1f}" for label, mean, error in ranked), flush=True
        )
    return best


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return commands.run(tune, TuneConfig, arguments, "python -m experiments.tune")


if __name__ == "__main__":
    sys.exit(main())
