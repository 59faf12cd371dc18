"""Spectral regularisation: every layer's largest singular value is drawn to one, so that the network stays trainable."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, Key, PyTree, Stateful, Where
from regjax.weights.matrix import kernel_matrix, matrix
from regjax.weights.spectral import power
from regjax.weights.spectral.power import SpectralState

_BIASES, _SCALES = ("bias", "beta"), ("scale", "gamma")


def spectral_penalty(
    params: PyTree,
    *,
    k: int = 2,
    n_power: int = 20,
    exact: bool = False,
    where: Where = None,
    matrix_of: Callable[[tuple[str, ...], Any], Array] = kernel_matrix,
) -> Array:
    r"""Draws the spectral norm of every kernel to 1 and every bias to 0: the spectrum of a network at initialisation.

    Formula:
      .. math:: \sum_{kernels} (\sigma_1(W)^k - 1)^2 + \sum_{biases} \|b\|_2^{2k}
                + \sum_{norms} \sum_j \left[ (\gamma_j^k - 1)^2 + \beta_j^{2k} \right]

      ``sigma_1 = v^T W u`` with ``u``, ``v`` from ``n_power`` steps of power iteration, constant in the gradient, so that
      ``d sigma_1 = v u^T``. The steps start from a fixed vector each time; `stateful_spectral_penalty` goes on from the
      last step's direction instead.

      Which leaf is what goes by name. A kernel is what `where=None` means everywhere (two or more dimensions, not a bias
      or scale), but for leaves named like an embedding. ``bias`` and ``beta`` are biases, ``scale`` and ``gamma`` the
      :math:`\gamma` of a normalisation layer; a bias beside a scale, and without a kernel, is its :math:`\beta`. Other
      leaves do not count.

    Args:
      params: a parameter tree.
      k: the exponent, default 2; a positive integer. An even one leaves the sign of a scale free.
      n_power: steps of power iteration, default 20. Too few underestimate a norm whose runner-up is close; by then the
        error is small, because it is of second order in the direction's.
      exact: takes the norm from a singular value decomposition instead; slow, for tests and small models.
      where: narrows the leaves further: None and "all" (every leaf with a role), "kernels", a predicate
        ``(path, leaf) -> bool``, or a tree of booleans.
      matrix_of: ``(path, leaf) -> [..., inputs, outputs]``, the matrix, or matrices, of a kernel; default `kernel_matrix`.
        Grouped convolutions and layers stacked for a scan need one of their own.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if ``k`` or ``n_power`` is no positive integer, or another argument is not of the stated form.

    Cost:
      ``4 * n_power`` FLOPs for each weight and as many reads of the kernels; no forward pass. On an Explicit mesh, sharded
      kernels are gathered. XLA counts the body of the loop once, and the gradient of kernels of equal shape once for each of
      them.
      XLA at 8 times [512, 512]: at most 20 times the FLOPs and 4.5 times the bytes of a copy of its arguments, and 0.56 times
      its memory more.

    Use:
      For: loss of plasticity, noisy labels.
      When: Streams of tasks: in the plasticity study networks learnt the last tasks as well as the first. Search 1e-3 to 1e-1:
        our best lay above the published range. Biases and norm scales are held too, so nothing else need be penalised. It also
        gained on noisy digits.
      Not when: Only one task counts: it learns the first one slower. At tuned strengths `l2_sp` to the start (random labels)
        and `orthonormality` (permuted pixels) were ahead of it.
      Badly with: Weight decay of the same leaves, which pulls norms below 1; `orthonormality` and `srip`, which hold the same
        values; leaves under other names than kernel, bias and scale, which it skips; grouped convolutions without
        ``matrix_of``.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> params = {"kernel": jnp.diag(jnp.array([2.0, 1.0])), "bias": jnp.array([0.6, 0.8])}
      >>> round(float(rj.weights.spectral_penalty(params)), 4)
      10.0

    References:
      Lewandowski et al., Learning Continually by Spectral Regularization, 2024, arXiv 2406.06811 (strength 1e-4, search
      range 1e-5 to 1e-2). No authors' code was found; the terms of biases and normalisation layers follow a public
      re-implementation of the final version. A convolution is its reshaped matrix, an approximation of its true norm.
    """
    name = "weights.spectral_penalty"
    _check(name, k, n_power)
    checks.boolean(name, "exact", exact)

    kernels, rest = _terms(name, params, where, matrix_of)
    matrices = [x for _, x in kernels]
    if exact:
        sigmas = [jnp.linalg.svd(x, compute_uv=False)[..., 0] for x in matrices]
    else:
        sigmas, _ = power.largest_singular_values(matrices, None, n_power)
    return _penalty(k, sigmas, rest)


def stateful_spectral_penalty(
    *,
    k: int = 2,
    n_power: int = 1,
    warmup: int = 20,
    where: Where = None,
    matrix_of: Callable[[tuple[str, ...], Any], Array] = kernel_matrix,
) -> Stateful:
    r"""`spectral_penalty` that carries its directions from step to step, so that one power step for each is enough.

    Formula:
      As `spectral_penalty`. ``init`` warms the directions up; ``apply`` moves them by ``n_power`` steps and returns them. A
      kernel of zeros keeps its direction.

    Args:
      k: the exponent, default 2; a positive integer.
      n_power: power steps in each call, default 1.
      warmup: power steps in ``init``, default 20.
      where: narrows the leaves, as in `spectral_penalty`.
      matrix_of: ``(path, leaf) -> [..., inputs, outputs]``, the matrix, or matrices, of a kernel; default `kernel_matrix`.

    Returns:
      A `Stateful`: ``init(key, params) -> SpectralState`` and ``apply(state, params) -> (scalar, state)``. The state has
      no gradient.

    Raises:
      ValueError: if ``k``, ``n_power`` or ``warmup`` is no positive integer, or another argument is not of the stated form.

    Cost:
      ``4 * n_power + 2`` FLOPs for each weight and two reads of the kernels with one step; a vector of memory per kernel. XLA
      counts the body of the loop once, and the gradient of kernels of equal shape once for each of them.
      XLA at 8 times [512, 512]: at most 16 times the FLOPs and 3.4 times the bytes of a copy of its arguments, and 0.56 times
      its memory more.

    Use:
      For: loss of plasticity, noisy labels.
      When: As `spectral_penalty` in training: the form of our studies, with one power step a call and the directions in the
        state of `add_penalty` or a ``Recipe``.
      Not when: It must stand inside a loss transform through `with_penalty`, or parameters are reset between tasks without a
        new ``init``: the directions then lag.
      Badly with: Weight decay of the same leaves; `stateful_srip` and `orthonormality`; vmapped populations that share one
        state.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> params = {"kernel": jnp.diag(jnp.array([2.0, 1.0])), "bias": jnp.array([0.6, 0.8])}
      >>> penalty = rj.weights.stateful_spectral_penalty()
      >>> state = penalty.init(jax.random.key(0), params)
      >>> value, state = penalty.apply(state, params)
      >>> round(float(value), 4)
      10.0

    References:
      Lewandowski et al., Learning Continually by Spectral Regularization, 2024, arXiv 2406.06811 (one power iteration per
      step). Miyato et al., Spectral Normalization for Generative Adversarial Networks, 2018, arXiv 1802.05957 (the carried
      direction).
    """
    name = "weights.stateful_spectral_penalty"
    _check(name, k, n_power)
    checks.integer(name, "warmup", warmup, low=1)
    checks.function(name, "matrix_of", matrix_of)

    def init(key: Key, params: PyTree) -> SpectralState:
        checks.key(name, key)
        return power.start(key, params, _terms(name, params, where, matrix_of)[0], warmup)

    def apply(state: SpectralState, params: PyTree) -> tuple[Array, SpectralState]:
        kernels, rest = _terms(name, params, where, matrix_of)
        matrices = [x for _, x in kernels]
        sigmas, us = power.largest_singular_values(matrices, power.carried(name, state, matrices), n_power)
        return _penalty(k, sigmas, rest), power.placed(params, [i for i, _ in kernels], us)

    return Stateful(init, apply)


def _check(name: str, k: int, n_power: int) -> None:
    checks.integer(name, "k", k, low=1)
    checks.integer(name, "n_power", n_power, low=1)


def _penalty(k: int, sigmas: list[Array], rest: list[tuple[str, Array]]) -> Array:
    terms = [jnp.square(sigma**k - 1) for sigma in sigmas]
    for role, x in rest:
        if role == "bias":
            terms.append(jnp.sum(jnp.square(x)) ** k)
        else:
            terms.append(jnp.square(x**k - 1) if role == "scale" else jnp.square(x) ** k)
    return sum((jnp.sum(term) for term in terms), jnp.zeros((), jnp.float32))


def _terms(name: str, params: PyTree, where: Where, matrix_of: Any) -> tuple[list[tuple[int, Array]], list[tuple[str, Array]]]:
    """The leaves with a role: the kernels' places in the flat tree and matrices, and the role and value of the others."""
    checks.function(name, "matrix_of", matrix_of)
    mask = jax.tree.leaves(trees.select(name, params, "all" if where is None else where))
    flat = [(trees.path_names(path), leaf) for path, leaf in jax.tree_util.tree_flatten_with_path(params)[0]]
    # The layers that are normalisations: they have a scale and no kernel.
    scaled = {path[:-1] for path, leaf in flat if _role(path, leaf) == "scale"}
    scaled -= {path[:-1] for path, leaf in flat if _role(path, leaf) == "kernel"}
    kernels, rest = [], []
    for index, ((path, leaf), use) in enumerate(zip(flat, mask, strict=True)):
        role = _role(path, leaf)
        if not use or role is None:
            continue
        x = jnp.asarray(leaf)
        if role == "kernel":
            kernels.append((index, matrix(name, matrix_of, path, x)))
        else:
            role = "shift" if role == "bias" and path[:-1] in scaled else role
            rest.append((role, x.astype(trees.accumulator(x))))
    return kernels, rest


def _role(path: tuple[str, ...], leaf: Any) -> str | None:
    own = path[-1].lower() if path else ""
    if not trees.is_float(leaf) or "embed" in own:
        return None
    if own.endswith(_BIASES):
        return "bias"
    if own.endswith(_SCALES):
        return "scale"
    return "kernel" if trees.is_kernel(path, leaf) else None
