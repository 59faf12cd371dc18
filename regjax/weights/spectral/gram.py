"""Gram iteration: upper bounds of a layer's spectral norm that are tight, deterministic and differentiable."""

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array
from regjax.weights.matrix import gram_matrix


def gram_iteration(w: Any, *, n_iter: int = 6) -> Array:
    r"""An upper bound of a matrix's largest singular value, which some squarings bring close to it.

    Formula:
      .. math:: \|(W^T W)^{2^{t-1}}\|_F^{2^{-t}} = \left( \sum_i \sigma_i^{2^{t+1}} \right)^{2^{-(t+1)}}

      with ``t = n_iter`` squarings of the smaller Gram matrix, each scaled to norm 1 before it. But for rounding it is never
      below the largest singular value, and at most :math:`rank^{2^{-(t+1)}}` times it; with ``n_iter=0`` it is the
      Frobenius norm. The gradient is the closed form :math:`G A^{2^t - 1} / \sigma`, :math:`A = G^T G / \sigma^2`, so that
      no iterate is kept for the backward pass. A matrix of zeros gives 0 with gradient 0.

    Args:
      w: float ``[..., m, n]``, a matrix or several.
      n_iter: the number of squarings, at least 0; default 6.

    Returns:
      ``[...]``, a bound for each matrix, in float32 or better.

    Raises:
      ValueError: if ``w`` is no floating-point array of two or more dimensions or ``n_iter`` no integer of at least 0.

    Cost:
      ``n_iter`` products of matrices of the smaller side forward, twice as many backward; no forward pass of the model. Power
      iteration has a rough estimate, from below, sooner; from errors of 1e-4 on this is faster. On an Explicit mesh, a
      sharded matrix is gathered.
      XLA at [512, 512]: at most 6.7 times the FLOPs and 8 times the bytes of the squares of Gram matrices with their gradient,
      and 0.83 times its memory more.

    Use:
      For: adversarial inputs.
      When: A true upper bound of a dense layer's norm is needed, with gradients: certificates, `lipschitz_penalty`, Lipschitz
        products. Six squarings leave a few percent at worst, and hardly anything in practice.
      Not when: A rough estimate from below does: one carried power step, as in `spectral_normalize`, is cheaper. Kernels of
        convolutions: `gram_iteration_conv`.
      Badly with: Reading the product over layers as the network's constant: it was many times the largest Jacobian of our
        unregularised CNN. Normalisations and attention between the layers are not in it.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.weights.gram_iteration(jnp.diag(jnp.array([2.0, 1.0])), n_iter=2)), 4)
      2.001

    References:
      Delattre et al., Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration, 2023,
      arXiv 2305.16173. The released code's dense class with the closed-form gradient stops after one iteration; this
      follows the differentiable function, whose gradient equals the closed form.
    """
    name = "weights.gram_iteration"
    w = checks.floating(name, "w", w, min_ndim=2)
    checks.integer(name, "n_iter", n_iter, low=0)
    w = sharding.replicate(w)
    return bound(w.astype(trees.accumulator(w)), n_iter)


