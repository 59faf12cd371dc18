"""Gaussian noise against its loop, its moments, and its end at a standard deviation of 0."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType

import regjax as rj

RNG = np.random.default_rng(0)
X, NOISE = RNG.normal(size=(4, 3)), RNG.normal(size=(4, 3))
KINDS = ["additive", "multiplicative"]


def reference(x, noise, std, kind):
    out = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        shift = std * noise[index]
        out[index] = x[index] + shift if kind == "additive" else x[index] * (1 + shift)
    return out


@pytest.mark.parametrize("kind", KINDS)
def test_core_equals_its_reference_with_gradients(x64, kind):
    weights = RNG.normal(size=X.shape)
    core = functools.partial(rj.layers.apply_gaussian_noise, kind=kind)
    total = lambda x, noise, std: jnp.sum(weights * core(x, noise, std=std))
    got, gradients = jax.jit(lambda *a: (core(*a[:2], std=a[2]), jax.grad(total, (0, 1, 2))(*a)))(X, NOISE, 0.3)
    np.testing.assert_allclose(got, reference(X, NOISE, 0.3, kind), rtol=1e-14)
    scale = 1 if kind == "additive" else X
    by_x = weights if kind == "additive" else weights * (1 + 0.3 * NOISE)
    for a, b in zip(gradients, (by_x, 0.3 * scale * weights, np.sum(weights * scale * NOISE)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_std_0_is_the_identity(kind, dtype):
    x = jnp.array([1.5, 6e4, 1e-7, jnp.inf, -3.0], dtype)
    noisy = functools.partial(rj.layers.gaussian_noise, jax.random.key(0), kind=kind)
    traced = jax.jit(lambda std: noisy(x, std=std))(0.0)
    assert traced.dtype == x.dtype and traced.tobytes() == x.tobytes()
    assert noisy(x, std=0) is x
    assert rj.layers.gaussian_noise(None, x, std=0.3, kind=kind, deterministic=True) is x


def test_moments_and_independence():
    n = 100_000
    x = jnp.broadcast_to(jnp.array([2.0, -1.0]), (n, 2))
    draw = jax.jit(lambda key, std: [rj.layers.gaussian_noise(key, x, std=std, kind=kind) for kind in KINDS])
    for seed, std in enumerate([0.1, 2.0]):
        for y, scale in zip(draw(jax.random.key(seed), std), ([1, 1], [2, 1]), strict=True):
            z = (np.asarray(y, np.float64) - [2, -1]) / (std * np.array(scale))
            assert np.all(np.abs(z.mean(0)) < 5 / np.sqrt(n))
            assert np.all(np.abs((z**2).mean(0) - 1) < 5 * np.sqrt(2 / n))
            assert np.all(np.abs((z**4).mean(0) - 3) < 5 * np.sqrt(96 / n))
            assert abs((z[:, 0] * z[:, 1]).mean()) < 5 / np.sqrt(n)


def test_multiplicative_noise_has_the_moments_of_dropout():
    n, rate = 100_000, 0.2
    noisy = rj.layers.gaussian_noise(jax.random.key(0), jnp.full(n, 3.0), std=np.sqrt(rate / (1 - rate)), kind="multiplicative")
    dropped = rj.layers.dropout(jax.random.key(1), jnp.full(n, 3.0), rate=rate)
    variance = 9 * rate / (1 - rate)
    for y in (noisy, dropped):
        assert abs(float(y.mean()) - 3) < 5 * np.sqrt(variance / n)
        assert float(y.var()) == pytest.approx(variance, rel=0.03)


def test_bfloat16_inputs_get_float32_noise():
    y = rj.layers.gaussian_noise(jax.random.key(0), jnp.zeros(50_000, jnp.bfloat16), std=1.0)
    want = rj.layers.gaussian_noise(jax.random.key(0), jnp.zeros(50_000), std=1.0)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_array_equal(y, want.astype(jnp.bfloat16))


def test_a_scheduled_std_compiles_once_also_for_a_whole_model():
    noisy = functools.partial(rj.layers.gaussian_noise, std=optax.linear_schedule(1.0, 0.0, 2))
    model = nnx.List([rj.layers.GaussianNoise(0.7, rngs=nnx.Rngs(0)), rj.layers.GaussianNoise(0.7, rngs=nnx.Rngs(0))])
    x = jnp.ones(50)

    @nnx.jit
    @chex.assert_max_traces(n=1)
    def step(model, key, std, i):
        layers = nnx.view(model, only=rj.layers.GaussianNoise, std=std)
        return rj.at_step(noisy, i)(key, x), layers[0](x), layers[1](x)

    for i in range(3):
        outputs = step(model, jax.random.key(i), 1 - 0.5 * i, jnp.asarray(i))
        for y in outputs:
            assert (np.std(y) > 0.2) == (i < 2)
    assert model[0].std == 0.7 and model[0].rngs.count[...] == 3


def test_sharded_batches_keep_their_sharding_and_values():
    x = jnp.asarray(RNG.normal(size=(8, 6)), jnp.float32)
    call = jax.jit(lambda key, x: rj.layers.gaussian_noise(key, x, std=0.5, kind="multiplicative"))
    want = call(jax.random.key(0), x)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
        with jax.set_mesh(mesh):
            sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data", "model")))
            got = call(jax.random.key(0), sharded)
        np.testing.assert_allclose(got, want, rtol=1e-6)
        assert got.sharding.is_equivalent_to(sharded.sharding, 2)
