"""Early and late dropout against loops and the published values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj

STEPS = np.arange(-2, 15)


def early(rate, cutoff, step, decay):
    step = max(step, 0)
    if step >= cutoff:
        return 0.0
    return rate if decay == "constant" or cutoff == 1 else rate * (1 - step / (cutoff - 1))


@pytest.mark.parametrize("cutoff", [0, 1, 2, 7])
def test_equal_their_references(x64, cutoff):
    for decay in ("linear", "constant"):
        got = rj.schedules.early_dropout(0.3, cutoff_steps=cutoff, decay=decay)(STEPS)
        np.testing.assert_allclose(got, [early(0.3, cutoff, t, decay) for t in STEPS], rtol=1e-14)
        assert got.dtype == jnp.float64
    late = rj.schedules.late_dropout(0.3, cutoff_steps=cutoff)(STEPS)
    np.testing.assert_array_equal(late, [0.0 if max(t, 0) < cutoff else 0.3 for t in STEPS])
    np.testing.assert_array_equal(rj.schedules.early_dropout(0.3, cutoff_steps=cutoff, decay="constant")(STEPS) + late, 0.3)


def test_published_values():
    rate = rj.schedules.early_dropout(0.1, cutoff_steps=5)
    np.testing.assert_allclose([rate(t) for t in range(7)], [0.1, 0.075, 0.05, 0.025, 0, 0, 0], rtol=1e-6)
    assert rate(0) == np.float32(0.1)
    assert rate(4) == 0
    # numpy.linspace, as the authors write it.
    np.testing.assert_allclose(rate(np.arange(5)), np.linspace(0.1, 0, 5), rtol=1e-6)


def test_dropout_schedule_is_its_named_forms():
    make = lambda mode, **options: rj.schedules.dropout_schedule(0.3, total_steps=12, mode=mode, **options)(STEPS)
    np.testing.assert_array_equal(make("standard"), np.full(17, 0.3, np.float32))
    np.testing.assert_array_equal(make("early", cutoff_steps=5), rj.schedules.early_dropout(0.3, cutoff_steps=5)(STEPS))
    np.testing.assert_array_equal(make("late", cutoff_steps=5), rj.schedules.late_dropout(0.3, cutoff_steps=5)(STEPS))
    constant = rj.schedules.early_dropout(0.3, cutoff_steps=5, decay="constant")(STEPS)
    np.testing.assert_array_equal(make("early", cutoff_steps=5, decay="constant"), constant)
    np.testing.assert_array_equal(make("late"), rj.schedules.late_dropout(0.3, cutoff_steps=2)(STEPS))


def test_a_rate_may_be_traced_or_a_schedule():
    ramp = optax.linear_schedule(0.0, 0.4, 10)
    np.testing.assert_allclose(rj.schedules.late_dropout(ramp, cutoff_steps=3)(STEPS[4:]), [0, *map(ramp, range(3, 15))])
    total = lambda rate: rj.schedules.early_dropout(rate, cutoff_steps=5)(jnp.arange(10)).sum()
    value, slope = jax.jit(jax.value_and_grad(total))(0.2)
    np.testing.assert_allclose([value, slope], [0.5, 2.5], rtol=1e-6)


def test_inside_jit_and_scan_with_traced_steps():
    rate = rj.schedules.early_dropout(0.1, cutoff_steps=5)
    _, rates = jax.lax.scan(lambda step, _: (step + 1, rate(step)), jnp.zeros((), jnp.int32), length=8)
    np.testing.assert_array_equal(rates, rate(jnp.arange(8)))
    np.testing.assert_array_equal(jax.vmap(rate)(jnp.arange(8)), rates)
    assert rates.dtype == jnp.float32
