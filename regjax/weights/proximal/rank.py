"""Steps on singular values: soft-thresholded, clipped, or all set to one.

A projection is the proximal operator of its constraint for every step size: each takes the place of a ``prox(params, step)``,
and the step has no effect.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array, PyTree, Strength, Where
from regjax.weights import singular_values
from regjax.weights.matrix import kernel_matrix
from regjax.weights.proximal.sets import ignored_step


def prox_nuclear(
    params: PyTree,
    step: Strength,
    *,
    where: Where = None,
    matrix_of: Callable[[tuple[str, ...], Any], Array] = kernel_matrix,
) -> PyTree:
    r"""Singular value thresholding: every singular value of a kernel shrinks by the step, and smaller ones become zero.

    Formula:
      .. math:: W \leftarrow U \max(S - t, 0) V^T, \quad W = U S V^T

      the proximal operator of `nuclear_norm`.

    Args:
      params: a parameter tree.
      step: t, the step size times the strength of the penalty; a number or traced scalar, at least 0. 0 changes nothing.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans.
      matrix_of: ``(path, leaf) -> [..., inputs, outputs]``, the leaf as a matrix or a stack of matrices, a reordering of
        its entries; default `kernel_matrix`.

    Returns:
      The tree with the chosen leaves replaced, in their dtypes and shapes; the others are unchanged. Its derivative is
      finite at repeated and zero singular values.

    Raises:
      ValueError: if ``step`` is negative or not finite, ``where`` is none of these or chooses a leaf that is no matrix, or
        ``matrix_of`` gives no matrices of all entries.

    Cost:
      A singular value decomposition of each kernel, some ``20 m n min(m, n)`` FLOPs; kernels of equal shape go as one batch. On
      an Explicit mesh, sharded kernels are gathered. XLA does not count the decomposition.
      XLA at 8 times [512, 512]: at most 1,200 times the FLOPs and 6.1 times the bytes of a copy of its arguments, and 1.7 times
      its memory more.

    Use:
      For: sparsity budget, compute budget.
      When: Kernels or matrices to complete should come out of exactly low rank, and are small enough for a decomposition per
        step, or one every few steps with the strength raised alike.
      Not when: Large layers: train factors with `OrderedDense` instead. Convolutions, whose reshaped kernel's rank is that of a
        spatial filter followed by a 1x1 layer only.
      Badly with: Adam, which knows nothing of singular directions; `nuclear_norm` in the loss, the same twice;
        `orthonormality`; kernels before a normalisation, whose scale is free.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> moved = rj.weights.prox_nuclear({"kernel": jnp.diag(jnp.array([3.0, 1.0]))}, 1.5)["kernel"]
      >>> [abs(round(float(x), 4)) for x in moved.ravel()]
      [1.5, 0.0, 0.0, 0.0]

    References:
      Cai, Candes and Shen, A Singular Value Thresholding Algorithm for Matrix Completion, 2010, arXiv 0810.3286. Parikh and
      Boyd, Proximal Algorithms, 2014, Foundations and Trends in Optimization 1.
    """
    name = "weights.prox_nuclear"
    checks.number(name, "step", step, low=0.0)

    def shrunk(matrix: Array) -> Array:
        t = jnp.asarray(step, matrix.dtype)
        return jnp.where(t > 0, singular_values.spectral_map("soft", matrix, t)[0], matrix)

    return singular_values.map_matrices(shrunk, name, params, where, matrix_of)


def project_spectral_ball(
    params: PyTree,
    step: Any = None,
    *,
    radius: Strength,
    where: Where = None,
    matrix_of: Callable[[tuple[str, ...], Any], Array] = kernel_matrix,
) -> PyTree:
    r"""The nearest kernels whose spectral norm is at most the radius: larger singular values are clipped.

    Formula:
      .. math:: W \leftarrow U \min(S, r) V^T, \quad W = U S V^T

    Args:
      params: a parameter tree.
      step: accepted and without effect, so that the projection serves in ``gradients.proximal_step``; default None.
      radius: r, a number or traced scalar, at least 0.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans.
      matrix_of: ``(path, leaf) -> [..., inputs, outputs]``, the leaf as a matrix or a stack of matrices, a reordering of
        its entries; default `kernel_matrix`.

    Returns:
      The tree with the chosen leaves replaced, in their dtypes and shapes; the others are unchanged, and so, bit for bit,
      are kernels within the ball.

    Raises:
      ValueError: if ``radius`` is negative or not finite, ``where`` is none of these or chooses a leaf that is no matrix,
        or ``matrix_of`` gives no matrices of all entries.

    Cost:
      A singular value decomposition of each kernel, some ``20 m n min(m, n)`` FLOPs; kernels of equal shape go as one batch. On
      an Explicit mesh, sharded kernels are gathered. XLA does not count the decomposition.
      XLA at 8 times [512, 512]: at most 1,200 times the FLOPs and 16 times the bytes of a copy of its arguments, and 2.2 times
      its memory more.

    Use:
      For: adversarial inputs, unstable training.
      When: Each dense layer needs a hard limit on how it stretches its input, with smaller singular values left alone; kernels
        within the ball are not touched.
      Not when: Large kernels, for each costs a decomposition per step: `spectral_normalize` takes two products with a vector. A
        certificate for convolutions: the reshaped kernel's norm is no bound of theirs.
      Badly with: Normalisation layers behind the kernel, which stretch again; `spectral_normalize` or `project_stiefel` on the
        same leaves; a radius near 1 at the classifier, which limits the logits of cross-entropy.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> params = {"kernel": jnp.diag(jnp.array([3.0, 0.5]))}
      >>> moved = rj.weights.project_spectral_ball(params, radius=1.0)["kernel"]
      >>> [abs(round(float(x), 4)) for x in moved.ravel()]
      [1.0, 0.0, 0.0, 0.5]

    References:
      Parikh and Boyd, Proximal Algorithms, 2014, Foundations and Trends in Optimization 1. Sedghi, Gupta and Long, The Singular
      Values of Convolutional Layers, 2019, arXiv 1805.10408, clip those of the whole convolution; here it is the reshaped
      kernel.
    """
    name = "weights.project_spectral_ball"
    ignored_step(name, step)
    checks.number(name, "radius", radius, low=0.0)

    def clipped(matrix: Array) -> Array:
        r = jnp.asarray(radius, matrix.dtype)
        new, s = singular_values.spectral_map("clip", matrix, r)
        return jnp.where(jnp.max(s, axis=-1, initial=0)[..., None, None] > r, new, matrix)

    return singular_values.map_matrices(clipped, name, params, where, matrix_of)


def project_stiefel(
    params: PyTree,
    step: Any = None,
    *,
    method: str = "svd",
    n_steps: int = 30,
    where: Where = None,
    matrix_of: Callable[[tuple[str, ...], Any], Array] = kernel_matrix,
) -> PyTree:
    r"""The nearest kernels with orthonormal columns, or rows where a kernel has more columns than rows.

    Formula:
      .. math:: W \leftarrow U V^T, \quad W = U S V^T

      By the decomposition, or by the Newton-Schulz iteration, which is matrix products only:

      .. math:: X_0 = W / \|W^T W\|_F^{1/2}, \quad X \leftarrow \frac{3}{2} X - \frac{1}{2} X X^T X

      Each step multiplies small singular values by 1.5 and then squares the distance of large ones to 1.

    Args:
      params: a parameter tree.
      step: accepted and without effect, so that the projection serves in ``gradients.proximal_step``; default None.
      method: ``"svd"`` (default) or ``"newton_schulz"``.
      n_steps: of the iteration, default 30, at least 1: enough for singular values down to 1e-4 of the largest. Smaller
        ones end below 1, and zeros stay zeros; the decomposition sets them all to 1.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans.
      matrix_of: ``(path, leaf) -> [..., inputs, outputs]``, the leaf as a matrix or a stack of matrices, a reordering of
        its entries; default `kernel_matrix`.

    Returns:
      The tree with the chosen leaves replaced, in their dtypes and shapes; the others are unchanged.

    Raises:
      ValueError: if ``method`` is unknown, ``n_steps`` is no positive integer, ``where`` is none of these or chooses a leaf
        that is no matrix, or ``matrix_of`` gives no matrices of all entries.

    Cost:
      A singular value decomposition of each kernel, some ``20 m n min(m, n)`` FLOPs, or ``4 m n min(m, n)`` in matrix products
      for each step of the iteration, which an accelerator does far faster. Kernels of equal shape go as one batch. On an
      Explicit mesh, sharded kernels are gathered. Of the decomposition XLA counts nothing, of the iteration one step.
      XLA at 8 times [512, 512]: at most 1,200 times the FLOPs and 6.1 times the bytes of a copy of its arguments, and 1.7 times
      its memory more.

    Use:
      For: unstable training, collapsed features.
      When: Kernels must stay exactly orthonormal: recurrent matrices, deep plain networks, subspaces or whitening maps; or
        once, as an initialisation. ``newton_schulz`` is the choice on accelerators.
      Not when: Near orthonormal is enough: `orthonormality` is a penalty of one Gram matrix. Kernels that must shrink, select
        inputs or scale the logits.
      Badly with: Weight decay, undone at once; momentum and Adam, whose moments point off the set; `prune` and other sparsity;
        rank-deficient kernels with ``newton_schulz``, where zeros stay zeros.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> params = {"kernel": jnp.array([[2.0, 0.0], [0.0, 0.5], [0.0, 0.0]])}
      >>> moved = rj.weights.project_stiefel(params)["kernel"]
      >>> [abs(round(float(x), 4)) for x in moved.ravel()]
      [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]

    References:
      Absil, Mahony and Sepulchre, Optimization Algorithms on Matrix Manifolds, 2008 (the polar factor). Bjorck and Bowie, An
      Iterative Algorithm for Computing the Best Estimate of an Orthogonal Matrix, 1971, SIAM Journal on Numerical Analysis 8
      (the iteration).
    """
    name = "weights.project_stiefel"
    ignored_step(name, step)
    checks.choice(name, "method", method, ("svd", "newton_schulz"))
    checks.integer(name, "n_steps", n_steps, low=1)

    def orthonormal(matrix: Array) -> Array:
        if method == "svd":
            return singular_values.spectral_map("polar", matrix, jnp.zeros((), matrix.dtype))[0]
        wide = matrix.shape[-2] < matrix.shape[-1]
        x = _newton_schulz(jnp.swapaxes(matrix, -1, -2) if wide else matrix, n_steps)
        return jnp.swapaxes(x, -1, -2) if wide else x

    return singular_values.map_matrices(orthonormal, name, params, where, matrix_of)


def _newton_schulz(x: Array, n_steps: int) -> Array:
    product = lambda a, b: jnp.matmul(a, b, precision="highest")
    gram = lambda x: product(jnp.swapaxes(x, -1, -2), x)
    # Scaled by the largest entry first: the fourth powers in the norm of the Gram matrix under- and overflow early.
    size = jnp.max(jnp.abs(x), axis=(-1, -2), keepdims=True, initial=0)
    x = x / jnp.where(size > 0, size, 1)
    # Between the largest singular value and, for n equal ones, n^(1/4) times it: the tighter the bound, the fewer the steps.
    squares = jnp.sum(jnp.square(gram(x)), axis=(-1, -2), keepdims=True)
    x = x / jnp.where(squares > 0, squares, 1) ** 0.25
    return jax.lax.fori_loop(0, n_steps, lambda _, x: 1.5 * x - 0.5 * product(x, gram(x)), x)
