"""Many seeds of one recipe in one compiled program: initialisation, every epoch, and evaluation, with no host round trip."""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import regjax as rj
from experiments.data import epoch_permutation
from experiments.evaluation import measure
from experiments.models import Classifier, ModelConfig, make_model, split
from experiments.recipes import RecipeFn, Setting, make_recipe


class SeedData(NamedTuple):
    """The arrays of all seeds with a leading axis, or inside the program of one: each has its own subset and label noise.

    Attributes:
      images: training images [N, H, W, C].
      labels: training labels [N], noisy where the setting says so.
      clean: the true labels of the training images [N].
      eval_images: the images on which the run is judged [M, H, W, C].
      eval_labels: their true labels [M].
    """

    images: Any
    labels: Any
    clean: Any
    eval_images: Any
    eval_labels: Any


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """How a recipe is trained.

    Attributes:
      model: the model.
      epochs: passes over the training set.
      learning_rate: the rate of every recipe but one cycle; at the default the plain method learns all its labels by heart.
      points: how often the run is evaluated on the way; divides ``epochs``.
      seeds_by: ``vmap`` batches the seeds, ``map`` runs them one after the other inside the program, ``auto`` takes ``map``
        for convolutions on a CPU, where XLA turns vmapped ones into slower grouped ones (a ResNet of width 16, four seeds, two
        cores: 84 ms a step and seed by ``map``, 100 ms by ``vmap``), and ``vmap`` elsewhere.
    """

    model: ModelConfig = dataclasses.field(default_factory=ModelConfig)
    epochs: int = 100
    learning_rate: float = 0.02
    points: int = 20
    seeds_by: Literal["auto", "vmap", "map"] = "auto"

    def __post_init__(self) -> None:
        """Refuses settings that cannot run."""
        for field in ("epochs", "points"):
            if getattr(self, field) < 1:
                raise ValueError(f"RunConfig: {field} must be at least 1, got {getattr(self, field)}")
        if not 0 < self.learning_rate < float("inf"):
            raise ValueError(f"RunConfig: learning_rate must be a positive number, got {self.learning_rate}")
        if self.epochs % self.points:
            raise ValueError(f"RunConfig: points must divide epochs = {self.epochs}, got {self.points}")


class RunResult(NamedTuple):
    """What the seeds of a recipe gave; every list has one entry a seed.

    Attributes:
      metrics: final ``accuracy``, ``nll``, ``ece``, ``aurc`` on the judging split and ``memorized``: the share of wrongly
        labelled training examples that the model predicts as labelled.
      curves: the same accuracies and the training loss at every point, [seeds][points].
      epochs: the epoch of every point.
      seconds_per_step: running time of the program, evaluation included, over its steps and seeds; of short runs
        the better of two repetitions.
      compile_seconds: tracing and compiling.
      flops_per_step: of one training step of one seed, from XLA.
    """

    metrics: dict[str, list[float]]
    curves: dict[str, list[list[float]]]
    epochs: list[int]
    seconds_per_step: float
    compile_seconds: float
    flops_per_step: float


class Record(NamedTuple):
    """What the seeds of a recipe leave behind; every array has a leading axis of seeds.

    Attributes:
      logits: of the judging split after the last epoch, ``[S, M, K]``.
      features: of the same images, ``[S, M, D]``.
      predictions: the classes predicted for the training examples at every point, ``[S, points, N]``.
      curves: as in `RunResult`, ``[S, points]`` each.
      judged: the classes predicted for the judging split at every point, ``[S, points, M]``.
    """

    logits: Any
    features: Any
    predictions: Any
    curves: Mapping[str, Any]
    judged: Any


def resolved_seeds_by(config: RunConfig) -> str:
    """What ``auto`` stands for on this platform."""
    if config.seeds_by != "auto":
        return config.seeds_by
    return "map" if config.model.name in ("resnet", "wrn") and jax.default_backend() == "cpu" else "vmap"


