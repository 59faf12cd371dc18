"""The suite of sweeps: all runs of a grid by `experiments.sweep`'s program, against one run alone as often as there are runs.

A bound of n / 3 on the ratio of a sweep of n runs to one run says that the sweep is three times as fast as the runs one after the
other. On a CPU the sweep uses as many cores as JAX has devices: ``JAX_NUM_CPU_DEVICES=2 python -m experiments.bench --suite sweep
--threads 2``. The data are those of the demo of `experiments.compare`.
"""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from experiments.bench.results import Bound, Panel
from experiments.bench.timing import Subject
from experiments.engine import SeedData, Task
from experiments.models import ModelConfig
from experiments.sweep import SweepConfig, make_sweep_task
from experiments.sweep_program import Program, Values

SHAPES: Mapping[str, tuple[int, ...]] = {"64": (8, 8, 20, 128), "tiny": (2, 2, 1, 8)}
"""Points, seeds, epochs and the width of the MLP."""
DEFAULT = ("64",)

RECIPES = {"sam": ("rho", 0.05, 1.0), "label_smoothing": ("alpha", 0.0, 0.9)}
"""The hyperparameter of a recipe, and the range of its values."""

SWEEP, ALONE = "all runs in one program", "one run alone"
"""The names of the subjects."""
OPTIONS: Mapping[str, Any] = {"keep": False, "at_once": 0, "memory": 8 * 2**30}
"""Of `Program`."""


def panels(shape: tuple[int, ...], threads: int) -> Iterator[Panel]:
    """A panel for each recipe."""
    points, seeds, epochs, width = shape
    task, cut = make_sweep_task(SweepConfig("sam", seeds=seeds, epochs=epochs, model=ModelConfig(width=width)))
    for recipe, (name, low, high) in RECIPES.items():
        values = np.linspace(low, high, points, dtype=np.float32)
        yield _panel(recipe, name, values, task, cut, epochs)


def alone(task: Task, seed: int) -> Task:
    """The task of one seed of a task, with nothing of the others."""
    data = SeedData(*(leaf[seed : seed + 1] for leaf in task.data))
    return Task(data, task.seeds[seed : seed + 1], task.num_classes, task.batch_size, task.config)


def _panel(recipe: str, name: str, values: np.ndarray, task: Task, cut: int, epochs: int) -> Panel:
    runs = len(values) * len(task.seeds)
    make = functools.partial(Program, epochs=range(epochs), **OPTIONS)
    tasks = [alone(task, seed) for seed in range(len(task.seeds))]
    for each in (task, *tasks):
        jax.block_until_ready(each.initial)  # the initial weights are the same for all recipes, and no part of a run

    def whole(program: Program) -> None:
        for at in range(0, len(values), program.points):
            program({name: values[at : at + program.points]}, [])

    grid = [(seed, float(value)) for value in values for seed in range(len(tasks))]
    turn = 0

    def anew() -> None:
        """The next run of the grid, compiled with its own constant, as a loop over runs does."""
        nonlocal turn
        seed, value = grid[turn % runs]
        turn += 1
        make(recipe, tasks[seed], cut, Values({name: value}, {}))({}, [])

    together = lambda: make(recipe, task, cut, Values({}, {name: values}))
    compiled, single = together(), make(recipe, tasks[0], cut, Values({}, {name: values[:1]}))
    subjects = {
        f"{SWEEP}, compiling included": Subject(lambda: whole(together()), turns=2),
        f"{ALONE}, compiling included": Subject(anew, turns=2),
        SWEEP: Subject(lambda: whole(compiled)),
        ALONE: Subject(lambda: single({name: values[:1]}, [])),
    }
    bounds = [
        Bound(f"{SWEEP}, compiling included", f"{ALONE}, compiling included", runs / 3),
        Bound(SWEEP, ALONE, runs),
        Bound(f"{SWEEP}, compiling included", ALONE, runs),
    ]
    devices = "1 device" if jax.device_count() == 1 else f"{jax.device_count()} devices"
    title = f"{recipe}: {runs} runs of {epochs} epochs, {len(values)} values of {name} x {len(task.seeds)} seeds, {devices}"
    return Panel(title, subjects, bounds)
