"""Losses beside optax's, PyTorch's, and the formulas of their authors written in PyTorch."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import regjax as rj
from experiments.bench.peers import authors as written
from experiments.bench.peers.cases import SAME, Case, difference, joined, side_by_side, subject
from experiments.bench.results import Bound, Panel

BAR = 2.0
"""Milliseconds for a contrastive loss of 256 embeddings of size 128, with its gradient."""


def learnt(loss: Callable[..., jax.Array], argnums: int | tuple[int, ...] = 0) -> Callable[..., Any]:
    """The mean of a loss, and its gradient."""
    return jax.value_and_grad(lambda *args: jnp.mean(loss(*args)), argnums)


def _batch(shape: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    logits = lambda: random.standard_normal(shape, np.float32)
    return logits(), logits(), random.integers(0, shape[1], shape[0], dtype=np.int32)


def library_cases(shape: tuple[int, ...]) -> dict[str, Case]:
    """Losses that PyTorch has, or that everybody writes in three lines of it."""
    z, _, y = _batch(shape)
    smooth = partial(rj.losses.label_smoothing, alpha=0.1)
    return {
        "cross-entropy": Case(learnt(partial(rj.losses.label_smoothing, alpha=0.0)), written.cross_entropy, (z, y)),
        "label_smoothing": Case(learnt(smooth), partial(written.cross_entropy, label_smoothing=0.1), (z, y)),
        "focal": Case(learnt(rj.losses.focal), written.focal, (z, y)),
        "poly1_cross_entropy": Case(learnt(rj.losses.poly1_cross_entropy), written.poly1, (z, y)),
    }


def losses(shape: tuple[int, ...], threads: int) -> Panel:
    """Value and gradient of losses that optax or PyTorch has too."""
    title = f"{list(shape)}, value and gradient: losses beside optax and PyTorch"
    z, _, y = _batch(shape)
    hot = lambda y: jax.nn.one_hot(y, shape[1])
    entropy = lambda z, y: optax.softmax_cross_entropy(z, optax.smooth_labels(hot(y), 0.1))
    theirs: Mapping[str, Callable[..., Any]] = {
        "cross-entropy": optax.softmax_cross_entropy_with_integer_labels,
        "label_smoothing": entropy,
        "poly1_cross_entropy": lambda z, y: optax.losses.poly_loss_cross_entropy(z, hot(y), epsilon=1.0),
    }
    cases = library_cases(shape)
    panel = side_by_side(title, cases, threads)
    subjects, bounds, differences = {}, [], {}
    for name, loss in theirs.items():
        other = f"{name}, optax"
        subjects[other], expected = subject(learnt(loss), z, y)
        differences[name, other] = difference(subject(cases[name].ours, z, y)[1], expected)
        bounds += [Bound(name, other, 1.0), Bound(name, other, SAME, "difference")]
    # optax has the binary form alone: the same work for each class, another value.
    subjects["focal, optax, binary"], _ = subject(learnt(lambda z, y: optax.losses.sigmoid_focal_loss(z, hot(y))), z, y)
    bounds.append(Bound("focal", "focal, optax, binary", 1.0))
    bounds += [Bound(name, "cross-entropy, optax", 1.2, "bytes") for name in cases]
    return joined(title, panel, Panel("", subjects, bounds, differences=differences))


def nt_xent(z: jax.Array, temperature: float = 0.07) -> jax.Array:
    """NT-Xent of two views, one after the other: the cross-entropy of each cosine among those with all others."""
    z = z * jax.lax.rsqrt(jnp.maximum(jnp.sum(z * z, -1, keepdims=True), 1e-12))
    partner = jnp.roll(jnp.arange(len(z)), len(z) // 2)
    return rj.losses.label_smoothing(z @ z.T / temperature, partner, alpha=0.0, where=~jnp.eye(len(z), dtype=bool))


def contrastive_cases(shape: tuple[int, ...]) -> dict[str, Case]:
    """The contrastive loss of pairs, whose code everybody writes in four lines of PyTorch."""
    q, k, _ = _batch(shape)
    return {"info_nce": Case(learnt(rj.losses.info_nce, (0, 1)), written.info_nce, (q, k))}


def contrastive(shape: tuple[int, ...], threads: int) -> Panel:
    """Contrastive losses with their gradients: within 2 ms, and beside optax's and PyTorch's."""
    title = f"{list(shape)}, value and gradient: contrastive losses"
    q, _, _ = _batch(shape)
    labels = np.arange(shape[0]) % (shape[0] // 2)
    panel = side_by_side(title, contrastive_cases(shape), threads)
    ours, other = "NT-Xent by label_smoothing", "optax.losses.ntxent"
    subjects, differences = {}, {}
    subjects[ours], result = subject(learnt(nt_xent), q)
    subjects[other], expected = subject(learnt(lambda z: optax.losses.ntxent(z, labels)), q)
    differences[ours, other] = difference(result, expected)
    bounds = [Bound(name, None, BAR) for name in ("info_nce", ours)]
    bounds += [Bound(ours, other, 1.0, quantity) for quantity in ("time", "bytes", "temporary")]
    bounds.append(Bound(ours, other, SAME, "difference"))
    return joined(title, panel, Panel("", subjects, bounds, differences=differences))


def authors_cases(shape: tuple[int, ...]) -> dict[str, Case]:
    """Losses whose authors have published PyTorch code."""
    z, t, y = _batch(shape)
    memory = np.asarray(jax.nn.softmax(jnp.asarray(t)))
    indices = np.arange(shape[0], dtype=np.int32)
    elr = rj.losses.elr(*shape)
    # The authors clamp the one-hot label at 1e-4.
    reverse = partial(rj.losses.symmetric_cross_entropy, log_zero=float(np.log(1e-4)))

    def remembered(z: jax.Array, y: jax.Array, memory: jax.Array) -> Any:
        def loss(z: jax.Array) -> Any:
            values, state = elr.apply(rj.losses.ELRState(memory), z, y, indices)
            return jnp.mean(values), state.targets

        (value, rows), gradient = jax.value_and_grad(loss, has_aux=True)(z)
        return value, gradient, rows

    return {
        "maxsup": Case(learnt(rj.losses.maxsup), written.maxsup, (z, y)),
        "nkd": Case(learnt(rj.losses.nkd), written.nkd, (z, t, y)),
        "elr": Case(remembered, written.elr, (z, y, memory)),
        "generalized_cross_entropy": Case(learnt(rj.losses.generalized_cross_entropy), written.generalized_cross_entropy, (z, y)),
        "symmetric_cross_entropy": Case(learnt(reverse), written.symmetric_cross_entropy, (z, y)),
        "stablemax_cross_entropy": Case(learnt(rj.losses.stablemax_cross_entropy), written.stablemax, (z, y)),
        "saf": Case(jax.value_and_grad(partial(rj.objectives.trajectory_kl, temperature=5.0)), written.saf, (z, t)),
    }


def authors_losses(shape: tuple[int, ...], threads: int) -> Panel:
    """Value and gradient of losses beside their authors' formulas."""
    title = f"{list(shape)}, value and gradient: losses beside their authors' formulas"
    return side_by_side(title, authors_cases(shape), threads)
