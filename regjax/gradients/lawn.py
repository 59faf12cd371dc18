"""Training on spheres: after a few free epochs the norms of the kernels stay, so that the logits cannot grow."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from regjax.core import checks, trees
from regjax.core.types import Array, PyTree, Where
from regjax.gradients.updates import is_absent, require_params, require_transformation


class LawnState(NamedTuple):
    """The number of steps so far, the norm to keep of each constrained leaf (or of all of them, each time), the base's state."""

    step: Array
    norms: tuple[Array, ...]
    base: PyTree


def lawn(
    base: optax.GradientTransformation,
    *,
    free_steps: int | float,
    where: Where = None,
    project_gradient: bool = True,
    project_update: bool = True,
    renormalize: bool = True,
    granularity: str = "leaf",
) -> optax.GradientTransformationExtraArgs:
    r"""Logit attenuating weight normalization: an optimiser whose steps, after a free phase, keep the norms of the kernels.

    Formula:
      For steps below ``free_steps`` the base alone. At that step ``c = ||w||`` is stored; from then on, in this order,

      .. math:: g' = g - \frac{\langle w, g \rangle}{\langle w, w \rangle} w, \quad u = base(g'), \quad
                u' = u - \frac{\langle w, u \rangle}{\langle w, w \rangle} w, \quad w \leftarrow c \frac{w + u'}{\|w + u'\|}

      for each constrained leaf, or for all of them as one vector. The moments of the base are kept over the switch. With
      plain SGD the two projections are one.

    Args:
      base: the optimiser with its learning rate and without weight decay, such as ``optax.adam(schedule)``. This one is
        the outermost: nothing after it may change the update.
      free_steps: the length of the free phase, counted in updates of this transformation, at least 0; ``math.inf`` is the
        base alone. The authors train freely for a few epochs.
      where: which leaves are constrained, those of the part of the network whose scale does not matter: None (kernels,
        default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans.
      project_gradient: whether the base sees the gradient without its part along the weights, default True.
      project_update: whether the update loses its part along the weights, default True.
      renormalize: whether the weights return to the norm c after each step, default True. Without it an orthogonal step
        lets the norm grow.
      granularity: ``"leaf"`` (default) or ``"global"``: whose norm stays.

    Returns:
      An optax optimiser whose ``update`` needs the parameters; its state is a `LawnState`. It computes in float32 or
      better and keeps the dtypes of the base's updates: weights in bfloat16 keep their norms up to their own rounding.
      Leaves that are all 0 at the switch stay free.

    Raises:
      ValueError: if an argument is not of the stated form, or ``update`` gets no parameters.

    Cost:
      That of the base, and about 16 FLOPs for each constrained weight; no forward pass, no copy of the weights.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.2 times the FLOPs and 2 times the bytes of a plain training
      step, and 0.01 times its memory more.

    Use:
      For: exploding logits, poor calibration.
      When: Long training with adaptive optimisers or large batches, whose logits grow without end: after some free epochs norms
        stay. On digits it held logits at no loss of accuracy and calibrated well on the noisy comparison. Few free epochs did
        best.
      Not when: Wrong labels shall not be learned: it memorised nearly all. Fine-tuning of norms that are part of the knowledge.
        Weights still tiny at the switch, whose norm is then fixed.
      Badly with: Weight decay, inside or outside: the norm is set anyway. Anything after it in the chain. `weight_norm` and
        layers before a normalisation, whose norm does not matter. `prune` around it, which changes norms.

    Example:
      >>> import jax.numpy as jnp, optax, regjax as rj
      >>> tx = rj.gradients.lawn(optax.sgd(0.1), free_steps=0, where="all")
      >>> params, grads = {"kernel": jnp.array([3.0, 4.0])}, {"kernel": jnp.array([1.0, 0.0])}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> [round(float(x), 4) for x in optax.apply_updates(params, updates)["kernel"]]
      [2.9356, 4.0475]

    References:
      Gupta et al., Logit Attenuating Weight Normalization, 2021, arXiv 2108.05839. No code was released. The norm of the
      switch, the projection and the absence of weight decay are the method; whether the update is projected beside the
      gradient, and in which order, is uncertain, hence the flags.
    """
    name = "gradients.lawn"
    require_transformation(name, "base", base)
    if not isinstance(free_steps, jax.Array) and free_steps != math.inf:  # optax.inject_hyperparams makes an array of it
        checks.integer(name, "free_steps", free_steps, low=0)
    checks.boolean(name, "project_gradient", project_gradient)
    checks.boolean(name, "project_update", project_update)
    checks.boolean(name, "renormalize", renormalize)
    checks.choice(name, "granularity", granularity, ("leaf", "global"))
    inner = optax.with_extra_args_support(base)

    def init(params: PyTree) -> LawnState:
        leaves = [leaf for leaf in trees.selected(name, params, where) if trees.is_float(leaf)]
        norms = tuple(jnp.zeros((), trees.accumulator(leaf)) for leaf in leaves)
        return LawnState(jnp.zeros((), jnp.int32), norms, inner.init(params))

    def update(updates: PyTree, state: LawnState, params: PyTree = None, **extra_args: Any) -> tuple[PyTree, LawnState]:
        require_params(name, params)
        structure: Any = jax.tree.structure(updates, is_leaf=is_absent)
        leaves, chosen = (structure.flatten_up_to(tree) for tree in (params, trees.select(name, params, where)))
        indices = [i for i, p in enumerate(leaves) if not is_absent(p) and chosen[i] and trees.is_float(p)]
        ws = [jnp.asarray(leaves[i]).astype(trees.accumulator(leaves[i])) for i in indices]
        squares = _together(granularity, [jnp.sum(jnp.square(w)) for w in ws])

        begins = state.step == free_steps
        norms = tuple(
            jnp.where(begins, trees.safe_sqrt(square).astype(c.dtype), c) for square, c in zip(squares, state.norms, strict=True)
        )
        # Zeros have no direction to keep.
        held = [(state.step >= free_steps) & (c > 0) & (square > 0) for c, square in zip(norms, squares, strict=True)]

        def moved(tree: PyTree, fn: Callable[[list[Array]], list[Array]]) -> PyTree:
            """The tree with ``fn`` applied to the constrained leaves; updates that are not there count as 0 and pass."""
            flat = structure.flatten_up_to(tree)
            there = [not is_absent(flat[i]) for i in indices]
            wide = [
                jnp.asarray(flat[i]).astype(w.dtype) if t else jnp.zeros_like(w)
                for i, w, t in zip(indices, ws, there, strict=True)
            ]
            for i, new, t in zip(indices, fn(wide), there, strict=True):
                flat[i] = new.astype(jnp.asarray(flat[i]).dtype) if t else flat[i]
            return jax.tree.unflatten(structure, flat)

        def project(xs: list[Array]) -> list[Array]:
            along = _together(granularity, [jnp.sum(w * x) for w, x in zip(ws, xs, strict=True)])
            shares = [jnp.where(h, a / jnp.where(h, n, 1), 0) for h, a, n in zip(held, along, squares, strict=True)]
            return [x - share.astype(x.dtype) * w for x, share, w in zip(xs, shares, ws, strict=True)]

        def step(us: list[Array]) -> list[Array]:
            us = project(us) if project_update else us
            if not renormalize:
                return us
            reached = _together(granularity, [jnp.sum(jnp.square(w + u)) for w, u in zip(ws, us, strict=True)])
            # The update is s u + (s - 1) w for s = c / ||w + u||: exactly u where s is 1.
            out = []
            for h, c, square, u, w in zip(held, norms, reached, us, ws, strict=True):
                on = h & (square > 0)
                scale = jnp.where(on, c / trees.safe_sqrt(jnp.where(on, square, 1)), 1).astype(w.dtype)
                out.append(scale * u + (scale - 1) * w)
            return out

        if project_gradient:
            updates = moved(updates, project)
        updates, base_state = inner.update(updates, state.base, params, **extra_args)
        if project_update or renormalize:
            updates = moved(updates, step)
        return updates, LawnState(optax.safe_increment(state.step), norms, base_state)

    return optax.GradientTransformationExtraArgs(init, update)


def _together(granularity: str, values: list[Array]) -> list[Array]:
    """The values of the leaves, or the sum over all of them for each."""
    return values if granularity == "leaf" or not values else [jnp.asarray(sum(values))] * len(values)
