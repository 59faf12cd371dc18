"""The low-frequency amplitudes of one image given to the whole batch: batch styles standardization."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Key


def batch_style(
    key: Key,
    images: Any,
    labels: Any = None,
    *,
    min_ratio: Any = 0.02,
    max_ratio: Any = 1.0,
    views: int = 1,
    clip: tuple[float, float] | None = None,
) -> tuple[Array, Any]:
    r"""Gives all images of a batch the style of one of them, the amplitudes of its low frequencies.

    Formula:
      `apply_batch_style` with one reference, a uniform image of the batch, and one ratio
      :math:`\rho \sim U(\rho_{min}, \rho_{max})`, both drawn anew for each view.

    Args:
      key: a random key.
      images: float ``[B, H, W, C]``, or ``[views, B, H, W, C]`` where ``views`` is above 1.
      labels: anything; it passes unchanged.
      min_ratio: the least share of the frequencies' area, in [0, 1], default 0.02.
      max_ratio: the largest, in [0, 1], default 1.
      views: how many augmented views of the batch there are, default 1. Each has a style of its own, so that positives
        differ in style, and all negatives inside a view share it.
      clip: None (default), or the limits ``(low, high)`` of the result.

    Returns:
      ``(images, labels)``, the images with their shape and dtype.

    Raises:
      ValueError: if a shape or dtype does not fit, or a number is out of range or its limits crossed.

    Cost:
      That of `apply_batch_style`.
      XLA at [256, 32, 32, 3]: at most 490 times the FLOPs and 25 times the bytes of a copy of its arguments, and 2.4 times its
      memory more.

    Use:
      For: distribution shift.
      When: Contrastive or other self-supervised pretraining on several domains that differ in illumination or colour: negatives
        of one style cannot be told apart by it. Give each view its own reference with views.
      Not when: There is one domain: on the digits it did not help, and strong ratios hurt. Brightness, colour or coarse shading
        tells the class.
      Badly with: `randaugment` after it, as results leave the range of levels unless clip is set. Colour jitter of each image
        afterwards, which gives the negatives styles of their own again.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> images = jnp.arange(1.0, 5.0)[:, None, None, None] * jnp.ones((4, 8, 8, 1))
      >>> styled, _ = rj.inputs.batch_style(jax.random.key(0), images)
      >>> bool(jnp.allclose(styled, styled[0], atol=1e-5))
      True

    References:
      Scalbert et al., Towards domain-invariant Self-Supervised Learning with Batch Styles Standardization, 2023,
      arXiv 2303.06088. Reconstructed from the paper's algorithm: uncertain are the default bounds, how the rectangle is
      rounded, whether a ratio is drawn for each view, and clipping.
    """
    name = "inputs.batch_style"
    checks.key(name, key)
    checks.integer(name, "views", views, low=1)
    images = checks.floating(name, "images", images, ndim=4 if views == 1 else 5)
    if views > 1 and images.shape[0] != views:
        checks.fail(name, "images", f"views of shape [{views}, B, H, W, C]", images)
    for argument, value in (("min_ratio", min_ratio), ("max_ratio", max_ratio)):
        checks.number(name, argument, value, low=0.0, high=1.0)
    if not any(isinstance(x, jax.Array) for x in (min_ratio, max_ratio)) and min_ratio > max_ratio:
        checks.fail(name, "max_ratio", f"at least min_ratio = {float(min_ratio):g}", max_ratio)
    clip = _check_clip(name, clip)
    reference_key, ratio_key = jax.random.split(key)
    draws = () if views == 1 else (views,)
    reference = jax.random.randint(reference_key, draws, 0, images.shape[-4])
    ratio = jax.random.uniform(ratio_key, draws, jnp.float32, min_ratio, max_ratio)
    return apply_batch_style(images, reference_index=reference, ratio=ratio, clip=clip), labels


def apply_batch_style(images: Any, *, reference_index: Any, ratio: Any, clip: tuple[float, float] | None = None) -> Array:
    r"""Gives a batch the low-frequency amplitudes of a given image: the core of `batch_style`.

    Formula:
      For each channel with the Fourier transform :math:`F = A e^{i \phi}`, the half sides
      :math:`a = floor(H \sqrt{\rho} / 2)`, :math:`b = floor(W \sqrt{\rho} / 2)`, and r the reference:

      .. math:: F' = A_r e^{i \phi} \text{ where } |k_y| \leq a, |k_x| \leq b, \text{ else } F

      and the result is the inverse transform. An amplitude that is 0 up to rounding has phase 0.

    Args:
      images: float ``[B, H, W, C]``, or ``[V, B, H, W, C]``, V views with a reference each.
      reference_index: integer in [0, B), or ``[V]``; outside it the amplitudes become 0.
      ratio: rho, the share of the frequencies' area in [0, 1], a number, a scalar or float ``[V]``. 0 changes the
        channels' means alone.
      clip: None (default), or the limits ``(low, high)`` of the result.

    Returns:
      The images, with their shape and dtype; computed in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or a number is out of range.

    Cost:
      Two transforms of each image as products with the cosines and sines of its sides, about 4 H W (H + W) multiplications
      for a channel. On a CPU that takes 1.5 times as long as an FFT for images of 32, and 4 times for 224; unlike an FFT it
      is split over the devices of a sharded batch, and only the amplitudes of the reference travel. Memory: some four times
      the batch.
      XLA at [256, 32, 32, 3]: at most 490 times the FLOPs and 25 times the bytes of a copy of its arguments, and 2.4 times its
      memory more.

    Use:
      Part of: `batch_style`.
      When: Call it with a chosen reference, such as an image of another domain put into the batch, or with a fixed ratio.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> images = jnp.array([1.0, -3.0])[:, None, None, None] * jnp.ones((2, 4, 4, 1))
      >>> styled = rj.inputs.apply_batch_style(images, reference_index=1, ratio=0.0)
      >>> [round(float(x), 4) for x in styled.mean((1, 2, 3))]
      [3.0, -3.0]

    References:
      Scalbert et al., Towards domain-invariant Self-Supervised Learning with Batch Styles Standardization, 2023,
      arXiv 2303.06088; see `batch_style`.
    """
    name = "inputs.apply_batch_style"
    images = checks.floating(name, "images", images, min_ndim=4)
    if images.ndim > 5:
        checks.fail(name, "images", "floats of shape [B, H, W, C] or [V, B, H, W, C]", images)
    draws = images.shape[:-4]
    reference_index = checks.integers(name, "reference_index", reference_index, shape=draws)
    if np.ndim(ratio) == 0:
        ratio = jnp.broadcast_to(jnp.asarray(checks.number(name, "ratio", ratio, low=0.0, high=1.0), float), draws)
    else:
        ratio = checks.floating(name, "ratio", ratio, shape=draws)
    clip = _check_clip(name, clip)
    dtype = trees.accumulator(images)
    height, width = images.shape[-3:-1]
    x = images.astype(dtype)

    # Real images need the frequencies kx >= 0 only. Products with the tables of cosines and sines rather than an FFT: XLA
    # gathers a sharded batch for an FFT. The change alone is transformed back, so that what stays is exact.
    (row_cos, row_sin), (cos, sin) = _waves(height, height, dtype), _waves(width, width // 2 + 1, dtype)
    re, im = _product("...hwc,wk->...hkc", x, cos), -_product("...hwc,wk->...hkc", x, sin)
    turn = lambda table, y: _product("hq,...hkc->...qkc", table, y)
    re, im = turn(row_cos, re) + turn(row_sin, im), turn(row_cos, im) - turn(row_sin, re)

    amplitude = trees.safe_sqrt(re**2 + im**2)
    noise = 4 * jnp.finfo(dtype).eps * jnp.sum(jnp.abs(x), axis=(-3, -2), keepdims=True)
    flat = amplitude <= noise
    amplitude = jnp.where(flat, 0, amplitude)
    scale = jnp.where(flat, 1, amplitude)
    own = jax.nn.one_hot(reference_index, images.shape[-4], dtype=jnp.bool_)
    named = sharding.explicit_sharding(images)
    if named is not None:
        own = jax.sharding.reshard(own, named.update(spec=jax.P(*named.spec[:-3])))
    # A sum with one term: over a sharded batch, one row is what travels.
    reference = jnp.sum(jnp.where(own[..., None, None, None], amplitude, 0), axis=-4, keepdims=True)
    half = jnp.sqrt(jnp.clip(ratio.astype(dtype), 0, 1))[..., None]
    near_rows = jnp.abs(np.fft.fftfreq(height, 1 / height)) <= jnp.floor(height * half / 2)
    near_columns = np.arange(width // 2 + 1) <= jnp.floor(width * half / 2)
    near = (near_rows[..., :, None] & near_columns[..., None, :])[..., None, :, :, None]
    change = (reference - amplitude) * near.astype(dtype)
    re, im = change * jnp.where(flat, 1, re / scale), change * jnp.where(flat, 0, im / scale)

    re, im = turn(row_cos.T, re) - turn(row_sin.T, im), turn(row_sin.T, re) + turn(row_cos.T, im)
    # All kx but 0 and, of an even width, the last stand for -kx too.
    alone = (2 * np.arange(width // 2 + 1)) % width == 0
    weight = jnp.asarray(np.where(alone, 1.0, 2.0) / (height * width), dtype)
    change = _product("...hkc,wk->...hwc", re, weight * cos) - _product("...hkc,wk->...hwc", im, weight * sin)
    out = x + change
    return (out if clip is None else jnp.clip(out, *clip)).astype(images.dtype)


def _waves(n: int, frequencies: int, dtype: Any) -> tuple[Array, Array]:
    """Cosines and sines ``[n, frequencies]`` of ``2 pi x k / n``."""
    angle = 2 * np.pi * (np.outer(np.arange(n), np.arange(frequencies)) % n) / n
    return jnp.asarray(np.cos(angle), dtype), jnp.asarray(np.sin(angle), dtype)


def _product(subscripts: str, a: Array, b: Array) -> Array:
    return jnp.einsum(subscripts, a, b, precision=jax.lax.Precision.HIGHEST)


def _check_clip(name: str, clip: Any) -> tuple[float, float] | None:
    if clip is None:
        return None
    if not (isinstance(clip, (tuple, list)) and len(clip) == 2 and not any(isinstance(x, jax.Array) for x in clip)):
        checks.fail(name, "clip", "None or two numbers (low, high)", clip)
    low, high = (float(checks.number(name, "clip", x)) for x in clip)
    if low > high:
        checks.fail(name, "clip", "two numbers low <= high", clip)
    return low, high