def gram_iteration_conv(
    kernel: Any, *, n: int | Sequence[int], n_iter: int = 6, grid: int | Sequence[int] | None = None
) -> Array:
    r"""An upper bound of the largest singular value of a convolution with circular padding.

    Formula:
      .. math:: \max_f \, bound(\hat{K}_f), \quad \hat{K}_f = \sum_p K_p \, e^{-2 \pi i \, p \cdot f / n}

      the bound that of `gram_iteration`, over the frequencies of an input of ``n x n`` positions; half of them are enough,
      since the kernel is real. The gradient is that of the largest frequency.

      A coarser ``grid`` of :math:`n_0 < n` frequencies costs less. Its largest value is then multiplied, in here, by
      :math:`(1 - 2 \lfloor k/2 \rfloor / n_0)^{-1/2}` for each axis, with the axis's own k and :math:`n_0`: for a square kernel
      of two axes by :math:`1 / (1 - 2 \lfloor k/2 \rfloor / n_0)`. The result bounds all inputs, however large.

    Args:
      kernel: float ``[k, k, in, out]``, or another number of one to three spatial axes; stride 1, no groups.
      n: the number of positions along each spatial axis of the input, or one number for each axis; at least k.
      n_iter: the number of squarings, at least 0; default 6.
      grid: the number of frequencies along each axis, or one for each: at least k, more than :math:`2 \lfloor k/2 \rfloor`,
        less than ``n``; None (default): ``n``.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if ``kernel`` is no such array, ``n`` or ``grid`` is out of range, or ``n_iter`` is negative.

    Cost:
      ``n_iter`` products of complex matrices of the smaller side for each of about ``n * n / 2`` frequencies, and memory for
      three ``in x out`` complex matrices of each; the backward pass is that of one frequency.
      XLA at [3, 3, 64, 64]: at most 82,000 times the FLOPs and 5,100 times the bytes of a copy of its arguments, and 210 times
      its memory more.

    Use:
      For: adversarial inputs.
      When: The norm of a stride-1 convolution with circular padding, or a bound for zero padding with the input enlarged by its
        border; five squarings are exact to four digits. ``grid`` for large inputs.
      Not when: Strided or grouped convolutions; in each step of a large model, where the number of frequencies times channels
        squared dominates.
      Badly with: Strides and batch normalisation, which it does not see. Its gradient is that of the largest frequency alone,
        so that with many equal ones each step presses one.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.weights.gram_iteration_conv(jnp.ones((3, 3, 1, 1)), n=8)), 4)
      9.0

    References:
      Delattre et al., Efficient Bound of Lipschitz Constant for Convolutional Layers by Gram Iteration, 2023, arXiv 2305.16173.
      Pfister and Bresler, Bounding Multivariate Trigonometric Polynomials, 2019, IEEE Transactions on Signal Processing 67 (the
      factor of the coarser grid, here the square root of each axis's own). With ties, of which symmetric kernels have many, the
      gradient is that of the first frequency.
    """
    name = "weights.gram_iteration_conv"
    kernel = _convolution(name, kernel)
    checks.integer(name, "n_iter", n_iter, low=0)
    sides = kernel.shape[:-2]
    sizes = axis_sizes(name, "n", n, sides)
    if grid is None:
        return conv_bound(kernel, sizes, n_iter)
    coarse = axis_sizes(name, "grid", grid, sides)
    if not all(2 * (k // 2) < g < size for k, g, size in zip(sides, coarse, sizes, strict=True)):
        checks.fail(name, "grid", f"more than twice half the kernel's {list(sides)} and less than n = {list(sizes)}", grid)
    factor = math.prod((1 - 2 * (k // 2) / g) ** -0.5 for k, g in zip(sides, coarse, strict=True))
    return factor * conv_bound(kernel, coarse, n_iter)


def zero_padding_bound(kernel: Any, *, n_iter: int = 4) -> Array:
    r"""An upper bound of the largest singular value of a convolution with zero padding, for inputs of every size.

    Formula:
      .. math:: \max_o \left( \sum_{p, o'} |K^{(t)}_{p, o', o}| \right)^{2^{-t}}, \quad
                K^{(s+1)} = K^{(s)} \star K^{(s)}

      :math:`\star` is the correlation of all filters with each other over all overlaps, a convolution among output channels
      of spatial size 2k - 1, and ``t = n_iter``. Each step is scaled to norm 1; the side of fewer channels counts as the
      outputs. It bounds circular padding too. A kernel of zeros gives 0 with gradient 0.

    Args:
      kernel: float ``[k, k, in, out]``, or another number of one to three spatial axes; stride 1, no groups.
      n_iter: the number of correlations, at least 1; default 4.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if ``kernel`` is no such array or ``n_iter`` no positive integer.

    Cost:
      ``n_iter`` products of complex matrices of the smaller side for each of about ``(2^t (k - 1) + 1)^2 / 2`` frequencies, and
      as many backward, for which those of each step are kept.
      XLA at [3, 3, 64, 64]: at most 160,000 times the FLOPs and 5,900 times the bytes of a copy of its arguments, and 480 times
      its memory more.

    Use:
      For: adversarial inputs.
      When: Convolutions pad with zeros, or the input size is not known: the bound holds for all sizes and for circular padding.
      Not when: One input size with circular padding: `gram_iteration_conv` is tighter. On small inputs it stayed some percent
        above the truth after five steps, for it must hold for large ones.
      Badly with: Many iterations on wide layers: frequencies grow with each and all steps are kept for the backward pass;
        strides and groups.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.weights.zero_padding_bound(jnp.ones((3, 3, 1, 1)))), 4)
      9.0

    References:
      Delattre et al., Spectral Norm of Convolutional Layers with Circular and Zero Paddings, 2024, arXiv 2402.00240. The
      correlations are taken as products of Fourier transforms, equal to the authors' and much cheaper. The published code
      swaps the channels where there are more inputs than outputs, this where there are fewer, which is cheaper and no
      less a bound.
    """
    name = "weights.zero_padding_bound"
    kernel = _convolution(name, kernel)
    checks.integer(name, "n_iter", n_iter, low=1)
    if kernel.shape[-1] > kernel.shape[-2]:
        kernel = jnp.swapaxes(kernel, -1, -2)
    return jnp.max(filter_bounds(kernel, n_iter))


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def bound(g: Array, n_iter: int) -> Array:
    """The Gram-iteration bound of real or complex matrices ``g [..., m, n]``."""
    g, scale = _scaled(_tall(g))
    log = jnp.zeros_like(scale)
    for _ in range(n_iter):
        g, norm = _normalised(g)
        log = 2 * (log + jnp.log(norm))
        g = gram_matrix(g)
    root = 2.0**-n_iter
    some = scale > 0
    value = jnp.where(some, _norm(g), 1) ** root * jnp.exp(root * log)
    return jnp.where(some, scale * value, 0)


@bound.defjvp
def _bound_jvp(n_iter: int, primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (g,), (dg,) = primals, tangents
    value = bound(g, n_iter)
    return value, jnp.sum(_inner(_slope(g, value, n_iter), dg), axis=(-2, -1))


def _slope(g: Array, value: Array, n_iter: int) -> Array:
    """The derivative of the bound by ``g``: a multiple of ``g A^(2^t - 1)``, with ``A`` the Gram matrix, the exponent
    ``1 + 2 + 4 + ...``; which multiple, follows from the bound's being homogeneous: ``<g, slope> = bound``."""
    wide = g.shape[-2] < g.shape[-1]
    g, scale = _scaled(_tall(g))
    slope = g
    if n_iter:
        power, _ = _normalised(gram_matrix(g))
        product = power
        for _ in range(n_iter - 1):
            power, _ = _normalised(_product(power, power))
            product, _ = _normalised(_product(product, power))
        slope = _product(g, product)
    some = scale > 0
    along = jnp.where(some, jnp.sum(_inner(g, slope), axis=(-2, -1)) * jnp.where(some, scale, 1), 1)
    slope = slope * (jnp.where(some, value, 0) / along)[..., None, None]
    return jnp.swapaxes(slope, -1, -2) if wide else slope


def conv_bound(kernel: Array, sizes: Sequence[int], n_iter: int) -> Array:
    """The bound of ``kernel [..., in, out]`` for a circular input of these sizes."""
    axes = tuple(range(len(sizes)))
    bounds = bound(jnp.fft.rfftn(jax.lax.stop_gradient(kernel), sizes, axes), n_iter)
    best = jnp.unravel_index(jnp.argmax(bounds), bounds.shape)
    # Only the largest frequency has a gradient: its matrix alone, once more, spares the backward pass all others.
    matrix = kernel
    for size, side, frequency in zip(sizes, kernel.shape, best, strict=False):
        angle = (jnp.arange(side) * frequency % size).astype(kernel.dtype) * (-2 * math.pi / size)
        phase = jax.lax.complex(jnp.cos(angle), jnp.sin(angle))
        matrix = jnp.einsum("k,k...->...", phase, matrix, precision="highest")
    return bound(matrix, n_iter)


def filter_bounds(kernel: Array, n_iter: int) -> Array:
    """The factor of each output filter of ``kernel [..., in, out]``: whose division makes the layer 1-Lipschitz."""
    axes = tuple(range(kernel.ndim - 2))
    # On so many points the circular correlations of all steps have room for every overlap.
    sizes = tuple(2**n_iter * (side - 1) + 1 for side in kernel.shape[:-2])
    whole = tuple(range(kernel.ndim))
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(kernel), axis=whole, initial=0))
    some = scale > 0
    scale = jnp.where(some, scale, 1)
    spectrum = kernel / scale
    spectrum = jnp.fft.rfftn(spectrum, sizes, axes) if axes else spectrum
    log = jnp.zeros((), scale.dtype)
    for _ in range(n_iter):
        # Any scale gives the same value and gradient; that of the spectrum is at hand.
        norm = jax.lax.stop_gradient(_norm(spectrum, whole))
        norm = jnp.where(norm > 0, norm, 1)
        log = 2 * (log + jnp.log(norm))
        spectrum = gram_matrix(spectrum / norm)
    filters = jnp.fft.irfftn(spectrum, sizes, axes) if axes else spectrum
    # The signs of what is only rounding of the transforms are no gradient.
    size = jax.lax.stop_gradient(jnp.abs(filters))
    signal = size > 16 * jnp.finfo(size.dtype).eps * jnp.max(size, initial=0)
    total = jnp.sum(jnp.where(signal, trees.absolute(filters), size), axis=whole[:-1])
    root = 2.0**-n_iter
    some = total > 0
    return jnp.where(some, scale * jnp.where(some, total, 1) ** root * jnp.exp(root * log), 0)


def axis_sizes(function: str, argument: str, sizes: Any, sides: Sequence[int]) -> tuple[int, ...]:
    """One size for each spatial axis, none smaller than the kernel: a transform would crop it silently."""
    each = tuple(sizes) if isinstance(sizes, tuple | list) else (sizes,) * len(sides)
    integers = all(isinstance(size, int) and not isinstance(size, bool) for size in each)
    if not integers or len(each) != len(sides) or any(size < side for size, side in zip(each, sides, strict=True)):
        expected = f"an integer, or {len(sides)} of them, at least the kernel's {list(sides)}"
        checks.fail(function, argument, expected, sizes)
    return each


def _convolution(function: str, kernel: Any) -> Array:
    kernel = checks.floating(function, "kernel", kernel, min_ndim=3)
    if kernel.ndim > 5:
        checks.fail(function, "kernel", "an array [..., in, out] with one to three spatial axes", kernel)
    return sharding.replicate(kernel).astype(trees.accumulator(kernel))


def _tall(g: Array) -> Array:
    return jnp.swapaxes(g, -1, -2) if g.shape[-2] < g.shape[-1] else g


def _scaled(g: Array) -> tuple[Array, Array]:
    """Matrices over their largest entries, so that no square overflows or vanishes, and those entries."""
    scale = jax.lax.stop_gradient(jnp.max(jnp.abs(g), axis=(-2, -1), initial=0))
    return g / jnp.where(scale > 0, scale, 1)[..., None, None], scale


def _normalised(g: Array) -> tuple[Array, Array]:
    norm = _norm(g)
    norm = jnp.where(norm > 0, norm, 1)
    return g / norm[..., None, None], norm


def _norm(g: Array, axis: tuple[int, ...] = (-2, -1)) -> Array:
    return trees.safe_sqrt(jnp.sum(_inner(g, g), axis=axis))


def _inner(a: Array, b: Array) -> Array:
    """The terms of the real inner product."""
    return jnp.real(a) * jnp.real(b) + jnp.imag(a) * jnp.imag(b) if jnp.iscomplexobj(a) else a * b


def _product(a: Array, b: Array) -> Array:
    return jnp.einsum("...ij,...jk->...ik", a, b, precision="highest")
