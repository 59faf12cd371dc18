"""When does a network stop learning and start to memorise? Curves over wrongly labelled examples, and the turn of a curve."""

import math
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, sharding
from regjax.core.types import Array


class MemorizationCurves(NamedTuple):
    """Fractions at each time, ``[T]``: of the wrongly labelled examples, the first three summing to 1; and of the others."""

    correct: Array
    memorized: Array
    other: Array
    clean_accuracy: Array


def memorization_curves(
    predictions: Any, given_labels: Any, true_labels: Any, *, where: Any = None, axis_name: Any = None
) -> MemorizationCurves:
    r"""What a network predicts for wrongly labelled training examples, over time.

    Formula:
      Among the examples with :math:`y_i \neq y^*_i`, y the given and y* the true label, at time t:

      .. math:: correct_t = mean_i [\hat y_{ti} = y^*_i], \quad memorized_t = mean_i [\hat y_{ti} = y_i], \quad
        other_t = 1 - correct_t - memorized_t

      and among those with :math:`y_i = y^*_i` the accuracy. Early in training ``correct`` rises; memorisation is its fall
      while ``memorized`` rises.

    Args:
      predictions: integer class ids ``[T, N]``: the predictions for N training examples, or pixels, at T times.
      given_labels: integer class ids ``[N]``, those trained on.
      true_labels: integer class ids ``[N]``.
      where: boolean ``[N]``: which examples count; default all.
      axis_name: the mapped axis, or a tuple of them, over which the examples are split: counts are added over it.

    Returns:
      ``MemorizationCurves(correct, memorized, other, clean_accuracy)``, float32 ``[T]`` each; a fraction of no examples is 0.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      A few passes over the predictions; examples may be sharded over devices.
      XLA at [50, 10000]: at most 13 times the FLOPs and 5.1 times the bytes of a copy of its arguments, and 1.7 times its
      memory more.

    Use:
      For: noisy labels.
      When: Label noise was added or is known, as in the label-noise study. Beside ``clean_accuracy`` it tells methods that
        resist wrong labels (`elr`, `generalized_cross_entropy`) from such as learn everything slower.
      Not when: True labels are unknown: take `memorization_epoch`, or the spread of losses by `fit_two_gaussians`. Few wrong
        examples, as shares of a dozen say little.
      Badly with: Predictions on augmented or mixed inputs, which under-count what is memorised. Predictions gathered while
        weights move within the epoch: one pass at the end is cleaner.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> given, true = jnp.array([1, 1, 0, 2]), jnp.array([0, 2, 0, 2])  # the first two are wrong
      >>> early, late = [0, 2, 0, 1], [1, 1, 0, 2]
      >>> curves = rj.diagnostics.memorization_curves(jnp.array([early, late]), given, true)
      >>> curves.correct.tolist(), curves.memorized.tolist(), curves.clean_accuracy.tolist()
      ([1.0, 0.0], [0.0, 1.0], [0.5, 1.0])

    References:
      Liu et al., Early-Learning Regularization Prevents Memorization of Noisy Labels, 2020, arXiv 2007.00151: the figures of
      early learning and memorisation.
    """
    name = "diagnostics.memorization_curves"
    predictions = checks.integers(name, "predictions", predictions, ndim=2)
    size = predictions.shape[1:]
    given = checks.integers(name, "given_labels", given_labels, shape=size)
    true = checks.integers(name, "true_labels", true_labels, shape=size)
    where = checks.example_mask(name, "where", where, size)
    checks.axis_name(name, axis_name)
    counts = jnp.ones_like(given, bool) if where is None else sharding.placed_like(where, given)
    wrong, clean = counts & (given != true), counts & (given == true)
    hits, agreed = predictions == true, predictions == given
    totals = [jnp.sum(x, axis=-1) for x in (wrong, clean, wrong & hits, wrong & agreed, clean & hits)]
    if axis_name is not None:
        totals = jax.lax.psum(totals, axis_name)
    wrongs, cleans, correct, memorized, accurate = totals
    share = lambda part, whole: part.astype(jnp.float32) / jnp.maximum(whole, 1).astype(jnp.float32)
    other = share(wrongs - correct - memorized, wrongs)
    return MemorizationCurves(share(correct, wrongs), share(memorized, wrongs), other, share(accurate, cleans))


