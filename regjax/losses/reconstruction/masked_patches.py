"""Reconstruction of hidden parts of the input: the loss of a masked autoencoder."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.images import to_patches
from regjax.core.types import Array


def masked_patch_loss(
    predictions: Any,
    images: Any,
    mask: Any,
    *,
    patch_size: int = 16,
    normalize_pixels: bool = True,
    eps: float = 1e-6,
    per_image: bool = False,
    axis_name: Any = None,
) -> Array:
    r"""The mean squared error of predicted patches, over the hidden ones alone: the loss of a masked autoencoder.

    Formula:
      With :math:`t_{ij}` patch j of image i, in the order of ``inputs.patchify``, :math:`m_{ij}` whether it is hidden, and N
      the count of numbers in a patch:

      .. math::
         L = \frac{\sum_{ij} m_{ij} \lVert z_{ij} - \hat t_{ij} \rVert^2 / N}{\sum_{ij} m_{ij}}, \quad
         \hat t = \frac{t - mean(t)}{\sqrt{var(t) + \epsilon}}

      with mean and variance of each patch by itself, the variance divided by N - 1. ``normalize_pixels=False`` has t in
      place of :math:`\hat t`. With ``per_image`` the hidden patches of an image are averaged first, then the images that
      have some.

    Args:
      predictions: float ``[B, L, P * P * C]``.
      images: float ``[B, H, W, C]``.
      mask: boolean ``[B, L]``, True where a patch is hidden; the others have no effect. False everywhere gives 0.
      patch_size: P, the side of a patch; it divides H and W. Default 16.
      normalize_pixels: whether the target is normalised in each patch (default).
      eps: :math:`\epsilon`, above 0, default 1e-6. A constant patch becomes 0.
      per_image: whether every image weighs alike, whatever the number of its hidden patches; by default every patch does.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split under ``shard_map`` or ``pmap``: sums
        and counts are added over it. Gradients averaged over it are then those of the whole batch.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if a shape, dtype or option does not fit.

    Cost:
      One pass over images and predictions each way.
      XLA at [32, 196, 768]: at most 6.6 times the FLOPs and 2.8 times the bytes of a copy of its arguments, and 0.56 times its
      memory more.

    Use:
      For: few labels.
      When: Pretraining of vision transformers on unlabelled images with `random_patch_mask`, three quarters hidden. On digits
        it fills in hidden patches. ``normalize_pixels`` for features, without it for pictures.
      Not when: Labels are plenty and compute short. Convolutions without masked tokens, which see holes. Images of few patches:
        take small ones, and hide less. A linear probe is the aim: contrastive features are reported to do better there.
      Badly with: Losses over visible patches too, which teach copying. `random_erasing` or `cutout` before it, whose blocks
        become targets. Microbatches with uneven masks, unless ``per_image``.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> image = jnp.array([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
      >>> loss = rj.losses.masked_patch_loss(jnp.zeros((1, 1, 4)), image, jnp.ones((1, 1), bool), patch_size=2)
      >>> round(float(loss), 4)
      0.75

    References:
      He et al., Masked Autoencoders Are Scalable Vision Learners, 2021, arXiv 2111.06377. The authors' recipes turn
      ``normalize_pixels`` on, which is off by default in their code. ``per_image`` is not theirs.
    """
    name = "losses.masked_patch_loss"
    predictions = checks.floating(name, "predictions", predictions, ndim=3)
    images = checks.images(name, "images", images)
    checks.integer(name, "patch_size", patch_size, low=1)
    checks.boolean(name, "normalize_pixels", normalize_pixels)
    checks.number(name, "eps", eps, low=0.0, open_low=True)
    checks.boolean(name, "per_image", per_image)
    checks.axis_name(name, axis_name)
    height, width = images.shape[1:3]
    if min(height, width) < 1 or height % patch_size or width % patch_size:
        checks.fail(name, "patch_size", f"a divisor of the sides of images {list(images.shape[1:3])}", patch_size)
    dtype = trees.accumulator(predictions, images)
    target = to_patches(images.astype(dtype), patch_size)
    if predictions.shape != target.shape:
        checks.fail(name, "predictions", f"an array {list(target.shape)}, as patches of the images", predictions)
    checked = checks.example_mask(name, "mask", mask, target.shape[:2])
    if checked is None:
        checks.fail(name, "mask", f"a boolean mask of shape {list(target.shape[:2])}", mask)
    mask = sharding.rows_like(checked, predictions)
    if normalize_pixels:
        target = target - jnp.mean(target, axis=-1, keepdims=True)
        variance = jnp.sum(jnp.square(target), axis=-1, keepdims=True) / max(target.shape[-1] - 1, 1)
        target = target * jax.lax.rsqrt(variance + jnp.asarray(eps, dtype))
    # Before the square, so that a patch that does not count may hold anything.
    difference = jnp.where(mask[:, :, None], predictions.astype(dtype) - target, 0)
    errors = jnp.mean(jnp.square(difference), axis=-1)
    counts = mask.astype(dtype)
    if per_image:
        hidden = jnp.sum(counts, axis=1)
        errors, counts = jnp.sum(errors, axis=1) / jnp.maximum(hidden, 1), (hidden > 0).astype(dtype)
    total, count = jnp.sum(errors), jnp.sum(counts)
    if axis_name is not None:
        total, count = jax.lax.psum((total, count), axis_name)
    return total / jnp.maximum(count, 1)
