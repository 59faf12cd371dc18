"""Generalised zero-shot learning: accuracy on classes with and without training examples, at every trade-off."""

from typing import Any, NamedTuple

import numpy as np

from regjax.core import checks


class SeenUnseenCurve(NamedTuple):
    """The accuracies on unseen and on seen classes, both ``[P]``, from all for the seen to all for the unseen."""

    acc_unseen: np.ndarray
    acc_seen: np.ndarray


class SeenUnseenArea(NamedTuple):
    """The area under the seen-unseen curve, and the largest harmonic mean of its two accuracies."""

    area: float
    best_harmonic_mean: float


def seen_unseen_curve(scores: Any, labels: Any, seen_mask: Any, *, absent: str = "skip") -> SeenUnseenCurve:
    r"""The accuracies on seen and unseen classes as the seen ones are held back more and more. On the host, in float64.

    Formula:
      .. math:: b_i = \max_{c\ seen} s_{ic} - \max_{c\ unseen} s_{ic}

      Example i is predicted among the unseen classes where :math:`b_i \le \gamma`, else among the seen, each time by the
      largest score. :math:`\gamma` runs from minus infinity over all distinct b; examples of equal b change side together. Both
      accuracies are means over classes of the accuracy within each.

    Args:
      scores: float ``[N, K]``, concrete, without NaN. Equal scores: the lowest class.
      labels: integer class ids ``[N]``, concrete, in [0, K).
      seen_mask: boolean ``[K]``, concrete: the classes with training examples; at least one, and not all.
      absent: a class without examples in this set is left out, ``"skip"`` (default), or counts as accuracy 0, ``"zero"``.

    Returns:
      ``SeenUnseenCurve(acc_unseen, acc_seen)``, NumPy float64 ``[P]``, P one more than the distinct b: the first rises from
      0, the second falls to 0.

    Raises:
      ValueError: if a shape or dtype does not fit, an array is traced, a value is as excluded above, or ``absent`` is misspelt.

    Cost:
      A pass over the scores and a sort of N, in NumPy on the host; not for use under ``jit``.

    Use:
      For: few labels, distribution shift.
      When: Scores for classes with and without training examples: to see the whole trade-off before a constant for
        `calibrated_stacking` is chosen, or where two methods cross.
      Not when: All classes have training examples, be they few: `adjust_logits`. Inside ``jit``, as it runs on the host.
      Badly with: Scores rounded to bfloat16, whose ties change side together. Probabilities, saturated at 1: give logits.

    Example:
      >>> import numpy as np, regjax as rj
      >>> scores = np.array([[0.9, 0.2], [0.6, 0.5], [0.5, 0.2]])
      >>> unseen, seen = rj.diagnostics.seen_unseen_curve(scores, np.array([0, 1, 0]), np.array([True, False]))
      >>> unseen.tolist(), seen.tolist()
      ([0.0, 1.0, 1.0, 1.0], [1.0, 1.0, 0.5, 0.0])

    References:
      Chao et al., An Empirical Study and Analysis of Generalized Zero-Shot Learning for Object Recognition in the Wild,
      2016, arXiv 1605.04253. The authors' script counts absent classes as accuracy 0; it was read, not run.
    """
    unseen, seen, _ = _curve("diagnostics.seen_unseen_curve", scores, labels, seen_mask, absent)
    return SeenUnseenCurve(unseen, seen)


def ausuc(scores: Any, labels: Any, seen_mask: Any, *, absent: str = "skip") -> SeenUnseenArea:
    r"""The area under the seen-unseen curve, and the best harmonic mean on it. On the host, in float64.

    Formula:
      .. math:: \sum_p (u_{p+1} - u_p) \frac{s_p + s_{p+1}}{2}, \quad \max_p \frac{2 s_p u_p}{s_p + u_p}

      with u and s the accuracies of `seen_unseen_curve`; the harmonic mean of 0 and 0 is 0.

    Args:
      scores: float ``[N, K]``, as in `seen_unseen_curve`.
      labels: integer class ids ``[N]``.
      seen_mask: boolean ``[K]``: the classes with training examples.
      absent: ``"skip"`` (default) or ``"zero"``, as in `seen_unseen_curve`.

    Returns:
      ``SeenUnseenArea(area, best_harmonic_mean)``, Python floats in [0, 1], higher is better. A constant added to the scores
      of an example changes neither.

    Raises:
      ValueError: as `seen_unseen_curve`.

    Cost:
      That of `seen_unseen_curve`.

    Use:
      For: few labels, distribution shift.
      When: Methods are compared without a choice of the constant. On digits with three unseen classes these were hardly ever
        predicted without one, and the best harmonic mean was far higher.
      Not when: A deployed system has one constant: report its two accuracies. The best harmonic mean is chosen on the same
        examples, so it flatters.
      Badly with: Published values in which absent classes count as 0: ``absent='zero'``.

    Example:
      >>> import numpy as np, regjax as rj
      >>> scores = np.array([[0.9, 0.2], [0.6, 0.5], [0.55, 0.5]])
      >>> area, best = rj.diagnostics.ausuc(scores, np.array([0, 1, 0]), np.array([True, False]))
      >>> area, round(best, 4)
      (0.5, 0.6667)

    References:
      Chao et al., An Empirical Study and Analysis of Generalized Zero-Shot Learning for Object Recognition in the Wild,
      2016, arXiv 1605.04253.
    """
    u, s, _ = _curve("diagnostics.ausuc", scores, labels, seen_mask, absent)
    return SeenUnseenArea(float(np.sum(np.diff(u) * (s[1:] + s[:-1]) / 2)), float(np.max(_harmonic_mean(u, s))))


