"""Examples of what is gathered over steps: averages of weights, class statistics, the fit to labels."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal
from tests.contracts.running import is_float
from tests.contracts.table.losses import refusals

TREE = {"kernel": normal(8, 2), "bias": normal(3, seed=1)}
AVERAGE = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), TREE)
TEACHER = rj.weights.ema(0.9)
CLASSES = rj.features.running_class_statistics(4, 3)
GATHERED = CLASSES.apply(CLASSES.init(), jnp.asarray(normal(6, 3, seed=7), jnp.float32), ids(6, classes=4, seed=8))[1]
POINTS = rj.diagnostics.iou_history(3, 4)


def averaged(params, decay=0.9):
    """The average of halved parameters and the parameters."""
    teacher = rj.weights.ema(decay)
    past = teacher.init(jax.tree.map(lambda x: x / 2 if is_float(x) else x, params))
    return teacher.apply(past, params)[0]


def gathered(features=None, labels=None, mask=None, state=GATHERED, **options):
    features = jnp.ones((8, 3)) if features is None else features
    return CLASSES.apply(state, features, jnp.zeros(8, int) if labels is None else labels, mask, **options)


def fitted(predictions=None, labels=None, state=None, **options):
    predictions = jnp.zeros((8, 2), int) if predictions is None else predictions
    labels = jnp.zeros((8, 2), int) if labels is None else labels
    return POINTS.apply(POINTS.init() if state is None else state, predictions, labels, **options)


EXAMPLES = (
    Example(
        name="weights.ema",
        call=lambda key, params: averaged(params),
        arrays={"params": TREE},
        tree="params",
        result="other",
        dtype="input",
        frozen=("params",),
        identity=lambda key, params: (averaged(params, decay=0.0), params),
        memory=lambda: (TEACHER.init(AVERAGE), lambda state, key, params: TEACHER.apply(state, params)),
        bad=refusals(rj.weights.ema, "decay", **{"above 1": 1.5, "negative": -0.1})
        | {
            "state: other parameters": lambda: TEACHER.apply(TEACHER.init({"w": jnp.ones(2)}), {"w": jnp.ones(3)}),
            "state: a dictionary": lambda: TEACHER.apply({"w": jnp.ones(2)}, {"w": jnp.ones(2)}),
            "step: missing for a schedule": lambda: rj.weights.ema(lambda step: 0.5).apply(TEACHER.init(AVERAGE), AVERAGE),
        },
    ),
    Example(
        name="features.running_class_statistics",
        call=lambda key, features, labels, mask: gathered(features, labels, mask)[0],
        mapped=lambda axis_name, key, features, labels, mask: gathered(features, labels, mask, axis_name=axis_name)[0],
        arrays={"features": normal(8, 3), "labels": ids(8, classes=4), "mask": normal(8, seed=4) > -1},
        rows=("features", "labels", "mask"),
        result="scalar",
        frozen=("features",),
        singular=({"features": np.zeros((8, 3))}, {"mask": np.zeros(8, bool)}),
        memory=lambda: (CLASSES.init(), lambda s, key, features, labels, mask: CLASSES.apply(s, features, labels, mask)),
        bad={
            "num_classes: none": lambda: rj.features.running_class_statistics(0, 3),
            "feature_dim: a float": lambda: rj.features.running_class_statistics(4, 3.0),
            "state: a dictionary": lambda: gathered(state={"means": 0}),
            "state.means: of other classes": lambda: gathered(state=rj.features.running_class_statistics(2, 3).init()),
            "features: of another width": lambda: gathered(jnp.ones((8, 2))),
            "features: integers": lambda: gathered(jnp.ones((8, 3), int)),
            "labels: floats": lambda: gathered(labels=jnp.zeros(8)),
            "inlier_mask: weights": lambda: gathered(mask=jnp.ones(8)),
            "axis_name: a number": lambda: gathered(axis_name=0),
        },
    ),
    Example(
        name="diagnostics.iou_history",
        call=lambda key, predictions, labels: fitted(predictions, labels, close=True),
        mapped=lambda axis_name, key, predictions, labels: fitted(predictions, labels, close=True, axis_name=axis_name),
        arrays={"predictions": ids(8, 2, classes=3), "labels": ids(8, 2, classes=3, seed=5)},
        rows=("predictions", "labels"),
        result="scalar",
        singular=({"labels": np.full((8, 2), 255, np.int32)},),
        memory=lambda: (POINTS.init(), lambda s, key, predictions, labels: POINTS.apply(s, predictions, labels, close=True)),
        bad={
            "num_classes: none": lambda: rj.diagnostics.iou_history(0, 4),
            "num_points: a float": lambda: rj.diagnostics.iou_history(3, 4.0),
            "state: a dictionary": lambda: fitted(state={"points": 0}),
            "state: of other points": lambda: fitted(state=rj.diagnostics.iou_history(3, 5).init()),
            "predictions: floats": lambda: fitted(jnp.zeros((8, 2))),
            "labels: another shape": lambda: fitted(labels=jnp.zeros((8, 3), int)),
            "close: a number": lambda: fitted(close=1),
            "ignore_label: a float": lambda: fitted(ignore_label=2.5),
            "axis_name: a number": lambda: fitted(axis_name=0),
        },
    ),
)
