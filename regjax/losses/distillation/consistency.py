"""Agreement of predictions on several views of an example: the Jensen-Shannon consistency of AugMix."""

from typing import Any

import jax.numpy as jnp

from regjax.core import checks, classes
from regjax.core.types import Array, Strength


def jensen_shannon_consistency(
    logits_clean: Any,
    logits_aug1: Any,
    logits_aug2: Any,
    *,
    weight: Strength = 12.0,
    axis: int = -1,
    where: Any = None,
) -> Array:
    r"""The weighted Jensen-Shannon divergence of the predictions on an image and on two augmentations of it.

    Formula:
      .. math:: w\, \frac{1}{3} \sum_{v} KL(p_v \| M), \quad M = \frac{p_c + p_1 + p_2}{3}, \quad p_v = softmax(z_v)

      Log M is taken after M is clipped to [1e-7, 1]. It is added to the cross-entropy of the clean image alone; its
      gradient flows through all three predictions.

    Args:
      logits_clean: float ``[..., K]`` of the clean images, classes on ``axis``.
      logits_aug1: float ``[..., K]`` of the same images, augmented.
      logits_aug2: float ``[..., K]`` of the same images, augmented with another key.
      weight: at least 0, default 12, the authors'. 0 gives 0.
      axis: the class axis.
      where: boolean, broadcasts to the logits: the classes that exist.

    Returns:
      The weighted divergence of each example, ``[...]``, in float32 or better; from 0 to ``weight log 3``, up to rounding.
      Its mean over the batch is the authors' term.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``weight`` is negative or not finite.

    Cost:
      A log-softmax of each of the three, kept for the gradient, and a pass over all of them each way; two more forward and
      backward passes of the network for the augmented images.
      XLA at 3 times [1024, 1000]: at most 12 times the FLOPs and 3.5 times the bytes of cross-entropy of each, and 1.9 times
      its memory more.

    Use:
      For: distribution shift, poor calibration.
      When: With `augmix`, or any two augmentations that keep the label, to hold predictions together under corruption. Added to
        the cross-entropy of the clean view alone.
      Not when: Corruptions are not expected: on the digits comparison with wrong labels `augmix` with it gained little, at a
        multiple of the cost. Augmentations change the class.
      Badly with: Batch normalisation over views given one after the other: concatenate the three in one pass. `r_drop`, a
        second agreement. `mixup` of the views with other partners.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> clean, one, two = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]))
      >>> round(float(rj.losses.jensen_shannon_consistency(clean, one, two)), 4)
      2.2165

    References:
      Hendrycks et al., AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty, 2019,
      arXiv 1912.02781; as the authors' code.
    """
    name = "losses.jensen_shannon_consistency"
    logits_clean = checks.floating(name, "logits_clean", logits_clean, min_ndim=1)
    views = [logits_clean]
    for argument, logits in (("logits_aug1", logits_aug1), ("logits_aug2", logits_aug2)):
        views.append(checks.floating(name, argument, logits, shape=logits_clean.shape))
    checks.number(name, "weight", weight, low=0.0)
    inputs = [classes.class_inputs(name, logits, axis=axis, where=where) for logits in views]
    logs = [classes.log_softmax(x.logits, x.where) for x in inputs]
    exists = inputs[0].where
    probabilities = [jnp.exp(log) if exists is None else jnp.where(exists, jnp.exp(log), 0) for log in logs]
    log_mean = jnp.log(jnp.clip(sum(probabilities[1:], probabilities[0]) / 3, 1e-7, 1))
    # 0 log 0 = 0: a logit of -inf, or of a class that does not exist, adds nothing, and no NaN to the gradient.
    terms = [jnp.where(p > 0, p * (jnp.where(p > 0, log, 0) - log_mean), 0) for p, log in zip(probabilities, logs, strict=True)]
    divergence = jnp.sum(sum(terms[1:], terms[0]), axis=-1) / 3
    return jnp.asarray(weight, divergence.dtype) * divergence
