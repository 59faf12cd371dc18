"""Examples mixed with partners of the same batch: gathering, mixing, and the checks of weights and partners."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from regjax.core import checks, sharding
from regjax.core.types import Array


def take_partner(x: Array, partner: Array) -> Array:
    """The partners' rows of ``x [B, ...]``, for ``partner`` of shape [B], or [G, B/G] with indices inside G blocks."""
    if partner.ndim == 1:
        return sharding.take_rows(x, partner)
    blocks, size = partner.shape
    if blocks % sharding.row_shards(x):
        # Blocks that span devices cannot be a dimension of their own on an Explicit mesh: number the rows globally.
        return sharding.take_rows(x, (partner + size * jnp.arange(blocks)[:, None]).reshape(-1))
    # A gather with the blocks as its batch dimension: the partitioner keeps it on the device that holds the block.
    index = partner.reshape(partner.shape + (1,) * (x.ndim - 1))
    return jnp.take_along_axis(x.reshape(partner.shape + x.shape[1:]), index, axis=1, mode="clip").reshape(x.shape)


def mix_partner(x: Array, lam: Array, partner: Array) -> Array:
    """``lam x + (1 - lam) x[partner]`` in float32 or better, in the dtype of ``x``."""
    dtype = jnp.promote_types(jnp.float32, x.dtype)
    lam = lam.astype(dtype).reshape(lam.shape + (1,) * (x.ndim - 1 if lam.ndim else 0))
    return (lam * x.astype(dtype) + (1 - lam) * take_partner(x, partner).astype(dtype)).astype(x.dtype)


def check_lam(name: str, lam: Any, batch: int | None) -> Array:
    """A weight in [0, 1], or one for each of ``batch`` examples."""
    if np.ndim(lam) == 0:
        return jnp.asarray(checks.number(name, "lam", lam, low=0.0, high=1.0), float)
    return checks.floating(name, "lam", lam, shape=(batch,))


def check_partner(name: str, partner: Any, batch: int) -> Array:
    """Partners in one of the two forms that `take_partner` takes."""
    partner = checks.integers(name, "partner", partner)
    if partner.ndim not in (1, 2) or partner.size != batch:
        checks.fail(name, "partner", f"indices of shape [{batch}], or [G, {batch}/G] inside blocks", partner)
    return partner
