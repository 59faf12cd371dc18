"""The Jensen-Shannon consistency against a loop and published values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.references import log_softmax

# The tests compile much and run little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)
LOSS = rj.losses.jensen_shannon_consistency


def divergence(rows, where=None):
    """Of three logit vectors."""
    logs = [log_softmax(row, where) for row in rows]
    ps = [np.exp(log) for log in logs]
    total = 0.0
    for p, log in zip(ps, logs, strict=True):
        for k in range(len(p)):
            mean = min(max((ps[0][k] + ps[1][k] + ps[2][k]) / 3, 1e-7), 1)
            if p[k] > 0:
                total += p[k] * (log[k] - np.log(mean))
    return total / 3


def test_equals_the_loop_on_any_axis_with_missing_classes(x64):
    views = 4 * RNG.normal(size=(3, 2, 5, 3))
    where = np.array([True, False, True, True, True])[:, None]
    for mask in (None, where):
        got = jit(functools.partial(LOSS, axis=1, weight=2.0))(*views, where=mask)
        for b in range(2):
            for j in range(3):
                want = 2 * divergence(views[:, b, :, j], None if mask is None else where[:, 0])
                np.testing.assert_allclose(got[b, j], want, rtol=1e-10)


def test_published_value():
    views = jnp.log(jnp.array([[0.5, 0.5], [0.9, 0.1], [0.2, 0.8]]))
    np.testing.assert_allclose(LOSS(*views, weight=1.0), 0.18471245, rtol=1e-5)
    np.testing.assert_allclose(LOSS(*views), 2.21654940, rtol=1e-5)


def test_equal_views_and_disjoint_views():
    logits = jnp.asarray(5 * RNG.normal(size=(4, 6)), jnp.float32)
    loss = jit(jax.value_and_grad(lambda *z: LOSS(*z).sum()))
    value, gradient = loss(logits, logits + 3, logits - 2)
    np.testing.assert_allclose(value, 0, atol=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
    apart = 1e4 * jnp.eye(3)[:, None]
    np.testing.assert_allclose(loss(*apart)[0], 12 * np.log(3), rtol=1e-6)


def test_extreme_logits_have_finite_gradients_to_all_views():
    views = jnp.array([[1e4, 0.0, -1e4], [-1e4, 0.0, 1e4], [-jnp.inf, 2.0, 1.0]])
    value, gradients = jit(jax.value_and_grad(lambda *z: LOSS(*z), argnums=(0, 1, 2)))(*views)
    assert np.isfinite(value)
    assert all(np.all(np.isfinite(g)) for g in gradients)
    assert np.any(gradients[2])
    nothing = jit(jax.value_and_grad(lambda z: LOSS(z, z, z, where=jnp.zeros(3, bool))))(jnp.ones(3))
    assert nothing[0] == 0 and not np.any(nothing[1])


def test_gradient_reaches_every_view():
    views = jnp.asarray(RNG.normal(size=(3, 5)), jnp.float32)
    gradients = jit(jax.grad(lambda *z: LOSS(*z), argnums=(0, 1, 2)))(*views)
    for g in gradients:
        assert np.abs(g).max() > 1e-2
        np.testing.assert_allclose(g.sum(), 0, atol=1e-5)
