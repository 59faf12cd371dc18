"""Examples of `regjax.diagnostics`: memorisation of wrong labels."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids

curves, epoch = rj.diagnostics.memorization_curves, rj.diagnostics.memorization_epoch
P, Y = jnp.zeros((3, 4), int), jnp.zeros(4, int)
HISTORY = 0.6 * (1 - np.exp(-np.linspace(0, 10, 10)))


def of_history(history=HISTORY, num_epochs=16, **options):
    return epoch(history, num_epochs=num_epochs, **options)


def on_the_host(key, history):
    """A function of the host inside a program."""
    kind = jax.ShapeDtypeStruct((), jnp.int32)
    return jax.pure_callback(lambda x: np.int32(of_history(x)), kind, history, vmap_method="sequential")


EXAMPLES = (
    Example(
        name="diagnostics.memorization_curves",
        call=lambda key, predictions, given, true: curves(predictions.T, given, true),
        mapped=lambda axis_name, key, predictions, given, true: curves(predictions.T, given, true, axis_name=axis_name),
        arrays={
            "predictions": ids(8, 3, classes=3, seed=0),
            "given": ids(8, classes=3, seed=1),
            "true": ids(8, classes=3, seed=2),
        },
        rows=("predictions", "given", "true"),
        result="scalar",
        singular=({"given": ids(8, classes=3, seed=2)}, {"given": np.zeros(8, np.int32), "true": np.ones(8, np.int32)}),
        bad={
            "predictions: probabilities": lambda: curves(P.astype(float), Y, Y),
            "predictions: of one time": lambda: curves(P[0], Y, Y),
            "given_labels: of other examples": lambda: curves(P, Y[:3], Y),
            "given_labels: floats": lambda: curves(P, Y.astype(float), Y),
            "true_labels: of other examples": lambda: curves(P, Y, Y[:3]),
            "where: weights": lambda: curves(P, Y, Y, where=jnp.ones(4)),
            "where: shape": lambda: curves(P, Y, Y, where=jnp.ones(3, bool)),
            "axis_name: a number": lambda: curves(P, Y, Y, axis_name=0),
        },
    ),
    Example(
        name="diagnostics.memorization_epoch",
        call=on_the_host,
        arrays={"history": HISTORY},
        result="other",
        singular=({"history": np.zeros(10)}, {"history": np.ones(10)}, {"history": np.eye(10)[0]}),
        bad={
            "iou_history: a matrix": lambda: of_history(np.ones((3, 3))),
            "iou_history: per cent": lambda: of_history(100 * HISTORY),
            "iou_history: NaN": lambda: of_history([0.1, float("nan"), 0.3]),
            "iou_history: text": lambda: of_history("rising"),
            "iou_history: traced": lambda: jax.jit(of_history)(HISTORY),
            "num_epochs: none": lambda: of_history(num_epochs=0),
            "num_epochs: a float": lambda: of_history(num_epochs=16.0),
            "threshold: above 1": lambda: of_history(threshold=1.5),
            "threshold: NaN": lambda: of_history(threshold=float("nan")),
            "iterations_per_point: zero": lambda: of_history(iterations_per_point=0),
            "iterations_per_epoch: negative": lambda: of_history(iterations_per_epoch=-1),
            "min_rise: negative": lambda: of_history(min_rise=-0.1),
        },
    ),
)
