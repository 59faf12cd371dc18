"""A grid of hyperparameters x seeds as one compiled program: chosen on validation, judged on test.

``python -m experiments.sweep sam --over rho=0.05,0.1,0.2 learning_rate=0.01,0.02 --seeds 8`` tries six points; without ``--over``
the values that `experiments.recipes.GRIDS` holds for the recipe. An interrupted sweep goes on where it was.
"""

import contextlib
import dataclasses
import difflib
import inspect
import itertools
import json
import math
import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from tqdm import tqdm

import regjax as rj
from experiments import commands, sweep_report
from experiments.checkpoints import claimed
from experiments.compare import FEW_NOISY_LABELS
from experiments.data import DataConfig, load_arrays
from experiments.engine import RunConfig, SeedData, Task
from experiments.models import ModelConfig
from experiments.recipes import GRIDS, RECIPES, check_names
from experiments.sweep_program import Program, Values, pipeline
from experiments.writers import write_json

SCHEMA = 1
"""The version of ``results.json``."""

STATIC: Mapping[tuple[str, str], str] = {
    ("multi_sample_dropout", "num_samples"): "the number of masks is an axis of the logits",
    ("drop_block", "block_size"): "the side of the blocks is the window of a pooling",
    ("patch_masking", "mask_ratio"): "it decides how many patches stay, which is a shape",
}
"""The hyperparameters that cannot be arguments of a program, and why."""


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """What is tried: every combination of the values, each on every seed.

    The points run as one program whose arguments are the hyperparameters, spread over all devices (on a CPU: over its cores).
    A hyperparameter that sets a shape (num_samples, block_size and mask_ratio of the recipes here) is compiled in: the grid is
    split into one program for each combination of such values. The point to choose is the best on validation images, which no
    run trains on; it alone is judged on test images.

    Attributes:
      recipe: a name from `experiments.recipes`.
      over: the values, as ``rho=0.05,0.1,0.2``; numeric hyperparameters of the recipe, or ``learning_rate``. By default those
        of the recipe's grid.
      seeds: how many seeds; each has its own subset, label noise, initialisation and order of examples.
      first_seed: the first of them.
      data: the data set and its variants.
      model: the model.
      epochs: passes over the training set.
      learning_rate: the rate where it is not among the values.
      by: the measure on validation images by which a point is chosen, averaged over seeds.
      halving: keep one in so many points at each rung, and train those on; 0 trains all to the end. The rungs lie at numbers of
        epochs in the same ratio.
      against: the differences are to the recipe with its ``default`` values, or to the ``baseline``, paired over seeds.
      interval: of the means and differences over seeds, from the ``t`` distribution or by the ``bca`` bootstrap.
      confidence: their level.
      at_once: runs that a device batches; 0 for as many as the memory holds, on a CPU a few for each core.
      memory: GiB that a device may use.
      out: the folder of results, one sweep each; by default ``runs/sweep/`` and the recipe's name.
    """

    recipe: tyro.conf.Positional[str]
    over: tuple[str, ...] = ()
    seeds: int = 8
    first_seed: int = 0
    data: DataConfig = FEW_NOISY_LABELS
    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    epochs: int = 100
    learning_rate: float = 0.02
    by: Literal["accuracy", "nll"] = "accuracy"
    halving: int = 0
    against: Literal["default", "baseline"] = "default"
    interval: Literal["t", "bca"] = "t"
    confidence: float = 0.95
    at_once: int = 0
    memory: float = 8.0
    out: Path | None = None

    def __post_init__(self) -> None:
        """Refuses what cannot run."""
        owner = "SweepConfig"
        check_names([self.recipe])
        for field, least in (("seeds", 1), ("first_seed", 0), ("epochs", 1), ("at_once", 0)):
            if getattr(self, field) < least:
                raise ValueError(f"{owner}: {field} must be at least {least}, got {getattr(self, field)}")
        if self.halving < 0 or self.halving == 1:
            raise ValueError(f"{owner}: halving must be 0 (off) or at least 2, got {self.halving}")
        for field, high in (("learning_rate", math.inf), ("memory", math.inf), ("confidence", 1.0)):
            if not 0 < getattr(self, field) < high:
                expected = "above 0" if high == math.inf else f"between 0 and {high:g}"
                raise ValueError(f"{owner}: {field} must be {expected}, got {getattr(self, field)}")
        for field, options in (("by", ("accuracy", "nll")), ("against", ("default", "baseline")), ("interval", ("t", "bca"))):
            if getattr(self, field) not in options:
                raise ValueError(f"{owner}: {field} must be of {', '.join(options)}, got {getattr(self, field)!r}")
        if self.data.validation == 0:
            raise ValueError(f"{owner}: data.validation must be above 0, as points are chosen on validation images, got 0")
        object.__setattr__(self, "over", tuple(f"{name}={_listed(values)}" for name, values in self.grid.items()))

    @property
    def folder(self) -> Path:
        """Where the results lie."""
        return Path("runs/sweep") / self.recipe if self.out is None else self.out

    @property
    def grid(self) -> dict[str, tuple[float | int, ...]]:
        """The values of every hyperparameter that is tried."""
        known = numeric(self.recipe, self.learning_rate)
        if not self.over:
            own = {name: tuple(values) for name, values in GRIDS.get(self.recipe, {}).items()}
            if not own:
                raise ValueError(
                    f"SweepConfig: over must be given, as recipe {self.recipe!r} has no grid; it takes {', '.join(known)}"
                )
            return own
        grid: dict[str, tuple[float | int, ...]] = {}
        for text in self.over:
            name, sign, values = text.partition("=")
            if not sign or not values:
                raise ValueError(f"SweepConfig: over must be of the form name=value,value, got {text!r}")
            if name not in known:
                near = difflib.get_close_matches(name, known, 3)
                hint = f"did you mean {' or '.join(near)}?" if near else f"it has {', '.join(known)}"
                raise ValueError(f"recipe {self.recipe!r} has no numeric hyperparameter {name!r}; {hint}")
            if name in grid:
                raise ValueError(f"SweepConfig: over must name each hyperparameter once, got {name!r} twice")
            grid[name] = tuple(dict.fromkeys(_number(name, value, known[name]) for value in values.split(",")))
        return grid

    @property
    def run(self) -> RunConfig:
        """The training."""
        return RunConfig(self.model, self.epochs, self.learning_rate, points=1)


