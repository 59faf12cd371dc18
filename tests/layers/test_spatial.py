"""Spatial dropout and DropBlock against loops, the published numbers, and their statistics."""

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
from regjax.layers.dropping.drop_block import _seed_rate

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 6, 5, 2))
KEY = jax.random.key(0)


def keep_blocks(seeds, size):
    """1 where a position lies in no seed's block, for seeds [H, W]."""
    height, width = seeds.shape
    size = min(size, height, width)
    keep = np.ones(seeds.shape)
    for row, column in zip(*np.nonzero(seeds), strict=True):
        for y in range(row - size // 2, row - size // 2 + size):
            for x in range(column - size // 2, column - size // 2 + size):
                if 0 <= y < height and 0 <= x < width:
                    keep[y, x] = 0
    return keep


def drop_block(x, seeds, size, scale=True):
    keep = np.zeros_like(x)
    for b, c in np.ndindex(x.shape[0], x.shape[3]):
        keep[b, :, :, c] = keep_blocks(seeds[b, :, :, min(c, seeds.shape[3] - 1)], size)
    return x * keep * ((keep.size / max(keep.sum(), 1)) if scale else 1), keep


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_drop_block_equals_its_reference_with_gradients(x64, size):
    for channels in (1, 2):
        seeds = RNG.random((3, 6, 5, channels)) < 0.08
        seeds[0, 0, 0], seeds[0, 5, 4] = True, True  # blocks that are cut at the border
        weights = RNG.normal(size=X.shape)
        call = lambda x, s=seeds: rj.layers.apply_drop_block(x, s, block_size=size)
        got, gradient = jax.jit(lambda x, f=call, w=weights: (f(x), jax.grad(lambda x: jnp.sum(w * f(x)))(x)))(X)
        want, keep = drop_block(X, seeds, size)
        np.testing.assert_allclose(got, want, rtol=1e-13)
        np.testing.assert_allclose(gradient, weights * keep * keep.size / max(keep.sum(), 1), rtol=1e-12)
        plain = rj.layers.apply_drop_block(X, seeds, block_size=size, scale_by_keep=False)
        np.testing.assert_array_equal(plain, drop_block(X, seeds, size, scale=False)[0])


def test_published_holes_and_rates():
    assert float(_seed_rate(0.1, 8, 8, 3)) == pytest.approx(0.01975309, abs=5e-9)
    assert float(_seed_rate(0.1, 8, 5, 1)) == np.float32(0.1)
    assert float(_seed_rate(0.1, 4, 4, 7)) == np.float32(0.1)  # the whole image is one block: k = 4
    seeds = np.zeros((1, 8, 8, 1), bool)
    np.testing.assert_array_equal(rj.layers.apply_drop_block(np.ones((1, 8, 8, 1)), seeds, block_size=3), 1)
    seeds[0, 3, 4] = True
    y = np.asarray(rj.layers.apply_drop_block(np.ones((1, 8, 8, 1)), seeds, block_size=3))[0, :, :, 0]
    assert (y == 0).sum() == 9 and np.all(y[2:5, 3:6] == 0)
    np.testing.assert_allclose(y[y != 0], 64 / 55, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_without_blocks_the_identity_and_without_anything_kept_zeros(dtype):
    x = jnp.asarray([1.5, -0.0, 6e4, 1e-7], dtype).reshape(1, 2, 2, 1)

    @jax.jit
    def both(rate):
        seeds = jnp.broadcast_to(rate > 0.5, x.shape)
        core = lambda x: rj.layers.apply_drop_block(x, seeds, block_size=2)
        return core(x), jax.grad(lambda x: jnp.sum(core(x).astype(jnp.float32)))(x), rj.layers.drop_block(KEY, x, rate=rate)

    y, gradient, drawn = both(0.0)
    assert y.dtype == x.dtype and y.tobytes() == x.tobytes() == drawn.tobytes()
    np.testing.assert_array_equal(np.float32(gradient), 1)
    for out in both(1.0)[:2]:
        np.testing.assert_array_equal(np.float32(out), 0)
    assert rj.layers.drop_block(None, x, deterministic=True) is x
    assert rj.layers.drop_block(KEY, x, rate=0) is x
    broken = jnp.ones((1, 2, 2, 1)).at[0, 0, 0].set(jnp.inf)
    assert np.all(np.isfinite(rj.layers.apply_drop_block(broken, broken > 1, block_size=1)))


@pytest.mark.parametrize("inside", [True, False])
def test_blocks_are_dropped_as_often_as_their_seeds_say(inside):
    n, rate = 4000, 0.2
    x = jnp.ones((n, 7, 6, 2))
    for size, shared in ((3, True), (2, False)):
        draw = functools.partial(
            rj.layers.drop_block, block_size=size, shared_channels=shared, inside=inside, scale_by_keep=False
        )
        dropped = np.asarray(jax.jit(lambda rate, f=draw: f(KEY, x, rate=rate))(rate)) == 0
        # The expectation by a loop over the seeds that reach a position.
        gamma, reached = rate * 42 / (size**2 * (8 - size) * (7 - size)), np.zeros((7, 6))
        for row, column in np.ndindex(7, 6):
            seeds = np.zeros((7, 6), bool)
            seeds[row, column] = True
            hole = keep_blocks(seeds, size) == 0
            reached += hole if not inside or hole.sum() == size**2 else 0
        want = 1 - (1 - gamma) ** reached
        assert np.all(np.abs(dropped.mean(0) - want[..., None]) < 5 * np.sqrt(want * (1 - want) / n)[..., None])
        # Seeds anywhere drop more than the rate on a small map; where a block has to fit, only overlaps lower the share.
        assert (want.mean() < rate) == inside
        assert np.all(dropped[..., 0] == dropped[..., 1]) == shared
        # Examples are independent, neighbouring positions are not.
        flat = dropped[..., 0].reshape(n, -1).astype(float)
        assert abs(np.corrcoef(flat[:-1, 20], flat[1:, 20])[0, 1]) < 5 / np.sqrt(n)
        assert np.corrcoef(flat[:, 20], flat[:, 21])[0, 1] > 0.3
        assert float(jnp.mean(draw(KEY, x, rate=rate, scale_by_keep=True))) == pytest.approx(1, rel=1e-5)


def test_spatial_dropout_equals_its_reference_with_gradients(x64):
    keep, weights = np.array([[1, 0], [1, 1], [0, 1]], bool), RNG.normal(size=X.shape)
    total = lambda x, rate: jnp.sum(weights * rj.layers.apply_spatial_dropout(x, keep, rate=rate))
    for rate in (0.0, 0.3):
        want = np.array([[[[X[b, i, j, c] * keep[b, c] / (1 - rate) for c in range(2)] for j in range(5)] for i in range(6)]
                         for b in range(3)])  # fmt: skip
        np.testing.assert_allclose(rj.layers.apply_spatial_dropout(X, keep, rate=rate), want, rtol=1e-14)
    by_x, by_rate = jax.jit(jax.grad(total, (0, 1)))(X, 0.3)
    np.testing.assert_allclose(by_x, weights * keep[:, None, None] / 0.7, rtol=1e-12)
    np.testing.assert_allclose(by_rate, np.sum(weights * X * keep[:, None, None]) / 0.49, rtol=1e-11)
    np.testing.assert_array_equal(rj.layers.apply_spatial_dropout(X, keep, rate=1.0), 0)


@pytest.mark.parametrize("between", [(), (3,), (2, 2), (2, 1, 2)])
def test_spatial_dropout_drops_whole_channels(between):
    n, rate = 2000, 0.3
    x = jnp.ones((n, *between, 4))
    y = np.asarray(jax.jit(lambda rate: rj.layers.spatial_dropout(KEY, x, rate=rate))(rate)).reshape(n, -1, 4)
    assert np.all(y == y[:, :1])
    zero = y[:, 0] == 0
    assert abs(zero.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / zero.size)
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)
    assert np.all(np.abs(np.corrcoef(zero.T) - np.eye(4)) < 5 / np.sqrt(n))
    assert rj.layers.spatial_dropout(None, x, rate=0.5, deterministic=True) is x
    assert rj.layers.spatial_dropout(KEY, x, rate=0.0) is x


def test_a_rate_that_grows_over_training_compiles_once():
    ramp = optax.linear_schedule(0.0, 0.5, 4)
    block, maps = (functools.partial(f, rate=ramp) for f in (rj.layers.drop_block, rj.layers.spatial_dropout))
    x = jnp.ones((20, 8, 8, 4))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(key, i):
        return [jnp.mean(rj.at_step(f, i)(key, x) == 0) for f in (block, maps)]

    shares = np.array([step(jax.random.key(i), i) for i in (0, 2, 4)])
    np.testing.assert_array_equal(shares[0], 0)
    assert np.all(shares[0] < shares[1]) and np.all(shares[1] < shares[2])


def test_drop_block_module():
    x = jnp.ones((4, 8, 8, 2))
    layer = rj.layers.DropBlock(0.4, 3, shared_channels=False, rngs=nnx.Rngs(0))
    want = rj.layers.drop_block(KEY, x, rate=0.4, block_size=3, shared_channels=False)
    np.testing.assert_array_equal(layer(x, rngs=KEY), want)
    np.testing.assert_array_equal(rj.layers.DropBlock(0.9, 3, shared_channels=False)(x, rngs=KEY, rate=0.4), want)
    call = nnx.jit(lambda layer, x: layer(x))
    assert not np.array_equal(call(layer, x), call(layer, x)) and layer.rngs.count[...] == 2
    layer.eval()
    np.testing.assert_array_equal(layer(x), x)
    np.testing.assert_array_equal(nnx.view(layer, deterministic=False, rate=0.0)(x), x)
    plain = rj.layers.DropBlock(0.4, 3, scale_by_keep=False)(x, rngs=KEY)
    assert set(np.unique(plain)) == {0, 1}


def test_the_factor_is_that_of_the_whole_batch_on_every_mesh():
    x = jnp.asarray(RNG.normal(size=(8, 4, 4, 2)), jnp.float32)
    seeds = jnp.zeros((8, 4, 4, 1), bool).at[0].set(True).at[5, 1, 2].set(True)
    core = functools.partial(rj.layers.apply_drop_block, block_size=2)
    call = jax.jit(lambda key, x, seeds: (core(x, seeds), rj.layers.drop_block(key, x, rate=0.4, block_size=3)))
    want = call(KEY, x, seeds)
    np.testing.assert_allclose(want[0], drop_block(np.asarray(x), np.asarray(seeds), 2)[0], rtol=1e-5)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        rows = jax.NamedSharding(mesh, jax.P("data"))
        with jax.set_mesh(mesh):
            got = call(KEY, jax.device_put(x, rows), jax.device_put(seeds, rows))
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5)
            assert a.sharding.is_equivalent_to(rows, 4)
    mapped = jax.vmap(lambda x, seeds: core(x, seeds, axis_name="parts"), axis_name="parts")
    parts = mapped(x.reshape(2, 4, 4, 4, 2), seeds.reshape(2, 4, 4, 4, 1))
    np.testing.assert_allclose(parts.reshape(x.shape), want[0], rtol=1e-5)
