"""Images as rows of square patches: what masking them and judging their reconstruction share."""

from regjax.core import sharding
from regjax.core.types import Array


def to_patches(images: Array, side: int) -> Array:
    """``[B, H, W, C]`` as ``[B, (H / side) (W / side), side * side * C]``; pixels row by row, channels last."""
    height, width, channels = images.shape[1:]
    x = sharding.reshape_rows(images, (height // side, side, width // side, side, channels)).transpose(0, 1, 3, 2, 4, 5)
    return sharding.reshape_rows(x, (x.shape[1] * x.shape[2], side * side * channels))
