"""Step sizes that fall by a constant factor."""

from typing import Any

import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array, Schedule


def geometric_step(eta: Any, *, rho: Any) -> Schedule:
    r"""A step size that falls by the same factor in every step: for subgradients, which do not shrink themselves.

    Formula:
      .. math:: \eta_t = \eta \rho^t

    Args:
      eta: the size of the first step, at least 0; a number or a traced scalar.
      rho: the factor, in [0, 1]; a number or a traced scalar.

    Returns:
      A schedule, ``step -> value``, in float32 (float64 under x64).

    Raises:
      ValueError: if a number is out of range or not finite.

    Cost:
      None.

    Use:
      For: unstable training, noisy labels.
      When: Losses of absolute values with exact solutions up to outliers, such as robust matrix recovery: subgradients keep
        their length, so the step must shrink. Start from `spectral_small_init`.
      Not when: There is no noise: `polyak_subgradient` reads the step from the loss. Smooth losses, whose gradients shrink
        themselves. A ``rho`` too small stops before the solution: the way left is at most the first step over 1 - rho.
      Badly with: Adam and its kin, which scale the update to their own size.

    Example:
      >>> import regjax as rj
      >>> size = rj.schedules.geometric_step(0.5, rho=0.9)
      >>> [round(float(size(step)), 4) for step in (0, 1, 10)]
      [0.5, 0.45, 0.1743]

    References:
      Ma and Fattahi, Global Convergence of Sub-gradient Method for Robust Matrix Recovery: Small Initialization, Noisy
      Measurements, and Over-parameterization, 2023, arXiv 2202.08788 (Algorithm 2). There the step is also divided by the
      spectral norm of the signed mean of the measurement matrices, and ``1 - rho`` is of the order of
      ``eta / (kappa log(1 / alpha))`` for the condition number kappa and the scale alpha of the initialisation, with a
      constant that the paper leaves open.
    """
    name = "schedules.geometric_step"
    checks.number(name, "eta", eta, low=0.0)
    checks.number(name, "rho", rho, low=0.0, high=1.0)

    def schedule(step: Any) -> Array:
        t = jnp.maximum(checks.array(name, "step", step).astype(float), 0)
        return jnp.asarray(eta, t.dtype) * jnp.asarray(rho, t.dtype) ** t

    return schedule
