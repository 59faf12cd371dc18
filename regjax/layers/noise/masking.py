"""Layer masking: a convolutional network that runs on the visible pixels alone, so that the colour of a mask says nothing.

Every operation takes its input with a boolean mask of visible pixels, and those that change the image's size return the mask
of their output. They stand in for the operations of a network trained as usual; nothing is learned. Pooling is in
`regjax.layers.noise.masked_pooling`.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, trees
from regjax.core.types import Array
from regjax.layers.ordered.ordered import check_padding, check_steps


def neighbour_padding(x: Any, mask: Any, *, iterations: int, eps: float = 1e-5) -> Array:
    r"""Fills hidden pixels from their visible neighbours, ring by ring.

    Formula:
      .. math:: x_p \leftarrow \frac{\sum_{q \in N(p)} x_q}{n_p + eps}, \quad n_p = \text{known pixels in } N(p)

      at every pixel p that is not yet known and has a known one among the 3x3 around it, :math:`N(p)`, which is known from
      then on; ``iterations`` times. What remains is 0.

    Args:
      x: float ``[B, H, W, C]``. Hidden entries are not read, whatever they are.
      mask: boolean ``[B, H, W, 1]``, True where visible.
      iterations: how many rings to fill, at least 0.
      eps: above 0, default 1e-5: filled values are too small by that part.

    Returns:
      Shape and dtype of ``x``; visible pixels are unchanged. The filled values are constants in the gradient.

    Raises:
      ValueError: if a shape or dtype does not fit, or a number is outside its range.

    Cost:
      Two sums over 3x3 neighbourhoods for each iteration; nothing in the backward pass.
      XLA at [64, 16, 16, 64]: at most 12 times the FLOPs and 7.1 times the bytes of a copy of its arguments, and 0.73 times its
      memory more.

    Use:
      Part of: `masked_conv`.
      When: Alone, to fill hidden pixels before a layer that knows no masks, or once on the image where the network cannot be
        rebuilt.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> x = jnp.array([2.0, 9.0, 9.0, 9.0, 6.0]).reshape(1, 1, 5, 1)
      >>> mask = jnp.array([True, False, False, False, True]).reshape(1, 1, 5, 1)
      >>> [round(float(v), 2) for v in rj.layers.neighbour_padding(x, mask, iterations=2).ravel()]
      [2.0, 2.0, 4.0, 6.0, 6.0]

    References:
      Balasubramanian and Feizi, Towards Improved Input Masking for Convolutional Neural Networks, 2022, arXiv 2211.14646 (the
      authors' code).
    """
    name = "layers.neighbour_padding"
    x, mask = check_masked(name, x, mask)
    checks.integer(name, "iterations", iterations, low=0)
    checks.number(name, "eps", eps, low=0.0, open_low=True)
    return _pad(x, mask, iterations, eps)


def masked_conv(
    x: Any,
    mask: Any,
    kernel: Any,
    bias: Any = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Any = "SAME",
    pad_iterations: int | None = None,
    feature_group_count: int = 1,
) -> tuple[Array, Array]:
    r"""A convolution that sees visible pixels and, around them, values like theirs instead of a mask's colour.

    Formula:
      .. math:: m' = maxpool(m), \quad y = m' (k * pad(x, m) + b)

      with `neighbour_padding` for as many iterations as the kernel is wide; the new mask m' is True where the kernel's window
      has a visible pixel.

    Args:
      x: float ``[B, H, W, C]``.
      mask: boolean ``[B, H, W, 1]``, True where visible.
      kernel: float ``[kh, kw, C / feature_group_count, outputs]``.
      bias: float ``[outputs]`` or None.
      strides: one number or two, default 1.
      padding: ``"SAME"`` (default), ``"VALID"``, or two pairs (low, high); of zeros, as in the network.
      pad_iterations: how many rings to fill; None (default): the kernel's width; 0: hidden pixels are zeros.
      feature_group_count: groups of channels, default 1.

    Returns:
      ``(y, mask)``: ``[B, H', W', outputs]`` in the common dtype of input and kernel, and boolean ``[B, H', W', 1]``. With
      all visible y is the plain convolution; a window wholly in explicit padding sees no pixel, so it is hidden.

    Raises:
      ValueError: if shapes or dtypes do not fit, or an option is wrong.

    Cost:
      One convolution, and the padding: 1.1 to 1.5 forward passes over a network.
      XLA at [64, 16, 16, 64]: at most 1.2 times the FLOPs and 4.7 times the bytes of a convolution, and 0.73 times its memory
      more.

    Use:
      For: distribution shift.
      When: A trained convolutional network shall be asked about parts of an image: attributions by occlusion, missing pixels or
        sensors. Tests on digits: predictions stay nearer to those on whole images than with black pixels.
      Not when: In transformers, which can leave hidden tokens out, for training with occlusion (`cutout`, `random_patch_mask`),
        or for large holes, whose middle stays 0 in the first layers.
      Badly with: Layers through which pixels meet without a mask: attention, squeeze-and-excitation, instance normalisation,
        resizing. Batch normalisation in training mode.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> mask = jnp.array([True, True, False, False]).reshape(1, 1, 4, 1)
      >>> y, seen = rj.layers.masked_conv(jnp.ones((1, 1, 4, 1)), mask, jnp.ones((1, 3, 1, 1)))
      >>> [round(float(v), 3) for v in y.ravel()], seen.ravel().tolist()
      ([2.0, 3.0, 3.0, 0.0], [True, True, True, False])

    References:
      Balasubramanian and Feizi, Towards Improved Input Masking for Convolutional Neural Networks, 2022, arXiv 2211.14646. The
      authors' code also has a partial convolution, which divides by the visible part of the window, off by default.
    """
    name = "layers.masked_conv"
    x, mask = check_masked(name, x, mask)
    groups = checks.integer(name, "feature_group_count", feature_group_count, low=1)
    if x.shape[-1] % groups:
        checks.fail(name, "feature_group_count", f"a divisor of the {x.shape[-1]} channels", feature_group_count)
    kernel = checks.floating(name, "kernel", kernel, shape=(None, None, x.shape[-1] // groups, None))
    if kernel.shape[-1] % groups:
        checks.fail(name, "feature_group_count", f"a divisor of the {kernel.shape[-1]} outputs", feature_group_count)
    if bias is not None:
        bias = checks.floating(name, "bias", bias, shape=kernel.shape[-1:])
    iterations = kernel.shape[1] if pad_iterations is None else checks.integer(name, "pad_iterations", pad_iterations, low=0)
    steps, padding = check_steps(name, "strides", strides, 2), check_padding(name, padding, 2)
    dtype = jnp.result_type(x, kernel) if bias is None else jnp.result_type(x, kernel, bias)
    y = jax.lax.conv_general_dilated(
        _pad(x, mask, iterations, 1e-5).astype(dtype),
        kernel.astype(dtype),
        steps,
        padding,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=groups,
    )
    if bias is not None:
        y = y + bias.astype(dtype)
    seen = any_visible(mask, kernel.shape[:2], steps, padding)
    return jnp.where(seen, y, 0), seen


def masked_elementwise(fn: Callable[[Array], Array], x: Any, mask: Any) -> Array:
    r"""A function of single pixels, an activation or BatchNorm, on visible pixels alone.

    Formula:
      .. math:: m \, f(m x)

    Args:
      fn: ``[B, H, W, C] -> [B, H, W, C']``, pixel by pixel: nothing may pass between pixels.
      x: float ``[B, H, W, C]``.
      mask: boolean ``[B, H, W, 1]``, True where visible; it stays the output's mask.

    Returns:
      What ``fn`` returns, 0 where hidden.

    Raises:
      ValueError: if shapes or dtypes do not fit, or ``fn`` is no function of images.

    Cost:
      That of ``fn``.
      XLA at [64, 16, 16, 64]: at most 1.4 times the FLOPs and 1.2 times the bytes of GELU, and 0 times its memory more.

    Use:
      Part of: `masked_conv`.
      When: For activations and for batch normalisation with running averages between masked convolutions: a bias would else
        fill hidden pixels.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> mask = jnp.array([True, False]).reshape(1, 1, 2, 1)
      >>> rj.layers.masked_elementwise(jnp.exp, jnp.zeros((1, 1, 2, 1)), mask).ravel().tolist()
      [1.0, 0.0]

    References:
      Balasubramanian and Feizi, Towards Improved Input Masking for Convolutional Neural Networks, 2022, arXiv 2211.14646.
    """
    name = "layers.masked_elementwise"
    checks.function(name, "fn", fn)
    x, mask = check_masked(name, x, mask)
    y = fn(jnp.where(mask, x, 0))
    if jnp.ndim(y) != 4 or jnp.shape(y)[:3] != x.shape[:3]:
        checks.fail(name, "fn", f"a function that returns images of shape {[*x.shape[:3], 'any']}", y)
    return jnp.where(mask, y, 0)


def masked_residual(x1: Any, mask1: Any, x2: Any, mask2: Any) -> tuple[Array, Array]:
    r"""The sum of two branches where both are visible.

    Formula:
      .. math:: m = m_1 m_2, \quad y = m (x_1 + x_2)

    Args:
      x1: float ``[B, H, W, C]``.
      mask1: boolean ``[B, H, W, 1]``, True where visible.
      x2: the other branch, of the same shape.
      mask2: its mask.

    Returns:
      ``(y, mask)``: ``[B, H, W, C]`` in the common dtype, and boolean ``[B, H, W, 1]``.

    Raises:
      ValueError: if shapes or dtypes do not fit.

    Cost:
      That of the sum.
      XLA at 2 times [64, 16, 16, 64]: at most 2.3 times the FLOPs and 1.2 times the bytes of the sum, and 0 times its memory
      more.

    Use:
      Part of: `masked_conv`.
      When: Where branches with different receptive fields are added: a pixel is visible where both see something, so shortcuts
        narrow the mask again.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> x, mask = jnp.ones((1, 1, 2, 1)), jnp.array([True, False]).reshape(1, 1, 2, 1)
      >>> y, seen = rj.layers.masked_residual(x, mask, x, ~mask | mask)
      >>> y.ravel().tolist(), seen.ravel().tolist()
      ([2.0, 0.0], [True, False])

    References:
      Balasubramanian and Feizi, Towards Improved Input Masking for Convolutional Neural Networks, 2022, arXiv 2211.14646 (the
      product of the masks, as in the authors' code).
    """
    name = "layers.masked_residual"
    x1, mask1 = check_masked(name, x1, mask1, "x1", "mask1")
    x2, mask2 = check_masked(name, x2, mask2, "x2", "mask2")
    if x1.shape != x2.shape:
        checks.fail(name, "x2", f"of the shape of x1, {list(x1.shape)}", x2)
    seen = mask1 & mask2
    return jnp.where(seen, x1 + x2, 0), seen


def check_masked(name: str, x: Any, mask: Any, x_name: str = "x", mask_name: str = "mask") -> tuple[Array, Array]:
    """Checked images and their mask."""
    x = checks.images(name, x_name, x)
    if not x.size:
        checks.fail(name, x_name, "images with at least one entry", x)
    checked = checks.example_mask(name, mask_name, mask, (*x.shape[:3], 1))
    if checked is None:
        checks.fail(name, mask_name, f"a boolean mask of shape {[*x.shape[:3], 1]}", mask)
    return x, checked


def any_visible(mask: Array, size: Sequence[int], steps: Sequence[int], padding: Any) -> Array:
    """Max pooling of a mask; padding is hidden."""
    return pool(mask.astype(jnp.float32), -jnp.inf, jax.lax.max, size, steps, padding) > 0


def pool(x: Array, start: Any, combine: Any, size: Sequence[int], steps: Sequence[int], padding: Any) -> Array:
    """Windows of two spatial axes combined; padding has the value ``start``."""
    pads = padding if isinstance(padding, str) else ((0, 0), *padding, (0, 0))
    start = np.asarray(start, x.dtype)  # concrete, by which JAX knows the reduction and its gradient
    return jax.lax.reduce_window(x, start, combine, (1, *size, 1), (1, *steps, 1), pads)


def _pad(x: Array, mask: Array, iterations: int, eps: Any) -> Array:
    dtype = trees.accumulator(x)
    known = jnp.where(mask, x, 0)
    if not iterations:
        return known
    visible = mask.astype(dtype)

    def ring(_: Any, carry: tuple[Array, Array]) -> tuple[Array, Array]:
        values, filled = carry
        count = _neighbourhood_sum(filled)
        values = values + (1 - filled) * _neighbourhood_sum(values) / (count + jnp.asarray(eps, dtype))
        return values, jnp.minimum(filled + count, 1)

    filled, _ = jax.lax.fori_loop(0, iterations, ring, (jax.lax.stop_gradient(known).astype(dtype), visible))
    return jnp.where(mask, known, jax.lax.stop_gradient(filled).astype(x.dtype))


def _neighbourhood_sum(x: Array) -> Array:
    """The sum over the 3x3 around every pixel, rows first; beyond the border are zeros."""
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    rows = x[:, :height] + x[:, 1 : height + 1] + x[:, 2:]
    return rows[:, :, :width] + rows[:, :, 1 : width + 1] + rows[:, :, 2:]
