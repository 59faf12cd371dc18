"""Kernels as matrices: the matrix does to a flat input what the layer does to its input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import regjax as rj

RNG = np.random.default_rng(0)


@pytest.mark.parametrize(("channels", "groups", "outputs"), [(3, 1, 5), (4, 2, 6), (4, 4, 8)])
def test_a_convolution_is_its_matrix_on_each_patch(x64, channels, groups, outputs):
    kernel, patch = RNG.normal(size=(2, 3, channels // groups, outputs)), RNG.normal(size=(1, 2, 3, channels))
    want = jax.lax.conv_general_dilated(
        patch, kernel, (1, 1), "VALID", dimension_numbers=("NHWC", "HWIO", "NHWC"), feature_group_count=groups
    ).ravel()
    matrices = rj.weights.as_matrix(kernel, groups=groups)
    if groups == 1:
        got = patch.ravel() @ matrices
    else:
        inputs = np.split(patch, groups, axis=-1)
        got = jnp.concatenate([x.ravel() @ matrix for x, matrix in zip(inputs, matrices, strict=True)])
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_attention_kernels_and_the_names_that_tell_them():
    attention = nnx.MultiHeadAttention(2, 6, qkv_features=8, rngs=nnx.Rngs(0))
    matrices = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(nnx.state(attention, nnx.Param))[0]:
        if leaf.ndim > 2:
            names = rj.core.trees.path_names(path)
            matrices[names[-2]] = rj.weights.kernel_matrix(names, leaf)
    assert {name: matrix.shape for name, matrix in matrices.items()} == {
        "query": (6, 8),
        "key": (6, 8),
        "value": (6, 8),
        "out": (8, 6),
    }
    x, y = RNG.normal(size=6), RNG.normal(size=(2, 4))
    np.testing.assert_allclose((attention.query(x) - attention.query.bias).ravel(), x @ matrices["query"], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(attention.out(y) - attention.out.bias, y.ravel() @ matrices["out"], rtol=1e-4, atol=1e-5)


def test_a_dense_kernel_is_itself_and_a_one_dimensional_convolution_has_its_outputs_last():
    kernel = RNG.normal(size=(4, 3))
    np.testing.assert_array_equal(rj.weights.as_matrix(kernel), kernel.astype(np.float32))
    path = ("key", "conv", "kernel")
    assert rj.weights.kernel_matrix(path, jnp.ones((5, 4, 3))).shape == (20, 3)
