"""Penalties on attention: what makes a transformer easier to prune."""

from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array


def attention_log_penalty(attention: Any, *, all_blocks: bool = False, where: Any = None) -> Array:
    r"""The mean of ``log(1 + a^2)`` over the attention probabilities of the last block.

    Formula:
      .. math:: \frac{1}{|A|} \sum_{a \in A} \log(1 + a^2)

      over batch, heads, queries and keys. It is convex on [0, 1] and so draws attention towards uniform, where it is
      ``log(1 + 1/K^2)`` for K keys; a row on one key has ``log(2)/K``.

    Args:
      attention: probabilities ``[..., Q, K]``, after the softmax; or a list or tuple of them, one for each block.
      all_blocks: whether the blocks of a list are summed; default False takes the last.
      where: booleans that broadcast to ``[..., Q, K]``, the pairs that count; None (default): all. A row of padding is no query.

    Returns:
      A scalar in float32 or better, 0 where nothing counts. The authors add 0.01 of it to the loss.

    Raises:
      ValueError: if ``attention`` is no floating array of two or more dimensions or list of them, or ``where`` does not fit.

    Cost:
      One pass over the probabilities each way. The attention has to hand them out: fused attention does not have them.
      XLA at [16, 8, 64, 64]: at most 7.7 times the FLOPs and 2.8 times the bytes of a copy of its arguments, and 0.55 times its
      memory more.

    Use:
      For: sparsity budget.
      When: A vision transformer is fine-tuned before a mild one-shot pruning by `global_magnitude_mask`; the authors add 0.01
        of it. It evens out attention of the last block, whatever the paper's name says.
      Not when: Attention itself should become sparse or pointed: it is convex and draws every row towards uniform. Long
        sequences make it small by its own formula.
      Badly with: Fused attention, which hands out no probabilities; causal masks without ``where``, whose forced zeros count in
        the mean; losses that want sharp attention.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.weights.attention_log_penalty(jnp.array([[0.5, 0.25, 0.25]]))), 4)
      0.1148

    References:
      Prasetyo et al., Sparse then Prune: Toward Efficient Vision Transformers, 2023, arXiv 2307.11988. The authors' code
      overwrites the term in each block, and so penalises the last; ``all_blocks=True`` is what the text suggests. They prune
      afterwards with `global_magnitude_mask`.
    """
    name = "weights.attention_log_penalty"
    checks.boolean(name, "all_blocks", all_blocks)
    blocks: Sequence[Any] = attention if isinstance(attention, list | tuple) else [attention]
    if not blocks:
        checks.fail(name, "attention", "an array of probabilities, or a list of at least one", attention)
    arrays = [checks.floating(name, "attention", a, min_ndim=2) for a in blocks]
    terms = [_mean_log(name, a, where) for a in (arrays if all_blocks else arrays[-1:])]
    return sum(terms[1:], terms[0])


def _mean_log(name: str, attention: Array, where: Any) -> Array:
    a = attention.astype(trees.accumulator(attention))
    if where is None:
        return jnp.sum(jnp.log1p(jnp.square(a))) / max(a.size, 1)
    mask = checks.array(name, "where", where)
    try:
        fits = jnp.broadcast_shapes(mask.shape, a.shape) == a.shape
    except ValueError:
        fits = False
    if mask.dtype != jnp.bool_ or not fits:
        checks.fail(name, "where", f"booleans that broadcast to {list(a.shape)}", mask)
    mask = sharding.placed_like(jnp.broadcast_to(sharding.replicate(mask), a.shape), a)
    # Padding may hold anything, and its gradient would be 0 * NaN.
    total = jnp.sum(jnp.log1p(jnp.square(jnp.where(mask, a, 0))))
    return total / jnp.maximum(jnp.sum(mask, dtype=a.dtype), 1)
