"""A penalty in the loss, its gradient added, and a proximal step: where they are equal, where they differ, and exact zeros."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import regjax as rj

RNG = np.random.default_rng(0)


def tree(seed):
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    return {"dense": {"kernel": draw(5, 4), "bias": draw(4)}, "norm": {"scale": draw(4)}}


PARAMS, START = tree(1), tree(2)
RAMP = optax.linear_schedule(0.1, 0.5, 4)
CARRIED = rj.weights.stateful_spectral_penalty()
PENALTIES = {
    "l1": rj.weights.l1,
    "l2": rj.weights.l2,
    "elastic_net": partial(rj.weights.elastic_net, l1=0.5, l2=2.0),
    "group_lasso": partial(rj.weights.group_lasso, groups="in", size_weighted=True),
    "sparse_group_lasso": partial(rj.weights.sparse_group_lasso, l1=0.5, group=2.0),
    "spectral": rj.weights.spectral_penalty,
    "wasserstein": partial(rj.weights.wasserstein_to_init, init_params=rj.weights.sorted_init(START)),
    "carried spectral": CARRIED,
}


def loss(params):
    x = jnp.tanh(jnp.arange(5.0) @ params["dense"]["kernel"] + params["dense"]["bias"]) * params["norm"]["scale"]
    return jnp.sum(jnp.square(x - 1))


@pytest.mark.parametrize("strength", [0.3, RAMP], ids=["number", "schedule"])
def test_a_penalty_in_the_loss_is_its_gradient_added(strength):
    at = strength if callable(strength) else lambda step: strength

    @jax.jit
    def both(params):
        out = {}
        for name, penalty in PENALTIES.items():
            tx = rj.gradients.add_penalty(penalty, strength, seed=3)
            state = tx.init(params)
            memory = CARRIED.init(jax.random.key(3), params)
            for step in range(2):  # the second step: schedules move, memories are carried

                def penalised(p, step=step, memory=memory, penalty=penalty):
                    stateful = isinstance(penalty, rj.Stateful)
                    value, memory = penalty.apply(memory, p) if stateful else (penalty(p), memory)
                    return loss(p) + at(step) * value, memory

                want, memory = jax.grad(penalised, has_aux=True)(params)
                got, state = tx.update(jax.grad(loss)(params), state, params)
            out[name] = (got, want)
        return out

    for name, (got, want) in both(PARAMS).items():
        for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6 * float(jnp.abs(b).max()), err_msg=name)


def test_schedules_within_a_partial_are_read_at_the_step():
    grads = jax.tree.map(jnp.zeros_like, PARAMS)
    tx = rj.gradients.add_penalty(partial(rj.weights.elastic_net, l1=RAMP, l2=0.0), 2.0)
    state = tx.init(PARAMS)
    for step in range(3):
        got, state = tx.update(grads, state, PARAMS)
        want = 2.0 * RAMP(step) * jnp.sign(PARAMS["dense"]["kernel"])
        np.testing.assert_allclose(got["dense"]["kernel"], want, rtol=1e-6)
    prox = partial(rj.weights.prox_elastic_net, l1=RAMP, l2=0.0)
    tx = rj.gradients.proximal_step(prox, 0.5)
    state = tx.init(PARAMS)._replace(step=jnp.array(4))
    got = optax.apply_updates(PARAMS, tx.update(grads, state, PARAMS)[0])
    want = rj.weights.prox_l1(PARAMS, 0.25)
    np.testing.assert_allclose(got["dense"]["kernel"], want["dense"]["kernel"], rtol=1e-6)


def quadratic(tx, start, curvature, centre, steps):
    """The weights of SGD on ``curvature / 2 * (w - centre)^2``, by the transformation and scan."""
    params = {"w": start}

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.tree.map(lambda w: curvature * (w - centre), params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), params["w"]

    return jax.lax.scan(step, (params, tx.init(params)), None, steps)[1]


def test_coupled_decoupled_and_proximal_decay_have_their_closed_forms(x64):
    lr, strength, steps = 0.1, 0.3, 12
    start, curvature, centre = (jnp.asarray(RNG.normal(size=4) ** 2 + 0.1) for _ in range(3))
    everywhere = partial(rj.weights.l2, where="all")
    prox = partial(rj.weights.prox_l2, where="all")
    sgd = optax.sgd(lr)
    transformations = (
        optax.chain(rj.gradients.add_penalty(everywhere, strength), sgd),
        optax.chain(sgd, rj.gradients.decoupled_weight_decay(lr * strength, where="all")),
        rj.gradients.sgdw(lr, weight_decay=lr * strength, momentum=None, where="all"),
        optax.chain(sgd, rj.gradients.proximal_step(prox, strength, learning_rate=lr)),
    )
    run = jax.jit(lambda *at: [quadratic(tx, *at, steps) for tx in transformations])
    coupled, decoupled, sgdw, proximal = run(start, curvature, centre)
    # w <- factor * w + rest has the solution end + factor^n (start - end), end = rest / (1 - factor).
    n = np.arange(1, steps + 1)[:, None]
    form = lambda factor, rest: rest / (1 - factor) + factor**n * (start - rest / (1 - factor))
    want = form(1 - lr * curvature - lr * strength, lr * curvature * centre)
    for got in (coupled, decoupled, sgdw):
        np.testing.assert_allclose(got, want, rtol=1e-12)
    shrink = 1 + lr * strength
    np.testing.assert_allclose(proximal, form((1 - lr * curvature) / shrink, lr * curvature * centre / shrink), rtol=1e-12)


def test_only_the_proximal_step_reaches_the_exact_solution_of_the_lasso(x64):
    """With an orthonormal design the lasso is a soft threshold."""
    design = jnp.asarray(np.linalg.qr(RNG.normal(size=(30, 6)))[0])
    targets = design @ jnp.array([2.0, -1.0, 0.3, -0.2, 0.1, 0.0]) + 0.02 * RNG.normal(size=30)
    everywhere = partial(rj.weights.prox_l1, where="all")
    gradient = jax.grad(lambda p: 0.5 * jnp.sum((design @ p["w"] - targets) ** 2))

    def run(tx):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(gradient(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        params = {"w": jnp.ones(6)}
        return jax.lax.scan(step, (params, tx.init(params)), None, 200)[0][0]["w"]

    proximal = optax.chain(optax.sgd(0.3), rj.gradients.proximal_step(everywhere, 0.4, learning_rate=lambda step: 0.3))
    subgradient = optax.chain(rj.gradients.add_penalty(partial(rj.weights.l1, where="all"), 0.4), optax.sgd(0.3))
    exact, approximate = jax.jit(lambda: (run(proximal), run(subgradient)))()
    ols = np.asarray(design.T @ targets)
    np.testing.assert_allclose(exact, np.sign(ols) * np.maximum(np.abs(ols) - 0.4, 0), rtol=1e-9)
    assert list(np.asarray(exact) == 0) == [False, False, True, True, True, True]
    assert not np.any(np.asarray(approximate) == 0)


@pytest.mark.parametrize("of_params", ["float32", "bfloat16"])
@pytest.mark.parametrize("of_updates", ["float32", "bfloat16"])
def test_zeros_arrive_exactly_and_what_stays_keeps_its_update(of_params, of_updates):
    scales = jnp.logspace(-20, 4, 2000)
    w, u = (jnp.asarray(RNG.normal(size=2000), jnp.float32) * scales for _ in range(2))
    params = {"kernel": w.astype(of_params).reshape(40, 50), "bias": w.astype(of_params)}
    updates = {"kernel": u.astype(of_updates).reshape(40, 50), "bias": u.astype(of_updates)}
    tx = rj.gradients.proximal_step(rj.weights.prox_l1, 1e-3)
    moved, _ = jax.jit(tx.update)(updates, tx.init(params), params)
    got = optax.apply_updates(params, moved)["kernel"]
    plain = optax.apply_updates(params, updates)
    want = rj.weights.prox_l1(plain, 1e-3)["kernel"]
    assert got.dtype == params["kernel"].dtype
    np.testing.assert_array_equal(got == 0, want == 0)
    assert 0.3 < float(jnp.mean(got == 0)) < 0.9
    wide = lambda x: np.asarray(x, np.float32)
    # The others to the rounding of the old weight, of which the update is a difference.
    ulp = 2 * float(jnp.finfo(of_params).eps)
    assert np.all(np.abs(wide(got) - wide(want)) <= ulp * np.maximum(np.abs(wide(params["kernel"])), np.abs(wide(want))))
    np.testing.assert_array_equal(wide(moved["bias"]), wide(updates["bias"]))


def test_injected_hyperparameters_absent_updates_and_nnx_states():
    grads = jax.tree.map(jnp.ones_like, PARAMS)
    add_penalty, proximal_step = rj.gradients.add_penalty, rj.gradients.proximal_step
    inject = optax.inject_hyperparams
    cases = (
        (add_penalty(rj.weights.l2, 0.3), inject(add_penalty, "penalty")(rj.weights.l2, RAMP)),
        (proximal_step(rj.weights.prox_l1, 0.3), inject(proximal_step, "prox")(rj.weights.prox_l1, RAMP)),
    )
    as_state = lambda tree: nnx.State(jax.tree.map(nnx.Param, tree))
    for plain, injected in cases:
        state = injected.init(PARAMS)
        for _ in range(3):
            got, state = injected.update(grads, state, PARAMS)
        assert float(state.hyperparams["strength"]) == pytest.approx(0.3)
        want = plain.update(grads, plain.init(PARAMS), PARAMS)[0]
        np.testing.assert_allclose(got["dense"]["kernel"], want["dense"]["kernel"], rtol=1e-5)
        state = as_state(PARAMS)
        got = plain.update(as_state(grads), plain.init(state), state)[0]
        np.testing.assert_array_equal(got["dense"]["kernel"][...], want["dense"]["kernel"])
        frozen = plain.update({**grads, "norm": None}, plain.init(PARAMS), PARAMS)[0]
        assert frozen["norm"] is None
        np.testing.assert_array_equal(frozen["dense"]["kernel"], want["dense"]["kernel"])
        counted = {**PARAMS, "count": jnp.arange(3)}
        got = plain.update({**grads, "count": jnp.arange(3)}, plain.init(counted), counted)[0]
        np.testing.assert_array_equal(got["count"], jnp.arange(3))


def test_the_memory_of_a_penalty_is_planned_from_shapes():
    tx = rj.gradients.add_penalty(CARRIED, 0.1)
    planned = tx.init(jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), PARAMS))
    state = tx.init(PARAMS)
    assert jax.tree.map(lambda x: (x.shape, x.dtype), planned) == jax.tree.map(lambda x: (x.shape, x.dtype), state)
    other = rj.gradients.add_penalty(CARRIED, 0.1, seed=1).init(PARAMS)
    assert jax.tree.structure(other) == jax.tree.structure(state)
