"""Proximal operators of the norm penalties: ``prox(params, step) -> params``, the step that reaches exact zeros.

Each minimises ``step * penalty(x) + 1/2 ||x - params||^2`` over x. ``gradients.proximal_step`` applies one after the
optimiser's update.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, PyTree, Strength, Where
from regjax.weights import groups as grouping


def prox_l1(params: PyTree, step: Strength, *, where: Where = None) -> PyTree:
    r"""Soft thresholding: every weight moves towards zero by the step and stops there.

    Formula:
      .. math:: sign(w) \max(|w| - t, 0)

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
      XLA at 8 times [512, 512]: at most 2.2 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      For: sparsity budget, noisy labels.
      When: Exact zeros during training, with SGD and ``learning_rate`` given to `proximal_step`. At the highest sparsity of our
        study it ended above the l1 penalty.
      Not when: The count of weights must be exact: it leaves fewer where its steps empty whole units, which then get no
        gradient. Cut with `topk_mask` or use `prune`.
      Badly with: Adam, whose large steps on rare gradients throw zeros back while the threshold stays the plain rate's;
        `weights.l1` in the loss, the same twice; kernels before a normalisation, whose scale is free.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.weights.prox_l1({"kernel": jnp.array([[3.0, -0.5]])}, 1.0)["kernel"].tolist()
      [[2.0, 0.0]]

    References:
      Daubechies et al., An Iterative Thresholding Algorithm for Linear Inverse Problems with a Sparsity Constraint, 2004, arXiv
      math/0307152. Parikh and Boyd, Proximal Algorithms, 2014, Foundations and Trends in Optimization 1.
    """
    return _elementwise("weights.prox_l1", params, step, where, _soft)


def prox_l2(params: PyTree, step: Strength, *, where: Where = None) -> PyTree:
    r"""Shrinkage by a constant factor: the proximal form of weight decay.

    Formula:
      .. math:: \frac{w}{1 + t}

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
      XLA at 8 times [512, 512]: at most 1.1 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      For: few labels, noisy labels.
      When: Weight decay that is stable at any strength, since it divides by 1 + t instead of subtracting; after an adaptive
        optimiser it is decoupled decay.
      Not when: Ordinary strengths: `decoupled_weight_decay` and this agree to first order, and papers give the former's
        numbers.
      Badly with: ``adamw``, `sgdw`, `weights.l2` or `decoupled_weight_decay` on the same leaves, decay twice; kernels before a
        normalisation, where it only sets the effective rate; `lawn`.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.weights.prox_l2({"kernel": jnp.array([[3.0, -1.0]])}, 1.0)["kernel"].tolist()
      [[1.5, -0.5]]

    References:
      Parikh and Boyd, Proximal Algorithms, 2014, Foundations and Trends in Optimization 1. The penalty is half the sum of
      squares, as in `l2`.
    """
    return _elementwise("weights.prox_l2", params, step, where, lambda x, t: x / (1 + t))


def prox_elastic_net(params: PyTree, step: Strength, *, l1: Strength, l2: Strength, where: Where = None) -> PyTree:
    r"""Soft thresholding, then shrinkage.

    Formula:
      .. math:: \frac{soft(w, t \lambda_1)}{1 + t \lambda_2}, \quad soft(w, t) = sign(w) \max(|w| - t, 0)

    Args:
      params: a parameter tree.
      step: t, the step size times the strength of the penalty; a number or traced scalar, at least 0. 0 changes nothing.
      l1: the weight of the absolute values, at least 0.
      l2: the weight of half the squares, at least 0.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans.

    Returns:
      The tree with the chosen leaves replaced, in their dtypes; the others are unchanged.

    Raises:
      ValueError: if a number is negative or not finite, or ``where`` is none of these.

    Cost:
      One pass over the weights.
      XLA at 8 times [512, 512]: at most 3.3 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      For: sparsity budget, few labels.
      When: Linear models or first layers with correlated inputs, when exact zeros and shared weights are both wanted; after SGD
        in `proximal_step` with its learning rate.
      Not when: Only zeros or only decay is wanted: `prox_l1` or `prox_l2` have one number less to tune.
      Badly with: Weight decay in the optimiser, a second l2 part; Adam, since zeros depend on the plain rate but moves on its
        own; kernels before a normalisation.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.weights.prox_elastic_net({"kernel": jnp.array([[3.0, -0.5]])}, 1.0, l1=1.0, l2=1.0)["kernel"].tolist()
      [[1.0, 0.0]]

    References:
      Zou and Hastie, Regularization and Variable Selection via the Elastic Net, 2005, Journal of the Royal Statistical Society
      B 67. Parikh and Boyd, Proximal Algorithms, 2014, Foundations and Trends in Optimization 1.
    """
    name = "weights.prox_elastic_net"
    checks.number(name, "l1", l1, low=0.0)
    checks.number(name, "l2", l2, low=0.0)
    return _elementwise(name, params, step, where, lambda x, t: _soft(x, t * l1) / (1 + t * l2))


def prox_group_lasso(
    params: PyTree, step: Strength, *, groups: Any = "out", size_weighted: bool = False, where: Where = None
) -> PyTree:
    r"""Block soft thresholding: the norm of every group shrinks by the step, and a smaller group becomes zero.

    Formula:
      .. math:: w_g \max\left(0, 1 - \frac{t c_g}{\|w_g\|_2}\right), \quad c_g = 1 \text{ or } \sqrt{|g|}

    Args:
      params: a parameter tree.
      step: t, the step size times the strength of the penalty; a number or traced scalar, at least 0. 0 changes nothing.
      groups: which weights form a group: ``"out"`` (default), ``"in"``, ``"kernel_position"``, ``"leaf"``, or a list of
        lists of paths; see `group_lasso`.
      size_weighted: whether a group counts times the root of its size; default False.
      where: which leaves: None (kernels, default; with groups written out, exactly those), "all", a predicate
        ``(path, leaf) -> bool``, or a tree of booleans.

    Returns:
      The tree with the chosen leaves replaced, in their dtypes; the others are unchanged.

    Raises:
      ValueError: if ``step`` is negative or not finite, or ``groups`` or ``where`` is wrong.

    Cost:
      Two passes over the weights.
      XLA at 8 times [512, 512]: at most 3.4 times the FLOPs and 1.7 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      For: sparsity budget, noisy labels.
      When: Units, filters or inputs should become exactly zero while training, so that the arrays can be cut afterwards. It
        helped on noisy digits, about as much as its penalty form.
      Not when: A fixed number of units must stay: `prox_wgsef` or `structured_removal_penalty`. A strength that suits one width
        suits another only with ``size_weighted=True``.
      Badly with: Batch normalisation behind the kernel, which keeps a shrunk unit alive until it is 0; biases outside the
        groups; adapters with a factor at 0: start it after a warm-up; Adam, which gets the plain rate here.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> kernel = jnp.array([[3.0, 1.0], [4.0, 0.0]])
      >>> [round(float(x), 4) for x in rj.weights.prox_group_lasso({"kernel": kernel}, 2.0)["kernel"].ravel()]
      [1.8, 0.0, 2.4, 0.0]

    References:
      Yuan and Lin, Model Selection and Estimation in Regression with Grouped Variables, 2006, Journal of the Royal Statistical
      Society B 68. Parikh and Boyd, Proximal Algorithms, 2014, Foundations and Trends in Optimization 1.
    """
    return _blockwise("weights.prox_group_lasso", params, step, None, 1.0, groups, size_weighted, where)


def prox_sparse_group_lasso(
    params: PyTree,
    step: Strength,
    *,
    l1: Strength,
    group: Strength,
    groups: Any = "out",
    size_weighted: bool = False,
    where: Where = None,
) -> PyTree:
    r"""Soft thresholding of every weight, then block soft thresholding of every group.

    Formula:
      .. math:: u = soft(w, t \lambda_1), \quad u_g \max\left(0, 1 - \frac{t \lambda_g c_g}{\|u_g\|_2}\right)

    Args:
      params: a parameter tree.
      step: t, the step size times the strength of the penalty; a number or traced scalar, at least 0. 0 changes nothing.
      l1: the weight of the absolute values, at least 0.
      group: the weight of the group norms, at least 0.
      groups: which weights form a group, as in `group_lasso`; default ``"out"``.
      size_weighted: whether a group counts times the root of its size; default False.
      where: which leaves, as in `group_lasso`.

    Returns:
      The tree with the chosen leaves replaced, in their dtypes; the others are unchanged.

    Raises:
      ValueError: if a number is negative or not finite, or ``groups`` or ``where`` is wrong.

    Cost:
      Two passes over the weights.
      XLA at 8 times [512, 512]: at most 5.6 times the FLOPs and 2.8 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      For: sparsity budget.
      When: Exact zeros of two kinds while training: whole units or inputs, and single weights within those that stay, as in
        feature selection with few inputs per unit.
      Not when: Only whole groups make the network faster: `prox_group_lasso` has one strength less.
      Badly with: Adam, which does not scale the thresholds; batch normalisation behind the groups; a strong l1 part, which has
        already emptied groups before the group part acts, so tune that one first.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> kernel = jnp.array([[3.0], [4.0]])
      >>> moved = rj.weights.prox_sparse_group_lasso({"kernel": kernel}, 1.0, l1=1.0, group=1.0)["kernel"]
      >>> [round(float(x), 4) for x in moved.ravel()]
      [1.4453, 2.1679]

    References:
      Simon et al., A Sparse-Group Lasso, 2013, Journal of Computational and Graphical Statistics 22 (the two steps in this
      order are the exact proximal operator).
    """
    name = "weights.prox_sparse_group_lasso"
    checks.number(name, "l1", l1, low=0.0)
    checks.number(name, "group", group, low=0.0)
    return _blockwise(name, params, step, l1, group, groups, size_weighted, where)


def _elementwise(name: str, params: PyTree, step: Any, where: Where, fn: Callable[[Array, Array], Array]) -> PyTree:
    checks.number(name, "step", step, low=0.0)

    def leaf(w: Any) -> Array:
        x = grouping.accumulated(name, w)
        return fn(x, jnp.asarray(step, x.dtype)).astype(jnp.asarray(w).dtype)

    return trees.map_selected(leaf, name, params, where=where)


def _blockwise(
    name: str, params: PyTree, step: Any, l1: Any, group: Any, groups: Any, size_weighted: Any, where: Where
) -> PyTree:
    checks.number(name, "step", step, low=0.0)
    checks.boolean(name, "size_weighted", size_weighted)
    leaves, structure = jax.tree.flatten(params)
    moved = list(leaves)
    for indices, axes in grouping.plan(name, params, groups, where):
        xs = [grouping.accumulated(name, leaves[i]) for i in indices]
        if l1 is not None:
            xs = [_soft(x, jnp.asarray(step * l1, x.dtype)) for x in xs]
        norms = grouping.norms(xs, axes)
        t = jnp.asarray(step * group * grouping.weight(xs, norms, size_weighted), norms.dtype)
        nonzero = norms > 0
        # Where the squares of a tiny group underflow its norm reads 0: any step at all clears it, and no step leaves it.
        ratio = jnp.where(nonzero, jnp.minimum(t / jnp.where(nonzero, norms, 1), 1), jnp.where(t > 0, 1, 0))
        for i, x in zip(indices, xs, strict=True):
            moved[i] = (x * (1 - ratio)).astype(jnp.asarray(leaves[i]).dtype)
    return jax.tree.unflatten(structure, moved)


def _soft(x: Array, t: Array) -> Array:
    # Equal to sign(x) max(|x| - t, 0), and exactly x at t = 0.
    return x - jnp.clip(x, -t, t)
