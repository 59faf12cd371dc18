"""Examples of `regjax.diagnostics`: what label noise leaves of the signal."""

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, probabilities

strength = rj.diagnostics.relative_signal_strength
X = jnp.ones((4, 3)) / 3

EXAMPLES = (
    Example(
        name="diagnostics.relative_signal_strength",
        call=lambda key, clean, noisy: strength(clean, noisy),
        arrays={"clean": probabilities(8, 5), "noisy": 0.8 * probabilities(8, 5) + 0.2 * probabilities(8, 5, seed=4)},
        rows=("clean", "noisy"),
        result="rows",
        wrt=("clean", "noisy"),
        singular=(
            {"noisy": np.full((8, 5), 0.2)},
            {"clean": np.eye(8, 5) + np.eye(8, 5, -5)},
            {"clean": np.tile([0.4, 0.4, 0.2, 0, 0], (8, 1))},
        ),
        bad={
            "clean_posterior: integers": lambda: strength(jnp.ones((4, 3), int), X),
            "clean_posterior: a number": lambda: strength(0.5, 0.5),
            "clean_posterior: no class": lambda: strength(jnp.ones((4, 0)), jnp.ones((4, 0))),
            "noisy_posterior: shape": lambda: strength(X, jnp.ones((4, 2))),
            "noisy_posterior: integers": lambda: strength(X, jnp.ones((4, 3), int)),
        },
    ),
)
