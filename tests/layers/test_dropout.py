"""Dropout and drop path against loop-written references, their laws at the ends of the rate, and their statistics."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import regjax as rj

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3, 2))
MASK = RNG.random((4, 3, 2)) < 0.6
KEEP = np.array([True, False, True, True])


def reference(x, keep, rate, rescale=True):
    out = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        if keep[index] and rate < 1:
            out[index] = x[index] / (1 - rate) if rescale else x[index]
    return out


def rows(keep):
    return np.broadcast_to(keep[:, None, None], X.shape)


@pytest.mark.parametrize("rate", [0.0, 0.3, 0.99])
def test_cores_equal_their_references(x64, rate):
    got = rj.layers.apply_dropout(X, MASK, rate=rate)
    np.testing.assert_allclose(got, reference(X, MASK, rate), rtol=1e-14)
    got = rj.layers.apply_drop_path(X, KEEP, rate=rate)
    np.testing.assert_allclose(got, reference(X, rows(KEEP), rate), rtol=1e-14)
    got = rj.layers.apply_drop_path(X, KEEP, rate=rate, scale_by_keep=False)
    np.testing.assert_array_equal(got, reference(X, rows(KEEP), rate, rescale=False))
    for whole in (True, False):
        got = rj.layers.apply_drop_path(X, whole, rate=rate)
        np.testing.assert_allclose(got, reference(X, np.full(X.shape, whole), rate), rtol=1e-14)
        np.testing.assert_array_equal(rj.layers.apply_drop_path(X, jnp.asarray(whole), rate=rate), got)


def test_gradients_of_the_cores(x64):
    weights = RNG.normal(size=X.shape)

    def total(x, rate):
        kept = rj.layers.apply_dropout(x, MASK, rate=rate), rj.layers.apply_drop_path(x, KEEP, rate=rate)
        return sum(jnp.sum(weights * y) for y in kept)

    by_x, by_rate = jax.jit(jax.grad(total, argnums=(0, 1)))(jnp.asarray(X), 0.3)
    np.testing.assert_allclose(by_x, weights * (1.0 * MASK + rows(KEEP)) / 0.7, rtol=1e-12)
    np.testing.assert_allclose(by_rate, np.sum(weights * X * (1.0 * MASK + rows(KEEP))) / 0.7**2, rtol=1e-12)
    # A dropped example sends nothing back into its branch.
    by_branch = jax.jit(jax.grad(lambda x: jnp.sum(jnp.sin(rj.layers.apply_drop_path(x, KEEP, rate=0.3)))))(X)
    assert np.all(by_branch[1] == 0) and np.all(by_branch[0] != 0)


def test_published_value():
    got = rj.layers.apply_drop_path(jnp.array([[3.0], [3.0]]), jnp.array([True, False]), rate=0.2)
    np.testing.assert_allclose(got, [[3.75], [0.0]], rtol=1e-6)


TECHNIQUES = [rj.layers.dropout, rj.layers.drop_path]


@pytest.mark.parametrize("technique", TECHNIQUES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rate_0_is_the_identity_and_rate_1_is_zero(technique, dtype):
    x = jnp.array([1.5, -0.0, 6e4, 1e-7], dtype)

    @jax.jit
    def value_and_gradients(rate):
        total = lambda x, rate: jnp.sum(technique(jax.random.key(0), x, rate=rate).astype(jnp.float32))
        return technique(jax.random.key(0), x, rate=rate), jax.grad(total, (0, 1))(x, rate)

    y, (by_x, _) = value_and_gradients(0.0)
    assert y.dtype == x.dtype and y.tobytes() == x.tobytes()
    np.testing.assert_array_equal(np.asarray(by_x, np.float32), 1)
    assert technique(jax.random.key(0), x, rate=0).tobytes() == x.tobytes()
    y, gradients = value_and_gradients(1.0)
    np.testing.assert_array_equal(np.asarray(y, np.float32), 0)
    for gradient in gradients:
        np.testing.assert_array_equal(np.asarray(gradient, np.float32), 0)
    np.testing.assert_array_equal(np.asarray(technique(jax.random.key(0), x, rate=1), np.float32), 0)


def test_rate_1_is_zero_whatever_the_mask():
    for rate in (1.0, jnp.float32(1)):
        np.testing.assert_array_equal(rj.layers.apply_dropout(X, np.ones_like(MASK), rate=rate), 0)
        np.testing.assert_array_equal(rj.layers.apply_drop_path(X, KEEP, rate=rate), 0)


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_a_traced_rate_of_nan_is_seen(technique):
    assert np.all(np.isnan(technique(jax.random.key(0), jnp.ones((2, 3)), rate=jnp.nan * jnp.ones(()))))


@pytest.mark.parametrize("technique", TECHNIQUES)
def test_test_mode_is_the_identity_without_a_key(technique):
    x = jnp.asarray(X, jnp.float32)
    assert technique(None, x, rate=0.5, deterministic=True) is x


def test_keep_rate_expectation_and_independence():
    n = 40_000
    draw = jax.jit(lambda key, rate: rj.layers.dropout(key, jnp.ones((n, 2)), rate=rate))
    for seed, rate in enumerate([0.001, 0.1, 0.5, 0.9]):
        key = jax.random.key(seed)
        y = np.asarray(draw(key, rate))
        sigma = np.sqrt(rate * (1 - rate) / (2 * n))
        assert abs((y == 0).mean() - rate) < 5 * sigma
        assert abs(y.mean() - 1) < 5 * sigma / (1 - rate)
        np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)
        other = np.asarray(draw(jax.random.fold_in(key, 1), rate))
        # Columns, neighbours and draws under another key agree as often as independent ones do.
        for a, b in [(y[:, 0], y[:, 1]), (y[:-1, 0], y[1:, 0]), (y[:, 0], other[:, 0])]:
            agree = rate**2 + (1 - rate) ** 2
            assert abs(((a == 0) == (b == 0)).mean() - agree) < 6 * np.sqrt(agree * (1 - agree) / n) + 1e-4


def test_bfloat16_inputs_keep_small_rates():
    # bfloat16 uniforms would drop 1 in 256 at the least, or none.
    y = rj.layers.dropout(jax.random.key(0), jnp.ones(200_000, jnp.bfloat16), rate=0.001)
    assert abs(np.mean(np.asarray(y, np.float32) == 0) - 0.001) < 5 * np.sqrt(0.001 / 200_000)


def test_drop_path_drops_whole_examples():
    n, rate = 20_000, 0.3
    y = np.asarray(rj.layers.drop_path(jax.random.key(0), jnp.ones((n, 2, 1)), rate=rate))
    np.testing.assert_array_equal(y[:, 0], y[:, 1])
    assert abs((y[:, 0] == 0).mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / n)
    np.testing.assert_allclose(y[y != 0], 1 / (1 - rate), rtol=1e-6)
    unscaled = rj.layers.drop_path(jax.random.key(0), jnp.ones((n, 2, 1)), rate=rate, scale_by_keep=False)
    np.testing.assert_array_equal(unscaled, y != 0)


def test_drop_path_drops_the_whole_batch():
    """The paper's own form: one draw per batch and block, in training without scaling."""
    n, rate = 4000, 0.3
    keys = jax.random.split(jax.random.key(0), n)
    draw = functools.partial(rj.layers.drop_path, rate=rate, per="batch")
    y, unscaled = jax.jit(jax.vmap(lambda key: (draw(key, jnp.ones((4, 2))), draw(key, jnp.ones((4, 2)), scale_by_keep=False))))(
        keys
    )
    y = np.asarray(y)
    assert np.all(y == y[:, :1, :1])
    assert abs((y[:, 0, 0] == 0).mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / n)
    np.testing.assert_array_equal(unscaled, y != 0)
    # Its expectation, over a batch that is always kept or always dropped, is the paper's factor at test.
    assert abs(np.mean(unscaled) - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / n)
    layer = rj.layers.DropPath(rate, per="batch", scale_by_keep=False)
    np.testing.assert_array_equal(layer(jnp.ones((4, 2)), rngs=keys[0]), unscaled[0])


