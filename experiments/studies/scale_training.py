"""A network of size and images of CIFAR's shape, made and kept on the device, for `experiments.studies.scale`."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import regjax as rj
from experiments.models import ModelConfig, make_model, split
from experiments.recipes import Setting, make_recipe, sgd

NUM_CLASSES = 10
SIDE = 32

MODELS: Mapping[str, ModelConfig] = {
    "wrn_28_10": ModelConfig("wrn", width=160, depth=4),
    "vit_s4": ModelConfig("vit", width=384, depth=12, patch=4, heads=6),
    "tiny": ModelConfig("wrn", width=4, depth=1),
}
"""36.5 and 21.3 million parameters, and a network to try the command with."""


class Images(NamedTuple):
    """Eight-bit images ``[N, 32, 32, 3]`` and their classes ``[N]``, on the device."""

    images: jax.Array
    labels: jax.Array


@partial(jax.jit, static_argnums=1)
def make_images(key: jax.Array, count: int) -> Images:
    """Gratings of five directions and two widths, in random colours and places, under noise as strong as they are.

    Args:
      key: the key.
      count: N; the classes are equally many.

    Returns:
      `Images`.
    """
    labels = jnp.arange(count, dtype=jnp.int32) % NUM_CLASSES
    y, x = jnp.meshgrid(jnp.arange(SIDE), jnp.arange(SIDE), indexing="ij")

    def one(index: jax.Array, label: jax.Array) -> jax.Array:
        keys = jax.random.split(jax.random.fold_in(key, index), 4)
        angle = jnp.pi * (label % 5) / 5 + 0.1 * jax.random.normal(keys[0])
        pitch = jnp.where(label < 5, 0.5, 0.9)
        phase = jax.random.uniform(keys[1], maxval=2 * jnp.pi)
        wave = jnp.sin(pitch * (x * jnp.cos(angle) + y * jnp.sin(angle)) + phase)
        colour = jax.random.uniform(keys[2], (3,), minval=-1.0)
        noise = jax.random.normal(keys[3], (SIDE, SIDE, 3))
        return jnp.clip(128 + 30 * (wave[..., None] * colour + noise), 0, 255).astype(jnp.uint8)

    return Images(jax.lax.map(lambda xs: one(*xs), (jnp.arange(count), labels), batch_size=min(count, 512)), labels)


@dataclasses.dataclass(frozen=True)
class Training:
    """How a method trains.

    Attributes:
      model: the name of one of `MODELS`.
      batch: examples in a step.
      examples: training images.
      steps: steps in all, for schedules and epochs.
      learning_rate: of SGD with momentum.
      bfloat16: compute in bfloat16; parameters and the optimiser's state stay float32.
    """

    model: str
    batch: int
    examples: int
    steps: int
    learning_rate: float
    bfloat16: bool


def recipe(name: str, setting: Setting) -> rj.Recipe:
    """The recipe of a method: a named one, or cutmix together with label smoothing as ImageNet recipes have them."""
    if name == "cutmix + label smoothing":
        mix = partial(rj.inputs.cutmix, alpha=1.0)
        return rj.Recipe(inputs=(mix,), loss=partial(rj.losses.label_smoothing, alpha=0.1), optimizer=sgd(setting))
    return make_recipe("baseline" if name == "plain" else name, setting, **HYPERPARAMETERS.get(name, {}))


HYPERPARAMETERS: Mapping[str, Mapping[str, float]] = {"sam": {"rho": 0.05}, "randaugment": {"magnitude": 9.0}}
"""As published for images of this kind; the recipes' defaults are tuned on digits. They do not change the cost."""

METHODS = ("plain", "cutmix + label smoothing", "sam", "saf", "randaugment")


class Program(NamedTuple):
    """A method ready to run.

    Attributes:
      init: ``(key, labels) -> state``.
      step: ``(state, images, epoch key) -> (state, loss)``; donates the state. The batch is drawn on the device.
      accuracy: ``(state, images, labels) -> share of right predictions``.
      flops: of one step, counted before XLA optimises it: the work of the formulas, the same on every device.
      parameters: how many.
    """

    init: Callable[..., rj.TrainState]
    step: Callable[..., tuple[rj.TrainState, jax.Array]]
    accuracy: Callable[..., jax.Array]
    flops: float
    parameters: int


