"""Class-relation distillation: loops, the gradient through its weights, and batches far from the known classes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from tests.references import log_softmax

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(6, 5)), RNG.normal(size=(6, 3))
WHERE = np.array([True, True, False, True, False, True])


def loop(s, t, known, t0, td, where):
    tau = t0 * td
    mass, entropy = [], []
    for z, teacher in zip(s, t, strict=True):
        log_q, p = log_softmax(z[:known] / tau), np.exp(log_softmax(teacher / tau))
        entropy.append(-sum(p[k] * log_q[k] for k in range(known)))
        mass.append(sum(np.exp(log_softmax(z / tau))[:known]))
    mean = sum(m for m, w in zip(mass, where, strict=True) if w) / sum(where)
    return np.array([td**2 * m / mean * e if w else 0.0 for m, e, w in zip(mass, entropy, where, strict=True)])


@functools.partial(jax.jit, static_argnames=("num_known", "axis"))
def relation(s, t, t0=0.1, td=4.0, where=None, num_known=3, axis=-1):
    return rj.losses.class_relation_distillation(
        s, t, num_known=num_known, temperature=t0, distill_temperature=td, where=where, axis=axis
    )


def test_equals_the_loop_on_any_axis(x64):
    every = np.ones(6, bool)
    for numbers in ((0.1, 4.0), (1.0, 2.0)):
        for where in (every, WHERE):
            got = relation(STUDENT, TEACHER, *numbers, where)
            np.testing.assert_allclose(got, loop(STUDENT, TEACHER, 3, *numbers, where), rtol=1e-10)
    turned = relation(STUDENT.T, TEACHER.T, axis=0)
    np.testing.assert_allclose(turned, loop(STUDENT, TEACHER, 3, 0.1, 4.0, every), rtol=1e-10)


def test_published_values_and_weights_of_one(x64):
    student, teacher = jnp.array([[0.2, 0.1, 0.0, 0.3], [0.5, -0.5, 0.1, 0.1]]), jnp.array([[0.3, 0.1], [0.0, 0.4]])
    both = np.array([True, True])
    published = relation(student, teacher, where=both, num_known=2)
    np.testing.assert_allclose(published, [9.628020, 33.625157], atol=5e-6)
    # One example, and no novel class: the cross-entropy times 16 at temperature 0.4.
    plain = []
    for s, t in zip(student[:, :2] / 0.4, teacher / 0.4, strict=True):
        plain.append(-16 * (np.exp(log_softmax(t)) * log_softmax(s)).sum())
    np.testing.assert_allclose(relation(student[:, :2], teacher, num_known=2), plain, rtol=1e-12)
    for i in range(2):
        alone = relation(student, teacher, where=np.arange(2) == i, num_known=2)
        assert alone[i] == pytest.approx(plain[i], rel=1e-12) and alone[1 - i] == 0
    np.testing.assert_allclose(relation(student[:1], teacher[:1], num_known=2), plain[:1], rtol=1e-12)


def test_gradient_flows_through_the_weights_and_their_mean(x64):
    def direct(s):
        q, p = jax.nn.log_softmax(s[:, :3] / 0.4), jax.nn.softmax(TEACHER / 0.4)
        w = jnp.sum(jax.nn.softmax(s / 0.4)[:, :3], axis=-1)
        return jnp.sum(16 * WHERE * w / (jnp.sum(w * WHERE) / jnp.sum(WHERE)) * -jnp.sum(p * q, axis=-1) * jnp.arange(1.0, 7.0))

    def ours(s):
        return jnp.sum(jnp.arange(1.0, 7.0) * relation(s, TEACHER, where=WHERE))

    got, want = jax.jit(lambda s: (jax.grad(ours)(s), jax.grad(direct)(s)))(STUDENT)
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
    assert not np.asarray(got)[~WHERE].any()


def test_weights_that_underflow_keep_their_ratios():
    fn = jax.jit(jax.value_and_grad(lambda s: (lambda v: (jnp.sum(v), v))(relation(s, TEACHER)), has_aux=True))
    near, far = np.array(STUDENT, np.float32), np.array(STUDENT, np.float32)
    # The novel logits lead everywhere; a further lead of them all scales every w alike and leaves the loss.
    near[:, 3:] += 30
    far[:, 3:] += 300
    (_, a), _ = fn(near)
    (_, b), gradient = fn(far)
    np.testing.assert_allclose(a, b, rtol=2e-3)
    assert np.isfinite(gradient).all() and np.asarray(gradient).any()
    with pytest.raises(ValueError, match=r"regjax\.losses\.class_relation_distillation: num_known"):
        rj.losses.class_relation_distillation(STUDENT, TEACHER, num_known=6)
