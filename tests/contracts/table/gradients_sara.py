"""Examples of `regjax.gradients`: sparse adaptation, and the decay of irrelevant weights."""

import optax

import regjax as rj
from tests.contracts.table.gradients import refused, transformation, wrong_moments, wrong_where


def sara(learning_rate=0.1, **given):
    return rj.gradients.sara(learning_rate, **{"threshold": 0.5, "progressive_step": 1, **given})


def decay(inner=None, decay=0.01, **given):
    return rj.gradients.irrelevance_decay(optax.sgd(0.1) if inner is None else inner, decay, **given)


EXAMPLES = (
    transformation(
        "sara",
        sara,
        # With all weights below the threshold it is AdamW.
        zero=lambda: sara(threshold=1e30),
        plain=lambda: optax.adamw(0.1, weight_decay=0.01),
        wrt=(),  # the first step of Adam is the sign of the gradient
        tree=None,  # AdamW, as in optax, takes floating leaves only
        bad={
            **refused(sara, "learning_rate", "threshold", "weight_decay"),
            **wrong_moments(sara),
            **wrong_where(sara),
            "progressive_step: a fraction": lambda: sara(progressive_step=0.5),
        },
    ),
    transformation(
        "irrelevance_decay",
        decay,
        zero=lambda: decay(decay=0.0),
        plain=lambda: optax.sgd(0.1),
        tree=None,  # nor does SGD take others
        bad={
            "inner: a function": lambda: decay(inner=optax.sgd),
            "gate: misspelt": lambda: decay(gate="hinged"),
            **refused(decay, "decay", "gradient_scale"),
            **wrong_where(decay),
        },
    ),
)
