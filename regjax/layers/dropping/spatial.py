"""Dropout of whole channels of feature maps."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding
from regjax.core.types import Array, Key, Strength
from regjax.layers._noise import RateLayer, check_mask, check_rate, drop, is_zero, keep_mask


def apply_spatial_dropout(x: Any, keep: Any, *, rate: Strength) -> Array:
    r"""Spatial dropout with the kept channels given.

    Formula:
      .. math:: y_{b \ldots c} = \frac{m_{bc}\, x_{b \ldots c}}{1 - rate}

      and 0 everywhere at rate 1.

    Args:
      x: float ``[B, ..., C]``.
      keep: boolean ``[B, C]``; True keeps a channel of an example.
      rate: the drop rate in [0, 1], a number or a traced scalar.

    Returns:
      Shape and dtype of ``x``.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``rate`` is outside [0, 1] or not finite.

    Cost:
      One read and one write of ``x``.
      XLA at [64, 16, 16, 64]: at most 2.2 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      Part of: `spatial_dropout`.
      When: The kept channels are given: the same ones at all time steps or in two passes.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.layers.apply_spatial_dropout(jnp.ones((1, 3, 2)), jnp.array([[True, False]]), rate=0.5)[0].tolist()
      [[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]]

    References:
      Tompson et al., Efficient Object Localization Using Convolutional Networks, 2014, arXiv 1411.4280.
    """
    name = "layers.apply_spatial_dropout"
    x = checks.floating(name, "x", x, min_ndim=2)
    keep = check_mask(name, "keep", keep, (x.shape[0], x.shape[-1]))
    return _drop_channels(x, keep, check_rate(name, rate))


def spatial_dropout(key: Key | None, x: Any, *, rate: Strength, deterministic: bool = False) -> Array:
    r"""Drops whole channels of an example and scales the others up.

    Formula:
      .. math:: y_{b \ldots c} = \frac{m_{bc}\, x_{b \ldots c}}{1 - rate}, \quad m_{bc} \sim Bernoulli(1 - rate)

      Neighbouring positions of a feature map are alike, so that dropping them one by one takes little information away.

    Args:
      key: a random key; None will do where ``deterministic``. Inside ``jax.shard_map`` fold the device's index in first.
      x: float ``[B, ..., C]``: sequences, images or volumes, channels last.
      rate: the drop rate in [0, 1], a number or a traced scalar; 0 is the identity and 1 gives zeros.
      deterministic: True for test mode, the identity.

    Returns:
      Shape, dtype and sharding of ``x``.

    Raises:
      ValueError: if ``x`` is no floating ``[B, ..., C]``, ``rate`` is outside [0, 1] or not finite, or ``key`` is no key.

    Cost:
      One read and one write of ``x``, one uniform per example and channel.
      XLA at [64, 16, 16, 64]: at most 2.5 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.0066 times
      its memory more.

    Use:
      For: few labels.
      When: Feature maps, token sequences or volumes with many channels and strongly correlated neighbours, in place of
        `dropout`. Rates of 0.1 to 0.3: a whole channel is a large loss.
      Not when: There are few channels (images themselves: `cutout`), or one position only: after global pooling it is
        `dropout`. Where the place of the evidence matters, `drop_block` hides places and keeps channels.
      Badly with: Batch normalisation after it, and group normalisation, whose groups lose whole members in training but not at
        test.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> y = rj.layers.spatial_dropout(jax.random.key(0), jnp.ones((9, 4, 4, 8)), rate=0.5)
      >>> sorted(set(y.sum((1, 2)).ravel().tolist()))
      [0.0, 32.0]

    References:
      Tompson et al., Efficient Object Localization Using Convolutional Networks, 2014, arXiv 1411.4280. The scaling is in
      training, as in common implementations.
    """
    name = "layers.spatial_dropout"
    x = checks.floating(name, "x", x, min_ndim=2)
    check_rate(name, rate)
    if checks.boolean(name, "deterministic", deterministic):
        return x
    key = checks.key(name, key)
    if is_zero(rate):
        return x
    here = sharding.explicit_sharding(x)
    maps = None if here is None else here.update(spec=jax.P(here.spec[0], here.spec[-1]))
    return _drop_channels(x, keep_mask(key, rate, (x.shape[0], x.shape[-1]), maps), rate)


class SpatialDropout(RateLayer):
    r"""Spatial dropout as a Flax NNX module, with a rate that a call may override.

    Formula:
      That of `spatial_dropout`.

    Args:
      rate: the drop rate in [0, 1]; the call's ``rate=`` overrides it. See `Dropout`.
      deterministic: True for test mode, the identity; default False. See `Dropout`.
      rng_collection: the stream of an ``nnx.Rngs`` that keys are taken from, default "dropout".
      rngs: ``nnx.Rngs`` or ``nnx.RngStream`` to fork a stream from, or None where every call gives ``rngs=``, a key under
        ``jax.jit``, ``jax.vmap`` and ``jax.lax.scan``. See `Dropout`.

    Returns:
      A call ``layer(x, *, rate=None, deterministic=None, rngs=None)`` gives an array like ``x``.

    Raises:
      ValueError: if ``rate`` is outside [0, 1] or not finite, a mode is missing, or a key is needed and none is given.

    Cost:
      That of `spatial_dropout`; no parameters.
      XLA at [64, 16, 16, 64]: at most 2.5 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.0066 times
      its memory more.

    Use:
      Part of: `spatial_dropout`.
      When: In a Flax NNX model, between convolutions or on the embeddings of a sequence.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> layer = rj.layers.SpatialDropout(0.5)
      >>> sorted(set(layer(jnp.ones((9, 4, 4, 8)), rngs=jax.random.key(0)).sum((1, 2)).ravel().tolist()))
      [0.0, 32.0]

    References:
      Those of `spatial_dropout`.
    """

    _name = "layers.SpatialDropout"

    def __init__(
        self,
        rate: Strength,
        *,
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: Any = None,
    ):
        super().__init__(rate, deterministic=deterministic, rng_collection=rng_collection, rngs=rngs)

    def __call__(self, x: Any, *, rate: Strength = None, deterministic: bool | None = None, rngs: Any = None) -> Array:
        """`spatial_dropout` with the layer's settings, or those given here."""
        x = checks.floating(self._name, "x", x, min_ndim=2)
        key, rate, off = self._settings(rate, deterministic, rngs)
        return spatial_dropout(key, x, rate=rate, deterministic=off)


def _drop_channels(x: Array, keep: Array, rate: Any) -> Array:
    return drop(x, jnp.expand_dims(keep, tuple(range(1, x.ndim - 1))), rate)
