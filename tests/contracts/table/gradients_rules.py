"""Examples of `regjax.gradients`: rules for steps and blocks, centralization, noise, cautious decay."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax

import regjax as rj
from tests.contracts.example import Example, normal
from tests.contracts.table.gradients import ARRAYS, NAN, PARAMS, ZERO, P, refused, updates, wrong_where

g = rj.gradients
KEY = jax.random.key(0)
GRADS = ARRAYS["grads"]
BOUNDS = {"dense": {"kernel": 1 + normal(8, 3) ** 2, "bias": np.float64(2.0)}, "norm": {"scale": 1 + normal(3) ** 2}}


def rule(name: str, make, *, bad, transform=None, flops=1.01, wrt=("grads", "params"), params=True, **fields) -> Example:
    """The example of the transformation ``make()``."""
    missing = {"params: missing": lambda: make().update(P, make().init(P))} if params else {}
    return Example(
        name=f"gradients.{name}",
        call=fields.pop("call", lambda key, grads, params: updates(make(), grads, params)),
        arrays=ARRAYS,
        result="other",
        dtype="input",
        wrt=wrt,
        tree=fields.pop("tree", "params"),
        singular=({"grads": ZERO}, {"params": ZERO}, {"grads": ZERO, "params": ZERO}),
        transform=transform or make,
        flops=flops,
        bad={**missing, **bad},
        **fields,
    )


def same(make, plain):
    """The updates of two transformations."""
    return lambda key, grads, params: (updates(make(), grads, params), updates(plain(), grads, params))


def lawn(base=None, free_steps=0, **given):
    return g.lawn(base or optax.identity(), free_steps=free_steps, **given)


def block_coordinate(base=None, **given):
    return g.block_coordinate(base or optax.sgd(0.1), **given)


def select(grad=P, **given):
    return g.select_block(grad, **given)


def coordinates(grad=None, block_size=2, **given):
    return g.select_coordinates(jnp.ones(3) if grad is None else grad, block_size=block_size, **given)


def centralize(**given):
    return g.centralize_gradient(**given)


def noise(key=KEY, **given):
    return g.gradient_noise(key, **given)


def cautious(weight_decay=0.1, learning_rate=0.1, **given):
    return g.cautious_weight_decay(weight_decay, learning_rate=learning_rate, **given)


def polyak(grads, params, value=0.7, eta=0.1):
    tx = g.polyak_subgradient(eta)
    return tx.update(grads, tx.init(params), params, value=jnp.asarray(value))[0]


def with_own_value():
    """The transformation with a loss of its own, as the suite of optax's wrappers passes none, or another."""
    tx = g.polyak_subgradient(lambda step: 0.1 + 0.1 * step)

    def update(grads, state, params=None, **extra):
        return tx.update(grads, state, params, **{**extra, "value": jnp.asarray(0.5, jnp.float32)})

    return optax.GradientTransformationExtraArgs(tx.init, update)


def lawn_memory():
    tx = g.lawn(optax.trace(0.9), free_steps=1)
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)
    return tx.init(params), lambda state, key, grads, params: tx.update(
        jax.tree.map(lambda x: x.astype(jnp.float32), grads), state, params
    )


def block_memory():
    tx = block_coordinate(optax.trace(0.9), rule="random")
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)
    return tx.init(params), lambda state, key, grads, params: tx.update(
        jax.tree.map(lambda x: x.astype(jnp.float32), grads), state, params
    )


