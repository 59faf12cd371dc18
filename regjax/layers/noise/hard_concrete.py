"""Hard concrete gates: noise that is exactly 0 or 1 with learned probability, for units that a model can do without."""

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from regjax.core import checks, trees
from regjax.core.types import Array, Key, Strength
from regjax.layers._noise import NoiseLayer
from regjax.weights import l0_penalty
from regjax.weights.penalties.hard_concrete import HIGH, LOW, TEMPERATURE

_EDGE = 1e-6
_CLAMP = (math.log(0.01), math.log(100.0))


def apply_hard_concrete(log_alpha: Any, uniform: Any) -> Array:
    r"""Hard concrete gates with the uniform draws given.

    Formula:
      .. math:: z = clip(1.2 \, \sigma((\log u - \log(1 - u) + \log\alpha) / \beta) - 0.1, 0, 1), \quad \beta = 2 / 3

    Args:
      log_alpha: the gates' parameters, a float array of any shape.
      uniform: u, of a shape that ``log_alpha`` broadcasts to; clipped to [1e-6, 1 - 1e-6].

    Returns:
      The gates in [0, 1], in the shape of ``uniform``, in float32 or better.

    Raises:
      ValueError: if an argument is no float array or the shapes do not fit.

    Cost:
      Two logarithms and a sigmoid for each gate.
      XLA at [1024, 512]: at most 13 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its memory
      more.

    Use:
      Part of: `HardConcrete`.
      When: The uniforms are given: gates of several layers that shall open together, or a test of exact values.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> z = rj.layers.apply_hard_concrete(jnp.array([0.0, 2.0, -3.0]), jnp.full(3, 0.3))
      >>> [round(float(x), 4) for x in z]
      [0.1629, 0.9191, 0.0]

    References:
      Louizos et al., Learning Sparse Neural Networks through L0 Regularization, 2018, arXiv 1712.01312.
    """
    name = "layers.apply_hard_concrete"
    log_alpha = checks.floating(name, "log_alpha", log_alpha)
    uniform = checks.floating(name, "uniform", uniform)
    if uniform.ndim < log_alpha.ndim or uniform.shape[uniform.ndim - log_alpha.ndim :] != log_alpha.shape:
        checks.fail(name, "uniform", f"of a shape that ends in {list(log_alpha.shape)}", uniform)
    dtype = trees.accumulator(log_alpha)
    u = jnp.clip(uniform.astype(dtype), _EDGE, 1 - _EDGE)
    logits = (jnp.log(u) - jnp.log1p(-u) + log_alpha.astype(dtype)) / TEMPERATURE
    return jnp.clip((HIGH - LOW) * jax.nn.sigmoid(logits) + LOW, 0, 1)


def hard_concrete(key: Key | None, log_alpha: Any, *, shape: tuple[int, ...] | None = None, deterministic: bool = False) -> Array:
    r"""Draws hard concrete gates, or gives the gates of test mode.

    Formula:
      `apply_hard_concrete` of fresh uniforms; in test mode :math:`clip(1.2 \, \sigma(\log\alpha) - 0.1, 0, 1)`.

    Args:
      key: a random key; None will do where ``deterministic``.
      log_alpha: the gates' parameters, a float array of any shape.
      shape: the shape to draw, which ends in that of ``log_alpha``: ``(B, gates)`` gives each example gates of its own.
        Default: that of ``log_alpha``, one draw for the batch.
      deterministic: True for test mode.

    Returns:
      The gates in [0, 1], in float32 or better.

    Raises:
      ValueError: if ``log_alpha`` is no float array, ``shape`` does not end in its shape, or ``key`` is no key.

    Cost:
      One uniform, two logarithms and a sigmoid for each gate.
      XLA at [1024, 512]: at most 70 times the FLOPs and 8.3 times the bytes of a copy of its results, and 1.7 times its memory
      more.

    Use:
      Part of: `HardConcrete`.
      When: Gates on something other than the last axis of an activation: attention heads, blocks, kernels, edges of a graph.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> [round(float(x), 4) for x in rj.layers.hard_concrete(None, jnp.array([0.0, 2.0, -3.0]), deterministic=True)]
      [0.5, 0.957, 0.0]

    References:
      Louizos et al., Learning Sparse Neural Networks through L0 Regularization, 2018, arXiv 1712.01312.
    """
    name = "layers.hard_concrete"
    log_alpha = checks.floating(name, "log_alpha", log_alpha)
    shape = log_alpha.shape if shape is None else tuple(shape)
    if shape[max(len(shape) - log_alpha.ndim, 0) :] != log_alpha.shape:
        checks.fail(name, "shape", f"one that ends in {list(log_alpha.shape)}", shape)
    if checks.boolean(name, "deterministic", deterministic):
        wide = log_alpha.astype(trees.accumulator(log_alpha))
        return jnp.broadcast_to(jnp.clip((HIGH - LOW) * jax.nn.sigmoid(wide) + LOW, 0, 1), shape)
    return apply_hard_concrete(log_alpha, jax.random.uniform(checks.key(name, key), shape, jnp.float32))


