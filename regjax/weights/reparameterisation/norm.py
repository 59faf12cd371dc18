"""Weight normalisation: the direction and the length of each unit's weights as separate parameters."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, PyTree, Where

_EPS = 1e-12


class NormedParams(NamedTuple):
    """Parameters whose chosen leaves are directions ``v``; ``g`` has their lengths in tree order, and None for others."""

    v: PyTree
    g: tuple[Array | None, ...]


def weight_norm(v: Any, g: Any) -> Array:
    r"""A kernel by the direction and the length of each output unit's weights.

    Formula:
      .. math:: w_j = g_j \frac{v_j}{\sqrt{\|v_j\|^2 + 10^{-12}}}

      with the norm over all axes but the last. The gradient by v is orthogonal to v, and scaling v changes nothing.

    Args:
      v: the directions, a float kernel ``[..., out]`` of two or more dimensions.
      g: the lengths ``[out]``.

    Returns:
      The kernel, in the dtype of ``v``; computed in float32 or better. A direction of zeros gives zeros.

    Raises:
      ValueError: if ``v`` is no float kernel or ``g`` does not have one length for each output.

    Cost:
      Two passes over the kernel each way.
      XLA at [2048, 512]: at most 13 times the FLOPs and 5 times the bytes of a copy of its arguments, and 0.01 times its memory
      more.

    Use:
      For: unstable training.
      When: Batch statistics are not to be used (small batches, recurrent nets, reinforcement learning, generators) and the
        scale of each unit should train apart from its direction.
      Not when: A batch, layer or group normalisation follows, which fixes the scale already; or the start should be scaled by
        data: `split_norm` keeps the kernels' own lengths.
      Badly with: Weight decay on v, which only changes its effective learning rate; kernels initialised at 0, which never move;
        `spectral_normalize` and `renormalize` of the same kernel; `prune` by the size of v.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.weights.weight_norm(jnp.array([[3.0, 0.0], [4.0, 2.0]]), jnp.array([10.0, 1.0])).tolist()
      [[6.0, 0.0], [8.0, 1.0]]

    References:
      Salimans and Kingma, Weight Normalization: A Simple Reparameterization to Accelerate Training of Deep Neural Networks,
      2016, arXiv 1602.07868.
    """
    name = "weights.weight_norm"
    v = checks.floating(name, "v", v, min_ndim=2)
    g = checks.floating(name, "g", g, shape=v.shape[-1:])
    dtype = trees.accumulator(v, g)
    wide = v.astype(dtype)
    squared = jnp.sum(jnp.square(wide), axis=tuple(range(v.ndim - 1)), keepdims=True)
    return (g.astype(dtype) * wide * jax.lax.rsqrt(squared + _EPS)).astype(v.dtype)


def split_norm(params: PyTree, *, where: Where = None) -> NormedParams:
    r"""The parameters of a model with its kernels split into directions and lengths, for training with weight normalisation.

    Formula:
      ``v = w``, and ``g`` its norm over all axes but the last. The model runs on ``join_norm(tree)``.

    Args:
      params: a parameter tree.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans; leaves
        of two or more dimensions.

    Returns:
      A `NormedParams`, which is what to train.

    Raises:
      ValueError: if ``where`` is none of these or chooses a leaf that is no float of two or more dimensions.

    Cost:
      One pass, once.
      XLA at 8 times [512, 512]: at most 2.2 times the FLOPs and 1.7 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      Part of: `weight_norm`.
      When: Once before training, on kernels that are not 0: a zero column has length and direction 0 and never moves.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> params = {"kernel": jnp.array([[3.0], [4.0]]), "bias": jnp.zeros(1)}
      >>> rj.weights.split_norm(params).g[1].tolist()
      [5.0]

    References:
      See `weight_norm`.
    """
    name = "weights.split_norm"
    mask = trees.select(name, params, where)

    def length(leaf: Any, use: bool) -> Array | None:
        if not use:
            return None
        if not trees.is_float(leaf) or jnp.ndim(leaf) < 2:
            checks.fail(name, "where", "a choice of floating-point leaves of two or more dimensions", leaf)
        wide = jnp.asarray(leaf).astype(trees.accumulator(leaf))
        return trees.safe_norm(wide, axis=tuple(range(wide.ndim - 1)))

    return NormedParams(params, tuple(map(length, jax.tree.leaves(params), jax.tree.leaves(mask))))


def join_norm(params: NormedParams) -> PyTree:
    r"""The plain parameters of a model that is trained with weight normalisation.

    Formula:
      ``weight_norm(v, g)`` for the leaves that `split_norm` chose; others pass.

    Args:
      params: what `split_norm` made.

    Returns:
      The parameter tree that the model runs on.

    Raises:
      ValueError: if ``params`` is no `NormedParams` or its parts do not fit.

    Cost:
      Two passes over the chosen kernels each way.
      XLA at 8 times [512, 512]: at most 13 times the FLOPs and 5.6 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      Part of: `weight_norm`.
      When: In every forward pass on what `split_norm` made, and once at the end to store plain kernels.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> params = {"kernel": jnp.array([[3.0], [4.0]]), "bias": jnp.zeros(1)}
      >>> rj.weights.join_norm(rj.weights.split_norm(params))["kernel"].tolist()
      [[3.0], [4.0]]

    References:
      See `weight_norm`.
    """
    name = "weights.join_norm"
    if not isinstance(params, NormedParams):
        checks.fail(name, "params", "a NormedParams, as regjax.weights.split_norm makes it", params)
    leaves, structure = jax.tree.flatten(params.v)
    if len(params.g) != len(leaves):
        checks.fail(name, "params", "of as many lengths as it has leaves", params)
    joined = [v if g is None else weight_norm(v, g) for v, g in zip(leaves, params.g, strict=True)]
    return jax.tree.unflatten(structure, joined)
