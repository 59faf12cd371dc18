"""Examples of `regjax.weights`: weights of a fixed length."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal

PARAMS = {"kernel": normal(8, 2), "bias": normal(2, seed=1)}
P = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}


def renormalize(mask=None, **options):
    return rj.weights.renormalize(P, mask, **options)


EXAMPLES = (
    Example(
        name="weights.renormalize",
        call=lambda key, params, reference: rj.weights.renormalize(params, norm=2.0, reference=reference),
        arrays={"params": PARAMS, "reference": jax.tree.map(lambda x: 0.5 * np.cos(x), PARAMS)},
        result="other",
        dtype="input",
        wrt=("params", "reference"),
        tree="params",
        singular=(
            {"params": jax.tree.map(np.zeros_like, PARAMS)},
            {"params": jax.tree.map(lambda x: 1e30 * x, PARAMS)},
            {"reference": jax.tree.map(np.zeros_like, PARAMS)},
        ),
        bad={
            "mask: misspelt": lambda: renormalize("kernel"),
            "mask: another structure": lambda: renormalize({"other": True}),
            "mask: an integer leaf": lambda: rj.weights.renormalize({"n": jnp.arange(3)}, {"n": True}),
            "norm: 0": lambda: renormalize(norm=0.0),
            "norm: NaN": lambda: renormalize(norm=float("nan")),
            "reference: another structure": lambda: renormalize(reference={"kernel": jnp.ones((2, 2))}),
            "reference: another shape": lambda: renormalize(reference={**P, "bias": jnp.ones(3)}),
        },
    ),
)
