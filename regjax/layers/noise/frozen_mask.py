"""Dropout masks that stay the same over the steps of an episode or a sequence."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp

from regjax.core import checks, sharding, strength, trees
from regjax.core.types import Array, Key, Strength
from regjax.layers._noise import keep_mask


class FrozenMaskState(NamedTuple):
    """The masks in force: ``1 / (1 - rate)`` where an entry is kept and 0 where it is dropped."""

    mask: Array


class FrozenMask(NamedTuple):
    """The functions of `frozen_mask_dropout`: draw masks, apply them, and draw anew where an episode starts."""

    init: Callable[..., FrozenMaskState]
    apply: Callable[..., Array]
    refresh: Callable[..., FrozenMaskState]


def frozen_mask_dropout(
    shape: tuple[int, ...], *, rate: Strength = 0.05, skip_last: int = 0, resample: str = "episode"
) -> FrozenMask:
    r"""Dropout with masks that are drawn once per episode or sequence and used at each of its steps.

    Formula:
      .. math:: y_t = \frac{m \odot x_t}{1 - rate}, \quad m \sim Bernoulli(1 - rate)

      with one m for all steps t of an episode. In a learned model of a world each m is another world: a policy trained in
      many of them relies less on the faults of one. Use it on the latent part of a recurrent model's input and on its state,
      with masks of their own, when the model is trained on sequences and in the dream; not in the real world.

    Args:
      shape: of the masks, ``(B, ..., features)`` for B environments or sequences, or ``(features,)`` for one.
      rate: the drop rate in [0, 1], default 0.05: a number, a traced scalar, or a schedule, which ``init`` and ``refresh``
        read at their ``step=``. Masks keep the rate that they were drawn at.
      skip_last: how many of the last features are never dropped or scaled, the actions beside a latent state; default 0.
      resample: ``"episode"`` (default): ``refresh`` draws where an episode starts; ``"step"``: it draws all masks anew.

    Returns:
      ``(init, apply, refresh)``:

      - ``init(key, *, step=None) -> state``; under ``jax.vmap`` give each environment a key of its own.
      - ``apply(state, x, *, deterministic=False)`` gives an array like ``x``, float ``[..., *shape]``: one step, or the steps
        of a sequence at once on leading axes. ``deterministic=True`` is the identity.
      - ``refresh(state, key, *, when, step=None) -> state``, once per step: ``when`` is a boolean, one ``[]`` or one for each
        environment, ``[B]``: new masks where True.

    Raises:
      ValueError: if a shape or dtype does not fit, ``rate`` is outside [0, 1] or not finite, an option is out of range, or a
        scheduled rate has no step.

    Cost:
      One read and one write of ``x``; the masks in float32, and in ``refresh`` one uniform for each of their entries.
      XLA at 2 times [1024, 512]: at most 1.7 times the FLOPs and 0.83 times the bytes of a copy of its arguments, and 0 times
      its memory more.

    Use:
      For: distribution shift, few labels.
      When: Recurrent networks and world models: one mask over a sequence or an episode, off in the real environment. A policy
        trained in dreams under many masks cannot lean on the faults of one model.
      Not when: Examples are independent (`dropout`), or a policy's return in the learned model shall be measured: every mask is
        another world.
      Badly with: `dropout` redrawn each step on the same latent, which is noise in time and not another world. Masked actions:
        leave them out with ``skip_last``. One key for all environments under ``jax.vmap``.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> masks = rj.layers.frozen_mask_dropout((2, 6), rate=0.5, skip_last=1)
      >>> state = masks.init(jax.random.key(0))
      >>> first, second = masks.apply(state, jnp.ones((2, 6))), masks.apply(state, jnp.ones((2, 6)))
      >>> bool((first == second).all()), first[:, -1].tolist()
      (True, [1.0, 1.0])
      >>> later = masks.refresh(state, jax.random.key(1), when=jnp.array([False, True]))
      >>> (later.mask == state.mask).all(-1).tolist()
      [True, False]

    References:
      Wellmer and Kwok, Dropout's Dream Land: Generalization from Learned Simulators to Reality, 2021, arXiv 2109.08342. The
      authors' code clears the masks per episode; whether its compiled step draws them anew is uncertain, hence
      ``resample``. The masks over a sequence: Gal and Ghahramani, A Theoretically Grounded Application of Dropout in
      Recurrent Neural Networks, 2015, arXiv 1512.05287.
    """
    name = "layers.frozen_mask_dropout"
    if not isinstance(shape, tuple) or not shape:
        checks.fail(name, "shape", "a tuple (B, ..., features) or (features,)", shape)
    shape = tuple(checks.integer(name, "shape", n, low=1) for n in shape)
    checks.strength(name, "rate", rate, low=0.0, high=1.0)
    skip_last = checks.integer(name, "skip_last", skip_last, low=0, high=shape[-1])
    checks.choice(name, "resample", resample, ("episode", "step"))

    def draw(key: Key, step: Any, here: Any = None) -> Array:
        dtype = jnp.result_type(float)
        value = rate
        if callable(rate):
            if step is None:
                checks.fail(name, "step", "given where rate is a schedule", step)
            value = strength.resolve(rate, step, name, "rate")
        keep = keep_mask(checks.key(name, key), value, shape, here)
        keep_rate = 1 - jnp.asarray(value, dtype)
        none = keep_rate <= 0
        mask = jnp.where(keep & ~none, 1 / jnp.where(none, 1, keep_rate), 0)
        return jnp.where(jnp.arange(shape[-1]) < shape[-1] - skip_last, mask, 1) if skip_last else mask

    def init(key: Key, *, step: Any = None) -> FrozenMaskState:
        return FrozenMaskState(draw(key, step))

    def apply(state: FrozenMaskState, x: Any, *, deterministic: bool = False) -> Array:
        x = checks.floating(name, "x", x, min_ndim=len(shape))
        if x.shape[x.ndim - len(shape) :] != shape:
            checks.fail(name, "x", f"a floating-point array [..., {', '.join(map(str, shape))}]", x)
        mask = _mask(name, state, shape)
        if checks.boolean(name, "deterministic", deterministic):
            return x
        mask = sharding.placed_like(jnp.broadcast_to(mask, x.shape), x)
        dtype = trees.accumulator(x)
        # Where, not times 0: what is dropped may be infinite.
        return jnp.where(mask > 0, x.astype(dtype) * mask.astype(dtype), 0).astype(x.dtype)

    def refresh(state: FrozenMaskState, key: Key, *, when: Any, step: Any = None) -> FrozenMaskState:
        mask = _mask(name, state, shape)
        when = checks.array(name, "when", when)
        whole = when.ndim == 0 or len(shape) == 1
        when = checks.example_mask(name, "when", when, () if whole else shape[:1])
        new = draw(key, step, sharding.explicit_sharding(mask)).astype(mask.dtype)
        if resample == "step":
            return FrozenMaskState(new)
        starts = jnp.broadcast_to(jnp.expand_dims(when, tuple(range(when.ndim, mask.ndim))), mask.shape)
        return FrozenMaskState(jnp.where(sharding.placed_like(starts, mask), new, mask))

    return FrozenMask(init, apply, refresh)


def _mask(function: str, state: Any, shape: tuple[int, ...]) -> Array:
    if not isinstance(state, FrozenMaskState):
        checks.fail(function, "state", "a FrozenMaskState as init makes it", state)
    return checks.floating(function, "state", state.mask, shape=shape)
