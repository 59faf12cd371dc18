"""Examples of bounded forgetting, as an objective and as its score."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example
from tests.contracts.table.objectives import ARRAYS, SINGULAR, loss

forget, score = rj.objectives.bounded_forgetting, rj.diagnostics.forgetting_score

EXAMPLES = (
    Example(
        name="objectives.bounded_forgetting",
        call=lambda key, params, x: forget(loss, bound=50.0)(params, x),
        mapped=lambda axis, key, params, x: forget(lambda *args: jax.lax.pmean(loss(*args), axis), bound=50.0)(params, x),
        arrays=ARRAYS,
        rows=("x",),
        result="scalar",
        wrt=("params",),
        tree="params",
        singular=SINGULAR,
        objective=partial(forget, bound=50.0),
        flops=1.02,
        bad={
            "bound: NaN": lambda: forget(loss, bound=float("nan")),
            "bound: a string": lambda: forget(jnp.ones(()), bound="high"),
            "bound: a schedule for a number": lambda: forget(jnp.ones(()), bound=lambda step: 1.0),
            "bound: a schedule without step": lambda: forget(lambda p: jnp.sum(p), bound=lambda step: 1.0)(jnp.ones(2)),
            "loss_forget: a vector": lambda: forget(jnp.ones(2), bound=1.0),
            "loss_forget: an integer": lambda: forget(3, bound=1.0),
            "has_aux: a number": lambda: forget(loss, bound=1.0, has_aux=1),
        },
    ),
    Example(
        name="diagnostics.forgetting_score",
        call=lambda key, drop, acc_remain: score(drop, acc_remain),
        arrays={"drop": np.linspace(0.1, 0.9, 8), "acc_remain": np.linspace(0.8, 0.2, 8)},
        rows=("drop", "acc_remain"),
        result="rows",
        wrt=("drop", "acc_remain"),
        singular=({"drop": np.zeros(8)}, {"drop": -np.linspace(0.8, 0.2, 8)}, {"drop": np.zeros(8), "acc_remain": np.zeros(8)}),
        bad={
            "drop: integers": lambda: score(jnp.ones(2, int), jnp.ones(2)),
            "acc_remain: another shape": lambda: score(jnp.ones(2), jnp.ones(3)),
        },
    ),
)
