"""Examples of `regjax.weights`: masks, soft shrinkage, n of m, and the penalty on attention."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal, probabilities
from tests.contracts.table.weights import P, refused, wrong_where

PARAMS = {"dense": {"kernel": normal(8, 3), "bias": normal(3, seed=1)}, "head": {"kernel": normal(8, 3, seed=2)}}
MASK = {"dense": {"kernel": normal(8, 3) > 0, "bias": np.array(True)}, "head": {"kernel": normal(8, 3, seed=2) < 0.5}}
TREE = {"params": PARAMS}
ZEROS, ONES = ({"params": jax.tree.map(fill, PARAMS)} for fill in (np.zeros_like, np.ones_like))
M = {"kernel": jnp.ones((2, 2), bool), "bias": jnp.ones((), bool)}
KERNEL = normal(8, 3, seed=4)
W = jnp.ones((4, 2))
ATTENTION = probabilities(8, 2, 3)
A = jnp.ones((2, 2)) / 2

apply, density, topk, magnitude = (
    rj.weights.apply_mask,
    rj.weights.density,
    rj.weights.topk_mask,
    rj.weights.global_magnitude_mask,
)
shrink, nm, ste, attention = (
    rj.weights.soft_shrinkage,
    rj.weights.nm_mask,
    rj.weights.sr_ste,
    rj.weights.attention_log_penalty,
)


def ones(tree):
    """The mask that keeps all."""
    return jax.tree.map(lambda x: jnp.ones(x.shape if x.ndim == 2 else (), bool), tree)


def shares(call) -> dict:
    return {**refused(call, "sparsity"), "sparsity: above 1": lambda: call(sparsity=1.5)}


def patterns(call) -> dict:
    """The wrong patterns that ``call(n=, m=)`` refuses."""
    return {
        "n: above m": lambda: call(n=3, m=2),
        "n: zero": lambda: call(n=0, m=2),
        "m: a fraction": lambda: call(n=1, m=2.0),
    }


EXAMPLES = (
    Example(
        name="weights.apply_mask",
        call=lambda key, params, mask: apply(params, mask),
        arrays={"params": PARAMS, "mask": MASK},
        result="other",
        dtype="input",
        wrt=("params",),
        tree="params",
        identity=lambda key, params, mask: (apply(params, ones(params)), params),
        singular=(ZEROS,),
        bad={
            "mask: numbers": lambda: apply(P, {**M, "kernel": jnp.ones((2, 2))}),
            "mask: another shape": lambda: apply(P, {**M, "kernel": jnp.ones((2, 1), bool)}),
            "mask: another structure": lambda: apply(P, {"kernel": M["kernel"]}),
        },
    ),
    Example(
        name="weights.density",
        call=lambda key, mask: density(mask),
        arrays={"mask": MASK},
        result="other",
        bad={"mask: numbers": lambda: density(P)},
    ),
    Example(
        name="weights.topk_mask",
        call=lambda key, scores: topk(scores, sparsity=0.5),
        arrays={"scores": PARAMS},
        result="other",
        tree="scores",
        identity=lambda key, scores: (topk(scores, sparsity=0.0), ones(scores)),
        bad={
            **shares(lambda sparsity: topk(P, sparsity=sparsity)),
            "distribution: misspelt": lambda: topk(P, sparsity=0.5, distribution="erks"),
            "normalize: a number": lambda: topk(P, sparsity=0.5, normalize=1),
            **wrong_where(lambda scores=P, **given: topk(scores, sparsity=0.5, **given)),
        },
    ),
    Example(
        name="weights.global_magnitude_mask",
        call=lambda key, params: magnitude(params, sparsity=0.3, normalize=True),
        arrays=TREE,
        result="other",
        tree="params",
        identity=lambda key, params: (magnitude(params, sparsity=0.0), ones(params)),
        singular=(ZEROS,),
        bad={
            **shares(lambda sparsity: magnitude(P, sparsity=sparsity)),
            "normalize: a number": lambda: magnitude(P, normalize=1),
            **wrong_where(lambda params=P, **given: magnitude(params, **given)),
        },
    ),
    Example(
        name="weights.soft_shrinkage",
        call=lambda key, params: shrink(params, sparsity=0.5, ratio=0.5),
        arrays=TREE,
        result="other",
        dtype="input",
        wrt=("params",),
        tree="params",
        identity=lambda key, params: (shrink(params, sparsity=0.5, ratio=1.0), params),
        singular=(ZEROS, ONES),
        bad={
            **shares(lambda sparsity: shrink(P, sparsity=sparsity)),
            **refused(lambda ratio: shrink(P, sparsity=0.5, ratio=ratio), "ratio"),
            "sparsity: a schedule": lambda: shrink(P, sparsity=lambda step: 0.5),
            "sparsity: missing": lambda: shrink(P),
            "sparsity: beside n and m": lambda: shrink(P, sparsity=0.5, n=1, m=2),
            "scope: misspelt": lambda: shrink(P, sparsity=0.5, scope="locals"),
            **patterns(lambda **given: shrink(P, **given)),
            "m: missing": lambda: shrink(P, n=1),
            "where: inputs that are no multiple": lambda: shrink(P, n=1, m=3),
            **wrong_where(lambda params=P, **given: shrink(params, sparsity=0.5, **given)),
        },
    ),
    Example(
        name="weights.nm_mask",
        call=lambda key, scores: nm(scores, n=2, m=4, axis=0),
        arrays={"scores": KERNEL},
        rows=("scores",),
        result="other",
        identity=lambda key, scores: (nm(scores, n=4, m=4, axis=0), jnp.ones(scores.shape, bool)),
        bad={
            "scores: integers": lambda: nm(jnp.ones(4, int), n=1, m=2),
            "scores: no multiple of m": lambda: nm(W, n=1, m=3),
            "axis: out of range": lambda: nm(W, n=1, m=2, axis=2),
            "axis: a fraction": lambda: nm(W, n=1, m=2, axis=0.5),
            **patterns(lambda **given: nm(W, **given)),
        },
    ),
    Example(
        name="weights.sr_ste",
        call=lambda key, w: ste(w, n=2, m=4, decay=0.1),
        arrays={"w": KERNEL},
        rows=("w",),
        result="other",
        dtype="input",
        wrt=("w",),
        surrogate=True,
        identity=lambda key, w: (ste(w, n=4, m=4), w),
        singular=({"w": np.zeros((8, 3))},),
        bad={
            "w: a vector": lambda: ste(jnp.ones(4), n=1, m=2),
            "w: integers": lambda: ste(jnp.ones((4, 2), int), n=1, m=2),
            "w: no multiple of m": lambda: ste(W, n=1, m=3),
            "axis: out of range": lambda: ste(W, n=1, m=2, axis=2),
            **refused(lambda decay: ste(W, n=1, m=2, decay=decay), "decay"),
            **patterns(lambda **given: ste(W, **given)),
        },
    ),
    Example(
        name="weights.attention_log_penalty",
        call=lambda key, attention_: attention(attention_),
        arrays={"attention_": ATTENTION},
        rows=("attention_",),
        result="scalar",
        wrt=("attention_",),
        singular=({"attention_": np.zeros((8, 2, 3))}, {"attention_": np.full((8, 2, 3), 1e4)}),
        bad={
            "attention: integers": lambda: attention(jnp.ones((2, 2), int)),
            "attention: a vector": lambda: attention(jnp.ones(2)),
            "attention: no block": lambda: attention([]),
            "all_blocks: a number": lambda: attention(A, all_blocks=1),
            "where: weights": lambda: attention(A, where=A),
            "where: does not broadcast": lambda: attention(A, where=jnp.ones((3, 2), bool)),
        },
    ),
)
