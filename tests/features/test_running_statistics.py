"""Class statistics by batches equal those of all examples at once."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj


def test_batches_equal_the_whole_and_outliers_count_for_nothing():
    random = np.random.default_rng(0)
    h = random.normal(size=(40, 3)) + 100  # far from 0: a difference of squares would cancel
    y, inlier = random.integers(0, 3, 40), random.random(40) < 0.7
    h[~inlier] = np.nan
    memory = rj.features.running_class_statistics(4, 3)
    step, state = jax.jit(memory.apply), memory.init()
    for i in range(0, 40, 8):
        statistics, state = step(state, jnp.float32(h[i : i + 8]), y[i : i + 8], inlier[i : i + 8])
    for k in range(3):
        own = h[inlier & (y == k)]
        np.testing.assert_allclose(statistics.means[k], own.mean(0), rtol=1e-6)
        np.testing.assert_allclose(statistics.covariances[k], np.cov(own.T), rtol=1e-3, atol=1e-3)
        assert float(statistics.counts[k]) == len(own)
    assert not np.any(statistics.covariances[3]) and float(statistics.counts[3]) == 0
