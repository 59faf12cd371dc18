"""Kernels as matrices [inputs, outputs]: what singular values, Gram matrices and spectral norms are taken of."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, PyTree, Where

MatrixOf = Callable[[tuple[str, ...], Any], Array]

# Flax names of the attention projections whose kernel is [in, heads, head_dim]; the output projection is [heads, head_dim, out].
_TO_HEADS = ("query", "key", "value")


def as_matrix(kernel: Any, *, groups: int = 1, output_axes: int = 1) -> Array:
    r"""A kernel as the matrix of its linear map, one row for each input and one column for each output.

    Formula:
      Dense ``[in, out]`` stays; a convolution ``[..., in, out]`` becomes ``[prod(...) * in, out]`` (the map from one patch
      to one position, of which the norm of the whole convolution is within a factor of the number of kernel positions);
      attention ``[in, heads, head_dim]`` with ``output_axes=2`` becomes ``[in, heads * head_dim]``, and the projection
      back ``[heads, head_dim, out]`` becomes ``[heads * head_dim, out]``. With groups, each block of outputs is a matrix of
      its own.

    Args:
      kernel: ``[..., out]`` of two or more dimensions; the input of a grouped convolution is that of one group.
      groups: the number of groups of a convolution, ``feature_group_count``; default 1. The outputs of a depthwise
        convolution are as many groups as it has channels.
      output_axes: how many trailing axes are outputs, default 1; 2 for the query, key and value kernels of attention.

    Returns:
      The matrix ``[inputs, outputs]``, or ``[groups, inputs, outputs / groups]`` where ``groups > 1``, in the dtype of
      ``kernel``. Rows are in the kernel's own order (position, then channel).

    Raises:
      ValueError: if the kernel has fewer than two dimensions, ``output_axes`` leaves no input axis, or ``groups`` does not
        divide the outputs.

    Cost:
      A reshape; a transposition where there are groups.
      XLA at [3, 3, 64, 64]: at most 0 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      Part of: `kernel_matrix`, `orthonormality`, `spectral_penalty`, `nuclear_norm`.
      When: In a ``matrix_of`` of your own: grouped or depthwise convolutions, attention kernels under other names, layers
        stacked for a scan.
      Badly with: Claims about the norm of a whole convolution: that of the reshaped kernel may lie below it, as it did for
        random kernels in our Lipschitz study. Use `gram_iteration_conv`.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.weights.as_matrix(jnp.ones((3, 3, 8, 16))).shape
      (72, 16)
      >>> rj.weights.as_matrix(jnp.ones((3, 3, 1, 8)), groups=8).shape
      (8, 9, 1)
      >>> rj.weights.as_matrix(jnp.ones((32, 4, 8)), output_axes=2).shape
      (32, 32)

    References:
      Yoshida and Miyato, Spectral Norm Regularization for Improving the Generalizability of Deep Learning, 2017,
      arXiv 1705.10941 (the reshaped convolution).
    """
    name = "weights.as_matrix"
    kernel = checks.array(name, "kernel", kernel, min_ndim=2)
    checks.integer(name, "output_axes", output_axes, low=1, high=kernel.ndim - 1)
    checks.integer(name, "groups", groups, low=1)
    inputs, outputs = (math.prod(part) for part in (kernel.shape[:-output_axes], kernel.shape[-output_axes:]))
    if outputs % groups:
        checks.fail(name, "groups", f"a divisor of the {outputs} outputs", groups)
    if groups == 1:
        return kernel.reshape(inputs, outputs)
    # Output o of a grouped convolution belongs to group o // (outputs / groups).
    return jnp.swapaxes(kernel.reshape(inputs, groups, outputs // groups), 0, 1)


def kernel_matrix(path: tuple[str, ...], leaf: Any) -> Array:
    r"""The matrix of a kernel by its place in a parameter tree: `as_matrix` with what the names tell.

    Formula:
      ``as_matrix(leaf, output_axes=2)`` for kernels of three dimensions in a module named query, key or value, as in
      Flax's attention; ``as_matrix(leaf)`` for all others.

    Args:
      path: the names from the root to the leaf, ``("attention", "query", "kernel")``.
      leaf: the kernel, of two or more dimensions.

    Returns:
      The matrix ``[inputs, outputs]``.

    Raises:
      ValueError: if the kernel has fewer than two dimensions.

    Cost:
      A reshape.
      XLA at [512, 8, 64]: at most 0 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its memory
      more.

    Use:
      Part of: `as_matrix`, `orthonormality`, `spectral_penalty`, `nuclear_norm`.
      When: It is the default ``matrix_of``: call it within your own for the leaves that need no special case.
      Badly with: Grouped convolutions, scanned layers, and attention whose projections are not called query, key or value: it
        cannot tell them apart.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.weights.kernel_matrix(("attention", "query", "kernel"), jnp.ones((32, 4, 8))).shape
      (32, 32)
      >>> rj.weights.kernel_matrix(("attention", "out", "kernel"), jnp.ones((4, 8, 32))).shape
      (32, 32)

    References:
      None: the default of every ``matrix_of=`` argument. A tree cannot tell groups or layers stacked for a scan: write
      ``matrix_of=lambda path, leaf: as_matrix(leaf, groups=8)`` for those, or return a stack of matrices ``[..., in, out]``.
    """
    leaf = checks.array("weights.kernel_matrix", "leaf", leaf, min_ndim=2)
    to_heads = leaf.ndim == 3 and len(path) > 1 and path[-2] in _TO_HEADS
    return as_matrix(leaf, output_axes=2 if to_heads else 1)


class Kernel(NamedTuple):
    """A chosen leaf: its place in the flat tree, its path, itself, and its matrix, or matrices, in float32 or better."""

    place: int
    path: tuple[str, ...]
    leaf: Array
    matrix: Array

    def restored(self, matrix_of: MatrixOf, values: Array) -> Array:
        """Values in the places of the matrix as a leaf of the kernel's shape, dtype and sharding."""
        # A view only moves entries, so its transpose is its inverse.
        wide = sharding.replicate(self.leaf).astype(values.dtype)
        back = jax.vjp(lambda leaf: matrix_of(self.path, leaf), wide)[1]
        return sharding.placed_like(back(values)[0].astype(self.leaf.dtype), self.leaf)


