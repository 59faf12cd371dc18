"""One idea in several places is one method: penalties, proximal steps, decay, and schedules agree as equalities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj

KEYS = jax.random.split(jax.random.key(0), 5)
PARAMS = {
    "l0": {"kernel": jax.random.normal(KEYS[0], (6, 8)), "bias": 0.1 * jax.random.normal(KEYS[1], (8,))},
    "norm": {"scale": 1.0 + 0.1 * jax.random.normal(KEYS[2], (8,)), "bias": jnp.zeros(8)},
    "l1": {"kernel": jax.random.normal(KEYS[3], (8, 3)), "bias": jnp.zeros(3)},
}
X, Y = jax.random.normal(KEYS[4], (16, 6)), jnp.arange(16) % 3


def loss_fn(params, batch):
    x, y = batch
    h = jax.nn.relu(x @ params["l0"]["kernel"] + params["l0"]["bias"]) * params["norm"]["scale"] + params["norm"]["bias"]
    return rj.losses.label_smoothing(h @ params["l1"]["kernel"] + params["l1"]["bias"], y, alpha=0.0).mean()


HALF = jax.tree.map(lambda p: 0.5 * p, PARAMS)
MASK = jax.tree.map(lambda p: p > 0, PARAMS)

PENALTIES = {
    "l1": rj.weights.l1,
    "l2": rj.weights.l2,
    "elastic_net": functools.partial(rj.weights.elastic_net, l1=0.5, l2=0.3),
    "group_lasso": functools.partial(rj.weights.group_lasso, groups="in"),
    "spectral": rj.weights.spectral_penalty,
    "wasserstein": functools.partial(rj.weights.wasserstein_to_init, init_params=HALF),
    "l2_sp": functools.partial(rj.weights.l2_sp, anchor=HALF),
    "ewc": functools.partial(rj.weights.ewc, state=rj.weights.ewc_init(HALF, precision=2.0)),
    "si": functools.partial(rj.weights.si, state=rj.weights.si_init(HALF, precision=2.0)),
    "quadratic_consolidation": functools.partial(
        rj.weights.quadratic_consolidation, state=rj.weights.aqc_init(HALF, precision=2.0)
    ),
    "sparse_group_lasso": functools.partial(rj.weights.sparse_group_lasso, l1=0.3, group=0.2),
    "nuclear_norm": rj.weights.nuclear_norm,
    "masked nuclear_norm": functools.partial(rj.weights.nuclear_norm, mask=MASK),
    "wgsef": functools.partial(rj.weights.wgsef, k=2),
    "spectral_norm_penalty": rj.weights.spectral_norm_penalty,
    "lipschitz_penalty": functools.partial(rj.weights.lipschitz_penalty, input_sizes={}),
    "orthonormality": rj.weights.orthonormality,
    "orthogonality, so": rj.weights.orthogonality,
    "orthogonality, dso": functools.partial(rj.weights.orthogonality, kind="dso"),
    "orthogonality, mc": functools.partial(rj.weights.orthogonality, kind="mc"),
    "hypersparse": functools.partial(rj.weights.hypersparse_penalty, prune_rate=0.5),
    "weight_distribution": functools.partial(rj.weights.weight_distribution_penalty, skip_first=False),
}


def train(loss, tx, steps=5, params=PARAMS, **call):
    @jax.jit
    def one(params, state, step):
        keywords = {"step": step} if call.get("step") else {}
        grads = jax.grad(loss)(params, (X, Y), **keywords)
        updates, state = tx.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for step in range(steps):
        params, state = one(params, state, step)
    return params


def assert_close(a, b, tolerance=1e-6):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", PENALTIES)
def test_penalty_in_the_loss_is_the_penalty_as_gradient_transformation(name):
    def both(params):
        tx = rj.gradients.add_penalty(PENALTIES[name], 0.01)
        in_loss = jax.grad(rj.objectives.with_penalty(loss_fn, PENALTIES[name], 0.01))(params, (X, Y))
        plain = jax.grad(loss_fn)(params, (X, Y))
        return in_loss, tx.update(plain, tx.init(params), params)[0], plain

    in_loss, added, plain = jax.jit(both)(PARAMS)
    assert_close(in_loss, added)
    assert any(np.abs(x - y).max() > 1e-5 for x, y in zip(jax.tree.leaves(added), jax.tree.leaves(plain), strict=True))


def test_the_bridge_holds_over_a_run_of_adam(x64):
    params = jax.tree.map(lambda p: p.astype(jnp.float64), PARAMS)
    penalised = rj.objectives.with_penalty(loss_fn, PENALTIES["elastic_net"], 0.01)
    tx = optax.chain(rj.gradients.add_penalty(PENALTIES["elastic_net"], 0.01), optax.adam(1e-2))
    assert_close(train(penalised, optax.adam(1e-2), params=params), train(loss_fn, tx, params=params))


def test_strengths_as_schedules_agree_across_the_bridge(x64):
    schedule = optax.linear_schedule(0.0, 0.1, 4)
    penalised = rj.objectives.with_penalty(loss_fn, rj.weights.l2, schedule)
    tx = optax.chain(rj.gradients.add_penalty(rj.weights.l2, schedule), optax.sgd(0.1))
    scheduled = train(penalised, optax.sgd(0.1), step=True)
    assert_close(scheduled, train(loss_fn, tx))
    constant = train(rj.objectives.with_penalty(loss_fn, rj.weights.l2, 0.1), optax.sgd(0.1))
    assert not np.allclose(scheduled["l1"]["kernel"], constant["l1"]["kernel"], atol=1e-4)


def test_schedule_of_a_loss_through_at_step_is_the_number():
    loss = functools.partial(rj.losses.maxsup, weight=optax.linear_schedule(0.0, 1.0, 10))
    logits = X[:, :3]
    for step in (0, 5, 10):
        want = rj.losses.maxsup(logits, Y, weight=step / 10)
        np.testing.assert_allclose(jax.jit(lambda s: rj.at_step(loss, s)(logits, Y))(step), want, rtol=1e-6)


def test_sam_needs_no_new_loop_its_gradient_is_the_two_pass_one(x64):
    params = jax.tree.map(lambda p: p.astype(jnp.float64), PARAMS)
    got = jax.grad(rj.objectives.sam(loss_fn, rho=0.3))(params, (X, Y))
    first = jax.grad(loss_fn)(params, (X, Y))
    norm = np.sqrt(sum(float((g**2).sum()) for g in jax.tree.leaves(first)))
    moved = jax.tree.map(lambda p, g: p + 0.3 * g / norm, params, first)
    assert_close(got, jax.grad(loss_fn)(moved, (X, Y)), 1e-12)


def test_coupled_decoupled_and_proximal_on_a_quadratic_with_a_closed_form(x64):
    """f(w) = a/2 ||w - c||^2 with SGD at rate r: three recurrences w <- A w + B c whose n-th iterates are known."""
    a, rate, strength, n = 0.7, 0.2, 0.3, 12
    start, target = np.array([[2.0, -1.0], [0.5, 3.0]]), np.array([[1.0, 1.0], [-2.0, 0.5]])
    quadratic = lambda params: 0.5 * a * jnp.sum((params["kernel"] - target) ** 2)

    def run(loss, tx):
        params = {"kernel": jnp.asarray(start)}
        state = tx.init(params)
        for _ in range(n):
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, updates)
        return np.asarray(params["kernel"])

    def closed_form(contraction, pull):
        fixed = pull / (1 - contraction) * target
        return fixed + contraction**n * (start - fixed)

    coupled = run(rj.objectives.with_penalty(quadratic, rj.weights.l2, strength), optax.sgd(rate))
    np.testing.assert_allclose(coupled, closed_form(1 - rate * (a + strength), rate * a), rtol=1e-12)

    decoupled = run(quadratic, optax.chain(optax.sgd(rate), rj.gradients.decoupled_weight_decay(rate * strength)))
    np.testing.assert_allclose(decoupled, coupled, rtol=1e-12)  # without momentum the two are one

    proximal = run(
        quadratic, optax.chain(optax.sgd(rate), rj.gradients.proximal_step(rj.weights.prox_l2, strength, learning_rate=rate))
    )
    shrink = 1 + rate * strength
    np.testing.assert_allclose(proximal, closed_form((1 - rate * a) / shrink, rate * a / shrink), rtol=1e-12)

    momentum = optax.sgd(rate, momentum=0.9)
    coupled = run(rj.objectives.with_penalty(quadratic, rj.weights.l2, strength), momentum)
    decoupled = run(quadratic, optax.chain(momentum, rj.gradients.decoupled_weight_decay(rate * strength)))
    assert np.abs(coupled - decoupled).max() > 1e-2  # with momentum they are not
