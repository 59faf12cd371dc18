"""Irrelevant weights: those that the loss does not feel decay most, and what they leave is pruned to a given performance."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, selection, trees
from regjax.core.types import Array, PyTree, Strength, Where
from regjax.weights.sparsity.masks import apply_mask, chosen_leaves, map_mask

GATES = ("exp", "hinge")


def irrelevance_penalty(
    params: PyTree, grads: PyTree, *, gradient_scale: Strength = 1.0, gate: str = "exp", where: Where = None
) -> Array:
    r"""Half the sum of squared weights, each counted the less the more the loss feels it.

    Formula:
      .. math:: \frac{1}{2} \sum_i I_i w_i^2, \quad I_i = \exp\left(-\left|c \, \partial L / \partial w_i\right|\right)

      or :math:`I_i = \max(0, 1 - |c \, \partial L / \partial w_i|)` with ``gate="hinge"``. I is a constant, so the gradient is
      ``I w``: full weight decay without a gradient, almost none with a large one.

    Args:
      params: a parameter tree.
      grads: the gradient of the loss alone, a tree of the same structure. Mean losses have entries near 1e-3, at which I is
        nearly 1 and this is plain decay: then set ``gradient_scale``.
      gradient_scale: c, at least 0, default 1 as in the paper; a number or a traced scalar. One over the median of ``|grads|``
        parts the weights; 0 is `l2`.
      gate: ``"exp"`` (default) or ``"hinge"``, the earlier rule, by which weights with a large gradient do not decay at all.
      where: which leaves: None (kernels and embeddings, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of
        booleans.

    Returns:
      A scalar in float32 or better. No gradient flows to ``grads``.

    Raises:
      ValueError: if ``grads`` has another structure or other shapes, ``gradient_scale`` is negative or not finite, ``gate`` is
        misspelt, or ``where`` is wrong.

    Cost:
      One pass over weights and gradients each way; no forward pass. `regjax.gradients.irrelevance_decay` needs no gradient
      but the one that it gets.
      XLA at 16 times [512, 512]: at most 5 times the FLOPs and 2 times the bytes of a copy of its arguments, and 0.14 times its
      memory more.

    Use:
      For: sparsity budget.
      When: Inside a loss, when gradients of the task are at hand from another pass; otherwise `irrelevance_decay`. Set
        ``gradient_scale`` to one over the median size: so scaled, more could be pruned than under plain decay.
      Not when: Against wrong labels: on noisy digits the decay form gained much less than `weights.l2`. With the default scale
        and a mean loss it is just l2.
      Badly with: Weight decay in the optimiser, which pulls the relevant weights too; gradients that contain this penalty;
        clipped or normalised gradients, whose size no longer says what the loss feels.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> params = {"kernel": jnp.array([[1.0, -2.0, 0.5]])}
      >>> grads = {"kernel": jnp.array([[0.0, jnp.log(2.0), -1.0]])}
      >>> round(float(rj.weights.irrelevance_penalty(params, grads)), 4)
      1.546

    References:
      Bonetta, Ribero and Cancelliere, Regularization-based Pruning of Irrelevant Weights in Deep Neural Architectures, 2022,
      arXiv 2204.04977; the exponential gate is reconstructed. The hinge: Tartaglione et al., Learning Sparse Neural Networks
      via Sensitivity-Driven Regularization, 2018, arXiv 1810.11764.
    """
    name = "weights.irrelevance_penalty"
    checks.number(name, "gradient_scale", gradient_scale, low=0.0)
    checks.choice(name, "gate", gate, GATES)
    checks.same_structure(name, "grads", grads, params, "the parameters")
    mask = trees.select(name, params, where)
    total = jnp.zeros((), jnp.float32)
    for w, g in zip(chosen_leaves(name, params, mask), chosen_leaves(name, grads, mask), strict=True):
        w = jnp.asarray(w).astype(trees.accumulator(w, g))
        total += jnp.sum(irrelevance(jax.lax.stop_gradient(jnp.asarray(g)), gradient_scale, gate, w.dtype) * jnp.square(w)) / 2
    return total


def prune_to_performance(
    params: PyTree,
    evaluate: Callable[[PyTree], Any],
    lower_bound: float,
    *,
    n_bisect: int = 12,
    where: Where = None,
) -> tuple[PyTree, PyTree, float]:
    r"""Prunes the smallest weights as far as a measured performance allows. On the host, around your own evaluation.

    Formula:
      .. math:: \max \{ T : performance(w_i [|w_i| \ge T]) \ge lower\_bound \}

      over the magnitudes T of the weights, one for all chosen leaves, by bisection over how many weights lie below T. After it,
      train on under the mask with `regjax.gradients.irrelevance_decay`, prune again, and end when the mask no longer thins.

    Args:
      params: a parameter tree, concrete.
      evaluate: ``evaluate(params) -> number``, higher is better: such as the accuracy on validation data; it is called with
        pruned copies, and is worth a ``jax.jit`` of its own.
      lower_bound: the least performance, a finite number.
      n_bisect: how many copies are measured, at least 1, default 12: the share is found to ``2 ** -n_bisect``.
      where: which leaves: None (kernels and embeddings, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of
        booleans.

    Returns:
      ``(params, mask, threshold)``: the pruned weights, a mask tree (False where a weight is 0, now or before), and T as a
      float. T is 0, and nothing changes, where no copy was good enough. At least one weight stays. Performance that does not
      fall steadily with T has several ends: one of them is found.

    Raises:
      ValueError: if ``params`` is traced, ``evaluate`` is no function or returns no finite number, ``lower_bound`` is not
        finite, ``n_bisect`` is below 1, or ``where`` is wrong.

    Cost:
      ``n_bisect`` evaluations, and 32 counting passes over the weights for each; compiled once.

    Use:
      For: sparsity budget.
      When: The allowed loss of a metric is given and not the sparsity: between rounds of training with `irrelevance_decay`, or
        once at the end, on validation data.
      Not when: Inside a compiled step, or where one evaluation takes long. A noisy metric on few examples makes it stop at
        luck.
      Badly with: Layers of different scale, over which one threshold cuts unequally; the test set as the measure; training on
        without `fixed_mask`, which brings zeros back.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> params = {"kernel": jnp.array([[4.0, -1.0], [0.5, 2.0]])}
      >>> pruned, mask, threshold = rj.weights.prune_to_performance(params, lambda p: jnp.abs(p["kernel"]).sum(), 6.0)
      >>> pruned["kernel"].tolist(), threshold
      ([[4.0, 0.0], [0.0, 2.0]], 2.0)

    References:
      Bonetta, Ribero and Cancelliere, Regularization-based Pruning of Irrelevant Weights in Deep Neural Architectures, 2022,
      arXiv 2204.04977. The paper bisects the threshold itself; among the ranks the search does not depend on the scale of the
      weights or on single large ones. Details of its loop are reconstructed.
    """
    name = "weights.prune_to_performance"
    checks.function(name, "evaluate", evaluate)
    checks.number(name, "lower_bound", lower_bound)
    checks.integer(name, "n_bisect", n_bisect, low=1)
    chosen = trees.select(name, params, where)
    leaves = chosen_leaves(name, params, chosen)
    n = sum(jnp.size(leaf) for leaf in leaves)

    @jax.jit
    def pruned(params: PyTree, below: Array) -> tuple[PyTree, PyTree, Array]:
        found = chosen_leaves(name, params, chosen)
        wide = trees.accumulator(*found)
        size = lambda leaf: jnp.abs(leaf.astype(wide))
        threshold = selection.kth_largest([size(leaf) for leaf in found], n - below) if found else jnp.zeros(())
        mask = map_mask(lambda leaf: (size(leaf) >= threshold) & (leaf != 0), params, chosen)
        return apply_mask(params, mask), mask, jnp.where(below > 0, threshold, 0)

    low, high = 0, n
    best = None
    for _ in range(n_bisect):
        middle = (low + high) // 2
        if middle == low:
            break
        candidate = pruned(params, middle)
        checks.concrete(name, "params", candidate[2])
        got = _performance(name, evaluate(candidate[0]))
        if got >= lower_bound:
            low, best = middle, candidate
        else:
            high = middle
    if best is None:
        mask = map_mask(lambda leaf: leaf != 0, params, chosen)
        return params, mask, 0.0
    return best[0], best[1], float(best[2])


def irrelevance(gradient: Any, scale: Any, gate: str, dtype: Any) -> Array:
    """The share of its decay that a weight of this gradient gets."""
    size = trees.absolute(jnp.asarray(gradient).astype(dtype) * jnp.asarray(scale, dtype))
    return jnp.exp(-size) if gate == "exp" else jnp.maximum(1 - size, 0)


def _performance(name: str, value: Any) -> float:
    if jnp.ndim(value) or (not isinstance(value, (int, float, jax.Array)) and not hasattr(value, "dtype")):
        checks.fail(name, "evaluate", "a function that returns a number", value)
    got = float(value)
    if got != got:
        checks.fail(name, "evaluate", "a function that returns a number, and no NaN", got)
    return got
