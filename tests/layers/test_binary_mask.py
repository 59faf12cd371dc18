"""Binary masks: the threshold, the straight-through gradient, and learning which weights to keep."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj


def test_threshold_and_gradient():
    scores = jnp.array([0.01, 0.005, 0.0049, -1.0, 0.0051])
    mask = jax.jit(lambda scores, threshold: rj.layers.binary_mask_ste(scores, threshold=threshold))
    assert mask(scores, 5e-3).tolist() == [1, 0, 0, 0, 1]
    assert mask(scores, -2.0).tolist() == [1] * 5
    assert rj.layers.binary_mask_ste(jnp.full((3, 2), 0.01)).tolist() == [[1, 1]] * 3
    weights = jnp.arange(5.0)
    by_scores, by_threshold = jax.grad(lambda *at: jnp.sum(weights * mask(*at) ** 2), (0, 1))(scores, 5e-3)
    # The square's derivative is that at the mask; the mask's is 1.
    assert by_scores.tolist() == [0, 0, 0, 0, 8]
    assert float(by_threshold) == 0


def test_bfloat16_scores_meet_the_threshold_as_given():
    # In bfloat16 0.99999 is 1, and 1 > 1 is false.
    mask = rj.layers.binary_mask_ste(jnp.ones(2, jnp.bfloat16), threshold=0.99999)
    assert mask.dtype == jnp.bfloat16
    assert mask.tolist() == [1, 1]


def test_training_scores_switches_off_the_weights_that_harm():
    x = np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32)
    weights = jnp.array([1.0, -2.0, 3.0, 0.5])
    y = x @ np.array([1.0, 0.0, 3.0, 0.0], np.float32)

    @jax.jit
    def step(scores, _):
        loss = lambda scores: jnp.mean((x @ (weights * rj.layers.binary_mask_ste(scores)) - y) ** 2)
        return scores - 1e-3 * jax.grad(loss)(scores), None

    scores, _ = jax.lax.scan(step, jnp.full(4, 0.01), length=50)
    assert rj.layers.binary_mask_ste(scores).tolist() == [1, 0, 1, 0]
