"""Examples of `regjax.weights.penalties.distribution`."""

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal
from tests.contracts.table.weights import ONES, TREE, ZEROS, P, refused, wrong_where

moments, penalty = rj.weights.kurtosis_skewness, rj.weights.weight_distribution_penalty
wrong = lambda params=P, **given: penalty(params, **given)
NAN = float("nan")

EXAMPLES = (
    Example(
        name="weights.kurtosis_skewness",
        call=lambda key, w: moments(w),
        arrays={"w": normal(8, 3)},
        rows=("w",),
        result="scalar",
        wrt=("w",),
        singular=({"w": np.zeros((8, 3))}, {"w": np.full((8, 3), 0.1)}, {"w": 1e4 * np.eye(8, 3)}),
        bad={"w: integers": lambda: moments(jnp.ones(3, int)), "w: a text": lambda: moments("kernel")},
    ),
    Example(
        name="weights.weight_distribution_penalty",
        call=lambda key, params: penalty(params),
        arrays=TREE,
        result="scalar",
        wrt=("params",),
        tree="params",
        singular=(ZEROS, ONES),
        identity=lambda key, params: (penalty(params, kurtosis_weight=0.0, skewness_weight=0.0), jnp.zeros(())),
        bad={
            **wrong_where(wrong),
            **refused(wrong, "kurtosis_weight", "skewness_weight"),
            "kurtosis_target: NaN": lambda: wrong(kurtosis_target=NAN),
            "skewness_target: a string": lambda: wrong(skewness_target="none"),
            "skip_first: a number": lambda: wrong(skip_first=1),
        },
    ),
)
