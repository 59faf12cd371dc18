"""Selective prediction: the errors that remain when a model answers only where it is confident."""

import numbers
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, sharding
from regjax.core.types import Array
from regjax.diagnostics import _examples

_METHODS = ("trapezoid", "mean", "normalized_trapezoid")


class RiskCoverage(NamedTuple):
    """The risk-coverage curve: the share of examples answered, and the share of errors among them, both ``[N + 1]``."""

    coverage: Array
    risk: Array


class LogitNormSearch(NamedTuple):
    """The norm of least area under the risk-coverage curve, and the areas ``[P]`` of all norms tried."""

    best_p: Array
    aurcs: Array


def risk_coverage(scores: Any, correct: Any, *, where: Any = None) -> RiskCoverage:
    r"""The error rate among the i most confident examples, for every i.

    Formula:
      .. math:: coverage_i = i / N, \quad risk_i = \frac{1}{i} \sum_{j \le i} 1 - correct_{(j)}, \quad i = 1 \dots N

      with examples ordered by falling score; point 0 is (0, 0). Equal scores keep the order of the input, so the curve then
      depends on it; NaN counts as the lowest score.

    Args:
      scores: float ``[N]``, larger is more confident. Keep normalised scores in float32 or better: they crowd together.
      correct: ``[N]``, whether the prediction is right: booleans, or numbers 0 and 1.
      where: boolean ``[N]``: which examples count; the curve ends with them, and its last point is repeated up to N.

    Returns:
      ``RiskCoverage(coverage [N + 1], risk [N + 1])`` in float32 or better. No gradient flows to the scores.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      A sort of N; examples sharded over devices are gathered on each of them.
      XLA at 2 times [50000]: at most 23 times the FLOPs and 5.9 times the bytes of a copy of its arguments, and 0.89 times its
      memory more.

    Use:
      For: poor calibration.
      When: A model may abstain: read off which share it can answer at an allowed error rate, or where two scores cross, which
        one area hides.
      Not when: Methods are compared over seeds (`aurc`, `excess_aurc`). The first points rest on a handful of examples, so that
        a single sure mistake shapes the left end.
      Badly with: Softmax confidences of very sure models in float32 or less: many are exactly 1, and the order of the input
        then decides. Rank by the log-odds instead.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> scores, correct = jnp.array([0.9, 0.8, 0.7, 0.6]), jnp.array([True, False, True, False])
      >>> [round(float(x), 4) for x in rj.diagnostics.risk_coverage(scores, correct).risk]
      [0.0, 0.0, 0.5, 0.3333, 0.5]

    References:
      Geifman and El-Yaniv, Selective Classification for Deep Neural Networks, 2017, arXiv 1705.08500. Xia et al., Towards
      Understanding Why Label Smoothing Degrades Selective Classification and How to Fix It, 2024, arXiv 2403.14715.
    """
    risk, count = _curve("diagnostics.risk_coverage", scores, correct, where)
    answered = jnp.minimum(jnp.arange(risk.size, dtype=risk.dtype), count)
    return RiskCoverage(answered / jnp.maximum(count, 1), risk)


