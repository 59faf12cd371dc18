"""Steps that count: weights or groups beyond a threshold or a number become exactly zero. None of them is convex.

A projection is the proximal operator of its constraint for every step size: each takes the place of a ``prox(params, step)``,
and the step has no effect.
"""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.selection import largest
from regjax.core.stacks import map_stacked
from regjax.core.types import Array, PyTree, Strength, Where
from regjax.weights import group_tables
from regjax.weights import groups as grouping
from regjax.weights.proximal.sets import ignored_step


def prox_l0(params: PyTree, step: Strength, *, where: Where = None) -> PyTree:
    r"""Hard thresholding: weights below a threshold become zero, the others stay as they are.

    Formula:
      .. math:: w_i \text{ where } |w_i| > \sqrt{2 t}, \text{ else } 0

      the proximal operator of the number of nonzero weights; at the threshold itself, where both are minima, it takes 0.

    Args:
      params: a parameter tree.
      step: t, the step size times the strength of the penalty; a number or traced scalar, at least 0. 0 changes nothing.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans.

    Returns:
      The tree with the chosen leaves replaced, in their dtypes; the others are unchanged.

    Raises:
      ValueError: if ``step`` is negative or not finite, or ``where`` is none of these.

    Cost:
      One pass over the weights.
      XLA at 8 times [512, 512]: at most 3.3 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      For: sparsity budget.
      When: Small weights should vanish and large ones keep their full size, without the shrinking of `prox_l1`; small convex
        problems or a late phase, where magnitudes have settled.
      Not when: From random weights, whose sizes say little yet: what it cuts first hardly returns. For a known level use
        `project_top_k`.
      Badly with: Learning rates that fall towards 0, with which the threshold falls and stray weights stay; adaptive
        optimisers, whose steps do not pass it; starts at 0, from where one step must jump the threshold.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.weights.prox_l0({"kernel": jnp.array([[3.0, -1.0]])}, 0.5)["kernel"].tolist()
      [[3.0, 0.0]]

    References:
      Blumensath and Davies, Iterative Thresholding for Sparse Approximations, 2008, Journal of Fourier Analysis and
      Applications 14. Parikh and Boyd, Proximal Algorithms, 2014, Foundations and Trends in Optimization 1.
    """
    name = "weights.prox_l0"
    checks.number(name, "step", step, low=0.0)

    def leaf(w: Any) -> Array:
        x = grouping.accumulated(name, w)
        kept = jnp.abs(x) > jnp.sqrt(2 * jnp.asarray(step, x.dtype))
        return jnp.where(kept, w, 0).astype(jnp.asarray(w).dtype)

    return trees.map_selected(leaf, name, params, where=where)


def project_top_k(params: PyTree, step: Any = None, *, k: Strength, scope: str = "leaf", where: Where = None) -> PyTree:
    r"""Keeps the k weights of largest magnitude and sets the others to zero.

    Formula:
      .. math:: w_i \text{ where } |w_i| \text{ is among the k largest, else } 0

      the nearest weights with at most k nonzero ones. Of equal magnitudes the earlier stay, so that exactly k do.

    Args:
      params: a parameter tree.
      step: accepted and without effect, so that the projection serves in ``gradients.proximal_step``; default None.
      k: how many stay, an integer of at least 0 or a traced scalar, rounded down; all where there are fewer.
      scope: ``"leaf"`` (default): k of each leaf; ``"all"``: k of all chosen leaves together.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans.

    Returns:
      The tree with the chosen leaves replaced, in their dtypes; the others are unchanged.

    Raises:
      ValueError: if ``k`` is negative or no integer, ``scope`` is unknown, or ``where`` is none of these.

    Cost:
      About 55 passes over the weights, which find the threshold by counting: no sort, and on a mesh only sums cross the
      devices. Leaves of equal shape go as one. XLA counts the bodies of the loops once.
      XLA at 8 times [512, 512]: at most 93 times the FLOPs and 15 times the bytes of a copy of its arguments, and 1.9 times its
      memory more.

    Use:
      For: sparsity budget.
      When: The number of weights is the constraint: compressed sensing, dictionary or linear models, and the last cut after a
        sparse phase, by leaf or over all leaves.
      Not when: Training a network to high sparsity from random weights: projecting in each step lost to `iss_p` and to `prune`
        in the sparsity study, since what is out seldom comes back.
      Badly with: Adam's small steps, too short for a weight to pass the threshold; ``scope='all'`` over layers of different
        scale, which may empty one; a strength schedule in `proximal_step`, for which only zero or not zero counts.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.weights.project_top_k({"kernel": jnp.array([[3.0, -1.0], [0.5, 1.0]])}, k=2)["kernel"].tolist()
      [[3.0, -1.0], [0.0, 0.0]]

    References:
      Blumensath and Davies, Iterative Hard Thresholding for Compressed Sensing, 2009, arXiv 0805.0510.
    """
    name = "weights.project_top_k"
    ignored_step(name, step)
    checks.choice(name, "scope", scope, ("leaf", "all"))
    _count(name, k)
    scores = [jnp.abs(grouping.accumulated(name, w)) for w in trees.selected(name, params, where)]
    if scope == "leaf":
        kept = map_stacked(jax.vmap(lambda score: largest([score], k)[0]), scores)
    else:
        kept = largest(scores, k) if scores else []
    masks = iter(kept)
    return trees.map_selected(lambda w: jnp.where(next(masks), w, 0), name, params, where=where)


