"""Supermasks: which weights of a frozen network compute is learned through a score for each, and tasks keep to their own."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, selection, sharding, trees
from regjax.core.types import Array, Key, PyTree, Strength


def topk_supermask(scores: Any, *, density: Strength = 0.1) -> Array:
    r"""The mask of the largest scores of a layer, with the gradient of their absolute values.

    Formula:
      .. math:: m_i = [\, |s_i| \text{ is among the } n - \lfloor (1 - d) n \rfloor \text{ largest}\, ], \quad
        \frac{\partial m_i}{\partial s_i} := sign(s_i)

      The layer computes with ``w * topk_supermask(scores)``, w frozen: every score, of a masked weight too, gets the gradient
      ``g * w * sign(s)``. Of equal scores the earlier in flat order is kept.

    Args:
      scores: float, of the shape of a weight, n entries: one array for each layer. In a tree,
        ``jax.tree.map(topk_supermask, scores)``.
      density: d in [0, 1], the share of weights that is kept, a number or a traced scalar; default 0.1. 1 keeps all.

    Returns:
      The mask, 0 or 1, of the shape and dtype of ``scores``, with exactly that many ones.

    Raises:
      ValueError: if ``scores`` is not floating or ``density`` is outside [0, 1] or not finite.

    Cost:
      32 + log2(n) counting passes over the scores instead of a sort. XLA counts the bodies of the loops once.
      XLA at [512, 512]: at most 43 times the FLOPs and 12 times the bytes of a copy of its arguments, and 1.8 times its memory
      more.

    Use:
      For: forgetting, sparsity budget.
      When: Weights stay frozen and only a mask is stored per task, with `exclusive_mask` for tasks in turn. At 95 % sparsity it
        beat training after a magnitude pruning at the start.
      Not when: The weights may be trained: `prune` was better at every level of the sparsity study, most at 98 %.
      Badly with: Biases and affine normalisation, which are random in a frozen network: leave them out; weight decay on the
        scores, whose order alone counts; one learning rate for all densities: scores of dense masks wanted ten times that of
        sparse ones.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> scores = jnp.array([3.0, -1.0, 2.0, -0.5])
      >>> mask, pull_back = jax.vjp(lambda s: rj.weights.topk_supermask(s, density=0.5), scores)
      >>> mask.tolist(), pull_back(jnp.ones(4))[0].tolist()
      ([1.0, 0.0, 1.0, 0.0], [1.0, -1.0, 1.0, -1.0])

      In an NNX model, the kernels are multiplied in a functional call:

      >>> from flax import nnx
      >>> model = nnx.Sequential(nnx.Linear(4, 8, rngs=nnx.Rngs(0)), jax.nn.relu, nnx.Linear(8, 2, rngs=nnx.Rngs(1)))
      >>> graphdef, params = nnx.split(model, nnx.Param)
      >>> is_kernel = lambda w: w.ndim >= 2
      >>> init = lambda w: rj.weights.supermask_init(jax.random.key(0), w.shape) if is_kernel(w) else None
      >>> scores = jax.tree.map(init, params)
      >>> def apply(scores, x):
      ...     use = lambda s, w: w if s is None else w * rj.weights.topk_supermask(s, density=0.5)
      ...     return nnx.merge(graphdef, jax.tree.map(use, scores, params, is_leaf=lambda s: s is None))(x)
      >>> apply(scores, jnp.ones((3, 4))).shape
      (3, 2)

    References:
      Yadav and Bansal, Exclusive Supermask Subnetwork Training for Continual Learning, 2022, arXiv 2210.10209 (the authors'
      code). Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, 2020, arXiv 1911.13299. The count is exact:
      the authors' program, where ``(1 - 0.9) * 10`` rounds to just below 1, would keep all of ten weights at density 0.9.
    """
    name = "weights.topk_supermask"
    scores = checks.floating(name, "scores", scores)
    checks.number(name, "density", density, low=0.0, high=1.0)
    if not scores.size:
        return scores
    magnitude = trees.absolute(scores)
    (kept,) = selection.largest([magnitude], dense_count(density, scores.size))
    return straight_through(sharding.placed_like(kept, scores).astype(scores.dtype), magnitude)


def supermask_init(key: Key, shape: tuple[int, ...]) -> Array:
    r"""Initial scores of a layer for a supermask.

    Formula:
      .. math:: s \sim U(-b, b), \quad b = \frac{1}{\sqrt{fan\_in}}

      the Kaiming-uniform distribution with a = sqrt(5); a new draw for each task.

    Args:
      key: a random key.
      shape: of the kernel, two or more dimensions with the outputs last; the fan-in is the product of the others.

    Returns:
      float32 of that shape.

    Raises:
      ValueError: if ``shape`` is no tuple of two or more positive integers, or ``key`` is no key.

    Cost:
      One uniform for each weight, at the start.
      XLA at [512, 512]: at most 60 times the FLOPs and 8.3 times the bytes of a copy of its results, and 1.7 times its memory
      more.

    Use:
      Part of: `topk_supermask`.
      When: A new draw for the scores of each task, or those that `knn_transfer` recommends.

    Example:
      >>> import jax, regjax as rj
      >>> scores = rj.weights.supermask_init(jax.random.key(0), (3, 3, 4, 8))
      >>> scores.shape, bool(abs(scores).max() <= 1 / 6)
      ((3, 3, 4, 8), True)

    References:
      Yadav and Bansal, Exclusive Supermask Subnetwork Training for Continual Learning, 2022, arXiv 2210.10209 (the authors'
      code).
    """
    name = "weights.supermask_init"
    key, fan_in = checks.key(name, key), _fan_in(name, shape)
    bound = 1 / math.sqrt(fan_in)
    return jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def signed_constant_init(key: Key, shape: tuple[int, ...]) -> Array:
    r"""Frozen weights for a supermask: one magnitude in a layer, random signs.

    Formula:
      .. math:: w \in \left\{ -\sqrt{2 / fan\_in}, \sqrt{2 / fan\_in} \right\}

      with equal probability: the standard deviation of the Kaiming-normal distribution for ReLU.

    Args:
      key: a random key.
      shape: of the kernel, two or more dimensions with the outputs last; the fan-in is the product of the others.

    Returns:
      float32 of that shape.

    Raises:
      ValueError: if ``shape`` is no tuple of two or more positive integers, or ``key`` is no key.

    Cost:
      One random number for each weight, at the start.
      XLA at [512, 512]: at most 60 times the FLOPs and 8.3 times the bytes of a copy of its results, and 1.7 times its memory
      more.

    Use:
      Part of: `topk_supermask`.
      When: For the frozen weights under `topk_supermask`. With `sign_supermask` take weights of many sizes: over these a 0-1
        mask does as well as signs.
      Badly with: Ordinary training, where equal magnitudes bring nothing; low densities without dividing by the root of the
        density, as the variance of the activations falls.

    Example:
      >>> import jax, regjax as rj
      >>> abs(rj.weights.signed_constant_init(jax.random.key(0), (8, 2))).tolist()[0]
      [0.5, 0.5]

    References:
      Ramanujan et al., What's Hidden in a Randomly Weighted Neural Network?, 2020, arXiv 1911.13299; the weights in Yadav and
      Bansal, Exclusive Supermask Subnetwork Training for Continual Learning, 2022, arXiv 2210.10209.
    """
    name = "weights.signed_constant_init"
    key, fan_in = checks.key(name, key), _fan_in(name, shape)
    size = jnp.float32(math.sqrt(2 / fan_in))
    return jnp.where(jax.random.bernoulli(key, 0.5, shape), size, -size)


def exclusive_mask(mask: PyTree, previous_masks: Any) -> PyTree:
    r"""The weights of a mask that no earlier task uses: those that the new task may train.

    Formula:
      .. math:: m_t \wedge \neg (m_1 \vee \ldots \vee m_{t-1})

      Task t computes with all of its mask, and trains its exclusive part: ``gradients.train_only(optimizer, free)`` keeps all
      other weights bit for bit, weight decay and momentum included. So no earlier task changes.

    Args:
      mask: a tree of boolean arrays, or of arrays in which what is not 0 is kept, such as `topk_supermask` of each kernel.
      previous_masks: the masks of earlier tasks, a list of trees like ``mask`` (empty for the first task), or their running OR,
        one such tree.

    Returns:
      A tree of boolean arrays like ``mask``. Leaves that all masks keep whole, such as biases (True), train in the first task
      alone.

    Raises:
      ValueError: if a previous mask has another structure or other shapes than ``mask``.

    Cost:
      One pass over each mask; as a running OR over one.
      XLA at 24 times [512, 512]: at most 3 times the FLOPs and 0.74 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      For: forgetting.
      Part of: `topk_supermask`, `train_only`.
      When: Tasks that are named at test, none of which may change: old outputs stayed bit for bit on permuted digits, and
        training the free weights beat masks alone.
      Not when: The task is not told at test, or there are many tasks at high density: free weights run out.
      Badly with: Masks on gradients alone under weight decay or old momentum, which move the others: use `train_only`. Shared
        biases and batch statistics, which belong to the first task or need one set per task.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> first, second = {"kernel": jnp.array([[True, False, True]])}, {"kernel": jnp.array([[True, True, False]])}
      >>> rj.weights.exclusive_mask(second, [first])["kernel"].tolist()
      [[False, True, False]]
      >>> used = jax.tree.map(jnp.logical_or, first, second)  # the running OR for the third task
      >>> rj.weights.exclusive_mask({"kernel": jnp.array([[True, True, True]])}, used)["kernel"].tolist()
      [[False, False, False]]

    References:
      Yadav and Bansal, Exclusive Supermask Subnetwork Training for Continual Learning, 2022, arXiv 2210.10209. The authors mask
      the gradients alone, which suffices for Adam without weight decay.
    """
    name = "weights.exclusive_mask"
    structure: Any = jax.tree.structure(mask)
    several = isinstance(previous_masks, list | tuple) and jax.tree.structure(previous_masks) != structure
    previous = list(previous_masks) if several else [previous_masks]
    for tree in previous:
        checks.same_structure(name, "previous_masks", tree, mask, "mask")

    def leaf(mask: Any, *others: Any) -> Array:
        used = jnp.asarray(mask) != 0
        for other in others:
            used = used & (jnp.asarray(other) == 0)
        return used

    return jax.tree.map(leaf, mask, *previous)


def dense_count(density: Any, size: int) -> Any:
    """How many of ``size`` entries a density keeps: of a traced density, traced."""
    # The allowance makes 0.1 of 10 one: the exact product is a little below 9 or above.
    if isinstance(density, jax.Array):
        wide = density.astype(trees.accumulator(density))
        dropped = jnp.floor((1 - wide) * size + min(0.5, max(1e-3, 2e-7 * size)))
        return size - jnp.minimum(dropped.astype(jnp.int32), size)
    return size - math.floor((1 - float(density)) * size + min(0.5, 1e-9 * size))


@jax.custom_jvp
def straight_through(value: Array, like: Array) -> Array:
    """``value`` with the gradient of ``like``, of the same shape and dtype. Infinite scores have one too."""
    return value


@straight_through.defjvp
def _straight_through_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    return primals[0], tangents[1]


def _fan_in(name: str, shape: Any) -> int:
    if not isinstance(shape, tuple) or len(shape) < 2:
        checks.fail(name, "shape", "a tuple of two or more positive integers, the outputs last", shape)
    return math.prod([checks.integer(name, "shape", n, low=1) for n in shape][:-1])
