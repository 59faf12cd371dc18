"""The largest entries of arrays, found by counting: no sort, and on a sharded array only sums cross the devices."""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import trees
from regjax.core.types import Array


def largest(scores: Sequence[Array], count: Any) -> list[Array]:
    """Masks of the ``count`` largest entries of all arrays together; of equal entries the earlier in array and flat order.

    The masks have exactly ``count`` True entries (all, or none, where ``count`` is outside the number of entries); ``count``
    may be traced. Entries count as constants. Bisection over the bits of a float finds the threshold, a second one over
    positions parts the ties: 32 + log2(n) passes, in float32, where a sort takes as long as hundreds.
    """
    keys = [_ordered(score) for score in scores]
    count = jnp.asarray(count, jnp.int32)
    bits = 64 if any(key.dtype == jnp.uint64 for key in keys) else 32
    threshold = _bisect(lambda t: _total(key >= t for key in keys) >= count, bits, keys[0].dtype)
    above = [key > threshold for key in keys]
    ties = [key == threshold for key in keys]
    wanted = count - _total(above)
    places, size = _positions([key.shape for key in keys])
    # The largest position before which fewer ties stand than are wanted is that of the last tie to be taken.
    last = _bisect(
        lambda p: _total(t & (x < p) for t, x in zip(ties, places, strict=True)) < wanted, size.bit_length(), jnp.uint32
    )
    some = (wanted > 0) & (count > 0)
    return [a & (count > 0) | t & (x <= last) & some for a, t, x in zip(above, ties, places, strict=True)]


def kth_largest(scores: Sequence[Array], count: Any) -> Array:
    """The value of the ``count``-th largest entry (1-based) of all arrays together, as a constant."""
    keys = [_ordered(score) for score in scores]
    count = jnp.asarray(count, jnp.int32)
    bits = 64 if keys[0].dtype == jnp.uint64 else 32
    return _value(_bisect(lambda t: _total(key >= t for key in keys) >= count, bits, keys[0].dtype))


def _bisect(holds: Any, bits: int, dtype: Any) -> Array:
    """The largest integer of so many bits at which a falling condition holds, or 0."""
    one = jnp.ones((), dtype)

    def step(i: Array, found: Array) -> Array:
        candidate = found | (one << (bits - 1 - i).astype(dtype))
        return jnp.where(holds(candidate), candidate, found)

    return jax.lax.fori_loop(0, bits, step, jnp.zeros((), dtype))


def _total(masks: Any) -> Array:
    return sum((jnp.sum(mask, dtype=jnp.int32) for mask in masks), jnp.zeros((), jnp.int32))


def _ordered(score: Array) -> Array:
    """Unsigned integers in the order of the floats; both zeros are one."""
    score = jax.lax.stop_gradient(jnp.asarray(score))
    score = score.astype(trees.accumulator(score))
    unsigned, bits = (jnp.uint64, 64) if score.dtype == jnp.float64 else (jnp.uint32, 32)
    key = jax.lax.bitcast_convert_type(jnp.where(score == 0, 0, score), unsigned)
    sign = jnp.asarray(1 << (bits - 1), unsigned)
    return jnp.where(key >= sign, ~key, key | sign)


def _value(key: Array) -> Array:
    bits = 64 if key.dtype == jnp.uint64 else 32
    sign = jnp.asarray(1 << (bits - 1), key.dtype)
    key = jnp.where(key >= sign, key ^ sign, ~key)
    return jax.lax.bitcast_convert_type(key, jnp.float64 if bits == 64 else jnp.float32)


def _positions(shapes: list[tuple[int, ...]]) -> tuple[list[Array], int]:
    """The place of every entry in the arrays laid end to end, and their number."""
    places, start = [], 0
    for shape in shapes:
        strides = [math.prod(shape[i + 1 :]) for i in range(len(shape))]
        place = sum(
            (jax.lax.broadcasted_iota(jnp.uint32, shape, i) * jnp.uint32(s) for i, s in enumerate(strides)),
            jnp.full(shape, start, jnp.uint32),
        )
        places.append(place)
        start += math.prod(shape)
    return places, start
