"""Rows of batch-sharded arrays: gathers, scatters and class sums that Explicit meshes accept.

On an Explicit mesh indexing a sharded axis is an error unless the result's sharding is named; on an Auto mesh and
without one the compiler chooses, and nothing is named.
"""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType

from regjax.core.types import Array


def explicit_sharding(x: Array) -> jax.sharding.NamedSharding | None:
    """The sharding in an array's type where its mesh has Explicit axes, else None."""
    sharding = jax.typeof(x).sharding
    return sharding if AxisType.Explicit in sharding.mesh.axis_types else None


def row_shards(x: Array) -> int:
    """Over how many devices an Explicit mesh shards the rows of ``x``."""
    named = explicit_sharding(x)
    axes = named.spec[0] if named is not None and len(named.spec) else None
    return 1 if named is None or axes is None else _shards(named, axes)


def replicate(x: Array) -> Array:
    """The whole array on every device: what a sort or a reshape of a sharded axis needs, and an Explicit mesh wants said."""
    named = explicit_sharding(x)
    return x if named is None else jax.sharding.reshard(x, named.update(spec=jax.P()))


def placed_like(x: Array, reference: Array) -> Array:
    """``x`` sharded as ``reference``, of the same shape: a choice between the two on an Explicit mesh needs them alike."""
    named = explicit_sharding(reference)
    return x if named is None else jax.sharding.reshard(x, named)


def varying(x: Array) -> frozenset[str]:
    """The manual mesh axes over which a value may differ between devices, as a `jax.shard_map` that checks knows them."""
    return jax.typeof(x).mat.varying


def varying_like(x: Array, reference: Array) -> Array:
    """``x`` as a value of each device over the manual mesh axes of `jax.shard_map` over which ``reference`` is one."""
    missing = varying(reference) - varying(x)
    return jax.lax.pcast(x, tuple(missing), to="varying") if missing else x


def total(arrays: list[Array]) -> Array:
    """The sum of all entries of all arrays, one at least, in one all-reduce where an Explicit mesh shards them.

    A sum for each array would be as many. They can be combined, but not with each other alone: those of a gradient wait for
    one another in the order in which the leaves are computed.
    """
    whole: list[Array] = []
    parts: dict[tuple[Any, ...], list[Array]] = {}
    for x in arrays:
        named = explicit_sharding(x)
        axes = {} if named is None else {i: axis for i, axis in enumerate(named.spec) if axis is not None}
        if named is None or not axes:
            whole.append(jnp.sum(x))
            continue
        x = jnp.sum(x, axis=tuple(i for i in range(x.ndim) if i not in axes))
        # One number for each device: the part that lies there becomes an axis of its own.
        devices = [_shards(named, axis) for axis in axes.values()]
        shape = [n for count, size in zip(devices, x.shape, strict=True) for n in (count, size // count)]
        spec = [entry for axis in axes.values() for entry in (axis, None)]
        x = jnp.reshape(x, shape, out_sharding=named.update(spec=jax.P(*spec)))
        parts.setdefault(tuple(axes.values()), []).append(jnp.sum(x, axis=tuple(range(1, x.ndim, 2))))
    return functools.reduce(jnp.add, [*whole, *(jnp.sum(sum(group)) for group in parts.values())])


def leading(x: Array) -> jax.sharding.NamedSharding | None:
    """How an Explicit mesh shards the axes of ``x`` but the last."""
    named = explicit_sharding(x)
    return None if named is None else named.update(spec=jax.P(*named.spec[: x.ndim - 1]))


def along(mask: Array, x: Array) -> Array:
    """A mask over leading axes of ``x``, sharded as those are."""
    named = explicit_sharding(x)
    return mask if named is None else jax.sharding.reshard(mask, named.update(spec=jax.P(*named.spec[: mask.ndim])))


def rows_like(x: Array, reference: Array) -> Array:
    """``x [B, ...]`` sharded over examples as ``reference`` is, and not otherwise."""
    named = explicit_sharding(reference)
    return x if named is None else jax.sharding.reshard(x, _by_rows(named, x.ndim))


def reshape_rows(x: Array, shape: tuple[int, ...]) -> Array:
    """``x [B, ...]`` as ``[B, *shape]``, sharded over examples as before."""
    named, shape = explicit_sharding(x), (x.shape[0], *shape)
    return x.reshape(shape) if named is None else jnp.reshape(x, shape, out_sharding=_by_rows(named, len(shape)))


def split_rows(x: Array, count: int) -> Array:
    """``x [B, ...]`` as ``[count, B / count, ...]``, every count-th row together: rows sharded by blocks stay on their device."""
    named, shape = explicit_sharding(x), (x.shape[0] // count, count, *x.shape[1:])
    split = x.reshape(shape) if named is None else jnp.reshape(x, shape, out_sharding=_by_rows(named, len(shape)))
    return jnp.moveaxis(split, 1, 0)


def take_rows(x: Array, indices: Array) -> Array:
    """``x[indices]`` on the leading axis, sharded over examples as ``indices`` is, else as ``x`` is where that divides."""
    here, there = explicit_sharding(x), explicit_sharding(indices)
    if here is None:
        return x[indices]
    rows = there.spec[0] if there is not None else None
    if rows is None and indices.shape[0] % row_shards(x) == 0:
        rows = here.spec[0]
    return x.at[indices].get(out_sharding=here.update(spec=jax.P(rows, *here.spec[1:])))


def set_rows(x: Array, indices: Array, rows: Array) -> Array:
    """``x`` with ``x[indices] = rows``, sharded as ``x`` is; in place where the caller donates ``x``."""
    sharding = explicit_sharding(x)
    if sharding is None:
        return x.at[indices].set(rows)
    return x.at[indices].set(rows, out_sharding=sharding)


def contract_rows(a: Array, b: Array) -> Array:
    """``a.T @ b`` for ``a [B, M]``, ``b [B, N]``: the sum over a batch that may be sharded; the result is replicated."""
    sharding = explicit_sharding(a) or explicit_sharding(b)
    if sharding is None:
        return jnp.einsum("bm,bn->mn", a, b)
    return jnp.einsum("bm,bn->mn", a, b, out_sharding=sharding.update(spec=jax.P(None, None)))


def _shards(named: jax.sharding.NamedSharding, axes: str | tuple[str, ...]) -> int:
    """Over how many devices an entry of a spec shards an axis."""
    return math.prod(named.mesh.shape[axis] for axis in (axes if isinstance(axes, tuple) else (axes,)))


def _by_rows(named: jax.sharding.NamedSharding, ndim: int) -> jax.sharding.NamedSharding:
    """The sharding of the leading axis alone, for an array of ``ndim`` dimensions."""
    rows = named.spec[0] if len(named.spec) else None
    return named.update(spec=jax.P(rows, *(None,) * (ndim - 1)))
