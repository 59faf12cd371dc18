"""Checkered regression against loops over all sums of classes, the published values, and rock, paper, scissors."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from tests.references import log_softmax, soft_labels

binary_checkered, binary_checkoid, checkered = rj.losses.binary_checkered, rj.losses.binary_checkoid, rj.losses.checkered
RNG = np.random.default_rng(0)


def reference(logits):
    """The distribution of the sum of the heads' variables modulo K, and its gradients, by loops over all their values."""
    heads, size = logits.shape
    p = np.exp([log_softmax(z) for z in logits])
    total, joint = np.zeros(size), np.zeros((size, heads, size))
    for values in itertools.product(range(size), repeat=heads):
        mass = np.prod([p[h, v] for h, v in enumerate(values)])
        total[sum(values) % size] += mass
        for h, v in enumerate(values):
            joint[sum(values) % size, h, v] += mass
    return total, p[None] - joint / total[:, None, None]


def test_values_and_gradients_are_those_of_all_sums(x64):
    z = 2 * RNG.normal(size=(4, 3, 5))
    labels, soft = RNG.integers(0, 5, 4), soft_labels(RNG, 4, 5)
    both = jax.jit(jax.value_and_grad(lambda z, y: (lambda v: (v.sum(), v))(checkered(z, y)), has_aux=True))
    (_, hard), slope = both(z, labels)
    (_, mixed), soft_slope = both(z, soft)
    for b in range(4):
        total, gradients = reference(z[b])
        np.testing.assert_allclose(hard[b], -np.log(total[labels[b]]), rtol=1e-12)
        np.testing.assert_allclose(slope[b], gradients[labels[b]], atol=1e-12)
        np.testing.assert_allclose(mixed[b], -soft[b] @ np.log(total), rtol=1e-12)
        np.testing.assert_allclose(soft_slope[b], np.einsum("k,khl->hl", soft[b], gradients), atol=1e-12)
    # The class axis anywhere; the order of heads means nothing; a common constant neither.
    np.testing.assert_allclose(checkered(np.moveaxis(z, -1, 0), labels, axis=0), hard, rtol=1e-12)
    np.testing.assert_allclose(checkered(z[:, ::-1] + 7.0, labels), hard, rtol=1e-12)
    # One head is cross-entropy; a label that is none is seen.
    np.testing.assert_allclose(checkered(z[:, :1], labels), [-log_softmax(a[0])[y] for a, y in zip(z, labels, strict=True)])
    assert np.isnan(checkered(z[0], 5)) and np.isnan(binary_checkered(z[0, 0], 2))


def test_published_values(x64):
    np.testing.assert_allclose(binary_checkoid(np.array([1.0, 2.0])), 0.675972863, rtol=1e-8)
    np.testing.assert_allclose(binary_checkoid(np.array([1.0, 2.0, -0.5])), 0.456900962, rtol=1e-8)
    np.testing.assert_allclose(1 - binary_checkoid(np.array([1.0, 2.0, 0.5])), 0.456900962, rtol=1e-8)
    slope = jax.grad(binary_checkered)(np.array([1.0, 2.0]), 0)
    np.testing.assert_allclose(slope, [-0.221515548, -0.071777049], rtol=1e-7)
    z = np.array([[1.0, 0, 0], [0, 2.0, 0]])
    got = np.exp([-checkered(z, y) for y in range(3)])
    np.testing.assert_allclose(got, [0.25072877, 0.49854246, 0.25072877], rtol=1e-7)


def test_two_classes_are_the_product_of_tangents(x64):
    z = 2 * RNG.normal(size=(6, 4))
    labels = RNG.integers(0, 2, 6)
    even = (1 + np.prod(np.tanh(z / 2), -1)) / 2
    np.testing.assert_allclose(jax.jit(binary_checkoid)(z), even, rtol=1e-12)
    value, slope = jax.jit(jax.value_and_grad(lambda z: binary_checkered(z, labels).sum()))(z)
    np.testing.assert_allclose(value, -np.log(np.where(labels == 0, even, 1 - even)).sum(), rtol=1e-12)
    logits = np.stack([z, np.zeros_like(z)], -1)
    general, wide = jax.value_and_grad(lambda x: checkered(x, labels).sum())(logits)
    np.testing.assert_allclose(general, value, rtol=1e-12)
    np.testing.assert_allclose(wide[..., 0], slope, atol=1e-12)
    np.testing.assert_allclose(binary_checkoid(z.T, axis=0), even, rtol=1e-12)
    # The saddle: at equal scores 0 there is no gradient.
    np.testing.assert_array_equal(jax.grad(binary_checkered)(np.zeros(2), 1), 0)


def test_sure_mistakes_keep_their_gradient():
    """At 1e4 in float32: the loss grows with the score that is least sure, whose gradient is 1."""
    z = jnp.array([[1e4, 2e4], [-1e4, 2e4], [1e4, -2e4]], jnp.float32)
    both = jax.jit(jax.vmap(jax.value_and_grad(binary_checkered)))
    value, slope = both(z, jnp.array([1, 0, 0]))
    np.testing.assert_allclose(value, 1e4, rtol=1e-6)
    np.testing.assert_allclose(slope, [[1, 0], [-1, 0], [1, 0]], atol=1e-6)
    wide, slope = jax.jit(jax.value_and_grad(checkered))(jnp.array([[1e4, 0, 0], [0, 3e4, 0]], jnp.float32), 2)
    np.testing.assert_allclose(wide, 1e4, rtol=1e-6)
    assert np.all(np.isfinite(slope)) and np.abs(slope).max() > 0.4


@pytest.mark.slow
def test_a_smooth_xor_learns_rock_paper_scissors():
    """Bradley-Terry, one score for each player, stays at log 2; from zero weights only the cross-gradient leaves the saddle."""
    pairs = np.array([(i, j) for i in range(3) for j in range(3) if i != j])
    lost = np.array([(i - j) % 3 == 2 for i, j in pairs]).astype(np.int32)  # 0: the first player wins
    x = jnp.asarray(np.concatenate([np.eye(3)[pairs[:, 0]], np.eye(3)[pairs[:, 1]]], 1), jnp.float32)

    def bradley_terry(w, x):
        return binary_checkered(x[:, :3] @ w - x[:, 3:] @ w, lost).mean()

    def xor(w, x):
        return binary_checkered(x @ w, lost).mean()

    def components(w, x):
        """The two ways to each label: both heads of one sign, or of different ones."""
        z = x @ w
        second = jnp.where(lost == 0, 1.0, -1.0) * z[:, 1]
        return jnp.stack([sum(map(jax.nn.log_sigmoid, pair)) for pair in ((z[:, 0], second), (-z[:, 0], -second))], -1)

    crossed = rj.objectives.cross_gradient(components, weights=jnp.array([0.9, 0.1]))

    def descend(loss, w, steps, rate=1.0):
        step = lambda w, _: (w - rate * jax.grad(loss)(w, x), None)
        return jax.jit(lambda w: jax.lax.scan(step, w, None, steps)[0])(w)

    score = descend(bradley_terry, jnp.array([0.3, -0.2, 0.1])[:, None], 1000)
    np.testing.assert_allclose(bradley_terry(score, x), np.log(2), atol=1e-4)
    learned = [float(xor(descend(xor, 0.5 * jax.random.normal(jax.random.key(s), (6, 2)), 3000), x)) for s in range(4)]
    assert min(learned) < 0.01, learned
    zero = jnp.zeros((6, 2))
    np.testing.assert_array_equal(descend(xor, zero, 100), 0)
    left = descend(crossed, zero, 20, 0.1)
    assert np.abs(left).max() > 0.05
