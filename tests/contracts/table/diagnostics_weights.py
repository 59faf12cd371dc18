"""Examples of `regjax.diagnostics`: super weights, redundant blocks, compression, the scaling law of sparse networks."""

import functools

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal

d = rj.diagnostics
NAN = float("nan")
H, W = jnp.ones((3, 4, 2)), jnp.ones((4,), bool)
TOKENS = np.array([True, False, True, True, True, False, True, True])
T5 = d.SPARSE_SCALING_T5


def numbers(fn, argument: str, **more) -> dict:
    """What every number refuses: ``fn(**{argument: value})``."""
    values = {"negative": -1.0, "NaN": NAN, "a string": "much", **more}
    return {f"{argument}: {what}": functools.partial(fn, **{argument: value}) for what, value in values.items()}


def masks_of_tokens(fn) -> dict:
    """What every mask of four tokens refuses."""
    return {
        "where: not boolean": lambda: fn(where=jnp.ones(4)),
        "where: other tokens": lambda: fn(where=jnp.ones(5, bool)),
    }


def front(x):
    """The suite has the tokens in front, the functions the layers."""
    return jnp.moveaxis(x, 0, 1)


def states(fn) -> Example:
    """The example of a function of the hidden states of all blocks."""
    name = fn.__name__
    return Example(
        name=f"diagnostics.{name}",
        call=lambda key, states, where: jnp.nan_to_num(fn(front(states), where=where), neginf=-2.0),
        arrays={"states": normal(8, 4, 3), "where": TOKENS},
        rows=("states", "where"),
        result="scalar",
        wrt=("states",),
        singular=({"states": np.zeros((8, 4, 3))}, {"states": np.ones((8, 4, 3))}, {"where": np.zeros(8, bool)}),
        bad={
            "hidden_states: integers": lambda: fn(jnp.ones((3, 4, 2), int)),
            "hidden_states: rank": lambda: fn(jnp.ones(3)),
            "hidden_states: no block": lambda: fn(jnp.ones((1, 4, 2))),
            **masks_of_tokens(lambda where: fn(H, where=where)),
        },
    )


S, N, D = (x.ravel() for x in np.meshgrid([0.0, 0.5, 0.75], [1e6, 1e8], [1e9, 1e10, 1e11]))
LOSSES = np.asarray((16.8 * (1 - S) ** 0.722 + 45.0) * N**-0.245 + (6.9e8 / D) ** 0.203 + 0.651)
R, TWO = [1.0] * 7, jnp.ones(2)
law, fit, optimal = d.sparse_scaling_law, d.fit_sparse_scaling_law, d.optimal_sparsity
PRUNED = {"kernel": normal(4, 3), "bias": normal(3, seed=1), "steps": np.arange(2)}
KEPT = {"kernel": normal(4, 3, seed=2) > 0, "bias": np.array(True), "steps": np.array(True)}
# In float32, as the arithmetic of the network is its own.
wide = lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32))
apply = lambda params, x: jnp.tanh(wide(x) @ wide(params["kernel"]) + wide(params["bias"]))
output_error, bound, count = d.pruning_output_error, d.compression_bound, d.sketched_parameter_count
wrong_error = lambda masks=W[:2], apply_fn=lambda w, x: w * x, params=TWO: output_error(apply_fn, params, masks, jnp.ones((4, 2)))
wrong_law = lambda sparsity=0.5, nonzero_params=1e8, data=1e9, coeffs=T5: law(sparsity, nonzero_params, data, coeffs)
wrong_fit = lambda sparsity=[0.5] * 7, nonzero_params=R, data=R, losses=R, **more: fit(
    sparsity, nonzero_params, data, losses, **more
)
wrong_best = lambda nonzero_params=1e8, compute=1e19, coeffs=T5, **more: optimal(nonzero_params, compute, coeffs, **more)
wrong_bound = lambda margin_error=0.1, num_params=9, num_samples=100, **more: bound(
    margin_error, num_params, num_samples, **{"num_values": 2, **more}
)

