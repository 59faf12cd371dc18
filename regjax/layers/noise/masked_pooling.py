"""Layer masking in pooling layers: see `regjax.layers.noise.masking`."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import trees
from regjax.core.types import Array
from regjax.layers.noise.masking import any_visible, check_masked, pool
from regjax.layers.ordered.ordered import check_padding, check_steps

# In the published mean, under the part of an image that is visible.
_EPS = 1e-8


def masked_max_pool(
    x: Any, mask: Any, window: int | Sequence[int], *, strides: int | Sequence[int] | None = None, padding: Any = "VALID"
) -> tuple[Array, Array]:
    r"""Max pooling in which hidden pixels are zeros.

    Formula:
      .. math:: m' = maxpool(m), \quad y = m' \, maxpool(m x)

    Args:
      x: float ``[B, H, W, C]``, usually after a ReLU: beside negative values alone the zero of a hidden pixel wins.
      mask: boolean ``[B, H, W, 1]``, True where visible.
      window: one size or two.
      strides: one number or two; None (default): the window's size.
      padding: ``"VALID"`` (default), ``"SAME"``, or two pairs (low, high); padding never wins.

    Returns:
      ``(y, mask)``: ``[B, H', W', C]`` in the dtype of ``x``, and boolean ``[B, H', W', 1]``.

    Raises:
      ValueError: if shapes or dtypes do not fit, or an option is wrong.

    Cost:
      That of max pooling, and a copy of ``x`` with zeros for the hidden pixels.
      XLA at [64, 16, 16, 64]: at most 3 times the FLOPs and 3.4 times the bytes of max pooling, and 0.89 times its memory more.

    Use:
      Part of: `masked_conv`.
      When: For the max pooling of a masked network, after a ReLU.
      Not when: Activations are negative, where the zero of a hidden pixel wins over every visible value.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> x, mask = jnp.array([1.0, 9.0, 9.0, 9.0]), jnp.array([True, False, False, False])
      >>> y, seen = rj.layers.masked_max_pool(x.reshape(1, 1, 4, 1), mask.reshape(1, 1, 4, 1), (1, 2))
      >>> y.ravel().tolist(), seen.ravel().tolist()
      ([1.0, 0.0], [True, False])

    References:
      Balasubramanian and Feizi, Towards Improved Input Masking for Convolutional Neural Networks, 2022, arXiv 2211.14646 (the
      authors' code, also in the zeros of hidden pixels).
    """
    name = "layers.masked_max_pool"
    x, mask = check_masked(name, x, mask)
    size, steps, padding = _windows(name, window, strides, padding)
    seen = any_visible(mask, size, steps, padding)
    y = pool(jnp.where(mask, x, 0), -jnp.inf, jax.lax.max, size, steps, padding)
    return jnp.where(seen, y, 0), seen


def masked_avg_pool(
    x: Any, mask: Any, window: int | Sequence[int], *, strides: int | Sequence[int] | None = None, padding: Any = "VALID"
) -> tuple[Array, Array]:
    r"""Average pooling in which hidden pixels are zeros, and count.

    Formula:
      .. math:: m' = maxpool(m), \quad y = m' \, avgpool(m x)

    Args:
      x: float ``[B, H, W, C]``.
      mask: boolean ``[B, H, W, 1]``, True where visible.
      window: one size or two.
      strides: one number or two; None (default): the window's size.
      padding: ``"VALID"`` (default), ``"SAME"``, or two pairs (low, high); padding counts as zeros.

    Returns:
      ``(y, mask)``: ``[B, H', W', C]`` in the dtype of ``x``, and boolean ``[B, H', W', 1]``.

    Raises:
      ValueError: if shapes or dtypes do not fit, or an option is wrong.

    Cost:
      That of average pooling, and a copy of ``x`` with zeros for the hidden pixels.
      XLA at [64, 16, 16, 64]: at most 2.6 times the FLOPs and 3.4 times the bytes of average pooling, and 0.89 times its memory
      more.

    Use:
      Part of: `masked_conv`.
      When: For local average pooling in a masked network. Windows with hidden pixels come out too small, as these count as
        zeros.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> x, mask = jnp.array([1.0, 9.0, 9.0, 9.0]), jnp.array([True, False, False, False])
      >>> y, seen = rj.layers.masked_avg_pool(x.reshape(1, 1, 4, 1), mask.reshape(1, 1, 4, 1), (1, 2))
      >>> y.ravel().tolist(), seen.ravel().tolist()
      ([0.5, 0.0], [True, False])

    References:
      Balasubramanian and Feizi, Towards Improved Input Masking for Convolutional Neural Networks, 2022, arXiv 2211.14646.
    """
    name = "layers.masked_avg_pool"
    x, mask = check_masked(name, x, mask)
    size, steps, padding = _windows(name, window, strides, padding)
    seen = any_visible(mask, size, steps, padding)
    wide = jnp.where(mask, x, 0).astype(trees.accumulator(x))
    total = pool(wide, 0.0, jax.lax.add, size, steps, padding)
    return jnp.where(seen, total / (size[0] * size[1]), 0).astype(x.dtype), seen


def masked_global_avg_pool(x: Any, mask: Any) -> Array:
    r"""The mean over the visible pixels of every image.

    Formula:
      .. math:: y = \frac{mean(m x)}{mean(m) + 10^{-8}}

    Args:
      x: float ``[B, H, W, C]``.
      mask: boolean ``[B, H, W, 1]``, True where visible.

    Returns:
      ``[B, 1, 1, C]`` in the dtype of ``x``; 0 where nothing is visible.

    Raises:
      ValueError: if shapes or dtypes do not fit.

    Cost:
      That of global average pooling, and on a CPU a copy of ``x`` with zeros for the hidden pixels.
      XLA at [64, 16, 16, 64]: at most 2.3 times the FLOPs and 3.4 times the bytes of the mean, and 1.2 times its memory more.

    Use:
      Part of: `masked_conv`.
      When: Before the head: the mean of the visible pixels alone, so that the logits do not shrink with the hidden share.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> x, mask = jnp.array([3.0, 9.0]).reshape(1, 1, 2, 1), jnp.array([True, False]).reshape(1, 1, 2, 1)
      >>> round(float(rj.layers.masked_global_avg_pool(x, mask)[0, 0, 0, 0]), 4)
      3.0

    References:
      Balasubramanian and Feizi, Towards Improved Input Masking for Convolutional Neural Networks, 2022, arXiv 2211.14646.
    """
    x, mask = check_masked("layers.masked_global_avg_pool", x, mask)
    dtype = trees.accumulator(x)
    mean = jnp.mean(jnp.where(mask, x, 0).astype(dtype), axis=(1, 2), keepdims=True)
    visible = jnp.mean(mask.astype(dtype), axis=(1, 2), keepdims=True)
    return (mean / (visible + _EPS)).astype(x.dtype)


def _windows(name: str, window: Any, strides: Any, padding: Any) -> tuple[tuple[int, ...], tuple[int, ...], Any]:
    size = check_steps(name, "window", window, 2)
    return size, size if strides is None else check_steps(name, "strides", strides, 2), check_padding(name, padding, 2)
