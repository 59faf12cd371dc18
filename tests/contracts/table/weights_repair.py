"""Examples of `regjax.weights`: surgery on trained weights."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal

KEY = jax.random.key(0)
V, Q, D = jnp.ones((4, 2)), jnp.ones((2, 4)), jnp.ones(4)
attention, fit, directions = rj.weights.attention_linear_map, rj.weights.linearize_mlp, rj.weights.singular_defect_directions

EXAMPLES = (
    Example(
        name="weights.attention_linear_map",
        call=lambda key, **arrays: attention(**arrays),
        arrays={
            "value_kernel": normal(4, 2, 3),
            "proj_kernel": normal(2, 3, 4, seed=1),
            "norm_scale": normal(4, seed=2),
            "layer_scale": normal(4, seed=3),
        },
        result="other",
        wrt=("value_kernel", "proj_kernel", "norm_scale", "layer_scale"),
        singular=({"value_kernel": np.zeros((4, 2, 3))},),
        identity=lambda key, value_kernel, proj_kernel, norm_scale, layer_scale: (
            attention(value_kernel, proj_kernel, norm_scale, 0 * layer_scale),
            jnp.eye(4),
        ),
        bad={
            "value_kernel: a vector": lambda: attention(D, Q),
            "value_kernel: integers": lambda: attention(V.astype(int), Q),
            "proj_kernel: of other heads": lambda: attention(V, jnp.ones((3, 4))),
            "proj_kernel: of another width": lambda: attention(V, jnp.ones((2, 3))),
            "norm_scale: of another width": lambda: attention(V, Q, jnp.ones(3)),
            "layer_scale: a matrix": lambda: attention(V, Q, D, jnp.ones((4, 1))),
            "layer_scale: a word": lambda: attention(V, Q, D, "none"),
        },
    ),
    Example(
        name="weights.linearize_mlp",
        call=lambda key, kernel: fit(lambda x: jax.nn.silu(x @ kernel), key, 4, num_samples=50, chunk_size=20),
        arrays={"kernel": normal(4, 3)},
        result="other",
        random=True,
        wrt=("kernel",),
        singular=({"kernel": np.zeros((4, 3))},),
        bad={
            "fn: no function": lambda: fit(3, KEY, 4),
            "fn: returns a vector": lambda: fit(lambda x: x[:, 0], KEY, 4),
            "fn: returns integers": lambda: fit(lambda x: x.astype(int), KEY, 4),
            "key: a number": lambda: fit(lambda x: x, 0, 4),
            "dim: zero": lambda: fit(lambda x: x, KEY, 0),
            "num_samples: fewer than dimensions": lambda: fit(lambda x: x, KEY, 4, num_samples=3),
            "chunk_size: zero": lambda: fit(lambda x: x, KEY, 4, chunk_size=0),
        },
    ),
    Example(
        name="weights.singular_defect_directions",
        call=lambda key, blocks: directions(blocks),
        arrays={"blocks": np.eye(4) + 0.5 * normal(3, 4, 4)},
        result="other",
        frozen=("blocks",),
        singular=({"blocks": np.zeros((3, 4, 4))}, {"blocks": np.stack([np.eye(4)] * 3)}),
        bad={
            "blocks: one matrix": lambda: directions(jnp.eye(3)),
            "blocks: no squares": lambda: directions(jnp.ones((2, 3, 4))),
            "blocks: none": lambda: directions([]),
            "blocks: of two shapes": lambda: directions([jnp.eye(3), jnp.eye(4)]),
            "blocks: integers": lambda: directions(jnp.ones((2, 3, 3), int)),
        },
    ),
)