EXAMPLES = (
    Example(
        name="diagnostics.find_super_weights",
        call=lambda key, inputs, outputs, where: d.find_super_weights(front(inputs), front(outputs), relative=1.1, where=where),
        arrays={"inputs": normal(8, 3, 4), "outputs": normal(8, 3, 5, seed=1), "where": TOKENS},
        rows=("inputs", "outputs", "where"),
        result="scalar",
        frozen=("inputs", "outputs"),
        singular=({"inputs": np.zeros((8, 3, 4))}, {"where": np.zeros(8, bool)}),
        bad={
            "down_inputs: integers": lambda: d.find_super_weights(jnp.ones((3, 4, 2), int), H),
            "down_inputs: rank": lambda: d.find_super_weights(jnp.ones(3), jnp.ones(3)),
            "down_inputs: no token": lambda: d.find_super_weights(jnp.ones((3, 0, 2)), jnp.ones((3, 0, 2))),
            "down_outputs: other tokens": lambda: d.find_super_weights(H, jnp.ones((3, 5, 2))),
            **numbers(functools.partial(d.find_super_weights, H, H), "threshold", zero=0.0),
            **numbers(functools.partial(d.find_super_weights, H, H), "relative", zero=0.0),
            **masks_of_tokens(functools.partial(d.find_super_weights, H, H)),
        },
    ),
    states(d.block_importance),
    states(d.gap_similarity),
    Example(
        name="diagnostics.layer_importance",
        call=lambda key, inputs, outputs, where: d.layer_importance(front(inputs), front(outputs), where=where),
        arrays={"inputs": normal(8, 2, 3), "outputs": normal(8, 2, 3, seed=1), "where": TOKENS},
        rows=("inputs", "outputs", "where"),
        result="scalar",
        wrt=("inputs", "outputs"),
        singular=({"inputs": np.zeros((8, 2, 3))}, {"outputs": np.zeros((8, 2, 3))}, {"where": np.zeros(8, bool)}),
        bad={
            "inputs: integers": lambda: d.layer_importance(jnp.ones((3, 4, 2), int), H),
            "outputs: shape": lambda: d.layer_importance(H, jnp.ones((3, 4, 1))),
            "residual: a number": lambda: d.layer_importance(H, H, residual=1),
            **masks_of_tokens(functools.partial(d.layer_importance, H, H)),
        },
    ),
    Example(
        name="diagnostics.drop_plan",
        call=lambda key, attn, mlp: d.drop_plan(attn, mlp, 5),
        arrays={"attn": normal(8), "mlp": normal(8, seed=1)},
        rows=("attn", "mlp"),
        result="other",
        dtype=None,
        singular=({"attn": np.zeros(8), "mlp": np.zeros(8)},),
        bad={
            "attn_importance: integers": lambda: d.drop_plan(jnp.ones(2, int), jnp.ones(2), 1),
            "mlp_importance: rank": lambda: d.drop_plan(jnp.ones(2), jnp.ones((2, 1)), 1),
            "num: too many": lambda: d.drop_plan(jnp.ones(2), jnp.ones(2), 5),
            "num: negative": lambda: d.drop_plan(jnp.ones(2), jnp.ones(2), -1),
            "num: a fraction": lambda: d.drop_plan(jnp.ones(2), jnp.ones(2), 0.5),
            "num: a vector": lambda: d.drop_plan(jnp.ones(2), jnp.ones(2), jnp.ones(2, int)),
        },
    ),
    Example(
        name="diagnostics.best_gap",
        call=lambda key, similarity: d.best_gap(similarity, 2),
        arrays={"similarity": normal(4, 4)},
        result="other",
        singular=({"similarity": np.zeros((4, 4))},),
        bad={
            "similarity: integers": lambda: d.best_gap(jnp.ones((2, 2), int), 1),
            "similarity: not square": lambda: d.best_gap(jnp.ones((2, 3)), 1),
            "num: zero": lambda: d.best_gap(jnp.ones((2, 2)), 0),
            "num: too many": lambda: d.best_gap(jnp.ones((2, 2)), 3),
        },
    ),
    Example(
        name="diagnostics.sketched_parameter_count",
        call=lambda key, masks: count(masks),
        arrays={"masks": {"kernel": normal(8, 3) > 0, "conv": normal(2, 1, 2, 3) > 0, "bias": np.ones(3, bool)}},
        result="other",
        tree="masks",
        singular=({"masks": {"kernel": np.zeros((8, 3), bool), "conv": np.ones((2, 1, 2, 3), bool), "bias": np.array(True)}},),
        bad={"masks at kernel: floats": lambda: count({"kernel": jnp.ones((2, 2))})},
    ),
    Example(
        name="diagnostics.compression_bound",
        call=lambda key, error, q, m: bound(error, q, m, num_values=4, delta=0.1),
        arrays={"error": np.array(0.1), "q": np.array(9.0), "m": np.array(100.0)},
        result="scalar",
        wrt=("error", "q", "m"),
        identity=lambda key, error, q, m: (bound(error, 0.0, m, num_values=4, delta=1.0), error),
        bad={
            **numbers(wrong_bound, "margin_error", share=1.1),
            **numbers(wrong_bound, "num_params"),
            **numbers(wrong_bound, "num_samples", zero=0),
            **numbers(wrong_bound, "num_values", zero=0),
            **numbers(wrong_bound, "delta", zero=0.0, two=2.0),
        },
    ),
    Example(
        name="diagnostics.pruning_output_error",
        call=lambda key, params, masks, x: output_error(apply, params, masks, x),
        arrays={"params": PRUNED, "masks": KEPT, "x": normal(8, 4)},
        rows=("x",),
        result="scalar",
        frozen=("params", "x"),
        singular=({"params": {**PRUNED, "kernel": np.zeros((4, 3)), "bias": np.zeros(3)}}, {"x": np.zeros((8, 4))}),
        bad={
            "apply_fn: no function": lambda: wrong_error(apply_fn=3),
            "apply_fn: a scalar": lambda: wrong_error(apply_fn=lambda w, x: jnp.sum(x)),
            "masks: another structure": lambda: wrong_error([jnp.ones(2, bool)]),
            "masks: numbers": lambda: wrong_error(jnp.ones(2)),
            "masks: shape": lambda: wrong_error(jnp.ones(3, bool)),
        },
    ),
    Example(
        name="diagnostics.sparse_scaling_law",
        call=lambda key, sparsity, params, data, coeffs: law(sparsity, params, data, coeffs),
        arrays={"sparsity": S[:4] / 2, "params": N[:4], "data": D[:4], "coeffs": d.SparseScaling(*map(np.float64, T5))},
        result="other",
        wrt=("sparsity", "coeffs"),
        bad={
            **numbers(wrong_law, "sparsity", one=1.0),
            **numbers(wrong_law, "nonzero_params", zero=0),
            **numbers(wrong_law, "data", zero=0, shape=jnp.ones(2), flags=jnp.ones((), bool))
            | {"data: shape": lambda: law([0.5, 0.5, 0.5], 1e8, jnp.ones(2), T5)},
            "coeffs: six": lambda: wrong_law(coeffs=T5[:6]),
            "coeffs.b_n: NaN": lambda: wrong_law(coeffs=T5._replace(b_n=NAN)),
        },
    ),
    Example(
        name="diagnostics.fit_sparse_scaling_law",
        # Predictions: the coefficients trade against each other.
        call=lambda key, losses: law(S, N, D, fit(S, N, D, losses)),
        arrays={"losses": LOSSES},
        result="other",
        frozen=("losses",),
        singular=({"losses": np.ones(len(S))},),
        bad={
            **numbers(wrong_fit, "sparsity", one=1.0, shape=jnp.zeros(8)),
            **numbers(wrong_fit, "nonzero_params", zero=[0.0] * 7, shape=jnp.ones(8)),
            **numbers(wrong_fit, "data", zero=[0.0] * 7, shape=jnp.ones(8)),
            **numbers(wrong_fit, "losses", few=R[:6], rank=jnp.ones((7, 1))),
            **numbers(wrong_fit, "delta", zero=0.0),
        },
        tolerance=1e-3,
    ),
    Example(
        name="diagnostics.optimal_sparsity",
        call=lambda key, params, compute: optimal(params, compute, T5, grid=S[::6]),
        arrays={"params": np.array(1e6), "compute": np.array([1e13, 1e16, 1e19])},
        result="other",
        bad={
            **numbers(wrong_best, "nonzero_params", zero=0),
            **numbers(wrong_best, "compute", zero=0),
            **numbers(wrong_best, "grid", empty=[], scalar=0.5, one=[1.0]),
            "compute: shape": lambda: optimal(jnp.ones(2), jnp.ones(3), T5),
            "coeffs: a number": lambda: wrong_best(coeffs=1.0),
        },
    ),
)
