"""Features: ``f(features[B, D], labels, *, ...) -> scalar`` on the representation before the classifier."""

from regjax.features.calibration import (
    ClassStatistics,
    apply_class_gaussians,
    calibrate_tail_statistics,
    representation_anchor,
    robust_class_statistics,
    sample_class_gaussians,
)
from regjax.features.coral import coral, domain_coral
from regjax.features.distillation import feature_distillation
from regjax.features.knowledge_transfer import probabilistic_knowledge_transfer
from regjax.features.neighbor_smooth import neighbor_smooth_loss
from regjax.features.neural_collapse import between_class_angle, neural_collapse, within_class_collapse
from regjax.features.prototypes import class_prototypes, prototype_loss
from regjax.features.running_statistics import RunningClassStatistics, running_class_statistics

__all__ = [
    "ClassStatistics",
    "RunningClassStatistics",
    "apply_class_gaussians",
    "between_class_angle",
    "calibrate_tail_statistics",
    "class_prototypes",
    "coral",
    "domain_coral",
    "feature_distillation",
    "neighbor_smooth_loss",
    "neural_collapse",
    "probabilistic_knowledge_transfer",
    "prototype_loss",
    "representation_anchor",
    "robust_class_statistics",
    "running_class_statistics",
    "sample_class_gaussians",
    "within_class_collapse",
]
