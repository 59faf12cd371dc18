"""Examples of class prototypes."""

from functools import partial

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal
from tests.contracts.table.features import FEATURES, WHERE, F, Y, feature_errors

prototypes, loss = rj.features.class_prototypes, rj.features.prototype_loss
C = jnp.eye(2, 3)

EXAMPLES = (
    Example(
        name="features.class_prototypes",
        call=lambda key, features, labels, where: prototypes(features, labels, 3, where=where),
        mapped=lambda axis, key, features, labels, where: prototypes(features, labels, 3, where=where, axis_name=axis),
        arrays={**FEATURES, "where": WHERE},
        rows=("features", "labels", "where"),
        result="scalar",
        wrt=("features",),
        singular=({"where": np.zeros(8, bool)}, {"labels": np.full(8, 9, np.int32)}),
        bad={
            **feature_errors(lambda features, labels: prototypes(features, labels, 2)),
            "num_classes: zero": lambda: prototypes(F, Y, 0),
            "num_classes: a float": lambda: prototypes(F, Y, 2.0),
            "where: another number of examples": lambda: prototypes(F, Y, 2, where=jnp.ones(5, bool)),
            "axis_name: a number": lambda: prototypes(F, Y, 2, axis_name=0),
        },
    ),
    *(
        Example(
            name="features.prototype_loss",
            call=lambda key, fn=fn, **arrays: fn(**arrays),
            mapped=lambda axis, key, fn=fn, **arrays: fn(**arrays, axis_name=axis),
            arrays={**FEATURES, "prototypes": normal(3, 5, seed=3), "where": WHERE},
            rows=("features", "labels", "where"),
            result="scalar",
            wrt=("features",),
            frozen=("prototypes",),
            singular=(
                {"features": np.zeros((8, 5))},
                {"features": 1e4 * np.sign(normal(8, 5))},
                {"prototypes": np.zeros((3, 5))},
                {"labels": np.full(8, 9, np.int32)},
                {"where": np.zeros(8, bool)},
            ),
            bad={
                **feature_errors(lambda features, labels: loss(features, labels, C)),
                "prototypes: another dimension": lambda: loss(F, Y, jnp.eye(2, 4)),
                "prototypes: integers": lambda: loss(F, Y, jnp.ones((2, 3), int)),
                "prototypes: no class": lambda: loss(F, Y, jnp.ones((0, 3))),
                "distance: misspelt": lambda: loss(F, Y, C, distance="KL"),
                "where: not boolean": lambda: loss(F, Y, C, where=jnp.ones(4)),
                "axis_name: a number": lambda: loss(F, Y, C, axis_name=0),
            },
        )
        for fn in (loss, partial(loss, distance="l2"))
    ),
)
