"""The anchor of test-time adaptation: how much the loss depends on each weight, and which weights adapt."""

import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, PyTree, Where
from regjax.objectives.lift import AxisName, LossFn, lift

_NORM = re.compile(r"norm|(^|_)(bn|ln|gn|rms)\d*(_|$)")
_STATISTICS = ("mean", "var", "running_mean", "running_var", "count")


class FisherAnchor(NamedTuple):
    """What `fisher_importance` gives: two trees like the parameters, with None in place of the leaves left out.

    Attributes:
      importance: the mean squared gradient of each weight.
      anchor: the weights themselves, as they were.
    """

    importance: PyTree
    anchor: PyTree


def fisher_importance(
    loss_fn: LossFn, params: PyTree, *batches: PyTree, where: Where = "all", has_aux: bool = False, axis_name: AxisName = None
) -> FisherAnchor:
    r"""How much the loss depends on each weight: the diagonal of the Fisher information, estimated batch by batch.

    Formula:
      .. math:: F_j = \frac{1}{N} \sum_{i=1}^N \left( \frac{\partial f(\theta; b_i)}{\partial \theta_j} \right)^2, \quad
                \theta^0 = \theta

      For EATA f is the mean cross-entropy of about 2000 examples in distribution with the model's own argmax as labels:
      ``loss_fn = lambda p, x: cross_entropy(z := model(p, x), argmax(z)).mean()``.

    Args:
      loss_fn: ``loss_fn(params, *batch) -> scalar``, or ``(scalar, aux)`` with ``has_aux=True``.
      params: the source parameters.
      *batches: the arguments after ``params``, trees of arrays ``[N, B, ...]`` with the batches on axis 0.
      where: which leaves, as in `regjax.weights`: ``"all"`` (default), a predicate, or a mask such as that of
        `norm_affine_mask`. The others are None in the result and get no gradient.
      has_aux: whether ``loss_fn`` returns ``(scalar, aux)``; the aux is dropped.
      axis_name: the mapped axis, or a tuple of them, over which each batch is split: gradients are averaged over it first.

    Returns:
      A `FisherAnchor`, in float32 or better, sharded as ``params``; no gradient flows to it.

    Raises:
      ValueError: if ``loss_fn`` is no function or returns no scalar, there are no batches, their arrays disagree on N, or
        ``where`` does not fit ``params``.

    Cost:
      N forward and backward passes, once; the memory of one. XLA counts the body of the loop once.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.2 times the FLOPs and 1.7 times the bytes of a forward and
      backward pass, and 0.27 times its memory more.

    Use:
      Part of: `eata`.
      When: Call it once on data of the source, with the model's own predictions as labels for `eata`, in the mode used at test.
        Batches of one example give the true diagonal.
      Badly with: Large batches where the scale matters: squares of batch means shrink with the batch. Labels learnt by heart,
        at which gradients and importance are near 0.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> fisher = rj.objectives.fisher_importance(lambda w, x: jnp.mean(w * x), jnp.float32(2.0), jnp.array([[1.0], [3.0]]))
      >>> float(fisher.importance), float(fisher.anchor)
      (5.0, 2.0)

    References:
      Niu et al., Efficient Test-Time Model Adaptation without Forgetting, 2022, arXiv 2204.02610. The paper has the gradients
      of single examples, the authors' code squares those of batch means, as here: give batches of one example for the former.
    """
    name = "objectives.fisher_importance"
    checks.axis_name(name, axis_name)
    checks.function(name, "loss_fn", loss_fn)
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        expected = "arrays that share the number of batches, at least 1, on axis 0"
        checks.fail(name, "batches", expected, [jnp.shape(leaf) for leaf in jax.tree.leaves(batches)])
    chosen = jax.tree.map(lambda use, leaf: bool(use) and trees.is_float(leaf), trees.select(name, params, where), params)
    pick = lambda tree: jax.tree.map(lambda use, leaf: leaf if use else None, chosen, tree)
    part = jax.lax.stop_gradient(trees.float_leaves(pick(params)))
    structure = jax.tree.structure(pick(params))

    def loss_of(part: list[Array], *batch: PyTree) -> Any:
        new = iter(part)
        return loss_fn(jax.tree.map(lambda use, leaf: next(new) if use else leaf, chosen, params), *batch)

    bound = lift(name, loss_of, has_aux, lambda loss, leaves, step: loss.gradient(leaves, axis_name).gradient)

    def add(carry: tuple[Array, list[Array]], batch: tuple[PyTree, ...]) -> tuple[tuple[Array, list[Array]], None]:
        count, means = carry
        squares = [jnp.square(g.astype(m.dtype)) for g, m in zip(bound(part, *batch), means, strict=True)]
        return (count + 1, [m + (s - m) / (count + 1).astype(m.dtype) for m, s in zip(means, squares, strict=True)]), None

    zeros = [jnp.zeros_like(leaf, dtype=trees.accumulator(leaf)) for leaf in part]
    (_, means), _ = jax.lax.scan(add, (jnp.zeros((), jnp.int32), zeros), jax.lax.stop_gradient(batches))
    anchors = [leaf.astype(trees.accumulator(leaf)) for leaf in part]
    return FisherAnchor(jax.tree.unflatten(structure, means), jax.tree.unflatten(structure, anchors))


