"""Objectives: ``f(loss_fn, *, ...) -> loss_fn``, from ``loss_fn(params, *args) -> scalar`` or ``(scalar, aux)`` to its like."""

from regjax.objectives.adaptation.entropy import EATAInfo, EATAState, eata, eata_loss, tent_loss
from regjax.objectives.adaptation.fisher_anchor import FisherAnchor, fisher_importance, norm_affine_mask
from regjax.objectives.adaptation.forgetting import bounded_forgetting
from regjax.objectives.adversarial.abnormal_examples import aaer, aaer_loss
from regjax.objectives.adversarial.attacks import (
    FreeAdversarialState,
    RobustEvaluation,
    adversarial,
    fgsm_attack,
    free_adversarial,
    pgd_attack,
    pgd_evaluate,
)
from regjax.objectives.adversarial.local_linearity import ElleState, elle, elle_lambda, elle_penalty
from regjax.objectives.adversarial.virtual_adversarial import vat
from regjax.objectives.dataset_distillation import trajectory_matching_loss
from regjax.objectives.derivatives.cross_gradient import cross_gradient
from regjax.objectives.derivatives.functional_entropy import functional_entropy, repeat_with_noise
from regjax.objectives.derivatives.gradient_penalty import full_batch_gradient, gradient_penalty
from regjax.objectives.derivatives.jacobian import jacobian_penalty
from regjax.objectives.hyperparameters.architecture import SearchParams, dass_objective
from regjax.objectives.hyperparameters.self_tuning import (
    TunedHyper,
    apply_perturb_hyper,
    constrain_hyper,
    perturb_hyper,
    perturbation_entropy,
    self_tuning,
    stretched_logit,
)
from regjax.objectives.hyperparameters.sparse_predictors import (
    group_lasso_predictor,
    group_svm_predictor,
    lasso_predictor,
    sparse_bilevel,
)
from regjax.objectives.hyperparameters.variational import (
    apply_sample_posterior,
    data_emphasized_elbo,
    gaussian_kl_profiled,
    implied_l2_strength,
    sample_posterior,
)
from regjax.objectives.invariance.domains import FishrState, fishr, irm_penalty, vrex_penalty
from regjax.objectives.invariance.equivariance import (
    adjust_strengths,
    equivariance_penalties,
    equivariance_penalty,
    soft_equivariance,
)
from regjax.objectives.invariance.hessian_alignment import hessian_alignment
from regjax.objectives.lift import attach_gradient, with_penalty
from regjax.objectives.local_learning._noprop import NoPropParams, NoPropSchedule
from regjax.objectives.local_learning.momentum_auxiliary import (
    LocalWeights,
    MomentumAuxiliary,
    MomentumAuxiliaryState,
    local_loss_weights,
    momentum_auxiliary,
)
from regjax.objectives.local_learning.noprop import noprop_block_loss, noprop_dt_loss, noprop_sample, noprop_schedule
from regjax.objectives.local_learning.noprop_continuous import noprop_ct_loss, noprop_flow_loss, noprop_flow_sample
from regjax.objectives.sharpness.efficient import esam, gradient_norm_penalty
from regjax.objectives.sharpness.harmful import booster
from regjax.objectives.sharpness.imbalanced import imbsam
from regjax.objectives.sharpness.sam import amp, sam
from regjax.objectives.sharpness.surrogate_gap import LookSamState, gsam, look_sam
from regjax.objectives.sharpness.trajectory import MESA, MESAState, SAFState, mesa, saf, trajectory_kl

__all__ = [
    "MESA",
    "EATAInfo",
    "EATAState",
    "ElleState",
    "FisherAnchor",
    "FishrState",
    "FreeAdversarialState",
    "LocalWeights",
    "LookSamState",
    "MESAState",
    "MomentumAuxiliary",
    "MomentumAuxiliaryState",
    "NoPropParams",
    "NoPropSchedule",
    "RobustEvaluation",
    "SAFState",
    "SearchParams",
    "TunedHyper",
    "aaer",
    "aaer_loss",
    "adjust_strengths",
    "adversarial",
    "amp",
    "apply_perturb_hyper",
    "apply_sample_posterior",
    "attach_gradient",
    "booster",
    "bounded_forgetting",
    "constrain_hyper",
    "cross_gradient",
    "dass_objective",
    "data_emphasized_elbo",
    "eata",
    "eata_loss",
    "elle",
    "elle_lambda",
    "elle_penalty",
    "equivariance_penalties",
    "equivariance_penalty",
    "esam",
    "fgsm_attack",
    "fisher_importance",
    "fishr",
    "free_adversarial",
    "full_batch_gradient",
    "functional_entropy",
    "gaussian_kl_profiled",
    "gradient_norm_penalty",
    "gradient_penalty",
    "group_lasso_predictor",
    "group_svm_predictor",
    "gsam",
    "hessian_alignment",
    "imbsam",
    "implied_l2_strength",
    "irm_penalty",
    "jacobian_penalty",
    "lasso_predictor",
    "local_loss_weights",
    "look_sam",
    "mesa",
    "momentum_auxiliary",
    "noprop_block_loss",
    "noprop_ct_loss",
    "noprop_dt_loss",
    "noprop_flow_loss",
    "noprop_flow_sample",
    "noprop_sample",
    "noprop_schedule",
    "norm_affine_mask",
    "perturb_hyper",
    "perturbation_entropy",
    "pgd_attack",
    "pgd_evaluate",
    "repeat_with_noise",
    "saf",
    "sam",
    "sample_posterior",
    "self_tuning",
    "soft_equivariance",
    "sparse_bilevel",
    "stretched_logit",
    "tent_loss",
    "trajectory_kl",
    "trajectory_matching_loss",
    "vat",
    "vrex_penalty",
    "with_penalty",
]
