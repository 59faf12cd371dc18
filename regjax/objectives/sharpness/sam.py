"""Losses at adversarially perturbed weights: SAM with its adaptive and m-sharpness forms, and AMP."""

import dataclasses
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, trees
from regjax.core.sharding import explicit_sharding
from regjax.core.types import Array, PyTree, Strength, Where
from regjax.objectives.lift import (
    AxisName,
    BoundLoss,
    LossFn,
    Pass,
    is_zero,
    lift,
    shift,
    strength_at,
)
from regjax.objectives.sharpness._perturbations import AUX_FROM, accumulated, ascent, check_ascent, project, scales_of


def sam(
    loss_fn: LossFn,
    *,
    rho: Strength = 0.05,
    adaptive: bool | Literal["asam"] = False,
    eta: float = 0.01,
    scale_mask: Where = None,
    num_groups: int = 1,
    axis_name: AxisName = None,
    has_aux: bool = False,
    aux_from: Literal["clean", "perturbed"] = "clean",
    with_info: bool = False,
    split_key: bool = False,
    norm_eps: float = 1e-12,
) -> LossFn:
    r"""The loss at the worst nearby weights, so that training seeks flat minima: SAM, ASAM and m-sharpness.

    Formula:
      .. math:: f(w + sg(\epsilon)), \quad \epsilon = \rho \, \frac{T^2 g}{\|T g\|}, \quad g = \nabla f(w)

      The norm is over all leaves together. ``adaptive=False``: T = 1; ``True``: T = :math:`|w|`, ``"asam"``:
      T = :math:`|w| + \eta` on the leaves of ``scale_mask`` and 1 on the others. The perturbation is a constant, so that
      ``jax.grad(sam(loss_fn))`` is :math:`(\nabla f)(w + \epsilon)`: the SAM gradient, for any optimiser.
      With G groups (m-sharpness): the mean over groups of the above, each with the gradient of its own B / G examples.

    Args:
      loss_fn: ``loss_fn(params, *args, **kwargs) -> scalar``, or ``(scalar, aux)`` with ``has_aux=True``. Only floating leaves of
        ``params`` are perturbed. With bfloat16 weights a perturbation is mostly rounded off: keep float32 weights, cast inside.
      rho: the radius, at least 0, default 0.05; a number, or a schedule read at the keyword ``step`` of the call. Around 0.5 to
        2 for the adaptive forms. 0 is ``loss_fn`` (over the groups, where there are several).
      adaptive: False (default), True, or ``"asam"``.
      eta: what ``"asam"`` adds to the weights' sizes, at least 0, default 0.01.
      scale_mask: which leaves ``"asam"`` scales, as ``where`` elsewhere: None (default): all but those named bias, beta or b;
        ``"kernels"``, ``"all"``, a predicate ``(path, leaf) -> bool``, or a tree of booleans.
      num_groups: G, default 1. All array leaves with an axis among the arguments after ``params``, by position or keyword, are
        cut on axis 0 into G consecutive groups; scalars, single random keys (typed or ``uint32[2]``) and what is no array go to
        each group. The aux then has a new leading axis, one entry for each group. Of a batch sharded over devices no data
        moves where G is a multiple of their number.
      axis_name: the mapped axis (or axes) of `jax.shard_map` or ``vmap`` over which the inner gradient is averaged: one
        perturbation for the whole batch. None (default): each device perturbs by its own examples. Under plain ``jit`` the
        batch is always whole.
      has_aux: whether ``loss_fn`` returns ``(scalar, aux)``.
      aux_from: the pass whose aux (running statistics, metrics) is returned: ``"clean"`` (default) or ``"perturbed"``.
      with_info: adds ``{"clean_loss", "gradient_norm", "perturbation_norm"}``, means over the groups: the result is
        ``(loss, (aux, info))``, or ``(loss, info)`` without ``has_aux``.
      split_key: whether the second pass gets new typed random keys, folded in with 1. False (default): the same dropout masks in
        both passes.
      norm_eps: added to the norm, at least 0, default 1e-12. At a zero gradient the perturbation is 0 in any case.

    Returns:
      A loss function with the signature of ``loss_fn`` that also accepts ``step``. Its value is the perturbed loss.

    Raises:
      ValueError: if a strength or option does not fit, ``loss_fn`` returns no scalar, a schedule is called without ``step``, the
        batch does not divide into the groups, or ``split_key`` finds no typed key.

    Cost:
      One more forward and backward pass: 2.01 times the FLOPs, and one copy of the weights. Groups: one copy each.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 2.2 times the FLOPs and 2.1 times the bytes of a plain training
      step, and 0.01 times its memory more.

    Use:
      For: sharp minima, noisy labels, few labels.
      When: Training is long enough to fit the labels and may take twice the time. On noisy digits it helped, at a radius far
        above the default, while small radii did little. It also raised the rare classes of a long tail a little.
      Not when: The model underfits, or weights are bfloat16. Above its best radius training soon fails: twice that on the
        digits ended near chance. For a cheaper step take `look_sam` or `saf`.
      Badly with: BatchNorm averages taken from the perturbed pass. L2 inside the loss, which bends the perturbation: decay in
        the optimiser. Strong `dropout` and `weights.l2` together at the same radius, which ended badly on the digits.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> loss_fn = lambda w: (w[0] ** 2 + 4 * w[1] ** 2) / 2
      >>> gradient = jax.grad(rj.objectives.sam(loss_fn, rho=0.5))(jnp.array([1.0, 1.0]))
      >>> [round(float(g), 4) for g in gradient]
      [1.1213, 5.9403]

    References:
      Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, 2021, arXiv 2010.01412. Kwon et al.,
      ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural Networks, 2021, arXiv 2102.11600:
      ``"asam"`` with eta as in the paper, 0 in the example script; ``True`` is the form of a common PyTorch code, with all
      leaves scaled and no eta. The authors' JAX code divides by the norm alone, NaN at a zero gradient.
    """
    name = "objectives.sam"
    checks.strength(name, "rho", rho, low=0.0)
    check_ascent(name, adaptive, eta, norm_eps)
    checks.integer(name, "num_groups", num_groups, low=1)
    checks.axis_name(name, axis_name)
    checks.choice(name, "aux_from", aux_from, AUX_FROM)
    checks.boolean(name, "with_info", with_info)
    checks.boolean(name, "split_key", split_key)

    def perturbed(loss: BoundLoss, params: PyTree, radius: Any) -> tuple[Array, PyTree, PyTree]:
        if is_zero(radius) and not with_info:
            return *loss(params), {}
        clean = loss.gradient(params, axis_name)
        offset = ascent(clean.gradient, radius, norm_eps, scales_of(name, params, adaptive, eta, scale_mask))
        active = jnp.asarray(radius) != 0
        second = _with_new_keys(loss, active) if split_key else loss
        value, aux = second(shift(params, offset, active))
        info = {
            "clean_loss": clean.value,
            "gradient_norm": trees.global_norm(clean.gradient),
            "perturbation_norm": trees.global_norm(offset),
        }
        return value, clean.aux if aux_from == "clean" else aux, info if with_info else {}

    def objective(loss: BoundLoss, params: PyTree, step: Any) -> Any:
        radius = strength_at(name, "rho", rho, step, low=0.0)
        if num_groups == 1:
            value, aux, info = perturbed(loss, params, radius)
        else:
            values, aux, infos = _over_groups(loss, num_groups, lambda group: perturbed(group, params, radius))
            value, info = jax.tree.map(jnp.mean, (values, infos))
        if not with_info:
            return loss.result(value, aux)
        return value, (aux, info) if has_aux else info

    return lift(name, loss_fn, has_aux, objective)


