"""Losses that change how much a confident prediction counts: entropy bonus, focal loss, first polynomial term."""

from typing import Any

import jax.numpy as jnp

from regjax.core import checks, classes
from regjax.core.types import Array, Strength
from regjax.losses import _probabilities


def confidence_penalty(logits: Any, labels: Any, *, weight: Strength = 0.1, axis: int = -1, where: Any = None) -> Array:
    r"""Cross-entropy less a share of the prediction's entropy: confident predictions pay.

    Formula:
      .. math:: CE(z, y) - w \, H(p), \quad H(p) = - \sum_k p_k \log p_k, \quad p = softmax(z)

    Args:
      logits: float ``[..., K]``, classes on ``axis``.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits``.
      weight: w, at least 0, default 0.1; 0 is cross-entropy.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist.

    Returns:
      The loss of each example, ``[...]``, in float32 or better; it may be negative, down to :math:`- w \log K`.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``weight`` is negative or not finite.

    Cost:
      Cross-entropy, and one more pass over the logits each way for the entropy.
      XLA at [1024, 1000]: at most 7.2 times the FLOPs and 1.5 times the bytes of cross-entropy, and 0.55 times its memory more.

    Use:
      For: poor calibration, few labels.
      When: Clean labels and a network that is too sure of itself: on digits of few images it lowered calibration error a little
        at no loss of accuracy, where `label_smoothing` overshot.
      Not when: Labels are wrong: on the digits comparison it memorised all of them and lost accuracy. Held-out labels are at
        hand: `fit_temperature` corrected more. A loss that may be negative breaks what reads it as one, such as
        `polyak_subgradient`.
      Badly with: `label_smoothing` and `maxsup`, which lower the same confidence. `bootstrapping` in mode soft and `tent_loss`,
        which lower the entropy that this one raises. `focal`, whose bonus for doubt comes on top.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.losses.confidence_penalty(jnp.array([2.0, 1.0, 0.0]), jnp.array(0))), 5)
      0.32437

    References:
      Pereyra et al., Regularizing Neural Networks by Penalizing Confident Output Distributions, 2017, arXiv 1701.06548. Some
      libraries add the constant :math:`w \log K`, which keeps the loss above 0.
    """
    name = "losses.confidence_penalty"
    checks.number(name, "weight", weight, low=0.0)
    x = classes.class_inputs(name, logits, labels, axis=axis, where=where)
    parts = classes.normalise(x.logits, x.where)
    loss = classes.cross_entropy(x, parts)
    return loss - jnp.asarray(weight, loss.dtype) * _probabilities.entropy(parts)


