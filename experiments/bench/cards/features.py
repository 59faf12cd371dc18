"""The features."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench.cards import case as c
from regjax import features

SHAPE = (1024, 512)
CLASSES = 100
GAUSSIANS = (CLASSES, 128, 128)


def x(seed: int = 0) -> jax.Array:
    """Features of a batch."""
    return c.normal(*SHAPE, seed=seed)


def y(size: int = 1024) -> jax.Array:
    """Their classes."""
    return c.ids(size, below=CLASSES)


def centers() -> jax.Array:
    """A vector for each class."""
    return c.normal(CLASSES, 512, seed=2)


def products(call: Callable[..., Any], vectors: jax.Array, *args: Any, pairs: bool = False) -> c.Case:
    """``f(vectors, ...)`` with its gradient, beside the inner products of the vectors, or of their columns, with theirs."""
    plain = (lambda x: x @ x.T) if pairs else (lambda x: x.T @ x)
    of = "the products of all vectors" if pairs else "the products of all features"
    return c.beside(c.with_gradient(plain, 0), (vectors,), of, c.with_gradient(call, 0), vectors, *args)


def covariances() -> jax.Array:
    """Covariances of class Gaussians."""
    roots = c.normal(*GAUSSIANS) / 8
    return roots @ jnp.swapaxes(roots, 1, 2)


GAUSSIAN = {
    "robust_class_statistics": lambda: c.case(
        lambda x, y, inliers: features.robust_class_statistics(x, y, inliers, num_classes=CLASSES),
        c.normal(4096, 128),
        y(4096),
        c.uniform(4096) < 0.8,
    ),
    "running_class_statistics": lambda: c.case(_running().apply, _running().init(), c.normal(1024, 128), y(), donate=0),
    "calibrate_tail_statistics": lambda: c.case(
        features.calibrate_tail_statistics,
        c.normal(CLASSES, 128),
        covariances(),
        c.ids(CLASSES, below=500),
        jnp.arange(CLASSES) < 50,
    ),
    "sample_class_gaussians": lambda: c.case(
        features.sample_class_gaussians, c.key(), c.normal(CLASSES, 128), covariances(), y()
    ),
    "apply_class_gaussians": lambda: c.case(
        features.apply_class_gaussians, c.normal(CLASSES, 128), covariances(), y(), c.normal(1024, 128)
    ),
}


def _running() -> Any:
    return features.running_class_statistics(CLASSES, 128)


CENTERS = {
    "within_class_collapse": lambda: c.case(features.within_class_collapse, x(), y(), centers(), wrt=(0, 2)),
    "between_class_angle": lambda: products(features.between_class_angle, centers(), pairs=True),
    "neural_collapse": lambda: c.case(
        lambda centers, x, y: features.neural_collapse(CLASSES, 512).loss(centers, x, y, 0), centers(), x(), y(), wrt=(0, 1)
    ),
    "class_prototypes": lambda: c.case(lambda x, y: features.class_prototypes(x, y, CLASSES), x(), y()),
    "prototype_loss": lambda: c.case(features.prototype_loss, x(), y(), centers(), wrt=0),
}

DOMAINS = {
    "coral": lambda: products(features.coral, x(), x(1)),
    "domain_coral": lambda: products(
        lambda x, domains: features.domain_coral(x, domains, num_domains=4), x(), c.ids(1024, below=4)
    ),
}

DISTILLATION = {
    "feature_distillation": lambda: c.case(features.feature_distillation, x(), x(1), wrt=0),
    "representation_anchor": lambda: c.case(features.representation_anchor, x(), x(1), wrt=0),
    "probabilistic_knowledge_transfer": lambda: products(features.probabilistic_knowledge_transfer, x(), x(1), pairs=True),
    "neighbor_smooth_loss": lambda: c.case(
        jax.vmap(features.neighbor_smooth_loss, (0, None)), c.normal(64, 14, 14, 256), c.normal(256), wrt=0
    ),
}

CASES = GAUSSIAN | CENTERS | DOMAINS | DISTILLATION
UNCOUNTED: dict[str, str] = {}
