"""What the cases of the layers share: arrays, and the plain layers beside which those with weights are measured."""

import jax
import jax.numpy as jnp
from flax import nnx

import regjax as rj
from experiments.bench.cards import case as c

lay, KEY = rj.layers, c.key()
ROWS, WIDTH = 1024, 512


def rows(seed=0):
    """Features."""
    return c.normal(ROWS, WIDTH, seed=seed)


def maps(seed=0):
    """Feature maps."""
    return c.normal(64, 16, 16, 64, seed=seed)


def tokens(seed=0):
    """Groups of tokens."""
    return c.normal(16, 128, 256, seed=seed)


def weight(*shape, seed=0):
    """A kernel with variance 1 / rows."""
    return c.normal(*shape, seed=seed) / shape[-2] ** 0.5


def yes(*shape, seed=0):
    """Masks, true for the most part."""
    return c.uniform(*shape, seed=seed) < 0.7


def on_rows(call):
    """``call(key, x)`` on features."""
    return lambda: c.case(call, KEY, rows())


def on_maps(call):
    """``call(key, x)`` on feature maps."""
    return lambda: c.case(call, KEY, maps())


def split(make, only=nnx.Param):
    """The structure, the trained parameters and the other state of a module, as shapes: nothing is initialised."""
    return nnx.split(nnx.eval_shape(make), only, ...)


def dense(x, kernel, bias):
    """A plain dense layer."""
    return x @ kernel + bias


def convolution(x, kernel, bias):
    """A plain convolution."""
    return jax.lax.conv_general_dilated(x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias


def dense_args():
    """Its arguments."""
    return rows(), weight(WIDTH, WIDTH), jnp.zeros(WIDTH)


def conv_args():
    """Its arguments."""
    return maps(), 0.04 * c.normal(3, 3, 64, 64), jnp.zeros(64)


PLAIN = {"dense": (dense, dense_args, "a dense layer"), "conv": (convolution, conv_args, "a convolution")}


def trained(kind, call, *args, wrt):
    """``call(*args)`` beside a plain layer, each with its gradient."""
    plain, plain_args, name = PLAIN[kind]
    return c.beside(
        c.with_gradient(plain, (0, 1, 2)), plain_args(), f"{name} with its gradient", c.with_gradient(call, wrt), *args
    )


def module(kind, make, *given, only=nnx.Param, rngs=None):
    """A module with its gradients to its input and to its trained parameters, beside a plain layer."""
    graph, params, rest = split(make, only)
    options = lambda rngs: {} if rngs is None else {"rngs": rngs}
    call = lambda params, x, rest, rngs, *given: nnx.merge(graph, params, rest)(x, *given, **options(rngs))
    return trained(kind, call, params, PLAIN[kind][1]()[0], rest, rngs, *given, wrt=(0, 1))
