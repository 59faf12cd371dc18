"""ScheduledDropPath against its loop, the published rates, and its shape over depth and training."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj

STEPS = np.array([-3, 0, 1, 250, 999, 1000, 5000])
rate, rates = rj.schedules.scheduled_drop_path_rate, rj.schedules.scheduled_drop_path_rates


def reference(step, keep_prob, layer, num_layers, total_steps, version):
    keep = keep_prob
    if version in ("v2", "v3"):
        keep = 1 - (layer + 1) / num_layers * (1 - keep)
    if version in ("v1", "v3"):
        keep = 1 - min(1, max(step, 0) / total_steps) * (1 - keep)
    return 1 - keep


@pytest.mark.parametrize("version", ["v1", "v2", "v3"])
def test_equal_their_reference(x64, version):
    options = {"keep_prob": 0.7, "num_layers": 5, "total_steps": 1000, "version": version}
    want = [[reference(step, layer=layer, **options) for layer in range(5)] for step in STEPS]
    got = rates(STEPS, **options)
    assert got.dtype == jnp.float64
    np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-16)
    np.testing.assert_allclose(np.stack([rate(STEPS, layer=i, **options) for i in range(5)], -1), got, rtol=1e-14)


def test_published_rates():
    got = rates(250, keep_prob=0.7, num_layers=5, total_steps=1000)
    np.testing.assert_allclose(got, [0.015, 0.03, 0.045, 0.06, 0.075], rtol=1e-6)
    np.testing.assert_array_equal(rates(0, num_layers=20, total_steps=937_500), np.zeros(20))
    for step in (937_500, 2_000_000):
        last = rate(step, layer=19, num_layers=20, total_steps=937_500)
        assert last == rates(step, num_layers=20, total_steps=937_500)[-1] == np.float32(1) - np.float32(0.6)


def test_rates_grow_with_step_and_layer_until_the_end():
    got = np.asarray(rates(np.arange(0, 30), keep_prob=0.5, num_layers=6, total_steps=20))
    assert np.all(np.diff(got[:20], axis=0) > 0) and np.all(got[20:] == got[20]) and np.all(np.diff(got[1:], axis=1) > 0)
    assert np.all((got >= 0) & (got <= 0.5))


def test_v2_is_the_linear_rule_of_stochastic_depth():
    got = rates(7, keep_prob=0.5, num_layers=4, total_steps=100, version="v2")
    np.testing.assert_allclose(got, [0.5 * block / 4 for block in (1, 2, 3, 4)], rtol=1e-6)


def test_a_partial_is_a_schedule_and_the_keep_probability_may_be_one():
    schedule = functools.partial(rate, keep_prob=0.5, layer=1, num_layers=2, total_steps=4)
    layer = functools.partial(rj.layers.drop_path, rate=schedule)
    x = jnp.ones((400, 1))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(key, i):
        return jnp.mean(rj.at_step(layer, i)(key, x) == 0)

    shares = np.array([step(jax.random.key(i), i) for i in range(5)])
    assert shares[0] == 0 and np.all(np.abs(shares - 0.5 * np.arange(5) / 4) <= 5 * np.sqrt(0.25 / 400))
    falling = optax.linear_schedule(1.0, 0.5, 10)
    got = rates(jnp.arange(3), keep_prob=falling, num_layers=2, total_steps=10, version="v2")
    np.testing.assert_allclose(got, (1 - falling(jnp.arange(3)))[:, None] * np.array([0.5, 1]), atol=1e-7)
    value, slope = jax.jit(jax.value_and_grad(lambda keep: rate(5, keep_prob=keep, layer=0, num_layers=2, total_steps=10)))(0.6)
    np.testing.assert_allclose([value, slope], [0.1, -0.25], rtol=1e-6)
