"""Examples of `regjax.losses`: detection with missing annotations."""

import functools

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal

CORNERS = normal(8, 2, seed=1)
BOXES = np.concatenate([CORNERS, CORNERS + 0.5 + np.abs(normal(8, 2, seed=2))], axis=1)
TRUTH = BOXES[[0, 3, 5]] + 0.1 * normal(3, 4, seed=3)
REGIONS = {"features_weak": normal(8, 2, 3), "features_strong": normal(8, 2, 3, seed=4)}
P, S, G, V = jnp.ones((3, 4)), jnp.ones(3), jnp.ones((2, 4)), jnp.ones(2, bool)

iou, mask, consistency = rj.losses.box_iou, rj.losses.pseudo_positive_mask, rj.losses.region_consistency
found = functools.partial(mask, P, S, G, V)


def threshold_errors(name: str) -> dict:
    """The errors of a threshold from 0 to 1."""
    wrong = {"NaN": float("nan"), "negative": -0.1, "above 1": 1.1, "a string": "high", "a vector": jnp.ones(3)}
    return {f"{name}: {what}": functools.partial(found, **{name: value}) for what, value in wrong.items()}


EXAMPLES = (
    Example(
        name="losses.box_iou",
        call=lambda key, boxes1, boxes2: iou(boxes1, boxes2),
        arrays={"boxes1": BOXES, "boxes2": TRUTH},
        rows=("boxes1",),
        result="rows",
        wrt=("boxes1", "boxes2"),
        singular=({"boxes1": np.zeros((8, 4)), "boxes2": np.zeros((3, 4))}, {"boxes1": -1e4 * BOXES}, {"boxes2": BOXES[:3]}),
        bad={
            "boxes1: integers": lambda: iou(jnp.ones((3, 4), int), G),
            "boxes1: one box": lambda: iou(jnp.ones(4), G),
            "boxes1: five numbers": lambda: iou(jnp.ones((3, 5)), G),
            "boxes2: leading axes": lambda: iou(P, G[None]),
            "boxes2: integers": lambda: iou(P, jnp.ones((3, 4), int)),
        },
    ),
    Example(
        name="losses.pseudo_positive_mask",
        call=lambda key, truth, valid, **rows: mask(gt_boxes=truth, gt_valid=valid, **rows),
        arrays={
            "proposals": BOXES,
            "objectness_logits": 3 * normal(8, seed=5),
            "where": np.arange(8) != 6,
            "truth": TRUTH,
            "valid": np.array([True, False, True]),
        },
        rows=("proposals", "objectness_logits", "where"),
        result="rows",
        dtype=None,
        singular=({"valid": np.zeros(3, bool)}, {"proposals": np.zeros((8, 4))}),
        bad={
            **threshold_errors("score_threshold"),
            **threshold_errors("iou_threshold"),
            "proposals: three numbers": lambda: mask(P[:, :3], S, G, V),
            "objectness_logits: length": lambda: mask(P, S[:2], G, V),
            "objectness_logits: integers": lambda: mask(P, jnp.ones(3, int), G, V),
            "gt_boxes: leading axes": lambda: mask(P, S, G[None], V),
            "gt_valid: length": lambda: mask(P, S, G, V[:1]),
            "gt_valid: missing": lambda: mask(P, S, G, None),
            "gt_valid: weights": lambda: mask(P, S, G, jnp.ones(2)),
            "where: length": lambda: found(where=V),
        },
    ),
    Example(
        name="losses.region_consistency",
        call=lambda key, **regions: consistency(**regions),
        mapped=lambda axis_name, key, **regions: consistency(**regions, axis_name=axis_name),
        arrays={**REGIONS, "weights": np.array([1.0, 0, 0, 1, 0.5, 0, 1, 0])},
        rows=("features_weak", "features_strong", "weights"),
        result="scalar",
        wrt=("features_weak", "features_strong"),
        identity=lambda key, features_weak, features_strong, weights: (
            consistency(features_weak, features_strong, 0 * weights),
            jnp.zeros(()),
        ),
        singular=({"weights": np.zeros(8)}, {"features_strong": REGIONS["features_weak"]}),
        bad={
            "features_weak: integers": lambda: consistency(jnp.ones((3, 2), int), jnp.ones((3, 2)), S),
            "features_weak: rank": lambda: consistency(S, S, S),
            "features_strong: shape": lambda: consistency(jnp.ones((3, 2)), jnp.ones((3, 1)), S),
            "weights: length": lambda: consistency(P, P, jnp.ones(2)),
            "weights: integers": lambda: consistency(P, P, jnp.ones(3, int)),
            "weights: one for each number": lambda: consistency(P, P, P),
            "axis_name: a number": lambda: consistency(P, P, S, axis_name=1),
        },
    ),
)
