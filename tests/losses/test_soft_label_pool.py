"""Batch-norm matching against loops and published values, and the pruned pool against exact arithmetic."""

from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from regjax.losses.distillation.soft_label_pool import _kept

RNG = np.random.default_rng(0)
matching, prune = rj.losses.batchnorm_matching, rj.losses.prune_soft_labels


def matched(activations, mean, variance):
    rows = activations.reshape(-1, activations.shape[-1])
    distances = np.zeros(2)
    for c in range(rows.shape[1]):
        centre = sum(rows[:, c]) / len(rows)
        spread = sum((v - centre) ** 2 for v in rows[:, c]) / len(rows)
        distances += [(centre - mean[c]) ** 2, (spread - variance[c]) ** 2]
    return np.sqrt(distances).sum()


def test_matching_equals_the_loop(x64):
    images, mean, variance = RNG.normal(size=(4, 2, 3, 5)), RNG.normal(size=5), RNG.random(5)
    where = np.array([True, False, True, True])
    spoilt = np.where(where[:, None, None, None], images, np.nan)
    got = jax.jit(
        lambda: (
            matching(images, mean, variance),
            matching(images[:, 0, 0], mean, variance),
            matching(spoilt, mean, variance, where=where),
        )
    )()
    chosen = (images, images[:, 0, 0], images[where])
    np.testing.assert_allclose(got, [matched(a, mean, variance) for a in chosen], rtol=1e-12)


def test_published_matching(x64):
    activations = jnp.array([[1.0], [3.0]])
    run = jax.jit(jax.value_and_grad(matching))
    value, gradient = run(activations, np.array([2.0]), np.array([1.0]))
    assert value == 0 and not np.any(gradient)
    # The gradient of both norms, which one channel makes absolute values: (1 + 2 (a - 2)) / 2.
    value, gradient = run(activations, np.array([1.0]), np.array([0.5]))
    assert value == 1.5
    np.testing.assert_allclose(gradient, [[-0.5], [1.5]], rtol=1e-12)


def test_the_pool_is_the_floor_of_the_share_that_stays():
    ratios = [Fraction(k, 1000) for k in range(1001)]
    draws = jax.jit(jax.vmap(jax.vmap(prune, in_axes=(None, None, 0, None)), in_axes=(None, 0, None, None)), static_argnums=0)
    for num_labels in (7, 100, 1000, 58_800):
        kept = np.array([max(1, (1 - ratio) * num_labels // 1) for ratio in ratios], np.int64)
        if num_labels == 100:
            # Some ratios with many steps: every index below the bound occurs, and none beyond.
            for ratio, bound in ((0.9, 10), (0.8, 20), (0.7, 30), (0.99, 1), (1.0, 1), (0.0, 100)):
                found = np.unique(draws(num_labels, jnp.array([ratio]), jnp.arange(2000), jax.random.key(0)))
                np.testing.assert_array_equal(found, np.arange(bound))
        # For all ratios the bound itself.
        got = jax.vmap(lambda ratio, n=num_labels: _kept(n, ratio))(jnp.asarray([float(ratio) for ratio in ratios], jnp.float32))
        np.testing.assert_array_equal(got, kept)


def test_draws_are_uniform_and_a_number_is_a_traced_ratio():
    steps, key = jnp.arange(4000), jax.random.key(3)
    got = np.asarray(jax.jit(jax.vmap(lambda step, ratio: prune(40, ratio, step, key), in_axes=(0, None)))(steps, 0.75))
    counts = np.bincount(got, minlength=10)
    assert len(counts) == 10
    # Each count is binomial with p = 1/10: within 4.5 standard deviations.
    assert np.all(np.abs(counts - 400) < 4.5 * np.sqrt(4000 * 0.1 * 0.9))
    assert prune(np.int64(40), np.float32(0.75), 2, key) == got[2]


@pytest.mark.slow
def test_a_tenth_of_the_pool_teaches_as_well():
    """Digits: a student of a pool of batches, 150 images with noise and a teacher's labels, and of a tenth of that pool."""
    x, y = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = jnp.asarray(x[order] / 16, jnp.float32), jnp.asarray(y[order])
    train, test = (x[:1078], y[:1078]), (x[1078:], y[1078:])
    apply = lambda p, x: jax.nn.relu(x @ p[0]) @ p[1]
    tx = optax.sgd(0.05, momentum=0.9)

    def fit(key, loss):
        keys = jax.random.split(key, 3)
        shapes = ((64, 128), (128, 10))
        params = [jax.random.normal(k, s) * (2 / s[0]) ** 0.5 for k, s in zip(keys, shapes, strict=False)]

        def step(carry, i):
            updates, state = tx.update(jax.grad(loss)(carry[0], i, keys[2]), carry[1])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), jnp.arange(600))[0][0]

    @jax.jit
    @jax.vmap
    def run(key):
        keys = jax.random.split(key, 4)

        def supervised(p, i, key):
            rows = jax.random.randint(jax.random.fold_in(key, i), (64,), 0, len(train[1]))
            return optax.softmax_cross_entropy_with_integer_labels(apply(p, train[0][rows]), train[1][rows]).mean()

        teacher = fit(keys[0], supervised)
        images = train[0][jax.random.randint(keys[1], (400, 64), 0, 150)] + 0.2 * jax.random.normal(keys[2], (400, 64, 64))
        labels = jax.nn.softmax(apply(teacher, images) / 4)

        def distilled(p, i, key, ratio):
            chosen = prune(400, ratio, i, key)
            return 4 * optax.softmax_cross_entropy(apply(p, images[chosen]) / 4, labels[chosen]).mean()

        def accuracy(ratio):
            student = fit(keys[3], lambda p, i, key: distilled(p, i, key, ratio))
            return jnp.mean(jnp.argmax(apply(student, test[0]), axis=-1) == test[1])

        return jax.vmap(accuracy)(jnp.array([0.0, 0.9]))

    whole, pruned = run(jax.random.split(jax.random.key(0), 3)).mean(0)
    assert whole > 0.95 and pruned > whole - 0.01, (whole, pruned)
