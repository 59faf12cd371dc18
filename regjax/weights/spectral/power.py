"""Power iteration: the largest singular values of a tree's kernels, those of equal shape in one batch."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks
from regjax.core.stacks import map_stacked
from regjax.core.types import Array, Key, PyTree

_EPS = 1e-12


class SpectralState(NamedTuple):
    """The memory of the stateful spectral techniques: a direction ``[outputs]`` for each kernel, in the place of the kernel."""

    u: PyTree


def largest_singular_values(matrices: Sequence[Array], us: Sequence[Array] | None, steps: int) -> tuple[list[Array], list[Array]]:
    """For each matrix the largest singular value and its direction after some power steps from ``us``.

    Without ``us`` the steps start from a fixed draw: no structured kernel is orthogonal to it, as many are to ones.
    """

    def iterate(x: Array, u: Array | None = None) -> tuple[Array, Array]:
        return power(x, fixed_start(x) if u is None else jax.lax.stop_gradient(u).astype(x.dtype), steps)

    pairs = map_stacked(iterate, matrices) if us is None else map_stacked(iterate, matrices, us)
    return [sigma for sigma, _ in pairs], [direction for _, direction in pairs]


def fixed_start(stack: Array) -> Array:
    """A unit vector for each matrix of ``stack [S, ..., m, n]``, drawn from a fixed key, alike for the S of a stack."""
    one = _direction(jax.random.key(0), stack[0])
    return jnp.broadcast_to(one, (stack.shape[0], *one.shape))


def start(key: Key, params: PyTree, found: Sequence[tuple[int, Array]], steps: int) -> SpectralState:
    """A state with directions drawn for the matrices at some places of the flat tree, after ``steps`` power steps."""
    matrices = [x for _, x in found]
    us = [_direction(jax.random.fold_in(key, index), x) for index, x in found]
    return placed(params, [i for i, _ in found], largest_singular_values(matrices, us, steps)[1])


def placed(params: PyTree, indices: Sequence[int], us: Sequence[Array]) -> SpectralState:
    """The directions in the places of their kernels."""
    structure: Any = jax.tree.structure(params)
    leaves: list[Array | None] = [None] * structure.num_leaves
    for index, u in zip(indices, us, strict=True):
        leaves[index] = jax.lax.stop_gradient(u)
    return SpectralState(jax.tree.unflatten(structure, leaves))


def carried(function: str, state: Any, matrices: Sequence[Array]) -> list[Array]:
    """The directions of a state, one for each matrix."""
    us = jax.tree.leaves(state)
    if [jnp.shape(u) for u in us] != [(*x.shape[:-2], x.shape[-1]) for x in matrices]:
        checks.fail(function, "state", "of init with parameters of these shapes", [jnp.shape(u) for u in us])
    return us


def power(matrix: Array, u: Array, steps: int) -> tuple[Array, Array]:
    """The largest singular value(s) of ``matrix [..., m, n]`` and the direction after some power steps from ``u [..., n]``."""
    fixed = jax.lax.stop_gradient(matrix)

    def step(u: Array) -> tuple[Array, Array]:
        v = unit(matvec("...mn,...n->...m", fixed, u), 0)
        return unit(matvec("...mn,...m->...n", fixed, v), u), v

    if steps:
        # The first step outside the loop: under shard_map its result varies over devices as the kernel does, the start may not.
        u, v = step(u)
        if steps > 1:
            u, v = jax.lax.fori_loop(1, steps, lambda _, uv: step(uv[0]), (u, v))
    else:
        v = unit(matvec("...mn,...n->...m", fixed, u), 0)
    return jnp.sum(v * matvec("...mn,...n->...m", matrix, u), axis=-1), u


def matvec(spec: str, matrix: Array, vector: Array) -> Array:
    """A matrix-vector product in full precision: it waits for memory, so rounded factors would gain nothing."""
    return jnp.einsum(spec, matrix, vector, precision="highest")


def unit(x: Array, fallback: Any) -> Array:
    """The unit vector, or ``fallback`` for a vector of zeros."""
    norm = jnp.linalg.norm(x, axis=-1, keepdims=True)
    return jnp.where(norm > _EPS, x / jnp.maximum(norm, _EPS), fallback)


def _direction(key: Key, x: Array) -> Array:
    return unit(jax.random.normal(key, (*x.shape[:-2], x.shape[-1]), x.dtype), 0)
