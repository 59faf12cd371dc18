"""Examples of `regjax.schedules`: drop-path rates over depth and training."""

import jax.numpy as jnp

import regjax as rj
from tests.contracts.example import Example
from tests.contracts.table.schedules import NAN, STEPS

s = rj.schedules
SETTINGS = {"num_layers": 3, "total_steps": 10}


def errors(call) -> dict:
    """What both refuse; ``call(step, **options)`` is given each."""
    return {
        "step: a text": lambda: call("first"),
        "keep_prob: above 1": lambda: call(0, keep_prob=1.5),
        "keep_prob: NaN": lambda: call(0, keep_prob=NAN),
        "keep_prob: a vector": lambda: call(0, keep_prob=jnp.ones(2)),
        "num_layers: zero": lambda: call(0, num_layers=0),
        "total_steps: zero": lambda: call(0, total_steps=0),
        "total_steps: a fraction": lambda: call(0, total_steps=10.0),
        "version: unknown": lambda: call(0, version="v4"),
    }


def rate(step, **options):
    return s.scheduled_drop_path_rate(step, **{"layer": 0, **SETTINGS, **options})


def rates(step, **options):
    return s.scheduled_drop_path_rates(step, **{**SETTINGS, **options})


EXAMPLES = (
    Example(
        name="schedules.scheduled_drop_path_rate",
        call=lambda key, step: [rate(step, version=version) for version in ("v1", "v2", "v3")],
        arrays={"step": STEPS},
        rows=("step",),
        result="rows",
        identity=lambda key, step: (rate(step, keep_prob=jnp.ones(())), jnp.zeros(step.shape)),
        bad={
            **errors(rate),
            "layer: beyond the last": lambda: rate(0, layer=3),
            "layer: negative": lambda: rate(0, layer=-1),
            "layer: a fraction": lambda: rate(0, layer=0.5),
        },
    ),
    Example(
        name="schedules.scheduled_drop_path_rates",
        call=lambda key, step: [rates(step, version=version) for version in ("v1", "v2", "v3")],
        arrays={"step": STEPS},
        rows=("step",),
        result="rows",
        identity=lambda key, step: (rates(step, keep_prob=jnp.ones(())), jnp.zeros((*step.shape, 3))),
        bad=errors(rates),
    ),
)
