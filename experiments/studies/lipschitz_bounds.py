"""Bounds of single convolutions against their true norms, and power iteration at equal cost."""

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy.sparse.linalg import LinearOperator, svds

import regjax as rj
from experiments.studies.lipschitz_training import convolve


class Bounded(NamedTuple):
    """Kernels of one shape on inputs of one size; every ratio is to the true norm.

    Attributes:
      circular: of `regjax.weights.gram_iteration_conv` with 0, 1, ... squarings ``[K, T]``.
      zeros: of `regjax.weights.zero_padding_bound` with 1, 2, ... correlations, to the norm with zero padding ``[K, T - 1]``.
      power: of the estimates after 1, 2, ... steps of power iteration, circular ``[K, P]``.
      matrix: of the norm of the kernel reshaped to a matrix, to the circular norm ``[K]``.
      gram_flops: of the squarings ``[T]``.
      power_flops: of the power steps ``[P]``.
      gram_seconds: of a compiled call with so many squarings ``[T]``.
      power_seconds: of a compiled call with so many steps ``[P]``, by one call with all of them.
    """

    circular: Any
    zeros: Any
    power: Any
    matrix: Any
    gram_flops: Any
    power_flops: Any
    gram_seconds: Any
    power_seconds: Any


def circular_norm(kernel: np.ndarray, n: int) -> float:
    """The largest singular value of a circular convolution: of the matrices of all frequencies, in double precision."""
    spectrum = np.fft.fft2(np.asarray(kernel, np.float64), (n, n), axes=(0, 1))
    return float(np.linalg.svd(spectrum, compute_uv=False).max())


def zeros_norm(kernel: np.ndarray, n: int) -> float:
    """The largest singular value of a convolution with zero padding, by Lanczos iteration in double precision."""
    inputs, outputs = kernel.shape[-2:]
    side, reach = kernel.shape[0], kernel.shape[0] // 2
    wide = np.asarray(kernel, np.float64)
    shifts = [(i, j) for i in range(side) for j in range(side)]

    def apply(x: np.ndarray, turned: bool) -> np.ndarray:
        padded = np.pad(x.reshape(n, n, -1), ((reach, reach), (reach, reach), (0, 0)))
        # The transposed operator shifts the other way and swaps the channels.
        taps = ((wide[side - 1 - i, side - 1 - j].T if turned else wide[i, j]) for i, j in shifts)
        return sum(padded[i : i + n, j : j + n] @ tap for (i, j), tap in zip(shifts, taps, strict=True)).ravel()

    shape = (n * n * outputs, n * n * inputs)
    operator = LinearOperator(shape, matvec=lambda x: apply(x, False), rmatvec=lambda x: apply(x, True), dtype=np.float64)
    start = np.random.default_rng(0).normal(size=min(shape))
    return float(svds(operator, k=1, v0=start, return_singular_vectors=False, tol=1e-10)[0])


def power_estimates(kernel: jax.Array, start: jax.Array, steps: int) -> jax.Array:
    """The norms that power iteration on a circular convolution finds after 1, 2, ... steps, from ``start [n, n, in]``.

    A step is a convolution and a transposed one, as in power iteration through a network's layers; its estimate is the length of
    the convolution of the unit vector before it, and never above the true norm.
    """
    forward = lambda u: convolve(u, kernel, "circular")
    backward = jax.linear_transpose(forward, start)

    def step(u: jax.Array, _: Any) -> tuple[jax.Array, jax.Array]:
        v = forward(u)
        (after,) = backward(v)
        return after / jnp.linalg.norm(after), jnp.linalg.norm(v)

    return jax.lax.scan(step, start / jnp.linalg.norm(start), length=steps)[1]


def gram_flops(inputs: int, outputs: int, n: int, n_iter: int) -> float:
    """Real operations of the squarings: a complex multiply-add is 8, a frequency and its conjugate are one."""
    small, large = sorted((inputs, outputs))
    frequencies = n * (n // 2 + 1)
    # The kernel's transform, by that of its rows and columns with 5 n log2 n operations each.
    transform = 5 * n * n * np.log2(n) * 2 * inputs * outputs / 2
    return float(transform + frequencies * 8 * small**2 * (large * (n_iter > 0) + small * max(n_iter - 1, 0)))


def power_flops(side: int, inputs: int, outputs: int, n: int, steps: int) -> float:
    """Real operations of power steps: two convolutions each."""
    return float(steps * 2 * 2 * side**2 * inputs * outputs * n * n)


def compare(kernels: np.ndarray, n: int, n_iter: Sequence[int], steps: int, repeats: int) -> Bounded:
    """All bounds of some kernels ``[K, k, k, in, out]``.

    Args:
      kernels: of one shape.
      n: the input's positions along each axis.
      n_iter: the numbers of squarings, from 0.
      steps: of power iteration.
      repeats: calls of which the fastest is timed.

    Returns:
      `Bounded`.
    """
    side, _, inputs, outputs = kernels.shape[1:]
    true = np.array([circular_norm(kernel, n) for kernel in kernels])
    true_zeros = np.array([zeros_norm(kernel, n) for kernel in kernels])
    matrix = np.linalg.norm(np.asarray(kernels, np.float64).reshape(len(kernels), -1, outputs), ord=2, axis=(1, 2))
    gram = [jax.jit(lambda kernel, t=t: rj.weights.gram_iteration_conv(kernel, n=n, n_iter=t)) for t in n_iter]
    zeros = [jax.jit(lambda kernel, t=t: rj.weights.zero_padding_bound(kernel, n_iter=t)) for t in n_iter if t]
    power = jax.jit(lambda kernel, start: power_estimates(kernel, start, steps))
    arrays = [jnp.asarray(kernel, jnp.float32) for kernel in kernels]
    starts = jax.random.normal(jax.random.key(0), (len(kernels), n, n, inputs))
    every = lambda bounds: np.array([[float(bound(x)) for bound in bounds] for x in arrays])
    estimates = np.stack([np.asarray(power(x, start), np.float64) for x, start in zip(arrays, starts, strict=True)])
    return Bounded(
        every(gram) / true[:, None],
        every(zeros) / true_zeros[:, None],
        estimates / true[:, None],
        matrix / true,
        np.array([gram_flops(inputs, outputs, n, t) for t in n_iter]),
        np.array([power_flops(side, inputs, outputs, n, k) for k in range(1, steps + 1)]),
        np.array([fastest(bound, arrays[0], repeats=repeats) for bound in gram]),
        fastest(power, arrays[0], starts[0], repeats=repeats) * np.arange(1, steps + 1) / steps,
    )


def fastest(function: Callable[..., Any], *arguments: Any, repeats: int) -> float:
    """The least seconds of a compiled call."""
    seconds = []
    for _ in range(repeats):
        begun = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - begun)
    return min(seconds)
