"""The nuclear norm: the sum of singular values, whose proximal step and constraint are in `regjax.weights.proximal.rank`."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding
from regjax.core.stacks import map_stacked
from regjax.core.types import Array, PyTree, Where
from regjax.weights import singular_values
from regjax.weights.matrix import kernel_matrix, kernels


def nuclear_norm(
    params: PyTree,
    *,
    mask: PyTree | None = None,
    where: Where = None,
    matrix_of: Callable[[tuple[str, ...], Any], Array] = kernel_matrix,
) -> Array:
    r"""The sum of singular values of every kernel: the convex penalty on the rank, as l1 is on the number of entries.

    Formula:
      .. math:: \sum_{kernels} \|W\|_*, \quad \|W\|_* = \sum_i \sigma_i(W), \quad \nabla \|W\|_* = U V^T

      over the nonzero singular values, so that the gradient is the smallest subgradient where the rank is not full, and 0
      at a kernel of zeros. With a mask: the norm of ``W`` with zeros outside it, of gradient ``mask * U V^T``. Gradient steps
      do not reach lower ranks exactly: `prox_nuclear` does.

    Args:
      params: a parameter tree; an array alone is a tree of one leaf.
      mask: None (default), or a tree of the structure of ``params``: booleans of a leaf's shape, True for the entries that
        count, or a single one for the whole leaf.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans.
      matrix_of: ``(path, leaf) -> [..., inputs, outputs]``, the leaf as a matrix or a stack of matrices, a reordering of
        its entries; default `kernel_matrix`.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if ``mask`` does not fit the parameters, ``where`` is none of these or chooses a leaf that is no float or
        has fewer than two dimensions, or ``matrix_of`` gives no matrices of all entries.

    Cost:
      A singular value decomposition of each kernel: some ``20 m n min(m, n)`` FLOPs, of little parallelism; kernels of equal
      shape go as one batch. No forward pass. On an Explicit mesh, sharded kernels are gathered. For large kernels decompose one
      of them per step, chosen by ``mask`` or ``where``, or use `spectral_penalty`. XLA does not count the decomposition.
      XLA at 8 times [512, 512]: at most 1,200 times the FLOPs and 8.3 times the bytes of a copy of its arguments, and 2.2 times
      its memory more.

    Use:
      For: sparsity budget, fine-tuning.
      When: Kernels, or the idle entries that `sara` trains (``mask`` from `small_weight_mask`), should be of low rank, and
        kernels are small enough for a decomposition in each step, or one random kernel is taken per step.
      Not when: Ranks have to fall exactly: `prox_nuclear`. Large kernels on accelerators: a decomposition does not parallelise;
        `OrderedDense` with `low_rank_group_lasso`, or decay of two factors, does the same with products.
      Badly with: Scale-invariant kernels before a normalisation, which shrink without losing rank; `orthonormality`, which
        wants all singular values at 1.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> value, gradient = jax.value_and_grad(rj.weights.nuclear_norm)(jnp.diag(jnp.array([3.0, 1.0])))
      >>> round(float(value), 4), [round(abs(float(x)), 4) for x in gradient.ravel()]
      (4.0, [1.0, 0.0, 0.0, 1.0])

    References:
      Fazel, Hindi and Boyd, A Rank Minimization Heuristic with Application to Minimum Order System Approximation, 2001, ACC.
      With a mask: Hu et al., SaRA: High-Efficient Diffusion Model Fine-tuning with Progressive Sparse Low-Rank Adaptation,
      2024, arXiv 2409.06633 (strength 5e-4, one random kernel per step). Singular values below ``max(m, n)`` times the
      precision of the largest, and at least 1e-12 of it, count as zero in the gradient: the published 1e-12 lies below the
      rounding errors of float32.
    """
    name = "weights.nuclear_norm"
    if mask is not None:
        params = _masked(name, mask, params)
    norms = map_stacked(_nuclear, [kernel.matrix for kernel in kernels(name, params, where, matrix_of)])
    return sum((jnp.sum(norm) for norm in norms), jnp.zeros((), jnp.float32))


def _masked(name: str, mask: Any, params: PyTree) -> PyTree:
    """The parameters with 0 outside the mask."""
    structure: Any = jax.tree.structure(params)
    if jax.tree.structure(mask) != structure:
        checks.fail(name, "mask", "None, or a tree of booleans of the structure of the parameters", mask)

    def leaf(entry: Any, x: Any) -> Any:
        if jnp.result_type(entry) != jnp.bool_ or jnp.shape(entry) not in ((), jnp.shape(x)):
            checks.fail(name, "mask", f"of booleans of shape {list(jnp.shape(x))}, or one for the leaf, at each leaf", entry)
        # Whole on every device, as the decomposition needs it.
        return jnp.where(sharding.replicate(jnp.asarray(entry)), sharding.replicate(jnp.asarray(x)), 0)

    return jax.tree.map(leaf, mask, params)


@jax.custom_jvp
def _nuclear(matrix: Array) -> Array:
    return jnp.sum(jnp.linalg.svd(matrix, compute_uv=False), axis=-1)


@_nuclear.defjvp
def _nuclear_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    (matrix,), (move,) = primals, tangents
    # <U V^T, W> is the norm and <U V^T, dW> its derivative; one decomposition gives both.
    polar, _ = singular_values.spectral_map("sign", matrix, jnp.zeros((), matrix.dtype))
    return jnp.sum(polar * matrix, (-1, -2)), jnp.sum(polar * move, (-1, -2))
