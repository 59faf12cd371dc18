"""DropBlock: dropout of square blocks of feature maps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Key, Strength
from regjax.layers._noise import RateLayer, check_mask, check_rate, is_zero, keep_mask


def apply_drop_block(x: Any, seeds: Any, *, block_size: int = 7, scale_by_keep: bool = True, axis_name: Any = None) -> Array:
    r"""DropBlock with the centres of the blocks given.

    Formula:
      .. math:: y = x \odot m \, \frac{|m|}{\sum m}

      with m = 0 within the squares of side ``block_size`` around the seeds, cut at the border, and 1 elsewhere; the factor,
      the number of entries of m over the whole batch by how many are 1, is left out where ``scale_by_keep`` is False.

    Args:
      x: float ``[B, H, W, C]``.
      seeds: boolean ``[B, H, W, 1]``, one set of blocks for all channels, or ``[B, H, W, C]``; True drops the block around
        a position: of an even side, one row and column more above and to the left of it.
      block_size: the side of a block, at least 1, default 7; at most the smaller side of the image is used.
      scale_by_keep: whether what is kept is scaled up; default True. The factor has no gradient.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split under ``shard_map`` or ``pmap``: the
        factor is that of the whole batch. None (default) for one device or a batch sharded by ``jax.jit``.

    Returns:
      Shape and dtype of ``x``; zeros if nothing is kept in the batch.

    Raises:
      ValueError: if a shape or dtype does not fit, or an option is out of range.

    Cost:
      One read and one write of ``x``; two maxima over windows of ``block_size`` on the seeds. Over devices, a sum of one
      number.
      XLA at [64, 16, 16, 64]: at most 2.5 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.018 times
      its memory more.

    Use:
      Part of: `drop_block`.
      When: The centres of the blocks are given: the same holes in two networks or passes, or seeds of one's own, such as the
        pixels of largest attention.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> seeds = jnp.zeros((1, 4, 4, 1), bool).at[0, 1, 1].set(True)
      >>> y = rj.layers.apply_drop_block(jnp.ones((1, 4, 4, 1)), seeds, block_size=3, scale_by_keep=False)
      >>> y[0, :, :, 0].astype(int).tolist()
      [[0, 0, 0, 1], [0, 0, 0, 1], [0, 0, 0, 1], [1, 1, 1, 1]]

    References:
      Ghiasi et al., DropBlock: A Regularization Method for Convolutional Networks, 2018, arXiv 1810.12890; see `drop_block`.
    """
    name = "layers.apply_drop_block"
    x = checks.images(name, "x", x)
    seeds = checks.array(name, "seeds", seeds, ndim=4)
    shared = seeds.shape[-1] == 1
    check_mask(name, "seeds", seeds, (*x.shape[:3], 1) if shared else x.shape)
    _check_block(name, block_size, scale_by_keep, axis_name)
    return _drop_blocks(x, seeds, block_size, scale_by_keep, axis_name)


def drop_block(
    key: Key | None,
    x: Any,
    *,
    rate: Strength = 0.1,
    block_size: int = 7,
    shared_channels: bool = True,
    inside: bool = False,
    scale_by_keep: bool = True,
    axis_name: Any = None,
    deterministic: bool = False,
) -> Array:
    r"""Drops square blocks of feature maps and scales what is kept up.

    Formula:
      Seeds at each position with probability

      .. math:: \gamma = \frac{rate\, H W}{k^2 (H - k + 1)(W - k + 1)}, \quad k = \min(block\_size, H, W)

      drop the squares of side k around them, and the rest is scaled by the share that is kept in the batch: `apply_drop_block`.

    Args:
      key: a random key; None will do where ``deterministic``. Inside ``jax.shard_map`` fold the device's index in first.
      x: float ``[B, H, W, C]``; over devices, sharded by examples.
      rate: about the share that is dropped, in [0, 1], default 0.1, a number or a traced scalar; 0 is the identity. With
        ``inside`` it is the share but for overlaps; without, small maps lose more: 29% of 7 x 6 positions at 0.2 and side
        3. The paper lets it grow linearly from 0 over training, and finds a fixed rate worse: give the value of a schedule.
      block_size: the side of a block, at least 1, default 7.
      shared_channels: whether all channels of an example lose the same blocks; default True.
      inside: whether seeds lie only where a whole block fits, as in the paper; default False, anywhere, as in timm.
      scale_by_keep: whether what is kept is scaled up; default True. The factor has no gradient.
      axis_name: the mapped axis, or a tuple of them, as in `apply_drop_block`.
      deterministic: True for test mode, the identity.

    Returns:
      Shape, dtype and sharding of ``x``.

    Raises:
      ValueError: if ``x`` is no floating ``[B, H, W, C]``, ``rate`` is outside [0, 1] or not finite, an option is out of
        range, or ``key`` is no key.

    Cost:
      One read and one write of ``x``, one uniform per position (and channel, where they are not shared), and two maxima over
      windows of ``block_size``. Over devices, a sum of one number.
      XLA at [64, 16, 16, 64]: at most 3.5 times the FLOPs and 1.3 times the bytes of a copy of its arguments, and 0.026 times
      its memory more.

    Use:
      For: few labels, noisy labels.
      When: Feature maps of convolutional networks, late stages first, with blocks of a quarter to half their side and a rate
        that grows from 0. On the digits comparison it stood on the images, at a rate far above the default, and beat `cutout`
        and `dropout`.
      Not when: Maps of 4 x 4 or less, where a block is nearly the whole map (lower ``block_size``), flat features, or early in
        training at the full rate, which the authors find worse.
      Badly with: `cutout` and `random_erasing`, which hide squares once more. Gradients of single examples under ``jax.vmap``:
        the scale-up is that of the whole batch. Batch normalisation after it, whose statistics see the holes.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> y = rj.layers.drop_block(jax.random.key(0), jnp.ones((32, 16, 16, 4)), rate=0.2, block_size=3)
      >>> round(float(y.mean()), 4), round(float((y == 0).mean()), 1)
      (1.0, 0.2)

    References:
      Ghiasi et al., DropBlock: A Regularization Method for Convolutional Networks, 2018, arXiv 1810.12890. The default is
      timm's: seeds anywhere, at the paper's :math:`\gamma`, which is made for seeds where a block fits. For an image smaller
      than the block every k here is the image's side, and the factor has no epsilon: a batch without a dropped block is
      unchanged.
    """
    name = "layers.drop_block"
    x = checks.images(name, "x", x)
    check_rate(name, rate)
    _check_block(name, block_size, scale_by_keep, axis_name)
    checks.boolean(name, "shared_channels", shared_channels)
    checks.boolean(name, "inside", inside)
    if checks.boolean(name, "deterministic", deterministic):
        return x
    key = checks.key(name, key)
    if is_zero(rate):
        return x
    shape, here = x.shape, sharding.explicit_sharding(x)
    _, height, width, _ = shape
    if shared_channels:
        shape = (*shape[:3], 1)
        here = None if here is None else here.update(spec=jax.P(*here.spec[:3], None))
    seeds = ~keep_mask(key, _seed_rate(rate, height, width, block_size), shape, here)
    if inside:
        seeds = seeds & _fitting(height, width, block_size)
    return _drop_blocks(x, seeds, block_size, scale_by_keep, axis_name)


class DropBlock(RateLayer):
    r"""DropBlock as a Flax NNX module, with a rate that a call may override.

    Formula:
      That of `drop_block`.

    Args:
      rate: about the share that is dropped, in [0, 1], default 0.1; the call's ``rate=`` overrides it, by the value of a
        schedule that grows from 0 as in the paper. See `Dropout`.
      block_size: the side of a block, at least 1, default 7.
      shared_channels: whether all channels of an example lose the same blocks; default True.
      inside: whether seeds lie only where a whole block fits, as in the paper; default False, anywhere, as in timm.
      scale_by_keep: whether what is kept is scaled up; default True.
      axis_name: the mapped axis, or a tuple of them, as in `apply_drop_block`.
      deterministic: True for test mode, the identity; default False. See `Dropout`.
      rng_collection: the stream of an ``nnx.Rngs`` that keys are taken from, default "dropout".
      rngs: ``nnx.Rngs`` or ``nnx.RngStream`` to fork a stream from, or None where every call gives ``rngs=``, a key under
        ``jax.jit``, ``jax.vmap`` and ``jax.lax.scan``. See `Dropout`.

    Returns:
      A call ``layer(x, *, rate=None, deterministic=None, rngs=None)`` gives an array like ``x``.

    Raises:
      ValueError: if an argument is outside its range, a mode is missing, or a key is needed and none is given.

    Cost:
      That of `drop_block`; no parameters.
      XLA at [64, 16, 16, 64]: at most 3.5 times the FLOPs and 1.3 times the bytes of a copy of its arguments, and 0.026 times
      its memory more.

    Use:
      Part of: `drop_block`.
      When: In a Flax NNX convolutional network, with the growing rate of the paper as the call's ``rate=``.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> layer = rj.layers.DropBlock(0.2, block_size=3)
      >>> y = layer(jnp.ones((32, 16, 16, 4)), rngs=jax.random.key(0))
      >>> round(float((y == 0).mean()), 1)
      0.2

    References:
      Those of `drop_block`.
    """

    _name = "layers.DropBlock"

    def __init__(
        self,
        rate: Strength = 0.1,
        block_size: int = 7,
        *,
        shared_channels: bool = True,
        inside: bool = False,
        scale_by_keep: bool = True,
        axis_name: Any = None,
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: Any = None,
    ):
        super().__init__(rate, deterministic=deterministic, rng_collection=rng_collection, rngs=rngs)
        _check_block(self._name, block_size, scale_by_keep, axis_name)
        self.block_size, self.scale_by_keep, self.axis_name = block_size, scale_by_keep, axis_name
        self.shared_channels = checks.boolean(self._name, "shared_channels", shared_channels)
        self.inside = checks.boolean(self._name, "inside", inside)

    def __call__(self, x: Any, *, rate: Strength = None, deterministic: bool | None = None, rngs: Any = None) -> Array:
        """`drop_block` with the layer's settings, or those given here."""
        x = checks.images(self._name, "x", x)
        key, rate, off = self._settings(rate, deterministic, rngs)
        return drop_block(
            key,
            x,
            rate=rate,
            block_size=self.block_size,
            shared_channels=self.shared_channels,
            inside=self.inside,
            scale_by_keep=self.scale_by_keep,
            axis_name=self.axis_name,
            deterministic=off,
        )


