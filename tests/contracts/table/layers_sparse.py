"""Examples of the sparse layers, of the activations for sparse networks, and of the search over both."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import regjax as rj
from tests.contracts.example import Example, normal
from tests.contracts.table.weights import refused

lay, obj = rj.layers, rj.objectives
X, W, IMAGES = jnp.ones((2, 4)), jnp.ones((4, 3)), jnp.ones((2, 3, 3, 2))
SIZES = {"acon": 3, "TanhSoft-2": 2, "srs": 2, "symlog": 2, "symexp": 2, "FALU": 2, "SRelu": 4}


def dense(x=X, w=W, scores=W, **given):
    return lay.sparse_apply(x, w, scores, **{"density": 0.5, **given})


def linear(in_features=4, out_features=3, **given):
    return lay.SparseLinear(in_features, out_features, **{"density": 0.5, "rngs": nnx.Rngs(0), **given})


def conv(in_features=2, out_features=4, kernel_size=(3, 3), **given):
    return lay.SparseConv(in_features, out_features, kernel_size, **{"density": 0.5, "rngs": nnx.Rngs(0), **given})


def common(make, x) -> dict:
    """What both modules refuse."""
    return {
        **refused(lambda density: make(density=density), "density"),
        "density: above 1 at the call": lambda: make()(x, density=1.5),
        "in_features: zero": lambda: make(0),
        "out_features: a float": lambda: make(2, 4.0),
        "use_bias: a number": lambda: make(use_bias=1),
        "param_dtype: integers": lambda: make(param_dtype=int),
        "kernel_init: no function": lambda: make(kernel_init=1.0),
        "bias_init: no function": lambda: make(bias_init=1.0),
        "rngs: None": lambda: make(rngs=None),
        "x: integers": lambda: make()(x.astype(int)),
        "x: channels": lambda: make()(x[..., :1]),
    }


LINEAR = linear(density=0.4)
CONV = conv(2, 2, (2, 2), density=0.4, strides=(1, 2), feature_group_count=2)


def called(layer, x, kernel, scores, bias):
    layer = nnx.clone(layer)
    for variable, value in ((layer.kernel, kernel), (layer.scores, scores), (layer.bias, bias)):
        variable.set_value(value)
    return layer(x)


def activations(key, x, p):
    return [lay.sparse_activation(x, name, p[:size]) for name, size in SIZES.items()]


def module(x, p):
    layer = lay.SparseActivation("acon")
    layer.scales.set_value(p)
    return layer(x)


def mixed_loss(weights, arch, batch):
    return jnp.mean((batch @ weights["a"] * jax.nn.softmax(arch)) ** 2)


SEARCH = obj.dass_objective(mixed_loss, mixed_loss)
SMALL = obj.SearchParams({"a": W}, jnp.zeros(3))

EXAMPLES = (
    Example(
        name="layers.sparse_apply",
        call=lambda key, x, w, scores: lay.sparse_apply(x, w, scores, density=0.5),
        arrays={"x": normal(8, 4), "w": normal(4, 3, seed=1), "scores": normal(4, 3, seed=2)},
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x", "w", "scores"),
        surrogate=True,
        identity=lambda key, x, w, scores: (lay.sparse_apply(x, w, scores, density=1.0), jnp.matmul(x, w)),
        singular=({"scores": np.zeros((4, 3))}, {"x": np.zeros((8, 4)), "w": np.zeros((4, 3))}),
        bad={
            **refused(dense, "density"),
            "density: above 1": lambda: dense(density=1.5),
            "x: integers": lambda: dense(jnp.ones((2, 4), int)),
            "w: shape": lambda: dense(w=W.T),
            "scores: shape": lambda: dense(scores=W.T),
            "scores: integers": lambda: dense(scores=jnp.ones((4, 3), int)),
            "op: no function": lambda: dense(op="conv"),
        },
    ),
    Example(
        name="layers.SparseLinear",
        call=lambda key, x, kernel, scores, bias: called(LINEAR, x, kernel, scores, bias),
        arrays={
            "x": normal(8, 4),
            "kernel": normal(4, 3, seed=1),
            "scores": normal(4, 3, seed=2),
            "bias": normal(3, seed=3),
        },
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x", "kernel", "scores", "bias"),
        surrogate=True,
        identity=lambda key, x, kernel, scores, bias: (nnx.view(LINEAR, density=1.0)(x), LINEAR(x, density=1.0)),
        bad=common(linear, X),
    ),
    Example(
        name="layers.SparseConv",
        call=lambda key, x, kernel, scores, bias: called(CONV, x, kernel, scores, bias),
        arrays={
            "x": normal(8, 3, 3, 2),
            "kernel": normal(2, 2, 1, 2, seed=1),
            "scores": normal(2, 2, 1, 2, seed=2),
            "bias": normal(2, seed=3),
        },
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x", "kernel", "scores", "bias"),
        surrogate=True,
        bad={
            **common(conv, IMAGES),
            "kernel_size: four": lambda: conv(kernel_size=(1, 1, 1, 1)),
            "kernel_size: zero": lambda: conv(kernel_size=(0, 1)),
            "strides: zero": lambda: conv(strides=0),
            "padding: misspelt": lambda: conv(padding="same"),
            "kernel_dilation: a float": lambda: conv(kernel_dilation=1.5),
            "feature_group_count: no divisor": lambda: conv(feature_group_count=3),
            "x: rank": lambda: conv()(X),
        },
    ),
    Example(
        name="layers.sparse_activation",
        call=activations,
        arrays={"x": normal(8, 2), "p": np.array([1.2, 0.8, 1.1, 0.9])},
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x", "p"),
        singular=tuple({"x": np.full((8, 2), value)} for value in (0.0, 1e4, -1e4)),
        bad={
            "x: integers": lambda: lay.sparse_activation(jnp.ones(3, int), "relu"),
            "name: misspelt": lambda: lay.sparse_activation(X, "ReLU"),
            "params: three": lambda: lay.sparse_activation(X, "relu", jnp.ones(3)),
            "params: integers": lambda: lay.sparse_activation(X, "relu", jnp.ones(2, int)),
        },
    ),
    Example(
        name="layers.SparseActivation",
        call=lambda key, x, p: module(x, p),
        arrays={"x": normal(8, 2), "p": np.array([1.2, 0.8, 1.1])},
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x", "p"),
        bad={
            "name: misspelt": lambda: lay.SparseActivation("ReLU"),
            "init: three": lambda: lay.SparseActivation("relu", init=(1.0, 1.0, 1.0)),
            "init: a string": lambda: lay.SparseActivation("relu", init="ones"),
            "trainable: a number": lambda: lay.SparseActivation("relu", trainable=1),
            "x: integers": lambda: lay.SparseActivation("relu")(jnp.ones(3, int)),
        },
    ),
    Example(
        name="objectives.dass_objective",
        call=lambda key, weights, arch, train, valid: SEARCH(obj.SearchParams({"a": weights}, arch), train, valid),
        arrays={
            "weights": normal(4, 3),
            "arch": normal(3, seed=1),
            "train": normal(8, 4, seed=2),
            "valid": normal(8, 4, seed=3),
        },
        rows=("train", "valid"),
        result="scalar",
        dtype=None,
        wrt=("weights", "arch"),
        surrogate=True,
        bad={
            "weights_loss: no function": lambda: obj.dass_objective(1.0, mixed_loss),
            "weights_loss: returns no scalar": lambda: obj.dass_objective(lambda w, a, b: b, mixed_loss)(SMALL, X, X),
            "arch_loss: no function": lambda: obj.dass_objective(mixed_loss, None),
            "arch_loss: returns no aux": lambda: obj.dass_objective(
                lambda w, a, b: (mixed_loss(w, a, b), ()), mixed_loss, has_aux=True
            )(SMALL, X, X),
            "has_aux: a number": lambda: obj.dass_objective(mixed_loss, mixed_loss, has_aux=1),
            "params: a tuple": lambda: SEARCH(tuple(SMALL), X, X),
        },
    ),
)
