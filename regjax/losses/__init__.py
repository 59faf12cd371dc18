"""Losses: ``f(logits[..., K], labels, *, axis=-1, where=None) -> [...]``, per example and unreduced."""

from regjax.losses.early_learning import ELRState, elr, elr_penalty, elr_plus, elr_targets
from regjax.losses.logit_penalties import binary_spectral_decoupling, spectral_decoupling
from regjax.losses.self_distillation import PSKDState, ps_kd, ps_kd_targets
from regjax.losses.smoothing import label_smoothing, max_suppression, maxsup
from regjax.losses.stablemax import log_stablemax, stablemax, stablemax_cross_entropy

__all__ = [
    "ELRState",
    "PSKDState",
    "binary_spectral_decoupling",
    "elr",
    "elr_penalty",
    "elr_plus",
    "elr_targets",
    "label_smoothing",
    "log_stablemax",
    "max_suppression",
    "maxsup",
    "ps_kd",
    "ps_kd_targets",
    "spectral_decoupling",
    "stablemax",
    "stablemax_cross_entropy",
]
