"""The training runs of the study of plasticity: one network learns a stream of tasks, with one penalty on its weights."""

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import regjax as rj
from experiments.data import DataConfig, load_arrays
from experiments.studies import common

STREAMS = ("random labels", "permuted pixels")
"""What changes from task to task: the labels, or the order of the pixels."""

METHODS = ("none", "L2", "L2 to init", "Wasserstein to init", "orthonormality", "spectral")
"""What is added to the loss."""


class Stream(NamedTuple):
    """The tasks of one run, or of many along a leading axis.

    Attributes:
      images: of training ``[N, 64]``, the same in every task.
      test_images: ``[M, 64]``.
      test_labels: true ones ``[M]``.
      orders: the place that every pixel comes from in each task ``[T, 64]``.
      labels: of training in each task ``[T, N]``.
    """

    images: Any
    test_images: Any
    test_labels: Any
    orders: Any
    labels: Any


class Curves(NamedTuple):
    """What a run measures in each task.

    Attributes:
      accuracy: on the training images after the last epoch.
      online: of the batches before each step on them, the mean over the task.
      test: accuracy on test images in the task's order of pixels, with their true labels: chance where labels are random.
      norm: the largest singular value of the middle kernels, their geometric mean.
      rank: of the middle layer's features of all training images, the share of singular values that hold 99 % of their sum.
      dead: the share of hidden units that answer no training image.
    """

    accuracy: Any
    online: Any
    test: Any
    norm: Any
    rank: Any
    dead: Any


def load(config: Any, kind: str, seeds: Sequence[int]) -> Stream:
    """The tasks of every seed.

    Args:
      config: a `PlasticityConfig`.
      kind: of `STREAMS`.
      seeds: each with its own images, permutations and labels.

    Returns:
      A `Stream` with a leading axis of seeds.
    """
    tasks, every = config.tasks[STREAMS.index(kind)], []
    for seed in seeds:
        rng = np.random.default_rng([STREAMS.index(kind), seed])
        splits = load_arrays(DataConfig(name="digits", batch_size=config.batch_size, seed=seed, validation=0.0))
        flat = lambda split: np.asarray(split.images, np.float32).reshape(len(split.labels), -1)
        rows = np.random.default_rng(seed).permutation(len(splits.train.labels))[: config.images]
        images, labels = flat(splits.train)[rows], np.asarray(splits.train.labels)[rows]
        size, pixels = images.shape
        if kind == "random labels":
            orders = np.tile(np.arange(pixels), (tasks, 1))
            labels = rng.integers(0, 10, (tasks, size))
        else:
            orders = np.stack([rng.permutation(pixels) for _ in range(tasks)])
            labels = np.tile(labels, (tasks, 1))
        every.append(Stream(images, flat(splits.test), np.asarray(splits.test.labels), orders, labels.astype(np.int32)))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *every)


def initialise(key: Any, width: int, depth: int) -> list[dict[str, jax.Array]]:
    """The kernels, He-normal, and biases, zero, of an MLP of ``depth`` hidden layers from 64 pixels to 10 classes."""
    sizes = [64, *[width] * depth, 10]
    keys = jax.random.split(key, depth + 1)
    ends = zip(keys, sizes[:-1], sizes[1:], strict=True)
    return [{"kernel": jax.random.normal(k, (m, n)) * jnp.sqrt(2 / m), "bias": jnp.zeros(n)} for k, m, n in ends]


def network(params: Sequence[Mapping[str, Any]], x: jax.Array) -> tuple[jax.Array, list[jax.Array]]:
    """Logits, and the answers of every hidden layer."""
    hidden = []
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
        hidden.append(x)
    return x @ params[-1]["kernel"] + params[-1]["bias"], hidden


class Penalty(NamedTuple):
    """``init(key, params) -> memory`` and ``apply(memory, params) -> (value, memory)``, for every method alike."""

    init: Callable[..., Any]
    apply: Callable[..., Any]


