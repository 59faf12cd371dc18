"""Hiding parts of an image: cutout."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array, Key, Strength
from regjax.inputs.mixing.boxes import clipped_box, fill_box


def cutout(
    key: Key, images: Any, labels: Any = None, *, length: Strength, num_holes: int = 1, value: Any = 0.0
) -> tuple[Array, Any]:
    r"""Hides random squares of each image.

    Formula:
      For each image and hole, rows from ``row - length // 2`` to ``row + length // 2`` and the same columns, clipped to the
      image, are set to ``value``; ``(row, column)`` is a uniform pixel, so that holes hang over the border: over a
      32 x 32 image holes of 16 hide 19% on average, not 25%.

    Args:
      key: a random key.
      images: float ``[B, H, W, C]``, normalised, so that 0 is the mean of the data.
      labels: anything; it passes unchanged.
      length: the side of the squares, an integer of at least 0, or a traced scalar; an odd side loses one pixel. The
        authors: 16 for CIFAR-10, 8 for CIFAR-100, 20 for SVHN, 24 to 32 for STL-10. 0 and 1 hide nothing.
      num_holes: squares in each image, default 1; they may overlap.
      value: the number that hides, default 0.

    Returns:
      ``(images, labels)``, the images with their shape and dtype.

    Raises:
      ValueError: if images are not floating ``[B, H, W, C]``, or ``length`` or ``num_holes`` is no integer in range.

    Cost:
      One read and one write of the batch.
      XLA at [256, 32, 32, 3]: at most 2.4 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      For: few labels.
      When: Small images of objects that fill the frame, few of them labelled. On 8 x 8 digits the widest hole tried was best,
        so search up to most of the side.
      Not when: Objects are small and one hole hides them, or targets are masks and boxes. `random_erasing` and `cutmix`, which
        vary the area, did better on the digits.
      Badly with: `random_erasing` or `random_patch_mask`, which hide a second time. `cutmix` before it. Images that are not
        normalised, in which the value 0 is black and a cue of its own.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> images, labels = rj.inputs.cutout(jax.random.key(0), jnp.ones((2, 8, 8, 3)), jnp.array([3, 1]), length=4)
      >>> images.shape, bool((images.mean((1, 2, 3)) < 1).all())
      ((2, 8, 8, 3), True)

    References:
      DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017, arXiv 1708.04552; as
      the authors' code, which cuts after normalisation.
    """
    name = "inputs.cutout"
    checks.key(name, key)
    images = checks.images(name, "images", images)
    _check_length(name, length)
    checks.integer(name, "num_holes", num_holes, low=1)
    checks.number(name, "value", value)
    batch, height, width, _ = images.shape
    row_key, column_key = jax.random.split(key)
    rows = jax.random.randint(row_key, (batch, num_holes), 0, height)
    columns = jax.random.randint(column_key, (batch, num_holes), 0, width)
    return apply_cutout(images, length=length, centres=jnp.stack([rows, columns], axis=-1), value=value), labels


def apply_cutout(images: Any, *, length: Strength, centres: Any, value: Any = 0.0) -> Array:
    r"""Hides squares around given centres: the core of `cutout`.

    Formula:
      Pixels in the union of the squares, ``row - length // 2 <= y < row + length // 2`` and the same for columns, are set to
      ``value`` in all channels.

    Args:
      images: float ``[B, H, W, C]``.
      length: the side of the squares, an integer of at least 0, or a traced scalar.
      centres: integer ``[B, holes, 2]``, rows and columns.
      value: the number that hides, default 0.

    Returns:
      The images, with their shape and dtype.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``length`` is negative or no integer.

    Cost:
      One read and one write of the batch.
      XLA at [256, 32, 32, 3]: at most 2.4 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      Part of: `cutout`.
      When: Call it with centres of your own, or to hide the same squares in several arrays.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> hidden = rj.inputs.apply_cutout(jnp.ones((1, 6, 6, 1)), length=4, centres=jnp.array([[[0, 0]]]))
      >>> float(hidden.sum())
      32.0

    References:
      DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout, 2017, arXiv 1708.04552.
    """
    name = "inputs.apply_cutout"
    images = checks.images(name, "images", images)
    _check_length(name, length)
    checks.number(name, "value", value)
    centres = checks.integers(name, "centres", centres, shape=(images.shape[0], None, 2))
    side = jnp.asarray(length).astype(jnp.int32)
    return fill_box(images, clipped_box(centres, side, side, images.shape[1:3]), value)


def _check_length(name: str, length: Any) -> None:
    if isinstance(length, jax.Array):
        checks.number(name, "length", length)
    else:
        checks.integer(name, "length", length, low=0)
