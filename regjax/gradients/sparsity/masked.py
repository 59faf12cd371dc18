"""The mechanism under every sparsifier: masks that live in the optimiser's state, and updates that hold weights at zero.

A new method is a function that makes a mask: `masked_optimizer` refreshes it before the inner optimiser's step, and makes the
updates end in exact zeros outside it.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, PyTree
from regjax.gradients.updates import is_absent, map_updates, require_params, require_transformation
from regjax.weights.sparsity import masks


class MaskState(NamedTuple):
    """The mask of the weights, the number of steps so far, and the state of the wrapped optimiser, if there is one."""

    mask: PyTree
    step: Array
    inner: PyTree


def masked_updates(mask: PyTree, updates: PyTree, params: PyTree) -> PyTree:
    """Updates after which the weights outside the mask are exactly 0; those inside pass bit for bit."""

    def leaf(u: Array, m: Array, p: Array) -> Array:
        if not trees.is_float(p):
            return u
        # p + (0 - p) is exactly 0 in the dtype of p or a wider one; in a narrower one it would not be.
        dtype = jnp.result_type(u, p)
        return masks.choose(m, sharding.placed_like(u, p).astype(dtype), -p.astype(dtype))

    return map_updates(leaf, updates, mask, params)


def frozen_updates(mask: PyTree, updates: PyTree, params: PyTree) -> PyTree:
    """Updates, or gradients, with 0 outside the mask: the weights there stay what they are."""

    def leaf(u: Array, m: Array, p: Array) -> Array:
        if not trees.is_float(u):
            return u
        # Gradients that a compiled step holds as constants have lost the sharding of the parameters, which the masks have.
        placed = sharding.placed_like(u, p)
        return masks.choose(m, placed, jnp.zeros_like(placed))

    return map_updates(leaf, updates, mask, params)


def refreshed(due: Array, make: Callable[[], PyTree], mask: PyTree) -> PyTree:
    """The new mask where a refresh is due, else the old one, without the cost of making it."""

    def new() -> PyTree:
        return jax.tree.map(lambda n, m: sharding.placed_like(n, m) if jnp.ndim(n) else n, make(), mask)

    return jax.lax.cond(due, new, lambda: mask)


def masked_optimizer(
    name: str,
    inner: optax.GradientTransformation,
    *,
    initial: Callable[[PyTree], PyTree],
    refresh: Callable[[PyTree, PyTree, PyTree, Array], PyTree] | None = None,
    sparse_gradients: bool = False,
    outside: str = "zero",
) -> optax.GradientTransformationExtraArgs:
    """Wraps an optimiser whose weights a mask in the state governs.

    Args:
      name: of the technique, for error messages.
      inner: the optimiser.
      initial: ``params -> mask``, the mask before the first step.
      refresh: ``(mask, params, grads, step) -> mask``, called with the raw gradient before the inner update; of what it does
        rarely, `refreshed` saves the cost. None keeps the first mask.
      sparse_gradients: whether the inner optimiser sees gradients of 0 outside the mask.
      outside: what weights outside the mask become: ``"zero"``, or ``"frozen"``: they stay as they are.
    """
    require_transformation(name, "inner", inner)
    checks.boolean(name, "sparse_gradients", sparse_gradients)
    inner = optax.with_extra_args_support(inner)

    def init(params: PyTree) -> MaskState:
        return MaskState(initial(params), jnp.zeros((), jnp.int32), inner.init(params))

    def update(updates: PyTree, state: MaskState, params: PyTree = None, **extra_args: Any) -> tuple[PyTree, MaskState]:
        require_params(name, params)
        mask = state.mask if refresh is None else refresh(state.mask, params, updates, state.step)
        # A weight without an update cannot move: it counts as kept.
        whole = lambda u, m: jax.tree.map(jnp.ones_like, m) if is_absent(u) else m
        mask = jax.tree.map(whole, updates, mask, is_leaf=is_absent)
        grads = frozen_updates(mask, updates, params) if sparse_gradients else updates
        moved, inner_state = inner.update(grads, state.inner, params, **extra_args)
        # Of counters among the parameters an optimiser may make floats: their updates pass.
        moved = map_updates(lambda u, new: new if trees.is_float(u) else u, updates, moved)
        moved = masked_updates(mask, moved, params) if outside == "zero" else frozen_updates(mask, moved, params)
        return moved, MaskState(mask, optax.safe_increment(state.step), inner_state)

    return optax.GradientTransformationExtraArgs(init, update)


def fixed_mask(
    inner: optax.GradientTransformation, mask: PyTree, *, sparse_gradients: bool = True
) -> optax.GradientTransformationExtraArgs:
    r"""Trains within a given mask: the fine-tuning after a pruning.

    Formula:
      .. math:: w_i \leftarrow w_i + u_i \text{ where } mask_i, \text{ else } 0, \quad u = inner(mask \odot g)

    Args:
      inner: the optimiser, with its learning rate.
      mask: a tree of the structure of the parameters, or a prefix of it: booleans of a leaf's shape, True where a weight
        stays, or one for a whole leaf or subtree; or a function from parameters to such a tree, called in ``init``.
      sparse_gradients: whether the optimiser sees gradients of 0 outside the mask, so that its norms and moments count the
        kept weights alone; default True.

    Returns:
      An optax optimiser whose ``update`` needs the parameters, the last of its chain: after ``optax.apply_updates`` the weights
      outside the mask are exactly 0. The mask is part of the state: `find_mask`.

    Raises:
      ValueError: if ``inner`` is no transformation, ``mask`` does not fit the parameters, or ``update`` gets no parameters.

    Cost:
      Two passes over the weights, and a byte for each.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.2 times the FLOPs and 1.2 times the bytes of a plain training
      step, and 0 times its memory more.

    Use:
      For: sparsity budget, fine-tuning.
      When: Training within a mask made elsewhere: after a cut by `topk_mask`, or at the start by `synaptic_saliency`, which was
        ahead of magnitude there on digits. The mask of another run comes by `find_mask`.
      Not when: The sparsity shall rise during training: `prune`. Weights outside the mask shall keep their values:
        `train_only`. Magnitudes of random weights choose the mask: at 95 % it was among the worst.
      Badly with: Anything after it in the chain, such as decay or noise. Moments carried over from dense training with
        ``sparse_gradients=False``. A second mask in its chain, which `find_mask` refuses. Adapters merged into the kernel
        afterwards.

    Example:
      >>> import jax.numpy as jnp, optax, regjax as rj
      >>> params, grads = {"kernel": jnp.array([[3.0, 0.5]])}, {"kernel": jnp.array([[1.0, 1.0]])}
      >>> tx = rj.gradients.fixed_mask(optax.sgd(0.1), rj.weights.topk_mask(params, sparsity=0.5))
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> [round(float(x), 4) for x in optax.apply_updates(params, updates)["kernel"][0]]
      [2.9, 0.0]

    References:
      Han et al., Learning Both Weights and Connections for Efficient Neural Networks, 2015, arXiv 1506.02626.
    """
    name = "gradients.fixed_mask"
    if not callable(mask) and not all(jnp.result_type(m) == jnp.bool_ for m in jax.tree.leaves(mask)):
        checks.fail(name, "mask", "a tree of booleans, or a function from parameters to one", mask)

    def initial(params: PyTree) -> PyTree:
        given = masks.fitting_mask(name, mask(params) if callable(mask) else mask, params)
        return jax.tree.map(lambda m: jnp.array(m, copy=True), given)  # a step may donate its state

    return masked_optimizer(name, inner, initial=initial, sparse_gradients=sparse_gradients)


def find_mask(opt_state: PyTree) -> PyTree:
    r"""The mask of the weights in the state of an optimiser, wherever its chain has it.

    Formula:
      .. math:: state \mapsto mask

    Args:
      opt_state: the state of an optimiser with one of `prune`, `nm_pruning`, `iss_p` or `fixed_mask` in it, inside any of
        optax's wrappers; of `train_only` and `sara` the mask says what is trained.

    Returns:
      A tree of booleans of the structure of the parameters, or, where ``optax.masked`` left subtrees out, a prefix of it with
      a single True in their place: for `regjax.weights.apply_mask`, `regjax.weights.density`, and `fixed_mask`.

    Raises:
      ValueError: if the state has no mask, or more than one (take the part of the state that has one).

    Cost:
      None.

    Use:
      Part of: `prune`, `nm_pruning`, `iss_p`, `fixed_mask`.
      When: Call it to report the sparsity, to export, to mask an average of weights, or to hand the mask on to `fixed_mask`.
      Badly with: `iss_p` while it still shrinks: weights outside the mask are not 0 yet. `train_only` and `sara`, whose mask
        says what is trained, not what is 0.

    Example:
      >>> import jax.numpy as jnp, optax, regjax as rj
      >>> params = {"kernel": jnp.array([[3.0, 0.5], [1.0, 2.0]])}
      >>> tx = optax.chain(optax.clip_by_global_norm(1.0), rj.gradients.prune(optax.adam(0.1), sparsity=0.5))
      >>> _, state = tx.update(params, tx.init(params), params)
      >>> rj.gradients.find_mask(state)["kernel"].tolist()
      [[True, False], [False, True]]

    References:
      The masks are those of Lee et al., JaxPruner: A Concise Library for Sparsity Research, 2023, arXiv 2304.14082, which keeps
      them in the optimiser's state too.
    """
    found = _mask_states(opt_state)
    if len(found) != 1:
        what = "an optimiser's state with one mask in it"
        checks.fail("gradients.find_mask", "opt_state", what, checks._Verbatim(f"one with {len(found)}"))
    left_out = lambda node: isinstance(node, optax.MaskedNode)
    return jax.tree.map(lambda m: jnp.ones((), bool) if left_out(m) else m, found[0].mask, is_leaf=left_out)


def _mask_states(tree: PyTree) -> list[MaskState]:
    """Every state with a mask in a tree, also one inside another."""
    whole = lambda node: isinstance(node, MaskState)
    found = [node for node in jax.tree.leaves(tree, is_leaf=whole) if whole(node)]
    return found + [inner for node in found for inner in _mask_states(tuple(node))]
