"""SaRA against AdamW entry by entry: what moves, what never does, and what stops at the progressive step."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.ndimage

import regjax as rj

RNG = np.random.default_rng(0)
PARAMS = {"kernel": RNG.normal(size=(6, 5)), "bias": RNG.normal(size=5)}
GRADS = {"kernel": RNG.normal(size=(8, 6, 5)), "bias": RNG.normal(size=(8, 5))}


def trajectory(tx, grads=GRADS, params=PARAMS):
    def step(carry, grads):
        params, state = carry
        updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, state.mask if hasattr(state, "mask") else ())

    params = jax.tree.map(jnp.asarray, params)
    return jax.lax.scan(step, (params, tx.init(params)), jax.tree.map(jnp.asarray, grads))[1]


def reference(grads, w, rate, threshold, progressive, decay, b1=0.9, b2=0.999, eps=1e-8):
    """The path of one entry: Adam's moments run on whether or not it may move."""
    m = v = 0.0
    moves, path = abs(w) < threshold, []
    for t, g in enumerate(grads):
        if t == progressive:
            moves = moves and abs(w) < threshold
        m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g * g
        if moves:
            w = w - rate * (m / (1 - b1 ** (t + 1)) / (math.sqrt(v / (1 - b2 ** (t + 1))) + eps) + decay * w)
        path.append(w)
    return path


@pytest.mark.parametrize("progressive", [-1, 0, 4])
def test_it_is_adamw_on_the_small_entries(x64, progressive):
    tx = rj.gradients.sara(0.1, threshold=0.6, progressive_step=progressive, weight_decay=0.05)
    got, masks = jax.jit(lambda: trajectory(tx))()
    stopped = 0
    for name, start in PARAMS.items():
        for at in np.ndindex(*start.shape):
            where = (slice(None), *at)
            want = reference(GRADS[name][where], start[at], 0.1, 0.6, progressive, 0.05)
            np.testing.assert_allclose(got[name][where], want, rtol=1e-6, atol=1e-9)
            if abs(start[at]) >= 0.6:
                assert (got[name][where] == start[at]).all() and not masks[name][where].any()
            stopped += bool(masks[name][(0, *at)]) and not bool(masks[name][(-1, *at)])
    assert (stopped > 0) == (progressive > 0)


def test_limits_defaults_and_leaves_trained_in_full():
    narrow = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)
    grads = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), GRADS)
    run = lambda tx: trajectory(tx, grads, narrow)[0]

    @jax.jit
    def runs():
        make = rj.gradients.sara
        ramp = optax.linear_schedule(0.1, 0.0, 8)
        return (
            run(make(0.1, threshold=0.0)),
            (run(make(ramp, threshold=1e30, progressive_step=3)), run(optax.adamw(ramp, weight_decay=1e-2))),
            run(make(threshold=0.5)),
            (run(make(0.1, threshold=0.0, where=None)), run(optax.adamw(0.1, weight_decay=1e-2))),
        )

    still, (all_move, adamw), default, (heads, full) = runs()
    jax.tree.map(lambda path, w: np.testing.assert_array_equal(path[-1], w), still, narrow)
    jax.tree.map(np.testing.assert_array_equal, all_move, adamw)
    small = np.abs(narrow["kernel"]) < 0.5
    moved = np.abs(default["kernel"][0] - narrow["kernel"])[small]
    np.testing.assert_allclose(moved, 1e-3 * np.exp(-175), atol=1e-9)
    np.testing.assert_array_equal(heads["bias"], full["bias"])
    np.testing.assert_array_equal(heads["kernel"][-1], narrow["kernel"])

    # The default rate of the published threshold, as the first step of Adam shows it.
    tx = rj.gradients.sara(weight_decay=0.0, eps=0.0)
    one = {"w": jnp.zeros(1)}
    updates, state = tx.update({"w": jnp.ones(1)}, tx.init(one), one)
    assert float(updates["w"][0]) == pytest.approx(-4.9658530e-4, rel=1e-5) and int(state.step) == 1
    injected = optax.inject_hyperparams(rj.gradients.sara)(0.1, threshold=0.5, progressive_step=2)
    assert np.isfinite(injected.update(one, injected.init(one), one)[0]["w"]).all()


