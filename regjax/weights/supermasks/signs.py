"""Masks from synaptic saliency, and networks that learn the signs of frozen weights and nothing else."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, PyTree, Strength, Where
from regjax.weights.sparsity.masks import chosen_leaves, mask_by_counts
from regjax.weights.supermasks.scores import dense_count, straight_through


def synaptic_saliency(apply_fn: Callable[..., Any], params: PyTree, input_shape: tuple[int, ...]) -> PyTree:
    r"""How much each weight carries from input to output of a network, without data.

    Formula:
      .. math:: R = \sum f(1; |\theta|), \quad S = |\theta| \odot \frac{\partial R}{\partial |\theta|}

      f is fed ones, with the absolute values of all its parameters. In a ReLU network without biases the sum of S is R in
      every layer: a layer of many weights has small ones, and at a low density `saliency_mask` in a single round may empty it.
      In rounds of rising sparsity, each with the S of what is left, it does not.

    Args:
      apply_fn: ``f(params, x) -> array``, in inference mode (a normalisation uses its running statistics).
      params: its parameters.
      input_shape: of x, with the batch axis: ``(1, 28, 28, 1)``.

    Returns:
      S, a tree like ``params`` with the floating leaves in float32 or better; others pass unchanged. The values are products over
      the depth and overflow float32 in very deep networks. There, give parameters in float64, or divide kernels by constants:
      without biases that scales all S alike.

    Raises:
      ValueError: if ``apply_fn`` is no function or returns no floating array, or ``input_shape`` no tuple of positive integers.

    Cost:
      One forward and one backward pass of one example, once.
      XLA at 8 times [512, 512]: at most 1.9 times the FLOPs and 1.5 times the bytes of a gradient of one example, and 0 times
      its memory more.

    Use:
      For: sparsity budget.
      When: Pruning before training, without data: on the digits it was the best way to prune at the start, far above magnitude
        and ``|w g|``. Score in rounds of rising sparsity with `saliency_mask`.
      Not when: Training may start dense: `prune` ended higher at the same sparsity. Very deep nets in float32, where the
        products overflow.
      Badly with: Batch statistics in place of running ones; negative slopes, sines and other activations not monotone on
        positive inputs; biases, whose share breaks the conservation per layer.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> params = [jnp.array([[1.0], [-2.0]]), jnp.array([[0.5]])]
      >>> [s.tolist() for s in rj.weights.synaptic_saliency(lambda p, x: x @ p[0] @ p[1], params, (1, 2))]
      [[[0.5], [1.0]], [[1.5]]]

      An NNX model; one with dropout or normalisation in inference mode, by ``nnx.view``:

      >>> from flax import nnx
      >>> graphdef, params = nnx.split(nnx.Linear(2, 1, use_bias=False, rngs=nnx.Rngs(0)), nnx.Param)
      >>> saliency = rj.weights.synaptic_saliency(lambda p, x: nnx.merge(graphdef, p)(x), params, (1, 2))
      >>> saliency["kernel"].shape
      (2, 1)

    References:
      Tanaka et al., Pruning Neural Networks without Any Data by Iteratively Conserving Synaptic Flow, 2020, arXiv 2006.05467.
      Vallapuram et al., HideNseek: Federated Lottery Ticket via Server-side Pruning and Sign Supermask, 2022, arXiv 2206.04385,
      of which only the abstract was at hand: it may score in several rounds.
    """
    name = "weights.synaptic_saliency"
    checks.function(name, "apply_fn", apply_fn)
    if not isinstance(input_shape, tuple):
        checks.fail(name, "input_shape", "a tuple of positive integers, the batch axis first", input_shape)
    shape = tuple(checks.integer(name, "input_shape", n, low=1) for n in input_shape)
    absolute = [jnp.abs(leaf.astype(trees.accumulator(leaf))) for leaf in trees.float_leaves(params)]
    x = jnp.ones(shape, trees.accumulator(*absolute))

    def total(leaves: list[Array]) -> Array:
        out = apply_fn(trees.with_float_leaves(params, leaves), x)
        if not isinstance(out, jax.Array) or not trees.is_float(out):
            checks.fail(name, "apply_fn", "a function (params, x) that returns a floating-point array", out)
        return jnp.sum(out.astype(x.dtype))

    gradient = jax.grad(total)(absolute)
    return trees.with_float_leaves(params, [a * g for a, g in zip(absolute, gradient, strict=True)])


def saliency_mask(saliency: PyTree, *, density: Strength, where: Where = None) -> PyTree:
    r"""The mask of the largest saliencies of all kernels together.

    Formula:
      .. math:: m_i = [\, S_i \text{ is among the } n - \lfloor (1 - d) n \rfloor \text{ largest}\, ]

      with n the entries of all chosen leaves; of equal ones the earlier in tree and flat order is kept.

    Args:
      saliency: a tree of scores, such as that of `synaptic_saliency`.
      density: d in [0, 1], the share that is kept, a number or a traced scalar.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans.

    Returns:
      A tree like ``saliency``: a boolean array for each chosen leaf, and a boolean scalar, True, for every other.

    Raises:
      ValueError: if ``density`` is outside [0, 1] or not finite, or ``where`` is wrong or chooses a leaf that is no float.

    Cost:
      32 + log2(n) counting passes over the scores, once. XLA counts the bodies of the loops once.
      XLA at 8 times [512, 512]: at most 38 times the FLOPs and 9.8 times the bytes of a copy of its arguments, and 2.2 times
      its memory more.

    Use:
      Part of: `synaptic_saliency`, `sign_supermask`.
      When: For the cut by scores over all kernels, several times with rising sparsity and fresh scores; a single cut at low
        density may empty a wide layer.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> saliency = {"a": {"kernel": jnp.array([[0.5, 1.0]]), "bias": jnp.zeros(2)}, "b": {"kernel": jnp.array([[1.5], [0.1]])}}
      >>> mask = rj.weights.saliency_mask(saliency, density=0.5)
      >>> mask["a"]["kernel"].tolist(), mask["b"]["kernel"].tolist(), bool(mask["a"]["bias"])
      ([[False, True]], [[True], [False]], True)

    References:
      Those of `synaptic_saliency`.
    """
    name = "weights.saliency_mask"
    checks.number(name, "density", density, low=0.0, high=1.0)
    chosen = trees.select(name, saliency, where)
    size = sum(jnp.size(leaf) for leaf in chosen_leaves(name, saliency, chosen))
    return mask_by_counts(name, saliency, chosen, [dense_count(density, size)])


def sign_supermask(scores: PyTree, weights: PyTree, mask: PyTree = None, *, where: Where = None) -> PyTree:
    r"""Frozen weights with learned signs, inside a fixed mask.

    Formula:
      .. math:: m \odot w \odot sign(s), \quad sign(0) = 1, \quad \frac{\partial\, sign(s)}{\partial s} := 1

      Only s is trained. Scores that start above 0 start from ``m * w``; one that goes below 0 turns the sign of its weight.
      Clients of a federation send one bit for each kept weight; the server joins them by `aggregate_signs`.

    Args:
      scores: s, an array or a tree of float arrays like ``weights``, all above 0 at the start.
      weights: w, an array or a tree of float arrays: random ones of many sizes, such as normal ones. Of weights of one size
        (`signed_constant_init`) a learned mask of zeros and ones, `topk_supermask`, does as well.
      mask: m, boolean arrays of the shapes of ``weights`` or scalars, such as `saliency_mask` gives; None (default): all.
      where: which leaves of a tree get signs: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of
        booleans; others pass unchanged. A bare array always does.

    Returns:
      The effective weights, like ``weights``. Exactly 0 outside the mask; scores and weights have no gradient there.

    Raises:
      ValueError: if structures or shapes do not fit, a leaf is not floating, or ``where`` is wrong.

    Cost:
      Two passes over the weights; no forward pass.
      XLA at 24 times [512, 512]: at most 4.1 times the FLOPs and 1.4 times the bytes of a copy of its arguments, and 0 times
      its memory more.

    Use:
      For: compute budget, sparsity budget.
      When: Federated training over thin links: one bit per kept weight and round. At a density of 0.3 it beat a 0-1 mask over
        the same normal weights.
      Not when: Communication is no issue: in the sparsity study it was behind `topk_supermask` at every level, far from 90 %
        on, and near chance at 95 %.
      Badly with: `signed_constant_init`, over whose weights a 0-1 mask does as well; scores that start large against the rate,
        which never change sign; weight decay on scores, which pulls them to the jump at 0.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> weights, mask = jnp.array([0.5, -0.5, 0.5]), jnp.array([True, True, False])
      >>> rj.weights.sign_supermask(jnp.array([0.2, -0.1, 0.3]), weights, mask).tolist()
      [0.5, 0.5, 0.0]
      >>> jax.grad(lambda s: rj.weights.sign_supermask(s, weights, mask).sum())(jnp.ones(3)).tolist()
      [0.5, -0.5, 0.0]

      In an NNX model: ``nnx.merge(graphdef, sign_supermask(scores, params, mask))(x)`` with ``graphdef, params = nnx.split(model,
      nnx.Param)`` and ``scores = jax.tree.map(jnp.ones_like, params)``, which is what the optimiser trains.

    References:
      Vallapuram et al., HideNseek: Federated Lottery Ticket via Server-side Pruning and Sign Supermask, 2022, arXiv 2206.04385,
      of which only the abstract was at hand: the initial scores, and a straight-through gradient without clipping, are the
      usual choices. Koster et al., Signing the Supermask: Keep, Hide, Invert, 2022, arXiv 2201.13361.
    """
    name = "weights.sign_supermask"
    checks.same_structure(name, "scores", scores, weights, "weights")
    if mask is None:
        mask = jax.tree.map(lambda _: np.True_, weights)
    _check_mask(name, mask, weights)
    bare = jax.tree_util.treedef_is_leaf(jax.tree.structure(weights))

    def leaf(w: Any, s: Any, m: Any) -> Array:
        w, s = checks.floating(name, "weights", w), checks.floating(name, "scores", s)
        s = s.astype(w.dtype)
        signed = w * straight_through(jnp.where(s < 0, -1, 1).astype(w.dtype), s)
        # The product of a sharded and a replicated array is sharded as the one, and the choice needs all three alike.
        kept = sharding.placed_like(jnp.broadcast_to(jnp.asarray(m) != 0, w.shape), signed)
        return jnp.where(kept, signed, 0)

    return trees.map_selected(leaf, name, weights, scores, mask, where=True if bare else where)


def aggregate_signs(sign_list: Sequence[PyTree], counts: Any) -> PyTree:
    r"""The signs of several clients joined by a vote in which each counts as its data.

    Formula:
      .. math:: sign\left( \sum_c n_c \, sign(s_c) \right), \quad sign(0) = 1

    Args:
      sign_list: one tree for each client, of signs in any dtype (int8 is one byte each), or of the scores themselves.
      counts: the sizes n of their data, numbers or an array ``[clients]``, at least 0.

    Returns:
      A tree of 1 and -1 in the shapes and dtypes of the first; scores that start from it, as in `sign_supermask`, give its signs.

    Raises:
      ValueError: if the list is empty, structures or shapes differ, or ``counts`` are negative or not one for each client.

    Cost:
      One pass over the signs of each client.
      XLA at 24 times [512, 512]: at most 6.3 times the FLOPs and 0.74 times the bytes of a copy of its arguments, and 0 times
      its memory more.

    Use:
      Part of: `sign_supermask`.
      When: On the server of a federation, once a round, with the size of each client's data; clients may send int8.
      Badly with: Clients of different initial weights or masks, whose signs mean other things; even splits, where 0 counts as
        +1.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> clients = [jnp.array([1, -1, 1], jnp.int8), jnp.array([-1, -1, -1], jnp.int8)]
      >>> rj.weights.aggregate_signs(clients, [30, 10]).tolist()
      [1, -1, 1]

    References:
      Vallapuram et al., HideNseek: Federated Lottery Ticket via Server-side Pruning and Sign Supermask, 2022, arXiv 2206.04385,
      of which only the abstract was at hand: the weighted vote is reconstructed.
    """
    name = "weights.aggregate_signs"
    if not isinstance(sign_list, list | tuple) or not sign_list:
        checks.fail(name, "sign_list", "a list with one tree for each client", sign_list)
    for tree in sign_list[1:]:
        checks.same_structure(name, "sign_list", tree, sign_list[0], "that of the first client")
    sizes = checks.array(name, "counts", counts, shape=(len(sign_list),))
    if not isinstance(counts, jax.Array) and not (np.isfinite(np.asarray(counts)).all() and (np.asarray(counts) >= 0).all()):
        checks.fail(name, "counts", "finite numbers, at least 0", counts)
    sizes = sizes.astype(trees.accumulator(sizes))

    def leaf(*clients: Any) -> Array:
        votes = sum((n * jnp.where(jnp.asarray(s) < 0, -1, 1) for n, s in zip(sizes, clients, strict=True)), 0)
        return jnp.where(votes < 0, -1, 1).astype(jnp.asarray(clients[0]).dtype)

    return jax.tree.map(leaf, *sign_list)


def _check_mask(name: str, mask: PyTree, weights: PyTree) -> None:
    """A tree like the weights whose leaves are of their shapes or scalars."""
    structure: Any = jax.tree.structure(weights)
    if jax.tree.structure(mask) != structure:
        checks.same_structure(name, "mask", mask, weights, "weights")
    for m, w in zip(jax.tree.leaves(mask), jax.tree.leaves(weights), strict=True):
        if jnp.shape(m) not in ((), jnp.shape(w)):
            checks.fail(name, "mask", f"of shape {list(jnp.shape(w))} as in weights, or a scalar", m)
