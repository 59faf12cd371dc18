"""Examples of symmetries of weights, and of how well a function keeps them."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal

SWAP = np.array([[[0.0, 1.0], [1.0, 0.0]]])
projector, error = rj.weights.group_projector, rj.diagnostics.equivariance_error
X = jnp.ones((4, 2))
flip = lambda x: jnp.flip(x, -1)
same = lambda x: x

EXAMPLES = (
    Example(
        name="weights.group_projector",
        call=lambda key: projector(SWAP, SWAP),
        arrays={},
        result="other",
        bad={
            "generators_in: one matrix": lambda: projector(SWAP[0], SWAP),
            "generators_in: not square": lambda: projector(np.ones((1, 2, 3)), SWAP),
            "generators_in: none": lambda: projector(None, SWAP),
            "generators_in: no generator": lambda: projector(SWAP[:0], SWAP[:0]),
            "generators_in: NaN": lambda: projector(SWAP * np.nan, SWAP),
            "generators_in: complex": lambda: projector(SWAP * 1j, SWAP),
            "generators_in: traced": lambda: jax.jit(projector)(SWAP, SWAP),
            "generators_out: another number": lambda: projector(SWAP, np.ones((2, 1, 1))),
            "generators_out: a string": lambda: projector(SWAP, "swap"),
        },
    ),
    Example(
        name="diagnostics.equivariance_error",
        call=lambda key, x, w, where: error(lambda x: jnp.tanh(x @ w), x, flip, flip, where=where),
        arrays={"x": normal(8, 2), "w": normal(2, 2, seed=1), "where": normal(8, seed=2) > -1},
        rows=("x", "where"),
        result="scalar",
        wrt=("x", "w"),
        dtype=None,
        singular=({"x": np.zeros((8, 2))}, {"w": np.zeros((2, 2))}, {"w": np.ones((2, 2))}, {"where": np.zeros(8, bool)}),
        bad={
            "f: no function": lambda: error(3.0, X, same, same),
            "f: loses the batch": lambda: error(lambda x: x[:1], X, same, same),
            "f: returns integers": lambda: error(lambda x: x.astype(int), X, same, same),
            "x: integers": lambda: error(same, X.astype(int), same, same),
            "act_in: no function": lambda: error(same, X, None, same),
            "act_out: no function": lambda: error(same, X, same, None),
            "act_out: another shape": lambda: error(same, X, same, lambda x: x[:, :1]),
            "where: weights": lambda: error(same, X, same, same, where=jnp.ones(4)),
        },
    ),
)
