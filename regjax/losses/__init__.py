"""Losses: ``f(logits[..., K], labels, *, axis=-1, where=None) -> [...]``, per example and unreduced."""

from regjax.losses.alpha_divergence import adaptive_alpha_divergence, alpha_divergence
from regjax.losses.binary import softmax_binary_cross_entropy
from regjax.losses.boundary import boundary_distillation, boundary_masks
from regjax.losses.channel_wise import channel_wise_distillation, dist_relation, label_assisted_teacher_loss
from regjax.losses.checkered import binary_checkered, binary_checkoid, checkered
from regjax.losses.class_relation import class_relation_distillation
from regjax.losses.co_teaching import co_teaching, small_loss_weights
from regjax.losses.confidence import confidence_penalty, focal, poly1_cross_entropy
from regjax.losses.consistency import jensen_shannon_consistency
from regjax.losses.contrastive import info_nce
from regjax.losses.detection import box_iou, pseudo_positive_mask, region_consistency
from regjax.losses.diffusion import embedding_alignment, masked_denoising, subject_derived
from regjax.losses.distillation import distillation
from regjax.losses.early_learning import ELRState, elr, elr_penalty, elr_plus, elr_targets
from regjax.losses.early_learning_correction import adele_correct_labels, adele_multiscale
from regjax.losses.expansion import ssre
from regjax.losses.explanation import explanation_mask_loss, mask_area, mask_variation
from regjax.losses.hidden_distillation import hidden_distillation
from regjax.losses.kernel_adapter import proker_fit, proker_predict
from regjax.losses.label_metric import frechet_mean_predict, frechet_scores, frechet_straight_through, loki_locus, loki_next_class
from regjax.losses.learnability import feature_gradient_scores, learnability_loss
from regjax.losses.logit_penalties import binary_spectral_decoupling, spectral_decoupling
from regjax.losses.margins import logit_adjusted, logit_norm, semantic_margin
from regjax.losses.mixture import TwoGaussians, fit_two_gaussians
from regjax.losses.multi_exit import multi_exit_loss
from regjax.losses.neighbours import interpolate_knn, knn_focal_cross_entropy, knn_probabilities, knn_weighted_cross_entropy
from regjax.losses.normalised_distillation import nkd, uskd
from regjax.losses.r_drop import r_drop, symmetric_kl
from regjax.losses.reconstruction import masked_patch_loss
from regjax.losses.robust import bootstrapping, generalized_cross_entropy, symmetric_cross_entropy
from regjax.losses.self_distillation import PSKDState, ps_kd, ps_kd_targets
from regjax.losses.smoothing import label_smoothing, max_suppression, maxsup
from regjax.losses.soft_label_pool import batchnorm_matching, prune_soft_labels
from regjax.losses.stablemax import log_stablemax, stablemax, stablemax_cross_entropy
from regjax.losses.stacking import calibrated_stacking
from regjax.losses.subwords import SuperClassState, superclass
from regjax.losses.teacher import teacher_cross_entropy
from regjax.losses.teacher_dropping import (
    TeacherNormalizerState,
    apply_teacher_dropping,
    teacher_dropping,
    teacher_normalizer,
    unic_teacher_loss,
)
from regjax.losses.text_supervision import tes
from regjax.losses.truncated import truncated_cross_entropy
from regjax.losses.vocabulary_dropout import sample_candidates, soft_candidate_cross_entropy, take_candidates, vocabulary_dropout
from regjax.losses.voting import self_distillation, vote_teachers

__all__ = [
    "ELRState",
    "PSKDState",
    "SuperClassState",
    "TeacherNormalizerState",
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
    "class_relation_distillation",
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
