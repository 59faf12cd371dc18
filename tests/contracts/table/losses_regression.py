"""Examples of regression likelihoods and of transport in `regjax.losses`."""

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal, probabilities
from tests.contracts.table.weights import refused

nll, ot = rj.losses.moe_gaussian_nll, rj.losses.sum_of_norms_ot
G, S, Y = jnp.zeros((8, 3)), jnp.zeros(3), jnp.zeros(8)
COST, A, B = jnp.ones((3, 2)), jnp.ones(3) / 3, jnp.ones(2) / 2

EXAMPLES = (
    Example(
        name="losses.moe_gaussian_nll",
        call=lambda key, gate_logits, means, log_sigma, y: nll(gate_logits, means, log_sigma, y),
        arrays={
            "gate_logits": normal(8, 3),
            "means": normal(8, 3, seed=1),
            "log_sigma": normal(3, seed=2),
            "y": normal(8, seed=3),
        },
        result="rows",
        rows=("gate_logits", "means", "y"),
        wrt=("gate_logits", "means", "log_sigma", "y"),
        singular=({"gate_logits": np.full((8, 3), 1e4)}, {"y": np.full(8, 1e4)}, {"means": np.zeros((8, 3)), "y": np.zeros(8)}),
        bad={
            "gate_logits: integers": lambda: nll(jnp.zeros((8, 3), int), G, S, Y),
            "means: shape": lambda: nll(G, G[:, :2], S, Y),
            "log_sigma: shape": lambda: nll(G, G, S[:2], Y),
            "y: shape": lambda: nll(G, G, S, Y[:4]),
            "axis: out of range": lambda: nll(G, G, S, Y, axis=2),
            "where: numbers": lambda: nll(G, G, S, Y, where=G),
        },
    ),
    Example(
        name="losses.sum_of_norms_ot",
        call=lambda key, cost: ot(cost, jnp.ones(3) / 3, jnp.ones(2) / 2, reg=0.1, num_iters=20).plan,
        arrays={"cost": probabilities(3, 2)},
        result="other",
        frozen=("cost",),
        singular=({"cost": np.zeros((3, 2))}, {"cost": np.full((3, 2), 1e4)}),
        bad={
            **refused(lambda reg: ot(COST, A, B, reg=reg), "reg"),
            "cost: a vector": lambda: ot(A, A, B, reg=0.1),
            "cost: empty": lambda: ot(COST[:0], A[:0], B, reg=0.1),
            "a: shape": lambda: ot(COST, B, B, reg=0.1),
            "b: shape": lambda: ot(COST, A, A, reg=0.1),
            "row_weights: shape": lambda: ot(COST, A, B, reg=0.1, row_weights=jnp.ones((2, 2))),
            "col_weights: shape": lambda: ot(COST, A, B, reg=0.1, col_weights=jnp.ones((3, 3))),
            "row_labels: missing": lambda: ot(COST, A, B, reg=0.1, mode="groups"),
            "row_labels: floats": lambda: ot(COST, A, B, reg=0.1, mode="groups", row_labels=A),
            "mode: misspelt": lambda: ot(COST, A, B, reg=0.1, mode="group"),
            "num_iters: zero": lambda: ot(COST, A, B, reg=0.1, num_iters=0),
        },
    ),
    Example(
        name="losses.sum_of_norms_ot",
        call=lambda key, cost, labels: (
            ot(cost, jnp.ones(3) / 3, jnp.ones(2) / 2, reg=0.1, num_iters=20, mode="groups", row_labels=labels).plan
        ),
        arrays={"cost": probabilities(3, 2), "labels": ids(3, classes=2)},
        result="other",
        frozen=("cost",),
    ),
)
