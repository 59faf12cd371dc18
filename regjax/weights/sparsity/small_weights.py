"""The weights that training left small, which sparse adaptation trains further."""

from typing import Any

import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, PyTree, Strength, Where
from regjax.weights.sparsity.masks import chosen_leaves, map_mask


def small_weight_mask(params: PyTree, threshold: Strength, *, where: Where = "all") -> PyTree:
    r"""The mask of the weights whose magnitude is below a threshold.

    Formula:
      .. math:: m_i = [|w_i| < \tau]

    Args:
      params: a parameter tree.
      threshold: :math:`\tau`, at least 0; a number or a traced scalar. 0 gives a mask that is False throughout.
      where: which leaves: "all" (default: biases and scales too), None (kernels), a predicate ``(path, leaf) -> bool``, or a
        tree of booleans.

    Returns:
      A mask tree: booleans of the leaf's shape for each chosen leaf, a single True for each other one.

    Raises:
      ValueError: if ``threshold`` is negative or not finite, or ``where`` is wrong or chooses a leaf that is no float.

    Cost:
      One pass over the weights.
      XLA at 8 times [512, 512]: at most 2.2 times the FLOPs and 0.69 times the bytes of a copy of its arguments, and 0 times
      its memory more.

    Use:
      Part of: `sara`, `nuclear_norm`.
      When: For the rank penalty of `sara`, or to count idle weights of a pretrained model before choosing its threshold.
      Badly with: Use as a pruning mask: True marks the small ones. Biases at 0 count as idle under the default ``where='all'``.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.weights.small_weight_mask({"kernel": jnp.array([[1.0, -0.001, 0.0]])}, 2e-3)["kernel"].tolist()
      [[False, True, True]]

    References:
      Hu et al., SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank Adaptation, 2024,
      arXiv 2409.06633: the weights that `regjax.gradients.sara` trains, and of which its rank penalty is taken.
    """
    checks.number("weights.small_weight_mask", "threshold", threshold, low=0.0)
    return below("weights.small_weight_mask", params, threshold, where)


def below(name: str, params: PyTree, threshold: Any, where: Where) -> PyTree:
    """`small_weight_mask` under another name for errors."""
    chosen = trees.select(name, params, where)
    chosen_leaves(name, params, chosen)

    def leaf(x: Any) -> Array:
        wide = trees.accumulator(x)
        return jnp.abs(jnp.asarray(x).astype(wide)) < jnp.asarray(threshold, wide)

    return map_mask(leaf, params, chosen)
