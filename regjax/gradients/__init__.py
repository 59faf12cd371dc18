"""Gradients: ``f(*, ...) -> optax.GradientTransformationExtraArgs``, composed with ``optax.chain``.

Transformations of the gradient stand before the optimiser; decoupled decay and proximal steps stand after it.
"""

from regjax.gradients.blocks import BlockState, block_coordinate, select_block, select_coordinates
from regjax.gradients.cautious import cautious_weight_decay
from regjax.gradients.centralization import centralize_gradient
from regjax.gradients.decay import adamw_decoupled, decoupled_weight_decay, sgdw
from regjax.gradients.gradient_dropout import agreement_keep_prob, gradient_dropout
from regjax.gradients.lawn import LawnState, lawn
from regjax.gradients.noise import gradient_noise
from regjax.gradients.orthogonal import orthogonal_gradient
from regjax.gradients.penalty import AddPenaltyState, add_penalty, proximal_step
from regjax.gradients.restarts import adamwr, normalized_weight_decay
from regjax.gradients.sparsity.exclusive import train_only
from regjax.gradients.sparsity.irrelevance import IrrelevanceState, irrelevance_decay
from regjax.gradients.sparsity.iss_p import iss_p
from regjax.gradients.sparsity.masked import MaskState, find_mask, fixed_mask
from regjax.gradients.sparsity.pruning import nm_pruning, prune
from regjax.gradients.sparsity.sara import sara
from regjax.gradients.subgradient import polyak_subgradient
from regjax.gradients.updates import StepState

__all__ = [
    "AddPenaltyState",
    "BlockState",
    "IrrelevanceState",
    "LawnState",
    "MaskState",
    "StepState",
    "adamw_decoupled",
    "adamwr",
    "add_penalty",
    "agreement_keep_prob",
    "block_coordinate",
    "cautious_weight_decay",
    "centralize_gradient",
    "decoupled_weight_decay",
    "find_mask",
    "fixed_mask",
    "gradient_dropout",
    "gradient_noise",
    "irrelevance_decay",
    "iss_p",
    "lawn",
    "nm_pruning",
    "normalized_weight_decay",
    "orthogonal_gradient",
    "polyak_subgradient",
    "proximal_step",
    "prune",
    "sara",
    "select_block",
    "select_coordinates",
    "sgdw",
    "train_only",
]
