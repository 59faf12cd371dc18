"""Losses for labels that are partly wrong: bounded in the label's probability, or mixed with the prediction."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, classes
from regjax.core.types import Array, Strength
from regjax.losses import _probabilities


def generalized_cross_entropy(
    logits: Any,
    labels: Any,
    *,
    q: Strength = 0.7,
    truncation: Strength = None,
    axis: int = -1,
    where: Any = None,
) -> Array:
    r"""A loss between cross-entropy and absolute error: bounded, so that wrong labels cannot pull without limit.

    Formula:
      .. math:: \sum_k y_k \frac{1 - p_k^q}{q}, \quad p = softmax(z)

      which for a class id y is :math:`(1 - p_y^q) / q`. q = 0 is cross-entropy, q = 1 is :math:`1 - p_y`, half the absolute
      error. The gradient is that of cross-entropy times :math:`p_y^q`: an example that the model finds unlikely counts
      less. With ``truncation`` = k a class with :math:`p_k \le k` costs the constant :math:`(1 - k^q) / q`, without
      gradient.

    Args:
      logits: float ``[..., K]``, classes on ``axis``.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits``.
      q: in [0, 1], default 0.7; larger is more robust and slower to learn. 0 is cross-entropy.
      truncation: k in [0, 1], the paper's 0.5, or None (default) for none. Begin it when the model has learned something:
        at chance no example has a gradient. 0 truncates nothing.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist.

    Returns:
      The loss of each example, ``[...]``, at most 1 / q, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``q`` or ``truncation`` is outside [0, 1].

    Cost:
      None beyond cross-entropy: one pass over the logits each way.
      XLA at [1024, 1000]: at most 2.8 times the FLOPs and 0.86 times the bytes of cross-entropy, and 0 times its memory more.

    Use:
      For: noisy labels.
      When: Wrong labels of random classes, at no cost and with no memory, pairs or noise rate: change the loss and stop. On
        digits it kept most of the accuracy up to heavy noise. Tune q: 0.7 for ten classes, less for more.
      Not when: Labels confuse pairs of classes: it lost to cross-entropy on digits. Labels are clean: it learned worse, and not
        in every seed alike. Hundreds of classes at large q: at chance the gradient is scaled by K^-q, so raise q by a schedule.
        Rare classes are ignored likewise.
      Badly with: `focal` and `importance_sampling`, which give back weight to what it distrusts. `co_teaching` by its values,
        which hardly differ among unlikely labels. ``truncation`` from the start, when no example passes it.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> z = jnp.array([2.0, 1.0, 0.0])
      >>> round(float(rj.losses.generalized_cross_entropy(z, jnp.array(0))), 5)
      0.35461
      >>> round(float(rj.losses.generalized_cross_entropy(z, jnp.array(1), truncation=0.5)), 5)
      0.54918

    References:
      Zhang and Sabuncu, Generalized Cross Entropy Loss for Training Deep Neural Networks with Noisy Labels, 2018,
      arXiv 1805.07836. The authors' code takes powers of probabilities (others first clamp these at 1e-7, which ends the
      gradient there); here they are powers in log space, exact at every q with no clamp. Their truncated training also
      chooses again, every ten epochs, the examples that count: that is left to the caller. Soft labels are not in the
      paper: the loss is the expected loss of a label drawn from them.
    """
    name = "losses.generalized_cross_entropy"
    checks.number(name, "q", q, low=0.0, high=1.0)
    if truncation is not None:
        checks.number(name, "truncation", truncation, low=0.0, high=1.0)
    x = classes.class_inputs(name, logits, labels, axis=axis, where=where)
    q = jnp.asarray(q, x.logits.dtype)
    divisor = jnp.where(q == 0, 1, q)

    def value(surprise: Array) -> Array:
        if truncation is not None:
            limit = -jnp.log(jnp.asarray(truncation, surprise.dtype))
            surprise = jnp.where(surprise >= limit, limit, surprise)
        return jnp.where(q == 0, surprise, -jnp.expm1(-divisor * surprise) / divisor)

    return _probabilities.of_likelihood(x, value)


def symmetric_cross_entropy(
    logits: Any,
    labels: Any,
    *,
    alpha: Strength = 0.1,
    beta: Strength = 1.0,
    log_zero: Any = -4.0,
    axis: int = -1,
    where: Any = None,
) -> Array:
    r"""Cross-entropy plus its reverse, in which the prediction judges the label: the reverse part is bounded.

    Formula:
      .. math:: \alpha \, CE(z, y) - \beta \sum_k p_k \max(\log y_k, A), \quad p = softmax(z)

      with A = ``log_zero`` in place of log 0, so that the second part is :math:`- \beta A (1 - p_y)` for a class id y.

    Args:
      logits: float ``[..., K]``, classes on ``axis``.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits``.
      alpha: the weight of cross-entropy, at least 0, default 0.1; with beta = 1 the authors take 0.1 for 10 classes and 6
        for 100.
      beta: the weight of the reverse part, at least 0, default 1; 0 leaves ``alpha`` times cross-entropy.
      log_zero: A, at most 0, default -4, the paper's. Code that clamps one-hot labels at 1e-4 has -9.2103.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist.

    Returns:
      The loss of each example, ``[...]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, ``alpha`` or ``beta`` is negative or not finite, or ``log_zero`` is
        positive or not finite.

    Cost:
      None beyond cross-entropy: one pass over the logits each way.
      XLA at [1024, 1000]: at most 2.8 times the FLOPs and 0.86 times the bytes of cross-entropy, and 0 times its memory more.

    Use:
      For: noisy labels.
      When: Wrong labels in unknown amount, where `generalized_cross_entropy` learns too slowly or fails on confused pairs: the
        small share of cross-entropy keeps hard classes learning. On digits it gained under both kinds of noise and lost nothing
        on clean labels, at an alpha of 0.01.
      Not when: The default alpha is all that is tried: in long trainings its cross-entropy part memorised all the same on
        digits. A value to carry over is wanted: the authors' differ by sixty times between 10 and 100 classes. Noise is heavy:
        `elr`.
      Badly with: Soft labels, as of `mixup`: between classes that all have mass the reverse part hardly prefers one. Learning
        rates tuned for cross-entropy: at the default alpha the gradient is another.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.losses.symmetric_cross_entropy(jnp.array([2.0, 1.0, 0.0]), jnp.array(0))), 5)
      1.3798

    References:
      Wang et al., Symmetric Cross Entropy for Robust Learning with Noisy Labels, 2019, arXiv 1908.06112. A is the paper's;
      the authors' code clamps the label at 1e-4 instead, which is A = -9.2103, and the prediction at 1e-7.
    """
    name = "losses.symmetric_cross_entropy"
    checks.number(name, "alpha", alpha, low=0.0)
    checks.number(name, "beta", beta, low=0.0)
    checks.number(name, "log_zero", log_zero, high=0.0)
    x = classes.class_inputs(name, logits, labels, axis=axis, where=where)
    beta, floor = (jnp.asarray(v, x.logits.dtype) for v in (beta, log_zero))
    if x.is_ids:
        # expm1(-CE) = p_y - 1 with all its digits.
        return _probabilities.of_likelihood(
            x, lambda surprise: _probabilities.weighted(alpha, surprise) + beta * floor * jnp.expm1(-surprise)
        )
    parts = classes.normalise(x.logits, x.where)
    some = x.labels > 0
    log_labels = jnp.where(some, jnp.maximum(jnp.log(jnp.where(some, x.labels, 1)), floor), floor)
    forward = _probabilities.weighted(alpha, classes.cross_entropy(x, parts))
    return forward - beta * _probabilities.mean_under_prediction(parts, log_labels)


def bootstrapping(
    logits: Any,
    labels: Any,
    *,
    mode: str = "hard",
    beta: Strength = None,
    stop_gradient: bool = False,
    axis: int = -1,
    where: Any = None,
) -> Array:
    r"""Cross-entropy against labels mixed with the model's own prediction: what it is sure of, it may keep.

    Formula:
      .. math:: - \sum_k (\beta y_k + (1 - \beta) v_k) \log p_k, \quad p = softmax(z)

      with v = p in mode ``"soft"``, so that the second part is the entropy of p, and v the one-hot vector of the largest
      logit in mode ``"hard"``, so that it is :math:`- \log \max_k p_k`. Logits that tie for the largest share its gradient
      evenly.

    Args:
      logits: float ``[..., K]``, classes on ``axis``.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits``.
      mode: ``"hard"`` (default) or ``"soft"``.
      beta: the labels' share, in [0, 1]; default 0.8 in mode hard and 0.95 in mode soft. 1 is cross-entropy.
      stop_gradient: whether v is a constant; default False, as published, where in mode soft the gradient also flows
        through v. In mode soft a constant v leaves no gradient but ``beta`` times that of cross-entropy; mode hard does not
        change.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist.

    Returns:
      The loss of each example, ``[...]``, in float32 or better.

    Raises:
      ValueError: if a shape, dtype or option does not fit, or ``beta`` is outside [0, 1].

    Cost:
      None beyond cross-entropy: one pass over the logits each way, and one more forward for the largest or the entropy.
      XLA at [1024, 1000]: at most 4.7 times the FLOPs and 1.1 times the bytes of cross-entropy, and 0 times its memory more.

    Use:
      For: noisy labels.
      When: A quick trial under random noise, with the label's share as the only number. On digits a beta near 0.3 gained much
        on more data, though less than `generalized_cross_entropy` and `elr`. ``hard`` moves more than ``soft``.
      Not when: The default is taken: at 0.5 to 0.8 it did not help on digits, as labels win in the end. Beta is small from the
        first step: at 0.2 the model taught itself one answer. Let it fall by a schedule.
      Badly with: `confidence_penalty` and `label_smoothing`, which raise the entropy that the model's own share lowers.
        ``stop_gradient=True`` in mode soft, a mere change of scale. `ps_kd`, which mixes predictions in as well.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> z, y = jnp.array([2.0, 1.0, 0.0]), jnp.array(1)
      >>> round(float(rj.losses.bootstrapping(z, y)), 4), round(float(rj.losses.bootstrapping(z, y, mode="soft")), 4)
      (1.2076, 1.3788)

    References:
      Reed et al., Training Deep Neural Networks on Noisy Labels with Bootstrapping, 2014, arXiv 1412.6596.
    """
    name = "losses.bootstrapping"
    checks.choice(name, "mode", mode, ("hard", "soft"))
    beta = (0.8 if mode == "hard" else 0.95) if beta is None else beta
    checks.number(name, "beta", beta, low=0.0, high=1.0)
    checks.boolean(name, "stop_gradient", stop_gradient)
    x = classes.class_inputs(name, logits, labels, axis=axis, where=where)
    parts = classes.normalise(x.logits, x.where)
    if mode == "soft":
        own = _probabilities.entropy(parts)
        own = jax.lax.stop_gradient(own) if stop_gradient else own
    else:
        own = parts.log_total - classes.top(parts.shifted)
        own = own if x.where is None else jnp.where(jnp.any(x.where, axis=-1), own, 0)
    beta = jnp.asarray(beta, own.dtype)
    return _probabilities.weighted(beta, classes.cross_entropy(x, parts)) + (1 - beta) * own
