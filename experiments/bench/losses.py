"""The suite of losses: value and gradient against optax's cross-entropy, which reads the logits about once each way."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import regjax as rj
from experiments.bench.results import Bound, Panel
from experiments.bench.timing import Subject, cost

SHAPES = {"1k": (8192, 1000), "32k": (4096, 32000), "tiny": (16, 8)}
DEFAULT = ("1k", "32k")

PLAIN = "optax cross-entropy"
ONE_NETWORK = {
    "label_smoothing": rj.losses.label_smoothing,
    "label_smoothing, off target only": partial(rj.losses.label_smoothing, off_target_only=True),
    "maxsup": rj.losses.maxsup,
    "confidence_penalty": rj.losses.confidence_penalty,
    "focal": rj.losses.focal,
    "poly1_cross_entropy": rj.losses.poly1_cross_entropy,
    "generalized_cross_entropy": rj.losses.generalized_cross_entropy,
    "generalized_cross_entropy, truncated": partial(rj.losses.generalized_cross_entropy, truncation=0.5),
    "symmetric_cross_entropy": rj.losses.symmetric_cross_entropy,
    "bootstrapping, hard": rj.losses.bootstrapping,
    "bootstrapping, soft": partial(rj.losses.bootstrapping, mode="soft"),
    "logit_norm": rj.losses.logit_norm,
    "logit_adjusted": lambda z, y: rj.losses.logit_adjusted(z, y, jnp.arange(1, z.shape[-1] + 1)),
    "stablemax_cross_entropy": rj.losses.stablemax_cross_entropy,
    "spectral_decoupling": rj.losses.spectral_decoupling,
    "softmax_binary_cross_entropy": rj.losses.softmax_binary_cross_entropy,
}
"""``f(logits, labels) -> [B]``: at most 1.5 times the time and the bytes."""

EXCESS = {"softmax_binary_cross_entropy": 4.2}
"""Losses that are known to read more: this one keeps the digits of 1 - p, for which it ranks the classes."""

TWO_NETWORKS = {
    "distillation": lambda z, t, y: rj.losses.distillation(z, t),
    "teacher_cross_entropy": lambda z, t, y: rj.losses.teacher_cross_entropy(z, t),
    "nkd": rj.losses.nkd,
    "alpha_divergence": lambda z, t, y: rj.losses.alpha_divergence(z, t, alpha=0.5),
    "adaptive_alpha_divergence": lambda z, t, y: rj.losses.adaptive_alpha_divergence(z, t),
    "self_distillation": lambda z, t, y: rj.losses.self_distillation(z, y, t),
}
"""``f(logits, teacher's logits or probabilities, labels) -> [B]``, gradient to the first: at most 2.5 times."""

TWO_STUDENTS = {
    "symmetric_kl": lambda z, t, y: rj.losses.symmetric_kl(z, t),
    "r_drop": rj.losses.r_drop,
}
"""The same with the gradient to both networks: at most 2.5 times cross-entropy of both."""


def panels(shape: tuple[int, int], threads: int) -> Iterator[Panel]:
    """What is measured together, on one batch."""
    random = np.random.default_rng(0)
    z = jnp.asarray(random.standard_normal(shape, np.float32))
    t = jax.nn.softmax(jnp.asarray(random.standard_normal(shape, np.float32)))  # serves as logits and as probabilities
    y = jnp.asarray(random.integers(0, shape[-1], shape[0]), jnp.int32)
    title = f"{list(shape)}, value and gradient"

    plain = _subject(optax.softmax_cross_entropy_with_integer_labels, z, y)
    ours = {name: _subject(fn, z, y) for name, fn in ONE_NETWORK.items()}
    yield Panel(f"{title}: losses of one network", {PLAIN: plain, **ours}, _bounds(ours, PLAIN, 1.5))

    ours = {name: _subject(fn, z, t, y) for name, fn in TWO_NETWORKS.items()}
    ours |= _with_memory(z, y)
    yield Panel(f"{title}: losses with a teacher or a memory", {PLAIN: plain, **ours}, _bounds(ours, PLAIN, 2.5))

    both = f"{PLAIN} of two"
    twice = lambda z, t, y: sum(optax.softmax_cross_entropy_with_integer_labels(x, y) for x in (z, t))
    ours = {name: _subject(fn, z, t, y, argnums=(0, 1)) for name, fn in TWO_STUDENTS.items()}
    two = {both: _subject(twice, z, t, y, argnums=(0, 1))}
    yield Panel(f"{title}: losses of two networks that both learn", {**two, **ours}, _bounds(ours, both, 2.5))


def _bounds(names: Any, against: str, at_most: float) -> list[Bound]:
    return [Bound(name, against, at_most, quantity) for name in names for quantity in ("time", "bytes")]


def _subject(loss: Callable[..., jax.Array], *args: jax.Array, argnums: int | tuple[int, ...] = 0) -> Subject:
    fn = jax.value_and_grad(lambda *args: loss(*args).mean(), argnums)
    compiled = jax.jit(fn)
    return Subject(lambda: jax.block_until_ready(compiled(*args)), cost(fn, *args))


def _with_memory(z: jax.Array, y: jax.Array) -> dict[str, Subject]:
    """Losses whose memory has a row for each example: donated, so that the rows are written in place."""
    indices = jnp.arange(len(z))
    elr = rj.losses.elr(*z.shape)
    ps_kd = rj.losses.ps_kd(*z.shape, total_epochs=10)
    return {
        "elr": _remembering(lambda state, z: elr.apply(state, z, y, indices), elr.init(), z),
        "ps_kd": _remembering(lambda state, z: ps_kd.apply(state, z, y, indices, epoch=5), ps_kd.init(), z),
    }


def _remembering(apply: Callable[..., Any], state: Any, z: jax.Array) -> Subject:
    def mean(z: jax.Array, state: Any) -> Any:
        loss, state = apply(state, z)
        return loss.mean(), state

    def fn(state: Any, z: jax.Array) -> Any:
        (loss, state), gradient = jax.value_and_grad(mean, has_aux=True)(z, state)
        return state, loss, gradient

    compiled = jax.jit(fn, donate_argnums=0)
    counted = cost(fn, state, z, donate_argnums=0)

    def run() -> None:
        nonlocal state
        state, *_ = jax.block_until_ready(compiled(state, z))

    return Subject(run, counted)
