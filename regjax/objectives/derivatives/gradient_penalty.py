"""Objectives made of derivatives of the loss: the gradient-norm penalty, and the blockwise full-batch gradient it is used in."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, trees
from regjax.core.types import Array, PyTree, Strength
from regjax.objectives.lift import (
    AxisName,
    BoundLoss,
    LossFn,
    attach_gradient,
    freeze,
    is_zero,
    lift,
    shift,
    strength_at,
)


def gradient_penalty(
    loss_fn: LossFn,
    *,
    coefficient: Strength,
    method: Literal["forward", "central", "exact"] = "forward",
    fd_step: float = 1e-2,
    extra_direction: PyTree = None,
    has_aux: bool = False,
    aux_from: Literal["clean", "perturbed"] = "clean",
    axis_name: AxisName = None,
) -> LossFn:
    r"""Adds half the squared norm of the loss's own gradient, which small-batch SGD adds implicitly.

    Formula:
      .. math:: f(w) + c \left( \tfrac12 \|g\|^2 + \langle g, sg(v) \rangle \right), \quad g = \nabla f(w)

      with the gradient :math:`g + c H d, \; d = g + v`. ``"exact"`` differentiates the above. ``"forward"`` and ``"central"``
      return its value too, with the product :math:`H d` from a difference of gradients, :math:`r = h / \|d\|`:

      .. math:: H d \approx \frac{\nabla f(w + r d) - g}{r} \quad or \quad
                \frac{\nabla f(w + \frac r2 d) - \nabla f(w - \frac r2 d)}{r}

    Args:
      loss_fn: ``loss_fn(params, *args, **kwargs) -> scalar``, or ``(scalar, aux)`` with ``has_aux=True``. The differences need
        float32 weights: in bfloat16 the step is rounded off.
      coefficient: c, at least 0; a number, or a schedule read at the keyword ``step`` of the call. 0 is ``loss_fn``. What SGD
        adds is c = lr / 2; the paper's runs use lr / 8.
      method: ``"forward"`` (default), ``"central"`` or ``"exact"``; all agree where the loss is quadratic.
      fd_step: h, the length of the difference, above 0, default 0.01; 1e-4 to 1e-2 serve in float32.
      extra_direction: v, a tree with the structure and shapes of ``params``, held constant: such as the gradient of the blocks
        so far, which couples the blocks of a large batch. None (default): 0.
      has_aux: whether ``loss_fn`` returns ``(scalar, aux)``.
      aux_from: the pass whose aux is returned: the one at ``params``, ``"clean"`` (default), or the one at :math:`w + r d`,
        ``"perturbed"``, which ``"exact"`` does not have.
      axis_name: the mapped axis (or axes) of `jax.shard_map` or ``vmap`` over which g is averaged; None (default): the penalty
        of each device's own gradient.

    Returns:
      A loss function with the signature of ``loss_fn`` that also accepts ``step``. Its value is the penalised loss; with the
      differences its gradient is not exactly the derivative of its value, and it must not be differentiated twice.

    Raises:
      ValueError: if a strength or option does not fit, ``loss_fn`` returns no scalar, ``extra_direction`` does not match
        ``params``, or a schedule is called without ``step``.

    Cost:
      ``"forward"``: one more forward and backward pass, 2.02 times the FLOPs. ``"central"``: two. ``"exact"``: a backward pass
      through the backward pass, about three times the FLOPs and twice the activations.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 2.3 times the FLOPs and 2.4 times the bytes of a plain training
      step, and 0.089 times its memory more.

    Use:
      For: sharp minima.
      When: Training on the full batch or very large ones, which lack the implicit penalty of small-batch SGD. Give it to
        `full_batch_gradient` as the transform, with a coefficient that follows the learning rate.
      Not when: Batches are small, as SGD has the term already: on the digits it did not help. 'exact' on a large model:
        differences cost less memory.
      Badly with: `sam` and `gradient_norm_penalty`, which penalise the same gradient. bfloat16 weights, in which the difference
        is rounded off. BatchNorm averages from the offset pass. A scheduled learning rate beside a constant coefficient.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> loss_fn = lambda w: (w[0] ** 2 + 4 * w[1] ** 2) / 2
      >>> penalised = rj.objectives.gradient_penalty(loss_fn, coefficient=0.1)
      >>> value, gradient = jax.value_and_grad(penalised)(jnp.array([1.0, 1.0]))
      >>> round(float(value), 4), [round(float(g), 4) for g in gradient]
      (3.35, [1.1, 5.6])

    References:
      Geiping et al., Stochastic Training is Not Necessary for Generalization, 2022, arXiv 2109.14119. The forms in the
      authors' code differ by a factor 2: lr / 4 times its block strength is the c of its finite differences, and the loss that
      it logs has twice their penalty. ``extra_direction`` stands for its accumulated gradient, here times c as g is.
    """
    name = "objectives.gradient_penalty"
    checks.strength(name, "coefficient", coefficient, low=0.0)
    checks.choice(name, "method", method, ("forward", "central", "exact"))
    checks.number(name, "fd_step", fd_step, low=0.0, open_low=True)
    checks.choice(name, "aux_from", aux_from, ("clean", "perturbed"))
    if method == "exact" and aux_from == "perturbed":
        checks.fail(name, "aux_from", "'clean' with method='exact', which has no perturbed pass", aux_from)
    checks.axis_name(name, axis_name)

    def objective(loss: BoundLoss, params: PyTree, step: Any) -> Any:
        scale = strength_at(name, "coefficient", coefficient, step, low=0.0)
        if extra_direction is not None:
            checks.same_structure(name, "extra_direction", extra_direction, params, "params")
        if is_zero(scale):
            return loss.result(*loss(params))
        clean = loss.live_gradient(params, axis_name) if method == "exact" else loss.gradient(params, axis_name)
        penalty = trees.sum_squares(clean.gradient) / 2
        along = clean.gradient
        if extra_direction is not None:
            extra = _directions(extra_direction, params)
            penalty = penalty + trees.vdot(clean.gradient, extra)
            along = [g + v for g, v in zip(clean.gradient, extra, strict=True)]
        value = clean.value + (jnp.asarray(scale, penalty.dtype) * penalty).astype(clean.value.dtype)
        if method == "exact":
            return loss.result(value, clean.aux)
        length = trees.global_norm(along)
        active = (length > 0) & (jnp.asarray(scale) != 0)
        ratio = jnp.asarray(scale, length.dtype) * length / fd_step  # c / r
        weight = jax.lax.stop_gradient(jnp.where(active, ratio, 0))
        unit = [v.astype(length.dtype) / jnp.where(length > 0, length, 1) for v in along]
        h = fd_step if method == "forward" else fd_step / 2
        ahead, aux = loss(shift(params, [h * v for v in unit], active))
        moving = weight * ahead
        kept = 1 - weight
        if method == "central":
            behind, _ = loss(shift(params, [-h * v for v in unit], active))
            moving, kept = moving - weight * behind, jnp.ones_like(weight)
        # g is known: it is attached rather than differentiated for once more. By the other arguments the loss at w is an
        # ordinary term, whose value the compiler shares with the pass above.
        here = attach_gradient(value, [kept * g for g in clean.gradient], trees.float_leaves(params))
        others = kept * loss(freeze(params))[0]
        value = here + _only_gradient(moving, value.dtype) + _only_gradient(others, value.dtype)
        return loss.result(value, clean.aux if aux_from == "clean" else aux)

    return lift(name, loss_fn, has_aux, objective)


def full_batch_gradient(
    loss_fn: LossFn,
    params: PyTree,
    *batches: PyTree,
    transform: Callable[[LossFn], LossFn] | None = None,
    has_aux: bool = False,
    step: Any = None,
) -> tuple[Any, PyTree]:
    r"""The mean loss and gradient over blocks of a large batch, one block in memory at a time.

    Formula:
      .. math:: m_i = m_{i-1} + \frac{\nabla T(f)(w; b_i) - m_{i-1}}{i}, \quad i = 1 \ldots N

      A loss transform T acts on each block: a penalty of the gradient of each block keeps what SGD has and the
      gradient of the whole batch lacks.

    Args:
      loss_fn: ``loss_fn(params, *blocks) -> scalar``, or ``(scalar, aux)`` with ``has_aux=True``.
      params: the parameters.
      *batches: the arguments after ``params``, trees of arrays ``[N, B, ...]`` with the blocks on axis 0. Random keys: one for
        each block, ``[N]``.
      transform: a loss transform of the loss alone (with its own ``has_aux``), such as
        ``functools.partial(gradient_penalty, coefficient=0.1)``; None (default): none.
      has_aux: whether ``loss_fn`` returns ``(scalar, aux)``.
      step: the step at which schedules in the transform are read.

    Returns:
      ``(loss, gradient)`` or ``((loss, aux), gradient)`` as `jax.value_and_grad` gives them, the aux with a leading axis of
      blocks. Leaves of ``params`` that are not floating get gradients of dtype float0.

    Raises:
      ValueError: if a function is none, there are no blocks, or the arrays of ``batches`` disagree on their number.

    Cost:
      Exactly the N passes; the memory of one, and one float32 copy of the gradient. XLA counts the body of the loop once.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.2 times the FLOPs and 1.5 times the bytes of a forward and
      backward pass, and 0.27 times its memory more.

    Use:
      For: compute budget, unstable training.
      When: A batch, or the whole set, is larger than memory and one exact gradient is wanted: for full-batch training,
        large-batch studies, or a reference gradient for a diagnostic.
      Not when: The batch fits, or it comes in several loader batches: ``optax.MultiSteps`` then adds them up.
      Badly with: Set losses (`coral`, `info_nce`) and BatchNorm, which see a block and not the batch. `mixup` inside the loss,
        which mixes within blocks. One key for all blocks. Blocks of unequal size, of which it takes the plain mean.

    Example:
      >>> import functools, jax.numpy as jnp, regjax as rj
      >>> loss_fn = lambda w, x: jnp.mean((w * x) ** 2) / 2
      >>> x = jnp.array([[1.0, 1.0], [2.0, 2.0]])
      >>> loss, gradient = rj.objectives.full_batch_gradient(loss_fn, jnp.float32(1.0), x)
      >>> float(loss), float(gradient)
      (1.25, 2.5)
      >>> penalised = functools.partial(rj.objectives.gradient_penalty, coefficient=0.1, method="exact")
      >>> round(float(rj.objectives.full_batch_gradient(loss_fn, jnp.float32(1.0), x, transform=penalised)[1]), 4)
      3.35

    References:
      Geiping et al., Stochastic Training is Not Necessary for Generalization, 2022, arXiv 2109.14119: the blocks' gradients
      are averaged after the penalty.
    """
    name = "objectives.full_batch_gradient"
    checks.function(name, "loss_fn", loss_fn)
    checks.boolean(name, "has_aux", has_aux)
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)}
    if len(lengths) != 1 or () in lengths or (0,) in lengths:
        expected = "arrays that share the number of blocks, at least 1, on axis 0"
        checks.fail(name, "batches", expected, [jnp.shape(leaf) for leaf in jax.tree.leaves(batches)])
    if transform is not None:
        loss_fn = checks.function(name, "transform", transform)(loss_fn)
    # Nothing is left of the identity but the step keyword and the checks of what the loss returns.
    bound = lift(name, loss_fn, has_aux, lambda loss, params, step: loss(params))
    leaves = trees.float_leaves(params)
    means = [jnp.zeros_like(leaf, dtype=trees.accumulator(leaf)) for leaf in leaves]

    def block(carry: tuple[Array, list[Array]], batch: tuple[PyTree, ...]) -> tuple[tuple[Array, list[Array]], Any]:
        count, means = carry
        at = lambda leaves: bound(trees.with_float_leaves(params, leaves), *batch, step=step)
        (value, aux), gradient = jax.value_and_grad(at, has_aux=True)(leaves)
        means = [m + (g.astype(m.dtype) - m) / (count + 1).astype(m.dtype) for m, g in zip(means, gradient, strict=True)]
        return (count + 1, means), (value, aux)

    (_, means), (values, aux) = jax.lax.scan(block, (jnp.zeros((), jnp.int32), means), batches)
    gradients = iter([mean.astype(leaf.dtype) for mean, leaf in zip(means, leaves, strict=True)])
    no_gradient = lambda leaf: np.zeros(jnp.shape(leaf), jax.dtypes.float0)
    gradient = jax.tree.map(lambda leaf: next(gradients) if trees.is_float(leaf) else no_gradient(leaf), params)
    value = jnp.mean(values)
    return ((value, aux) if has_aux else value), gradient


def _directions(direction: PyTree, params: PyTree) -> list[Array]:
    """The constant leaves of a direction that belong to floating parameters."""
    pairs = zip(jax.tree.leaves(direction), jax.tree.leaves(params), strict=True)
    return [jax.lax.stop_gradient(jnp.asarray(d)) for d, p in pairs if trees.is_float(p)]


def _only_gradient(x: Array, dtype: Any) -> Array:
    """0, with the gradient of ``x``."""
    return (x - jax.lax.stop_gradient(x)).astype(dtype)
