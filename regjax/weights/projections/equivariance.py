"""The linear maps that commute with a group: a basis of them, onto which weights are projected."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks
from regjax.core.types import Array


def group_projector(generators_in: Any, generators_out: Any) -> Array:
    r"""An orthonormal basis of the kernels that are equivariant under a group.

    Formula:
      A kernel W, in :math:`y = W^T x`, is equivariant if :math:`W^T \rho_{in}(g) = \rho_{out}(g) W^T` for all g, which is

      .. math:: (\rho_{in}(g)^T \otimes I - I \otimes \rho_{out}(g)) \, vec(W) = 0

      with vec the row-major flattening. It holds for the whole group if it does for its generators. The columns of Q are an
      orthonormal basis of the solutions, and :math:`P = Q Q^T` is the orthogonal projector onto them. For a finite group of
      orthogonal matrices it is the mean of :math:`\rho_{in}(g) \otimes \rho_{out}(g)` over the group.

    Args:
      generators_in: ``[G, n, n]``, the matrices by which generators of the group act on the n inputs; for a continuous
        group elements of its Lie algebra, whose equation is the same. Elements and generators of both kinds may stand
        together: a rotation's generator and a reflection.
      generators_out: ``[G, m, m]``, those of the same generators on the m outputs. All-ones ``[G, 1, 1]`` for an invariant
        output of a finite group; zeros for a Lie algebra.

    Returns:
      Q, ``[n m, r]``, r the number of free parameters, which may be 0; for kernels ``[n, m]`` as in Flax. The basis for a bias
      ``[m]`` is that with ``generators_in`` of one trivial input: ones ``[G, 1, 1]``, or zeros for a Lie algebra. In
      float32, or float64 where it is enabled.

    Raises:
      ValueError: if the arguments are no finite, concrete stacks of square matrices of one number G.

    Cost:
      On the host, once: the eigenvectors of a matrix ``[n m, n m]``, for n m up to a few thousand. A direction counts as free
      if the equations move it by less than 1e-5 of what they move most.

    Use:
      Part of: `equivariance_penalties`, `soft_equivariance`.
      When: Once on the host for each layer and group whose matrices on inputs and outputs you know; also to project a kernel
        exactly, ``Q @ (Q.T @ w)``.
      Not when: A kernel has more than a few thousand entries, as convolutions and wide layers do: the dense eigenproblem grows
        with their square.
      Badly with: Kernels ``[out, in]`` of other frameworks; ones in place of zeros for the trivial output of a Lie algebra.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> swap = jnp.array([[[0.0, 1.0], [1.0, 0.0]]])
      >>> basis = rj.weights.group_projector(swap, swap)
      >>> kernel = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> [round(float(x), 4) for x in basis @ (basis.T @ kernel.reshape(-1))]
      [2.5, 2.5, 2.5, 2.5]

    References:
      Finzi et al., A Practical Method for Constructing Equivariant Multilayer Perceptrons for Arbitrary Matrix Groups,
      2021, arXiv 2104.09459, for the constraint; Kim et al., Regularizing Towards Soft Equivariance Under Mixed Symmetries,
      2023, arXiv 2306.00356, for its use. Theirs are kernels ``[m, n]``: the transpose.
    """
    name = "weights.group_projector"
    inner, outer = (
        _square(name, argument, value)
        for argument, value in (("generators_in", generators_in), ("generators_out", generators_out))
    )
    if len(inner) != len(outer):
        checks.fail(name, "generators_out", f"an array [{len(inner)}, m, m], one for each of generators_in", outer)
    n, m = inner.shape[1], outer.shape[1]
    # The sum of the squares of the constraints has their null space, and the size of one, however many there are.
    total = np.zeros((n * m, n * m))
    for a, b in zip(inner, outer, strict=True):
        constraint = np.kron(a.T, np.eye(m)) - np.kron(np.eye(n), b)
        total += constraint.T @ constraint
    values, vectors = np.linalg.eigh(total)
    free = values <= 1e-10 * max(values[-1], 1.0)
    with jax.ensure_compile_time_eval():
        return jnp.asarray(vectors[:, free], dtype=jnp.result_type(float))


def _square(name: str, argument: str, value: Any) -> np.ndarray:
    found = np.asarray(checks.concrete(name, argument, value), dtype=object if value is None else None)
    if found.ndim != 3 or found.shape[1] != found.shape[2] or 0 in found.shape or found.dtype.kind not in "fiu":
        checks.fail(name, argument, "a real array [G, n, n] with at least one matrix", value)
    found = found.astype(np.float64)
    if not np.all(np.isfinite(found)):
        checks.fail(name, argument, "finite", found)
    return found
