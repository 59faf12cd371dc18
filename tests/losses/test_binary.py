"""Binary cross-entropy of a softmax against a loop, and its singular points."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
LOGITS, SOFT = 3 * RNG.normal(size=(6, 4)), RNG.dirichlet(np.ones(4), size=6)
loss_fn = jax.jit(rj.losses.softmax_binary_cross_entropy, static_argnames="axis")


def reference(logits, target, exists=None):
    exists = [True] * len(logits) if exists is None else exists
    total = sum(math.exp(z) for z, e in zip(logits, exists, strict=True) if e)
    loss = 0.0
    for z, t, e in zip(logits, target, exists, strict=True):
        if e:
            p = math.exp(z) / total
            loss -= t * math.log(p) + (1 - t) * math.log(1 - p)
    return loss / sum(exists)


def test_is_the_loop_with_its_gradient(x64):
    ids = np.array([0, 1, 2, 3, 1, 0])
    where = np.array([[True, True, False, True]] * 3 + [[True, False, True, True]] * 3)
    np.testing.assert_allclose(loss_fn(LOGITS, SOFT), [reference(*row) for row in zip(LOGITS, SOFT, strict=True)], rtol=1e-12)
    np.testing.assert_allclose(loss_fn(LOGITS, ids), loss_fn(LOGITS, np.eye(4)[ids]), rtol=1e-12)
    np.testing.assert_allclose(loss_fn(LOGITS.T, SOFT.T, axis=0), loss_fn(LOGITS, SOFT), rtol=1e-12)
    want = [reference(*row) for row in zip(LOGITS, SOFT, where, strict=True)]
    np.testing.assert_allclose(loss_fn(LOGITS, SOFT, where=where), want, rtol=1e-12)
    # sum_k (dL/dp_k) p_k (1[k = j] - p_j) with dL/dp = (p - t) / (K p (1 - p)).
    p = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
    slope = (p - SOFT) / (4 * p * (1 - p))
    gradient = p * (slope - (slope * p).sum(1, keepdims=True))
    np.testing.assert_allclose(jax.grad(lambda z: loss_fn(z, SOFT).sum())(jnp.asarray(LOGITS)), gradient, rtol=1e-9, atol=1e-13)


def test_published_value_and_the_plain_cross_entropy_beside_it():
    logits, target = jnp.array([2.0, 0.0, -1.0]), jnp.array([0.25, 0.75, 0.0])
    assert float(loss_fn(logits, target)) == pytest.approx(1.0451723, rel=1e-6)
    assert float(rj.losses.label_smoothing(logits, target, alpha=0.0)) == pytest.approx(1.6698460, rel=1e-6)


def test_sure_predictions_keep_digits_and_gradients():
    # With 1 - p = 2 exp(-30) rounded to 0 the loss of a sure mistake would be cut, and its gradient lost.
    value, gradient = jax.value_and_grad(loss_fn)(jnp.array([30.0, 0.0, 0.0]), jnp.array(1))
    log_rest = math.log(2) - 30
    assert float(value) == pytest.approx((30 - log_rest) / 3, rel=1e-5)
    np.testing.assert_allclose(gradient, [2 / 3, -1 / 2, -1 / 6], rtol=1e-5)
    cases = (
        ([1e4, -1e4, 0.0], [0.0, 1.0, 0.0], 1e4),
        ([1e4, -1e4, 0.0], [1.0, 0.0, 0.0], 0.0),
        ([-np.inf, 0.0, -1e4], [1.0, 0.0, 0.0], (100 + 1e4) / 3),
        ([-np.inf, 0.0, 0.0], [0.0, 1.0, 0.0], 2 * math.log(2) / 3),
        ([-np.inf] * 3, [1.0, 0.0, 0.0], 100 / 3),
    )
    logits, labels, want = (jnp.array(column) for column in zip(*cases, strict=True))
    value, gradient = loss_fn(logits, labels), jax.grad(lambda z: loss_fn(z, labels).sum())(logits)
    np.testing.assert_allclose(value, want, rtol=1e-5, atol=1e-6)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_allclose(loss_fn(jnp.array([[5.0], [5.0]]), jnp.array([[1.0], [0.5]])), [0.0, 50.0])
    assert float(loss_fn(jnp.ones(3), jnp.array(1), where=jnp.zeros(3, bool))) == 0
    assert np.all(np.isnan(loss_fn(jnp.ones((2, 3)), jnp.array([-1, 3]))))
