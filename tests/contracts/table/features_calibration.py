"""Examples of `regjax.features`: class Gaussians under noisy, long-tailed labels."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal
from tests.contracts.table.losses import refusals

f = rj.features
WHERE = np.array([True, False, True, True, True, False, True, True])
NONE = np.zeros(8, bool)
ROOTS = 0.5 * normal(4, 3, 3, seed=5)
MEANS, COVARIANCES = normal(4, 3, seed=6), ROOTS @ ROOTS.swapaxes(1, 2) + np.eye(3)
COUNTS, HEADS = np.array([20, 30, 5, 2], np.int32), np.array([True, True, False, False])
LABELS = ids(8, classes=4)
GAUSSIANS = {"means": MEANS, "covariances": COVARIANCES}
SINGULAR = ({"covariances": np.zeros((4, 3, 3))}, {"covariances": np.ones((4, 3, 3))}, {"means": np.zeros((4, 3))})

KEY = jax.random.key(0)
X, Y, ALL = jnp.ones((4, 3)), jnp.zeros(4, int), jnp.ones(4, bool)
M, C, N, H = jnp.ones((2, 3)), jnp.ones((2, 3, 3)), jnp.array([9, 2]), jnp.array([True, False])
statistics = functools.partial(f.robust_class_statistics, num_classes=2)
calibrate, sample, draw, anchor = (
    f.calibrate_tail_statistics,
    functools.partial(f.sample_class_gaussians, KEY),
    f.apply_class_gaussians,
    f.representation_anchor,
)


def gaussian_errors(fn) -> dict:
    """What every ``fn(means, covariances)`` refuses."""
    return {
        "means: integers": lambda: fn(jnp.ones((2, 3), int), C),
        "means: rank": lambda: fn(jnp.ones(3), C),
        "means: no class": lambda: fn(jnp.ones((0, 3)), jnp.ones((0, 3, 3))),
        "covariances: shape": lambda: fn(M, jnp.ones((2, 3))),
        "covariances: integers": lambda: fn(M, jnp.ones((2, 3, 3), int)),
    }


EXAMPLES = (
    Example(
        name="features.robust_class_statistics",
        call=lambda key, features, labels, inliers: f.robust_class_statistics(features, labels, inliers, num_classes=4),
        mapped=lambda axis_name, key, features, labels, inliers: f.robust_class_statistics(
            features, labels, inliers, num_classes=4, axis_name=axis_name
        ),
        arrays={"features": normal(8, 3), "labels": LABELS, "inliers": WHERE},
        rows=("features", "labels", "inliers"),
        result="scalar",
        wrt=("features",),
        singular=(
            {"features": np.zeros((8, 3))},
            {"features": 1e4 * normal(8, 3)},
            {"labels": np.full(8, 2, np.int32)},
            {"labels": np.where(WHERE, LABELS, -1)},
            {"inliers": NONE},
        ),
        bad={
            "features: integers": lambda: statistics(jnp.ones((4, 3), int), Y, ALL),
            "features: rank": lambda: statistics(jnp.ones(4), Y, ALL),
            "labels: shape": lambda: statistics(X, jnp.zeros(3, int), ALL),
            "labels: probabilities": lambda: statistics(X, jnp.ones((4, 2)), ALL),
            "inlier_mask: shape": lambda: statistics(X, Y, jnp.ones(3, bool)),
            "inlier_mask: weights": lambda: statistics(X, Y, jnp.ones(4)),
            "num_classes: none": lambda: statistics(X, Y, ALL, num_classes=0),
            "num_classes: a float": lambda: statistics(X, Y, ALL, num_classes=2.0),
            "axis_name: a number": lambda: statistics(X, Y, ALL, axis_name=0),
        },
    ),
    Example(
        name="features.calibrate_tail_statistics",
        call=lambda key, means, covariances, counts, heads: calibrate(means, covariances, counts, heads, top_q=2, spread=0.1),
        arrays={**GAUSSIANS, "counts": COUNTS, "heads": HEADS},
        result="other",
        wrt=("means", "covariances"),
        identity=lambda key, means, covariances, counts, heads: (
            calibrate(means, covariances, counts, heads, top_q=2, gamma=0.0),
            (means, covariances),
        ),
        singular=(
            *SINGULAR,
            {"means": 1e4 * MEANS},
            {"heads": np.zeros(4, bool)},
            {"heads": np.ones(4, bool)},
            {"counts": np.zeros(4, np.int32)},
        ),
        bad={
            **gaussian_errors(lambda means, covariances: calibrate(means, covariances, N, H)),
            "counts: shape": lambda: calibrate(M, C, jnp.ones(3), H),
            "counts: booleans": lambda: calibrate(M, C, H, H),
            "head_mask: shape": lambda: calibrate(M, C, N, jnp.ones(3, bool)),
            "head_mask: class ids": lambda: calibrate(M, C, N, jnp.array([0, 1])),
            "top_q: zero": lambda: calibrate(M, C, N, H, top_q=0),
            "top_q: above the classes": lambda: calibrate(M, C, N, H, top_q=3),
            **refusals(functools.partial(calibrate, M, C, N, H), "gamma", negative=-0.1, **{"above 1": 1.1}),
            "gamma: a schedule": lambda: calibrate(M, C, N, H, gamma=lambda step: 0.1),
            **refusals(functools.partial(calibrate, M, C, N, H), "spread", negative=-0.1),
        },
    ),
    Example(
        name="features.sample_class_gaussians",
        call=lambda key, means, covariances, labels: f.sample_class_gaussians(key, means, covariances, labels),
        arrays={**GAUSSIANS, "labels": LABELS},
        rows=("labels",),
        result="other",
        wrt=("means", "covariances"),
        random=True,
        singular=SINGULAR,
        bad={
            **gaussian_errors(lambda means, covariances: sample(means, covariances, Y)),
            "key: a number": lambda: f.sample_class_gaussians(0, M, C, Y),
            "labels: probabilities": lambda: sample(M, C, jnp.ones(4)),
            "labels: rank": lambda: sample(M, C, jnp.zeros((4, 1), int)),
        },
    ),
    Example(
        name="features.apply_class_gaussians",
        call=lambda key, means, covariances, labels, normals: draw(means, covariances, labels, normals),
        arrays={**GAUSSIANS, "labels": LABELS, "normals": normal(8, 3, seed=7)},
        rows=("labels", "normals"),
        result="rows",
        wrt=("means", "covariances", "normals"),
        singular=SINGULAR,
        bad={
            **gaussian_errors(lambda means, covariances: draw(means, covariances, Y, X)),
            "labels: probabilities": lambda: draw(M, C, jnp.ones(4), X),
            "normals: shape": lambda: draw(M, C, Y, jnp.ones((4, 2))),
            "normals: integers": lambda: draw(M, C, Y, jnp.ones((4, 3), int)),
        },
    ),
    Example(
        name="features.representation_anchor",
        call=lambda key, features, anchors: anchor(features, anchors),
        arrays={"features": normal(8, 3), "anchors": normal(8, 3, seed=1)},
        rows=("features", "anchors"),
        result="rows",
        wrt=("features",),
        frozen=("anchors",),
        singular=({"features": np.zeros((8, 3)), "anchors": np.zeros((8, 3))}, {"features": 1e4 * normal(8, 3)}),
        bad={
            "features: integers": lambda: anchor(jnp.ones((4, 3), int), X),
            "features: a number": lambda: anchor(0.5, 0.5),
            "contrastive_features: shape": lambda: anchor(X, jnp.ones((4, 2))),
            "contrastive_features: integers": lambda: anchor(X, jnp.ones((4, 3), int)),
        },
    ),
)
