"""The loss of a whole and a truncated pass: its two terms, and where its gradients go."""

import jax
import numpy as np

import regjax as rj

RNG = np.random.default_rng(0)
SMALL, FULL, LABELS = RNG.normal(size=(6, 4)), RNG.normal(size=(6, 4)), RNG.integers(0, 4, 6)


def cross_entropy(logits, target):
    return -np.sum(target * (logits - np.log(np.sum(np.exp(logits)))))


def test_values_and_gradients(x64):
    fn = jax.jit(rj.losses.truncated_cross_entropy, static_argnames="axis")
    softmax = np.exp(FULL) / np.exp(FULL).sum(-1, keepdims=True)
    hard = np.eye(4)[LABELS]
    want = [cross_entropy(FULL[b], hard[b]) + cross_entropy(SMALL[b], softmax[b]) for b in range(6)]
    np.testing.assert_allclose(fn(SMALL, FULL, LABELS), want, rtol=1e-12)
    np.testing.assert_allclose(fn(SMALL, FULL, hard), want, rtol=1e-12)
    np.testing.assert_allclose(fn(SMALL.T, FULL.T, LABELS, axis=0), want, rtol=1e-12)
    slopes = jax.jit(jax.grad(lambda *z: fn(*z, LABELS).sum(), (0, 1)))
    small, full = slopes(SMALL, FULL)
    own = np.exp(SMALL) / np.exp(SMALL).sum(-1, keepdims=True)
    np.testing.assert_allclose(small, own - softmax, atol=1e-12)
    np.testing.assert_allclose(full, softmax - hard, atol=1e-12)
    # Equal logits leave the truncated pass nothing to learn.
    np.testing.assert_allclose(slopes(FULL, FULL)[0], 0, atol=1e-12)


def test_absent_classes_count_for_nothing(x64):
    where = np.array([True, True, False, True])
    labels = np.minimum(LABELS, 1)
    keep = np.flatnonzero(where)
    fn = jax.jit(rj.losses.truncated_cross_entropy)
    want = fn(SMALL[:, keep], FULL[:, keep], labels)
    np.testing.assert_allclose(fn(SMALL, FULL, labels, where=where), want, rtol=1e-12)
