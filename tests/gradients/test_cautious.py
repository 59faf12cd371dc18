"""Cautious weight decay: which weights decay, its recursion, and its relation to AdamW."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import regjax as rj

RNG = np.random.default_rng(0)
PARAMS = {"kernel": RNG.normal(size=(4, 3)), "bias": RNG.normal(size=3)}
GRADS = {"kernel": RNG.normal(size=(20, 4, 3)), "bias": RNG.normal(size=(20, 3))}
cautious = rj.gradients.cautious_weight_decay


def trajectory(tx, params=PARAMS):
    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    as_arrays = jax.tree.map(jnp.asarray, params)
    return jax.lax.scan(step, (as_arrays, tx.init(as_arrays)), jax.tree.map(jnp.asarray, GRADS))[1]


def test_which_weights_decay():
    u = {"kernel": jnp.array([[0.5, -0.5, 0.0, 0.5, 1e-30, -1e-30, 0.5]])}
    w = {"kernel": jnp.array([[2.0, 2.0, 2.0, -2.0, 1e-30, 1e-30, 0.0]])}
    tx = cautious(0.5, learning_rate=0.1)
    out = tx.update(u, tx.init(w), w)[0]["kernel"] - u["kernel"]
    # Outwards: no decay, also where the product underflows; inwards or still: 0.05 w.
    np.testing.assert_allclose(out[0, :4], [0, -0.1, -0.1, 0.1], atol=1e-7)
    assert out[0, 4] == 0
    np.testing.assert_allclose((tx.update(u, tx.init(w), w)[0]["kernel"])[0, 5], -1.05e-30, rtol=1e-5)


def test_follows_its_recursion_and_adamw(x64):
    rate, ramp = optax.linear_schedule(0.1, 0.02, 20), lambda step: 0.3 + 0.01 * step

    @jax.jit
    def run():
        sgd = trajectory(optax.chain(optax.sgd(rate), cautious(ramp, learning_rate=rate)))
        everything = trajectory(optax.chain(optax.sgd(rate), cautious(ramp, learning_rate=rate, where="all")))
        injected = optax.inject_hyperparams(cautious)(ramp, learning_rate=rate)
        ours = trajectory(optax.chain(optax.sgd(rate), injected))
        plain, still = trajectory(optax.sgd(rate)), trajectory(optax.chain(optax.set_to_zero(), cautious(0.5, learning_rate=0.1)))
        return sgd, everything, ours, plain, still

    sgd, everything, injected, plain, still = run()
    for name, decays in (("kernel", True), ("bias", False)):
        for got, use in ((sgd, decays), (everything, True)):
            w = PARAMS[name].copy()
            for t in range(20):
                lr = 0.1 - 0.004 * t
                for index in np.ndindex(*w.shape):
                    d = GRADS[name][(t, *index)]  # subtracted, so the mask is d w >= 0
                    w[index] -= lr * (d + use * (0.3 + 0.01 * t) * (d * w[index] >= 0) * w[index])
                np.testing.assert_allclose(got[name][t], w, rtol=1e-5, atol=1e-6)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), injected, sgd)
    np.testing.assert_array_equal(sgd["bias"], plain["bias"])
    # Where nothing moves, everything decays: that of AdamW at the same two numbers.
    np.testing.assert_allclose(still["kernel"][-1], PARAMS["kernel"] * 0.95**20, rtol=1e-6)


def test_low_precision():
    low = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), ({"kernel": GRADS["kernel"][0]}, {"kernel": PARAMS["kernel"]}))
    wide = jax.tree.map(lambda x: x.astype(jnp.float32), low)
    tx = cautious(0.5, learning_rate=0.1)
    got, want = (tx.update(u, tx.init(w), w)[0]["kernel"] for u, w in (low, wide))
    np.testing.assert_array_equal(got, want.astype(jnp.bfloat16))
