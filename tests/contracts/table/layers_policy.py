"""Examples of `regjax.layers`: the policy network of noise masks."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

import regjax as rj
from tests.contracts.example import Example, normal


def policy(axis_name=None):
    return rj.layers.NoiseMaskPolicy(2, grid=2, features=4, hidden=3, axis_name=axis_name, rngs=nnx.Rngs(0))


EXAMPLES = (
    Example(
        name="layers.NoiseMaskPolicy",
        call=lambda key, images: policy()(images),
        arrays={"images": normal(8, 4, 6, 2)},
        rows=("images",),
        result="rows",
        wrt=("images",),
        singular=({"images": np.zeros((8, 4, 6, 2))}, {"images": 1e4 * np.sign(normal(8, 4, 6, 2))}),
        mapped=lambda axis_name, key, images: policy(axis_name)(images),
        bad={
            "in_channels: zero": lambda: rj.layers.NoiseMaskPolicy(0, rngs=nnx.Rngs(0)),
            "grid: a fraction": lambda: rj.layers.NoiseMaskPolicy(3, 1.5, rngs=nnx.Rngs(0)),
            "features: three": lambda: rj.layers.NoiseMaskPolicy(3, features=3, rngs=nnx.Rngs(0)),
            "hidden: zero": lambda: rj.layers.NoiseMaskPolicy(3, hidden=0, rngs=nnx.Rngs(0)),
            "axis_name: a number": lambda: rj.layers.NoiseMaskPolicy(3, axis_name=0, rngs=nnx.Rngs(0)),
            "rngs: a number": lambda: rj.layers.NoiseMaskPolicy(3, rngs=0),
            "images: rank": lambda: policy()(jnp.ones((4, 4, 2))),
            "images: other channels": lambda: policy()(jnp.ones((2, 4, 4, 3))),
            "use_running_average: a number": lambda: policy()(jnp.ones((2, 4, 4, 2)), use_running_average=1),
        },
        tolerance=1e-4,
    ),
)
