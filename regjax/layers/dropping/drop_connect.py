"""DropConnect: a linear layer whose weights are dropped one by one."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Key, Strength
from regjax.layers._noise import RateLayer, check_mask, check_rate, drop, is_zero, keep_mask


def apply_drop_connect(x: Any, kernel: Any, keep: Any, bias: Any = None, *, rate: Strength) -> Array:
    r"""A linear layer with the kept weights given.

    Formula:
      .. math:: y_j = \frac{1}{1 - rate} \sum_i x_i m_{ij} W_{ij} + b_j

      and the bias alone at rate 1.

    Args:
      x: float ``[..., in]``.
      kernel: float ``[in, out]``.
      keep: boolean ``[in, out]``, True keeps a weight; or ``[B, in, out]``, one mask for each example of ``x [B, ..., in]``.
      bias: float ``[out]`` or None (default); it is never dropped.
      rate: the drop rate in [0, 1], a number or a traced scalar.

    Returns:
      ``[..., out]``, in the common dtype of ``x`` and ``kernel``; sums are in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``rate`` is outside [0, 1] or not finite.

    Cost:
      The layer's FLOPs, and a copy of the masked kernel, per example where the masks are.
      XLA at [1024, 512]: at most 1.2 times the FLOPs and 1.4 times the bytes of a dense layer with its gradient, and 0 times
      its memory more.

    Use:
      Part of: `drop_connect`.
      When: The kept weights are given: one mask over the steps of a recurrent network, or the passes of an objective under one
        draw.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> kernel, keep = jnp.array([[1.0, 2.0], [3.0, -1.0]]), jnp.array([[True, False], [True, True]])
      >>> rj.layers.apply_drop_connect(jnp.array([1.0, 2.0]), kernel, keep, rate=0.5).tolist()
      [14.0, -4.0]

    References:
      Wan et al., Regularization of Neural Networks using DropConnect, 2013, ICML; see `drop_connect`.
    """
    name = "layers.apply_drop_connect"
    x, kernel, bias = _check_linear(name, x, kernel, bias)
    keep = checks.array(name, "keep", keep)
    per_example = keep.ndim == 3
    if per_example and x.ndim < 2:
        checks.fail(name, "keep", "a boolean mask of shape [in, out] where x has no axis of examples", keep)
    check_mask(name, "keep", keep, (*x.shape[:1], *kernel.shape) if per_example else kernel.shape)
    return _masked_linear(x, kernel, keep, bias, check_rate(name, rate))


def drop_connect(
    key: Key | None,
    x: Any,
    kernel: Any,
    bias: Any = None,
    *,
    rate: Strength,
    per_example: bool = False,
    deterministic: bool = False,
) -> Array:
    r"""A linear layer that drops every weight independently and scales the others up.

    Formula:
      .. math:: y_j = \frac{1}{1 - rate} \sum_i x_i m_{ij} W_{ij} + b_j, \quad m_{ij} \sim Bernoulli(1 - rate)

      The expectation is the plain layer, which is also the test mode; the variance is that of `drop_connect_moments`.

    Args:
      key: a random key; None will do where ``deterministic``. Inside ``jax.shard_map`` fold the device's index in first
        where ``per_example``, else give all devices the same.
      x: float ``[..., in]``; ``[B, ..., in]`` where ``per_example``.
      kernel: float ``[in, out]``.
      bias: float ``[out]`` or None (default); it is never dropped.
      rate: the drop rate in [0, 1], a number or a traced scalar; 0 is the plain layer and 1 gives the bias.
      per_example: whether each example has a mask of its own; default False, one mask for the batch.
      deterministic: True for test mode, the plain layer ``x @ kernel + bias``.

    Returns:
      ``[..., out]``, in the common dtype of ``x`` and ``kernel``; sums are in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, ``rate`` is outside [0, 1] or not finite, or ``key`` is no key.

    Cost:
      The layer's FLOPs and one uniform per weight. With ``per_example`` ``B`` times the uniforms and the memory of the
      kernel, and a product of ``B`` small matrices in place of a large one.
      XLA at [1024, 512]: at most 1.2 times the FLOPs and 2.2 times the bytes of a dense layer with its gradient, and 0.12 times
      its memory more.

    Use:
      For: few labels, poor calibration.
      When: A wide dense layer or head, where each weight and not each unit shall be dispensable. ``per_example=True`` gives the
        noise of the paper; one mask for the batch is nearly free but correlates all its gradients.
      Not when: Time or memory is short: with a mask for each example the kernel is copied B times. On the digits comparison it
        so gained less than `dropout`, at a multiple of the time of a step, though with better calibrated probabilities.
      Badly with: `dropout` on its input, the same noise in rows. Kernels that are reparametrised or normalised,
        `spectral_normalize` or `weight_norm`: what holds for the kernel does not hold for the masked one.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> y = rj.layers.drop_connect(jax.random.key(0), jnp.ones((50, 1)), jnp.ones((1, 2)), rate=0.5, per_example=True)
      >>> sorted(set(y[:, 0].tolist()))
      [0.0, 2.0]

    References:
      Wan et al., Regularization of Neural Networks using DropConnect, 2013, ICML; that paper scales nothing in training,
      draws a mask per example, and at test samples from the Gaussian of the same moments (`drop_connect_samples`).
      Here the scaling is in training and the test mode is the mean network.
    """
    name = "layers.drop_connect"
    x, kernel, bias = _check_linear(name, x, kernel, bias)
    check_rate(name, rate)
    if checks.boolean(name, "per_example", per_example) and x.ndim < 2:
        checks.fail(name, "x", "an array [B, ..., in] where per_example is True", x)
    if checks.boolean(name, "deterministic", deterministic):
        return _masked_linear(x, kernel, None, bias, 0.0)
    key = checks.key(name, key)
    if is_zero(rate):
        return _masked_linear(x, kernel, None, bias, 0.0)
    shape, here = kernel.shape, sharding.explicit_sharding(kernel)
    if per_example:
        shape, rows = (x.shape[0], *shape), sharding.explicit_sharding(x)
        here = None if rows is None else rows.update(spec=jax.P(rows.spec[0], *(here.spec if here is not None else ())))
    return _masked_linear(x, kernel, keep_mask(key, rate, shape, here), bias, rate)


def drop_connect_moments(x: Any, kernel: Any, bias: Any = None, *, rate: Strength, inverted: bool = True) -> tuple[Array, Array]:
    r"""The mean and the variance of a DropConnect layer's output over its masks.

    Formula:
      .. math:: \mu_j = \sum_i x_i W_{ij} + b_j, \quad v_j = \frac{rate}{1 - rate} \sum_i x_i^2 W_{ij}^2

      for the scaling of `drop_connect`; without it (``inverted=False``)
      :math:`\mu_j = (1 - rate) \sum_i x_i W_{ij} + b_j` and :math:`v_j = rate (1 - rate) \sum_i x_i^2 W_{ij}^2`.

    Args:
      x: float ``[..., in]``.
      kernel: float ``[in, out]``.
      bias: float ``[out]`` or None (default).
      rate: the drop rate in [0, 1], a number or a traced scalar; at 1 the mean is the bias and the variance 0.
      inverted: whether kept weights are divided by ``1 - rate`` in training, as `drop_connect` does; default True.

    Returns:
      ``(mean, variance)``, each ``[..., out]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``rate`` is outside [0, 1] or not finite.

    Cost:
      The FLOPs of two linear layers, and the squares of inputs and kernel.
      XLA at [1024, 512]: at most 2.3 times the FLOPs and 3 times the bytes of a dense layer, and 0.66 times its memory more.

    Use:
      Part of: `drop_connect`.
      When: Mean and variance of the output shall go on without sampling: a variance of predictions, or the noise a rate makes
        at a layer before training with it.
      Not when: The masks are shared by the batch and their joint effect matters: variances are those of each output alone.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> kernel = jnp.array([[1.0, 2.0], [3.0, -1.0]])
      >>> mean, variance = rj.layers.drop_connect_moments(jnp.array([1.0, 2.0]), kernel, rate=0.3)
      >>> mean.tolist(), [round(float(v), 4) for v in variance]
      ([7.0, 0.0], [15.8571, 3.4286])

    References:
      Wan et al., Regularization of Neural Networks using DropConnect, 2013, ICML, whose form is ``inverted=False``.
    """
    name = "layers.drop_connect_moments"
    x, kernel, bias = _check_linear(name, x, kernel, bias)
    check_rate(name, rate)
    return _moments(x, kernel, bias, rate, checks.boolean(name, "inverted", inverted))


def drop_connect_samples(
    key: Key,
    x: Any,
    kernel: Any,
    bias: Any = None,
    *,
    rate: Strength,
    num_samples: int = 1000,
    inverted: bool = True,
) -> Array:
    r"""Samples of a DropConnect layer's output at test, from the Gaussian of the same moments.

    Formula:
      .. math:: u_s \sim N(\mu, v), \quad s = 1, \ldots, S

      with the moments of `drop_connect_moments`, independent for each entry. The paper's test rule is the mean of the
      activations, ``activation(samples).mean(0)``, which then goes on through the network.

    Args:
      key: a random key.
      x: float ``[..., in]``.
      kernel: float ``[in, out]``.
      bias: float ``[out]`` or None (default).
      rate: the drop rate in [0, 1], a number or a traced scalar; at 0 all samples are the plain layer.
      num_samples: S, at least 1, default 1000.
      inverted: whether kept weights are divided by ``1 - rate`` in training, as `drop_connect` does; default True.

    Returns:
      ``[num_samples, ..., out]``, before the activation, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, an argument is out of range, or ``key`` is no key.

    Cost:
      The FLOPs of two linear layers, and ``num_samples`` normal numbers and as much memory per output.
      XLA at [100, 256, 100]: at most 120 times the FLOPs and 8.4 times the bytes of a copy of its results, and 1.7 times its
      memory more.

    Use:
      Part of: `drop_connect`.
      When: At test, for the rule of the paper, the mean of the activations of samples, before a strongly curved activation.
        Before a linear one it is the plain layer.
      Not when: Fan-in is small or a few inputs dominate: the sum over weights is then far from normal. `mc_predict` runs true
        masks.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> x, kernel = jnp.ones((2, 4)), jnp.ones((4, 3))
      >>> samples = rj.layers.drop_connect_samples(jax.random.key(0), x, kernel, rate=0.5, num_samples=100)
      >>> jax.nn.relu(samples).mean(0).shape
      (2, 3)

    References:
      Wan et al., Regularization of Neural Networks using DropConnect, 2013, ICML.
    """
    name = "layers.drop_connect_samples"
    x, kernel, bias = _check_linear(name, x, kernel, bias)
    check_rate(name, rate)
    num_samples = checks.integer(name, "num_samples", num_samples, low=1)
    mean, variance = _moments(x, kernel, bias, rate, checks.boolean(name, "inverted", inverted))
    here = sharding.explicit_sharding(mean)
    here = None if here is None else here.update(spec=jax.P(None, *here.spec))
    noise = jax.random.normal(checks.key(name, key), (num_samples, *mean.shape), mean.dtype, out_sharding=here)
    return mean + trees.safe_sqrt(variance) * noise


class DropConnect(RateLayer):
    r"""A linear layer with DropConnect, as a Flax NNX module.

    Formula:
      That of `drop_connect`.

    Args:
      in_features: the length of the input's last axis.
      out_features: the length of the output's.
      rate: the drop rate in [0, 1], default 0.5; the call's ``rate=`` overrides it. See `Dropout`.
      use_bias: whether there is a bias; default True.
      per_example: whether each example has a mask of its own; default False.
      kernel_init: the initializer of ``kernel``, default LeCun normal as in ``nnx.Linear``.
      bias_init: the initializer of ``bias``, default zeros.
      param_dtype: the dtype of the parameters, default float32.
      deterministic: True for test mode, the plain layer; default False. See `Dropout`.
      rng_collection: the stream of an ``nnx.Rngs`` that keys of masks are taken from, default "dropout".
      rngs: ``nnx.Rngs`` with a stream "params" or "default", for the parameters; a stream for the masks is forked from it.
        A call's ``rngs=`` goes before that stream: a key under ``jax.jit``, ``jax.vmap`` and ``jax.lax.scan``.

    Returns:
      A call ``layer(x, *, rate=None, deterministic=None, rngs=None)`` gives ``[..., out_features]``.

    Raises:
      ValueError: if an argument is outside its range or a shape does not fit, a mode is missing, or a stream is.

    Cost:
      That of `drop_connect`; the parameters of a linear layer.
      XLA at [1024, 512]: at most 1.2 times the FLOPs and 2.2 times the bytes of a dense layer with its gradient, and 0.12 times
      its memory more.

    Use:
      Part of: `drop_connect`.
      When: In place of ``nnx.Linear`` in a Flax NNX model, usually for the last or widest layer.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> layer = rj.layers.DropConnect(4, 3, rate=0.5, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 4))).shape
      (2, 3)

    References:
      Those of `drop_connect`.
    """

    _name = "layers.DropConnect"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        rate: Strength = 0.5,
        *,
        use_bias: bool = True,
        per_example: bool = False,
        kernel_init: Callable[..., Array] | None = None,
        bias_init: Callable[..., Array] | None = None,
        param_dtype: Any = jnp.float32,
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: Any,
    ):
        super().__init__(rate, deterministic=deterministic, rng_collection=rng_collection, rngs=rngs)
        name = self._name
        shape = tuple(
            checks.integer(name, argument, n, low=1)
            for argument, n in (("in_features", in_features), ("out_features", out_features))
        )
        if not isinstance(rngs, nnx.Rngs) or ("params" not in rngs and "default" not in rngs):
            checks.fail(name, "rngs", "an nnx.Rngs with a stream 'params' or 'default', for the parameters", rngs)
        for argument, init in (("kernel_init", kernel_init), ("bias_init", bias_init)):
            if init is not None:
                checks.function(name, argument, init)
        if not jnp.issubdtype(param_dtype, jnp.floating):
            checks.fail(name, "param_dtype", "a floating dtype", param_dtype)
        self.per_example = checks.boolean(name, "per_example", per_example)
        self.in_features, self.out_features = shape
        self.kernel = nnx.Param((kernel_init or nnx.initializers.lecun_normal())(rngs.params(), shape, param_dtype))
        bias = (bias_init or nnx.initializers.zeros_init())(rngs.params(), shape[1:], param_dtype)
        self.bias = nnx.Param(bias) if checks.boolean(name, "use_bias", use_bias) else nnx.data(None)

    def __call__(self, x: Any, *, rate: Strength = None, deterministic: bool | None = None, rngs: Any = None) -> Array:
        """`drop_connect` with the layer's parameters and settings, or those given here."""
        name = self._name
        x = checks.floating(name, "x", x, min_ndim=1)
        if x.shape[-1] != self.in_features or (self.per_example and x.ndim < 2):
            checks.fail(name, "x", f"an array [{'B, ' if self.per_example else ''}..., {self.in_features}]", x)
        key, rate, off = self._settings(rate, deterministic, rngs)
        bias = None if self.bias is None else self.bias[...]
        return drop_connect(key, x, self.kernel[...], bias, rate=rate, per_example=self.per_example, deterministic=off)


