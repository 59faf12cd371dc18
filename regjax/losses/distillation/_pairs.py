"""What losses of two networks' logits share: their checks, softened predictions, and means under one of them."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, classes
from regjax.core.types import Array


def pair(
    function: str, first: Any, second: Any, labels: Any = None, *, arguments: tuple[str, str], axis: int, where: Any
) -> tuple[classes.ClassInputs, Array]:
    """Two checked arrays of logits of one shape, class axis last, both in the wider dtype, float32 or better."""
    first = checks.floating(function, arguments[0], first, min_ndim=1)
    second = checks.floating(function, arguments[1], second, shape=first.shape)
    axis = checks.integer(function, "axis", axis, low=-first.ndim, high=first.ndim - 1)
    if first.shape[axis] < 1:
        checks.fail(function, arguments[0], "an array with at least one class on its class axis", first)
    x = classes.class_inputs(function, first, labels, axis=axis, where=where)
    dtype = jnp.promote_types(x.logits.dtype, second.dtype)
    return x._replace(logits=x.logits.astype(dtype)), jnp.moveaxis(second, axis, -1).astype(dtype)


def probabilities(parts: classes.Normalised) -> Array:
    """The softmax, 0 for classes that do not exist."""
    return jnp.exp(parts.shifted - parts.log_total[..., None])


def softened(x: classes.ClassInputs, teacher: Array, temperature: Any) -> tuple[classes.Normalised, classes.Normalised]:
    """Student and teacher at a temperature, in the two parts of a log-softmax; no gradient flows to the teacher."""
    t = jnp.asarray(temperature, x.logits.dtype)
    return classes.normalise(x.logits / t, x.where), classes.normalise(jax.lax.stop_gradient(teacher) / t, x.where)


def expectation(parts: classes.Normalised, values: Array) -> Array:
    """The mean of ``values`` under the softmax, with 0 * inf = 0."""
    return _expectation(parts.shifted, parts.log_total, values)


@jax.custom_jvp
def _expectation(shifted: Array, log_total: Array, values: Array) -> Array:
    return _weighed(jnp.exp(shifted), values) / jnp.exp(log_total)


@_expectation.defjvp
def _expectation_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    # The probabilities anew, by another expression: kept for the backward pass they would be written and read.
    shifted, log_total, values = primals
    mean = _expectation(*primals)
    p = jnp.exp(shifted - log_total[..., None])
    moved = jnp.sum(p * tangents[2], axis=-1) + _weighed(p, values, tangents[0])
    return mean, moved - mean * tangents[1]


def _weighed(p: Array, values: Array, factor: Any = 1) -> Array:
    used = p != 0
    return jnp.sum(jnp.where(used, p * jnp.where(used, values, 0), 0) * factor, axis=-1)
