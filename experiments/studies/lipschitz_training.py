"""The networks of the study of Lipschitz bounds: how they are trained, and what is measured of one."""

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

NETWORKS = ("CNN, circular", "CNN, zeros", "MLP")
"""Three convolutions 3x3 and a dense layer, with circular or with zero padding; or three dense layers."""

PENALTIES = ("Lipschitz", "Lipschitz, convolutions", "spectral norm")
"""The sum of bounds above 1 of all kernels, of the convolutions alone as published, and half the sum of squared norms."""

POOLING = 0.5
"""The norm of the mean over 2 x 2 positions, after the second convolution."""

Params = Mapping[str, Mapping[str, Any]]


class Data(NamedTuple):
    """Images as rows ``[N, 64]`` and labels ``[N]`` of one seed, or of all along a leading axis."""

    images: Any
    labels: Any
    test_images: Any
    test_labels: Any


class Measured(NamedTuple):
    """What a trained network has.

    Attributes:
      accuracy: on test images.
      bounds: of every layer by Gram iteration ``[L]``.
      norms: of every layer by the singular value decomposition of its matrix ``[L]``.
      product: of the bounds, and of pooling.
      exact_product: of the norms, and of pooling.
      jacobian: the largest singular value of the Jacobian at a test image, the largest.
      mean_jacobian: the mean of it over test images.
      ratio: the largest of distances of logits over distances of images, over all pairs of test images.
    """

    accuracy: Any
    bounds: Any
    norms: Any
    product: Any
    exact_product: Any
    jacobian: Any
    mean_jacobian: Any
    ratio: Any


def load(seeds: Sequence[int]) -> Data:
    """Digits of every seed's split, each channel of mean 0 and standard deviation 1 over its training images."""
    every = []
    for seed in seeds:
        splits = load_arrays(DataConfig(name="digits", seed=seed, validation=0.0))
        parts = [(np.reshape(part.images, (len(part.labels), -1)), part.labels) for part in (splits.train, splits.test)]
        every.append(Data(*map(np.asarray, (*parts[0], *parts[1]))))
    return jax.tree.map(lambda *leaves: np.stack(leaves), *every)


def initialise(key: Any, network: str, width: int) -> dict[str, dict[str, jax.Array]]:
    """He-normal kernels and biases of zero: ``width``, ``width`` and twice as many channels, or eight times as many units."""
    if network == "MLP":
        units = 8 * width
        shapes = {"dense1": (64, units), "dense2": (units, units), "dense3": (units, 10)}
    else:
        convolutions = {"conv1": (3, 3, 1, width), "conv2": (3, 3, width, width), "conv3": (3, 3, width, 2 * width)}
        shapes = {**convolutions, "dense": (16 * 2 * width, 10)}
    params = {}
    for i, (name, shape) in enumerate(shapes.items()):
        scale = np.sqrt((1 if name.startswith("dense") and i == len(shapes) - 1 else 2) / np.prod(shape[:-1]))
        kernel = scale * jax.random.normal(jax.random.fold_in(key, i), shape)
        params[name] = {"kernel": kernel, "bias": jnp.zeros(shape[-1])}
    return params


