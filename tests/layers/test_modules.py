"""The NNX modules: the functions they stand for, modes, streams and keys, transformations, and the bridge to Linen."""

import itertools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import regjax as rj

KEY = jax.random.key(0)
X = jnp.ones((16, 16))


def sine(h):
    return jnp.sin(h)


MODULES = {
    "Dropout": lambda **options: rj.layers.Dropout(0.5, **options),
    "DropPath": lambda **options: rj.layers.DropPath(0.5, **options),
    "MultiSampleDropout": lambda **options: rj.layers.MultiSampleDropout(sine, 2, 0.5, **options),
    "GaussianNoise": lambda **options: rj.layers.GaussianNoise(0.5, **options),
    "SpatialDropout": lambda **options: rj.layers.SpatialDropout(0.5, **options),
    "NestedDropout": lambda **options: rj.layers.NestedDropout(16, distribution="uniform", **options),
}
FUNCTIONS = {
    "Dropout": lambda key: rj.layers.dropout(key, X, rate=0.5),
    "DropPath": lambda key: rj.layers.drop_path(key, X, rate=0.5),
    "MultiSampleDropout": lambda key: rj.layers.multi_sample_dropout(key, sine, X, num_samples=2, rate=0.5),
    "GaussianNoise": lambda key: rj.layers.gaussian_noise(key, X, std=0.5),
    "SpatialDropout": lambda key: rj.layers.spatial_dropout(key, X, rate=0.5),
    "NestedDropout": lambda key: rj.layers.nested_dropout(key, X, probs=jnp.full(16, 1 / 16)),
}
PLAIN = {"MultiSampleDropout": jnp.sin(X)[None]}
each = pytest.mark.parametrize("name", MODULES)


def plain(name):
    return PLAIN.get(name, X)


@each
def test_a_call_is_the_function_under_the_calls_key(name):
    layer, want = MODULES[name](), FUNCTIONS[name](KEY)
    for key in (KEY, jax.random.key_data(KEY)):
        np.testing.assert_array_equal(layer(X, rngs=key), want)
    stream = nnx.Rngs(dropout=1)
    drawn = nnx.Rngs(dropout=1).dropout()
    np.testing.assert_array_equal(layer(X, rngs=stream), FUNCTIONS[name](drawn))
    np.testing.assert_array_equal(layer(X, rngs=nnx.Rngs(1)["default"]), FUNCTIONS[name](drawn))
    assert int(stream.dropout.count[...]) == 1
    # An own stream gives way to the call's.
    np.testing.assert_array_equal(MODULES[name](rngs=nnx.Rngs(5))(X, rngs=KEY), want)


@each
def test_own_streams_count_as_those_of_flax(name):
    rngs, twin = nnx.Rngs(0, noise=1), nnx.Rngs(0, noise=1)
    layer, flax = MODULES[name](rngs=rngs, rng_collection="noise"), nnx.Dropout(0.5, rngs=twin, rng_collection="noise")
    assert rngs.noise.count[...] == twin.noise.count[...] == 1
    call = nnx.jit(lambda layer, x: layer(x))
    outputs = []
    for expected in (1, 2, 3):
        outputs.append(np.asarray(call(layer, X)))
        flax(X)
        assert layer.rngs.count[...] == flax.rngs.count[...] == expected
    assert layer.rngs.key[...] == flax.rngs.key[...]
    assert not np.array_equal(outputs[0], outputs[1]) and not np.array_equal(outputs[1], outputs[2])
    layer.eval()
    np.testing.assert_array_equal(layer(X), plain(name))
    assert layer.rngs.count[...] == 3


@each
def test_modes(name):
    layer = MODULES[name]()
    noisy = lambda layer, **options: not np.array_equal(layer(X, rngs=KEY, **options), plain(name))
    assert noisy(layer)
    assert not noisy(layer, deterministic=True)
    quiet = nnx.view(layer, deterministic=True)
    assert not noisy(quiet) and noisy(quiet, deterministic=False) and noisy(layer)
    layer.eval()
    assert not noisy(layer)
    layer.train()
    assert noisy(layer)
    layer.set_attributes(type(layer), deterministic=True)
    np.testing.assert_array_equal(layer(X), plain(name))
    assert "deterministic" in nnx.view_info(layer)
    with pytest.raises(ValueError, match=f"regjax.layers.{name}: deterministic"):
        MODULES[name](deterministic=None)(X, rngs=KEY)
    with pytest.raises(ValueError, match=f"regjax.layers.{name}: rngs"):
        MODULES[name]()(X)
    with pytest.raises(ValueError, match=f"regjax.layers.{name}: rngs must be an nnx.Rngs with a stream 'dropout'"):
        MODULES[name](rngs=nnx.Rngs(params=0))


@each
def test_keys_under_jit_vmap_and_scan(name):
    layer = MODULES[name]()
    chex.clear_trace_counter()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def call(layer, keys):
        body = lambda carry, pair: (carry, jax.vmap(lambda key: layer(X, rngs=key))(pair))
        return jax.lax.scan(body, None, keys)[1]

    for seed in (0, 1):
        keys = jax.random.split(jax.random.key(seed), (3, 2))
        want = [[np.asarray(layer(X, rngs=key)) for key in pair] for pair in keys]
        np.testing.assert_allclose(call(layer, keys), want, rtol=1e-6)
        assert len(np.unique(np.reshape(want, (6, -1)), axis=0)) >= 3


