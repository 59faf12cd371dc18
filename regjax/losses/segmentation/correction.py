"""ADELE, for segmentation with wrong annotations: consistency over scales, and correction of the labels not yet memorised."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, trees
from regjax.core.types import Array

_LOW = 1e-3  # the clip of the mixture, on both sides


def adele_multiscale(
    scale_logits: Any,
    labels: Any,
    scale_weights: Any,
    *,
    confidence: Any = 0.8,
    ignore_label: int = 255,
    axis_name: Any = None,
) -> tuple[Array, Array]:
    r"""Cross-entropy of predictions at several scales, and their divergence from the scales' mixture.

    Formula:
      With :math:`w = softmax(scale\_weights)`, :math:`p_s = softmax(z_s)` and the mixture
      :math:`m = clip(\sum_s w_s p_s, 10^{-3}, 1 - 10^{-3})`,

      .. math:: CE = mean_{b,h,w} \sum_s CE(w_s z_s, y), \quad
        R = mean_{b,h,w}\ g_b \sum_s \sum_k p_{sk} \log \frac{p_{sk}}{m_k}

      where :math:`g_b` is 1 for images in which some mixed probability at a labelled pixel reaches ``confidence``, else 0.
      The weights multiply the logits. Ignored pixels add 0 to CE and are counted in its mean; R takes them all. Gradients
      flow through p, m and w alike. The total is ``CE + R`` on PASCAL VOC, ``(CE + R) / 3`` on SegTHOR.

    Args:
      scale_logits: float ``[S, B, H, W, K]``: the logits of the images at S scales, resized to the size of the labels.
      labels: integer class ids ``[B, H, W]``.
      scale_weights: float ``[S]``, learned with the model or constant; equal numbers (start with ones) weigh scales alike.
      confidence: in [0, 1], default 0.8, a number or a traced scalar; above 0.999, which m never exceeds, R is 0.
      ignore_label: the id of pixels without a label, default 255.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split evenly under ``shard_map`` or ``pmap``:
        the means are then those of the whole batch, and gradients averaged over it are its gradients.

    Returns:
      ``(cross_entropy, consistency)``, scalars in float32 or better, at least 0 up to rounding. A label outside [0, K)
      that is not ``ignore_label`` gives NaN.

    Raises:
      ValueError: if a shape or dtype does not fit, an array is empty, or an option is out of range.

    Cost:
      Two softmaxes of the logits at each scale: five times the bytes of their cross-entropy. The other scales' forward and
      backward passes are the caller's: with 0.7, 1 and 1.5 times the side, 3.7 times those of one scale.
      XLA at [3, 8, 64, 64, 21]: at most 13 times the FLOPs and 5 times the bytes of cross-entropy, and 3.3 times its memory
      more.

    Use:
      For: noisy labels.
      When: Segmentation with rough annotations: predictions at three scales must agree. On shapes with wrong masks this alone
        gave most of the gain of ADELE. Sum of both parts, the scale weights learned.
      Not when: Compute is short: the other scales cost several times the passes. Annotations are true and plenty. Objects of a
        few pixels vanish at the small scale.
      Badly with: Cross-entropy by itself beside it, which counts labels twice. A ``confidence`` of 0 early on, when scales
        agree on noise. `drop_block` with another mask at each scale. Logits of other size than labels.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> scales = jnp.array([[3.0, 0.0, 0.0], [2.0, 1.0, 0.0], [1.0, 0.0, 2.0]]).reshape(3, 1, 1, 1, 3)
      >>> label = jnp.zeros((1, 1, 1), int)
      >>> cross_entropy, consistency = rj.losses.adele_multiscale(scales, label, jnp.ones(3), confidence=0.5)
      >>> round(float(cross_entropy), 4), round(float(consistency), 4)
      (2.4887, 0.7213)

    References:
      Liu et al., Adaptive Early-Learning Correction for Segmentation from Noisy Annotations, 2021, arXiv 2110.03740. As the
      authors' SegTHOR code. The paper's term is a Jensen-Shannon divergence, in which :math:`KL(p_s, m)` would have weight
      :math:`w_s`. The clip, the place of the weights in CE and the mean over ignored pixels are in the code alone.
    """
    name = "losses.adele_multiscale"
    logits = checks.floating(name, "scale_logits", scale_logits, ndim=5)
    if not logits.size:
        checks.fail(name, "scale_logits", "logits [S, B, H, W, K] of at least one scale, pixel and class", logits)
    labels = checks.integers(name, "labels", labels, shape=logits.shape[1:4])
    scale_weights = checks.floating(name, "scale_weights", scale_weights, shape=logits.shape[:1])
    checks.number(name, "confidence", confidence, low=0.0, high=1.0)
    checks.integer(name, "ignore_label", ignore_label)
    checks.axis_name(name, axis_name)
    dtype = trees.accumulator(logits, scale_weights)
    z = logits.astype(dtype)
    w = jax.nn.softmax(scale_weights.astype(dtype))[:, None, None, None, None]
    labels = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))
    valid = labels != ignore_label

    weighted = classes.normalise(w * z)
    ids = jnp.where(valid, labels, 0)[None]
    losses = jnp.where(valid, jnp.sum(weighted.log_total - classes.pick(weighted.shifted, ids), axis=0), 0)

    shifted, log_total = classes.normalise(z)
    log_p = shifted - log_total[..., None]
    p = jnp.exp(log_p)
    mixture = jnp.clip(jnp.sum(w * p, axis=0), _LOW, 1 - _LOW)
    # 0 log 0 = 0, and no NaN to the gradient of a logit of -inf.
    divergence = jnp.sum(jnp.where(p > 0, p * (jnp.where(p > 0, log_p, 0) - jnp.log(mixture)), 0), axis=(0, -1))
    surest = jnp.max(jnp.where(valid[..., None], mixture, 0), axis=(1, 2, 3))
    gate = surest >= jnp.asarray(confidence, dtype)
    # Not a product: an image that does not count may hold anything.
    divergence = jnp.where(gate[:, None, None], divergence, 0)
    means = jnp.mean(losses), jnp.mean(divergence)
    return means if axis_name is None else jax.lax.pmean(means, axis_name)


_VARIANTS = ("segthor", "voc")


def adele_correct_labels(
    labels: Any,
    probs: Any,
    active: Any,
    *,
    threshold: Any = 0.8,
    class_constraint: bool = True,
    background: int = 0,
    variant: str = "segthor",
) -> Array:
    r"""Replaces annotations by sure predictions, for the classes whose annotations the network starts to memorise.

    Formula:
      A pixel with label y takes the predicted class :math:`k = argmax_c\ p_c` if all of this holds:

      1. :math:`p_k >` ``threshold``.
      2. k is background or active, and (``"segthor"`` alone) so is y.
      3. With ``class_constraint``: k is background or occurs in the image's labels.
      4. ``"segthor"``: some active foreground class occurs in the image's labels. ``"voc"``: some foreground class is active
         at all, and the correction does not leave an image with less than half of its labelled foreground and with more than
         95 % background; such an image keeps its labels.

    Args:
      labels: integer class ids ``[B, H, W]``. Ids outside [0, K), such as an ignore label, stay.
      probs: float ``[B, H, W, K]``, the probabilities of the model in training, averaged over scales and flips.
      active: boolean ``[K]``: the classes past their `diagnostics.memorization_epoch`; the entry of ``background`` has no
        effect. All False leaves the labels as they are.
      threshold: in [0, 1], default 0.8, a number or a traced scalar. At 1 no label changes.
      class_constraint: whether classes that the image's labels lack stay out of it; default True.
      background: the id of the background, default 0.
      variant: ``"segthor"`` (default), or ``"voc"``, which looks at the predicted class alone.

    Returns:
      The corrected labels, of the shape and dtype of ``labels``.

    Raises:
      ValueError: if a shape or dtype does not fit or an option is out of range.

    Cost:
      A few passes over the probabilities, once an epoch. Images may be sharded over devices.
      XLA at [8, 64, 64, 21]: at most 20 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0.19 times its
      memory more.

    Use:
      For: noisy labels.
      When: Once an epoch, after `memorization_epoch` has found that a class's annotations begin to be learned by heart. On
        shapes it added a little to `adele_multiscale` where most errors were of one kind, too large.
      Not when: Objects are drawn too small as often as too large: on shapes labels came nearer the truth but the network went
        away from it. The network is unsure, or its training too short for an early phase.
      Badly with: Correcting corrected labels for many epochs: errors settle, so start from the given ones each time, as on VOC.
        Memories by position such as `elr`. Sharpened probabilities, which all pass the threshold.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> labels = jnp.array([[[0, 0, 1, 1]]])  # one image of four pixels in a row
      >>> p = jnp.array([0.1, 0.9, 0.9, 0.4])  # of class 1
      >>> probs = jnp.stack([1 - p, p], axis=-1)[None, None]
      >>> rj.losses.adele_correct_labels(labels, probs, jnp.array([False, True])).tolist()
      [[[0, 1, 1, 1]]]

    References:
      Liu et al., Adaptive Early-Learning Correction for Segmentation from Noisy Annotations, 2021, arXiv 2110.03740; the
      variants are the authors' two code bases. ``threshold`` is 0.8 on PASCAL VOC and 0.7 on SegTHOR. On VOC the
      probabilities are the softmax of the mean logits over 3 (a temperature), and each epoch corrects the labels
      as first given, not those of the epoch before. How that code treats predicted background before any class is active,
      and unlabelled pixels, is reconstructed here: neither changes.
    """
    name = "losses.adele_correct_labels"
    probs = checks.floating(name, "probs", probs, ndim=4)
    num_classes = probs.shape[-1]
    if num_classes < 1:
        checks.fail(name, "probs", "probabilities [B, H, W, K] of at least one class", probs)
    labels = checks.integers(name, "labels", labels, shape=probs.shape[:3])
    checked = checks.example_mask(name, "active", active, (num_classes,))
    if checked is None:
        checks.fail(name, "active", f"a boolean mask of shape [{num_classes}]", active)
    checks.number(name, "threshold", threshold, low=0.0, high=1.0)
    checks.boolean(name, "class_constraint", class_constraint)
    checks.integer(name, "background", background, low=0, high=num_classes - 1)
    checks.choice(name, "variant", variant, _VARIANTS)
    probs = probs.astype(trees.accumulator(probs))
    foreground = jnp.arange(num_classes) != background
    active = checked & foreground
    allowed = active | ~foreground

    predicted = jnp.argmax(probs, axis=-1)
    sure = jnp.max(probs, axis=-1) > jnp.asarray(threshold, probs.dtype)
    new = predicted[..., None] == jnp.arange(num_classes)
    old = labels[..., None] == jnp.arange(num_classes)
    known = jnp.any(old, axis=-1)
    present = jnp.any(old, axis=(1, 2))
    change = sure & jnp.any(new & allowed, axis=-1)
    if class_constraint:
        change &= jnp.any(new & (present | ~foreground)[:, None, None], axis=-1)
    if variant == "segthor":
        change &= jnp.any(old & allowed, axis=-1) & jnp.any(present & active, axis=-1)[:, None, None]
        return jnp.where(change, predicted.astype(labels.dtype), labels)

    corrected = jnp.where(change & known & jnp.any(active), predicted.astype(labels.dtype), labels)
    pixels = jnp.sum(known, axis=(1, 2))
    before, after = (jnp.sum(known & (x != background), axis=(1, 2)) for x in (labels, corrected))
    # Halves and twentieths in whole numbers.
    emptied = (2 * after < before) & (20 * after < pixels)
    return jnp.where(emptied[:, None, None], labels, corrected)
