"""The training runs of the study of self-tuning networks: one that tunes its dropout and decay, and those of a grid."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import regjax as rj
from experiments.data import DataConfig, load_arrays

RANGES = ((0.0, 0.9), (math.log(1e-5), math.log(0.1)))
"""Of the dropout rate, and of the logarithm of the decay."""


class Part(NamedTuple):
    """Images as rows ``[N, 64]`` and their labels ``[N]``."""

    images: Any
    labels: Any


class Data(NamedTuple):
    """The parts of one seed's data, or of all seeds along a leading axis."""

    train: Part
    validation: Part
    test: Part


class Score(NamedTuple):
    """What a trained network reaches without dropout."""

    valid_loss: Any
    valid_accuracy: Any
    test_loss: Any
    test_accuracy: Any


class Tuning(NamedTuple):
    """A run that tuned itself: its score, its values ``[cycles, 2]`` of (dropout, decay), and their scales of perturbation."""

    score: Score
    path: Any
    scales: Any


def load(config: Any, seeds: Sequence[int]) -> Data:
    """The data of every seed ``[S, ...]``, cut to common sizes."""
    every = []
    for seed in seeds:
        same = {"per_class": config.per_class, "label_noise": config.label_noise, "validation": config.validation}
        splits = load_arrays(DataConfig(name="digits", batch_size=config.batch_size, seed=seed, **same))
        of = lambda split: Part(np.asarray(split.images, np.float32).reshape(len(split.labels), -1), np.asarray(split.labels))
        every.append(Data(of(splits.train), of(splits.validation), of(splits.test)))
    stack = lambda *leaves: np.stack([leaf[: min(map(len, leaves))] for leaf in leaves])
    return jax.tree.map(stack, *every)


def initialise(width: int, seeds: Sequence[int]) -> list[rj.layers.HyperParams]:
    """The parameters of three hyper layers with two hyperparameters, for every seed ``[S, ...]``; a grid's runs use a part."""
    every = []
    for seed in seeds:
        rngs = nnx.Rngs(seed)
        every.append([rj.layers.HyperDense(*ends, 2, rngs=rngs).params() for ends in ((64, width), (width, width), (width, 10))])
    return jax.tree.map(lambda *leaves: jnp.stack(leaves), *every)


def raw_start(rate: float, decay: float) -> jax.Array:
    """Unconstrained hyperparameters of these values."""
    values = zip((rate, math.log(decay)), RANGES, strict=True)
    return jnp.stack([rj.objectives.stretched_logit(value, low=low, high=high) for value, (low, high) in values])


def network(layers: Sequence[Callable[[Any], Any]], x: jax.Array, key: Any = None, rates: Any = None) -> jax.Array:
    """Logits; with a key, each example's hidden units are dropped at its own rate of ``rates [B]``."""
    *hidden, last = layers
    for i, layer in enumerate(hidden):
        x = jax.nn.relu(layer(x))
        if key is not None:
            kept = jax.random.uniform(jax.random.fold_in(key, i), x.shape) >= rates[:, None]
            x = jnp.where(kept, x / (1 - rates[:, None]), 0)
    return last(x)


def plain(weights: Sequence[tuple[Any, Any]]) -> list[Callable[[Any], Any]]:
    """Dense layers."""
    return [lambda x, kernel=kernel, bias=bias: x @ kernel + bias for kernel, bias in weights]


def responsive(params: Sequence[rj.layers.HyperParams], hyper: Any) -> list[Callable[[Any], Any]]:
    """Layers with the weights for these hyperparameters, ``[H]`` or ``[B, H]``.

    Their factor s is held at 1: a decay of the weights that the layer uses would else shrink every layer by one number, and a
    run that starts at a strong decay collapses.
    """
    return [lambda x, p=p: rj.layers.hyper_dense(p._replace(scale=1.0), x, hyper) for p in params]


