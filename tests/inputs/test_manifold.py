"""Manifold mixup: of a list of stages against its draws, and of Flax NNX models under every transformation."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import regjax as rj

# The tests compile much and run little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)
KEYS = jax.random.split(jax.random.key(0), 40)
X, LABELS = RNG.normal(size=(6, 3)).astype(np.float32), RNG.dirichlet(np.ones(4), size=6).astype(np.float32)
FIRST, SECOND = RNG.normal(size=(3, 5)).astype(np.float32), RNG.normal(size=(5, 2)).astype(np.float32)
STAGES = (jnp.tanh, lambda h: jnp.tanh(h @ FIRST), lambda h: h @ SECOND)
weights = rj.inputs.manifold_mixup_weights


class Block(nnx.Module):
    def __init__(self, rngs):
        self.linear, self.norm = nnx.Linear(3, 3, rngs=rngs), nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x, *, scale=1.0):
        return jnp.tanh(self.norm(self.linear(x))) * scale


class Model(nnx.Module):
    def __init__(self, rngs):
        self.blocks, self.last = nnx.List([Block(rngs), Block(rngs)]), Block(rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return nnx.remat(lambda block, x: block(x, scale=2.0))(self.last, self.dropout(x))


LAYERS = ("input", "blocks.1", "last")


def by_hand(model, key, x):
    """The model's pass written out, mixed as the draws say."""
    lams, _, partner = weights(key, len(x), layers=LAYERS)
    mix = lambda h, i: rj.layers.mix_features(h, lam=lams[i], partner=partner)
    x = model.blocks[0](mix(x, 0))
    x = model.blocks[1](mix(x, 1))
    return model.last(mix(model.dropout(x), 2), scale=2.0)


def mixed(model, key, x, **options):
    return rj.inputs.manifold_mixup_model(key, model, x, LABELS, layers=LAYERS, **options)


def test_one_layer_is_mixed_as_drawn():
    draw = jit(jax.vmap(lambda key: (*rj.inputs.manifold_mixup(key, STAGES, X, LABELS), *weights(key, 6))))
    outputs, labels, lams, lam, partner = (np.asarray(x) for x in draw(KEYS))
    for t in range(len(KEYS)):
        (k,) = np.flatnonzero(lams[t] != 1)
        assert lams[t, k] == lam[t]
        h = X.astype(np.float64)
        for i, stage in enumerate(STAGES):
            if i == k:
                h = lam[t] * h + (1 - lam[t]) * h[partner[t]]
            h = np.asarray(stage(h), np.float64)
        np.testing.assert_allclose(outputs[t], h, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(labels[t], lam[t] * LABELS + (1 - lam[t]) * LABELS[partner[t]], rtol=1e-5)
    assert len({int(np.argmin(row)) for row in lams}) == 3


def test_limits():
    key = KEYS[0]
    _, lam, partner = weights(key, 6, layers=(0,))
    outputs, labels = jit(lambda: rj.inputs.manifold_mixup(key, STAGES, X, LABELS, layers=(0,)))()
    x, want = rj.inputs.apply_mixup(X, LABELS, lam=lam, partner=partner)
    for stage in STAGES:
        x = stage(x)
    np.testing.assert_allclose(outputs, x, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(labels, want, rtol=1e-6)
    # Of linear stages the output does not tell the layer.
    linear = [lambda h: h @ FIRST, lambda h: 2 * h, lambda h: h @ SECOND]
    several = jit(lambda: [rj.inputs.manifold_mixup(key, linear, X, LABELS, layers=(k,))[0] for k in range(3)])()
    for other in several[1:]:
        np.testing.assert_allclose(other, several[0], rtol=1e-4, atol=1e-5)


def test_the_draws():
    draw = jit(jax.vmap(functools.partial(weights, batch=4, layers=("a", "b", "c"))))
    lams, lam, partner = (np.asarray(x) for x in draw(jax.random.split(jax.random.key(1), 4000)))
    counts = np.bincount(lams.argmin(1), minlength=3)
    assert np.all(abs(counts - 4000 / 3) < 5 * np.sqrt(4000 * 2 / 9))
    np.testing.assert_array_equal(lams.min(1), lam)
    np.testing.assert_array_equal((lams == 1).sum(1), 2)
    # Beta(2, 2): mean 1/2, variance 1/20.
    assert abs(lam.mean() - 0.5) < 5 * np.sqrt(0.05 / 4000)
    assert lam.var() == pytest.approx(0.05, rel=0.1)
    np.testing.assert_array_equal(np.sort(partner, axis=1), np.broadcast_to(np.arange(4), (4000, 4)))
    assert abs((partner[:, 0] == 0).mean() - 0.25) < 5 * np.sqrt(0.1875 / 4000)
    assert weights(KEYS[0], 6, within_shard=2)[2].shape == (2, 3)


def test_a_model_is_mixed_and_left_as_it_was():
    model, twin = Model(nnx.Rngs(0)), Model(nnx.Rngs(0))
    structure = nnx.graphdef(model)
    for key in KEYS[:4]:
        outputs, labels = mixed(model, key, X)
        want = by_hand(twin, key, X)
        np.testing.assert_allclose(outputs, want, rtol=1e-5, atol=1e-6)
        # Statistics of BatchNorm and the counts of the random streams are those of an ordinary call.
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6), *map(values, (model, twin)))
    assert not np.array_equal(labels, LABELS)
    assert nnx.graphdef(model) == structure
    assert type(model.last) is Block
    assert float(jnp.abs(model.last.norm.mean[...]).max()) > 0
    np.testing.assert_allclose(
        mixed(model, KEYS[0], X, alpha=0.0, call=lambda model, x: model.blocks[1](x))[0], twin.blocks[1](X), rtol=1e-5, atol=1e-6
    )


