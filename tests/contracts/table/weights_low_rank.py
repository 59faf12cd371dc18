"""Examples of `regjax.weights.penalties.low_rank`."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal

U, V = normal(8, 3), normal(3, 4, seed=1)
# An ordered dense layer, an ordered convolution, and a plain layer that does not count.
PARAMS = {
    "dense": {"u": U, "v": V, "bias": normal(4, seed=2)},
    "conv": {"u": normal(2, 1, 2, 3, seed=3), "v": normal(3, 5, seed=4)},
    "plain": {"kernel": normal(8, 2, seed=5)},
}
ZEROS, ONES = ({"params": jax.tree.map(fill, PARAMS)} for fill in (np.zeros_like, np.ones_like))
ZERO_TAIL = {"u": U * [1, 1, 0], "v": V * np.array([1, 1, 0])[:, None]}
ZERO_PAIR = {"u": np.zeros((8, 3)), "v": np.zeros((3, 4))}
A, B = jnp.ones((4, 2)), jnp.ones((2, 3))
NAN = float("nan")

lasso, importance, shrink, fold = (
    rj.weights.low_rank_group_lasso,
    rj.weights.rank_importance,
    rj.weights.shrink_ranks,
    rj.weights.fold_ranks,
)


def wrong_factors(call) -> dict:
    """The factors that everything on a pair refuses; ``call(u, v)`` is given each."""
    return {
        "u: a vector": lambda: call(jnp.ones(2), B),
        "u: integers": lambda: call(jnp.ones((4, 2), int), B),
        "v: a vector": lambda: call(A, jnp.ones(2)),
        "v: of another rank": lambda: call(A, jnp.ones((3, 3))),
        "v: stacked alone": lambda: call(A, jnp.ones((4, 2, 3))),
        "v: integers": lambda: call(A, jnp.ones((2, 3), int)),
    }


EXAMPLES = (
    Example(
        name="weights.low_rank_group_lasso",
        call=lambda key, params: lasso(params),
        arrays={"params": PARAMS},
        result="scalar",
        wrt=("params",),
        tree="params",
        singular=(ZEROS, ONES, {"params": {"dense": ZERO_TAIL}}),
        bad={
            "u at layer: integers": lambda: lasso({"layer": {"u": jnp.ones((2, 2), int), "v": B}}, where=True),
            "v at layer: of another rank": lambda: lasso({"layer": {"u": A, "v": A}}),
            "v: of another rank in a tuple": lambda: lasso((A, A)),
            "hierarchical: a number": lambda: lasso((A, B), hierarchical=1),
            "where: an unknown word": lambda: lasso((A, B), where="factors"),
            "where: another structure": lambda: lasso({"u": A, "v": B}, where={"other": True}),
        },
    ),
    Example(
        name="weights.rank_importance",
        call=lambda key, u, v: importance(u, v),
        arrays={"u": U, "v": V},
        result="other",
        wrt=("u", "v"),
        singular=(ZERO_PAIR, ZERO_TAIL),
        bad={**wrong_factors(importance), "hierarchical: a number": lambda: importance(A, B, hierarchical=1)},
    ),
    Example(
        name="weights.shrink_ranks",
        call=lambda key, u, v, threshold: shrink(u, v, threshold=threshold),
        arrays={"u": U, "v": V, "threshold": np.array(8.0)},
        result="other",
        identity=lambda key, u, v, threshold: (shrink(u, v, threshold=0 * threshold), jnp.ones(3, bool)),
        singular=(ZERO_PAIR,),
        bad={
            **wrong_factors(shrink),
            "hierarchical: a number": lambda: shrink(A, B, hierarchical=1),
            "threshold: negative": lambda: shrink(A, B, threshold=-1.0),
            "threshold: NaN": lambda: shrink(A, B, threshold=NAN),
            "threshold: a string": lambda: shrink(A, B, threshold="low"),
        },
    ),
    Example(
        name="weights.fold_ranks",
        call=lambda key, u, v: (fold(u, v, np.array([True, False, True])), fold(u, v), fold(u, v, np.zeros(3, bool))),
        arrays={"u": U, "v": V},
        result="other",
        dtype="input",
        wrt=("u", "v"),
        bad={
            "u: a vector": lambda: fold(jnp.ones(2), B),
            "v: of another rank": lambda: fold(A, jnp.ones((3, 3))),
            "v: integers": lambda: fold(A, jnp.ones((2, 3), int)),
            "alive: length": lambda: fold(A, B, jnp.ones(3, bool)),
            "alive: floats": lambda: fold(A, B, jnp.ones(2)),
            "alive: traced": lambda: jax.jit(lambda alive: fold(A, B, alive))(jnp.ones(2, bool)),
        },
    ),
)