def test_split_and_merge_keep_settings_and_stream():
    layer = rj.layers.DropPath(0.3, scale_by_keep=False, rngs=nnx.Rngs(0))
    graph, state = nnx.split(layer)
    assert {path for path, _ in nnx.to_flat_state(state)} == {("rngs", "key"), ("rngs", "count")}
    merged = jax.jit(lambda state: nnx.merge(graph, state)(X))(state)
    np.testing.assert_array_equal(merged, layer(X))


def test_a_rate_at_the_call_and_for_a_whole_model():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.first, self.last = rj.layers.Dropout(0.9, rngs=rngs), rj.layers.Dropout(0.9, rngs=rngs)

        def __call__(self, x):
            return self.first(x), self.last(x)

    @nnx.jit
    @chex.assert_max_traces(n=1)
    def step(model, step):
        return nnx.view(model, only=rj.layers.Dropout, rate=optax.linear_schedule(0.5, 0.0, 2)(step))(X)

    model = Model(nnx.Rngs(0))
    for i in range(3):
        for y in step(model, jnp.asarray(i)):
            want = {1.0} if i == 2 else {0.0, np.float32(1 / (1 - 0.25 * (2 - i)))}
            assert set(np.unique(y)) == want
    assert model.first.rate == 0.9 and model.first.rngs.count[...] == 3
    assert nnx.view(model, rate=0.25).last.rate == 0.25
    for cls in (rj.layers.Dropout, rj.layers.DropPath, rj.layers.SpatialDropout):
        layer = cls(0.9)
        got = jax.jit(lambda rate, layer=layer: layer(X, rate=rate, rngs=KEY))(0.25)
        np.testing.assert_allclose(got, cls(0.25)(X, rngs=KEY), rtol=1e-6)
        np.testing.assert_array_equal(layer(X, rate=0), X)
    samples = rj.layers.MultiSampleDropout(sine, 2, 0.9)(X, rate=0.25, rngs=KEY)
    np.testing.assert_array_equal(samples, rj.layers.MultiSampleDropout(sine, 2, 0.25)(X, rngs=KEY))


def test_nested_dropout_at_a_given_length_or_scale():
    layer = rj.layers.NestedDropout(16, scale=1e6)
    for options in ({}, {"deterministic": True}):
        np.testing.assert_array_equal(layer(X, k=3, **options), rj.layers.truncate_features(X, 3))
    narrow = jax.jit(lambda scale: layer(X, scale=scale, rngs=KEY))(1e-3)
    np.testing.assert_array_equal(narrow, rj.layers.truncate_features(X, 1))


class Linen(linen.Module):
    """A residual block with every module in it, bridged."""

    @linen.compact
    def __call__(self, x, deterministic=False):
        def bridged(module, *args, **kwargs):
            return nnx.bridge.to_linen(module, *args, **kwargs, name=getattr(module, "__name__", None))

        seen = {}
        h = linen.relu(linen.Dense(16)(x))
        seen["Dropout"] = h = bridged(rj.layers.Dropout, 0.3)(h, deterministic=deterministic)
        branch = bridged(rj.layers.DropPath, 0.3)(linen.relu(linen.Dense(16)(h)), deterministic=deterministic)
        seen["DropPath"] = branch
        h = bridged(rj.layers.NestedDropout, 16, scale=16.0)(h + branch, deterministic=deterministic)
        seen["NestedDropout"] = h

        def head(rngs):
            return rj.layers.MultiSampleDropout(nnx.Linear(16, 3, rngs=rngs), 2, 0.3, rngs=rngs)

        return nnx.bridge.to_linen(head, name="head")(h, deterministic=deterministic), seen


def test_modules_bridge_to_linen_and_train_there():
    rng = np.random.default_rng(0)
    labels = jnp.asarray(rng.integers(0, 3, 24))
    x = jnp.asarray(rng.normal(size=(24, 6)) + 2 * np.eye(3, 6)[labels], jnp.float32)
    loss_fn = rj.layers.multi_sample_loss(optax.softmax_cross_entropy_with_integer_labels)
    model, tx = Linen(), optax.adam(0.03)
    params = jax.jit(model.init)({"params": KEY, "dropout": KEY}, x)
    assert params["params"]["head"]["head"]["kernel"].shape == (16, 3)

    @jax.jit
    @chex.assert_max_traces(n=1)
    def step(params, opt_state, key):
        def loss(params):
            logits, seen = model.apply(params, x, rngs={"dropout": key})
            return loss_fn(logits, labels).mean(), (logits, seen)

        (_, aux), gradients = jax.value_and_grad(loss, has_aux=True)(params)
        updates, opt_state = tx.update(gradients, opt_state, params)
        return optax.apply_updates(params, updates), opt_state, aux

    @jax.jit
    def test_loss(params):
        logits, _ = model.apply(params, x, deterministic=True)
        assert logits.shape == (1, 24, 3)
        return loss_fn(logits, labels).mean()

    before, opt_state, masks = test_loss(params), tx.init(params), []
    for key in jax.random.split(KEY, 12):
        params, opt_state, (logits, seen) = step(params, opt_state, key)
        masks.append({name: np.asarray(y) == 0 for name, y in seen.items()})
        assert not np.array_equal(logits[0], logits[1])
    assert test_loss(params) < 0.6 * before
    for name in ("Dropout", "DropPath", "NestedDropout"):
        assert any(not np.array_equal(a[name], b[name]) for a, b in itertools.pairwise(masks))
