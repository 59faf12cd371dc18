"""Examples of `regjax.schedules`: geometric steps and warm restarts."""

import jax.numpy as jnp

import regjax as rj
from tests.contracts.table.schedules import NAN, schedule, zero

s = rj.schedules


def restarts(peak_value=1.0, **given):
    return s.sgdr(peak_value, **{"steps_per_epoch": 2, "first_period_epochs": 1, **given})


EXAMPLES = (
    schedule(
        "geometric_step",
        s.geometric_step(0.5, rho=0.9),
        identity=lambda step: (s.geometric_step(0.0, rho=0.9)(step), zero(step)),
        bad={
            "step: a text": lambda: s.geometric_step(0.5, rho=0.9)("first"),
            "eta: negative": lambda: s.geometric_step(-0.5, rho=0.9),
            "eta: NaN": lambda: s.geometric_step(NAN, rho=0.9),
            "rho: above 1": lambda: s.geometric_step(0.5, rho=1.1),
            "rho: a vector": lambda: s.geometric_step(0.5, rho=jnp.ones(2)),
        },
    ),
    schedule(
        "sgdr",
        restarts(),
        identity=lambda step: (restarts(0.0)(step), zero(step)),
        bad={
            "step: a text": lambda: restarts()("first"),
            "peak_value: negative": lambda: restarts(-1.0),
            "end_value: NaN": lambda: restarts(end_value=NAN),
            "steps_per_epoch: zero": lambda: restarts(steps_per_epoch=0),
            "first_period_epochs: a fraction": lambda: restarts(first_period_epochs=0.5),
            "period_multiplier: zero": lambda: restarts(period_multiplier=0),
        },
    ),
)
