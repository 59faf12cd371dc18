"""Examples of `regjax.losses`."""

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal

LOGITS = {"logits": normal(8, 5), "labels": ids(8, classes=5)}
EXTREME = (
    {"logits": np.zeros((8, 5))},
    {"logits": 1e4 * np.sign(normal(8, 5))},
)
PROBABILITIES = np.full((8, 5), 0.2)


def logit_loss(name: str, call, *, bad=None, **fields) -> Example:
    """The example of a stateless loss ``fn(logits, labels, *, axis, where)`` with its common errors."""
    fn = getattr(rj.losses, name)
    x, y = jnp.ones((4, 3)), jnp.zeros(4, int)
    common = {
        "logits: integers": lambda: fn(jnp.ones((4, 3), int), y),
        "labels: rank": lambda: fn(x, jnp.zeros((4, 1), int)),
        "labels: probabilities of other classes": lambda: fn(x, jnp.ones((4, 2))),
        "axis: out of range": lambda: fn(x, y, axis=2),
        "where: does not broadcast": lambda: fn(x, y, where=jnp.ones((4, 2), bool)),
    }
    return Example(
        name=f"losses.{name}",
        call=call,
        arrays=LOGITS,
        rows=("logits", "labels"),
        result="rows",
        wrt=("logits",),
        singular=EXTREME + ({"labels": PROBABILITIES},),
        bad={**common, **(bad or {})},
        **fields,
    )


X, Y = jnp.ones((4, 3)), jnp.zeros(4, int)

EXAMPLES = (
    logit_loss(
        "label_smoothing",
        lambda key, logits, labels: rj.losses.label_smoothing(logits, labels, alpha=0.1),
        bad={
            "alpha: above 1": lambda: rj.losses.label_smoothing(X, Y, alpha=1.5),
            "alpha: NaN": lambda: rj.losses.label_smoothing(X, Y, alpha=float("nan")),
            "alpha: a schedule": lambda: rj.losses.label_smoothing(X, Y, alpha=lambda step: 0.1),
            "off_target_only: one class": lambda: rj.losses.label_smoothing(jnp.ones((4, 1)), Y, off_target_only=True),
        },
        identity=lambda key, logits, labels: (
            rj.losses.label_smoothing(logits, labels, alpha=0.0),
            rj.losses.maxsup(logits, labels, weight=0.0),
        ),
    ),
    logit_loss(
        "maxsup",
        lambda key, logits, labels: rj.losses.maxsup(logits, labels, weight=0.1),
        bad={
            "weight: negative": lambda: rj.losses.maxsup(X, Y, weight=-0.1),
            "weight: NaN": lambda: rj.losses.maxsup(X, Y, weight=float("nan")),
            "weight: a string": lambda: rj.losses.maxsup(X, Y, weight="strong"),
        },
    ),
    Example(
        name="losses.max_suppression",
        call=lambda key, logits: rj.losses.max_suppression(logits),
        arrays={"logits": normal(8, 5)},
        rows=("logits",),
        result="rows",
        wrt=("logits",),
        singular=EXTREME,
        bad={"logits: integers": lambda: rj.losses.max_suppression(jnp.ones((4, 3), int))},
    ),
)