def make_penalty(method: str) -> Penalty:
    """The penalty of one of `METHODS`, on kernels and biases, orthonormality on kernels alone."""
    common.check("make_penalty", "method", (method,), METHODS)
    w = rj.weights
    if method == "spectral":
        stateful = w.stateful_spectral_penalty()
        return Penalty(stateful.init, stateful.apply)
    still = lambda penalty: Penalty(lambda key, params: (), lambda memory, params: (penalty(params), memory))
    if method == "none":
        return still(lambda params: jnp.zeros(()))
    if method == "L2":
        return still(functools.partial(w.l2, where="all"))
    if method == "orthonormality":
        return still(functools.partial(w.orthonormality, side="auto"))
    start = (lambda params: params) if method == "L2 to init" else w.sorted_init
    # alpha = 1: half the sum of squares, as L2's.
    distance = functools.partial(w.l2_sp, alpha=1.0) if method == "L2 to init" else w.wasserstein_to_init
    return Penalty(lambda key, params: start(params), lambda memory, params: (distance(params, memory), memory))


def make_program(config: Any, kind: str, method: str) -> Callable[[Stream, jax.Array, jax.Array], Curves]:
    """The compiled runs of a method.

    Args:
      config: a `PlasticityConfig`.
      kind: of `STREAMS`.
      method: of `METHODS`.

    Returns:
      A function of tasks with a leading axis ``[R, ...]``, seeds ``[R]`` and strengths ``[R]``, that gives `Curves` ``[R, T]``.
    """
    penalty = make_penalty(method)
    optimizer = optax.adam(config.learning_rate)
    steps, epochs = config.images // config.batch_size, config.epochs[STREAMS.index(kind)]

    def loss(
        params: Any, memory: Any, strength: jax.Array, x: jax.Array, y: jax.Array
    ) -> tuple[jax.Array, tuple[Any, jax.Array]]:
        logits, _ = network(params, x)
        value, memory = penalty.apply(memory, params)
        hits = jnp.mean(jnp.argmax(logits, axis=-1) == y)
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y)) + strength * value, (memory, hits)

    def run(stream: Stream, seed: jax.Array, strength: jax.Array) -> Curves:
        key = jax.random.key(seed)
        params = initialise(jax.random.fold_in(key, 0), config.width, config.depth)
        carry = params, optimizer.init(params), penalty.init(jax.random.fold_in(key, 1), params)

        def task(carry: Any, item: Any) -> Any:
            order, labels, key = item
            images = stream.images[:, order]

            def step(carry: Any, rows: jax.Array) -> Any:
                params, state, memory = carry
                gradient, (memory, hits) = jax.grad(loss, has_aux=True)(params, memory, strength, images[rows], labels[rows])
                updates, state = optimizer.update(gradient, state)
                return (optax.apply_updates(params, updates), state, memory), hits

            def epoch(carry: Any, key: jax.Array) -> Any:
                rows = jax.random.permutation(key, config.images)[: steps * config.batch_size]
                return jax.lax.scan(step, carry, rows.reshape(steps, -1))

            carry, hits = jax.lax.scan(epoch, carry, jax.random.split(key, epochs))
            params = carry[0]
            logits, hidden = network(params, images)
            sigmas = [jnp.linalg.svd(layer["kernel"], compute_uv=False)[0] for layer in params[1:-1]]
            singular = jnp.sort(jnp.linalg.svd(hidden[len(hidden) // 2], compute_uv=False))[::-1]
            shares = jnp.cumsum(singular) / jnp.maximum(jnp.sum(singular), 1e-12)
            guess = jnp.argmax(network(params, stream.test_images[:, order])[0], axis=-1)
            return carry, Curves(
                jnp.mean(jnp.argmax(logits, axis=-1) == labels),
                jnp.mean(hits),
                jnp.mean(guess == stream.test_labels),
                jnp.exp(jnp.mean(jnp.log(jnp.stack(sigmas)))),
                (1 + jnp.sum(shares < 0.99)) / config.width,
                jnp.mean(jnp.stack([jnp.all(x <= 0, axis=0) for x in hidden])),
            )

        keys = jax.random.split(jax.random.fold_in(key, 2), len(stream.orders))
        return jax.lax.scan(task, carry, (stream.orders, stream.labels, keys))[1]

    return jax.jit(jax.vmap(run))
