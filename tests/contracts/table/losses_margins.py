"""Examples of `regjax.losses.margins`."""

import functools

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal
from tests.contracts.table.losses import EXTREME, PROBABILITIES, X, Y, cross_entropy, logit_errors, logit_loss, refusals

norm, adjusted, semantic = rj.losses.logit_norm, rj.losses.logit_adjusted, rj.losses.semantic_margin
N, E = jnp.array([3, 2, 1]), jnp.eye(3)

EXAMPLES = (
    logit_loss(
        "logit_norm",
        bad={
            **refusals(functools.partial(norm, X, Y), "temperature", zero=0.0, negative=-1.0),
            "temperature: a schedule": lambda: norm(X, Y, temperature=lambda step: 0.1),
        },
    ),
    Example(
        name="losses.logit_adjusted",
        call=lambda key, logits, labels, class_counts: adjusted(logits, labels, class_counts),
        arrays={"logits": normal(8, 5), "labels": ids(8, classes=5), "class_counts": np.array([50.0, 20.0, 0.0, 7.0, 3.0])},
        rows=("logits", "labels"),
        result="rows",
        wrt=("logits",),
        frozen=("class_counts",),
        identity=lambda key, logits, labels, class_counts: (
            adjusted(logits, labels, class_counts, tau=0.0),
            cross_entropy(logits, labels),
        ),
        singular=EXTREME + ({"labels": PROBABILITIES}, {"class_counts": np.zeros(5)}),
        bad={
            **logit_errors(lambda logits, **options: adjusted(logits, jnp.zeros(logits.shape[:1], int), N, **options)),
            **refusals(functools.partial(adjusted, X, Y, N), "tau", negative=-0.1),
            "tau: a schedule": lambda: adjusted(X, Y, N, tau=lambda step: 0.1),
            "labels: rank": lambda: adjusted(X, jnp.zeros((4, 1), int), N),
            "class_counts: of other classes": lambda: adjusted(X, Y, jnp.ones(4)),
            "class_counts: a number": lambda: adjusted(X, Y, 3.0),
            "class_counts: booleans": lambda: adjusted(X, Y, jnp.ones(3, bool)),
        },
    ),
    Example(
        name="losses.semantic_margin",
        call=lambda key, cosines, labels, class_embeddings: semantic(cosines, labels, class_embeddings, threshold=0.2),
        arrays={"cosines": np.tanh(normal(8, 5)), "labels": ids(8, classes=5), "class_embeddings": normal(5, 3, seed=3)},
        rows=("cosines", "labels"),
        result="rows",
        wrt=("cosines",),
        frozen=("class_embeddings",),
        identity=lambda key, cosines, labels, class_embeddings: (
            semantic(cosines, labels, class_embeddings, threshold=1.0, temperature=1.0),
            cross_entropy(cosines, labels),
        ),
        singular=(
            {"cosines": np.zeros((8, 5))},
            {"cosines": np.sign(normal(8, 5))},
            {"class_embeddings": np.zeros((5, 3))},
            {"class_embeddings": np.ones((5, 3))},
        ),
        bad={
            **refusals(lambda threshold: semantic(X, Y, E, threshold=threshold), "threshold", **{"below -1": -1.1}),
            **refusals(functools.partial(semantic, X, Y, E, threshold=0.2), "temperature", zero=0.0, negative=-1.0),
            "threshold: a schedule": lambda: semantic(X, Y, E, threshold=lambda step: 0.1),
            "cosines: integers": lambda: semantic(jnp.ones((4, 3), int), Y, E, threshold=0.2),
            "labels: probabilities": lambda: semantic(X, X, E, threshold=0.2),
            "labels: rank": lambda: semantic(X, jnp.zeros((4, 1), int), E, threshold=0.2),
            "class_embeddings: of other classes": lambda: semantic(X, Y, jnp.eye(4), threshold=0.2),
            "class_embeddings: integers": lambda: semantic(X, Y, jnp.eye(3, dtype=int), threshold=0.2),
            "axis: out of range": lambda: semantic(X, Y, E, threshold=0.2, axis=2),
            "where: weights": lambda: semantic(X, Y, E, threshold=0.2, where=jnp.ones((4, 3))),
        },
    ),
)
