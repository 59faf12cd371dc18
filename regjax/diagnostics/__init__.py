"""Diagnostics: measurements for a report, arrays in and arrays or a NamedTuple out."""

from regjax.diagnostics.calibration import brier_score, expected_calibration_error, fit_temperature, negative_log_likelihood
from regjax.diagnostics.collapse import (
    LabelSmoothingParts,
    label_smoothing_decomposition,
    softmax_collapse,
    zero_loss_fraction,
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

__all__ = [
    "LabelSmoothingParts",
    "LogitNormSearch",
    "NCMetrics",
    "RiskCoverage",
    "aurc",
    "brier_score",
    "excess_aurc",
    "expected_calibration_error",
    "fit_temperature",
    "label_smoothing_decomposition",
    "nc1",
    "nc2_equiangularity",
    "nc2_etf",
    "nc2_norm_cv",
    "nc3_alignment",
    "nc3_duality",
    "nc4_mismatch",
    "nc_metrics",
    "negative_log_likelihood",
    "normalized_max_logit",
    "risk_coverage",
    "search_logit_norm",
    "softmax_collapse",
    "zero_loss_fraction",
]
