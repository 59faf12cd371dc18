"""Sampling of layers and ranks: all pairs alike, dead layers never, and a traced number of ranks."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj

RANKS = np.array([3, 0, 1, 4])
PAIRS = [(layer, rank) for layer, most in enumerate(RANKS) for rank in range(1, most + 1)]


def test_every_index_is_one_pair_in_order_and_beyond_ends_at_the_nearest():
    layers, ranks = jax.jit(jax.vmap(rj.layers.rank_pair, (0, None)))(jnp.arange(-2, 10), jnp.asarray(RANKS))
    got = list(zip(layers.tolist(), ranks.tolist(), strict=True))
    assert got == [PAIRS[0]] * 2 + PAIRS + [PAIRS[-1]] * 2
    assert tuple(map(int, rj.layers.rank_pair(7, jnp.zeros(3, int)))) == (0, 0)


def test_pairs_are_uniform():
    draws = 4000
    keys = jax.random.split(jax.random.key(0), draws)
    layers, ranks = jax.jit(jax.vmap(rj.layers.sample_rank, (0, None)))(keys, jnp.asarray(RANKS))
    counts = np.zeros((4, 5))
    np.add.at(counts, (np.asarray(layers), np.asarray(ranks)), 1)
    p = 1 / len(PAIRS)
    for layer, rank in PAIRS:
        assert abs(counts[layer, rank] / draws - p) < 4 * np.sqrt(p * (1 - p) / draws)
    assert counts.sum() == sum(counts[pair] for pair in PAIRS)


def test_across_layers_every_layer_is_uniform_and_independent():
    draws = 4000
    keys = jax.random.split(jax.random.key(1), draws)
    ranks = np.asarray(jax.jit(jax.vmap(rj.layers.sample_ranks, (0, None)))(keys, jnp.asarray(RANKS)))
    for layer, most in enumerate(RANKS):
        found = np.bincount(ranks[:, layer], minlength=5)
        if not most:
            assert found[0] == draws
            continue
        assert found[0] == 0 and not found[most + 1 :].any()
        p = 1 / most
        assert np.all(np.abs(found[1 : most + 1] / draws - p) <= 4 * np.sqrt(p * (1 - p) / draws))
    assert abs(np.corrcoef(ranks[:, 0], ranks[:, 3])[0, 1]) < 4 / np.sqrt(draws)


def test_one_trace_serves_all_ranks():
    traces = []

    @jax.jit
    def sample(key, ranks):
        traces.append(1)
        return rj.layers.sample_rank(key, ranks)

    for ranks in ([1, 0], [0, 1]):
        layer, rank = sample(jax.random.key(0), jnp.array(ranks))
        assert (int(layer), int(rank)) == (ranks.index(1), 1)
    assert len(traces) == 1
