"""Examples of `regjax.weights.reparameterisation` and of the price of gates."""

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal
from tests.contracts.table.weights import P, refused, wrong_where

W = rj.weights
TREE = {"params": {"dense": {"kernel": normal(4, 3)}, "bias": normal(3, seed=1)}}
ZEROS = {"params": {"dense": {"kernel": np.zeros((4, 3))}, "bias": np.zeros(3)}}
V = jnp.ones((2, 3))

EXAMPLES = (
    Example(
        name="weights.weight_compander",
        call=lambda key, v, a: W.weight_compander(v, jnp.exp(a), 0.5),
        arrays={"v": normal(4, 3), "a": normal(3, seed=1)},
        result="other",
        dtype="input",
        wrt=("v", "a"),
        singular=({"v": np.zeros((4, 3))}, {"v": np.full((4, 3), 1e4)}),
        bad={
            "v: integers": lambda: W.weight_compander(jnp.ones(3, int), 1.0, 1.0),
            "a: zero": lambda: W.weight_compander(V, 0.0, 1.0),
            "a: shape": lambda: W.weight_compander(V, jnp.ones(2), 1.0),
            "b: negative": lambda: W.weight_compander(V, 1.0, -1.0),
            "b: a string": lambda: W.weight_compander(V, 1.0, "wide"),
            "function: misspelt": lambda: W.weight_compander(V, 1.0, 1.0, function="atan"),
        },
    ),
    Example(
        name="weights.compander_init",
        call=lambda key, kernel: W.compander_init(kernel)[0],
        arrays={"kernel": normal(4, 3)},
        result="other",
        dtype="input",
        wrt=("kernel",),
        singular=({"kernel": np.zeros((4, 3))}, {"kernel": np.ones((4, 3))}),
        bad={
            "kernel: integers": lambda: W.compander_init(jnp.ones(3, int)),
            "slope: zero": lambda: W.compander_init(V, slope=0.0),
            "bound_rms: negative": lambda: W.compander_init(V, bound_rms=-1.0),
            "function: misspelt": lambda: W.compander_init(V, function="sigmoid"),
        },
    ),
    Example(
        name="weights.compand",
        call=lambda key, params: W.compand(params).v,
        arrays=TREE,
        result="other",
        dtype="input",
        wrt=("params",),
        tree="params",
        singular=(ZEROS,),
        bad={
            **wrong_where(lambda params=P, **given: W.compand(params, **given)),
            "slope: zero": lambda: W.compand(P, slope=0.0),
            "bound_rms: NaN": lambda: W.compand(P, bound_rms=float("nan")),
            "function: misspelt": lambda: W.compand(P, function="sigmoid"),
        },
    ),
    Example(
        name="weights.companded",
        call=lambda key, params: W.companded(W.compand(params)),
        arrays=TREE,
        result="other",
        dtype="input",
        wrt=("params",),
        tree="params",
        singular=(ZEROS,),
        bad={
            "params: not companded": lambda: W.companded(P),
            "params: parts missing": lambda: W.companded(W.CompandedParams(P, (), ())),
            "function: misspelt": lambda: W.companded(W.compand(P), function="sigmoid"),
        },
    ),
    Example(
        name="weights.weight_norm",
        call=lambda key, v, g: W.weight_norm(v, g),
        arrays={"v": normal(4, 3), "g": normal(3, seed=1)},
        result="other",
        dtype="input",
        wrt=("v", "g"),
        singular=({"v": np.zeros((4, 3))},),
        bad={
            "v: a vector": lambda: W.weight_norm(jnp.ones(3), jnp.ones(3)),
            "v: integers": lambda: W.weight_norm(jnp.ones((2, 3), int), jnp.ones(3)),
            "g: shape": lambda: W.weight_norm(V, jnp.ones(2)),
        },
    ),
    Example(
        name="weights.split_norm",
        call=lambda key, params: W.split_norm(params).g,
        arrays=TREE,
        result="other",
        wrt=("params",),
        tree="params",
        singular=(ZEROS,),
        bad={
            **wrong_where(lambda params=P, **given: W.split_norm(params, **given)),
            "where: a vector": lambda: W.split_norm(P, where="all"),
        },
    ),
    Example(
        name="weights.join_norm",
        call=lambda key, params: W.join_norm(W.split_norm(params)),
        arrays=TREE,
        result="other",
        dtype="input",
        wrt=("params",),
        tree="params",
        singular=(ZEROS,),
        bad={
            "params: not split": lambda: W.join_norm(P),
            "params: parts missing": lambda: W.join_norm(W.NormedParams(P, ())),
        },
    ),
    Example(
        name="weights.sparse_reparam",
        call=lambda key, w, u, v: W.sparse_reparam(w, u, v, lam=0.3),
        arrays={"w": normal(4, 3), "u": normal(4, 3, seed=1), "v": normal(4, 3, seed=2)},
        result="other",
        dtype="input",
        wrt=("w", "u", "v"),
        identity=lambda key, w, u, v: (W.sparse_reparam(w, u, v, lam=0.0), W.sparse_reparam(w, u, 0 * v, lam=1.0)),
        bad={
            **refused(lambda **given: W.sparse_reparam(V, V, V, **given), "lam"),
            "w: integers": lambda: W.sparse_reparam(jnp.ones(3, int), jnp.ones(3), jnp.ones(3), lam=0.1),
            "u: shape": lambda: W.sparse_reparam(V, jnp.ones(3), V, lam=0.1),
            "v: shape": lambda: W.sparse_reparam(V, V, jnp.ones(3), lam=0.1),
        },
    ),
    Example(
        name="weights.sparse_reparam_init",
        call=lambda key, x: x + W.sparse_reparam_init((3,), alpha=0.1).w,
        arrays={"x": normal(3)},
        result="other",
        dtype=None,
        bad={
            "shape: a number": lambda: W.sparse_reparam_init(3),
            "shape: negative": lambda: W.sparse_reparam_init((-1,)),
            "alpha: zero": lambda: W.sparse_reparam_init((3,), alpha=0.0),
            "dtype: integers": lambda: W.sparse_reparam_init((3,), dtype=jnp.int32),
        },
    ),
    Example(
        name="weights.nonzero_probability",
        call=lambda key, log_alpha: W.nonzero_probability(log_alpha),
        arrays={"log_alpha": normal(5)},
        result="other",
        wrt=("log_alpha",),
        singular=({"log_alpha": np.full(5, 1e4)}, {"log_alpha": np.full(5, -1e4)}),
        bad={"log_alpha: integers": lambda: W.nonzero_probability(jnp.ones(3, int))},
    ),
    Example(
        name="weights.l0_penalty",
        call=lambda key, log_alpha, kernel: W.l0_penalty(log_alpha, kernel, l0=0.1, l2=0.3),
        arrays={"log_alpha": normal(4), "kernel": normal(4, 3, seed=1)},
        result="scalar",
        wrt=("log_alpha", "kernel"),
        identity=lambda key, log_alpha, kernel: (W.l0_penalty(log_alpha, kernel, l0=0.0), jnp.zeros((), kernel.dtype)),
        bad={
            **refused(lambda l0=1.0, l2=0.0: W.l0_penalty(jnp.ones(2), V, l0=l0, l2=l2), "l0", "l2"),
            "log_alpha: shape": lambda: W.l0_penalty(jnp.ones(3), V, l0=1.0),
            "kernel: a vector": lambda: W.l0_penalty(jnp.ones(2), jnp.ones(2), l0=1.0),
            "groups: misspelt": lambda: W.l0_penalty(jnp.ones(2), V, l0=1.0, groups="input"),
        },
    ),
)