def _check_linear(function: str, x: Any, kernel: Any, bias: Any) -> tuple[Array, Array, Array | None]:
    x = checks.floating(function, "x", x, min_ndim=1)
    kernel = checks.floating(function, "kernel", kernel, shape=(x.shape[-1], None))
    return x, kernel, None if bias is None else checks.floating(function, "bias", bias, shape=kernel.shape[1:])


def _masked_linear(x: Array, kernel: Array, keep: Array | None, bias: Array | None, rate: Any) -> Array:
    out, dtype = jnp.result_type(x, kernel), trees.accumulator(x, kernel)
    x, kernel = x.astype(out), kernel.astype(out)
    masked = kernel if keep is None else jnp.where(keep, kernel, jnp.zeros((), out))
    product = "...i,io->...o" if masked.ndim == 2 else "b...i,bio->b...o"
    y = jnp.einsum(product, x, masked, preferred_element_type=dtype)
    # The outputs are scaled, not the weights: fewer numbers, and none of them is rounded in between.
    y = drop(y, jnp.ones((), bool), rate)
    return (y if bias is None else y + bias.astype(dtype)).astype(out)


def _moments(x: Array, kernel: Array, bias: Array | None, rate: Any, inverted: bool) -> tuple[Array, Array]:
    dtype = trees.accumulator(x, kernel)
    x, kernel, rate = x.astype(dtype), kernel.astype(dtype), jnp.asarray(rate, dtype)
    mean, squares = x @ kernel, jnp.square(x) @ jnp.square(kernel)
    if inverted:
        mean, variance = jnp.where(rate < 1, mean, 0), drop(rate * squares, jnp.ones((), bool), rate)
    else:
        mean, variance = (1 - rate) * mean, rate * (1 - rate) * squares
    return (mean if bias is None else mean + bias.astype(dtype)), variance
