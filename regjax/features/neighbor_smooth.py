"""Smooth tokens: what lies along a defect's direction is drawn to its neighbours."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array

_BLUR = {
    3: ((1, 2, 1), (2, 4, 2), (1, 2, 1)),
    5: ((1, 4, 7, 4, 1), (4, 16, 26, 16, 4), (7, 26, 41, 26, 7), (4, 16, 26, 16, 4), (1, 4, 7, 4, 1)),
}


def neighbor_smooth_loss(
    tokens: Any,
    direction: Any,
    *,
    mask_threshold: float = 4.0,
    temperature: float = 0.1,
    kernel_size: int = 3,
    min_count: int = 3,
) -> tuple[Array, Array]:
    r"""Draws the defective tokens of an image to their neighbours: those that stand out along a given direction (SINDER).

    Formula:
      With :math:`c_{ij} = |\cos(x_{ij}, u)|` for the tokens x and the direction u, a token is defective where c lies more than
      ``mask_threshold`` standard deviations above the mean over the image, and not on the border:

      .. math:: L = \frac{1}{|M|} \sum_{ij \in M} \frac{\|x_{ij} - t_{ij}\|}{\alpha}, \quad
        t_{ij} = \frac{\sum_o g_o \, e^{-c_{ij+o} / T} x_{ij+o}}{\sum_o g_o \, e^{-c_{ij+o} / T}}

      for the set M of defective tokens, over the window o around each, with a Gaussian blur g and the temperature T;
      :math:`\alpha` is the mean length of the tokens within the border. Only x itself has a gradient: c, M, t and
      :math:`\alpha` are constant.

    Args:
      tokens: float ``[H, W, D]``, the patch tokens of one image without class and register tokens; ``jax.vmap`` for a batch.
      direction: float ``[D]``, of any length and sign, constant: a row of `regjax.weights.singular_defect_directions`.
      mask_threshold: a finite number, default 4; the authors' function has 0.001, their training 4.
      temperature: T, above 0, default 0.1.
      kernel_size: 3 (default) or 5, the width of the window. Tokens nearer to the border than half of it are not defective.
      min_count: with fewer defective tokens the loss is 0; at least 1, default 3.

    Returns:
      The loss, a scalar in float32 or better, and which tokens are defective, boolean ``[H, W]``. The authors go through the
      blocks in order and use the loss of the first with ``min_count`` defective tokens alone.

    Raises:
      ValueError: if a shape, dtype or option does not fit.

    Cost:
      O(H W D) times the entries of the window, 9 or 25.
      XLA at [64, 14, 14, 256]: at most 27 times the FLOPs and 9 times the bytes of a copy of its arguments, and 0.43 times its
      memory more.

    Use:
      For: fine-tuning.
      When: A pretrained vision transformer whose patch tokens hold high-norm artefacts, for dense prediction: a short tuning of
        `SVDLinear` scales, image by image, on the first block with defects. Needs no labels.
      Not when: The model has register tokens or shows no defects, for class tokens alone, or in training from scratch:
        directions come from `singular_defect_directions` of a finished model.
      Badly with: Training all weights on it: only defective tokens carry a gradient, but every token changes with the shared
        weights. Losses of several blocks at once: the authors take the first alone.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> tokens = jnp.zeros((5, 5, 2)).at[..., 1].set(1.0).at[2, 2].set(jnp.array([10.0, 0.0]))
      >>> loss, mask = rj.features.neighbor_smooth_loss(tokens, jnp.array([1.0, 0.0]), min_count=1)
      >>> round(float(loss), 4), int(mask.sum())
      (5.0249, 1)

    References:
      Wang et al., SINDER: Repairing the Singular Defects of DINOv2, 2024, arXiv 2407.16826, as in the authors' code.
    """
    name = "features.neighbor_smooth_loss"
    tokens = checks.floating(name, "tokens", tokens, ndim=3)
    direction = checks.floating(name, "direction", direction, shape=(tokens.shape[-1],))
    checks.number(name, "mask_threshold", mask_threshold)
    checks.number(name, "temperature", temperature, low=0.0, open_low=True)
    checks.choice(name, "kernel_size", kernel_size, tuple(_BLUR))
    checks.integer(name, "min_count", min_count, low=1)
    if min(tokens.shape[:2]) < kernel_size or not tokens.shape[-1]:
        checks.fail(name, "tokens", f"an array [H, W, D] with H and W at least kernel_size, {kernel_size}", tokens)
    dtype = trees.accumulator(tokens, direction)
    tokens, direction = tokens.astype(dtype), jax.lax.stop_gradient(direction).astype(dtype)
    margin = kernel_size // 2
    height, width = tokens.shape[0] - 2 * margin, tokens.shape[1] - 2 * margin
    window = lambda x, i, j: x[i : i + height, j : j + width]
    inner = lambda x: window(x, margin, margin)

    constant = jax.lax.stop_gradient(tokens)
    logits = -jnp.abs(jnp.sum(trees.unit(constant) * trees.unit(direction), axis=-1))
    spread = jnp.std(logits, ddof=1)
    # Equal tokens differ by rounding only: none of them stands out.
    differ = spread > 8 * jnp.finfo(dtype).eps
    defective = differ & (logits < jnp.mean(logits) - jnp.asarray(mask_threshold, dtype) * spread)

    offsets = [(i, j, _BLUR[kernel_size][i][j]) for i in range(kernel_size) for j in range(kernel_size)]
    # Relative to the largest of the window: at a low temperature all others may be 0, but never the sum.
    top = jnp.max(jnp.stack([window(logits, i, j) for i, j, _ in offsets]), axis=0)
    total, target = jnp.zeros((height, width), dtype), jnp.zeros((height, width, tokens.shape[-1]), dtype)
    for i, j, blur in offsets:
        share = blur * jnp.exp((window(logits, i, j) - top) / jnp.asarray(temperature, dtype))
        total, target = total + share, target + share[..., None] * window(constant, i, j)
    target = target / total[..., None]

    length = jnp.mean(trees.safe_norm(inner(constant), axis=-1))
    flags = inner(defective)
    count = jnp.sum(flags)
    apart = jnp.where(flags, trees.safe_norm(inner(tokens) - target, axis=-1), 0) / jnp.where(length > 0, length, 1)
    loss = jnp.where(count >= min_count, jnp.sum(apart) / jnp.maximum(count, 1).astype(dtype), 0)
    return loss, jnp.pad(flags, margin)
