"""The cross-entropy against a teacher: loops, its gradient, and the divergence that it belongs to."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
LOGITS, TEACHER = RNG.normal(size=(4, 5)), 2 * RNG.normal(size=(4, 5))
WHERE = np.array([True, True, False, True, True])


def softmax(x):
    e = np.exp(x - x.max())
    return e / e.sum()


def loop(z, t, temperature, classes):
    out = []
    for i in range(len(z)):
        q, p = softmax(t[i][classes] / temperature), softmax(z[i][classes] / temperature)
        out.append(-(temperature**2) * sum(a * np.log(b) for a, b in zip(q, p, strict=True)))
    return np.array(out)


def test_equals_the_loop_with_classes_on_any_axis(x64):
    fn = jax.jit(lambda z, t, temperature: rj.losses.teacher_cross_entropy(z, t, temperature=temperature))
    masked = jax.jit(lambda z, t, where: rj.losses.teacher_cross_entropy(z.T, t.T, temperature=3.0, axis=0, where=where))
    for temperature in (0.5, 1.0, 4.0):
        np.testing.assert_allclose(fn(LOGITS, TEACHER, temperature), loop(LOGITS, TEACHER, temperature, np.arange(5)), rtol=1e-12)
    want = loop(LOGITS, TEACHER, 3.0, np.flatnonzero(WHERE))
    np.testing.assert_allclose(masked(LOGITS, TEACHER, WHERE[:, None]), want, rtol=1e-12)


def test_gradient_is_that_of_the_divergence_and_keeps_its_size(x64):
    gradient = jax.jit(
        jax.grad(lambda z, temperature: jnp.sum(rj.losses.teacher_cross_entropy(z, TEACHER, temperature=temperature)))
    )
    for temperature in (1.0, 3.0):
        want = [temperature * (softmax(z / temperature) - softmax(t / temperature)) for z, t in zip(LOGITS, TEACHER, strict=True)]
        np.testing.assert_allclose(gradient(LOGITS, temperature), want, rtol=1e-10, atol=1e-14)
    centred = (LOGITS - TEACHER) - (LOGITS - TEACHER).mean(-1, keepdims=True)
    np.testing.assert_allclose(gradient(LOGITS, 1e5), centred / 5, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(gradient(TEACHER + 3.0, 2.0), 0, atol=1e-12)


def test_certain_teachers_and_missing_classes():
    one_hot = jnp.where(jnp.eye(3, dtype=bool), 0.0, -jnp.inf)
    cross_entropy = jax.jit(rj.losses.teacher_cross_entropy)
    loss = cross_entropy(jnp.array([[2.0, 1.0, -jnp.inf]] * 2), one_hot[:2])
    np.testing.assert_allclose(loss, [np.log1p(np.exp(-1)), 1 + np.log1p(np.exp(-1))], rtol=1e-5)
    nothing = cross_entropy(jnp.ones((2, 3)), one_hot[:2], where=jnp.zeros(3, bool))
    assert nothing.tolist() == [0, 0]
    wrong = cross_entropy(jnp.array([1.0, jnp.nan]), jnp.zeros(2))
    assert np.isnan(float(wrong)), "a diverged student is seen"
    with pytest.raises(ValueError, match=r"regjax\.losses\.teacher_cross_entropy: teacher_logits"):
        rj.losses.teacher_cross_entropy(jnp.ones((4, 3)), jnp.ones(3))
