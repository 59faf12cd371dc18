"""Functions of singular values, with derivatives that are finite at repeated and zero ones; and the matrices of a tree."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core.stacks import map_stacked
from regjax.core.types import Array, PyTree, Where
from regjax.weights.matrix import kernels


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def spectral_map(kind: str, matrix: Array, t: Array) -> tuple[Array, Array]:
    r"""``U f(S) V^T`` of ``matrix [..., m, n]``, and its singular values as constants.

    By ``kind``, f of a singular value s is:

    - ``"soft"``: ``max(s - t, 0)``; ``"clip"``: ``min(s, t)``;
    - ``"polar"``: 1, also where s is 0, so that the result is orthonormal;
    - ``"sign"``: 1, and 0 where s is 0 up to rounding: the smallest subgradient of the nuclear norm.

    The derivative is the divided-difference formula of Daleckii and Krein for rectangular matrices rather than that of the
    decomposition, whose terms are infinite at repeated singular values and cancel.
    """
    u, s, vt = jnp.linalg.svd(matrix, full_matrices=False)
    return _product(u, _values(kind, s, t, matrix.shape)[0], vt), s


@spectral_map.defjvp
def _spectral_map_jvp(kind: str, primals: Any, tangents: Any) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    (matrix, t), (move, move_t) = primals, tangents
    wide = matrix.shape[-2] < matrix.shape[-1]
    turn = lambda x: jnp.swapaxes(x, -1, -2) if wide else x
    step = turn(move)
    u, s, vt = jnp.linalg.svd(turn(matrix), full_matrices=False)
    ut, v = jnp.swapaxes(u, -1, -2), jnp.swapaxes(vt, -1, -2)
    f, slope, by_t, zero = _values(kind, s, t, matrix.shape)

    # dF = U (D1 * sym + D2 * skew) V^T + (1 - U U^T) dW V (f / s) V^T, with sym and skew the parts of U^T dW V.
    right = _matmul(step, v)
    inner = _matmul(ut, right)
    sym, skew = (inner + jnp.swapaxes(inner, -1, -2)) / 2, (inner - jnp.swapaxes(inner, -1, -2)) / 2
    row, column = (lambda x: x[..., :, None]), (lambda x: x[..., None, :])
    # All f are piecewise linear: within a piece the difference quotient is the slope, exactly.
    alike = row(slope) == column(slope)
    difference = jnp.where(alike, 1, row(s) - column(s))
    d1 = jnp.where(alike, row(slope), (row(f) - column(f)) / jnp.where(difference == 0, 1, difference))
    none = row(zero) & column(zero)
    d2 = jnp.where(none, row(slope), (row(f) + column(f)) / jnp.where(none, 1, row(s) + column(s)))
    ratio = jnp.where(zero, slope, f / jnp.where(zero, 1, s))
    tangent = _matmul(_matmul(u, d1 * sym + d2 * skew) + (right - _matmul(u, inner)) * column(ratio), vt)
    tangent = tangent + _product(u, by_t, vt) * move_t
    return (turn(_product(u, f, vt)), s), (turn(tangent), jnp.zeros_like(s))


def _values(kind: str, s: Array, t: Array, shape: tuple[int, ...]) -> tuple[Array, Array, Array, Array]:
    """f, its derivatives by s and by t, and which singular values are 0 up to rounding."""
    floor = max(1e-12, max(shape[-2:]) * float(jnp.finfo(s.dtype).eps))
    zero = s <= floor * jnp.max(s, axis=-1, keepdims=True, initial=0)
    none, ones = jnp.zeros_like(s), jnp.ones_like(s)
    above = (s > t).astype(s.dtype)
    if kind == "soft":
        return jnp.maximum(s - t, 0), above, -above, zero
    if kind == "clip":
        return jnp.minimum(s, t), 1 - above, above, zero
    return (jnp.where(zero, 0, ones) if kind == "sign" else ones), none, none, zero


def _product(u: Array, s: Array, vt: Array) -> Array:
    return _matmul(u * s[..., None, :], vt)


def _matmul(a: Array, b: Array) -> Array:
    # Accelerators would round float32 factors to fewer bits, and singular values with them.
    return jnp.matmul(a, b, precision="highest")


def map_matrices(fn: Callable[[Array], Array], function: str, params: PyTree, where: Where, matrix_of: Any) -> PyTree:
    """Replaces each chosen leaf by ``fn`` of its matrix; ``fn`` gets stacks of matrices of equal shape."""
    leaves, structure = jax.tree.flatten(params)
    found = kernels(function, params, where, matrix_of)
    for kernel, new in zip(found, map_stacked(fn, [kernel.matrix for kernel in found]), strict=True):
        leaves[kernel.place] = kernel.restored(matrix_of, new)
    return jax.tree.unflatten(structure, leaves)
