"""The guidance of subnetworks: the loop, its limits, axes and classes."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.references import log_softmax, soft_labels

RNG = np.random.default_rng(0)
Z, T = RNG.normal(size=(6, 5)), 2 * RNG.normal(size=(6, 5))
LABELS = RNG.integers(0, 5, size=6)
WHERE = RNG.random((6, 5)) < 0.6
WHERE[np.arange(6), LABELS] = True
guidance = jax.jit(rj.losses.group_progressive_guidance, static_argnames="axis")


def loop(z, t, labels, alpha, temperature, where=None):
    losses = []
    for i in range(len(z)):
        mask = None if where is None else where[i]
        present = range(z.shape[1]) if mask is None else np.flatnonzero(mask)
        log_q, log_p = (log_softmax(x[i] / temperature, mask) for x in (z, t))
        divergence = sum(np.exp(log_p[k]) * (log_p[k] - log_q[k]) for k in present)
        plain = log_softmax(z[i], mask)
        y = np.eye(z.shape[1])[labels[i]] if labels.ndim == 1 else labels[i]
        cross = -sum(y[k] * plain[k] for k in present)
        losses.append(alpha * temperature**2 * divergence + (1 - alpha) * cross)
    return np.array(losses)


def test_equals_the_loop_and_its_two_parts(x64):
    for alpha, temperature in ((0.5, 1.0), (0.3, 4.0)):
        got = guidance(Z, T, LABELS, alpha=alpha, temperature=temperature)
        np.testing.assert_allclose(got, loop(Z, T, LABELS, alpha, temperature), rtol=1e-11)
    got = guidance(Z, T, LABELS, alpha=0.3, temperature=4.0, where=WHERE)
    np.testing.assert_allclose(got, loop(Z, T, LABELS, 0.3, 4.0, WHERE), rtol=1e-11, atol=1e-14)
    soft = soft_labels(RNG, 6, 5)
    np.testing.assert_allclose(guidance(Z.T, T.T, soft.T, axis=0), loop(Z, T, soft, 0.5, 1.0), rtol=1e-11)
    distilled = rj.losses.distillation(Z, T, temperature=4.0)
    np.testing.assert_allclose(guidance(Z, T, LABELS, alpha=1.0, temperature=4.0), distilled, rtol=1e-12)
    np.testing.assert_allclose(guidance(Z, T, LABELS, alpha=0.0), loop(Z, T, LABELS, 0.0, 1.0), rtol=1e-12)


def test_gradient_is_the_closed_form_and_stops_at_the_teacher(x64):
    fn = jax.jit(
        jax.grad(lambda z, t: jnp.sum(rj.losses.group_progressive_guidance(z, t, LABELS, alpha=0.3, temperature=2.0)), (0, 1))
    )
    student, teacher = fn(Z, T)
    soft = lambda x: np.exp([log_softmax(row) for row in x])
    want = 0.3 * 2.0 * (soft(Z / 2) - soft(T / 2)) + 0.7 * (soft(Z) - np.eye(5)[LABELS])
    np.testing.assert_allclose(student, want, rtol=1e-10, atol=1e-13)
    assert not teacher.any()


def test_shares_of_zero_ignore_infinite_parts():
    excluded, whole = jnp.array([0.0, -jnp.inf, 0.0]), jnp.zeros(3)
    assert np.isinf(guidance(excluded, whole, jnp.array(0)))
    np.testing.assert_allclose(guidance(excluded, whole, jnp.array(0), alpha=0.0), np.log(2), rtol=1e-6)
    assert guidance(excluded, excluded, jnp.array(1), alpha=1.0) == 0
