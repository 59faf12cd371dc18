"""Logits and labels: the conventions that losses and diagnostics share.

Labels of integer dtype are class ids with the shape of ``logits`` without the class axis; floating ones are
probabilities with the shape of ``logits``. The dtype decides, statically. ``where`` is a boolean mask that broadcasts
to ``logits`` and names the classes that exist: the others leave the softmax, the maximum and every mean over classes.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array


class ClassInputs(NamedTuple):
    """Checked inputs with the class axis last: logits in float32 or better, labels as ids or probabilities."""

    logits: Array
    labels: Any
    where: Array | None
    is_ids: bool


def class_inputs(function: str, logits: Any, labels: Any = None, *, axis: int = -1, where: Any = None) -> ClassInputs:
    """Checks logits, labels and class mask, moves the class axis last and casts to float32 or better."""
    logits = checks.floating(function, "logits", logits, min_ndim=1)
    axis = checks.integer(function, "axis", axis, low=-logits.ndim, high=logits.ndim - 1) % logits.ndim
    shape = logits.shape
    if shape[axis] < 1:
        checks.fail(function, "logits", "an array with at least one class on its class axis", logits)
    ids_shape = shape[:axis] + shape[axis + 1 :]
    is_ids = False
    if labels is not None:
        labels = checks.array(function, "labels", labels)
        is_ids = bool(jnp.issubdtype(labels.dtype, jnp.integer))
        want = ids_shape if is_ids else shape
        if labels.dtype == jnp.bool_ or labels.shape != want:
            text = f"integer class ids of shape {list(ids_shape)} or probabilities of shape {list(shape)}"
            checks.fail(function, "labels", text, labels)
        if is_ids:
            labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))  # a narrow dtype could not count the classes
        else:
            labels = jnp.moveaxis(labels, axis, -1).astype(jnp.promote_types(jnp.float32, labels.dtype))
    if where is not None:
        where = checks.array(function, "where", where)
        fits = where.ndim <= len(shape) and all(w in (1, n) for w, n in zip(where.shape[::-1], shape[::-1], strict=False))
        if where.dtype != jnp.bool_ or not fits:
            checks.fail(function, "where", f"a boolean mask of classes that broadcasts to logits {list(shape)}", where)
        where = jnp.moveaxis(jnp.broadcast_to(where, shape), axis, -1)
    logits = jnp.moveaxis(logits, axis, -1)
    return ClassInputs(logits.astype(jnp.promote_types(jnp.float32, logits.dtype)), labels, where, is_ids)


def log_softmax(logits: Array, where: Array | None = None) -> Array:
    """Log-softmax over the last axis among the classes that exist: -inf for the others, 0 everywhere if none does."""
    if where is None:
        return jax.nn.log_softmax(logits, axis=-1)
    some = jnp.any(where, axis=-1, keepdims=True)
    kept = jnp.where(some, jnp.where(where, logits, -jnp.inf), 0)
    return jnp.where(some, jax.nn.log_softmax(kept, axis=-1), 0)


def pick(values: Array, ids: Array) -> Array:
    """``values[..., ids]`` on the last axis; an id outside [0, K) gives NaN, so that a wrong label is seen."""
    known = (ids >= 0) & (ids < values.shape[-1])
    return jnp.where(known, _at(values, jnp.where(known, ids, 0)), jnp.nan)


@jax.custom_jvp
def _at(values: Array, ids: Array) -> Array:
    if sharding.explicit_sharding(values) is not None:
        return _sum_at(values, ids)  # a gather would have to be told how its classes are sharded
    return jnp.take_along_axis(values, ids[..., None], axis=-1)[..., 0]


@_at.defjvp
def _at_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    # The derivative as a compare and a sum: its transpose fuses with what else flows to the values, where a scatter would
    # first write them all.
    values, ids = primals
    return _at(values, ids), _sum_at(tangents[0], ids)


def _sum_at(values: Array, ids: Array) -> Array:
    here = jax.lax.broadcasted_iota(ids.dtype, values.shape, values.ndim - 1) == ids[..., None]
    return jnp.sum(jnp.where(here, values, 0), axis=-1)


@jax.custom_jvp
def top(values: Array) -> Array:
    """The largest on the last axis; equal ones share the gradient evenly, as with `jnp.max`, in fewer passes."""
    return jnp.max(values, axis=-1)


@top.defjvp
def _top_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (values,) = primals
    largest = top(values)
    # Counted by arithmetic alone, from a maximum that nothing else reads: so the count fuses into one reduction on the CPU,
    # where a comparison would be written out first. A difference of infinities is no tie that has a gradient.
    apart = jnp.sign(jax.lax.optimization_barrier(largest)[..., None] - values)
    count = jax.lax.stop_gradient(values.shape[-1] - jnp.sum(apart, axis=-1))
    return largest, jnp.sum(jnp.where(values == largest[..., None], tangents[0], 0), axis=-1) / count


def expected_under(values: Array, labels: Array, is_ids: bool) -> Array:
    """``sum_k y_k values_k`` with 0 * inf = 0: a class of probability 0 adds nothing."""
    if is_ids:
        return pick(values, labels)
    used = labels != 0
    return jnp.sum(jnp.where(used, labels * jnp.where(used, values, 0), 0), axis=-1)


def class_mean(values: Array, where: Array | None) -> Array:
    """The mean over the classes that exist, on the last axis; 0 where none does."""
    if where is None:
        return jnp.mean(values, axis=-1)
    count = jnp.sum(where, axis=-1)
    return jnp.sum(jnp.where(where, values, 0), axis=-1) / jnp.maximum(count, 1)


def class_means(values: Array, ids: Array, num_classes: int, where: Array | None, axis_name: Any = None) -> Array:
    """The mean of ``values [B, D]`` over the examples of each class ``[K, D]``; 0 for a class without any."""
    x = values.astype(trees.accumulator(values))
    member = ids[:, None] == jnp.arange(num_classes)
    if where is not None:
        # Before the product, so that an example that does not count may hold anything.
        x, member = jnp.where(where[:, None], x, 0), member & where[:, None]
    member = member.astype(x.dtype)
    with jax.default_matmul_precision("highest"):
        sums, counts = sharding.contract_rows(member, x), jnp.sum(member, axis=0)
    if axis_name is not None:
        sums, counts = jax.lax.psum((sums, counts), axis_name)
    return sums / jnp.maximum(sharding.replicate(counts), 1)[:, None]


def one_hot(labels: Array, is_ids: bool, num_classes: int, dtype: Any) -> Array:
    """Labels as probabilities."""
    return jax.nn.one_hot(labels, num_classes, dtype=dtype) if is_ids else labels.astype(dtype)


class Normalised(NamedTuple):
    """Logits relative to the largest, -inf for absent classes, and the logarithm of the sum of their exponentials.

    Losses written with the two parts, instead of with their difference, read the logits once each way: no array of
    log-probabilities is kept for the backward pass.
    """

    shifted: Array
    log_total: Array


def normalise(logits: Array, where: Array | None = None) -> Normalised:
    """The two parts of ``log_softmax = shifted - log_total``; with no class at all ``log_total`` is 0."""
    kept = logits if where is None else jnp.where(where, logits, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(kept, axis=-1, keepdims=True))
    shifted = kept - jnp.where(jnp.isfinite(top), top, 0)
    return Normalised(shifted, _log_sum_exp(shifted))


@jax.custom_jvp
def _log_sum_exp(values: Array) -> Array:
    total = jnp.sum(jnp.exp(values), axis=-1)
    return jnp.log(jnp.where(total > 0, total, 1))


@_log_sum_exp.defjvp
def _log_sum_exp_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    # The probabilities anew from the values: their exponentials, kept for the backward pass, would be written and read.
    (values,) = primals
    log_total = _log_sum_exp(values)
    return log_total, jnp.sum(jnp.exp(values - log_total[..., None]) * tangents[0], axis=-1)


def cross_entropy(x: ClassInputs, parts: Normalised | None = None) -> Array:
    """Softmax cross-entropy of checked inputs, per example; 0 where no class exists."""
    shifted, log_total = parts or normalise(x.logits, x.where)
    mass = 1 if x.is_ids else jnp.sum(x.labels, axis=-1)
    loss = mass * log_total - expected_under(shifted, x.labels, x.is_ids)
    return loss if x.where is None else jnp.where(jnp.any(x.where, axis=-1), loss, 0)


def log_prior(function: str, class_counts: Any, logits: Array) -> Array:
    """The logarithm of the classes' shares from their counts ``[K]``, a constant; 1e-12 stands for classes without examples."""
    counts = checks.array(function, "class_counts", class_counts, shape=logits.shape[-1:])
    if counts.dtype == jnp.bool_:
        checks.fail(function, "class_counts", "counts or shares of the classes", counts)
    counts = jax.lax.stop_gradient(sharding.replicate(counts).astype(logits.dtype))
    total = jnp.sum(counts)
    return jnp.log(counts / jnp.where(total > 0, total, 1) + 1e-12)
