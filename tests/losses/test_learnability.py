"""Feature gradients against slow sums over paths, the published values, and the claim on a small scale."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from regjax.losses.reconstruction.learnability import _COEFFICIENTS, _prepared

RNG = np.random.default_rng(0)
X, Y = np.array([[1.0, 0.0], [-1.0, 1.0], [1.0, -1.0], [-1.0, 0.0]]), np.array([1.0, -1.0, 1.0, -1.0])
loss = rj.losses.learnability_loss


def polynomial(scores, features, labels, order):
    """The sum over index tuples i < j < k < ..., one by one."""
    gates = 1 / (1 + np.exp(-2 * scores))
    rows, z = len(labels), 0.0
    for k, coefficient in enumerate(_COEFFICIENTS[order], 1):
        total = 0.0
        for path in itertools.combinations(range(rows), k + 1):
            steps = [(features[i] * gates) @ features[j] for i, j in itertools.pairwise(path)]
            total += labels[path[0]] * labels[path[-1]] * math.prod(steps)
        z += coefficient * total / max(math.comb(rows, k + 1), 1)  # no path at all: 0
    return z


def error(z):
    return 0.5 * (1 - np.sqrt(min(max(z, 0.0), 1.0)))


@pytest.mark.parametrize("order", [3, 6])
def test_equals_the_sum_over_paths(x64, order):
    scores, features = RNG.normal(size=3), 0.8 * RNG.normal(size=(7, 3))
    labels = np.sign(RNG.normal(size=(7, 2)))
    where = np.array([True, True, False, True, True, False, True])
    spoilt = np.where(where[:, None], features, np.nan)
    run = functools.partial(loss, scores, order=order)
    got = jax.jit(
        lambda: (
            run(features, labels[:, 0], classification=False),
            run(features, labels),
            run(spoilt, labels, where=where, classification=False),
        )
    )()
    z = [polynomial(scores, features, y, order) for y in labels.T]
    masked = np.mean([1 - polynomial(scores, features[where], y[where], order) for y in labels.T])
    np.testing.assert_allclose(got, [1 - z[0], np.mean([error(v) for v in z]), masked], rtol=1e-10)


def test_published_values(x64):
    @jax.jit
    def run(scores):
        value = jax.value_and_grad(loss)
        return value(scores, X, Y, order=1), value(scores, X, Y, order=2), loss(scores, X, Y, order=1, classification=False)

    *classified, regression = run(jnp.zeros(2))
    for got, want, gradient in zip(
        classified, (0.203321, 0.064075), ((-0.127148, -0.021191), (-0.156496, -0.024001)), strict=True
    ):
        assert got[0] == pytest.approx(want, abs=1e-6)
        np.testing.assert_allclose(got[1], gradient, atol=1e-6)
    assert regression == pytest.approx(0.647927, abs=1e-6)


def test_beyond_the_ends_the_slope_is_constant_and_leads_back(x64):
    # Two rows: z = c s x^2 y_0 y_1 with s = 1/2, so that dz / d score = z.
    @jax.jit
    @jax.vmap
    def run(size, sign):
        features, labels = jnp.full((2, 1), size), jnp.stack([jnp.ones(()), sign])
        return jax.value_and_grad(lambda s: loss(s[None], features, labels, order=1))(jnp.zeros(()))

    z = 0.5 * _COEFFICIENTS[1][0] * np.array([1.0, -1.0, 9.0])
    values, gradients = run(jnp.array([1.0, 1.0, 3.0]), jnp.array([1.0, -1.0, 1.0]))
    np.testing.assert_allclose(values, [error(v) for v in z], rtol=1e-9)
    np.testing.assert_allclose(gradients, np.array([-0.25 / np.sqrt(z[0]), -0.01, 0.01]) * z, rtol=1e-6)


def test_features_are_prepared_as_published(x64):
    features = RNG.normal(size=(40, 5)) * [1, 10, 0.1, 3, 0] + 2
    z = (features - features.mean(0)) / np.where(features.std(0, ddof=1) > 1e-12, features.std(0, ddof=1), 1)
    want = z / (np.linalg.svd(z)[1][0] / np.sqrt(40))
    np.testing.assert_allclose(jax.jit(_prepared)(jax.random.key(0), features), want, rtol=2e-3, atol=2e-3)


def test_training_equals_a_loop_over_full_batches(x64):
    # One batch and order 1: the shuffling does not matter, so that the steps of Adam can be written out.
    features = RNG.normal(size=(12, 4))
    labels = np.sign(features[:, 0] + 0.3 * features[:, 1])
    key = jax.random.key(5)

    @jax.jit
    def run(rate, penalty):
        return rj.losses.feature_gradient_scores(
            features, labels, key=key, order=1, epochs=3, num_features=2, learning_rate=rate, penalty=penalty
        )

    @jax.jit
    @jax.grad
    def slope(scores):
        x = _prepared(jax.random.split(key)[0], jnp.asarray(features))
        return 2 / 3 * loss(scores, x, labels, order=1) + 1 / 3 * jnp.mean(jax.nn.sigmoid(2 * scores))

    scores, selected = run(0.2, 0.5)
    want, first, second = np.zeros(4), np.zeros(4), np.zeros(4)
    for step in range(1, 4):
        gradient = np.asarray(slope(want))
        gradient = gradient / max(1, np.linalg.norm(gradient))
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        want = want - 0.2 * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    np.testing.assert_allclose(scores, want, rtol=1e-6)
    assert set(np.flatnonzero(selected)) == set(np.argsort(want)[2:])


def test_classes_and_targets_take_their_forms():
    features = jnp.asarray(np.random.default_rng(1).normal(size=(60, 3)), jnp.float32)
    ids = jnp.argmax(features[:, :2], axis=1)

    @jax.jit
    def run(ids, targets):
        score = lambda labels, **options: rj.losses.feature_gradient_scores(
            features, labels, key=jax.random.key(0), order=1, epochs=8, **options
        )
        return jax.vmap(score)(jnp.stack([ids, 2 * ids - 1])), score(ids, num_classes=3), score(targets, classification=False)

    (signs, selected), several, regression = run(ids, 100 + 5 * features[:, 1])
    np.testing.assert_array_equal(signs[0], signs[1])
    np.testing.assert_array_equal(selected, signs >= 0)
    assert np.argmin(signs[0]) == 2 and np.argmin(several[0]) == 2
    assert np.argmax(regression[0]) == 1


@pytest.mark.slow
def test_the_relevant_features_score_highest():
    @jax.jit
    @jax.vmap
    def run(key):
        features_key, noise_key, key = jax.random.split(key, 3)
        x = jax.random.normal(features_key, (4000, 50))
        labels = jnp.sign(x[:, :5].sum(1) + 0.5 * jax.random.normal(noise_key, (4000,)))
        return rj.losses.feature_gradient_scores(x, labels, key=key, num_features=5)[1]

    np.testing.assert_array_equal(run(jax.random.split(jax.random.key(0), 3)), np.tile(np.arange(50) < 5, (3, 1)))
