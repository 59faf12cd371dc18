"""Penalties on the distance from the weights at initialisation, or from pretrained ones."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, PyTree, Strength, Where


class SortedInit(NamedTuple):
    """Initial weights, each floating leaf flat and in rising order: what `wasserstein_to_init` compares with."""

    values: PyTree


def sorted_init(params: PyTree) -> SortedInit:
    r"""The weights of each leaf in rising order, sorted once for all steps.

    Formula:
      ``sort(flatten(w))`` for every floating leaf; other leaves pass.

    Args:
      params: the parameters at initialisation.

    Returns:
      A `SortedInit`, which `wasserstein_to_init` takes as ``init_params``.

    Raises:
      Nothing of its own.

    Cost:
      One sort for each leaf. Call it outside ``jit``: inside, the compiler sorts the constant itself, very slowly.
      XLA at 8 times [512, 512]: at most 20 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      Part of: `wasserstein_to_init`.
      When: Call it once before training, outside ``jit``, and pass the result as ``init_params``: a raw tree would be sorted in
        every step.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.weights.sorted_init({"bias": jnp.array([2.0, 0.0, 1.0])}).values["bias"].tolist()
      [0.0, 1.0, 2.0]

    References:
      See `wasserstein_to_init`.
    """

    def leaf(x: Any) -> Any:
        return jnp.sort(sharding.replicate(jnp.asarray(x)).ravel()) if trees.is_float(x) else x

    return SortedInit(jax.tree.map(leaf, params))


def wasserstein_to_init(
    params: PyTree,
    init_params: PyTree | SortedInit,
    *,
    p: int = 2,
    where: Where = "all",
    reduction: str = "sum",
) -> Array:
    r"""The Wasserstein distance between the distributions of a layer's weights now and at initialisation.

    Formula:
      .. math:: \sum_{leaves} \sum_i |w_{(i)} - w^0_{(i)}|^p

      :math:`w_{(i)}` is the i-th smallest weight of a leaf. Weights may trade places at no cost, unlike with a penalty on
      ``w - w0``. The gradient for p = 2 is ``2 (w - t)``, t the initial weight of the same rank; the ranks and
      ``init_params`` are constant.

    Args:
      params: a parameter tree.
      init_params: the parameters at initialisation, or better ``sorted_init(...)`` of them, sorted already.
        ``partial(wasserstein_to_init, init_params=...)`` is a penalty ``f(params) -> scalar``.
      p: 1 or 2, default 2.
      where: which leaves: "all" (default), None or "kernels", a predicate ``(path, leaf) -> bool``, or a tree of booleans.
      reduction: ``"sum"`` (default) or ``"mean"`` over the entries of a leaf; leaves are summed.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if the trees differ in structure or shape, or an option is unknown.

    Cost:
      One sort of each leaf and step. On an Explicit mesh, sharded leaves are gathered.
      XLA at 8 times [512, 512]: at most 14 times the FLOPs and 5.3 times the bytes of a copy of its arguments, and 0.31 times
      its memory more.

    Use:
      For: loss of plasticity.
      When: A stream of tasks in which single weights must travel far, but each layer should keep the spread it was initialised
        with. Search its strength up to 1: the best points of our studies lay at the upper end.
      Not when: `l2_sp` to the initial weights or `orthonormality` will do: both held plasticity better in our study, and need
        no sort in each step. For one task with wrong labels it gained little.
      Badly with: Weight decay and `weights.l1`, which narrow the distribution that this holds; leaves that start constant, such
        as zero biases: all their targets are equal, and this is then decay towards that constant.

    Example:
      >>> import functools, jax.numpy as jnp, regjax as rj
      >>> start = rj.weights.sorted_init({"bias": jnp.array([0.0, 0.0, 3.0])})
      >>> penalty = functools.partial(rj.weights.wasserstein_to_init, init_params=start)
      >>> float(penalty({"bias": jnp.array([1.0, 3.0, 2.0])}))
      5.0

    References:
      Lewandowski et al., Learning Continually by Spectral Regularization, 2024, arXiv 2406.06811 (its first version). For
      p = 2 the value is the squared distance times the number of weights.
    """
    name = "weights.wasserstein_to_init"
    checks.choice(name, "p", p, (1, 2))
    checks.choice(name, "reduction", reduction, ("sum", "mean"))
    if isinstance(init_params, SortedInit):
        flat = jax.tree.map(lambda x: jax.ShapeDtypeStruct((jnp.size(x),) if trees.is_float(x) else jnp.shape(x), int), params)
        checks.same_structure(name, "init_params", init_params.values, flat, "params, leaves flat")
    else:
        checks.same_structure(name, "init_params", init_params, params, "params")
        init_params = sorted_init(init_params)
    mask = trees.select(name, params, where)

    total = jnp.zeros((), jnp.float32)
    for w, values, use in zip(*map(jax.tree.leaves, (params, init_params.values, mask)), strict=True):
        if not use:
            continue
        if not trees.is_float(w):
            checks.fail(name, "where", "a choice of floating-point leaves", w)
        x = sharding.replicate(jnp.asarray(w)).ravel()
        x = x.astype(trees.accumulator(x))
        # The target of each weight by its rank: unlike a sort, it leaves no gather to differentiate.
        ranks = jnp.argsort(jax.lax.stop_gradient(x))
        target = jnp.zeros_like(x).at[ranks].set(jax.lax.stop_gradient(values).astype(x.dtype), unique_indices=True)
        distance = jnp.abs(x - target) if p == 1 else jnp.square(x - target)
        total = total + (jnp.sum(distance) if reduction == "sum" else jnp.sum(distance) / max(x.size, 1))
    return total


def l2_sp(
    params: PyTree,
    anchor: PyTree,
    *,
    alpha: Strength = 0.1,
    beta: Strength = 0.01,
    new_mask: Where = False,
    where: Where = "all",
) -> Array:
    r"""Weight decay towards the pretrained weights, and towards zero for what was not pretrained.

    Formula:
      .. math:: \frac{\alpha}{2} \|w_{shared} - a\|^2 + \frac{\beta}{2} \|w_{new}\|^2

      for the pretrained weights a. Unlike weight decay it does not pull a fine-tuned model away from its start.

    Args:
      params: a parameter tree.
      anchor: a, a tree as ``params`` with the pretrained weights, constant. Under leaves that are new it may hold anything, such
        as None or a head of another size.
      alpha: the strength on shared leaves, at least 0, default 0.1.
      beta: the strength on new leaves, at least 0, default 0.01.
      new_mask: which leaves are new, such as the head: a predicate ``(path, leaf) -> bool``, a tree of booleans, "kernels",
        "all", or False (default), none.
      where: which leaves count at all: "all" (default), None or "kernels", a predicate, or a tree of booleans.
        ``partial(l2_sp, anchor=..., new_mask=...)`` is a penalty ``f(params) -> scalar``.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if the trees do not fit, a strength is negative, or a choice of leaves is none.

    Cost:
      One pass each way over the parameters and the anchor, which stays in memory.
      XLA at 16 times [512, 512]: at most 2.3 times the FLOPs and 1.7 times the bytes of a copy of its arguments, and 0.14 times
      its memory more.

    Use:
      For: fine-tuning, loss of plasticity, forgetting.
      When: Fine-tuning on little data, with plain decay on the new head; or, anchored at the initial weights, for streams of
        tasks: in the plasticity study it did best with random labels. Against forgetting it serves a linear head: there it came
        near `ewc` without its passes over the data.
      Not when: The target lies far from the pretraining, or a hidden layer has to remember earlier tasks: in the continual
        study it hardly helped an MLP head, because it holds every weight equally hard.
      Badly with: Weight decay on the same leaves (``adamw``, `decoupled_weight_decay`, `weights.l2`), which pulls to 0 what
        this pulls to the anchor. `mixout` with the same anchor does the same twice.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> params = {"body": jnp.array([2.0, 3.0]), "head": jnp.array([4.0])}
      >>> anchor = {"body": jnp.array([1.0, 3.0]), "head": None}
      >>> new = {"body": False, "head": True}
      >>> round(float(rj.weights.l2_sp(params, anchor, alpha=0.1, beta=0.01, new_mask=new)), 4)
      0.13

    References:
      Li et al., Explicit Inductive Bias for Transfer Learning with Convolutional Networks, 2018, arXiv 1802.01483.
    """
    name = "weights.l2_sp"
    alpha = checks.number(name, "alpha", alpha, low=0.0)
    beta = checks.number(name, "beta", beta, low=0.0)
    choices = trees.select(name, params, where, "where"), trees.select(name, params, new_mask, "new_mask")
    structure: Any = jax.tree.structure(params)
    try:
        anchors = structure.flatten_up_to(anchor)
    except (ValueError, TypeError):
        expected = "a tree of the structure of params, with anything for leaves that are new"
        checks.fail(name, "anchor", expected, jax.tree.structure(anchor))
    shared, fresh = [], []
    for (path, w), a, use, new in zip(
        jax.tree_util.tree_flatten_with_path(params)[0], anchors, *map(jax.tree.leaves, choices), strict=True
    ):
        if not use:
            continue
        if not trees.is_float(w):
            checks.fail(name, "where", "a choice of floating-point leaves", w)
        if new:
            fresh.append(w)
            continue
        a = checks.floating(name, "anchor" + jax.tree_util.keystr(path), a, shape=jnp.shape(w))
        dtype = trees.accumulator(w, a)
        shared.append(jnp.asarray(w).astype(dtype) - jax.lax.stop_gradient(a).astype(dtype))
    parts = [(alpha, trees.sum_squares(shared)), (beta, trees.sum_squares(fresh))]
    return sum((jnp.asarray(scale, square.dtype) / 2 * square for scale, square in parts), jnp.zeros((), jnp.float32))
