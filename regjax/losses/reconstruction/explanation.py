"""Training a mask that explains a frozen network: small, smooth, and enough for the network's decision."""

from typing import Any

import jax.numpy as jnp

from regjax.core import checks, classes, trees
from regjax.core.types import Array, Strength
from regjax.losses.segmentation._dense import mean


def mask_area(masks: Any, *, power: Any = 0.3, eps: Any = 5e-4, axis_name: Any = None) -> Array:
    r"""How much of the image masks keep, by a power below 1 that makes faint values dear.

    Formula:
      .. math:: mean \left( (m + \epsilon)^p \right)

    Args:
      masks: float, of any shape, from 0 to 1.
      power: p, above 0, default 0.3.
      eps: :math:`\epsilon`, above 0, default 5e-4: it bounds the slope at 0 by ``p eps^(p - 1)``, 61 by default.
      axis_name: the mapped axis, or a tuple of them, over which the masks are split under ``shard_map`` or ``pmap``: sums
        and counts are added over it. Gradients averaged over it are then those of the whole batch.

    Returns:
      A scalar in float32 or better; 0 without masks.

    Raises:
      ValueError: if masks are no floats, or ``power`` or ``eps`` is not positive and finite.

    Cost:
      One pass over the masks each way.
      XLA at [64, 56, 56, 20]: at most 4.4 times the FLOPs and 2.8 times the bytes of a copy of its arguments, and 0.55 times
      its memory more.

    Use:
      Part of: `explanation_mask_loss`.
      When: Call it with other powers or weights: 1 for plain area, less for masks that are nearly 0 or 1.
      Badly with: Masks below 0, as without a sigmoid: their power is NaN. bfloat16 near 0, where the slope is steep.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.losses.mask_area(jnp.ones((1, 3, 3, 1)))), 5), round(float(rj.losses.mask_area(jnp.zeros(4))), 5)
      (1.00015, 0.10226)

    References:
      Ntrougkas et al., T-TAME: Trainable Attention Mechanism for Explaining Convolutional Networks and Vision
      Transformers, 2024; as the authors' code.
    """
    name = "losses.mask_area"
    masks = checks.floating(name, "masks", masks)
    checks.number(name, "power", power, low=0.0, open_low=True)
    checks.number(name, "eps", eps, low=0.0, open_low=True)
    checks.axis_name(name, axis_name)
    m = masks.astype(trees.accumulator(masks))
    return mean(jnp.power(m + jnp.asarray(eps, m.dtype), jnp.asarray(power, m.dtype)), None, axis_name)


def mask_variation(masks: Any, *, power: Any = 2.0, border_penalty: Strength = 0.3, axis_name: Any = None) -> Array:
    r"""How much masks change from pixel to pixel, and how much they reach the border.

    Formula:
      .. math::
         \frac{1}{p B} \left( \sum |m_{y+1, x} - m_{y, x}|^p + \sum |m_{y, x+1} - m_{y, x}|^p
         + \beta \sum_{border} |m|^p \right)

      sums over batch, pixels and channels; the border is the top and the bottom row, the left and the right column, so that
      corners count twice.

    Args:
      masks: float ``[B, H, W, C]``.
      power: p, at least 1, default 2.
      border_penalty: :math:`\beta`, at least 0, default 0.3. 0 is the variation alone.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split under ``shard_map`` or ``pmap``: sums
        and counts are added over it. Gradients averaged over it are then those of the whole batch.

    Returns:
      A scalar in float32 or better, a sum over pixels and channels and a mean over the batch.

    Raises:
      ValueError: if masks are not floating ``[B, H, W, C]``, ``power`` is below 1 or ``border_penalty`` is negative.

    Cost:
      A difference and a power along two axes, and at the border, each way: some six passes over the masks.
      XLA at [64, 56, 56, 20]: at most 51 times the FLOPs and 7.2 times the bytes of a copy of its arguments, and 1.2 times its
      memory more.

    Use:
      Part of: `explanation_mask_loss`.
      When: Call it to smooth any map: power 2 for soft slopes, 1 for flat pieces with sharp edges.
      Badly with: Maps of another size at the same weight: it is a sum over pixels. The border penalty for objects that fill the
        image: set it to 0.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.losses.mask_variation(jnp.ones((1, 3, 3, 1)))), 4)
      1.8

    References:
      Ntrougkas et al., T-TAME: Trainable Attention Mechanism for Explaining Convolutional Networks and Vision
      Transformers, 2024; as the authors' code, which fails for masks that are not square.
    """
    name = "losses.mask_variation"
    masks = checks.floating(name, "masks", masks, ndim=4)
    checks.number(name, "power", power, low=1.0)
    checks.number(name, "border_penalty", border_penalty, low=0.0)
    checks.axis_name(name, axis_name)
    m = masks.astype(trees.accumulator(masks))
    p, beta = jnp.asarray(power, m.dtype), jnp.asarray(border_penalty, m.dtype)

    def total(x: Array) -> Array:
        # A power's slope at 0 is read off a positive number, since that of x^(p - 1) is none for p = 1.
        size = trees.absolute(x)
        return jnp.sum(jnp.where(size > 0, jnp.power(jnp.where(size > 0, size, 1), p), 0), axis=(1, 2, 3))

    inner = total(m[:, 1:] - m[:, :-1]) + total(m[:, :, 1:] - m[:, :, :-1])
    border = total(m[:, :1]) + total(m[:, -1:]) + total(m[:, :, :1]) + total(m[:, :, -1:])
    return mean((inner + beta * border) / p, None, axis_name)


