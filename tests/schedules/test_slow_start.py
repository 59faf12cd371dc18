"""The learning rate of adversarial fine-tuning against loops and closed values."""

import math

import jax
import numpy as np
import pytest

import regjax as rj

rate = rj.schedules.slow_start_fast_decay


def reference(t, total, peak, start, final, warm, decay):
    t, warm = max(t, 0), warm * total
    if t >= total:
        return final
    if t < warm:
        return start + (peak - start) * t / warm
    f = (t - warm) / (total - warm)
    if decay == "exponential":
        return peak * (final / peak) ** f
    return peak + (final - peak) * (f if decay == "linear" else (1 - math.cos(math.pi * f)) / 2)


@pytest.mark.parametrize("decay", ["exponential", "cosine", "linear"])
def test_equals_its_loop(x64, decay):
    steps = np.arange(-2, 25)
    for total, warm in ((20, 0.5), (11, 0.3), (7, 0.0), (9, 1.0), (1, 0.5)):
        got = rate(total_steps=total, peak_value=0.3, start_value=0.01, final_value=0.002, warm_fraction=warm, decay=decay)(steps)
        want = [reference(t, total, 0.3, 0.01, 0.002, warm, decay) for t in steps]
        np.testing.assert_allclose(got, want, rtol=1e-10)
        top = np.argmax(got)
        assert np.all(np.diff(got)[:top] >= 0) and np.all(np.diff(got)[top:] <= 0)


def test_published_values():
    values = rate(total_steps=10, peak_value=0.01)(np.array([0, 5, 7.5, 10, 100]))
    np.testing.assert_allclose(values, [1e-4, 1e-2, 3.162278e-4, 1e-5, 1e-5], rtol=1e-5)
    assert values.dtype == np.float32


def test_limits_and_traced_values():
    for decay in ("exponential", "cosine", "linear"):
        constant = rate(total_steps=10, peak_value=0.3, start_value=0.3, final_value=0.3, decay=decay)(np.arange(12))
        np.testing.assert_allclose(constant, np.float32(0.3), rtol=2e-7)
        np.testing.assert_array_equal(rate(total_steps=10, peak_value=0.0, decay=decay)(np.arange(12)), 0)
    at = jax.jit(lambda peak, step: rate(total_steps=10, peak_value=peak)(step))
    np.testing.assert_allclose([at(2.0, 5), at(4.0, 5), at(4.0, 0)], [2.0, 4.0, 0.04], rtol=1e-6)