def _check_block(function: str, block_size: Any, scale_by_keep: Any, axis_name: Any) -> None:
    checks.integer(function, "block_size", block_size, low=1)
    checks.boolean(function, "scale_by_keep", scale_by_keep)
    checks.axis_name(function, axis_name)


def _seed_rate(rate: Any, height: int, width: int, block_size: int) -> Any:
    k = min(block_size, height, width)
    return jnp.asarray(rate, jnp.float32) * (height * width / (k * k * (height - k + 1) * (width - k + 1)))


def _fitting(height: int, width: int, block_size: int) -> np.ndarray:
    """``[H, W, 1]``: around which positions a whole block fits."""
    k = min(block_size, height, width)
    rows, columns = ((np.arange(n) >= k // 2) & (np.arange(n) < n - (k - 1) // 2) for n in (height, width))
    return (rows[:, None] & columns)[..., None]


def _drop_blocks(x: Array, seeds: Array, block_size: int, scale_by_keep: bool, axis_name: Any) -> Array:
    k = min(block_size, *x.shape[1:3])
    dtype = trees.accumulator(x)
    blocks = seeds.astype(jnp.float32)
    for axis in (1, 2):  # a square is its rows times its columns: 2 k comparisons per position instead of k * k
        window = tuple(k if i == axis else 1 for i in range(4))
        padding = tuple(((k - 1) // 2, k // 2) if i == axis else (0, 0) for i in range(4))
        blocks = jax.lax.reduce_window(blocks, -jnp.inf, jax.lax.max, window, None, padding)
    keep = blocks < 0.5
    kept = jnp.where(keep, x.astype(dtype), 0)
    if scale_by_keep:
        total, entries = jnp.sum(keep, dtype=dtype), jnp.asarray(keep.size, dtype)
        if axis_name is not None:
            total, entries = jax.lax.psum((total, entries), axis_name)
        kept = kept * (entries / jnp.maximum(total, 1))
    return kept.astype(x.dtype)