@dataclasses.dataclass(frozen=True)
class Task:
    """What the recipes of a comparison share.

    Attributes:
      data: the arrays of every seed.
      seeds: the seeds, one for each entry of their leading axis.
      num_classes: the number of classes.
      batch_size: examples in a step; the rest of an epoch is left out.
      config: how they are trained.
    """

    data: SeedData
    seeds: Sequence[int]
    num_classes: int
    batch_size: int
    config: RunConfig

    def __post_init__(self) -> None:
        """Refuses a batch that no epoch holds."""
        if self.batch_size > self.num_examples:
            raise ValueError(f"Task: batch_size must be at most the {self.num_examples} training examples, got {self.batch_size}")

    @property
    def num_examples(self) -> int:
        """Training examples of one seed."""
        return self.data.labels.shape[1]

    @property
    def steps_per_epoch(self) -> int:
        """Whole batches in an epoch."""
        return self.num_examples // self.batch_size

    def model(self, key: jax.Array) -> Classifier:
        """A fresh model."""
        shape = tuple(self.data.images.shape[2:])
        return make_model(self.config.model, shape, self.num_classes, rngs=nnx.Rngs(key))

    @functools.cached_property
    def initial(self) -> tuple[Any, Any]:
        """Parameters and mutable state of every seed, the same for all recipes; compiled once, as it takes seconds."""
        with jax.ensure_compile_time_eval():  # it is kept, so it may be no part of a trace that asks for it first
            keys = jax.vmap(jax.random.key)(jnp.asarray(self.seeds))
            return jax.jit(jax.vmap(lambda key: split(self.model(key))[1:]))(keys)


class Pipeline(NamedTuple):
    """A recipe as pure functions of a `TrainState`: its start, one step, and logits and features of images."""

    init: Callable[..., rj.TrainState]
    step: Callable[[rj.TrainState, Mapping[str, jax.Array]], Any]
    predict: Callable[[rj.TrainState, jax.Array], rj.Outputs]


def record(recipe: str | RecipeFn, task: Task, **hyperparameters: Any) -> Record:
    """Trains one recipe on every seed in one compiled program and keeps what it predicts.

    Args:
      recipe: its name, or a function of the `Setting`.
      task: the data, the seeds and the training.
      **hyperparameters: those of the recipe that differ from its defaults.

    Returns:
      A `Record` of NumPy arrays.

    Raises:
      ValueError: if the recipe is unknown.
    """
    program, arguments = _program(make_pipeline(recipe, task, hyperparameters), task)
    return jax.device_get(jax.jit(program)(*arguments))


def run(recipe: str | RecipeFn, task: Task, **hyperparameters: Any) -> RunResult:
    """Trains and judges one recipe on every seed in one compiled program.

    Args:
      recipe: its name, or a function of the `Setting`.
      task: the data, the seeds and the training.
      **hyperparameters: those of the recipe that differ from its defaults.

    Returns:
      A `RunResult`.

    Raises:
      ValueError: if the recipe is unknown.
    """
    config, pipeline = task.config, make_pipeline(recipe, task, hyperparameters)
    program, arguments = _program(pipeline, task)

    def judged(*arguments: Any) -> tuple[jax.Array, Mapping[str, jax.Array]]:
        kept = program(*arguments)
        return kept.logits, kept.curves

    arguments = jax.block_until_ready(arguments)
    began = time.perf_counter()
    compiled = jax.jit(judged).lower(*arguments).compile()
    compile_seconds = time.perf_counter() - began
    began = time.perf_counter()
    logits, curves = jax.block_until_ready(compiled(*arguments))
    seconds = time.perf_counter() - began
    if seconds < 2:  # a short run is repeated, as its time says little
        seconds = min(_seconds(lambda: compiled(*arguments)) for _ in range(2))

    every = config.epochs // config.points
    return RunResult(
        metrics={
            **{
                name: np.asarray(values).tolist()
                for name, values in jax.jit(jax.vmap(measure))(logits, jnp.asarray(task.data.eval_labels)).items()
            },
            "memorized": np.asarray(curves["memorized"])[:, -1].tolist(),
        },
        curves={name: np.round(np.asarray(values, np.float64), 5).tolist() for name, values in curves.items()},
        epochs=list(range(every, config.epochs + 1, every)),
        seconds_per_step=seconds / (config.epochs * task.steps_per_epoch * len(task.seeds)),
        compile_seconds=compile_seconds,
        flops_per_step=flops_per_step(pipeline, task),
    )


def _program(pipeline: Pipeline, task: Task) -> tuple[Callable[..., Record], tuple[Any, ...]]:
    """The run of every seed as one pure function, and its arguments."""
    one = functools.partial(_one_seed, pipeline, task)
    by_map = lambda *args: jax.lax.map(lambda xs: one(*xs), args)
    whole = jax.vmap(one) if resolved_seeds_by(task.config) == "vmap" else by_map
    return whole, (run_keys(task), SeedData(*map(jnp.asarray, task.data)), task.initial)


def _seconds(call: Callable[[], Any]) -> float:
    began = time.perf_counter()
    jax.block_until_ready(call())
    return time.perf_counter() - began