def aurc(scores: Any, correct: Any, *, method: str = "trapezoid", where: Any = None) -> Array:
    r"""The area under the risk-coverage curve: how well a score ranks errors last, and how many there are.

    Formula:
      With the curve of `risk_coverage`, :math:`risk_0 = 0`:

      .. math:: trapezoid = \frac{1}{N} \sum_{i=1}^N \frac{risk_{i-1} + risk_i}{2}, \quad
        mean = \frac{1}{N} \sum_{i=1}^N risk_i, \quad
        normalized = \frac{1}{N-1} \sum_{i=2}^N \frac{risk_{i-1} + risk_i}{2}

    Args:
      scores: float ``[N]``, larger is more confident; equal scores keep the order of the input.
      correct: ``[N]``, whether the prediction is right: booleans, or numbers 0 and 1.
      method: ``"trapezoid"`` (default), ``"mean"``, the form of most of the literature, or ``"normalized_trapezoid"``.
      where: boolean ``[N]``: which examples count; default all.

    Returns:
      A scalar in [0, 1], in float32 or better, lower is better; 0 without errors and without examples. Papers report it
      times 100 or times 1000. No gradient flows to the scores.

    Raises:
      ValueError: if a shape or dtype does not fit or the method is unknown.

    Cost:
      A sort of N; examples sharded over devices are gathered on each of them.
      XLA at 2 times [50000]: at most 25 times the FLOPs and 6.8 times the bytes of a copy of its arguments, and 1 times its
      memory more.

    Use:
      For: poor calibration.
      When: Scores are compared on one model, or models of about equal accuracy: `fit_temperature` and `normalized_max_logit`
        were judged so in the calibration study. Say which ``method``, as the forms differ most for small test sets.
      Not when: Accuracies differ, as the area follows them: take `excess_aurc` beside it. By neither was `label_smoothing`
        shown to rank worse in the calibration study.
      Badly with: Equal scores, as of a saturated softmax or of bfloat16, whose order is that of the input. Sorted test sets
        make that a bias.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> scores, correct = jnp.array([0.9, 0.8, 0.7, 0.6]), jnp.array([True, False, True, False])
      >>> round(float(rj.diagnostics.aurc(scores, correct)), 4)
      0.2708

    References:
      Geifman et al., Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers, 2018, arXiv 1805.08206 (mean). Xia et
      al., Towards Understanding Why Label Smoothing Degrades Selective Classification and How to Fix It, 2024,
      arXiv 2403.14715 (trapezoid). The normalised form of one example, 0/0, is here its risk.
    """
    name = "diagnostics.aurc"
    checks.choice(name, "method", method, _METHODS)
    risk, count = _curve(name, scores, correct, where)
    return _area(risk, count, method)


def excess_aurc(scores: Any, correct: Any, *, where: Any = None) -> Array:
    r"""The area under the risk-coverage curve above that of a perfect ranking of the same predictions.

    Formula:
      .. math:: \frac{1}{N} \sum_{i=1}^N risk_i - \frac{1}{N} \sum_{j=1}^{n} \frac{j}{N - n + j}

      with n the number of errors: the second term is the mean risk when every error ranks below every right answer.

    Args:
      scores: float ``[N]``, larger is more confident; equal scores keep the order of the input.
      correct: ``[N]``, whether the prediction is right: booleans, or numbers 0 and 1.
      where: boolean ``[N]``: which examples count; default all.

    Returns:
      A scalar in float32 or better, 0 for a perfect ranking; comparable between models of different accuracy. No
      gradient flows to the scores.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      A sort of N; examples sharded over devices are gathered on each of them.
      XLA at 2 times [50000]: at most 28 times the FLOPs and 7.7 times the bytes of a copy of its arguments, and 1.4 times its
      memory more.

    Use:
      For: poor calibration.
      When: Models of different accuracy are compared by how well they know their errors. In the calibration study `focal` and
        `logit_norm` were behind cross-entropy by it, which is no matter of accuracy alone.
      Not when: The application pays for errors and not for ranking: `aurc` counts both. Hardly any errors are left, which makes
        it the place of a few examples.
      Badly with: Areas by another ``method``: it uses the mean form, so that subtracting from a trapezoid mixes two
        conventions.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> scores, correct = jnp.array([0.9, 0.8, 0.7, 0.6]), jnp.array([True, False, True, False])
      >>> round(float(rj.diagnostics.excess_aurc(scores, correct)), 4)
      0.125

    References:
      Geifman et al., Bias-Reduced Uncertainty Estimation for Deep Neural Classifiers, 2018, arXiv 1805.08206.
    """
    risk, count = _curve("diagnostics.excess_aurc", scores, correct, where)
    rank = jnp.arange(1, risk.size, dtype=risk.dtype)
    errors = risk[-1] * count
    best = jnp.where(rank <= count, jnp.maximum(rank - (count - errors), 0) / rank, 0)
    return _area(risk, count, "mean") - jnp.sum(best) / jnp.maximum(count, 1)


