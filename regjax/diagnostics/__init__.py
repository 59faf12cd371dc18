"""Diagnostics: measurements for a report, arrays in and arrays or a NamedTuple out."""

from regjax.diagnostics.calibration import (
    ReliabilityBins,
    adaptive_calibration_error,
    brier_score,
    classwise_calibration_error,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_bins,
)
from regjax.diagnostics.collapse import (
    LabelSmoothingParts,
    label_smoothing_decomposition,
    softmax_collapse,
    zero_loss_fraction,
)
from regjax.diagnostics.contraction import sdpi_contraction
from regjax.diagnostics.gradient_direction import gradient_direction_error, gradient_direction_variance
from regjax.diagnostics.inversion import (
    DropoutInversion,
    dropout_inversion_attack,
    gradient_cosine_distance,
    reconstruction_mse,
    total_variation,
)
from regjax.diagnostics.iou import IoUHistory, iou_history
from regjax.diagnostics.label_graph import tree_distances
from regjax.diagnostics.logit_adjustment import adjust_logits
from regjax.diagnostics.memorization import MemorizationCurves, memorization_curves, memorization_epoch
from regjax.diagnostics.neural_collapse import NCMetrics, nc1, nc4_mismatch, nc_metrics
from regjax.diagnostics.selective import (
    LogitNormSearch,
    RiskCoverage,
    aurc,
    excess_aurc,
    normalized_max_logit,
    risk_coverage,
    search_logit_norm,
)
from regjax.diagnostics.signal_strength import relative_signal_strength
from regjax.diagnostics.simplex import nc2_equiangularity, nc2_etf, nc2_norm_cv, nc3_alignment, nc3_duality
from regjax.diagnostics.temperature import fit_temperature
from regjax.diagnostics.uncertainty import (
    MCDropoutStatistics,
    mc_dropout_statistics,
    mc_predict,
    normalize_scores,
    select_top,
    sequence_uncertainty,
    star_uncertainty,
)
from regjax.diagnostics.zero_shot import SeenUnseenArea, SeenUnseenCurve, ausuc, fit_stacking_gamma, seen_unseen_curve

__all__ = [
    "DropoutInversion",
    "IoUHistory",
    "LabelSmoothingParts",
    "LogitNormSearch",
    "MCDropoutStatistics",
    "MemorizationCurves",
    "NCMetrics",
    "ReliabilityBins",
    "RiskCoverage",
    "SeenUnseenArea",
    "SeenUnseenCurve",
    "adaptive_calibration_error",
    "adjust_logits",
    "aurc",
    "ausuc",
    "brier_score",
    "classwise_calibration_error",
    "dropout_inversion_attack",
    "excess_aurc",
    "expected_calibration_error",
    "fit_stacking_gamma",
    "fit_temperature",
    "gradient_cosine_distance",
    "gradient_direction_error",
    "gradient_direction_variance",
    "iou_history",
    "label_smoothing_decomposition",
    "mc_dropout_statistics",
    "mc_predict",
    "memorization_curves",
    "memorization_epoch",
    "nc1",
    "nc2_equiangularity",
    "nc2_etf",
    "nc2_norm_cv",
    "nc3_alignment",
    "nc3_duality",
    "nc4_mismatch",
    "nc_metrics",
    "negative_log_likelihood",
    "normalize_scores",
    "normalized_max_logit",
    "reconstruction_mse",
    "relative_signal_strength",
    "reliability_bins",
    "risk_coverage",
    "sdpi_contraction",
    "search_logit_norm",
    "seen_unseen_curve",
    "select_top",
    "sequence_uncertainty",
    "softmax_collapse",
    "star_uncertainty",
    "total_variation",
    "tree_distances",
    "zero_loss_fraction",
]