def test_the_mask_of_small_weights():
    mask = rj.weights.small_weight_mask(PARAMS, 0.5)
    jax.tree.map(lambda m, w: np.testing.assert_array_equal(m, np.abs(w) < 0.5), mask, PARAMS)
    traced = jax.jit(lambda t: rj.weights.small_weight_mask(PARAMS, t, where=None))(0.5)
    np.testing.assert_array_equal(traced["kernel"], mask["kernel"])
    assert traced["bias"].shape == () and bool(traced["bias"])


def test_the_rank_term_on_the_same_mask(x64):
    params = jax.tree.map(jnp.asarray, PARAMS)
    mask = rj.weights.small_weight_mask(params, 0.6)
    rank = functools.partial(rj.weights.nuclear_norm, mask=mask)
    tx = optax.chain(
        rj.gradients.add_penalty(rank, 0.3), rj.gradients.sara(0.1, threshold=0.6, b1=0.0, b2=0.0, eps=1.0, weight_decay=0.0)
    )
    zero = jax.tree.map(jnp.zeros_like, params)
    updates = jax.jit(lambda: tx.update(zero, tx.init(params), params)[0])()
    small = np.abs(PARAMS["kernel"]) < 0.6
    u, s, vt = np.linalg.svd(np.where(small, PARAMS["kernel"], 0), full_matrices=False)
    assert s.min() > 1e-3, "of full rank"
    g = 0.3 * np.where(small, u @ vt, 0)
    np.testing.assert_allclose(updates["kernel"], -0.1 * g / (np.abs(g) + 1), rtol=1e-6, atol=1e-12)
    assert not updates["bias"].any()


@pytest.mark.slow
def test_fine_tuning_the_idle_weights_forgets_less():
    x, y = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    images, y = x.reshape(-1, 8, 8) / 16, jnp.asarray(y)
    turned = scipy.ndimage.rotate(images, 45, axes=(1, 2), reshape=False, order=1)
    upright, rotated = (jnp.asarray(z.reshape(-1, 64), jnp.float32) for z in (images, turned))
    sizes = (64, 256, 10)
    keys = jax.random.split(jax.random.key(0), 2)
    start = [
        {"kernel": jax.random.normal(k, (a, b)) * (2 / a) ** 0.5, "bias": jnp.zeros(b)}
        for k, a, b in zip(keys, sizes, sizes[1:], strict=False)
    ]
    logits = lambda p, x: jax.nn.relu(x @ p[0]["kernel"] + p[0]["bias"]) @ p[1]["kernel"] + p[1]["bias"]
    accuracy = lambda p, x: float(jnp.mean(jnp.argmax(logits(p, x[:400]), -1) == y[:400]))

    @functools.partial(jax.jit, static_argnums=0)
    def fit(tx, params, x):
        def step(carry, index):
            params, opt = carry
            loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(logits(p, x[index]), y[index]).mean()
            updates, opt = tx.update(jax.grad(loss)(params), opt, params)
            return (optax.apply_updates(params, updates), opt), None

        index = 400 + jax.random.randint(jax.random.key(1), (1000, 64), 0, 1397)
        return jax.lax.scan(step, (params, tx.init(params)), index)[0][0]

    source = fit(optax.adamw(3e-3), start, rotated)
    threshold = float(jnp.quantile(jnp.abs(jnp.concatenate([p["kernel"].ravel() for p in source])), 0.2))
    full = fit(optax.adamw(3e-3, weight_decay=1e-2), source, upright)
    sparse = fit(rj.gradients.sara(1e-2, threshold=threshold, progressive_step=-1), source, upright)
    got = {
        name: (accuracy(p, upright), accuracy(p, rotated)) for name, p in (("source", source), ("full", full), ("sparse", sparse))
    }
    assert got["sparse"][0] > got["full"][0] - 0.03
    assert got["sparse"][1] > got["full"][1] + 0.02