class Point(NamedTuple):
    """A recipe with values; ``on_grid`` is False where it is there for comparison alone."""

    recipe: str
    values: Mapping[str, Any]
    on_grid: bool = True


def numeric(recipe: str, learning_rate: float) -> dict[str, float | int]:
    """The numeric hyperparameters of a recipe with their defaults, and the learning rate."""
    defaults = {name: p.default for name, p in inspect.signature(RECIPES[recipe]).parameters.items()}
    own = {name: x for name, x in defaults.items() if isinstance(x, (int, float)) and not isinstance(x, bool)}
    return {**own, "learning_rate": learning_rate}


def make_points(config: SweepConfig) -> tuple[list[Point], int]:
    """The points of a sweep, and which of them the others are compared with; it is put last where the grid lacks it."""
    grid, known = config.grid, numeric(config.recipe, config.learning_rate)
    points = [Point(config.recipe, dict(zip(grid, values, strict=True))) for values in itertools.product(*grid.values())]
    own = {name: known[name] for name in grid}
    reference = Point(config.recipe, own) if config.against == "default" else Point("baseline", {}, on_grid=False)
    if reference not in points:
        points.append(reference._replace(on_grid=False))
        return points, len(points) - 1
    return points, points.index(reference)


def rungs(points: int, epochs: int, keep_one_in: int) -> list[tuple[int, int]]:
    """Successive halving: up to which epoch the points of each rung train, and how many go on from there.

    Args:
      points: how many start.
      epochs: of the last rung.
      keep_one_in: the ratio of the points, and of the epochs, of two rungs; 0 for one rung.

    Returns:
      ``(epochs, points that are kept)`` by rung; of the last all are.
    """
    last, left = 0, points
    while keep_one_in and left > 1 and keep_one_in ** (last + 1) <= epochs:
        last, left = last + 1, math.ceil(left / keep_one_in)
    kept = [points]
    for _ in range(last):
        kept.append(math.ceil(kept[-1] / keep_one_in))
    ends = [round(epochs / max(keep_one_in, 1) ** (last - rung)) for rung in range(last + 1)]
    return list(zip(ends, [*kept[1:], kept[-1]], strict=True))


