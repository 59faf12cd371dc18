"""Examples of `regjax.features`: feature distillation."""

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal

EXAMPLES = (
    Example(
        name="features.feature_distillation",
        call=lambda key, student, teacher: rj.features.feature_distillation(student, teacher),
        arrays={"student": normal(8, 3), "teacher": normal(8, 3, seed=1)},
        rows=("student", "teacher"),
        result="rows",
        wrt=("student",),
        frozen=("teacher",),
        singular=({"student": np.zeros((8, 3)), "teacher": np.zeros((8, 3))}, {"student": np.full((8, 3), 1e4)}),
        bad={
            "student: rank": lambda: rj.features.feature_distillation(jnp.ones(3), jnp.ones(3)),
            "student: integers": lambda: rj.features.feature_distillation(jnp.ones((2, 3), int), jnp.ones((2, 3))),
            "teacher: shape": lambda: rj.features.feature_distillation(jnp.ones((2, 3)), jnp.ones((1, 3))),
        },
    ),
)