def normalized_max_logit(logits: Any, *, p: Any, center: bool = True, axis: int = -1, where: Any = None) -> Array:
    r"""A confidence score that undoes what label smoothing does to the ranking: the top logit over the norm of all.

    Formula:
      .. math:: \frac{\max_k v_k}{\lVert v \rVert_p}, \quad v = z - \frac{1}{K} \sum_k z_k

      The prediction stays; the score is invariant to :math:`a z + b`, a > 0. Equal logits score 0.

    Args:
      logits: float ``[..., K]``, classes on ``axis``. Use float32 or better: the scores crowd together.
      p: the order of the norm, above 0; see `search_logit_norm`.
      center: subtract the mean logit, default True; False is the uncentred form.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist.

    Returns:
      The score of each example, ``[...]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``p`` is not a finite number above 0.

    Cost:
      A few passes over the logits.
      XLA at [1024, 1000]: at most 14 times the FLOPs and 4.5 times the bytes of a copy of its arguments, and 0.56 times its
      memory more.

    Use:
      For: poor calibration.
      When: Models trained with `label_smoothing` or `maxsup` that abstain by confidence: with a searched p it lowered their
        AURC in most seeds of the calibration study.
      Not when: The loss was plain cross-entropy, `focal`, `ps_kd`, `confidence_penalty` or `logit_norm`: it raised the AURC of
        those in nearly all seeds. With two classes all centred scores are equal.
      Badly with: Half-precision logits, as scores crowd together. `fit_temperature`, which it cancels. A threshold taken over
        from softmax confidences, as the score is no probability.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.diagnostics.normalized_max_logit(jnp.array([3.0, 1.0, -1.0]), p=2)), 4)
      0.7071

    References:
      Cattelan and Silva, How to Fix a Broken Confidence Estimator, 2023, arXiv 2305.15508. Xia et al., Towards Understanding
      Why Label Smoothing Degrades Selective Classification and How to Fix It, 2024, arXiv 2403.14715. A notebook of the
      latter asks for the uncentred form, with which their function fails; p was searched with centred logits.
    """
    name = "diagnostics.normalized_max_logit"
    checks.number(name, "p", p, low=0.0, open_low=True)
    checks.boolean(name, "center", center)
    return _normalized_top(classes.class_inputs(name, logits, axis=axis, where=where), p, center)


def search_logit_norm(
    logits: Any,
    labels: Any,
    *,
    p_values: Sequence[float] = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
    method: str = "trapezoid",
    where: Any = None,
) -> LogitNormSearch:
    r"""The order of the norm at which `normalized_max_logit` ranks held-out examples best.

    Formula:
      .. math:: \arg\min_p\ aurc(normalized\_max\_logit(z; p),\ \arg\max z = y)

      over ``p_values``, the first of equal ones, with centred logits. Search on held-out examples: the norm helps models
      trained with label smoothing, and can harm others, so compare with the area of the largest softmax probability.

    Args:
      logits: float ``[N, K]`` of held-out examples.
      labels: integer class ids ``[N]``.
      p_values: the orders to try, each above 0, default 1 to 10.
      method: the form of `aurc`.
      where: boolean ``[N]``: which examples count; default all.

    Returns:
      ``LogitNormSearch(best_p, aurcs)``: a scalar and the area of each order ``[P]``, in float32 or better. No gradient
      flows to the logits.

    Raises:
      ValueError: if a shape or dtype does not fit, or an option is not as stated.

    Cost:
      For each order three passes over the logits and a sort of N; examples sharded over devices are gathered for the sort, their
      logits not. XLA counts one order.
      XLA at [1024, 1000]: at most 26 times the FLOPs and 6.4 times the bytes of a copy of its arguments, and 1.3 times its
      memory more.

    Use:
      Part of: `normalized_max_logit`.
      When: Once after training, on some hundred held-out examples with errors among them. Keep the norm only if its area is
        below that of the softmax on the same examples, which it was not for plain losses in our study.
      Badly with: Held-out sets without errors, on which all orders tie and the first is taken.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> logits = jnp.array([[3.0, 1.0, -2.0, -2.0], [1.0, 0.0, 0.0, -1.0]])
      >>> best_p, aurcs = rj.diagnostics.search_logit_norm(logits, jnp.array([0, 1]), p_values=(1, 5))
      >>> float(best_p), [round(float(a), 4) for a in aurcs]
      (5.0, [0.625, 0.125])

    References:
      Xia et al., Towards Understanding Why Label Smoothing Degrades Selective Classification and How to Fix It, 2024,
      arXiv 2403.14715.
    """
    name = "diagnostics.search_logit_norm"
    if not isinstance(p_values, Sequence) or isinstance(p_values, str) or not p_values:
        checks.fail(name, "p_values", "a sequence of one number or more", p_values)
    for p in p_values:
        if not isinstance(p, numbers.Real):
            checks.fail(name, "p_values", "a sequence of numbers", p)
        checks.number(name, "p_values", p, low=0.0, open_low=True)
    checks.choice(name, "method", method, _METHODS)
    checks.integers(name, "labels", labels)
    x = classes.class_inputs(name, checks.floating(name, "logits", logits, ndim=2), labels)
    where = checks.example_mask(name, "where", where, x.labels.shape)
    correct = jnp.argmax(x.logits, axis=-1) == x.labels

    def area(p: Array) -> Array:
        risk, count = _curve(name, _normalized_top(x, p, True), correct, where)
        return _area(risk, count, method)

    orders = jnp.asarray(p_values, x.logits.dtype)
    # One order after the other: all at once would hold the powers of the logits for each.
    aurcs = jax.lax.map(area, orders)
    return LogitNormSearch(orders[jnp.argmin(aurcs)], aurcs)