def make_sweep_task(config: SweepConfig) -> tuple[Task, int]:
    """The data of every seed, judged on validation images and then test images, and how many the former are."""
    seeds, per_seed = range(config.first_seed, config.first_seed + config.seeds), []
    for seed in seeds:
        splits = load_arrays(dataclasses.replace(config.data, seed=seed))
        train, parts = splits.train, (splits.validation, splits.test)
        judged = [np.concatenate([getattr(part, name) for part in parts]) for name in ("images", "clean_labels")]
        per_seed.append(SeedData(train.images, train.labels, train.clean_labels, *judged))
    stacked = SeedData(*(np.stack(leaves) for leaves in zip(*per_seed, strict=True)))
    return Task(stacked, tuple(seeds), splits.num_classes, config.data.batch_size, config.run), len(splits.validation)


def check_values(config: SweepConfig, task: Task) -> None:
    """Lets the techniques refuse values: inside a program they are traced, and no check sees them.

    The least and the greatest value of each hyperparameter are tried, as what a technique allows is an interval. Nothing runs.
    """
    grid = config.grid
    for rate in grid.get("learning_rate", ()):
        if not 0 < rate < math.inf:
            raise ValueError(f"SweepConfig: learning_rate must be positive and finite, got {rate}")
    params, model_state = jax.tree.map(lambda x: x[0], task.initial)
    index = jnp.arange(task.batch_size)
    batch = {"image": jnp.zeros((task.batch_size, *task.data.images.shape[2:])), "label": 0 * index, "index": index}
    for name in grid:
        for value in {min(grid[name]), max(grid[name])} if name != "learning_rate" else ():
            made = pipeline(config.recipe, task, {name: value})
            start = lambda made=made: made.init(jax.random.key(0), params, model_state, labels=task.data.labels[0])
            jax.eval_shape(lambda made=made, start=start: made.step(start(), batch))


def sweep(config: SweepConfig, *, quiet: bool = False) -> str:
    """Runs what a sweep lacks, and writes ``results.json``, ``table.md`` and the pictures.

    Args:
      config: the sweep.
      quiet: no progress bar.

    Returns:
      The table as text, and what the chosen point gives on test images.

    Raises:
      ValueError: if the folder holds another sweep, nothing in it is touched then; or if a value is refused.
    """
    if jax.process_count() > 1:
        raise ValueError(f"sweep: runs in one process, got {jax.process_count()}")
    task, cut = make_sweep_task(config)
    check_values(config, task)
    described = dataclasses.asdict(config)
    with claimed(config.folder, described, ("out", "at_once", "memory", "interval", "confidence")):
        results = _run(config, task, cut, quiet)
        facts = {
            "schema": SCHEMA,
            "config": json.loads((config.folder / "config.json").read_text()),
            "regjax": rj.__version__,
            "machine": {"device": jax.devices()[0].device_kind, "platform": platform.platform(), "jax": jax.__version__},
        }
        results = {**facts, **sweep_report.judge(results, config.by, config.interval, config.confidence)}
        write_json(config.folder / "results.json", results)
        return sweep_report.write(results, config.folder)


def _run(config: SweepConfig, task: Task, cut: int, quiet: bool) -> dict[str, Any]:
    """Every rung, each from the states that the one before left."""
    points, reference = make_points(config)
    on_grid = [i for i, point in enumerate(points) if point.on_grid]
    plan = rungs(len(on_grid), config.epochs, config.halving)
    alive, found, history, begin = list(range(len(points))), {}, [], 0
    sign = 1 if config.by == "accuracy" else -1
    with tqdm(total=sum(kept for _, kept in plan), disable=quiet or not sys.stderr.isatty(), unit="point") as bar:
        for rung, (end, kept) in enumerate(plan):
            folder = config.folder / f"rung{rung}"
            folder.mkdir(exist_ok=True)
            last = rung == len(plan) - 1
            for group in _groups(points, alive):
                missing = [i for i in group if not (folder / f"{i}.json").exists()]
                bar.update(len(group) - len(missing))
                if missing:
                    _run_group(
                        config, task, cut, [points[i] for i in group], group, missing, range(begin, end), folder, last, bar
                    )
            for i in alive:
                found[i] = {"epochs": end, **json.loads((folder / f"{i}.json").read_text())}
            # All seeds of a point decide together; of equal ones the earlier stays. A score that is not a number is the worst.
            scores = {i: float(np.mean(np.array(found[i]["validation"][config.by], np.float64))) for i in alive}
            worth = lambda i, scores=scores: sign * scores[i] if math.isfinite(scores[i]) else -math.inf
            ranked = sorted((i for i in alive if points[i].on_grid), key=lambda i: (-worth(i), i))
            goes_on = sorted({*ranked[:kept], reference})
            history.append({"epochs": end, "scores": {str(i): scores[i] for i in alive}, "kept": goes_on})
            if rung:
                shutil.rmtree(config.folder / f"rung{rung - 1}" / "states", ignore_errors=True)
            alive, begin = goes_on, end
    rows = [{"recipe": p.recipe, "values": dict(p.values), "on_grid": p.on_grid, **found[i]} for i, p in enumerate(points)]
    return {"points": rows, "rungs": history, "reference": reference, "chosen": ranked[0], "names": list(config.grid)}