def convolve(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    """``x [..., n, n, in]`` with ``kernel [k, k, in, out]``, k odd, as one product of patches: fast for many kernels.

    Args:
      x: images.
      kernel: of the convolution.
      padding: ``"circular"`` or ``"zeros"``.

    Returns:
      ``[..., n, n, out]``.
    """
    side, n = kernel.shape[0], x.shape[-2]
    edges = [(0, 0)] * (x.ndim - 3) + [(side // 2, side // 2)] * 2 + [(0, 0)]
    x = jnp.pad(x, edges, mode="wrap" if padding == "circular" else "constant")
    patches = jnp.concatenate([x[..., i : i + n, j : j + n, :] for i in range(side) for j in range(side)], axis=-1)
    return patches @ kernel.reshape(-1, kernel.shape[-1])


def padding_of(network: str) -> str:
    """Of one of `NETWORKS`."""
    return network.partition(", ")[2]


def forward(network: str, params: Params, images: jax.Array) -> jax.Array:
    """Logits of rows ``[..., 64]``."""
    if network == "MLP":
        for name in ("dense1", "dense2"):
            images = jax.nn.relu(images @ params[name]["kernel"] + params[name]["bias"])
        return images @ params["dense3"]["kernel"] + params["dense3"]["bias"]
    before = images.shape[:-1]
    x = images.reshape(*before, 8, 8, 1)
    for name in ("conv1", "conv2", "conv3"):
        x = jax.nn.relu(convolve(x, params[name]["kernel"], padding_of(network)) + params[name]["bias"])
        if name == "conv2":
            x = x.reshape(*before, 4, 2, 4, 2, -1).mean(axis=(-4, -2))
    return x.reshape(*before, -1) @ params["dense"]["kernel"] + params["dense"]["bias"]


def sizes(network: str) -> dict[str, int]:
    """The spatial size of each convolution's input, as the penalty wants it.

    A convolution with zero padding is a part of the circular one on an input with a border of zeros: two positions more.
    """
    if network == "MLP":
        return {}
    border = 2 if padding_of(network) == "zeros" else 0
    return {"conv1": 8 + border, "conv2": 8 + border, "conv3": 4 + border}


def layer_bounds(network: str, params: Params, n_iter: int) -> jax.Array:
    """The bound of every layer ``[L]`` by Gram iteration, for zero padding by that of every size where it is less."""
    bounds, given = [], sizes(network)
    for name in sorted(params):
        kernel = params[name]["kernel"]
        if name not in given:
            bounds.append(rj.weights.gram_iteration(kernel, n_iter=n_iter))
            continue
        circular = rj.weights.gram_iteration_conv(kernel, n=given[name], n_iter=n_iter)
        every_size = rj.weights.zero_padding_bound(kernel, n_iter=n_iter) if padding_of(network) == "zeros" else circular
        bounds.append(jnp.minimum(circular, every_size))
    return jnp.stack(bounds)


def layer_matrices(network: str, params: Params) -> list[jax.Array]:
    """The matrix of every layer, inputs as rows: of a convolution what it makes of every unit vector."""
    matrices = []
    for name in sorted(params):
        kernel = params[name]["kernel"]
        if kernel.ndim > 2:
            n = 4 if name == "conv3" else 8
            inputs = n * n * kernel.shape[-2]
            kernel = convolve(jnp.eye(inputs).reshape(inputs, n, n, -1), kernel, padding_of(network)).reshape(inputs, -1)
        matrices.append(kernel)
    return matrices


class Penalty(NamedTuple):
    """``init(key, params) -> memory`` and ``apply(memory, params) -> (value, memory)``, for every penalty alike."""

    init: Callable[..., Any]
    apply: Callable[..., Any]


def make_penalty(network: str, penalty: str, n_iter: int) -> Penalty:
    """One of `PENALTIES` for one of `NETWORKS`."""
    common.check("make_penalty", "penalty", (penalty,), PENALTIES)
    if penalty == "spectral norm":
        stateful = rj.weights.stateful_spectral_norm_penalty()
        return Penalty(stateful.init, stateful.apply)
    convolutions = lambda path, leaf: jnp.ndim(leaf) > 2
    where = convolutions if penalty.endswith("convolutions") else None
    value = functools.partial(rj.weights.lipschitz_penalty, input_sizes=sizes(network), n_iter=n_iter, where=where)
    return Penalty(lambda key, params: (), lambda memory, params: (value(params), memory))


def make_program(config: Any, network: str, penalty: str) -> Callable[[Data, jax.Array, jax.Array], Params]:
    """The compiled training of a network with a penalty.

    Args:
      config: a `LipschitzConfig`.
      network: of `NETWORKS`.
      penalty: of `PENALTIES`.

    Returns:
      A function of data ``[S, ...]``, seeds ``[S]`` and strengths ``[P]``, that gives parameters ``[P, S, ...]``.
    """
    technique = make_penalty(network, penalty, config.n_iter)

    def loss(params: Params, memory: Any, strength: jax.Array, x: jax.Array, y: jax.Array) -> tuple[jax.Array, Any]:
        value, memory = technique.apply(memory, params)
        losses = optax.softmax_cross_entropy_with_integer_labels(forward(network, params, x), y)
        return jnp.mean(losses) + strength * value, memory

    def run(data: Data, seed: jax.Array, strength: jax.Array) -> Params:
        key = jax.random.key(seed)
        count = len(data.labels)
        steps = count // config.batch_size
        optimizer = optax.sgd(optax.cosine_decay_schedule(config.learning_rate, config.epochs * steps), momentum=0.9)
        params = initialise(jax.random.fold_in(key, 0), network, config.width)

        def step(carry: Any, rows: jax.Array) -> Any:
            params, state, memory = carry
            gradient, memory = jax.grad(loss, has_aux=True)(params, memory, strength, data.images[rows], data.labels[rows])
            updates, state = optimizer.update(gradient, state)
            return (optax.apply_updates(params, updates), state, memory), None

        def epoch(carry: Any, key: jax.Array) -> Any:
            rows = jax.random.permutation(key, count)[: steps * config.batch_size].reshape(steps, -1)
            return jax.lax.scan(step, carry, rows)

        carry = params, optimizer.init(params), technique.init(jax.random.fold_in(key, 1), params)
        keys = jax.random.split(jax.random.fold_in(key, 2), config.epochs)
        return jax.lax.scan(epoch, carry, keys)[0][0]

    return jax.jit(jax.vmap(jax.vmap(run, (0, 0, None)), (None, None, 0)))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _measurable(network: str, params: Params, data: Data, n_iter: int) -> Any:
    """Logits, Jacobians, matrices and bounds of the networks of all seeds."""

    def one(params: Params, data: Data) -> Any:
        answer = functools.partial(forward, network, params)
        jacobians = jax.vmap(jax.jacrev(answer))(data.test_images)
        return answer(data.test_images), jacobians, layer_matrices(network, params), layer_bounds(network, params, n_iter)

    return jax.vmap(one)(params, data)


def measure(network: str, params: Params, data: Data, n_iter: int) -> Measured:
    """What the networks of some seeds have.

    Args:
      network: of `NETWORKS`.
      params: ``[S, ...]``.
      data: of the same seeds.
      n_iter: of the bounds.

    Returns:
      `Measured`, each ``[S]`` or ``[S, L]``, in double precision where NumPy computes it.
    """
    logits, jacobians, matrices, bounds = jax.device_get(_measurable(network, params, data, n_iter))
    wide = lambda x: np.asarray(x, np.float64)
    norms = np.stack([np.linalg.norm(wide(x), ord=2, axis=(-2, -1)) for x in matrices], axis=-1)
    slopes = np.linalg.norm(wide(jacobians), ord=2, axis=(-2, -1))
    pooling = 1.0 if network == "MLP" else POOLING
    ratios = []
    for answers, images in zip(wide(logits), wide(data.test_images), strict=True):
        far, moved = distances(images), distances(answers)
        ratios.append(np.max(np.divide(moved, far, out=np.zeros_like(moved), where=far > 1e-6)))
    return Measured(
        np.mean(np.argmax(logits, -1) == data.test_labels, axis=-1),
        wide(bounds),
        norms,
        pooling * np.prod(wide(bounds), axis=-1),
        pooling * np.prod(norms, axis=-1),
        slopes.max(axis=-1),
        slopes.mean(axis=-1),
        np.array(ratios),
    )


def distances(x: np.ndarray) -> np.ndarray:
    """The distances of all pairs of rows."""
    return np.linalg.norm(x[:, None] - x[None], axis=-1)
