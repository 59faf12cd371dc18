"""Examples of `regjax.diagnostics.confidence.logit_adjustment`."""

import functools

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal
from tests.contracts.table.losses import EXTREME, X, refusals

adjust = rj.diagnostics.adjust_logits
N = jnp.array([3, 2, 1])

EXAMPLES = (
    Example(
        name="diagnostics.adjust_logits",
        call=lambda key, logits, class_counts: adjust(logits, class_counts),
        arrays={"logits": normal(8, 5), "class_counts": np.array([50.0, 20.0, 0.0, 7.0, 3.0])},
        rows=("logits",),
        result="rows",
        wrt=("logits",),
        frozen=("class_counts",),
        identity=lambda key, logits, class_counts: (adjust(logits, class_counts, tau=0.0), logits),
        singular=EXTREME + ({"class_counts": np.zeros(5)},),
        bad={
            **refusals(functools.partial(adjust, X, N), "tau", negative=-0.1),
            "tau: a schedule": lambda: adjust(X, N, tau=lambda step: 0.1),
            "logits: integers": lambda: adjust(jnp.ones((4, 3), int), N),
            "axis: out of range": lambda: adjust(X, N, axis=2),
            "class_counts: of other classes": lambda: adjust(X, jnp.ones(4)),
            "class_counts: booleans": lambda: adjust(X, jnp.ones(3, bool)),
        },
    ),
)
