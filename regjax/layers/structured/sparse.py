"""Layers that compute with the share of their weights that has the largest scores; both can be trained, in turn or together."""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from regjax.core import checks, trees
from regjax.core.types import Array, Strength
from regjax.layers.ordered.ordered import check_padding, check_steps
from regjax.weights import topk_supermask

_KERNEL_INIT = nnx.initializers.lecun_normal()
_BIAS_INIT = nnx.initializers.zeros_init()


def sparse_apply(x: Any, w: Any, scores: Any, *, density: Strength, op: Callable[[Array, Array], Array] | None = None) -> Array:
    r"""A linear map through the weights with the largest scores.

    Formula:
      .. math:: y = x \, (w \odot m), \quad m = \text{topk\_supermask}(s, d)

      The gradient reaches a weight only where m is 1, and every score: ``g * w * sign(s)``.

    Args:
      x: float ``[..., in]``; with ``op``, what that takes.
      w: float ``[in, out]``; with ``op``, a kernel of any shape.
      scores: s, float, of the shape of ``w``; ``|w| / max|w|`` at first makes the mask that of the largest weights.
      density: d in [0, 1], the share of weights that is used, a number or a traced scalar. 1 is the dense map.
      op: another map ``(x, kernel) -> y`` that is linear in the kernel, such as a convolution; None (default): ``x @ kernel``.

    Returns:
      ``[..., out]`` in the common dtype of ``x`` and ``w``, or what ``op`` gives.

    Raises:
      ValueError: if shapes or dtypes do not fit, ``density`` is outside [0, 1] or not finite, or ``op`` is no function.

    Cost:
      That of the dense map: the masked weights are zeros. 32 + log2(n) counting passes over the n scores. XLA counts the body
      of the loop once.
      XLA at [1024, 512]: at most 1.2 times the FLOPs and 2.5 times the bytes of a dense layer with its gradient, and 0.14 times
      its memory more.

    Use:
      Part of: `SparseLinear`, `SparseConv`.
      When: Outside of Flax NNX, or with another map that is linear in its kernel, given as ``op``.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> w = jnp.array([[3.0, 0.5], [-1.0, 2.0]])
      >>> rj.layers.sparse_apply(jnp.array([1.0, 1.0]), w, jnp.abs(w) / 3, density=0.5).tolist()
      [3.0, 2.0]

    References:
      Mousavi et al., DASS: Differentiable Architecture Search for Sparse Neural Networks, 2022, arXiv 2207.06968 (the number is
      unverified), of which only the abstract was at hand: operator and stages are reconstructed. The mask with its gradient:
      Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, 2020, arXiv 1911.13299.
    """
    name = "layers.sparse_apply"
    w = checks.floating(name, "w", w)
    if op is None:
        x = checks.floating(name, "x", x, min_ndim=1)
        w = checks.floating(name, "w", w, shape=(x.shape[-1], None))
    else:
        x = checks.floating(name, "x", x)
        checks.function(name, "op", op)
    scores = checks.floating(name, "scores", scores, shape=w.shape)
    checks.number(name, "density", density, low=0.0, high=1.0)
    kernel = w * topk_supermask(scores, density=density).astype(w.dtype)
    return _matmul(x, kernel) if op is None else op(x, kernel)


class SparseLayer(nnx.Module):
    """Kernel, scores and density: what the sparse modules share."""

    _name: ClassVar[str] = "layers.SparseLayer"

    def __init__(
        self, shape: tuple[int, ...], density: Any, use_bias: bool, param_dtype: Any, kernel_init: Any, bias_init: Any, rngs: Any
    ):
        name = self._name
        checks.number(name, "density", density, low=0.0, high=1.0)
        checks.boolean(name, "use_bias", use_bias)
        for argument, init in (("kernel_init", kernel_init), ("bias_init", bias_init)):
            checks.function(name, argument, init)
        if not jnp.issubdtype(param_dtype, jnp.floating):
            checks.fail(name, "param_dtype", "a floating dtype", param_dtype)
        if not isinstance(rngs, nnx.Rngs):
            checks.fail(name, "rngs", "nnx.Rngs, for the initial kernel", rngs)
        self.density = nnx.data(density) if isinstance(density, jax.Array) else density
        self.kernel = nnx.Param(kernel_init(rngs.params(), shape, param_dtype))
        self.scores = nnx.Param(_relative(self.kernel[...]))
        self.bias = nnx.Param(bias_init(rngs.params(), shape[-1:], param_dtype)) if use_bias else nnx.data(None)

    def set_view(self, density: Strength = None) -> None:
        """Sets the density; `flax.nnx.view` calls it, for all sparse layers of a model at once.

        Args:
          density: the share of weights that is used, a number or a traced scalar: 1 while dense weights are trained.
        """
        if density is not None:
            checks.number(self._name, "density", density, low=0.0, high=1.0)
            self.density = nnx.data(density) if isinstance(density, jax.Array) else nnx.static(density)

    def reset_scores(self) -> None:
        """Sets the scores to ``|w| / max|w|``: the mask of the largest weights, for the weights that training has reached."""
        self.scores.set_value(_relative(self.kernel[...]))

    def mask(self, density: Strength = None) -> Array:
        """Which weights are used, boolean, of the shape of the kernel."""
        density = self.density if density is None else density
        return topk_supermask(self.scores[...], density=density) > 0

    def _apply(self, x: Array, density: Any, op: Callable[[Array, Array], Array] | None = None) -> Array:
        density = self.density if density is None else density
        checks.number(self._name, "density", density, low=0.0, high=1.0)
        y = sparse_apply(x, self.kernel[...], self.scores[...], density=density, op=op)
        return y if self.bias is None else y + self.bias[...].astype(y.dtype)


