"""Diagnostics: measurements for a report, arrays in and arrays or a NamedTuple out."""

from regjax.diagnostics.confidence.calibration import (
    ReliabilityBins,
    adaptive_calibration_error,
    brier_score,
    classwise_calibration_error,
    expected_calibration_error,
    negative_log_likelihood,
    reliability_bins,
)
from regjax.diagnostics.confidence.confidence import ConfidenceBalance, confidence_balance
from regjax.diagnostics.confidence.logit_adjustment import adjust_logits
from regjax.diagnostics.confidence.selective import (
    LogitNormSearch,
    RiskCoverage,
    aurc,
    excess_aurc,
    normalized_max_logit,
    risk_coverage,
    search_logit_norm,
)
from regjax.diagnostics.confidence.temperature import fit_temperature
from regjax.diagnostics.confidence.uncertainty import (
    MCDropoutStatistics,
    mc_dropout_statistics,
    mc_predict,
    normalize_scores,
    select_top,
    sequence_uncertainty,
    star_uncertainty,
)
from regjax.diagnostics.curvature.criticality import module_robust_criticality
from regjax.diagnostics.curvature.curvature import ggn_matvec, hessian_matvec, hessian_variance
from regjax.diagnostics.curvature.effective_learning_rate import (
    effective_learning_rate,
    predicted_equilibrium_norm,
    scale_invariance_error,
)
from regjax.diagnostics.curvature.gradient_direction import gradient_direction_error, gradient_direction_variance
from regjax.diagnostics.curvature.opposing_signals import (
    GroupLossHistory,
    OpposingExamples,
    OpposingSignals,
    gradient_opposition,
    opposing_examples,
    opposing_signals_toy,
    track_group_losses,
)
from regjax.diagnostics.curvature.sharpness import average_case_sharpness, worst_case_sharpness
from regjax.diagnostics.curvature.spectrum import (
    LanczosSpectrum,
    SpectralDensity,
    TopEigenvalue,
    lanczos_spectrum,
    spectral_density,
    stochastic_lanczos,
    top_eigenvalue,
)
from regjax.diagnostics.geometry.collapse import (
    LabelSmoothingParts,
    label_smoothing_decomposition,
    softmax_collapse,
    zero_loss_fraction,
)
from regjax.diagnostics.geometry.contraction import sdpi_contraction
from regjax.diagnostics.geometry.equivariance import equivariance_error
from regjax.diagnostics.geometry.knn import knn_transfer
from regjax.diagnostics.geometry.label_graph import tree_distances
from regjax.diagnostics.geometry.neural_collapse import NCMetrics, nc1, nc4_mismatch, nc_metrics
from regjax.diagnostics.geometry.simplex import nc2_equiangularity, nc2_etf, nc2_norm_cv, nc3_alignment, nc3_duality
from regjax.diagnostics.geometry.zero_shot import SeenUnseenArea, SeenUnseenCurve, ausuc, fit_stacking_gamma, seen_unseen_curve
from regjax.diagnostics.memory.forgetting import forgetting_score
from regjax.diagnostics.memory.inversion import (
    DropoutInversion,
    dropout_inversion_attack,
    gradient_cosine_distance,
    reconstruction_mse,
    total_variation,
)
from regjax.diagnostics.memory.iou import IoUHistory, iou_history
from regjax.diagnostics.memory.memorization import MemorizationCurves, memorization_curves, memorization_epoch
from regjax.diagnostics.memory.signal_strength import relative_signal_strength
from regjax.diagnostics.memory.unlearning import UnlearningMetrics, membership_inference_efficacy, unlearning_metrics
from regjax.diagnostics.sparsity.block_importance import (
    DropPlan,
    RedundantRun,
    best_gap,
    block_importance,
    drop_plan,
    gap_similarity,
    layer_importance,
)
from regjax.diagnostics.sparsity.compression import (
    ParameterCount,
    PruningError,
    compression_bound,
    pruning_output_error,
    sketched_parameter_count,
)
from regjax.diagnostics.sparsity.sparse_scaling import (
    SPARSE_SCALING_T5,
    SPARSE_SCALING_VIT,
    SparseScaling,
    fit_sparse_scaling_law,
    optimal_sparsity,
    sparse_scaling_law,
)
from regjax.diagnostics.sparsity.super_weights import SuperWeights, find_super_weights

__all__ = [
    "SPARSE_SCALING_T5",
    "SPARSE_SCALING_VIT",
    "ConfidenceBalance",
    "DropPlan",
    "DropoutInversion",
    "GroupLossHistory",
    "IoUHistory",
    "LabelSmoothingParts",
    "LanczosSpectrum",
    "LogitNormSearch",
    "MCDropoutStatistics",
    "MemorizationCurves",
    "NCMetrics",
    "OpposingExamples",
    "OpposingSignals",
    "ParameterCount",
    "PruningError",
    "RedundantRun",
    "ReliabilityBins",
    "RiskCoverage",
    "SeenUnseenArea",
    "SeenUnseenCurve",
    "SparseScaling",
    "SpectralDensity",
    "SuperWeights",
    "TopEigenvalue",
    "UnlearningMetrics",
    "adaptive_calibration_error",
    "adjust_logits",
    "aurc",
    "ausuc",
    "average_case_sharpness",
    "best_gap",
    "block_importance",
    "brier_score",
    "classwise_calibration_error",
    "compression_bound",
    "confidence_balance",
    "drop_plan",
    "dropout_inversion_attack",
    "effective_learning_rate",
    "equivariance_error",
    "excess_aurc",
    "expected_calibration_error",
    "find_super_weights",
    "fit_sparse_scaling_law",
    "fit_stacking_gamma",
    "fit_temperature",
    "forgetting_score",
    "gap_similarity",
    "ggn_matvec",
    "gradient_cosine_distance",
    "gradient_direction_error",
    "gradient_direction_variance",
    "gradient_opposition",
    "hessian_matvec",
    "hessian_variance",
    "iou_history",
    "knn_transfer",
    "label_smoothing_decomposition",
    "lanczos_spectrum",
    "layer_importance",
    "mc_dropout_statistics",
    "mc_predict",
    "membership_inference_efficacy",
    "memorization_curves",
    "memorization_epoch",
    "module_robust_criticality",
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
    "opposing_examples",
    "opposing_signals_toy",
    "optimal_sparsity",
    "predicted_equilibrium_norm",
    "pruning_output_error",
    "reconstruction_mse",
    "relative_signal_strength",
    "reliability_bins",
    "risk_coverage",
    "scale_invariance_error",
    "sdpi_contraction",
    "search_logit_norm",
    "seen_unseen_curve",
    "select_top",
    "sequence_uncertainty",
    "sketched_parameter_count",
    "softmax_collapse",
    "sparse_scaling_law",
    "spectral_density",
    "star_uncertainty",
    "stochastic_lanczos",
    "top_eigenvalue",
    "total_variation",
    "track_group_losses",
    "tree_distances",
    "unlearning_metrics",
    "worst_case_sharpness",
    "zero_loss_fraction",
]
