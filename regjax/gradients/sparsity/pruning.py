"""Pruning while training: masks by score at a sparsity that rises, and masks of n in m."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from regjax.core import checks, trees
from regjax.core.sharding import explicit_sharding, placed_like
from regjax.core.types import Array, PyTree, Strength, Where
from regjax.gradients.sparsity.masked import masked_optimizer, refreshed
from regjax.gradients.updates import is_absent
from regjax.weights.sparsity import masks, structured

_SCORES = ("magnitude", "saliency", "random")


def prune(
    inner: optax.GradientTransformation,
    *,
    sparsity: Strength,
    scores: str | Callable[[PyTree, PyTree, Array], PyTree] = "magnitude",
    distribution: str = "uniform",
    start: int = 0,
    end: int | None = None,
    every: int = 1,
    normalize: bool = False,
    sparse_gradients: bool = False,
    where: Where = None,
    seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
    r"""Prunes weights while an optimiser trains them: gradually or at once, to an exact sparsity that then holds.

    Formula:
      At a step of refreshing, from the weights and gradients before the optimiser's step, and at every step:

      .. math:: mask \leftarrow topk(score(w, g), s_t), \qquad w \leftarrow mask \odot (w + inner(g))

      with `regjax.weights.topk_mask`, the score :math:`|w|`, :math:`|w g|`, or random, and :math:`s_t` by
      `regjax.schedules.cubic_sparsity`. Masked weights are 0 and score lowest, so that they do not come back while the sparsity
      rises; random scores are the same at each refreshing.

    Args:
      inner: the optimiser, with its learning rate.
      sparsity: the share of pruned weights, in [0, 1]: a number, reached by the cubic schedule from ``start`` to ``end``, or a
        schedule of its own, ``step -> sparsity``. 0 prunes nothing.
      scores: ``"magnitude"`` (default), ``"saliency"``, ``"random"``, or ``f(params, grads, key) -> tree`` of scores.
      distribution: ``"uniform"`` (default), ``"global"`` or ``"erk"``, as in `regjax.weights.topk_mask`. The cubic schedule
        multiplies the sparsity of each leaf.
      start: the first step that prunes, counted from 0, at least 0, default 0.
      end: the last step that may change the mask, and always a refreshing; at least ``start``. None (default): ``start`` for a
        number, which prunes once, and never for a schedule.
      every: steps from 0 by this many, between ``start`` and ``end``, refresh the mask; default 1.
      normalize: whether ``"global"`` first divides the scores of each leaf by their l2 norm; default False.
      sparse_gradients: whether the optimiser sees gradients of 0 outside the mask; default False.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans.
      seed: of random scores and of the key of a function, default 0.

    Returns:
      An optax optimiser whose ``update`` needs the parameters, the last of its chain: after ``optax.apply_updates`` the weights
      outside the mask are exactly 0. The mask is part of the state: `find_mask`. Gradients that are None keep their weights. In
      ``optax.inject_hyperparams``, a function for ``scores`` or ``where`` is a static argument.

    Raises:
      ValueError: if ``inner`` is no transformation, a number is out of range, an option is unknown, scores do not have the
        structure of the parameters, or ``update`` gets no parameters.

    Cost:
      A byte for each weight and two passes over them in each step; `regjax.weights.topk_mask` at a step of refreshing. No
      forward pass. XLA counts the refreshing in every step, and the body of its search's loop once.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.2 times the FLOPs and 2.1 times the bytes of a plain training
      step, and 0.2 times its memory more.

    Use:
      For: sparsity budget, compute budget.
      When: A given sparsity at the end of one training. Gradual from the start to about 70 % of it beat one cut at 95 % and
        more on digits, and up to 90 % cost next to nothing. Magnitude did best. Uniform, ERK and global were not told apart.
      Not when: Speed on common hardware is wanted: `nm_pruning`, or whole units by `wgsef`. Saliency of noisy batches: it lost
        to magnitude. As a regulariser: it gained a little on the digits comparison.
      Badly with: Anything after it in the chain, decay included: put it inside. Its ``end`` in the last steps, with no time to
        recover. ``global`` across layers before normalisations, whose scale means nothing. `ema`, averages of other masks.

    Example:
      >>> import jax.numpy as jnp, optax, regjax as rj
      >>> tx = rj.gradients.prune(optax.sgd(0.1), sparsity=0.5)
      >>> params, grads = {"kernel": jnp.array([[3.0, 0.5]])}, {"kernel": jnp.array([[1.0, 1.0]])}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> [round(float(x), 4) for x in optax.apply_updates(params, updates)["kernel"][0]]
      [2.9, 0.0]

    References:
      Zhu and Gupta, To Prune, or Not to Prune: Exploring the Efficacy of Pruning for Model Compression, 2017, arXiv 1710.01878.
      Lee et al., JaxPruner: A Concise Library for Sparsity Research, 2023, arXiv 2304.14082, whose rules these are but for two:
      the mask is always refreshed at ``end`` (there, a last refreshing before it stays short of the target), and random scores
      do not change (there, weights of 0 return). Saliency: Molchanov et al., Importance Estimation for Neural Network Pruning,
      2019, arXiv 1906.10771.
    """
    name = "gradients.prune"
    checks.strength(name, "sparsity", sparsity, low=0.0, high=1.0)
    if not callable(scores):
        checks.choice(name, "scores", scores, _SCORES)
    checks.choice(name, "distribution", distribution, masks.DISTRIBUTIONS)
    checks.boolean(name, "normalize", normalize)
    if not isinstance(seed, jax.Array):  # optax.inject_hyperparams makes arrays of numbers
        checks.integer(name, "seed", seed)
    last = start if end is None and not callable(sparsity) else end
    due = _due(name, start, last, every)

    def counts(shapes: list[tuple[int, ...]], step: Array) -> list[Any]:
        if callable(sparsity):
            return masks.kept_counts(shapes, jnp.asarray(sparsity(step)), distribution)
        share = _cubic(step, start, last)
        now = masks.kept_counts(shapes, sparsity, distribution, share)
        reached = masks.kept_counts(shapes, sparsity, distribution)
        # At the end the counts of a number are exact in any size of leaf.
        return [jnp.where(share >= 1, target, count) for target, count in zip(reached, now, strict=True)]

    def refresh(mask: PyTree, params: PyTree, grads: PyTree, step: Array) -> PyTree:
        chosen = trees.select(name, params, where)
        shapes = [jnp.shape(leaf) for leaf in masks.chosen_leaves(name, params, chosen)]

        def make() -> PyTree:
            found = _scores(name, scores, params, grads, chosen, seed, step)
            return masks.mask_by_counts(name, found, chosen, counts(shapes, step), normalize)

        return refreshed(due(step), make, mask)

    return masked_optimizer(
        name,
        inner,
        initial=lambda params: masks.full_mask(params, trees.select(name, params, where)),
        refresh=refresh,
        sparse_gradients=sparse_gradients,
    )


def nm_pruning(
    inner: optax.GradientTransformation,
    *,
    n: int,
    m: int,
    axis: int = -2,
    start: int = 0,
    end: int | None = None,
    every: int = 1,
    sparse_gradients: bool = False,
    where: Where = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Prunes to n of every m consecutive weights, the pattern that sparse matrix units compute with.

    Formula:
      At a step of refreshing, and at every step:

      .. math:: mask \leftarrow nm(|w|), \qquad w \leftarrow mask \odot (w + inner(g))

      with `regjax.weights.nm_mask` over the inputs of each output: axis 0 of a dense kernel, axis 2 of a convolution.

    Args:
      inner: the optimiser, with its learning rate.
      n: how many of each group stay, from 1 to ``m``; ``n = m`` prunes nothing.
      m: the length of a group; the axis has to be a multiple of it in every chosen leaf.
      axis: along which groups lie, default -2, the inputs of a kernel.
      start: the first step that prunes, counted from 0, default 0.
      end: the last step that may change the mask, always a refreshing; None (default): ``start``, which prunes once.
      every: steps from 0 by this many, between ``start`` and ``end``, refresh the mask; default 1.
      sparse_gradients: whether the optimiser sees gradients of 0 outside the mask; default False.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans. First and
        last layers are commonly left dense.

    Returns:
      An optax optimiser whose ``update`` needs the parameters, the last of its chain: after ``optax.apply_updates`` the weights
      outside the mask are exactly 0. The mask is part of the state: `find_mask`.

    Raises:
      ValueError: if ``inner`` is no transformation, a number is out of range, a chosen leaf has no such axis or no multiple of
        ``m`` on it, or ``update`` gets no parameters.

    Cost:
      A byte for each weight and two passes over them in each step; ``m`` comparisons for each weight at a step of refreshing,
      before which an Explicit mesh gathers sharded kernels. XLA counts the refreshing in every step.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.2 times the FLOPs and 1.2 times the bytes of a plain training
      step, and 0.01 times its memory more.

    Use:
      For: sparsity budget, compute budget.
      When: Hardware that computes 2 of 4: on digits 2:4 and 1:4 cost less than a point, cut once in training. A change of mask
        throughout, `sr_ste`, was no better there.
      Not when: Only the count of weights matters: free masks of `prune` were at least as good, and far better at extreme
        patterns such as 1 in 64, where units lose all inputs. First and last layers: leave them dense.
      Badly with: Kernels whose inputs are no multiple of m. Permuting channels afterwards, which breaks groups. Anything after
        it in the chain. `prune` around it: `find_mask` then sees the outer mask alone. Layouts with inputs elsewhere than
        ``axis``.

    Example:
      >>> import jax.numpy as jnp, optax, regjax as rj
      >>> tx = rj.gradients.nm_pruning(optax.sgd(0.1), n=1, m=2)
      >>> params = {"kernel": jnp.array([[3.0], [0.5], [1.0], [-2.0]])}
      >>> updates, _ = tx.update({"kernel": jnp.ones((4, 1))}, tx.init(params), params)
      >>> [round(float(x), 4) for x in optax.apply_updates(params, updates)["kernel"][:, 0]]
      [2.9, 0.0, 0.0, -2.1]

    References:
      Lee et al., JaxPruner: A Concise Library for Sparsity Research, 2023, arXiv 2304.14082. Zhou et al., Learning N:M
      Fine-grained Structured Sparse Neural Networks From Scratch, 2021, arXiv 2102.04010: for a mask that changes throughout,
      train dense weights through `regjax.weights.sr_ste` instead.
    """
    name = "gradients.nm_pruning"
    structured.check_pattern(name, n, m)
    checks.integer(name, "axis", axis)
    due = _due(name, start, start if end is None else end, every)

    def refresh(mask: PyTree, params: PyTree, grads: PyTree, step: Array) -> PyTree:
        chosen = trees.select(name, params, where)
        masks.chosen_leaves(name, params, chosen)
        make = lambda: masks.map_mask(lambda w: structured.pattern(name, "where", jnp.abs(w), n, m, axis), params, chosen)
        return refreshed(due(step), make, mask)

    return masked_optimizer(
        name,
        inner,
        initial=lambda params: masks.full_mask(params, trees.select(name, params, where)),
        refresh=refresh,
        sparse_gradients=sparse_gradients,
    )


