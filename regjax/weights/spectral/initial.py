"""A tiny initialisation along the leading eigenvectors of robust measurements."""

from typing import Any

import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.sharding import contract_rows, replicate, reshape_rows
from regjax.core.types import Array


def spectral_small_init(A: Any, y: Any, *, rank: int, scale: Any) -> Array:
    r"""The start of the subgradient method for robust matrix recovery: small, and already in the right directions.

    Formula:
      .. math:: C = \frac{1}{m} \sum_i sign(y_i) \frac{A_i + A_i^T}{2} = V \Lambda V^T, \qquad
                U_0 = \alpha V_{r'} \max(\Lambda_{r'}, 0)^{1/2}

      of the measurements :math:`y_i = \langle A_i, X \rangle` with the r' largest eigenvalues of C. The signs make C robust
      to outliers in y.

    Args:
      A: ``[m, d, d]``, the measurement matrices.
      y: ``[m]``, the measurements.
      rank: r', the number of columns to search with, from 1 to d: at least the rank of X, which need not be known.
      scale: :math:`\alpha`, a number or traced scalar, at least 0. As small as the dtype bears: 1e-15 works in float64; in
        float32 take 1e-6 or more. 0 is a stationary point of the objective.

    Returns:
      ``[d, rank]`` in float32 or better, the columns by falling eigenvalue, each with its largest entry positive.

    Raises:
      ValueError: if a shape or dtype does not fit, ``rank`` lies outside 1 to d, or ``scale`` is negative or not finite.

    Cost:
      One pass over the measurements, and the eigenvectors of one ``[d, d]`` matrix. It is meant to run once. XLA does not count
      the eigenvectors.
      XLA at [1024, 64, 64]: at most 2.3 times the FLOPs and 0.56 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      Part of: `polyak_subgradient`, `geometric_step`.
      When: Recovery of a low-rank matrix from linear measurements with outliers, searched with more columns than its rank: with
        fewer measurements than entries only the small start found it in our test.
      Not when: Measurements outnumber the unknowns well: any start does. Ordinary networks, for which it is no initialiser.
      Badly with: A scale of 1e-15 in float32; Adam or momentum, under which small directions do not stay small; least squares
        in place of absolute errors, where outliers decide.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> A = jnp.array([[[1.0, 0.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 4.0]]])
      >>> start = rj.weights.spectral_small_init(A, jnp.array([3.0, 5.0]), rank=1, scale=0.01)
      >>> [round(float(x), 4) for x in start[:, 0]]
      [0.0, 0.0141]

    References:
      Ma and Fattahi, Global Convergence of Sub-gradient Method for Robust Matrix Recovery: Small Initialization, Noisy
      Measurements, and Over-parameterization, 2023, arXiv 2202.08788. The signs of the columns are a choice of this
      library, so that rounding does not decide them.
    """
    name = "weights.spectral_small_init"
    A = checks.floating(name, "A", A, ndim=3)
    if A.shape[1] != A.shape[2] or A.shape[0] == 0:
        checks.fail(name, "A", "square matrices of shape [m, d, d]", A)
    m, d, _ = A.shape
    y = checks.floating(name, "y", y, shape=(m,))
    rank = checks.integer(name, "rank", rank, low=1, high=d)
    checks.number(name, "scale", scale, low=0.0)
    dtype = trees.accumulator(A, y)
    signs = jnp.sign(y.astype(dtype))[:, None]
    mean = replicate(contract_rows(signs, reshape_rows(A.astype(dtype), (d * d,)))).reshape(d, d) / m
    values, vectors = jnp.linalg.eigh((mean + mean.T) / 2)
    values, vectors = values[::-1][:rank], vectors[:, ::-1][:, :rank]
    largest = jnp.take_along_axis(vectors, jnp.argmax(jnp.abs(vectors), axis=0)[None], axis=0)
    return jnp.asarray(scale, dtype) * jnp.where(largest < 0, -1, 1) * vectors * trees.safe_sqrt(values)
