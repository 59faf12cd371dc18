"""Examples of `regjax.features`: knowledge in the similarities of examples."""

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal

transfer = rj.features.probabilistic_knowledge_transfer
F, T = jnp.ones((4, 3)), jnp.ones((4, 2))

EXAMPLES = (
    Example(
        name="features.probabilistic_knowledge_transfer",
        call=lambda key, **arrays: 100 * transfer(**arrays),
        mapped=lambda axis_name, key, **arrays: 100 * transfer(**arrays, axis_name=axis_name),
        arrays={"features": normal(8, 5), "target": normal(8, 3, seed=1), "where": np.arange(8) != 2},
        rows=("features", "target", "where"),
        result="scalar",
        wrt=("features",),
        frozen=("target",),
        singular=(
            {"features": np.zeros((8, 5))},
            {"features": np.ones((8, 5)), "target": np.zeros((8, 3))},
            {"features": 1e4 * np.sign(normal(8, 5))},
            {"where": np.zeros(8, bool)},
            {"where": np.arange(8) == 3},
        ),
        bad={
            "features: integers": lambda: transfer(F.astype(int), T),
            "features: rank": lambda: transfer(jnp.ones(3), T),
            "target: of other examples": lambda: transfer(F, jnp.ones((3, 2))),
            "target: integers": lambda: transfer(F, T.astype(int)),
            "eps: zero": lambda: transfer(F, T, eps=0.0),
            "eps: NaN": lambda: transfer(F, T, eps=float("nan")),
            "where: floats": lambda: transfer(F, T, where=jnp.ones(4)),
            "axis_name: a number": lambda: transfer(F, T, axis_name=0),
        },
    ),
    Example(
        name="features.probabilistic_knowledge_transfer",
        call=lambda key, **arrays: 100 * transfer(**arrays),
        mapped=lambda axis_name, key, **arrays: 100 * transfer(**arrays, axis_name=axis_name),
        arrays={"features": normal(8, 5), "target": normal(8, 5, seed=1)},
        rows=("features", "target"),
        result="scalar",
        wrt=("features",),
        frozen=("target",),
    ),
)
