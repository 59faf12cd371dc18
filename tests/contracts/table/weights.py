"""Examples of `regjax.weights`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal

# A dense layer whose inputs divide over 8 devices, a convolution, and a normalisation.
PARAMS = {
    "dense": {"kernel": normal(8, 3), "bias": normal(3, seed=1)},
    "conv": {"kernel": normal(2, 1, 2, 3, seed=2)},
    "norm": {"scale": 1 + 0.1 * normal(3, seed=3), "bias": normal(3, seed=4)},
}
TREE = {"params": PARAMS}
ZEROS = {"params": jax.tree.map(np.zeros_like, PARAMS)}
ONES = {"params": jax.tree.map(np.ones_like, PARAMS)}
P = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}


def refused(call, *names) -> dict:
    """The values that every number refuses: ``call(**{name: value})`` raises."""
    values = {"negative": -1.0, "NaN": float("nan"), "a string": "strong"}
    return {f"{name}: {what}": partial(call, **{name: value}) for name in names for what, value in values.items()}


def wrong_where(call) -> dict:
    """The choices of leaves that everything refuses: ``call(where=...)`` raises."""
    return {
        "where: an unknown word": lambda: call(where="biases"),
        "where: another structure": lambda: call(where={"other": True}),
        "where: a mask of numbers": lambda: call(where={"kernel": 1.0, "bias": 0.0}),
        "where: an integer leaf": lambda: call({"kernel": jnp.ones((2, 2), int)}, where=True),
    }


def wrong_groups(call) -> dict:
    """The groups that everything refuses: ``call(groups=...)`` raises."""
    return {
        "groups: misspelt": lambda: call(groups="output"),
        "groups: a flat list of paths": lambda: call(groups=["kernel"]),
        "groups: a path that is not there": lambda: call(groups=[["kernels"]]),
        "groups: a leaf twice": lambda: call(groups=[["kernel"], ["bias", "kernel"]]),
        "groups: inputs of a bias": lambda: call(groups="in", where="all"),
        "size_weighted: a number": lambda: call(size_weighted=2),
    }


def penalty(name: str, *, bad=None, identity=None, **options) -> Example:
    """The example of a norm penalty ``fn(params, *, where, ...)``."""
    fn = getattr(rj.weights, name)
    wrong = lambda params=P, **given: fn(params, **{**options, **given})
    return Example(
        name=f"weights.{name}",
        call=lambda key, params: fn(params, **options),
        arrays=TREE,
        result="scalar",
        wrt=("params",),
        tree="params",
        singular=(ZEROS, ONES),
        identity=identity,
        bad={**wrong_where(wrong), **(bad(wrong) if bad else {})},
    )


def proximal(name: str, *, bad=None, **options) -> Example:
    """The example of a proximal operator ``fn(params, step, *, where, ...)``."""
    fn = getattr(rj.weights, name)
    wrong = lambda params=P, step=0.1, **given: fn(params, step, **{**options, **given})
    return Example(
        name=f"weights.{name}",
        call=lambda key, params: fn(params, 0.5, **options),
        arrays=TREE,
        result="scalar",
        dtype="input",
        wrt=("params",),
        tree="params",
        singular=(ZEROS, ONES),
        identity=lambda key, params: (fn(params, 0.0, **options), params),
        bad={**wrong_where(wrong), **refused(wrong, "step"), **(bad(wrong) if bad else {})},
    )


SPECTRAL_START = rj.weights.stateful_spectral_penalty().init(
    jax.random.key(0), jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)
)


def carried_spectral(key, params):
    stateful = rj.weights.stateful_spectral_penalty(n_power=100)
    return stateful.apply(stateful.init(jax.random.key(0), params), params)[0]


def wrong_spectral(fn) -> dict:
    """What both spectral penalties refuse; the keyword arguments are the same."""
    return {
        "k: zero": lambda: fn(k=0),
        "k: a fraction": lambda: fn(k=1.5),
        "n_power: zero": lambda: fn(n_power=0),
        "where: an unknown word": lambda: fn(where="biases"),
        "matrix_of: no function": lambda: fn(matrix_of=4),
        "matrix_of: no matrix": lambda: fn(matrix_of=lambda path, leaf: leaf.ravel()),
    }


def stateful_spectral(params=P, **given):
    return rj.weights.stateful_spectral_penalty(**given).init(jax.random.key(0), params)


EXAMPLES = (
    Example(
        name="weights.as_matrix",
        call=lambda key, kernel: rj.weights.as_matrix(kernel, groups=2),
        arrays={"kernel": normal(2, 2, 3, 4)},
        result="other",
        dtype="input",
        wrt=("kernel",),
        bad={
            "kernel: a vector": lambda: rj.weights.as_matrix(jnp.ones(3)),
            "kernel: a word": lambda: rj.weights.as_matrix("kernel"),
            "groups: no divisor": lambda: rj.weights.as_matrix(jnp.ones((2, 3)), groups=2),
            "groups: zero": lambda: rj.weights.as_matrix(jnp.ones((2, 3)), groups=0),
            "output_axes: all": lambda: rj.weights.as_matrix(jnp.ones((2, 3)), output_axes=2),
            "output_axes: none": lambda: rj.weights.as_matrix(jnp.ones((2, 3)), output_axes=0),
        },
    ),
    Example(
        name="weights.kernel_matrix",
        call=lambda key, leaf: rj.weights.kernel_matrix(("attention", "query", "kernel"), leaf),
        arrays={"leaf": normal(4, 2, 3)},
        result="other",
        dtype="input",
        wrt=("leaf",),
        bad={"leaf: a vector": lambda: rj.weights.kernel_matrix(("kernel",), jnp.ones(3))},
    ),
    penalty("l1"),
    penalty("l2"),
    penalty(
        "elastic_net",
        l1=0.5,
        l2=0.25,
        bad=lambda call: refused(call, "l1", "l2"),
        identity=lambda key, params: (rj.weights.elastic_net(params, l1=1.0, l2=0.0), rj.weights.l1(params)),
    ),
    penalty("group_lasso", bad=wrong_groups),
    penalty(
        "sparse_group_lasso",
        l1=0.5,
        group=0.25,
        groups="in",
        size_weighted=True,
        bad=lambda call: {**refused(call, "l1", "group"), **wrong_groups(call)},
        identity=lambda key, params: (
            rj.weights.sparse_group_lasso(params, l1=0.0, group=1.0),
            rj.weights.group_lasso(params),
        ),
    ),
    proximal("prox_l1"),
    proximal("prox_l2"),
    proximal("prox_elastic_net", l1=0.5, l2=0.25, bad=lambda call: refused(call, "l1", "l2")),
    proximal("prox_group_lasso", bad=wrong_groups),
    proximal(
        "prox_sparse_group_lasso",
        l1=0.5,
        group=0.25,
        groups="in",
        size_weighted=True,
        bad=lambda call: {**refused(call, "l1", "group"), **wrong_groups(call)},
    ),
    Example(
        name="weights.spectral_penalty",
        call=lambda key, params: rj.weights.spectral_penalty(params, n_power=100),
        arrays=TREE,
        result="scalar",
        wrt=("params",),
        tree="params",
        singular=(ZEROS, ONES, {"params": {**PARAMS, "dense": {"kernel": np.eye(8, 3), "bias": np.zeros(3)}}}),
        bad={
            **wrong_spectral(lambda **given: rj.weights.spectral_penalty(P, **given)),
            "exact: a number": lambda: rj.weights.spectral_penalty(P, exact=1),
        },
    ),
    Example(
        name="weights.stateful_spectral_penalty",
        call=carried_spectral,
        arrays=TREE,
        result="scalar",
        wrt=("params",),
        tree="params",
        singular=(ZEROS, ONES),
        memory=lambda: (
            SPECTRAL_START,
            lambda state, key, params: rj.weights.stateful_spectral_penalty().apply(state, params),
        ),
        bad={
            **wrong_spectral(stateful_spectral),
            "warmup: zero": lambda: rj.weights.stateful_spectral_penalty(warmup=0),
            "key: a number": lambda: rj.weights.stateful_spectral_penalty().init(0, P),
        },
    ),
    Example(
        name="weights.sorted_init",
        call=lambda key, params: rj.weights.sorted_init(params),
        arrays=TREE,
        result="scalar",
        dtype="input",
        wrt=("params",),
        tree="params",
        singular=(ZEROS,),
    ),
    Example(
        name="weights.wasserstein_to_init",
        call=lambda key, params, init_params: rj.weights.wasserstein_to_init(params, init_params),
        arrays={**TREE, "init_params": jax.tree.map(lambda x: np.cos(3 * x), PARAMS)},
        result="scalar",
        wrt=("params",),
        frozen=("init_params",),
        tree="params",
        singular=(ZEROS, ONES),
        bad={
            "init_params: another structure": lambda: rj.weights.wasserstein_to_init(P, {"kernel": P["kernel"]}),
            "init_params: another shape": lambda: rj.weights.wasserstein_to_init(P, {**P, "bias": jnp.ones(3)}),
            "init_params: sorted, of another size": lambda: rj.weights.wasserstein_to_init(
                P, rj.weights.sorted_init({**P, "bias": jnp.ones(3)})
            ),
            "p: three": lambda: rj.weights.wasserstein_to_init(P, P, p=3),
            "reduction: misspelt": lambda: rj.weights.wasserstein_to_init(P, P, reduction="avg"),
            **wrong_where(lambda params=P, **given: rj.weights.wasserstein_to_init(params, params, **given)),
        },
    ),
)
