"""A folded adapter computes what the two branches do."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

fold = rj.weights.fold_parallel_adapter
RNG = np.random.default_rng(0)


def convolve(x, kernel, stride, padding):
    spatial = "HW"[: kernel.ndim - 2]
    names = (f"N{spatial}C", f"{spatial}IO", f"N{spatial}C")
    return jax.lax.conv_general_dilated(x, kernel, (stride,) * len(spatial), padding, dimension_numbers=names)


@pytest.mark.parametrize(("shape", "stride"), [((3, 3), 1), ((3, 5), 2), ((3,), 1)])
def test_one_convolution_equals_two(x64, shape, stride):
    kernel, adapter = RNG.normal(size=(*shape, 2, 4)), RNG.normal(size=(1,) * len(shape) + (2, 4))
    x = jnp.asarray(RNG.normal(size=(2, *(6, 8)[: len(shape)], 2)))
    centred = [(n // 2, n // 2) for n in shape]
    two = convolve(x, kernel, stride, centred) + convolve(x, adapter, stride, "VALID")
    np.testing.assert_allclose(convolve(x, fold(kernel, adapter), stride, centred), two, rtol=1e-10, atol=1e-12)
    if stride == 1:
        np.testing.assert_allclose(convolve(x, fold(kernel, adapter), 1, "SAME"), two, rtol=1e-10, atol=1e-12)


def test_other_taps_and_the_dtype_stay():
    kernel, adapter = RNG.normal(size=(3, 3, 2, 4)), RNG.normal(size=(1, 1, 2, 4))
    got = fold(jnp.asarray(kernel, jnp.bfloat16), jnp.asarray(adapter, jnp.float32))
    assert got.dtype == jnp.bfloat16
    want = np.asarray(jnp.asarray(kernel, jnp.bfloat16), np.float32)
    want[1, 1] += np.asarray(adapter[0, 0], np.float32)
    np.testing.assert_array_equal(got, jnp.asarray(want, jnp.bfloat16))
