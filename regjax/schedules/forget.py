"""The share of examples left out under label noise, over training."""

from typing import Any

import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array, Strength


def forget_rate(epoch: Any, *, forget_rate: Strength, num_gradual: int = 10, exponent: Any = 1.0) -> Array:
    r"""The share of large losses that co-teaching leaves out: none at first, for networks learn right labels early.

    Formula:
      .. math:: r_e = r^c \frac{e}{G - 1} \quad (e < G), \qquad r_e = r \quad (e \ge G)

      for epochs e from 0. An exponent other than 1 makes it jump to r at epoch G.

    Args:
      epoch: e, a number or an array of them, traced or not.
      forget_rate: r, the last value, in [0, 1], a number or a traced scalar; the authors take the share of wrong labels.
      num_gradual: G, at least 0, default 10: the epochs of the ramp, the first of which has 0. With 0 the rate is constant.
      exponent: c, above 0, default 1.

    Returns:
      The share, in the shape of ``epoch``, in float32 (float64 under x64): what `regjax.losses.co_teaching` takes.

    Raises:
      ValueError: if ``forget_rate`` is outside [0, 1], ``num_gradual`` is no integer of at least 0, or ``exponent`` is not
        above 0.

    Cost:
      None.

    Use:
      Part of: `co_teaching`.
      When: For the rate of `co_teaching` and `small_loss_weights`: in epochs, up to the share of wrong labels or a little
        below.
      Not when: The share of noise is unknown and clean rare classes have large losses: what is left out is then them. Feed
        epochs, not steps.

    Example:
      >>> import regjax as rj
      >>> [round(float(rj.schedules.forget_rate(epoch, forget_rate=0.4, num_gradual=5)), 4) for epoch in range(6)]
      [0.0, 0.1, 0.2, 0.3, 0.4, 0.4]

    References:
      Han et al., Co-teaching: Robust Training of Deep Neural Networks with Extremely Noisy Labels, 2018, arXiv 1804.06872;
      as the authors' code. The paper ramps to r over G epochs without the exponent.
    """
    name = "schedules.forget_rate"
    checks.number(name, "forget_rate", forget_rate, low=0.0, high=1.0)
    num_gradual = checks.integer(name, "num_gradual", num_gradual, low=0)
    checks.number(name, "exponent", exponent, low=0.0, open_low=True)
    e = checks.array(name, "epoch", epoch).astype(float)
    final, power = jnp.asarray(forget_rate, float), jnp.asarray(exponent, float)
    # A power is not exact even at 1.
    peak = jnp.where(power == 1, final, final**power)
    ramp = peak * jnp.clip(e / max(num_gradual - 1, 1), 0, 1)
    return jnp.where(e < num_gradual, ramp, final)
