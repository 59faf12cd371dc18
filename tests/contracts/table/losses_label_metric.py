"""Examples of `regjax.losses`: predictions over a metric between labels. Those on the host have no arrays to trace."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal, probabilities

EDGES = np.array([[0, 1], [0, 2], [1, 3], [1, 4], [2, 5], [2, 6], [6, 7]])
X, D, SQUARE = jnp.ones((4, 3)), jnp.ones((3, 5)), np.ones((3, 3)) - np.eye(3)
locus, next_class = rj.losses.loki_locus, rj.losses.loki_next_class


def over_metric(name: str, **fields) -> Example:
    """The example of a function of probabilities and distances."""
    fn = getattr(rj.losses, name)
    errors = {
        "probs: integers": lambda: fn(jnp.ones((4, 3), int), D),
        "probs: a number": lambda: fn(0.5, D),
        "distances: of other classes": lambda: fn(X, jnp.ones((2, 5))),
        "distances: rank": lambda: fn(X, jnp.ones(3)),
        "distances: booleans": lambda: fn(X, jnp.ones((3, 5), bool)),
        "distances: a string": lambda: fn(X, "hops"),
    }
    if name != "frechet_scores":
        errors["distances: no label"] = lambda: fn(X, jnp.ones((3, 0)))
    return Example(
        name=f"losses.{name}",
        call=lambda key, probs, distances: fn(probs, distances),
        arrays={"probs": probabilities(8, 4), "distances": np.abs(normal(4, 6))},
        rows=("probs",),
        result="rows",
        singular=({"probs": np.zeros((8, 4))}, {"distances": np.zeros((4, 6))}, {"distances": 1e4 * np.abs(normal(4, 6))}),
        bad=errors,
        **fields,
    )


EXAMPLES = (
    over_metric("frechet_scores", wrt=("probs", "distances")),
    over_metric("frechet_mean_predict"),
    over_metric("frechet_straight_through", wrt=("probs",), frozen=("distances",), surrogate=True),
    Example(
        name="losses.loki_locus",
        call=lambda key: locus(EDGES, np.array([3, 5])),
        arrays={},
        result="other",
        dtype=None,
        bad={
            "edges: triples": lambda: locus(np.ones((2, 3), int), [0]),
            "edges: floats": lambda: locus(EDGES.astype(float), [0]),
            "edges: a cycle and a node apart": lambda: locus([[0, 1], [1, 2], [2, 0]], [0]),
            "edges: outside": lambda: locus([[0, 1], [1, 3]], [0]),
            "edges: traced": lambda: jax.jit(lambda e: locus(e, [0]))(EDGES),
            "observed: none": lambda: locus(EDGES, np.zeros(0, int)),
            "observed: outside": lambda: locus(EDGES, [8]),
            "observed: negative": lambda: locus(EDGES, [-1]),
            "observed: floats": lambda: locus(EDGES, [0.5]),
        },
    ),
    Example(
        name="losses.loki_next_class",
        call=lambda key: jnp.asarray(np.int32(next_class(rj.diagnostics.tree_distances(EDGES, 8), [1, 3, 4]))),
        arrays={},
        result="other",
        dtype=None,
        bad={
            "distances: not square": lambda: next_class(np.ones((3, 2)), [0]),
            "distances: rank": lambda: next_class(np.ones(3), [0]),
            "distances: negative": lambda: next_class(-SQUARE, [0]),
            "distances: NaN": lambda: next_class(np.nan * SQUARE, [0]),
            "distances: traced": lambda: jax.jit(lambda d: next_class(d, [0]))(SQUARE),
            "locus: none": lambda: next_class(SQUARE, np.zeros(0, int)),
            "locus: all": lambda: next_class(SQUARE, [0, 1, 2]),
            "locus: outside": lambda: next_class(SQUARE, [3]),
            "locus: floats": lambda: next_class(SQUARE, [0.5]),
        },
    ),
)