class SparseLinear(SparseLayer):
    r"""A dense layer that computes with the weights of the largest scores, as a Flax NNX module.

    Formula:
      That of `sparse_apply`, plus a bias; the scores start as ``|w| / max|w|``.

      Published order: train the weights with ``nnx.view(model, density=1.0)``; then ``reset_scores()`` in every sparse layer, and
      train the scores alone; then the weights alone with the scores as they are. As filter ``wrt=`` of gradient and optimiser,
      ``nnx.PathContains("scores")`` trains the scores, ``nnx.All(nnx.Param, nnx.Not(nnx.PathContains("scores")))`` the weights,
      and ``nnx.Param`` both. Weight decay and penalties belong to the weights: scores have two dimensions too.

    Args:
      in_features: the length of the input's last axis.
      out_features: the length of the output's.
      density: the share of weights that is used, in [0, 1], a number or a traced scalar.
      use_bias: whether a bias is added, default True.
      param_dtype: of the parameters, default float32.
      kernel_init: the initialiser of the kernel, default LeCun's normal one.
      bias_init: the initialiser of the bias, default zeros.
      rngs: ``nnx.Rngs`` with a stream ``params``.

    Returns:
      A call ``layer(x, *, density=None)`` gives ``[..., out_features]``, with the density of the call, else of
      ``nnx.view(model, density=...)``, else of the layer. ``layer.mask()`` is the boolean mask. Parameters ``kernel``,
      ``scores`` and ``bias``.

    Raises:
      ValueError: if an argument is outside its range or the input does not fit.

    Cost:
      That of `sparse_apply`; the scores are as many parameters as the kernel.
      XLA at [1024, 512]: at most 1.2 times the FLOPs and 2.5 times the bytes of a dense layer with its gradient, and 0.14 times
      its memory more.

    Use:
      For: sparsity budget, compute budget.
      When: The mask itself is searched: dense training, then scores alone, then weights alone under the mask, or as an
        operation of an architecture search with `dass_objective`. In tests the search prefers wide sparse to narrow dense.
      Not when: A mask from trained magnitudes will do: `prune` needs no scores and half the memory. The layer computes densely,
        so no time is won.
      Badly with: Decay and penalties that reach ``scores``, which have two dimensions and so pass the default ``where=``.
        `prune` or `l1` on the same kernel. Weights and scores trained together at one rate: the mask flickers.

    Example:
      >>> import jax.numpy as jnp, optax, regjax as rj
      >>> from flax import nnx
      >>> layer = rj.layers.SparseLinear(8, 4, density=0.25, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 8))).shape, int(layer.mask().sum())
      ((2, 4), 8)
      >>> of_scores = nnx.Optimizer(layer, optax.adam(1e-2), wrt=nnx.PathContains("scores"))

    References:
      Those of `sparse_apply`.
    """

    _name = "layers.SparseLinear"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        density: Strength,
        use_bias: bool = True,
        param_dtype: Any = jnp.float32,
        kernel_init: Any = _KERNEL_INIT,
        bias_init: Any = _BIAS_INIT,
        rngs: nnx.Rngs,
    ):
        self.in_features = checks.integer(self._name, "in_features", in_features, low=1)
        self.out_features = checks.integer(self._name, "out_features", out_features, low=1)
        super().__init__((in_features, out_features), density, use_bias, param_dtype, kernel_init, bias_init, rngs)

    def __call__(self, x: Any, *, density: Strength = None) -> Array:
        """`sparse_apply` with the layer's kernel and scores."""
        x = checks.floating(self._name, "x", x, min_ndim=1)
        if x.shape[-1] != self.in_features:
            checks.fail(self._name, "x", f"an array [..., {self.in_features}]", x)
        return self._apply(x, density)


