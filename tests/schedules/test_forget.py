"""The forget rate against its loop and the published values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

rate = jax.jit(rj.schedules.forget_rate, static_argnames="num_gradual")


def reference(epochs, forget_rate, num_gradual, exponent):
    table = np.full(max(epochs) + 1, forget_rate, np.float64)
    table[:num_gradual] = np.linspace(0, forget_rate**exponent, num_gradual)[: len(table)]
    return table[np.asarray(epochs)]


@pytest.mark.parametrize("num_gradual", [0, 1, 2, 5, 30])
def test_equal_its_reference(x64, num_gradual):
    epochs = np.arange(20)
    for exponent in (0.5, 1.0, 2.0):
        got = rate(epochs, forget_rate=0.36, num_gradual=num_gradual, exponent=exponent)
        np.testing.assert_allclose(got, reference(epochs, 0.36, num_gradual, exponent), rtol=1e-12)


def test_published_values():
    got = rate(np.arange(7), forget_rate=0.4, num_gradual=5)
    np.testing.assert_allclose(got, [0, 0.1, 0.2, 0.3, 0.4, 0.4, 0.4], rtol=1e-6)
    got = rate(np.arange(7), forget_rate=0.4, num_gradual=5, exponent=2)
    np.testing.assert_allclose(got, [0, 0.04, 0.08, 0.12, 0.16, 0.4, 0.4], rtol=1e-6)
    got = rj.schedules.forget_rate(np.array([-3, 10]), forget_rate=0.4)
    assert got.tolist() == [0, np.float32(0.4)]


def test_its_values_leave_whole_numbers_of_examples():
    """Of a batch of 90 and a ramp to 0.9 in 10 epochs, each epoch leaves out nine examples more, in float32 too."""
    z = jnp.asarray(np.random.default_rng(0).normal(size=(90, 2)), jnp.float32)
    dropped = lambda z1, epoch: rj.losses.co_teaching(
        z1, z, jnp.zeros(90, int), forget_rate=rate(epoch, forget_rate=0.9, num_gradual=10)
    )[0]
    gradient = jax.jit(jax.vmap(jax.grad(dropped), (None, 0)))(z, jnp.arange(12))
    np.testing.assert_array_equal(jnp.any(gradient != 0, axis=2).sum(1), [90, 81, 72, 63, 54, 45, 36, 27, 18, 9, 9, 9])
