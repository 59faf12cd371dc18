"""Layers whose weights answer to hyperparameters: one forward pass serves every setting of them near the current one.

`regjax.objectives.self_tuning` trains such a model and tunes the hyperparameters through it.
"""

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from regjax.core import checks, sharding, trees
from regjax.core.types import Array
from regjax.layers.ordered.ordered import check_padding, check_steps

_LETTERS = "DHW"


class HyperParams(NamedTuple):
    """Parameters of a hyper layer with H hyperparameters; the biases and ``gate_bias`` are None together.

    ``kernel`` and ``response_kernel`` ``[..., inputs, outputs]``, ``gate_kernel`` and ``gate_bias`` ``[H, outputs]``, ``bias``
    and ``response_bias`` ``[outputs]``, ``scale`` a scalar: ``jnp.ones(())`` where it is trained, as a number would turn
    into an array in the first step, and the step would be compiled anew.
    """

    kernel: Any
    response_kernel: Any
    gate_kernel: Any
    bias: Any = None
    response_bias: Any = None
    gate_bias: Any = None
    scale: Any = 1.0


def hyper_dense(params: HyperParams, x: Any, hyper: Any = None) -> Array:
    r"""A dense layer whose weights move linearly with the hyperparameters of each example.

    Formula:
      .. math:: y = s (x W + b) + (h V_W) (x W') + (h V_b) b'

      with products of vectors taken entry by entry: to an example with the unconstrained hyperparameters h the layer has the
      kernel :math:`s W + W' diag(h V_W)`, an approximation, of low rank in h, of how the best weights answer to h.

    Args:
      params: `HyperParams` with ``kernel [I, O]``.
      x: float ``[..., I]``; ``[B, ..., I]`` where each example has hyperparameters of its own.
      hyper: float ``[B, H]``, one row for each example, or ``[H]`` for all of them, unconstrained; None (default): 0.

    Returns:
      ``[..., O]`` in the common dtype of ``x`` and kernel; sums are kept in float32 or better.

    Raises:
      ValueError: if shapes or dtypes do not fit.

    Cost:
      Twice the multiplications of the dense layer, and twice the parameters, with ``[B, H]``; with ``[H]`` or None once.
      XLA at [1024, 512]: at most 2.3 times the FLOPs and 4.3 times the bytes of a dense layer with its gradient, and 1.6 times
      its memory more.

    Use:
      Part of: `HyperDense`.
      When: Outside of Flax NNX, on ``HyperParams``.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> params = rj.layers.HyperParams(jnp.eye(2), jnp.ones((2, 2)), jnp.array([[0.0, 1.0]]))
      >>> rj.layers.hyper_dense(params, jnp.ones((2, 2)), jnp.array([[0.0], [3.0]])).tolist()
      [[1.0, 1.0], [1.0, 7.0]]

    References:
      MacKay et al., Self-Tuning Networks: Bilevel Optimization of Hyperparameters using Structured Best-Response Functions,
      2019, arXiv 1903.03088; the scalar s is that of the authors' code.
    """
    name = "layers.hyper_dense"
    x = checks.floating(name, "x", x, min_ndim=1)
    params = _check(name, params, (x.shape[-1],))
    dtype = jnp.result_type(x, params.kernel)
    wide = trees.accumulator(dtype)

    def product(kernel: Array) -> Array:
        return jnp.matmul(x.astype(dtype), kernel.astype(dtype), preferred_element_type=wide)

    return _respond(name, params, x, hyper, product).astype(dtype)


