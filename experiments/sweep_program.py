"""The points of a sweep as one compiled program: hyperparameters are its arguments, seeds and points are batched and spread."""

import functools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding

from experiments.engine import Pipeline, SeedData, Task, begin, make_pipeline, resolved_seeds_by, run_keys, train_epochs
from experiments.evaluation import measure

ON_A_CPU = 4
"""Points at once on a core: they share the data and the random numbers of a seed. More of them leave the cache, and gain nothing:
milliseconds of a core for a run of 120 steps of the digits MLP, one point, four and eight at once: dropout 16, 10, 10;
SAM 18, 17, 17."""


class Values(NamedTuple):
    """The hyperparameters of some points of one program.

    Attributes:
      fixed: what is compiled in, the same for all of them.
      traced: arrays ``[P]`` by name.
    """

    fixed: Mapping[str, Any]
    traced: Mapping[str, np.ndarray]


class Judged(NamedTuple):
    """What a program gives of its points; every array with leading axes of seeds and points ``[S, P]``.

    Attributes:
      measures: for ``validation`` and ``test`` the measures of `experiments.evaluation.measure`, for ``train`` the share of
        labels predicted, that of the wrong ones, and the loss of the last epoch.
      state: the leaves of the training states, or nothing.
    """

    measures: Mapping[str, Mapping[str, Any]]
    state: tuple[Any, ...]


class Layout(NamedTuple):
    """How the runs of a program lie on the devices: each has some of the seeds and some of the points.

    Attributes:
      seeds: devices along the seeds, which they divide.
      points: devices along the points.
    """

    seeds: int
    points: int


