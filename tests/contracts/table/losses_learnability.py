"""Examples of `regjax.losses.learnability`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal
from tests.contracts.table.losses import refusals

loss = rj.losses.learnability_loss
scores = functools.partial(rj.losses.feature_gradient_scores, key=jax.random.key(0))
S, X, Y = jnp.zeros(3), jnp.ones((4, 3)), jnp.ones(4)
FEATURES = normal(8, 3)
LABELS = np.sign(FEATURES[:, 0])
WHERE = np.array([True, False, True, True, True, False, True, True])

EXAMPLES = (
    Example(
        name="losses.learnability_loss",
        call=lambda key, scores, features, labels, where: loss(scores, features, labels, where=where, order=3),
        mapped=lambda axis_name, key, scores, features, labels, where: loss(
            scores, features, labels, where=where, order=3, axis_name=axis_name
        ),
        arrays={"scores": normal(3, seed=1), "features": 0.6 * FEATURES, "labels": LABELS, "where": WHERE},
        rows=("features", "labels", "where"),
        result="other",
        wrt=("scores", "features"),
        frozen=("labels",),
        singular=(
            {"where": np.zeros(8, bool)},
            {"where": np.arange(8) == 3},
            {"features": np.zeros((8, 3))},
            {"features": 1e3 * FEATURES},
            {"labels": np.ones(8)},
        ),
        bad={
            "scores: rank": lambda: loss(S[None], X, Y),
            "scores: integers": lambda: loss(jnp.zeros(3, int), X, Y),
            "features: dimension": lambda: loss(S, jnp.ones((4, 2)), Y),
            "features: integers": lambda: loss(S, jnp.ones((4, 3), int), Y),
            "labels: length": lambda: loss(S, X, jnp.ones(3)),
            "labels: booleans": lambda: loss(S, X, jnp.ones(4, bool)),
            "labels: no problem": lambda: loss(S, X, jnp.ones((4, 0))),
            "order: zero": lambda: loss(S, X, Y, order=0),
            "order: beyond the table": lambda: loss(S, X, Y, order=7),
            "order: a float": lambda: loss(S, X, Y, order=2.0),
            "classification: a number": lambda: loss(S, X, Y, classification=1),
            "where: shape": lambda: loss(S, X, Y, where=jnp.ones(3, bool)),
            "where: weights": lambda: loss(S, X, Y, where=jnp.ones(4)),
            "axis_name: a number": lambda: loss(S, X, Y, axis_name=0),
        },
    ),
    Example(
        name="losses.feature_gradient_scores",
        call=lambda key, features, labels: rj.losses.feature_gradient_scores(
            features, labels, key=key, order=2, batch_size=4, epochs=2, num_features=1
        ),
        arrays={"features": FEATURES, "labels": LABELS},
        rows=("features", "labels"),
        result="other",
        frozen=("features", "labels"),
        random=True,
        identity=lambda key, features, labels: (
            rj.losses.feature_gradient_scores(features, labels, key=key, penalty=jnp.zeros(()), batch_size=4, order=1),
            rj.losses.feature_gradient_scores(features, labels, key=key, penalty=0.0, batch_size=4, order=1),
        ),
        singular=({"features": np.zeros((8, 3))}, {"labels": np.ones(8)}, {"features": 1e4 * np.ones((8, 3))}),
        tolerance=1e-4,
        bad={
            "features: rank": lambda: scores(X[0], Y),
            "features: integers": lambda: scores(jnp.ones((4, 3), int), Y),
            "features: none": lambda: scores(jnp.ones((4, 0)), Y),
            "labels: length": lambda: scores(X, jnp.ones(3)),
            "labels: floats for three classes": lambda: scores(X, Y, num_classes=3),
            "key: a number": lambda: scores(X, Y, key=0),
            "order: beyond the table": lambda: scores(X, Y, order=7),
            **refusals(functools.partial(scores, X, Y), "learning_rate", zero=0.0),
            **refusals(functools.partial(scores, X, Y), "penalty", negative=-0.1),
            "epochs: none": lambda: scores(X, Y, epochs=0),
            "batch_size: a float": lambda: scores(X, Y, batch_size=2.0),
            "num_features: too many": lambda: scores(X, Y, num_features=4),
            "classification: a number": lambda: scores(X, Y, classification=1),
            "num_classes: one": lambda: scores(X, Y, num_classes=1),
        },
    ),
)
