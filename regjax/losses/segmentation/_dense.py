"""What the losses of dense prediction share: divergences over any axes, and means over images split between devices."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core.types import Array


def divergence(student: Array, teacher: Array, axis: int | tuple[int, ...], where: Array | None = None) -> Array:
    """KL(softmax(teacher), softmax(student)) over ``axis``, among the entries that ``where`` names; 0 where it names none.

    Each softmax stays in its parts, so that no array of log-probabilities is kept for the backward pass. An entry that
    does not count may hold anything, NaN too: neither value nor gradient sees it.
    """
    s, s_total = _parts(student, axis, where)
    t, t_total = _parts(teacher, axis, where)
    mass = jnp.exp(t)
    # 0 log 0 = 0: where the teacher has no mass the difference may be infinite, and counts for nothing.
    gap = jnp.sum(mass * jnp.where(mass > 0, t - s, 0), axis=axis)
    return gap / t_total + jnp.log(s_total) - jnp.log(t_total)


def _parts(logits: Array, axis: int | tuple[int, ...], where: Array | None) -> tuple[Array, Array]:
    """Logits relative to the largest, and the sum of their exponentials (1 where there are none)."""
    kept = logits if where is None else jnp.where(where, logits, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(kept, axis=axis, keepdims=True))
    shifted = kept - jnp.where(jnp.isfinite(top), top, 0)
    total = jnp.sum(jnp.exp(shifted), axis=axis)
    return shifted, jnp.where(total > 0, total, 1)


def mean(values: Array, counted: Array | None, axis_name: Any) -> Array:
    """The mean of the counted entries over every device that holds some; 0 where none counts."""
    if counted is None:
        total, count = jnp.sum(values), jnp.asarray(values.size, values.dtype)
    else:
        total, count = jnp.sum(jnp.where(counted, values, 0)), jnp.sum(counted.astype(values.dtype))
    if axis_name is not None:
        total, count = jax.lax.psum((total, count), axis_name)
    return total / jnp.maximum(count, 1)
