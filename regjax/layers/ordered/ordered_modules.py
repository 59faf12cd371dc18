"""Ordered low-rank layers as Flax NNX modules; `regjax.layers.ordered.ordered_models` works on all those of a model."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from regjax.core import checks
from regjax.core.types import Array, Strength
from regjax.layers.ordered.ordered import (
    check_padding,
    check_steps,
    check_truncation,
    kept_ranks,
    ordered_conv,
    ordered_dense,
    svd_factorize,
)
from regjax.weights import fold_ranks

_KERNEL_INIT = nnx.initializers.lecun_normal()


class AliveRanks(nnx.Variable):
    """The boolean mask of living ranks: state that no optimiser moves."""


class OrderedLayer(nnx.Module):
    """Factors, the mask of living ranks, and the truncation that calls use: what the ordered modules share."""

    _name: ClassVar[str] = "layers.OrderedLayer"

    def __init__(self, shape: tuple[int, ...], use_bias: bool, dtype: Any, param_dtype: Any, kernel_init: Any, rngs: Any):
        name = self._name
        checks.boolean(name, "use_bias", use_bias)
        checks.function(name, "kernel_init", kernel_init)
        if not isinstance(rngs, nnx.Rngs):
            checks.fail(name, "rngs", "nnx.Rngs, for the initial kernel", rngs)
        u, v = svd_factorize(kernel_init(rngs.params(), shape, param_dtype))
        self.u, self.v = nnx.Param(u), nnx.Param(v)
        self.bias = nnx.Param(jnp.zeros(shape[-1:], param_dtype)) if use_bias else nnx.data(None)
        self.alive = AliveRanks(jnp.ones(v.shape[0], bool))
        self.dtype = dtype
        self.fraction: Any = None
        self.rank: Any = None

    def set_view(self, fraction: Strength = None, rank: Any = None) -> None:
        """Sets the truncation that calls use; `flax.nnx.view` calls it, for all ordered layers of a model at once.

        Args:
          fraction: the part of the living ranks to use, a number or a traced scalar; 1 is all of them.
          rank: how many of the living ranks to use instead, an integer or a traced one.
        """
        if fraction is None and rank is None:
            return
        check_truncation(self._name, fraction, rank, self.v.shape[0])
        attribute = lambda value: nnx.data(value) if isinstance(value, jax.Array) else nnx.static(value)
        self.fraction, self.rank = attribute(fraction), attribute(rank)

    def kept(self) -> Array:
        """Which ranks the layer uses, boolean ``[R]``; inside a trace too concrete where the truncation is."""
        with jax.ensure_compile_time_eval():
            return kept_ranks(self.fraction, self.rank, self.alive[...])

    def fold(self) -> nnx.Module:
        """An ordinary layer, or two in an ``nnx.Sequential``, that computes the same without the unused ranks."""
        raise NotImplementedError

    def _arguments(self, fraction: Any, rank: Any) -> tuple[tuple[Any, Any, Any], dict[str, Any]]:
        """Factors in the layer's dtype and the truncation of a call."""
        if fraction is None and rank is None:
            fraction, rank = self.fraction, self.rank
        bias = None if self.bias is None else self.bias[...]
        arrays = (self.u[...], self.v[...], bias)
        if self.dtype is not None:
            arrays = tuple(None if a is None else a.astype(self.dtype) for a in arrays)  # type: ignore[assignment]
        return arrays, {"fraction": fraction, "rank": rank, "alive": self.alive[...]}

    def _input(self, x: Any, **shape: Any) -> Array:
        x = checks.floating(self._name, "x", x, **shape)
        return x if self.dtype is None else x.astype(self.dtype)

    def _folded(self, first: Callable[..., nnx.Module]) -> nnx.Module:
        """Ordinary layers: ``first(kernel, bias)`` alone, or followed by a dense one."""
        bias = None if self.bias is None else self.bias[...]
        kernels = fold_ranks(self.u[...], self.v[...], self.kept())
        if len(kernels) == 1:
            return first(kernels[0], bias)
        return nnx.Sequential(first(kernels[0], None), _linear(kernels[1], bias, self.dtype))


