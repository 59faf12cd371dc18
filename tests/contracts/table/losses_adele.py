"""Examples of `regjax.losses`: ADELE's consistency over scales and its correction of labels."""

import functools

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal, probabilities

multiscale, correct = rj.losses.adele_multiscale, rj.losses.adele_correct_labels
Z, Y, W = jnp.ones((3, 2, 2, 2, 3)), jnp.zeros((2, 2, 2), int), jnp.ones(3)
P, ON = jnp.full((2, 2, 2, 3), 1 / 3), jnp.ones(3, bool)
NAN = float("nan")
SOME_IGNORED = np.where(normal(8, 2, 2) > 1, 255, ids(8, 2, 2, classes=3))


def losses(axis_name, logits, labels, scale_weights):
    """Batch first, as the suite has it. At this confidence some images pass the gate and some do not."""
    return multiscale(jnp.moveaxis(logits, 0, 1), labels, scale_weights, confidence=0.7, axis_name=axis_name)


def labels_corrected(variant):
    return lambda key, labels, probs, active: correct(labels, probs, active, threshold=0.5, variant=variant)


def of_images(labels=Y, **options):
    return correct(labels, P, ON, **options)


EXAMPLES = (
    Example(
        name="losses.adele_multiscale",
        call=lambda key, **arrays: losses(None, **arrays),
        mapped=lambda axis_name, key, **arrays: losses(axis_name, **arrays),
        arrays={"logits": normal(8, 2, 2, 2, 3), "labels": SOME_IGNORED, "scale_weights": np.array([0.5, 1.0])},
        rows=("logits", "labels"),
        result="scalar",
        wrt=("logits", "scale_weights"),
        singular=(
            {"logits": np.zeros((8, 2, 2, 2, 3))},
            {"logits": 1e4 * np.sign(normal(8, 2, 2, 2, 3))},
            {"labels": np.full((8, 2, 2), 255)},
        ),
        bad={
            "scale_logits: integers": lambda: multiscale(Z.astype(int), Y, W),
            "scale_logits: one scale without its axis": lambda: multiscale(Z[0], Y, W),
            "scale_logits: no scales": lambda: multiscale(Z[:0], Y, W[:0]),
            "scale_logits: no images": lambda: multiscale(Z[:, :0], Y[:0], W),
            "labels: probabilities": lambda: multiscale(Z, Z[0], W),
            "labels: other images": lambda: multiscale(Z, Y[:1], W),
            "labels: floats": lambda: multiscale(Z, Y.astype(float), W),
            "scale_weights: of other scales": lambda: multiscale(Z, Y, W[:2]),
            "scale_weights: integers": lambda: multiscale(Z, Y, W.astype(int)),
            "confidence: above 1": lambda: multiscale(Z, Y, W, confidence=1.5),
            "confidence: NaN": lambda: multiscale(Z, Y, W, confidence=NAN),
            "confidence: a vector": lambda: multiscale(Z, Y, W, confidence=jnp.ones(2)),
            "ignore_label: a float": lambda: multiscale(Z, Y, W, ignore_label=255.0),
            "axis_name: a number": lambda: multiscale(Z, Y, W, axis_name=0),
        },
    ),
    *(
        Example(
            name="losses.adele_correct_labels",
            call=labels_corrected(variant),
            arrays={
                "labels": SOME_IGNORED,
                "probs": probabilities(8, 2, 2, 3),
                "active": np.array([False, True, False]),
            },
            rows=("labels", "probs"),
            result="rows",
            identity=lambda key, labels, probs, active, v=variant: (
                correct(labels, probs, active, threshold=1.0, variant=v),
                labels,
            ),
            singular=({"probs": np.zeros((8, 2, 2, 3))}, {"active": np.zeros(3, bool)}),
            bad={
                "labels: floats": lambda: of_images(Y.astype(float)),
                "labels: other images": lambda: of_images(Y[:1]),
                "probs: integers": lambda: correct(Y, P.astype(int), ON),
                "probs: rank": lambda: correct(Y, P[0], ON),
                "probs: no classes": lambda: correct(Y, P[..., :0], ON[:0]),
                "active: other classes": lambda: correct(Y, P, ON[:2]),
                "active: weights": lambda: correct(Y, P, jnp.ones(3)),
                "active: missing": lambda: correct(Y, P, None),
                "threshold: above 1": functools.partial(of_images, threshold=1.5),
                "threshold: NaN": functools.partial(of_images, threshold=NAN),
                "class_constraint: a number": functools.partial(of_images, class_constraint=1),
                "background: no class": functools.partial(of_images, background=3),
                "background: a float": functools.partial(of_images, background=0.0),
                "variant: misspelt": functools.partial(of_images, variant="vox"),
            }
            if variant == "segthor"
            else {},
        )
        for variant in ("segthor", "voc")
    ),
)
