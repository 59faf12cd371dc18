"""Importance sampling against loops and the published values, and what its weights undo."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from tests.references import log_softmax, soft_labels

RNG = np.random.default_rng(0)


def sequential(scores, counts, indices, values, where=None):
    """The update one example after the other."""
    scores, counts = np.array(scores, np.float64), np.array(counts)
    for b, (i, v) in enumerate(zip(indices, values, strict=True)):
        if where is not None and not where[b]:
            continue
        scores[i] = (scores[i] + v) / 2 if counts[i] else v
        counts[i] += 1
    return scores, counts


def test_scores_equal_the_gradient_of_the_cross_entropy(x64):
    logits, labels = RNG.normal(size=(6, 4)) * 3, RNG.integers(0, 4, 6)
    soft, where = soft_labels(RNG, 6, 4), np.array([True, True, False, True])
    norm = jax.jit(rj.inputs.last_layer_gradient_norm)
    want = [np.linalg.norm(np.exp(log_softmax(z)) - np.eye(4)[y]) for z, y in zip(logits, labels, strict=True)]
    np.testing.assert_allclose(norm(logits, labels), want, rtol=1e-12)
    np.testing.assert_allclose(norm(logits, np.eye(4)[labels]), want, rtol=1e-12)
    # The gradient itself, for labels of any mass.
    cases = ((soft, None), (0.3 * soft, None), (soft * where, where))

    @jax.jit
    def both(logits):
        loss = lambda z, y, mask: rj.losses.label_smoothing(z, y, alpha=0.0, where=mask).sum()
        wanted = [jnp.linalg.norm(jax.grad(loss)(logits, y, mask), axis=-1) for y, mask in cases]
        turned = rj.inputs.last_layer_gradient_norm(logits.T, labels, axis=0)
        return [rj.inputs.last_layer_gradient_norm(logits, y, where=mask) for y, mask in cases], wanted, turned

    got, wanted, turned = both(logits)
    np.testing.assert_allclose(got, wanted, rtol=1e-10)
    np.testing.assert_allclose(turned, want, rtol=1e-12)
    assert norm(np.array([2.0, 0.0, -1.0]), np.array(1)) == pytest.approx(1.22409326, abs=2e-7)  # published from float32
    assert norm(np.array([50.0, 0.0, -50.0]), np.array(1)) == pytest.approx(math.sqrt(2), abs=1e-12)
    assert norm(np.array([1e4, 0.0, -1e4]), np.array(0)) == 0
    assert np.isnan(norm(logits, labels + 4 * (np.arange(6) == 2))).tolist() == [False, False, True, False, False, False]


def test_published_probabilities():
    p = jax.jit(rj.inputs.importance_probabilities)
    scores = jnp.array([1.0, 3.0, 0.0, 0.0])
    assert p(scores, mix=0.5).tolist() == [0.25, 0.5, 0.125, 0.125]
    assert p(scores, mix=0.0).tolist() == [0.25] * 4
    assert p(scores, mix=1.0).tolist() == [0.25, 0.75, 0, 0]
    assert p(0 * scores, mix=0.9).tolist() == pytest.approx([0.25] * 4, rel=1e-6)
    many = jnp.asarray(RNG.exponential(size=1000), jnp.float32)
    assert float(p(many, mix=0.3).sum()) == pytest.approx(1, rel=1e-6)
    paths = jax.jit(rj.inputs.path_probabilities)
    assert paths(scores, mix=0.5).tolist() == p(scores, mix=0.5).tolist()
    norms, used = RNG.exponential(size=(6, 4)), RNG.uniform(size=(6, 4)) < 0.6
    used[:, 3] = False
    mean = [np.mean([g for g, u in zip(norms[:, o], used[:, o], strict=True) if u]) if used[:, o].any() else 0 for o in range(4)]
    want = 0.7 * np.array(mean) / sum(mean) + 0.3 / 4
    np.testing.assert_allclose(paths(jnp.where(used, norms, jnp.nan), mix=0.7, where=used), want, rtol=1e-6)


def test_updates_equal_the_loop_with_repeated_indices(x64):
    update = jax.jit(rj.inputs.importance_update)
    for seed in range(3):
        rng = np.random.default_rng(seed)
        indices, values, where = rng.integers(0, 6, 40), rng.exponential(size=40), rng.uniform(size=40) < 0.8
        counts = rng.integers(0, 2, 9)
        scores = rng.exponential(size=9) * counts
        want, _ = sequential(scores, counts, indices, values, where)
        np.testing.assert_allclose(update(scores, jnp.asarray(indices), values, where=where), want, rtol=1e-12)
        # A seen example may have score 0: then it is halved, not replaced.
        want, _ = sequential(scores, np.ones(9, int), indices, values)
        np.testing.assert_allclose(update(scores, jnp.asarray(indices), values, seen=np.ones(9, bool)), want, rtol=1e-12)
    # Positions outside, and examples that do not count, may hold anything.
    outside = update(jnp.ones(3), jnp.array([-1, 3, 1]), jnp.array([5.0, 5.0, 2.0]))
    np.testing.assert_allclose(outside, [1, 1.5, 1])
    padded = update(jnp.ones(3), jnp.array([1, 1]), jnp.array([jnp.nan, 2.0]), where=jnp.array([False, True]))
    np.testing.assert_allclose(padded, [1, 1.5, 1])
    many = update(jnp.zeros(2), jnp.zeros(5000, int), jnp.arange(5000.0))
    assert many[0] == pytest.approx(4998, abs=1e-9)


def test_an_epoch_of_the_memory_equals_the_loop(x64):
    memory = rj.inputs.importance_sampling(12)
    apply = jax.jit(memory.apply)
    state, scores, counts = memory.init(), np.zeros(12), np.zeros(12, int)
    for _ in range(5):
        logits, labels, indices = RNG.normal(size=(8, 3)), RNG.integers(0, 3, 8), RNG.integers(0, 10, 8)
        values, state = apply(state, logits, labels, jnp.asarray(indices))
        np.testing.assert_allclose(values, rj.inputs.last_layer_gradient_norm(logits, labels), rtol=1e-12)
        scores, counts = sequential(scores, counts, indices, np.asarray(values))
    np.testing.assert_allclose(state.scores, scores, rtol=1e-5)
    np.testing.assert_array_equal(state.counts, counts)
    assert state.scores.dtype == jnp.float32 and state.counts.sum() == 40
    p = rj.inputs.importance_probabilities(state.scores, mix=0.5)
    assert np.all(p[10:] == p.min())  # never seen: the uniform part alone


def test_weights_make_the_mean_unbiased():
    p = RNG.dirichlet(np.ones(20))
    gradients = RNG.normal(size=(20, 3))
    weights = rj.inputs.importance_weights(jnp.asarray(p, jnp.float32), jnp.arange(20))
    np.testing.assert_allclose(weights, 1 / (20 * p), rtol=1e-5)
    np.testing.assert_allclose((p * weights) @ gradients, gradients.mean(0), rtol=1e-5, atol=1e-6)

    @jax.jit
    def draw(key):
        indices = rj.inputs.sample_indices(key, p, 50000)
        return indices, rj.inputs.importance_weights(jnp.asarray(p, jnp.float32), indices)

    indices, weights = map(np.asarray, draw(jax.random.key(3)))
    drawn = weights[:, None] * gradients[indices]
    error = drawn.mean(0) - gradients.mean(0)
    assert np.all(np.abs(error) <= 5 * drawn.std(0) / math.sqrt(len(drawn)))
    plain = gradients[indices].mean(0) - gradients.mean(0)
    assert np.max(np.abs(plain)) > 5 * np.max(np.abs(error))  # without the weights it is biased
    lost = rj.inputs.importance_weights(jnp.array([0.0, 1.0]), jnp.array([0, 1, 2, -1]))
    np.testing.assert_array_equal(lost, [0, 0.5, np.nan, np.nan])
    assert rj.inputs.importance_weights(jnp.full(300, 1 / 300), np.array([200], np.uint8))[0] == pytest.approx(1)


def test_draws_follow_the_probabilities():
    scores = jnp.array([0.0, 3.0, 1e-3, 5.0, 0.0, 2.0, 0.0])
    draw = jax.jit(functools.partial(rj.inputs.sample_indices, num=100000))
    counts = np.bincount(draw(jax.random.key(0), scores), minlength=7)
    want = np.asarray(scores / scores.sum(), np.float64)
    assert np.all(np.abs(counts - 1e5 * want) <= 5 * np.sqrt(1e5 * want * (1 - want)))
    assert len(np.unique(draw(jax.random.key(1), 0 * scores))) == 7  # nothing known: any
    # Half a million examples, of which the second half is three times as likely: by blocks, no rounding shows.
    p = jnp.where(jnp.arange(2**19) < 2**18, 1.0, 3.0)
    blocks = np.bincount(np.asarray(draw(jax.random.key(2), p)) // 2**15, minlength=16)
    want = np.repeat([1, 3], 8) / 32
    assert np.all(np.abs(blocks - 1e5 * want) <= 5 * np.sqrt(1e5 * want))


@pytest.mark.slow
def test_importance_lowers_the_variance_of_the_gradient():
    """A softmax regression on digits of which 90% are easy: the exact variance of one weighted draw."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    x = np.concatenate([x / 16, np.ones((len(x), 1))], 1)
    w = np.zeros((65, 10))
    for _ in range(300):
        p = np.exp(x @ w - (x @ w).max(1, keepdims=True))
        w -= 2.0 * x.T @ (p / p.sum(1, keepdims=True) - np.eye(10)[y]) / len(x)
    # Nine easy examples for each hard one, by the probability of the label.
    logits = x @ w
    own = np.array([np.exp(log_softmax(z))[k] for z, k in zip(logits, y, strict=True)])
    order = np.argsort(own)
    chosen = np.concatenate([order[:100], order[-900:]])
    x, y, logits = x[chosen], y[chosen], logits[chosen]
    scores = rj.inputs.last_layer_gradient_norm(jnp.asarray(logits, jnp.float32), y)
    p = np.exp(logits - logits.max(1, keepdims=True))
    residual = p / p.sum(1, keepdims=True) - np.eye(10)[y]
    norms = np.sum(residual**2, 1) * np.sum(x**2, 1)  # squared norms of the gradients by the weights
    full = np.sum((x.T @ residual / len(x)) ** 2)

    def variance(mix):
        q = np.asarray(rj.inputs.importance_probabilities(scores, mix=mix), np.float64)
        weights = np.asarray(rj.inputs.importance_weights(jnp.asarray(q, jnp.float32), jnp.arange(len(q))), np.float64)
        return np.sum(q * weights**2 * norms) - full

    uniform, half, most = variance(0.0), variance(0.5), variance(0.9)
    assert uniform == pytest.approx(np.mean(norms) - full, rel=1e-5)
    assert half < 0.6 * uniform and most < 0.4 * uniform, (uniform, half, most)