class OrderedDense(OrderedLayer):
    r"""A dense layer whose kernel is a product of two factors with ordered ranks, as a Flax NNX module.

    Where BatchNorm follows, its running statistics belong to the rank that they were gathered at: before evaluating at
    another, take the mean of those of some training batches, each gathered with momentum 0.

    Formula:
      That of `ordered_dense`; the factors start as those of `svd_factorize` for a kernel of ``kernel_init``.

    Args:
      in_features: the length of the input's last axis.
      out_features: the length of the output's.
      use_bias: whether a bias is added, default True.
      dtype: of the computation; None (default): that of input and parameters.
      param_dtype: of the parameters, default float32.
      kernel_init: the initialiser of the kernel that is factored, default LeCun's normal one; never zeros, from which
        factors do not move.
      rngs: ``nnx.Rngs`` with a stream ``params``.

    Returns:
      A call ``layer(x, *, fraction=None, rank=None)`` gives ``[..., out_features]``, with the truncation of the call, else
      with that of ``nnx.view(model, fraction=...)`` or `truncate_ordered`, else with all living ranks. Parameters ``u``,
      ``v``, ``bias``; the mask ``alive`` is state beside them.

    Raises:
      ValueError: if an argument is outside its range or the input does not fit.

    Cost:
      That of `ordered_dense`, and (inputs + outputs) min(inputs, outputs) parameters: more than the kernel has, until
      `fold_ordered`. One singular value decomposition at construction.
      XLA at [1024, 512]: at most 2.2 times the FLOPs and 2.1 times the bytes of a dense layer with its gradient, and 0.11 times
      its memory more.

    Use:
      For: compute budget, sparsity budget.
      When: One training shall give a network of any rank: sample one layer's rank each step with `sample_rank`, add
        `low_rank_group_lasso`, and cut dead ranks with `shrink_ordered`. In tests every truncation nears the best one of its
        rank.
      Not when: Layers are narrow (factors have more weights than the kernel until ranks die), or the rank is fixed from the
        start (`svd_factorize` once and tune).
      Badly with: `weights.l2` meant for the kernel: on factors it is a nuclear norm and lowers the rank. Spectral and
        orthogonality penalties, which see the factors. Batch normalisation statistics gathered at another rank.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> layer = rj.layers.OrderedDense(8, 4, rngs=nnx.Rngs(0))
      >>> layer.u.shape, layer.v.shape, layer(jnp.ones((2, 8)), rank=3).shape
      ((8, 4), (4, 4), (2, 4))

    References:
      Those of `ordered_dense`.
    """

    _name = "layers.OrderedDense"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: Any = _KERNEL_INIT,
        rngs: nnx.Rngs,
    ):
        self.in_features = checks.integer(self._name, "in_features", in_features, low=1)
        self.out_features = checks.integer(self._name, "out_features", out_features, low=1)
        super().__init__((in_features, out_features), use_bias, dtype, param_dtype, kernel_init, rngs)

    def __call__(self, x: Any, *, fraction: Strength = None, rank: Any = None) -> Array:
        """`ordered_dense` with the layer's factors."""
        check_truncation(self._name, fraction, rank, self.v.shape[0])
        x = self._input(x, min_ndim=1)
        if x.shape[-1] != self.in_features:
            checks.fail(self._name, "x", f"an array [..., {self.in_features}]", x)
        arrays, truncation = self._arguments(fraction, rank)
        return ordered_dense(x, *arrays, **truncation)

    def fold(self) -> nnx.Module:
        """The layer without its unused ranks: ``nnx.Linear``, or two of them in an ``nnx.Sequential``."""
        return self._folded(lambda kernel, bias: _linear(kernel, bias, self.dtype))


