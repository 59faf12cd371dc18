"""Calibrated stacking against the published example and its limits."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj

SCORES = np.array(
    [
        [0.9, 0.1, 0.3, 0.2],
        [0.2, 0.7, 0.1, 0.4],
        [0.6, 0.3, 0.56, 0.1],
        [0.5, 0.1, 0.45, 0.2],
        [0.3, 0.4, 0.5, 0.2],
        [0.2, 0.45, 0.1, 0.6],
    ]
)
SEEN = np.array([True, True, False, False])


def test_published_predictions_and_limits(x64):
    predict = jax.jit(lambda gamma: rj.losses.calibrated_stacking(SCORES, SEEN, gamma).argmax(-1))
    np.testing.assert_array_equal(predict(0.2), [0, 1, 2, 2, 2, 3])
    np.testing.assert_array_equal(predict(0.0), [0, 1, 0, 0, 2, 3])
    np.testing.assert_array_equal(predict(1e3), [2, 3, 2, 2, 2, 3])
    np.testing.assert_array_equal(predict(-1e3), SCORES[:, :2].argmax(1))


def test_values_gradients_and_axis(x64):
    scores = SCORES.reshape(2, 3, 4)
    got = rj.losses.calibrated_stacking(np.moveaxis(scores, 2, 1), SEEN, 0.25, axis=1)
    np.testing.assert_allclose(got, np.moveaxis(scores - 0.25 * SEEN, 2, 1), rtol=1e-15)
    weights = np.random.default_rng(0).normal(size=SCORES.shape)
    total = lambda s, g: jnp.sum(weights * rj.losses.calibrated_stacking(s, SEEN, g))
    by_scores, by_gamma = jax.jit(jax.grad(total, argnums=(0, 1)))(SCORES, 0.25)
    np.testing.assert_array_equal(by_scores, weights)
    np.testing.assert_allclose(by_gamma, -weights[:, SEEN].sum(), rtol=1e-12)
