"""The modulated backward pass: the error's energy, and what it must leave alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import regjax as rj

RNG = np.random.default_rng(0)
X, W, V = RNG.normal(size=(5, 3)), RNG.normal(size=(3, 4)), RNG.normal(size=(4, 3))
mean_square = lambda g: np.mean(np.square(g))


def dense(w, x):
    return jnp.tanh(x @ w)


def test_error_has_the_energy_of_the_one_above_and_parameters_their_own_gradient(x64):
    @jax.jit
    def run(w, x, error, rho):
        y, plain = jax.vjp(dense, w, x)
        modulated, back = jax.vjp(rj.layers.modulate_backward(dense, rho=rho), w, x)
        closed, back_closed = jax.vjp(rj.layers.modulate_backward(lambda x: dense(w, x), rho=rho), x)
        to_w = jax.vjp(lambda w: rj.layers.modulate_backward(lambda x: dense(w, x), rho=rho)(x), w)[1](error)
        scaled = [jax.vjp(rj.layers.modulate_backward(lambda x, c=c: c * x), error)[1](error)[0] for c in (1e-3, 1.0, 50.0)]
        return (y, modulated, closed), plain(error), back(error), back_closed(error), to_w, scaled

    error = RNG.normal(size=(5, 4))
    for rho in (1.0, 0.3):
        values, plain, got, closed, to_w, scaled = run(W, X, error, rho)
        for value in values[1:]:
            np.testing.assert_array_equal(value, values[0])
        want = plain[1] * rho * np.sqrt(mean_square(error) / mean_square(plain[1]))
        for g in (got[1], closed[0]):
            np.testing.assert_allclose(g, want, rtol=1e-6)
            np.testing.assert_allclose(mean_square(g), rho**2 * mean_square(error), rtol=1e-6)
        for g in (got[0], to_w[0]):
            np.testing.assert_array_equal(g, plain[0])
        for g in scaled:
            np.testing.assert_allclose(mean_square(g), mean_square(error), rtol=1e-5)


def test_errors_of_every_size_keep_their_energy_and_zeros_stay():
    x = jnp.asarray(X, jnp.float32)
    block = rj.layers.modulate_backward(lambda x: 0.1 * x)
    run = jax.jit(lambda error: jax.vjp(block, x)[1](error)[0])
    for size in (1e-12, 1e-7, 1.0, 1e6):
        np.testing.assert_allclose(mean_square(run(size * x)) / size**2, mean_square(x), rtol=1e-5)
    assert not run(0 * x).any()
    # A block whose derivative is zero, and one whose derivative nearly is.
    dead = lambda c: jax.vjp(rj.layers.modulate_backward(lambda x: c * x), x)[1](x)[0]
    assert not dead(0.0).any()
    assert mean_square(dead(1e-9)) == pytest.approx(1e-6 * mean_square(x), rel=1e-3)


def test_a_stack_keeps_the_energy_where_the_plain_one_loses_it(x64):
    kernels = 0.3 * RNG.normal(size=(20, 4, 4))

    @jax.jit
    def run(kernels, x):
        def model(kernels, x, block):
            layer = lambda x, w: (block(w, x), None)
            return jnp.sum(jax.lax.scan(jax.checkpoint(layer), x, kernels)[0])

        return [jax.grad(model, (0, 1))(kernels, x, block) for block in (dense, rj.layers.modulate_backward(dense))]

    (_, plain), (to_kernels, kept) = run(kernels, RNG.normal(size=(6, 4)))
    assert mean_square(plain) < 1e-6
    np.testing.assert_allclose(mean_square(kept), 1.0, rtol=1e-6)
    assert np.all(np.isfinite(to_kernels)) and np.all(np.sqrt(np.mean(to_kernels**2, (1, 2))) > 1e-8)


def test_modules_trees_and_other_arguments():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first, self.norm, self.second = (
                nnx.Linear(3, 4, rngs=rngs),
                nnx.BatchNorm(4, rngs=rngs),
                nnx.Linear(4, 2, rngs=rngs),
            )

        def block(self, x, *, train):
            return jax.nn.relu(self.norm(self.first(x), use_running_average=not train))

        def __call__(self, x, modulated):
            block = rj.layers.modulate_backward(self.block) if modulated else self.block
            return self.second(block(x, train=True))

    x = jnp.asarray(X, jnp.float32)
    graph, params, rest = nnx.split(Net(nnx.Rngs(0)), nnx.Param, ...)

    @jax.jit
    def run(params, x):
        def loss(params, x, modulated):
            net = nnx.merge(graph, params, rest, copy=True)
            return jnp.sum(net(x, modulated) ** 2), nnx.state(net, nnx.BatchStat)

        return [jax.grad(loss, (0, 1), has_aux=True)(params, x, modulated) for modulated in (False, True)]

    ((plain, to_x), stats), ((modulated, kept), new_stats) = run(params, x)
    for a, b in zip(jax.tree.leaves((plain, stats)), jax.tree.leaves((modulated, new_stats)), strict=True):
        np.testing.assert_array_equal(a, b)
    assert not np.allclose(to_x, kept)

    # Two inputs and two outputs as trees, an integer among them, the modulated argument first, in low precision.
    tree = {"a": x.astype(jnp.bfloat16), "b": 2 * x, "n": jnp.arange(3)}
    block = rj.layers.modulate_backward(lambda t, scale: {"s": scale * t["a"] + t["b"], "n": t["n"], "d": t["b"]}, argnum=0)
    floats = lambda out: (out["s"], out["d"])
    rest = {"n": tree["n"]}
    y, back = jax.vjp(lambda a, b: floats(block({"a": a, "b": b, **rest}, 3.0)), tree["a"], tree["b"])
    to_a, to_b = back((y[0], y[1]))
    energy = lambda *gs: sum(np.sum(np.square(np.asarray(g, np.float64))) for g in gs) / sum(g.size for g in gs)
    assert to_a.dtype == jnp.bfloat16
    assert energy(to_a, to_b) == pytest.approx(energy(*y), rel=1e-2)
