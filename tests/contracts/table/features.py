"""Examples of `regjax.features`."""

import functools

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal

FEATURES = {"features": normal(8, 5), "labels": ids(8, classes=3)}
WHERE = np.array([True, False, True, True, True, False, True, True])
DEGENERATE = (
    {"features": np.zeros((8, 5))},
    {"features": 1e4 * normal(8, 5)},
    {"labels": np.full(8, 2, np.int32)},
)


def feature_errors(fn) -> dict:
    """What every ``fn(features, labels)`` refuses."""
    x, y = jnp.ones((4, 3)), jnp.zeros(4, int)
    return {
        "features: integers": lambda: fn(jnp.ones((4, 3), int), y),
        "features: rank": lambda: fn(jnp.ones((4, 3, 1)), y),
        "labels: another number of examples": lambda: fn(x, jnp.zeros(5, int)),
        "labels: probabilities": lambda: fn(x, jnp.ones((4, 2))),
    }


F, Y, C = jnp.ones((4, 3)), jnp.zeros(4, int), jnp.eye(2, 3)
within, angle, collapse = rj.features.within_class_collapse, rj.features.between_class_angle, rj.features.neural_collapse
technique = functools.partial(collapse, 3, 5)

EXAMPLES = (
    Example(
        name="features.within_class_collapse",
        call=lambda key, features, labels, centers, where: within(features, labels, centers, where=where),
        mapped=lambda axis_name, key, features, labels, centers, where: within(
            features, labels, centers, where=where, axis_name=axis_name
        ),
        arrays={**FEATURES, "centers": normal(3, 5, seed=3), "where": WHERE},
        rows=("features", "labels", "where"),
        result="scalar",
        wrt=("features", "centers"),
        singular=(*DEGENERATE, {"where": np.zeros(8, bool)}, {"features": np.ones((8, 5)), "centers": np.ones((3, 5))}),
        bad={
            **feature_errors(lambda features, labels: within(features, labels, C)),
            "centers: another dimension": lambda: within(F, Y, jnp.eye(2, 4)),
            "centers: integers": lambda: within(F, Y, jnp.ones((2, 3), int)),
            "centers: no class": lambda: within(F, Y, jnp.ones((0, 3))),
            "where: not boolean": lambda: within(F, Y, C, where=jnp.ones(4)),
            "where: another number of examples": lambda: within(F, Y, C, where=jnp.ones(5, bool)),
            "axis_name: a number": lambda: within(F, Y, C, axis_name=0),
        },
    ),
    *(
        Example(
            name="features.between_class_angle",
            call=lambda key, centers, variant=variant: angle(centers, variant=variant),
            arrays={"centers": normal(8, 12)},
            rows=("centers",),
            result="scalar",
            wrt=("centers",),
            singular=({"centers": np.zeros((8, 12))}, {"centers": np.ones((8, 12))}, {"centers": 1e4 * np.sign(normal(8, 12))}),
            bad={
                "centers: one class": lambda: angle(jnp.ones((1, 3))),
                "centers: integers": lambda: angle(jnp.ones((2, 3), int)),
                "centers: rank": lambda: angle(jnp.ones(3)),
                "variant: misspelt": lambda: angle(C, variant="mean_min_angles"),
            },
        )
        for variant in ("mean_min_angle", "min_angle", "cosine")
    ),
    Example(
        name="features.neural_collapse",
        call=lambda key, features, labels, centers, where: technique(center_gradient_scale=1.0).loss(
            centers, features, labels, 10, where=where
        ),
        mapped=lambda axis_name, key, features, labels, centers, where: technique(axis_name=axis_name).loss(
            centers, features, labels, 10, where=where
        ),
        arrays={**FEATURES, "centers": normal(3, 5, seed=3), "where": WHERE},
        rows=("features", "labels", "where"),
        result="scalar",
        wrt=("features", "centers"),
        identity=lambda key, features, labels, centers, where: (
            technique(lambda_w=0.0, lambda_b=0.0).loss(centers, features, labels, 0),
            jnp.zeros(()),
        ),
        singular=(*DEGENERATE, {"centers": np.zeros((3, 5))}, {"where": np.zeros(8, bool)}),
        bad={
            **feature_errors(lambda features, labels: collapse(2, 3).loss(C, features, labels, 0)),
            "num_classes: one": lambda: collapse(1, 3),
            "num_classes: no integer": lambda: collapse(2.0, 3),
            "dim: none": lambda: collapse(2, 0),
            "lambda_w: negative": lambda: collapse(2, 3, lambda_w=-0.1),
            "lambda_w: NaN": lambda: collapse(2, 3, lambda_w=float("nan")),
            "lambda_b: negative": lambda: collapse(2, 3, lambda_b=-0.1),
            "lambda_b: NaN": lambda: collapse(2, 3, lambda_b=float("nan")),
            "start_step: negative": lambda: collapse(2, 3, start_step=-1),
            "start_step: a fraction": lambda: collapse(2, 3, start_step=0.5),
            "center_gradient_scale: negative": lambda: collapse(2, 3, center_gradient_scale=-1.0),
            "center_gradient_scale: a schedule": lambda: collapse(2, 3, center_gradient_scale=lambda step: 1.0),
            "variant: misspelt": lambda: collapse(2, 3, variant="cosines"),
            "axis_name: a number": lambda: collapse(2, 3, axis_name=0),
            "key: a seed": lambda: collapse(2, 3).init(0),
            "centers: another number of classes": lambda: collapse(3, 3).loss(C, F, Y, 0),
            "step: none for a schedule": lambda: collapse(2, 3, lambda_w=lambda step: 0.1).loss(C, F, Y, None),
            "where: not boolean": lambda: collapse(2, 3).loss(C, F, Y, 0, where=jnp.ones(4)),
        },
    ),
    Example(
        name="features.neural_collapse",
        call=lambda key, features, labels, centers: technique(lambda_w=lambda step: 0.001 * step).loss(
            centers, features, labels, 10
        ),
        arrays={**FEATURES, "centers": normal(3, 5, seed=3)},
        rows=("features", "labels"),
        result="scalar",
        wrt=("features", "centers"),
        surrogate=True,
    ),
)