def _groups(points: Sequence[Point], alive: Sequence[int]) -> Iterator[list[int]]:
    """The points that one program serves: of one recipe, alike in what is compiled in."""
    kind = lambda i: (points[i].recipe, json.dumps(_fixed(points[i])))
    groups: dict[Any, list[int]] = {}
    for i in alive:
        groups.setdefault(kind(i), []).append(i)
    yield from groups.values()


def _fixed(point: Point) -> dict[str, Any]:
    return {name: value for name, value in point.values.items() if (point.recipe, name) in STATIC}


def _run_group(
    config: SweepConfig,
    task: Task,
    cut: int,
    points: Sequence[Point],
    indices: Sequence[int],
    missing: Sequence[int],
    epochs: range,
    folder: Path,
    last: bool,
    bar: Any,
) -> None:
    """Trains the missing points of a program call by call, and keeps what each call gives."""
    first, fixed = points[0], _fixed(points[0])
    kinds = numeric(first.recipe, config.learning_rate)
    as_array = lambda name, of: np.array([p.values[name] for p in of], np.int32 if isinstance(kinds[name], int) else np.float32)
    traced = lambda of: {name: as_array(name, of) for name in first.values if name not in fixed}
    options = {"keep": not last, "at_once": config.at_once, "memory": config.memory * 2**30}
    program = Program(first.recipe, task, cut, Values(fixed, traced(points)), epochs, **options)
    of, states = dict(zip(indices, points, strict=True)), folder / "states"
    for at in range(0, len(missing), program.points):
        call = missing[at : at + program.points]
        before = (
            [_load(folder.with_name(f"rung{int(folder.name[4:]) - 1}") / "states" / f"{i}.npz") for i in call]
            if epochs.start
            else []
        )
        out = program(traced([of[i] for i in call]), [np.stack(leaves, 1) for leaves in zip(*before, strict=True)])
        for position, i in enumerate(call):
            if not last:
                states.mkdir(exist_ok=True)
                _save(states / f"{i}.npz", [leaf[:, position] for leaf in out.state])
            # After the state: a point whose measures are there is done.
            write_json(folder / f"{i}.json", jax.tree.map(lambda x, position=position: x[:, position].tolist(), out.measures))
        bar.update(len(call))


def _save(path: Path, leaves: Sequence[np.ndarray]) -> None:
    """Writes arrays whole or not at all."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
    np.savez(temporary, *leaves)
    temporary.replace(path)


def _load(path: Path) -> list[np.ndarray]:
    with np.load(path) as file:
        return [file[f"arr_{i}"] for i in range(len(file.files))]


def _number(name: str, text: str, default: float | int) -> float | int:
    """A value of a hyperparameter, of the kind of its default."""
    try:
        value = type(default)(text)
    except ValueError:
        kind = "an integer" if isinstance(default, int) else "a number"
        raise ValueError(f"SweepConfig: over: {name} must be {kind}, got {text!r}") from None
    if not math.isfinite(value):
        raise ValueError(f"SweepConfig: over: {name} must be finite, got {text!r}")
    return value


def _listed(values: Sequence[float | int]) -> str:
    return ",".join(map(repr, values))


def use_all_cores() -> None:
    """Makes every core a device, so that runs on a CPU are spread over them; where JAX has not started, or its user chose."""
    chosen = jax.config.jax_num_cpu_devices >= 0 or "xla_force_host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    if not chosen:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        with contextlib.suppress(RuntimeError):  # it has started
            jax.config.update("jax_num_cpu_devices", cores)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""

    def command(config: SweepConfig) -> None:
        use_all_cores()
        print(sweep(config))

    return commands.run(command, SweepConfig, arguments, "python -m experiments.sweep")


if __name__ == "__main__":
    sys.exit(main())
