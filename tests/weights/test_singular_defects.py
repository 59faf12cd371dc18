"""Singular defects: linear maps against NumPy on column vectors, and the directions of high-norm tokens."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import regjax as rj

RNG = np.random.default_rng(0)
attention, fit, directions = (
    rj.weights.attention_linear_map,
    rj.weights.linearize_mlp,
    rj.weights.singular_defect_directions,
)


def test_maps_equal_the_branch_on_column_vectors(x64):
    dim, heads, width = 5, 2, 3
    value, proj = RNG.normal(size=(dim, heads, width)), RNG.normal(size=(heads, width, dim))
    gamma, scale, x = RNG.normal(size=dim), RNG.normal(size=dim), RNG.normal(size=dim)
    # In the layout of column vectors: [out, in].
    v = np.array([[value[d, e // width, e % width] for d in range(dim)] for e in range(heads * width)])
    p = np.array([[proj[e // width, e % width, d] for e in range(heads * width)] for d in range(dim)])
    want = x + scale * (p @ (v @ (gamma * (x - x.mean()))))
    np.testing.assert_allclose(attention(value, proj, gamma, scale) @ x, want, rtol=1e-12)
    # Kernels that are matrices, and scales that are one number or none.
    flat = value.reshape(dim, -1), proj.reshape(-1, dim)
    np.testing.assert_allclose(attention(*flat, gamma, scale), attention(value, proj, gamma, scale), rtol=1e-12)
    np.testing.assert_allclose(attention(*flat, None, 0.1), attention(*flat, np.ones(dim), np.full(dim, 0.1)), rtol=1e-12)
    np.testing.assert_array_equal(attention(*flat, gamma, np.zeros(dim)), np.eye(dim))


def test_map_is_that_of_attention_among_equal_tokens():
    layer = nnx.MultiHeadAttention(2, 6, use_bias=False, decode=False, rngs=nnx.Rngs(0))
    token = RNG.normal(size=6).astype(np.float32)
    token -= token.mean()
    tokens = jnp.broadcast_to(token, (1, 4, 6))
    want = tokens + layer(tokens)
    got = attention(layer.value.kernel[...], layer.out.kernel[...], np.ones(6, np.float32)) @ token
    np.testing.assert_allclose(want[0], np.broadcast_to(got, (4, 6)), rtol=1e-5, atol=1e-6)


def test_linear_fit_equals_least_squares():
    key, kernel = jax.random.key(0), RNG.normal(size=(4, 3)).astype(np.float32)
    gated = lambda x: jax.nn.silu(x @ kernel) * (x @ kernel[::-1]) + 0.5
    got = fit(gated, key, 4, num_samples=230, chunk_size=50)
    # The same samples, the last chunk cut.
    x = np.concatenate([jax.random.normal(k, (50, 4)) for k in jax.random.split(key, 5)])[:230]
    want = np.linalg.lstsq(x.astype(float), np.asarray(gated(x), float), rcond=None)[0].T
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)


def test_linear_fit_in_the_limit_and_as_the_map_of_an_mlp():
    n = 20_000
    got = fit(jax.nn.relu, jax.random.key(1), 2, num_samples=n)
    # E[x relu(x)] = 1/2, and the variance of x relu(x) is 5/4; between coordinates 0, and at most 1.
    assert np.all(np.abs(got - np.eye(2) / 2) < 5 * np.sqrt(1.25 / n))
    first, last = RNG.normal(size=(2, 3)).astype(np.float32), RNG.normal(size=(3, 2)).astype(np.float32)
    linear = fit(lambda x: x @ first, jax.random.key(2), 2, num_samples=100)
    np.testing.assert_allclose(linear, first.T, rtol=1e-4, atol=1e-5)
    x = np.array([0.3, -1.2], np.float32)
    want = x + ((x - x.mean()) @ first) @ last
    np.testing.assert_allclose(attention(linear.T, last) @ x, want, rtol=1e-4, atol=1e-5)


def test_directions_are_left_singular_vectors_of_the_product_so_far(x64):
    blocks = np.eye(6) + 0.4 * RNG.normal(size=(5, 6, 6))
    got = directions(blocks)
    np.testing.assert_allclose(directions(list(blocks)), got, rtol=1e-12)
    np.testing.assert_allclose(directions(1e200 * blocks), got, rtol=1e-9)
    product = np.eye(6)
    for block, vector in zip(blocks, np.asarray(got), strict=True):
        product = block @ product
        left = np.linalg.svd(product)[0][:, 0]
        assert abs(left @ vector) == pytest.approx(1.0, abs=1e-9)
        assert vector[np.argmax(np.abs(vector))] > 0


def test_directions_predict_the_tokens_of_high_norm():
    dim, blocks = 24, []
    left, right = (np.linalg.qr(RNG.normal(size=(dim, dim)))[0] for _ in range(2))
    for block in range(6):
        kernels = [0.3 / np.sqrt(dim) * RNG.normal(size=(dim, dim)) for _ in range(2)]
        dominating = 2.5 * np.outer(left[:, 0] if block % 2 else right[:, 0], right[:, 0] if block % 2 else left[:, 0])
        blocks.append(attention(kernels[0].T + dominating.T, np.eye(dim)) @ attention(kernels[1].T, np.eye(dim)))
    tokens = RNG.normal(size=(200, dim))
    for block in blocks:
        tokens = tokens @ np.asarray(block).T
    highest = tokens[np.argmax(np.linalg.norm(tokens, axis=1))]
    assert abs(highest @ directions(blocks)[-1]) > 0.95 * np.linalg.norm(highest)


@pytest.mark.slow
def test_repairing_singular_values_lowers_the_norm_of_defective_tokens():
    dim, depth, side = 16, 3, 12
    bad = np.linalg.qr(RNG.normal(size=(dim, 1)))[0][:, 0]
    kernels = 0.15 * RNG.normal(size=(depth, dim, dim)) / np.sqrt(dim) + 1.5 * np.outer(bad, bad)
    left, sizes, right = np.linalg.svd(kernels, full_matrices=False)
    tokens = RNG.normal(size=(8, side, side, dim))
    tokens -= 0.98 * (tokens @ bad)[..., None] * bad
    for image in tokens:
        for row, column in RNG.choice(np.arange(1, side - 1), size=(4, 2)):
            image[row, column] += 3 * bad

    def run(eps, tokens):
        for block in range(depth):
            tokens = tokens + tokens @ (left[block] * (sizes[block] + eps[block])) @ right[block]
        return tokens

    # The branch x K on rows is K^T on columns, without a normalisation to centre it.
    direction = directions(np.eye(dim) + np.swapaxes(kernels, 1, 2))[-1]
    loss = lambda eps: jnp.mean(jax.vmap(lambda x: rj.features.neighbor_smooth_loss(x, direction)[0])(run(eps, tokens)))
    ratio = lambda norms: np.mean([n.max() / np.median(n) for n in norms])

    @jax.jit
    def train(eps):
        step = lambda carry, _: ((carry[0] - 0.005 * carry[1], 0.9 * carry[1] + jax.grad(loss)(carry[0])), None)
        return jax.lax.scan(step, (eps, jnp.zeros_like(eps)), length=200)[0][0]

    eps = train(jnp.zeros((depth, dim)))
    before, after = (ratio(np.linalg.norm(run(e, tokens), axis=-1).reshape(8, -1)) for e in (0 * eps, eps))
    assert before > 5 and after < before / 2, (before, after)
