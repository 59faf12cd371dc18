"""What adapters share: a frozen layer, a product of two small factors beside it, and the way back to a plain layer.

An adapted layer keeps the names and the arithmetic of the layer that it stands for: ``kernel`` and ``bias`` stay where a
checkpoint has them, as frozen variables, and the layer's own code is run on them. Each kind of adapter only says what its
variables are and which two factors they make.
"""

import math
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Key
from regjax.layers._noise import NoiseLayer, drop, is_zero, keep_mask

ADAPTABLE = "an nnx.Linear, an nnx.LinearGeneral without batch axes, or an nnx.Conv without groups and mask"


class AdapterParam(nnx.Param):
    r"""The variables of adapters that are trained: the type to differentiate by and to optimise.

    With ``graph, adapters, rest = nnx.split(model, AdapterParam, ...)``, or as the filter ``wrt=AdapterParam`` of
    ``nnx.grad`` and ``nnx.Optimizer``, the adapters alone are trained, and the optimiser's memory is of their size. Adapted
    kernels and biases are no ``nnx.Param`` while they are frozen, so that ``wrt=nnx.Param`` trains the adapters and
    whatever no adapter was put on. The adapters and a new head alone:
    ``wrt=nnx.Any(AdapterParam, nnx.All(nnx.Param, nnx.PathContains("head")))``.

    Formula:
      None: a variable type.

    Args:
      *args: those of ``nnx.Param``: the value.
      **kwargs: those of ``nnx.Param``: metadata.

    Returns:
      A variable, which is an ``nnx.Param`` too.

    Raises:
      Nothing.

    Cost:
      None.

    Example:
      >>> import jax, regjax as rj
      >>> from flax import nnx
      >>> layer = rj.layers.LoRALinear(nnx.Linear(4, 3, rngs=nnx.Rngs(0)), rank=2, rngs=nnx.Rngs(1))
      >>> jax.tree.map(lambda x: x.shape, nnx.to_pure_dict(nnx.state(layer, rj.layers.AdapterParam)))
      {'a': (4, 2), 'b': (2, 3)}

    References:
      Houlsby et al., Parameter-Efficient Transfer Learning for NLP, 2019, arXiv 1902.00751.
    """


class FrozenParam(nnx.Variable):
    """A kernel, a bias or another constant of an adapted layer: no ``nnx.Param``, so that no optimiser moves it."""


def is_adaptable(layer: Any) -> bool:
    """Whether a layer can be adapted: of a known class itself, since a subclass may compute something else."""
    if type(layer) is nnx.LinearGeneral:
        return not layer.batch_axis
    if type(layer) is nnx.Conv:
        return layer.feature_group_count == 1 and layer.mask is None
    return type(layer) is nnx.Linear


def is_stacked(layer: Any) -> bool:
    """Whether a layer is really many, stacked along a new axis of the kernel for a scan."""
    if type(layer) is nnx.LinearGeneral:
        return layer.kernel.ndim != len(layer.in_features) + len(layer.out_features)
    return layer.kernel.ndim != (2 if type(layer) is nnx.Linear else len(layer.kernel_size) + 2)


