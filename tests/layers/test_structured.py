"""Hard concrete gates, pixelated butterflies and layers of templates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from sklearn.datasets import load_digits

import regjax as rj
from regjax.layers import (
    HardConcrete,
    PixelatedButterfly,
    TemplateLinear,
    apply_hard_concrete,
    block_sparse_apply,
    combine,
    flat_block_butterfly_mask,
    grow_templates,
    hard_concrete,
    orthogonal_coefficients,
)


def test_hard_concrete_at_the_known_values():
    log_alpha = jnp.array([0.0, 2.0, -3.0])
    np.testing.assert_allclose(apply_hard_concrete(log_alpha, jnp.full(3, 0.3)), [0.1629143, 0.9191495, 0], rtol=1e-5)
    np.testing.assert_allclose(hard_concrete(None, log_alpha, deterministic=True), [0.5, 0.9569565, 0], rtol=1e-5)
    edges = apply_hard_concrete(jnp.zeros(2), jnp.array([0.0, 1.0]))
    np.testing.assert_array_equal(edges, [0.0, 1.0])


def test_the_gate_module_gates_units_and_prices_the_kernel_behind():
    layer = HardConcrete(6, drop_rate=0.2, rngs=nnx.Rngs(0))
    np.testing.assert_allclose(layer.log_alpha[...], np.full(6, np.log(4)), atol=0.05)
    x = jnp.ones((50, 3, 6))
    y = layer(x, rngs=jax.random.key(0))
    # One draw for an example, the same at all its positions; another for the next.
    np.testing.assert_array_equal(y[:, 0], y[:, 2])
    assert len(np.unique(np.asarray(y[:, 0]).round(6), axis=0)) > 30
    assert np.mean(np.asarray(y) == 0) > 0.02
    shared = HardConcrete(6, per_example=False, rngs=nnx.Rngs(0))(x, rngs=jax.random.key(0))
    assert len(np.unique(np.asarray(shared[:, 0]), axis=0)) == 1
    kernel = jnp.ones((6, 4))
    np.testing.assert_allclose(
        layer.penalty(kernel, l0=0.5), rj.weights.l0_penalty(layer.log_alpha[...], kernel, l0=0.5), rtol=1e-6
    )
    # Beyond the clamp the value stays and the gradient passes.
    layer.log_alpha[...] = jnp.full(6, -9.0)
    value, grads = nnx.value_and_grad(lambda m: m.penalty(kernel, l0=1.0))(layer)
    np.testing.assert_allclose(value, 24 * rj.weights.nonzero_probability(jnp.log(0.01)), rtol=1e-4)
    assert jnp.all(jax.tree.leaves(grads)[0] > 0)
    assert jnp.all(layer(x, deterministic=True) == 0)


@pytest.mark.slow
def test_priced_gates_close_the_inputs_that_carry_nothing():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(256, 12)), jnp.float32)
    y = x[:, :3] @ jnp.array([1.0, -2.0, 1.5])

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.gate = HardConcrete(12, rngs=rngs)
            self.linear = nnx.Linear(12, 1, rngs=rngs)

        def __call__(self, x, **options):
            return self.linear(self.gate(x, **options))[:, 0]

    graph, params, rest = nnx.split(Model(nnx.Rngs(0)), nnx.Param, ...)
    tx = optax.adam(0.02)

    def loss(params, key):
        model = nnx.merge(graph, params, rest)
        price = model.gate.penalty(model.linear.kernel[...], l0=0.02)
        return jnp.mean((model(x, rngs=key) - y) ** 2) + price

    def step(carry, key):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params, key), state, params)
        return (optax.apply_updates(params, updates), state), None

    keys = jax.random.split(jax.random.key(1), 1500)
    params = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), keys)[0][0])(params)
    gates = hard_concrete(None, nnx.merge(graph, params, rest).gate.log_alpha[...], deterministic=True)
    np.testing.assert_array_equal(gates[3:], np.zeros(9))
    assert jnp.all(gates[:3] > 0.9)


def test_butterfly_masks():
    two = flat_block_butterfly_mask(4, 4, butterfly_size=4, n_factors=2, block=1)
    for i in range(4):
        assert set(np.nonzero(two[i])[0]) == {i, i ^ 1, i ^ 2}
    one = flat_block_butterfly_mask(4, 4, butterfly_size=4, n_factors=1, block=1)
    np.testing.assert_array_equal(one, np.kron(np.eye(2), np.ones((2, 2))).astype(bool))
    full = flat_block_butterfly_mask(16, 16, butterfly_size=16, n_factors=4, block=1)
    assert full.sum() == 16 * 5
    np.testing.assert_array_equal(full, full.T)
    # Stretched over a kernel that is not square, in blocks, padded; with global rows and columns.
    mask = flat_block_butterfly_mask(30, 64, butterfly_size=4, n_factors=1, block=8, global_size=3)
    assert mask.shape == (4, 8)
    assert mask[0].all() and mask[:, 0].all()
    np.testing.assert_array_equal(mask[1:, 1:], np.kron(np.kron(np.eye(2), np.ones((2, 2))), np.ones((1, 2)))[1:, 1:] > 0)


def test_block_sparse_products_are_those_of_the_dense_kernel():
    rng = np.random.default_rng(0)
    mask = rng.random((3, 4)) < 0.5
    blocks = rng.normal(size=(int(mask.sum()), 4, 4))
    dense = np.zeros((12, 16))
    for n, (i, j) in enumerate(np.argwhere(mask)):
        dense[4 * i : 4 * i + 4, 4 * j : 4 * j + 4] = blocks[n]
    x = rng.normal(size=(5, 2, 10))
    y = block_sparse_apply(jnp.asarray(x, jnp.float32), jnp.asarray(blocks, jnp.float32), mask=mask, out_features=14)
    np.testing.assert_allclose(y, (x @ dense[:10])[..., :14], rtol=1e-4, atol=1e-5)


def test_the_butterfly_layer_mixes_its_parts():
    layer = PixelatedButterfly(16, 8, block=2, n_factors=1, rank=0.5, gated=False, rngs=nnx.Rngs(0))
    assert layer.rank == 4
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 16)), jnp.float32)
    sparse = block_sparse_apply(x, layer.blocks[...], mask=np.array(layer.mask), out_features=8)
    np.testing.assert_allclose(layer(x), 0.5 * sparse + 0.5 * (x @ layer.u[...]) @ layer.v[...], rtol=1e-5, atol=1e-6)
    layer.u[...] = jnp.zeros_like(layer.u[...])
    np.testing.assert_allclose(layer(x), 0.5 * sparse, rtol=1e-5, atol=1e-6)
    gated = PixelatedButterfly(16, 8, block=2, n_factors=1, rank=4, rngs=nnx.Rngs(0))
    g = jax.nn.sigmoid(gated.gate(x))
    sparse = block_sparse_apply(x, gated.blocks[...], mask=np.array(gated.mask), out_features=8)
    np.testing.assert_allclose(gated(x), (1 - g) * sparse + g * ((x @ gated.u[...]) @ gated.v[...]), rtol=1e-4, atol=1e-5)
    # Sparse outputs vary as a dense layer's with the same bound: 16 inputs of variance 1/3 / 16.
    wide = PixelatedButterfly(512, 512, block=16, n_factors=2, rank=0, rngs=nnx.Rngs(1))
    y = wide(jnp.asarray(np.random.default_rng(1).normal(size=(200, 512)), jnp.float32))
    np.testing.assert_allclose(jnp.var(y), 1 / 3, rtol=0.05)


def _digits_accuracy(model, seed, steps=300):
    x, y = load_digits(return_X_y=True)
    x, y = jnp.asarray(x / 16, jnp.float32), jnp.asarray(y)
    order = np.random.default_rng(seed).permutation(len(x))
    train, test = order[:900], order[900:]
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    tx = optax.adam(3e-3)

    def loss(params):
        logits = nnx.merge(graph, params, rest)(x[train])
        return optax.softmax_cross_entropy_with_integer_labels(logits, y[train]).mean()

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    params = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), None, steps)[0][0])(params)
    return float(np.mean(np.argmax(nnx.merge(graph, params, rest)(x[test]), -1) == y[test]))


class _Network(nnx.Module):
    def __init__(self, hidden, rngs):
        self.first, self.hidden = nnx.Linear(64, 256, rngs=rngs), hidden
        self.last = nnx.Linear(256, 10, rngs=rngs)

    def __call__(self, x):
        return self.last(jax.nn.relu(self.hidden(jax.nn.relu(self.first(x)))))


@pytest.mark.slow
def test_a_butterfly_is_within_a_point_of_dense():
    gaps = []
    for seed in range(2):
        butterfly = PixelatedButterfly(256, 256, block=16, n_factors=3, rank=16, rngs=nnx.Rngs(seed))
        assert butterfly.density == 0.25
        dense = nnx.Linear(256, 256, rngs=nnx.Rngs(seed))
        accuracy = [_digits_accuracy(_Network(hidden, nnx.Rngs(seed)), seed, 200) for hidden in (butterfly, dense)]
        gaps.append(accuracy[0] - accuracy[1])
    assert np.mean(gaps) > -0.01


def test_templates_combine_and_grow():
    rng = np.random.default_rng(0)
    t0, t1 = (jnp.asarray(rng.normal(size=(2, 3, 4)), jnp.float32) for _ in range(2))
    c = jnp.asarray(rng.normal(size=(4, 2)), jnp.float32)
    m = [sum(float(c[i, t]) * np.asarray((t0, t1)[w][t]) for t in range(2)) for i, w in enumerate((0, 1, 0, 1))]
    np.testing.assert_allclose(combine(t0, c[0]), m[0], rtol=1e-5)
    np.testing.assert_allclose(grow_templates(t0, t1, c), np.block([[m[0], m[3]], [m[2], m[1]]]), rtol=1e-5)
    x = jnp.asarray(rng.normal(size=(5, 6)), jnp.float32)
    side = x @ grow_templates(t0, t1, c.at[2:].set(0))
    np.testing.assert_allclose(side, np.concatenate([x[:, :3] @ m[0], x[:, 3:] @ m[1]], 1), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(np.abs(orthogonal_coefficients(jnp.array([[1.0, 0.0]]), scale=3.0)), [0, 3], atol=1e-6)
    new = orthogonal_coefficients(c[:1])
    np.testing.assert_allclose([float(new @ c[0]), float(new @ new)], [0, 1], atol=1e-6)


def test_the_template_layer_grows():
    layer = TemplateLinear(8, 6, rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(5, 8)), jnp.float32)
    layer.grow("zero")
    side = jnp.concatenate([layer(x[:, :4], member=0), layer(x[:, 4:], member=1)], axis=-1)
    np.testing.assert_allclose(layer(x), side, rtol=1e-5, atol=1e-6)
    layer.grow()
    for i, j in ((2, 0), (3, 1)):
        assert abs(float(layer.coeffs[i][...] @ layer.coeffs[j][...])) < 1e-6
    layer.grow("copy")
    np.testing.assert_array_equal(layer.coeffs[3][...], layer.coeffs[1][...])
    before = np.asarray(layer.coeffs[2][...])
    layer.grow("random", key=jax.random.key(0), legacy=True)
    np.testing.assert_array_equal(layer.coeffs[2][...], before)
    assert not np.array_equal(layer.coeffs[3][...], layer.coeffs[1][...])
    first = TemplateLinear(8, 6, grows="out", rngs=nnx.Rngs(1))
    np.testing.assert_allclose(first(x), jnp.concatenate([first(x, member=0), first(x, member=1)], -1), rtol=1e-5, atol=1e-6)
    last = TemplateLinear(8, 6, grows="in", rngs=nnx.Rngs(2))
    last.bias[0][...] = jnp.ones(6)
    both = last(x[:, :4], member=0) + last(x[:, 4:], member=1)
    np.testing.assert_allclose(last(x), both, rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_a_grown_network_starts_ahead_of_one_from_scratch():
    class Growing(nnx.Module):
        def __init__(self, rngs):
            self.a = TemplateLinear(64, 64, grows="out", rngs=rngs)
            self.b = TemplateLinear(64, 10, grows="in", rngs=rngs)
            self.member = None

        def __call__(self, x):
            return self.b(jax.nn.relu(self.a(x, self.member)), self.member)

    def train(model, steps):
        x, y = load_digits(return_X_y=True)
        x, y = jnp.asarray(x / 16, jnp.float32), jnp.asarray(y)
        graph, params, rest = nnx.split(model, nnx.Param, ...)
        tx = optax.adam(3e-3)

        def step(carry, _):
            params, state = carry
            loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(nnx.merge(graph, p, rest)(x[:900]), y[:900]).mean()
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        params = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), None, steps)[0][0])(params)
        nnx.update(model, params)
        return float(np.mean(np.argmax(model(x[900:]), -1) == y[900:]))

    for seed in range(2):
        model = Growing(nnx.Rngs(seed))
        for model.member in (0, 1):
            train(model, 100)
        model.member = None
        model.a.grow(), model.b.grow()
        grown = train(model, 10)
        scratch = train(Growing(nnx.Rngs(seed + 10)), 10)
        assert grown > scratch + 0.05
