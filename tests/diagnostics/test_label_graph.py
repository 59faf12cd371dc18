"""Distances in trees against the shortest paths of all pairs."""

import numpy as np

from regjax.diagnostics import tree_distances


def shortest(edges, nodes):
    """Floyd and Warshall's algorithm."""
    d = np.where(np.eye(nodes, dtype=bool), 0.0, np.inf)
    for a, b in edges:
        d[a, b] = d[b, a] = 1
    for k in range(nodes):
        d = np.minimum(d, d[:, k : k + 1] + d[k : k + 1])
    return d


def test_random_trees_in_any_order_of_their_edges():
    for seed in range(8):
        rng = np.random.default_rng(seed)
        nodes = int(rng.integers(1, 20))
        names = rng.permutation(nodes)
        edges = np.array([[names[i], names[rng.integers(0, i)]] for i in range(1, nodes)], int).reshape(-1, 2)
        edges = np.where(rng.random((len(edges), 1)) < 0.5, edges[:, ::-1], edges)
        got = tree_distances(edges, nodes)
        assert got.dtype == np.int32
        np.testing.assert_array_equal(got, shortest(edges, nodes))
        np.testing.assert_array_equal(tree_distances(edges[::-1].tolist() or edges, nodes), got)
