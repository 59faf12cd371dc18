"""One loss for a network with several exits."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, trees
from regjax.core.types import Array


def multi_exit_loss(exit_losses: Any, exit_depths: Any, *, total_depth: int | None = None, weights: Any = "depth") -> Array:
    r"""The weighted sum of the losses of a network's exits, deeper ones counting for more.

    Formula:
      .. math:: \sum_e w_e L_e, \quad w_e = depth_e / total \quad (depth), \qquad w_e = 1 \quad (uniform)

      L is the ordinary loss of each exit. Exits teach each other through the layers that they share alone: there is no
      divergence between them, no stop-gradient, and no division by the sum of weights.

    Args:
      exit_losses: float ``[E, ...]``: the loss of each exit, per example or not.
      exit_depths: integers ``[E]``, at least 1: the number of layers before each exit, such as (4, 9, 18, 27, 36).
      total_depth: the depth of the network, at least that of every exit; default that of the deepest.
      weights: ``"depth"`` (default), ``"uniform"``, or float weights ``[E]``, which may be traced. An exit of weight 0
        counts for nothing, whatever its loss.

    Returns:
      The sum, ``[...]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, a depth is below 1 or above ``total_depth``, or ``weights`` is misspelt.

    Cost:
      E multiplications; the heads of the exits are the caller's, and each adds its own forward and backward pass.
      XLA at [5, 8192]: at most 2 times the FLOPs and 1.3 times the bytes of a copy of its arguments, and 0 times its memory
      more.

    Use:
      For: compute budget.
      When: One training shall give several depths to stop at: heads at a few layers, each with the task's loss. Weights by
        depth favour the deepest exit, ``uniform`` the early ones.
      Not when: Only the whole network will be used: early exits bend its features. Exits every layer: their sum outweighs the
        last one. Exits shall learn from each other's predictions: there is no such term.
      Badly with: A learning rate tuned for one exit: weights are summed and not divided. `drop_path` of the blocks before an
        exit at high rates. Gradient clipping by norm, at which the many early losses crowd out the last.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.losses.multi_exit_loss(jnp.ones(5), (4, 9, 18, 27, 36))), 4)
      2.6111

    References:
      Gurioli et al., One Model to Train them All: Hierarchical Self-Distillation for Enhanced Early Layer Embeddings, 2025,
      arXiv 2503.03008: 36 layers, all exits through one head that is told which by an embedding of width 4. Reconstructed
      from the paper and the published model: that weights are proportional to depth is our reading.
    """
    name = "losses.multi_exit_loss"
    losses = checks.floating(name, "exit_losses", exit_losses, min_ndim=1)
    exits = losses.shape[0]
    if exits < 1:
        checks.fail(name, "exit_losses", "an array [E, ...] of at least one exit", losses)
    depths = checks.integers(name, "exit_depths", exit_depths, shape=(exits,))
    known = None if isinstance(exit_depths, jax.Array) else np.asarray(exit_depths)  # a value on the device is not read
    if known is not None and known.min() < 1:
        checks.fail(name, "exit_depths", "at least 1", known.tolist())
    if total_depth is not None:
        checks.integer(name, "total_depth", total_depth, low=1 if known is None else int(known.max()))
    dtype = trees.accumulator(losses)
    if isinstance(weights, str) or weights is None:
        checks.choice(name, "weights", weights, ("depth", "uniform"))
        depths = depths.astype(dtype)
        total = jnp.max(depths) if total_depth is None else jnp.asarray(total_depth, dtype)
        w = depths / total if weights == "depth" else jnp.ones(exits, dtype)
    else:
        w = checks.floating(name, "weights", weights, shape=(exits,)).astype(dtype)
    w = w.reshape((exits,) + (1,) * (losses.ndim - 1))
    return jnp.sum(w * jnp.where(w == 0, 0, losses.astype(dtype)), axis=0)
