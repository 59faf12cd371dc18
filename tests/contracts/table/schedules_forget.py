"""Examples of `regjax.schedules`: the share of examples left out."""

import functools

import regjax as rj
from tests.contracts.table.losses import refusals
from tests.contracts.table.schedules import schedule, zero

rate = rj.schedules.forget_rate

EXAMPLES = (
    schedule(
        "forget_rate",
        lambda step: rate(step, forget_rate=0.4, num_gradual=5, exponent=2.0),
        identity=lambda step: (rate(step, forget_rate=0.0), zero(step)),
        bad={
            "epoch: a text": lambda: rate("first", forget_rate=0.4),
            **refusals(functools.partial(rate, 1), "forget_rate", negative=-0.1, **{"above 1": 1.1}),
            "forget_rate: a schedule": lambda: rate(1, forget_rate=lambda step: 0.1),
            "num_gradual: negative": lambda: rate(1, forget_rate=0.4, num_gradual=-1),
            "num_gradual: a float": lambda: rate(1, forget_rate=0.4, num_gradual=5.0),
            **refusals(functools.partial(rate, 1, forget_rate=0.4), "exponent", zero=0.0),
        },
    ),
)
