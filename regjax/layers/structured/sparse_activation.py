"""Activation functions with a few trainable scales, among which a sparse network finds better ones than ReLU."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from regjax.core import checks, trees
from regjax.core.types import Array

SAFS_CANDIDATES = (
    "relu6",
    "hardswish",
    "swish",
    "TanhSoft-1",
    "acon",
    "gelu",
    "srs",
    "elu",
    "tanh",
    "softplus",
    "logsigmoid",
    "symlog",
    "symexp",
)
"""The names among which the published search chooses for each layer."""

_LARGEST_EXPONENT = 30.0
_SMALLEST_DIVISOR = 1e-6


class _Activation(NamedTuple):
    """How many parameters an activation has, and ``fn(x, p)`` with the list of them."""

    size: int
    fn: Callable[[Array, list[Array]], Array]


def _scaled(fn: Callable[[Array], Array]) -> _Activation:
    return _Activation(2, lambda x, p: p[0] * fn(p[1] * x))


def _exp(x: Array) -> Array:
    return jnp.exp(jnp.minimum(x, _LARGEST_EXPONENT))


def _divisor(x: Array) -> Array:
    """``x`` kept away from 0 on its own side."""
    return jnp.where(x < 0, jnp.minimum(x, -_SMALLEST_DIVISOR), jnp.maximum(x, _SMALLEST_DIVISOR))


def _acon(x: Array, p: list[Array]) -> Array:
    linear = (p[0] - p[1]) * x
    return linear * jax.nn.sigmoid(p[2] * linear) + p[1] * x


def _srs(x: Array, p: list[Array]) -> Array:
    return x / _divisor(x / _divisor(p[0]) + _exp(-x / _divisor(p[1])))


def _odd(fn: Callable[[Array], Array], x: Array, p: list[Array]) -> Array:
    """``p1 sign(z) fn(|z|)`` with the derivative of fn at 0, where that of the sign and of the absolute value is none."""
    z = p[1] * x
    side = jnp.where(z < 0, -1, 1).astype(z.dtype)
    return p[0] * side * fn(side * z)


def _falu(x: Array, p: list[Array]) -> Array:
    z = p[1] * x
    gate, swish = jax.nn.sigmoid(z), z * jax.nn.sigmoid(z)
    first = lambda a: swish + a * gate * (1 - swish)
    return jnp.where(p[0] < 1, first(p[0]), first(1) + (p[0] - 1) * gate * (1 - 2 * first(1)))


def _srelu(x: Array, p: list[Array]) -> Array:
    right, left, left_slope, right_slope = p
    relu = jax.nn.relu
    return -left_slope * relu(left - x) + relu(x - left) - relu(x - right) + right_slope * relu(x - right)


_ACTIVATIONS: dict[str, _Activation] = {
    "relu": _scaled(jax.nn.relu),
    "relu6": _scaled(jax.nn.relu6),
    "hardswish": _scaled(jax.nn.hard_swish),
    "elu": _scaled(jax.nn.elu),
    "selu": _scaled(jax.nn.selu),
    "gelu": _scaled(lambda z: jax.nn.gelu(z, approximate=False)),
    "mish": _scaled(lambda z: z * jnp.tanh(jax.nn.softplus(z))),
    "tanh": _scaled(jnp.tanh),
    "sigmoid": _scaled(jax.nn.sigmoid),
    "softplus": _scaled(jax.nn.softplus),
    "logsigmoid": _scaled(jax.nn.log_sigmoid),
    "sin": _scaled(jnp.sin),
    "cos": _scaled(jnp.cos),
    "linear": _Activation(1, lambda x, p: p[0] * x),
    "swish": _Activation(2, lambda x, p: p[0] * x * jax.nn.sigmoid(p[1] * x)),
    "acon": _Activation(3, _acon),
    "TanhSoft-1": _Activation(1, lambda x, p: jnp.tanh(p[0] * x) * jax.nn.softplus(x)),
    "TanhSoft-2": _Activation(2, lambda x, p: x * jnp.tanh(p[0] * _exp(p[1] * x))),
    "srs": _Activation(2, _srs),
    "symlog": _Activation(2, lambda x, p: _odd(jnp.log1p, x, p)),
    "symexp": _Activation(2, lambda x, p: _odd(lambda z: jnp.expm1(jnp.minimum(z, _LARGEST_EXPONENT)), x, p)),
    "FALU": _Activation(2, _falu),
    "SRelu": _Activation(4, _srelu),
}


def sparse_activation(x: Any, name: str, params: Any = None) -> Array:
    r"""An activation function by its name, with its trainable scales.

    Formula:
      .. math:: p_1 f(p_2 x)

      for relu, relu6, hardswish, elu, selu, gelu, mish, tanh, sigmoid, softplus, logsigmoid, sin, cos; and, with
      :math:`\sigma` the sigmoid:

      - linear: :math:`p_1 x`; swish: :math:`p_1 x \sigma(p_2 x)`;
      - acon: :math:`l \sigma(p_3 l) + p_2 x` with :math:`l = (p_1 - p_2) x`;
      - TanhSoft-1: :math:`\tanh(p_1 x) \log(1 + e^x)`; TanhSoft-2: :math:`x \tanh(p_1 e^{p_2 x})`;
      - srs: :math:`x / (x / p_1 + e^{-x / p_2})`;
      - symlog and symexp, with :math:`z = p_2 x`: :math:`p_1 sign(z) \log(1 + |z|)` and :math:`p_1 sign(z) (e^{|z|} - 1)`;
      - FALU, with :math:`s = z \sigma(z)` and :math:`D(a) = s + a \sigma(z) (1 - s)`: :math:`D(p_1)` for :math:`p_1 < 1`, else
        :math:`D(1) + (p_1 - 1) \sigma(z) (1 - 2 D(1))`;
      - SRelu: with r the ReLU, :math:`-p_3 r(p_2 - x) + r(x - p_2) - r(x - p_1) + p_4 r(x - p_1)`.

    Args:
      x: float, any shape.
      name: one of these, in this spelling; `SAFS_CANDIDATES` are those of the published search.
      params: float ``[P]``, the p of the whole layer: 1 for linear and TanhSoft-1, 3 for acon, 4 for SRelu, 2 for all others.
        None (default): all 1.

    Returns:
      Shape and dtype of ``x``, computed in float32 or better. Exponents end at 30, and the divisor of srs, which can pass 0 where
      :math:`p_2 \ge e p_1`, stays 1e-6 away from it: values and gradients are finite.

    Raises:
      ValueError: if ``x`` or ``params`` is not floating, the name is unknown, or the number of parameters is another.

    Cost:
      One pass over ``x``; the gradients to the scales are sums over all entries, whose terms a CPU writes out.
      XLA at [1024, 512]: at most 29 times the FLOPs and 13 times the bytes of a copy of its arguments, and 1.7 times its memory
      more.

    Use:
      Part of: `SparseActivation`.
      When: Outside of Flax NNX, or with parameters from a search over ``SAFS_CANDIDATES``.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> y = rj.layers.sparse_activation(jnp.array([-1.0, 0.0, 2.0]), "symlog", jnp.array([2.0, 1.0]))
      >>> [round(float(v), 4) for v in y]
      [-1.3863, 0.0, 2.1972]

    References:
      Loni et al., Learning Activation Functions for Sparse Neural Networks, 2023, arXiv 2305.10964 (the number is unverified;
      the formulas are those of the authors' code). The published search: on the pruned network, each layer's name by local
      search over the candidates with all p = 1, then p trained together with a search of the optimiser's hyperparameters.
    """
    function = "layers.sparse_activation"
    x = checks.floating(function, "x", x)
    checks.choice(function, "name", name, tuple(_ACTIVATIONS))
    size, fn = _ACTIVATIONS[name]
    params = jnp.ones(size, jnp.float32) if params is None else checks.floating(function, "params", params, shape=(size,))
    dtype = trees.accumulator(x)
    scales = params.astype(dtype)
    return fn(x.astype(dtype), [scales[i] for i in range(size)]).astype(x.dtype)


class FixedScales(nnx.Variable):
    """Scales of an activation that no optimiser moves."""


class SparseActivation(nnx.Module):
    r"""An activation function with trainable scales, as a Flax NNX module.

    Formula:
      That of `sparse_activation`.

    Args:
      name: of the activation.
      init: its first parameters, P numbers or an array ``[P]``; None (default): all 1.
      trainable: True (default): they are an ``nnx.Param``; False: state beside the parameters, for the search of the names.

    Returns:
      A call ``layer(x)`` gives an array like ``x``. The parameters are ``layer.scales``, float32 ``[P]``.

    Raises:
      ValueError: if the name is unknown, ``init`` is not of its number of parameters, or ``trainable`` is no boolean.

    Cost:
      That of `sparse_activation`; at most four parameters.
      XLA at [1024, 512]: at most 29 times the FLOPs and 13 times the bytes of a copy of its arguments, and 1.7 times its memory
      more.

    Use:
      For: sparsity budget.
      When: Networks of about 1 % of their weights, where dead ReLUs starve what is left: choose a name for each layer, then
        train its scales with the weights. In tests the best of three candidates beats ReLU at 99 %.
      Not when: Dense networks, or no budget to compare candidates: the gain is in the choice, and no single name wins
        everywhere.
      Badly with: Weight decay on the scales, which flattens the function. Batch normalisation before it, whose own scale does
        what ``p_2`` does. symexp and TanhSoft-2 with large activations: exponents end at 30.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> layer = rj.layers.SparseActivation("acon", init=(1.0, 0.0, 1.0))
      >>> round(float(layer(jnp.array(1.0))), 4)
      0.7311

    References:
      Those of `sparse_activation`.
    """

    _name = "layers.SparseActivation"

    def __init__(self, name: str, *, init: Any = None, trainable: bool = True):
        function = self._name
        self.name = checks.choice(function, "name", name, tuple(_ACTIVATIONS))
        size = _ACTIVATIONS[name].size
        scales = jnp.ones(size, jnp.float32) if init is None else checks.floating(function, "init", init, shape=(size,))
        make = nnx.Param if checks.boolean(function, "trainable", trainable) else FixedScales
        self.scales = make(scales)

    def __call__(self, x: Any) -> Array:
        """`sparse_activation` with the layer's scales."""
        x = checks.floating(self._name, "x", x)
        return sparse_activation(x, self.name, self.scales[...])
