"""Penalties that make the columns, or rows, of kernels orthonormal, by the difference of a Gram matrix from the identity."""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.stacks import stacked
from regjax.core.types import Array, PyTree, Where
from regjax.weights.matrix import gram_matrix, kernel_matrix, kernels

SIDES, KINDS = ("columns", "rows", "auto"), ("so", "dso", "mc")


def orthonormality(
    params: PyTree,
    *,
    where: Where = None,
    side: str = "columns",
    matrix_of: Callable[[tuple[str, ...], Any], Array] = kernel_matrix,
) -> Array:
    r"""Half the squared distance of every kernel's Gram matrix from the identity: filters become orthonormal.

    Formula:
      .. math:: \frac{1}{2} \sum_l \|W_l^T W_l - I\|_F^2

      The gradient is :math:`2 W (W^T W - I)`. It stands in place of weight decay. Where a kernel has fewer inputs than
      outputs the columns cannot be orthonormal, and the smallest value is half the difference; there the gradient is that
      of orthonormal rows all the same.

    Args:
      params: a parameter tree.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans; all
        of two or more dimensions. The authors penalise convolutions.
      side: ``"columns"`` (default): of the output filters; ``"rows"``: :math:`W W^T`; ``"auto"``: the smaller of the two, whose
        smallest value is 0.
      matrix_of: ``(path, leaf) -> [..., inputs, outputs]``, the matrix, or matrices, of a kernel; default `kernel_matrix`.

    Returns:
      A scalar in float32 or better. It grows with the fourth power of the weights: start from orthogonal or He values.

    Raises:
      ValueError: if ``side`` is misspelt, ``where`` is none of these or chooses a leaf that is no kernel, or ``matrix_of``
        gives no matrix.

    Cost:
      The smaller Gram matrix of each kernel forward and as much backward, one batched call for each shape; no forward
      pass of the model. On an Explicit mesh, sharded kernels are gathered.
      XLA at 8 times [512, 512]: at most 0.74 times the FLOPs and 1.1 times the bytes of the squares of Gram matrices with their
      gradient, and 0.79 times its memory more.

    Use:
      For: loss of plasticity, unstable training, noisy labels.
      When: Deep plain networks that do not start to train, streams of tasks (the best of our plasticity study with permuted
        pixels), or noisy labels, where it did well on the digits. Use ``side='auto'`` if a layer has more outputs than inputs.
      Not when: Kernels start far above unit norms: it grows with their fourth power and may diverge. Only the first task
        counts: its price was a slower one. In the last layer it also bounds the logits.
      Badly with: Weight decay and `weights.l2`, which pull the norms that it holds at 1; `spectral_penalty`, `srip` or
        `project_stiefel` on the same leaves; sparsity by `prox_l1`, as few sparse filters are orthonormal.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> kernel = jnp.array([[1.0, 1.0], [0.0, 1.0], [0.0, 0.0]])
      >>> float(rj.weights.orthonormality({"kernel": kernel}))
      1.5

    References:
      Xie et al., All You Need is Beyond a Good Init: Exploring Better Solution for Training Extremely Deep Convolutional Neural
      Networks with Orthonormality and Modulation, 2017, arXiv 1703.01827. No authors' code was found and their coefficient is
      uncertain; Bansal et al., Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?, 2018, arXiv
      1810.09102, publish 1e-2 times a schedule of the epoch, which is ``optax.piecewise_constant_schedule(1.0, {20: 1e-3, 50:
      0.1, 70: 0.01, 120: 0.0})``. The backward half of the method is `regjax.layers.modulate_backward`.
    """
    name = "weights.orthonormality"
    checks.choice(name, "side", side, SIDES)
    return _sum(0.5 * _squares(x, side) for x in _stacks(name, params, where, matrix_of))


