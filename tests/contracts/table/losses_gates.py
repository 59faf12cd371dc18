"""Examples of `regjax.losses`: sharp and balanced choices between sub-networks."""

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, probabilities

PROBS = probabilities(8, 3)
P = jnp.ones((4, 2)) / 2


def gate(name: str, *, bad=None, **fields) -> Example:
    fn = getattr(rj.losses, name)
    return Example(
        name=f"losses.{name}",
        call=lambda key, probs: fn(probs),
        arrays={"probs": PROBS},
        rows=("probs",),
        result="scalar",
        wrt=("probs",),
        singular=({"probs": np.full((8, 3), 1 / 3)}, {"probs": np.tile([1.0, 0.0, 0.0], (8, 1))}),
        bad={
            "probs: integers": lambda: fn(jnp.ones((4, 2), int)),
            "probs: a vector": lambda: fn(jnp.ones(2)),
            "probs: no sub-network": lambda: fn(jnp.ones((2, 0))),
            "where: weights": lambda: fn(P, where=jnp.ones(4)),
            "where: another length": lambda: fn(P, where=jnp.ones(3, bool)),
            **(bad or {}),
        },
        **fields,
    )


EXAMPLES = (
    gate("class_separation"),
    gate(
        "class_balance",
        mapped=lambda axis_name, key, probs: rj.losses.class_balance(probs, axis_name=axis_name),
        bad={"axis_name: a number": lambda: rj.losses.class_balance(P, axis_name=1)},
    ),
)