def hyper_conv(
    params: HyperParams,
    x: Any,
    hyper: Any = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Any = "SAME",
    dilation: int | Sequence[int] = 1,
) -> Array:
    r"""A convolution whose weights move linearly with the hyperparameters of each example.

    Formula:
      .. math:: y = s (x * W + b) + (h V_W) (x * W') + (h V_b) b'

      with a star for the convolution; the factors of h act on output channels.

    Args:
      params: `HyperParams` with a ``kernel [..., channels, O]``, such as ``[kh, kw, channels, O]``.
      x: float ``[B, ..., channels]`` with one to three spatial axes.
      hyper: float ``[B, H]``, one row for each example, or ``[H]`` for all of them, unconstrained; None (default): 0.
      strides: one number or one for each spatial axis; default 1.
      padding: ``"SAME"`` (default), ``"VALID"``, or a pair (low, high) for each spatial axis.
      dilation: of the kernel, as ``strides``; default 1.

    Returns:
      ``[B, ..., O]`` in the common dtype of ``x`` and kernel.

    Raises:
      ValueError: if shapes or dtypes do not fit, or an option is not as stated.

    Cost:
      Two convolutions with ``[B, H]``; with ``[H]`` or None one.
      XLA at [64, 16, 16, 64]: at most 2.3 times the FLOPs and 2.9 times the bytes of a convolution with its gradient, and 1.1
      times its memory more.

    Use:
      Part of: `HyperConv`.
      When: Outside of Flax NNX, on ``HyperParams``.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> kernel = jnp.ones((3, 3, 2, 4))
      >>> params = rj.layers.HyperParams(kernel, kernel, jnp.ones((1, 4)))
      >>> y = rj.layers.hyper_conv(params, jnp.ones((1, 3, 3, 2)), jnp.array([[0.5]]), padding="VALID")
      >>> y.shape, float(y[0, 0, 0, 0])
      ((1, 1, 1, 4), 27.0)

    References:
      Those of `hyper_dense`.
    """
    name = "layers.hyper_conv"
    x = checks.floating(name, "x", x, min_ndim=3)
    spatial = x.ndim - 2
    if spatial > 3:
        checks.fail(name, "x", "an array [B, ..., channels] with one to three spatial axes", x)
    params = _check(name, params, (*[None] * spatial, x.shape[-1]))
    dtype = jnp.result_type(x, params.kernel)
    axes = _LETTERS[3 - spatial :]
    window = check_steps(name, "strides", strides, spatial), check_padding(name, padding, spatial)
    steps = check_steps(name, "dilation", dilation, spatial)

    def product(kernel: Array) -> Array:
        y = jax.lax.conv_general_dilated(
            x.astype(dtype),
            kernel.astype(dtype),
            *window,
            rhs_dilation=steps,
            dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
        )
        return y.astype(trees.accumulator(dtype))

    return _respond(name, params, x, hyper, product).astype(dtype)


def _respond(name: str, params: HyperParams, x: Array, hyper: Any, product: Callable[[Array], Array]) -> Array:
    """The layer's output in float32 or better; ``product`` is linear in the kernel."""
    wide = trees.accumulator(x, params.kernel)
    kernel, response, gates, bias, response_bias, gates_bias, scale = jax.tree.map(lambda leaf: leaf.astype(wide), params)
    if hyper is None:
        y = product(params.kernel)
        return scale * (y if bias is None else y + bias)
    hyper = checks.floating(name, "hyper", hyper)
    size = gates.shape[0]
    each = hyper.ndim == 2
    if hyper.shape != ((x.shape[0], size) if each and x.ndim > 1 else (size,)):
        rows = f"[{x.shape[0]}, {size}] or " if x.ndim > 1 else ""
        checks.fail(name, "hyper", f"an array of shape {rows}[{size}]", hyper)
    hyper = hyper.astype(wide)
    if not each:  # one kernel serves all examples
        y = product(scale * kernel + (hyper @ gates) * response)
        return y if bias is None else y + (scale * bias + (hyper @ gates_bias) * response_bias)
    hyper = sharding.rows_like(hyper, x)

    def factors(weights: Array) -> Array:
        return jnp.expand_dims(hyper @ weights, tuple(range(1, x.ndim - 1)))

    y, moved = product(params.kernel), factors(gates) * product(params.response_kernel)
    if bias is None:
        return scale * y + moved
    return scale * (y + bias) + moved + factors(gates_bias) * response_bias


def _check(name: str, params: Any, inputs: tuple[int | None, ...]) -> HyperParams:
    """The parameters as floating arrays whose shapes fit each other and the input."""
    if not isinstance(params, HyperParams):
        checks.fail(name, "params", "a regjax.layers.HyperParams", params)
    kernel = checks.floating(name, "params.kernel", params.kernel, shape=(*inputs, None))
    response = checks.floating(name, "params.response_kernel", params.response_kernel, shape=kernel.shape)
    gates = checks.floating(name, "params.gate_kernel", params.gate_kernel, shape=(None, kernel.shape[-1]))
    scale = checks.floating(name, "params.scale", params.scale, shape=())
    biases = {part: getattr(params, part) for part in ("bias", "response_bias", "gate_bias")}
    if all(value is None for value in biases.values()):
        return HyperParams(kernel, response, gates, scale=scale)
    for part, value in biases.items():
        shape = gates.shape if part == "gate_bias" else kernel.shape[-1:]
        biases[part] = checks.floating(name, f"params.{part}", value, shape=shape)
    return HyperParams(kernel, response, gates, scale=scale, **biases)


