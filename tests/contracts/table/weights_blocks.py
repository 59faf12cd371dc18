"""Examples of `regjax.weights`: block steps and a spectral start."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal
from tests.contracts.table.weights import PARAMS, TREE, ZEROS, P, refused

GRADS = jax.tree.map(lambda x: np.cos(5 * x), PARAMS)
CURVATURE = np.array([1.0, 2.0, 0.5, 3.0, 1.5])
MATRICES, TARGETS = normal(8, 3, 3), normal(8, seed=1)


def step(params, grad, **given):
    curvature = jnp.asarray(CURVATURE[: len([x for x in jax.tree.leaves(params) if jnp.issubdtype(x.dtype, jnp.floating)])])
    return rj.weights.prox_block_step(params, grad, **{"block_lipschitz": curvature, **given})


def plain(params, grad):
    """A gradient step on the leaf that the rule GSL chooses."""
    curvature = jnp.asarray(CURVATURE, jnp.float32)
    chosen = rj.gradients.select_block(grad, rule="gsl", block_lipschitz=curvature)
    leaves, structure = jax.tree.flatten(params)
    moved = [
        jnp.where(i == chosen, x - d / curvature[i], x)
        for i, (x, d) in enumerate(zip(leaves, jax.tree.leaves(grad), strict=True))
    ]
    return jax.tree.unflatten(structure, moved)


def wrong(params=P, grad=P, **given):
    return rj.weights.prox_block_step(params, grad, **{"block_lipschitz": jnp.ones(2), **given})


def start(A=None, y=None, rank=2, scale=0.1):
    A, y = jnp.ones((3, 2, 2)) if A is None else A, jnp.ones(3) if y is None else y
    return rj.weights.spectral_small_init(A, y, rank=rank, scale=scale)


EXAMPLES = (
    Example(
        name="weights.prox_block_step",
        call=lambda key, params, grad: step(params, grad, strength=0.1),
        arrays={**TREE, "grad": GRADS},
        result="other",
        dtype="input",
        wrt=("params", "grad"),
        tree="params",
        singular=(ZEROS, {"grad": ZEROS["params"]}),
        identity=lambda key, params, grad: (step(params, grad), plain(params, grad)),
        bad={
            "grad: another structure": lambda: wrong(grad={"kernel": P["kernel"]}),
            "block_lipschitz: another size": lambda: wrong(block_lipschitz=jnp.ones(3)),
            "block_lipschitz: missing": lambda: wrong(block_lipschitz=None),
            "blocks: an unknown word": lambda: wrong(blocks="leaves"),
            "blocks: another structure": lambda: wrong(blocks={"other": 0}),
            "blocks: negative": lambda: wrong(blocks={"kernel": -1, "bias": 0}),
            "prox: misspelt": lambda: wrong(prox="l2"),
            **refused(wrong, "strength"),
        },
    ),
    Example(
        name="weights.spectral_small_init",
        call=lambda key, A, y: rj.weights.spectral_small_init(A, y, rank=2, scale=0.1),
        arrays={"A": MATRICES, "y": TARGETS},
        rows=("A", "y"),
        result="scalar",
        identity=lambda key, A, y: (rj.weights.spectral_small_init(A, y, rank=2, scale=0.0), jnp.zeros((3, 2))),
        singular=({"A": np.zeros((8, 3, 3))}, {"y": np.zeros(8)}),
        bad={
            "A: a matrix": lambda: start(A=jnp.ones((2, 2))),
            "A: not square": lambda: start(A=jnp.ones((3, 2, 1))),
            "A: integers": lambda: start(A=jnp.ones((3, 2, 2), int)),
            "y: another length": lambda: start(y=jnp.ones(2)),
            "rank: zero": lambda: start(rank=0),
            "rank: beyond d": lambda: start(rank=3),
            "scale: negative": lambda: start(scale=-1.0),
            "scale: NaN": lambda: start(scale=float("nan")),
        },
    ),
)