def explanation_mask_loss(
    masked_logits: Any,
    labels: Any,
    masks: Any,
    *,
    weight_ce: Strength = 1.5,
    weight_area: Strength = 2.0,
    weight_variation: Strength = 0.01,
    axis_name: Any = None,
) -> Array:
    r"""Trains masks that keep a frozen network's decision while hiding most of the image.

    Formula:
      .. math:: w_c \, mean(CE(z, y)) + w_a \, area(m) + w_v \, variation(m)

      with z the frozen network's logits on the normalised image times the mask of class y, y the class that it gives the
      whole image, and `mask_area` and `mask_variation` at their defaults.

    Args:
      masked_logits: float ``[B, K]``, z.
      labels: integer class ids ``[B]``, or probabilities ``[B, K]``.
      masks: float ``[B, H, W, C]``, from 0 to 1, before they are enlarged to the image. The authors give the channels of
        all labels in the batch for every image, so that the masks of absent classes shrink too.
      weight_ce: at least 0, default 1.5.
      weight_area: at least 0, default 2.
      weight_variation: at least 0, default 0.01.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split under ``shard_map`` or ``pmap``: sums
        and counts are added over it. Gradients averaged over it are then those of the whole batch.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or a weight is out of range.

    Cost:
      One pass over the logits; `mask_area` and `mask_variation` over the masks; a forward and backward pass of the frozen
      network on the masked images.
      XLA at [64, 56, 56, 20]: at most 56 times the FLOPs and 9.4 times the bytes of a copy of its arguments, and 1.7 times its
      memory more.

    Use:
      For: distribution shift.
      When: To see in one pass what a frozen classifier looks at, a background or watermark perhaps: a mask head learns it from
        unlabelled images. On digits small masks kept the decision. Balance area against cross-entropy first.
      Not when: A few images are to be explained: gradients or occlusion need no training. Faithfulness is not checked: a masked
        image lies off the data. The classifier trains along: it learns to read masks.
      Badly with: True labels in place of the network's own decisions. Masks applied before normalisation, where 0 is black and
        not the mean. Channels of one class alone: absent classes must shrink too.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> logits, masks = jnp.array([[2.0, 1.0, 0.0]]), jnp.ones((1, 3, 3, 1))
      >>> round(float(rj.losses.explanation_mask_loss(logits, jnp.array([0]), masks)), 4)
      2.6297

    References:
      Ntrougkas et al., T-TAME: Trainable Attention Mechanism for Explaining Convolutional Networks and Vision
      Transformers, 2024; as the authors' code, whose sum of the three terms was read, not run.
    """
    name = "losses.explanation_mask_loss"
    given = checks.floating(name, "masked_logits", masked_logits, ndim=2)
    x = classes.class_inputs(name, given, labels)
    masks = checks.floating(name, "masks", masks, shape=(given.shape[0], None, None, None))
    weights = {"weight_ce": weight_ce, "weight_area": weight_area, "weight_variation": weight_variation}
    for argument, value in weights.items():
        checks.number(name, argument, value, low=0.0)
    checks.axis_name(name, axis_name)
    parts = (
        mean(classes.cross_entropy(x), None, axis_name),
        mask_area(masks, axis_name=axis_name),
        mask_variation(masks, axis_name=axis_name),
    )
    dtype = trees.accumulator(*parts)
    ce, area, variation = (jnp.asarray(w, dtype) * part for w, part in zip(weights.values(), parts, strict=True))
    return ce + area + variation