class OrderedConv(OrderedLayer):
    r"""A convolution whose kernel is a product of two factors with ordered ranks, as a Flax NNX module.

    Formula:
      That of `ordered_conv`; the factors start as those of `svd_factorize` for a kernel of ``kernel_init``.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
      kernel_size: one size for each of one to three spatial axes; a number for a single axis.
      strides: one number or one for each spatial axis, default 1.
      padding: ``"SAME"`` (default), ``"VALID"``, or a pair (low, high) for each spatial axis.
      dilation: of the kernel, as ``strides``; default 1.
      use_bias: whether a bias is added, default True.
      dtype: of the computation; None (default): that of input and parameters.
      param_dtype: of the parameters, default float32.
      kernel_init: the initialiser of the kernel that is factored, default LeCun's normal one.
      rngs: ``nnx.Rngs`` with a stream ``params``.

    Returns:
      A call ``layer(x, *, fraction=None, rank=None)`` gives ``[B, ..., out_features]``; see `OrderedDense`. Parameters
      ``u [..., in_features, R]``, ``v [R, out_features]`` and ``bias``, with R = min(inputs, outputs).

    Raises:
      ValueError: if an argument is outside its range or the input does not fit.

    Cost:
      That of `ordered_conv`; one singular value decomposition at construction.
      XLA at [64, 16, 16, 64]: at most 1.3 times the FLOPs and 1.9 times the bytes of a convolution with its gradient, and 0.44
      times its memory more.

    Use:
      Part of: `OrderedDense`.
      When: For convolutions: a convolution into r channels and a 1x1 convolution. It pays where channels are many beside the
        kernel's area.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> layer = rj.layers.OrderedConv(3, 8, (3, 3), strides=2, rngs=nnx.Rngs(0))
      >>> layer.u.shape, layer.v.shape, layer(jnp.ones((1, 6, 6, 3)), fraction=0.5).shape
      ((3, 3, 3, 8), (8, 8), (1, 3, 3, 8))

    References:
      Those of `ordered_dense`.
    """

    _name = "layers.OrderedConv"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        *,
        strides: int | Sequence[int] = 1,
        padding: Any = "SAME",
        dilation: int | Sequence[int] = 1,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        kernel_init: Any = _KERNEL_INIT,
        rngs: nnx.Rngs,
    ):
        name = self._name
        self.in_features = checks.integer(name, "in_features", in_features, low=1)
        self.out_features = checks.integer(name, "out_features", out_features, low=1)
        spatial = len(kernel_size) if isinstance(kernel_size, list | tuple) else 1
        if not 1 <= spatial <= 3:
            checks.fail(name, "kernel_size", "one size for each of one to three spatial axes", kernel_size)
        self.kernel_size = check_steps(name, "kernel_size", kernel_size, spatial)
        self.strides = check_steps(name, "strides", strides, spatial)
        self.dilation = check_steps(name, "dilation", dilation, spatial)
        self.padding = check_padding(name, padding, spatial)
        super().__init__((*self.kernel_size, in_features, out_features), use_bias, dtype, param_dtype, kernel_init, rngs)

    def __call__(self, x: Any, *, fraction: Strength = None, rank: Any = None) -> Array:
        """`ordered_conv` with the layer's factors."""
        check_truncation(self._name, fraction, rank, self.v.shape[0])
        x = self._input(x, shape=(*[None] * (1 + len(self.kernel_size)), self.in_features))
        arrays, truncation = self._arguments(fraction, rank)
        return ordered_conv(x, *arrays, strides=self.strides, padding=self.padding, dilation=self.dilation, **truncation)

    def fold(self) -> nnx.Module:
        """The layer without its unused ranks: ``nnx.Conv``, or one into fewer channels and an ``nnx.Linear`` after it."""
        return self._folded(self._conv)

    def _conv(self, kernel: Array, bias: Array | None) -> nnx.Conv:
        return nnx.Conv(
            self.in_features,
            kernel.shape[-1],
            self.kernel_size,
            self.strides,
            padding=self.padding,
            kernel_dilation=self.dilation,
            **_given(kernel, bias, self.dtype),
        )


def _given(kernel: Array, bias: Array | None, dtype: Any) -> dict[str, Any]:
    """Arguments that make an ordinary layer start from known weights."""
    options = {"use_bias": bias is not None, "dtype": dtype, "param_dtype": kernel.dtype, "rngs": nnx.Rngs(0)}
    return {**options, "kernel_init": lambda *_: kernel, "bias_init": lambda *_: bias}


def _linear(kernel: Array, bias: Array | None, dtype: Any) -> nnx.Linear:
    return nnx.Linear(*kernel.shape, **_given(kernel, bias, dtype))
