"""Calibration against loop-written float64 references, published values and SciPy's minimiser."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize_scalar

import regjax as rj
from tests.references import log_softmax, soft_labels

RNG = np.random.default_rng(0)
CONFIDENCES = RNG.random(40)
CORRECT = RNG.random(40) < 0.6
WHERE = RNG.random(40) < 0.7
LOGITS = 3 * RNG.normal(size=(40, 4))
LABELS = np.where(RNG.random(40) < 0.5, LOGITS.argmax(1), RNG.integers(0, 4, size=40))
CLASSES = RNG.random((40, 4)) < 0.6
CLASSES[np.arange(40), LABELS] = True

error = jax.jit(rj.diagnostics.expected_calibration_error, static_argnames="num_bins")
fit = jax.jit(rj.diagnostics.fit_temperature)


def calibration_error(confidences, correct, num_bins, where=None):
    kept = [i for i in range(len(confidences)) if where is None or where[i]]
    total = 0.0
    for b in range(num_bins):
        inside = [i for i in kept if b / num_bins < confidences[i] <= (b + 1) / num_bins or (b == 0 and confidences[i] == 0)]
        if inside:
            confidence = sum(confidences[i] for i in inside) / len(inside)
            accuracy = sum(bool(correct[i]) for i in inside) / len(inside)
            total += len(inside) / len(kept) * abs(confidence - accuracy)
    return total


def mean_loss(temperature, logits=LOGITS, labels=LABELS):
    return -np.mean([log_softmax(z / temperature)[y] for z, y in zip(logits, labels, strict=True)])


def test_calibration_error_equals_its_reference(x64):
    for bins in (1, 4, 15):
        got = error(CONFIDENCES, CORRECT, num_bins=bins)
        assert got == pytest.approx(calibration_error(CONFIDENCES, CORRECT, bins), rel=1e-12)
    got = error(CONFIDENCES, CORRECT, num_bins=15, where=WHERE)
    assert got == pytest.approx(calibration_error(CONFIDENCES, CORRECT, 15, WHERE), rel=1e-12)


def test_calibration_error_at_known_points():
    assert error(np.array([0.8]), np.array([False])) == pytest.approx(0.8)
    # An edge belongs to the bin below it, 0 to the first bin, and rounding above 1 to the last.
    edges = np.arange(11, dtype=np.float32) / 10
    right = np.arange(11) % 2 == 0
    assert error(edges, right, num_bins=5) == pytest.approx(calibration_error(edges, right, 5), rel=1e-5)
    assert error(np.float32([0.0, 1.0000001]), np.array([False, True])) == pytest.approx(0, abs=1e-6)
    assert error(np.float32([0.7, 0.2]), np.array([1, 0]), where=np.zeros(2, bool)) == 0
    spoilt = np.where(WHERE, CONFIDENCES, np.nan)
    assert error(spoilt, CORRECT, where=WHERE) == pytest.approx(calibration_error(CONFIDENCES, CORRECT, 15, WHERE), rel=1e-5)


def test_reliability_bins_equal_their_reference(x64):
    bins = jax.jit(lambda c, r, w: rj.diagnostics.reliability_bins(c, r, num_bins=5, where=w))(CONFIDENCES, CORRECT, WHERE)
    for b in range(5):
        inside = [i for i in range(40) if WHERE[i] and b / 5 < CONFIDENCES[i] <= (b + 1) / 5]
        assert bins.weight[b] == pytest.approx(len(inside) / WHERE.sum())
        assert bins.confidence[b] == pytest.approx(CONFIDENCES[inside].mean(), rel=1e-12)
        assert bins.accuracy[b] == pytest.approx(CORRECT[inside].mean(), rel=1e-12)
    gaps = bins.weight * np.abs(bins.confidence - bins.accuracy)
    assert error(CONFIDENCES, CORRECT, num_bins=5, where=WHERE) == pytest.approx(float(gaps.sum()), rel=1e-12)
    # A bin without examples is 0 throughout.
    assert [float(x[0]) for x in rj.diagnostics.reliability_bins(np.array([0.9]), np.array([True]), num_bins=2)] == [0, 0, 0]


def equal_mass_error(confidences, correct, num_bins):
    """Examples in order of confidence, cut where a share of 1 / num_bins ends; equal confidences stay together."""
    count, total = len(confidences), 0.0
    members = {}
    for i in range(count):
        below = sum(confidences[j] < confidences[i] for j in range(count))
        members.setdefault(below * num_bins // count, []).append(i)
    for inside in members.values():
        gap = sum(confidences[i] for i in inside) / len(inside) - sum(bool(correct[i]) for i in inside) / len(inside)
        total += len(inside) / count * abs(gap)
    return total


def test_adaptive_error_equals_its_reference(x64):
    adaptive = jax.jit(rj.diagnostics.adaptive_calibration_error, static_argnames="num_bins")
    spoilt = np.where(WHERE, CONFIDENCES, np.nan)
    for bins in (1, 7, 60):  # 40 examples: one bin, 5 or 6 examples in each, one example in each
        got = adaptive(CONFIDENCES, CORRECT, num_bins=bins)
        assert got == pytest.approx(equal_mass_error(CONFIDENCES, CORRECT, bins), rel=1e-12)
        got = adaptive(spoilt, CORRECT, num_bins=bins, where=WHERE)
        assert got == pytest.approx(equal_mass_error(CONFIDENCES[WHERE], CORRECT[WHERE], bins), rel=1e-12)
    # With equal confidences among them, in any order.
    rounded = np.round(CONFIDENCES, 1)
    want = equal_mass_error(rounded, CORRECT, 7)
    for order in (np.arange(40), np.argsort(CORRECT), np.argsort(~CORRECT)):
        assert adaptive(rounded[order], CORRECT[order], num_bins=7) == pytest.approx(want, rel=1e-12)


def test_adaptive_error_sees_what_one_wide_bin_hides():
    # Within one bin of equal width the gaps cancel: half at 0.94 and always right, half at 0.99 and right in 93 of 100.
    confidences = np.repeat(np.float32([0.94, 0.99]), 100)
    right = np.r_[np.ones(100, bool), np.arange(100) < 93]
    assert error(confidences, right) == pytest.approx(0, abs=1e-6)
    assert rj.diagnostics.adaptive_calibration_error(confidences, right, num_bins=2) == pytest.approx(0.06, abs=1e-6)


def test_classwise_error_is_the_mean_of_one_against_the_rest(x64):
    classwise = jax.jit(rj.diagnostics.classwise_calibration_error)
    p = np.exp(np.array([log_softmax(z) for z in LOGITS]))
    want = np.mean([calibration_error(p[:, k], k == LABELS, 15, WHERE) for k in range(4)])
    assert classwise(p, LABELS, where=WHERE) == pytest.approx(want, rel=1e-12)
    assert classwise(np.eye(4)[LABELS], LABELS) == 0
    # A calibrated top class may hide two others that are mistaken for each other.
    shares, labels = np.tile([0.5, 0.5, 0.0], (20, 1)), np.repeat([0, 2], 10)
    assert error(shares.max(1), labels == 0) == pytest.approx(0, abs=1e-12)
    assert classwise(shares, labels) == pytest.approx((0 + 0.5 + 0.5) / 3)
    wrong = np.where(np.arange(40) == 3, 4, LABELS)
    assert np.isnan(classwise(p, wrong)) and not np.isnan(classwise(p, wrong, where=np.arange(40) != 3))


def test_scores_equal_their_references(x64):
    soft = soft_labels(RNG, 40, 4)

    @jax.jit
    def run(logits, soft):
        plain = [f(logits, LABELS) for f in (rj.diagnostics.brier_score, rj.diagnostics.negative_log_likelihood)]
        mixed = [f(logits, soft) for f in (rj.diagnostics.brier_score, rj.diagnostics.negative_log_likelihood)]
        masked = rj.diagnostics.brier_score(logits.T, LABELS, axis=0, where=CLASSES.T)
        return plain, mixed, masked

    plain, mixed, masked = run(LOGITS, soft)
    log_p = np.array([log_softmax(z) for z in LOGITS])
    for got, y in ((plain, np.eye(4)[LABELS]), (mixed, soft)):
        brier = [sum((math.exp(a) - b) ** 2 for a, b in zip(*row, strict=True)) for row in zip(log_p, y, strict=True)]
        np.testing.assert_allclose(got[0], brier, rtol=1e-10)
        np.testing.assert_allclose(got[1], -(y * log_p).sum(1), rtol=1e-12)
    p = np.exp(np.array([log_softmax(z, w) for z, w in zip(LOGITS, CLASSES, strict=True)]))
    np.testing.assert_allclose(masked, ((p - np.eye(4)[LABELS]) ** 2).sum(1), rtol=1e-10)


def test_a_small_brier_score_keeps_its_digits_and_a_wrong_label_is_seen():
    p = math.exp(-12.0)
    got = rj.diagnostics.brier_score(jnp.array([[12.0, 0.0], [12.0, 0.0]]), jnp.array([0, 2]))
    assert got[0] == pytest.approx(2 * (p / (1 + p)) ** 2, rel=1e-5) and jnp.isnan(got[1])


def test_temperature_is_the_minimiser(x64):
    want = minimize_scalar(lambda u: mean_loss(math.exp(u)), bounds=(-4, 4), options={"xatol": 1e-9}).x
    got = float(fit(LOGITS, LABELS))
    assert got == pytest.approx(math.exp(want), rel=1e-6)
    # The first-order condition, and equivariance to the scale of the logits.
    p = np.exp([log_softmax(z / got) for z in LOGITS])
    assert LOGITS[np.arange(40), LABELS].mean() == pytest.approx((p * LOGITS).sum(1).mean(), rel=1e-9)
    for scale in (0.1, 7.0):
        assert fit(scale * LOGITS + RNG.normal(size=(40, 1)), LABELS) == pytest.approx(scale * got, rel=1e-9)


def test_temperature_of_known_odds():
    # A share q right at margin m: m / T = log(q / (1 - q)), also where the start at 1.5 is far off.
    for margin, right in ((4.0, 30), (0.1, 21), (300.0, 39), (50.0, 22)):
        logits = np.tile(np.float32([margin, 0.0, -np.inf, -np.inf]), (40, 1))
        labels = (np.arange(40) >= right).astype(int)
        want = np.clip(margin / math.log(right / (40 - right)), 1e-2, 1e2)
        assert fit(logits, labels) == pytest.approx(want, rel=1e-5)


def test_temperature_at_the_ends_and_without_information():
    logits = LOGITS.astype(np.float32)
    top, low = logits.argmax(1), logits.argmin(1)
    assert fit(logits, top) == pytest.approx(1e-2, rel=1e-5)
    assert fit(1000 * logits, top) == pytest.approx(1e-2, rel=1e-5)  # where the loss underflows
    assert fit(logits, low) == pytest.approx(1e2, rel=1e-5)
    assert fit(np.ones_like(logits), LABELS) == 1
    assert fit(logits, LABELS, where=np.zeros(40, bool)) == 1
    assert np.isnan(fit(logits, np.where(np.arange(40) == 3, 4, LABELS)))


def test_temperature_of_the_examples_that_count():
    logits = np.where(WHERE[:, None], LOGITS, np.nan).astype(np.float32)
    got = fit(logits, np.where(WHERE, LABELS, -1), where=WHERE)
    want = minimize_scalar(lambda u: mean_loss(math.exp(u), LOGITS[WHERE], LABELS[WHERE]), bounds=(-4, 4)).x
    assert got == pytest.approx(math.exp(want), rel=1e-4)


def test_temperature_of_many_seeds_at_once():
    shifts = np.float32([0.5, 1.0, 3.0])
    got = jax.jit(jax.vmap(lambda s: rj.diagnostics.fit_temperature(s * LOGITS.astype(np.float32), LABELS)))(shifts)
    np.testing.assert_allclose(got, shifts * float(fit(LOGITS.astype(np.float32), LABELS)), rtol=1e-5)


def test_fitting_lowers_the_calibration_error_of_overconfident_logits():
    logits = RNG.normal(size=(2000, 3)).astype(np.float32)
    noise = RNG.gumbel(size=(2000, 3))
    labels = (logits + noise).argmax(1)  # calibrated at temperature 1 by construction
    assert fit(logits, labels) == pytest.approx(1.0, abs=0.15)
    temperature = float(fit(4 * logits, labels))
    assert temperature == pytest.approx(4.0, abs=0.6)

    def measured(z):
        p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
        return float(error(p.max(1), p.argmax(1) == labels))

    assert measured(4 * logits / temperature) < 0.05 < 0.15 < measured(4 * logits)