def layout(points: int, seeds: int, devices: int) -> Layout:
    """The layout whose busiest device has the fewest runs, and of those the one that needs the fewest devices.

    Where two are alike the seeds are spread, so that each device holds the data of its own seeds alone.

    Args:
      points: how many.
      seeds: how many.
      devices: how many there are.

    Returns:
      A `Layout`.
    """
    options = [Layout(s, p) for s in range(1, seeds + 1) if seeds % s == 0 for p in range(1, devices // s + 1)]
    return min(options, key=lambda at: (seeds // at.seeds * math.ceil(points / at.points), at.seeds * at.points, at.points))


class Program:
    """Some epochs of all points that have the same fixed hyperparameters.

    A call takes as many points as fit, with all their seeds; the last call of a sweep is filled up with its last point, so that
    one compilation serves all. Calls rather than one loop inside the program: what a call gave is kept on disk, and an
    interrupted sweep goes on there.

    Args:
      recipe: its name.
      task: the data, the seeds and the training. The images on which it is judged are those of validation, then those of test.
      cut: how many of those are for validation.
      values: the hyperparameters of all points.
      epochs: which to train; those after the first take up the states of the points.
      keep: whether to return states.
      at_once: runs that a device batches; 0 for as many as memory holds, and `ON_A_CPU` there.
      memory: what a device may use, in bytes.
    """

    def __init__(
        self, recipe: str, task: Task, cut: int, values: Values, epochs: range, *, keep: bool, at_once: int, memory: float
    ):
        self._recipe, self._task, self._cut, self._epochs, self._keep = recipe, task, cut, epochs, keep
        self._fixed, self._dtypes = values.fixed, {name: array.dtype for name, array in values.traced.items()}
        self._template = jax.eval_shape(self._initial_state, {name: array[0] for name, array in values.traced.items()})
        count, seeds = len(next(iter(values.traced.values()), [0])), len(task.seeds)
        at = layout(count, seeds, len(jax.devices()))
        devices = jax.devices()[: at.seeds * at.points]
        self.mesh = jax.make_mesh(tuple(at), Layout._fields, axis_types=(AxisType.Auto,) * 2, devices=devices)
        by_seed = NamedSharding(self.mesh, jax.P("seeds"))
        shared = (jax.random.key_data(run_keys(task)), SeedData(*task.data), task.initial)
        self._shared = jax.device_put(jax.device_get(shared), by_seed)
        self._points, self._seeds = math.ceil(count / at.points), seeds // at.seeds
        self.compile_seconds = 0.0
        self._fit(at_once, memory)

    @property
    def points(self) -> int:
        """How many a call takes."""
        return self._batch * self.mesh.shape["points"]

    def __call__(self, traced: Mapping[str, np.ndarray], state: Sequence[np.ndarray]) -> Judged:
        """Trains points and judges them.

        Args:
          traced: their hyperparameters ``[P]``, at most `points`.
          state: the leaves of their states ``[S, P, ...]``; empty for the first epochs.

        Returns:
          `Judged`, of NumPy arrays.
        """
        count = len(next(iter(traced.values()), [0]))
        filled = np.minimum(np.arange(self.points), count - 1)
        values = {name: np.asarray(traced[name], dtype)[filled] for name, dtype in self._dtypes.items()}
        values["point"] = filled.astype(np.int32)
        out = jax.device_get(self._compiled(values, *self._shared, [np.asarray(leaf)[:, filled] for leaf in state]))
        return jax.tree.map(lambda leaf: leaf[:, :count], out)

    def _fit(self, at_once: int, memory: float) -> None:
        """Compiles with as many points at once as memory holds, by the compiler's own account of a call."""
        bytes_of = lambda tree: sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        # Parameters, gradient and update beside the state: only so that the first attempt is no absurd one.
        first = max(int(memory / (3 * max(bytes_of(self._template), 1))), 1)
        runs = at_once or min(first, self._on_this_device())
        while True:
            batch = min(runs, self._points)
            batch = math.ceil(self._points / math.ceil(self._points / batch))  # calls of one size
            self._batch, seeds = batch, min(max(runs // batch, 1), self._seeds)
            self._compile(seeds)
            used = self._bytes()
            if at_once or used <= memory or runs == 1:
                return
            runs = max(min(batch * seeds - 1, int(0.9 * batch * seeds * memory / used)), 1)

    def _on_this_device(self) -> int:
        if resolved_seeds_by(self._task.config) == "map":
            return 1
        return ON_A_CPU if jax.default_backend() == "cpu" else self._points * self._seeds

    def _bytes(self) -> float:
        found = self._compiled.memory_analysis()
        return 0.0 if found is None else found.temp_size_in_bytes + found.argument_size_in_bytes + found.output_size_in_bytes

    def _compile(self, seeds: int) -> None:
        """Compiles the program with so many seeds at once."""
        began, axes = time.perf_counter(), jax.P("seeds", "points")
        spread = jax.shard_map(
            functools.partial(self._block, seeds),
            mesh=self.mesh,
            in_specs=(jax.P("points"), jax.P("seeds"), jax.P("seeds"), jax.P("seeds"), axes),
            out_specs=axes,
            check_vma=False,
        )
        count = self.points
        values = {name: jax.ShapeDtypeStruct((count,), dtype) for name, dtype in {**self._dtypes, "point": np.int32}.items()}
        like = jax.eval_shape(_pack, self._template) if self._epochs.start else []
        state = [jax.ShapeDtypeStruct((len(self._task.seeds), count, *leaf.shape), leaf.dtype) for leaf in like]
        # The states that a call takes are not needed after it.
        jitted = jax.jit(spread, donate_argnums=4 if state and self._keep else ())
        self._compiled = jitted.lower(values, *self._shared, state).compile()
        self.compile_seconds += time.perf_counter() - began

    def _block(self, at_once: int, values: Any, keys: Any, data: Any, initial: Any, state: Any) -> Judged:
        """What one device does: seeds in turns or together, the points of a seed together."""
        points = lambda *of_seed: _batched(lambda values, state: self._run(values, *of_seed[:3], state), values, of_seed[3])
        arguments = (keys, data, initial, state)
        if at_once >= self._seeds:
            return jax.vmap(points)(*arguments)
        return jax.lax.map(lambda args: points(*args), arguments, batch_size=at_once if at_once > 1 else None)

    def _pipeline(self, values: Mapping[str, Any]) -> Pipeline:
        return pipeline(self._recipe, self._task, {**self._fixed, **{name: values[name] for name in self._dtypes}})

    def _initial_state(self, values: Mapping[str, Any]) -> Any:
        data, initial = jax.tree.map(lambda x: x[0], (SeedData(*map(jnp.asarray, self._task.data)), self._task.initial))
        return begin(self._pipeline(values), jax.random.key(0), data, initial)

    def _run(self, values: Mapping[str, Any], key: Any, data: SeedData, initial: Any, state: Sequence[Any]) -> Judged:
        """One run: a seed at a point."""
        made, key = self._pipeline(values), jax.random.wrap_key_data(key)
        before = _unpack(state, self._template) if self._epochs.start else begin(made, key, data, initial)
        after, losses = train_epochs(made, self._task, key, data, before, jnp.array(self._epochs))
        logits = made.predict(after, data.eval_images).logits
        right = jnp.argmax(made.predict(after, data.images).logits, -1) == data.labels
        wrong = data.labels != data.clean
        measures = {
            "validation": measure(logits[: self._cut], data.eval_labels[: self._cut]),
            "test": measure(logits[self._cut :], data.eval_labels[self._cut :]),
            "train": {
                "accuracy": jnp.mean(right.astype(jnp.float32)),
                "memorized": jnp.sum(wrong & right) / jnp.maximum(jnp.sum(wrong), 1),
                "loss": jnp.mean(losses[-1]),
            },
        }
        return Judged(measures, tuple(_pack(after)) if self._keep else ())


def pipeline(recipe: str, task: Task, values: Mapping[str, Any]) -> Pipeline:
    """The pure functions of a recipe at a point, whose values may hold a learning rate."""
    own = {name: value for name, value in values.items() if name != "learning_rate"}
    return make_pipeline(recipe, task, own, learning_rate=values.get("learning_rate"))


def _batched(run: Callable[..., Any], values: Mapping[str, Any], state: Any) -> Any:
    """The points of a seed by vmap; a single one without, as vmapped convolutions are slow on a CPU."""
    if len(values["point"]) > 1:
        return jax.vmap(run)(values, state)
    return jax.tree.map(lambda x: x[None], run(*jax.tree.map(lambda x: x[0], (values, state))))


def _pack(tree: Any) -> list[Any]:
    """The leaves of a state, its random keys as numbers."""
    return [jax.random.key_data(leaf) if _is_key(leaf) else leaf for leaf in jax.tree.leaves(tree)]


def _unpack(leaves: Sequence[Any], like: Any) -> Any:
    """The state that `_pack` took apart."""
    kinds, structure = jax.tree.flatten(like)
    restored = [jax.random.wrap_key_data(x) if _is_key(kind) else x for x, kind in zip(leaves, kinds, strict=True)]
    return jax.tree.unflatten(structure, restored)


def _is_key(leaf: Any) -> bool:
    return jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
