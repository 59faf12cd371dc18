"""Stochastic depth: residual branches dropped per example, or for the whole batch."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, sharding
from regjax.core.types import Array, Key, Strength
from regjax.layers._noise import RateLayer, check_mask, check_rate, drop, is_zero, keep_mask

_PER = ("example", "batch")


def apply_drop_path(x: Any, keep: Any, *, rate: Strength, scale_by_keep: bool = True) -> Array:
    r"""Drop path with the kept examples given.

    Formula:
      .. math:: y_b = \frac{z_b x_b}{1 - rate}

      without the division where ``scale_by_keep`` is False; 0 everywhere at rate 1.

    Args:
      x: float ``[B, ...]``, the output of a residual branch.
      keep: boolean ``[B]``, True keeps the branch of an example; or one for the whole batch, ``[]``.
      rate: the drop rate in [0, 1], a number or a traced scalar.
      scale_by_keep: whether kept branches are divided by ``1 - rate``; default True.

    Returns:
      Shape and dtype of ``x``.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``rate`` is outside [0, 1] or not finite.

    Cost:
      One read and one write of ``x``.
      XLA at [1024, 512]: at most 2.2 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its memory
      more.

    Use:
      Part of: `drop_path`.
      When: The kept examples are given: branches that live and die together, or both passes of an objective under one draw.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.layers.apply_drop_path(jnp.ones((2, 2)), jnp.array([True, False]), rate=0.2).tolist()
      [[1.25, 1.25], [0.0, 0.0]]

    References:
      Huang et al., Deep Networks with Stochastic Depth, 2016, arXiv 1603.09382; see `drop_path`.
    """
    name = "layers.apply_drop_path"
    x = checks.floating(name, "x", x, min_ndim=1)
    whole = isinstance(keep, (bool, np.bool_)) or getattr(keep, "ndim", None) == 0
    keep = check_mask(name, "keep", keep, () if whole else x.shape[:1])
    check_rate(name, rate)
    return _drop_rows(x, keep, rate, checks.boolean(name, "scale_by_keep", scale_by_keep))


def drop_path(
    key: Key | None,
    x: Any,
    *,
    rate: Strength,
    per: str = "example",
    scale_by_keep: bool = True,
    deterministic: bool = False,
) -> Array:
    r"""Drops a residual branch for whole examples or the whole batch, and scales what is kept up.

    Formula:
      .. math:: y_b = \frac{z_b x_b}{1 - rate}, \quad z_b \sim Bernoulli(1 - rate)

      with one draw per example, or one z for the batch; use it as ``x + drop_path(key, branch(x), rate=rate)``.

    Args:
      key: a random key; None will do where ``deterministic``. Inside ``jax.shard_map`` fold the device's index in first,
        but with ``per="batch"`` give all devices the same.
      x: float ``[B, ...]``, the output of a residual branch.
      rate: the drop rate in [0, 1], a number or a traced scalar; 0 is the identity and 1 gives zeros. Rates that grow
        with depth: `drop_path_rates`.
      per: ``"example"`` (default), or ``"batch"`` for one draw for the whole batch.
      scale_by_keep: whether kept branches are divided by ``1 - rate``, so that the expectation is ``x``; default True.
      deterministic: True for test mode, the identity.

    Returns:
      Shape, dtype and sharding of ``x``.

    Raises:
      ValueError: if ``x`` is no floating ``[B, ...]``, ``rate`` is outside [0, 1] or not finite, ``per`` is misspelt, or
        ``key`` is no key.

    Cost:
      One read and one write of ``x``, one uniform per example. A dropped branch is computed all the same: fixed shapes.
      XLA at [1024, 512]: at most 2.4 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      For: few labels.
      When: Deep residual networks and transformers, at the end of each branch, with `drop_path_rates` so that early blocks are
        kept: last rates of 0.1 for small models to 0.5 for large ones.
      Not when: The network has no shortcuts, or few blocks: on the digits comparison, a shallow residual MLP, it gained little.
        A dropped branch is computed all the same, so it saves no time.
      Badly with: `dropout` in the same branches: the authors of early dropout use one or the other. Blocks that change shape,
        whose only path it would drop.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> y = rj.layers.drop_path(jax.random.key(0), jnp.ones((50, 2)), rate=0.5)
      >>> sorted(set(map(tuple, y.tolist())))
      [(0.0, 0.0), (2.0, 2.0)]

    References:
      Huang et al., Deep Networks with Stochastic Depth, 2016, arXiv 1603.09382. The defaults are the form of timm: a draw
      per example, and scaling in training. The paper draws once per batch and block and scales at test:
      ``per="batch"`` and ``scale_by_keep=False``, and ``(1 - rate) * branch(x)`` in place of the call at test.
    """
    name = "layers.drop_path"
    x = checks.floating(name, "x", x, min_ndim=1)
    check_rate(name, rate)
    checks.choice(name, "per", per, _PER)
    checks.boolean(name, "scale_by_keep", scale_by_keep)
    if checks.boolean(name, "deterministic", deterministic):
        return x
    key = checks.key(name, key)
    if is_zero(rate):
        return x
    if per == "batch":
        return _drop_rows(x, keep_mask(key, rate, ()), rate, scale_by_keep)
    here = sharding.explicit_sharding(x)
    rows = None if here is None else here.update(spec=jax.P(here.spec[0]))
    return _drop_rows(x, keep_mask(key, rate, x.shape[:1], rows), rate, scale_by_keep)


def drop_path_rates(rate: Strength, depth: int) -> Any:
    r"""Drop rates of the blocks of a network, linear in depth from 0.

    Formula:
      .. math:: rate_i = rate \frac{i}{depth - 1}, \quad i = 0, \ldots, depth - 1

      and 0 for a single block.

    Args:
      rate: the rate of the last block, in [0, 1], a number or a traced scalar such as the value of a schedule. Early and
        late stochastic depth are ``drop_path_rates(schedule(step), depth)`` in the step, with ``schedule`` one of
        `regjax.schedules.dropout_schedule`; the entries go to `drop_path` or to the calls of `DropPath`.
      depth: the number of blocks, at least 1.

    Returns:
      ``[depth]``, in float32 or better. For a number a NumPy array, whose entries serve as the rates of `DropPath` even
      where a model is built under ``jax.jit`` or ``jax.eval_shape``; else a JAX array.

    Raises:
      ValueError: if ``rate`` is outside [0, 1] or not finite, or ``depth`` is below 1.

    Cost:
      None.

    Use:
      Part of: `drop_path`.
      When: To give each block its rate from one number or schedule. Its first block has rate 0, that of
        `scheduled_drop_path_rates` with ``v2`` does not.

    Example:
      >>> import regjax as rj
      >>> rj.layers.drop_path_rates(0.5, 3).tolist()
      [0.0, 0.25, 0.5]

    References:
      Huang et al., Deep Networks with Stochastic Depth, 2016, arXiv 1603.09382. As in timm the first block has rate 0,
      where the paper's block l of L has ``rate * l / L`` (as ``regjax.schedules.scheduled_drop_path_rates``, version v2).
      A rate that is recomputed each step: Liu et al., Dropout Reduces Underfitting, 2023, arXiv 2303.01500.
    """
    name = "layers.drop_path_rates"
    check_rate(name, rate)
    depth = checks.integer(name, "depth", depth, low=1)
    dtype = jnp.promote_types(np.float32, jnp.result_type(rate))
    fractions = np.linspace(0, 1, depth, dtype=dtype)
    return fractions * (rate.astype(dtype) if isinstance(rate, jax.Array) else dtype.type(rate))


class DropPath(RateLayer):
    r"""Drop path as a Flax NNX module, with a rate that a call may override.

    Formula:
      That of `drop_path`: put it at the end of a residual branch.

    Args:
      rate: the drop rate in [0, 1]. At the call, ``rate=`` overrides it: ``drop_path_rates(schedule(step), depth)[i]``.
      per: ``"example"`` (default), or ``"batch"`` for one draw for the whole batch.
      scale_by_keep: whether kept branches are divided by ``1 - rate``; default True.
      deterministic: True for test mode, the identity; default False. See `Dropout`.
      rng_collection: the stream of an ``nnx.Rngs`` that keys are taken from, default "dropout".
      rngs: ``nnx.Rngs`` or ``nnx.RngStream`` to fork a stream from, or None where every call gives ``rngs=``, a key under
        ``jax.jit``, ``jax.vmap`` and ``jax.lax.scan``. See `Dropout`.

    Returns:
      A call ``layer(x, *, rate=None, deterministic=None, rngs=None)`` gives an array like ``x``.

    Raises:
      ValueError: if ``rate`` is outside [0, 1] or not finite, ``per`` is misspelt, a mode is missing, or a key is needed
        and none is given.

    Cost:
      That of `drop_path`; no parameters.
      XLA at [1024, 512]: at most 2.4 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      Part of: `drop_path`.
      When: In a Flax NNX model: one module for each branch, with the rate of its depth from `drop_path_rates` given at
        construction or at the call.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> layer = rj.layers.DropPath(0.5)
      >>> sorted(set(layer(jnp.ones((50, 1)), rngs=jax.random.key(0))[:, 0].tolist()))
      [0.0, 2.0]

    References:
      Those of `drop_path`.
    """

    _name = "layers.DropPath"

    def __init__(
        self,
        rate: Strength,
        *,
        per: str = "example",
        scale_by_keep: bool = True,
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: Any = None,
    ):
        super().__init__(rate, deterministic=deterministic, rng_collection=rng_collection, rngs=rngs)
        self.per = checks.choice(self._name, "per", per, _PER)
        self.scale_by_keep = checks.boolean(self._name, "scale_by_keep", scale_by_keep)

    def __call__(self, x: Any, *, rate: Strength = None, deterministic: bool | None = None, rngs: Any = None) -> Array:
        """`drop_path` with the layer's settings, or those given here."""
        x = checks.floating(self._name, "x", x, min_ndim=1)
        key, rate, off = self._settings(rate, deterministic, rngs)
        return drop_path(key, x, rate=rate, per=self.per, scale_by_keep=self.scale_by_keep, deterministic=off)


def _drop_rows(x: Array, keep: Array, rate: Any, scale_by_keep: bool) -> Array:
    rows = keep.reshape(keep.shape + (1,) * (x.ndim - 1)) if keep.ndim else keep
    return drop(x, rows, rate, scale_by_keep)
