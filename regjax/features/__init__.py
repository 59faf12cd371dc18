"""Features: ``f(features[B, D], labels, *, ...) -> scalar`` on the representation before the classifier."""

from regjax.features.distillation import feature_distillation
from regjax.features.knowledge_transfer import probabilistic_knowledge_transfer
from regjax.features.neural_collapse import between_class_angle, neural_collapse, within_class_collapse

__all__ = [
    "between_class_angle",
    "feature_distillation",
    "neural_collapse",
    "probabilistic_knowledge_transfer",
    "within_class_collapse",
]
