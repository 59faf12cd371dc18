"""kNN probabilities and the losses beside them against loop-written float64 references and the published values."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from tests.references import log_softmax, soft_labels

L = rj.losses


def probabilities(queries, keys, labels, classes, k, temperature, center=True, exclude=None, where=None):
    """The vote of the nearest keys, query by query."""
    counts = [j for j in range(len(keys)) if where is None or where[j]]
    mean = sum(keys[j] for j in counts) / len(counts) if center else 0
    unit = lambda v: v / np.linalg.norm(v)
    out = np.zeros((len(queries), classes))
    for i, q in enumerate(queries):
        others = [j for j in counts if exclude is None or j != exclude[i]]
        squares = {j: ((unit(q - mean) - unit(keys[j] - mean)) ** 2).sum() for j in others}
        near = sorted(others, key=squares.get)[:k]
        for j in near:
            out[i, labels[j]] += np.exp(-squares[j] / temperature)
        out[i] /= out[i].sum()
    return out


RNG = np.random.default_rng(0)
N, B, D, K = 14, 6, 3, 4
KEYS, QUERIES = RNG.normal(size=(N, D)), RNG.normal(size=(B, D))
KEY_LABELS = RNG.integers(0, K, size=N)
EXCLUDE = np.array([3, -1, 0, 13, 5, -1])
COUNTS = RNG.random(N) < 0.7
LOGITS, PROBS, SOFT = RNG.normal(size=(B, K)), soft_labels(RNG, B, K), soft_labels(RNG, B, K)
LABELS = RNG.integers(0, K, size=B)
PRESENT = RNG.random((B, K)) < 0.6
PRESENT[np.arange(B), LABELS] = True


@functools.partial(jax.jit, static_argnames=("k", "center"))
def knn(queries, keys, labels, temperature, k, center=True, exclude=None, where=None):
    return L.knn_probabilities(
        queries, keys, labels, num_classes=K, k=k, temperature=temperature, center=center, exclude=exclude, where=where
    )


def test_votes_equal_their_reference(x64):
    got = knn(QUERIES, KEYS, KEY_LABELS, 0.5, N)
    np.testing.assert_allclose(got, probabilities(QUERIES, KEYS, KEY_LABELS, K, N, 0.5), rtol=1e-10)
    for temperature in (0.02, 3.0):
        got = knn(QUERIES, KEYS, KEY_LABELS, temperature, 5, center=False, exclude=EXCLUDE, where=COUNTS)
        want = probabilities(QUERIES, KEYS, KEY_LABELS, K, 5, temperature, False, EXCLUDE, COUNTS)
        np.testing.assert_allclose(got, want, rtol=1e-10)
    # Centred by the keys that count; padding may hold anything.
    padded = np.where(COUNTS[:, None], KEYS, np.nan)
    got = knn(QUERIES, padded, KEY_LABELS, 0.5, 100, exclude=EXCLUDE, where=COUNTS)
    want = probabilities(QUERIES, KEYS, KEY_LABELS, K, 100, 0.5, True, EXCLUDE, COUNTS)
    np.testing.assert_allclose(got, want, rtol=1e-10)


def test_published_votes_and_limits(x64):
    angles = np.arccos(1 - np.array([0.1, 0.4]) / 2)
    keys = np.stack([np.cos(angles), np.sin(angles)], 1)
    got = knn(np.array([[1.0, 0.0]]), keys, np.array([0, 1]), 1.0, 2, center=False)
    np.testing.assert_allclose(got, [[0.574443, 0.425557, 0, 0]], atol=5e-7)
    # All keys and no preference among them: the frequencies of the classes.
    got = knn(QUERIES, KEYS, KEY_LABELS, 1e12, N)
    np.testing.assert_allclose(got, np.tile(np.bincount(KEY_LABELS, minlength=K) / N, (B, 1)), rtol=1e-9)
    # The smallest temperature leaves the nearest one alone.
    nearest = knn(QUERIES, KEYS, KEY_LABELS, 1e-300, N)
    np.testing.assert_array_equal(nearest, probabilities(QUERIES, KEYS, KEY_LABELS, K, 1, 1.0))


def test_a_key_left_out_is_a_key_deleted(x64):
    everyone = np.arange(N)
    got = knn(KEYS, KEYS, KEY_LABELS, 0.3, 5, center=False, exclude=everyone)
    for i in range(N):
        rest = everyone != i
        want = knn(KEYS[i : i + 1], KEYS[rest], KEY_LABELS[rest], 0.3, 5, center=False)
        np.testing.assert_allclose(got[i], want[0], rtol=1e-12)


def test_wrong_labels_are_seen_and_empty_stores_give_nothing():
    labels, units = KEY_LABELS.copy(), [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (QUERIES, KEYS)]
    near = int((units[0] @ units[1].T)[0].argmax())
    labels[near] = K
    run = lambda where: np.asarray(knn(QUERIES, KEYS, labels, 1.0, 1, center=False, where=where))
    p = run(np.ones(N, bool))
    assert np.isnan(p[0]).all() and np.isfinite(p).any()
    np.testing.assert_allclose(run(np.arange(N) != near).sum(1), 1, rtol=1e-6)
    assert not run(np.zeros(N, bool)).any()


def test_on_an_explicit_mesh_neither_sharded_store_nor_similarities_are_gathered():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    rng = np.random.default_rng(1)
    queries, keys, labels = rng.normal(size=(16, 5)), rng.normal(size=(64, 5)), rng.integers(0, K, size=64)
    want = probabilities(queries, keys, labels, K, 3, 1.0)
    with jax.set_mesh(mesh):
        put = lambda x, spec: jax.device_put(jnp.asarray(x, jnp.int32 if x.dtype.kind == "i" else jnp.float32), spec)
        for spec in (jax.P(), jax.P("data")):
            values = put(queries, jax.P("data")), put(keys, spec), put(labels, spec), jnp.float32(1)
            program = knn.lower(*values, 3).compile()
            # With a sharded store the queries [16, 5], the labels [64] and three candidates of every device are gathered.
            gathered = re.findall(r"= \w+\[([\d,]*)\]\S* (?:all-gather|all-to-all)\(", program.as_text())
            sizes = [math.prod(map(int, shape.split(","))) for shape in gathered]
            assert not sizes if spec == jax.P() else 64 in sizes, sizes
            assert not {64 * 5, 16 * 64} & set(sizes), sizes
            np.testing.assert_allclose(program(*values), want, rtol=1e-4)


def losses(z, p, y, where=None):
    """The three functions of logits and neighbours, and their gradients by the logits."""
    total = lambda z: (
        (L.knn_weighted_cross_entropy(z, p, y, coefficient=0.3, where=where)),
        (L.knn_focal_cross_entropy(z, p, y, gamma=1.5, where=where)),
    )
    values, pull = jax.vjp(total, z)
    ones = jnp.ones_like(values[0])
    return values, (pull((ones, 0 * ones))[0], pull((0 * ones, ones))[0])


@pytest.mark.parametrize("where", [None, PRESENT])
@pytest.mark.parametrize("soft", [False, True])
def test_losses_equal_their_references(x64, soft, where):
    labels = SOFT * (1 if where is None else where) if soft else LABELS
    target = labels if soft else np.eye(K)[LABELS]
    values, gradients = jax.jit(losses)(jnp.asarray(LOGITS), PROBS, labels, where)
    factors = 1 + 0.3 * -np.log(PROBS), (1 - PROBS) ** 1.5
    for value, gradient, factor in zip(values, gradients, factors, strict=True):
        for i in range(B):
            log_p = log_softmax(LOGITS[i], None if where is None else where[i])
            weights = target[i] * factor[i]
            want = -sum(weights[c] * log_p[c] for c in range(K) if weights[c])
            assert value[i] == pytest.approx(want, rel=1e-12)
            np.testing.assert_allclose(gradient[i], weights.sum() * np.exp(log_p) - weights, atol=1e-12)


def test_published_losses(x64):
    @jax.jit
    def run(p, y):
        z = jnp.array([2.0, 1.0, 0.0])
        mixed = L.interpolate_knn(z, p, coefficient=0.5)
        return L.knn_weighted_cross_entropy(z, p, y), L.knn_focal_cross_entropy(z, p, y), mixed

    cross_entropy = 0.40760596
    weighted, focal, mixed = run(np.array([0.25, 0.5, 0.25]), 0)
    assert weighted == pytest.approx(0.464112, abs=5e-7)
    assert focal == pytest.approx(0.75**2 * cross_entropy, abs=5e-8)
    np.testing.assert_allclose(mixed, [0.457620, 0.372364, 0.170015], atol=5e-7)
    # A label that no neighbour has: the cap of 100, and the whole loss.
    none = np.array([0.0, 1.0, 0.0])
    weighted, focal, _ = run(none, 0)
    assert weighted == pytest.approx(11 * cross_entropy, rel=1e-7)
    assert focal == pytest.approx(cross_entropy, rel=1e-7)
    assert run(none, 1)[1] == 0


def test_axes_masks_and_traced_strengths(x64):
    @jax.jit
    def run(z, p, y, coefficient, where):
        return (
            L.interpolate_knn(z, p, coefficient=coefficient, axis=1, where=where),
            L.knn_weighted_cross_entropy(z, p, y, coefficient=coefficient, axis=1, where=where),
        )

    z, p = np.moveaxis(LOGITS.reshape(2, 3, K), 2, 1), np.moveaxis(PROBS.reshape(2, 3, K), 2, 1)
    where = np.moveaxis(PRESENT.reshape(2, 3, K), 2, 1)
    mixed, loss = run(z, p, LABELS.reshape(2, 3), 0.25, where)
    softmax = np.array([np.exp(log_softmax(a, b)) for a, b in zip(LOGITS, PRESENT, strict=True)])
    want = np.where(PRESENT, 0.25 * PROBS + 0.75 * softmax, 0)
    np.testing.assert_allclose(mixed, np.moveaxis(want.reshape(2, 3, K), 2, 1), rtol=1e-12)
    own = np.arange(B), LABELS
    want = -np.log(softmax[own]) * (1 - 0.25 * np.log(PROBS[own]))
    np.testing.assert_allclose(loss, want.reshape(2, 3), rtol=1e-12)


@pytest.mark.slow
def test_neighbours_of_few_digits_help_the_network():
    """The published setting in small: hidden features of a network trained on 150 digits, choices made on 300 others."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    tx = optax.adam(0.01)

    @jax.jit
    def predict(key, x, y):
        first, second = jax.random.split(key)
        params = 0.15 * jax.random.normal(first, (64, 64)), 0.15 * jax.random.normal(second, (64, 10))
        hidden = lambda params: jax.nn.relu(x @ params[0])

        def loss(params):
            logits = hidden(params)[:150] @ params[1]
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, y[:150]))

        def one(carry, _):
            updates, state = tx.update(jax.grad(loss)(carry[0]), carry[1])
            return (optax.apply_updates(carry[0], updates), state), None

        params = jax.lax.scan(one, (params, tx.init(params)), length=100)[0][0]
        h = hidden(params)
        vote = lambda t: L.knn_probabilities(h, h[:150], y[:150], num_classes=10, k=8, temperature=t)
        votes = jax.lax.map(vote, jnp.array([0.02, 0.1, 1.0]))
        mix = lambda c: L.interpolate_knn(jnp.broadcast_to(h @ params[1], votes.shape), votes, coefficient=c)
        mixed = jax.vmap(mix)(jnp.array([0.1, 0.3, 0.5]))
        right = lambda p: jnp.argmax(p.reshape(-1, len(y), 10), axis=-1) == y
        return right((h @ params[1])[None]), right(votes), right(mixed)

    scores = []
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(digits.target))[:1000]
        x = jnp.asarray(digits.data[order] / 16, jnp.float32)
        found = [np.asarray(r) for r in predict(jax.random.key(seed), x, digits.target[order])]
        scores.append([r[r[:, 150:450].mean(1).argmax(), 450:].mean() for r in found])
    network, neighbours, both = np.mean(scores, axis=0)
    assert both > network and neighbours > network - 0.02, scores


def test_long_rows_are_searched_in_pieces(x64):
    # 1003 keys, 3 neighbours: pieces of 18 keys, the last of which is not full and holds the nearest of one query.
    queries, keys = RNG.normal(size=(6, 4)), RNG.normal(size=(1003, 4))
    keys[-1] = queries[0]
    labels, where = np.arange(1003) % 7, np.arange(1003) % 3 < 2
    got = L.knn_probabilities(queries, keys, labels, num_classes=7, k=3, temperature=0.1, where=where)
    np.testing.assert_allclose(got, probabilities(queries, keys, labels, 7, 3, 0.1, where=where), rtol=1e-9, atol=1e-12)
