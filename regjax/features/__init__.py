"""Features: ``f(features[B, D], labels, *, ...) -> scalar`` on the representation before the classifier."""

from regjax.features.neural_collapse import between_class_angle, neural_collapse, within_class_collapse

__all__ = ["between_class_angle", "neural_collapse", "within_class_collapse"]
