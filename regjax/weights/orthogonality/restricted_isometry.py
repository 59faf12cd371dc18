"""Spectral restricted isometry: the spectral norm of a Gram matrix's difference from the identity, by one power step."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.stacks import stacked
from regjax.core.types import Array, Key, PyTree, Stateful, Where
from regjax.weights.matrix import Kernel, kernel_matrix, kernels
from regjax.weights.spectral import power
from regjax.weights.spectral.power import SpectralState


def srip_matrix(w: Any, start: Any) -> Array:
    r"""The squared spectral norm of a matrix's Gram difference from the identity, estimated by one power step.

    Formula:
      .. math:: \|M v\|^2, \quad v = M s / \|M s\|, \quad M = W^T W - I

      or :math:`M = W W^T - I` where there are fewer rows than columns. The gradient is that of the whole expression. Where
      ``M s = 0``, as for orthonormal W, the value and its gradient are 0. It never exceeds the squared norm.

    Args:
      w: float ``[..., m, n]``, a matrix or several.
      start: ``[..., min(m, n)]``, the vector s, of any length but 0.

    Returns:
      ``[...]``, the value of each matrix, in float32 or better.

    Raises:
      ValueError: if ``w`` has fewer than two dimensions or ``start`` another shape.

    Cost:
      4 products of the matrix with a vector forward; the Gram matrix is not formed.
      XLA at [8, 512, 512]: at most 24 times the FLOPs and 4.5 times the bytes of a copy of its arguments, and 0.0076 times its
      memory more.

    Use:
      Part of: `srip`, `stateful_srip`.
      When: For one matrix, or a stack, with a start vector of your own; also as a cheap lower estimate of how far a kernel is
        from orthonormal.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> w = jnp.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
      >>> round(float(rj.weights.srip_matrix(w, jnp.ones(3))), 4)
      8.2886

    References:
      Bansal et al., Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?, 2018, arXiv 1810.09102 (the
      estimate of the authors' code; the paper writes the norm without the square).
    """
    name = "weights.srip_matrix"
    w = checks.floating(name, "w", w, min_ndim=2)
    start = checks.floating(name, "start", start, shape=_start_shape(w))
    dtype = trees.accumulator(w, start)
    return _estimate(sharding.replicate(w).astype(dtype), sharding.replicate(start).astype(dtype))[0]


def srip(
    key: Key,
    params: PyTree,
    *,
    where: Where = None,
    matrix_of: Callable[[tuple[str, ...], Any], Array] = kernel_matrix,
) -> Array:
    r"""Spectral restricted isometry: every singular value of every kernel is drawn to 1, the farthest one first.

    Formula:
      .. math:: \sum_l \|M_l v_l\|^2 \approx \sum_l \sigma(W_l^T W_l - I)^2

      as in `srip_matrix`, from a fresh start for each kernel, uniform in [0, 1).

    Args:
      key: a random key, another one in each step.
      params: a parameter tree.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans; all
        of two or more dimensions.
      matrix_of: ``(path, leaf) -> [..., inputs, outputs]``, the matrix, or matrices, of a kernel; default `kernel_matrix`.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if ``key`` is no random key, ``where`` is none of these or chooses a leaf that is no kernel, or
        ``matrix_of`` gives no matrix.

    Cost:
      8 FLOPs for each weight forward and four reads of the kernels; no forward pass of the model. On an Explicit mesh, sharded
      kernels are gathered. XLA counts the gradient of kernels of equal shape once for each of them.
      XLA at 8 times [512, 512]: at most 78 times the FLOPs and 5.7 times the bytes of a copy of its arguments, and 0.56 times
      its memory more.

    Use:
      For: unstable training, noisy labels.
      When: Orthonormal filters at low cost in large kernels: four products with a vector instead of a Gram matrix. On noisy
        digits it gained clearly, though less than `orthonormality`.
      Not when: All singular values must be near 1 at once: each step moves the worst direction of each kernel. The penalty must
        be a plain ``f(params)``: it takes a new key in each step; otherwise `stateful_srip`.
      Badly with: Weight decay, which it replaces; a fixed key, with which the start vector never changes; `orthogonality` of
        the same leaves; great strengths: about three times the best one ended at chance on the digits.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> params = {"kernel": jnp.diag(jnp.array([2.0, 2.0]))}
      >>> round(float(rj.weights.srip(jax.random.key(0), params)), 4)
      9.0

    References:
      Bansal et al., Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?, 2018, arXiv 1810.09102 (all
      parameters of two or more dimensions, strength 1e-2 times the schedule in `orthogonality`).
    """
    name = "weights.srip"
    checks.key(name, key)
    found = kernels(name, params, where, matrix_of)
    starts = _draw(jax.random.uniform, key, found)
    return _penalty([k.matrix for k in found], starts)[0]


def stateful_srip(
    *,
    where: Where = None,
    matrix_of: Callable[[tuple[str, ...], Any], Array] = kernel_matrix,
) -> Stateful:
    r"""`srip` that carries its vectors from step to step: while the weights move slowly, the estimate becomes exact.

    Formula:
      As `srip`, with :math:`s \leftarrow M v / \|M v\|` carried on to the next step, constant in the gradient. A kernel with
      ``M s = 0`` keeps its vector.

    Args:
      where: which leaves, as in `srip`.
      matrix_of: ``(path, leaf) -> [..., inputs, outputs]``, the matrix, or matrices, of a kernel; default `kernel_matrix`.

    Returns:
      A `Stateful`: ``init(key, params) -> SpectralState``, with vectors of the smaller side, and
      ``apply(state, params) -> (scalar, state)``. The state has no gradient.

    Raises:
      ValueError: if ``key`` is no random key, the state is of other parameters, or another argument is not of the stated
        form.

    Cost:
      As `srip`, and a vector of memory for each kernel. XLA counts the gradient of kernels of equal shape once for each of
      them.
      XLA at 8 times [512, 512]: at most 77 times the FLOPs and 5.7 times the bytes of a copy of its arguments, and 0.56 times
      its memory more.

    Use:
      For: unstable training, noisy labels.
      When: As `srip`, in place of it in long runs at small rates: the carried vector makes the estimate near exact, and no key
        is needed. It goes into `add_penalty` or a ``Recipe``.
      Not when: The penalty must stand inside a loss transform such as `sam` through `with_penalty`, which takes no state; or
        weights jump between calls, as after a restart from other weights.
      Badly with: Weight decay on the same kernels; `stateful_spectral_penalty`, which draws the same singular values to 1;
        checkpoints that leave out the optimiser's state, where the vectors live.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> params = {"kernel": jnp.diag(jnp.array([2.0, 1.5]))}
      >>> penalty = rj.weights.stateful_srip()
      >>> state = penalty.init(jax.random.key(0), params)
      >>> for _ in range(10):
      ...     value, state = penalty.apply(state, params)
      >>> round(float(value), 4)
      9.0

    References:
      Bansal et al., Can We Gain More from Orthogonality Regularizations in Training Deep CNNs?, 2018, arXiv 1810.09102; the
      carried vector is an addition, as in Miyato et al., Spectral Normalization for Generative Adversarial Networks, 2018,
      arXiv 1802.05957.
    """
    name = "weights.stateful_srip"
    checks.function(name, "matrix_of", matrix_of)

    def init(key: Key, params: PyTree) -> SpectralState:
        checks.key(name, key)
        found = kernels(name, params, where, matrix_of)
        drawn = _draw(jax.random.normal, key, found)
        return power.placed(params, [k.place for k in found], [power.unit(x, 0) for x in drawn])

    def apply(state: SpectralState, params: PyTree) -> tuple[Array, SpectralState]:
        found = kernels(name, params, where, matrix_of)
        matrices, starts = [k.matrix for k in found], jax.tree.leaves(state)
        if [jnp.shape(s) for s in starts] != [_start_shape(x) for x in matrices]:
            checks.fail(name, "state", "of init with parameters of these shapes", [jnp.shape(s) for s in starts])
        starts = [jax.lax.stop_gradient(s).astype(x.dtype) for s, x in zip(starts, matrices, strict=True)]
        value, after = _penalty(matrices, starts)
        return value, power.placed(params, [k.place for k in found], after)

    return Stateful(init, apply)


def _draw(sampler: Callable[..., Array], key: Key, found: list[Kernel]) -> list[Array]:
    return [sampler(jax.random.fold_in(key, i), _start_shape(k.matrix), k.matrix.dtype) for i, k in enumerate(found)]


def _penalty(matrices: list[Array], starts: list[Array]) -> tuple[Array, list[Array]]:
    total, after = jnp.zeros((), jnp.float32), list(starts)
    for rows, (x, s) in stacked(matrices, starts):
        values, turned = _estimate(x, s)
        total = total + jnp.sum(values)
        for row, vector in zip(rows, turned, strict=True):
            after[row] = vector
    return total, after


def _estimate(w: Array, start: Array) -> tuple[Array, Array]:
    """``|M v|^2`` and the unit vector along ``M v``, or the start where that is 0."""
    if w.shape[-2] < w.shape[-1]:
        w = jnp.swapaxes(w, -1, -2)

    def difference(x: Array) -> Array:
        return power.matvec("...mn,...m->...n", w, power.matvec("...mn,...n->...m", w, x)) - x

    turned = difference(trees.unit(difference(start)))
    return jnp.sum(jnp.square(turned), axis=-1), power.unit(turned, start)


def _start_shape(w: Array) -> tuple[int, ...]:
    return (*w.shape[:-2], min(w.shape[-2:]))
