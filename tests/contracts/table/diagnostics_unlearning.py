"""Examples of `regjax.diagnostics` and of the schedule: machine unlearning."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal
from tests.contracts.table.schedules import NAN, schedule, zero

d, alpha = rj.diagnostics, rj.schedules.unlearning_alpha
PAIR = (normal(8, 3), ids(8, classes=3))
RETRAINED = d.UnlearningMetrics(0.25, 1.0, 0.75)
SHARE = np.linspace(0.1, 0.9, 6)


def metrics(forget=PAIR, retain=PAIR, test=PAIR, **given):
    return d.unlearning_metrics(forget, retain, test, **given)


def attack(retain=SHARE, test=SHARE, forget=SHARE):
    return d.membership_inference_efficacy(retain, test, forget)


def wrong_confidence(argument: str) -> dict:
    short = argument.split("_")[0]
    call = lambda value: lambda: attack(**{short: value})
    return {
        f"{argument}: integers": call(np.ones(6, int)),
        f"{argument}: rank": call(SHARE[:, None]),
        f"{argument}: logits": call(10 * SHARE),
        f"{argument}: NaN": call(SHARE * NAN),
        f"{argument}: traced": lambda: jax.jit(lambda x: attack(**{short: x}))(SHARE),
    }


EXAMPLES = (
    Example(
        name="diagnostics.unlearning_metrics",
        call=lambda key, logits, labels: metrics(test=(logits, labels), retrained=RETRAINED),
        arrays={"logits": PAIR[0], "labels": PAIR[1]},
        rows=("logits", "labels"),
        result="scalar",
        singular=({"logits": np.zeros((8, 3))},),
        bad={
            "forget: logits alone": lambda: metrics(forget=PAIR[0]),
            "forget: integer logits": lambda: metrics(forget=(np.ones((8, 3), int), PAIR[1])),
            "retain: no example": lambda: metrics(retain=(np.zeros((0, 3)), np.zeros(0, int))),
            "retain: labels of others": lambda: metrics(retain=(PAIR[0], PAIR[1][:7])),
            "test: probabilities as labels": lambda: metrics(test=(PAIR[0], PAIR[0])),
            "retrained: a number": lambda: metrics(retrained=0.5),
        },
    ),
    Example(
        name="diagnostics.membership_inference_efficacy",
        call=lambda key: jnp.asarray(attack(), jnp.float32),
        arrays={},
        result="other",
        dtype=None,
        bad={
            **wrong_confidence("retain_confidence"),
            **wrong_confidence("test_confidence"),
            **wrong_confidence("forget_confidence"),
            "test_confidence: fewer": lambda: attack(test=SHARE[:5]),
            "forget_confidence: none": lambda: attack(forget=SHARE[:0]),
        },
    ),
    schedule(
        "unlearning_alpha",
        alpha(alpha=0.3, epochs=5, no_l1_epochs=1, steps_per_epoch=2),
        identity=lambda step: (alpha(alpha=0.0)(step), zero(step)),
        bad={
            "step: a text": lambda: alpha(alpha=0.1)("first"),
            "alpha: negative": lambda: alpha(alpha=-0.1),
            "alpha: NaN": lambda: alpha(alpha=NAN),
            "epochs: zero": lambda: alpha(alpha=0.1, epochs=0),
            "no_l1_epochs: more than all": lambda: alpha(alpha=0.1, epochs=3, no_l1_epochs=4),
            "steps_per_epoch: a fraction": lambda: alpha(alpha=0.1, steps_per_epoch=0.5),
        },
    ),
)
