"""Examples of checkered regression: classes as sums of several softmax variables."""

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal

Z = jnp.ones((4, 2, 3))
Y = jnp.zeros(4, int)
HEADS = ({"logits": np.zeros((8, 2, 3))}, {"logits": 1e4 * np.sign(normal(8, 2, 3))}, {"logits": 1e4 * normal(8, 2, 3, seed=5)})
SCORES = ({"logits": np.zeros((8, 3))}, {"logits": 1e4 * np.sign(normal(8, 3))}, {"logits": 1e4 * normal(8, 3, seed=5)})

EXAMPLES = (
    Example(
        name="losses.checkered",
        call=lambda key, logits, labels: rj.losses.checkered(logits, labels),
        arrays={"logits": normal(8, 3, 4), "labels": ids(8, classes=4)},
        rows=("logits", "labels"),
        result="rows",
        wrt=("logits",),
        singular=tuple({"logits": np.repeat(s["logits"][..., :1], 4, -1).repeat(2, 1)[:, :3]} for s in HEADS),
        bad={
            "logits: integers": lambda: rj.losses.checkered(jnp.ones((4, 2, 3), int), Y),
            "logits: no heads' axis": lambda: rj.losses.checkered(jnp.ones(3), 0),
            "logits: no head": lambda: rj.losses.checkered(jnp.ones((4, 0, 3)), Y),
            "logits: no class": lambda: rj.losses.checkered(jnp.ones((4, 2, 0)), Y),
            "labels: rank": lambda: rj.losses.checkered(Z, jnp.zeros((4, 2), int)),
            "labels: booleans": lambda: rj.losses.checkered(Z, jnp.zeros(4, bool)),
            "labels: probabilities of other classes": lambda: rj.losses.checkered(Z, jnp.ones((4, 2))),
            "axis: out of range": lambda: rj.losses.checkered(Z, Y, axis=3),
            "axis: a float": lambda: rj.losses.checkered(Z, Y, axis=1.0),
        },
    ),
    Example(
        name="losses.checkered",
        call=lambda key, logits, labels: rj.losses.checkered(logits, labels),
        arrays={"logits": normal(8, 2, 3), "labels": ids(8, classes=3)},
        rows=("logits", "labels"),
        result="rows",
        wrt=("logits",),
        singular=HEADS,
    ),
    Example(
        name="losses.binary_checkoid",
        call=lambda key, logits: rj.losses.binary_checkoid(logits),
        arrays={"logits": normal(8, 3)},
        rows=("logits",),
        result="rows",
        wrt=("logits",),
        singular=SCORES,
        bad={
            "logits: integers": lambda: rj.losses.binary_checkoid(jnp.ones((4, 3), int)),
            "logits: a number": lambda: rj.losses.binary_checkoid(jnp.float32(1.0)),
            "logits: no score": lambda: rj.losses.binary_checkoid(jnp.ones((4, 0))),
            "axis: out of range": lambda: rj.losses.binary_checkoid(jnp.ones((4, 3)), axis=2),
            "axis: a float": lambda: rj.losses.binary_checkoid(jnp.ones((4, 3)), axis=1.0),
        },
    ),
    Example(
        name="losses.binary_checkered",
        call=lambda key, logits, labels: rj.losses.binary_checkered(logits, labels),
        arrays={"logits": normal(8, 3), "labels": ids(8, classes=2)},
        rows=("logits", "labels"),
        result="rows",
        wrt=("logits",),
        singular=SCORES,
        bad={
            "logits: integers": lambda: rj.losses.binary_checkered(jnp.ones((4, 3), int), Y),
            "logits: no score": lambda: rj.losses.binary_checkered(jnp.ones((4, 0)), Y),
            "labels: floats": lambda: rj.losses.binary_checkered(jnp.ones((4, 3)), jnp.zeros(4)),
            "labels: rank": lambda: rj.losses.binary_checkered(jnp.ones((4, 3)), jnp.zeros((4, 1), int)),
            "axis: out of range": lambda: rj.losses.binary_checkered(jnp.ones((4, 3)), Y, axis=2),
        },
    ),
)
