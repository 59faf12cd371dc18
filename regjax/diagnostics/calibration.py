"""Calibration: does a confidence of 0.8 mean 80% right? Expected calibration error, proper scores, temperature."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, classes
from regjax.core.types import Array
from regjax.diagnostics import _examples


def expected_calibration_error(confidences: Any, correct: Any, *, num_bins: int = 15, where: Any = None) -> Array:
    r"""The mean distance between confidence and accuracy, over bins of equal width.

    Formula:
      .. math:: \sum_b \frac{n_b}{N} \left\lvert \overline{confidence}_b - \overline{correct}_b \right\rvert

      over the bins :math:`((b-1)/M, b/M]` of [0, 1]; an empty bin adds 0, and confidence 0 belongs to the first. The estimate
      is biased upward for small N: compare only values of the same N and M.

    Args:
      confidences: float ``[N]`` in [0, 1], the probability of the predicted class.
      correct: ``[N]``, whether the prediction is right: booleans, or numbers 0 and 1.
      num_bins: M, at least 1, default 15.
      where: boolean ``[N]``: which examples count, so that padded batches need no cutting; default all.

    Returns:
      A scalar in [0, 1], in float32 or better; 0 if no example counts.

    Raises:
      ValueError: if a shape or dtype does not fit or ``num_bins`` is below 1.

    Cost:
      O(N M) compares and sums; no sort, and examples may be sharded over devices.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> confidences, correct = jnp.array([0.9, 0.9, 0.6, 0.6]), jnp.array([True, False, True, True])
      >>> round(float(rj.diagnostics.expected_calibration_error(confidences, correct)), 4)
      0.4

    References:
      Guo et al., On Calibration of Modern Neural Networks, 2017, arXiv 1706.04599.
    """
    name = "diagnostics.expected_calibration_error"
    confidences, correct = _examples.scored(name, "confidences", confidences, correct)
    num_bins = checks.integer(name, "num_bins", num_bins, low=1)
    where = _examples.counted(name, where, confidences.shape)
    # Only the inner edges: rounding above 1 or below 0 leaves no example without a bin.
    edges = jnp.asarray([b / num_bins for b in range(1, num_bins)], confidences.dtype)
    bins = jnp.sum(confidences[:, None] > edges, axis=1)
    member = (bins[:, None] == jnp.arange(num_bins)) & where[:, None]
    # |sum of confidences - sum of hits| is n_b times the distance of the means: no division by an empty bin.
    gaps = jnp.sum(jnp.where(member, (confidences - correct)[:, None], 0), axis=0)
    return jnp.sum(jnp.abs(gaps)) / jnp.maximum(jnp.sum(where), 1).astype(gaps.dtype)


def brier_score(logits: Any, labels: Any, *, axis: int = -1, where: Any = None) -> Array:
    r"""The squared distance of the predicted probabilities from the label: a proper score, calibration and accuracy in one.

    Formula:
      .. math:: \sum_k (p_k - y_k)^2, \quad p = softmax(z)

    Args:
      logits: float ``[..., K]``, classes on ``axis``. For probabilities, such as the mean of an ensemble, give ``log(p)``.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits``.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist.

    Returns:
      The score of each example, ``[...]``, in [0, 2], in float32 or better; lower is better.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      One softmax and one pass over the classes.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> float(rj.diagnostics.brier_score(jnp.log(jnp.array([0.5, 0.25, 0.25])), jnp.array(0)))
      0.375

    References:
      Brier, Verification of Forecasts Expressed in Terms of Probability, 1950. Summed over the classes as there, so twice
      the usual score of two classes.
    """
    x = classes.class_inputs("diagnostics.brier_score", logits, labels, axis=axis, where=where)
    p = jnp.exp(classes.log_softmax(x.logits, x.where))
    if x.where is not None:
        p = jnp.where(x.where, p, 0)
    if not x.is_ids:
        return jnp.sum(jnp.square(p - x.labels), axis=-1)
    # The label's own term apart, by p_y = 1 - sum of the others: a score near 0 keeps its digits.
    own = jnp.arange(p.shape[-1]) == x.labels[..., None]
    others = jnp.where(own, 0, p)
    known = jnp.where(jnp.any(own, axis=-1), 0, jnp.nan)
    return jnp.sum(jnp.square(others), axis=-1) + jnp.square(jnp.sum(others, axis=-1)) + known


def negative_log_likelihood(logits: Any, labels: Any, *, axis: int = -1, where: Any = None) -> Array:
    r"""The cross-entropy of held-out examples, in nats.

    Formula:
      .. math:: -\sum_k y_k \log p_k, \quad p = softmax(z)

    Args:
      logits: float ``[..., K]``, classes on ``axis``. For probabilities, such as the mean of an ensemble, give ``log(p)``.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits``.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist.

    Returns:
      The value of each example, ``[...]``, in float32 or better; infinity where the label has probability 0.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      One pass over the logits.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.diagnostics.negative_log_likelihood(jnp.array([2.0, 1.0, 0.0]), jnp.array(0))), 4)
      0.4076

    References:
      Good, Rational Decisions, 1952: the logarithmic score, the only proper one that looks at the label's probability alone.
    """
    return classes.cross_entropy(
        classes.class_inputs("diagnostics.negative_log_likelihood", logits, labels, axis=axis, where=where)
    )


_LOW, _HIGH, _START, _MOST_STEPS = math.log(1e-2), math.log(1e2), math.log(1.5), 60


def fit_temperature(logits: Any, labels: Any, *, where: Any = None) -> Array:
    r"""The temperature at which held-out logits are best calibrated, without changing any prediction.

    Formula:
      .. math:: \arg\min_{T \in [0.01, 100]} \frac{1}{N} \sum_i CE(z_i / T, y_i)

      At the minimum the mean logit of the labels equals the mean logit under the prediction,
      :math:`\sum_i z_{i, y_i} = \sum_i \sum_k softmax(z_i / T)_k z_{ik}`. The loss is convex in 1/T, and Newton steps on
      :math:`\log T` inside a shrinking bracket find it. Logits that separate all labels give 0.01; logits that say
      nothing, and no examples at all, give 1.

    Args:
      logits: float ``[N, K]`` of held-out examples; ``-inf`` for classes that do not exist.
      labels: integer class ids ``[N]``.
      where: boolean ``[N]``: which examples count; default all.

    Returns:
      T, a scalar in float32 or better: divide the logits by it. No gradient flows to the logits. An id outside [0, K) among
      the counted examples gives NaN.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      About 10 passes over the logits, about 30 where the result is 0.01 or 100, at most 60; examples may be sharded over
      devices.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> logits, labels = jnp.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]]), jnp.array([0, 0, 0, 1])
      >>> round(float(rj.diagnostics.fit_temperature(logits, labels)), 4)
      3.641

    References:
      Guo et al., On Calibration of Modern Neural Networks, 2017, arXiv 1706.04599. The authors minimise by L-BFGS from 1.5;
      the minimum is the same.
    """
    name = "diagnostics.fit_temperature"
    checks.integers(name, "labels", labels)
    x = classes.class_inputs(name, checks.floating(name, "logits", logits, ndim=2), labels)
    where = checks.example_mask(name, "where", where, x.labels.shape)
    logits = jax.lax.stop_gradient(x.logits)
    margins = logits - classes.pick(logits, x.labels)[:, None]
    if where is not None:
        margins = jnp.where(where[:, None], margins, 0)

    def slopes(log_t: Array) -> tuple[Array, Array]:
        """The first two derivatives of the mean loss by log T, each divided by 1/T > 0."""
        p = jax.nn.softmax(margins * jnp.exp(-log_t), axis=-1)
        some = p > 0  # 0 * -inf = 0
        mean = jnp.sum(jnp.where(some, p * margins, 0), axis=-1)
        square = jnp.square(jnp.where(some, margins - mean[:, None], 0))
        first = _examples.mean(mean, where, mean.dtype)
        second = _examples.mean(jnp.sum(p * square, axis=-1), where, mean.dtype) * jnp.exp(-log_t)
        return -first, second + first

    def unfinished(state: tuple[Array, ...]) -> Array:
        step, _, _, _, moved = state
        return (step < _MOST_STEPS) & (jnp.abs(moved) > 2 * jnp.finfo(logits.dtype).eps)

    def narrow(state: tuple[Array, ...]) -> tuple[Array, ...]:
        step, log_t, low, high, moved = state
        slope, curve = slopes(log_t)
        # Separated labels whose loss underflows have slope and curve 0: cooler, as before the underflow.
        low, high = jnp.where(slope < 0, log_t, low), jnp.where(slope < 0, high, log_t)
        newton = -slope / jnp.where(curve > 0, curve, 1)
        inside = (log_t + newton >= low) & (log_t + newton <= high)
        good = (curve > 0) & inside & (2 * jnp.abs(newton) < jnp.abs(moved))
        new = jnp.where(good, log_t + newton, (low + high) / 2)
        return step + 1, new, low, high, new - log_t

    start = [jnp.asarray(v, logits.dtype) for v in (_START, _LOW, _HIGH, _HIGH - _LOW)]
    _, log_t, *_ = jax.lax.while_loop(unfinished, narrow, (jnp.zeros((), jnp.int32), *start))
    informative = jnp.any((margins != 0) & (margins > -jnp.inf))
    return jnp.where(jnp.any(jnp.isnan(margins)), jnp.nan, jnp.where(informative, jnp.clip(jnp.exp(log_t), 0.01, 100), 1))
