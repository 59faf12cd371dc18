"""The sum over exits against the published values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

DEPTHS = (4, 9, 18, 27, 36)
loss = rj.losses.multi_exit_loss


def test_published_values(x64):
    @jax.jit
    def run(ones, falling):
        return (
            jax.value_and_grad(lambda losses: loss(losses, DEPTHS))(ones),
            (loss(falling, DEPTHS), loss(falling, DEPTHS, weights="uniform"), loss(ones, DEPTHS, total_depth=72)),
            loss(0.3 * ones[:1], [36]),
        )

    (value, weights), several, alone = run(np.ones(5), np.array([5.0, 4.0, 3.0, 2.0, 1.0]))
    assert value == pytest.approx(2.611111, abs=5e-7)
    np.testing.assert_allclose(weights, [1 / 9, 0.25, 0.5, 0.75, 1.0], rtol=1e-12)
    np.testing.assert_allclose(several, [5.555556, 15, 2.611111 / 2], atol=5e-7)
    assert alone == 0.3  # one exit at full depth


def test_equals_the_loop_for_losses_per_example_and_traced_depths_and_weights(x64):
    rng = np.random.default_rng(0)
    losses, weights = rng.random((3, 4, 2)), np.array([0.5, 0.0, 2.0])
    run = jax.jit(lambda losses, depths, w: (loss(losses, depths), loss(losses, depths, weights=w)))
    got = run(losses, jnp.array([2, 4, 6]), weights)
    want = [np.zeros((4, 2)), np.zeros((4, 2))]
    for e in range(3):
        want[0] += (2 * e + 2) / 6 * losses[e]
        want[1] += weights[e] * losses[e]
    np.testing.assert_allclose(got, want, rtol=1e-12)
    losses[1] = np.inf  # an exit of weight 0
    np.testing.assert_allclose(run(losses, jnp.array([2, 4, 6]), weights)[1], want[1], rtol=1e-12)
