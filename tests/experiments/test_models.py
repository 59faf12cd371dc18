"""The classifiers: shapes, hooks, batch statistics, dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import regjax as rj
from experiments.models import ModelConfig, make_model, split
from regjax.core.trees import path_names

CONFIGS = {
    "mlp": ModelConfig("mlp", width=16, depth=3),
    "resnet": ModelConfig("resnet", width=4, depth=1),
    "wrn": ModelConfig("wrn", width=4, depth=1),
    "vit": ModelConfig("vit", width=16, depth=2, patch=2, heads=2),
}
FEATURES = {"mlp": 16, "resnet": 16, "wrn": 16, "vit": 16}
NORMALISED = ("resnet", "wrn")
"""With batch statistics."""
IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(6, 4, 4, 2)), jnp.float32)
HOOKS = rj.Hooks(features=lambda key, x: x / 2, head=lambda key, head, x: jnp.stack([head(x), -head(x)]))


def initial(path, leaf):
    """Random kernels and other leaves as usual: compiling the initialisers takes longer than all these tests."""
    if len(leaf.shape) > 1:
        return jnp.asarray(
            np.random.default_rng(leaf.size).normal(size=leaf.shape) / np.sqrt(np.prod(leaf.shape[:-1])), leaf.dtype
        )
    return jnp.full(leaf.shape, float(path_names(path)[-1] in ("scale", "var")), leaf.dtype)


class Model:
    """The compiled ways to call a model."""

    def __init__(self, name, dtype=None):
        make = lambda: make_model(CONFIGS[name], (4, 4, 2), 5, rngs=nnx.Rngs(0), dtype=dtype)
        apply_fn, *abstract = split(nnx.eval_shape(make))
        assert {leaf.dtype for leaf in jax.tree.leaves(abstract)} == {jnp.dtype("float32")}  # whatever computes
        self.params, self.state = jax.tree_util.tree_map_with_path(initial, abstract)
        apply = functools.partial(apply_fn, self.params)
        self.eval = jax.jit(lambda state: apply(state, IMAGES, key=None, hooks=rj.Hooks(), training=False))
        self.hooked_eval = lambda: apply(self.state, IMAGES, key=None, hooks=HOOKS, training=False)
        train = lambda key, hooks: apply(self.state, IMAGES, key=key, hooks=hooks, training=True)
        self.apply = lambda hooks, training: apply(self.state, IMAGES, key=jax.random.key(0), hooks=hooks, training=training)
        self._train = jax.jit(lambda seed, *rates: train(jax.random.key(seed), rj.Hooks(*rates)))
        self.hooked_train = jax.jit(lambda seed: train(jax.random.key(seed), HOOKS))

    def train(self, seed, dropout=0.0, drop_path=0.0):
        return self._train(seed, jnp.float32(dropout), jnp.float32(drop_path))


@functools.cache
def model(name):
    return Model(name)


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_and_plain_training(name):
    run = model(name)
    out, trained = run.eval(run.state), run.train(0)
    assert out.logits.shape == (6, 5) and out.features.shape == (6, FEATURES[name])
    assert run.params["head"]["kernel"].shape == (FEATURES[name], 5)
    np.testing.assert_array_equal(trained.logits, run.train(1).logits)
    if name not in NORMALISED:
        np.testing.assert_allclose(trained.logits, out.logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("hook", ["dropout", "drop_path"])
def test_rates_act_in_training(name, hook):
    train = functools.partial(model(name).train, **{hook: 0.5})
    np.testing.assert_array_equal(train(0).logits, train(0).logits)
    for other in (train(1), model(name).train(0)):
        assert np.abs(train(0).features - other.features).max() > 1e-3


@pytest.mark.parametrize("name", CONFIGS)
def test_feature_and_head_hooks_act_in_training_and_not_in_evaluation(name):
    run = model(name)
    plain, hooked, head = run.train(0), run.hooked_train(0), run.params["head"]
    np.testing.assert_allclose(hooked.features, plain.features, rtol=1e-4, atol=1e-5)  # regularisers see them before the hook
    logits = plain.features / 2 @ head["kernel"][...] + head["bias"][...]
    assert hooked.logits.shape == (2, 6, 5)
    np.testing.assert_allclose(hooked.logits, np.stack([logits, -logits]), rtol=1e-4, atol=1e-5)
    if name == "mlp":
        np.testing.assert_allclose(run.hooked_eval().logits, run.eval(run.state).logits, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CONFIGS)
def test_noise_and_mixing_hooks_act_in_training(name):
    run = model(name)
    squared = lambda key, x: x**2  # a shift or a scale is lost in batch normalisation
    places = []
    swap = lambda place, x: places.append((place, x.shape[0])) or (x[::-1] if place == 0 else x)
    apply = jax.jit(lambda hooks, training: run.apply(hooks, training), static_argnums=(0, 1))
    noisy = apply(rj.Hooks(noise=squared), True)
    assert np.abs(noisy.features - run.train(0).features).max() > 1e-3
    np.testing.assert_allclose(apply(rj.Hooks(noise=squared), False).logits, run.eval(run.state).logits, rtol=1e-5, atol=1e-6)
    swapped = apply(rj.Hooks(mix=swap), True)
    np.testing.assert_allclose(swapped.logits, run.train(0).logits[::-1], rtol=1e-4, atol=1e-5)
    blocks = {"mlp": 2, "resnet": 3, "wrn": 3, "vit": 2}[name]
    assert places == [(place, 6) for place in range(blocks + 1)]


@pytest.mark.parametrize("name", CONFIGS)
def test_computation_in_bfloat16_keeps_float32_parameters(name):
    run = Model(name, jnp.bfloat16)
    out = run.eval(run.state)
    assert out.logits.dtype == out.features.dtype == jnp.bfloat16
    np.testing.assert_allclose(out.logits.astype(jnp.float32), model(name).eval(run.state).logits, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("name", NORMALISED)
def test_batch_statistics_move_in_training_alone(name):
    run = model(name)
    trained, out = run.train(0).state, run.eval(run.state)
    changed = lambda new: [float(jnp.abs(a - b).max()) for a, b in zip(*map(jax.tree.leaves, (new, run.state)), strict=True)]
    assert min(changed(trained)) > 0 and max(changed(out.state)) == 0
    assert np.abs(run.eval(trained).logits - out.logits).max() > 1e-4
    assert not jax.tree.leaves(model("mlp").state) and not jax.tree.leaves(model("vit").state)


@pytest.mark.parametrize(
    ("config", "millions"),
    [(ModelConfig("wrn", width=160, depth=4), 36.48), (ModelConfig("vit", width=384, depth=12, patch=4, heads=6), 21.34)],
)
def test_published_sizes(config, millions):
    """WRN-28-10 has 36.5 million parameters."""
    params = nnx.eval_shape(lambda: nnx.state(make_model(config, (32, 32, 3), 10, rngs=nnx.Rngs(0)), nnx.Param))
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) / 1e6 == pytest.approx(millions, abs=0.01)


def test_configurations_refuse():
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        ModelConfig(width=0)
    with pytest.raises(ValueError, match="width must be a multiple of heads = 3, got 16"):
        ModelConfig("vit", width=16, heads=3)
    with pytest.raises(ValueError, match="patch must divide the image 4x4, got 3"):
        make_model(ModelConfig("vit", width=16, patch=3), (4, 4, 2), 5, rngs=nnx.Rngs(0))
