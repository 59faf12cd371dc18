"""Rounding to nearest, its clips, and what is restored after it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

rtn = jax.jit(rj.weights.round_to_nearest, static_argnames=("bits", "block_size", "clip"))
W = np.array([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 3])
RNG = np.random.default_rng(0)


def loop(w, bits, block_size, clip, c):
    flat = np.asarray(w, np.float64).ravel()
    size = flat.size if block_size is None or flat.size % block_size else block_size
    out = []
    for start in range(0, flat.size, size):
        block = flat[start : start + size]
        sizes = np.abs(block)
        every = np.sort(np.abs(flat))[::-1]
        q1, q3 = np.quantile(sizes, (0.25, 0.75))
        share = c if clip.endswith("percentage") else 0
        most = {
            "no": np.inf,
            "zscore": c * sizes.std(ddof=1) + sizes.mean(),
            "tensor_percentage": every[max(int(flat.size * share), 1) - 1],
            "block_percentage": np.sort(sizes)[::-1][max(int(size * share + 1), 1) - 1],
            "iqr": q3 + c * (q3 - q1),
        }[clip]
        block = np.clip(block, -most, most)
        low, high = block.min(), block.max()
        for value in block:
            out.append(
                value
                if high == low
                else np.round((value - low) * (2**bits - 1) / (high - low)) * (high - low) / (2**bits - 1) + low
            )
    return np.reshape(out, np.shape(w))


def test_published_values_and_idempotence(x64):
    np.testing.assert_allclose(rtn(W), [0, 0, 0.2, 0.4, 0.4, 0.4, 0.6, 3], atol=1e-12)
    clipped = rtn(W, clip="zscore", clip_threshold=1.0)
    want = [0, 0.1075214, 0.2150427, 0.3225641, 0.4300855, 0.5376068, 0.6451282, 1.6128205]
    np.testing.assert_allclose(clipped, want, atol=5e-8)
    restored = rj.weights.restore_super(clipped, W, (7,))
    np.testing.assert_allclose(restored, [*want[:7], 3], atol=5e-8)
    np.testing.assert_allclose(rtn(rtn(W)), rtn(W), rtol=1e-12)


@pytest.mark.parametrize(
    ("clip", "c"), [("no", 0.0), ("zscore", 1.2), ("tensor_percentage", 0.11), ("block_percentage", 0.2), ("iqr", 0.7)]
)
def test_equals_the_loop(x64, clip, c):
    w = RNG.normal(size=(6, 4))
    for block_size in (6, None) if clip != "no" else (6, 7):
        got = rtn(w, bits=3, block_size=block_size, clip=clip, clip_threshold=c)
        np.testing.assert_allclose(got, loop(w, 3, block_size, clip, c), rtol=1e-10, atol=1e-12)


def test_equal_entries_other_dtypes_and_values_that_floats_cannot_divide():
    w = np.float32([[2, 2, 2, 2], [0, 0, 0, 1e-42], [0, 1, 2, 4], [np.nan, 0, 1, 2]])
    got = rtn(w, bits=2, block_size=4)
    np.testing.assert_array_equal(got[:2], w[:2])
    np.testing.assert_allclose(got[2], [0, 4 / 3, 8 / 3, 4], rtol=1e-6)
    assert np.isnan(got[3]).any() and rtn(jnp.asarray(w[2], jnp.bfloat16)).dtype == jnp.bfloat16
    assert len(np.unique(rtn(RNG.normal(size=99).astype(np.float32), bits=3))) <= 8


def test_super_activation_is_set_aside(x64):
    x = RNG.normal(size=(5, 4))
    x[2, 1] = 400
    got = jax.jit(rj.weights.quantize_super_activation, static_argnames="bits")(x, jnp.array([2, 1]), bits=6)
    replaced = x.copy()
    replaced[2, 1] = np.sort(x.ravel())[(x.size - 1) // 2]
    want = loop(replaced, 6, None, "no", 0)
    want[2, 1] = 400
    np.testing.assert_allclose(got, want, rtol=1e-10, atol=1e-12)
    assert np.abs(got - x).max() < 0.05 < np.abs(rtn(x, bits=6) - x).max()


def test_restored_places_under_jit_and_their_gradients():
    restore = jax.jit(rj.weights.restore_super)
    w_hat, w = np.zeros((3, 2), np.float32), np.arange(1, 7, dtype=np.float32).reshape(3, 2)
    np.testing.assert_array_equal(restore(w_hat, w, jnp.array([[2, 1], [0, 0]])), [[1, 0], [0, 0], [0, 6]])
    np.testing.assert_array_equal(restore(w_hat, w, jnp.array([[-1, 0], [3, 1]])), w_hat)
    gradient = jax.grad(lambda w_hat, w: jnp.sum(rj.weights.restore_super(w_hat, w, (1, 0))), argnums=(0, 1))(w_hat, w)
    np.testing.assert_array_equal(gradient[1], [[0, 0], [1, 0], [0, 0]])
    np.testing.assert_array_equal(gradient[0], 1 - gradient[1])
