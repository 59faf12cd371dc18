"""The radius of sharpness-aware training over time."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array, Schedule


def gsam_rho(learning_rate: Schedule, *, rho_min: Any, rho_max: Any, lr_min: Any, lr_max: Any) -> Schedule:
    r"""A radius for `regjax.objectives.gsam` that follows the learning rate.

    Formula:
      .. math:: \rho_t = \rho_{min} + (\rho_{max} - \rho_{min}) \frac{lr_t - lr_{min}}{lr_{max} - lr_{min}}

      with the learning rate held within its limits.

    Args:
      learning_rate: the schedule ``step -> value`` that the optimiser has.
      rho_min: the radius where the learning rate is ``lr_min``, at least 0.
      rho_max: the radius where it is ``lr_max``, at least ``rho_min``.
      lr_min: the smallest learning rate, at least 0.
      lr_max: the largest learning rate, above ``lr_min``.

    Returns:
      A schedule, ``step -> radius``, in float32 (float64 under x64): the ``rho`` of `regjax.objectives.gsam`, or of any other
      objective with a radius, to be called with ``step``.

    Raises:
      ValueError: if ``learning_rate`` is no function, or a limit is negative, not finite or below the other one.

    Cost:
      None.

    Use:
      Part of: `gsam`.
      When: With `gsam` or `sam` under a decaying learning rate: late small steps then get a small radius.
      Not when: The rate is constant, or ``lr_min`` and ``lr_max`` are not those of the schedule: outside of them the radius is
        held.
      Badly with: `sgdr`, whose restarts make the radius jump too. `look_sam` with long periods, whose stored direction is that
        of an older radius.

    Example:
      >>> import optax, regjax as rj
      >>> rate = optax.linear_schedule(1.0, 0.0, 10)
      >>> rho = rj.schedules.gsam_rho(rate, rho_min=0.02, rho_max=0.1, lr_min=0.0, lr_max=1.0)
      >>> [round(float(rho(step)), 4) for step in (0, 5, 10)]
      [0.1, 0.06, 0.02]

    References:
      Zhuang et al., Surrogate Gap Minimization Improves Sharpness-Aware Training, 2022, arXiv 2203.08065. The authors' code
      does not hold the rate within its limits, so that the radius of a warm-up from below ``lr_min`` can be negative.
    """
    name = "schedules.gsam_rho"
    checks.function(name, "learning_rate", learning_rate)
    known = lambda value: 0.0 if isinstance(value, jax.Array) else float(value)
    checks.number(name, "rho_min", rho_min, low=0.0)
    checks.number(name, "rho_max", rho_max, low=known(rho_min))
    checks.number(name, "lr_min", lr_min, low=0.0)
    checks.number(name, "lr_max", lr_max, low=known(lr_min), open_low=True)

    def schedule(step: Any) -> Array:
        rate = jnp.asarray(learning_rate(checks.array(name, "step", step))).astype(float)
        low, high, least, most = (jnp.asarray(value, rate.dtype) for value in (lr_min, lr_max, rho_min, rho_max))
        share = jnp.clip((rate - low) / (high - low), 0, 1)
        return (1 - share) * least + share * most

    return schedule
