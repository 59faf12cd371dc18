"""Outpainting turned into inpainting: the image's halves swapped around a gap."""

from typing import Any

import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array


def boundary_rearrange(images: Any, *, pad: int, axis: int = 2) -> tuple[Array, Array]:
    r"""Swaps the halves of each image and leaves a gap between, so that what is to be painted has known pixels on both sides.

    Formula:
      With :math:`s = floor(W / 2)`, the left half L of s columns and the right half R:

      .. math:: canvas = [ R \; | \; 2 \, pad \text{ unknown columns} \; | \; L ]

    Args:
      images: float ``[B, H, W, C]``; W even, or R has one column more.
      pad: how far the image is to grow at each end, at least 0. 0 rolls the image by half its width.
      axis: 2 (default) for the width, 1 for the height. It must not be sharded.

    Returns:
      ``(canvas, mask)``: the canvas, float ``[B, H, W + 2 pad, C]`` with 0 where unknown, in the dtype of ``images``, and
      a boolean mask ``[B, H, W + 2 pad, 1]``, True where unknown.

    Raises:
      ValueError: if images are not floating ``[B, H, W, C]``, or ``pad`` or ``axis`` is no integer in range.

    Cost:
      One read and one write of the batch.
      XLA at [256, 32, 32, 3]: at most 0 times the FLOPs and 1.3 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      When: Before an inpainting network that is to widen images or close them to a panorama: outpainting becomes inpainting
        between known pixels.
      Not when: The two ends of the scene do not belong together and should not continue into each other. A wide pad from the
        start: enlarge it in steps during training.
      Badly with: `mixup`, `cutmix` and other mixing of images, whose ends belong to several scenes. Losses over the whole
        canvas: count the unknown pixels by the mask.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> canvas, mask = rj.inputs.boundary_rearrange(jnp.arange(8.0).reshape(1, 1, 8, 1), pad=2)
      >>> jnp.where(mask, -1, canvas).astype(int).ravel().tolist()
      [4, 5, 6, 7, -1, -1, -1, -1, 0, 1, 2, 3]

    References:
      Kim et al., Painting Outside as Inside: Edge Guided Image Outpainting via Bidirectional Rearrangement with Progressive
      Step Learning, 2020, arXiv 2010.01810. Reconstructed from the paper's description: uncertain are the gap's widths and
      the schedule by which it grows during training.
    """
    name = "inputs.boundary_rearrange"
    images = checks.images(name, "images", images)
    pad = checks.integer(name, "pad", pad, low=0)
    axis = _check_axis(name, axis)
    half = images.shape[axis] // 2
    left, right = _split(images, half, axis)
    # The gap as padding of one half: so canvas and mask keep the sharding of the images.
    gap = [(0, 2 * pad) if d == axis else (0, 0) for d in range(4)]
    canvas = jnp.concatenate([jnp.pad(right, gap), left], axis=axis)
    known_left, known_right = (jnp.zeros_like(x[..., :1], dtype=bool) for x in (left, right))
    mask = jnp.concatenate([jnp.pad(known_right, gap, constant_values=True), known_left], axis=axis)
    return canvas, mask


def boundary_restore(canvas: Any, *, pad: int, axis: int = 2) -> Array:
    r"""Puts the halves of a painted canvas back: the image in the middle, what was painted at its ends.

    Formula:
      .. math:: [ \text{right half of the gap} \; | \; L \; | \; R \; | \; \text{left half of the gap} ]

      The two ends continue into each other, as in a panorama of 360 degrees.

    Args:
      canvas: float ``[B, H, W + 2 pad, C]``, as `boundary_rearrange` makes it, with the gap painted.
      pad: that of `boundary_rearrange`.
      axis: that of `boundary_rearrange`.

    Returns:
      Float ``[B, H, W + 2 pad, C]`` in the dtype of ``canvas``; ``[:, :, pad:pad + W]`` is the image.

    Raises:
      ValueError: if the canvas is not floating ``[B, H, W, C]`` with room for ``pad``, or an argument is no integer in range.

    Cost:
      One read and one write of the batch.
      XLA at [256, 32, 40, 3]: at most 0 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      Part of: `boundary_rearrange`.
      When: Call it on the painted canvas, with the same pad and axis. The middle is the given image only if the network left
        known pixels alone: paste them back first.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> canvas, _ = rj.inputs.boundary_rearrange(jnp.arange(1.0, 7.0).reshape(1, 1, 6, 1), pad=2)
      >>> rj.inputs.boundary_restore(canvas, pad=2).astype(int).ravel().tolist()
      [0, 0, 1, 2, 3, 4, 5, 6, 0, 0]

    References:
      Kim et al., Painting Outside as Inside: Edge Guided Image Outpainting via Bidirectional Rearrangement with Progressive
      Step Learning, 2020, arXiv 2010.01810; see `boundary_rearrange`.
    """
    name = "inputs.boundary_restore"
    canvas = checks.images(name, "canvas", canvas)
    pad = checks.integer(name, "pad", pad, low=0)
    axis = _check_axis(name, axis)
    width = canvas.shape[axis] - 2 * pad
    if width < 1:
        checks.fail(name, "canvas", f"longer than the gap of {2 * pad} on axis {axis}", canvas)
    first, second = _split(canvas, width - width // 2 + pad, axis)
    return jnp.concatenate([second, first], axis=axis)


def _check_axis(name: str, axis: Any) -> int:
    return checks.choice(name, "axis", axis, (1, 2))


def _split(x: Array, at: int, axis: int) -> tuple[Array, Array]:
    before = (slice(None),) * axis
    return x[(*before, slice(None, at))], x[(*before, slice(at, None))]