class AdaptedLayer(NoiseLayer):
    """A frozen layer plus ``dropout(x) @ left @ right`` with the factors of a subclass.

    A subclass sets its variables after ``super().__init__`` and gives `_factors`.
    """

    _name: ClassVar[str] = "layers.AdaptedLayer"

    # Of a subclass: ``[inputs, r]`` and ``[r, outputs]``, whose product is added to the kernel as a matrix.
    _factors: Callable[[], tuple[Array, Array]]

    def __init__(self, layer: Any, *, dropout_rate: Any = 0.0, deterministic: Any, rng_collection: str, rngs: Any):
        name = self._name
        layer = _as_layer(name, layer)
        check_dropout(name, dropout_rate)
        self.dropout_rate = nnx.data(dropout_rate) if isinstance(dropout_rate, jax.Array) else dropout_rate
        if rngs is not None and not isinstance(rngs, nnx.Rngs):
            checks.fail(name, "rngs", "nnx.Rngs or None", rngs)
        # Without dropout there is no stream: nothing random is left in the model's state.
        source = None if is_zero(dropout_rate) else rngs
        super().__init__(deterministic=deterministic, rng_collection=rng_collection, rngs=source)
        graph, _ = nnx.split(layer)
        self._layer = nnx.static(graph)
        self.in_features, self.out_features = layer.in_features, layer.out_features
        self.kernel = frozen_copy(layer.kernel)
        self.bias = nnx.data(None) if layer.bias is None else frozen_copy(layer.bias)
        if type(layer) is nnx.LinearGeneral:
            self._axes: tuple[int, ...] | None = tuple(layer.axis)
            inputs = math.prod(layer.in_features)
        else:
            self._axes = None if type(layer) is nnx.Conv else (-1,)
            inputs = math.prod(layer.kernel.shape[:-1])
        self._shape = (inputs, layer.kernel.size // inputs)

    def __call__(self, x: Any, out_sharding: Any = None, *, deterministic: bool | None = None, rngs: Any = None) -> Array:
        """The layer and what the adapter adds to it."""
        x = self._check_input(x)
        y = self._base(x, *jax.lax.stop_gradient(self._frozen()), out_sharding)
        if not (is_zero(self.dropout_rate) or self._is_deterministic(deterministic)):
            x = dropped(x, self.dropout_rate, self._key(rngs))
        left, right = self._factors()
        if self._axes is None:
            # The first factor is a convolution into as many channels as the rank, of the same window.
            kernel = left.reshape(*self.kernel.shape[:-1], left.shape[-1])
            hidden = self._base(x, kernel, None if self.bias is None else jnp.zeros(left.shape[-1], left.dtype))
            added = expand(hidden, right)
        else:
            axes = tuple(axis % x.ndim for axis in self._axes)
            rest = tuple(i for i in range(x.ndim) if i not in axes)
            flat = x if axes == (x.ndim - 1,) else x.transpose(*rest, *axes).reshape(*(x.shape[i] for i in rest), -1)
            added = low_rank(flat, left, right)
            added = added.reshape(*added.shape[:-1], *y.shape[len(rest) :])
        return (y.astype(added.dtype) + sharding.placed_like(added, y)).astype(y.dtype)

    def merged_kernel(self) -> Array:
        """The kernel of the plain layer that computes the same, in the dtype and shape of ``kernel``."""
        left, right = self._factors()
        kernel = self.kernel[...]
        dtype = trees.accumulator(kernel, left, right)
        with jax.default_matmul_precision("highest"):  # it is done once
            added = left.astype(dtype) @ right.astype(dtype)
        return (kernel.astype(dtype) + added.reshape(kernel.shape)).astype(kernel.dtype)

    def merge(self) -> nnx.Module:
        """The plain layer, of the class and with the settings of the one that was adapted."""
        return self._plain(self.merged_kernel(), self._frozen()[1])

    def _frozen(self) -> tuple[Array, Array | None]:
        return self.kernel[...], None if self.bias is None else self.bias[...]

    def _base(self, x: Array, kernel: Array, bias: Array | None, out_sharding: Any = None) -> Array:
        options = {} if out_sharding is None else {"out_sharding": out_sharding}
        return self._plain(kernel, bias)(x, **options)

    def _plain(self, kernel: Array, bias: Array | None) -> Any:
        return nnx.merge(self._layer, {"kernel": kernel} if bias is None else {"kernel": kernel, "bias": bias})

    def _check_input(self, x: Any) -> Array:
        x = checks.floating(self._name, "x", x, min_ndim=1)
        if self._axes is None:
            fits = x.ndim >= self.kernel.ndim - 1 and x.shape[-1] == self.in_features
        else:
            wanted = (self.in_features,) if isinstance(self.in_features, int) else tuple(self.in_features)
            fits = x.ndim >= len(wanted) and tuple(x.shape[axis] for axis in self._axes) == wanted
        if not fits:
            checks.fail(self._name, "x", f"an input of {self.in_features} features, as the layer takes it", x)
        return x


def frozen_copy(variable: nnx.Variable) -> FrozenParam:
    """A variable's value and metadata, its sharding say, frozen."""
    frozen: Any = FrozenParam.from_metadata(variable.get_value(), dict(variable.get_metadata()))
    return frozen


def check_dropout(name: str, rate: Any) -> Any:
    """A drop rate by the name that it has beside a low-rank adapter."""
    return checks.number(name, "dropout_rate", rate, low=0.0, high=1.0)


def dropped(x: Array, rate: Any, key: Key) -> Array:
    """Inverted dropout of the entries of ``x``."""
    return drop(x, keep_mask(key, rate, x.shape, sharding.explicit_sharding(x)), rate)


def check_linear(
    name: str, x: Any, kernel: Any, bias: Any, dropout_rate: Any, key: Any, kernel_name: str = "kernel"
) -> tuple[Array, Array, Array | None, Array]:
    """The arguments of a pure adapted layer: input, frozen kernel and bias, and the input of the adapter."""
    x = checks.floating(name, "x", x, min_ndim=1)
    kernel = checks.floating(name, kernel_name, kernel, shape=(x.shape[-1], None))
    bias = None if bias is None else checks.floating(name, "bias", bias, shape=kernel.shape[1:])
    check_dropout(name, dropout_rate)
    noisy = x if is_zero(dropout_rate) else dropped(x, dropout_rate, checks.key(name, key))
    return x, jax.lax.stop_gradient(kernel), None if bias is None else jax.lax.stop_gradient(bias), noisy


def linear_plus(x: Array, kernel: Array, bias: Array | None, added: Array) -> Array:
    """A linear layer plus what an adapter adds, in the common dtype of ``x`` and ``kernel``."""
    out, dtype = jnp.result_type(x, kernel), trees.accumulator(x, kernel)
    y = jnp.einsum("...i,io->...o", x.astype(out), kernel.astype(out), preferred_element_type=dtype)
    y = y if bias is None else y + bias.astype(dtype)
    return (y + added.astype(dtype)).astype(out)


def low_rank(x: Array, left: Array, right: Array) -> Array:
    """``x @ left @ right`` on the last axis, summed and returned in float32 or better."""
    common, dtype = jnp.result_type(x, left), trees.accumulator(x, left, right)
    hidden = jnp.einsum("...i,ir->...r", x.astype(common), left.astype(common), preferred_element_type=dtype)
    return expand(hidden, right)


def expand(hidden: Array, right: Array) -> Array:
    """``hidden @ right`` on the last axis, in float32 or better."""
    dtype = trees.accumulator(hidden, right)
    return jnp.einsum("...r,ro->...o", hidden.astype(dtype), right.astype(dtype))


def kaiming_uniform(key: Key, inputs: int, shape: tuple[int, ...], dtype: Any) -> Array:
    """The initial first factor: Kaiming's uniform with negative slope sqrt(5), that is within 1 / sqrt(inputs) of 0."""
    bound = 1 / math.sqrt(inputs)
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def check_rngs(name: str, rngs: Any) -> nnx.Rngs:
    """The random streams that an adapter starts from."""
    if not isinstance(rngs, nnx.Rngs):
        checks.fail(name, "rngs", "nnx.Rngs, for the initial adapter", rngs)
    return rngs


def _as_layer(name: str, layer: Any) -> Any:
    """The layer to adapt; a bare kernel stands for a dense layer without bias."""
    if isinstance(layer, jax.Array):
        kernel = checks.floating(name, "layer", layer, ndim=2)
        return nnx.Linear(
            *kernel.shape, use_bias=False, param_dtype=kernel.dtype, kernel_init=lambda *_: kernel, rngs=nnx.Rngs(0)
        )
    if not is_adaptable(layer):
        checks.fail(name, "layer", f"{ADAPTABLE}, or a kernel [in, out]", layer)
    if is_stacked(layer):
        checks.fail(name, "layer", "one layer; of several stacked for a scan adapt each, inside nnx.vmap", layer.kernel[...])
    return layer
