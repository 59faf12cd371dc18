"""Spectra of curvature matrices that are known by their products alone: Lanczos, its densities, and the top eigenvalue."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, Key, PyTree
from regjax.diagnostics.curvature import _vectors
from regjax.diagnostics.curvature.curvature import MatVec, on_leaves


class LanczosSpectrum(NamedTuple):
    """What `lanczos_spectrum` and `stochastic_lanczos` return: Ritz values in ascending order, and their weights."""

    ritz_values: Array
    weights: Array


class SpectralDensity(NamedTuple):
    """What `spectral_density` returns."""

    grid: Array
    density: Array


class TopEigenvalue(NamedTuple):
    """What `top_eigenvalue` returns."""

    value: Array
    vector: PyTree
    residual: Array


def lanczos_spectrum(matvec: MatVec, start: PyTree, *, num_steps: int = 20, reorthogonalize: bool = True) -> LanczosSpectrum:
    r"""Ritz values and weights of a symmetric matrix: its largest and smallest eigenvalues, and its moments along a vector.

    Formula:
      From :math:`q_1 = v / \|v\|`, with :math:`\beta_0 = 0`:

      .. math:: r_j = A q_j - \alpha_j q_j - \beta_{j-1} q_{j-1}, \quad \alpha_j = q_j^T A q_j, \quad
         \beta_j = \|r_j\|, \quad q_{j+1} = r_j / \beta_j

      T has the :math:`\alpha` on its diagonal and the :math:`\beta` beside it; with :math:`T = U diag(\theta) U^T` the Ritz
      values are :math:`\theta_j`, the weights :math:`U_{1j}^2`. They sum to 1, and
      :math:`\sum_j U_{1j}^2 \theta_j^k = q_1^T A^k q_1` for k up to 2 m - 1.

    Args:
      matvec: ``matvec(vector) -> A vector`` of a symmetric A, such as `hessian_matvec` makes; it gets and returns trees like
        ``start``, in float32 or better.
      start: the vector v: a flat array, or a tree, in which leaves that are no floats are passed on unchanged.
      num_steps: m, at least 1, default 20.
      reorthogonalize: whether each :math:`r_j` is made orthogonal to all before it, twice (default): without it, after about
        ten steps in float32, eigenvalues appear several times.

    Returns:
      ``LanczosSpectrum(ritz_values [m], weights [m])`` in float32 or better, ascending. Where the recurrence ends early, as it
      does when A has fewer than m eigenvalues along v, the rest repeats the largest Ritz value with weight 0.

    Raises:
      ValueError: if ``matvec`` is no function or returns another tree, or an option does not fit.

    Cost:
      m products, and 4 m passes over m vectors; the memory of m vectors. Without re-orthogonalisation of three. XLA counts the
      body of the loop once.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.5 times the FLOPs and 6.7 times the bytes of one product with
      the Hessian, and 5.7 times its memory more.

    Use:
      For: sharp minima, unstable training.
      When: Both ends of a spectrum, or its moments along a chosen vector such as the gradient, as `lr_from_spectrum` uses them:
        some 20 steps on one fixed batch.
      Not when: Only the top is asked (`top_eigenvalue`), or a density (`stochastic_lanczos`): one start sees what it has a part
        in. Inner eigenvalues do not converge.
      Badly with: Products that are not symmetric, as of layers with `modulate_backward`, which it does not notice. Small
        batches, whose outer eigenvalues are larger: `batch_max_eigenvalue`.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> diagonal = jnp.array([1.0, 2.0, 4.0])
      >>> spectrum = rj.diagnostics.lanczos_spectrum(lambda v: diagonal * v, jnp.ones(3), num_steps=2)
      >>> [round(float(x), 4) for x in spectrum.ritz_values], [round(float(w), 4) for w in spectrum.weights]
      ([1.3017, 3.8412], [0.5938, 0.4062])

    References:
      Lanczos, An Iteration Method for the Solution of the Eigenvalue Problem of Linear Differential and Integral Operators,
      1950, Journal of Research of the National Bureau of Standards 45; as used by Granziol et al., Learning Rates as a Function
      of Batch Size: A Random Matrix Theory Approach to Neural Network Training, 2022, arXiv 2006.09092. An off-diagonal below 8
      roundings of the largest entry of T counts as 0.
    """
    name = "diagnostics.lanczos_spectrum"
    _check(name, matvec, num_steps)
    checks.boolean(name, "reorthogonalize", reorthogonalize)
    product = on_leaves(name, matvec, start)
    return _lanczos(product, _vectors.floats(start), num_steps, reorthogonalize).spectrum


def stochastic_lanczos(
    key: Key, matvec: MatVec, params: PyTree, *, num_probes: int = 4, num_steps: int = 20, reorthogonalize: bool = True
) -> LanczosSpectrum:
    r"""The spectrum of a matrix from a few random vectors: stochastic Lanczos quadrature.

    Formula:
      `lanczos_spectrum` from each of k standard-normal vectors. With P rows,

      .. math:: tr f(A) \approx \frac P k \sum_{i,j} \omega_{ij} f(\theta_{ij})

    Args:
      key: a random key.
      matvec: as in `lanczos_spectrum`.
      params: a tree like the vectors, of which only the shapes are read.
      num_probes: k, at least 1, default 4; one after the other.
      num_steps: m, the Lanczos steps of each, default 20.
      reorthogonalize: as in `lanczos_spectrum`.

    Returns:
      ``LanczosSpectrum(ritz_values [k, m], weights [k, m])``, for `spectral_density`.

    Raises:
      ValueError: if ``matvec`` is no function or returns another tree, or an option does not fit.

    Cost:
      k m products; the memory of m vectors. XLA counts the body of the loop once.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.6 times the FLOPs and 7.6 times the bytes of one product with
      the Hessian, and 6.3 times its memory more.

    Use:
      For: sharp minima, unstable training.
      When: The whole spectrum is asked: the bulk at 0, outliers, the share below 0, or traces of a function, such as a
        log-determinant. More probes for a trace, more steps for its ends.
      Not when: A number a step is wanted in training: even 4 probes of 20 steps are 80 products. `top_eigenvalue` with a warm
        start, or `average_case_sharpness` for the trace.
      Badly with: Batches that change between products. Few probes for rare outliers: each carries a weight of about one over
        the number of parameters.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> diagonal = jnp.array([1.0, 2.0, 4.0])
      >>> run = rj.diagnostics.stochastic_lanczos(jax.random.key(0), lambda v: diagonal * v, jnp.ones(3), num_steps=3)
      >>> [round(float(x), 3) for x in run.ritz_values[0]]
      [1.0, 2.0, 4.0]

    References:
      Ubaru et al., Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature, 2017, SIAM Journal on Matrix Analysis and
      Applications 38; Ghorbani et al., An Investigation into Neural Net Optimization via Hessian Eigenvalue Density, 2019,
      arXiv 1901.10159.
    """
    name = "diagnostics.stochastic_lanczos"
    checks.key(name, key)
    _check(name, matvec, num_steps)
    checks.integer(name, "num_probes", num_probes, low=1)
    checks.boolean(name, "reorthogonalize", reorthogonalize)
    product, leaves = on_leaves(name, matvec, params), _vectors.floats(params)

    def probe(key: Key) -> LanczosSpectrum:
        return _lanczos(product, _vectors.normals(key, leaves), num_steps, reorthogonalize).spectrum

    return jax.lax.map(probe, jax.random.split(key, num_probes))


def spectral_density(
    ritz_values: Any, weights: Any, *, grid: Any = None, num_points: int = 512, bandwidth: Any = None
) -> SpectralDensity:
    r"""The density of eigenvalues as a curve: Ritz values widened to Gaussians and averaged over probes.

    Formula:
      .. math:: \phi(t) = \frac 1 k \sum_{i,j} \omega_{ij} \, N(t; \theta_{ij}, \sigma^2)

    Args:
      ritz_values: :math:`\theta`, ``[k, m]`` from `stochastic_lanczos`, or ``[m]`` of one probe.
      weights: :math:`\omega`, of the same shape.
      grid: the points t, an array ``[n]``; None (default): ``num_points`` even ones, 5 widths beyond all Ritz values.
      num_points: n of the default grid, at least 2, default 512.
      bandwidth: :math:`\sigma`, above 0; None (default): a hundredth of the range of the Ritz values.

    Returns:
      ``SpectralDensity(grid [n], density [n])`` in float32 or better; over the default grid it integrates to 1.

    Raises:
      ValueError: if the shapes differ or an option does not fit.

    Cost:
      O(n k m).
      XLA at 2 times [8, 64]: at most 2,000 times the FLOPs and 3.1 times the bytes of a copy of its arguments, and 0.027 times
      its memory more.

    Use:
      Part of: `stochastic_lanczos`.
      When: To plot the spectrum, on a logarithmic axis, as outliers weigh next to nothing. Give one ``grid`` and ``bandwidth``
        to curves that are compared.
      Badly with: The default bandwidth beside one large outlier, a hundredth of whose range may smear the whole bulk.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> density = rj.diagnostics.spectral_density(jnp.array([0.0, 1.0]), jnp.array([0.9, 0.1]))
      >>> round(float(jnp.trapezoid(density.density, density.grid)), 4)
      1.0

    References:
      Ghorbani et al., An Investigation into Neural Net Optimization via Hessian Eigenvalue Density, 2019, arXiv 1901.10159.
    """
    name = "diagnostics.spectral_density"
    ritz_values = checks.floating(name, "ritz_values", ritz_values, min_ndim=1)
    weights = checks.floating(name, "weights", weights, shape=ritz_values.shape)
    checks.integer(name, "num_points", num_points, low=2)
    dtype = trees.accumulator(ritz_values, weights)
    centres, heights = (x.astype(dtype).reshape(-1) for x in (ritz_values, weights))
    probes = ritz_values.size // ritz_values.shape[-1] if ritz_values.size else 0
    if probes == 0:
        checks.fail(name, "ritz_values", "an array with at least one Ritz value", ritz_values)
    low, high = jnp.min(centres), jnp.max(centres)
    # Around a single eigenvalue the range is 0: then its size, or 1.
    size = jnp.where(high != 0, jnp.abs(high), 1)
    if bandwidth is None:
        sigma = jnp.where(high > low, high - low, size) / 100
    else:
        sigma = jnp.asarray(checks.number(name, "bandwidth", bandwidth, low=0.0, open_low=True), dtype)
    if grid is None:
        share = jnp.linspace(0, 1, num_points, dtype=dtype)
        grid = (1 - share) * (low - 5 * sigma) + share * (high + 5 * sigma)
    else:
        grid = checks.floating(name, "grid", grid, ndim=1).astype(dtype)
    curves = jnp.exp(-jnp.square((grid[:, None] - centres) / sigma) / 2)
    density = jnp.sum(curves * heights, axis=1) / (probes * sigma * jnp.sqrt(2 * jnp.pi).astype(dtype))
    return SpectralDensity(grid, density)


def top_eigenvalue(
    matvec: MatVec,
    start: PyTree,
    *,
    num_steps: int = 20,
    which: Literal["largest", "smallest", "magnitude"] = "largest",
    tolerance: Any = 0.0,
) -> TopEigenvalue:
    r"""The largest eigenvalue of a symmetric matrix, with its eigenvector: the sharpness of a loss, given its Hessian.

    Formula:
      The outermost Ritz value of `lanczos_spectrum`, and the Ritz vector :math:`v = \sum_j U_{ji} q_j`.

    Args:
      matvec: as in `lanczos_spectrum`.
      start: a vector that is not orthogonal to the eigenvector: a random one, or the eigenvector of an earlier step.
      num_steps: m, at least 1, default 20; the residual says whether it was enough.
      which: ``"largest"`` (default), ``"smallest"``, or ``"magnitude"``: the largest in absolute value.
      tolerance: the recurrence ends at a :math:`\beta_j` of at most this, an absolute number, at least 0, default 0.

    Returns:
      ``TopEigenvalue(value, vector, residual)``: a scalar, a tree like ``start`` of length 1 that has no negative product with
      ``start``, and :math:`\|A v - \lambda v\|`, within which an eigenvalue lies. Float32 or better.

    Raises:
      ValueError: if ``matvec`` is no function or returns another tree, or an option does not fit.

    Cost:
      m + 1 products; the memory of m vectors. XLA counts the body of the loop once.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 2.6 times the FLOPs and 8.8 times the bytes of one product with
      the Hessian, and 5.7 times its memory more.

    Use:
      For: sharp minima, unstable training.
      When: Full-batch or large-batch runs, against 2 over the rate, the edge of stability: start from the vector of the last
        measurement. On digits with wrong labels it ended clearly lower under `sam`.
      Not when: Networks of different scale are compared: rescaled layers compute the same and have other eigenvalues.
        `worst_case_sharpness` with ``adaptive`` is blind to that.
      Badly with: Kernels before a normalisation, where longer weights read flatter. Momentum, Adam and small batches, whose
        edge is elsewhere (`max_learning_rate`). A residual that is large beside the value: take more steps.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> diagonal = jnp.array([1.0, 2.0, -4.0])
      >>> top = rj.diagnostics.top_eigenvalue(lambda v: diagonal * v, jnp.ones(3))
      >>> round(float(top.value), 4), [round(abs(float(x)), 4) for x in top.vector]
      (2.0, [0.0, 1.0, 0.0])

    References:
      Parlett, The Symmetric Eigenvalue Problem, 1980. Power iteration would need many more products where the next eigenvalue
      is near, as in neural networks.
    """
    name = "diagnostics.top_eigenvalue"
    _check(name, matvec, num_steps)
    checks.choice(name, "which", which, ("largest", "smallest", "magnitude"))
    checks.number(name, "tolerance", tolerance, low=0.0)
    product = on_leaves(name, matvec, start)
    run = _lanczos(product, _vectors.floats(start), num_steps, True, tolerance)
    values = run.spectrum.ritz_values
    chosen = {"largest": run.steps_taken - 1, "smallest": 0 * run.steps_taken, "magnitude": jnp.argmax(jnp.abs(values))}[which]
    at = jnp.minimum(chosen, run.steps_taken - 1)
    row = jnp.sum(jnp.where(jnp.arange(num_steps) == at, run.vectors, 0), axis=1)
    row = row * jnp.where(row[0] < 0, -1, 1).astype(row.dtype)
    # Normalised again: without it an eigenvalue would be off by the rounding of the basis.
    vector = _vectors.unit([_combined(basis, row) for basis in run.basis])
    image = product(vector)
    value = trees.vdot(vector, image)
    residual = trees.global_norm([a - value.astype(v.dtype) * v for a, v in zip(image, vector, strict=True)])
    return TopEigenvalue(value, trees.with_float_leaves(start, vector), residual)


class _Run(NamedTuple):
    """A Lanczos run: its spectrum, the eigenvectors of T, the basis, and how many steps it took."""

    spectrum: LanczosSpectrum
    vectors: Array
    basis: list[Array]
    steps_taken: Array


def _lanczos(
    product: Callable[[list[Array]], list[Array]], start: list[Array], num_steps: int, keep: bool, tolerance: Any = 0.0
) -> _Run:
    dtype = trees.accumulator(*start)
    least = jnp.asarray(tolerance, dtype)
    rounding = 8 * jnp.finfo(dtype).eps
    first = _vectors.unit(start)
    rows = lambda x: jnp.broadcast_to(jnp.zeros_like(x)[None], (num_steps, *x.shape))
    zero = jnp.zeros((), dtype)

    def step(carry: Any, j: Array) -> Any:
        basis, previous, q, beta, size, alive = carry
        if keep:
            basis = [jax.lax.dynamic_update_index_in_dim(b, x, j, 0) for b, x in zip(basis, q, strict=True)]
        image = product(q)
        alpha = trees.vdot(q, image).astype(dtype)
        rest = [a - alpha.astype(a.dtype) * x - beta.astype(a.dtype) * p for a, x, p in zip(image, q, previous, strict=True)]
        for _ in range(2 if keep else 0):
            # Once is not enough: what the first pass removes leaves rounding of its own size.
            along = _coordinates(basis, rest, dtype)
            rest = [r - _combined(b, along) for r, b in zip(rest, basis, strict=True)]
        length = trees.global_norm(rest).astype(dtype)
        size = jnp.maximum(size, jnp.maximum(jnp.abs(alpha), length))
        # Below its own rounding the next vector would be noise, and divided by 0 where the space is exhausted.
        goes_on = alive & (length > jnp.maximum(rounding * size, least))
        following = _vectors.scale(rest, jnp.where(goes_on, 1 / jnp.where(goes_on, length, 1), 0))
        beta = jnp.where(goes_on, length, 0)
        return (basis, q, following, beta, size, goes_on), (alpha, beta, alive)

    basis = [rows(x) for x in first] if keep else []
    carry: Any = (basis, [jnp.zeros_like(x) for x in first], first, zero, zero, jnp.asarray(True))
    (basis, *_), (alphas, betas, alive) = jax.lax.scan(step, carry, jnp.arange(num_steps))
    # Steps that did not take place become eigenvalues above all others, so that they come last and are known there.
    bound = 2 * (jnp.max(jnp.where(alive, jnp.abs(alphas), 0)) + 2 * jnp.max(betas))
    alphas = jnp.where(alive, alphas, jnp.where(bound > 0, bound, 1))
    tridiagonal = jnp.diag(alphas) + jnp.diag(betas[:-1], 1) + jnp.diag(betas[:-1], -1)
    values, vectors = jnp.linalg.eigh(tridiagonal)
    count = jnp.sum(alive)
    taken = jnp.arange(num_steps) < count
    largest = jnp.max(jnp.where(taken, values, -jnp.inf))
    spectrum = LanczosSpectrum(jnp.where(taken, values, largest), jnp.where(taken, jnp.square(vectors[0]), 0))
    return _Run(spectrum, vectors, basis, count)


def _coordinates(basis: list[Array], vector: list[Array], dtype: Any) -> Array:
    """The products of each row of the basis with a vector."""
    parts = [jnp.sum(b * x, axis=tuple(range(1, b.ndim))).astype(dtype) for b, x in zip(basis, vector, strict=True)]
    return sum(parts[1:], parts[0]) if parts else jnp.zeros((1,), dtype)


def _combined(rows: Array, coordinates: Array) -> Array:
    """The sum of the rows, each times its coordinate."""
    return jnp.sum(coordinates.astype(rows.dtype).reshape(-1, *(1,) * (rows.ndim - 1)) * rows, axis=0)


def _check(name: str, matvec: Any, num_steps: Any) -> None:
    checks.function(name, "matvec", matvec)
    checks.integer(name, "num_steps", num_steps, low=1)