def test_early_late_and_scheduled_drop_path_compile_once():
    """A schedule gives the last block's rate, or all rates, in the step."""
    early = rj.schedules.dropout_schedule(0.5, total_steps=8, cutoff_steps=3, mode="early")
    late = rj.schedules.dropout_schedule(0.4, total_steps=8, cutoff_steps=3, mode="late")
    x = jnp.ones((2000, 1))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(i):
        rates = [rj.layers.drop_path_rates(schedule(i), 3) for schedule in (early, late)]
        rates.append(rj.schedules.scheduled_drop_path_rates(i, keep_prob=0.5, num_layers=3, total_steps=8))
        keys = jax.random.split(jax.random.key(i), 3)
        blocks = [[rj.layers.drop_path(keys[b], x, rate=rate[b]) for b in range(3)] for rate in rates]
        return rates, [[jnp.mean(y == 0) for y in row] for row in blocks]

    def linear(rate):
        return [0, rate / 2, rate]

    for i, (first, second) in enumerate([(0.5, 0), (0.25, 0), (0, 0), (0, 0.4), (0, 0.4)]):
        rates, shares = step(i)
        want = [linear(first), linear(second), [0.5 * i / 8 * b / 3 for b in (1, 2, 3)]]
        np.testing.assert_allclose(rates, want, rtol=1e-6)
        for rate, share in zip(np.ravel(want), np.ravel(shares), strict=True):
            assert abs(share - rate) <= 5 * np.sqrt(rate * (1 - rate) / 2000)


