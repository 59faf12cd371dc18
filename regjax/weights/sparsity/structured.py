"""Masks with n of every m consecutive weights, and training through them."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Strength


def nm_mask(scores: Any, *, n: int, m: int, axis: int = -1) -> Array:
    r"""The mask of the n largest of every m consecutive scores.

    Formula:
      .. math:: mask_i = [rank_i \ge m - n], \quad rank_i = \sum_j [s_j < s_i] + \sum_{j < i} [s_j = s_i]

      over the entries j of the group of i; of equal scores the later stay.

    Args:
      scores: a floating array; of a kernel its absolute values.
      n: how many of each group stay, from 1 to ``m``; ``n = m`` keeps all.
      m: the length of a group; the axis has to be a multiple of it.
      axis: along which groups lie, default the last. Sparse matrix units want the inputs of a kernel: -2, axis 0 of a dense
        one and axis 2 of a convolution.

    Returns:
      Booleans of the shape of ``scores``, True where an entry stays.

    Raises:
      ValueError: if ``n`` is not from 1 to ``m``, or the axis does not exist or is no multiple of ``m``.

    Cost:
      ``m`` comparisons for each entry, without a sort. An Explicit mesh gathers sharded scores.
      XLA at [2048, 512]: at most 29 times the FLOPs and 0.69 times the bytes of a copy of its arguments, and 0 times its memory
      more.

    Use:
      Part of: `nm_pruning`, `sr_ste`.
      When: For a pattern of your own schedule or score; on kernels set ``axis=-2``, since sparse units want groups along the
        inputs and the default is the last axis.
      Badly with: XLA without sparse kernels, where a mask saves no time; layers whose inputs are no multiple of m, such as a
        first layer of 3 channels.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.weights.nm_mask(jnp.array([1.0, 4.0, 2.0, 3.0]), n=2, m=4).tolist()
      [False, True, False, True]

    References:
      Lee et al., JaxPruner: A Concise Library for Sparsity Research, 2023, arXiv 2304.14082, as there. Mishra et al.,
      Accelerating Sparse Deep Neural Networks, 2021, arXiv 2104.08378. Zhou et al., ClassPruning: Speed Up Image Restoration
      Networks by Dynamic N:M Pruning, 2022, arXiv 2211.05488, takes one of several n:m for each image.
    """
    name = "weights.nm_mask"
    scores = checks.floating(name, "scores", scores, min_ndim=1)
    check_pattern(name, n, m)
    checks.integer(name, "axis", axis)
    return pattern(name, "scores", scores, n, m, axis)


def sr_ste(w: Any, *, n: int, m: int, decay: Strength = 2e-4, axis: int = -2) -> Array:
    r"""A kernel with n of every m weights, whose gradient reaches all of them, and draws those left out to 0.

    Formula:
      .. math:: w_{eff} = mask \odot w, \qquad \frac{\partial L}{\partial w} := \frac{\partial L}{\partial w_{eff}}
                + \lambda (1 - mask) \odot w

      with the mask of `nm_mask` of ``|w|``. The second term does not scale with the loss.

    Args:
      w: a floating kernel of two or more dimensions, ``[..., in, out]``.
      n: how many of each group stay, from 1 to ``m``; ``n = m`` is the plain kernel.
      m: the length of a group; the axis has to be a multiple of it.
      decay: :math:`\lambda`, at least 0, default 2e-4; a number or a traced scalar. 0 is the plain straight-through estimator.
      axis: along which groups lie, default -2, the inputs.

    Returns:
      The kernel to compute with, in the shape and dtype of ``w``.

    Raises:
      ValueError: if ``n`` is not from 1 to ``m``, ``decay`` is negative or not finite, or the axis does not exist or is no
        multiple of ``m``.

    Cost:
      ``m`` comparisons for each weight in a forward pass, and one byte for each between the passes. An Explicit mesh gathers
      sharded kernels.
      XLA at [2048, 512]: at most 64 times the FLOPs and 2.3 times the bytes of a copy of its arguments, and 0 times its memory
      more.

    Use:
      For: sparsity budget, compute budget.
      When: The whole training runs in an n:m pattern that may still change, as 2:4 for sparse matrix units; 2:4 and 1:4 cost
        the digits network next to nothing.
      Not when: A dense training comes first anyway: a late one-shot pattern by `nm_pruning` did as well on the digits, and at 1
        of 64 better. A free mask keeps more at high sparsity.
      Badly with: Weight decay beside it, which pulls masked weights twice; Adam, which rescales the decay term; first and last
        layers, which are best left dense.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> w = jnp.array([[1.0], [4.0], [2.0], [3.0]])
      >>> rj.weights.sr_ste(w, n=2, m=4)[:, 0].tolist()
      [0.0, 4.0, 0.0, 3.0]
      >>> jax.grad(lambda w: rj.weights.sr_ste(w, n=2, m=4, decay=0.5).sum())(w)[:, 0].tolist()
      [1.5, 1.0, 2.0, 1.0]

    References:
      Zhou et al., Learning N:M Fine-grained Structured Sparse Neural Networks From Scratch, 2021, arXiv 2102.04010 (SR-STE,
      2e-4).
    """
    name = "weights.sr_ste"
    w = checks.floating(name, "w", w, min_ndim=2)
    check_pattern(name, n, m)
    checks.number(name, "decay", decay, low=0.0)
    checks.integer(name, "axis", axis)
    mask = pattern(name, "w", jax.lax.stop_gradient(jnp.abs(w)), n, m, axis)
    return _straight_through(w, mask, jnp.asarray(decay, trees.accumulator(w)))


@jax.custom_vjp
def _straight_through(w: Array, mask: Array, decay: Array) -> Array:
    return jnp.where(mask, w, 0)


def _forward(w: Array, mask: Array, decay: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    return jnp.where(mask, w, 0), (w, mask, decay)


def _backward(saved: tuple[Array, Array, Array], g: Array) -> tuple[Array, None, Array]:
    w, mask, decay = saved
    pull = decay * jnp.where(mask, 0, w).astype(decay.dtype)
    return (g.astype(decay.dtype) + pull).astype(w.dtype), None, jnp.zeros_like(decay)


_straight_through.defvjp(_forward, _backward)


def check_pattern(function: str, n: Any, m: Any) -> None:
    """Refuses what is no pattern of n in m."""
    checks.integer(function, "m", m, low=1)
    checks.integer(function, "n", n, low=1, high=m)


def pattern(function: str, argument: str, scores: Array, n: int, m: int, axis: int) -> Array:
    """The mask of the n largest of every m along an axis, sharded as the scores are."""
    if not -scores.ndim <= axis < scores.ndim:
        checks.fail(function, "axis", f"an axis of an array of {scores.ndim} dimensions", axis)
    axis %= scores.ndim
    if scores.shape[axis] % m:
        checks.fail(function, argument, f"of a multiple of m = {m} entries on axis {axis}", scores)
    if n == m:
        return jnp.ones_like(scores, bool)
    whole = sharding.replicate(scores)
    # A score that is not a number stays, so that the count holds and divergence is seen.
    whole = jnp.where(jnp.isnan(whole), jnp.inf, whole)
    groups = whole.reshape(*whole.shape[:axis], -1, m, *whole.shape[axis + 1 :])
    members = [jax.lax.index_in_dim(groups, j, axis + 1) for j in range(m)]
    place = jax.lax.broadcasted_iota(jnp.int32, groups.shape, axis + 1)
    below = ((s < groups) | ((s == groups) & (j < place)) for j, s in enumerate(members))
    rank = functools.reduce(lambda total, b: total + b.astype(jnp.int32), below, jnp.zeros(groups.shape, jnp.int32))
    return sharding.placed_like((rank >= m - n).reshape(scores.shape), scores)
