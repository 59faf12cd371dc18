"""Diagnostics: measurements for a report, arrays in and arrays or a NamedTuple out."""

from regjax.diagnostics.calibration import brier_score, expected_calibration_error, fit_temperature, negative_log_likelihood
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
from regjax.diagnostics.simplex import nc2_equiangularity, nc2_etf, nc2_norm_cv, nc3_alignment, nc3_duality
from regjax.diagnostics.uncertainty import (
    MCDropoutStatistics,
    mc_dropout_statistics,
    mc_predict,
    normalize_scores,
    select_top,
    sequence_uncertainty,
    star_uncertainty,
)

__all__ = [
    "DropoutInversion",
    "LabelSmoothingParts",
    "LogitNormSearch",
    "MCDropoutStatistics",
    "NCMetrics",
    "RiskCoverage",
    "aurc",
    "brier_score",
    "dropout_inversion_attack",
    "excess_aurc",
    "expected_calibration_error",
    "fit_temperature",
    "gradient_cosine_distance",
    "gradient_direction_error",
    "gradient_direction_variance",
    "label_smoothing_decomposition",
    "mc_dropout_statistics",
    "mc_predict",
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
    "risk_coverage",
    "sdpi_contraction",
    "search_logit_norm",
    "select_top",
    "sequence_uncertainty",
    "softmax_collapse",
    "star_uncertainty",
    "total_variation",
    "zero_loss_fraction",
]
