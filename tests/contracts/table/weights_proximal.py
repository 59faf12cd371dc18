"""Examples of `regjax.weights`: the nuclear norm, the group sparse envelope, their steps, and projections."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example
from tests.contracts.table.weights import ONES, TREE, ZEROS, P, refused, wrong_groups, wrong_where

# A dense layer whose inputs divide over 8 devices, and equal singular values beside it.
REPEATED = {"params": {**TREE["params"], "dense": {"kernel": np.eye(8, 3), "bias": np.zeros(3)}}}

BOUNDS = {"NaN": float("nan"), "a word": "low", "two numbers": jnp.ones(2)}


def groups_and_where(call) -> dict:
    wrong = {what: thunk for what, thunk in wrong_groups(call).items() if what.startswith("groups")}
    return {**wrong_where(call), **wrong}


def matrices_and_where(call) -> dict:
    return {
        **wrong_where(call),
        "matrix_of: no function": lambda: call(matrix_of=4),
        "matrix_of: no matrix": lambda: call(matrix_of=lambda path, leaf: leaf.ravel()),
        "matrix_of: a part": lambda: call(matrix_of=lambda path, leaf: leaf[:1]),
        "where: a vector as a kernel": lambda: call(where="all"),
    }


def counted(call) -> dict:
    return {**refused(call, "k"), "k: a fraction": lambda: call(k=1.5), "k: two numbers": lambda: call(k=jnp.ones(2))}


def weighted(call) -> dict:
    return {
        "k: zero": lambda: call(k=0),
        "group_weights: another number": lambda: call(group_weights=jnp.ones(5)),
        "group_weights: negative": lambda: call(group_weights=-1.0),
        "group_weights: a word": lambda: call(group_weights="size"),
        "group_weights: a tree where groups span leaves": lambda: call(
            groups=[["kernel", "bias"]], group_weights=jax.tree.map(jnp.ones_like, P)
        ),
    }


def penalty(name: str, *, bad, **options) -> Example:
    fn = getattr(rj.weights, name)
    wrong = lambda params=P, **given: fn(params, **{**options, **given})
    return Example(
        name=f"weights.{name}",
        call=lambda key, params: fn(params, **options),
        arrays=TREE,
        result="scalar",
        wrt=("params",),
        tree="params",
        singular=(ZEROS, ONES, REPEATED),
        bad=bad(wrong),
    )


def moving(name: str, *, bad, plain=None, start=lambda params: params, **options) -> Example:
    """A step or projection ``fn(params, step, **options)``; ``plain`` are options under which it changes nothing."""
    fn = getattr(rj.weights, name)
    wrong = lambda params=P, step=0.1, **given: fn(params, step, **{**options, **given})
    same = {**options, **(plain or {})}
    step = 0.0 if name.startswith("prox") else None
    return Example(
        name=f"weights.{name}",
        call=lambda key, params: fn(params, 0.5, **options),
        arrays=TREE,
        result="scalar",
        dtype="input",
        wrt=("params",),
        tree="params",
        singular=(ZEROS, ONES, REPEATED),
        identity=None if plain is None else lambda key, params: (fn(start(params), step, **same), start(params)),
        bad={**refused(wrong, "step"), **bad(wrong)},
    )


EXAMPLES = (
    penalty(
        "nuclear_norm",
        bad=lambda call: {
            **matrices_and_where(call),
            "mask: another structure": lambda: call(mask={"kernel": True}),
            "mask: another shape": lambda: call(mask={"kernel": jnp.ones(2, bool), "bias": True}),
            "mask: numbers": lambda: call(mask={"kernel": 1.0, "bias": 1.0}),
        },
    ),
    penalty("wgsef", k=2, bad=lambda call: {**groups_and_where(call), **refused(call, "k"), **weighted(call)}),
    moving("prox_l0", plain={}, bad=wrong_where),
    moving("prox_nuclear", plain={}, bad=matrices_and_where),
    moving(
        "prox_wgsef",
        plain={},
        k=2,
        bad=lambda call: {**groups_and_where(call), **refused(call, "k"), **weighted(call)},
    ),
    moving(
        "project_top_k",
        plain={"k": 1000},
        k=5,
        bad=lambda call: {**wrong_where(call), **counted(call), "scope: misspelt": lambda: call(scope="al")},
    ),
    moving("project_top_groups", plain={"k": 1000}, k=2, bad=lambda call: {**groups_and_where(call), **counted(call)}),
    moving(
        "project_box",
        plain={"lower": None, "upper": None},
        lower=-0.5,
        upper=0.7,
        bad=lambda call: {
            **wrong_where(call),
            "lower: above upper": lambda: call(lower=1.0),
            **{f"{side}: {word}": partial(call, **{side: x}) for side in ("lower", "upper") for word, x in BOUNDS.items()},
        },
    ),
    moving("project_nonnegative", plain={}, start=partial(jax.tree.map, jnp.abs), bad=wrong_where),
    moving("project_simplex", total=1.0, bad=lambda call: {**groups_and_where(call), **refused(call, "total")}),
    moving(
        "project_l1_ball",
        plain={"radius": 1e3},
        radius=1.0,
        bad=lambda call: {**groups_and_where(call), **refused(call, "radius")},
    ),
    moving(
        "project_l2_ball",
        plain={"radius": 1e3},
        radius=1.0,
        groups="out",
        bad=lambda call: {**groups_and_where(call), **refused(call, "radius")},
    ),
    moving(
        "project_spectral_ball",
        plain={"radius": 1e3},
        radius=1.0,
        bad=lambda call: {**matrices_and_where(call), **refused(call, "radius")},
    ),
    moving(
        "project_stiefel",
        bad=lambda call: {
            **matrices_and_where(call),
            "method: misspelt": lambda: call(method="qr"),
            "n_steps: zero": lambda: call(n_steps=0),
        },
    ),
)
