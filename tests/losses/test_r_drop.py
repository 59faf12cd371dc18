"""R-Drop: loops, gradients through both passes, and passes that exclude a class."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from tests.references import log_softmax, soft_labels

RNG = np.random.default_rng(0)
ONE, TWO = RNG.normal(size=(6, 5)), RNG.normal(size=(6, 5))
LABELS = RNG.integers(0, 5, size=6)
WHERE = RNG.random((6, 5)) < 0.6
WHERE[np.arange(6), LABELS] = True


def loop(one, two, labels, weight, where=None):
    """The loss and the symmetric divergence; labels are ids or probabilities."""
    losses, divergences = [], []
    for i in range(len(one)):
        present = range(one.shape[1]) if where is None else np.flatnonzero(where[i])
        log_p, log_q = (log_softmax(z[i], None if where is None else where[i]) for z in (one, two))
        y = np.eye(one.shape[1])[labels[i]] if labels.ndim == 1 else labels[i]
        forward = sum(np.exp(log_p[k]) * (log_p[k] - log_q[k]) for k in present)
        backward = sum(np.exp(log_q[k]) * (log_q[k] - log_p[k]) for k in present)
        entropy = -sum(y[k] * (log_p[k] + log_q[k]) / 2 for k in present)
        divergences.append((forward + backward) / 2)
        losses.append(entropy + weight * divergences[-1])
    return np.array(losses), np.array(divergences)


def test_equal_the_loops(x64):
    fn = jax.jit(
        lambda a, b, y, weight, **kw: (rj.losses.r_drop(a, b, y, weight=weight, **kw), rj.losses.symmetric_kl(a, b, **kw))
    )
    for weight in (0.0, 0.3, 5.0):
        for got, want in zip(fn(ONE, TWO, LABELS, weight), loop(ONE, TWO, LABELS, weight), strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-11)
    for got, want in zip(fn(ONE, TWO, LABELS, 1.0, where=WHERE), loop(ONE, TWO, LABELS, 1.0, WHERE), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-11, atol=1e-14)
    soft = soft_labels(RNG, 6, 5)
    got = jax.jit(lambda a, b, y: rj.losses.r_drop(a, b, y, axis=0))(ONE.T, TWO.T, soft.T)
    np.testing.assert_allclose(got, loop(ONE, TWO, soft, 1.0)[0], rtol=1e-11)
    one, two = jnp.array([2.0, 1.0, 0.0]), jnp.array([1.0, 3.0, 0.0])
    assert fn(one, two, jnp.array(0), 1.0)[1] == pytest.approx(0.874589, abs=5e-7)


def test_divergence_is_symmetric_positive_and_pulls_both_passes_together(x64):
    fn = jax.jit(jax.value_and_grad(lambda a, b: jnp.sum(rj.losses.symmetric_kl(a, b)), argnums=(0, 1)))
    value, (first, second) = fn(ONE, TWO)
    swapped, (other_second, other_first) = fn(TWO, ONE)
    assert value == pytest.approx(float(swapped), rel=1e-12) and value > 0
    np.testing.assert_allclose(first, other_first, rtol=1e-11, atol=1e-15)
    np.testing.assert_allclose(second, other_second, rtol=1e-11, atol=1e-15)
    p, q = (np.exp([log_softmax(z) for z in zs]) for zs in (ONE, TWO))
    ratio = np.log(p / q)
    np.testing.assert_allclose(first, (p - q + p * (ratio - (p * ratio).sum(-1, keepdims=True))) / 2, rtol=1e-9, atol=1e-14)
    same, gradients = fn(ONE, ONE + 3.0)
    assert abs(same) < 1e-14 and max(np.abs(g).max() for g in gradients) < 1e-14


def test_a_class_that_one_pass_excludes_or_both(x64):
    fn = jax.jit(jax.value_and_grad(lambda a, b, weight: rj.losses.r_drop(a, b, jnp.array(0), weight=weight), argnums=(0, 1)))
    gone = jnp.array([1.0, 0.0, -jnp.inf])
    value, gradients = fn(gone, 2 * gone, 1.0)
    two, _ = fn(jnp.array([1.0, 0.0, -1e9]), jnp.array([2.0, 0.0, -1e9]), 1.0)
    assert value == pytest.approx(float(two), rel=1e-12)
    assert all(np.isfinite(g).all() for g in gradients)
    assert fn(gone, jnp.zeros(3), 1.0)[0] == jnp.inf
    value, gradients = fn(gone, jnp.zeros(3), 0.0)
    assert value == pytest.approx((np.log1p(np.exp(-1)) + np.log(3)) / 2), "at weight 0 an infinite divergence counts for nothing"
