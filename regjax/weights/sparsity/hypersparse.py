"""HyperSparse: a penalty that empties the small weights and leaves the large ones, and the strict mask of its pruning."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, selection, trees
from regjax.core.types import Array, PyTree, Strength, Where
from regjax.weights.sparsity.masks import chosen_leaves, map_mask

# The inflection of the slope of tanh, atanh(1 / sqrt(3)) to the published digits.
_INFLECTION = 0.6585


def hypersparse_penalty(params: PyTree, *, prune_rate: Strength = 0.9, where: Where = None) -> Array:
    r"""A penalty of value 0 whose gradient pushes the weights that pruning would remove, and lets the others be.

    Formula:
      .. math:: \frac{c}{S} \sum_i \tanh(s |w_i|) - c, \quad S = \sum_i \tanh(s |w_i|), \quad c = \sum_i |w_i|, \quad
        s = \frac{0.6585}{t}

      with c, S and s held constant in the first factor, so that the value is 0 and the gradient

      .. math:: sign(w_j) \, s \, (1 - \tanh^2(s |w_j|)) \, \frac{\sum_i |w_i|}{\sum_i \tanh(s |w_i|)}

      ``t`` is the magnitude at place ``floor(prune_rate * n)``, from 0, of all n chosen weights in rising order: a weight
      below it feels an almost constant force, one far above none. The gradient does not change with the scale of the weights.

    Args:
      params: a parameter tree.
      prune_rate: the share of weights to be pruned, in [0, 1], default 0.9; a number or a traced scalar, whose place is
        computed in float32.
      where: which leaves, under one threshold: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a
        tree of booleans.

    Returns:
      A scalar in float32 or better, 0: only its gradient matters. A weight of 0 has gradient 0, and t is at least 1e-12.

    Raises:
      ValueError: if ``prune_rate`` is outside [0, 1], or ``where`` is none of these or chooses a leaf that is no float.

    Cost:
      32 counting passes over the weights for the threshold, without a sort; two passes each way; no forward pass. XLA counts
      the body of the loop once.
      XLA at 8 times [512, 512]: at most 26 times the FLOPs and 7.7 times the bytes of a copy of its arguments, and 1.1 times
      its memory more.

    Use:
      For: sparsity budget.
      When: High sparsity at a known rate: raise its strength until the cut. In the sparsity study it lost least right after the
        cut of all, and was first at the highest level. One threshold over all leaves.
      Not when: Moderate sparsity, where `prune` by the cubic schedule was as good with less to tune. A constant strength from
        step 0 fixes the choice while weights are random, and three times a good one left nothing on the digits.
      Badly with: Anything that reads the loss's value (`polyak_subgradient`, line searches, logs): its value is 0. Layers of
        very different scale under one threshold; Adam, which rescales its force; `weights.l1` beside it.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> params = {"kernel": jnp.array([[1.0, -0.5], [0.25, 0.1]])}
      >>> gradient = jax.grad(lambda p: rj.weights.hypersparse_penalty(p, prune_rate=0.5))(params)
      >>> [round(float(x), 4) for x in gradient["kernel"].ravel()]
      [0.3219, -0.8584, 1.1575, 1.2656]

    References:
      Glandorf, Kaiser and Rosenhahn, HyperSparse Neural Networks: Shifting Exploration to Exploitation through Adaptive
      Regularization, 2023, arXiv 2308.07163; the gradient is that of the authors' code, which adds the two terms of the first
      formula. `art` is the schedule of its strength. The lower limit of t is this library's.
    """
    name = "weights.hypersparse_penalty"
    checks.number(name, "prune_rate", prune_rate, low=0.0, high=1.0)
    leaves = _magnitudes(name, params, where)
    if not sum(x.size for x in leaves):
        return jnp.zeros((), jnp.float32)
    s = _INFLECTION / jnp.maximum(_threshold(leaves, prune_rate), 1e-12)
    saturation = _total(jnp.tanh(s * x) for x in leaves)
    # Written as one term less its own value: 0 to the last bit, where a difference of two sums would leave rounding.
    factor = _total(leaves) / jnp.where(saturation > 0, saturation, 1)
    term = jax.lax.stop_gradient(factor) * saturation
    return term - jax.lax.stop_gradient(term)


def magnitude_mask_strict(params: PyTree, *, prune_rate: Strength, where: Where = None) -> PyTree:
    r"""The mask of the weights that are larger than a threshold, one for all leaves: the pruning of `hypersparse_penalty`.

    Formula:
      .. math:: m_i = [|w_i| > t]

      with ``t`` the magnitude at place ``floor(prune_rate * n)``, from 0, of all n chosen weights in rising order. The
      inequality is strict, so ``n - floor(prune_rate * n) - 1`` weights stay where no two are equal, and fewer where some are.

    Args:
      params: a parameter tree.
      prune_rate: the share of weights to be pruned, in [0, 1]; a number or a traced scalar. 0 keeps all.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans.

    Returns:
      A tree of booleans: an array of the leaf's shape for each chosen leaf, True where the weight stays, and a scalar True
      for the others. It is a constant.

    Raises:
      ValueError: if ``prune_rate`` is outside [0, 1], or ``where`` is none of these or chooses a leaf that is no float.

    Cost:
      32 counting passes over the weights; no sort. XLA counts the body of the loop once.
      XLA at 8 times [512, 512]: at most 16 times the FLOPs and 4.6 times the bytes of a copy of its arguments, and 1.7 times
      its memory more.

    Use:
      Part of: `hypersparse_penalty`, `art`.
      When: For the cut after `hypersparse_penalty`, whose threshold it shares. Elsewhere `global_magnitude_mask` keeps an exact
        number, ties included.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> params = {"kernel": jnp.array([[1.0, -0.5], [0.25, 0.1]]), "bias": jnp.zeros(2)}
      >>> mask = rj.weights.magnitude_mask_strict(params, prune_rate=0.25)
      >>> mask["kernel"].tolist(), mask["bias"].tolist()
      ([[True, True], [False, False]], True)

    References:
      Glandorf, Kaiser and Rosenhahn, HyperSparse Neural Networks: Shifting Exploration to Exploitation through Adaptive
      Regularization, 2023, arXiv 2308.07163; the strict inequality is that of the authors' code, by which one weight more than
      the rate says is pruned. At rate 0 the code prunes the smallest weight.
    """
    checks.number("weights.magnitude_mask_strict", "prune_rate", prune_rate, low=0.0, high=1.0)
    return strict_mask("weights.magnitude_mask_strict", params, prune_rate, where)


def strict_mask(name: str, params: PyTree, prune_rate: Any, where: Where) -> PyTree:
    """`magnitude_mask_strict` under another name for errors."""
    leaves = _magnitudes(name, params, where)
    if sum(x.size for x in leaves):
        threshold = jnp.where(jnp.asarray(prune_rate) > 0, _threshold(leaves, prune_rate), -1)
    found = iter(leaves)
    return map_mask(lambda leaf: next(found) > threshold, params, trees.select(name, params, where))


def _magnitudes(name: str, params: PyTree, where: Where) -> list[Array]:
    """The absolute values of the chosen leaves, in one dtype of float32 or better."""
    leaves = chosen_leaves(name, params, trees.select(name, params, where))
    dtype = trees.accumulator(*leaves)
    return [trees.absolute(jnp.asarray(leaf).astype(dtype)) for leaf in leaves]


def _threshold(magnitudes: list[Array], prune_rate: Any) -> Array:
    """The magnitude at place ``floor(prune_rate * n)`` in rising order; the largest at rate 1."""
    n = sum(x.size for x in magnitudes)
    if isinstance(prune_rate, jax.Array):
        below = jnp.floor(prune_rate.astype(trees.accumulator(prune_rate)) * n).astype(jnp.int32)
    else:
        below = jnp.asarray(math.floor(prune_rate * n), jnp.int32)
    return selection.kth_largest(magnitudes, jnp.clip(n - below, 1, n))


def _total(leaves: Any) -> Array:
    terms = [jnp.sum(x) for x in leaves]
    return sum(terms[1:], terms[0])
