"""Knowledge distillation: loops, its gradient and limits, and the cross-entropy that it belongs to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from tests.references import log_softmax

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(6, 5)), 2 * RNG.normal(size=(6, 5))
WHERE = RNG.random((6, 5)) < 0.6
WHERE[:, 1] = True


def loop(s, t, temperature, where=None):
    out = []
    for i in range(len(s)):
        present = range(s.shape[1]) if where is None else np.flatnonzero(where[i])
        log_q, log_p = (log_softmax(z[i] / temperature, None if where is None else where[i]) for z in (s, t))
        out.append(sum(np.exp(log_p[k]) * (log_p[k] - log_q[k]) for k in present))
    return np.array(out)


def test_equals_the_loop_its_gradient_and_the_limit_of_a_large_temperature(x64):
    @jax.jit
    def both(s, t, temperature):
        value = rj.losses.distillation(s, t, temperature=temperature)
        gradient = jax.grad(lambda s: jnp.sum(rj.losses.distillation(s, t, temperature=temperature)))(s)
        plain = rj.losses.distillation(s, t, temperature=temperature, scale_by_temperature=False)
        return value, gradient, plain, rj.losses.teacher_cross_entropy(s, t, temperature=temperature)

    for temperature in (0.5, 4.0, 20.0):
        value, gradient, plain, cross_entropy = both(STUDENT, TEACHER, temperature)
        want = loop(STUDENT, TEACHER, temperature)
        np.testing.assert_allclose(plain, want, rtol=1e-11)
        np.testing.assert_allclose(value, temperature**2 * want, rtol=1e-11)
        log_q, log_p = (np.array([log_softmax(z / temperature) for z in zs]) for zs in (STUDENT, TEACHER))
        np.testing.assert_allclose(gradient, temperature * (np.exp(log_q) - np.exp(log_p)), rtol=1e-10, atol=1e-14)
        entropy = -(np.exp(log_p) * log_p).sum(-1)
        np.testing.assert_allclose(cross_entropy - value, temperature**2 * entropy, rtol=1e-10)
    difference = STUDENT - TEACHER
    centred = difference - difference.mean(-1, keepdims=True)
    np.testing.assert_allclose(both(STUDENT, TEACHER, 1e4)[1], centred / 5, rtol=1e-3, atol=1e-4)
    assert np.abs(both(TEACHER, TEACHER + 7.0, 4.0)[1]).max() < 1e-14


def test_published_value_axis_and_classes(x64):
    student, teacher = jnp.array([2.0, 1.0, 0.0]), jnp.array([1.0, 3.0, 0.0])
    assert jax.jit(rj.losses.distillation)(student, teacher) == pytest.approx(0.881179, abs=5e-7)
    got = jax.jit(lambda s, t, where: rj.losses.distillation(s.T, t.T, temperature=3.0, axis=0, where=where.T))(
        STUDENT, TEACHER, WHERE
    )
    np.testing.assert_allclose(got, 9 * loop(STUDENT, TEACHER, 3.0, WHERE), rtol=1e-11, atol=1e-14)


def test_certain_networks_and_missing_classes():
    fn = jax.jit(jax.value_and_grad(lambda s, t, where: jnp.sum(rj.losses.distillation(s, t, temperature=1.0, where=where))))
    every, none = jnp.ones(3, bool), jnp.zeros(3, bool)
    certain = jnp.array([0.0, -jnp.inf, -jnp.inf])
    value, gradient = fn(jnp.array([1.0, 0.0, -jnp.inf]), certain, every)
    assert float(value) == pytest.approx(np.log1p(np.exp(-1)), rel=1e-6)
    np.testing.assert_allclose(gradient, [-0.268941, 0.268941, 0], atol=1e-6)
    assert fn(certain, jnp.zeros(3), every)[0] == jnp.inf, "what the student excludes and the teacher does not"
    value, gradient = fn(jnp.array([1.0, 1e30, 0.0]), jnp.array([1.0, 5.0, 0.0]), jnp.array([True, False, True]))
    assert value == 0 and not np.asarray(gradient).any(), "equal among the classes that exist"
    value, gradient = fn(jnp.ones(3), certain, none)
    assert value == 0 and not np.asarray(gradient).any()
    assert np.isnan(fn(jnp.array([jnp.nan, 0.0, 0.0]), jnp.zeros(3), every)[0]), "a diverged student is seen"
