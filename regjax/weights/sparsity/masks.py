"""Masks of weights: which entries stay. By score, in exact number, over each leaf, over all together, or by its shape.

A mask has the structure of the parameters: a boolean array of the leaf's shape (True = kept) for each chosen leaf, a single
True for every other one.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, sharding, trees
from regjax.core.selection import largest
from regjax.core.stacks import map_stacked
from regjax.core.types import Array, PyTree, Strength, Where

DISTRIBUTIONS = ("uniform", "global", "erk")


def apply_mask(params: PyTree, mask: PyTree) -> PyTree:
    r"""Sets the weights outside a mask to 0.

    Formula:
      .. math:: w_i \leftarrow w_i \text{ where } mask_i, \text{ else } 0

    Args:
      params: a parameter tree.
      mask: a tree of the same structure, or a prefix of it: booleans of a leaf's shape, True where a weight stays, or one for
        a whole leaf or subtree.

    Returns:
      The tree with exact zeros outside the mask, in the dtypes of ``params``; the gradient is 0 there too. Leaves that are
      no floats pass.

    Raises:
      ValueError: if ``mask`` has another structure, or a leaf of another shape or dtype.

    Cost:
      One pass over the weights.
      XLA at 16 times [512, 512]: at most 0.55 times the FLOPs and 0.99 times the bytes of a copy of its arguments, and 0 times
      its memory more.

    Use:
      Part of: `topk_mask`, `global_magnitude_mask`, `saliency_mask`.
      When: For a copy to evaluate, or in the forward pass, where outside the mask gradients are 0. To train on, `fixed_mask`
        wraps the optimiser and needs no change of the loss.
      Badly with: Optimisers with decoupled decay or momentum on the unmasked parameters, which still move; harmless for the
        masked model, not for stored weights.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> params = {"kernel": jnp.array([[3.0, -1.0], [2.0, -0.5]]), "bias": jnp.ones(2)}
      >>> mask = rj.weights.global_magnitude_mask(params, sparsity=0.5)
      >>> rj.weights.apply_mask(params, mask)["kernel"].tolist()
      [[3.0, 0.0], [2.0, 0.0]]

    References:
      Han et al., Learning Both Weights and Connections for Efficient Neural Networks, 2015, arXiv 1506.02626.
    """
    mask = fitting_mask("weights.apply_mask", mask, params)
    return jax.tree.map(lambda p, m: choose(m, p, jnp.zeros_like(p)) if trees.is_float(p) else p, params, mask)


def density(mask: PyTree) -> Array:
    r"""The share of weights that a mask keeps, among the leaves that it chooses from.

    Formula:
      .. math:: density = \frac{kept}{entries}, \quad sparsity = 1 - density

    Args:
      mask: a mask tree. Single values, which stand for leaves that were not chosen, do not count.

    Returns:
      A scalar in [0, 1], float32; 1 where nothing was chosen.

    Raises:
      ValueError: if a leaf is not boolean.

    Cost:
      One pass over the mask.
      XLA at 8 times [512, 512]: at most 2.3 times the FLOPs and 5 times the bytes of a copy of its arguments, and 2.2 times its
      memory more.

    Use:
      Part of: `topk_mask`, `global_magnitude_mask`, `prune_to_performance`.
      When: To report what a mask really keeps; leaves that were not chosen, such as biases, do not count.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> mask = rj.weights.topk_mask({"kernel": jnp.arange(8.0).reshape(2, 4), "bias": jnp.ones(4)}, sparsity=0.75)
      >>> float(rj.weights.density(mask))
      0.25

    References:
      Gale et al., The State of Sparsity in Deep Neural Networks, 2019, arXiv 1902.09574.
    """
    chosen = [jnp.asarray(m) for m in jax.tree.leaves(mask) if jnp.ndim(m)]
    for m in chosen:
        if m.dtype != jnp.bool_:
            checks.fail("weights.density", "mask", "a tree of boolean arrays", m)
    size = sum(m.size for m in chosen)
    kept = sum((jnp.sum(m, dtype=jnp.int32).astype(jnp.float32) for m in chosen), jnp.zeros((), jnp.float32))
    return kept / size if size else jnp.ones((), jnp.float32)


def topk_mask(
    scores: PyTree, *, sparsity: Strength, distribution: str = "uniform", normalize: bool = False, where: Where = None
) -> PyTree:
    r"""The mask of the entries with the largest scores, in exact number.

    Formula:
      Of n entries :math:`\max(1, round(n (1 - s)))` are kept, halves rounded to even; of equal scores the earlier. n and s are
      those of each leaf (``"uniform"``, ``"erk"``) or of all together (``"global"``). ERK, over the leaves l:

      .. math:: 1 - s_l = \min\left(1, \; \epsilon \frac{\sum shape_l}{\prod shape_l}\right), \quad
                \sum_l (1 - s_l) n_l = \sum_l (n_l - \lfloor s \, n_l \rfloor)

      which solves for :math:`\epsilon` and leaves small layers denser than large ones.

    Args:
      scores: a tree of scores of the weights, of the structure of the parameters: magnitudes, ``|w g|``, random numbers.
      sparsity: s in [0, 1], the share to leave out; a number or a traced scalar. 0 keeps all. The counts of a traced one are
        computed in float32, those of a number exactly.
      distribution: ``"uniform"`` (default): the same sparsity for each leaf; ``"global"``: one threshold over all; ``"erk"``:
        the sparsities of Erdős–Rényi graphs.
      normalize: whether ``"global"`` first divides the scores of each leaf by their l2 norm; default False.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans.

    Returns:
      A mask tree: booleans of the leaf's shape for each chosen leaf, a single True for each other one.

    Raises:
      ValueError: if ``sparsity`` lies outside [0, 1], an option is unknown, or ``where`` chooses a leaf that is no float.

    Cost:
      About ``32 + log2(n)`` passes over the scores: the threshold is found by counting, without a sort, and on a mesh only
      counts cross the devices. XLA counts the bodies of the loops once.
      XLA at 8 times [512, 512]: at most 91 times the FLOPs and 14 times the bytes of a copy of its arguments, and 1.9 times its
      memory more.

    Use:
      For: sparsity budget.
      When: An exact number of weights by any score, uniform per leaf, over all, or by ERK. Plain magnitude is the default to
        beat: in gradual pruning ``|w g|`` did worse on the digits, and ERK or global no better than uniform within noise.
      Not when: Masks must be learnt (`topk_supermask` has a gradient, this is a constant) or structured for hardware
        (`nm_mask`, `structured_removal_penalty`).
      Badly with: Scores of one noisy batch; ``global`` over scores of different layer scale without ``normalize``; weights that
        go on training unmasked: use `fixed_mask` or `prune`.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.weights.topk_mask({"kernel": jnp.array([[3.0, 1.0, 2.0, 1.0]])}, sparsity=0.25)["kernel"].tolist()
      [[True, True, True, False]]

    References:
      Lee et al., JaxPruner: A Concise Library for Sparsity Research, 2023, arXiv 2304.14082, whose counts and ERK these are;
      there ``"global"`` normalises by default. ERK: Evci et al., Rigging the Lottery: Making All Tickets Winners, 2020, arXiv
      1911.11134, from Mocanu et al., Scalable Training of Artificial Neural Networks with Adaptive Sparse Connectivity Inspired
      by Network Science, 2018, arXiv 1707.04780.
    """
    name = "weights.topk_mask"
    checks.number(name, "sparsity", sparsity, low=0.0, high=1.0)
    checks.choice(name, "distribution", distribution, DISTRIBUTIONS)
    checks.boolean(name, "normalize", normalize)
    chosen = trees.select(name, scores, where)
    shapes = [jnp.shape(leaf) for leaf in chosen_leaves(name, scores, chosen)]
    return mask_by_counts(name, scores, chosen, kept_counts(shapes, sparsity, distribution), normalize)


def global_magnitude_mask(params: PyTree, *, sparsity: Strength = 0.1, normalize: bool = False, where: Where = None) -> PyTree:
    r"""The mask of the largest weights of all leaves together.

    Formula:
      `topk_mask` of ``|w|`` with ``distribution="global"``.

    Args:
      params: a parameter tree.
      sparsity: the share to leave out, in [0, 1], default 0.1; a number or a traced scalar. 0 keeps all.
      normalize: whether the weights of each leaf are first divided by their l2 norm; default False.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans.

    Returns:
      A mask tree, for `apply_mask`.

    Raises:
      ValueError: if ``sparsity`` lies outside [0, 1], or ``where`` chooses a leaf that is no float.

    Cost:
      About ``32 + log2(n)`` passes over the weights, without a sort. XLA counts the bodies of the loops once.
      XLA at 8 times [512, 512]: at most 39 times the FLOPs and 9.8 times the bytes of a copy of its arguments, and 2.2 times
      its memory more.

    Use:
      For: sparsity budget, unlearning.
      When: A one-shot cut of a trained network, mild without fine-tuning or high with training after it under `fixed_mask`; the
        prune-first step of sparse unlearning.
      Not when: High sparsity: `prune` over time was far better on the digits, and `hypersparse_penalty` before the cut too.
        That global beats uniform selection was not shown.
      Badly with: Kernels before normalisations, whose sizes say nothing across layers: use ``normalize=True``, or a layer may
        be emptied. Weight decay unequal between leaves shifts the cut between them.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> params = {"a": {"kernel": jnp.array([[0.1, 5.0]])}, "b": {"kernel": jnp.array([[2.0, -3.0]])}}
      >>> mask = rj.weights.global_magnitude_mask(params, sparsity=0.5)
      >>> mask["a"]["kernel"].tolist(), mask["b"]["kernel"].tolist()
      ([[False, True]], [[False, True]])

    References:
      Prasetyo et al., Sparse then Prune: Toward Efficient Vision Transformers, 2023, arXiv 2307.11988: one-shot at 10%, with
      the scales of normalisation layers among the weights (here ``where`` may name them), after training with
      `attention_log_penalty`.
    """
    name = "weights.global_magnitude_mask"
    checks.number(name, "sparsity", sparsity, low=0.0, high=1.0)
    checks.boolean(name, "normalize", normalize)
    chosen = trees.select(name, params, where)
    shapes = [jnp.shape(leaf) for leaf in chosen_leaves(name, params, chosen)]
    return mask_by_counts(name, magnitudes(params, chosen), chosen, kept_counts(shapes, sparsity, "global"), normalize)


# The parts that every sparsifier shares.


def chosen_leaves(function: str, tree: PyTree, chosen: PyTree) -> list[Array]:
    """The leaves that a tree of booleans chooses, which have to be floating."""
    leaves = [leaf for leaf, use in zip(jax.tree.leaves(tree), jax.tree.leaves(chosen), strict=True) if use]
    for leaf in leaves:
        if not trees.is_float(leaf):
            checks.fail(function, "where", "a choice of floating-point leaves", leaf)
    return leaves


def magnitudes(params: PyTree, chosen: PyTree) -> PyTree:
    """The absolute values of the chosen leaves, as scores."""
    return jax.tree.map(lambda p, use: jnp.abs(p) if use and trees.is_float(p) else p, params, chosen)


def full_mask(params: PyTree, chosen: PyTree) -> PyTree:
    """The mask that keeps all, sharded as the parameters are."""
    return jax.tree.map(lambda p, use: jnp.ones_like(p, bool) if use else jnp.ones((), bool), params, chosen)


def map_mask(fn: Any, tree: PyTree, chosen: PyTree) -> PyTree:
    """``fn(leaf)`` as the mask of each chosen leaf, a single True for each other one."""
    return jax.tree.map(lambda leaf, use: fn(leaf) if use else jnp.ones((), bool), tree, chosen)


def fitting_mask(function: str, mask: PyTree, params: PyTree) -> PyTree:
    """A mask of the structure of the parameters, from one that may be a prefix; refuses other shapes and dtypes."""

    def leaf(m: Any, p: Any) -> Array:
        fits = jnp.result_type(m) == jnp.bool_ and jnp.shape(m) in ((), jnp.shape(p))
        if not fits and trees.is_float(p):
            checks.fail(function, "mask", f"booleans of shape {list(jnp.shape(p))}, or one for the whole leaf", m)
        return jnp.asarray(m)

    try:
        return jax.tree.map(lambda m, subtree: jax.tree.map(lambda p: leaf(m, p), subtree), mask, params)
    except ValueError as error:
        if str(error).startswith("regjax."):
            raise
        text = checks._Verbatim(str(jax.tree.structure(mask))[:120])
        checks.fail(function, "mask", "a tree of booleans of the structure of the parameters, or a prefix of it", text)


def check_mask(function: str, mask: PyTree, params: PyTree) -> None:
    """Refuses a mask whose structure, shapes or dtypes are not those of the parameters."""
    structure: Any = jax.tree.structure(params)
    if jax.tree.structure(mask) != structure:
        text = checks._Verbatim(str(jax.tree.structure(mask))[:120])
        checks.fail(function, "mask", "a tree of booleans of the structure of the parameters", text)
    fitting_mask(function, mask, params)


def choose(mask: Array, inside: Array, outside: Array) -> Array:
    """One array inside a mask and another outside; the mask may be a single value, and all is sharded as the first is."""
    mask = sharding.placed_like(mask, inside) if jnp.ndim(mask) else mask
    return jax.lax.select(mask, inside, sharding.placed_like(outside, inside))


def kept_counts(shapes: Sequence[tuple[int, ...]], sparsity: Any, distribution: str, share: Any = 1.0) -> list[Any]:
    """How many entries stay: one number for each leaf, or a single one for all; ``share`` scales the sparsity of each."""
    sizes = [int(np.prod(shape)) for shape in shapes]
    if distribution == "global":
        return [kept_count(sum(sizes), share * sparsity)]
    each = erk_sparsities(shapes, sparsity) if distribution == "erk" else [sparsity] * len(sizes)
    return [kept_count(n, share * s) for n, s in zip(sizes, each, strict=True)]


def kept_count(size: int, sparsity: Any) -> Any:
    """``max(1, round(size * (1 - sparsity)))``, halves to even: a Python integer for a number, else an int32 scalar."""
    if isinstance(sparsity, jax.Array):
        dtype = trees.accumulator(sparsity)
        count = jnp.round(size * (1 - sparsity.astype(dtype))).astype(jnp.int32)
        return jnp.maximum(count, 1)
    return max(1, round(size * (1 - float(sparsity))))


def erk_sparsities(shapes: Sequence[tuple[int, ...]], sparsity: Any) -> list[Any]:
    """The sparsity of each leaf by ERK; a leaf that would have to keep more than it has is dense, the largest first."""
    traced = isinstance(sparsity, jax.Array)
    xp: Any = jnp if traced else np
    dtype = trees.accumulator(sparsity) if traced else np.float64
    s = sparsity.astype(dtype) if traced else float(sparsity)
    sizes = xp.asarray([np.prod(shape) for shape in shapes], dtype)
    raw = xp.asarray([sum(shape) / np.prod(shape) for shape in shapes], dtype)
    removed = xp.floor(s * sizes)

    def scale(dense: Any) -> Any:
        budget = xp.sum(xp.where(dense, 0, sizes - removed)) - xp.sum(xp.where(dense, removed, 0))
        total = xp.sum(xp.where(dense, 0, raw * sizes))
        return xp.where(total > 0, budget / xp.where(total > 0, total, 1), 0)

    def fill(_: Any, dense: Any) -> Any:
        top = xp.max(xp.where(dense, 0, raw))
        return dense | ((raw == top) & (scale(dense) * top > 1))

    dense = xp.zeros(len(shapes), bool)
    if traced and len(shapes):
        dense = jax.lax.fori_loop(0, len(shapes), fill, dense)
    elif len(shapes):
        for i in range(len(shapes)):
            dense = fill(i, dense)
    found = xp.where(dense, 0, 1 - scale(dense) * raw) if len(shapes) else []
    return [x if traced else float(x) for x in found]


def mask_by_counts(function: str, scores: PyTree, chosen: PyTree, counts: Sequence[Any], normalize: bool = False) -> PyTree:
    """The mask of the largest scores: so many in each chosen leaf, or one count for all of them together."""
    leaves = [jnp.asarray(leaf) for leaf in chosen_leaves(function, scores, chosen)]
    if len(counts) == 1 and len(leaves) != 1:
        if normalize:
            leaves = [_normalized(leaf) for leaf in leaves]
        found = largest(leaves, counts[0]) if leaves else []
    else:
        found = map_stacked(
            jax.vmap(lambda x, k: largest([x], k)[0]), leaves, [jnp.asarray(count, jnp.int32) for count in counts]
        )
    new = iter([sharding.placed_like(m, leaf) for m, leaf in zip(found, leaves, strict=True)])
    return jax.tree.map(lambda use: next(new) if use else jnp.ones((), bool), chosen)


def _normalized(score: Array) -> Array:
    score = score.astype(trees.accumulator(score))
    return score / (trees.safe_norm(score) + 1e-8)
