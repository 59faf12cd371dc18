"""SuperClass against a loop-written float64 reference and the published values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from tests.references import log_softmax


def superclass(frequency, steps, logits, captions):
    """One batch: the losses, their gradients, the new frequencies and the number of batches; captions are lists of tokens."""
    batch, vocabulary = logits.shape
    frequency = frequency + sum(np.isin(np.arange(vocabulary), list(c)) for c in captions) / batch
    steps = steps + 1
    weights = np.log((steps + 1 / batch) / (frequency + 1 / batch))
    losses, gradients = np.zeros(batch), np.zeros_like(logits)
    for b, caption in enumerate(captions):
        total = sum(weights[v] for v in set(caption))
        if total > 0:
            log_p = log_softmax(logits[b])
            losses[b] = -sum(weights[v] / total * log_p[v] for v in set(caption))
            target = np.array([weights[v] / total * (v in caption) for v in range(vocabulary)])
            gradients[b] = np.exp(log_p) - target
    return losses, gradients, frequency, steps


RNG = np.random.default_rng(0)
V, B, LENGTH = 7, 5, 6
IDS = RNG.integers(0, V, size=(3, B, LENGTH))
IDS[:, :, -1] = 0  # padding, at least once in every caption
MASK = RNG.random((B, LENGTH)) < 0.6
MASK[3] = False
LOGITS = 2 * RNG.normal(size=(B, V))


@jax.jit
def step(state, logits, ids, mask=None):
    """Losses, the gradient of their sum, and the new state."""

    def total(logits):
        loss, new = rj.losses.superclass(logits.shape[1]).apply(state, logits, ids, mask=mask)
        return jnp.sum(loss), (loss, new)

    (_, (loss, new)), gradient = jax.value_and_grad(total, has_aux=True)(logits)
    return loss, gradient, new


def test_three_batches_equal_their_reference(x64):
    state, frequency, steps = rj.losses.superclass(V).init(), np.zeros(V), 0
    assert state.document_frequency.dtype == state.steps.dtype == jnp.float32
    for ids in IDS:
        loss, gradient, state = step(state, LOGITS, ids)
        want, slope, frequency, steps = superclass(frequency, steps, LOGITS, [set(row) for row in ids])
        np.testing.assert_allclose(loss, want, rtol=1e-5)
        np.testing.assert_allclose(gradient, slope, atol=1e-5)
        np.testing.assert_allclose(state.document_frequency, frequency, rtol=1e-6)
    assert state.steps == 3 and state.document_frequency[0] == 3
    # With a mask the padding is no token, what it hides may be anything, and a caption may be empty.
    loss, gradient, after = step(state, LOGITS, np.where(MASK, IDS[0], -1), MASK)
    captions = [[v for v, here in zip(row, mask, strict=True) if here] for row, mask in zip(IDS[0], MASK, strict=True)]
    want, slope, frequency, _ = superclass(np.float64(state.document_frequency), 3, LOGITS, captions)
    np.testing.assert_allclose(loss, want, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, atol=1e-5)
    np.testing.assert_allclose(after.document_frequency, frequency, rtol=1e-6)
    assert loss[3] == 0 and not np.asarray(gradient[3]).any()


def test_published_values_order_repetition_and_tokens_in_every_caption():
    z = jnp.tile(jnp.arange(4.0), (2, 1))
    init = rj.losses.superclass(4).init()
    loss, gradient, state = step(init, z, np.array([[1, 2, 0, 0], [1, 3, 0, 0]]))
    np.testing.assert_allclose(loss, [1.440190, 0.440190], atol=1e-6)
    np.testing.assert_allclose(gradient, jax.nn.softmax(z) - np.eye(4)[[2, 3]], atol=1e-6)
    np.testing.assert_array_equal(state.document_frequency, [1, 1, 0.5, 0.5])
    again, _, same = step(init, z, np.array([[0, 2, 2, 1], [3, 3, 1, 0]]))
    np.testing.assert_array_equal(again, loss)
    np.testing.assert_array_equal(same.document_frequency, state.document_frequency)
    # Tokens 0 and 1 stand in every caption: alone they are no target.
    nothing, gradient, _ = step(init, z, np.array([[0, 1, 0, 1], [1, 1, 0, 0]]))
    assert not np.asarray(nothing).any() and not np.asarray(gradient).any()


def test_ids_outside_the_vocabulary_are_seen():
    init = rj.losses.superclass(4).init()
    loss, _, state = step(init, jnp.tile(jnp.arange(4.0), (2, 1)), np.array([[1, 2, 4, 0], [1, 3, 0, 0]]))
    assert np.isnan(loss[0]) and np.isfinite(loss[1])
    np.testing.assert_array_equal(state.document_frequency, [1, 1, 0.5, 0.5])
    loss, _, _ = step(init, jnp.tile(jnp.arange(4.0), (2, 1)), np.array([[1, 2, -1, 0], [1, 3, 0, 0]]))
    assert np.isnan(loss[0]) and np.isfinite(loss[1])


@pytest.mark.slow
def test_rare_words_teach_more_than_all_words_alike():
    """The claim in small: images of two attributes in a scene, captions of both words among common words of the scene."""
    rng = np.random.default_rng(0)
    common, dim, width = 12, 32, 4
    looks, scenes = rng.normal(size=(8, dim)), rng.normal(size=(common, dim))

    def data(size):
        y, scene = rng.integers(0, 16, size), rng.random((size, common)) < 0.8
        attributes = np.stack([y // 4, 4 + y % 4], 1)
        images = looks[attributes].sum(1) + scene @ scenes + 0.5 * rng.normal(size=(size, dim))
        # Token 0 is padding.
        words = np.where(scene, 1 + np.arange(common), 0)
        return images - images.mean(0), np.concatenate([1 + common + attributes, words, 0 * y[:, None]], 1), y

    images, captions, _ = data(512)
    probe, _, answer = data(512)
    test, _, truth = data(1024)
    vocabulary = 1 + common + 8
    memory = rj.losses.superclass(vocabulary)
    counted = np.float32((captions[:, :, None] == np.arange(vocabulary)).any(1))
    target = counted / counted.sum(1, keepdims=True)
    tx = optax.adam(0.02)

    @jax.jit
    def train(key):
        first, second = jax.random.split(key)
        start = 0.1 * jax.random.normal(first, (dim, width)), 0.1 * jax.random.normal(second, (width, vocabulary))

        def loss(params, memory_state, weighted):
            z = images @ params[0] @ params[1]
            value, new = memory.apply(memory_state, z, captions)
            return jnp.mean(jnp.where(weighted, value, optax.softmax_cross_entropy(z, target))), new

        def run(weighted):
            def one(carry, _):
                params, opt_state, memory_state = carry
                slope, memory_state = jax.grad(loss, has_aux=True)(params, memory_state, weighted)
                updates, opt_state = tx.update(slope, opt_state)
                return (optax.apply_updates(params, updates), opt_state, memory_state), None

            return jax.lax.scan(one, (start, tx.init(start), memory.init()), length=200)[0][0][0]

        return jax.lax.map(run, jnp.array([True, False]))

    def score(weight):
        """A ridge probe of the hidden features."""
        feature = lambda x: np.concatenate([x @ np.asarray(weight), np.ones((len(x), 1))], 1)
        f = feature(probe)
        readout = np.linalg.solve(f.T @ f + np.eye(f.shape[1]), f.T @ np.eye(16)[answer])
        return np.mean((feature(test) @ readout).argmax(1) == truth)

    scores = np.array([[score(w) for w in train(jax.random.key(seed))] for seed in range(3)])
    assert (scores[:, 0] > scores[:, 1] + 0.05).all(), scores
