"""Calibration: does a confidence of 0.8 mean 80% right? Calibration errors, reliability diagrams, proper scores."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, sharding
from regjax.core.types import Array
from regjax.diagnostics import _examples


class ReliabilityBins(NamedTuple):
    """A reliability diagram, ``[M]`` each: mean confidence, accuracy and share of the examples of every bin."""

    confidence: Array
    accuracy: Array
    weight: Array


def reliability_bins(confidences: Any, correct: Any, *, num_bins: int = 15, where: Any = None) -> ReliabilityBins:
    r"""The reliability diagram: mean confidence and accuracy in bins of equal width.

    Formula:
      .. math:: confidence_b = \frac{1}{n_b} \sum_{i \in b} c_i, \quad accuracy_b = \frac{1}{n_b} \sum_{i \in b} correct_i,
        \quad weight_b = \frac{n_b}{N}

      over the bins :math:`((b-1)/M, b/M]` of [0, 1]; confidence 0 belongs to the first. An empty bin is 0 throughout.

    Args:
      confidences: float ``[N]`` in [0, 1], the probability of the predicted class.
      correct: ``[N]``, whether the prediction is right: booleans, or numbers 0 and 1.
      num_bins: M, at least 1, default 15.
      where: boolean ``[N]``: which examples count; default all.

    Returns:
      ``ReliabilityBins(confidence [M], accuracy [M], weight [M])`` in float32 or better; the weights sum to 1, or to 0 if no
      example counts.

    Raises:
      ValueError: if a shape or dtype does not fit or ``num_bins`` is below 1.

    Cost:
      O(N M) compares and sums; no sort, and examples may be sharded over devices. XLA counts one bin.
      XLA at 2 times [50000]: at most 29 times the FLOPs and 6.3 times the bytes of a copy of its arguments, and 2.3 times its
      memory more.

    Use:
      For: poor calibration.
      When: A calibration error is large and its sign is asked for: accuracy below the confidence is over-confidence
        (cross-entropy), above it under-confidence. In the calibration study `label_smoothing` and `maxsup` were far on that
        side. Plot the weights beside it.
      Not when: Runs are compared by one number, for which `expected_calibration_error` is the sum of these gaps. With some
        hundred examples take fewer than 15 bins, as most hold next to none.
      Badly with: Training examples, which a network fits to confidence and accuracy 1. Mixed labels of `mixup` or `cutmix`, for
        which right and wrong are not defined.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> confidences, correct = jnp.array([0.9, 0.8, 0.3]), jnp.array([True, False, True])
      >>> bins = rj.diagnostics.reliability_bins(confidences, correct, num_bins=2)
      >>> [[round(float(x), 4) for x in row] for row in bins]
      [[0.3, 0.85], [1.0, 0.5], [0.3333, 0.6667]]

    References:
      Niculescu-Mizil and Caruana, Predicting Good Probabilities with Supervised Learning, 2005, ICML. Guo et al., On
      Calibration of Modern Neural Networks, 2017, arXiv 1706.04599.
    """
    return _equal_width("diagnostics.reliability_bins", confidences, correct, num_bins, where)


def expected_calibration_error(confidences: Any, correct: Any, *, num_bins: int = 15, where: Any = None) -> Array:
    r"""The mean distance between confidence and accuracy, over bins of equal width.

    Formula:
      .. math:: \sum_b \frac{n_b}{N} \left\lvert \overline{confidence}_b - \overline{correct}_b \right\rvert

      over the bins of `reliability_bins`, :math:`((b-1)/M, b/M]` of [0, 1]; an empty bin adds 0. The estimate is biased upward
      for small N: compare only values of the same N and M.

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
      O(N M) compares and sums; no sort, and examples may be sharded over devices. XLA counts one bin.
      XLA at 2 times [50000]: at most 29 times the FLOPs and 6.3 times the bytes of a copy of its arguments, and 2.3 times its
      memory more.

    Use:
      For: poor calibration.
      When: Models are compared on one test set with one number of bins, as trained and again after `fit_temperature`: in the
        calibration study `label_smoothing` was far behind cross-entropy as trained and level with it afterwards.
      Not when: A strength or a model is chosen by it: a model that predicts class shares is calibrated too, so take
        `negative_log_likelihood`. Test sets differ in size. Most confidences are near 1, where one bin hides the error:
        `adaptive_calibration_error`.
      Badly with: Confidences and predictions of two forward passes, as with dropout on. Logits from `adjust_logits` on test
        data of unequal shares: they answer for balanced classes.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> confidences, correct = jnp.array([0.9, 0.9, 0.6, 0.6]), jnp.array([True, False, True, True])
      >>> round(float(rj.diagnostics.expected_calibration_error(confidences, correct)), 4)
      0.4

    References:
      Guo et al., On Calibration of Modern Neural Networks, 2017, arXiv 1706.04599.
    """
    return _error(_equal_width("diagnostics.expected_calibration_error", confidences, correct, num_bins, where))


def adaptive_calibration_error(confidences: Any, correct: Any, *, num_bins: int = 15, where: Any = None) -> Array:
    r"""The mean distance between confidence and accuracy, over bins of equally many examples.

    Formula:
      .. math:: \sum_b \frac{n_b}{N} \left\lvert \overline{confidence}_b - \overline{correct}_b \right\rvert,
        \quad b_i = floor(M n_i / N)

      with :math:`n_i` the number of less confident examples. Of distinct confidences the bins hold N / M each, rounded up or
      down; equal ones share a bin, so that the order of the examples does not matter. Where most confidences are near 1, the
      bins are narrow there.

    Args:
      confidences: float ``[N]`` in [0, 1], the probability of the predicted class.
      correct: ``[N]``, whether the prediction is right: booleans, or numbers 0 and 1.
      num_bins: M, at least 1, default 15.
      where: boolean ``[N]``: which examples count; default all.

    Returns:
      A scalar in [0, 1], in float32 or better; 0 if no example counts.

    Raises:
      ValueError: if a shape or dtype does not fit or ``num_bins`` is below 1.

    Cost:
      A sort of N, and O(N M) compares and sums; examples sharded over devices are gathered on each of them. XLA counts one bin.
      XLA at 2 times [50000]: at most 35 times the FLOPs and 13 times the bytes of a copy of its arguments, and 2.8 times its
      memory more.

    Use:
      For: poor calibration.
      When: Sure models, most of whose confidences lie above 0.95, or test sets of a few hundred: each bin then holds as many
        examples. In the calibration study it ordered the methods as trained just as `expected_calibration_error` did.
      Not when: The value is to be compared with papers, which mostly report equal widths, or with the adaptive error over all
        classes of Nixon et al. Examples are sharded over many devices and must stay there.
      Badly with: Saturated or low-precision confidences: equal ones share a bin, so that a softmax full of ones leaves few bins
        in use.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> confidences, correct = jnp.array([0.9, 0.7, 0.6, 0.8]), jnp.array([True, False, True, True])
      >>> round(float(rj.diagnostics.adaptive_calibration_error(confidences, correct, num_bins=2)), 4)
      0.15

    References:
      Nguyen and O'Connor, Posterior Calibration and Exploratory Analysis for Natural Language Processing Models, 2015,
      arXiv 1508.05154. Nixon et al., Measuring Calibration in Deep Learning, 2019, arXiv 1904.01685: their adaptive error runs
      over the probabilities of every class; this is the common form for the predicted one.
    """
    name = "diagnostics.adaptive_calibration_error"
    confidences, correct = _examples.scored(name, "confidences", confidences, correct)
    num_bins = checks.integer(name, "num_bins", num_bins, low=1)
    where = _examples.counted(name, where, confidences.shape)
    # Examples that do not count come last, whatever their confidence.
    operands = (~where).astype(jnp.int8), confidences, correct
    last, confidences, correct = jax.lax.sort([sharding.replicate(x) for x in operands], num_keys=2)
    where, position = last == 0, jnp.arange(confidences.size)
    first = jnp.where(confidences[1:] != confidences[:-1], position[1:], 0)
    below = jnp.concatenate([position[:1], jax.lax.cummax(first)])  # how many are less confident: 0 until the first change
    bins = below * num_bins // jnp.maximum(jnp.sum(where), 1)
    return _error(_means(bins, confidences, correct, num_bins, where))


def classwise_calibration_error(probs: Any, labels: Any, *, num_bins: int = 15, where: Any = None) -> Array:
    r"""The calibration error of every class's probability, not of the top one alone; the static calibration error.

    Formula:
      .. math:: \frac{1}{K} \sum_k \sum_b \frac{n_{bk}}{N} \left\lvert \overline{p_k}_b - \overline{[y = k]}_b \right\rvert

      over the bins :math:`((b-1)/M, b/M]` of each class's probabilities: the mean of `expected_calibration_error` over the K
      problems of one class against the rest.

    Args:
      probs: float ``[N, K]`` in [0, 1], the predicted probabilities.
      labels: integer class ids ``[N]``; an id outside [0, K) among the counted examples makes the result NaN.
      num_bins: M, at least 1, default 15.
      where: boolean ``[N]``: which examples count; default all.

    Returns:
      A scalar in [0, 1], in float32 or better; 0 if no example counts. With many classes most probabilities are near 0, and
      so is the result.

    Raises:
      ValueError: if a shape or dtype does not fit or ``num_bins`` is below 1.

    Cost:
      O(N K M) compares and sums; no sort, and examples may be sharded over devices. XLA counts one bin of one class.
      XLA at [1024, 1000]: at most 0.068 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.56 times its
      memory more.

    Use:
      For: poor calibration, long tails.
      When: Probabilities of every class are used, as for costs or rare classes: `fit_temperature` lowered the top-class error
        of cross-entropy in the calibration study and raised this one.
      Not when: There are hundreds of classes: nearly all probabilities lie in the first bin, and the value is near 0 for any
        model. Compare models of the same number of classes only.
      Badly with: Logits from `adjust_logits` on test data of unequal shares, where the error shows nothing but the shift of the
        shares.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> probs, labels = jnp.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7]]), jnp.array([0, 1, 1])
      >>> round(float(rj.diagnostics.classwise_calibration_error(probs, labels, num_bins=2)), 4)
      0.3333

    References:
      Nixon et al., Measuring Calibration in Deep Learning, 2019, arXiv 1904.01685. Kull et al., Beyond Temperature Scaling:
      Obtaining Well-Calibrated Multiclass Probabilities with Dirichlet Calibration, 2019, arXiv 1910.12656.
    """
    name = "diagnostics.classwise_calibration_error"
    probs = checks.floating(name, "probs", probs, ndim=2)
    labels = checks.integers(name, "labels", labels, shape=probs.shape[:1])
    checks.integer(name, "num_bins", num_bins, low=1)
    where = _examples.counted(name, where, labels.shape)
    num_classes = probs.shape[1]
    known = jnp.all(~where | ((labels >= 0) & (labels < num_classes)))
    one = lambda xs: _error(_equal_width(name, xs[0], labels == xs[1], num_bins, where))
    # One class after the other: all at once would hold the bins of every probability.
    errors = jax.lax.map(one, (probs.T, jnp.arange(num_classes)))
    return jnp.where(known, jnp.mean(errors), jnp.nan)


def _equal_width(function: str, confidences: Any, correct: Any, num_bins: int, where: Any) -> ReliabilityBins:
    """Checked arguments into bins of equal width."""
    confidences, correct = _examples.scored(function, "confidences", confidences, correct)
    num_bins = checks.integer(function, "num_bins", num_bins, low=1)
    where = _examples.counted(function, where, confidences.shape)
    # Only the inner edges: rounding above 1 or below 0 leaves no example without a bin.
    edges = jnp.asarray([b / num_bins for b in range(1, num_bins)], confidences.dtype)
    return _means(jnp.sum(confidences[:, None] > edges, axis=1), confidences, correct, num_bins, where)


def _means(bins: Array, confidences: Array, correct: Array, num_bins: int, where: Array) -> ReliabilityBins:
    """The diagram, from the bin of each example."""

    def totals(b: Array) -> tuple[Array, Array, Array]:
        here = (bins == b) & where
        sum_of = lambda x: jnp.sum(jnp.where(here, x, 0))
        return sum_of(confidences), sum_of(correct), jnp.sum(here, dtype=confidences.dtype)

    # One bin after the other: all at once would write out the members of every bin.
    confidence, accuracy, count = jax.lax.map(totals, jnp.arange(num_bins))
    mean = lambda x: x / jnp.maximum(count, 1)
    total = jnp.maximum(jnp.sum(where), 1).astype(count.dtype)
    return ReliabilityBins(mean(confidence), mean(accuracy), count / total)


def _error(bins: ReliabilityBins) -> Array:
    """The mean distance of a diagram from its diagonal."""
    return jnp.sum(bins.weight * jnp.abs(bins.confidence - bins.accuracy))


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
      XLA at [1024, 1000]: at most 13 times the FLOPs and 4.2 times the bytes of a copy of its arguments, and 0.7 times its
      memory more.

    Use:
      For: poor calibration.
      When: Models are chosen by honest probabilities and a single sure mistake shall not decide: it is bounded, unlike
        `negative_log_likelihood`. In the calibration study smoothed models were behind as trained and ahead after
        `fit_temperature`.
      Not when: Calibration is asked for apart from accuracy, which it mixes: `expected_calibration_error`. There are many
        classes, where errors among unlikely ones hardly count.
      Badly with: Published values of two classes, which are half of this one. Probabilities given as logits: pass their
        logarithm.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> float(rj.diagnostics.brier_score(jnp.log(jnp.array([0.5, 0.25, 0.25])), jnp.array(0)))
      0.375

    References:
      Brier, Verification of Forecasts Expressed in Terms of Probability, 1950, Monthly Weather Review 78. Summed over the
      classes as there, so twice the usual score of two classes.
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
      A softmax.
      XLA at [1024, 1000]: at most 4.5 times the FLOPs and 2.8 times the bytes of a copy of its arguments, and 0.55 times its
      memory more.

    Use:
      For: poor calibration.
      When: Strengths are chosen on clean held-out labels: it falls only where probabilities get better, and it is what
        `fit_temperature` minimises. Compare it after that, or a scale of the logits alone decides.
      Not when: Held-out labels are partly wrong: the model that is rightly sure pays most. One example of probability 0 makes
        the mean infinite: `brier_score`.
      Badly with: Training losses that are no cross-entropy (`label_smoothing`, `focal`, `logit_norm`): their own value on
        held-out data is another quantity.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.diagnostics.negative_log_likelihood(jnp.array([2.0, 1.0, 0.0]), jnp.array(0))), 4)
      0.4076

    References:
      Good, Rational Decisions, 1952, Journal of the Royal Statistical Society B 14: the logarithmic score, the only proper one
      that looks at the label's probability alone.
    """
    return classes.cross_entropy(
        classes.class_inputs("diagnostics.negative_log_likelihood", logits, labels, axis=axis, where=where)
    )
