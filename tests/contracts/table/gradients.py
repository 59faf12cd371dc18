"""Examples of `regjax.gradients`."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import regjax as rj
from tests.contracts.example import Example, normal

PARAMS = {
    "dense": {"kernel": normal(8, 3), "bias": normal(3, seed=1)},
    "norm": {"scale": 1 + 0.1 * normal(3, seed=3)},
}
ARRAYS = {"grads": jax.tree.map(lambda x: np.cos(5 * x), PARAMS), "params": PARAMS}
ZERO = jax.tree.map(np.zeros_like, PARAMS)
P = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
NAN = float("nan")


def updates(tx, grads, params):
    """The first update of a transformation."""
    return tx.update(grads, tx.init(params), params)[0]


def transformation(name: str, make, *, bad, plain=None, zero=None, wrt=("grads", "params"), tree="params", **fields) -> Example:
    """The example of a transformation: ``make()``; ``zero()`` is it at strength 0 and ``plain()`` what that equals."""
    return Example(
        name=f"gradients.{name}",
        call=lambda key, grads, params: updates(make(), grads, params),
        arrays=ARRAYS,
        result="other",
        dtype="input",
        wrt=wrt,
        tree=tree,
        singular=({"grads": ZERO}, {"params": ZERO}, {"grads": ZERO, "params": ZERO}),
        transform=make,
        flops=1.01,
        identity=None if zero is None else lambda key, **at: (updates(zero(), **at), updates(plain(), **at)),
        bad={**bad, "params: missing": lambda: make().update(P, make().init(P))},
        **fields,
    )


def refused(call, *names) -> dict:
    """The values that every number refuses: ``call(**{name: value})`` raises."""
    values = {"negative": -1.0, "NaN": NAN, "a string": "strong"}
    return {f"{name}: {what}": partial(call, **{name: value}) for name in names for what, value in values.items()}


def wrong_where(make) -> dict:
    return {
        "where: an unknown word": lambda: updates(make(where="biases"), P, P),
        "where: another structure": lambda: updates(make(where={"other": True}), P, P),
    }


def sgdw(**given):
    return rj.gradients.sgdw(**{"learning_rate": 0.1, "weight_decay": 0.01, **given})


def adamw(**given):
    return rj.gradients.adamw_decoupled(**{"learning_rate": 0.1, "weight_decay": 0.01, **given})


def adamwr(**given):
    return rj.gradients.adamwr(**{"learning_rate": 0.1, "steps_per_epoch": 4, "first_period_epochs": 1, **given})


def decay(weight_decay=0.01, **given):
    return rj.gradients.decoupled_weight_decay(weight_decay, **given)


def add_penalty(penalty=rj.weights.l2, strength=0.1, **given):
    return rj.gradients.add_penalty(penalty, strength, **given)


def proximal_step(prox=rj.weights.prox_l1, strength=0.1, **given):
    return rj.gradients.proximal_step(prox, strength, **given)


def wrong_moments(make) -> dict:
    return {
        "b1: one": lambda: make(b1=1.0),
        "b2: negative": lambda: make(b2=-0.1),
        "eps: negative": lambda: make(eps=-1e-8),
    }


def orthogonal(**given):
    return rj.gradients.orthogonal_gradient(**given)


def spectral_start():
    tx = add_penalty(rj.weights.stateful_spectral_penalty())
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)

    def apply(state, key, grads, params):
        return tx.update(grads, state, params)

    return tx.init(params), apply


EXAMPLES = (
    transformation(
        "orthogonal_gradient",
        orthogonal,
        bad={
            "rescale: a number": lambda: orthogonal(rescale=1),
            "granularity: misspelt": lambda: orthogonal(granularity="leaves"),
            "min_size: a fraction": lambda: orthogonal(min_size=1.5),
            **refused(orthogonal, "eps", "guard"),
            **wrong_where(orthogonal),
        },
    ),
    transformation(
        "add_penalty",
        add_penalty,
        zero=lambda: add_penalty(strength=0.0),
        plain=optax.identity,
        memory=spectral_start,
        bad={
            "penalty: a word": lambda: add_penalty("l2"),
            "penalty: a tree": lambda: updates(add_penalty(lambda params: params["kernel"]), P, P),
            "seed: a fraction": lambda: add_penalty(seed=0.5),
            **refused(add_penalty, "strength"),
        },
    ),
    transformation(
        "proximal_step",
        proximal_step,
        zero=lambda: proximal_step(strength=0.0),
        plain=optax.identity,
        bad={
            "prox: a word": lambda: proximal_step("l1"),
            "prox: another structure": lambda: updates(proximal_step(lambda params, step: params["kernel"]), P, P),
            "prox: another shape": lambda: updates(
                proximal_step(lambda params, step: {**params, "bias": jnp.ones((2, 2))}), P, P
            ),
            **refused(proximal_step, "strength", "learning_rate"),
        },
    ),
    transformation(
        "decoupled_weight_decay",
        decay,
        zero=lambda: decay(0.0),
        plain=optax.identity,
        bad={**refused(decay, "weight_decay", "schedule"), **wrong_where(decay)},
    ),
    transformation(
        "sgdw",
        sgdw,
        zero=lambda: sgdw(weight_decay=0.0),
        plain=lambda: optax.sgd(0.1, momentum=0.9),
        tree=None,  # momentum, as in optax, takes floating leaves only
        bad={
            **refused(sgdw, "learning_rate", "weight_decay", "schedule"),
            "momentum: one": lambda: sgdw(momentum=1.0),
            "nesterov: a number": lambda: sgdw(nesterov=1),
            **wrong_where(sgdw),
        },
    ),
    transformation(
        "adamw_decoupled",
        adamw,
        zero=lambda: adamw(weight_decay=0.0),
        plain=lambda: optax.adam(0.1),
        wrt=(),  # the first step of Adam is the sign of the gradient
        tree=None,
        bad={**refused(adamw, "learning_rate", "weight_decay", "schedule"), **wrong_moments(adamw), **wrong_where(adamw)},
    ),
    transformation(
        "adamwr",
        adamwr,
        zero=lambda: adamwr(normalized_weight_decay=0.0),
        plain=lambda: adamw(weight_decay=0.0, schedule=0.5 * (1 + jnp.cos(jnp.pi * jnp.float32(0.25)))),
        wrt=(),
        tree=None,
        bad={
            **refused(adamwr, "learning_rate", "normalized_weight_decay"),
            **wrong_moments(adamwr),
            **wrong_where(adamwr),
            "steps_per_epoch: zero": lambda: adamwr(steps_per_epoch=0),
            "first_period_epochs: a fraction": lambda: adamwr(first_period_epochs=1.5),
            "period_multiplier: zero": lambda: adamwr(period_multiplier=0),
        },
    ),
    Example(
        name="gradients.normalized_weight_decay",
        call=lambda key, value: rj.gradients.normalized_weight_decay(value, steps_per_epoch=4, period_epochs=2),
        arrays={"value": np.float64(0.025)},
        result="scalar",
        dtype="input",
        wrt=("value",),
        singular=({"value": np.float64(0.0)},),
        bad={
            "value: negative": lambda: rj.gradients.normalized_weight_decay(-0.1, steps_per_epoch=4, period_epochs=2),
            "value: NaN": lambda: rj.gradients.normalized_weight_decay(NAN, steps_per_epoch=4, period_epochs=2),
            "steps_per_epoch: zero": lambda: rj.gradients.normalized_weight_decay(0.1, steps_per_epoch=0, period_epochs=2),
            "period_epochs: a fraction": lambda: rj.gradients.normalized_weight_decay(0.1, steps_per_epoch=4, period_epochs=0.5),
        },
    ),
)
