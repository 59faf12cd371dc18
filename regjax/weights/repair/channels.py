"""Damaged channels made up for by the others, in closed form and without data."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Strength
from regjax.weights.matrix import as_matrix


class ReconstructedChannels(NamedTuple):
    """What `reconstruct_channels` returns: the kernel of the next layer, and the rows by which channels are combined."""

    kernel_next: Array
    coefficients: Array


def reconstruct_channels(
    kernel_l: Any,
    bn_l: Any,
    kernel_next: Any,
    damaged: Any,
    *,
    bias_weight: Strength = 1.0,
    ridge: Strength = 1e-2,
    mode: str = "prune",
    bias: Any = None,
    quantized: Any = None,
    epsilon: float = 1e-5,
) -> ReconstructedChannels:
    r"""Adapts the next layer so that the remaining channels stand in for pruned or quantised ones; needs no data.

    Formula:
      With batch norm folded in, channel i has the filter and the bias

      .. math:: w_i = \gamma_i W_i / \sigma_i, \quad b_i = \beta_i + \gamma_i (bias_i - mean_i) / \sigma_i

      A damaged channel j is approximated by the kept ones,

      .. math:: s_j = \arg\min_s \|w_j - \sum_i s_i w_i\|^2 + \lambda_b (b_j - \sum_i s_i b_i)^2 + \lambda \|s\|^2

      and the next layer reads it from them: :math:`k'_i = k_i + \sum_j s_{ji} k_j` for the kept i, and 0 for the pruned.
      With "quantize" all channels stay, the damaged ones with their ``quantized`` filters q:

      .. math:: s_j = \arg\min_s \|w_j - \sum_i s_i q_i\|^2 + \lambda_b (b_j - \sum_i s_i b'_i)^2 + \lambda \|s - e_j\|^2

      and :math:`k'_i = \sum_j s_{ji} k_j`. A large :math:`\lambda` is plain pruning, or plain quantisation.

    Args:
      kernel_l: float ``[..., in, out]``, W: a dense kernel or a convolution (not a grouped one), before the damage.
      bn_l: ``(scale, bias, mean, var)`` of the batch norm after it, each ``[out]``, or None.
      kernel_next: float ``[..., out, out_next]``, k: the layer that reads the channels; a dense layer behind flattened images
        reshaped to ``[positions, out, out_next]``.
      damaged: boolean ``[out]``: the channels that are pruned or quantised.
      bias_weight: :math:`\lambda_b`, at least 0, default 1.
      ridge: :math:`\lambda`, above 0, default 1e-2; on the scale of the squared norm of a filter. About 1 with "quantize",
        where small ones fit the rounding errors with channels that are active elsewhere, and may do harm.
      mode: "prune" (default) or "quantize".
      bias: float ``[out]``: the layer's own bias; default none.
      quantized: float, of the shape of ``kernel_l``: its filters after quantisation; for "quantize" alone.
      epsilon: what the batch norm adds to its variance, default 1e-5.

    Returns:
      ``ReconstructedChannels(kernel_next, coefficients)``: the kernel in its own shape and dtype, and ``[out, out]`` in
      float32 or better, of which row j says how channel j is combined from the remaining ones; ``e_j`` for undamaged ones.
      Pruned channels are no longer read: remove them, or set their filters to 0.

    Raises:
      ValueError: if a shape or dtype does not fit, a strength is out of range or not finite, ``mode`` is misspelt, or
        ``quantized`` is missing or not wanted.

    Cost:
      Once: one Gram matrix and one Cholesky factorisation ``[out, out]`` for all channels together. XLA does not count the
      factorisation.
      XLA at 2 times [3, 3, 64, 64]: at most 290 times the FLOPs and 5.7 times the bytes of a copy of its arguments, and 0.58
      times its memory more.

    Use:
      For: sparsity budget, compute budget.
      When: Channels of a trained network were pruned or rounded and no data are at hand: it kept more accuracy of pruned and of
        two-bit digits networks. ``ridge`` about 1 with ``mode='quantize'``.
      Not when: Data for a short fine-tuning exist, which sees activations and not weights alone. Grouped or depthwise
        convolutions, and channels that feed several layers or a residual sum.
      Badly with: Activations that do not commute with sums: exact only for linear ones and jointly active ReLU units. Cutting
        the next layer before it is called, or batch statistics recomputed after the damage.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> twins = jnp.array([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]])
      >>> damaged = jnp.array([False, False, True])
      >>> new = rj.weights.reconstruct_channels(twins, None, jnp.ones((3, 1)), damaged, ridge=1e-6)
      >>> [round(float(x), 4) for x in new.kernel_next[:, 0]]
      [2.0, 1.0, 0.0]

    References:
      Bai et al., Unified Data-Free Compression: Pruning and Quantization without Fine-Tuning, 2023, arXiv 2308.07209.
      Reconstructed from the abstract and introduction: the authors have a further term for the activation, and how the
      coefficients enter for quantised channels is our reading, with the penalty around plain quantisation. The layers between
      must commute with the combination: exact for linear ones, and for ReLU where the channels are active together and the
      coefficients positive.
    """
    name = "weights.reconstruct_channels"
    kernel_l = checks.floating(name, "kernel_l", kernel_l, min_ndim=2)
    out = kernel_l.shape[-1]
    kernel_next = checks.floating(name, "kernel_next", kernel_next, min_ndim=2)
    if kernel_next.shape[-2] != out:
        checks.fail(name, "kernel_next", f"an array [..., {out}, out_next], with the outputs of kernel_l as inputs", kernel_next)
    damaged = checks.array(name, "damaged", damaged, shape=(out,))
    if damaged.dtype != jnp.bool_:
        checks.fail(name, "damaged", f"a boolean mask of shape [{out}]", damaged)
    checks.number(name, "bias_weight", bias_weight, low=0.0)
    checks.number(name, "ridge", ridge, low=0.0, open_low=True)
    checks.choice(name, "mode", mode, ("prune", "quantize"))
    checks.number(name, "epsilon", epsilon, low=0.0)
    if (quantized is None) is (mode == "quantize"):
        checks.fail(name, "quantized", "the quantised kernel with mode='quantize', else None", quantized)
    dtype = trees.accumulator(kernel_l)
    columns = lambda kernel: as_matrix(sharding.replicate(kernel).astype(dtype))
    factor, shift = _folded(name, bn_l, bias, epsilon, out, dtype)
    weight = trees.safe_sqrt(jnp.asarray(bias_weight, dtype)) * shift
    whole = jnp.vstack([factor * columns(kernel_l), weight])
    damaged = sharding.replicate(damaged)
    identity = jnp.eye(out, dtype=dtype)
    if mode == "prune":
        used, start = jnp.where(damaged, 0, whole), jnp.zeros_like(identity)
    else:
        quantized = checks.floating(name, "quantized", quantized, shape=kernel_l.shape)
        rounded = jnp.vstack([factor * columns(quantized), weight])
        used, start = jnp.where(damaged, rounded, whole), identity
    # What the start leaves over, of all damaged channels at once. Columns of zeros, the pruned, get coefficients of zero.
    product = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    rest = whole - product(used, start)
    gram = product(used.T, used) + jnp.asarray(ridge, dtype) * identity
    solved = jax.scipy.linalg.solve(gram, product(used.T, rest), assume_a="pos").T
    coefficients = jnp.where(damaged[:, None], start + solved, identity)
    following = sharding.replicate(kernel_next).astype(dtype)
    following = jnp.einsum("ji,...jo->...io", coefficients, following, precision=jax.lax.Precision.HIGHEST)
    return ReconstructedChannels(sharding.placed_like(following.astype(kernel_next.dtype), kernel_next), coefficients)


def _folded(name: str, bn: Any, bias: Any, epsilon: float, out: int, dtype: Any) -> tuple[Array, Array]:
    """What batch norm multiplies each channel by, and the bias it leaves."""
    own = jnp.zeros(out, dtype) if bias is None else checks.floating(name, "bias", bias, shape=(out,)).astype(dtype)
    if bn is None:
        return jnp.ones(out, dtype), own
    if not isinstance(bn, tuple | list) or len(bn) != 4:
        checks.fail(name, "bn_l", "None or (scale, bias, mean, var)", bn)
    scale, beta, mean, var = (checks.floating(name, "bn_l", x, shape=(out,)).astype(dtype) for x in bn)
    factor = scale * jax.lax.rsqrt(var + epsilon)
    return factor, beta + factor * (own - mean)
