"""Ordered low-rank layers as functions: a kernel is a product of two factors, of which the first r ranks may be used alone.

The modules over them are in `regjax.layers.ordered.ordered_modules`; what orders the ranks, in
`regjax.weights.penalties.low_rank` (a penalty) and `regjax.layers.ordered.rank_sampling`.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Strength

_LETTERS = "DHW"


def svd_factorize(kernel: Any) -> tuple[Array, Array]:
    r"""Factors of a kernel whose first r ranks are its best approximation of rank r.

    Formula:
      .. math:: K = A S B^T, \quad u = A \sqrt{S}, \quad v = \sqrt{S} B^T

      a convolution as the matrix of its kernel positions and input channels by its output channels. Of the two signs of a
      pair of vectors the one is taken that makes the largest entry of the column of u positive.

    Args:
      kernel: float ``[inputs, outputs]`` or ``[..., channels, outputs]``.

    Returns:
      ``(u, v)``: ``u [..., channels, R]`` and ``v [R, outputs]`` with R = min(inputs, outputs), in the dtype of the kernel.

    Raises:
      ValueError: if the kernel is not floating or has fewer than two dimensions.

    Cost:
      One singular value decomposition, for initialisation only: its gradient is not defined at equal singular values. A sharded
      kernel is gathered. XLA does not count the decomposition.
      XLA at [512, 512]: at most 18 times the FLOPs and 4.5 times the bytes of a copy of its arguments, and 1.2 times its memory
      more.

    Use:
      Part of: `OrderedDense`, `order_layers`.
      When: Alone, to compress one trained kernel to its best approximation of rank r before tuning, or to start factors from
        it.
      Not when: Inside a differentiated step: its gradient is not defined at equal singular values.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> u, v = rj.layers.svd_factorize(jnp.array([[3.0, 0.0], [0.0, 4.0]]))
      >>> [round(float(x), 4) for x in rj.weights.rank_importance(u, v, hierarchical=False)]
      [4.0, 3.0]

    References:
      Horvath et al., Maestro: Uncovering Low-Rank Structures via Trainable Decomposition, 2024, arXiv 2308.14929. Eckart and
      Young, The Approximation of One Matrix by Another of Lower Rank, 1936, Psychometrika 1.
    """
    name = "layers.svd_factorize"
    kernel = checks.floating(name, "kernel", kernel, min_ndim=2)
    matrix = sharding.replicate(kernel).reshape(-1, kernel.shape[-1]).astype(trees.accumulator(kernel))
    a, s, bt = jnp.linalg.svd(matrix, full_matrices=False)
    largest = jnp.take_along_axis(a, jnp.argmax(jnp.abs(a), axis=0, keepdims=True), axis=0)[0]
    root = jnp.sqrt(s) * jnp.where(largest < 0, -1, 1).astype(s.dtype)
    u, v = a * root, root[:, None] * bt
    return u.reshape(*kernel.shape[:-1], s.size).astype(kernel.dtype), v.astype(kernel.dtype)


def ordered_dense(
    x: Any,
    u: Any,
    v: Any,
    bias: Any = None,
    *,
    fraction: Strength = None,
    rank: Any = None,
    alive: Any = None,
) -> Array:
    r"""A dense layer through the first ranks of a factored kernel.

    Formula:
      .. math:: y = (x \, u_{:, S}) \, v_{S, :} + bias

      where S are the first r living ranks, all of them by default; with ``fraction`` r is that part of them, rounded up.
      Nothing is rescaled, and where S is empty y is the bias.

    Args:
      x: float ``[..., inputs]``.
      u: float ``[inputs, R]``, replicated over devices in its ranks.
      v: float ``[R, outputs]``.
      bias: float ``[outputs]`` or None.
      fraction: the part of the living ranks to use, in [0, 1], a number or a traced scalar.
      rank: how many of the living ranks to use instead: an integer from 0 to R, or a traced one, where any above is all.
      alive: boolean ``[R]``, such as `regjax.weights.shrink_ranks` gives; None (default): all ranks live.

    Returns:
      ``[..., outputs]`` in the common dtype of the arguments; sums are kept in float32 or better.

    Raises:
      ValueError: if shapes or dtypes do not fit, a number is outside its range, or both ``fraction`` and ``rank`` are given.

    Cost:
      (inputs + outputs) R multiplications for each row instead of inputs times outputs, at every r alike: one compiled
      function serves all ranks. What is unused has gradient 0. `fold_ordered` makes it smaller.
      XLA at [1024, 512]: at most 0.28 times the FLOPs and 1.1 times the bytes of a dense layer with its gradient, and 0 times
      its memory more.

    Use:
      Part of: `OrderedDense`.
      When: Outside of Flax NNX, on factors of one's own, with a traced ``fraction`` or ``rank`` in one compiled step.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> u, v = jnp.array([[3.0, 0.0], [4.0, 1.0]]), jnp.array([[1.0, 2.0], [2.0, 0.0]])
      >>> rj.layers.ordered_dense(jnp.array([1.0, -1.0]), u, v).tolist()
      [-3.0, -2.0]
      >>> rj.layers.ordered_dense(jnp.array([1.0, -1.0]), u, v, fraction=0.5).tolist()
      [-1.0, -2.0]

    References:
      Horvath et al., Maestro: Uncovering Low-Rank Structures via Trainable Decomposition, 2024, arXiv 2308.14929 (the authors'
      code). A fraction within a millionth above a whole number of ranks is that number: in float32 three thirds of three ranks
      may come out a little above three.
    """
    name = "layers.ordered_dense"
    x = checks.floating(name, "x", x, min_ndim=1)
    u = checks.floating(name, "u", u, shape=(x.shape[-1], None))
    v = checks.floating(name, "v", v, shape=(u.shape[-1], None))
    dtype = _common_dtype(name, x, u, v, bias)
    u = _truncated(name, u, fraction, rank, alive)
    latent = jnp.matmul(x.astype(dtype), u.astype(dtype), preferred_element_type=trees.accumulator(dtype)).astype(dtype)
    return _expand(latent, v, bias, dtype)


def ordered_conv(
    x: Any,
    u: Any,
    v: Any,
    bias: Any = None,
    *,
    strides: int | Sequence[int] = 1,
    padding: Any = "SAME",
    dilation: int | Sequence[int] = 1,
    fraction: Strength = None,
    rank: Any = None,
    alive: Any = None,
) -> Array:
    r"""A convolution through the first ranks of a factored kernel: into r channels, and from these to the outputs.

    Formula:
      .. math:: y = (x * u_{..., S}) \, v_{S, :} + bias

      with the living ranks S of `ordered_dense`; the second factor is a 1x1 convolution.

    Args:
      x: float ``[B, ..., channels]`` with one to three spatial axes, such as ``[B, H, W, channels]``.
      u: float ``[..., channels, R]``, the kernel of a convolution into R channels, such as ``[kh, kw, channels, R]``.
      v: float ``[R, outputs]``.
      bias: float ``[outputs]`` or None.
      strides: of the first convolution, one number or one for each spatial axis; default 1.
      padding: ``"SAME"`` (default), ``"VALID"``, or a pair (low, high) for each spatial axis.
      dilation: of the kernel, as ``strides``; default 1.
      fraction: the part of the living ranks to use, in [0, 1], a number or a traced scalar.
      rank: how many of the living ranks to use instead, an integer from 0 to R or a traced one.
      alive: boolean ``[R]``; None (default): all ranks live.

    Returns:
      ``[B, ..., outputs]`` in the common dtype of the arguments.

    Raises:
      ValueError: if shapes or dtypes do not fit, a number is outside its range, or both ``fraction`` and ``rank`` are given.

    Cost:
      (inputs + outputs) R multiplications for each position, with inputs = kh kw channels, at every r alike.
      XLA at [64, 16, 16, 64]: at most 0.31 times the FLOPs and 1.3 times the bytes of a convolution with its gradient, and 0.11
      times its memory more.

    Use:
      Part of: `OrderedConv`.
      When: Outside of Flax NNX, on factors of one's own.
      Not when: Kernels are grouped or depthwise: their matrix of channels is block diagonal, and a common factor breaks it.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> u, v = rj.layers.svd_factorize(jnp.ones((3, 3, 2, 4)))
      >>> y = rj.layers.ordered_conv(jnp.ones((1, 5, 5, 2)), u, v, padding="VALID", rank=1)
      >>> y.shape, round(float(y[0, 0, 0, 0]), 4)
      ((1, 3, 3, 4), 18.0)

    References:
      Those of `ordered_dense`.
    """
    name = "layers.ordered_conv"
    x = checks.floating(name, "x", x, min_ndim=3)
    spatial = x.ndim - 2
    if spatial > 3:
        checks.fail(name, "x", "an array [B, ..., channels] with one to three spatial axes", x)
    u = checks.floating(name, "u", u, shape=(*[None] * spatial, x.shape[-1], None))
    v = checks.floating(name, "v", v, shape=(u.shape[-1], None))
    dtype = _common_dtype(name, x, u, v, bias)
    u = _truncated(name, u, fraction, rank, alive)
    axes = _LETTERS[3 - spatial :]
    latent = jax.lax.conv_general_dilated(
        x.astype(dtype),
        u.astype(dtype),
        check_steps(name, "strides", strides, spatial),
        check_padding(name, padding, spatial),
        rhs_dilation=check_steps(name, "dilation", dilation, spatial),
        dimension_numbers=(f"N{axes}C", f"{axes}IO", f"N{axes}C"),
    )
    return _expand(latent, v, bias, dtype)


def check_steps(function: str, argument: str, value: Any, spatial: int) -> tuple[int, ...]:
    """One positive integer for each spatial axis; a single one serves all."""
    values = value if isinstance(value, list | tuple) else (value,) * spatial
    if len(values) != spatial:
        checks.fail(function, argument, f"an integer or {spatial} of them", value)
    return tuple(checks.integer(function, argument, step, low=1) for step in values)


def check_padding(function: str, padding: Any, spatial: int) -> Any:
    """``"SAME"``, ``"VALID"`` or a pair of integers (low, high), at least 0, for each spatial axis."""
    if isinstance(padding, str):
        return checks.choice(function, "padding", padding, ("SAME", "VALID"))
    expected = f"'SAME', 'VALID' or {spatial} pairs (low, high) of integers"
    if not isinstance(padding, list | tuple) or len(padding) != spatial:
        checks.fail(function, "padding", expected, padding)
    if not all(isinstance(pair, list | tuple) and len(pair) == 2 for pair in padding):
        checks.fail(function, "padding", expected, padding)
    return tuple((*(checks.integer(function, "padding", n, low=0) for n in pair),) for pair in padding)


def check_rank(function: str, rank: Any, most: int) -> Any:
    """A number of ranks: an integer from 0 to ``most``, or an integer scalar array."""
    if isinstance(rank, jax.Array):
        return checks.integers(function, "rank", rank, shape=())
    return checks.integer(function, "rank", rank, low=0, high=most)


def check_truncation(function: str, fraction: Any, rank: Any, most: int) -> None:
    """At most one of a fraction in [0, 1] and a number of ranks."""
    if fraction is not None:
        checks.number(function, "fraction", fraction, low=0.0, high=1.0)
        if rank is not None:
            checks.fail(function, "rank", "left out where fraction is given", rank)
    elif rank is not None:
        check_rank(function, rank, most)


def kept_ranks(fraction: Any, rank: Any, alive: Array) -> Array:
    """Which ranks a truncation keeps, boolean ``[R]``: the first r that live."""
    if fraction is None and rank is None:
        return alive
    position = jnp.cumsum(alive)
    if rank is None:
        exact = jnp.asarray(fraction, trees.accumulator(fraction)) * position[-1]
        # The rounding error of a fraction grows with the number of ranks, so the allowance is relative.
        rank = jnp.ceil(exact - 1e-6 * jnp.maximum(exact, 1)).astype(position.dtype)
    return alive & (position <= rank)


def _truncated(name: str, u: Array, fraction: Any, rank: Any, alive: Any) -> Array:
    """The first factor with 0 in the ranks that are not used: latents, and gradients to both factors, are 0 there."""
    size = u.shape[-1]
    alive = checks.example_mask(name, "alive", alive, (size,))
    check_truncation(name, fraction, rank, size)
    if alive is None and fraction is None and rank is None:
        return u
    return jnp.where(kept_ranks(fraction, rank, jnp.ones(size, bool) if alive is None else alive), u, 0)


def _common_dtype(name: str, x: Array, u: Array, v: Array, bias: Any) -> Any:
    if bias is None:
        return jnp.result_type(x, u, v)
    return jnp.result_type(x, u, v, checks.floating(name, "bias", bias, shape=v.shape[-1:]))


def _expand(latent: Array, v: Array, bias: Any, dtype: Any) -> Array:
    wide = trees.accumulator(dtype)
    y = jnp.matmul(latent, v.astype(dtype), preferred_element_type=wide)
    return (y if bias is None else y + jnp.asarray(bias).astype(dtype)).astype(dtype)
