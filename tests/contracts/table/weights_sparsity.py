"""Examples of `regjax.weights`: HyperSparse, irrelevant weights, small weights, and the removal of structures."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example
from tests.contracts.table.weights import ONES, PARAMS, TREE, ZEROS, P, refused, wrong_where

w = rj.weights
GRADS = jax.tree.map(lambda x: np.cos(5 * x), PARAMS)
SPEC = [
    w.Structure(np.array([True, False, True]), {"dense/kernel": 1, "dense/bias": 0, "conv/kernel": -1}, {"norm/scale": 0}),
    w.Structure(np.array([True, False, False, False]), {"dense/kernel": (0, 2)}),
]
ROWS = w.Structure(np.array([True, False]), {"kernel": 0})
SMALL = {"kernel": jnp.array([[1.0, -0.5], [0.25, 0.1]]), "bias": jnp.zeros(2)}
NAN = float("nan")


def hypersparse(params=P, **given):
    return w.hypersparse_penalty(params, **given)


def strict(params=P, prune_rate=0.5, **given):
    return w.magnitude_mask_strict(params, prune_rate=prune_rate, **given)


def small(params=P, threshold=0.1, **given):
    return w.small_weight_mask(params, threshold, **given)


def irrelevance(params=P, grads=P, **given):
    return w.irrelevance_penalty(params, grads, **given)


def to_performance(params=SMALL, evaluate=lambda p: jnp.abs(p["kernel"]).sum(), lower_bound=1.4, **given):
    return w.prune_to_performance(params, evaluate, lower_bound, **given)


def penalty(spec, params=SMALL, **given):
    return w.structured_removal_penalty(params, spec, **given)


def removed(spec, params=SMALL):
    return w.remove_structures(params, spec)


def wrong_spec(call) -> dict:
    pair = np.array([True, False])
    make = lambda axes, remove=pair: lambda: call(w.Structure(remove, axes))
    return {
        "spec: a dict": lambda: call({"kernel": 0}),
        "spec: a list of masks": lambda: call([pair]),
        "spec: a mask of numbers": make({"kernel": 0}, np.ones(2)),
        "spec: an empty mask": make({"kernel": 0}, np.ones(0, bool)),
        "spec: paths alone": make(["kernel"]),
        "spec: a path that is not there": make({"kernels": 0}),
        "spec: no such axis": make({"bias": 1}),
        "spec: an axis by name": make({"kernel": "rows"}),
        "spec: an axis of another length": make({"kernel": 0}, np.ones(4, bool)),
        "spec: an axis that is too long": make({"kernel": 0}, np.ones(1, bool)),
        "spec: a pair that does not fit": make({"kernel": (0, 2)}),
        "spec: no repetition": make({"kernel": (0, 0)}),
    }


def on_host(key):
    with jax.ensure_compile_time_eval():  # it runs on the host
        return to_performance()[:2]


SEARCH = w.art(0.5, warmup_epochs=1, window=0)


def wrong_update(**given):
    at = {"state": SEARCH.init(SMALL), "params": SMALL, "dense_accuracy": 0.5, "pruned_accuracy": 0.5, **given}
    return SEARCH.update(*at.values())


def searched(key, params, pruned_accuracy):
    search = w.art(0.5, warmup_epochs=0, init=0.1, window=0)
    state = search.update(search.init(params), params, 0.1, pruned_accuracy)
    return state.best, search.coefficient(state)


EXAMPLES = (
    Example(
        name="weights.hypersparse_penalty",
        call=lambda key, params: w.hypersparse_penalty(params, prune_rate=0.5),
        arrays=TREE,
        result="scalar",
        wrt=("params",),
        surrogate=True,
        tree="params",
        singular=(ZEROS, ONES),
        bad={
            **refused(hypersparse, "prune_rate"),
            "prune_rate: above 1": lambda: hypersparse(prune_rate=1.1),
            **wrong_where(hypersparse),
        },
    ),
    Example(
        name="weights.magnitude_mask_strict",
        call=lambda key, params: w.magnitude_mask_strict(params, prune_rate=0.5),
        arrays=TREE,
        result="scalar",
        tree="params",
        singular=(ZEROS, ONES),
        identity=lambda key, params: (strict(params, 0.0), jax.tree.map(lambda m: jnp.ones_like(m), strict(params, 0.5))),
        bad={**refused(strict, "prune_rate"), "prune_rate: above 1": lambda: strict(prune_rate=1.1), **wrong_where(strict)},
    ),
    Example(
        name="weights.art",
        call=searched,
        arrays={"params": PARAMS, "pruned_accuracy": np.float64(0.7)},
        result="other",
        dtype=None,
        frozen=("params", "pruned_accuracy"),
        tree="params",
        memory=lambda: (
            w.art(0.5, window=1).init(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)),
            lambda state, key, params, pruned_accuracy: (
                jnp.zeros(()),
                w.art(0.5, window=1).update(state, jax.tree.map(lambda x: x.astype(jnp.float32), params), 0.1, pruned_accuracy),
            ),
        ),
        bad={
            "prune_rate: above 1": lambda: w.art(1.1),
            "prune_rate: a schedule": lambda: w.art(lambda step: 0.5),
            "warmup_epochs: negative": lambda: w.art(0.5, warmup_epochs=-1),
            "init: negative": lambda: w.art(0.5, init=-1.0),
            "growth: zero": lambda: w.art(0.5, growth=0.0),
            "window: a fraction": lambda: w.art(0.5, window=0.5),
            "where: an unknown word": lambda: w.art(0.5, where="biases").init(SMALL) and None,
            "state: parameters": lambda: wrong_update(state=SMALL),
            "params: another shape": lambda: wrong_update(params={**SMALL, "bias": jnp.zeros(3)}),
            "dense_accuracy: in per cent": lambda: wrong_update(dense_accuracy=50.0),
            "pruned_accuracy: NaN": lambda: wrong_update(pruned_accuracy=NAN),
        },
    ),
    Example(
        name="weights.irrelevance_penalty",
        call=lambda key, params, grads: w.irrelevance_penalty(params, grads),
        arrays={**TREE, "grads": GRADS},
        result="scalar",
        wrt=("params",),
        frozen=("grads",),
        tree="params",
        singular=(ZEROS, {"grads": ZEROS["params"]}),
        identity=lambda key, params, grads: (w.irrelevance_penalty(params, grads, gradient_scale=0.0), w.l2(params)),
        bad={
            **refused(irrelevance, "gradient_scale"),
            **wrong_where(lambda params=P, **given: irrelevance(params, params, **given)),
            "gate: misspelt": lambda: irrelevance(gate="hinged"),
            "grads: another structure": lambda: irrelevance(grads={"kernel": P["kernel"]}),
            "grads: another shape": lambda: irrelevance(grads={**P, "bias": jnp.ones(3)}),
        },
    ),
    Example(
        name="weights.prune_to_performance",
        call=on_host,
        arrays={},
        result="other",
        dtype=None,
        bad={
            "params: traced": lambda: jax.jit(lambda p: to_performance(p)[0])(SMALL),
            "evaluate: a number": lambda: to_performance(evaluate=0.9),
            "evaluate: returns a vector": lambda: to_performance(evaluate=lambda p: p["bias"]),
            "evaluate: returns NaN": lambda: to_performance(evaluate=lambda p: NAN),
            "evaluate: returns a text": lambda: to_performance(evaluate=lambda p: "good"),
            "lower_bound: NaN": lambda: to_performance(lower_bound=NAN),
            "n_bisect: zero": lambda: to_performance(n_bisect=0),
            **wrong_where(lambda params=P, **given: to_performance(params, **given)),
        },
    ),
    Example(
        name="weights.small_weight_mask",
        call=lambda key, params: w.small_weight_mask(params, 0.5),
        arrays=TREE,
        result="scalar",
        tree="params",
        singular=(ZEROS,),
        identity=lambda key, params: (small(params, 0.0), jax.tree.map(lambda m: jnp.zeros_like(m), small(params, 0.5))),
        bad={**refused(small, "threshold"), **wrong_where(small)},
    ),
    Example(
        name="weights.choose_structures",
        call=lambda key, ratio: w.choose_structures(key, 64, ratio=ratio),
        arrays={"ratio": np.float64(0.5)},
        result="other",
        random=True,
        identity=lambda key, ratio: (w.choose_structures(key, 8, ratio=0.0), jnp.zeros(8, bool)),
        bad={
            "key_or_scores: a seed": lambda: w.choose_structures(0, 4, ratio=0.5),
            "key_or_scores: scores of others": lambda: w.choose_structures(jnp.ones(3), 4, ratio=0.5),
            "key_or_scores: integers": lambda: w.choose_structures(jnp.ones(4, int), 4, ratio=0.5),
            "key_or_scores: two keys": lambda: w.choose_structures(jax.random.split(jax.random.key(0)), 4, ratio=0.5),
            "num: zero": lambda: w.choose_structures(jax.random.key(0), 0, ratio=0.5),
            "ratio: above 1": lambda: w.choose_structures(jax.random.key(0), 4, ratio=1.5),
            "ratio: NaN": lambda: w.choose_structures(jax.random.key(0), 4, ratio=NAN),
        },
    ),
    Example(
        name="weights.structured_removal_penalty",
        call=lambda key, params: w.structured_removal_penalty(params, SPEC, reduction="mean"),
        arrays=TREE,
        result="scalar",
        wrt=("params",),
        tree="params",
        singular=(ZEROS, ONES),
        bad={
            **wrong_spec(penalty),
            "spec: an integer leaf": lambda: penalty(
                w.Structure(np.ones(2, bool), {"kernel": 0}), {"kernel": jnp.ones((2, 2), int)}, where="kernels"
            ),
            "spec: a path of two leaves": lambda: penalty(w.Structure(np.ones(2, bool), {"kernel": 0}), {"a": SMALL, "b": SMALL}),
            "p: three": lambda: penalty(ROWS, p=3),
            "reduction: misspelt": lambda: penalty(ROWS, reduction="avg"),
            "where: an unknown word": lambda: penalty(ROWS, where="biases"),
            "where: another structure": lambda: penalty(ROWS, where={"other": True}),
        },
    ),
    Example(
        name="weights.remove_structures",
        call=lambda key, params: w.remove_structures(params, SPEC),
        arrays=TREE,
        result="other",
        dtype="input",
        wrt=("params",),
        tree="params",
        bad={
            **wrong_spec(removed),
            "spec: everything removed": lambda: removed(w.Structure(np.ones(2, bool), {"kernel": 0})),
            "spec: a traced mask": lambda: jax.jit(lambda m: removed(w.Structure(m, {"kernel": 0})))(jnp.array([True, False])),
        },
    ),
)
