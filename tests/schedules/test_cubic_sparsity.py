"""The cubic schedule of sparsity: its values, and where it begins and ends."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj

STEPS = np.arange(20)


def reference(step, target, start, end):
    p = 1.0 if end == start else min(max(step + 1 - start, 0), end - start) / (end - start)
    if end == start and step < start:
        p = 0.0
    return target * (1 - (1 - p) ** 3)


def test_values_equal_the_formula():
    for target, start, end in ((0.8, 0, 4), (0.95, 3, 10), (0.5, 7, 7), (1.0, 0, 1), (0.0, 2, 9)):
        schedule = rj.schedules.cubic_sparsity(target, start=start, end=end)
        want = [reference(step, target, start, end) for step in STEPS]
        np.testing.assert_allclose(jax.jit(schedule)(STEPS), want, rtol=2e-6, atol=1e-7)
    at = rj.schedules.cubic_sparsity(0.8, start=0, end=4)
    np.testing.assert_allclose([at(0), at(1), at(3)], [0.4625, 0.7, 0.8], rtol=1e-6)
    traced = jax.jit(lambda target: rj.schedules.cubic_sparsity(target, start=0, end=4)(1))(0.8)
    assert traced.dtype == jnp.float32
    np.testing.assert_allclose(traced, 0.7, rtol=1e-6)