def _due(name: str, start: Any, end: Any, every: Any) -> Callable[[Array], Array]:
    """Checks the steps of refreshing, and says whether a step is one."""
    given = lambda x: not isinstance(x, jax.Array)  # optax.inject_hyperparams makes arrays of numbers
    if given(start):
        checks.integer(name, "start", start, low=0)
    if end is not None and given(end):
        checks.integer(name, "end", end, low=start if given(start) else 0)
    if given(every):
        checks.integer(name, "every", every, low=1)

    def due(step: Array) -> Array:
        regular = (step >= start) & (step % every == 0)
        return regular if end is None else (regular & (step <= end)) | (step == end)

    return due


def _cubic(step: Array, start: Any, end: Any) -> Array:
    """The share of the target sparsity: `regjax.schedules.cubic_sparsity` of 1, for limits that may be traced."""
    length = jnp.asarray(end - start)
    since = jnp.clip(step + 1 - start, 0, length)
    p = jnp.where((length == 0) | (since >= length), 1.0, since / jnp.maximum(length, 1))
    return 1 - (1 - p) ** 3


def _scores(name: str, scores: Any, params: PyTree, grads: PyTree, chosen: PyTree, seed: Any, step: Array) -> PyTree:
    key = jax.random.key(seed)
    if callable(scores):
        found = scores(params, grads, jax.random.fold_in(key, step))
        return checks.same_structure(name, "scores", found, params, "the parameters")
    if scores == "magnitude":
        return masks.magnitudes(params, chosen)
    structure: Any = jax.tree.structure(params)
    leaves, others = jax.tree.leaves(params), structure.flatten_up_to(grads)
    uses = jax.tree.leaves(chosen)
    for i, (p, g) in enumerate(zip(leaves, others, strict=True)):
        if not uses[i]:
            continue
        if scores == "random":
            leaves[i] = jax.random.uniform(jax.random.fold_in(key, i), p.shape, jnp.float32, out_sharding=explicit_sharding(p))
        else:
            dtype = trees.accumulator(p)
            leaves[i] = jnp.abs(p.astype(dtype) * (0 if is_absent(g) else placed_like(g, p).astype(dtype)))
    return jax.tree.unflatten(structure, leaves)
