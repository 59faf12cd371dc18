"""Rounding to few bits, and keeping the weights and activations that must not be rounded."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, selection, sharding, trees
from regjax.core.types import Array

_CLIPS = ("no", "zscore", "tensor_percentage", "block_percentage", "iqr")


def round_to_nearest(
    w: Any, *, bits: int = 4, block_size: int | None = None, clip: str = "no", clip_threshold: Any = 0.0
) -> Array:
    r"""Rounds weights to the nearest of a few equidistant values between the smallest and the largest of each block.

    Formula:
      .. math:: \hat w = round((w - \min w) \, s) / s + \min w, \quad s = \frac{2^{bits} - 1}{\max w - \min w}

      for each block of ``block_size`` consecutive entries. Before that, ``clip`` cuts the entries of a block to [-t, t]: with
      c the ``clip_threshold``, "zscore": t = mean + c std of the sizes ``|w|`` in the block; "tensor_percentage": the
      max(int(n c), 1)-th largest size of all n entries; "block_percentage": the int(B c + 1)-th largest of the B of the
      block; "iqr": q3 + c (q3 - q1), the quartiles of the sizes in the block.

    Args:
      w: float, any shape.
      bits: from 1 to 16, default 4.
      block_size: the entries of a block, at least 1, in the flat order of ``w``; default None, and where it does not divide
        the number of entries: all of ``w`` is one block.
      clip: "no" (default), "zscore", "tensor_percentage", "block_percentage" or "iqr".
      clip_threshold: c, at least 0, default 0; at most 1 where it is a percentage. 9 to 12 for "zscore", 1e-6 and 1e-5 for
        the percentages. Not read with ``clip="no"``.

    Returns:
      The rounded weights, in the shape and dtype of ``w``; blocks of equal entries are unchanged. Ties go to the even level.
      No gradient flows: train through it by ``w + stop_gradient(round_to_nearest(w) - w)``.

    Raises:
      ValueError: if ``w`` is not floating, or an option does not fit.

    Cost:
      Three passes over the weights; percentages and quartiles find their thresholds by counting, in 32 passes or four times
      that. Blocks gather weights that are sharded.
      XLA at [2048, 512]: at most 8.9 times the FLOPs and 2.3 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      For: compute budget.
      When: Weights are rounded after training without data. Below 8 bits give a ``block_size``; for language models clip at a
        z-score about 10 and put outliers back with `restore_super`. `weight_distribution_penalty` in training prepares it.
      Not when: Very few bits with time to train: use a quantiser in the loop. With one block per tensor a single outlier
        decides all levels.
      Badly with: Training without a straight-through form, as no gradient flows; sparse weights: the levels start at the
        smallest entry, so that zeros need not stay 0 and `apply_mask` must follow.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> w = jnp.array([0.0, 0.15, 0.25, 0.3, 0.45, 0.5, 0.65, 3.0])
      >>> [round(float(x), 4) for x in rj.weights.round_to_nearest(w)]
      [0.0, 0.2, 0.2, 0.4, 0.4, 0.4, 0.6, 3.0]

    References:
      Yu et al., The Super Weight in Large Language Models, 2024, arXiv 2411.07191. The paper writes 2^(bits - 1) - 1 levels;
      this follows the authors' code. Their order for weights: clip and round, then `restore_super`.
    """
    name = "weights.round_to_nearest"
    w = checks.floating(name, "w", w)
    checks.integer(name, "bits", bits, low=1, high=16)
    if block_size is not None:
        checks.integer(name, "block_size", block_size, low=1)
    checks.choice(name, "clip", clip, _CLIPS)
    checks.number(name, "clip_threshold", clip_threshold, low=0.0, high=1.0 if clip.endswith("percentage") else math.inf)
    blocks = jax.lax.stop_gradient(w).astype(trees.accumulator(w))
    whole = block_size is None or w.size % block_size != 0
    if not whole:
        blocks = sharding.replicate(blocks).reshape(-1, block_size)
    axis = None if whole else 1
    if clip != "no" and w.size:
        most = _clip_threshold(blocks, axis, clip, clip_threshold)
        blocks = jnp.clip(blocks, -most, most)
    rounded = _rounded(blocks, axis, bits) if w.size else blocks
    rounded = rounded if whole else sharding.placed_like(rounded.reshape(w.shape), w)
    return rounded.astype(w.dtype)


def restore_super(w_hat: Any, w: Any, coords: Any) -> Array:
    r"""Puts the few weights that matter most back into quantised or pruned ones.

    Formula:
      .. math:: \hat w_c \leftarrow w_c \quad (c \in coords)

    Args:
      w_hat: float, any shape of one or more dimensions: the changed weights.
      w: float, of the shape of ``w_hat``: the original ones.
      coords: integers ``[n, ndim]``, or one place ``[ndim]``: in the order of the axes, ``(in, out)`` for a dense kernel.

    Returns:
      ``w_hat`` with those entries of ``w``, in the dtype of ``w_hat``. Places outside a traced ``coords`` change nothing.

    Raises:
      ValueError: if a shape or dtype does not fit, or a place that is known at trace time lies outside the weights.

    Cost:
      One pass over the weights.
      XLA at 2 times [2048, 512]: at most 0.55 times the FLOPs and 0.9 times the bytes of a copy of its arguments, and 0 times
      its memory more.

    Use:
      Part of: `round_to_nearest`, `find_super_weights`.
      When: After clipping and rounding, or after a pruning that cut whole rows, with the places from `find_super_weights`; also
        to put any list of protected weights back.
      Badly with: Coordinates of kernels ``[out, in]`` from papers: here the input comes first.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> w = jnp.array([[0.1, 0.2], [0.3, 9.0]])
      >>> rj.weights.restore_super(jnp.zeros((2, 2)), w, [(1, 1)]).tolist()
      [[0.0, 0.0], [0.0, 9.0]]

    References:
      Yu et al., The Super Weight in Large Language Models, 2024, arXiv 2411.07191. `regjax.diagnostics.find_super_weights`
      finds the places.
    """
    name = "weights.restore_super"
    w_hat = checks.floating(name, "w_hat", w_hat, min_ndim=1)
    w = checks.floating(name, "w", w, shape=w_hat.shape)
    here = sharding.placed_like(_places(name, "coords", coords, w.shape), w_hat)
    return jnp.where(here, sharding.placed_like(w, w_hat).astype(w_hat.dtype), w_hat)


def quantize_super_activation(x: Any, coord: Any, *, bits: int = 8) -> Array:
    r"""Rounds activations to few bits with the super activation set aside, so that it does not stretch the range.

    Formula:
      .. math:: \hat x = round\_to\_nearest(x'), \quad x'_c = median(x), \quad \hat x_c = x_c

      with x' equal to x elsewhere. The median is the lower one of an even number of entries.

    Args:
      x: float, any shape of one or more dimensions: the activations of one tensor, such as ``[tokens, D]``.
      coord: integers ``[ndim]``, c, the place of the super activation; or several, ``[n, ndim]``.
      bits: from 1 to 16, default 8.

    Returns:
      The rounded activations, of the shape and dtype of ``x``. No gradient flows.

    Raises:
      ValueError: if a shape or dtype does not fit, a known place lies outside ``x``, or ``bits`` lies outside [1, 16].

    Cost:
      Three passes over the activations, and 32 to count out the median. XLA counts the body of the loop once.
      XLA at [64, 64, 256]: at most 24 times the FLOPs and 6.9 times the bytes of a copy of its arguments, and 0.56 times its
      memory more.

    Use:
      For: compute budget.
      When: Activations of a large language model are rounded per tensor and one huge entry, at the place `find_super_weights`
        reports, stretches the range.
      Not when: Ranges are per token or per channel, where one entry spoils its own group only; or there is no such spike, as in
        small networks.
      Badly with: Training: no gradient flows. Coordinates found for another layer, another sequence layout or after a change of
        the weights.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> x = jnp.array([0.0, 0.1, 0.2, 1.0, 500.0])
      >>> [round(float(v), 4) for v in rj.weights.quantize_super_activation(x, (4,), bits=2)]
      [0.0, 0.0, 0.3333, 1.0, 500.0]

    References:
      Yu et al., The Super Weight in Large Language Models, 2024, arXiv 2411.07191, section 4; from the paper, as the authors'
      code has weights alone.
    """
    name = "weights.quantize_super_activation"
    x = checks.floating(name, "x", x, min_ndim=1)
    checks.integer(name, "bits", bits, low=1, high=16)
    here = sharding.placed_like(_places(name, "coord", coord, x.shape), x)
    if x.size == 0:
        return x
    x = jax.lax.stop_gradient(x)
    wide = x.astype(trees.accumulator(x))
    median = selection.kth_largest([wide], x.size // 2 + 1)
    rounded = _rounded(jnp.where(here, median, wide), None, bits)
    return jnp.where(here, x, rounded.astype(x.dtype))


def _rounded(blocks: Array, axis: int | None, bits: int) -> Array:
    low, high = (extreme(blocks, axis=axis, keepdims=True) for extreme in (jnp.min, jnp.max))
    spread = high - low
    scale = (2**bits - 1) / jnp.where(spread > 0, spread, 1)
    # A range of 0, or one that floats cannot divide, has no levels. NaN compares false: it stays, and is seen.
    usable = (spread > 0) & jnp.isfinite(scale) & (scale > 0)
    scale = jnp.where(usable, scale, 1)
    return jnp.where(usable, jnp.round((blocks - low) * scale) / scale + low, blocks)


def _clip_threshold(blocks: Array, axis: int | None, clip: str, c: Any) -> Array:
    sizes = jnp.abs(blocks)
    count = sizes.size if axis is None else sizes.shape[1]
    factor = jnp.asarray(c, sizes.dtype)
    if clip == "zscore":
        mean = jnp.mean(sizes, axis=axis, keepdims=True)
        variance = jnp.sum(jnp.square(sizes - mean), axis=axis, keepdims=True) / max(count - 1, 1)
        return factor * jnp.sqrt(variance) + mean
    if clip == "tensor_percentage":
        return selection.kth_largest([sizes], _rank(sizes.size * c, sizes.size))
    if clip == "block_percentage":
        return _kth_largest(sizes, axis, _rank(count * c + 1, count))
    q1, q3 = _quantile(sizes, axis, count, 0.25), _quantile(sizes, axis, count, 0.75)
    return q3 + factor * (q3 - q1)


def _rank(count: Any, most: int) -> Any:
    """A rank from 1 to ``most``; on the host where it is known, as float32 would round it."""
    if isinstance(count, jax.Array):
        return jnp.clip(jnp.floor(count), 1, most).astype(jnp.int32)
    return min(max(int(count), 1), most)


def _kth_largest(sizes: Array, axis: int | None, rank: Any) -> Array:
    if axis is None:
        return selection.kth_largest([sizes], rank)
    return jax.vmap(lambda row: selection.kth_largest([row], rank))(sizes)[:, None]


def _quantile(sizes: Array, axis: int | None, count: int, q: float) -> Array:
    """Linear between the two nearest order statistics."""
    place = q * (count - 1)
    below = math.floor(place)
    low, high = (_kth_largest(sizes, axis, count - min(i, count - 1)) for i in (below, below + 1))
    return low + (place - below) * (high - low)


def _places(name: str, argument: str, coords: Any, shape: tuple[int, ...]) -> Array:
    """The mask of the given places."""
    places = checks.integers(name, argument, coords)
    if places.ndim not in (1, 2) or places.shape[-1] != len(shape):
        checks.fail(name, argument, f"integers of shape [n, {len(shape)}] or [{len(shape)}]", places)
    if not isinstance(coords, jax.Array):
        known = np.asarray(coords)
        if np.any((known < 0) | (known >= np.asarray(shape))):
            checks.fail(name, argument, f"places in an array of shape {list(shape)}", known.tolist())
    places = places.reshape(-1, len(shape))
    index = tuple(jnp.where(column < 0, size, column) for column, size in zip(places.T, shape, strict=True))
    return jnp.zeros(shape, bool).at[index].set(True, mode="drop")
