"""Calibrated class Gaussians against loops, the published values, their distribution, and singular covariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

f = rj.features
statistics_of = jax.jit(f.robust_class_statistics, static_argnames="num_classes")
calibrate = jax.jit(f.calibrate_tail_statistics, static_argnames="top_q")
RNG = np.random.default_rng(0)
EYE = np.eye(2)
HEADS_AND_TAIL = (
    np.array([[0.0, 0.0], [4.0, 0.0], [0.0, 1.0]]),
    np.array([1.0, 2.0, 0.5])[:, None, None] * EYE,
    np.array([100, 80, 5]),
    np.array([True, True, False]),
)


def statistics(features, labels, inliers, num_classes):
    means, covariances, counts = [], [], []
    for k in range(num_classes):
        rows = [h for h, y, keep in zip(features, labels, inliers, strict=True) if y == k and keep]
        mean = sum(rows, np.zeros(features.shape[1])) / max(len(rows), 1)
        scatter = sum((np.outer(h - mean, h - mean) for h in rows), np.zeros((features.shape[1],) * 2))
        means.append(mean)
        covariances.append(scatter / max(len(rows) - 1, 1))
        counts.append(len(rows))
    return np.array(means), np.array(covariances), np.array(counts)


def calibrated(means, covariances, counts, heads, top_q, gamma, spread):
    new_means, new_covariances = means.copy(), covariances.copy()
    for k in range(len(means)):
        distance = {c: sum((means[c] - means[k]) ** 2) for c in range(len(means)) if heads[c] and counts[c] > 0}
        if heads[k] or counts[k] == 0 or not distance:
            continue
        near = sorted(distance, key=distance.get)[:top_q]
        weight = {c: counts[c] * np.exp(-distance[c]) for c in near}
        weight = {c: w / sum(weight.values()) for c, w in weight.items()}
        new_means[k] = gamma * sum(w * means[c] for c, w in weight.items()) + (1 - gamma) * means[k]
        borrowed = sum(w**2 * covariances[c] for c, w in weight.items())
        new_covariances[k] = gamma**2 * borrowed + (1 - gamma) ** 2 * covariances[k] + spread
    return new_means, new_covariances


def test_statistics_equal_their_reference(x64):
    features, labels, inliers = RNG.normal(size=(30, 3)) + 5, RNG.integers(0, 5, 30), RNG.random(30) < 0.8
    labels[labels == 4] = 3
    labels[0], inliers[labels == 2], inliers[1] = 2, False, True
    labels[1], inliers[labels == 1] = 1, False
    inliers[1] = True
    want = statistics(features, labels, inliers, 5)
    assert want[2][1] == 1 and want[2][2] == 0 and want[2][4] == 0
    spoilt = np.where(inliers[:, None], features, np.nan)
    for given in (features, spoilt):
        got = statistics_of(given, labels, inliers, num_classes=5)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-13)
    everyone = statistics_of(features, labels, np.ones(30, bool), num_classes=5)
    np.testing.assert_allclose(everyone.covariances[3], np.cov(features[labels == 3].T), rtol=1e-12)
    wrong = statistics_of(features, np.where(inliers, 5, labels), inliers, num_classes=5)
    assert all(np.isnan(x).all() for x in wrong)


def test_calibration_equals_its_reference(x64):
    means, roots = RNG.normal(size=(7, 3)), RNG.normal(size=(7, 3, 3))
    covariances = roots @ roots.swapaxes(1, 2)
    counts, heads = np.array([50, 40, 0, 30, 5, 3, 0]), np.array([1, 1, 1, 1, 0, 0, 0], bool)
    for top_q, gamma, spread in ((1, 0.5, 0.0), (1, 1.0, 0.4), (3, 0.3, 0.2)):
        got = calibrate(means, covariances, counts, heads, top_q=top_q, gamma=gamma, spread=spread)
        for a, b in zip(got, calibrated(means, covariances, counts, heads, top_q, gamma, spread), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)
    for nothing in (np.zeros(7, bool), np.ones(7, bool)):
        got = calibrate(means, covariances, counts, nothing, top_q=1, gamma=0.5, spread=0.3)
        assert np.array_equal(got[0], means) and np.array_equal(got[1], covariances)


def test_published_values(x64):
    means, covariances = calibrate(*HEADS_AND_TAIL)
    np.testing.assert_allclose(means[2], [0, 0.5], atol=1e-15)
    np.testing.assert_allclose(covariances[2], 0.375 * EYE, atol=1e-15)
    np.testing.assert_array_equal(means[:2], HEADS_AND_TAIL[0][:2])
    np.testing.assert_array_equal(covariances[:2], HEADS_AND_TAIL[1][:2])
    # The weight of the far head is 9.003e-8: it moves the mean by half of that times its distance.
    means, _ = calibrate(*HEADS_AND_TAIL, top_q=2)
    assert float(means[2, 0]) / (0.5 * 4) == pytest.approx(9.003e-8, rel=1e-3)
    same = calibrate(*HEADS_AND_TAIL, gamma=0.0)
    np.testing.assert_array_equal(same[0][2], HEADS_AND_TAIL[0][2])


def test_points_follow_their_gaussians():
    """Within five standard errors, for a tail calibrated by its head."""
    means, covariances = calibrate(*(jnp.asarray(x) for x in HEADS_AND_TAIL), spread=0.1)
    number = 4000
    points = np.asarray(jax.jit(f.sample_class_gaussians)(jax.random.key(0), means, covariances, jnp.arange(3 * number) % 3))
    for k in range(3):
        mine, sigma = points[k::3], np.asarray(covariances[k])
        error = np.sqrt(np.diag(sigma) / number)
        assert np.all(np.abs(mine.mean(0) - means[k]) < 5 * error)
        spread = np.sqrt((np.outer(np.diag(sigma), np.diag(sigma)) + sigma**2) / number)
        assert np.all(np.abs(np.cov(mine.T) - sigma) < 5 * spread)


def test_points_are_a_factor_times_the_given_numbers(x64):
    means, roots = RNG.normal(size=(4, 3)), RNG.normal(size=(4, 3, 3))
    covariances, labels, normals = roots @ roots.swapaxes(1, 2), np.array([3, 0, 0, 2, 4, -1]), RNG.normal(size=(6, 3))
    got = jax.jit(f.apply_class_gaussians)(means, covariances, labels, normals)
    for i, k in enumerate(labels[:4]):
        jitter = 1e-6 + 6 * np.finfo(np.float64).eps * covariances[k].diagonal().max()
        want = means[k] + np.linalg.cholesky(covariances[k] + jitter * np.eye(3)) @ normals[i]
        np.testing.assert_allclose(got[i], want, rtol=1e-10)
    assert np.isnan(got[4:]).all()


def test_covariances_of_few_examples_are_no_obstacle():
    """Five examples in 40 dimensions, at any scale, in float32: their spread is kept, and hardly anything beside it."""
    features = jnp.asarray(RNG.normal(size=(15, 40)), jnp.float32) * jnp.repeat(jnp.array([1e-3, 1.0, 1e3]), 5)[:, None]
    labels = jnp.arange(15) // 5
    means, covariances, _ = statistics_of(features, labels, None, num_classes=3)
    points = jax.jit(f.sample_class_gaussians)(jax.random.key(0), means, covariances, jnp.arange(600) % 3)
    assert np.isfinite(points).all()
    for k in (1, 2):
        rank = np.linalg.svd(np.asarray(points[k::3] - means[k]), compute_uv=False)
        assert rank[4:].max() < 0.02 * rank[3]


def test_anchor():
    h, z = RNG.normal(size=(2, 4, 6)).astype(np.float32)
    np.testing.assert_allclose(f.representation_anchor(h, z), ((h - z) ** 2).sum(1), rtol=1e-6)
    gradient = jax.jit(jax.grad(lambda h, z: f.representation_anchor(h, z).sum(), (0, 1)))(h, z)
    np.testing.assert_allclose(gradient[0], 2 * (h - z), rtol=1e-6)
    assert not np.any(gradient[1])


def test_a_tail_mean_of_five_examples_is_nearer_the_truth_after_calibration():
    """The claim in small: heads near the tail lower the error of its mean."""
    rng, truth = np.random.default_rng(0), np.zeros((2, 8))
    truth[1, 0] = 0.5
    labels = jnp.asarray(np.repeat([0, 1], [200, 5]))

    @jax.jit
    @jax.vmap
    def errors(features):
        raw = f.robust_class_statistics(features, labels, None, num_classes=2)
        means, _ = f.calibrate_tail_statistics(*raw, jnp.array([True, False]))
        return jnp.stack([jnp.sum(jnp.square(m[1] - truth[1])) for m in (raw.means, means)])

    raw, moved = np.asarray(errors(jnp.asarray(truth[np.asarray(labels)] + rng.normal(size=(50, 205, 8))))).mean(0)
    assert moved < 0.5 * raw
