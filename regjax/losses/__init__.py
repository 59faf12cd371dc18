"""Losses: ``f(logits[..., K], labels, *, axis=-1, where=None) -> [...]``, per example and unreduced."""

from regjax.losses.distillation.alpha_divergence import adaptive_alpha_divergence, alpha_divergence
from regjax.losses.distillation.class_relation import class_relation_distillation
from regjax.losses.distillation.consistency import jensen_shannon_consistency
from regjax.losses.distillation.divergence import distillation
from regjax.losses.distillation.expansion import ssre
from regjax.losses.distillation.hidden import hidden_distillation
from regjax.losses.distillation.multi_exit import multi_exit_loss
from regjax.losses.distillation.progressive_guidance import group_progressive_guidance
from regjax.losses.distillation.r_drop import r_drop, symmetric_kl
from regjax.losses.distillation.soft_label_pool import batchnorm_matching, prune_soft_labels
from regjax.losses.distillation.target_class import nkd, uskd
from regjax.losses.distillation.teacher import teacher_cross_entropy
from regjax.losses.distillation.teacher_dropping import (
    TeacherNormalizerState,
    apply_teacher_dropping,
    teacher_dropping,
    teacher_normalizer,
    unic_teacher_loss,
)
from regjax.losses.distillation.text_supervision import tes
from regjax.losses.distillation.voting import self_distillation, vote_teachers
from regjax.losses.margins.binary import softmax_binary_cross_entropy
from regjax.losses.margins.checkered import binary_checkered, binary_checkoid, checkered
from regjax.losses.margins.gates import class_balance, class_separation
from regjax.losses.margins.label_metric import (
    frechet_mean_predict,
    frechet_scores,
    frechet_straight_through,
    loki_locus,
    loki_next_class,
)
from regjax.losses.margins.priors import logit_adjusted, logit_norm, semantic_margin
from regjax.losses.margins.stacking import calibrated_stacking
from regjax.losses.margins.truncated import truncated_cross_entropy
from regjax.losses.noisy_labels.co_teaching import co_teaching, small_loss_weights
from regjax.losses.noisy_labels.early_learning import ELRState, elr, elr_penalty, elr_plus, elr_targets
from regjax.losses.noisy_labels.mixture import TwoGaussians, fit_two_gaussians
from regjax.losses.noisy_labels.robust import bootstrapping, generalized_cross_entropy, symmetric_cross_entropy
from regjax.losses.reconstruction.diffusion import embedding_alignment, masked_denoising, subject_derived
from regjax.losses.reconstruction.explanation import explanation_mask_loss, mask_area, mask_variation
from regjax.losses.reconstruction.learnability import feature_gradient_scores, learnability_loss
from regjax.losses.reconstruction.masked_patches import masked_patch_loss
from regjax.losses.regression.mixture_of_experts import moe_gaussian_nll
from regjax.losses.retrieval.contrastive import info_nce
from regjax.losses.retrieval.kernel_adapter import proker_fit, proker_predict
from regjax.losses.retrieval.neighbours import (
    interpolate_knn,
    knn_focal_cross_entropy,
    knn_probabilities,
    knn_weighted_cross_entropy,
)
from regjax.losses.retrieval.subwords import SuperClassState, superclass
from regjax.losses.retrieval.transport import TransportPlan, sum_of_norms_ot
from regjax.losses.retrieval.vocabulary_dropout import (
    sample_candidates,
    soft_candidate_cross_entropy,
    take_candidates,
    vocabulary_dropout,
)
from regjax.losses.segmentation.boundary import boundary_distillation, boundary_masks
from regjax.losses.segmentation.channel_wise import channel_wise_distillation, dist_relation, label_assisted_teacher_loss
from regjax.losses.segmentation.correction import adele_correct_labels, adele_multiscale
from regjax.losses.segmentation.detection import box_iou, pseudo_positive_mask, region_consistency
from regjax.losses.smoothing.confidence import confidence_penalty, focal, poly1_cross_entropy
from regjax.losses.smoothing.logit_penalties import binary_spectral_decoupling, spectral_decoupling
from regjax.losses.smoothing.self_distillation import PSKDState, ps_kd, ps_kd_targets
from regjax.losses.smoothing.soft_targets import label_smoothing, max_suppression, maxsup
from regjax.losses.smoothing.stablemax import log_stablemax, stablemax, stablemax_cross_entropy

__all__ = [
    "ELRState",
    "PSKDState",
    "SuperClassState",
    "TeacherNormalizerState",
    "TransportPlan",
    "TwoGaussians",
    "adaptive_alpha_divergence",
    "adele_correct_labels",
    "adele_multiscale",
    "alpha_divergence",
    "apply_teacher_dropping",
    "batchnorm_matching",
    "binary_checkered",
    "binary_checkoid",
    "binary_spectral_decoupling",
    "bootstrapping",
    "boundary_distillation",
    "boundary_masks",
    "box_iou",
    "calibrated_stacking",
    "channel_wise_distillation",
    "checkered",
    "class_balance",
    "class_relation_distillation",
    "class_separation",
    "co_teaching",
    "confidence_penalty",
    "dist_relation",
    "distillation",
    "elr",
    "elr_penalty",
    "elr_plus",
    "elr_targets",
    "embedding_alignment",
    "explanation_mask_loss",
    "feature_gradient_scores",
    "fit_two_gaussians",
    "focal",
    "frechet_mean_predict",
    "frechet_scores",
    "frechet_straight_through",
    "generalized_cross_entropy",
    "group_progressive_guidance",
    "hidden_distillation",
    "info_nce",
    "interpolate_knn",
    "jensen_shannon_consistency",
    "knn_focal_cross_entropy",
    "knn_probabilities",
    "knn_weighted_cross_entropy",
    "label_assisted_teacher_loss",
    "label_smoothing",
    "learnability_loss",
    "log_stablemax",
    "logit_adjusted",
    "logit_norm",
    "loki_locus",
    "loki_next_class",
    "mask_area",
    "mask_variation",
    "masked_denoising",
    "masked_patch_loss",
    "max_suppression",
    "maxsup",
    "moe_gaussian_nll",
    "multi_exit_loss",
    "nkd",
    "poly1_cross_entropy",
    "proker_fit",
    "proker_predict",
    "prune_soft_labels",
    "ps_kd",
    "ps_kd_targets",
    "pseudo_positive_mask",
    "r_drop",
    "region_consistency",
    "sample_candidates",
    "self_distillation",
    "semantic_margin",
    "small_loss_weights",
    "soft_candidate_cross_entropy",
    "softmax_binary_cross_entropy",
    "spectral_decoupling",
    "ssre",
    "stablemax",
    "stablemax_cross_entropy",
    "subject_derived",
    "sum_of_norms_ot",
    "superclass",
    "symmetric_cross_entropy",
    "symmetric_kl",
    "take_candidates",
    "teacher_cross_entropy",
    "teacher_dropping",
    "teacher_normalizer",
    "tes",
    "truncated_cross_entropy",
    "unic_teacher_loss",
    "uskd",
    "vocabulary_dropout",
    "vote_teachers",
]
