"""Decoupled weight decay: its recursion, its relation to l2 and to optax, and warm restarts."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import regjax as rj

RNG = np.random.default_rng(0)
PARAMS = {"kernel": RNG.normal(size=(3, 2)), "bias": RNG.normal(size=2)}
GRADS = [{"kernel": RNG.normal(size=(3, 2)), "bias": RNG.normal(size=2)} for _ in range(40)]
STACKED = jax.tree.map(lambda *xs: np.stack(xs), *GRADS)


def trajectory(tx, grads=STACKED, params=PARAMS):
    """The weights after each step with the given gradients."""

    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params

    as_arrays = jax.tree.map(jnp.asarray, params)
    return jax.lax.scan(step, (as_arrays, tx.init(as_arrays)), jax.tree.map(jnp.asarray, grads))[1]


def assert_equal(got, want, tolerance=1e-6):
    # Schedules and Adam's bias correction are float32 scalars, also among float64 weights.
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance), got, want)


def adam(grads, start, rates, decays, b1=0.9, b2=0.999, eps=1e-8):
    """``w <- w - rate_t * direction - decay_t * w``, the direction of Adam, entry by entry."""
    out = np.zeros((len(grads), *start.shape))
    for index in np.ndindex(*start.shape):
        w, m, v = start[index], 0.0, 0.0
        for t, g in enumerate(grads):
            m, v = b1 * m + (1 - b1) * g[index], b2 * v + (1 - b2) * g[index] ** 2
            direction = m / (1 - b1 ** (t + 1)) / (np.sqrt(v / (1 - b2 ** (t + 1))) + eps)
            w = w - rates[t] * direction - decays[t] * w
            out[t][index] = w
    return out


def restarts(steps, steps_per_epoch, first_period, multiplier):
    """The multiplier and the period's epochs at each step, by a counter that runs as the authors' does."""
    done, period, next_restart, values = 0.0, first_period, first_period, []
    for step in range(steps):
        epoch = step // steps_per_epoch
        if done >= 1 - 1e-9 and epoch == next_restart:
            done, period = 0.0, period * multiplier
            next_restart = epoch + period
        done = min(done + 1 / (period * steps_per_epoch), 1.0)
        values.append((0.5 * (1 + np.cos(np.pi * done)), period))
    return np.array(values).T


def test_the_optimisers_follow_their_recursions(x64):
    multiplier = lambda step: 1 / (1 + 0.1 * step)
    ramp = optax.linear_schedule(0.02, 0.06, 40)
    t = np.arange(40)
    etas, decays = multiplier(t), 0.02 + 0.001 * t

    @jax.jit
    def run():
        adamw = rj.gradients.adamw_decoupled(lambda step: 0.1 + 0.0 * step, weight_decay=ramp, schedule=multiplier)
        sgdw = rj.gradients.sgdw(0.1, weight_decay=0.03, momentum=0.9, schedule=multiplier)
        nesterov = rj.gradients.sgdw(0.1, weight_decay=0.0, momentum=0.9, nesterov=True)
        return trajectory(adamw), trajectory(sgdw), trajectory(nesterov), trajectory(optax.sgd(0.1, 0.9, nesterov=True))

    adamw, sgdw, nesterov, plain = run()
    for name, decayed in (("kernel", 1.0), ("bias", 0.0)):
        grads = [g[name] for g in GRADS]
        assert_equal(adamw[name], adam(grads, PARAMS[name], 0.1 * etas, decayed * etas * decays))
        w, m = PARAMS[name], 0.0
        for step, g in enumerate(grads):
            m = 0.9 * m + g
            w = w - etas[step] * (0.1 * m + decayed * 0.03 * w)
        assert_equal(sgdw[name][-1], w)
    assert_equal(nesterov, plain)


@pytest.mark.parametrize("multiplier", [1, 2, 3])
def test_warm_restarts_follow_the_counter(x64, multiplier):
    etas, periods = restarts(40, 3, 2, multiplier)
    tx = rj.gradients.adamwr(
        0.1, normalized_weight_decay=0.5, steps_per_epoch=3, first_period_epochs=2, period_multiplier=multiplier, where="all"
    )
    got = jax.jit(lambda: trajectory(tx))()
    decays = etas * 0.5 / np.sqrt(3 * periods)
    assert np.sum(etas == 0) >= (6 if multiplier == 1 else 2), "every period ends with a step of zero"
    for name in PARAMS:
        want = adam([g[name] for g in GRADS], PARAMS[name], 0.1 * etas, decays)
        assert_equal(got[name], want)


def test_long_runs_restart_exactly():
    # Period 20 of a doubling schedule begins after a million epochs' worth of steps; the counter is an integer throughout.
    tx = rj.gradients.adamwr(1.0, normalized_weight_decay=1.0, steps_per_epoch=1, first_period_epochs=1, where="all")
    state = tx.init({"w": jnp.ones(1)})
    start = 2**20 - 1

    def shrink(step):
        at = jax.tree.map(lambda leaf: jnp.asarray(step, leaf.dtype) if leaf.dtype == jnp.int32 else leaf, state)
        return float(tx.update({"w": jnp.zeros(1)}, at, {"w": jnp.ones(1)})[0]["w"][0])

    assert shrink(start - 1) == 0.0
    assert shrink(start) == pytest.approx(-(2**-10), rel=1e-5)


def test_equals_l2_for_sgd_and_optax_for_adam(x64):
    lr, decay = 0.1, 0.02
    ramp = optax.linear_schedule(1.0, 0.1, 40)
    l2 = lambda params: rj.weights.l2(params)

    @jax.jit
    def run():
        # A decay that is decoupled from the learning rate is l2 of decay / lr for plain SGD, and optax's of decay / lr for Adam.
        sgdw = trajectory(rj.gradients.sgdw(lr, weight_decay=decay, momentum=None))
        coupled = trajectory(optax.chain(rj.gradients.add_penalty(l2, decay / lr), optax.sgd(lr)))
        ours = trajectory(rj.gradients.adamw_decoupled(lr, weight_decay=decay, schedule=ramp))
        mask = {"kernel": True, "bias": False}
        theirs = trajectory(optax.adamw(lambda step: lr * ramp(step), weight_decay=decay / lr, mask=mask))
        chained = trajectory(optax.chain(optax.adam(lr), rj.gradients.decoupled_weight_decay(decay)))
        return (sgdw, coupled), (ours, theirs), (chained, trajectory(rj.gradients.adamw_decoupled(lr, weight_decay=decay)))

    for got, want in run():
        assert_equal(got, want)


def test_the_decay_ignores_gradient_scale_and_learning_rate(x64):
    zero = jax.tree.map(np.zeros_like, STACKED)

    @jax.jit
    def run():
        shrunk = [trajectory(rj.gradients.adamw_decoupled(lr, weight_decay=0.05, schedule=0.5), zero) for lr in (0.0, 1.0)]
        large = jax.tree.map(lambda g: 1000 * g, STACKED)
        tx = rj.gradients.adamw_decoupled(0.1, weight_decay=0.05, eps=0.0)
        return shrunk, [trajectory(tx, grads) for grads in (STACKED, large)]

    shrunk, scaled = run()
    for got in shrunk:
        np.testing.assert_allclose(got["kernel"][-1], PARAMS["kernel"] * (1 - 0.5 * 0.05) ** 40, rtol=1e-12)
        np.testing.assert_array_equal(got["bias"][-1], PARAMS["bias"])
    assert_equal(*scaled, tolerance=1e-9)


def test_published_normalised_values():
    decay = lambda epochs: rj.gradients.normalized_weight_decay(0.025, steps_per_epoch=391, period_epochs=epochs)
    assert decay(100) == pytest.approx(1.264304e-4, rel=1e-6)
    assert decay(200) == pytest.approx(8.939982e-5, rel=1e-6)
    traced = jax.jit(lambda value: rj.gradients.normalized_weight_decay(value, steps_per_epoch=391, period_epochs=100))(0.025)
    assert float(traced) == pytest.approx(decay(100), rel=1e-6)


def test_where_absent_updates_and_injected_hyperparameters():
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)
    zero = jax.tree.map(jnp.zeros_like, params)
    shrink = lambda tx, updates=zero, params=params: tx.update(updates, tx.init(params), params)[0]
    decay = rj.gradients.decoupled_weight_decay
    for where, decayed in ((None, ["kernel"]), ("all", ["kernel", "bias"]), ({"kernel": False, "bias": True}, ["bias"])):
        got = shrink(decay(0.1, where=where))
        for name in params:
            np.testing.assert_allclose(got[name], -0.1 * params[name] if name in decayed else zero[name], rtol=1e-6)
    as_state = lambda tree: nnx.State(jax.tree.map(nnx.Param, tree))
    got = shrink(decay(0.1, where=lambda path, leaf: path == ("bias",)), as_state(zero), as_state(params))
    np.testing.assert_allclose(got["bias"][...], -0.1 * params["bias"], rtol=1e-6)
    assert not got["kernel"][...].any()
    assert shrink(decay(0.1, where="all"), {**zero, "bias": None})["bias"] is None

    make = optax.inject_hyperparams(rj.gradients.sgdw)
    injected = make(lambda step: 0.1 * step, weight_decay=lambda step: 0.2, momentum=0.5)
    state = injected.init(params)
    for _ in range(2):
        got, state = injected.update(params, state, params)
    assert float(state.hyperparams["learning_rate"]) == pytest.approx(0.1)
    np.testing.assert_allclose(got["bias"], -0.1 * 1.5 * params["bias"], rtol=1e-5)
    np.testing.assert_allclose(got["kernel"], -(0.1 * 1.5 + 0.2) * params["kernel"], rtol=1e-5)
