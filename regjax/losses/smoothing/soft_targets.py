"""Soft targets and penalties of the top logit: label smoothing, MaxSup."""

from typing import Any

import jax.numpy as jnp

from regjax.core import checks, classes
from regjax.core.types import Array, Strength


def label_smoothing(
    logits: Any,
    labels: Any,
    *,
    alpha: Strength = 0.1,
    off_target_only: bool = False,
    axis: int = -1,
    where: Any = None,
) -> Array:
    r"""Cross-entropy against labels mixed with the uniform distribution.

    Formula:
      .. math:: (1 - \alpha)\, CE(z, y) + \alpha \left( -\frac{1}{K} \sum_k \log p_k \right), \quad p = softmax(z)

      With ``off_target_only`` the mass :math:`\alpha` goes to the K - 1 other classes in equal parts, and none to the
      target. Without building a one-hot target in either case.

    Args:
      logits: float ``[..., K]``, classes on ``axis``.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits`` (mixup output).
      alpha: the mass moved off the target, default 0.1; at most 1, and negative values sharpen. 0 is cross-entropy.
      off_target_only: which convention; False (default) is that of optax and PyTorch.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist; the others get no mass.

    Returns:
      The loss of each example, ``[...]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, ``alpha`` is not finite or above 1, or ``off_target_only`` is asked
        for one class.

    Cost:
      None beyond cross-entropy: one pass over the logits each way.
      XLA at [1024, 1000]: at most 3.3 times the FLOPs and 0.98 times the bytes of cross-entropy, and 0 times its memory more.

    Use:
      For: few labels, noisy labels, exploding logits.
      When: Classifiers of few or wrong labels where the ranking of classes counts more than the probabilities. On few clean
        digits 0.1 raised accuracy. Against random wrong labels 0.1 did nothing, 0.6 to 0.9 much.
      Not when: Probabilities are used as they come: on digits it made them far too unsure, until `fit_temperature`. The model
        shall teach others, or its features shall transfer to finer classes. Wrong labels are of confused pairs: it helped
        little.
      Badly with: `maxsup` and `confidence_penalty`, which push down the same confidence twice. `nkd` or `distillation` from a
        smoothed teacher, whose small probabilities say less. `logit_norm`, which bounds confidence already.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.losses.label_smoothing(jnp.array([2.0, 1.0, 0.0]), jnp.array(0), alpha=0.1)), 5)
      0.50761

    References:
      Szegedy et al., Rethinking the Inception Architecture for Computer Vision, 2015, arXiv 1512.00567. Xia et al.,
      Towards Understanding Why Label Smoothing Degrades Selective Classification and How to Fix It, 2024,
      arXiv 2403.14715.
    """
    name = "losses.label_smoothing"
    checks.number(name, "alpha", alpha, high=1.0)
    checks.boolean(name, "off_target_only", off_target_only)
    x = classes.class_inputs(name, logits, labels, axis=axis, where=where)
    parts = classes.normalise(x.logits, x.where)
    cross_entropy = classes.cross_entropy(x, parts)
    alpha = jnp.asarray(alpha, cross_entropy.dtype)
    num_classes = x.logits.shape[-1]
    uniform = parts.log_total - classes.class_mean(parts.shifted, x.where)
    if off_target_only:
        # The sum over all classes less the target's, over the K - 1 others.
        if num_classes < 2:
            checks.fail(name, "off_target_only", "False for a single class", off_target_only)
        count = num_classes if x.where is None else jnp.sum(x.where, axis=-1)
        uniform = (count * uniform - cross_entropy) / jnp.maximum(count - 1, 1)
    # At alpha = 0 an infinite uniform part, from a logit of -inf, counts for nothing.
    return (1 - alpha) * cross_entropy + alpha * jnp.where(alpha == 0, 0, uniform)