def _curve(function: str, scores: Any, correct: Any, where: Any) -> tuple[Array, Array]:
    """The risk ``[N + 1]``, its last value repeated beyond the examples that count, and how many do."""
    scores, correct = _examples.scored(function, "scores", scores, correct)
    where = _examples.counted(function, where, scores.shape)
    size, dtype = scores.size, scores.dtype
    # A stable sort by two keys: examples that do not count come last, whatever their scores.
    operands = (~where).astype(jnp.int8), -jax.lax.stop_gradient(scores), jnp.where(where, 1 - correct, 0)
    errors = jax.lax.sort([sharding.replicate(x) for x in operands], num_keys=2, is_stable=True)[2]
    count = jnp.sum(where, dtype=dtype)
    answered = jnp.minimum(jnp.arange(1, size + 1, dtype=dtype), count)
    risk = jnp.cumsum(errors) / jnp.maximum(answered, 1)
    return jnp.concatenate([jnp.zeros(1, dtype), risk]), count


def _area(risk: Array, count: Array, method: str) -> Array:
    here = jnp.arange(1, risk.size, dtype=risk.dtype) <= count
    heights = risk[1:] if method == "mean" else (risk[:-1] + risk[1:]) / 2
    if method != "normalized_trapezoid":
        return jnp.sum(jnp.where(here, heights, 0)) / jnp.maximum(count, 1)
    return jnp.where(count > 1, jnp.sum(jnp.where(here, heights, 0)[1:]) / jnp.maximum(count - 1, 1), risk[-1])


def _normalized_top(x: classes.ClassInputs, p: Any, center: bool) -> Array:
    mean = classes.class_mean(x.logits, x.where) if center else jnp.zeros((), x.logits.dtype)
    v = x.logits - mean[..., None]
    present = v if x.where is None else jnp.where(x.where, v, 0)
    # Of the logits as they came: the derivative of a maximum compares it with its arguments, and differences that two kernels
    # compute anew may differ in the last digit.
    top = classes.top(x.logits if x.where is None else jnp.where(x.where, x.logits, -jnp.inf)) - mean
    # Powers of numbers in [0, 1] cannot overflow, and the scale leaves the ratio and its gradient alone.
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(present), axis=-1))
    some = scale > 0
    unit = present / jnp.where(some, scale, 1)[..., None]
    total = jnp.sum(jnp.where(unit != 0, jnp.abs(jnp.where(unit != 0, unit, 1)) ** jnp.asarray(p, v.dtype), 0), axis=-1)
    norm = jnp.where(some, total, 1) ** (1 / jnp.asarray(p, v.dtype))
    return jnp.where(some, jnp.where(some, top / jnp.where(some, scale, 1), 0) / norm, 0)
