"""Recipes x seeds on one data set: a table, ``results.json``, pictures and ``report.html``.

``python -m experiments.compare demo`` is the comparison of the README; ``python -m experiments.compare --help`` lists the others
and every option. The seeds of a recipe run in one compiled program; an interrupted comparison resumes with the recipes it lacks.
"""

import dataclasses
import json
import os
import platform
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import regjax as rj
from experiments import commands
from experiments.data import DataConfig, load_arrays
from experiments.engine import RunConfig, SeedData, Task, resolved_seeds_by, run
from experiments.recipes import RECIPES, check_names
from experiments.report import write_report

SCHEMA = 1
"""The version of ``results.json``."""


@dataclasses.dataclass(frozen=True)
class CompareConfig:
    """What is compared.

    Attributes:
      recipes: names from `experiments.recipes`; ``all`` stands for every one. The baseline is always among them.
      seeds: how many seeds; each has its own subset, label noise, initialisation and order of examples.
      first_seed: the first of them.
      judged_on: ``test``, or ``validation`` for choosing hyperparameters.
      data: the data set and its variants.
      run: the training.
      out: the folder of results; one comparison each.
    """

    recipes: tuple[str, ...] = ("all",)
    seeds: int = 8
    first_seed: int = 0
    judged_on: str = "test"
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    run: RunConfig = dataclasses.field(default_factory=RunConfig)
    out: Path = Path("runs/compare")

    def __post_init__(self) -> None:
        """Refuses unknown recipes and impossible numbers."""
        if self.seeds < 1:
            raise ValueError(f"CompareConfig: seeds must be at least 1, got {self.seeds}")
        if self.judged_on not in ("test", "validation"):
            raise ValueError(f"CompareConfig: judged_on must be 'test' or 'validation', got {self.judged_on!r}")
        check_names([name for name in self.recipes if name != "all"])

    @property
    def names(self) -> tuple[str, ...]:
        """The recipes that run, each once, the baseline first."""
        chosen = tuple(RECIPES) if "all" in self.recipes else self.recipes
        return tuple(dict.fromkeys(("baseline", *chosen)))


FEW_NOISY_LABELS = DataConfig(name="digits", batch_size=50, validation=0.4, per_class=30, label_noise=0.3)
"""Where regularisation matters: 300 labelled digits, three in ten of them wrongly."""

DEMO = CompareConfig(data=FEW_NOISY_LABELS, out=Path("runs/demo"))
CLEAN = dataclasses.replace(DEMO, data=dataclasses.replace(FEW_NOISY_LABELS, label_noise=0.0), out=Path("runs/clean"))
SMOKE = dataclasses.replace(
    DEMO, recipes=("label_smoothing", "sam"), seeds=2, run=RunConfig(epochs=4, points=2), out=Path("runs/smoke")
)

PRESETS = {
    "demo": ("300 digits, 30 % of their labels wrong: every recipe, 8 seeds", DEMO),
    "clean": ("300 digits with their true labels", CLEAN),
    "smoke": ("three recipes, two seeds, a few epochs: does everything run?", SMOKE),
}


def compare(config: CompareConfig, *, quiet: bool = False) -> tuple[str, Path]:
    """Runs what a comparison lacks, and writes its results and report.

    Args:
      config: the comparison.
      quiet: no progress bar, no line a recipe, and none of the time of compiling.

    Returns:
      The table as text, and the path of ``report.html``.

    Raises:
      ValueError: if the folder holds another comparison; nothing in it is touched then.
    """
    folder = config.out
    _claim(config)
    parts = folder / "recipes"
    parts.mkdir(parents=True, exist_ok=True)
    missing = [name for name in config.names if not (parts / f"{name}.json").exists()]
    task, compile_seconds, began = None, 0.0, time.perf_counter()
    bar = tqdm(missing, disable=quiet or not sys.stderr.isatty(), unit="recipe")
    with commands.compiling() as seen:
        for name in bar:
            bar.set_description(name)
            task = task or make_task(config.data, config.run, _seeds(config), config.judged_on)
            result = run(name, task)
            compile_seconds += result.compile_seconds
            _write(parts / f"{name}.json", result._asdict())
            if not quiet:
                accuracy = 100 * np.array(result.metrics["accuracy"])
                tqdm.write(
                    f"{name:<26} accuracy {accuracy.mean():5.1f} ± {accuracy.std(ddof=1) if len(accuracy) > 1 else 0:4.1f} %   "
                    f"compiled in {result.compile_seconds:4.1f} s, ran {result.seconds_per_step * 1e6:6.0f} µs a step"
                )
    if missing and not quiet:
        print(
            f"{len(missing)} recipes in {time.perf_counter() - began:.0f} s, of which tracing and compiling their programs took "
            f"{compile_seconds:.0f} s; {seen[0].kept} of {seen[0].programs} programs, small ones included, were found on disk"
        )
    results = {
        "schema": SCHEMA,
        "config": _plain(config),
        "machine": {"device": jax.devices()[0].device_kind, "platform": platform.platform(), "jax": jax.__version__},
        "regjax": rj.__version__,
        "seeds_by": resolved_seeds_by(config.run),
        "recipes": {name: json.loads((parts / f"{name}.json").read_text()) for name in config.names},
    }
    _write(folder / "results.json", results)
    return write_report(results, folder)


def make_task(data: DataConfig, config: RunConfig, seeds: Sequence[int], judged_on: str) -> Task:
    """The data of every seed, each with its own subset and label noise, and how to train on it."""
    per_seed = []
    for seed in seeds:
        splits = load_arrays(dataclasses.replace(data, seed=seed))
        judged = splits.test if judged_on == "test" else splits.validation
        if not len(judged):
            raise ValueError(f"DataConfig: validation must be above 0 to judge on the validation split, got {data.validation}")
        train = splits.train
        per_seed.append(SeedData(train.images, train.labels, train.clean_labels, judged.images, judged.clean_labels))
    stacked = SeedData(*(np.stack(leaves) for leaves in zip(*per_seed, strict=True)))
    return Task(stacked, tuple(seeds), splits.num_classes, data.batch_size, config)


def _seeds(config: CompareConfig) -> range:
    return range(config.first_seed, config.first_seed + config.seeds)


def _claim(config: CompareConfig) -> None:
    """Makes the folder this comparison's, or refuses one that holds another."""
    stamp, plain = config.out / "config.json", _plain(config)
    if stamp.exists():
        there = json.loads(stamp.read_text())
        # More recipes may be added to a comparison; whatever changes their numbers may not.
        changed = [key for key in plain if key not in ("recipes", "out") and there.get(key) != plain[key]]
        if changed:
            differences = "; ".join(f"{key}: {there.get(key)} there, {plain[key]} now" for key in changed)
            raise ValueError(f"{config.out} holds another comparison ({differences}): choose another folder with --out")
    elif config.out.exists() and any(config.out.iterdir()):
        raise ValueError(f"{config.out} is neither empty nor a comparison: choose another folder with --out")
    _write(stamp, plain)


def _plain(value: Any) -> Any:
    """A configuration as JSON holds it."""
    return json.loads(json.dumps(dataclasses.asdict(value), default=str))


def _write(path: Path, content: Any) -> None:
    """Writes JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(content))
    temporary.replace(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    try:
        config = commands.parse(PRESETS, arguments, "python -m experiments.compare")
        table, page = compare(config)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    print(table)
    print(f"\nreport: {page}\nresults: {page.parent / 'results.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
