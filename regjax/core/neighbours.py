"""The divergence between the neighbourhoods of two feature spaces, which a feature regulariser and an input transform share."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import sharding, trees
from regjax.core.types import Array


def neighbour_divergence(features: Array, target: Array, *, eps: Any, where: Array | None = None, axis_name: Any = None) -> Array:
    """See ``features.probabilistic_knowledge_transfer``."""
    dtype = trees.accumulator(features, target)
    small = jnp.asarray(eps, dtype)
    everywhere = None if where is None else _whole(where, axis_name)
    p, q = (_neighbours(x.astype(dtype), small, where, everywhere, axis_name) for x in (features, jax.lax.stop_gradient(target)))
    total = jnp.sum(q * (jnp.log(q + small) - jnp.log(p + small)))
    count = jnp.asarray(features.shape[0], dtype) if where is None else jnp.sum(where, dtype=dtype)
    if axis_name is not None:
        total, count = jax.lax.psum((total, count), axis_name)
    return total / jnp.maximum(jnp.square(count), 1)


def _neighbours(x: Array, eps: Array, rows: Array | None, columns: Array | None, axis_name: Any) -> Array:
    """Probabilities ``[B, all]`` of the neighbours of each example; 0 in the rows and columns that do not count."""
    if rows is not None:
        x = jnp.where(rows[:, None], x, 0)
    norm = trees.safe_norm(x, axis=-1, keepdims=True)
    # The derivative at a zero vector would be 1 / eps in every direction.
    some = norm > 0
    x = jnp.where(some, x / jnp.where(some, norm + eps, 1), 0)
    with jax.default_matmul_precision("highest"):  # a rounded cosine would be a difference between equal spaces
        similarity = (1 + jnp.einsum("id,jd->ij", x, _whole(x, axis_name))) / 2
    if rows is not None and columns is not None:
        similarity = similarity * columns.astype(x.dtype)
        total = jnp.sum(similarity, axis=1, keepdims=True)
        return similarity * rows.astype(x.dtype)[:, None] / jnp.where(total > 0, total, 1)
    return similarity / jnp.sum(similarity, axis=1, keepdims=True)


def _whole(x: Array, axis_name: Any) -> Array:
    """The rows of the whole batch, on every device."""
    return sharding.replicate(x) if axis_name is None else jax.lax.all_gather(x, axis_name, axis=0, tiled=True)