def memorization_epoch(
    iou_history: Any,
    *,
    num_epochs: int,
    threshold: Any = 0.9,
    iterations_per_point: Any = 1,
    iterations_per_epoch: Any = 1,
    min_rise: Any = None,
) -> int:
    r"""The epoch at which the fit to (noisy) labels slows down: from then on a class's labels are corrected.

    Formula:
      :math:`f(x) = a (1 - e^{-x^b / c})` with a and b in [0, 1] and :math:`c \geq 0` is fitted to the history by least
      squares, later points weighing more (standard deviations from 1 down to 0.1 in equal ratios), x in epochs from 0 to the
      history's length. With

      .. math:: f'(x) = \frac{a b}{c} e^{-x^b / c} x^{b - 1}, \quad R(e) = \frac{|f'(e) - f'(1)|}{f'(1)},

      R set to 0 where it exceeds 1, the result is 1 plus the count of e = 1, ..., ``num_epochs`` - 1 with
      :math:`R(e) \leq` ``threshold``: the epoch by which the slope has lost that share.

    Args:
      iou_history: floats ``[n]`` in [0, 1]: the intersection over union of the predictions during training with a class's
        given labels, one point at a time; another measure of the fit to the labels serves as well.
      num_epochs: at least 1: the epochs of training.
      threshold: in [0, 1], default 0.9: the relative change of the slope.
      iterations_per_point: the steps between two points, above 0; default 1.
      iterations_per_epoch: the steps of an epoch, above 0; default 1: a point is an epoch.
      min_rise: leave out the leading points while the next is not this much higher, and add the epochs left out to the
        result; at least 0; 0.1 in the authors' SegTHOR code. None (default) keeps all points.

    Returns:
      A Python integer from 1 to ``num_epochs``; it is ``num_epochs``, which asks for no correction, with fewer than three
      points, a constant history, or no fit. A class is active from the first epoch that is not below the result, computed on
      the history so far, and stays so.

    Raises:
      ValueError: if the history is no vector of numbers in [0, 1], or an option is out of range.

    Cost:
      A least-squares fit of three numbers on the host, some milliseconds; it waits for the device and cannot be traced.

    Use:
      For: noisy labels.
      When: Segmentation with wrong masks, by class, on `iou_history`, to begin `adele_correct_labels`: in the study correction
        helped where most errors were of one kind.
      Not when: Errors go both ways, where correcting from then on made the study's network worse. The curve jumps at the start
        or is flat: with few points it is fitted to noise, so try ``min_rise``.
      Badly with: Learning rates that decay, restart or warm up within the curve: the slope then falls without memorisation. A
        measure on held-out data, which need not saturate.

    Example:
      >>> import numpy as np, regjax as rj
      >>> history = 0.6 * (1 - np.exp(-np.linspace(0, 10, 10)))
      >>> rj.diagnostics.memorization_epoch(history, num_epochs=16)
      4

    References:
      Liu et al., Adaptive Early-Learning Correction for Segmentation from Noisy Annotations, 2021, arXiv 2110.03740; as the
      authors' code, in float64. On PASCAL VOC a point is taken every 100 iterations of 1058.1 in an epoch, for 16 epochs.
      With ``min_rise`` the remaining points start again from x = 0.
    """
    name = "diagnostics.memorization_epoch"
    expected = "numbers [n] in [0, 1], not traced"
    try:
        history = np.asarray(iou_history, np.float64)
    except (TypeError, ValueError):  # a traced history is a TypeError
        checks.fail(name, "iou_history", expected, iou_history)
    if history.ndim != 1:
        checks.fail(name, "iou_history", expected, history)
    outside = ~((history >= 0) & (history <= 1))
    if outside.any():
        checks.fail(name, "iou_history", expected, float(history[outside][0]))
    checks.integer(name, "num_epochs", num_epochs, low=1)
    checks.number(name, "threshold", threshold, low=0.0, high=1.0)
    checks.number(name, "iterations_per_point", iterations_per_point, low=0.0, open_low=True)
    checks.number(name, "iterations_per_epoch", iterations_per_epoch, low=0.0, open_low=True)
    epochs_per_point = float(iterations_per_point) / float(iterations_per_epoch)
    left_out = 0
    if min_rise is not None:
        rises = np.diff(history) >= float(checks.number(name, "min_rise", min_rise, low=0.0))
        left_out = int(np.argmax(rises)) if rises.any() else len(history)
    fit = _fit(history[left_out:], epochs_per_point)
    if fit is None:
        return num_epochs
    a, b, c = fit
    x = np.arange(1, num_epochs) + 1e-6  # the authors' offset, against 0 ** (b - 1)
    with np.errstate(all="ignore"):
        slope = a * b / c * np.exp(-(x**b) / c) * x ** (b - 1)
        change = np.abs(slope - slope[:1]) / slope[:1]
    if not np.all(np.isfinite(change)):
        return num_epochs
    change = np.where(change > 1, 0, change)
    shift = math.ceil(left_out * epochs_per_point)
    return min(int(np.sum(change <= threshold)) + 1 + shift, num_epochs)


def _fit(history: np.ndarray, epochs_per_point: float) -> np.ndarray | None:
    """The three numbers of the curve, or None where nothing can be fitted."""
    from scipy import optimize  # here, as it is a sixth of the time that importing regjax takes

    n = len(history)
    if n < 3 or np.ptp(history) == 0:
        return None
    x = np.linspace(0, n * epochs_per_point, n)
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore", optimize.OptimizeWarning)  # of a covariance that nobody asks for
        try:
            found, _ = optimize.curve_fit(
                lambda x, a, b, c: a * (1 - np.exp(-(x**b) / c)),
                x,
                history,
                p0=(1, 1, 1),
                sigma=np.geomspace(1, 0.1, n),
                bounds=((0, 0, 0), (1, 1, np.inf)),
            )
        except (RuntimeError, ValueError):
            return None
    return found