def fit_stacking_gamma(scores: Any, labels: Any, seen_mask: Any, *, absent: str = "skip") -> float:
    r"""The constant for ``losses.calibrated_stacking`` that is best on held-out classes. On the host, in float64.

    Formula:
      .. math:: \arg\max_\gamma \frac{2\, s(\gamma)\, u(\gamma)}{s(\gamma) + u(\gamma)}

      with s and u the accuracies of `seen_unseen_curve` at :math:`\gamma`. All values between two neighbouring b give the same
      predictions: the middle is returned, of the first best interval.

    Args:
      scores: float ``[N, K]``, as in `seen_unseen_curve`, of examples of a validation split: of its classes some are set apart
        from training, and play the unseen ones.
      labels: integer class ids ``[N]``; at least one example.
      seen_mask: boolean ``[K]``: the classes with training examples.
      absent: ``"skip"`` (default) or ``"zero"``, as in `seen_unseen_curve`.

    Returns:
      A Python float, of either sign.

    Raises:
      ValueError: as `seen_unseen_curve`, or if there is no example or a gap between scores is not finite.

    Cost:
      That of `seen_unseen_curve`.

    Use:
      Part of: `calibrated_stacking`.
      When: On a validation split in which some training classes play the unseen ones, before `calibrated_stacking` at test.
      Not when: Only the test classes are at hand: fitted on them it is the best constant in hindsight.
      Badly with: Scores of another scale at test, after `fit_temperature` or a new training: the constant is in units of the
        scores.

    Example:
      >>> import numpy as np, regjax as rj
      >>> scores = np.array([[0.9, 0.2], [0.6, 0.5], [0.5, 0.2]])
      >>> round(rj.diagnostics.fit_stacking_gamma(scores, np.array([0, 1, 0]), np.array([True, False])), 4)
      0.2

    References:
      Chao et al., An Empirical Study and Analysis of Generalized Zero-Shot Learning for Object Recognition in the Wild,
      2016, arXiv 1605.04253, which searches a grid of values.
    """
    name = "diagnostics.fit_stacking_gamma"
    u, s, gammas = _curve(name, scores, labels, seen_mask, absent)
    if len(gammas) == 1 or not np.all(np.isfinite(gammas[1:])):
        checks.fail(name, "scores", "an array of finite numbers with at least one example", scores)
    best = int(np.argmax(_harmonic_mean(u, s)))
    margin = max(1.0, float(np.ptp(gammas[1:])))
    low = gammas[best] if best else gammas[1] - margin
    high = gammas[best + 1] if best + 1 < len(gammas) else gammas[best] + margin
    return float((low + high) / 2)


def _curve(name: str, scores: Any, labels: Any, seen_mask: Any, absent: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The accuracies on unseen and seen classes, and the constants from which on they hold."""
    checks.choice(name, "absent", absent, ("skip", "zero"))
    shape = checks.floating(name, "scores", scores, ndim=2).shape
    checks.integers(name, "labels", labels, shape=shape[:1])
    if checks.array(name, "seen_mask", seen_mask, shape=shape[1:]).dtype != bool:
        checks.fail(name, "seen_mask", f"a boolean mask of {shape[1]} classes", seen_mask)
    # The given arrays, not the checked ones: those may have lost half their digits on the device.
    given = {"scores": scores, "labels": labels, "seen_mask": seen_mask}
    s, y, seen = (checks.concrete(name, argument, value) for argument, value in given.items())
    s = s.astype(np.float64)
    if y.size and (y.min() < 0 or y.max() >= shape[1]):
        checks.fail(name, "labels", f"ids in [0, {shape[1]})", y[(y < 0) | (y >= shape[1])][0])
    if seen.all() or not seen.any():
        checks.fail(name, "seen_mask", "True for some classes and False for others", seen_mask)

    among = {side: np.where(seen == side, s, -np.inf) for side in (True, False)}
    gap = among[True].max(axis=1) - among[False].max(axis=1)
    if np.isnan(s).any() or np.isnan(gap).any():
        checks.fail(name, "scores", "free of NaN, with a finite score on either side", scores)
    order = np.argsort(gap, kind="stable")
    gammas, sizes = np.unique(gap, return_counts=True)
    points = np.concatenate([[0], np.cumsum(sizes)])
    hits = {side: _shares(y, seen == side, absent) * (values.argmax(axis=1) == y) for side, values in among.items()}
    # Of the n examples of least gap, those predicted unseen count for one accuracy, the others for the other.
    gained = np.concatenate([[0.0], np.cumsum(hits[False][order])])
    left = np.concatenate([np.cumsum(hits[True][order][::-1])[::-1], [0.0]])
    return gained[points], left[points], np.concatenate([[-np.inf], gammas])


def _shares(labels: np.ndarray, group: np.ndarray, absent: str) -> np.ndarray:
    """What a right prediction of each example adds to the accuracy of a group of classes; 0 for those of another group."""
    counts = np.bincount(labels, minlength=len(group))
    averaged = np.sum(group & (counts > 0)) if absent == "skip" else np.sum(group)
    return np.where(group[labels], 1 / (np.maximum(counts[labels], 1) * max(averaged, 1)), 0)


def _harmonic_mean(u: np.ndarray, s: np.ndarray) -> np.ndarray:
    return 2 * u * s / np.where(u + s > 0, u + s, 1)
