"""The learning rate of adversarial fine-tuning: small at first, its peak in the middle, then a rapid fall."""

from typing import Any, Literal

import jax
import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array, Schedule


def slow_start_fast_decay(
    *,
    total_steps: int,
    peak_value: Any,
    start_value: Any = None,
    final_value: Any = None,
    warm_fraction: float = 0.5,
    decay: Literal["exponential", "cosine", "linear"] = "exponential",
) -> Schedule:
    r"""A learning rate for a short adversarial fine-tuning: a slow rise to the peak, then a fast fall.

    Formula:
      With :math:`t_w` = ``warm_fraction`` T: linear from ``start_value`` to ``peak_value`` in :math:`[0, t_w]`, then, at the
      fraction :math:`f = (t - t_w) / (T - t_w)` of the rest, by ``decay``,

      .. math:: peak \left(\frac{final}{peak}\right)^f, \quad final + (peak - final) \frac{1 + \cos \pi f}{2} \quad or \quad
                peak + (final - peak) f

    Args:
      total_steps: T, at least 1: those of the fine-tuning, about 10 epochs. From T on the value is ``final_value``.
      peak_value: the largest value, at least 0.
      start_value: the first value, at least 0; None (default): ``peak_value / 100``.
      final_value: the last value, at least 0, and above 0 for ``"exponential"``; None (default): ``peak_value / 1000``.
      warm_fraction: the share of the steps in which the value rises, in [0, 1], default 0.5.
      decay: ``"exponential"`` (default), ``"cosine"`` or ``"linear"``.

    Returns:
      A schedule, ``step -> value``, in float32 (float64 under x64), for ``optax.sgd`` from naturally trained weights with the
      loss of `regjax.objectives.adversarial`.

    Raises:
      ValueError: if a number is out of range or ``decay`` is unknown.

    Cost:
      None.

    Use:
      For: adversarial inputs, fine-tuning.
      When: A naturally trained network shall become robust in about ten epochs of `adversarial` with `pgd_attack`: small first
        steps keep what it has learnt. The authors report the robustness of full adversarial training for about a tenth of its
        cost.
      Not when: Training robustly from scratch, which wants longer at a high rate. One-step attacks at large radii, which can
        collapse whatever the schedule.
      Badly with: A fresh head or batch statistics of clean images only: the first small steps do not mend them.

    Example:
      >>> import regjax as rj
      >>> rate = rj.schedules.slow_start_fast_decay(total_steps=10, peak_value=0.01)
      >>> [round(float(rate(step)), 6) for step in (0, 5, 7.5, 10)]
      [0.0001, 0.01, 0.000316, 1e-05]

    References:
      Jeddi et al., A Simple Fine-tuning Is All You Need: Towards Robust Deep Learning Via Adversarial Fine-tuning, 2020,
      arXiv 2012.13628. Reconstructed: certain are the shape and the short length; the numbers and curves are chosen here.
    """
    name = "schedules.slow_start_fast_decay"
    total = checks.integer(name, "total_steps", total_steps, low=1)
    checks.number(name, "peak_value", peak_value, low=0.0)
    checks.choice(name, "decay", decay, ("exponential", "cosine", "linear"))
    start = peak_value / 100 if start_value is None else checks.number(name, "start_value", start_value, low=0.0)
    final = peak_value / 1000
    if final_value is not None:
        final = checks.number(name, "final_value", final_value, low=0.0, open_low=decay == "exponential")
    if isinstance(warm_fraction, jax.Array):
        checks.fail(name, "warm_fraction", "a Python number", warm_fraction)
    warm = total * float(checks.number(name, "warm_fraction", warm_fraction, low=0.0, high=1.0))

    def schedule(step: Any) -> Array:
        t = jnp.clip(checks.array(name, "step", step).astype(float), 0, total)
        first, peak, last = (jnp.asarray(value, t.dtype) for value in (start, peak_value, final))
        done = t / warm if warm else jnp.ones_like(t)
        f = jnp.clip((t - warm) / (total - warm), 0, 1) if warm < total else jnp.zeros_like(t)
        if decay == "exponential":
            # A peak of 0, the default end of which is 0 too, stays 0.
            none = peak == 0
            falling = peak * jnp.where(none, 1, last / jnp.where(none, 1, peak)) ** f
        elif decay == "cosine":
            falling = jnp.sin(jnp.pi / 2 * f) ** 2 * last + jnp.sin(jnp.pi / 2 * (1 - f)) ** 2 * peak
        else:
            falling = (1 - f) * peak + f * last
        value = jnp.where(t < warm, (1 - done) * first + done * peak, falling)
        return jnp.where(t >= total, last, value)

    return schedule