def focal(logits: Any, labels: Any, *, gamma: Strength = 2.0, axis: int = -1, where: Any = None) -> Array:
    r"""Cross-entropy that counts an example less the surer the model is of its label.

    Formula:
      .. math:: - \sum_k y_k (1 - p_k)^\gamma \log p_k, \quad p = softmax(z)

      which for a class id y is :math:`- (1 - p_y)^\gamma \log p_y`. The gradient flows through the factor too. For
      independent labels under a sigmoid, and for class weights, see ``optax.losses.sigmoid_focal_loss``.

    Args:
      logits: float ``[..., K]``, classes on ``axis``.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits``.
      gamma: at least 0, default 2; 0 is cross-entropy.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist.

    Returns:
      The loss of each example, ``[...]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``gamma`` is negative or not finite.

    Cost:
      None beyond cross-entropy: one pass over the logits each way.
      XLA at [1024, 1000]: at most 2.8 times the FLOPs and 0.86 times the bytes of cross-entropy, and 0 times its memory more.

    Use:
      For: poor calibration.
      When: Dense prediction with very many easy examples, whose gradients drown the hard ones, or networks that are too sure:
        gamma 1 to 3. On clean digits calibration error fell, at the price of accuracy and of the ranking by confidence.
      Not when: Labels are noisy: it gives wrong ones the more weight, and lost accuracy on the digits comparison. Rare classes
        are the trouble: it did next to nothing for them on long-tailed digits, where `logit_adjusted` and class weights did.
      Badly with: `co_teaching` and `generalized_cross_entropy`, which drop the hard examples that it favours.
        `knn_focal_cross_entropy`, a second such weight. Reading its outputs as probabilities: its least value is not at the
        true ones.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.losses.focal(jnp.array([2.0, 1.0, 0.0]), jnp.array(0))), 5)
      0.04568

    References:
      Lin et al., Focal Loss for Dense Object Detection, 2017, arXiv 1708.02002, which has two classes and a sigmoid; the form
      for K classes is that of Mukhoti et al., Calibrating Deep Neural Networks using Focal Loss, 2020, arXiv 2002.09437.
    """
    name = "losses.focal"
    checks.number(name, "gamma", gamma, low=0.0)
    x = classes.class_inputs(name, logits, labels, axis=axis, where=where)
    gamma = jnp.asarray(gamma, x.logits.dtype)

    def value(surprise: Array) -> Array:
        # Below gamma 1 the power has infinite slope at 0: a floor there, and a ceiling past which 1 - p is 1 in any dtype
        # keeps infinity out of the factor's derivative.
        doubt = -jnp.expm1(-jnp.where(surprise < 100, surprise, 100))
        return jnp.maximum(doubt, 1e-12) ** gamma * surprise

    return _probabilities.of_likelihood(x, value)


def poly1_cross_entropy(logits: Any, labels: Any, *, epsilon: Strength = 1.0, axis: int = -1, where: Any = None) -> Array:
    r"""Cross-entropy with another coefficient for the first term of its expansion in 1 - p.

    Formula:
      .. math:: \sum_k y_k \left( - \log p_k + \epsilon (1 - p_k) \right), \quad p = softmax(z)

      Cross-entropy is :math:`\sum_j (1 - p_y)^j / j`; here the coefficient 1 of the first term is :math:`1 + \epsilon`.
      Above 0 confident examples keep pulling, at -1 the first term is gone.

    Args:
      logits: float ``[..., K]``, classes on ``axis``.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits``.
      epsilon: any finite number, default 1; 0 is cross-entropy. The paper takes 2 for ImageNet classification and -1 for
        detection and imbalanced data.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist.

    Returns:
      The loss of each example, ``[...]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``epsilon`` is not finite.

    Cost:
      None beyond cross-entropy: one pass over the logits each way.
      XLA at [1024, 1000]: at most 2.8 times the FLOPs and 0.86 times the bytes of cross-entropy, and 0 times its memory more.

    Use:
      For: few labels, poor calibration.
      When: A drop-in for cross-entropy with one number to tune: above 0 for balanced classes, so that fairly sure examples keep
        pulling, between -1 and 0 where easy or frequent ones dominate.
      Not when: Accuracy under wrong labels is wanted: on the digits comparison it memorised them all and did not gain, though
        its probabilities were better. Epsilon below -1: nearly sure examples are then pushed away.
      Badly with: `label_smoothing` and `confidence_penalty`, whose optimum it pulls back towards certainty. A learning rate
        tuned for cross-entropy, as the gradient is up to 1 + epsilon times as large.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.losses.poly1_cross_entropy(jnp.array([2.0, 1.0, 0.0]), jnp.array(0))), 4)
      0.7424

    References:
      Leng et al., PolyLoss: A Polynomial Expansion Perspective of Classification Loss Functions, 2022, arXiv 2204.12511.
      Equal to ``optax.losses.poly_loss_cross_entropy``, whose default epsilon is 2.
    """
    name = "losses.poly1_cross_entropy"
    checks.number(name, "epsilon", epsilon)
    x = classes.class_inputs(name, logits, labels, axis=axis, where=where)
    epsilon = jnp.asarray(epsilon, x.logits.dtype)
    return _probabilities.of_likelihood(x, lambda surprise: surprise - epsilon * jnp.expm1(-surprise))
