"""Examples of `regjax.losses.expansion`."""

import functools

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal
from tests.contracts.table.losses import EXTREME, PROBABILITIES, refusals

ssre = rj.losses.ssre
Z, Y, F, C = jnp.ones((4, 5)), jnp.zeros(4, int), jnp.ones((4, 3)), jnp.ones((2, 3))
WHERE = np.array([True, False, True, True, True, False, True, True])

EXAMPLES = (
    Example(
        name="losses.ssre",
        call=lambda key, logits, labels, features, old, prototypes, where: ssre(
            logits, labels, features, old, prototypes, temperature=0.5, where=where
        ),
        mapped=lambda axis_name, key, logits, labels, features, old, prototypes, where: ssre(
            logits, labels, features, old, prototypes, temperature=0.5, where=where, axis_name=axis_name
        ),
        arrays={
            "logits": normal(8, 5),
            "labels": ids(8, classes=5),
            "features": normal(8, 3, seed=2),
            "old": normal(8, 3, seed=3),
            "prototypes": normal(4, 3, seed=4),
            "where": WHERE,
        },
        rows=("logits", "labels", "features", "old", "where"),
        result="scalar",
        wrt=("logits", "features"),
        frozen=("old", "prototypes"),
        singular=(
            *EXTREME,
            {"labels": PROBABILITIES},
            {"features": np.zeros((8, 3))},
            {"old": normal(8, 3, seed=2)},
            {"prototypes": np.zeros((4, 3))},
            {"prototypes": np.ones((4, 3)), "features": 1e4 * np.ones((8, 3))},
            {"where": np.zeros(8, bool)},
        ),
        bad={
            "logits: rank": lambda: ssre(Z[0], Y[0], F, F, C),
            "logits: integers": lambda: ssre(jnp.ones((4, 5), int), Y, F, F, C),
            "labels: rank": lambda: ssre(Z, jnp.zeros((4, 1), int), F, F, C),
            "features: examples": lambda: ssre(Z, Y, F[:3], F, C),
            "features: integers": lambda: ssre(Z, Y, jnp.ones((4, 3), int), F, C),
            "old_features: shape": lambda: ssre(Z, Y, F, jnp.ones((4, 2)), C),
            "prototypes: dimension": lambda: ssre(Z, Y, F, F, jnp.ones((2, 4))),
            "prototypes: none": lambda: ssre(Z, Y, F, F, jnp.ones((0, 3))),
            **refusals(functools.partial(ssre, Z, Y, F, F, C), "temperature", zero=0.0, negative=-1.0),
            "temperature: a schedule": lambda: ssre(Z, Y, F, F, C, temperature=lambda step: 0.1),
            "stop_gradient_weights: a number": lambda: ssre(Z, Y, F, F, C, stop_gradient_weights=1),
            "distill_reduction: misspelt": lambda: ssre(Z, Y, F, F, C, distill_reduction="men"),
            "where: shape": lambda: ssre(Z, Y, F, F, C, where=jnp.ones(3, bool)),
            "where: weights": lambda: ssre(Z, Y, F, F, C, where=jnp.ones(4)),
            "axis_name: a number": lambda: ssre(Z, Y, F, F, C, axis_name=0),
        },
    ),
)