def norm_affine_mask(params: PyTree) -> PyTree:
    r"""Which parameters are the scale and bias of normalisation layers: those that test-time adaptation trains.

    Formula:
      True for floating leaves of one dimension or more that are named ``scale``, ``gamma``, ``bias`` or ``beta`` (or
      ``weight``, of one dimension), in a module that is a normalisation: its name, the last on the path that is no number,
      contains ``norm`` or the word bn, ln, gn or rms (``BatchNorm_0``, ``layer_norm``, ``bn1``, ``ln_f``); or else it holds a
      ``scale`` and nothing beside it but ``bias`` and statistics. A module with a ``kernel``, ``embedding`` or ``w`` is none.

    Args:
      params: parameters of any kind: dicts, Linen parameters, `flax.nnx` states.

    Returns:
      A tree of Python booleans with the structure of ``params``, for ``optax.masked`` or a ``where=``. With
      ``optax.multi_transform`` and ``optax.set_to_zero`` the other leaves stay; ``optax.masked`` passes their gradients on.

    Raises:
      Nothing of its own.

    Cost:
      None at run time: the rule reads names.

    Use:
      Part of: `tent_loss`, `eata`.
      When: Call it for any optimiser or where= that is to touch normalisation layers alone, or all but them.
      Not when: Names tell nothing of what a layer is: look at the mask once before you trust it.
      Badly with: ``optax.masked`` alone, which passes the other gradients on unchanged.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> bn, dense = {"scale": jnp.ones(2), "bias": jnp.zeros(2)}, {"kernel": jnp.ones((2, 2)), "bias": jnp.zeros(2)}
      >>> rj.objectives.norm_affine_mask({"bn1": bn, "dense": dense})
      {'bn1': {'bias': True, 'scale': True}, 'dense': {'bias': False, 'kernel': False}}

    References:
      Wang et al., Tent: Fully Test-Time Adaptation by Entropy Minimization, 2021, arXiv 2006.10726, which adapts them alone.
    """
    siblings: dict[tuple[str, ...], set[str]] = {}
    for path, _ in jax.tree_util.tree_flatten_with_path(params)[0]:
        names = trees.path_names(path)
        siblings.setdefault(names[:-1], set()).add(names[-1] if names else "")

    def affine(path: tuple[Any, ...], leaf: Any) -> bool:
        names = trees.path_names(path)
        if not names or not trees.is_float(leaf) or jnp.ndim(leaf) < 1:
            return False
        own, beside = names[-1], siblings[names[:-1]]
        if beside & {"kernel", "embedding", "w"}:
            return False
        module = next((name for name in reversed(names[:-1]) if not name.isdigit()), "")
        if _NORM.search(module.lower()):
            return own in ("scale", "gamma", "bias", "beta") or (own == "weight" and jnp.ndim(leaf) == 1)
        return own in ("scale", "bias") and "scale" in beside and beside <= {"scale", "bias", *_STATISTICS}

    return jax.tree_util.tree_map_with_path(affine, params)


def anchored_distance(name: str, params: PyTree, fisher: Any) -> Array:
    """The squared distance from the anchor, each weight by its importance."""
    if not isinstance(fisher, FisherAnchor):
        checks.fail(name, "fisher", "what fisher_importance() gives, or None", fisher)
    left_out = lambda x: x is None
    importances = jax.tree.leaves(fisher.importance, is_leaf=left_out)
    structure: Any = jax.tree.structure(fisher.importance, is_leaf=left_out)
    try:
        anchors, leaves = structure.flatten_up_to(fisher.anchor), structure.flatten_up_to(params)
    except ValueError:
        checks.fail(name, "fisher", "of the structure of params", checks._Verbatim(str(structure)))
    total = jnp.zeros((), jnp.float32)
    for importance, anchor, leaf in zip(importances, anchors, leaves, strict=True):
        if importance is None:
            continue
        # Where params has a subtree, it has no shape.
        if not importance.shape == getattr(anchor, "shape", None) == getattr(leaf, "shape", None):
            checks.fail(name, "fisher", "of the structure and shapes of params", importance)
        dtype = trees.accumulator(importance, leaf)
        weight, source = jax.lax.stop_gradient((importance.astype(dtype), anchor.astype(dtype)))
        total = total + jnp.sum(weight * jnp.square(leaf.astype(dtype) - source))
    return total
