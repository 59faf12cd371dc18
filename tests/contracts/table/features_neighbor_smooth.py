"""Examples of `regjax.features`: smooth tokens."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal

smooth = rj.features.neighbor_smooth_loss
T, U = jnp.ones((5, 5, 3)), jnp.ones(3)
TOKENS = 0.3 * normal(8, 5, 5, 4) + np.array([0.0, 1.0, 1.0, 0.0])
TOKENS[:, 2, 2] += np.array([6.0, 0.0, 0.0, 2.0])


def batch(key, tokens, direction):
    one = lambda x: smooth(x, direction, mask_threshold=1.5, min_count=1)
    return jax.vmap(one)(tokens)


EXAMPLES = (
    Example(
        name="features.neighbor_smooth_loss",
        call=batch,
        arrays={"tokens": TOKENS, "direction": np.array([1.0, 0.2, 0.0, 0.3])},
        rows=("tokens",),
        result="rows",
        wrt=("tokens",),
        surrogate=True,
        frozen=("direction",),
        singular=(
            {"tokens": np.zeros_like(TOKENS)},
            {"tokens": np.ones_like(TOKENS)},
            {"tokens": 1e4 * np.sign(TOKENS)},
            {"direction": np.zeros(4)},
        ),
        bad={
            "tokens: a batch": lambda: smooth(T[None], U),
            "tokens: integers": lambda: smooth(T.astype(int), U),
            "tokens: too few": lambda: smooth(T[:2], U),
            "tokens: too few for five": lambda: smooth(T[:4], U, kernel_size=5),
            "direction: of another width": lambda: smooth(T, jnp.ones(2)),
            "mask_threshold: NaN": lambda: smooth(T, U, mask_threshold=float("nan")),
            "temperature: zero": lambda: smooth(T, U, temperature=0.0),
            "kernel_size: four": lambda: smooth(T, U, kernel_size=4),
            "min_count: zero": lambda: smooth(T, U, min_count=0),
        },
    ),
)
