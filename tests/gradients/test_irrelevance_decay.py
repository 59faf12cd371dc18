"""The decay of irrelevant weights against a loop, at its limits, and around other optimisers."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
PARAMS = {"kernel": RNG.normal(size=(3, 2)), "bias": RNG.normal(size=2)}
GRADS = {"kernel": RNG.normal(size=(20, 3, 2)), "bias": RNG.normal(size=(20, 2))}


def trajectory(tx, grads=GRADS):
    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    params = jax.tree.map(jnp.asarray, PARAMS)
    return jax.lax.scan(step, (params, tx.init(params)), jax.tree.map(jnp.asarray, grads))[1]


def test_it_follows_its_recursion_and_its_limits(x64):
    make, sgd = rj.gradients.irrelevance_decay, optax.sgd(0.1, momentum=0.9)
    flat, steep = jax.tree.map(np.zeros_like, GRADS), jax.tree.map(lambda g: 1e3 * np.sign(g), GRADS)

    @jax.jit
    def run():
        scheduled = make(sgd, lambda step: 0.01 * (1 + step), gradient_scale=lambda step: 2.0, where="all")
        return {
            "exp": trajectory(make(sgd, 0.02, gradient_scale=1.5)),
            "hinge": trajectory(make(sgd, 0.02, gate="hinge")),
            "scheduled": trajectory(scheduled),
            "flat": trajectory(make(sgd, 0.02), flat),
            "steep": (trajectory(make(sgd, 0.02), steep), trajectory(sgd, steep)),
            "uniform": (
                trajectory(make(optax.adam(0.1), 0.02, gradient_scale=0.0)),
                trajectory(rj.gradients.adamw_decoupled(0.1, weight_decay=0.02)),
            ),
        }

    got = run()
    gates = {
        "exp": lambda g: np.exp(-1.5 * abs(g)),
        "hinge": lambda g: max(0.0, 1 - abs(g)),
        "scheduled": lambda g: np.exp(-2 * abs(g)),
    }
    for kind, gate in gates.items():
        for name in PARAMS:
            for at in np.ndindex(*PARAMS[name].shape):
                w, m = PARAMS[name][at], 0.0
                for t, g in enumerate(GRADS[name][(slice(None), *at)]):
                    rate = 0.01 * (1 + t) if kind == "scheduled" else 0.02 * (name == "kernel")
                    m = 0.9 * m + g
                    w = w - 0.1 * m - rate * gate(g) * w
                assert got[kind][name][(-1, *at)] == pytest.approx(w, rel=1e-10), (kind, name)
    np.testing.assert_allclose(got["flat"]["kernel"][-1], PARAMS["kernel"] * 0.98**20, rtol=1e-12)
    for kind in ("steep", "uniform"):
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), *got[kind])


def test_absent_updates_narrow_weights_and_injected_numbers():
    params = {"kernel": jnp.array([[1.0, -2.0]], jnp.bfloat16), "frozen": jnp.ones((2, 2))}
    grads = {"kernel": jnp.array([[0.0, 1.0]], jnp.bfloat16), "frozen": None}
    tx = rj.gradients.irrelevance_decay(optax.identity(), 0.5)
    updates, _ = tx.update(grads, tx.init(params), params)
    assert updates["frozen"] is None and updates["kernel"].dtype == jnp.bfloat16
    np.testing.assert_allclose(updates["kernel"].astype(jnp.float32), [[-0.5, 1 + np.exp(-1)]], rtol=1e-2)
    oracle = {"kernel": jnp.array([[1.0, -2.0, 0.5]])}
    slopes = {"kernel": jnp.array([[0.0, np.log(2), -1.0]])}
    make = optax.inject_hyperparams(rj.gradients.irrelevance_decay, static_args=("inner", "gate"))
    tx = make(optax.sgd(0.1), decay=lambda step: 0.01)
    updates, state = tx.update(slopes, tx.init(oracle), oracle)
    np.testing.assert_allclose(optax.apply_updates(oracle, updates)["kernel"][0], [0.99, -2.0593147, 0.5981606], atol=1e-6)
    assert float(state.hyperparams["decay"]) == pytest.approx(0.01)
