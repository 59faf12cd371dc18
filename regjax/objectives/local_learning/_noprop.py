"""What the forms of NoProp share: parameters and schedule, their checks, and the pieces of the losses."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, sharding, trees
from regjax.core.types import Array, PyTree

Apply = Callable[..., Any]


class NoPropSchedule(NamedTuple):
    """The noise of each of T steps, from t = 0, nearly noise, to t = T, nearly clean.

    Attributes:
      abar: ``[T + 1]``, the share of the signal at t = 0 ... T.
      a: ``[T]``, the weight of the prediction of block t = 1 ... T.
      b: ``[T]``, the weight of what comes into the block.
      c: ``[T]``, the variance of the noise that is added after it.
      snr_delta: ``[T]``, the gain in the signal-to-noise ratio, at least 0.
    """

    abar: Array
    a: Array
    b: Array
    c: Array
    snr_delta: Array


class NoPropParams(NamedTuple):
    """The parameters of a NoProp model.

    Attributes:
      blocks: a tree whose leaves have a leading axis of T blocks (``jax.tree.map(lambda *x: jnp.stack(x), *blocks)`` makes it
        from a list); in continuous time those of the one network.
      head: those of the classifier of the last state; None without one.
      embedding: ``[K, d]``, the embedding of each class; ``jnp.eye(K)`` for one-hot labels.
      gamma: those of the learned noise schedule in continuous time; else None.
    """

    blocks: PyTree
    head: PyTree
    embedding: Array
    gamma: PyTree = None


def check_model(name: str, params: Any, x: Any, labels: Any = None) -> tuple[int, int]:
    """Checks parameters, inputs and labels; gives the batch size and the width of the embedding."""
    if not isinstance(params, NoPropParams):
        checks.fail(name, "params", "NoPropParams", params)
    embedding = checks.floating(name, "params.embedding", params.embedding, ndim=2)
    x = checks.array(name, "x", x, min_ndim=1)
    if labels is not None:
        labels = checks.array(name, "labels", labels)
        is_ids = jnp.issubdtype(labels.dtype, jnp.integer)
        want = x.shape[:1] if is_ids else (x.shape[0], embedding.shape[0])
        if labels.dtype == jnp.bool_ or labels.shape != want:
            checks.fail(name, "labels", f"class ids [{x.shape[0]}] or probabilities {[x.shape[0], embedding.shape[0]]}", labels)
    return x.shape[0], embedding.shape[1]


def table(params: NoPropParams, learned: bool) -> Array:
    """The embedding in float32 or better, a constant where it does not learn."""
    embedding = params.embedding.astype(trees.accumulator(params.embedding))
    return embedding if learned else jax.lax.stop_gradient(embedding)


def embedded(labels: Any, embedding: Array) -> Array:
    """The embeddings of labels; NaN for a class id outside [0, K), so that a wrong label is seen."""
    labels = jnp.asarray(labels)
    is_ids = bool(jnp.issubdtype(labels.dtype, jnp.integer))
    shares = classes.one_hot(labels, is_ids, embedding.shape[0], embedding.dtype)
    u = jnp.matmul(shares, embedding, precision=jax.lax.Precision.HIGHEST)
    if not is_ids:
        return u
    return jnp.where(((labels >= 0) & (labels < embedding.shape[0]))[:, None], u, jnp.nan)


def predicted(name: str, out: Any, embedding: Array | None, shape: tuple[int, ...]) -> Array:
    """What a block predicts, in float32 or better, from its output: an embedding, or the logits of their mixture."""
    want = shape if embedding is None else (shape[0], embedding.shape[0])
    if not isinstance(out, jax.Array) or out.shape != want or not trees.is_float(out):
        checks.fail(name, "block_apply", f"a function that returns floats of shape {list(want)}", out)
    out = out.astype(trees.accumulator(out))
    return out if embedding is None else jax.nn.softmax(out, axis=-1) @ embedding.astype(trees.accumulator(embedding))


def diffuse(u: Array, abar: Array, noise: Array) -> Array:
    """A sample of ``N(sqrt(abar) u, 1 - abar)``; ``abar`` a scalar, or ``[B, 1]``."""
    abar = abar.astype(u.dtype)
    return jnp.sqrt(abar) * u + jnp.sqrt(1 - abar) * sharding.rows_like(noise, u).astype(u.dtype)


def head_loss(name: str, head_apply: Apply, params: NoPropParams, z: Array, labels: Any) -> Array:
    """The mean cross-entropy of the classifier."""
    logits = head_apply(params.head, z)
    want = (z.shape[0], params.embedding.shape[0])
    if not isinstance(logits, jax.Array) or logits.shape != want or not trees.is_float(logits):
        checks.fail(name, "head_apply", f"a function that returns floats of shape {list(want)}", logits)
    return jnp.mean(classes.cross_entropy(classes.class_inputs(name, logits, labels)))


def prior(u: Array, abar: Array) -> Array:
    """The mean divergence of ``N(sqrt(abar) u, 1 - abar)`` from ``N(0, 1)``."""
    abar = abar.astype(u.dtype)
    return jnp.mean(abar * jnp.sum(jnp.square(u), -1) - u.shape[-1] * (abar + jnp.log1p(-abar))) / 2


def num_steps_of(name: str, schedule: Any) -> int:
    if not isinstance(schedule, NoPropSchedule):
        checks.fail(name, "schedule", "what noprop_schedule() gives", schedule)
    return schedule.a.shape[0]


def check_blocks(name: str, params: NoPropParams, steps: int) -> None:
    for path, leaf in jax.tree_util.tree_flatten_with_path(params.blocks)[0]:
        if jnp.shape(leaf)[:1] != (steps,):
            where = "params.blocks" + jax.tree_util.keystr(path)
            checks.fail(name, where, f"stacked over the {steps} steps of the schedule on axis 0", leaf)


def noise_dtype(*arrays: Any) -> Any:
    """The dtype of the noise: float32, or float64 where the model has it."""
    return trees.accumulator(*(jnp.asarray(x) for x in arrays if trees.is_float(x)))