class HardConcrete(NoiseLayer):
    r"""Hard concrete gates on the last axis of a layer's input or output, as a Flax NNX module.

    Formula:
      :math:`y = z \odot x` with z of `hard_concrete`; before a dense layer it gates input units, after a convolution
      filters. ``layer.penalty(kernel, l0=...)`` is the price of what is open.

    Args:
      num: the number of gates, the length of the last axis.
      drop_rate: d, about the rate at which gates are closed at the start, in (0, 1), default 0.5 (0.2 for a first layer):
        :math:`\log\alpha \sim N(\log((1 - d) / d), 0.01^2)`.
      per_example: whether each example, axis 0, has a draw of its own; default True.
      deterministic: True for test mode; default False. See `Dropout`.
      rng_collection: the stream of an ``nnx.Rngs`` that keys are taken from, default "dropout".
      rngs: ``nnx.Rngs``: for the initial parameters, and to fork the stream of draws from.

    Returns:
      A call ``layer(x, *, deterministic=None, rngs=None)`` gives an array like ``x``.

    Raises:
      ValueError: if ``num`` is below 1, ``drop_rate`` outside (0, 1), ``x`` does not fit, or a key is needed and none is given.

    Cost:
      One uniform, two logarithms and a sigmoid for each gate drawn. A unit whose test gate is 0 can be removed.
      XLA at [1024, 512]: at most 71 times the FLOPs and 8.9 times the bytes of a copy of its arguments, and 1.7 times its
      memory more.

    Use:
      For: compute budget, sparsity budget, few labels.
      When: Whole inputs, units or filters shall be removable, and the data shall choose how many: gates with ``layer.penalty``
        in the loss, raised slowly. Gates whose test value is 0 are cut out exactly.
      Not when: The sparsity is given beforehand (`prune`, `project_top_groups`), single weights shall go, or the penalty starts
        at full strength, which closes gates before the weights behind them have learnt.
      Badly with: Batch normalisation right after the gate, which scales a half-open unit up again. `dropout` on the same units.
        Weight decay on ``log_alpha``, which pulls every gate to half open. `group_lasso` on the same groups.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> layer = rj.layers.HardConcrete(4, rngs=nnx.Rngs(0))
      >>> layer(jnp.ones((2, 4)), deterministic=True).round(1).tolist()
      [[0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5]]

    References:
      Louizos et al., Learning Sparse Neural Networks through L0 Regularization, 2018, arXiv 1712.01312. As in the authors'
      code ``log_alpha`` is held in [log 0.01, log 100]; they clip it after each step, here it is clipped where it is read, and
      the gradient passes, so that it can come back.
    """

    _name = "layers.HardConcrete"

    def __init__(
        self,
        num: int,
        *,
        drop_rate: float = 0.5,
        per_example: bool = True,
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: nnx.Rngs,
    ):
        if not isinstance(rngs, nnx.Rngs):
            checks.fail(self._name, "rngs", "nnx.Rngs", rngs)
        num = checks.integer(self._name, "num", num, low=1)
        checks.number(self._name, "drop_rate", drop_rate, low=0.0, high=1.0, open_low=True, open_high=True)
        super().__init__(deterministic=deterministic, rng_collection=rng_collection, rngs=rngs)
        self.per_example = checks.boolean(self._name, "per_example", per_example)
        start = math.log((1 - drop_rate) / drop_rate)
        self.log_alpha = nnx.Param(start + 0.01 * jax.random.normal(rngs.params(), (num,)))

    def __call__(self, x: Any, *, deterministic: bool | None = None, rngs: Any = None) -> Array:
        """The input times its gates."""
        x = checks.floating(self._name, "x", x, min_ndim=2 if self.per_example else 1)
        if x.shape[-1] != self.log_alpha.shape[0]:
            checks.fail(self._name, "x", f"an array whose last axis has the {self.log_alpha.shape[0]} gates", x)
        off = self._is_deterministic(deterministic)
        rows = (x.shape[0],) if self.per_example and not off else ()
        gates = hard_concrete(None if off else self._key(rngs), self._clamped(), shape=(*rows, x.shape[-1]), deterministic=off)
        if rows:
            gates = gates.reshape(x.shape[0], *(1,) * (x.ndim - 2), x.shape[-1])
        return (x.astype(trees.accumulator(x)) * gates).astype(x.dtype)

    def penalty(self, kernel: Any, *, l0: Strength, l2: Strength = 0.0, groups: str = "in") -> Array:
        """`regjax.weights.l0_penalty` of these gates and the kernel behind them."""
        return l0_penalty(self._clamped(), kernel, l0=l0, l2=l2, groups=groups)

    def _clamped(self) -> Array:
        log_alpha = self.log_alpha[...]
        return log_alpha + jax.lax.stop_gradient(jnp.clip(log_alpha, *_CLAMP) - log_alpha)