def values(model):
    """All arrays of a model as a plain tree, the keys of its streams left out."""
    return [x for x in jax.tree.leaves(nnx.state(model)) if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)]


def test_jit_and_gradients_of_a_model():
    def loss_fn(model, key, x, call):
        return jnp.sum(jnp.square(call(model, key, x)))

    ours = lambda model, key, x: mixed(model, key, x)[0]
    step = nnx.jit(lambda model, key, call: nnx.value_and_grad(loss_fn)(model, key, X, call), static_argnums=2)
    a, b = Model(nnx.Rngs(0)), Model(nnx.Rngs(0))
    for key in KEYS[:2]:
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), step(a, key, ours), step(b, key, by_hand)
        )
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5), values(a), values(b))


def test_jax_transformations_of_many_models():
    models = nnx.vmap(lambda key: Model(nnx.Rngs(params=key, dropout=key)))(jax.random.split(jax.random.key(3), 3))
    structure, state = nnx.split(models)

    @jit
    @jax.vmap
    def ours(state, key):
        model = nnx.merge(structure, state, copy=True)
        outputs, _ = mixed(model, key, X)
        return outputs, nnx.state(model)

    outputs, after = ours(state, KEYS[:3])
    for i in range(3):
        model = nnx.merge(structure, jax.tree.map(lambda x, i=i: x[i], state), copy=True)
        np.testing.assert_allclose(outputs[i], by_hand(model, KEYS[i], X), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(after["last"]["norm"]["mean"][...][i], model.last.norm.mean[...], rtol=1e-4, atol=1e-5)


def test_unknown_layers_are_told_those_that_are_there():
    with pytest.raises(ValueError, match=r"layers must be of the layers 'input', 'blocks\.0', .*'last\.norm', got 'block\.0'"):
        rj.inputs.manifold_mixup_model(KEYS[0], Model(nnx.Rngs(0)), X, LABELS, layers=("block.0",))
    with pytest.raises(ValueError, match=r"jax\.nn\.one_hot"):
        rj.inputs.manifold_mixup_model(KEYS[0], Model(nnx.Rngs(0)), X, np.arange(6), layers=("last",))
