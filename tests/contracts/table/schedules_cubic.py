"""Examples of `regjax.schedules`: the sparsity of gradual pruning."""

import functools

import regjax as rj
from tests.contracts.table.losses import refusals
from tests.contracts.table.schedules import schedule, zero

cubic = rj.schedules.cubic_sparsity

EXAMPLES = (
    schedule(
        "cubic_sparsity",
        cubic(0.8, start=1, end=5),
        identity=lambda step: (cubic(0.0, start=1, end=5)(step), zero(step)),
        bad={
            **refusals(functools.partial(cubic, start=0, end=1), "target", negative=-0.1, **{"above 1": 1.1}),
            "start: negative": lambda: cubic(0.5, start=-1, end=1),
            "start: a fraction": lambda: cubic(0.5, start=0.5, end=1),
            "end: before start": lambda: cubic(0.5, start=2, end=1),
        },
    ),
)
