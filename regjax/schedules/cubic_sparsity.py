"""The sparsity of gradual pruning over training."""

from typing import Any

import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array, Schedule, Strength


def cubic_sparsity(target: Strength, *, start: int, end: int) -> Schedule:
    r"""A share of pruned weights that rises fast at first, when many weights are idle, and slowly at the end.

    Formula:
      .. math:: s_t = s \left( 1 - (1 - p)^3 \right), \quad p = \frac{\min(\max(t + 1 - t_0, 0), t_1 - t_0)}{t_1 - t_0}

      with p = 1 where start and end are equal, from that step on. Full sparsity is reached at step ``end - 1``.

    Args:
      target: s in [0, 1], a number or a traced scalar. 0 prunes nothing.
      start: :math:`t_0`, the first step of pruning, at least 0.
      end: :math:`t_1`, at least ``start``: from there the sparsity is the target.

    Returns:
      A schedule, ``step -> sparsity``, in float32 (float64 under x64); steps count from 0.

    Raises:
      ValueError: if ``target`` lies outside [0, 1], or ``start`` or ``end`` is out of range.

    Cost:
      None.

    Use:
      For: sparsity budget.
      When: Weights are pruned during training, over a third to half of it, with time to recover after ``end``: in the sparsity
        study gradual pruning beat one cut at high sparsities. `prune` has it built in, so take it for masks or densities of
        one's own.
      Not when: Sparsity is moderate and the network is tuned after one cut, or the mask must be fixed from the start.
      Badly with: A learning rate near 0 before ``end``, after which nothing recovers. Use as a density: that is 1 minus it.

    Example:
      >>> import regjax as rj
      >>> sparsity = rj.schedules.cubic_sparsity(0.8, start=0, end=4)
      >>> [round(float(sparsity(step)), 4) for step in (0, 1, 3, 9)]
      [0.4625, 0.7, 0.8, 0.8]

    References:
      Zhu and Gupta, To Prune, or Not to Prune: Exploring the Efficacy of Pruning for Model Compression, 2017, arXiv 1710.01878,
      from a sparsity of 0; counted from ``step + 1`` as in Lee et al., JaxPruner: A Concise Library for Sparsity Research,
      2023, arXiv 2304.14082.
    """
    name = "schedules.cubic_sparsity"
    checks.number(name, "target", target, low=0.0, high=1.0)
    start = checks.integer(name, "start", start, low=0)
    end = checks.integer(name, "end", end, low=start)

    def schedule(step: Any) -> Array:
        since = jnp.asarray(step).astype(float) + 1 - start
        if end == start:
            p = jnp.where(since > 0, 1.0, 0.0).astype(since.dtype)
        else:
            p = jnp.clip(since / (end - start), 0, 1)
        return jnp.asarray(target, p.dtype) * (1 - (1 - p) ** 3)

    return schedule
