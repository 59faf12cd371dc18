"""Examples of `regjax.weights.reparameterisation.folding`."""

import jax.numpy as jnp

import regjax as rj
from tests.contracts.example import Example, normal

fold = rj.weights.fold_parallel_adapter
K, A = jnp.ones((3, 3, 2, 4)), jnp.ones((1, 1, 2, 4))

EXAMPLES = (
    Example(
        name="weights.fold_parallel_adapter",
        call=lambda key, kernel, adapter: fold(kernel, adapter),
        arrays={"kernel": normal(3, 1, 2, 3), "adapter": normal(1, 1, 2, 3, seed=1)},
        result="other",
        dtype="input",
        wrt=("kernel", "adapter"),
        identity=lambda key, kernel, adapter: (fold(kernel, 0 * adapter), kernel),
        bad={
            "kernel: of a dense layer": lambda: fold(jnp.ones((2, 4)), jnp.ones((2, 4))),
            "kernel: even": lambda: fold(jnp.ones((2, 3, 2, 4)), A),
            "kernel: integers": lambda: fold(jnp.ones((3, 3, 2, 4), int), A),
            "adapter: spatial": lambda: fold(K, K),
            "adapter: channels": lambda: fold(K, jnp.ones((1, 1, 4, 2))),
            "adapter: integers": lambda: fold(K, jnp.ones((1, 1, 2, 4), int)),
        },
    ),
)
