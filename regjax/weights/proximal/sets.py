"""Projections on convex sets: box, simplex, and the l1 and l2 balls.

A projection is the proximal operator of its constraint for every step size: each takes the place of a ``prox(params, step)``,
and the step has no effect: ``gradients.proximal_step(functools.partial(project_l2_ball, radius=1.0), 0.0)``.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax.projections

from regjax.core import checks, trees
from regjax.core.selection import largest_float
from regjax.core.types import Array, PyTree, Strength, Where
from regjax.weights import groups as grouping


def project_box(
    params: PyTree, step: Any = None, *, lower: Strength | None = None, upper: Strength | None = None, where: Where = None
) -> PyTree:
    r"""Clips every weight to an interval.

    Formula:
      .. math:: \min(\max(w, lower), upper)

    Args:
      params: a parameter tree.
      step: accepted and without effect, so that the projection serves in ``gradients.proximal_step``; default None.
      lower: the smallest value, a number or traced scalar, or None (default): no bound.
      upper: the largest value, a number or traced scalar, or None (default): no bound.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans.

    Returns:
      The tree with the chosen leaves replaced, in their dtypes; the others are unchanged.

    Raises:
      ValueError: if a bound is not finite, ``lower`` lies above ``upper``, or ``where`` is none of these.

    Cost:
      One pass over the weights.
      XLA at 8 times [512, 512]: at most 1.1 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      For: unstable training, compute budget.
      When: Weights must stay in a range that hardware or a model demands (fixed point, physical constants, monotone parts), or
        no weight should run away.
      Not when: A critic should be Lipschitz: the bound that clipping gives is loose and depends on the width;
        `spectral_normalize` sets it directly.
      Badly with: Momentum, which keeps pushing against the bound and delays the way back; quantisers that learn their own
        range; one bound for layers of different fan-in.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.weights.project_box({"kernel": jnp.array([[3.0, -0.5]])}, lower=-1.0, upper=1.0)["kernel"].tolist()
      [[1.0, -0.5]]

    References:
      Parikh and Boyd, Proximal Algorithms, 2014, Foundations and Trends in Optimization 1. Arjovsky, Chintala and Bottou,
      Wasserstein GAN, 2017, arXiv 1701.07875, clip a critic's weights to 0.01.
    """
    name = "weights.project_box"
    ignored_step(name, step)
    for argument, bound in (("lower", lower), ("upper", upper)):
        if bound is not None:
            checks.number(name, argument, bound)
    static = [bound for bound in (lower, upper) if bound is not None and not isinstance(bound, jax.Array)]
    if len(static) == 2 and float(static[0]) > float(static[1]):
        checks.fail(name, "lower", f"at most upper = {float(static[1]):g}", lower)
    clip = lambda x: optax.projections.projection_box(x, _bound(lower, -jnp.inf, x), _bound(upper, jnp.inf, x))
    return _elementwise(clip, name, params, where)


def project_nonnegative(params: PyTree, step: Any = None, *, where: Where = None) -> PyTree:
    r"""Sets negative weights to zero.

    Formula:
      .. math:: \max(w, 0)

    Args:
      params: a parameter tree.
      step: accepted and without effect, so that the projection serves in ``gradients.proximal_step``; default None.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans.

    Returns:
      The tree with the chosen leaves replaced, in their dtypes; the others are unchanged.

    Raises:
      ValueError: if ``where`` is none of these or chooses a leaf that is no float.

    Cost:
      One pass over the weights.
      XLA at 8 times [512, 512]: at most 1.1 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      For: unstable training.
      When: The model's form demands it: hidden kernels of input-convex networks, monotone networks, nonnegative factorisation.
        Choose those leaves by ``where``: input and skip kernels of a convex network stay free.
      Not when: As a regulariser of ordinary layers: half of a usual initialisation is lost and units can no longer cancel.
      Badly with: Initialisations around 0, of which half is clipped at the first step: start from positive values; activations
        that are not convex and rising, in a network meant to be convex; `orthonormality`.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.weights.project_nonnegative({"kernel": jnp.array([[3.0, -0.5]])})["kernel"].tolist()
      [[3.0, 0.0]]

    References:
      Parikh and Boyd, Proximal Algorithms, 2014, Foundations and Trends in Optimization 1. Amos, Xu and Kolter, Input Convex
      Neural Networks, 2017, arXiv 1609.07152 (projected weights keep a network convex).
    """
    name = "weights.project_nonnegative"
    ignored_step(name, step)
    return _elementwise(optax.projections.projection_non_negative, name, params, where)


def project_simplex(params: PyTree, step: Any = None, *, total: Strength, groups: Any = "leaf", where: Where = None) -> PyTree:
    r"""The nearest weights that are not negative and sum to a total in every group.

    Formula:
      .. math:: \max(w - \tau_g, 0), \quad \tau_g : \sum_{i \in g} \max(w_i - \tau_g, 0) = total

    Args:
      params: a parameter tree.
      step: accepted and without effect, so that the projection serves in ``gradients.proximal_step``; default None.
      total: the sum of each group, a number or traced scalar, at least 0; 1 for the probability simplex.
      groups: which weights form a group, as in `group_lasso`; default ``"leaf"``, each leaf. ``"out"``: the weights of each
        output unit.
      where: which leaves: None (kernels, default; with groups written out, exactly those), "all", a predicate
        ``(path, leaf) -> bool``, or a tree of booleans.

    Returns:
      The tree with the chosen leaves replaced, in their dtypes; the others are unchanged.

    Raises:
      ValueError: if ``total`` is negative or not finite, or ``groups`` or ``where`` is wrong.

    Cost:
      35 passes over the weights, which find the threshold by bisection: no sort, and on a mesh only sums cross the devices. XLA
      counts the body of the loop once.
      XLA at 8 times [512, 512]: at most 20 times the FLOPs and 6.6 times the bytes of a copy of its arguments, and 1.1 times
      its memory more.

    Use:
      For: sparsity budget.
      When: Weights are shares: mixtures of models or experts, class priors, attention over few sources. Unlike a softmax it
        reaches exact zeros. One-dimensional leaves need ``where='all'``.
      Not when: Every share must stay above 0, as in a log-likelihood: a source that fell to 0 has an infinite loss there. Then
        train logits under a softmax.
      Badly with: A softmax on top, which maps the simplex into its middle; weight decay, which the projection undoes; large
        steps, that leave one corner only.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> moved = rj.weights.project_simplex({"mix": jnp.array([0.8, 0.6, -0.2])}, total=1.0, where="all")["mix"]
      >>> [round(float(x), 4) for x in moved]
      [0.6, 0.4, 0.0]

    References:
      Held, Wolfe and Crowder, Validation of Subgradient Optimization, 1974, Mathematical Programming 6. Equal to
      ``optax.projections.projection_simplex``, which sorts and takes a whole tree as one group.
    """
    name = "weights.project_simplex"
    ignored_step(name, step)
    checks.number(name, "total", total, low=0.0)

    def moved(xs: list[Array], axes: Any) -> list[Array]:
        top, lift = _threshold(xs, axes, total)
        return [jnp.maximum(x - top + lift, 0) for x in xs]

    return _groupwise(moved, name, params, groups, where)


def project_l1_ball(params: PyTree, step: Any = None, *, radius: Strength, groups: Any = "leaf", where: Where = None) -> PyTree:
    r"""The nearest weights whose absolute values sum to the radius at most, in every group: a soft threshold.

    Formula:
      .. math:: sign(w) \max(|w| - \tau_g, 0), \quad \tau_g : \sum_{i \in g} \max(|w_i| - \tau_g, 0) = r

      where a group lies outside the ball; within it, nothing changes.

    Args:
      params: a parameter tree.
      step: accepted and without effect, so that the projection serves in ``gradients.proximal_step``; default None.
      radius: r, a number or traced scalar, at least 0.
      groups: which weights form a group, as in `group_lasso`; default ``"leaf"``, each leaf.
      where: which leaves: None (kernels, default; with groups written out, exactly those), "all", a predicate
        ``(path, leaf) -> bool``, or a tree of booleans.

    Returns:
      The tree with the chosen leaves replaced, in their dtypes; the others are unchanged.

    Raises:
      ValueError: if ``radius`` is negative or not finite, or ``groups`` or ``where`` is wrong.

    Cost:
      35 passes over the weights, which find the threshold by bisection: no sort, and on a mesh only sums cross the devices. XLA
      counts the body of the loop once.
      XLA at 8 times [512, 512]: at most 30 times the FLOPs and 8.3 times the bytes of a copy of its arguments, and 1.1 times
      its memory more.

    Use:
      For: sparsity budget.
      When: A budget on the sum of absolute weights is easier to state than a strength: features per unit with ``groups='out'``,
        portfolios, mixtures with signs. The level of sparsity follows the radius, not the learning rate.
      Not when: A fixed count is wanted: `project_top_k`. The radius lies above the norm that training reaches: then nothing
        happens.
      Badly with: `prox_l1` or `weights.l1` of the same leaves; the default ``groups='leaf'`` with one radius for layers of
        different size; Adam, which moves zeros by full steps again.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> moved = rj.weights.project_l1_ball({"kernel": jnp.array([[3.0, -2.0, 0.5]])}, radius=3.0)["kernel"]
      >>> [round(float(x), 4) for x in moved[0]]
      [2.0, -1.0, 0.0]

    References:
      Duchi et al., Efficient Projections onto the l1-Ball for Learning in High Dimensions, 2008, ICML. Equal to
      ``optax.projections.projection_l1_ball``, which sorts and takes a whole tree as one group.
    """
    name = "weights.project_l1_ball"
    ignored_step(name, step)
    checks.number(name, "radius", radius, low=0.0)

    def moved(xs: list[Array], axes: Any) -> list[Array]:
        sizes = [jnp.abs(x) for x in xs]
        norm = _total(sizes, axes)
        inside = norm <= jnp.asarray(radius, norm.dtype)
        top, lift = _threshold(sizes, axes, radius)
        return [jnp.where(inside, x, jnp.sign(x) * jnp.maximum(size - top + lift, 0)) for x, size in zip(xs, sizes, strict=True)]

    return _groupwise(moved, name, params, groups, where)


def project_l2_ball(params: PyTree, step: Any = None, *, radius: Strength, groups: Any = "leaf", where: Where = None) -> PyTree:
    r"""Shrinks every group whose norm exceeds the radius to that norm: the max-norm constraint with groups by unit.

    Formula:
      .. math:: w_g \min\left(1, \frac{r}{\|w_g\|_2}\right)

    Args:
      params: a parameter tree.
      step: accepted and without effect, so that the projection serves in ``gradients.proximal_step``; default None.
      radius: r, a number or traced scalar, at least 0.
      groups: which weights form a group, as in `group_lasso`; default ``"leaf"``, each leaf. ``"out"``: the weights into
        each unit.
      where: which leaves: None (kernels, default; with groups written out, exactly those), "all", a predicate
        ``(path, leaf) -> bool``, or a tree of booleans.

    Returns:
      The tree with the chosen leaves replaced, in their dtypes; the others are unchanged.

    Raises:
      ValueError: if ``radius`` is negative or not finite, or ``groups`` or ``where`` is wrong.

    Cost:
      Two passes over the weights.
      XLA at 8 times [512, 512]: at most 3.4 times the FLOPs and 1.7 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      For: noisy labels, few labels, exploding logits.
      When: Norms of units need a ceiling at large learning rates, as beside `dropout` (``groups='out'``). On noisy digits a
        small radius kept wrong labels from being learnt, at probabilities far too low: add `fit_temperature`.
      Not when: Norms stay below the radius anyway: the published 3 to 4 belong to other widths, and the best one on the digits
        was far smaller.
      Badly with: Batch or layer normalisation behind the kernel, for which the norm does not matter; `weight_norm` and `lawn`,
        which set it; weight decay strong enough to keep all units inside.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> params = {"kernel": jnp.array([[3.0, 0.5], [4.0, 0.0]])}
      >>> moved = rj.weights.project_l2_ball(params, radius=1.0, groups="out")["kernel"]
      >>> [round(float(x), 4) for x in moved.ravel()]
      [0.6, 0.5, 0.8, 0.0]

    References:
      Srebro and Shraibman, Rank, Trace-Norm and Max-Norm, 2005, COLT. Srivastava et al., Dropout: A Simple Way to Prevent
      Neural Networks from Overfitting, 2014, Journal of Machine Learning Research 15 (by unit, radius 3 to 4).
    """
    name = "weights.project_l2_ball"
    ignored_step(name, step)
    checks.number(name, "radius", radius, low=0.0)

    def moved(xs: list[Array], axes: Any) -> list[Array]:
        norms = grouping.norms(xs, axes)
        r = jnp.asarray(radius, norms.dtype)
        outside = norms > r
        factor = jnp.where(outside, r / jnp.where(outside, norms, 1), 1)
        return [x * factor for x in xs]

    return _groupwise(moved, name, params, groups, where)


def ignored_step(name: str, step: Any) -> None:
    """Checks the step of a projection, which has no effect: a wrong one is a mistaken argument."""
    if step is not None:
        checks.number(name, "step", step, low=0.0)


def _elementwise(fn: Callable[[Array], Array], name: str, params: PyTree, where: Where) -> PyTree:
    leaf = lambda w: fn(grouping.accumulated(name, w)).astype(jnp.asarray(w).dtype)
    return trees.map_selected(leaf, name, params, where=where)


def _groupwise(fn: Callable[[list[Array], Any], list[Array]], name: str, params: PyTree, groups: Any, where: Where) -> PyTree:
    leaves, structure = jax.tree.flatten(params)
    moved = list(leaves)
    for indices, axes in grouping.plan(name, params, groups, where):
        xs = [grouping.accumulated(name, leaves[i]) for i in indices]
        for i, new in zip(indices, fn(xs, axes), strict=True):
            moved[i] = new.astype(jnp.asarray(leaves[i]).dtype)
    return jax.tree.unflatten(structure, moved)


def _threshold(xs: Sequence[Array], axes: Any, total: Any) -> tuple[Array, Array]:
    """What projects on the simplex, ``max(x - top + lift, 0)``: the largest entry of each group, and a constant.

    Below their largest, the entries and the sum are of one size, so that a small total of large entries stays exact.
    """
    keep = axes is not None
    tops = [jax.lax.stop_gradient(jnp.max(x, axis=axes, keepdims=keep, initial=-jnp.inf)) for x in xs]
    top = functools.reduce(jnp.maximum, tops)
    below = [x - top for x in xs]
    total = jnp.asarray(total, top.dtype)
    fixed = jax.lax.stop_gradient(below)
    lift = largest_float(lambda a: (_total([jnp.maximum(z + a, 0) for z in fixed], axes) < total) & jnp.isfinite(a), top)
    # Bisection tells which entries stay positive; they then give the exact constant, and its derivative.
    some = [z + lift > 0 for z in fixed]
    count = _total([use.astype(top.dtype) for use in some], axes)
    total_below = _total([jnp.where(use, z, 0) for use, z in zip(some, below, strict=True)], axes)
    return top, jnp.where(count > 0, (total - total_below) / jnp.where(count > 0, count, 1), 0)


def _total(xs: Sequence[Array], axes: Any) -> Array:
    return jnp.asarray(sum(jnp.sum(x, axis=axes, keepdims=axes is not None) for x in xs))


def _bound(bound: Any, default: float, x: Array) -> Array:
    return jnp.asarray(default if bound is None else bound, x.dtype)
