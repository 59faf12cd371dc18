"""Examples of `regjax.gradients`: dropout by the agreement with a reference gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import regjax as rj
from tests.contracts.example import Example, normal
from tests.contracts.table.gradients import NAN, PARAMS, ZERO, P, refused

keep_prob = rj.gradients.agreement_keep_prob
REFERENCE = jax.tree.map(lambda x: np.sin(3 * x), PARAMS)


def dropout(**given):
    return rj.gradients.gradient_dropout(**given)


def updates(tx, grads, reference, params):
    return tx.update(grads, tx.init(params), params, reference=reference)[0]


def with_own_reference():
    """The transformation with a reference made of the parameters, as the suite of optax's wrappers passes none."""
    tx = dropout(strength=lambda step: 0.5 + 0.1 * step, seed=3)

    def update(grads, state, params=None, **extra):
        whole = lambda x: x is None or isinstance(x, optax.MaskedNode)
        reference = jax.tree.map(lambda g, p: g if whole(g) else 1 - p.astype(g.dtype), grads, params, is_leaf=whole)
        return tx.update(grads, state, params, **extra, reference=reference)

    return optax.GradientTransformationExtraArgs(tx.init, update)


EXAMPLES = (
    Example(
        name="gradients.gradient_dropout",
        call=lambda key, grads, reference, params: updates(dropout(strength=0.7), grads, reference, params),
        arrays={"grads": jax.tree.map(lambda x: np.cos(5 * x), PARAMS), "reference": REFERENCE, "params": PARAMS},
        result="other",
        dtype="input",
        wrt=("grads",),
        frozen=("reference", "params"),
        tree="params",
        identity=lambda key, grads, reference, params: (updates(dropout(strength=0.0), grads, reference, params), grads),
        singular=({"grads": ZERO}, {"reference": ZERO}, {"grads": ZERO, "reference": ZERO}),
        transform=with_own_reference,
        memory=lambda: (
            dropout().init(PARAMS),
            lambda state, key, grads, reference, params: dropout(strength=0.7).update(grads, state, reference=reference),
        ),
        flops=1.03,
        bad={
            **refused(dropout, "strength", "eps"),
            "strength: above 1": lambda: dropout(strength=1.5),
            "seed: a fraction": lambda: dropout(seed=0.5),
            "reference: missing": lambda: dropout().update(P, dropout().init(P), P),
            "reference: of another structure": lambda: updates(dropout(), P, {"kernel": P["kernel"]}, P),
            "reference: of another shape": lambda: updates(dropout(), P, {**P, "bias": jnp.ones(3)}, P),
            "reference: integers": lambda: updates(dropout(), P, {**P, "bias": jnp.ones(2, int)}, P),
            "reference: partly missing": lambda: updates(dropout(), P, {**P, "bias": None}, P),
        },
    ),
    Example(
        name="gradients.agreement_keep_prob",
        call=lambda key, g, ref: keep_prob(g, ref),
        arrays={"g": normal(8, 3), "ref": normal(8, 3, seed=1)},
        rows=("g", "ref"),
        result="rows",
        wrt=("g", "ref"),
        singular=({"g": np.zeros((8, 3))}, {"ref": np.zeros((8, 3))}, {"g": np.zeros((8, 3)), "ref": np.zeros((8, 3))}),
        bad={
            "g: integers": lambda: keep_prob(jnp.ones(3, int), jnp.ones(3)),
            "ref: shape": lambda: keep_prob(jnp.ones(3), jnp.ones(2)),
            "ref: integers": lambda: keep_prob(jnp.ones(3), jnp.ones(3, int)),
            "eps: negative": lambda: keep_prob(jnp.ones(3), jnp.ones(3), eps=-1e-8),
            "eps: NaN": lambda: keep_prob(jnp.ones(3), jnp.ones(3), eps=NAN),
        },
    ),
)
