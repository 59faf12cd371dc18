"""DropConnect against its loop, the published moments, and its masks' statistics."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

import regjax as rj

RNG = np.random.default_rng(0)
X, W, B = RNG.normal(size=(3, 2, 4)), RNG.normal(size=(4, 5)), RNG.normal(size=5)
KEEP = RNG.random((4, 5)) < 0.6
KEEPS = RNG.random((3, 4, 5)) < 0.6
KEY = jax.random.key(0)


def reference(x, kernel, keep, bias, rate):
    """The layer on rows x[b] of any rank, with one mask or one per example."""
    out = np.zeros((*x.shape[:-1], kernel.shape[1]))
    for index in np.ndindex(x.shape[:-1]):
        mask = keep[index[0]] if keep.ndim == 3 else keep
        for j in range(kernel.shape[1]):
            for i in range(kernel.shape[0]):
                if mask[i, j] and rate < 1:
                    out[(*index, j)] += x[(*index, i)] * kernel[i, j] / (1 - rate)
            out[(*index, j)] += 0 if bias is None else bias[j]
    return out


@pytest.mark.parametrize("keep", [KEEP, KEEPS], ids=["batch", "example"])
def test_core_equals_its_reference_with_gradients(x64, keep):
    weights = RNG.normal(size=(3, 2, 5))

    def total(x, kernel, bias, rate):
        y = rj.layers.apply_drop_connect(x, kernel, keep, bias, rate=rate)
        return jnp.sum(weights * y), y

    gradients, got = jax.jit(jax.grad(total, (0, 1, 2, 3), has_aux=True))(X, W, B, 0.3)
    np.testing.assert_allclose(got, reference(X, W, keep, B, 0.3), rtol=1e-12)
    without = rj.layers.apply_drop_connect(X, W, keep, rate=0.3)
    np.testing.assert_allclose(without, reference(X, W, keep, None, 0.3), rtol=1e-12)
    masks = np.broadcast_to(keep, (3, 4, 5))
    by_kernel = np.einsum("bti,btj,bij->ij", X, weights, masks) / 0.7
    np.testing.assert_allclose(gradients[0], np.einsum("btj,ij,bij->bti", weights, W, masks) / 0.7, rtol=1e-11)
    np.testing.assert_allclose(gradients[1], by_kernel, rtol=1e-11)
    np.testing.assert_array_equal(np.asarray(gradients[1])[~masks.any(0)], 0)  # a weight without a part sends nothing back
    np.testing.assert_allclose(gradients[2], weights.sum((0, 1)), rtol=1e-12)
    np.testing.assert_allclose(gradients[3], np.sum(by_kernel * W) / 0.7, rtol=1e-11)


def test_a_single_vector():
    got = rj.layers.apply_drop_connect(X[0, 0], W, KEEP, B, rate=0.3)
    np.testing.assert_allclose(got, reference(X[0], W, KEEP, B, 0.3)[0], rtol=1e-5)


@pytest.mark.parametrize("per_example", [False, True])
def test_rate_0_is_the_plain_layer_and_rate_1_the_bias(per_example):
    x, kernel, bias = (jnp.asarray(a, jnp.float32) for a in (X, W, B))

    @jax.jit
    def call(rate):
        total = lambda *a: jnp.sum(rj.layers.drop_connect(KEY, *a[:3], rate=a[3], per_example=per_example))
        y = rj.layers.drop_connect(KEY, x, kernel, bias, rate=rate, per_example=per_example)
        return y, jax.grad(total, (0, 1, 2, 3))(x, kernel, bias, rate)

    plain = jax.jit(lambda: x @ kernel + bias)()
    np.testing.assert_allclose(call(0.0)[0], plain, rtol=1e-5, atol=1e-6)
    for rate in (0, jnp.zeros(())):
        off = rj.layers.drop_connect(None, x, kernel, bias, rate=0.5, deterministic=True)
        np.testing.assert_array_equal(rj.layers.drop_connect(KEY, x, kernel, bias, rate=rate), off)
    y, gradients = call(1.0)
    np.testing.assert_array_equal(y, np.broadcast_to(B.astype(np.float32), y.shape))
    for gradient in (*gradients[:2], gradients[3]):
        np.testing.assert_array_equal(gradient, 0)


def test_published_moments(x64):
    x, kernel = np.array([1.0, 2.0]), np.array([[1.0, 2.0], [3.0, -1.0]])
    mean, variance = rj.layers.drop_connect_moments(x, kernel, rate=0.3)
    np.testing.assert_allclose(mean, [7, 0], atol=1e-15)
    np.testing.assert_allclose(variance, [15.85714286, 3.42857143], atol=5e-9)
    np.testing.assert_allclose(variance, 0.3 / 0.7 * x**2 @ kernel**2, rtol=1e-12)
    mean, variance = rj.layers.drop_connect_moments(x, kernel, np.ones(2), rate=0.3, inverted=False)
    np.testing.assert_allclose(mean, [5.9, 1], rtol=1e-14)
    np.testing.assert_allclose(variance, 0.21 * x**2 @ kernel**2, rtol=1e-12)
    for inverted in (True, False):
        mean, variance = rj.layers.drop_connect_moments(x, kernel, np.ones(2), rate=1.0, inverted=inverted)
        np.testing.assert_array_equal([mean, variance], [[1, 1], [0, 0]])


def test_moments_are_those_of_all_masks(x64):
    """The mean and the variance over every mask of a layer of four weights, weighted by its probability."""
    x, kernel, rate = RNG.normal(size=2), RNG.normal(size=(2, 2)), 0.3
    for inverted in (True, False):
        first, second = np.zeros(2), np.zeros(2)
        for bits in np.ndindex(2, 2, 2, 2):
            mask = np.array(bits).reshape(2, 2)
            chance = np.prod(np.where(mask, 1 - rate, rate))
            y = x @ (kernel * mask) / (1 - rate if inverted else 1)
            first, second = first + chance * y, second + chance * y**2
        mean, variance = rj.layers.drop_connect_moments(x, kernel, rate=rate, inverted=inverted)
        np.testing.assert_allclose(mean, first, rtol=1e-12)
        np.testing.assert_allclose(variance, second - first**2, rtol=1e-12)


def test_masks_and_gaussian_samples_have_those_moments():
    n, rate = 40_000, 0.3
    x, kernel, bias = (jnp.asarray(a, jnp.float32) for a in (X[0, 0], W, B))
    layer = functools.partial(rj.layers.drop_connect, rate=rate, per_example=True)
    masked = np.asarray(jax.jit(lambda: layer(KEY, jnp.broadcast_to(x, (n, 4)), kernel, bias))(), np.float64)
    sampled = jax.jit(lambda: rj.layers.drop_connect_samples(KEY, x, kernel, bias, rate=rate, num_samples=n))()
    mean, variance = map(np.asarray, rj.layers.drop_connect_moments(x, kernel, bias, rate=rate))
    for y in (masked, np.asarray(sampled, np.float64)):
        assert np.all(np.abs(y.mean(0) - mean) < 5 * np.sqrt(variance / n))
        np.testing.assert_allclose(y.var(0), variance, rtol=0.05)
        # Units have weights of their own: their outputs are uncorrelated.
        assert np.all(np.abs(np.corrcoef(y.T) - np.eye(5)) < 5 / np.sqrt(n) * 1.2)
    # The paper's rule on rectified outputs: close to their mean over masks where many weights add up, here roughly.
    np.testing.assert_allclose(np.maximum(sampled, 0).mean(0), np.maximum(masked, 0).mean(0), atol=0.25)


def test_masks_are_of_the_batch_or_of_each_example():
    draw = lambda per_example: rj.layers.drop_connect(
        KEY, jnp.ones((5000, 1, 1)), jnp.ones((1, 8)), rate=0.25, per_example=per_example
    )
    one, many = np.asarray(draw(False))[:, 0], np.asarray(draw(True))[:, 0]
    assert np.all(one == one[0])
    assert abs((many == 0).mean() - 0.25) < 5 * np.sqrt(0.25 * 0.75 / many.size)
    np.testing.assert_allclose(many[many != 0], 4 / 3, rtol=1e-6)
    assert abs(np.corrcoef(many[:-1, 0], many[1:, 0])[0, 1]) < 5 / np.sqrt(5000)
    # Positions of one example share its mask.
    rows = rj.layers.drop_connect(KEY, jnp.ones((4, 6, 3)), jnp.ones((3, 8)), rate=0.5, per_example=True)
    assert np.all(rows == rows[:, :1]) and len(np.unique(rows[:, 0], axis=0)) == 4


def test_samples_at_rate_0_are_the_plain_layer_with_finite_gradients():
    x, kernel = jnp.asarray(X, jnp.float32), jnp.asarray(W, jnp.float32)

    def total(x, rate):
        y = rj.layers.drop_connect_samples(KEY, x, kernel, rate=rate, num_samples=2)
        return jnp.sum(y), y

    (_, y), gradients = jax.jit(jax.value_and_grad(total, (0, 1), has_aux=True))(x, 0.0)
    np.testing.assert_allclose(y, np.stack([x @ kernel] * 2), rtol=1e-5, atol=1e-6)
    assert all(np.all(np.isfinite(g)) for g in gradients)


def test_mixed_precision():
    x, kernel = jnp.ones((2, 300), jnp.bfloat16), jnp.full((300, 2), 1.0, jnp.bfloat16)
    assert rj.layers.drop_connect(KEY, x, kernel, rate=0.5).dtype == jnp.bfloat16
    assert rj.layers.drop_connect(KEY, x, kernel.astype(jnp.float32), rate=0.5).dtype == jnp.float32
    assert rj.layers.drop_connect_moments(x, kernel, rate=0.5)[1].dtype == jnp.float32
    # bfloat16 sums of ones stop at 256.
    np.testing.assert_allclose(np.float32(rj.layers.drop_connect(None, x, kernel, rate=0.5, deterministic=True)), 300, rtol=0.01)


def test_module():
    x = jnp.asarray(X, jnp.float32)
    layer = rj.layers.DropConnect(4, 5, 0.3, bias_init=nnx.initializers.ones_init(), rngs=nnx.Rngs(0, dropout=1))
    assert {path for path, _ in nnx.to_flat_state(nnx.state(layer, nnx.Param))} == {("kernel",), ("bias",)}
    twin = nnx.Linear(4, 5, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(layer.kernel[...], twin.kernel[...])
    want = rj.layers.drop_connect(KEY, x, layer.kernel[...], jnp.ones(5), rate=0.3)
    np.testing.assert_array_equal(layer(x, rngs=KEY), want)
    np.testing.assert_allclose(layer(x, rngs=KEY, rate=0.0), twin(x) + 1, rtol=1e-5)
    np.testing.assert_allclose(nnx.view(layer, deterministic=True)(x), twin(x) + 1, rtol=1e-5)
    call = nnx.jit(lambda layer, x: layer(x))
    first, second = call(layer, x), call(layer, x)
    assert not np.array_equal(first, second) and layer.rngs.count[...] == 2
    bare = rj.layers.DropConnect(4, 5, use_bias=False, per_example=True, param_dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert bare.bias is None and bare.kernel[...].dtype == jnp.bfloat16
    flat = bare(jnp.ones((6, 4)))
    assert len(np.unique(flat, axis=0)) == 6

    graph, params, rest = nnx.split(layer, nnx.Param, ...)
    gradient = jax.jit(jax.grad(lambda p, key: jnp.sum(nnx.merge(graph, p, rest)(x, rngs=key))))(params, KEY)
    assert np.all(np.isfinite(gradient["kernel"][...])) and np.asarray(gradient["kernel"][...]).any()


def test_sharded_batches_and_kernels():
    x, kernel = jnp.asarray(RNG.normal(size=(8, 4)), jnp.float32), jnp.asarray(RNG.normal(size=(4, 6)), jnp.float32)
    call = jax.jit(lambda key, x, k: [rj.layers.drop_connect(key, x, k, rate=0.5, per_example=each) for each in (False, True)])
    want = call(KEY, x, kernel)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
        with jax.set_mesh(mesh):
            rows = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
            columns = jax.device_put(kernel, jax.NamedSharding(mesh, jax.P(None, "model")))
            got = call(KEY, rows, columns)
        for a, b in zip(got, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)
            assert a.sharding.is_equivalent_to(jax.NamedSharding(mesh, jax.P("data", "model")), 2)