class SparseConv(SparseLayer):
    r"""A convolution that computes with the weights of the largest scores, as a Flax NNX module.

    Formula:
      That of `sparse_apply` with a convolution for the product; the scores start as ``|w| / max|w|`` over the whole kernel.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
      kernel_size: one size for each of one to three spatial axes; a number for a single axis.
      strides: one number or one for each spatial axis, default 1.
      density: the share of weights that is used, in [0, 1], a number or a traced scalar.
      padding: ``"SAME"`` (default), ``"VALID"``, or a pair (low, high) for each spatial axis.
      kernel_dilation: of the kernel, as ``strides``; default 1.
      feature_group_count: into how many groups the channels are parted, default 1; a divisor of both features.
      use_bias: whether a bias is added, default True.
      param_dtype: of the parameters, default float32.
      kernel_init: the initialiser of the kernel, default LeCun's normal one.
      bias_init: the initialiser of the bias, default zeros.
      rngs: ``nnx.Rngs`` with a stream ``params``.

    Returns:
      A call ``layer(x, *, density=None)`` gives ``[B, ..., out_features]``; see `SparseLinear`.

    Raises:
      ValueError: if an argument is outside its range or the input does not fit.

    Cost:
      That of a dense convolution, and of the mask as in `sparse_apply`.
      XLA at [64, 16, 16, 64]: at most 1.2 times the FLOPs and 1.2 times the bytes of a convolution with its gradient, and 0
      times its memory more.

    Use:
      Part of: `SparseLinear`.
      When: For convolutions: the largest scores are taken over the whole kernel, not for each filter, so filters may die.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> layer = rj.layers.SparseConv(4, 8, (3, 3), strides=2, density=0.25, feature_group_count=2, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 6, 6, 4))).shape, layer.kernel.shape, int(layer.mask().sum())
      ((2, 3, 3, 8), (3, 3, 2, 8), 36)

    References:
      Those of `sparse_apply`.
    """

    _name = "layers.SparseConv"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        strides: int | Sequence[int] = 1,
        *,
        density: Strength,
        padding: Any = "SAME",
        kernel_dilation: int | Sequence[int] = 1,
        feature_group_count: int = 1,
        use_bias: bool = True,
        param_dtype: Any = jnp.float32,
        kernel_init: Any = _KERNEL_INIT,
        bias_init: Any = _BIAS_INIT,
        rngs: nnx.Rngs,
    ):
        name = self._name
        sizes = kernel_size if isinstance(kernel_size, list | tuple) else (kernel_size,)
        if not 1 <= len(sizes) <= 3:
            checks.fail(name, "kernel_size", "one to three integers", kernel_size)
        self.kernel_size = check_steps(name, "kernel_size", sizes, len(sizes))
        self.strides = check_steps(name, "strides", strides, len(sizes))
        self.kernel_dilation = check_steps(name, "kernel_dilation", kernel_dilation, len(sizes))
        self.padding = check_padding(name, padding, len(sizes))
        self.in_features = checks.integer(name, "in_features", in_features, low=1)
        self.out_features = checks.integer(name, "out_features", out_features, low=1)
        self.feature_group_count = checks.integer(name, "feature_group_count", feature_group_count, low=1)
        if in_features % feature_group_count or out_features % feature_group_count:
            checks.fail(name, "feature_group_count", f"a divisor of {in_features} and {out_features}", feature_group_count)
        shape = (*self.kernel_size, in_features // feature_group_count, out_features)
        super().__init__(shape, density, use_bias, param_dtype, kernel_init, bias_init, rngs)

    def __call__(self, x: Any, *, density: Strength = None) -> Array:
        """`sparse_apply` with the layer's kernel and scores, through its convolution."""
        spatial = len(self.kernel_size)
        x = checks.floating(self._name, "x", x, ndim=spatial + 2)
        if x.shape[-1] != self.in_features:
            checks.fail(self._name, "x", f"an array [B, ..., {self.in_features}] with {spatial} spatial axes", x)
        return self._apply(x, density, self._convolve)

    def _convolve(self, x: Array, kernel: Array) -> Array:
        axes, dtype = "DHW"[3 - len(self.kernel_size) :], jnp.result_type(x, kernel)
        return jax.lax.conv_general_dilated(
            x.astype(dtype),
            kernel.astype(dtype),
            self.strides,
            self.padding,
            rhs_dilation=self.kernel_dilation,
            dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
            feature_group_count=self.feature_group_count,
        )


def _matmul(x: Array, kernel: Array) -> Array:
    dtype = jnp.result_type(x, kernel)
    y = jnp.matmul(x.astype(dtype), kernel.astype(dtype), preferred_element_type=trees.accumulator(dtype))
    return y.astype(dtype)


def _relative(kernel: Array) -> Array:
    """``|w| / max|w|``, ones where all weights are 0."""
    size = jnp.abs(kernel)
    top = jnp.max(size)
    return jnp.where(top > 0, size / jnp.where(top > 0, top, 1), 1).astype(kernel.dtype)
