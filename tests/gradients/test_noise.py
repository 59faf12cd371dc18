"""Gradient noise: its variances, fresh keys for each step and leaf, and the same noise after a restart and on a mesh."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import regjax as rj

KEY = jax.random.key(0)
PARAMS = {"a": jnp.zeros((64, 64)), "b": jnp.zeros((64, 64))}


def noises(tx, steps, params=PARAMS):
    """The noise of each step."""

    def step(state, _):
        updates, state = tx.update(jax.tree.map(jnp.zeros_like, params), state, params)
        return state, updates

    return jax.lax.scan(step, tx.init(params), length=steps)


def test_variances_and_independence():
    @jax.jit
    def run():
        published = noises(rj.gradients.gradient_noise(KEY, eta=0.3), 4)[1]
        scheduled = noises(rj.gradients.gradient_noise(KEY, eta=lambda step: 0.1 * step, gamma=0.0), 4)[1]
        return published, scheduled

    published, scheduled = run()
    want = [0.3, 0.204906038, 0.3 * 3**-0.55, 0.3 * 4**-0.55]
    spread = np.sqrt(2 / 64**2)
    for name in PARAMS:
        flat = np.asarray(published[name]).reshape(4, -1)
        np.testing.assert_allclose(flat.var(1) / want, 1, atol=5 * spread)
        np.testing.assert_allclose(flat.mean(1) / np.sqrt(want), 0, atol=5 / 64)
        np.testing.assert_allclose(np.asarray(scheduled[name]).reshape(4, -1).var(1), [0, 0.1, 0.2, 0.3], atol=0.3 * 5 * spread)
    rows = np.concatenate([np.asarray(published[name]).reshape(4, -1) for name in PARAMS])
    correlations = np.corrcoef(rows) - np.eye(8)
    assert np.abs(correlations).max() < 5 / 64, "noise is shared between steps or leaves"


def test_restored_sharded_and_wrapped_noise_is_the_same():
    make = lambda: rj.gradients.gradient_noise(KEY, eta=0.3)
    state, whole = jax.jit(lambda: noises(make(), 4))()
    halfway = rj.gradients.StepState(jnp.asarray(2, jnp.int32))
    third = jax.jit(make().update)(PARAMS, halfway)[0]
    np.testing.assert_allclose(third["a"], whole["a"][2], rtol=1e-5, atol=1e-6)
    assert int(state.step) == 4
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(PARAMS, jax.NamedSharding(mesh, jax.P("data")))
        out = jax.jit(make().update)(sharded, make().init(sharded))[0]
    assert out["a"].sharding.spec[0] == "data"
    np.testing.assert_allclose(out["a"], whole["a"][0], rtol=1e-5, atol=1e-6)
    injected = optax.inject_hyperparams(rj.gradients.gradient_noise)(KEY, eta=0.3)
    updates = injected.update(PARAMS, injected.init(PARAMS), PARAMS)[0]
    np.testing.assert_allclose(updates["b"], whole["b"][0], rtol=1e-5, atol=1e-6)
    raw = rj.gradients.gradient_noise(jax.random.key_data(KEY), eta=0.3)
    np.testing.assert_allclose(raw.update(PARAMS, raw.init(PARAMS))[0]["a"], whole["a"][0], rtol=1e-5, atol=1e-6)
    mixed = {"a": PARAMS["a"].astype(jnp.bfloat16), "aa": jnp.arange(3), "ab": None, "b": PARAMS["b"]}
    updates = make().update(mixed, make().init(mixed))[0]
    assert updates["a"].dtype == jnp.bfloat16
    np.testing.assert_allclose(updates["a"].astype(jnp.float32), whole["a"][0], rtol=2**-7)
    np.testing.assert_allclose(updates["b"], whole["b"][0], rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(updates["aa"], jnp.arange(3))
    assert updates["ab"] is None