def project_top_groups(params: PyTree, step: Any = None, *, k: Strength, groups: Any = "out", where: Where = None) -> PyTree:
    r"""Keeps the k groups of largest norm, such as units or filters, and sets the others to zero.

    Formula:
      .. math:: w_g \text{ where } \|w_g\|_2 \text{ is among the k largest, else } 0

      the nearest weights with at most k nonzero groups. Of equal norms the earlier stay, so that exactly k do.

    Args:
      params: a parameter tree.
      step: accepted and without effect, so that the projection serves in ``gradients.proximal_step``; default None.
      k: how many stay, an integer of at least 0 or a traced scalar, rounded down; all where there are fewer.
      groups: which weights form a group, as in `group_lasso`; default ``"out"``. The units of ``"out"``, ``"in"`` and
        ``"kernel_position"`` compete within their leaf, k of each leaf; whole leaves (``"leaf"``), and groups written out
        as lists of paths, all compete together.
      where: which leaves: None (kernels, default; with groups written out, exactly those), "all", a predicate
        ``(path, leaf) -> bool``, or a tree of booleans.

    Returns:
      The tree with the chosen leaves replaced, in their dtypes; the others are unchanged.

    Raises:
      ValueError: if ``k`` is negative or no integer, or ``groups`` or ``where`` is wrong.

    Cost:
      Two passes over the weights, and some 40 over the group norms. XLA counts the bodies of the loops once.
      XLA at 8 times [512, 512]: at most 3.5 times the FLOPs and 1.7 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      For: sparsity budget, compute budget.
      When: Once after training with `prox_wgsef` or `group_lasso`, to leave exactly k units per layer, then train on under
        `fixed_mask`.
      Not when: In every step from random weights: units that lose the first draw mostly get no gradient through a ReLU and
        hardly return. Without a sparse phase before it, the cut costs much.
      Badly with: Biases and batch normalisation of removed units, which it does not touch: a unit of zero weights still hands
        on its bias. Weight decay is harmless, momentum moves zeros away again without `fixed_mask`.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> kernel = jnp.array([[3.0, 0.0, 1.0], [0.0, -4.0, 1.0]])
      >>> rj.weights.project_top_groups({"kernel": kernel}, k=1)["kernel"].tolist()
      [[0.0, 0.0, 0.0], [0.0, -4.0, 0.0]]

    References:
      Refael et al., Learning k-Level Structured Sparse Neural Networks Using Group Envelope Regularization, 2022, arXiv
      2212.12921 (after training with `prox_wgsef`).
    """
    name = "weights.project_top_groups"
    ignored_step(name, step)
    _count(name, k)
    found = group_tables.find(name, params, groups, where)
    if found is None:
        return params
    scores = jnp.where(found.real, found.norms, -1)
    kept = jax.vmap(lambda row: largest([row], k)[0])(scores)
    # A choice rather than a product: infinite weights outside would leave NaN, negative ones -0.
    leaves, structure = jax.tree.flatten(params)
    for (indices, xs, _), use in zip(found.leaves, group_tables.spread(found, kept), strict=True):
        for i, x in zip(indices, xs, strict=True):
            leaves[i] = jnp.where(use, x, 0).astype(jnp.asarray(leaves[i]).dtype)
    return jax.tree.unflatten(structure, leaves)


def _count(name: str, k: Any) -> None:
    checks.number(name, "k", k, low=0.0)
    if not isinstance(k, jax.Array):
        checks.integer(name, "k", k, low=0)
