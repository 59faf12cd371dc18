"""Examples of `regjax.losses.truncated`."""

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal

fn = rj.losses.truncated_cross_entropy
Z, Y = jnp.ones((4, 3)), jnp.zeros(4, int)
WHERE = np.array([True, True, False, True, True])

EXAMPLES = (
    Example(
        name="losses.truncated_cross_entropy",
        call=lambda key, logits, full_logits, labels: (
            fn(logits, full_logits, labels) + fn(logits, full_logits, labels, where=WHERE)
        ),
        arrays={"logits": normal(8, 5), "full_logits": normal(8, 5, seed=1), "labels": ids(8, classes=2)},
        rows=("logits", "full_logits", "labels"),
        result="rows",
        wrt=("logits",),
        singular=(
            {"logits": np.zeros((8, 5)), "full_logits": np.zeros((8, 5))},
            {"logits": 1e4 * np.sign(normal(8, 5)), "full_logits": 1e4 * np.sign(normal(8, 5, seed=1))},
        ),
        bad={
            "logits: integers": lambda: fn(jnp.ones((4, 3), int), Z, Y),
            "full_logits: shape": lambda: fn(Z, jnp.ones((4, 2)), Y),
            "logits: shape": lambda: fn(jnp.ones((3, 3)), Z, Y),
            "labels: shape": lambda: fn(Z, Z, Y[:2]),
            "axis: out of range": lambda: fn(Z, Z, Y, axis=2),
            "where: numbers": lambda: fn(Z, Z, Y, where=jnp.ones(3)),
        },
    ),
)
