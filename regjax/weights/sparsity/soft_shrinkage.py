"""Soft shrinkage of the smallest weights: a pruning that they can come back from."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, trees
from regjax.core.types import PyTree, Strength, Where
from regjax.weights.sparsity import masks, structured

_MOST = 0.995


def soft_shrinkage(
    params: PyTree,
    *,
    sparsity: Strength = None,
    ratio: Strength = 0.95,
    scope: str = "local",
    n: int | None = None,
    m: int | None = None,
    where: Where = None,
) -> PyTree:
    r"""Multiplies the smallest weights by a ratio, and leaves the others.

    Formula:
      .. math:: w_i \leftarrow r \, w_i \text{ for the } \min(\lceil s N \rceil, \lfloor 0.995 N \rfloor)
                \text{ smallest } |w_i| \text{ of } N

      of each leaf, or of all together; of equal magnitudes the later. With ``n`` and ``m``: for the ``m - n`` smallest of every m
      consecutive inputs, as `nm_mask` on axis -2. A ratio of 0 is hard thresholding.

    Args:
      params: a parameter tree; in float32, for bfloat16 loses the factor in its rounding.
      sparsity: s in [0, 1], a number or a traced scalar; None where ``n`` and ``m`` are given. 0 changes nothing.
      ratio: r in [0, 1], default 0.95, a number or a traced scalar. 1 changes nothing.
      scope: ``"local"`` (default), each leaf by itself, or ``"global"``, all leaves together.
      n: how many of every ``m`` weights are not shrunk; default None.
      m: the length of a group; default None.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans. The
        authors leave out the first and last layer.

    Returns:
      The tree with the smallest weights of the chosen leaves shrunk, in their dtypes.

    Raises:
      ValueError: if a number is out of range, not exactly one of ``sparsity`` and the pair ``n``, ``m`` is given, an option is
        unknown, or ``where`` chooses a leaf that is no float.

    Cost:
      About ``32 + log2(N)`` passes over the weights, without a sort. XLA counts the bodies of the loops once.
      XLA at 8 times [512, 512]: at most 94 times the FLOPs and 15 times the bytes of a copy of its arguments, and 1.9 times its
      memory more.

    Use:
      For: sparsity budget.
      Part of: `iss_p`.
      When: After each update in a loop of your own; `iss_p` does it in a chain and ends with the cut. In training from scratch
        it beat hard thresholding (``ratio=0``) on the digits at high sparsity.
      Not when: Highest sparsity: gradual `prune` and `hypersparse_penalty` did far better in the study.
      Badly with: Weights in bfloat16, in which a factor of 0.95 is soon lost; a falling learning rate during the shrinking
        phase, with which no weight recovers; weight decay, which shrinks all.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> w = rj.weights.soft_shrinkage({"kernel": jnp.array([[3.0, -1.0, 2.0, -0.5]])}, sparsity=0.5)["kernel"]
      >>> [round(float(x), 4) for x in w[0]]
      [3.0, -0.95, 2.0, -0.475]

    References:
      Wang et al., Iterative Soft Shrinkage Learning for Efficient Image Super-Resolution, 2023, arXiv 2303.09650; counts and
      ratio as in the authors' commands (their code's default is 0.99). Over training: `regjax.gradients.iss_p`.
    """
    name = "weights.soft_shrinkage"
    check_shrinkage(name, checks.number, sparsity, ratio, scope, n, m)
    chosen = trees.select(name, params, where)
    mask = shrinkage_mask(name, params, chosen, sparsity, scope, n, m)
    return jax.tree.map(lambda p, k, use: shrink(p, k, ratio) if use else p, params, mask, chosen)


def check_shrinkage(name: str, check: Any, sparsity: Any, ratio: Any, scope: Any, n: Any, m: Any) -> None:
    """Refuses arguments that say no selection, or two; ``check`` says what a strength may be."""
    if n is not None or m is not None:
        structured.check_pattern(name, n, m)
        if sparsity is not None:
            checks.fail(name, "sparsity", "None where n and m are given", sparsity)
    else:
        check(name, "sparsity", sparsity, low=0.0, high=1.0)
    check(name, "ratio", ratio, low=0.0, high=1.0)
    checks.choice(name, "scope", scope, ("local", "global"))


def shrinkage_mask(name: str, params: PyTree, chosen: PyTree, sparsity: Any, scope: str, n: Any, m: Any) -> PyTree:
    """The mask of the weights that are not shrunk."""
    leaves = masks.chosen_leaves(name, params, chosen)
    if n is not None:
        return masks.map_mask(lambda w: structured.pattern(name, "where", jnp.abs(w), n, m, -2), params, chosen)
    sizes = [int(np.prod(jnp.shape(leaf))) for leaf in leaves]
    counts = [_kept(size, sparsity) for size in ([sum(sizes)] if scope == "global" else sizes)]
    return masks.mask_by_counts(name, masks.magnitudes(params, chosen), chosen, counts)


def shrink(leaf: Any, mask: Any, ratio: Any) -> Any:
    """A leaf with the weights outside a mask times the ratio."""
    dtype = trees.accumulator(leaf)
    return masks.choose(mask, leaf, (leaf.astype(dtype) * jnp.asarray(ratio, dtype)).astype(leaf.dtype))


def _kept(size: int, sparsity: Any) -> Any:
    most = math.floor(_MOST * size)
    if isinstance(sparsity, jax.Array):
        dtype = trees.accumulator(sparsity)
        return size - jnp.minimum(jnp.ceil(sparsity.astype(dtype) * size).astype(jnp.int32), most)
    return size - min(math.ceil(float(sparsity) * size), most)
