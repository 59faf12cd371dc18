"""Gradients: ``f(*, ...) -> optax.GradientTransformationExtraArgs``, composed with ``optax.chain``.

Transformations of the gradient stand before the optimiser; decoupled decay and proximal steps stand after it.
"""

from regjax.gradients.decay import adamw_decoupled, decoupled_weight_decay, sgdw
from regjax.gradients.gradient_dropout import agreement_keep_prob, gradient_dropout
from regjax.gradients.orthogonal import orthogonal_gradient
from regjax.gradients.penalty import AddPenaltyState, add_penalty, proximal_step
from regjax.gradients.restarts import adamwr, normalized_weight_decay
from regjax.gradients.updates import StepState

__all__ = [
    "AddPenaltyState",
    "StepState",
    "adamw_decoupled",
    "adamwr",
    "add_penalty",
    "agreement_keep_prob",
    "decoupled_weight_decay",
    "gradient_dropout",
    "normalized_weight_decay",
    "orthogonal_gradient",
    "proximal_step",
    "sgdw",
]
