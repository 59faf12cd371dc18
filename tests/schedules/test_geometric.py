"""Geometric steps, and warm restarts against the counter of the authors' code and against `adamwr`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj


def test_geometric_steps(x64):
    steps = np.arange(50)
    got = jax.jit(lambda eta, rho: rj.schedules.geometric_step(eta, rho=rho)(steps))(0.5, 0.9)
    want = [0.5]
    for _ in steps[1:]:
        want.append(want[-1] * 0.9)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert float(rj.schedules.geometric_step(0.5, rho=0.9)(-3)) == 0.5
    assert rj.schedules.geometric_step(0.5, rho=0.0)(np.arange(3)).tolist() == [0.5, 0.0, 0.0]
    assert rj.schedules.geometric_step(0.5, rho=1.0)(np.arange(3)).tolist() == [0.5] * 3


def counter(steps, steps_per_epoch, first_period, multiplier):
    """The multiplier of each step, by a fraction that grows and is set back."""
    done, period, next_restart, values = 0.0, first_period, first_period, []
    for step in range(steps):
        epoch = step // steps_per_epoch
        if done >= 1 - 1e-9 and epoch == next_restart:
            done, period = 0.0, period * multiplier
            next_restart = epoch + period
        done = min(done + 1 / (period * steps_per_epoch), 1.0)
        values.append(0.5 * (1 + np.cos(np.pi * done)))
    return np.array(values)


@pytest.mark.parametrize("multiplier", [1, 2, 3])
def test_warm_restarts_follow_the_counter(x64, multiplier):
    rate = rj.schedules.sgdr(0.7, steps_per_epoch=3, first_period_epochs=2, period_multiplier=multiplier, end_value=0.1)
    want = 0.1 + 0.6 * counter(80, 3, 2, multiplier)
    np.testing.assert_allclose(jax.jit(rate)(np.arange(80)), want, rtol=1e-6)
    assert float(rate(3)) == pytest.approx(want[3], rel=1e-6) and float(rate(-5)) == float(rate(0))


def test_it_is_the_multiplier_of_adamwr():
    params, grads = {"kernel": jnp.ones((2, 2))}, {"kernel": jnp.full((2, 2), 0.3)}
    options = dict(steps_per_epoch=2, first_period_epochs=1)
    whole = rj.gradients.adamwr(0.1, normalized_weight_decay=0.0, **options)
    parts = rj.gradients.adamw_decoupled(0.1, weight_decay=0.0, schedule=rj.schedules.sgdr(1.0, **options))
    states = [tx.init(params) for tx in (whole, parts)]
    for _ in range(7):
        (a, states[0]), (b, states[1]) = (tx.update(grads, s, params) for tx, s in zip((whole, parts), states, strict=True))
        np.testing.assert_allclose(a["kernel"], b["kernel"], rtol=1e-5, atol=1e-7)
