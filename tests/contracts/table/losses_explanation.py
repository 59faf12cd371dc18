"""Examples of `regjax.losses`: masks that explain a network."""

import functools

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal
from tests.contracts.table.losses import refusals

MASKS = 1 / (1 + np.exp(-normal(8, 3, 4, 2)))
FLAT = ({"masks": np.zeros((8, 3, 4, 2))}, {"masks": np.ones((8, 3, 4, 2))})
M, Z, Y = jnp.ones((2, 3, 3, 1)), jnp.ones((2, 3)), jnp.zeros(2, int)

area, variation, explain = rj.losses.mask_area, rj.losses.mask_variation, rj.losses.explanation_mask_loss
explained = functools.partial(explain, Z, Y, M)

EXAMPLES = (
    Example(
        name="losses.mask_area",
        call=lambda key, masks: area(masks),
        mapped=lambda axis_name, key, masks: area(masks, axis_name=axis_name),
        arrays={"masks": MASKS},
        rows=("masks",),
        result="scalar",
        wrt=("masks",),
        singular=FLAT,
        bad={
            "masks: booleans": lambda: area(M > 0),
            **refusals(functools.partial(area, M), "power", zero=0.0),
            **refusals(functools.partial(area, M), "eps", zero=0.0),
            "axis_name: a number": lambda: area(M, axis_name=1),
        },
    ),
    Example(
        name="losses.mask_variation",
        call=lambda key, masks: variation(masks),
        mapped=lambda axis_name, key, masks: variation(masks, axis_name=axis_name),
        arrays={"masks": MASKS},
        rows=("masks",),
        result="scalar",
        wrt=("masks",),
        identity=lambda key, masks: (variation(jnp.ones_like(masks), border_penalty=0.0), jnp.zeros(())),
        singular=FLAT,
        bad={
            "masks: booleans": lambda: variation(M > 0),
            "masks: rank": lambda: variation(M[0]),
            **refusals(functools.partial(variation, M), "power", below=0.5),
            **refusals(functools.partial(variation, M), "border_penalty", negative=-0.1),
            "axis_name: a number": lambda: variation(M, axis_name=1),
        },
    ),
    Example(
        name="losses.explanation_mask_loss",
        call=lambda key, **given: explain(**given),
        mapped=lambda axis_name, key, **given: explain(**given, axis_name=axis_name),
        arrays={"masked_logits": normal(8, 5), "labels": ids(8, classes=5), "masks": MASKS},
        rows=("masked_logits", "labels", "masks"),
        result="scalar",
        wrt=("masked_logits", "masks"),
        identity=lambda key, **given: (
            explain(**given, weight_ce=0.0, weight_area=0.0, weight_variation=2.0),
            2 * variation(given["masks"]),
        ),
        singular=(*FLAT, {"masked_logits": np.zeros((8, 5))}, {"masked_logits": 1e4 * np.sign(normal(8, 5))}),
        bad={
            "masked_logits: integers": lambda: explain(jnp.ones((2, 3), int), Y, M),
            "masked_logits: rank": lambda: explain(Z[0], Y, M),
            "labels: rank": lambda: explain(Z, Y[:, None], M),
            "labels: booleans": lambda: explain(Z, Y > 0, M),
            "masks: of another batch": lambda: explain(Z, Y, M[:1]),
            "masks: booleans": lambda: explain(Z, Y, M > 0),
            **refusals(explained, "weight_ce", negative=-0.1),
            **refusals(explained, "weight_area", negative=-0.1),
            **refusals(explained, "weight_variation", negative=-0.1),
            "weight_area: a schedule": lambda: explained(weight_area=lambda step: 0.1),
            "axis_name: a number": lambda: explained(axis_name=1),
        },
    ),
)
