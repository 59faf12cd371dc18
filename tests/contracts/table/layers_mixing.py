"""Examples of `regjax.layers`: mixing of features."""

import functools

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal

H = jnp.ones((4, 3))
FLIP = jnp.arange(4)[::-1]
mix = functools.partial(rj.layers.mix_features, H)

EXAMPLES = (
    Example(
        name="layers.mix_features",
        call=lambda key, h, lam, partner: rj.layers.mix_features(h, lam=lam, partner=partner),
        arrays={
            "h": normal(8, 3, 2),
            "lam": np.array([0.0, 0.1, 0.3, 0.42, 0.5, 0.7, 0.9, 1.0]),
            "partner": np.array([3, 0, 1, 2, 7, 4, 6, 5], np.int32),
        },
        rows=("h", "lam", "partner"),
        result="other",
        dtype="input",
        wrt=("h", "lam"),
        identity=lambda key, h, lam, partner: (rj.layers.mix_features(h, lam=1.0, partner=partner), h),
        singular=({"h": np.zeros((8, 3, 2))}, {"h": 1e4 * np.sign(normal(8, 3, 2))}),
        bad={
            "h: integers": lambda: rj.layers.mix_features(jnp.ones((4, 3), int), lam=0.5, partner=FLIP),
            "h: a scalar": lambda: rj.layers.mix_features(jnp.ones(()), lam=0.5, partner=FLIP),
            "lam: above 1": lambda: mix(lam=1.5, partner=FLIP),
            "lam: NaN": lambda: mix(lam=float("nan"), partner=FLIP),
            "lam: of other examples": lambda: mix(lam=jnp.ones(3), partner=FLIP),
            "lam: a schedule": lambda: mix(lam=lambda step: 0.5, partner=FLIP),
            "partner: floats": lambda: mix(lam=0.5, partner=jnp.ones(4)),
            "partner: of other examples": lambda: mix(lam=0.5, partner=jnp.arange(3)),
        },
    ),
    Example(
        name="layers.mix_features",
        call=lambda key, h: rj.layers.mix_features(h, lam=0.3, partner=jnp.array([[1, 0, 3, 2], [2, 3, 0, 1]])),
        arrays={"h": normal(8, 3)},
        rows=("h",),
        result="other",
        dtype="input",
        wrt=("h",),
    ),
)