class HyperLayer(nnx.Module):
    """Parameters and the hyperparameters that calls use: what the hyper modules share."""

    _name: ClassVar[str] = "layers.HyperLayer"

    def __init__(self, shape: tuple[int, ...], num_hyper: int, use_bias: bool, dtype: Any, param_dtype: Any, rngs: Any):
        name = self._name
        self.num_hyper = checks.integer(name, "num_hyper", num_hyper, low=1)
        checks.boolean(name, "use_bias", use_bias)
        if not isinstance(rngs, nnx.Rngs):
            checks.fail(name, "rngs", "nnx.Rngs, for the initial parameters", rngs)
        fan_in = 1
        for size in shape[:-1]:
            fan_in *= size

        def uniform(*sizes: int) -> nnx.Param:
            bound = fan_in**-0.5
            return nnx.Param(jax.random.uniform(rngs.params(), sizes, param_dtype, -bound, bound))

        def gate() -> nnx.Param:
            return nnx.Param(0.01 * jax.random.normal(rngs.params(), (num_hyper, shape[-1]), param_dtype))

        self.kernel, self.response_kernel, self.gate_kernel = uniform(*shape), uniform(*shape), gate()
        self.bias = uniform(shape[-1]) if use_bias else nnx.data(None)
        self.response_bias = uniform(shape[-1]) if use_bias else nnx.data(None)
        self.gate_bias = gate() if use_bias else nnx.data(None)
        self.scale = nnx.Param(jnp.ones((), param_dtype))
        self.dtype = dtype
        self.hyper: Any = nnx.data(None)

    def set_view(self, hyper: Any = None) -> None:
        """Sets the hyperparameters that calls use; `flax.nnx.view` calls it, for all hyper layers of a model at once.

        Args:
          hyper: float ``[B, H]`` or ``[H]``, which may be traced.
        """
        if hyper is not None:
            self.hyper = nnx.data(checks.floating(self._name, "hyper", hyper))

    def params(self) -> HyperParams:
        """The parameters as `hyper_dense` and `hyper_conv` take them."""
        value = lambda leaf: None if leaf is None else leaf[...] if self.dtype is None else leaf[...].astype(self.dtype)
        return HyperParams(*(value(getattr(self, part)) for part in HyperParams._fields))

    def _inputs(self, x: Any, hyper: Any, spatial: int | None) -> tuple[Array, Any]:
        channels = self.kernel.shape[-2]
        x = checks.floating(self._name, "x", x, min_ndim=1)
        if x.shape[-1] != channels or (spatial is not None and x.ndim != spatial + 2):
            axes = "..." if spatial is None else ", ".join(["B"] + ["any"] * spatial)
            checks.fail(self._name, "x", f"an array [{axes}, {channels}]", x)
        hyper = self.hyper if hyper is None else checks.floating(self._name, "hyper", hyper)
        if hyper is not None and (hyper.ndim not in (1, 2) or hyper.shape[-1] != self.num_hyper):
            checks.fail(self._name, "hyper", f"an array of shape [B, {self.num_hyper}] or [{self.num_hyper}]", hyper)
        return (x if self.dtype is None else x.astype(self.dtype)), hyper


class HyperDense(HyperLayer):
    r"""A dense layer whose weights move linearly with hyperparameters, as a Flax NNX module.

    Formula:
      That of `hyper_dense`. W, W', b and b' start uniform in :math:`\pm 1 / \sqrt{I}`, the factors of h normal with standard
      deviation 0.01, s at 1.

    Args:
      in_features: I, the length of the input's last axis.
      out_features: O, the length of the output's.
      num_hyper: H, the number of hyperparameters.
      use_bias: whether a bias is added, default True.
      dtype: of the computation; None (default): that of input and parameters.
      param_dtype: of the parameters, default float32.
      rngs: ``nnx.Rngs`` with a stream ``params``.

    Returns:
      A call ``layer(x, hyper=None)`` gives ``[..., O]``, with the hyperparameters of the call, else with those of
      ``nnx.view(model, hyper=...)``, which sets all hyper layers of a model, else with 0.

    Raises:
      ValueError: if an argument is outside its range or the input does not fit.

    Cost:
      That of `hyper_dense`; ``2 (I + 1 + H) O + 1`` parameters.
      XLA at [1024, 512]: at most 2.3 times the FLOPs and 4.3 times the bytes of a dense layer with its gradient, and 1.6 times
      its memory more.

    Use:
      For: few labels, compute budget.
      When: With `self_tuning`, where dropout rates, decays or augmentation strengths are learned on a validation set in one
        run. In the self-tuning study it reached the best of a grid for a fraction of its arithmetic, from a low start.
      Not when: The validation set is tiny, or strengths start high: some seeds then ended far from the others. Hyperparameters
        that do not act through the training loss, learning rates above all, are not tuned by it.
      Badly with: Weight decay on all its kernels with a free ``s``, which shrinks in their place: hold it at 1. Hyperparameters
        near 0 in unconstrained form, to which the layer answers little.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> layer = rj.layers.HyperDense(8, 4, 2, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((3, 8)), jnp.zeros((3, 2))).shape
      (3, 4)

    References:
      Those of `hyper_dense`.
    """

    _name = "layers.HyperDense"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_hyper: int,
        *,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.in_features = checks.integer(self._name, "in_features", in_features, low=1)
        self.out_features = checks.integer(self._name, "out_features", out_features, low=1)
        super().__init__((in_features, out_features), num_hyper, use_bias, dtype, param_dtype, rngs)

    def __call__(self, x: Any, hyper: Any = None) -> Array:
        """`hyper_dense` with the layer's parameters."""
        x, hyper = self._inputs(x, hyper, None)
        return hyper_dense(self.params(), x, hyper)