def test_drop_path_rates_are_linear_in_depth():
    want = [0.2 * i / 4 for i in range(5)]
    static, traced = rj.layers.drop_path_rates(0.2, 5), jax.jit(lambda r: rj.layers.drop_path_rates(r, 5))(0.2)
    assert isinstance(static, np.ndarray) and static.dtype == traced.dtype == jnp.float32
    np.testing.assert_allclose(static, want, rtol=1e-6)
    np.testing.assert_allclose(traced, want, rtol=1e-6)
    assert static[0] == 0 and static[-1] == np.float32(0.2)
    assert rj.layers.drop_path_rates(0.2, 1).tolist() == [0.0]
    assert rj.layers.drop_path_rates(jnp.bfloat16(0.2), 2).dtype == jnp.float32
    # The entries for a number are numbers under a trace too: models may be built there.
    jax.eval_shape(lambda: jnp.float32(float(rj.layers.DropPath(rj.layers.drop_path_rates(0.2, 3)[1]).rate)))


def test_a_scheduled_rate_compiles_once():
    """Early dropout: the rate falls to 0, and after that the step is the plain one."""
    schedule = optax.linear_schedule(0.5, 0.0, 4)
    dropout = functools.partial(rj.layers.dropout, rate=schedule)
    branch = functools.partial(rj.layers.drop_path, rate=schedule)
    x = jnp.ones((200, 4))

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(key, step):
        return rj.at_step(dropout, step)(key, x), rj.at_step(branch, step)(key, x)

    outputs = [step(jax.random.key(i), i) for i in range(5)]
    for i, y in enumerate(outputs):
        for part in map(np.asarray, y):
            assert set(np.unique(part)) == ({1.0} if i == 4 else {0.0, np.float32(1) / np.float32(1 - 0.5 * (4 - i) / 4)})


def test_sharded_batches_keep_their_sharding_and_values():
    x = jnp.asarray(RNG.normal(size=(8, 6)), jnp.float32)
    call = jax.jit(lambda key, x, rate: [f(key, x, rate=rate) for f in TECHNIQUES])
    want = call(jax.random.key(0), x, 0.5)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
        with jax.set_mesh(mesh):
            sharded = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data", "model")))
            got = call(jax.random.key(0), sharded, 0.5)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_array_equal(a, b)
            assert a.sharding.is_equivalent_to(sharded.sharding, 2)


def test_shard_map_with_a_key_per_device():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

    @functools.partial(jax.shard_map, mesh=mesh, in_specs=(jax.P(), jax.P("data")), out_specs=jax.P("data"))
    def local(key, x):
        key = jax.random.fold_in(key, jax.lax.axis_index("data"))
        return rj.layers.drop_path(key, rj.layers.dropout(key, x, rate=0.5), rate=0.1)

    y = np.asarray(jax.jit(local)(jax.random.key(0), jnp.ones((8, 64))))
    assert len(np.unique(y != 0, axis=0)) > 6
