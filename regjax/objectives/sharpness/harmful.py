"""Training that makes later harmful training slow: Booster."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.strength import accepts
from regjax.core.types import Array, PyTree, Strength
from regjax.objectives.lift import (
    AxisName,
    BoundLoss,
    LossFn,
    attach_gradient,
    freeze,
    is_zero,
    scalar,
    shift,
    strength_at,
)
from regjax.objectives.sharpness._perturbations import ascent


def booster(
    loss_fn: LossFn,
    harmful_loss_fn: LossFn,
    *,
    weight: Strength = 5.0,
    step_size: Strength = 0.1,
    axis_name: AxisName = None,
    has_aux: bool = False,
    norm_eps: float = 1e-7,
) -> LossFn:
    r"""Attenuates harmful perturbation: keeps small what one step of harmful training would gain.

    Formula:
      .. math:: f(w) + \lambda \left( h(w) - h(w - s \, sg(u)) \right), \quad u = \frac{\nabla h(w)}{\|\nabla h(w)\|}

      with the loss h of a harmful batch, and the norm over all leaves. The step is a constant for the gradient,
      :math:`\nabla f(w) + \lambda (\nabla h(w) - (\nabla h)(w - s u))`.

    Args:
      loss_fn: ``f(params, batch, *args, **kwargs) -> scalar``, or ``(scalar, aux)`` with ``has_aux=True``. Only floating leaves
        of ``params`` are moved, best in float32.
      harmful_loss_fn: h, of the same form; often ``loss_fn`` itself. Its aux is dropped, so that harmful batches leave no trace
        in running statistics.
      weight: :math:`\lambda`, at least 0, default 5; a number, or a schedule read at the keyword ``step`` of the call. 0 is
        ``loss_fn``.
      step_size: s, the length of the harmful step, at least 0, default 0.1; a number or a schedule. 0 is ``loss_fn``.
      axis_name: the mapped axis (or axes) of `jax.shard_map` or ``vmap`` over which the harmful gradient is averaged; None
        (default): each device steps by its own examples.
      has_aux: whether both functions return ``(scalar, aux)``.
      norm_eps: added to the norm, at least 0, default 1e-7. At a zero gradient the step is 0 in any case.

    Returns:
      ``boosted(params, batch, harmful_batch, *args, step=None, **kwargs)``, a loss as ``loss_fn`` with one argument more; what
      follows the batches, such as a random key, goes to both functions, so that all passes have the same dropout masks. The
      aux is that of ``loss_fn``. It must not be differentiated twice.

    Raises:
      ValueError: if a strength or option does not fit, a function returns no scalar, or a schedule is called without ``step``.

    Cost:
      Two forward and backward passes of the harmful batch: 3.03 times the FLOPs where it is as large as the other. One copy
      of the weights.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 3.4 times the FLOPs and 3.2 times the bytes of a plain training
      step, and 0.36 times its memory more.

    Use:
      For: fine-tuning, forgetting.
      When: A model is published that others may fine-tune on harmful data, of which you have a sample. On digits a short
        training on wrong labels gained less afterwards, at little cost.
      Not when: There is no sample of the harm. The attacker trains long or at large steps: only what one step of step_size
        gains is held down. To remove what was learnt take `bounded_forgetting`.
      Badly with: BatchNorm averages that harmful batches enter. Other dropout masks in the two harmful passes, whose difference
        would be noise. Objectives that differentiate it twice, such as `gradient_penalty` by 'exact'.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> loss_fn = lambda w, x: jnp.sum(w**2) / 2
      >>> harmful = lambda w, x: w[0] ** 2
      >>> boosted = rj.objectives.booster(loss_fn, harmful, weight=5.0, step_size=0.1)
      >>> value, gradient = jax.value_and_grad(boosted)(jnp.array([1.0, 1.0]), None, None)
      >>> round(float(value), 4), [round(float(g), 4) for g in gradient]
      (1.95, [2.0, 1.0])

    References:
      Huang et al., Booster: Tackling Harmful Fine-tuning for Large Language Models via Attenuating Harmful Perturbation, 2024,
      arXiv 2409.01586. The authors' code has the same direction and returns f alone for logging. ``step_size`` is its
      ``alpha``: ``step`` is the training step everywhere here.
    """
    name = "objectives.booster"
    checks.function(name, "loss_fn", loss_fn)
    checks.function(name, "harmful_loss_fn", harmful_loss_fn)
    checks.strength(name, "weight", weight, low=0.0)
    checks.strength(name, "step_size", step_size, low=0.0)
    checks.axis_name(name, axis_name)
    checks.boolean(name, "has_aux", has_aux)
    checks.number(name, "norm_eps", norm_eps, low=0.0)

    def bound(fn: LossFn, has_aux: bool, args: tuple[Any, ...], step: Any, kwargs: dict[str, Any]) -> BoundLoss:
        given = {"step": step} if step is not None and accepts(fn, "step") else {}
        return BoundLoss(name, fn, has_aux, args, kwargs | given)

    @functools.wraps(harmful_loss_fn)
    def harmful_value(params: PyTree, *args: Any, **kwargs: Any) -> Array:
        out = harmful_loss_fn(params, *args, **kwargs)
        if has_aux and not (isinstance(out, tuple) and len(out) == 2):
            checks.fail(name, "harmful_loss_fn", "a function that returns (loss, aux) where has_aux=True", out)
        return scalar(name, "harmful_loss_fn", out[0] if has_aux else out, "(loss, aux) needs has_aux=True")

    def boosted(params: PyTree, batch: Any, harmful_batch: Any, *args: Any, step: Any = None, **kwargs: Any) -> Any:
        scale = strength_at(name, "weight", weight, step, low=0.0)
        length = strength_at(name, "step_size", step_size, step, low=0.0)
        loss = bound(loss_fn, has_aux, (batch, *args), step, kwargs)
        value, aux = loss(params)
        if is_zero(scale) or is_zero(length):
            return loss.result(value, aux)
        harmful = bound(harmful_value, False, (harmful_batch, *args), step, kwargs)
        gradient = harmful.gradient(params, axis_name).gradient
        active = (jnp.asarray(scale) != 0) & (jnp.asarray(length) != 0)
        after, _ = harmful(shift(params, [-v for v in ascent(gradient, length, norm_eps)], active))
        # The gradient at w is known: it is attached rather than differentiated for once more. By the other arguments h(w) is
        # an ordinary term, whose value the compiler shares with the pass above.
        before, _ = harmful(freeze(params))
        rate = jax.lax.stop_gradient(jnp.where(active, scale, 0).astype(before.dtype))
        known = [(rate * g).astype(g.dtype) for g in gradient]
        gain = rate * (before - after) + attach_gradient(jnp.zeros_like(before), known, trees.float_leaves(params))
        return loss.result(value + gain.astype(value.dtype), aux)

    return boosted
