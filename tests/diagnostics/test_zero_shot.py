"""The seen-unseen curve against a loop over thresholds, the published example, and its laws."""

import numpy as np
import pytest

import regjax as rj
from tests.losses.test_stacking import SCORES, SEEN

d = rj.diagnostics
LABELS = np.array([0, 1, 0, 2, 2, 3])


def accuracy(scores, labels, gamma, seen, group, zero=False):
    """The mean over a group's classes of the accuracy at one threshold."""
    hits = {c: [] for c in np.flatnonzero(group)}
    for s, y in zip(scores, labels, strict=True):
        if group[y]:
            inside = max(s[seen]) - max(s[~seen]) <= gamma
            allowed = [c for c in range(len(s)) if seen[c] != inside]
            hits[y].append(max(allowed, key=lambda c, s=s: s[c]) == y)
    means = [np.mean(h) if h else 0.0 for h in hits.values() if h or zero]
    return np.mean(means) if means else 0.0


def curve(scores, labels, seen, zero=False):
    gaps = sorted({max(s[seen]) - max(s[~seen]) for s in scores})
    points = [-np.inf, *gaps]
    return [np.array([accuracy(scores, labels, g, seen, side, zero) for g in points]) for side in (~seen, seen)]


def test_published_example():
    unseen, seen = d.seen_unseen_curve(SCORES, LABELS, SEEN)
    np.testing.assert_allclose(unseen, [0, 0.5, 0.75, 0.75, 1, 1, 1])
    np.testing.assert_allclose(seen, [1, 1, 1, 0.75, 0.75, 0.25, 0])
    assert unseen.dtype == seen.dtype == np.float64
    area, best = d.ausuc(SCORES, LABELS, SEEN)
    assert area == pytest.approx(0.9375) and best == pytest.approx(0.857143, abs=5e-7)


@pytest.mark.parametrize("absent", ["skip", "zero"])
def test_random_scores_with_ties_and_absent_classes(absent):
    for seed in range(5):
        rng = np.random.default_rng(seed)
        scores = rng.integers(0, 5, size=(30, 6)) / 4  # exact in floating point, with many equal gaps
        labels, seen = rng.choice([0, 1, 2, 4], size=30), np.array([True, False, True, False, False, True])
        want = curve(scores, labels, seen, absent == "zero")
        got = d.seen_unseen_curve(scores, labels, seen, absent=absent)
        np.testing.assert_allclose(got, want, atol=1e-15)
        u, s = want
        area, best = d.ausuc(scores, labels, seen, absent=absent)
        assert area == pytest.approx(sum((u[i + 1] - u[i]) * (s[i] + s[i + 1]) / 2 for i in range(len(u) - 1)))
        assert best == pytest.approx(max(2 * a * b / (a + b) if a + b else 0 for a, b in zip(u, s, strict=True)))
        assert 0 <= area <= 1
        # What an example adds to all its scores does not matter, and the curve is monotone from one side to the other.
        shifted = d.seen_unseen_curve(scores + rng.integers(-3, 4, size=(30, 1)), labels, seen, absent=absent)
        np.testing.assert_array_equal(shifted, got)
        assert got.acc_unseen[0] == got.acc_seen[-1] == 0
        assert (np.diff(got.acc_unseen) >= 0).all() and (np.diff(got.acc_seen) <= 0).all()


def test_the_fitted_constant_reaches_the_best_harmonic_mean():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        labels, seen = rng.integers(0, 5, size=60), np.array([True, True, True, False, False])
        scores = rng.normal(size=(60, 5)) + 1.5 * np.eye(5)[labels] + rng.normal() * seen
        gamma = d.fit_stacking_gamma(scores, labels, seen)
        guess = np.argmax(scores - gamma * seen, axis=1)
        per_class = np.array([np.mean(guess[labels == c] == c) for c in range(5)])
        s, u = per_class[seen].mean(), per_class[~seen].mean()
        assert 2 * s * u / (s + u) == pytest.approx(d.ausuc(scores, labels, seen).best_harmonic_mean)


def test_one_side_only_and_no_examples():
    unseen, seen = d.seen_unseen_curve(SCORES[:2], LABELS[:2], SEEN)
    assert not unseen.any() and seen[0] == 1
    assert d.ausuc(SCORES[:0], LABELS[:0], SEEN) == (0.0, 0.0)
    # The best is to hold nothing back: any constant below the least gap.
    assert d.fit_stacking_gamma(SCORES[:2], LABELS[:2], SEEN) < min(0.9 - 0.3, 0.7 - 0.4)


def test_lists_and_float32_are_measured_in_float64():
    # Gaps that float32 cannot tell apart.
    scores = [[1.0, 0.5], [1.0 + 1e-9, 0.5], [1.0 + 2e-9, 0.5]]
    assert len(d.seen_unseen_curve(scores, [0, 1, 0], [True, False]).acc_seen) == 4
    assert len(d.seen_unseen_curve(np.float32(scores), [0, 1, 0], [True, False]).acc_seen) == 2


@pytest.mark.slow
def test_unseen_digits_are_found_only_where_the_seen_are_held_back():
    """The published claim in small: ridge regression from pixels to coordinates of the class means, seven classes seen."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = digits.data / 16, digits.target
    for seed in range(4):
        rng = np.random.default_rng(seed)
        order, seen = rng.permutation(len(y)), np.ones(10, bool)
        seen[rng.choice(10, 3, replace=False)] = False
        train, test = order[: len(y) * 6 // 10], order[len(y) * 6 // 10 :]
        means = np.stack([x[train][y[train] == c].mean(0) for c in range(10)])
        coordinates = np.linalg.svd(means - means.mean(0), full_matrices=False)
        signatures = coordinates[0][:, :9] * coordinates[1][:9]
        signatures /= np.linalg.norm(signatures, axis=1, keepdims=True)
        chosen = train[seen[y[train]]]
        centre = x[chosen].mean(0)
        a = x[chosen] - centre
        kernel = np.linalg.solve(a.T @ a + np.eye(64), a.T @ (signatures[y[chosen]] - signatures[y[chosen]].mean(0)))
        scores = ((x[test] - centre) @ kernel + signatures[y[chosen]].mean(0)) @ signatures.T
        guess = scores.argmax(1)
        per_class = np.array([np.mean(guess[y[test] == c] == c) for c in range(10)])
        plain = 2 * per_class[seen].mean() * per_class[~seen].mean() / (per_class[seen].mean() + per_class[~seen].mean())
        area, best = d.ausuc(scores, y[test], seen)
        assert per_class[seen].mean() > 0.85 and per_class[~seen].mean() < 0.25
        assert best > plain + 0.3 and area > 0.5, (plain, best, area)
        assert d.fit_stacking_gamma(scores, y[test], seen) > 0
