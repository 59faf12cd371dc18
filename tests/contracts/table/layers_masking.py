"""Examples of layer masking."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal

X, M = jnp.ones((2, 4, 4, 2)), jnp.ones((2, 4, 4, 1), bool)
K = jnp.ones((3, 3, 2, 4))
IMAGES = {"x": normal(8, 4, 4, 2), "mask": normal(8, 4, 4, 1, seed=1) > -0.3}
KERNEL = {"kernel": normal(3, 3, 2, 2, seed=2), "bias": normal(2, seed=3)}
HIDDEN = {"mask": np.zeros((8, 4, 4, 1), bool)}
ZEROS, LARGE = {"x": np.zeros((8, 4, 4, 2))}, {"x": 1e4 * np.sign(normal(8, 4, 4, 2))}
NAN = float("nan")
lay = rj.layers


def plain_conv(x, kernel, bias):
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias


def plain_pool(x, start, combine):
    return jax.lax.reduce_window(x, start, combine, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def seen(x):
    return jnp.ones((*x.shape[:3], 1), bool)


def wrong_images(call, names=("x", "mask")) -> dict:
    """The images and masks that everything refuses; ``call(x, mask)`` is given each."""
    x, mask = names
    return {
        f"{x}: integers": lambda: call(jnp.ones((2, 4, 4, 2), int), M),
        f"{x}: rank": lambda: call(X[0], M),
        f"{x}: empty": lambda: call(X[:, :0], M[:, :0]),
        f"{mask}: floats": lambda: call(X, jnp.ones((2, 4, 4, 1))),
        f"{mask}: shape": lambda: call(X, M[:1]),
        f"{mask}: one for each channel": lambda: call(X, jnp.ones((2, 4, 4, 2), bool)),
        f"{mask}: None": lambda: call(X, None),
    }


def wrong_windows(call) -> dict:
    """The windows that pooling refuses; ``call(window, **options)`` is given each."""
    return {
        "window: zero": lambda: call(0),
        "window: three": lambda: call((2, 2, 2)),
        "window: a float": lambda: call(2.0),
        **wrong_steps(lambda **options: call(2, **options)),
    }


def wrong_steps(call) -> dict:
    """Wrong strides and paddings; ``call(**options)`` is given each."""
    return {
        "strides: zero": lambda: call(strides=0),
        "strides: a float": lambda: call(strides=1.5),
        "padding: misspelt": lambda: call(padding="valid"),
        "padding: one number": lambda: call(padding=1),
        "padding: one pair": lambda: call(padding=((1, 1),)),
    }


EXAMPLES = (
    Example(
        name="layers.neighbour_padding",
        call=lambda key, x, mask: lay.neighbour_padding(x, mask, iterations=2),
        arrays=IMAGES,
        rows=("x", "mask"),
        result="rows",
        dtype="input",
        wrt=("x",),
        surrogate=True,
        identity=lambda key, x, mask: (lay.neighbour_padding(x, mask, iterations=0), jnp.where(mask, x, 0)),
        singular=(HIDDEN, ZEROS, LARGE),
        bad={
            **wrong_images(lambda x, mask: lay.neighbour_padding(x, mask, iterations=1)),
            "iterations: negative": lambda: lay.neighbour_padding(X, M, iterations=-1),
            "iterations: a float": lambda: lay.neighbour_padding(X, M, iterations=1.0),
            "eps: zero": lambda: lay.neighbour_padding(X, M, iterations=1, eps=0.0),
            "eps: NaN": lambda: lay.neighbour_padding(X, M, iterations=1, eps=NAN),
        },
    ),
    Example(
        name="layers.masked_conv",
        call=lambda key, x, mask, kernel, bias: (
            lay.masked_conv(x, mask, kernel, bias),
            lay.masked_conv(x, mask, kernel[:, :, :1], strides=2, padding=((1, 0), (0, 1)), feature_group_count=2),
        ),
        arrays={**IMAGES, **KERNEL},
        rows=("x", "mask"),
        result="rows",
        dtype="input",
        wrt=("kernel", "bias"),
        identity=lambda key, x, mask, kernel, bias: (
            lay.masked_conv(x, seen(x), kernel, bias),
            (plain_conv(x, kernel, bias), seen(x)),
        ),
        singular=(HIDDEN, ZEROS, LARGE),
        bad={
            **wrong_images(lambda x, mask: lay.masked_conv(x, mask, K)),
            **wrong_steps(lambda **options: lay.masked_conv(X, M, K, **options)),
            "kernel: channels": lambda: lay.masked_conv(X, M, K[:, :, :1]),
            "kernel: rank": lambda: lay.masked_conv(X, M, K[0]),
            "kernel: integers": lambda: lay.masked_conv(X, M, jnp.ones((3, 3, 2, 4), int)),
            "bias: shape": lambda: lay.masked_conv(X, M, K, jnp.ones(3)),
            "pad_iterations: negative": lambda: lay.masked_conv(X, M, K, pad_iterations=-1),
            "feature_group_count: zero": lambda: lay.masked_conv(X, M, K, feature_group_count=0),
            "feature_group_count: no divisor": lambda: lay.masked_conv(X, M, K, feature_group_count=3),
            "feature_group_count: no divisor of the outputs": lambda: lay.masked_conv(
                X, M, K[:, :, :1, :3], feature_group_count=2
            ),
        },
    ),
    Example(
        name="layers.masked_max_pool",
        call=lambda key, x, mask: lay.masked_max_pool(x, mask, (2, 3), strides=(1, 2), padding="SAME"),
        arrays=IMAGES,
        rows=("x", "mask"),
        result="rows",
        dtype="input",
        wrt=("x",),
        identity=lambda key, x, mask: (lay.masked_max_pool(x, seen(x), 2)[0], plain_pool(x, -jnp.inf, jax.lax.max)),
        singular=(HIDDEN, ZEROS, LARGE),
        bad={
            **wrong_images(lambda x, mask: lay.masked_max_pool(x, mask, 2)),
            **wrong_windows(lambda window, **options: lay.masked_max_pool(X, M, window, **options)),
        },
    ),
    Example(
        name="layers.masked_avg_pool",
        call=lambda key, x, mask: lay.masked_avg_pool(x, mask, 2, strides=1, padding=((1, 0), (0, 1))),
        arrays=IMAGES,
        rows=("x", "mask"),
        result="rows",
        dtype="input",
        wrt=("x",),
        identity=lambda key, x, mask: (lay.masked_avg_pool(x, seen(x), 2)[0], plain_pool(x, 0.0, jax.lax.add) / 4),
        singular=(HIDDEN, ZEROS, LARGE),
        bad={
            **wrong_images(lambda x, mask: lay.masked_avg_pool(x, mask, 2)),
            **wrong_windows(lambda window, **options: lay.masked_avg_pool(X, M, window, **options)),
        },
    ),
    Example(
        name="layers.masked_elementwise",
        call=lambda key, x, mask: lay.masked_elementwise(jax.nn.sigmoid, x, mask),
        arrays=IMAGES,
        rows=("x", "mask"),
        result="rows",
        dtype="input",
        wrt=("x",),
        identity=lambda key, x, mask: (lay.masked_elementwise(jnp.tanh, x, seen(x)), jnp.tanh(x)),
        singular=(HIDDEN, ZEROS, LARGE),
        bad={
            **wrong_images(lambda x, mask: lay.masked_elementwise(jnp.tanh, x, mask)),
            "fn: a string": lambda: lay.masked_elementwise("relu", X, M),
            "fn: loses a pixel": lambda: lay.masked_elementwise(lambda x: x[:, 1:], X, M),
        },
    ),
    Example(
        name="layers.masked_residual",
        call=lambda key, x, mask, x2, mask2: lay.masked_residual(x, mask, x2, mask2),
        arrays={**IMAGES, "x2": normal(8, 4, 4, 2, seed=4), "mask2": normal(8, 4, 4, 1, seed=5) > 0},
        rows=("x", "mask", "x2", "mask2"),
        result="rows",
        dtype="input",
        wrt=("x", "x2"),
        identity=lambda key, x, mask, x2, mask2: (lay.masked_residual(x, seen(x), x2, seen(x))[0], x + x2),
        singular=(HIDDEN, ZEROS),
        bad={
            **wrong_images(lambda x, mask: lay.masked_residual(x, mask, X, M), ("x1", "mask1")),
            **wrong_images(lambda x, mask: lay.masked_residual(X, M, x, mask), ("x2", "mask2")),
            "x2: channels": lambda: lay.masked_residual(X, M, X[..., :1], M),
        },
    ),
    Example(
        name="layers.masked_global_avg_pool",
        call=lambda key, x, mask: lay.masked_global_avg_pool(x, mask),
        arrays=IMAGES,
        rows=("x", "mask"),
        result="rows",
        dtype="input",
        wrt=("x",),
        identity=lambda key, x, mask: (lay.masked_global_avg_pool(x, seen(x)), jnp.mean(x, axis=(1, 2), keepdims=True)),
        singular=(HIDDEN, ZEROS, LARGE),
        bad=wrong_images(lay.masked_global_avg_pool),
    ),
)
