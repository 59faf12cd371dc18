"""Layers of masked weights against dense layers with the mask written out, their stages, and a search over them."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import regjax as rj

RNG = np.random.default_rng(0)
SCORES, WEIGHTS = nnx.PathContains("scores"), nnx.All(nnx.Param, nnx.Not(nnx.PathContains("scores")))


def kept(scores, density):
    """The mask of the largest scores, by a stable sort."""
    flat = np.abs(scores).ravel()
    mask = np.zeros(flat.size)
    mask[np.argsort(-flat, kind="stable")[: flat.size - math.floor((1 - density) * flat.size + 1e-9)]] = 1
    return mask.reshape(scores.shape)


def test_output_and_gradients_are_those_of_the_masked_product(x64):
    x, w, scores, g = (RNG.normal(size=s) for s in ((5, 2, 6), (6, 4), (6, 4), (5, 2, 4)))
    y, pull_back = jax.vjp(lambda *a: rj.layers.sparse_apply(*a, density=0.3), x, w, scores)
    by_x, by_w, by_scores = pull_back(g)
    mask = kept(scores, 0.3)
    assert mask.sum() == 24 - int(0.7 * 24)
    np.testing.assert_allclose(y, x @ (w * mask), rtol=1e-12)
    np.testing.assert_allclose(by_x, g @ (w * mask).T, rtol=1e-12)
    to_kernel = np.einsum("abi,abo->io", x, g)
    np.testing.assert_allclose(by_w, to_kernel * mask, rtol=1e-12)
    np.testing.assert_allclose(by_scores, to_kernel * w * np.sign(scores), rtol=1e-12)
    np.testing.assert_array_equal(rj.layers.sparse_apply(x, w, scores, density=1.0), jnp.asarray(x) @ w)


def test_convolutions_are_those_of_flax_with_the_masked_kernel():
    x = jnp.asarray(RNG.normal(size=(2, 7, 6, 4)), jnp.float32)
    options = {"strides": (2, 1), "padding": ((1, 0), (2, 2)), "kernel_dilation": (1, 2), "feature_group_count": 2}
    layer = rj.layers.SparseConv(4, 6, (3, 2), density=0.4, rngs=nnx.Rngs(0), **options)
    layer.scores.set_value(RNG.normal(size=layer.kernel.shape).astype(np.float32))
    layer.bias.set_value(jnp.arange(6.0))
    plain = nnx.Conv(4, 6, (3, 2), rngs=nnx.Rngs(1), **options)
    mask = kept(np.asarray(layer.scores[...]), 0.4)
    np.testing.assert_array_equal(layer.mask(), mask)
    plain.kernel.set_value(layer.kernel[...] * mask)
    plain.bias.set_value(layer.bias[...])
    dense = nnx.clone(plain)
    dense.kernel.set_value(layer.kernel[...])
    run = jax.jit(lambda layer, plain, dense, x: (layer(x), plain(x), nnx.view(layer, density=1.0)(x), dense(x)))
    got, want, all_used, all_there = run(layer, plain, dense, x)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(all_used, all_there, rtol=1e-5, atol=1e-5)
    one = nnx.eval_shape(lambda x: rj.layers.SparseConv(4, 2, 3, density=0.5, rngs=nnx.Rngs(0))(x), x[0])
    assert one.shape == (7, 6, 2)


def test_first_masks_are_of_the_largest_weights_and_stages_train_their_part():
    layer = rj.layers.SparseLinear(6, 5, density=0.2, rngs=nnx.Rngs(0))
    kernel = np.asarray(layer.kernel[...])
    np.testing.assert_allclose(layer.scores[...], np.abs(kernel) / np.abs(kernel).max(), rtol=1e-6)
    np.testing.assert_array_equal(layer.mask(), kept(kernel, 0.2))
    x, target = jnp.asarray(RNG.normal(size=(8, 6)), jnp.float32), jnp.ones((8, 5))

    def gradients(wrt, density=None):
        loss = lambda layer: jnp.mean((nnx.view(layer, density=density)(x) - target) ** 2)
        found = jax.jit(nnx.grad(loss, argnums=nnx.DiffState(0, wrt)))(layer)
        return {name: np.asarray(g) != 0 for name, g in nnx.to_pure_dict(found).items()}

    first = gradients(WEIGHTS, density=1.0)
    assert set(first) == {"kernel", "bias"} and first["kernel"].all()
    layer.kernel.set_value(layer.kernel[...][::-1])
    layer.reset_scores()
    np.testing.assert_array_equal(layer.mask(), kept(kernel[::-1], 0.2))
    second = gradients(SCORES)
    assert set(second) == {"scores"} and second["scores"].all()
    third = gradients(nnx.Param)
    assert set(third) == {"kernel", "scores", "bias"}
    np.testing.assert_array_equal(third["kernel"], layer.mask())
    layer.kernel.set_value(jnp.zeros((6, 5)))
    layer.reset_scores()
    assert bool(jnp.isfinite(layer(x)).all()) and int(layer.mask().sum()) == 6


def test_density_may_be_traced_and_is_that_of_the_call_then_the_view_then_the_layer():
    layer = rj.layers.SparseLinear(6, 5, density=0.2, use_bias=False, rngs=nnx.Rngs(0))
    x = jnp.ones((2, 6))
    run = jax.jit(lambda layer, d: (layer(x, density=d), nnx.view(layer, density=d)(x), layer(x)))
    called, viewed, own = run(layer, 0.6)
    want = lambda d: x @ (layer.kernel[...] * kept(np.asarray(layer.kernel[...]), d))
    np.testing.assert_allclose(called, want(0.6), rtol=1e-6)
    np.testing.assert_array_equal(viewed, called)
    np.testing.assert_allclose(own, want(0.2), rtol=1e-6)


def test_search_sends_each_gradient_to_its_part():
    fit = lambda weights, arch, batch, scale=1.0: scale * jnp.sum((batch @ weights["w"] * jax.nn.softmax(arch)) ** 2)
    other = lambda weights, arch, batch, scale=1.0: scale * jnp.sum(jnp.cos(batch @ weights["w"] + arch))
    params = rj.objectives.SearchParams({"w": jnp.asarray(RNG.normal(size=(3, 2)), jnp.float32)}, jnp.array([0.3, -0.2]))
    train, valid = (jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32) for _ in range(2))
    value, grads = jax.jit(jax.value_and_grad(rj.objectives.dass_objective(fit, other)))(params, train, valid)
    np.testing.assert_allclose(value, fit(*params, train) + other(*params, valid), rtol=1e-6)
    np.testing.assert_allclose(grads.weights["w"], jax.grad(fit)(params.weights, params.arch, train)["w"], rtol=1e-6)
    np.testing.assert_allclose(grads.arch, jax.grad(other, argnums=1)(*params, valid), rtol=1e-6)
    with_aux = rj.objectives.dass_objective(*(lambda *a, f=f, **k: (f(*a, **k), k["scale"]) for f in (fit, other)), has_aux=True)
    doubled, aux = with_aux(params, train, valid, scale=2.0)
    np.testing.assert_allclose(doubled, 2 * value, rtol=1e-6)
    assert aux == (2.0, 2.0)


@pytest.mark.slow
def test_search_with_masks_prefers_the_wide_sparse_operation_at_equal_non_zeros():
    """Digits: 16 dense hidden units against 64 of which a quarter of the weights is used, in the published order, four seeds."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = jnp.asarray(x[order] / 16 - 0.3, jnp.float32), jnp.asarray(y[order], jnp.int32)
    parts = (x[:700], y[:700]), (x[700:1400], y[700:1400])
    sizes = {"dense": ((64, 16), (16, 10)), "sparse": ((64, 64), (64, 10))}
    relative = lambda w: jnp.abs(w) / jnp.abs(w).max()

    def candidate(weights, name, x, density):
        product = lambda x, i: rj.layers.sparse_apply(x, weights["w"][name][i], weights["s"][name][i], density=density)
        return product(jax.nn.relu(product(x, 0)), 1)

    def loss(weights, arch, batch, density):
        share = jax.nn.softmax(arch)
        logits = share[0] * candidate(weights, "dense", batch[0], 1.0) + share[1] * candidate(
            weights, "sparse", batch[0], density
        )
        return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()

    loss_fn = rj.objectives.dass_objective(loss, loss)

    def stage(params, key, steps, density, rates):
        """Steps of Adam; ``rates`` of 0 hold the weights, the scores or the architecture."""
        tx = optax.adam(5e-3)

        def step(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (64,), 0, 700)
            train, valid = ((a[rows], b[rows]) for a, b in parts)
            updates, state = tx.update(jax.grad(loss_fn)(params, train, valid, density=density), state)
            scaled = lambda name, tree: jax.tree.map(lambda u: rates[name] * u, tree)
            weights = {name: scaled(name, tree) for name, tree in updates.weights.items()}
            updates = rj.objectives.SearchParams(weights, scaled("arch", updates.arch))
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), jax.random.split(key, steps))[0][0]

    @jax.jit
    @jax.vmap
    def search(key):
        first, *keys = jax.random.split(key, 4)
        he = jax.nn.initializers.he_normal()
        w = {name: [he(jax.random.fold_in(first, i), s) for i, s in enumerate(shapes)] for name, shapes in sizes.items()}
        weights = {"w": w, "s": jax.tree.map(relative, w)}
        params = rj.objectives.SearchParams(weights, jnp.zeros(2))
        params = stage(params, keys[0], 100, 1.0, {"w": 1, "s": 0, "arch": 0})
        scores = jax.tree.map(relative, params.weights["w"])
        params = params._replace(weights={**params.weights, "s": scores})
        params = stage(params, keys[1], 60, 0.25, {"w": 0, "s": 1, "arch": 0})
        params = stage(params, keys[2], 100, 0.25, {"w": 1, "s": 0, "arch": 2})
        return jax.nn.softmax(params.arch)

    shares = search(jax.random.split(jax.random.key(0), 4))
    assert bool((shares[:, 1] > 0.5).all())
