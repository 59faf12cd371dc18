"""Selective mixup: by how much mixing each pair of classes raises a metric of the confusion matrix."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, Strength

METRICS = ("mean_recall", "min_recall", "g_mean", "h_mean")
# Entries of the confusion matrix below this count as this: the metrics are then smooth at classes never predicted.
LEAST = 1e-7


def selmix_gain(
    confusion: Any,
    prototypes: Any,
    kernel: Any,
    bias: Any,
    *,
    metric: str | Callable[[Array], Array] = "mean_recall",
    multipliers: Any = None,
    coverage_multipliers: Any = None,
    mixing_weight: Strength = 0.8,
    positive_term: str = "mixed",
) -> Array:
    r"""By how much a step on a mixed pair of classes raises a metric of the confusion matrix, for every pair.

    Formula:
      With :math:`C = softmax(A) / K` by rows, :math:`R = \partial metric / \partial A` and the classes' mean features z:

      .. math::
         m_{ij} = w z_i + (1 - w) z_j, \quad p_{ij} = softmax(m_{ij} W + b), \quad
         gain_{ij} = \sum_{q, l} R_{ql} \langle m_{ij}, z_q \rangle (1[l = i] - (p_{ij})_l)

      the first-order effect on the logits of every class q of a cross-entropy step on features :math:`m_{ij}` with label i.

    Args:
      confusion: float ``[K, K]``, the joint frequencies of true class (rows) and predicted class on a class-balanced
        held-out set: rows sum to 1 / K, as of `class_balanced_confusion`. Entries below 1e-7 count as 1e-7.
      prototypes: float ``[K, D]``, the mean feature of each class, as of `class_prototypes`.
      kernel: float ``[D, K]``, of the head.
      bias: float ``[K]``.
      metric: ``"mean_recall"`` (default); ``"min_recall"``, the recalls weighted by ``multipliers``; ``"g_mean"``, their
        geometric and ``"h_mean"`` their harmonic mean; or a differentiable function ``metric(confusion) -> scalar``.
      multipliers: float ``[K]``, with ``"min_recall"`` only: `selmix_recall_multipliers`.
      coverage_multipliers: None, or float ``[K]``: these times the frequencies of the predictions are added to the metric,
        and the result is divided by the largest + 1: `selmix_coverage_multipliers`.
      mixing_weight: w in [0, 1], default 0.8: the mean weight of the first example, (1 + min_weight) / 2 of `selmix_mix`.
      positive_term: ``"mixed"`` (default) as derived, or ``"anchor"``, which puts :math:`z_i` for :math:`m_{ij}` where l = i.

    Returns:
      The gains ``[K, K]``, of label i with a second example of class j, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, ``multipliers`` miss or are not asked for, or an option is wrong.

    Cost:
      O(K^3) time, O(K^2) memory: rows of pairs are taken one after the other. XLA counts the body of the loop once.
      XLA at [100, 512]: at most 310 times the FLOPs and 3.1 times the bytes of a copy of its arguments, and 0.4 times its
      memory more.

    Use:
      Part of: `selmix_refresh`.
      When: Call it for a metric of your own, or to see which pairs of classes would help before training on them.
      Not when: The head is not linear with a softmax: the effect on the logits is that of a linear one.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> confusion = jnp.array([[0.4, 0.1], [0.3, 0.2]])
      >>> gain = rj.inputs.selmix_gain(confusion, jnp.eye(2), jnp.eye(2), jnp.zeros(2))
      >>> [[round(float(g), 4) for g in row] for row in gain]
      [[0.043, 0.0283], [0.0567, 0.0645]]

    References:
      Ramasubramanian et al., Selective Mixup Fine-Tuning for Optimizing Non-Decomposable Objectives, 2024, ICLR, arXiv
      2403.18301. The released code has ``"anchor"``; the two agree on the diagonal.
    """
    name = "inputs.selmix_gain"
    confusion = checks.floating(name, "confusion", confusion, ndim=2)
    classes = confusion.shape[0]
    if classes < 1 or confusion.shape[1] != classes:
        checks.fail(name, "confusion", "joint frequencies of shape [K, K]", confusion)
    prototypes = checks.floating(name, "prototypes", prototypes, shape=(classes, None))
    kernel = checks.floating(name, "kernel", kernel, shape=(prototypes.shape[1], classes))
    bias = checks.floating(name, "bias", bias, shape=(classes,))
    check_metric(name, metric)
    check_mixing(name, mixing_weight, positive_term)
    weighted = isinstance(metric, str) and metric == "min_recall"
    if weighted != (multipliers is not None):
        checks.fail(name, "multipliers", "given with metric='min_recall', and only then", multipliers)
    if multipliers is not None:
        multipliers = checks.floating(name, "multipliers", multipliers, shape=(classes,))
    if coverage_multipliers is not None:
        coverage_multipliers = checks.floating(name, "coverage_multipliers", coverage_multipliers, shape=(classes,))
    dtype = trees.accumulator(confusion, prototypes, kernel, bias)
    prototypes, kernel, bias = (x.astype(dtype) for x in (prototypes, kernel, bias))

    def value(logits: Array) -> Array:
        joint = jax.nn.softmax(logits, axis=1) / classes
        total = _metric(joint, metric, multipliers)
        if jnp.shape(total) != ():
            checks.fail(name, "metric", "a function of the confusion matrix to a scalar", total)
        return total if coverage_multipliers is None else total + jnp.sum(coverage_multipliers * jnp.sum(joint, axis=0))

    sensitivity = jax.grad(value)(jnp.log(classes * clipped(confusion.astype(dtype))))
    if coverage_multipliers is not None:
        sensitivity = sensitivity / (jnp.max(coverage_multipliers) + 1)
    # With G_l = sum_q R_ql z_q everything is linear in m_ij, so that only products with z are needed: no [K, K, D].
    along = prototypes @ (sensitivity.T @ prototypes).T
    logits = prototypes @ kernel
    w = jnp.asarray(mixing_weight, dtype)
    own = jnp.diagonal(along)

    def row(i: Array) -> Array:
        effect = w * along[i] + (1 - w) * along
        p = jax.nn.softmax(w * logits[i] + (1 - w) * logits + bias, axis=-1)
        positive = own[i] if positive_term == "anchor" else effect[:, i]
        return positive - jnp.sum(p * effect, axis=-1)

    return jax.lax.map(row, jnp.arange(classes))


def selmix_distribution(gain: Any, *, temperature: Strength = 0.1, floor: float = 1e-10) -> Array:
    r"""The distribution over pairs of classes from their gains: none for pairs that would harm, but for a floor.

    Formula:
      .. math:: P_{ij} \propto softmax(gain / T)_{ij} \; 1[gain_{ij} > 0] + floor

      with the softmax over all pairs.

    Args:
      gain: float ``[K, K]``, of `selmix_gain`.
      temperature: T, above 0, default 0.1.
      floor: above 0, default 1e-10, the authors' for mean recall; 1e-8 for the other metrics.

    Returns:
      P ``[K, K]``, of sum 1, in float32 or better; uniform where no gain is positive.

    Raises:
      ValueError: if ``gain`` is not a float matrix, or ``temperature`` or ``floor`` is out of range.

    Cost:
      A few passes over K^2 numbers.
      XLA at [100, 100]: at most 16 times the FLOPs and 5.6 times the bytes of a copy of its arguments, and 0.56 times its
      memory more.

    Use:
      Part of: `selmix_refresh`.
      When: Call it on gains of your own. Raise the temperature where one pair takes nearly all draws.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> pairs = rj.inputs.selmix_distribution(jnp.array([[0.1, -0.1], [0.0, 0.2]]), temperature=0.1)
      >>> [[round(float(p), 4) for p in row] for row in pairs]
      [[0.2689, 0.0], [0.0, 0.7311]]

    References:
      Ramasubramanian et al., Selective Mixup Fine-Tuning for Optimizing Non-Decomposable Objectives, 2024, ICLR, arXiv
      2403.18301.
    """
    name = "inputs.selmix_distribution"
    gain = checks.floating(name, "gain", gain, ndim=2)
    checks.number(name, "temperature", temperature, low=0.0, open_low=True)
    checks.number(name, "floor", floor, low=0.0, open_low=True)
    gain = gain.astype(trees.accumulator(gain))
    kept = jnp.where(gain > 0, jax.nn.softmax(gain / jnp.asarray(temperature, gain.dtype), axis=(0, 1)), 0) + floor
    return kept / jnp.sum(kept)


def selmix_recall_multipliers(recall: Any, previous: Any, *, beta: Strength = 0.0, rate: Strength = 50.0) -> Array:
    r"""Weights of the classes' recalls that find the smallest one: those of metric ``"min_recall"``.

    Formula:
      .. math:: \mu_k \propto \mu_{old, k}^\beta \exp(-rate \cdot recall_k), \quad \sum_k \mu_k = 1

    Args:
      recall: float ``[K]``, the recall of each class.
      previous: float ``[K]``, the multipliers before, positive.
      beta: how much of them stays, at least 0; 0 (default) forgets them.
      rate: at least 0, default 50; 0 with ``beta`` 0 gives equal weights.

    Returns:
      The multipliers ``[K]``, of sum 1, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``beta`` or ``rate`` is out of range.

    Cost:
      A few operations for each class.
      XLA at 2 times [1000]: at most 4.5 times the FLOPs and 2.6 times the bytes of a copy of its arguments, and 0.0091 times
      its memory more.

    Use:
      Part of: `selmix_refresh`.
      When: Call it for metric 'min_recall'. At the default rate one class takes nearly all weight: lower it, or raise beta,
        where the held-out recalls are noisy.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> multipliers = rj.inputs.selmix_recall_multipliers(jnp.array([0.8, 0.4]), jnp.array([0.5, 0.5]), rate=1.0)
      >>> [round(float(m), 4) for m in multipliers]
      [0.4013, 0.5987]

    References:
      Ramasubramanian et al., Selective Mixup Fine-Tuning for Optimizing Non-Decomposable Objectives, 2024, ICLR, arXiv
      2403.18301; the released settings are ``beta`` 0 and ``rate`` 50.
    """
    name = "inputs.selmix_recall_multipliers"
    recall = checks.floating(name, "recall", recall, ndim=1)
    previous = checks.floating(name, "previous", previous, shape=recall.shape)
    check_recall_options(name, beta, rate)
    dtype = trees.accumulator(recall, previous)
    # A product of powers in logarithms; 0 counts as the least positive number, so that 0^0 = 1.
    past = jnp.log(jnp.maximum(previous.astype(dtype), jnp.finfo(dtype).tiny))
    return jax.nn.softmax(jnp.asarray(beta, dtype) * past - jnp.asarray(rate, dtype) * recall.astype(dtype))


def selmix_coverage_multipliers(
    coverage: Any, *, alpha: Strength = 0.95, tau: Strength = 0.1, max_value: Strength = 100.0
) -> Array:
    r"""Weights of the classes that are predicted too seldom.

    Formula:
      .. math:: \nu_j = \max\left(0, max\_value \left(1 - \exp\frac{coverage_j - \alpha / K}{\tau}\right)\right)

    Args:
      coverage: float ``[K]``, the fraction of the predictions that each class gets; the column sums of the confusion matrix.
      alpha: the least coverage wanted, as a fraction of the even 1 / K, at least 0, default 0.95.
      tau: how soon the weight saturates, above 0, default 0.1.
      max_value: the largest weight, at least 0, default 100. 0 asks for nothing.

    Returns:
      The multipliers ``[K]``, at least 0, in float32 or better.

    Raises:
      ValueError: if ``coverage`` is not a float vector, or a number is out of range.

    Cost:
      A few operations for each class.
      XLA at [1000]: at most 5.5 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its memory
      more.

    Use:
      Part of: `selmix_refresh`.
      When: Call it where each class must also be predicted often enough, as in fairness or retrieval constraints.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> multipliers = rj.inputs.selmix_coverage_multipliers(jnp.array([0.7, 0.3]), max_value=10.0)
      >>> [round(float(m), 4) for m in multipliers]
      [0.0, 8.2623]

    References:
      Ramasubramanian et al., Selective Mixup Fine-Tuning for Optimizing Non-Decomposable Objectives, 2024, ICLR, arXiv
      2403.18301.
    """
    name = "inputs.selmix_coverage_multipliers"
    coverage = checks.floating(name, "coverage", coverage, ndim=1)
    check_coverage_options(name, alpha, tau, max_value)
    dtype = trees.accumulator(coverage)
    alpha, tau, max_value = (jnp.asarray(x, dtype) for x in (alpha, tau, max_value))
    lack = jnp.minimum((coverage.astype(dtype) - alpha / coverage.shape[0]) / tau, 0)
    return max_value * (1 - jnp.exp(lack))


def clipped(confusion: Array) -> Array:
    """The confusion matrix in float32 or better, without entries near 0."""
    return jnp.maximum(confusion.astype(trees.accumulator(confusion)), LEAST)


def recall_of(confusion: Array) -> Array:
    """The recall of each class."""
    return jnp.diagonal(confusion) / jnp.sum(confusion, axis=1)


def _metric(confusion: Array, metric: Any, multipliers: Any) -> Array:
    if callable(metric):
        return jnp.asarray(metric(confusion))
    recall = recall_of(confusion)
    if metric == "mean_recall":
        return jnp.mean(recall)
    if metric == "min_recall":
        return jnp.sum(multipliers * recall)
    return jnp.exp(jnp.mean(jnp.log(recall))) if metric == "g_mean" else 1 / jnp.mean(1 / recall)


def check_metric(name: str, metric: Any) -> None:
    """Checks the name of a metric; a function is one."""
    if not callable(metric):
        checks.choice(name, "metric", metric, METRICS)


def check_mixing(name: str, mixing_weight: Any, positive_term: Any) -> None:
    """Checks the options of the gain."""
    checks.number(name, "mixing_weight", mixing_weight, low=0.0, high=1.0)
    checks.choice(name, "positive_term", positive_term, ("mixed", "anchor"))


def check_recall_options(name: str, beta: Any, rate: Any) -> None:
    """Checks the options of the recall multipliers."""
    checks.number(name, "beta", beta, low=0.0)
    checks.number(name, "rate", rate, low=0.0)


def check_coverage_options(name: str, alpha: Any, tau: Any, max_value: Any) -> None:
    """Checks the options of the coverage multipliers."""
    checks.number(name, "alpha", alpha, low=0.0)
    checks.number(name, "tau", tau, low=0.0, open_low=True)
    checks.number(name, "max_value", max_value, low=0.0)
