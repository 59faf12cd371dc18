"""Ordered low-rank layers: truncated products, factorisation, and the modules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import regjax as rj

RNG = np.random.default_rng(0)
X, U, V, BIAS = (RNG.normal(size=shape) for shape in ((6, 5), (5, 4), (4, 7), (7,)))
ALIVE = np.array([True, False, True, True])


def product(x, u, v, bias, ranks):
    """The product through some ranks, written as loops."""
    y = np.zeros((x.shape[0], v.shape[1]))
    for b in range(x.shape[0]):
        for j in range(v.shape[1]):
            y[b, j] = bias[j] + sum(x[b, i] * u[i, r] * v[r, j] for r in ranks for i in range(x.shape[1]))
    return y


def test_dense_equals_the_reference_at_every_rank_in_one_trace(x64):
    traces = []

    @jax.jit
    def dense(rank, alive):
        traces.append(1)
        return rj.layers.ordered_dense(X, U, V, BIAS, rank=rank, alive=alive)

    for alive in (np.ones(4, bool), ALIVE, np.zeros(4, bool)):
        for rank in range(5):
            ranks = np.flatnonzero(alive)[:rank]
            np.testing.assert_allclose(dense(rank, alive), product(X, U, V, BIAS, ranks), atol=1e-12)
    assert len(traces) == 1
    np.testing.assert_allclose(rj.layers.ordered_dense(X, U, V, BIAS), product(X, U, V, BIAS, range(4)), atol=1e-12)
    np.testing.assert_allclose(rj.layers.ordered_dense(X[0], U, V, alive=ALIVE), X[0] @ (U * ALIVE) @ V, atol=1e-12)


def test_published_numbers():
    u, v, x = jnp.array([[3.0, 0.0], [4.0, 1.0]]), jnp.array([[1.0, 2.0], [2.0, 0.0]]), jnp.array([1.0, -1.0])
    assert rj.layers.ordered_dense(x, u, v, rank=1).tolist() == [-1.0, -2.0]
    assert rj.layers.ordered_dense(x, u, v, rank=2).tolist() == [-3.0, -2.0]


def test_fractions_round_up_but_for_rounding_errors():
    # The latent of rank i is 1 and its row counts it: the output is how many ranks were used.
    for size in (3, 49, 3000):
        u, v = jnp.ones((1, size)), jnp.ones((size, 1))
        used = jax.jit(lambda f, u=u, v=v: rj.layers.ordered_dense(jnp.ones(1), u, v, fraction=f)[0])
        for k in (0, 1, 2, size // 3, size - 1, size):
            assert int(used(k / size)) == k, (k, size)
            if k < size:
                assert int(used((k + 0.1) / size)) == k + 1
    alive = np.arange(49) % 2 == 0
    u = jnp.ones((1, 49))
    assert int(rj.layers.ordered_dense(jnp.ones(1), u, u.T, fraction=7 / 25, alive=alive)[0]) == 7


def test_unused_ranks_have_gradient_zero_and_used_ones_their_own(x64):
    weight = RNG.normal(size=(6, 7))
    loss = lambda u, v, **options: jnp.sum(weight * rj.layers.ordered_dense(X, u, v, **options))
    got = jax.grad(loss, (0, 1))(U, V, rank=2, alive=ALIVE)
    want = jax.grad(lambda u, v: jnp.sum(weight * (X @ u @ v)), (0, 1))(U[:, [0, 2]], V[[0, 2]])
    np.testing.assert_allclose(got[0][:, [0, 2]], want[0], atol=1e-12)
    np.testing.assert_allclose(got[1][np.array([0, 2])], want[1], atol=1e-12)
    assert not got[0][:, [1, 3]].any() and not got[1][np.array([1, 3])].any()


@pytest.mark.parametrize(
    ("shape", "kernel", "options"),
    [
        ((2, 6, 5, 3), (3, 2, 3, 4), {"strides": (2, 1), "padding": "SAME"}),
        ((2, 6, 5, 3), (2, 2, 3, 4), {"padding": ((1, 0), (0, 2)), "dilation": 2}),
        ((2, 7, 3), (3, 3, 2), {"padding": "VALID"}),
        ((1, 3, 4, 3, 2), (2, 2, 2, 2, 3), {}),
    ],
)
def test_convolution_equals_the_dense_kernel_of_its_factors(x64, shape, kernel, options):
    x, dense = RNG.normal(size=shape), RNG.normal(size=kernel)
    u, v = rj.layers.svd_factorize(dense)
    assert u.shape == (*kernel[:-1], v.shape[0]) and v.shape[0] == min(np.prod(kernel[:-1]), kernel[-1])
    np.testing.assert_allclose(u @ v, dense, atol=1e-12)
    bias, ranks = RNG.normal(size=kernel[-1]), v.shape[0]
    layer = nnx.Conv(
        kernel[-2],
        kernel[-1],
        kernel[:-2],
        options.get("strides", 1),
        padding=options.get("padding", "SAME"),
        kernel_dilation=options.get("dilation", 1),
        param_dtype=jnp.float64,
        rngs=nnx.Rngs(0),
    )
    layer.bias.set_value(jnp.asarray(bias))

    def plain(kernel):
        here = nnx.clone(layer)
        here.kernel.set_value(kernel)
        return here(x)

    truncated = np.stack([np.asarray(u)[..., :r] @ np.asarray(v)[:r] for r in range(ranks + 1)])
    ordered = jax.vmap(lambda r: rj.layers.ordered_conv(x, u, v, bias, rank=r, **options))
    got = jax.jit(ordered)(jnp.arange(ranks + 1))
    want = jax.jit(lambda kernels: [plain(kernel) for kernel in kernels])(list(truncated))
    np.testing.assert_allclose(got, np.stack(want), atol=1e-11)


def test_factorisation_truncates_to_the_best_approximation(x64):
    kernel = RNG.normal(size=(8, 5))
    u, v = rj.layers.svd_factorize(kernel)
    singular = np.linalg.svd(kernel, compute_uv=False)
    np.testing.assert_allclose(rj.weights.rank_importance(u, v, hierarchical=False), singular, rtol=1e-10)
    # Balanced factors, with the larger entry of each column positive.
    np.testing.assert_allclose(np.linalg.norm(u, axis=0), np.linalg.norm(v, axis=1), rtol=1e-10)
    assert all(column[np.argmax(np.abs(column))] > 0 for column in np.asarray(u).T)
    for r in range(6):
        error = np.linalg.norm(u[:, :r] @ v[:r] - kernel)
        assert error == pytest.approx(np.sqrt(np.sum(singular[r:] ** 2)), abs=1e-10)


def test_low_precision_keeps_its_dtype_and_has_a_gradient():
    low = [jnp.asarray(a, jnp.bfloat16) for a in (X, U, V, BIAS)]
    got = rj.layers.ordered_dense(*low, rank=3)
    assert got.dtype == jnp.bfloat16
    wide = rj.layers.ordered_dense(*(a.astype(jnp.float32) for a in low), rank=3)
    np.testing.assert_allclose(got.astype(jnp.float32), wide, atol=0.03 * float(jnp.max(jnp.abs(wide))))
    gradient = jax.grad(lambda u: rj.layers.ordered_dense(low[0], u, low[2]).astype(jnp.float32).sum())(low[1])
    assert gradient.dtype == jnp.bfloat16 and bool(jnp.all(jnp.isfinite(gradient)))


def test_modules_start_as_their_kernel_and_follow_call_view_and_mask():
    linear = nnx.Linear(5, 4, rngs=nnx.Rngs(3))
    layer = rj.layers.OrderedDense(5, 4, kernel_init=lambda *_: linear.kernel[...], rngs=nnx.Rngs(0))
    x = jnp.asarray(X, jnp.float32)
    np.testing.assert_allclose(layer(x), linear(x), atol=1e-5)
    want = {r: x @ layer.u[...][:, :r] @ layer.v[...][:r] for r in range(5)}
    np.testing.assert_allclose(layer(x, rank=2), want[2], atol=1e-5)
    view = nnx.view(layer, rank=3)
    np.testing.assert_allclose(view(x), want[3], atol=1e-5)
    np.testing.assert_allclose(view(x, fraction=0.25), want[1], atol=1e-5)
    np.testing.assert_allclose(nnx.view(view, fraction=1.0)(x), want[4], atol=1e-5)
    np.testing.assert_allclose(layer(x), want[4], atol=1e-5)
    layer.alive.set_value(jnp.array([True, False, True, True]))
    np.testing.assert_allclose(layer(x, rank=1), want[1], atol=1e-5)
    np.testing.assert_allclose(layer(x), want[4] - want[2] + want[1], atol=1e-5)
    assert {path for path, _ in nnx.to_flat_state(nnx.state(layer, nnx.Param))} == {("u",), ("v",), ("bias",)}
    assert rj.layers.OrderedDense(5, 4, use_bias=False, rngs=nnx.Rngs(0)).bias is None
    half = rj.layers.OrderedDense(5, 4, dtype=jnp.bfloat16, rngs=nnx.Rngs(0))
    assert half(x).dtype == jnp.bfloat16 and half.u.dtype == jnp.float32
