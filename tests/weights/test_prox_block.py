"""Proximal block steps against a loop over blocks that minimises each model, and their laws."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import regjax as rj

RNG = np.random.default_rng(0)
step = rj.weights.prox_block_step


def reference(x, g, blocks, bounds, prox, strength):
    """The block whose model falls most, minimised numerically in each coordinate."""
    best, out = (np.inf, None), None
    for b, bound in enumerate(bounds):
        new, total = x.copy(), 0.0
        if bound == 0:
            continue
        for i in np.flatnonzero(blocks == b):
            model = lambda z, i=i, bound=bound: (
                g[i] * (z - x[i]) + bound / 2 * (z - x[i]) ** 2 + strength * (abs(z) - abs(x[i])) * (prox == "l1")
            )
            low = 0.0 if prox == "nonnegative" else -50.0
            # Convex with a kink at 0: the least of both sides.
            sides = [(low, 0.0), (0.0, 50.0)] if low < 0 else [(0.0, 50.0)]
            found = [scipy.optimize.minimize_scalar(model, bounds=s, method="bounded", options={"xatol": 1e-11}).x for s in sides]
            new[i] = min([*found, 0.0], key=model)
            total += model(new[i])
        if total < best[0]:
            best, out = (total, b), new
    return out


@pytest.mark.parametrize("prox", ["l1", "nonnegative"])
def test_equals_its_reference(x64, prox):
    blocks, bounds = np.array([0, 0, 1, 2, 2, 1]), np.array([1.0, 3.0, 0.5])
    xs, gs = RNG.normal(size=(20, 6)), RNG.normal(size=(20, 6)) * np.repeat([1.0, 2.0, 1.0], 2)[[0, 1, 2, 4, 5, 3]]
    xs = np.abs(xs) if prox == "nonnegative" else xs
    move = lambda x, g: step(x, g, blocks=blocks, block_lipschitz=bounds, prox=prox, strength=0.4)
    got = jax.jit(jax.vmap(move))(xs, gs)
    for k in range(20):
        np.testing.assert_allclose(got[k], reference(xs[k], gs[k], blocks, bounds, prox, 0.4), atol=1e-6)
    assert len({tuple(np.unique(blocks[np.asarray(got[k]) != xs[k]])) for k in range(20)}) == 3


def test_trees_and_edges(x64):
    params = {"a": jnp.array([1.0, -2.0]), "b": {"k": jnp.array([[0.5]]), "n": jnp.arange(2)}}
    grad = {"a": jnp.array([0.5, 0.5]), "b": {"k": jnp.array([[2.0]]), "n": jnp.zeros(2)}}
    bounds = jnp.array([1.0, 1.0])
    moved = jax.jit(lambda s: step(params, grad, block_lipschitz=bounds, strength=s))(0.0)
    np.testing.assert_array_equal(moved["a"], params["a"])
    assert float(moved["b"]["k"][0, 0]) == -1.5 and moved["b"]["n"].tolist() == [0, 1]
    # A large strength pays most where the weights are large: they become exact zeros.
    assert step(params, grad, block_lipschitz=bounds, strength=10.0)["a"].tolist() == [0.0, 0.0]
    # Blocks without curvature stay; of equals the first moves; as one block, all do.
    assert step(params, grad, block_lipschitz=jnp.array([1.0, 0.0]))["a"].tolist() == [0.5, -2.5]
    still = step(params, grad, block_lipschitz=jnp.zeros(2))
    jax.tree.map(np.testing.assert_array_equal, still, params)
    both = step(params["a"], jnp.ones(2), blocks=np.array([1, 0]), block_lipschitz=bounds)
    assert both.tolist() == [1.0, -3.0]
    assert step(params, grad, blocks=0, block_lipschitz=jnp.ones(1))["b"]["k"].tolist() == [[-1.5]]
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params["a"])
    assert step(low, grad["a"], block_lipschitz=jnp.ones(1)).dtype == jnp.bfloat16


def test_descends_to_the_lasso(x64):
    """Repeated, it reaches the minimum of a lasso, as slow proximal gradient descent does."""
    features, targets = RNG.normal(size=(30, 6)) * np.array([3, 3, 1, 1, 0.3, 0.3]), RNG.normal(size=30)
    hessian = features.T @ features / 30
    blocks = np.array([0, 0, 1, 1, 2, 2])
    bounds = np.array([np.linalg.eigvalsh(hessian[2 * b : 2 * b + 2, 2 * b : 2 * b + 2])[-1] for b in range(3)])
    gradient = lambda x: hessian @ x - features.T @ targets / 30
    value = lambda x: 0.5 * jnp.mean((features @ x - targets) ** 2) + 0.05 * jnp.sum(jnp.abs(x))

    @jax.jit
    def run():
        def ours(x, _):
            return step(x, gradient(x), blocks=blocks, block_lipschitz=bounds, strength=0.05), value(x)

        def slow(x, _):
            length = 1 / np.linalg.eigvalsh(hessian)[-1]
            return rj.weights.prox_l1(x - length * gradient(x), 0.05 * length, where="all"), None

        x, values = jax.lax.scan(ours, jnp.zeros(6), length=300)
        return x, values, jax.lax.scan(slow, jnp.zeros(6), length=4000)[0]

    x, values, want = run()
    np.testing.assert_allclose(x, want, atol=1e-6)
    assert np.all(np.diff(values) <= 1e-12)