def squares(params: Sequence[rj.layers.HyperParams], hyper: jax.Array) -> jax.Array:
    """The squared norm of the kernels that each example's hyperparameters give ``[B]``, without forming them."""
    total = jnp.zeros(len(hyper))
    for p in params:
        gates = hyper @ p.gate_kernel  # [B, outputs]: the kernel of an example is W + W' diag(gates)
        products = ((p.kernel, p.kernel), (p.kernel, p.response_kernel), (p.response_kernel, p.response_kernel))
        own, mixed, moved = (jnp.sum(a * b, axis=0) for a, b in products)
        total += jnp.sum(own + 2 * gates * mixed + gates**2 * moved, axis=-1)
    return total


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over examples."""
    return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels))


def score(layers: Sequence[Callable[[Any], Any]], data: Data) -> Score:
    """Losses and accuracies on the validation and test images."""
    found = []
    for part in (data.validation, data.test):
        logits = network(layers, part.images)
        found += [cross_entropy(logits, part.labels), jnp.mean(jnp.argmax(logits, axis=-1) == part.labels)]
    return Score(*found)


def draw(key: Any, part: Part, size: int) -> Part:
    """A batch, drawn with replacement."""
    rows = jax.random.randint(key, (size,), 0, len(part.labels))
    return Part(part.images[rows], part.labels[rows])


class Programs:
    """The two compiled programs: ``tune`` runs every start on every seed, ``fixed`` every fixed pair of values on every seed.

    Both take the parameters and the data of the seeds, then ``tune`` unconstrained starts ``[R, 2]`` and ``fixed`` pairs of
    (dropout, decay) ``[S, P, 2]``, then the seeds ``[S]``. What they return has ``[S, R]`` or ``[S, P]`` in front.

    Args:
      config: a `SelfTuningConfig`.
    """

    def __init__(self, config: Any):
        self.config = config
        steps = 2 * config.cycles
        self.weights_optimizer = optax.sgd(optax.cosine_decay_schedule(config.learning_rate, steps), momentum=0.9)
        self.tuned_optimizer = optax.adam(config.tuned_rate)
        objectives = rj.objectives.self_tuning(self._train_loss, self._valid_loss, entropy_weight=config.entropy_weight)
        self.train_objective, self.valid_objective = objectives
        over = lambda run, axes, seeds: jax.jit(jax.vmap(jax.vmap(run, in_axes=axes), in_axes=seeds))
        self.tune = over(self._tune, (None, None, 0, None), (0, 0, None, 0))
        self.fixed = over(self._fixed, (None, None, 0, None), (0, 0, 0, 0))

    def _train_loss(self, params: Any, hyper: jax.Array, key: Any, batch: Part) -> jax.Array:
        rates, log_decays = jnp.moveaxis(rj.objectives.constrain_hyper(hyper, ranges=RANGES), -1, 0)
        loss = cross_entropy(network(responsive(params, hyper), batch.images, key, rates), batch.labels)
        return loss + jnp.mean(jnp.exp(log_decays) / 2 * squares(params, hyper))

    def _valid_loss(self, params: Any, hyper: jax.Array, key: Any, batch: Part) -> jax.Array:
        return cross_entropy(network(responsive(params, hyper), batch.images), batch.labels)

    def _cycle(self, data: Data, tuning: bool, carry: Any, key: Any) -> Any:
        """Two training steps and, unless the network warms up, one of the hyperparameters and their scales."""
        params, state, tuned, tuned_state = carry
        train_key, valid_key = jax.random.split(key)

        def train(carry: Any, key: Any) -> Any:
            (params, state), (rows, inner) = carry, jax.random.split(key)
            batch = draw(rows, data.train, self.config.batch_size)
            updates, state = self.weights_optimizer.update(jax.grad(self.train_objective)(params, tuned, inner, batch), state)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(train, (params, state), jax.random.split(train_key))
        if tuning:
            rows, inner = jax.random.split(valid_key)
            batch = draw(rows, data.validation, self.config.valid_batch_size)
            gradient = jax.grad(self.valid_objective)(tuned, params, inner, batch)
            updates, tuned_state = self.tuned_optimizer.update(gradient, tuned_state)
            tuned = optax.apply_updates(tuned, updates)
        return (params, state, tuned, tuned_state), tuned

    def _tune(self, params: Any, data: Data, start: jax.Array, seed: Any) -> Tuning:
        scale = rj.objectives.stretched_logit(self.config.scale, low=0.0, high=math.inf)
        tuned = rj.objectives.TunedHyper(start, jnp.full(2, scale))
        carry = params, self.weights_optimizer.init(params), tuned, self.tuned_optimizer.init(tuned)
        keys = jax.random.split(jax.random.key(seed), self.config.cycles)
        paths = []
        for tuning, part in ((False, keys[: self.config.warm_up]), (True, keys[self.config.warm_up :])):
            carry, path = jax.lax.scan(functools.partial(self._cycle, data, tuning), carry, part)
            paths.append(path)
        path = jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *paths)
        rates, log_decays = jnp.moveaxis(rj.objectives.constrain_hyper(path.hyper, ranges=RANGES), -1, 0)
        values = jnp.stack([rates, jnp.exp(log_decays)], axis=-1)
        params, _, tuned, _ = carry
        return Tuning(score(responsive(params, tuned.hyper), data), values, jax.nn.softplus(path.raw_scale))

    def _fixed(self, params: Any, data: Data, values: jax.Array, seed: Any) -> Score:
        (rate, decay), size = values, self.config.batch_size

        def loss(weights: Any, key: Any, batch: Part) -> jax.Array:
            logits = network(plain(weights), batch.images, key, jnp.full(size, rate))
            return cross_entropy(logits, batch.labels) + decay / 2 * sum(jnp.sum(kernel**2) for kernel, _ in weights)

        def step(carry: Any, key: Any) -> Any:
            weights, state = carry
            rows, inner = jax.random.split(key)
            updates, state = self.weights_optimizer.update(jax.grad(loss)(weights, inner, draw(rows, data.train, size)), state)
            return (optax.apply_updates(weights, updates), state), None

        weights = [(p.kernel, p.bias) for p in params]
        keys = jax.random.split(jax.random.key(seed), 2 * self.config.cycles)
        (weights, _), _ = jax.lax.scan(step, (weights, self.weights_optimizer.init(weights)), keys)
        return score(plain(weights), data)
