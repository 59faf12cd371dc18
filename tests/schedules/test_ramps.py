"""Ramps against loops and closed values."""

import math

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj


def test_ps_kd_alpha(x64):
    epochs = np.arange(-3, 14)
    want = [0.8 * min(max((e + 1) / 10, 0), 1) for e in epochs]
    got = rj.schedules.ps_kd_alpha(epochs, 10)
    np.testing.assert_allclose(got, want, rtol=1e-14)
    assert got[3 + 9] == 0.8
    np.testing.assert_array_equal(rj.schedules.ps_kd_alpha(epochs, 10, alpha_final=0.0), 0)
    np.testing.assert_allclose(jax.jit(lambda e, a: rj.schedules.ps_kd_alpha(e, 10, alpha_final=a))(4, 0.5), 0.25)


def test_sigmoid_rampup(x64):
    def reference(step, length):
        return 1.0 if length == 0 else math.exp(-5 * (1 - min(max(step / length, 0), 1)) ** 2)

    steps = np.arange(-2, 12)
    for length in (0, 1, 7, 2.5):
        want = [reference(t, length) for t in steps]
        np.testing.assert_allclose(rj.schedules.sigmoid_rampup(steps, length), want, rtol=1e-14)
    assert float(rj.schedules.sigmoid_rampup(0, 10)) == math.exp(-5)
    ramp = jax.jit(rj.schedules.sigmoid_rampup)
    assert ramp(3, 0) == 1
    np.testing.assert_allclose(ramp(3, 7), reference(3, 7), rtol=1e-14)


def test_dtype_and_gradients():
    assert rj.schedules.ps_kd_alpha(jnp.arange(3), 10).dtype == jnp.float32
    assert rj.schedules.sigmoid_rampup(jnp.arange(3), 10).dtype == jnp.float32
    # The gradient is finite where the ramp has no length, and zero once it is complete.
    assert jax.grad(rj.schedules.sigmoid_rampup)(3.0, 0.0) == 0
    assert jax.grad(rj.schedules.sigmoid_rampup)(30.0, 10.0) == 0