EXAMPLES = (
    rule(
        "lawn",
        lambda: lawn(optax.identity()),
        transform=lambda: lawn(optax.sgd(0.1, momentum=0.9), free_steps=1),
        identity=same(lambda: lawn(optax.adam(0.1), math.inf), lambda: optax.adam(0.1)),
        memory=lawn_memory,
        bad={
            "base: a number": lambda: lawn(0.1),
            "free_steps: negative": lambda: lawn(free_steps=-1),
            "free_steps: a fraction": lambda: lawn(free_steps=1.5),
            "free_steps: NaN": lambda: lawn(free_steps=NAN),
            "project_gradient: a number": lambda: lawn(project_gradient=1),
            "project_update: a word": lambda: lawn(project_update="no"),
            "renormalize: a number": lambda: lawn(renormalize=2),
            "granularity: misspelt": lambda: lawn(granularity="leaves"),
            **wrong_where(lawn),
        },
    ),
    rule(
        "block_coordinate",
        block_coordinate,
        transform=lambda: block_coordinate(optax.adam(0.1)),
        wrt=("grads",),
        frozen=("params",),
        identity=same(lambda: block_coordinate(blocks=0), lambda: optax.sgd(0.1)),
        memory=block_memory,
        bad={
            "base: a word": lambda: block_coordinate("sgd"),
            "rule: misspelt": lambda: block_coordinate(rule="gqs"),
            "score: misspelt": lambda: block_coordinate(score="l3"),
            "freeze_state: a number": lambda: block_coordinate(freeze_state=1),
            "seed: a fraction": lambda: block_coordinate(seed=0.5),
            "blocks: an unknown word": lambda: updates(block_coordinate(blocks="leaves"), P, P),
            "blocks: another structure": lambda: updates(block_coordinate(blocks={"other": 0}), P, P),
            "blocks: within a leaf": lambda: updates(block_coordinate(blocks={"kernel": np.eye(2, dtype=int), "bias": 0}), P, P),
            "blocks: negative": lambda: updates(block_coordinate(blocks={"kernel": -1, "bias": 0}), P, P),
            "lipschitz: missing": lambda: updates(block_coordinate(rule="gsl"), P, P),
            "lipschitz: another size": lambda: updates(block_coordinate(rule="gsl", lipschitz=jnp.ones(3)), P, P),
            "lipschitz: another structure": lambda: updates(block_coordinate(rule="gsd", lipschitz=jnp.ones(2)), P, P),
        },
    ),
    Example(
        name="gradients.select_block",
        call=lambda key, grad, lipschitz: (
            g.select_block(grad, rule="gsd", lipschitz=lipschitz),
            g.select_block(grad, score="l1"),
        ),
        arrays={"grad": GRADS, "lipschitz": BOUNDS},
        result="other",
        dtype=None,
        tree=None,
        singular=({"grad": ZERO}, {"lipschitz": jax.tree.map(np.zeros_like, BOUNDS)}),
        bad={
            "rule: misspelt": lambda: select(rule="cyclic"),
            "score: misspelt": lambda: select(score="max"),
            "blocks: an unknown word": lambda: select(blocks="leaves"),
            "blocks: fractions": lambda: select(blocks={"kernel": 0.5, "bias": 0}),
            "blocks: another shape": lambda: select(blocks={"kernel": np.zeros(2, int), "bias": 0}),
            "lipschitz: missing": lambda: select(rule="gsd"),
            "lipschitz: another shape": lambda: select(rule="gsd", lipschitz={"kernel": jnp.ones(2), "bias": 1.0}),
            "lipschitz: negative": lambda: select(rule="gsd", lipschitz={"kernel": -1.0, "bias": 1.0}),
            "block_lipschitz: missing": lambda: select(rule="gsl"),
            "block_lipschitz: integers": lambda: select(rule="gsl", block_lipschitz=jnp.ones(2, int)),
            "hessian_bound: missing": lambda: select(jnp.ones(2), rule="gsq"),
            "hessian_bound: another shape": lambda: select(jnp.ones(2), rule="gsq", hessian_bound=jnp.eye(3)),
            "grad: a tree for gsq": lambda: select(rule="gsq", hessian_bound=jnp.eye(2)),
        },
    ),
    Example(
        name="gradients.select_coordinates",
        call=lambda key, grad, lipschitz: g.select_coordinates(grad, block_size=3, rule="gsd", lipschitz=lipschitz),
        arrays={"grad": normal(8), "lipschitz": 1 + normal(8, seed=1) ** 2},
        rows=("grad", "lipschitz"),
        result="other",
        dtype=None,
        singular=({"grad": np.zeros(8)}, {"lipschitz": np.zeros(8)}),
        bad={
            "grad: a matrix": lambda: coordinates(jnp.ones((2, 2))),
            "block_size: too many": lambda: coordinates(block_size=4),
            "block_size: none": lambda: coordinates(block_size=0),
            "rule: misspelt": lambda: coordinates(rule="gsq"),
            "lipschitz: missing": lambda: coordinates(rule="gsd"),
            "lipschitz: another shape": lambda: coordinates(rule="gsd", lipschitz=jnp.ones(2)),
        },
    ),
    rule(
        "centralize_gradient",
        centralize,
        wrt=("grads",),
        frozen=("params",),
        params=False,
        bad={
            "conv_only: a number": lambda: centralize(conv_only=1),
            "output_axis: a fraction": lambda: centralize(output_axis=0.5),
            "output_axis: not there": lambda: updates(centralize(output_axis=2), P, P),
            **wrong_where(centralize),
        },
    ),
    rule(
        "gradient_noise",
        lambda: noise(eta=0.3),
        call=lambda key, grads, params: updates(noise(key, eta=0.3), grads, params),
        random=True,
        wrt=("grads",),
        frozen=("params",),
        flops=1.05,
        params=False,
        identity=same(lambda: noise(eta=0.0), optax.identity),
        memory=lambda: (noise().init(PARAMS), lambda state, key, grads, params: noise(key).update(grads, state, params)),
        bad={"key: a number": lambda: noise(0), **refused(noise, "eta", "gamma")},
    ),
    rule(
        "cautious_weight_decay",
        cautious,
        transform=lambda: optax.chain(optax.sgd(0.1), cautious(learning_rate=lambda step: 0.1 / (1 + step))),
        identity=same(lambda: cautious(0.0), optax.identity),
        bad={**refused(cautious, "weight_decay", "learning_rate"), **wrong_where(cautious)},
    ),
    Example(
        name="gradients.polyak_subgradient",
        call=lambda key, grads, params, value: polyak(grads, params, value),
        arrays={**ARRAYS, "value": np.float64(0.7)},
        result="other",
        dtype="input",
        wrt=("grads", "value"),
        frozen=("params",),
        tree="params",
        singular=({"grads": ZERO}, {"value": np.float64(0.0)}),
        identity=lambda key, grads, params, value: (
            polyak(grads, params, value, eta=0.0),
            jax.tree.map(lambda x: 0 * x, grads),
        ),
        transform=with_own_value,
        flops=1.01,
        bad={
            **refused(lambda eta: g.polyak_subgradient(eta), "eta"),
            "value: missing": lambda: updates(g.polyak_subgradient(0.1), P, P),
            "value: a vector": lambda: polyak(P, P, jnp.ones(2)),
            "value: an integer": lambda: polyak(P, P, jnp.ones((), int)),
        },
    ),
)