def max_suppression(logits: Any, *, axis: int = -1, where: Any = None) -> Array:
    r"""The distance of the top logit from the mean logit.

    Formula:
      .. math:: \max_k z_k - \frac{1}{K} \sum_k z_k

      The gradient is ``onehot(argmax z) - 1/K``; ties share it evenly.

    Args:
      logits: float ``[..., K]``, classes on ``axis``.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist.

    Returns:
      The penalty of each example, ``[...]``, at least 0, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      One pass over the logits.
      XLA at [1024, 1000]: at most 2.2 times the FLOPs and 0.62 times the bytes of cross-entropy, and 0 times its memory more.

    Use:
      Part of: `maxsup`.
      When: Call it to add the penalty to another loss, such as `logit_adjusted`, to unlabelled examples, or to report how far
        the top logit leads.
      Badly with: A negative weight, which is unbounded below.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> float(rj.losses.max_suppression(jnp.array([2.0, 1.0, 0.0])))
      1.0

    References:
      Zhou et al., MaxSup: Overcoming Representation Collapse in Label Smoothing, 2025, arXiv 2502.15798.
    """
    x = classes.class_inputs("losses.max_suppression", logits, axis=axis, where=where)
    return _max_minus_mean(x)


def maxsup(logits: Any, labels: Any, *, weight: Strength = 0.1, axis: int = -1, where: Any = None) -> Array:
    r"""Cross-entropy plus a penalty on the top logit: label smoothing without its error-enhancing term.

    Formula:
      .. math:: CE(z, y) + w \left( \max_k z_k - \frac{1}{K} \sum_k z_k \right)

      Equal to label smoothing with ``alpha = weight`` wherever the prediction is right; where it is wrong the top class
      is pushed down in place of the label. No stop-gradient.

    Args:
      logits: float ``[..., K]``, classes on ``axis``.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits``; the penalty ignores them.
      weight: the penalty's weight, at least 0, default 0.1; the authors raise it linearly from 0.1 in the first epoch to
        0.2 in the last. 0 is cross-entropy.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist.

    Returns:
      The loss of each example, ``[...]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``weight`` is negative or not finite.

    Cost:
      None beyond cross-entropy: one pass over the logits each way.
      XLA at [1024, 1000]: at most 5 times the FLOPs and 1.1 times the bytes of cross-entropy, and 0 times its memory more.

    Use:
      For: few labels, exploding logits.
      When: In place of `label_smoothing` where the model errs on many training examples, as on large data early on: there it
        pushes down the top logit and never the label. Where training predictions are right the two are equal: no difference was
        shown on clean digits.
      Not when: Labels are wrong: once they are learned by heart it treats them as right, and it memorised far more of them than
        `label_smoothing` on digits. Its probabilities need `fit_temperature` as well. Weights of 1.5 and more, at which
        training on digits broke down.
      Badly with: `label_smoothing`, the same pull on right predictions. `spectral_decoupling` and `logit_norm`, which bound the
        same logits. Weak augmentation that leaves nothing wrong, where its only difference is gone.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.losses.maxsup(jnp.array([2.0, 1.0, 0.0]), jnp.array(1), weight=0.1)), 5)
      1.50761

    References:
      Zhou et al., MaxSup: Overcoming Representation Collapse in Label Smoothing, 2025, arXiv 2502.15798. Paper and code
      agree but for the ramp's last value (0.2, or 0.1989 where the code divides by E instead of E - 1).
    """
    name = "losses.maxsup"
    checks.number(name, "weight", weight, low=0.0)
    x = classes.class_inputs(name, logits, labels, axis=axis, where=where)
    loss = classes.cross_entropy(x)
    return loss + jnp.asarray(weight, loss.dtype) * _max_minus_mean(x)


def _max_minus_mean(x: classes.ClassInputs) -> Array:
    if x.where is None:
        return classes.top(x.logits) - jnp.mean(x.logits, axis=-1)
    some = jnp.any(x.where, axis=-1)
    top = classes.top(jnp.where(x.where | ~some[..., None], x.logits, -jnp.inf))
    return jnp.where(some, top, 0) - classes.class_mean(x.logits, x.where)