class HyperConv(HyperLayer):
    r"""A convolution whose weights move linearly with hyperparameters, as a Flax NNX module.

    Formula:
      That of `hyper_conv`, with the initial values of `HyperDense` at the fan-in of the kernel.

    Args:
      in_features: channels of the input.
      out_features: channels of the output.
      kernel_size: one size for each of one to three spatial axes; a number for a single axis.
      num_hyper: H, the number of hyperparameters.
      strides: one number or one for each spatial axis, default 1.
      padding: ``"SAME"`` (default), ``"VALID"``, or a pair (low, high) for each spatial axis.
      dilation: of the kernel, as ``strides``; default 1.
      use_bias: whether a bias is added, default True.
      dtype: of the computation; None (default): that of input and parameters.
      param_dtype: of the parameters, default float32.
      rngs: ``nnx.Rngs`` with a stream ``params``.

    Returns:
      A call ``layer(x, hyper=None)`` gives ``[B, ..., out_features]``; see `HyperDense`.

    Raises:
      ValueError: if an argument is outside its range or the input does not fit.

    Cost:
      That of `hyper_conv`; twice the parameters of a convolution, and ``2 H`` for each output channel.
      XLA at [64, 16, 16, 64]: at most 2.3 times the FLOPs and 2.9 times the bytes of a convolution with its gradient, and 0.86
      times its memory more.

    Use:
      Part of: `HyperDense`.
      When: For the convolutions of a self-tuning network: the answer is a factor for each output channel.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> layer = rj.layers.HyperConv(3, 8, (3, 3), 2, strides=2, rngs=nnx.Rngs(0))
      >>> nnx.view(layer, hyper=jnp.zeros(2))(jnp.ones((1, 6, 6, 3))).shape
      (1, 3, 3, 8)

    References:
      Those of `hyper_dense`.
    """

    _name = "layers.HyperConv"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        kernel_size: int | Sequence[int],
        num_hyper: int,
        *,
        strides: int | Sequence[int] = 1,
        padding: Any = "SAME",
        dilation: int | Sequence[int] = 1,
        use_bias: bool = True,
        dtype: Any = None,
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs,
    ):
        name = self._name
        checks.integer(name, "in_features", in_features, low=1)
        checks.integer(name, "out_features", out_features, low=1)
        spatial = len(kernel_size) if isinstance(kernel_size, list | tuple) else 1
        if not 1 <= spatial <= 3:
            checks.fail(name, "kernel_size", "one size for each of one to three spatial axes", kernel_size)
        self.kernel_size = check_steps(name, "kernel_size", kernel_size, spatial)
        self.strides = check_steps(name, "strides", strides, spatial)
        self.dilation = check_steps(name, "dilation", dilation, spatial)
        self.padding = check_padding(name, padding, spatial)
        super().__init__((*self.kernel_size, in_features, out_features), num_hyper, use_bias, dtype, param_dtype, rngs)

    def __call__(self, x: Any, hyper: Any = None) -> Array:
        """`hyper_conv` with the layer's parameters."""
        x, hyper = self._inputs(x, hyper, len(self.kernel_size))
        options = {"strides": self.strides, "padding": self.padding, "dilation": self.dilation}
        return hyper_conv(self.params(), x, hyper, **options)
