"""Examples of `regjax.diagnostics`: calibration."""

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal, probabilities
from tests.contracts.table.diagnostics import NONE, WHERE, R, S, X, Y, mask_errors, score_errors

d = rj.diagnostics


def binned(name: str, *, wrt: tuple[str, ...] = ("confidences",)) -> Example:
    """The example of ``fn(confidences, correct, *, num_bins, where)``."""
    fn = getattr(d, name)
    return Example(
        name=f"diagnostics.{name}",
        call=lambda key, confidences, correct, where: fn(confidences, correct, num_bins=4, where=where),
        arrays={"confidences": probabilities(8, 3)[:, 0], "correct": normal(8, seed=4) > 0, "where": WHERE},
        rows=("confidences", "correct", "where"),
        result="scalar",
        wrt=wrt,
        singular=({"where": NONE}, {"confidences": np.zeros(8)}, {"confidences": np.ones(8)}),
        bad={
            **score_errors(fn, "confidences"),
            "num_bins: none": lambda: fn(S, R, num_bins=0),
            "num_bins: a fraction": lambda: fn(S, R, num_bins=1.5),
        },
    )


EXAMPLES = (
    binned("adaptive_calibration_error"),
    binned("reliability_bins"),
    Example(
        name="diagnostics.classwise_calibration_error",
        call=lambda key, probs, labels, where: d.classwise_calibration_error(probs, labels, num_bins=4, where=where),
        arrays={"probs": probabilities(8, 5), "labels": ids(8, classes=5), "where": WHERE},
        rows=("probs", "labels", "where"),
        result="scalar",
        wrt=("probs",),
        singular=({"where": NONE}, {"probs": np.eye(5)[ids(8, classes=5, seed=3)]}, {"probs": np.full((8, 5), 0.2)}),
        bad={
            **mask_errors(lambda where: d.classwise_calibration_error(X, Y, where=where)),
            "probs: integers": lambda: d.classwise_calibration_error(jnp.ones((4, 3), int), Y),
            "probs: rank": lambda: d.classwise_calibration_error(S, Y),
            "labels: another number of examples": lambda: d.classwise_calibration_error(X, jnp.zeros(5, int)),
            "labels: probabilities": lambda: d.classwise_calibration_error(X, X),
            "num_bins: none": lambda: d.classwise_calibration_error(X, Y, num_bins=0),
            "num_bins: a fraction": lambda: d.classwise_calibration_error(X, Y, num_bins=1.5),
        },
    ),
)