def amp(
    loss_fn: LossFn,
    *,
    epsilon: Strength = 0.5,
    inner_lr: Strength = 1.0,
    inner_steps: int = 1,
    norm: Literal["leaf", "global"] = "leaf",
    has_aux: bool = False,
    aux_from: Literal["clean", "perturbed"] = "clean",
    clip_norm: float | None = None,
    axis_name: AxisName = None,
) -> LossFn:
    r"""The loss after a few steps of projected gradient ascent on the weights: Adversarial Model Perturbation.

    Formula:
      .. math:: f(w + sg(\delta_K)), \quad
                \delta_k = P_\epsilon(\delta_{k-1} + \lambda \nabla f(w + \delta_{k-1})), \quad \delta_0 = 0

      with :math:`P_\epsilon(v) = v \min(1, \epsilon / \|v\|)`. Unlike in SAM the gradient is not normalised: within the ball the
      perturbation is in proportion to it, and vanishes at a minimum.

    Args:
      loss_fn: ``loss_fn(params, *args, **kwargs) -> scalar``, or ``(scalar, aux)`` with ``has_aux=True``. Only floating leaves of
        ``params`` are perturbed, best in float32.
      epsilon: the radius of the ball, at least 0, default 0.5; a number, or a schedule read at the keyword ``step`` of the call.
        0 is ``loss_fn``.
      inner_lr: the step of the ascent, :math:`\lambda`, at least 0, default 1; a number or a schedule.
      inner_steps: K, default 1; the loop is unrolled. 0 is ``loss_fn``.
      norm: one ball for each leaf, ``"leaf"`` (default), or one over all leaves, ``"global"``.
      has_aux: whether ``loss_fn`` returns ``(scalar, aux)``.
      aux_from: the pass whose aux is returned: the first one, at ``params``, ``"clean"`` (default), or the last, ``"perturbed"``.
      clip_norm: the global norm to which each inner gradient is clipped first; None (default): no clipping.
      axis_name: the mapped axis (or axes) of `jax.shard_map` or ``vmap`` over which the inner gradients are averaged; None
        (default): each device perturbs by its own examples.

    Returns:
      A loss function with the signature of ``loss_fn`` that also accepts ``step``. Its value is the perturbed loss.

    Raises:
      ValueError: if a strength or option does not fit, ``loss_fn`` returns no scalar, or a schedule is called without ``step``.

    Cost:
      K more forward and backward passes: K + 1 times the FLOPs, and one copy of the weights.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 2.2 times the FLOPs and 2.1 times the bytes of a plain training
      step, and 0.01 times its memory more.

    Use:
      For: sharp minima, few labels, noisy labels.
      When: As `sam`, with a perturbation that shrinks with the gradient and fades at a minimum. On noisy digits it was well
        ahead of `sam`, best at the widest ball tried, above the default.
      Not when: The loss is a sum or carries another weight: the step follows its scale, and inner_lr must too. A perturbation
        of known length is wanted: `sam`.
      Badly with: `sam` and its kin, which perturb a second time. Rescaled losses (loss scaling in half precision). L2 inside
        the loss. BatchNorm averages from the perturbed pass.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> loss_fn = lambda w: (w[0] ** 2 + 4 * w[1] ** 2) / 2
      >>> gradient = jax.grad(rj.objectives.amp(loss_fn, epsilon=0.5, inner_steps=2))(jnp.array([1.0, 1.0]))
      >>> [round(float(g), 4) for g in gradient]
      [1.0949, 5.9636]

    References:
      Zheng et al., Regularizing Neural Networks via Adversarial Model Perturbation, 2021, arXiv 2010.04925. The paper has one
      ball for all parameters, the authors' code one for each tensor (the default here), and clips inner gradients to 50.
    """
    name = "objectives.amp"
    checks.strength(name, "epsilon", epsilon, low=0.0)
    checks.strength(name, "inner_lr", inner_lr, low=0.0)
    checks.integer(name, "inner_steps", inner_steps, low=0)
    checks.choice(name, "norm", norm, ("leaf", "global"))
    checks.choice(name, "aux_from", aux_from, AUX_FROM)
    if clip_norm is not None:
        checks.number(name, "clip_norm", clip_norm, low=0.0, open_low=True)
    checks.axis_name(name, axis_name)

    def objective(loss: BoundLoss, params: PyTree, step: Any) -> Any:
        radius = strength_at(name, "epsilon", epsilon, step, low=0.0)
        rate = strength_at(name, "inner_lr", inner_lr, step, low=0.0)
        if inner_steps == 0 or is_zero(radius) or is_zero(rate):
            return loss.result(*loss(params))
        active = (jnp.asarray(radius) != 0) & (jnp.asarray(rate) != 0)
        delta = [jnp.zeros_like(v) for v in accumulated(trees.float_leaves(params))]
        passes: list[Pass] = []
        for _ in range(inner_steps):
            passes.append(loss.gradient(shift(params, delta, active) if passes else params, axis_name))
            uphill = accumulated(passes[-1].gradient)
            if clip_norm is not None:
                uphill = project(uphill, clip_norm, "global")
            delta = [d + jnp.asarray(rate, g.dtype) * g for d, g in zip(delta, uphill, strict=True)]
            delta = project(delta, radius, norm)
        value, aux = loss(shift(params, delta, active))
        return loss.result(value, passes[0].aux if aux_from == "clean" else aux)

    return lift(name, loss_fn, has_aux, objective)


