"""Examples of spectral norms, Lipschitz bounds and orthogonality of weights, and of the modulated backward pass."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal
from tests.contracts.table.weights import refused, wrong_where

W = rj.weights
# Two kernels of one shape, whose inputs divide over 8 devices, and one that is wider than high.
PARAMS = {
    "a": {"kernel": normal(8, 3), "bias": normal(3, seed=1)},
    "b": {"kernel": normal(8, 3, seed=2)},
    "c": {"kernel": normal(2, 4, seed=3)},
}
TREE = {"params": PARAMS}
ZEROS, ONES, EYES = (
    {"params": jax.tree.map(fill, PARAMS)} for fill in (np.zeros_like, np.ones_like, lambda x: np.eye(*x.shape, 3))
)
FLOATS = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)
P = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
CONV = {"conv": {"kernel": normal(3, 3, 2, 3), "bias": normal(3)}, "dense": {"kernel": normal(8, 3)}}
KEY = jax.random.key(0)


def wrong_kernels(call) -> dict:
    """The choices of leaves and matrices that everything here refuses."""
    return {
        **wrong_where(call),
        "where: a vector": lambda: call(where="all"),
        "matrix_of: no function": lambda: call(matrix_of=4),
        "matrix_of: no matrix": lambda: call(matrix_of=lambda path, leaf: leaf.ravel()),
    }


def penalty(name: str, *, singular=(ZEROS, ONES, EYES), bad=None, **options) -> Example:
    """The example of a penalty ``fn(params, *, where, matrix_of, ...)``."""
    fn = getattr(W, name)
    wrong = lambda params=P, **given: fn(params, **{**options, **given})
    return Example(
        name=f"weights.{name}",
        call=lambda key, params: fn(params, **options),
        arrays=TREE,
        result="scalar",
        wrt=("params",),
        tree="params",
        singular=singular,
        bad={**wrong_kernels(wrong), **(bad(wrong) if bad else {})},
    )


def counts(name: str, low: int, call) -> dict:
    return {f"{name}: too few": lambda: call(low - 1), f"{name}: a fraction": lambda: call(1.5)}


def norm_penalty(params=P, **given):
    return W.stateful_spectral_norm_penalty(**given).init(KEY, params)


def normalize(params=P, **given):
    return W.spectral_normalize(**given).init(params)


def carried_srip(params=P, **given):
    return W.stateful_srip(**given).init(KEY, params)


def other_state(stateful, *key):
    return stateful.apply(stateful.init(*key, {"kernel": jnp.ones((3, 4))}), P)


def converged(key, params):
    stateful = W.stateful_spectral_norm_penalty(n_power=100)
    return stateful.apply(stateful.init(KEY, params), params)[0]


def normalised(key, params):
    stateful = W.spectral_normalize(n_power=100)
    return stateful.apply(stateful.init(params), params)[0]


def one_srip(key, params):
    stateful = W.stateful_srip()
    return stateful.apply(stateful.init(KEY, params), params)[0]


def lipschitz(params=P, sizes=(None,), **given):
    return W.lipschitz_penalty(params, sizes, **given)


def modulated(key, x, kernel, axis_name=None):
    """The value, and the error handed on."""
    block = rj.layers.modulate_backward(lambda kernel, x: jnp.tanh(x @ kernel), rho=0.5, axis_name=axis_name)
    y, back = jax.vjp(lambda x: block(kernel, x), x)
    return y, back(jnp.cos(3 * y))[0]


modulate = rj.layers.modulate_backward
K, D = jnp.ones((3, 3, 2, 3)), jnp.ones((2, 3))

EXAMPLES = (
    penalty("spectral_norm_penalty", n_power=100, bad=lambda call: counts("n_power", 1, lambda n: call(n_power=n))),
    Example(
        name="weights.stateful_spectral_norm_penalty",
        call=converged,
        arrays=TREE,
        result="scalar",
        wrt=("params",),
        tree="params",
        singular=(ZEROS, ONES),
        memory=lambda: (
            W.stateful_spectral_norm_penalty().init(KEY, FLOATS),
            lambda state, key, params: W.stateful_spectral_norm_penalty().apply(state, params),
        ),
        bad={
            **wrong_kernels(norm_penalty),
            **counts("n_power", 1, lambda n: norm_penalty(n_power=n)),
            **counts("warmup", 1, lambda n: norm_penalty(warmup=n)),
            "key: a number": lambda: W.stateful_spectral_norm_penalty().init(0, P),
            "state: of other parameters": lambda: other_state(W.stateful_spectral_norm_penalty(), KEY),
        },
    ),
    Example(
        name="weights.spectral_normalize",
        call=normalised,
        arrays=TREE,
        result="scalar",
        dtype="input",
        wrt=("params",),
        tree="params",
        singular=(ZEROS, ONES),
        memory=lambda: (
            W.spectral_normalize().init(FLOATS),
            lambda state, key, params: W.spectral_normalize().apply(state, params),
        ),
        bad={
            **wrong_kernels(normalize),
            **counts("n_power", 1, lambda n: normalize(n_power=n)),
            **counts("warmup", 1, lambda n: normalize(warmup=n)),
            "update: a number": lambda: W.spectral_normalize().apply(normalize(), P, 1),
            "state: of other parameters": lambda: other_state(W.spectral_normalize()),
        },
    ),
    Example(
        name="weights.gram_iteration",
        call=lambda key, w: W.gram_iteration(w, n_iter=3),
        arrays={"w": normal(2, 4, 3)},
        result="other",
        wrt=("w",),
        singular=({"w": np.zeros((2, 4, 3))}, {"w": 1e4 * np.ones((2, 4, 3))}, {"w": np.eye(8, 3).reshape(2, 4, 3)}),
        bad={
            "w: a vector": lambda: W.gram_iteration(jnp.ones(3)),
            "w: integers": lambda: W.gram_iteration(jnp.ones((2, 2), int)),
            **counts("n_iter", 0, lambda n: W.gram_iteration(D, n_iter=n)),
        },
    ),
    Example(
        name="weights.gram_iteration_conv",
        call=lambda key, kernel: W.gram_iteration_conv(kernel, n=8, grid=4, n_iter=2),
        arrays={"kernel": normal(3, 3, 2, 3)},
        result="other",
        wrt=("kernel",),
        singular=({"kernel": np.zeros((3, 3, 2, 3))}, {"kernel": np.ones((3, 3, 2, 3))}),
        bad={
            "kernel: dense": lambda: W.gram_iteration_conv(D, n=8),
            "kernel: integers": lambda: W.gram_iteration_conv(K.astype(int), n=8),
            "n: below the kernel's": lambda: W.gram_iteration_conv(K, n=2),
            "n: three axes": lambda: W.gram_iteration_conv(K, n=(8, 8, 8)),
            "n: a fraction": lambda: W.gram_iteration_conv(K, n=8.0),
            "grid: not below n": lambda: W.gram_iteration_conv(K, n=8, grid=8),
            "grid: below the kernel's": lambda: W.gram_iteration_conv(K, n=8, grid=2),
            "grid: no finite factor": lambda: W.gram_iteration_conv(jnp.ones((2, 2, 1, 1)), n=8, grid=2),
            **counts("n_iter", 0, lambda n: W.gram_iteration_conv(K, n=8, n_iter=n)),
        },
    ),
    Example(
        name="weights.zero_padding_bound",
        call=lambda key, kernel: W.zero_padding_bound(kernel, n_iter=2),
        arrays={"kernel": normal(3, 2, 2, 3)},
        result="other",
        wrt=("kernel",),
        singular=({"kernel": np.zeros((3, 2, 2, 3))}, {"kernel": np.ones((3, 2, 2, 3))}),
        bad={
            "kernel: dense": lambda: W.zero_padding_bound(D),
            "kernel: of six dimensions": lambda: W.zero_padding_bound(jnp.ones((1,) * 6)),
            **counts("n_iter", 1, lambda n: W.zero_padding_bound(K, n_iter=n)),
        },
    ),
    Example(
        name="weights.lipschitz_penalty",
        call=lambda key, params: W.lipschitz_penalty(params, [5, None], n_iter=2, threshold=0.5),
        arrays={"params": CONV},
        result="scalar",
        wrt=("params",),
        tree="params",
        singular=({"params": jax.tree.map(np.zeros_like, CONV)}, {"params": jax.tree.map(np.ones_like, CONV)}),
        bad={
            **wrong_where(lipschitz),
            "where: a vector": lambda: lipschitz(where="all", sizes=(None, None)),
            "matrix_of: no function": lambda: lipschitz(matrix_of=4),
            "matrix_of: no matrix": lambda: lipschitz(matrix_of=lambda path, leaf: leaf.ravel()),
            "input_sizes: too many": lambda: lipschitz(sizes=[None, None]),
            "input_sizes: a number": lambda: lipschitz(sizes=8),
            "input_sizes: of a dense kernel": lambda: lipschitz(sizes=[8]),
            "input_sizes: a path that is not there": lambda: lipschitz(sizes={"conv": 8}),
            "input_sizes: a convolution without": lambda: lipschitz({"conv": K}, sizes={}),
            "input_sizes: below the kernel's": lambda: lipschitz({"conv": K}, sizes={"conv": 2}),
            **refused(lipschitz, "threshold"),
            **counts("n_iter", 0, lambda n: lipschitz(n_iter=n)),
        },
    ),
    Example(
        name="weights.spectral_rescaling",
        call=lambda key, kernel: W.spectral_rescaling(kernel),
        arrays={"kernel": normal(3, 2, 2, 3)},
        result="other",
        dtype="input",
        wrt=("kernel",),
        singular=({"kernel": np.zeros((3, 2, 2, 3))}, {"kernel": np.ones((3, 2, 2, 3))}),
        bad={
            "kernel: a vector": lambda: W.spectral_rescaling(jnp.ones(3)),
            "kernel: of six dimensions": lambda: W.spectral_rescaling(jnp.ones((1,) * 6)),
            **counts("n_iter", 1, lambda n: W.spectral_rescaling(K, n_iter=n)),
        },
    ),
    penalty("orthonormality", bad=lambda call: {"side: misspelt": lambda: call(side="column")}),
    penalty(
        "orthogonality",
        kind="mc",
        side="auto",
        bad=lambda call: {
            "kind: misspelt": lambda: call(kind="sd"),
            "side: misspelt": lambda: call(side="column"),
        },
    ),
    Example(
        name="weights.srip",
        call=lambda key, params: W.srip(key, params),
        arrays=TREE,
        result="scalar",
        wrt=("params",),
        tree="params",
        random=True,
        singular=(ZEROS, ONES, EYES),
        bad={**wrong_kernels(lambda params=P, **given: W.srip(KEY, params, **given)), "key: a number": lambda: W.srip(0, P)},
    ),
    Example(
        name="weights.srip_matrix",
        call=lambda key, w, start: W.srip_matrix(w, start),
        arrays={"w": normal(2, 3, 4), "start": normal(2, 3)},
        result="other",
        wrt=("w", "start"),
        singular=({"w": np.zeros((2, 3, 4))}, {"w": np.stack([np.eye(3, 4)] * 2)}, {"start": np.zeros((2, 3))}),
        bad={
            "w: a vector": lambda: W.srip_matrix(jnp.ones(3), jnp.ones(3)),
            "w: integers": lambda: W.srip_matrix(jnp.ones((2, 2), int), jnp.ones(2)),
            "start: of the larger side": lambda: W.srip_matrix(D, jnp.ones(3)),
        },
    ),
    Example(
        name="weights.stateful_srip",
        call=one_srip,
        arrays=TREE,
        result="scalar",
        wrt=("params",),
        tree="params",
        surrogate=True,
        singular=(ZEROS, ONES, EYES),
        memory=lambda: (
            W.stateful_srip().init(KEY, FLOATS),
            lambda state, key, params: W.stateful_srip().apply(state, params),
        ),
        bad={
            **wrong_kernels(carried_srip),
            "key: a number": lambda: W.stateful_srip().init(0, P),
            "state: of other parameters": lambda: other_state(W.stateful_srip(), KEY),
        },
    ),
    Example(
        name="layers.modulate_backward",
        call=modulated,
        mapped=lambda axis_name, key, x, kernel: modulated(key, x, kernel, axis_name),
        arrays={"x": normal(8, 3), "kernel": normal(3, 4, seed=1)},
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x", "kernel"),
        surrogate=True,
        identity=lambda key, x, kernel: (modulated(key, x, kernel)[0], jnp.tanh(x @ kernel)),
        singular=({"kernel": np.zeros((3, 4))}, {"kernel": 1e4 * normal(3, 4)}, {"x": np.zeros((8, 3))}),
        bad={
            "fn: no function": lambda: modulate(3),
            **refused(partial(modulate, jnp.tanh), "rho"),
            "eps: zero": lambda: modulate(jnp.tanh, eps=0.0),
            "eps: NaN": lambda: modulate(jnp.tanh, eps=float("nan")),
            "argnum: a fraction": lambda: modulate(jnp.tanh, argnum=0.5),
            "argnum: out of range": lambda: modulate(jnp.tanh, argnum=1)(jnp.ones(2)),
            "axis_name: a number": lambda: modulate(jnp.tanh, axis_name=0),
        },
    ),
)
