"""Losses: ``f(logits[..., K], labels, *, axis=-1, where=None) -> [...]``, per example and unreduced."""

from regjax.losses.binary import softmax_binary_cross_entropy
from regjax.losses.consistency import jensen_shannon_consistency
from regjax.losses.contrastive import info_nce
from regjax.losses.early_learning import ELRState, elr, elr_penalty, elr_plus, elr_targets
from regjax.losses.logit_penalties import binary_spectral_decoupling, spectral_decoupling
from regjax.losses.reconstruction import masked_patch_loss
from regjax.losses.self_distillation import PSKDState, ps_kd, ps_kd_targets
from regjax.losses.smoothing import label_smoothing, max_suppression, maxsup
from regjax.losses.stablemax import log_stablemax, stablemax, stablemax_cross_entropy
from regjax.losses.teacher import teacher_cross_entropy
from regjax.losses.teacher_dropping import (
    TeacherNormalizerState,
    apply_teacher_dropping,
    teacher_dropping,
    teacher_normalizer,
    unic_teacher_loss,
)
from regjax.losses.truncated import truncated_cross_entropy
from regjax.losses.vocabulary_dropout import sample_candidates, soft_candidate_cross_entropy, take_candidates, vocabulary_dropout

__all__ = [
    "ELRState",
    "PSKDState",
    "TeacherNormalizerState",
    "apply_teacher_dropping",
    "binary_spectral_decoupling",
    "elr",
    "elr_penalty",
    "elr_plus",
    "elr_targets",
    "info_nce",
    "jensen_shannon_consistency",
    "label_smoothing",
    "log_stablemax",
    "masked_patch_loss",
    "max_suppression",
    "maxsup",
    "ps_kd",
    "ps_kd_targets",
    "sample_candidates",
    "soft_candidate_cross_entropy",
    "softmax_binary_cross_entropy",
    "spectral_decoupling",
    "stablemax",
    "stablemax_cross_entropy",
    "take_candidates",
    "teacher_cross_entropy",
    "teacher_dropping",
    "teacher_normalizer",
    "truncated_cross_entropy",
    "unic_teacher_loss",
    "vocabulary_dropout",
]