def _with_new_keys(loss: BoundLoss, active: Array) -> BoundLoss:
    """The loss with other typed random keys among its arguments, or the same ones at strength 0."""
    is_key = lambda leaf: isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    if not any(map(is_key, jax.tree.leaves((loss.args, loss.kwargs)))):
        checks.fail(loss.name, "split_key", "False where no argument holds a typed random key, jax.random.key(seed)", True)

    def renew(leaf: Any) -> Any:
        if not is_key(leaf):
            return leaf
        fold = lambda key: jax.random.fold_in(key, 1)
        for _ in range(leaf.ndim):
            fold = jax.vmap(fold)
        return jnp.where(active, fold(leaf), leaf)

    args, kwargs = jax.tree.map(renew, (loss.args, loss.kwargs))
    return dataclasses.replace(loss, args=args, kwargs=kwargs)


def _over_groups(loss: BoundLoss, num_groups: int, fn: Any) -> Any:
    """``fn`` of the loss bound to each group of the batch, stacked."""
    leaves, structure = jax.tree.flatten((loss.args, loss.kwargs))
    batched = [i for i, leaf in enumerate(leaves) if _has_batch_axis(leaf)]
    sizes = {leaves[i].shape[0] for i in batched}
    if len(sizes) != 1 or min(sizes) % num_groups or min(sizes) == 0:
        shapes = ", ".join(checks.describe(leaves[i]) for i in batched) or "no arrays"
        expected = "a divisor of the batch size, the length that axis 0 of every array argument shares"
        checks.fail(loss.name, "num_groups", f"{expected} (here: {shapes})", num_groups)

    def one(rows: list[Array]) -> Any:
        whole = list(leaves)
        for i, row in zip(batched, rows, strict=True):
            whole[i] = row
        args, kwargs = jax.tree.unflatten(structure, whole)
        return fn(dataclasses.replace(loss, args=args, kwargs=kwargs))

    return jax.vmap(one)([_split_rows(jnp.asarray(leaves[i]), num_groups) for i in batched])


def _has_batch_axis(leaf: Any) -> bool:
    is_array = isinstance(leaf, (jax.Array, np.ndarray)) and leaf.ndim >= 1
    return is_array and not (leaf.dtype == jnp.uint32 and leaf.shape == (2,))


def _split_rows(x: Array, num_groups: int) -> Array:
    """``[B, ...]`` as ``[G, B / G, ...]``, sharded over groups or else within them, as the lengths allow."""
    shape = (num_groups, x.shape[0] // num_groups, *x.shape[1:])
    sharding = explicit_sharding(x)
    if sharding is None or sharding.spec[0] is None:
        return jnp.reshape(x, shape)
    rows, rest = sharding.spec[0], sharding.spec[1:]
    shards = int(np.prod([sharding.mesh.shape[axis] for axis in (rows if isinstance(rows, tuple) else (rows,))]))
    outer = rows if shape[0] % shards == 0 else None
    inner = rows if outer is None and shape[1] % shards == 0 else None
    return jnp.reshape(x, shape, out_sharding=sharding.update(spec=jax.P(outer, inner, *rest)))