def program(name: str, training: Training) -> Program:
    """Makes the functions of a method.

    Args:
      name: one of `METHODS`.
      training: how it trains.

    Returns:
      A `Program`; nothing is compiled yet.
    """
    dtype = jnp.bfloat16 if training.bfloat16 else None
    shape = (SIDE, SIDE, 3)
    make = lambda key: make_model(MODELS[training.model], shape, NUM_CLASSES, rngs=nnx.Rngs(key), dtype=dtype)
    apply_fn, params, _ = split(nnx.eval_shape(lambda: make(jax.random.key(0))))
    per_epoch = training.examples // training.batch
    setting = Setting(
        num_examples=training.examples,
        num_classes=NUM_CLASSES,
        feature_dim=params["head"]["kernel"].shape[0],
        steps_per_epoch=per_epoch,
        epochs=max(1, training.steps // per_epoch),
        total_steps=training.steps,
        learning_rate=training.learning_rate,
    )
    train = rj.make_train_step(recipe(name, setting), apply_fn, num_classes=NUM_CLASSES, steps_per_epoch=per_epoch)

    def init(key: jax.Array, labels: jax.Array) -> rj.TrainState:
        model_key, step_key = jax.random.split(key)
        return train.init(step_key, *split(make(model_key))[1:], labels=labels)

    def step(state: rj.TrainState, data: Images) -> tuple[rj.TrainState, jax.Array]:
        # Every example has the same chance in every step; an epoch's permutation would only add its sort.
        draw = jax.random.fold_in(jax.random.key(1), state.step)
        index = jax.random.randint(draw, (training.batch,), 0, training.examples)
        batch = {"image": _scaled(data.images[index]), "label": data.labels[index], "index": index}
        state, metrics = train.step(state, batch)
        return state, metrics["task_loss"]

    def accuracy(state: rj.TrainState, data: Images) -> jax.Array:
        forward = partial(apply_fn, state.params, state.model_state, key=None, hooks=rj.Hooks(), training=False)
        right = lambda xs: jnp.argmax(forward(_scaled(xs[0])[None]).logits[0], -1) == xs[1]
        return jnp.mean(jax.lax.map(right, data, batch_size=min(len(data.labels), 256)).astype(jnp.float32))

    state = jax.eval_shape(init, jax.random.key(0), jax.ShapeDtypeStruct((training.examples,), jnp.int32))
    data = jax.eval_shape(lambda key: make_images(key, training.examples), jax.random.key(0))
    counted = jax.jit(step).lower(state, data).cost_analysis() or {}
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    return Program(
        jax.jit(init), jax.jit(step, donate_argnums=0), jax.jit(accuracy), float(counted.get("flops", 0.0)), int(count)
    )


def _scaled(pixels: jax.Array) -> jax.Array:
    """Pixels with mean about 0 and deviation about 1."""
    return (pixels.astype(jnp.float32) - 128) / 40


class Chip(NamedTuple):
    """What a data sheet says.

    Attributes:
      peak: bfloat16 operations a second, dense.
      network: bytes a second that one chip sends in an all-reduce over many.
      host: bytes a second from the host's memory to one chip.
    """

    peak: float
    network: float
    host: float


CHIPS: Mapping[str, Chip] = {
    "H200": Chip(989.4e12, 50e9, 50e9),
    "H100": Chip(989.4e12, 50e9, 50e9),
    "A100": Chip(312e12, 25e9, 25e9),
    "TPU v5 lite": Chip(197e12, 100e9, 8e9),
}
"""By a part of the device's name. The network is that between hosts on GPUs (one 400 Gb/s port each), and that of the torus on
TPUs (half of 1,600 Gb/s); figures of the makers' data sheets, from memory, not measured."""


def chip_of(device_kind: str) -> Chip | None:
    """The data sheet of a device; None for a device without one, such as a processor."""
    return next((chip for name, chip in CHIPS.items() if name in device_kind), None)


class Projection(NamedTuple):
    """A step of data-parallel training on many chips, on paper.

    Attributes:
      compute: milliseconds of arithmetic.
      exchange: milliseconds of all-reduces, were nothing of them hidden behind the arithmetic.
      feed: milliseconds to bring the batch from the host.
      images_per_second: of all chips, with nothing and with all of the exchange behind the arithmetic; the input always is.
      bottleneck: the longest of the three.
    """

    compute: float
    exchange: float
    feed: float
    images_per_second: tuple[float, float]
    bottleneck: str


def project(
    flops: float, parameters: int, batch: int, chips: int, chip: Chip, share: float, *, all_reduces: float = 1.0
) -> Projection:
    """What a step takes on many chips if each reaches the same share of its peak.

    Args:
      flops: of a step of ``batch`` examples.
      parameters: exchanged in float32, twice ``(n - 1) / n`` of them each time.
      batch: examples a chip and step.
      chips: how many.
      chip: its data sheet.
      share: of the peak, measured on one chip or assumed.
      all_reduces: how often gradients are exchanged in a step: 2 for SAM over the whole batch, 1 where each chip perturbs by
        its own examples.

    Returns:
      A `Projection`.
    """
    compute = flops / (share * chip.peak)
    exchange = all_reduces * 2 * (chips - 1) / chips * 4 * parameters / chip.network
    feed = batch * SIDE * SIDE * 3 / chip.host
    parts = {"arithmetic": compute, "all-reduce": exchange, "input": feed}
    speed = lambda seconds: batch * chips / seconds
    between = (speed(max(compute + exchange, feed)), speed(max(compute, exchange, feed)))
    return Projection(1e3 * compute, 1e3 * exchange, 1e3 * feed, between, max(parts, key=lambda name: parts[name]))


def global_norm(params: Any) -> float:
    """The norm of all parameters, to see that a run has moved and not diverged."""
    return float(np.asarray(optax.tree.norm(params)))
