"""Examples of `regjax.losses`: candidates of a vocabulary, and pairs against the batch."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal
from tests.contracts.table.losses_teachers import WHERE, number_errors

KEY = jax.random.key(0)
PAIRS = {"queries": normal(8, 3), "keys": normal(8, 3, seed=5)}
CANDIDATES, TARGETS = normal(6, 2, 2), normal(8, 2, 2, seed=5)
X = jnp.ones((4, 3))

info_nce, soft = rj.losses.info_nce, rj.losses.soft_candidate_cross_entropy
sample, take, dropout = rj.losses.sample_candidates, rj.losses.take_candidates, rj.losses.vocabulary_dropout


def squares(candidates, targets, scale):
    """A loss of each example over the candidates that it sees."""
    return jnp.mean(jnp.square(scale * candidates - targets), axis=-1)


def fraction_errors(fn) -> dict:
    values = {"zero": 0.0, "above 1": 1.5, "NaN": float("nan"), "a string": "half", "traced": jnp.float32(0.5)}
    return {f"fraction: {what}": functools.partial(fn, fraction=value) for what, value in values.items()}


EXAMPLES = (
    *(
        Example(
            name="losses.info_nce",
            call=lambda key, queries, keys, where, two=two: info_nce(queries, keys, temperature=0.2, symmetric=two, where=where),
            mapped=lambda axis_name, key, queries, keys, where, two=two: info_nce(
                queries, keys, temperature=0.2, symmetric=two, where=where, axis_name=axis_name
            ),
            arrays={**PAIRS, "where": WHERE},
            rows=("queries", "keys", "where"),
            result="rows",
            wrt=("queries", "keys"),
            singular=(
                {"queries": np.zeros((8, 3))},
                {"queries": np.zeros((8, 3)), "keys": np.zeros((8, 3))},
                {"keys": 1e4 * np.sign(normal(8, 3))},
                {"queries": np.ones((8, 3)), "keys": np.ones((8, 3))},
                {"where": np.zeros(8, bool)},
            ),
            bad={
                "queries: integers": lambda: info_nce(jnp.ones((4, 3), int), X),
                "queries: rank": lambda: info_nce(jnp.ones(3), jnp.ones(3)),
                "keys: of other examples": lambda: info_nce(X, jnp.ones((5, 3))),
                "keys: integers": lambda: info_nce(X, jnp.ones((4, 3), int)),
                **number_errors(functools.partial(info_nce, X, X), "temperature", zero=0.0),
                "temperature: a schedule": lambda: info_nce(X, X, temperature=lambda step: 0.1),
                "symmetric: a number": lambda: info_nce(X, X, symmetric=1),
                "where: shape": lambda: info_nce(X, X, where=jnp.ones(3, bool)),
                "where: weights": lambda: info_nce(X, X, where=jnp.ones(4)),
                "axis_name: a number": lambda: info_nce(X, X, axis_name=0),
            },
        )
        for two in (True, False)
    ),
    Example(
        name="losses.soft_candidate_cross_entropy",
        call=lambda key, logits, candidates, targets: soft(logits, candidates, targets, where=jnp.arange(6) != 2),
        arrays={"logits": normal(8, 6), "candidates": CANDIDATES, "targets": TARGETS},
        rows=("logits", "targets"),
        result="rows",
        wrt=("logits",),
        frozen=("candidates", "targets"),
        singular=(
            {"logits": np.zeros((8, 6))},
            {"logits": 1e4 * np.sign(normal(8, 6))},
            {"targets": 1e4 * TARGETS},
            {"candidates": np.zeros((6, 2, 2)), "targets": np.zeros((8, 2, 2))},
        ),
        bad={
            "logits: integers": lambda: soft(jnp.ones((4, 3), int), jnp.ones(3), jnp.ones(4)),
            "logits: rank": lambda: soft(jnp.ones(3), jnp.ones(3), jnp.ones(1)),
            "candidates: another number": lambda: soft(X, jnp.ones(4), jnp.ones(4)),
            "candidates: integers": lambda: soft(X, jnp.ones(3, int), jnp.ones(4)),
            "candidates: a scalar": lambda: soft(X, jnp.ones(()), jnp.ones(4)),
            "targets: of another shape": lambda: soft(X, jnp.ones(3), jnp.ones((4, 2))),
            "targets: integers": lambda: soft(X, jnp.ones(3), jnp.ones(4, int)),
            **number_errors(functools.partial(soft, X, jnp.ones(3), jnp.ones(4)), "sigma", zero=0.0),
            "where: does not broadcast": lambda: soft(X, jnp.ones(3), jnp.ones(4), where=jnp.ones((4, 2), bool)),
        },
    ),
    Example(
        name="losses.sample_candidates",
        call=lambda key: sample(key, 16, fraction=0.5),
        arrays={},
        result="other",
        dtype=None,
        random=True,
        identity=lambda key: (sample(key, 16, fraction=1), jnp.arange(16)),
        bad={
            "key: a number": lambda: sample(0, 16),
            "vocab_size: none": lambda: sample(KEY, 0),
            "vocab_size: a float": lambda: sample(KEY, 16.0),
            **fraction_errors(functools.partial(sample, KEY, 16)),
        },
    ),
    Example(
        name="losses.take_candidates",
        call=lambda key, candidates, targets: take(jnp.array([4, 0, 5, 2]), candidates, {"progress": targets})[1]["progress"],
        arrays={"candidates": CANDIDATES, "targets": normal(8, 6, seed=3)},
        rows=("targets",),
        result="rows",
        dtype="input",
        wrt=("targets",),
        bad={
            "indices: floats": lambda: take(jnp.ones(2), jnp.ones(3), jnp.ones((4, 3))),
            "indices: rank": lambda: take(jnp.zeros((2, 2), int), jnp.ones(3), jnp.ones((4, 3))),
            "candidates: a scalar": lambda: take(jnp.zeros(2, int), jnp.ones(()), jnp.ones((4, 3))),
            "candidates: of several sizes": lambda: take(jnp.zeros(2, int), [jnp.ones(3), jnp.ones(2)], jnp.ones((4, 3))),
            "candidates: none": lambda: take(jnp.zeros(2, int), {}, jnp.ones((4, 3))),
            "targets: of other candidates": lambda: take(jnp.zeros(2, int), jnp.ones(3), jnp.ones((4, 2))),
            "targets: rank": lambda: take(jnp.zeros(2, int), jnp.ones(3), jnp.ones(3)),
        },
    ),
    Example(
        name="losses.vocabulary_dropout",
        call=lambda key, candidates, targets, scale: dropout(squares, fraction=0.5)(key, candidates, targets, scale),
        arrays={"candidates": normal(16), "targets": normal(8, 16, seed=3), "scale": np.float64(0.7)},
        rows=("targets",),
        result="rows",
        dtype="input",
        wrt=("candidates", "targets", "scale"),
        random=True,
        identity=lambda key, candidates, targets, scale: (
            dropout(squares, fraction=1.0)(key, candidates, targets, scale),
            squares(candidates, targets, scale),
        ),
        bad={
            "loss_fn: a word": lambda: dropout("squares"),
            **fraction_errors(functools.partial(dropout, squares)),
            "key: a number": lambda: dropout(squares)(0, jnp.ones(4), jnp.ones((2, 4)), 1.0),
            "candidates: a scalar": lambda: dropout(squares)(KEY, jnp.ones(()), jnp.ones((2, 4)), 1.0),
            "targets: of other candidates": lambda: dropout(squares)(KEY, jnp.ones(4), jnp.ones((2, 3)), 1.0),
        },
    ),
)
