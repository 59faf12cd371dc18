"""Dropout whose rate may be traced, so that it can follow a schedule without compiling again."""

from typing import Any

from regjax.core import checks, sharding
from regjax.core.types import Array, Key, Strength
from regjax.layers._noise import RateLayer, check_mask, check_rate, drop, is_zero, keep_mask


def apply_dropout(x: Any, keep_mask: Any, *, rate: Strength) -> Array:
    r"""Dropout with a given mask: zeros where it is False, the rest scaled up.

    Formula:
      .. math:: y_i = \frac{m_i x_i}{1 - rate}

      and 0 everywhere at rate 1. The rate scales only: which entries go is the mask's business.

    Args:
      x: float, any shape.
      keep_mask: boolean of the shape of ``x``; True keeps an entry.
      rate: the drop rate in [0, 1], a number or a traced scalar.

    Returns:
      Shape and dtype of ``x``.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``rate`` is outside [0, 1] or not finite.

    Cost:
      One read and one write of ``x``; the backward pass keeps the mask.
      XLA at 2 times [1024, 512]: at most 1.1 times the FLOPs and 0.99 times the bytes of a copy of its arguments, and 0 times
      its memory more.

    Use:
      Part of: `dropout`.
      When: A mask is given: one mask for all time steps, the same in two passes or two networks, or a test of exact values.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.layers.apply_dropout(jnp.array([1.0, 2.0, 3.0]), jnp.array([True, False, True]), rate=0.5).tolist()
      [2.0, 0.0, 6.0]

    References:
      Srivastava et al., Dropout: A Simple Way to Prevent Neural Networks from Overfitting, 2014, Journal of Machine Learning
      Research 15. The scaling is applied in training and not, as in that paper, at test.
    """
    name = "layers.apply_dropout"
    x = checks.floating(name, "x", x)
    mask = check_mask(name, "keep_mask", keep_mask, x.shape)
    return drop(x, mask, check_rate(name, rate))


def dropout(key: Key | None, x: Any, *, rate: Strength, deterministic: bool = False) -> Array:
    r"""Drops every entry independently and scales the others up, so that the expectation is the input.

    Formula:
      .. math:: y_i = \frac{m_i x_i}{1 - rate}, \quad m_i \sim Bernoulli(1 - rate)

    Args:
      key: a random key; None will do where ``deterministic``. Inside ``jax.shard_map`` fold the device's index in first,
        else all devices draw the same mask.
      x: float, any shape.
      rate: the drop rate in [0, 1], a number or a traced scalar such as the value of a schedule; 0 is the identity and 1
        gives zeros.
      deterministic: True for test mode, the identity.

    Returns:
      Shape, dtype and sharding of ``x``.

    Raises:
      ValueError: if ``x`` is not floating, ``rate`` is outside [0, 1] or not finite, or ``key`` is no key.

    Cost:
      One float32 uniform per entry, which outweighs the rest; the backward pass keeps the boolean mask. A rate that is
      the number 0 draws nothing.
      XLA at [1024, 512]: at most 61 times the FLOPs and 8.9 times the bytes of a copy of its arguments, and 1.7 times its
      memory more.

    Use:
      For: few labels, noisy labels.
      When: Dense layers and heads on pooled features that memorise a small or noisy set: 0.3 to 0.7 in MLPs, about 0.1 in
        transformers. On the digits comparison it memorised far fewer wrong labels, for one random number an entry.
      Not when: The model underfits (`early_dropout` then), or the input is a feature map: neighbours carry what was dropped, so
        `drop_block` or `spatial_dropout` take more away.
      Badly with: Batch normalisation after it, whose running variance is that of dropped activations. `drop_path` or
        `nested_dropout` on the same place. `sam` unless both passes get the same key.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> y = rj.layers.dropout(jax.random.key(0), jnp.ones(100), rate=0.5)
      >>> sorted(set(y.tolist()))
      [0.0, 2.0]

    References:
      Srivastava et al., Dropout: A Simple Way to Prevent Neural Networks from Overfitting, 2014, Journal of Machine Learning
      Research 15. Rates that change over training: Liu et al., Dropout Reduces Underfitting, 2023, arXiv 2303.01500.
    """
    name = "layers.dropout"
    x = checks.floating(name, "x", x)
    check_rate(name, rate)
    if checks.boolean(name, "deterministic", deterministic):
        return x
    key = checks.key(name, key)
    if is_zero(rate):
        return x
    return drop(x, keep_mask(key, rate, x.shape, sharding.explicit_sharding(x)), rate)


class Dropout(RateLayer):
    r"""Dropout as a Flax NNX module, with a rate that a call may override.

    Formula:
      That of `dropout`.

    Args:
      rate: the drop rate in [0, 1]. At the call, ``rate=`` overrides it, by the value of a schedule say; for all layers
        of a model at once, ``nnx.view(model, only=rj.layers.Dropout, rate=value)``.
      deterministic: True for test mode, the identity; default False. ``train()``, ``eval()``, ``nnx.view`` and the call's
        ``deterministic=`` set it.
      rng_collection: the stream of an ``nnx.Rngs`` that keys are taken from, default "dropout".
      rngs: ``nnx.Rngs`` or ``nnx.RngStream`` to fork a stream from, or None where every call gives ``rngs=``: ``nnx.Rngs``,
        ``nnx.RngStream`` or a key. Under ``jax.jit``, ``jax.vmap`` and ``jax.lax.scan`` give a key: an own stream counts
        on from call to call under ``nnx.jit`` and its kin only. In Linen, through ``nnx.bridge.to_linen``, give
        ``rngs={"dropout": key}`` to ``init`` and ``apply``: an ``apply`` without repeats one mask.

    Returns:
      A call ``layer(x, *, rate=None, deterministic=None, rngs=None)`` gives an array like ``x``.

    Raises:
      ValueError: if ``rate`` is outside [0, 1] or not finite, a mode is missing, or a key is needed and none is given.

    Cost:
      That of `dropout`; no parameters.
      XLA at [1024, 512]: at most 61 times the FLOPs and 8.9 times the bytes of a copy of its arguments, and 1.7 times its
      memory more.

    Use:
      Part of: `dropout`.
      When: In a Flax NNX model, where ``nnx.view(model, only=rj.layers.Dropout, rate=...)`` sets the rate of all layers at once
        from a schedule.
      Badly with: ``jax.jit``, ``jax.vmap`` and ``jax.lax.scan`` with the module's own stream, which does not advance under
        them: give ``rngs=`` a key at the call.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> layer = rj.layers.Dropout(0.5)
      >>> sorted(set(layer(jnp.ones(100), rngs=jax.random.key(0)).tolist()))
      [0.0, 2.0]
      >>> layer.eval()
      >>> layer(jnp.ones(3)).tolist()
      [1.0, 1.0, 1.0]

    References:
      Those of `dropout`.
    """

    _name = "layers.Dropout"

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
        """`dropout` with the layer's settings, or those given here."""
        x = checks.floating(self._name, "x", x)
        key, rate, off = self._settings(rate, deterministic, rngs)
        return dropout(key, x, rate=rate, deterministic=off)
