"""Selective mixup: gains against the written-out sums, the published values, and the draws."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import regjax as rj

RNG = np.random.default_rng(0)
K, D = 4, 3
CONFUSION = RNG.dirichlet(np.ones(K), size=K) / K
Z, KERNEL, BIAS = RNG.normal(size=(K, D)), RNG.normal(size=(D, K)), RNG.normal(size=K)
MULTIPLIERS, COVERAGES = RNG.dirichlet(np.ones(K)), RNG.uniform(0, 3, K)
SMALL = np.array([[0.4, 0.1], [0.3, 0.2]])


def sensitivity(c, metric, coverages=None):
    """dmetric/dA by the chain rule from dmetric/dC, whose closed forms are written out."""
    rows = c.sum(1)
    recall = np.diagonal(c) / rows
    weight = {
        "mean_recall": np.full(K, 1 / K),
        "min_recall": MULTIPLIERS,
        "g_mean": np.exp(np.mean(np.log(recall))) / (K * recall),
        "h_mean": K / np.sum(1 / recall) ** 2 / recall**2,
    }[metric]
    slope = np.zeros((K, K))
    for k in range(K):
        for j in range(K):
            slope[k, j] = weight[k] * ((k == j) / rows[k] - c[k, k] / rows[k] ** 2)
            slope[k, j] += 0 if coverages is None else coverages[j]
    result = np.zeros((K, K))
    for q in range(K):
        for j in range(K):
            for m in range(K):
                result[q, j] += slope[q, m] * c[q, m] * ((m == j) - K * c[q, j])
    return result if coverages is None else result / (max(coverages) + 1)


def gains(r, w, anchor):
    out = np.zeros((K, K))
    for i in range(K):
        for j in range(K):
            m = w * Z[i] + (1 - w) * Z[j]
            p = np.exp(m @ KERNEL + BIAS)
            p /= p.sum()
            for q in range(K):
                for k in range(K):
                    positive = (Z[i] if anchor else m) @ Z[q] * (k == i)
                    out[i, j] += r[q, k] * (positive - m @ Z[q] * p[k])
    return out


@pytest.mark.parametrize(
    ("metric", "coverages", "positive_term"),
    [
        ("mean_recall", None, "mixed"),
        ("min_recall", COVERAGES, "mixed"),
        ("g_mean", None, "anchor"),
        ("h_mean", COVERAGES, "mixed"),
    ],
)
def test_gain_is_the_sum_over_classes(x64, metric, coverages, positive_term):
    options = {"multipliers": MULTIPLIERS} if metric == "min_recall" else {}
    got = rj.inputs.selmix_gain(
        CONFUSION, Z, KERNEL, BIAS, metric=metric, coverage_multipliers=coverages, mixing_weight=0.7, positive_term=positive_term,
        **options,
    )  # fmt: skip
    want = gains(sensitivity(CONFUSION, metric, coverages), 0.7, positive_term == "anchor")
    np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)


def test_a_metric_of_ones_own_and_first_order_truth(x64):
    """The gain of a pair is the slope of the metric along the step that one example of that pair would make."""
    own = lambda c: jnp.mean(jnp.diagonal(c) / jnp.sum(c, axis=1))
    got = rj.inputs.selmix_gain(CONFUSION, Z, KERNEL, BIAS, metric=own)
    np.testing.assert_allclose(got, rj.inputs.selmix_gain(CONFUSION, Z, KERNEL, BIAS), rtol=1e-12)
    i, j, step = 1, 2, 1e-6
    m = 0.8 * Z[i] + 0.2 * Z[j]
    p = np.exp(m @ KERNEL + BIAS)
    update = np.outer(m, np.eye(K)[i] - p / p.sum())
    metric = lambda size: float(own(jax.nn.softmax(np.log(K * CONFUSION) + size * Z @ update, axis=1) / K))
    assert got[i, j] == pytest.approx((metric(step) - metric(-step)) / (2 * step), rel=1e-6)


def test_published_values():
    head = (SMALL, np.eye(2), np.eye(2), np.zeros(2))
    head = tuple(x.astype(np.float32) for x in head)
    gain_of = jax.jit(rj.inputs.selmix_gain, static_argnames="positive_term")
    gain = gain_of(*head)
    np.testing.assert_allclose(gain, [[0.04303063, 0.0283475], [0.05669499, 0.06454594]], rtol=1e-5)
    anchor = gain_of(*head, positive_term="anchor")
    np.testing.assert_allclose(anchor, [[0.04303063, 0.0683475], [0.09669499, 0.06454594]], rtol=1e-5)
    pairs = rj.inputs.selmix_distribution(gain)
    np.testing.assert_allclose(pairs, [[0.23529905, 0.20316652], [0.26975143, 0.29178300]], rtol=1e-5)
    recall = rj.inputs.selmix_recall_multipliers(jnp.array([0.8, 0.4]), jnp.array([0.9, 0.1]), rate=1.0)
    np.testing.assert_allclose(recall, [0.40131234, 0.59868766], rtol=1e-6)
    coverage = rj.inputs.selmix_coverage_multipliers(jnp.array([0.7, 0.3]), max_value=10.0)
    np.testing.assert_allclose(coverage, [0, 8.26226057], rtol=1e-6)
    # With beta the past counts, also one of 0.
    kept = rj.inputs.selmix_recall_multipliers(jnp.array([0.8, 0.4]), jnp.array([0.9, 0.1]), beta=1.0, rate=1.0)
    want = np.array([0.9 * math.exp(-0.8), 0.1 * math.exp(-0.4)])
    np.testing.assert_allclose(kept, want / want.sum(), rtol=1e-5)
    gone = rj.inputs.selmix_recall_multipliers(jnp.zeros(2), jnp.array([1.0, 0.0]), beta=1.0)
    np.testing.assert_allclose(gone, [1, 0], atol=1e-30)


def test_distribution_without_and_with_gains():
    np.testing.assert_allclose(rj.inputs.selmix_distribution(-jnp.ones((3, 3))), np.full((3, 3), 1 / 9), rtol=1e-6)
    gain = jnp.array([[0.3, -5.0], [0.1, 0.0]])
    want = np.exp(np.array(gain) / 0.2) * (np.array(gain) > 0) / np.exp(np.array(gain) / 0.2).sum() + 1e-3
    got = jax.jit(functools.partial(rj.inputs.selmix_distribution, floor=1e-3))(gain, temperature=jnp.float32(0.2))
    np.testing.assert_allclose(got, want / want.sum(), rtol=1e-5)
    got = rj.inputs.selmix_distribution(1e6 * gain)
    np.testing.assert_allclose(got, [[1, 0], [0, 0]], atol=1e-6)


def test_refresh_is_its_parts_and_remembers():
    head = tuple(x.astype(np.float32) for x in (CONFUSION, Z, KERNEL, BIAS))
    options = dict(metric="min_recall", coverage=True, beta=0.5, rate=4.0, tau=0.2, max_value=3.0, alpha=0.9, mixing_weight=0.7)
    refresh = rj.inputs.selmix_refresh(K, temperature=lambda step: 0.1 * step, **options)
    apply = jax.jit(refresh.apply)
    state, past = refresh.init(), jnp.full(K, 1 / K)
    for step in (1, 2):
        pairs, state = apply(state, *head, step=step)
        past = rj.inputs.selmix_recall_multipliers(np.diagonal(head[0]) / head[0].sum(1), past, beta=0.5, rate=4.0)
        coverages = rj.inputs.selmix_coverage_multipliers(head[0].sum(0), alpha=0.9, tau=0.2, max_value=3.0)
        gain = rj.inputs.selmix_gain(
            *head, metric="min_recall", multipliers=past, coverage_multipliers=coverages, mixing_weight=0.7
        )
        want = rj.inputs.selmix_distribution(gain, temperature=0.1 * step, floor=1e-8)
        np.testing.assert_allclose(pairs, want, rtol=1e-4, atol=1e-7)
        np.testing.assert_allclose(state.multipliers, past, rtol=1e-5)
    # Other metrics leave the multipliers alone.
    plain = rj.inputs.selmix_refresh(K)
    pairs, state = plain.apply(plain.init(), *head)
    np.testing.assert_allclose(pairs, rj.inputs.selmix_distribution(rj.inputs.selmix_gain(*head)), rtol=1e-5)
    np.testing.assert_array_equal(state.multipliers, plain.init().multipliers)


def test_confusion_and_prototypes_are_the_loops():
    labels, guesses = RNG.integers(-1, K, 40), RNG.integers(0, K, 40)
    labels[labels == 2] = 0
    features, where = RNG.normal(size=(40, D)).astype(np.float32), RNG.random(40) < 0.7
    features[~where] = np.nan
    confusion, means = np.zeros((K, K)), np.zeros((K, D))
    for k in range(K):
        members = [i for i in range(40) if where[i] and labels[i] == k]
        for i in members:
            confusion[k, guesses[i]] += 1 / (K * len(members))
            means[k] += features[i] / len(members)
        if not members:
            confusion[k] = 1 / K**2
    got = rj.inputs.class_balanced_confusion(guesses, labels, num_classes=K, where=where)
    np.testing.assert_allclose(got, confusion, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(got.sum(1), 1 / K, rtol=1e-6)
    got = rj.inputs.class_prototypes(features, labels, num_classes=K, where=where)
    np.testing.assert_allclose(got, means, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(got[2], 0)


def test_examples_are_uniform_within_their_class():
    labels = np.array([2, 0, 2, -1, 0, 2, 5, 2, 3])
    where = np.arange(9) != 7
    index = jax.jit(functools.partial(rj.inputs.class_index, num_classes=4))(labels, where=where)
    np.testing.assert_array_equal(index.counts, [2, 0, 3, 1])
    classes = np.arange(6000) % 6 - 1
    indices, found = jax.jit(rj.inputs.sample_class_examples)(jax.random.key(0), index, classes)
    indices = np.asarray(indices)
    assert indices.min() >= 0
    assert indices.max() < 9
    np.testing.assert_array_equal(found, np.isin(classes, [0, 2, 3]))
    for k, members in ((0, [1, 4]), (2, [0, 2, 5]), (3, [8])):
        counts = np.array([(indices[classes == k] == i).sum() for i in members])
        assert counts.sum() == 1000, "an example of another class, or of none"
        p = 1 / len(members)
        assert np.all(abs(counts - 1000 * p) <= 5 * math.sqrt(1000 * p * (1 - p)))
    empty = rj.inputs.class_index(np.full(3, 7), num_classes=2)
    assert not rj.inputs.sample_class_examples(jax.random.key(0), empty, jnp.array([0, 1]))[1].any()


def test_pairs_follow_their_distribution():
    pairs = np.array([[0.3, 0.0, 0.1], [0.0, 0.0, 0.0], [0.05, 0.5, 0.05]], np.float32)
    n = 20_000
    y1, y2 = jax.jit(rj.inputs.sample_class_pairs, static_argnums=2)(jax.random.key(0), 7 * pairs, n)
    counts = np.bincount(3 * np.asarray(y1) + np.asarray(y2), minlength=9).reshape(3, 3)
    assert np.all(abs(counts - n * pairs) <= 5 * np.sqrt(n * pairs * (1 - pairs)))


def test_mix_keeps_at_least_the_least_weight():
    n = 4000
    h1, h2 = np.stack([np.ones(n), np.zeros(n)], 1).astype(np.float32), np.stack([np.zeros(n), np.ones(n)], 1).astype(np.float32)
    mixed = np.asarray(jax.jit(rj.inputs.selmix_mix)(jax.random.key(0), h1, h2, min_weight=0.6))
    np.testing.assert_allclose(mixed.sum(1), 1, rtol=1e-6)
    lam = mixed[:, 0]
    assert 0.6 <= lam.min() < 0.602
    assert 0.998 < lam.max() <= 1
    assert abs(lam.mean() - 0.8) < 5 * 0.4 / math.sqrt(12 * n)
    np.testing.assert_allclose(np.histogram(lam, 4, (0.6, 1))[0], n / 4, atol=5 * math.sqrt(n * 3 / 16))
    assert rj.inputs.selmix_mix(jax.random.key(0), h1.astype(jnp.bfloat16), h2.astype(jnp.bfloat16)).dtype == jnp.bfloat16
    assert rj.inputs.apply_selmix(np.ones((2, 3, 2)), np.zeros((2, 3, 2)), lam=np.array([0.25, 1.0]))[0, 0, 0] == 0.25


def digits(seed):
    """Training digits with ten times as many of 0-4 as of 5-9, and balanced ones held out for the refresh and for the test."""
    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(seed).permutation(len(x))
    x, y = x[order].astype(np.float32) / 16, y[order].astype(np.int32)
    places = [np.flatnonzero(y == k) for k in range(10)]
    train = np.concatenate([p[: 80 if k < 5 else 8] for k, p in enumerate(places)])
    parts = (train, np.concatenate([p[80:100] for p in places]), np.concatenate([p[100:150] for p in places]))
    return [(x[rows], y[rows]) for rows in parts]


@pytest.mark.slow
def test_selected_pairs_raise_the_worst_recall_of_an_imbalanced_network():
    """After 600 steps of plain training, 500 of fine-tuning on selected pairs against pairs as frequent as the examples."""
    loss_fn = optax.losses.softmax_cross_entropy_with_integer_labels
    refresh = rj.inputs.selmix_refresh(10, metric="min_recall")
    features = lambda p, x: jax.nn.relu(jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"])
    logits = lambda p, h: h @ p["w3"] + p["b3"]
    confusion = lambda p, x, y: rj.inputs.class_balanced_confusion(jnp.argmax(logits(p, features(p, x)), -1), y, num_classes=10)

    def descend(tx, loss, length):
        def step(carry, key):
            params, opt_state = carry
            updates, opt_state = tx.update(jax.grad(loss)(params, key), opt_state, params)
            return (optax.apply_updates(params, updates), opt_state), None

        return lambda carry, key: jax.lax.scan(step, carry, jax.random.split(key, length))[0]

    @jax.jit
    @jax.vmap
    def run(key, train, held_out, test):
        (x, y), keys = train, jax.random.split(key, 3)
        index = rj.inputs.class_index(y, num_classes=10)
        params = {f"b{i + 1}": jnp.zeros(n) for i, n in enumerate((64, 64, 10))}
        for i, n in enumerate((64, 64, 10)):
            params[f"w{i + 1}"] = jax.random.normal(jax.random.fold_in(keys[0], i), (64, n)) * math.sqrt(2 / 64)

        def plain(p, key):
            rows = jax.random.randint(key, (64,), 0, len(y))
            return loss_fn(logits(p, features(p, x[rows])), y[rows]).mean()

        adam, sgd = optax.adam(1e-3), optax.sgd(optax.cosine_decay_schedule(3e-3, 500), momentum=0.9)
        params = descend(adam, plain, 600)((params, adam.init(params)), keys[1])[0]
        frequency = index.counts / len(y)

        def tune(select):
            def refreshed(carry, key):
                p, opt_state, state = carry
                z = rj.inputs.class_prototypes(features(p, held_out[0]), held_out[1], num_classes=10)
                pairs, state = refresh.apply(state, confusion(p, *held_out), z, p["w3"], p["b3"])
                pairs = jnp.where(select, pairs, jnp.outer(frequency, frequency))

                def mixed(p, key):
                    pair_key, first_key, second_key, mix_key = jax.random.split(key, 4)
                    y1, y2 = rj.inputs.sample_class_pairs(pair_key, pairs, 64)
                    first, _ = rj.inputs.sample_class_examples(first_key, index, y1)
                    second, _ = rj.inputs.sample_class_examples(second_key, index, y2)
                    h = rj.inputs.selmix_mix(mix_key, features(p, x[first]), features(p, x[second]))
                    return loss_fn(logits(p, h), y1).mean()

                return (*descend(sgd, mixed, 50)((p, opt_state), key), state), None

            start = (params, sgd.init(params), refresh.init())
            p = jax.lax.scan(refreshed, start, jax.random.split(keys[2], 10))[0][0]
            return 10 * jnp.min(jnp.diagonal(confusion(p, *test)))

        return jax.vmap(tune)(jnp.array([True, False]))

    sets = jax.tree.map(lambda *parts: jnp.stack(parts), *[tuple(digits(seed)) for seed in range(5)])
    recall = np.asarray(run(jax.random.split(jax.random.key(0), 5), *sets))
    assert np.mean(recall[:, 0] - recall[:, 1]) > 0.05, recall
    assert np.sum(recall[:, 0] > recall[:, 1]) >= 4, recall
