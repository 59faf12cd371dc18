"""The ladder of projectors against a loop over its blocks."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import regjax as rj

RNG = np.random.default_rng(0)


def test_equals_the_loop_and_every_block_takes_part():
    projector = rj.layers.LadderProjector([4, 3, 4], 5, hidden_features=6, last_hidden_features=9, rngs=nnx.Rngs(0))
    graph, state = nnx.split(projector)
    blocks = [RNG.normal(size=(2, 3, d)).astype(np.float32) for d in (4, 3, 4)]
    apply = jax.jit(lambda state, blocks: nnx.merge(graph, state)(blocks))
    want = np.zeros((2, 3, 5))
    for x, hidden, out in zip(blocks, projector.hidden, projector.out, strict=True):
        for i in np.ndindex(2, 3):
            h = x[i].astype(np.float64) @ hidden.kernel[...] + hidden.bias[...]
            h = np.array([v * 0.5 * (1 + math.erf(v / math.sqrt(2))) for v in h])
            want[i] += h @ np.asarray(out.kernel[...]) + np.asarray(out.bias[...])
    np.testing.assert_allclose(apply(state, blocks), want, rtol=1e-4, atol=1e-5)
    assert [h.out_features for h in projector.hidden] == [6, 6, 9]
    by_state, by_blocks = jax.jit(jax.grad(lambda *at: jnp.sum(apply(*at) ** 2), (0, 1)))(state, blocks)
    assert all(np.any(leaf) for leaf in jax.tree.leaves((by_state, by_blocks)))


def test_a_stacked_array_is_a_sequence_of_blocks_and_one_block_is_the_last():
    projector = rj.layers.LadderProjector([4] * 2, 3, hidden_features=6, last_hidden_features=8, rngs=nnx.Rngs(1))
    x = jnp.asarray(RNG.normal(size=(2, 5, 4)), jnp.float32)
    np.testing.assert_allclose(projector(x), projector([x[0], x[1]]), rtol=1e-6)
    assert projector([b.astype(jnp.bfloat16) for b in x]).dtype == jnp.float32
    single = rj.layers.LadderProjector([4], 3, last_hidden_features=8, rngs=nnx.Rngs(1))
    assert [h.out_features for h in single.hidden] == [8]
