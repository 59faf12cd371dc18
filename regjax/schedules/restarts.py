"""Cosine annealing with warm restarts."""

from typing import Any

import jax.numpy as jnp

from regjax.core import checks
from regjax.core.periods import period
from regjax.core.types import Array, Schedule


def sgdr(
    peak_value: Any, *, steps_per_epoch: int, first_period_epochs: int, period_multiplier: int = 2, end_value: Any = 0.0
) -> Schedule:
    r"""A value that falls along half a cosine and jumps back, over periods that grow.

    Formula:
      .. math:: v_{end} + \tfrac{1}{2} (v_{peak} - v_{end}) (1 + \cos \pi T_{cur})

      Period i has ``n_i = steps_per_epoch * first_period_epochs * period_multiplier^i`` steps; :math:`T_{cur}` is the
      fraction of it that is done, the present step included: it starts at ``1 / n_i`` and ends at 1.

    Args:
      peak_value: the value that each period starts from, at least 0: a learning rate, or 1 for the multiplier ``schedule`` of
        `sgdw` and `adamw_decoupled`.
      steps_per_epoch: steps in an epoch, at least 1.
      first_period_epochs: epochs until the first restart, at least 1.
      period_multiplier: how many times longer each period is than the last, an integer, at least 1, default 2.
      end_value: the value in the last step of each period, at least 0, default 0.

    Returns:
      A schedule, ``step -> value``, in float32 (float64 under x64).

    Raises:
      ValueError: if a number is out of range or not finite.

    Cost:
      None.

    Use:
      For: compute budget.
      When: A usable model is wanted at several times of a long run, or snapshots for an ensemble or `uniform_soup`: take them
        at the end of a period. `adamwr` has it with a decay for each period.
      Not when: One final model counts: a single period of the whole length ends as low with fewer jumps. It did not help on the
        digits comparison, where it learnt all wrong labels as a constant rate does.
      Badly with: `ema` over a restart, which mixes two valleys. Early stopping inside a period. Pruning masks frozen shortly
        before a restart.

    Example:
      >>> import regjax as rj
      >>> rate = rj.schedules.sgdr(1.0, steps_per_epoch=2, first_period_epochs=1)
      >>> [round(float(rate(step)), 4) for step in range(6)]
      [0.5, 0.0, 0.8536, 0.5, 0.1464, 0.0]

    References:
      Loshchilov and Hutter, SGDR: Stochastic Gradient Descent with Warm Restarts, 2017, arXiv 1608.03983. Loshchilov and
      Hutter, Decoupled Weight Decay Regularization, 2019, arXiv 1711.05101. As in the authors' code the counter is advanced
      before the value is used; `adamwr` also normalises the weight decay to each period.
    """
    name = "schedules.sgdr"
    checks.number(name, "peak_value", peak_value, low=0.0)
    checks.number(name, "end_value", end_value, low=0.0)
    first = checks.integer(name, "steps_per_epoch", steps_per_epoch, low=1)
    first = first * checks.integer(name, "first_period_epochs", first_period_epochs, low=1)
    multiplier = checks.integer(name, "period_multiplier", period_multiplier, low=1)

    def schedule(step: Any) -> Array:
        done = period(jnp.maximum(checks.array(name, "step", step), 0), first, multiplier)[0].astype(float)
        peak, end = jnp.asarray(peak_value, done.dtype), jnp.asarray(end_value, done.dtype)
        left = jnp.square(jnp.sin(jnp.pi / 2 * (1 - done)))
        return end + (peak - end) * left

    return schedule
