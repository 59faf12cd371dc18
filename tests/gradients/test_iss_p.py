"""Iterative soft shrinkage: its phases, its numbers, and that weights recover from it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj

W = jnp.array([[3.0, -1.0, 2.0, -0.5]])


def train(tx, params, grads, steps):
    def step(carry, _):
        params, state = carry
        updates, state = tx.update(grads(params), state, params)
        params = optax.apply_updates(params, updates)
        return (params, state), (params, rj.gradients.find_mask(state))

    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=steps)[1])(params)


def test_shrinks_then_prunes(x64):
    zero = lambda params: jax.tree.map(jnp.zeros_like, params)
    w = {"kernel": W.astype(float), "bias": jnp.ones(4)}
    tx = optax.chain(optax.sgd(0.1), rj.gradients.iss_p(0.5, shrink_steps=4))
    params, mask = train(tx, w, zero, 6)
    for step in range(4):
        want = W * np.array([1, 0.95, 1, 0.95]) ** np.array([step + 1, step + 1, 1, step + 1])
        np.testing.assert_allclose(params["kernel"][step], want, rtol=1e-12)
        assert mask["kernel"][step].tolist() == [[True, False, True, False]]
    assert params["kernel"][4:].tolist() == [[[3, 0, 2, 0]]] * 2
    assert np.all(params["bias"] == 1) and mask["bias"].shape == (6,)


def test_equals_the_loop_with_recovery_and_holds_its_last_selection(x64):
    rng = np.random.default_rng(0)
    start, goal = rng.normal(size=(6, 5)), rng.normal(size=(6, 5))
    tx = optax.chain(optax.sgd(0.1), rj.gradients.iss_p(0.6, ratio=lambda step: 0.9 - 0.02 * step, shrink_steps=30))
    params, mask = train(tx, {"kernel": jnp.asarray(start)}, lambda p: {"kernel": p["kernel"] - goal}, 35)
    w, kept = start.copy(), None
    selections = []
    for step in range(35):
        w = w - 0.1 * (w - goal)
        if step < 30:
            order = np.argsort(-np.abs(w).ravel(), kind="stable")
            kept = np.zeros(30, bool)
            kept[order[:12]] = True
            kept = kept.reshape(6, 5)
            selections.append(kept)
        w = np.where(kept, w, (0.9 - 0.02 * step) * w if step < 30 else 0)
        np.testing.assert_array_equal(mask["kernel"][step], kept)
        np.testing.assert_allclose(params["kernel"][step], w, rtol=1e-12, atol=1e-300)
    assert np.any(selections[-1] & ~selections[0]), "no weight recovered"
    assert np.all(params["kernel"][30:][:, ~kept] == 0)


def test_options():
    one = lambda **given: optax.chain(optax.sgd(0.1), rj.gradients.iss_p(**given))
    grads = lambda params: {"kernel": jnp.ones_like(params["kernel"])}
    w = {"kernel": jnp.array([[4.0, 1.0], [2.0, 3.0], [-5.0, 6.0], [0.5, -7.0]])}
    pattern, mask = train(one(n=1, m=2, ratio=0.0, shrink_steps=5), w, grads, 2)
    assert mask["kernel"][0].tolist() == [[True, False], [False, True], [True, False], [False, True]]
    np.testing.assert_allclose(pattern["kernel"][1], [[3.8, 0], [0, 2.8], [-5.2, 0], [0, -7.2]], rtol=1e-6)
    injected = optax.chain(optax.sgd(0.1), optax.inject_hyperparams(rj.gradients.iss_p)(sparsity=0.5, ratio=0.5, shrink_steps=2))
    got, want = (train(tx, w, grads, 4)[0] for tx in (injected, one(sparsity=0.5, ratio=0.5, shrink_steps=2)))
    np.testing.assert_allclose(got["kernel"], want["kernel"], rtol=1e-6)
    assert int(jnp.sum(want["kernel"][-1] == 0)) == 4
    _, mask = train(one(sparsity=0.5, scope="global"), {"a": w, "b": {"kernel": 100 * W}}, lambda p: p, 1)
    assert int(mask["b"]["kernel"].sum()) == 4 and int(mask["a"]["kernel"].sum()) == 2


@pytest.mark.slow
def test_beats_thresholding_and_pruning_at_initialisation_on_digits():
    """At 95% from scratch with one budget: soft shrinkage >= hard thresholding in each step, >= one-shot pruning at first."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(x))
    x, y = jnp.asarray(x[order] / 16, jnp.float32), jnp.asarray(y[order])

    def logits(params, x):
        x = jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"])
        return x @ params["c"]["kernel"] + params["c"]["bias"]

    def loss(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()

    def run(tx, seed):
        keys = jax.random.split(jax.random.key(seed), 4)
        sizes = {"a": (64, 64), "c": (64, 10)}
        init = jax.nn.initializers.he_normal()
        params = {
            n: {"kernel": init(k, shape), "bias": jnp.zeros(shape[1])} for (n, shape), k in zip(sizes.items(), keys, strict=False)
        }

        def step(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (128,), 0, 1200)
            updates, state = tx.update(jax.grad(loss)(params, x[rows], y[rows]), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, state), _ = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(keys[3], 600))
        kept = rj.weights.density(rj.gradients.find_mask(state))
        return jnp.mean(jnp.argmax(logits(params, x[1200:]), 1) == y[1200:]), kept

    inner = optax.sgd(0.1, momentum=0.9)
    methods = {
        "soft": optax.chain(inner, rj.gradients.iss_p(0.95, shrink_steps=400)),
        "hard": optax.chain(inner, rj.gradients.iss_p(0.95, ratio=0.0, shrink_steps=400)),
        "first": rj.gradients.prune(inner, sparsity=0.95),
    }
    found = {name: jax.jit(jax.vmap(lambda s, tx=tx: run(tx, s)))(jnp.arange(3)) for name, tx in methods.items()}
    for _, kept in found.values():
        np.testing.assert_allclose(kept, 0.05, atol=2e-3)
    mean = {name: float(np.mean(a)) for name, (a, _) in found.items()}
    assert mean["soft"] >= mean["hard"] and mean["soft"] >= mean["first"], mean
