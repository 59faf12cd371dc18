"""Lipschitz constants of layers: a penalty on those above one, and kernels rescaled to be at most one."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.stacks import stacked
from regjax.core.types import Array, PyTree, Strength, Where
from regjax.weights.matrix import kernel_matrix, matrix
from regjax.weights.spectral import gram


def lipschitz_penalty(
    params: PyTree,
    input_sizes: Any,
    *,
    n_iter: int = 6,
    threshold: Strength = 1.0,
    where: Where = None,
    matrix_of: Callable[[tuple[str, ...], Any], Array] = kernel_matrix,
) -> Array:
    r"""The sum of the layers' Lipschitz bounds that are above a threshold: only layers that stretch are pressed down.

    Formula:
      .. math:: \sum_l b_l \, 1[b_l > threshold]

      b of a convolution is that of `gram_iteration_conv` at the size of its input, b of other kernels that of
      `gram_iteration`. The value jumps at the threshold; the gradient is that of b above it, and 0 below.

    Args:
      params: a parameter tree, or a list of kernels.
      input_sizes: the spatial size of each convolution's input, a number or one for each axis. Either a mapping from paths
        to sizes, ``{"encoder/conv1": 32}``, whose paths may name subtrees, or a sequence with one entry for each chosen
        leaf in tree order, None for kernels that are no convolutions. A mapping may leave out kernels of up to three
        dimensions, which then are no convolutions.
      n_iter: the number of squarings, at least 0; default 6. The authors raise it with training: 3, and 4, 5, 6 from epochs
        125, 150 and 175 of 200.
      threshold: the bound above which a layer counts, at least 0; default 1.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans; all
        of two or more dimensions. The authors penalise convolutions alone.
      matrix_of: ``(path, leaf) -> [..., inputs, outputs]``, the matrix, or matrices, of a kernel without a size; default
        `kernel_matrix`.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if a convolution has no size or a wrong one, a path names no chosen leaf, ``threshold`` is negative or not
        finite, ``n_iter`` is negative, or ``where`` or ``matrix_of`` is wrong.

    Cost:
      That of the bounds; no forward pass. Matrices of equal shape go through one batched call, convolutions one by one, so
      that only one has its frequencies in memory. On an Explicit mesh, sharded kernels are gathered.
      XLA at [512, 512]: at most 28,000 times the FLOPs and 670 times the bytes of a copy of its arguments, and 33 times its
      memory more.

    Use:
      For: adversarial inputs.
      When: Networks of stride-1 convolutions and dense layers whose Lipschitz product should be small and honest. At the
        published 0.1 the digits CNN about kept its accuracy with a far smaller Jacobian; at 0.3 it lost some.
      Not when: Every layer must end at the threshold: in our study they stayed above it; `spectral_rescaling` enforces 1. Large
        inputs or channels make each step dear: use `spectral_norm_penalty`.
      Badly with: Batch normalisation, whose scales are not counted and stretch again; loss curves, since the value jumps at the
        threshold; `spectral_norm_penalty` beside it; strides and groups.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> params = {"conv": {"kernel": jnp.ones((3, 3, 1, 1))}, "dense": {"kernel": 0.5 * jnp.eye(2)}}
      >>> round(float(rj.weights.lipschitz_penalty(params, {"conv": 8})), 4)
      9.0

    References:
      Delattre et al., Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration, 2023,
      arXiv 2305.16173 (strength 0.1).
    """
    name = "weights.lipschitz_penalty"
    checks.integer(name, "n_iter", n_iter, low=0)
    checks.number(name, "threshold", threshold, low=0.0)
    checks.function(name, "matrix_of", matrix_of)
    mask = jax.tree.leaves(trees.select(name, params, where))
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    chosen = [(trees.path_names(path), leaf) for (path, leaf), use in zip(flat, mask, strict=True) if use]
    bounds, matrices = [], []
    for (path, leaf), size in zip(chosen, _sizes(name, input_sizes, chosen), strict=True):
        if not trees.is_float(leaf) or jnp.ndim(leaf) < 2:
            checks.fail(name, "where", "a choice of floating-point leaves of two or more dimensions", leaf)
        leaf = jnp.asarray(leaf)
        if size is None:
            matrices.append(matrix(name, matrix_of, path, leaf))
            continue
        if not 3 <= leaf.ndim <= 5:
            checks.fail(name, "input_sizes", f"None for {'/'.join(path)}, which is no convolution", size)
        sizes = gram.axis_sizes(name, "input_sizes", size, leaf.shape[:-2])
        bounds.append(gram.conv_bound(sharding.replicate(leaf).astype(trees.accumulator(leaf)), sizes, n_iter))
    bounds += [gram.bound(stack, n_iter) for _, (stack,) in stacked(matrices)]
    counted = (jnp.where(b > jnp.asarray(threshold, b.dtype), b, 0) for b in bounds)
    return sum((jnp.sum(b) for b in counted), jnp.zeros((), jnp.float32))


def spectral_rescaling(kernel: Any, *, n_iter: int = 1) -> Array:
    r"""A kernel whose output filters are divided so that the layer changes no distance by more than a factor of one.

    Formula:
      .. math:: K_o / t_o, \quad t_o = \left( \sum_{p, o'} |K^{(t)}_{p, o', o}| \right)^{2^{-t}}

      with the correlations :math:`K^{(t)}` of `zero_padding_bound`, for a dense kernel the Gram matrix
      :math:`(W^T W)^{2^{t-1}}`. The largest singular value is then at most 1, whatever the padding, and orthogonal filters
      reach 1 each. Filters of zeros stay.

    Args:
      kernel: float ``[in, out]``, or a convolution ``[..., in, out]`` with one to three spatial axes; stride 1, no groups.
      n_iter: the number of correlations, at least 1; default 1. The largest t falls with it.

    Returns:
      The rescaled kernel, in its dtype.

    Raises:
      ValueError: if ``kernel`` is no such array or ``n_iter`` no positive integer.

    Cost:
      That of `zero_padding_bound`, for dense kernels ``n_iter`` Gram matrices of the outputs; no forward pass.
      XLA at [3, 3, 64, 64]: at most 890 times the FLOPs and 70 times the bytes of a copy of its arguments, and 5.6 times its
      memory more.

    Use:
      For: adversarial inputs.
      When: Layers must be 1-Lipschitz by construction: apply it to the kernel in every forward pass, with activations and
        pooling of constant at most 1, and read certificates off the logit margins.
      Not when: Accuracy on clean data is all that counts, or cost does: each forward pass computes correlations of all filters.
      Badly with: Batch normalisation and residual sums, which break the bound; weight decay, as the scale of the kernel is
        free; strides and groups; plain cross-entropy without a temperature, which cannot reach its margins.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> [round(float(x), 4) for x in rj.weights.spectral_rescaling(jnp.array([[3.0, 4.0]]))[0]]
      [0.6547, 0.7559]

    References:
      Delattre et al., Spectral Norm of Convolutional Layers with Circular and Zero Paddings, 2024, arXiv 2402.00240.
      Prach and Lampert, Almost-Orthogonal Layers for Efficient General-Purpose Lipschitz Networks, 2022, arXiv 2208.03160
      (``n_iter=1``).
    """
    name = "weights.spectral_rescaling"
    kernel = checks.floating(name, "kernel", kernel, min_ndim=2)
    checks.integer(name, "n_iter", n_iter, low=1)
    if kernel.ndim > 5:
        checks.fail(name, "kernel", "a dense kernel or one of one to three spatial axes", kernel)
    wide = kernel.astype(trees.accumulator(kernel))
    factors = gram.filter_bounds(sharding.replicate(wide), n_iter)
    return (wide / jnp.where(factors > 0, factors, 1)).astype(kernel.dtype)


def _sizes(name: str, input_sizes: Any, chosen: list[tuple[tuple[str, ...], Any]]) -> list[Any]:
    """The size of each chosen leaf's input, None for those that are no convolutions."""
    if isinstance(input_sizes, Mapping):
        found: list[Any] = [None] * len(chosen)
        named = {tuple(str(path).strip("/").split("/")): size for path, size in input_sizes.items()}
        given = [False] * len(chosen)
        for names in sorted(named, key=len):  # the longer, the more special
            places = [i for i, (path, _) in enumerate(chosen) if path[: len(names)] == names]
            if chosen and not places:
                checks.fail(name, "input_sizes", "made of paths of chosen leaves", "/".join(names))
            for i in places:
                found[i], given[i] = named[names], True
        for (path, leaf), has in zip(chosen, given, strict=True):
            if jnp.ndim(leaf) > 3 and not has:
                checks.fail(name, "input_sizes", "with a size for every convolution", f"none for {'/'.join(path)}")
        return found
    if not isinstance(input_sizes, list | tuple) or (chosen and len(input_sizes) != len(chosen)):
        checks.fail(name, "input_sizes", f"a mapping from paths to sizes, or {len(chosen)} sizes", input_sizes)
    return list(input_sizes)[: len(chosen)]
