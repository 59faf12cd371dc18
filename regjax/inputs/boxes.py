"""Boxes of images as boolean masks: fixed shapes whatever the size of the box. For the techniques of this stage."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import sharding
from regjax.core.types import Array

# y1, y2, x1, x2, each of shape [] or [B]: rows y1..y2 - 1 and columns x1..x2 - 1.
Box = tuple[Array, Array, Array, Array]


def clipped_box(centre: Array, height: Any, width: Any, shape: tuple[int, int]) -> Box:
    """The box of the given sides around ``centre [..., 2]``, cut at the border; an odd side loses one pixel."""
    rows, columns = shape
    row, column = centre[..., 0], centre[..., 1]
    up, left = height // 2, width // 2
    y1, y2 = jnp.clip(row - up, 0, rows), jnp.clip(row + up, 0, rows)
    x1, x2 = jnp.clip(column - left, 0, columns), jnp.clip(column + left, 0, columns)
    return y1, y2, x1, x2


def box_mask(box: Box, images: Array) -> Array:
    """The mask ``[..., H, W, 1]`` of the pixels of ``images [B, H, W, C]`` inside boxes of shape [], [B] or [B, holes]."""
    y1, y2, x1, x2 = (jnp.asarray(edge)[..., None] for edge in box)
    row, column = jnp.arange(images.shape[1]), jnp.arange(images.shape[2])
    rows, columns = (row >= y1) & (row < y2), (column >= x1) & (column < x2)
    named = sharding.explicit_sharding(images)
    if named is not None:
        # A select on an Explicit mesh takes a mask that is sharded as the images are; draws are replicated.
        batch, high, wide, _ = named.spec
        lead = (batch, None)[: rows.ndim - 1]
        rows = jax.sharding.reshard(rows, named.update(spec=jax.P(*lead, high)))
        columns = jax.sharding.reshard(columns, named.update(spec=jax.P(*lead, wide)))
    return (rows[..., :, None] & columns[..., None, :])[..., None]