def orthogonality(
    params: PyTree,
    *,
    kind: str = "so",
    where: Where = None,
    side: str = "columns",
    matrix_of: Callable[[tuple[str, ...], Any], Array] = kernel_matrix,
) -> Array:
    r"""Three penalties on kernels that are not orthonormal: soft, double soft, and by mutual coherence.

    Formula:
      .. math:: so: \sum_l \|W^T W - I\|_F^2, \quad dso: so + \sum_l \|W W^T - I\|_F^2, \quad
                mc: \sum_l \max_j \sum_i |W^T W - I|_{ij}

      The fourth of the family, the spectral norm of the difference, is `srip`.

    Args:
      params: a parameter tree.
      kind: ``"so"`` (default, twice `orthonormality`), ``"dso"`` or ``"mc"``.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans; all
        of two or more dimensions.
      side: whose Gram matrix so and mc take: ``"columns"`` (default), ``"rows"``, or ``"auto"``, the smaller. dso takes
        both.
      matrix_of: ``(path, leaf) -> [..., inputs, outputs]``, the matrix, or matrices, of a kernel; default `kernel_matrix`.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if ``kind`` or ``side`` is misspelt, ``where`` is none of these or chooses a leaf that is no kernel, or
        ``matrix_of`` gives no matrix.

    Cost:
      One Gram matrix of each kernel forward, the smaller for so and dso, and as much backward, one batched call for each
      shape; no forward pass of the model. On an Explicit mesh, sharded kernels are gathered.
      XLA at 8 times [512, 512]: at most 0.74 times the FLOPs and 1.1 times the bytes of the squares of Gram matrices with their
      gradient, and 0.79 times its memory more.

    Use:
      For: unstable training, collapsed features.
      When: Convolutional networks in which filters repeat each other, with a strength that falls in steps over the first
        epochs. ``mc`` presses only the worst column, ``dso`` suits square kernels alone.
      Not when: ``dso`` on kernels that are not square, where its two parts cannot both reach 0; A strength tuned for
        `orthonormality` has to be halved for ``so``. For large kernels `srip` needs no Gram matrix.
      Badly with: Weight decay, which it replaces; `srip` or `orthonormality` of the same leaves; a ``where`` that takes in
        embedding tables, whose rare rows it then moves more than the data do.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> params = {"kernel": jnp.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 2.0]])}
      >>> [float(rj.weights.orthogonality(params, kind=kind)) for kind in ("so", "dso", "mc")]
      [9.5625, 19.125, 3.0]

    References:
      Bansal et al., Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?, 2018, arXiv 1810.09102. The
      authors' code penalises all parameters of two or more dimensions, with 1e-2 times a schedule of the epoch: 1, from 20
      on 1e-3, from 50 1e-4, from 70 1e-6, from 120 0, which is
      ``optax.piecewise_constant_schedule(1.0, {20: 1e-3, 50: 0.1, 70: 0.01, 120: 0.0})``.
    """
    name = "weights.orthogonality"
    checks.choice(name, "kind", kind, KINDS)
    checks.choice(name, "side", side, SIDES)
    stacks = _stacks(name, params, where, matrix_of)
    if kind == "so":
        return _sum(_squares(x, side) for x in stacks)
    if kind == "dso":
        return _sum(_squares(x, "columns", both=True) for x in stacks)
    return _sum(jnp.sum(_coherence(_difference(x, _by_rows(x, side)))) for x in stacks)


def _stacks(name: str, params: PyTree, where: Where, matrix_of: Any) -> list[Array]:
    matrices = [kernel.matrix for kernel in kernels(name, params, where, matrix_of)]
    return [stack for _, (stack,) in stacked(matrices)]


def _squares(x: Array, side: str, both: bool = False) -> Array:
    """The summed squares of the Gram difference of a side, always from the smaller one: the two differ by a constant."""
    rows, columns = x.shape[-2:]
    smaller = jnp.sum(jnp.square(_difference(x, rows < columns)))
    excess = {"columns": max(columns - rows, 0), "rows": max(rows - columns, 0), "auto": 0}[side]
    count = math.prod(x.shape[:-2])
    return 2 * smaller + count * abs(columns - rows) if both else smaller + count * excess


def _by_rows(x: Array, side: str) -> bool:
    return side == "rows" or (side == "auto" and x.shape[-2] < x.shape[-1])


def _difference(x: Array, by_rows: bool) -> Array:
    """The Gram matrices of ``x [..., m, n]`` less the identity."""
    gram = gram_matrix(jnp.swapaxes(x, -1, -2) if by_rows else x)
    return gram - jnp.eye(gram.shape[-1], dtype=gram.dtype)


def _coherence(difference: Array) -> Array:
    return jnp.max(jnp.sum(trees.absolute(difference), axis=-2), axis=-1, initial=0)


def _sum(terms: Any) -> Array:
    return sum(terms, jnp.zeros((), jnp.float32))
