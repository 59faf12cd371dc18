"""Examples of `regjax.losses`: corrections of a classifier by stored examples, and stacking of seen and unseen classes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal, probabilities
from tests.contracts.table.losses import EXTREME, PROBABILITIES, cross_entropy, logit_errors, refusals
from tests.contracts.table.losses_teachers import number_errors

X, Y, P = jnp.ones((4, 3)), jnp.zeros(4, int), jnp.full((4, 3), 1 / 3)
knn, weighted, focal, mix = (
    rj.losses.knn_probabilities,
    rj.losses.knn_weighted_cross_entropy,
    rj.losses.knn_focal_cross_entropy,
    rj.losses.interpolate_knn,
)
fit, predict, stack = rj.losses.proker_fit, rj.losses.proker_predict, rj.losses.calibrated_stacking
STORE = {"keys": normal(16, 3, seed=5), "key_labels": ids(16, classes=4), "where": np.arange(16) % 5 != 2}
EXCLUDE = np.array([0, -1, 7, 15, 3, -1, 8, 2], np.int32)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def neighbours(queries=X, keys=X, key_labels=Y, **options):
    return knn(queries, keys, key_labels, **{"num_classes": 2, **options})


def weighted_loss(fn, name: str, strength: str) -> Example:
    """The example of a loss ``fn(logits, knn_probs, labels)``."""
    errors = {
        **logit_errors(lambda logits, **options: fn(logits, jnp.ones(logits.shape), jnp.zeros(logits.shape[:1], int), **options)),
        **refusals(functools.partial(fn, X, P, Y), strength, negative=-0.1),
        f"{strength}: a schedule": lambda: fn(X, P, Y, **{strength: lambda step: 0.1}),
        "knn_probs: of other classes": lambda: fn(X, jnp.ones((4, 2)), Y),
        "knn_probs: integers": lambda: fn(X, jnp.ones((4, 3), int), Y),
        "labels: rank": lambda: fn(X, P, jnp.zeros((4, 1), int)),
        "labels: booleans": lambda: fn(X, P, jnp.zeros(4, bool)),
    }
    return Example(
        name=f"losses.{name}",
        call=lambda key, logits, knn_probs, labels: fn(logits, knn_probs, labels),
        arrays={"logits": normal(8, 5), "knn_probs": probabilities(8, 5), "labels": ids(8, classes=5)},
        rows=("logits", "knn_probs", "labels"),
        result="rows",
        wrt=("logits",),
        frozen=("knn_probs",),
        identity=lambda key, logits, knn_probs, labels: (
            fn(logits, knn_probs, labels, **{strength: 0.0}),
            cross_entropy(logits, labels),
        ),
        singular=(*EXTREME, {"labels": PROBABILITIES}, {"knn_probs": np.zeros((8, 5))}, {"knn_probs": np.ones((8, 5))}),
        bad=errors,
    )


EXAMPLES = (
    Example(
        name="losses.knn_probabilities",
        call=lambda key, queries, keys, key_labels, where, exclude: knn(
            queries, keys, key_labels, num_classes=4, k=5, exclude=exclude, where=where
        ),
        arrays={"queries": normal(8, 3), **STORE, "exclude": EXCLUDE},
        rows=("queries", "exclude"),
        result="rows",
        frozen=("queries", "keys"),
        singular=(
            {"queries": np.zeros((8, 3))},
            {"keys": np.zeros((16, 3))},
            {"keys": np.ones((16, 3)), "queries": np.ones((8, 3))},
            {"keys": 1e4 * normal(16, 3)},
            {"where": np.zeros(16, bool)},
            {"where": np.arange(16) == 3},
        ),
        bad={
            "queries: integers": lambda: neighbours(jnp.ones((4, 3), int)),
            "queries: rank": lambda: neighbours(jnp.ones(3)),
            "keys: of another dimension": lambda: neighbours(keys=jnp.ones((4, 2))),
            "keys: none": lambda: neighbours(keys=jnp.ones((0, 3)), key_labels=jnp.zeros(0, int)),
            "key_labels: another number of keys": lambda: neighbours(key_labels=jnp.zeros(5, int)),
            "key_labels: probabilities": lambda: neighbours(key_labels=jnp.ones((4, 2))),
            "num_classes: none": lambda: neighbours(num_classes=0),
            "k: zero": lambda: neighbours(k=0),
            "k: a float": lambda: neighbours(k=2.0),
            **number_errors(neighbours, "temperature", zero=0.0),
            "temperature: a schedule": lambda: neighbours(temperature=lambda step: 1.0),
            "center: a number": lambda: neighbours(center=1),
            "exclude: floats": lambda: neighbours(exclude=jnp.ones(4)),
            "exclude: another number of queries": lambda: neighbours(exclude=jnp.zeros(3, int)),
            "where: weights": lambda: neighbours(where=jnp.ones(4)),
            "where: another number of keys": lambda: neighbours(where=jnp.ones(5, bool)),
        },
    ),
    # The keys sharded as well, and more neighbours than a device holds.
    Example(
        name="losses.knn_probabilities",
        call=lambda key, queries, keys, key_labels, where, exclude: knn(
            queries, keys, key_labels, num_classes=4, k=5, temperature=0.1, center=False, exclude=exclude, where=where
        ),
        arrays={"queries": normal(8, 3), **STORE, "exclude": EXCLUDE},
        rows=("queries", "exclude", "keys", "key_labels", "where"),
        result="other",
        frozen=("queries", "keys"),
        tolerance=1e-4,
    ),
    weighted_loss(weighted, "knn_weighted_cross_entropy", "coefficient"),
    weighted_loss(focal, "knn_focal_cross_entropy", "gamma"),
    Example(
        name="losses.interpolate_knn",
        call=lambda key, logits, knn_probs: mix(logits, knn_probs, coefficient=0.3),
        arrays={"logits": normal(8, 5), "knn_probs": probabilities(8, 5)},
        rows=("logits", "knn_probs"),
        result="rows",
        wrt=("logits",),
        frozen=("knn_probs",),
        identity=lambda key, logits, knn_probs: (
            mix(logits, knn_probs, coefficient=0.0),
            jnp.exp(jax.nn.log_softmax(logits)),
        ),
        singular=(*EXTREME, {"knn_probs": np.zeros((8, 5))}),
        bad={
            **logit_errors(lambda logits, **options: mix(logits, jnp.ones(logits.shape), **options)),
            **refusals(functools.partial(mix, X, P), "coefficient", negative=-0.1, **{"above 1": 1.1}),
            "coefficient: a schedule": lambda: mix(X, P, coefficient=lambda step: 0.1),
            "knn_probs: of other classes": lambda: mix(X, jnp.ones((4, 2))),
            "knn_probs: integers": lambda: mix(X, jnp.ones((4, 3), int)),
        },
    ),
    Example(
        name="losses.calibrated_stacking",
        call=lambda key, scores, seen_mask, gamma: stack(scores, seen_mask, gamma),
        arrays={"scores": normal(8, 5), "seen_mask": np.arange(5) < 3, "gamma": np.array(0.3)},
        rows=("scores",),
        result="rows",
        wrt=("scores",),
        identity=lambda key, scores, seen_mask, gamma: (stack(scores, seen_mask, 0.0), scores),
        singular=({"scores": np.zeros((8, 5))}, {"scores": 1e4 * normal(8, 5)}, {"seen_mask": np.ones(5, bool)}),
        bad={
            "scores: integers": lambda: stack(jnp.ones((4, 3), int), jnp.ones(3, bool), 0.1),
            "scores: a number": lambda: stack(0.5, jnp.ones(3, bool), 0.1),
            "seen_mask: of other classes": lambda: stack(X, jnp.ones(2, bool), 0.1),
            "seen_mask: weights": lambda: stack(X, jnp.ones(3), 0.1),
            "axis: out of range": lambda: stack(X, jnp.ones(3, bool), 0.1, axis=2),
            **refusals(lambda gamma: stack(X, jnp.ones(3, bool), gamma), "gamma"),
            "gamma: a schedule": lambda: stack(X, jnp.ones(3, bool), lambda step: 0.1),
        },
    ),
    Example(
        name="losses.proker_fit",
        call=lambda key, keys, key_labels, key_logits: fit(keys, key_labels, key_logits, beta=2.0, weight=0.3),
        arrays={"keys": unit(normal(8, 3)), "key_labels": ids(8, classes=4), "key_logits": 0.3 * normal(8, 4, seed=5)},
        rows=("keys", "key_labels", "key_logits"),
        result="other",  # a solution with all examples: a part of them has another
        wrt=("keys", "key_logits"),
        identity=lambda key, keys, key_labels, key_logits: (
            fit(keys, key_labels, key_logits, weight=0.0),
            jnp.zeros((8, 4)),
        ),
        singular=({"keys": np.zeros((8, 3))}, {"keys": unit(np.ones((8, 3)))}, {"key_labels": np.full((8, 4), 0.25)}),
        bad={
            "keys: integers": lambda: fit(jnp.ones((4, 3), int), Y, X),
            "keys: rank": lambda: fit(jnp.ones(4), Y, X),
            "key_labels: another number of keys": lambda: fit(X, jnp.zeros(3, int), X),
            "key_labels: booleans": lambda: fit(X, jnp.zeros(4, bool), X),
            "key_labels: probabilities of other classes": lambda: fit(X, jnp.ones((4, 2)), X),
            "key_logits: another number of keys": lambda: fit(X, Y, jnp.ones((5, 3))),
            "key_logits: integers": lambda: fit(X, Y, jnp.ones((4, 3), int)),
            **number_errors(functools.partial(fit, X, Y, X), "beta"),
            **refusals(functools.partial(fit, X, Y, X), "weight", negative=-0.1),
            "weight: a schedule": lambda: fit(X, Y, X, weight=lambda step: 0.1),
        },
        tolerance=1e-4,
    ),
    Example(
        name="losses.proker_predict",
        call=lambda key, queries, query_logits, keys, alphas: predict(
            queries, query_logits, keys, alphas, beta=2.0, weight=0.5, exact=True
        ),
        arrays={
            "queries": unit(normal(8, 3)),
            "query_logits": 0.3 * normal(8, 4, seed=5),
            "keys": unit(normal(5, 3, seed=6)),
            "alphas": normal(5, 4, seed=7),
        },
        rows=("queries", "query_logits"),
        result="rows",
        wrt=("queries", "query_logits", "keys", "alphas"),
        identity=lambda key, queries, query_logits, keys, alphas: (
            predict(queries, query_logits, keys, jnp.zeros((5, 4))),
            query_logits,
        ),
        singular=({"queries": np.zeros((8, 3))}, {"keys": np.zeros((5, 3))}),
        bad={
            "queries: integers": lambda: predict(jnp.ones((4, 3), int), X, X, X),
            "query_logits: another number of queries": lambda: predict(X, jnp.ones((5, 3)), X, X),
            "keys: of another dimension": lambda: predict(X, X, jnp.ones((4, 2)), X),
            "alphas: another number of keys": lambda: predict(X, X, X, jnp.ones((5, 3))),
            "alphas: of other classes": lambda: predict(X, X, X, jnp.ones((4, 2))),
            **number_errors(functools.partial(predict, X, X, X, X), "beta"),
            **number_errors(functools.partial(predict, X, X, X, X), "weight", zero=0.0),
            "weight: missing for exact": lambda: predict(X, X, X, X, exact=True),
            "exact: a number": lambda: predict(X, X, X, X, exact=1),
        },
    ),
)
