"""Loki: scores and predictions over a metric of labels, against loops and the published example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from tests.references import soft_labels

L = rj.losses
EDGES = np.array([[0, 1], [0, 2], [1, 3], [1, 4], [2, 5], [2, 6], [6, 7]])
TREE = rj.diagnostics.tree_distances(EDGES, 8)
OBSERVED = [3, 4, 5]
RNG = np.random.default_rng(0)


def random_tree(nodes, rng):
    """Random edges, in random order and direction, over shuffled names."""
    names = rng.permutation(nodes)
    edges = np.array([[names[i], names[rng.integers(0, i)]] for i in range(1, nodes)]).reshape(-1, 2)
    flip = rng.random(len(edges)) < 0.5
    return np.where(flip[:, None], edges[:, ::-1], edges)[rng.permutation(len(edges))]


def test_scores_and_predictions_equal_loops(x64):
    p, d = RNG.random((2, 3, 4)), np.abs(RNG.normal(size=(4, 6)))
    scores, labels, one_hot = jax.jit(
        lambda p, d: (L.frechet_scores(p, d), L.frechet_mean_predict(p, d), L.frechet_straight_through(p, d))
    )(p, d)
    for i in np.ndindex(2, 3):
        want = [sum(p[i][k] * d[k, j] ** 2 for k in range(4)) for j in range(6)]
        np.testing.assert_allclose(scores[i], want, rtol=1e-12)
        assert labels[i] == min(range(6), key=want.__getitem__)
        np.testing.assert_array_equal(one_hot[i], np.eye(6)[labels[i]])


def test_published_example():
    p = np.array([[0.5, 0.5, 0], [0.34, 0.33, 0.33], [0.1, 0.1, 0.8], [1, 0, 0]], np.float32)
    distances = TREE[OBSERVED]
    np.testing.assert_array_equal(L.frechet_mean_predict(p, distances), [1, 1, 2, 3])
    scores = np.asarray(L.frechet_scores(p, distances))
    np.testing.assert_allclose(scores[0, [1, 3, 4]], [1, 2, 2], rtol=1e-6)
    np.testing.assert_allclose(scores[1, [1, 0]], [3.64, 4], rtol=1e-6)
    assert scores[2, 2] == pytest.approx(2.6, rel=1e-6)
    # The unit of the distances does not matter.
    np.testing.assert_array_equal(L.frechet_mean_predict(p, 3.7 * distances), [1, 1, 2, 3])
    assert L.loki_locus(EDGES, [3, 4]).tolist() == [1, 3, 4]
    assert L.loki_next_class(TREE, [1, 3, 4]) == 7
    assert L.loki_locus(EDGES, [3, 5]).tolist() == [0, 1, 2, 3, 5]
    assert L.loki_locus(EDGES, [6]).tolist() == [6]
    assert L.loki_locus(np.zeros((0, 2), int), [0]).tolist() == [0]


def test_without_a_metric_it_is_the_argmax_and_ties_go_to_the_lowest(x64):
    p = soft_labels(RNG, 50, 6)
    np.testing.assert_array_equal(L.frechet_mean_predict(p, 1 - np.eye(6)), p.argmax(1))
    assert L.frechet_mean_predict(np.array([0.5, 0.5]), np.array([[0, 2, 1, 1], [2, 0, 1, 1]])) == 2


def test_gradient_passes_straight_through_to_the_scores(x64):
    p, d, out = soft_labels(RNG, 3, 4), np.abs(RNG.normal(size=(4, 5))), RNG.normal(size=(3, 5))
    gradient = jax.jit(jax.grad(lambda p: jnp.sum(out * L.frechet_straight_through(p, d))))(p)
    np.testing.assert_allclose(gradient, -out @ np.square(d).T, rtol=1e-12)


def test_the_locus_is_what_can_be_predicted_and_the_next_class_is_farthest_from_it():
    for seed in range(6):
        rng = np.random.default_rng(seed)
        nodes = int(rng.integers(2, 14))
        edges = random_tree(nodes, rng)
        d = rj.diagnostics.tree_distances(edges, nodes)
        observed = rng.choice(nodes, size=rng.integers(1, min(nodes, 4) + 1), replace=False)
        locus = L.loki_locus(edges, observed)
        # On a path between two nodes the distances to its ends add up.
        between = [j for j in range(nodes) if any(d[a, j] + d[j, b] == d[a, b] for a in observed for b in observed)]
        assert locus.tolist() == between
        # Mixtures of any two observed nodes, and random ones of all.
        corners, shares = np.eye(len(observed)), np.linspace(0, 1, 29)[:, None, None, None]
        pairs = (shares * corners[:, None] + (1 - shares) * corners).reshape(-1, len(observed))
        p = np.concatenate([pairs, rng.dirichlet(np.full(len(observed), 0.3), size=50)])
        predicted = np.argmin(p @ np.square(d[observed].astype(float)), axis=1)
        assert set(predicted.tolist()) == set(between)
        if len(locus) < nodes:
            nearest = {j: min(d[j, i] for i in locus) for j in range(nodes) if j not in between}
            assert L.loki_next_class(d, locus) == max(nearest, key=nearest.get)


def test_the_host_functions_work_on_constants_inside_a_trace():
    locus = jax.jit(lambda x: x + L.loki_locus(EDGES, [3, 5]).sum() + L.loki_next_class(TREE, [1, 3, 4]))(0)
    assert locus == 18


@pytest.mark.slow
def test_unseen_digits_are_predicted_nearer_than_by_the_argmax():
    """The published claim in small: a classifier of six digits, and distances between the means of all ten."""
    datasets, linear = pytest.importorskip("sklearn.datasets"), pytest.importorskip("sklearn.linear_model")
    digits = datasets.load_digits()
    x, y = digits.data / 16, digits.target
    for seed in range(4):
        rng = np.random.default_rng(seed)
        order, known = rng.permutation(len(y)), np.sort(rng.choice(10, 6, replace=False))
        train, test = order[: len(y) * 6 // 10], order[len(y) * 6 // 10 :]
        means = np.stack([x[train][y[train] == c].mean(0) for c in range(10)])
        distances = np.linalg.norm(means[:, None] - means[None], axis=-1)
        chosen = train[np.isin(y[train], known)]
        model = linear.LogisticRegression(C=0.1, max_iter=300).fit(x[chosen], y[chosen])
        probs = model.predict_proba(x[test]).astype(np.float32)
        predicted = np.asarray(L.frechet_mean_predict(probs, distances[known].astype(np.float32)))
        plain, seen = known[probs.argmax(1)], np.isin(y[test], known)
        far = lambda guess, part, y=y[test], d=distances: np.mean(np.square(d[y[part], guess[part]]))
        right = lambda guess, part, y=y[test]: np.mean(guess[part] == y[part])
        assert far(predicted, ~seen) < far(plain, ~seen)
        assert right(predicted, seen) >= right(plain, seen) - 0.02
