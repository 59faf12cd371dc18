"""Spectral norm regularisation: half the square of every kernel's largest singular value."""

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array, Key, PyTree, Stateful, Where
from regjax.weights.matrix import kernel_matrix, kernels
from regjax.weights.spectral import power
from regjax.weights.spectral.power import SpectralState


def spectral_norm_penalty(
    params: PyTree,
    *,
    n_power: int = 20,
    where: Where = None,
    matrix_of: Callable[[tuple[str, ...], Any], Array] = kernel_matrix,
) -> Array:
    r"""Half the sum of squared spectral norms: small inputs' changes stay small through every layer.

    Formula:
      .. math:: \frac{1}{2} \sum_l \sigma_1(W_l)^2

      ``sigma_1 = v^T W u`` with ``u``, ``v`` from ``n_power`` steps of power iteration, constant in the gradient, which is
      :math:`\sigma_1 v u^T`. The steps start from a fixed vector each time; `stateful_spectral_norm_penalty` goes on from
      the last step's direction instead.

    Args:
      params: a parameter tree.
      n_power: steps of power iteration, default 20; a positive integer. Too few underestimate a norm whose runner-up is
        close.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans; all
        of two or more dimensions.
      matrix_of: ``(path, leaf) -> [..., inputs, outputs]``, the matrix, or matrices, of a kernel; default `kernel_matrix`.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if ``n_power`` is no positive integer, ``where`` is none of these or chooses a leaf that is no kernel, or
        ``matrix_of`` gives no matrix.

    Cost:
      ``4 * n_power`` FLOPs for each weight and as many reads of the kernels; no forward pass. Kernels of equal shape go through
      one batched call. On an Explicit mesh, sharded kernels are gathered. XLA counts the body of the loop once, and the
      gradient of kernels of equal shape once for each of them.
      XLA at 8 times [512, 512]: at most 20 times the FLOPs and 4.5 times the bytes of a copy of its arguments, and 0.56 times
      its memory more.

    Use:
      For: adversarial inputs, noisy labels.
      When: Sensitivity to small input changes should fall at low cost: the digits CNN kept its accuracy with a much smaller
        Jacobian. On noisy digits it helped about as `spectral_penalty`, at probabilities far too low.
      Not when: A bound is claimed: convolutions count as reshaped kernels. Deep nets without normalisation and shortcuts lose
        their signal, as it draws norms to 0: `spectral_penalty` draws them to 1.
      Badly with: Kernels before a normalisation, whose scale is free; `spectral_normalize`, after which the norm is 1; weight
        decay tuned alone, which lowers the same norms. Too few power steps miss the largest value.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> params = {"kernel": jnp.diag(jnp.array([2.0, 1.0])), "bias": jnp.array([0.6, 0.8])}
      >>> round(float(rj.weights.spectral_norm_penalty(params)), 4)
      2.0

    References:
      Yoshida and Miyato, Spectral Norm Regularization for Improving the Generalizability of Deep Learning, 2017,
      arXiv 1705.10941 (strength 0.01; a convolution is its reshaped matrix, an approximation of its true norm).
    """
    name = "weights.spectral_norm_penalty"
    checks.integer(name, "n_power", n_power, low=1)
    matrices = [kernel.matrix for kernel in kernels(name, params, where, matrix_of)]
    return _half_squares(power.largest_singular_values(matrices, None, n_power)[0])


def stateful_spectral_norm_penalty(
    *,
    n_power: int = 1,
    warmup: int = 20,
    where: Where = None,
    matrix_of: Callable[[tuple[str, ...], Any], Array] = kernel_matrix,
) -> Stateful:
    r"""`spectral_norm_penalty` that carries its directions from step to step, so that one power step for each is enough.

    Formula:
      As `spectral_norm_penalty`. ``init`` warms the directions up; ``apply`` moves them by ``n_power`` steps and returns
      them. A kernel of zeros keeps its direction.

    Args:
      n_power: power steps in each call, default 1.
      warmup: power steps in ``init``, default 20.
      where: which leaves, as in `spectral_norm_penalty`.
      matrix_of: ``(path, leaf) -> [..., inputs, outputs]``, the matrix, or matrices, of a kernel; default `kernel_matrix`.

    Returns:
      A `Stateful`: ``init(key, params) -> SpectralState`` and ``apply(state, params) -> (scalar, state)``. The state has
      no gradient.

    Raises:
      ValueError: if ``n_power`` or ``warmup`` is no positive integer, another argument is not of the stated form, or the
        state is of other parameters.

    Cost:
      ``4 * n_power + 2`` FLOPs for each weight and two reads of the kernels with one step; a vector of memory per kernel. XLA
      counts the body of the loop once, and the gradient of kernels of equal shape once for each of them.
      XLA at 8 times [512, 512]: at most 16 times the FLOPs and 3.4 times the bytes of a copy of its arguments, and 0.56 times
      its memory more.

    Use:
      For: adversarial inputs, noisy labels.
      When: As `spectral_norm_penalty` in training runs: one power step a call, with directions carried in `add_penalty` or a
        ``Recipe``.
      Not when: The penalty must be a plain ``f(params)``, as for `with_penalty` inside `sam`; or weights change abruptly
        between calls, so that the carried direction is stale.
      Badly with: Kernels before a normalisation; `spectral_normalize` of the same kernels; checkpoints without the optimiser's
        state, which throw the directions away.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> params = {"kernel": jnp.diag(jnp.array([2.0, 1.0])), "bias": jnp.array([0.6, 0.8])}
      >>> penalty = rj.weights.stateful_spectral_norm_penalty()
      >>> state = penalty.init(jax.random.key(0), params)
      >>> value, state = penalty.apply(state, params)
      >>> round(float(value), 4)
      2.0

    References:
      Yoshida and Miyato, Spectral Norm Regularization for Improving the Generalizability of Deep Learning, 2017,
      arXiv 1705.10941 (one power step for each update, the direction carried).
    """
    name = "weights.stateful_spectral_norm_penalty"
    checks.integer(name, "n_power", n_power, low=1)
    checks.integer(name, "warmup", warmup, low=1)
    checks.function(name, "matrix_of", matrix_of)

    def init(key: Key, params: PyTree) -> SpectralState:
        checks.key(name, key)
        found = kernels(name, params, where, matrix_of)
        return power.start(key, params, [(kernel.place, kernel.matrix) for kernel in found], warmup)

    def apply(state: SpectralState, params: PyTree) -> tuple[Array, SpectralState]:
        found = kernels(name, params, where, matrix_of)
        matrices = [kernel.matrix for kernel in found]
        sigmas, us = power.largest_singular_values(matrices, power.carried(name, state, matrices), n_power)
        return _half_squares(sigmas), power.placed(params, [kernel.place for kernel in found], us)

    return Stateful(init, apply)


def _half_squares(sigmas: Sequence[Array]) -> Array:
    return sum((0.5 * jnp.sum(jnp.square(sigma)) for sigma in sigmas), jnp.zeros((), jnp.float32))