def flops_per_step(pipeline: Pipeline, task: Task) -> float:
    """FLOPs of one training step, by XLA's cost analysis of the step compiled alone."""
    image = jnp.zeros((task.batch_size, *task.data.images.shape[2:]), jnp.float32)
    index = jnp.zeros(task.batch_size, jnp.int32)
    params, model_state = jax.tree.map(lambda x: x[0], task.initial)
    state = jax.eval_shape(pipeline.init, jax.random.key(0), params, model_state, task.data.labels[0])
    compiled = jax.jit(pipeline.step).lower(state, {"image": image, "label": index, "index": index}).compile()
    return float(compiled.cost_analysis()["flops"])


def make_pipeline(
    recipe: str | RecipeFn, task: Task, hyperparameters: Mapping[str, Any], *, learning_rate: Any = None
) -> Pipeline:
    """The pure functions of a recipe on a task; hyperparameters and the learning rate (the task's by default) may be traced."""
    apply_fn, params, model_state = split(nnx.eval_shape(lambda: task.model(jax.random.key(0))))
    evaluate = functools.partial(apply_fn, key=None, hooks=rj.Hooks(), training=False)
    image = jax.ShapeDtypeStruct((1, *task.data.images.shape[2:]), jnp.float32)
    setting = Setting(
        num_examples=task.num_examples,
        num_classes=task.num_classes,
        feature_dim=jax.eval_shape(evaluate, params, model_state, image).features.shape[-1],
        steps_per_epoch=task.steps_per_epoch,
        epochs=task.config.epochs,
        total_steps=task.config.epochs * task.steps_per_epoch,
        learning_rate=task.config.learning_rate if learning_rate is None else learning_rate,
    )
    made = make_recipe(recipe, setting, **hyperparameters) if isinstance(recipe, str) else recipe(setting, **hyperparameters)
    train = rj.make_train_step(made, apply_fn, num_classes=task.num_classes, steps_per_epoch=task.steps_per_epoch)

    def predict(state: rj.TrainState, images: jax.Array) -> rj.Outputs:
        return evaluate(state.params, state.model_state, images)

    return Pipeline(train.init, train.step, predict)


def run_keys(task: Task) -> jax.Array:
    """The key of every seed's run."""
    return jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(seed), 1))(jnp.asarray(task.seeds))


def begin(pipeline: Pipeline, key: jax.Array, data: SeedData, initial: tuple[Any, Any]) -> rj.TrainState:
    """The state in which the run of one seed begins."""
    init_key, _ = jax.random.split(key)
    return pipeline.init(init_key, *initial, labels=data.labels)


def train_epochs(
    pipeline: Pipeline, task: Task, key: jax.Array, data: SeedData, state: rj.TrainState, epochs: jax.Array
) -> tuple[rj.TrainState, jax.Array]:
    """Some epochs of the run of one seed, from the state after those before.

    Args:
      pipeline: the recipe.
      task: the training.
      key: of the run, the same for all epochs.
      data: of the seed.
      state: after the epochs before.
      epochs: their numbers ``[E]``, counted from 0.

    Returns:
      The state after them, and the training losses ``[E, steps]``.
    """
    _, order_key = jax.random.split(key)

    def one_step(state: rj.TrainState, index: jax.Array) -> Any:
        batch = {"image": data.images[index], "label": data.labels[index], "index": index}
        state, metrics = pipeline.step(state, batch)
        return state, metrics["task_loss"]

    def one_epoch(state: rj.TrainState, epoch: jax.Array) -> Any:
        order = epoch_permutation(jax.random.fold_in(order_key, epoch), len(data.labels), task.batch_size)
        return jax.lax.scan(one_step, state, order)

    return jax.lax.scan(one_epoch, state, epochs)


def _one_seed(pipeline: Pipeline, task: Task, key: jax.Array, data: SeedData, initial: tuple[Any, Any]) -> Record:
    """The whole run of one seed."""
    wrong = data.labels != data.clean

    def one_point(state: rj.TrainState, epochs: jax.Array) -> Any:
        state, losses = train_epochs(pipeline, task, key, data, state, epochs)
        judged = jnp.argmax(pipeline.predict(state, data.eval_images).logits, -1)
        seen = jnp.argmax(pipeline.predict(state, data.images).logits, -1)
        curves = {
            "accuracy": jnp.mean((judged == data.eval_labels).astype(jnp.float32)),
            "train_accuracy": jnp.mean((seen == data.labels).astype(jnp.float32)),
            "memorized": jnp.sum(wrong & (seen == data.labels)) / jnp.maximum(jnp.sum(wrong), 1),
            "train_loss": jnp.mean(losses[-1]),
        }
        return state, (curves, seen, judged)

    epochs = jnp.arange(task.config.epochs).reshape(task.config.points, -1)
    state, (curves, seen, judged) = jax.lax.scan(one_point, begin(pipeline, key, data, initial), epochs)
    out = pipeline.predict(state, data.eval_images)
    return Record(out.logits, out.features, seen, curves, judged)
