"""Boxes of images, filled by a choice for every pixel: fixed shapes whatever the size of the box."""

import functools
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


def fill_box(images: Array, box: Box, inside: Any) -> Array:
    """``inside`` in the boxes, ``images [B, H, W, C]`` elsewhere; edges of shape [], [B], or [B, holes] of overlapping holes.

    ``inside`` broadcasts to the images. The choice is made on ``[B, H, W * C]``, whose long rows the compiler turns into
    vector instructions: on a CPU that takes half the time of a choice with three channels innermost.
    """
    batch, height, width, channels = images.shape
    inside = jnp.asarray(inside, images.dtype)
    named = sharding.explicit_sharding(images)
    if named is not None:
        # Columns and channels of an Explicit mesh stay axes of their own, which may be sharded.
        return jnp.where(_mask(box, height, width, 1, named)[..., None], inside, images)
    mask = _mask(box, height, width, channels, None)
    flat = (batch, height, width * channels)
    if inside.ndim:
        inside = jnp.broadcast_to(inside, images.shape).reshape(flat)
    return jnp.where(mask, inside, images.reshape(flat)).reshape(images.shape)


def _mask(box: Box, height: int, width: int, channels: int, named: Any) -> Array:
    """The mask ``[..., H, W * channels]`` of boxes, sharded as images are; of several holes their union."""
    y1, y2, x1, x2 = (jnp.asarray(edge)[..., None] for edge in box)
    row, column = jnp.arange(height), jnp.arange(width * channels)
    rows, columns = (row >= y1) & (row < y2), (column >= x1 * channels) & (column < x2 * channels)
    if named is not None:
        # A select takes a mask that is sharded as the images are; draws are replicated.
        lead, high, wide, _ = named.spec
        lead = (lead, None)[: rows.ndim - 1]
        rows = jax.sharding.reshard(rows, named.update(spec=jax.P(*lead, high)))
        columns = jax.sharding.reshard(columns, named.update(spec=jax.P(*lead, wide)))
    if rows.ndim < 3:
        return rows[..., :, None] & columns[..., None, :]
    # One hole after the other: a reduction would be computed apart from the choice.
    holes = [rows[:, i, :, None] & columns[:, i, None, :] for i in range(rows.shape[1])]
    return functools.reduce(jnp.logical_or, holes, jnp.zeros((1, 1, 1), bool))
