"""ProKeR against float64 linear algebra, the published values and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

fit, predict = rj.losses.proker_fit, rj.losses.proker_predict
RNG = np.random.default_rng(0)
N, B, D, K = 9, 4, 5, 3


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def kernel(a, b, beta):
    return np.array([[np.exp(-beta * (1 - x @ y)) for y in b] for x in a])


KEYS, QUERIES = unit(RNG.normal(size=(N, D))), unit(RNG.normal(size=(B, D)))
KEYS[1] = KEYS[0]  # duplicates are no harm
KEY_LABELS = RNG.integers(0, K, size=N)
KEY_LOGITS, QUERY_LOGITS = 0.3 * RNG.normal(size=(N, K)), 0.3 * RNG.normal(size=(B, K))


def both(keys, labels, key_logits, queries, query_logits, beta, weight):
    alphas = fit(keys, labels, key_logits, beta=beta, weight=weight)
    plain = predict(queries, query_logits, keys, alphas, beta=beta)
    return alphas, plain, predict(queries, query_logits, keys, alphas, beta=beta, weight=weight, exact=True)


def test_equal_linear_algebra_in_any_order_of_the_examples(x64):
    run = jax.jit(both)
    soft = np.exp(RNG.normal(size=(N, K)))
    soft /= soft.sum(1, keepdims=True)
    for beta, weight in ((1.0, 0.1), (3.0, 0.001)):
        for labels, target in ((KEY_LABELS, np.eye(K)[KEY_LABELS]), (soft, soft)):
            alphas, plain, exact = run(KEYS, labels, KEY_LOGITS, QUERIES, QUERY_LOGITS, beta, weight)
            want = np.linalg.solve(kernel(KEYS, KEYS, beta) / weight + np.eye(N), target - KEY_LOGITS)
            correction = kernel(QUERIES, KEYS, beta) @ want
            np.testing.assert_allclose(alphas, want, rtol=1e-9, atol=1e-12)
            np.testing.assert_allclose(plain, QUERY_LOGITS + correction, rtol=1e-9)
            np.testing.assert_allclose(exact, QUERY_LOGITS + correction / weight, rtol=1e-9)
    order = RNG.permutation(N)
    turned = run(KEYS[order], soft[order], KEY_LOGITS[order], QUERIES, QUERY_LOGITS, beta, weight)
    np.testing.assert_allclose(turned[0], alphas[order], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(turned[1], plain, rtol=1e-9)


def test_published_values_and_limits(x64):
    z = np.array([[0.6, 0.2], [0.1, 0.5]])
    run = jax.jit(
        lambda weight: both(np.eye(2), np.array([0, 1]), z, np.array([[0.8, 0.6]]), np.array([[0.4, 0.3]]), 1.0, weight)
    )
    np.testing.assert_allclose(run(0.5)[1], [[0.476175, 0.336848]], atol=5e-7)
    alphas, plain, _ = run(1e9)
    np.testing.assert_allclose(plain, [[0.660460, 0.471414]], atol=5e-7)
    np.testing.assert_allclose(alphas, np.eye(2) - z, rtol=1e-8)
    np.testing.assert_allclose(run(1e-6)[1], [[0.4, 0.3]], atol=1e-5)
    alphas, plain, _ = run(0.0)
    assert not np.asarray(alphas).any()
    np.testing.assert_array_equal(plain, [[0.4, 0.3]])
    # The exact ridge solution meets the labels of its examples as the penalty goes.
    exact = jax.jit(lambda weight: both(np.eye(2), np.array([0, 1]), z, np.eye(2), z, 1.0, weight)[2])
    np.testing.assert_allclose(exact(1e-9), np.eye(2), atol=1e-7)


def test_small_weights_in_float32_and_wrong_labels():
    keys = jnp.asarray(unit(RNG.normal(size=(64, D))), jnp.float32)
    labels, logits = RNG.integers(0, K, size=64), jnp.asarray(0.3 * RNG.normal(size=(64, K)), jnp.float32)
    run = jax.jit(lambda labels: fit(keys, labels, logits, weight=1e-3))
    got = run(labels)
    want = np.linalg.solve(
        kernel(np.float64(keys), np.float64(keys), 1.0) / 1e-3 + np.eye(64), np.eye(K)[labels] - np.float64(logits)
    )
    np.testing.assert_allclose(got, want, rtol=0.02, atol=2e-3 * np.abs(want).max())
    labels[3] = K
    assert np.isnan(run(labels)).any(axis=0).all()


@pytest.mark.slow
def test_few_digits_improve_a_corrupted_zero_shot_classifier():
    """The published claim in small: class means corrupted by noise as text features, four labelled images of each class."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x = unit(digits.data / 16 - (digits.data / 16).mean(0)).astype(np.float32)
    adapt = jax.jit(lambda k, y, kz, q, qz: predict(q, qz, k, fit(k, y, kz, beta=3.0, weight=1.0), beta=3.0))
    for seed in range(4):
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(x))
        features, labels = x[order], digits.target[order]
        shots = np.concatenate([np.flatnonzero(labels == c)[:4] for c in range(10)])
        rest = np.setdiff1d(np.arange(len(x)), shots)
        text = np.stack([features[labels == c].mean(0) for c in range(10)])
        text = unit(unit(text) + rng.normal(scale=0.15, size=text.shape)).astype(np.float32)
        logits = features @ text.T
        adapted = adapt(features[shots], labels[shots], logits[shots], features[rest], logits[rest])
        right = lambda guess, y=labels[rest]: np.mean(np.asarray(guess) == y)
        nearest = labels[shots][(features[rest] @ features[shots].T).argmax(1)]
        assert right(adapted.argmax(1)) > max(right(logits[rest].argmax(1)), right(nearest))
