"""Examples of the layers that answer to hyperparameters."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

import regjax as rj
from tests.contracts.example import Example, normal

lay = rj.layers
dense, conv = lay.hyper_dense, lay.hyper_conv


def params(*kernel: int, hyper: int = 2) -> lay.HyperParams:
    out = kernel[-1]
    draw = lambda *shape, seed: normal(*shape, seed=seed)
    return lay.HyperParams(
        draw(*kernel, seed=1),
        draw(*kernel, seed=2),
        draw(hyper, out, seed=3),
        draw(out, seed=4),
        draw(out, seed=5),
        draw(hyper, out, seed=6),
        np.array(0.8),
    )


X, H, IMAGES, INTEGERS = jnp.ones((2, 4)), jnp.ones((2, 2)), jnp.ones((2, 3, 3, 2)), jnp.ones((2, 4), int)
DENSE, CONV = (lay.HyperParams(*map(jnp.asarray, params(*shape))) for shape in ((4, 3), (2, 2, 2, 3)))


def make_dense(**options):
    return lay.HyperDense(4, 3, 2, **{"rngs": nnx.Rngs(0), **options})


def make_conv(**options):
    return lay.HyperConv(2, 3, (2, 2), 2, **{"rngs": nnx.Rngs(0), **options})


DENSE_LAYER, CONV_LAYER = make_dense(), make_conv(strides=(1, 2))


def with_params(layer, params):
    layer = nnx.clone(layer)
    for name, value in params._asdict().items():
        getattr(layer, name).set_value(value)
    return layer


def window_errors(call) -> dict:
    """The wrong options of a convolution; ``call(**options)`` is given each."""
    return {
        "strides: zero": lambda: call(strides=0),
        "dilation: a float": lambda: call(dilation=1.5),
        "padding: misspelt": lambda: call(padding="same"),
    }


def parameter_errors(call, good) -> dict:
    """The wrong parameters; ``call(params)`` is given each."""
    return {
        "params: a tuple": lambda: call(tuple(good)),
        "params.kernel: rank": lambda: call(good._replace(kernel=jnp.ones(3))),
        "params.kernel: integers": lambda: call(good._replace(kernel=jnp.ones(good.kernel.shape, int))),
        "params.response_kernel: shape": lambda: call(good._replace(response_kernel=good.kernel[..., :1])),
        "params.gate_kernel: shape": lambda: call(good._replace(gate_kernel=jnp.ones((2, 4)))),
        "params.bias: shape": lambda: call(good._replace(bias=jnp.ones(4))),
        "params.response_bias: none beside a bias": lambda: call(good._replace(response_bias=None)),
        "params.gate_bias: shape": lambda: call(good._replace(gate_bias=jnp.ones((1, 3)))),
        "params.scale: a vector": lambda: call(good._replace(scale=jnp.ones(3))),
    }


DENSE_ARRAYS = {"x": normal(8, 4), "hyper": normal(8, 2, seed=7), "params": params(4, 3)}
CONV_ARRAYS = {"x": normal(8, 3, 3, 2), "hyper": normal(8, 2, seed=7), "params": params(2, 2, 2, 3)}
SHARED = {"rows": ("x", "hyper"), "result": "rows", "dtype": "input", "wrt": ("x", "hyper", "params")}

EXAMPLES = (
    Example(
        name="layers.hyper_dense",
        call=lambda key, x, hyper, params: (
            dense(params, x, hyper),
            dense(params._replace(bias=None, response_bias=None, gate_bias=None), jnp.stack([x, 2 * x], 1), hyper),
            dense(params, x, params.kernel[0, :2]),
        ),
        arrays=DENSE_ARRAYS,
        identity=lambda key, x, hyper, params: (dense(params, x, 0 * hyper), dense(params, x)),
        singular=({"x": np.zeros((8, 4))}, {"hyper": np.zeros((8, 2))}),
        bad={
            "x: integers": lambda: dense(DENSE, INTEGERS),
            "hyper: length": lambda: dense(DENSE, X, jnp.ones((2, 3))),
            "hyper: other examples": lambda: dense(DENSE, X, jnp.ones((3, 2))),
            "hyper: integers": lambda: dense(DENSE, X, jnp.ones((2, 2), int)),
            "hyper: of one vector": lambda: dense(DENSE, X[0], H),
            **parameter_errors(lambda params: dense(params, X, H), DENSE),
        },
        **SHARED,
    ),
    Example(
        name="layers.hyper_conv",
        call=lambda key, x, hyper, params: (
            conv(params, x, hyper),
            conv(params, x, params.kernel[0, 0, 0, :2], strides=2, padding="VALID"),
        ),
        arrays=CONV_ARRAYS,
        identity=lambda key, x, hyper, params: (conv(params, x, 0 * hyper), conv(params, x)),
        singular=({"x": np.zeros((8, 3, 3, 2))},),
        bad={
            **window_errors(lambda **options: conv(CONV, IMAGES, H, **options)),
            "x: rank": lambda: conv(CONV, X),
            "x: four spatial axes": lambda: conv(CONV, jnp.ones((1,) * 6)),
            "x: integers": lambda: conv(CONV, jnp.ones((2, 3, 3, 2), int)),
            "hyper: length": lambda: conv(CONV, IMAGES, jnp.ones((2, 3))),
            **parameter_errors(lambda params: conv(params, IMAGES, H), CONV),
        },
        **SHARED,
    ),
    Example(
        name="layers.HyperDense",
        call=lambda key, x, hyper, params: nnx.view(with_params(DENSE_LAYER, params), hyper=hyper)(x),
        arrays=DENSE_ARRAYS,
        identity=lambda key, x, hyper, params: (
            with_params(DENSE_LAYER, params)(x, 0 * hyper),
            with_params(DENSE_LAYER, params)(x),
        ),
        singular=({"x": np.zeros((8, 4))},),
        bad={
            "x: integers": lambda: make_dense()(INTEGERS),
            "x: length": lambda: make_dense()(jnp.ones((2, 3))),
            "hyper: length": lambda: make_dense()(X, jnp.ones((2, 3))),
            "hyper: rank": lambda: make_dense()(X, jnp.ones((2, 2, 2))),
            "hyper: integers in a view": lambda: nnx.view(make_dense(), hyper=jnp.ones(2, int)),
            "in_features: zero": lambda: lay.HyperDense(0, 3, 2, rngs=nnx.Rngs(0)),
            "out_features: a float": lambda: lay.HyperDense(4, 3.0, 2, rngs=nnx.Rngs(0)),
            "num_hyper: zero": lambda: lay.HyperDense(4, 3, 0, rngs=nnx.Rngs(0)),
            "use_bias: a number": lambda: make_dense(use_bias=1),
            "rngs: a number": lambda: make_dense(rngs=0),
        },
        **SHARED,
    ),
    Example(
        name="layers.HyperConv",
        call=lambda key, x, hyper, params: with_params(CONV_LAYER, params)(x, hyper),
        arrays=CONV_ARRAYS,
        singular=({"x": np.zeros((8, 3, 3, 2))},),
        bad={
            **window_errors(make_conv),
            "x: rank": lambda: make_conv()(X),
            "x: channels": lambda: make_conv()(IMAGES[..., :1]),
            "hyper: length": lambda: make_conv()(IMAGES, jnp.ones(3)),
            "kernel_size: four": lambda: lay.HyperConv(2, 4, (1, 1, 1, 1), 2, rngs=nnx.Rngs(0)),
            "kernel_size: zero": lambda: lay.HyperConv(2, 4, (0, 1), 2, rngs=nnx.Rngs(0)),
            "in_features: zero": lambda: lay.HyperConv(0, 4, (3, 3), 2, rngs=nnx.Rngs(0)),
            "out_features: zero": lambda: lay.HyperConv(2, 0, (3, 3), 2, rngs=nnx.Rngs(0)),
            "num_hyper: a float": lambda: lay.HyperConv(2, 4, (3, 3), 2.0, rngs=nnx.Rngs(0)),
            "use_bias: a number": lambda: make_conv(use_bias=1),
            "rngs: None": lambda: make_conv(rngs=None),
        },
        **SHARED,
    ),
)
