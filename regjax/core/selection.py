"""Bisection over the bits of floats: roots at any scale, and the largest entries of arrays by counting.

Nothing is sorted, and of a sharded array only sums cross the devices.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import trees
from regjax.core.types import Array


def largest(scores: Sequence[Array], count: Any) -> list[Array]:
    """Masks of the ``count`` largest entries of all arrays together; of equal entries the earlier in array and flat order.

    The masks have exactly ``count`` True entries (all, or none, where ``count`` is outside the number of entries); ``count``
    may be traced. Entries count as constants. Bisection over the bits of a float finds the threshold: 32 passes in float32,
    where a sort takes as long as hundreds. Where not all of the entries equal to it are wanted, a second one over positions parts
    them: log2(n) passes more.
    """
    keys = _ordered(scores)
    count = jnp.asarray(count, jnp.int32)
    threshold = _threshold(keys, count)
    above = [key > threshold for key in keys]
    ties = [key == threshold for key in keys]
    wanted = count - _total(above)
    places, size = _positions([key.shape for key in keys])
    # The largest position before which fewer ties stand than are wanted is that of the last tie to be taken.
    before = lambda p: _total(t & (x < p) for t, x in zip(ties, places, strict=True))
    whole = _total(ties) <= wanted
    last = _bisect(lambda p: before(p) < wanted, jnp.where(whole, 0, size.bit_length()), (wanted < wanted).astype(jnp.uint32))
    some = (wanted > 0) & (count > 0)
    return [a & (count > 0) | t & (whole | (x <= last)) & some for a, t, x in zip(above, ties, places, strict=True)]


def kth_largest(scores: Sequence[Array], count: Any) -> Array:
    """The value of the ``count``-th largest entry (1-based) of all arrays together, as a constant."""
    keys = _ordered(scores)
    return _value(_threshold(keys, jnp.asarray(count, jnp.int32)))


def largest_float(holds: Callable[[Array], Array], like: Array) -> Array:
    """The largest float from 0 at which a falling condition holds, entry by entry of ``like``; 0 where it never does.

    ``holds`` maps floats of the shape of ``like`` to booleans and must be False for NaN. The order of non-negative floats
    is that of their bits, so 31 evaluations (63 in float64) find a root of any size to the last bit, where halving an
    interval loses the small ones. The result is a constant.
    """
    like = jax.lax.stop_gradient(like)
    unsigned, bits = (jnp.uint64, 63) if like.dtype == jnp.float64 else (jnp.uint32, 31)
    value = lambda key: jax.lax.bitcast_convert_type(key, like.dtype)
    # Zeros that are sharded, and vary over devices, as the data are.
    return value(_bisect(lambda key: holds(value(key)), bits, (like < like).astype(unsigned)))


def _threshold(keys: list[Array], count: Array) -> Array:
    """The largest integer that at least ``count`` of the keys reach, or 0."""
    # Under shard_map the sums vary over devices as the arrays do, and so must the start.
    start = _total(key < key for key in keys).astype(keys[0].dtype)
    return _bisect(lambda t: _total(key >= t for key in keys) >= count, 8 * start.dtype.itemsize, start)


def _bisect(holds: Any, bits: Any, zero: Array) -> Array:
    """The largest integers of so many bits (which may be traced) at which a falling condition holds, or 0."""
    one = jnp.ones_like(zero)

    def step(i: Array, found: Array) -> Array:
        candidate = found | (one << jnp.asarray(bits - 1 - i).astype(zero.dtype))
        return jnp.where(holds(candidate), candidate, found)

    return jax.lax.fori_loop(0, bits, step, zero)


def _total(masks: Any) -> Array:
    return sum((_count(mask) for mask in masks), jnp.zeros((), jnp.int32))


def _count(mask: Array) -> Array:
    """How many entries are True; summed as floats as far as those are exact, since XLA's CPU code is quicker for them."""
    axis, size = mask.ndim, 1
    while axis and size * mask.shape[axis - 1] <= 2**24:
        axis, size = axis - 1, size * mask.shape[axis - 1]
    exact = jnp.sum(mask, axis=tuple(range(axis, mask.ndim)), dtype=jnp.float32)
    return jnp.sum(exact.astype(jnp.int32))


def _ordered(scores: Sequence[Array]) -> list[Array]:
    """Unsigned integers in the order of the floats, of one width; both zeros are one."""
    dtype = trees.accumulator(*scores)
    unsigned, bits = (jnp.uint64, 64) if dtype == jnp.float64 else (jnp.uint32, 32)
    sign = jnp.asarray(1 << (bits - 1), unsigned)

    def order(score: Any) -> Array:
        score = jax.lax.stop_gradient(jnp.asarray(score)).astype(dtype)
        key = jax.lax.bitcast_convert_type(jnp.where(score == 0, 0, score), unsigned)
        return jnp.where(key >= sign, ~key, key | sign)

    return [order(score) for score in scores]


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
