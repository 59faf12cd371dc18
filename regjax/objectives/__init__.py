"""Objectives: ``f(loss_fn, *, ...) -> loss_fn``, from ``loss_fn(params, *args) -> scalar`` or ``(scalar, aux)`` to its like."""

from regjax.objectives.derivatives import full_batch_gradient, gradient_penalty
from regjax.objectives.lift import attach_gradient, with_penalty
from regjax.objectives.sharpness import amp, sam

__all__ = ["amp", "attach_gradient", "full_batch_gradient", "gradient_penalty", "sam", "with_penalty"]