def kernels(function: str, params: PyTree, where: Where, matrix_of: Any) -> list[Kernel]:
    """The leaves that ``where`` names, as matrices, in tree order."""
    checks.function(function, "matrix_of", matrix_of)
    mask = jax.tree.leaves(trees.select(function, params, where))
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    chosen = []
    for index, ((path, leaf), use) in enumerate(zip(flat, mask, strict=True)):
        if use:
            if not trees.is_float(leaf) or (matrix_of is kernel_matrix and jnp.ndim(leaf) < 2):
                checks.fail(function, "where", "a choice of floating-point leaves of two or more dimensions", leaf)
            names, leaf = trees.path_names(path), jnp.asarray(leaf)
            chosen.append(Kernel(index, names, leaf, matrix(function, matrix_of, names, leaf)))
    return chosen


def matrix(function: str, matrix_of: MatrixOf, path: tuple[str, ...], leaf: Array) -> Array:
    """The matrix, or matrices, of a leaf in float32 or better; whole on every device of an Explicit mesh."""
    x = checks.array(function, "matrix_of", matrix_of(path, sharding.replicate(leaf)), min_ndim=2)
    if x.size != leaf.size:
        checks.fail(function, "matrix_of", f"a view of all {leaf.size} entries as matrices", x)
    return x.astype(trees.accumulator(x))


@jax.custom_jvp
def gram_matrix(x: Array) -> Array:
    """The Gram matrices of the columns of real or complex ``x [..., m, n]``."""
    return jnp.einsum("...mi,...mj->...ij", jnp.conj(x), x, precision="highest")


@gram_matrix.defjvp
def _gram_matrix_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    # The two terms are each other's adjoint: one product less backward, and one array less to keep.
    half = jnp.einsum("...mi,...mj->...ij", jnp.conj(primals[0]), tangents[0], precision="highest")
    return gram_matrix(primals[0]), half + jnp.conj(jnp.swapaxes(half, -1, -2))
