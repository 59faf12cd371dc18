"""A kernel split along its principal singular directions: a frozen rest and small factors to train, and back again."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Strength


class SORSAFactors(NamedTuple):
    """A kernel as a rest and the principal part of its singular value decomposition.

    Attributes:
      residual: ``[in, out]`` in the dtype of the kernel: what the factors leave, frozen.
      u: ``[in, rank]`` with orthonormal columns, in float32 or better, as ``s`` and ``vt``.
      s: ``[rank]``, the largest singular values.
      vt: ``[rank, out]`` with orthonormal rows.
    """

    residual: Array
    u: Array
    s: Array
    vt: Array


class PiSSAFactors(NamedTuple):
    """A kernel as a rest and two factors.

    Attributes:
      residual: ``[in, out]`` in the dtype of the kernel: what the factors leave, frozen.
      a: ``[in, rank]`` in float32 or better, as ``b``.
      b: ``[rank, out]``.
    """

    residual: Array
    a: Array
    b: Array


def sorsa_init(kernel: Any, *, rank: int, scale: Strength = 1.0) -> SORSAFactors:
    r"""Splits a kernel into its principal singular directions, to be trained, and a frozen rest.

    Formula:
      .. math:: W = U S V^T, \quad u = U_{:, 1:r}, \quad s = S_{1:r}, \quad v^T = (V^T)_{1:r}, \quad
        W_{rest} = W - scale \, u \, diag(s) \, v^T

    Args:
      kernel: float ``[in, out]``; others through `as_matrix`.
      rank: r, from 1 to min(in, out). The authors take 128 for a network of 7 billion parameters, 4 in their library.
      scale: the factor on the product of the factors, default 1: a number or a traced scalar.

    Returns:
      `SORSAFactors`: ``(residual, u, s, vt)``, from which `sorsa_merge` makes the kernel again. The signs of a pair of
      directions are arbitrary. No gradient flows to the kernel.

    Raises:
      ValueError: if the kernel is no floating matrix, or ``rank`` or ``scale`` is outside its range.

    Cost:
      One singular value decomposition in float32 or better, once before training. XLA does not count the decomposition.
      XLA at [512, 512]: at most 40 times the FLOPs and 5.1 times the bytes of a copy of its arguments, and 1.2 times its memory
      more.

    Use:
      Part of: `SORSALinear`, `sorsa_orthonormality`.
      When: For layers of your own; `SORSALinear` calls it. Keep the factors in float32, even beside a kernel in lower
        precision.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> factors = rj.weights.sorsa_init(jnp.diag(jnp.array([3.0, 1.0])), rank=1)
      >>> [round(float(x), 4) for x in factors.s], jnp.round(factors.residual, 4).tolist()
      ([3.0], [[0.0, 0.0], [0.0, 1.0]])

    References:
      Cao, SORSA: Singular Values and Orthonormal Regularized Singular Vectors Adaptation of Large Language Models, 2024,
      arXiv 2409.00055.
    """
    name = "weights.sorsa_init"
    kernel = _check_kernel(name, kernel, rank)
    checks.number(name, "scale", scale)
    u, s, vt = _principal(kernel, rank)
    return SORSAFactors(_rest(kernel, u * s, vt, scale), u, s, vt)


def pissa_init(kernel: Any, *, rank: int, scale: Strength = 1.0) -> PiSSAFactors:
    r"""Splits a kernel into two low-rank factors along its principal singular directions and a frozen rest.

    Formula:
      .. math:: W = U S V^T, \quad a = U_{:, 1:r} \sqrt{S_{1:r} / scale}, \quad
        b = \sqrt{S_{1:r} / scale} \, (V^T)_{1:r}, \quad W_{rest} = W - scale \, a b

      so that a low-rank adapter starts on the directions that the kernel uses most, and not at 0.

    Args:
      kernel: float ``[in, out]``; others through `as_matrix`.
      rank: r, from 1 to min(in, out).
      scale: the factor on the product ``a b``, above 0, default 1: a number or a traced scalar.

    Returns:
      `PiSSAFactors`: ``(residual, a, b)``. The signs of a pair of directions are arbitrary. No gradient flows to the kernel.

    Raises:
      ValueError: if the kernel is no floating matrix, or ``rank`` or ``scale`` is outside its range.

    Cost:
      One singular value decomposition in float32 or better, once before training. XLA does not count the decomposition.
      XLA at [512, 512]: at most 39 times the FLOPs and 4.5 times the bytes of a copy of its arguments, and 1.2 times its memory
      more.

    Use:
      Part of: `LoRALinear`.
      When: Through ``LoRALinear(init='pissa')`` when a fine-tuning with low rank is slow to start from ``b = 0``; by hand for
        layers of your own.
      Not when: The frozen kernel must stay the published one, as when several adapters share it: here the rest is another
        matrix for each.
      Badly with: Weight decay on the factors, which removes the kernel's own main directions; dropout of the adapter's input,
        which then hits what the layer knew; group penalties, that begin with no group near 0.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> residual, a, b = rj.weights.pissa_init(jnp.diag(jnp.array([4.0, 1.0])), rank=1)
      >>> jnp.round(a @ b, 4).tolist(), jnp.round(residual, 4).tolist()
      ([[4.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]])

    References:
      Meng et al., PiSSA: Principal Singular Values and Singular Vectors Adaptation of Large Language Models, 2024,
      arXiv 2404.02948. The paper has scale 1; the division keeps the first product at any other.
    """
    name = "weights.pissa_init"
    kernel = _check_kernel(name, kernel, rank)
    checks.number(name, "scale", scale, low=0.0, open_low=True)
    u, s, vt = _principal(kernel, rank)
    root = jnp.sqrt(s / jnp.asarray(scale, s.dtype))
    a, b = u * root, root[:, None] * vt
    return PiSSAFactors(_rest(kernel, a, b, scale), a, b)


def sorsa_merge(residual: Any, u: Any, s: Any, vt: Any, *, scale: Strength = 1.0) -> Array:
    r"""The kernel that a rest and its trained factors stand for.

    Formula:
      .. math:: W = W_{rest} + scale \, u \, diag(s) \, v^T

    Args:
      residual: float ``[in, out]``.
      u: float ``[in, rank]``.
      s: float ``[rank]``.
      vt: float ``[rank, out]``.
      scale: the factor on the product, default 1, as in `sorsa_init`: a number or a traced scalar.

    Returns:
      ``[in, out]`` in the dtype of ``residual``; the sum is in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``scale`` is not finite.

    Cost:
      One product of ``in * rank * out`` multiplications.
      XLA at [512, 512]: at most 110 times the FLOPs and 3.9 times the bytes of a copy of its arguments, and 0.54 times its
      memory more.

    Use:
      Part of: `SORSALinear`.
      When: After training, to store one kernel, with the ``scale`` of the split; `merge` does it for a whole model.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> factors = rj.weights.sorsa_init(jnp.array([[3.0, 1.0], [0.0, 2.0]]), rank=1)
      >>> jnp.round(rj.weights.sorsa_merge(*factors), 4).tolist()
      [[3.0, 1.0], [0.0, 2.0]]

    References:
      Cao, SORSA: Singular Values and Orthonormal Regularized Singular Vectors Adaptation of Large Language Models, 2024,
      arXiv 2409.00055.
    """
    name = "weights.sorsa_merge"
    residual = checks.floating(name, "residual", residual, ndim=2)
    u = checks.floating(name, "u", u, shape=(residual.shape[0], None))
    s = checks.floating(name, "s", s, shape=u.shape[1:])
    vt = checks.floating(name, "vt", vt, shape=(u.shape[1], residual.shape[1]))
    checks.number(name, "scale", scale)
    dtype = trees.accumulator(residual, u, s, vt)
    product = _product(u.astype(dtype) * s.astype(dtype), vt.astype(dtype))
    return (residual.astype(dtype) + jnp.asarray(scale, dtype) * product).astype(residual.dtype)


def _check_kernel(name: str, kernel: Any, rank: Any) -> Array:
    kernel = checks.floating(name, "kernel", kernel, ndim=2)
    if 0 in kernel.shape:
        checks.fail(name, "kernel", "a matrix with inputs and outputs", kernel)
    checks.integer(name, "rank", rank, low=1, high=min(kernel.shape))
    return jax.lax.stop_gradient(sharding.replicate(kernel))


def _principal(kernel: Array, rank: int) -> tuple[Array, Array, Array]:
    u, s, vt = jnp.linalg.svd(kernel.astype(trees.accumulator(kernel)), full_matrices=False)
    return u[:, :rank], s[:rank], vt[:rank]


def _rest(kernel: Array, left: Array, right: Array, scale: Any) -> Array:
    product = _product(left, right)
    return (kernel.astype(product.dtype) - jnp.asarray(scale, product.dtype) * product).astype(kernel.dtype)


def _product(left: Array, right: Array) -> Array:
    with jax.default_matmul_precision("highest"):  # what is taken out once comes back for good
        return left @ right
