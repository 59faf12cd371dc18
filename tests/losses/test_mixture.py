"""The mixture of two Gaussians against a loop, scikit-learn, the published values and at its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
VALUES = np.concatenate([RNG.normal(0.1, 0.05, 40), RNG.normal(0.6, 0.2, 25)])
VALUES = (VALUES - VALUES.min()) / (VALUES.max() - VALUES.min())
fit_two_gaussians = rj.losses.fit_two_gaussians


def reference(values, num_iterations, reg):
    low, high = min(values), max(values)
    for _ in range(10):
        near = [abs(x - low) < abs(x - high) for x in values]
        low, high = (np.mean([x for x, n in zip(values, near, strict=True) if n == side]) for side in (True, False))
    posteriors = [[1.0, 0.0] if abs(x - low) < abs(x - high) else [0.0, 1.0] for x in values]
    for turn in range(num_iterations + 1):
        fit = []
        for c in (0, 1):
            size = sum(p[c] for p in posteriors)
            mean = sum(p[c] * x for p, x in zip(posteriors, values, strict=True)) / size
            spread = sum(p[c] * (x - mean) ** 2 for p, x in zip(posteriors, values, strict=True)) / size + reg
            fit.append((mean, spread, size / len(values)))
        posteriors = []
        for x in values:
            heights = [w / np.sqrt(2 * np.pi * v) * np.exp(-((x - m) ** 2) / (2 * v)) for m, v, w in fit]
            posteriors.append([h / sum(heights) for h in heights])
        assert turn <= num_iterations
    return (*np.array(fit).T, np.array(posteriors))


fit = jax.jit(fit_two_gaussians, static_argnames="num_iterations")


def test_equal_its_reference(x64):
    for num_iterations in (0, 10):
        got = fit(VALUES, num_iterations=num_iterations, reg=1e-3)
        for a, b in zip(got, reference(VALUES, num_iterations, 1e-3), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


@pytest.mark.slow
def test_equal_scikit_learns(x64):
    from sklearn.mixture import GaussianMixture

    peer = GaussianMixture(2, max_iter=300, tol=1e-12, reg_covar=5e-4, random_state=0).fit(VALUES[:, None])
    order = np.argsort(peer.means_[:, 0])
    got = fit(VALUES, num_iterations=300)
    np.testing.assert_allclose(got.means, peer.means_[order, 0], rtol=1e-4)
    np.testing.assert_allclose(got.variances, peer.covariances_[order, 0, 0], rtol=1e-3)
    np.testing.assert_allclose(got.posteriors, peer.predict_proba(VALUES[:, None])[:, order], atol=1e-3)


def test_published_values_in_any_order_and_among_values_that_do_not_count():
    values = np.concatenate([RNG.normal(0.1, 0.02, 50), RNG.normal(0.8, 0.05, 50), np.full(20, np.nan)]).astype(np.float32)
    order = RNG.permutation(120)
    got = fit(values[order], where=order < 100)
    np.testing.assert_allclose(got.means, [0.1, 0.8], atol=0.02)
    np.testing.assert_allclose(got.weights, [0.5, 0.5], atol=0.05)
    sorted_posteriors = np.zeros((120, 2))
    sorted_posteriors[order] = got.posteriors
    assert sorted_posteriors[:50, 0].min() > 0.99 and sorted_posteriors[50:100, 1].min() > 0.99
    assert not sorted_posteriors[100:].any()
    np.testing.assert_allclose(sorted_posteriors[:100].sum(1), 1, rtol=1e-6)


def test_limits():
    run = jax.jit(jax.vmap(lambda v, w: fit_two_gaussians(v, where=w)))
    rows = [[0.3] * 7, [0.3] * 7, [0.0] * 6 + [1.0], [1.0] * 7, [1e4, -1e4, 1e4, -1e4, 0.0, 1.0, 2.0]]
    where = np.ones((5, 7), bool)
    where[1, 1:] = where[3] = False
    means, variances, weights, posteriors = map(np.asarray, run(jnp.array(rows), where))
    # Equal values, and one alone.
    np.testing.assert_array_equal(posteriors[0], 0.5)
    np.testing.assert_array_equal(posteriors[1, 0], 0.5)
    np.testing.assert_allclose(means[:2], 0.3, rtol=1e-6)
    # A component of one value keeps it; its variance is the regularisation.
    np.testing.assert_allclose(means[2], [0, 1], atol=1e-6)
    np.testing.assert_allclose(variances[2], [5e-4, 5e-4], rtol=1e-4)
    np.testing.assert_allclose(weights[2], [6 / 7, 1 / 7], rtol=1e-5)
    # None that counts, and values of any size.
    assert all(np.all(np.isfinite(x)) for x in (means, variances, weights, posteriors))
    assert not np.any(posteriors[3]) and means[4, 0] < means[4, 1]
