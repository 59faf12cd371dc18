"""Examples of `regjax.losses`: choosing among noisy labels by their losses."""

import functools

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal
from tests.contracts.table.losses import refusals

WHERE = np.array([True, False, True, True, True, False, True, True])
NONE = np.zeros(8, bool)
X, Y, L = jnp.ones((4, 3)), jnp.zeros(4, int), jnp.ones(4)
PAIR = {"logits1": normal(8, 5), "logits2": normal(8, 5, seed=3), "labels": ids(8, classes=5)}
LOSSES = np.abs(normal(8, seed=4))

teaching, weights, mixture = rj.losses.co_teaching, rj.losses.small_loss_weights, rj.losses.fit_two_gaussians
half = functools.partial(teaching, forget_rate=0.5)

EXAMPLES = (
    Example(
        name="losses.co_teaching",
        call=lambda key, where, **pair: half(**pair, where=where),
        mapped=lambda axis_name, key, where, **pair: half(**pair, where=where, axis_name=axis_name),
        arrays={**PAIR, "where": WHERE},
        rows=("logits1", "logits2", "labels", "where"),
        result="scalar",
        wrt=("logits1", "logits2"),
        identity=lambda key, where, **pair: (
            teaching(**pair, forget_rate=0.0),
            tuple(jnp.sum(rj.losses.label_smoothing(pair[n], pair["labels"], alpha=0.0)) / 8 for n in ("logits1", "logits2")),
        ),
        singular=(
            {"logits1": np.zeros((8, 5)), "logits2": np.zeros((8, 5))},
            {"logits1": 1e4 * np.sign(normal(8, 5))},
            {"where": NONE},
            {"labels": np.where(WHERE, ids(8, classes=5), -1)},
        ),
        bad={
            "logits1: integers": lambda: half(jnp.ones((4, 3), int), X, Y),
            "logits1: rank": lambda: half(jnp.ones(3), jnp.ones(3), jnp.array(0)),
            "logits1: no classes": lambda: half(jnp.ones((4, 0)), jnp.ones((4, 0)), Y),
            "logits2: shape": lambda: half(X, jnp.ones((4, 2)), Y),
            "logits2: integers": lambda: half(X, jnp.ones((4, 3), int), Y),
            "labels: rank": lambda: half(X, X, jnp.zeros((4, 1), int)),
            "labels: booleans": lambda: half(X, X, jnp.zeros(4, bool)),
            **refusals(functools.partial(teaching, X, X, Y), "forget_rate", negative=-0.1, **{"above 1": 1.1}),
            "forget_rate: a schedule": lambda: teaching(X, X, Y, forget_rate=lambda step: 0.1),
            "axis: out of range": lambda: half(X, X, Y, axis=2),
            "axis: a float": lambda: half(X, X, Y, axis=1.0),
            "where: of classes": lambda: half(X, X, Y, where=jnp.ones(3, bool)),
            "where: weights": lambda: half(X, X, Y, where=L),
            "axis_name: a number": lambda: half(X, X, Y, axis_name=0),
        },
    ),
    Example(
        name="losses.co_teaching",
        call=lambda key, **pair: half(**pair)[0],
        arrays=PAIR,
        rows=("logits1", "logits2", "labels"),
        result="scalar",
        wrt=("logits1",),
        frozen=("logits2",),
    ),
    Example(
        name="losses.small_loss_weights",
        call=lambda key, losses, keep, where: weights(losses, keep, where=where),
        mapped=lambda axis_name, key, losses, keep, where: weights(losses, keep, where=where, axis_name=axis_name),
        arrays={"losses": LOSSES, "keep": np.int32(3), "where": WHERE},
        rows=("losses", "where"),
        result="rows",
        frozen=("losses",),
        singular=({"losses": np.zeros(8)}, {"losses": np.full(8, np.inf)}, {"where": NONE}, {"keep": np.int32(0)}),
        bad={
            "losses: integers": lambda: weights(jnp.ones(4, int), 2),
            "losses: rank": lambda: weights(X, 2),
            **refusals(functools.partial(weights, L), "keep", negative=-1),
            "where: shape": lambda: weights(L, 2, where=jnp.ones(3, bool)),
            "where: weights": lambda: weights(L, 2, where=L),
            "axis_name: a number": lambda: weights(L, 2, axis_name=0),
        },
    ),
    Example(
        name="losses.fit_two_gaussians",
        call=lambda key, values, where: mixture(values, where=where)[:3],
        mapped=lambda axis_name, key, values, where: mixture(values, where=where, axis_name=axis_name)[:3],
        arrays={"values": LOSSES, "where": WHERE},
        rows=("values", "where"),
        result="scalar",
        frozen=("values",),
        singular=({"values": np.full(8, 0.3)}, {"where": NONE}, {"values": 1e4 * LOSSES}),
        bad={
            "values: integers": lambda: mixture(jnp.ones(4, int)),
            "values: rank": lambda: mixture(X),
            "num_iterations: negative": lambda: mixture(L, num_iterations=-1),
            "num_iterations: a float": lambda: mixture(L, num_iterations=10.0),
            **refusals(functools.partial(mixture, L), "reg", zero=0.0, negative=-0.1),
            "where: shape": lambda: mixture(L, where=jnp.ones(3, bool)),
            "where: weights": lambda: mixture(L, where=L),
            "axis_name: a number": lambda: mixture(L, axis_name=0),
        },
    ),
    Example(
        name="losses.fit_two_gaussians",
        call=lambda key, values: mixture(values).posteriors,
        mapped=lambda axis_name, key, values: mixture(values, axis_name=axis_name).posteriors,
        arrays={"values": LOSSES},
        rows=("values",),
        result="rows",
        singular=({"values": np.full(8, 0.3)}, {"values": np.eye(8)[0]}),
    ),
)
