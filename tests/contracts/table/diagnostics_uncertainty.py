"""Examples of `regjax.diagnostics`: uncertainty of stochastic passes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal

d = rj.diagnostics
KEY, X, S = jax.random.key(0), jnp.ones((4, 3)), jnp.ones(4)
NAN = float("nan")
SCORES = {"scores": normal(8), "pool": np.arange(8) % 3 > 0}
NONE = np.zeros(8, bool)
PASSES = {"logits": normal(8, 3, 4)}


def noisy(key, x, kernel):
    return rj.layers.dropout(key, x, rate=0.5) @ kernel


def passes_first(logits):
    """The passes of examples ``[B, T, ...]`` on the first axis."""
    return jnp.swapaxes(logits, 0, 1)


def statistics(logits):
    return d.mc_dropout_statistics(passes_first(logits))


def sequence(kind: str) -> Example:
    """The example of one measure of sequences."""
    return Example(
        name="diagnostics.sequence_uncertainty",
        call=lambda key, logits, tokens, where: d.sequence_uncertainty(passes_first(logits), tokens, kind=kind, where=where),
        arrays={"logits": normal(8, 2, 3, 4), "tokens": ids(8, 3, classes=4), "where": normal(8, 3, seed=3) > -0.5},
        rows=("logits", "tokens", "where"),
        result="rows",
        wrt=("logits",),
        singular=(
            {"logits": np.zeros((8, 2, 3, 4))},
            {"logits": 1e4 * np.sign(normal(8, 2, 3, 4))},
            {"where": np.zeros((8, 3), bool)},
        ),
        bad={
            "logits: rank": lambda: d.sequence_uncertainty(X, jnp.zeros(4, int)),
            "logits: integers": lambda: d.sequence_uncertainty(jnp.ones((2, 4, 3), int), jnp.zeros(4, int)),
            "tokens: shape": lambda: d.sequence_uncertainty(jnp.ones((2, 4, 3)), jnp.zeros(3, int)),
            "tokens: floats": lambda: d.sequence_uncertainty(jnp.ones((2, 4, 3)), S),
            "kind: misspelt": lambda: d.sequence_uncertainty(jnp.ones((2, 4, 3)), jnp.zeros(4, int), kind="entropie"),
            "where: floats": lambda: d.sequence_uncertainty(jnp.ones((2, 4, 3)), jnp.zeros(4, int), where=S),
            "min_prob: above 1": lambda: d.sequence_uncertainty(jnp.ones((2, 4, 3)), jnp.zeros(4, int), min_prob=2.0),
            "min_prob: NaN": lambda: d.sequence_uncertainty(jnp.ones((2, 4, 3)), jnp.zeros(4, int), min_prob=NAN),
        },
    )


EXAMPLES = (
    Example(
        name="diagnostics.mc_predict",
        call=lambda key, x, kernel: d.mc_predict(key, functools.partial(noisy, kernel=kernel), x, passes=3),
        arrays={"x": normal(8, 3), "kernel": normal(3, 2, seed=1)},
        rows=("x",),
        result="other",
        dtype="input",
        wrt=("x", "kernel"),
        random=True,
        singular=({"x": np.zeros((8, 3))},),
        bad={
            "key: a number": lambda: d.mc_predict(0, noisy, X),
            "apply_fn: logits": lambda: d.mc_predict(KEY, X, X),
            "passes: zero": lambda: d.mc_predict(KEY, noisy, X, passes=0),
            "passes: a float": lambda: d.mc_predict(KEY, noisy, X, passes=2.0),
            "batch_size: zero": lambda: d.mc_predict(KEY, noisy, X, batch_size=0),
        },
    ),
    Example(
        name="diagnostics.mc_dropout_statistics",
        call=lambda key, logits: statistics(logits),
        arrays=PASSES,
        rows=("logits",),
        result="rows",
        wrt=("logits",),
        singular=(
            {"logits": np.zeros((8, 3, 4))},
            {"logits": 1e4 * np.sign(normal(8, 3, 4))},
            {"logits": np.where(np.arange(4) == 1, -np.inf, normal(8, 3, 4))},
        ),
        bad={
            "logits: rank": lambda: d.mc_dropout_statistics(jnp.ones(3)),
            "logits: integers": lambda: d.mc_dropout_statistics(jnp.ones((2, 3), int)),
            "logits: no pass": lambda: d.mc_dropout_statistics(jnp.ones((0, 4, 3))),
        },
    ),
    sequence("likelihood"),
    sequence("entropy"),
    Example(
        name="diagnostics.star_uncertainty",
        # Not normalised, so that the examples of one device are enough for `shard_map`; `normalize_scores` has its own entry.
        call=lambda key, full, base, iteration: d.star_uncertainty(full, base, iteration=iteration, normalize_full=False),
        arrays={"full": normal(8), "base": np.abs(normal(8, seed=1)), "iteration": np.array(3, np.int32)},
        rows=("full", "base"),
        result="rows",
        wrt=("full", "base"),
        identity=lambda key, full, base, iteration: (d.star_uncertainty(full, base, iteration=iteration, rate=0.0), base),
        singular=({"full": np.zeros(8)}, {"base": np.zeros(8)}),
        bad={
            "full: rank": lambda: d.star_uncertainty(X, X, iteration=0),
            "full: integers": lambda: d.star_uncertainty(jnp.ones(4, int), S, iteration=0),
            "base: another number": lambda: d.star_uncertainty(S, jnp.ones(3), iteration=0),
            "iteration: negative": lambda: d.star_uncertainty(S, S, iteration=-1),
            "iteration: NaN": lambda: d.star_uncertainty(S, S, iteration=NAN),
            "rate: negative": lambda: d.star_uncertainty(S, S, iteration=0, rate=-0.1),
            "rate: NaN": lambda: d.star_uncertainty(S, S, iteration=0, rate=NAN),
            "rate: a schedule": lambda: d.star_uncertainty(S, S, iteration=0, rate=lambda step: 0.1),
            "normalize_full: a string": lambda: d.star_uncertainty(S, S, iteration=0, normalize_full="yes"),
        },
    ),
    Example(
        name="diagnostics.normalize_scores",
        call=lambda key, scores, pool: d.normalize_scores(scores, where=pool),
        arrays=SCORES,
        rows=("scores", "pool"),
        result="other",
        wrt=("scores",),
        singular=({"scores": np.zeros(8)}, {"pool": NONE}, {"pool": np.arange(8) == 2}),
        bad={
            "scores: integers": lambda: d.normalize_scores(jnp.ones(4, int)),
            "scores: rank": lambda: d.normalize_scores(X),
            "where: floats": lambda: d.normalize_scores(S, where=S),
        },
    ),
    Example(
        name="diagnostics.select_top",
        call=lambda key, scores, pool: d.select_top(scores, num=3, exclude=~pool),
        arrays=SCORES,
        rows=("scores", "pool"),
        result="other",
        dtype=None,
        singular=({"scores": np.full(8, np.nan)}, {"pool": NONE}),
        bad={
            "scores: integers": lambda: d.select_top(jnp.ones(4, int), num=1),
            "scores: rank": lambda: d.select_top(X, num=1),
            "num: zero": lambda: d.select_top(S, num=0),
            "num: above N": lambda: d.select_top(S, num=5),
            "num: a float": lambda: d.select_top(S, num=2.0),
            "exclude: floats": lambda: d.select_top(S, num=1, exclude=S),
        },
    ),
)
