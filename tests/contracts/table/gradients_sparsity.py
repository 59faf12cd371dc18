"""Examples of `regjax.gradients`: optimisers that hold weights at zero."""

import dataclasses

import jax
import jax.numpy as jnp
import optax

import regjax as rj
from tests.contracts.example import Example
from tests.contracts.table.gradients import PARAMS, P, refused, transformation, updates, wrong_where
from tests.contracts.table.weights_masks import patterns, shares

SGD = optax.sgd(0.1)


def prune(inner=SGD, **given):
    return rj.gradients.prune(inner, **{"sparsity": 0.5, **given})


def nm(inner=SGD, **given):
    return rj.gradients.nm_pruning(inner, **{"n": 2, "m": 4, **given})


def iss(sparsity=0.5, **given):
    return rj.gradients.iss_p(sparsity, **given)


def half(params):
    return rj.weights.topk_mask(params, sparsity=0.5)


def fixed(inner=SGD, mask=half, **given):
    return rj.gradients.fixed_mask(inner, mask, **given)


def memory(make):
    """The state after ``init``, whose masks a checkpoint has to bring back."""
    tx = make()
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)
    return lambda: (tx.init(params), lambda state, key, grads, params: tx.update(grads, state, params))


def steps(make) -> dict:
    return {
        "start: negative": lambda: make(start=-1),
        "end: before start": lambda: make(start=2, end=1),
        "end: a fraction": lambda: make(end=1.5),
        "every: zero": lambda: make(every=0),
    }


def sparsifier(name, make, **fields) -> Example:
    """The example of a transformation that may refresh a mask: XLA counts that in every step."""
    return dataclasses.replace(transformation(name, make, **fields), flops=1.02)


EXAMPLES = (
    sparsifier(
        "prune",
        lambda: prune(end=2),
        zero=lambda: prune(sparsity=0.0),
        plain=lambda: SGD,
        memory=memory(lambda: prune(end=2, scores="random")),
        bad={
            **shares(prune),
            **steps(prune),
            "inner: a word": lambda: prune("sgd"),
            "scores: misspelt": lambda: prune(scores="magnitudes"),
            "scores: another structure": lambda: updates(prune(scores=lambda params, grads, key: params["kernel"]), P, P),
            "distribution: misspelt": lambda: prune(distribution="erks"),
            "normalize: a number": lambda: prune(normalize=1),
            "sparse_gradients: a number": lambda: prune(sparse_gradients=1),
            "seed: a fraction": lambda: prune(seed=0.5),
            **wrong_where(prune),
        },
    ),
    sparsifier(
        "nm_pruning",
        nm,
        zero=lambda: nm(n=4),
        plain=lambda: SGD,
        memory=memory(nm),
        bad={
            **patterns(nm),
            **steps(nm),
            "inner: a word": lambda: nm("sgd"),
            "axis: a fraction": lambda: nm(axis=0.5),
            "axis: out of range": lambda: updates(nm(axis=2), P, P),
            "sparse_gradients: a number": lambda: nm(sparse_gradients=1),
            "where: inputs that are no multiple": lambda: updates(nm(m=3, n=1), P, P),
            **wrong_where(nm),
        },
    ),
    sparsifier(
        "iss_p",
        lambda: iss(shrink_steps=2, ratio=0.5),
        zero=lambda: iss(ratio=1.0),
        plain=optax.identity,
        memory=memory(iss),
        bad={
            **shares(iss),
            **refused(iss, "ratio"),
            "sparsity: missing": lambda: iss(None),
            "sparsity: beside n and m": lambda: iss(n=1, m=2),
            "scope: misspelt": lambda: iss(scope="locals"),
            "shrink_steps: zero": lambda: iss(shrink_steps=0),
            **patterns(lambda **given: iss(None, **given)),
            **wrong_where(iss),
        },
    ),
    transformation(
        "fixed_mask",
        fixed,
        zero=lambda: fixed(mask=True),
        plain=lambda: SGD,
        memory=memory(fixed),
        bad={
            "inner: a word": lambda: fixed("sgd"),
            "mask: numbers": lambda: fixed(mask={"kernel": 1.0}),
            "mask: another structure": lambda: fixed(mask={"other": True}).init(P),
            "mask: another shape": lambda: fixed(mask={"kernel": jnp.ones((2, 1), bool), "bias": True}).init(P),
            "sparse_gradients: a number": lambda: fixed(sparse_gradients=1),
        },
    ),
    Example(
        name="gradients.find_mask",
        call=lambda key, params: rj.gradients.find_mask(optax.chain(SGD, fixed()).init(params)),
        arrays={"params": PARAMS},
        result="other",
        tree="params",
        bad={
            "opt_state: without a mask": lambda: rj.gradients.find_mask(SGD.init(P)),
            "opt_state: with two": lambda: rj.gradients.find_mask((prune().init(P), nm(m=2, n=1).init(P))),
        },
    ),
)
