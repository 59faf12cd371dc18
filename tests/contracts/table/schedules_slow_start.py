"""Examples of `regjax.schedules`: the learning rate of adversarial fine-tuning."""

import jax.numpy as jnp

import regjax as rj
from tests.contracts.table.schedules import NAN, schedule, zero

rate = rj.schedules.slow_start_fast_decay


def made(**options):
    return rate(**{"total_steps": 10, "peak_value": 0.1, **options})


EXAMPLES = (
    schedule(
        "slow_start_fast_decay",
        made(),
        identity=lambda step: (made(peak_value=0.0)(step), zero(step)),
        bad={
            "step: a text": lambda: made()("first"),
            "total_steps: zero": lambda: made(total_steps=0),
            "total_steps: a fraction": lambda: made(total_steps=10.0),
            "peak_value: negative": lambda: made(peak_value=-1.0),
            "peak_value: NaN": lambda: made(peak_value=NAN),
            "start_value: negative": lambda: made(start_value=-1.0),
            "final_value: negative": lambda: made(final_value=-1.0),
            "final_value: zero with exponential decay": lambda: made(final_value=0.0),
            "warm_fraction: above 1": lambda: made(warm_fraction=1.5),
            "warm_fraction: an array": lambda: made(warm_fraction=jnp.array(0.5)),
            "decay: misspelt": lambda: made(decay="exponentially"),
        },
    ),
)
