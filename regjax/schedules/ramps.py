"""Ramps of a strength over training, as published with the techniques that use them."""

from typing import Any

import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array, Strength


def ps_kd_alpha(epoch: Any, total_epochs: int, *, alpha_final: Strength = 0.8) -> Array:
    r"""The weight of a model's own past predictions in progressive self-knowledge distillation.

    Formula:
      .. math:: \alpha_e = \alpha_{final} \frac{e + 1}{E}

      for epochs e from 0; it stays between 0 and :math:`\alpha_{final}` outside of training.

    Args:
      epoch: e, a number or an array of them, traced or not; the published weight changes once per epoch.
      total_epochs: E, at least 1.
      alpha_final: the weight in the last epoch, in [0, 1], default 0.8.

    Returns:
      The weight, in the shape of ``epoch``, in float32 (float64 under x64).

    Raises:
      ValueError: if ``total_epochs`` is no positive integer or ``alpha_final`` is outside [0, 1].

    Cost:
      None.

    Use:
      Part of: `ps_kd`.
      When: With `ps_kd_targets` in a loop of one's own. `ps_kd` has this weight built in.
      Badly with: Steps in place of epochs: the weight would reach its end at once.

    Example:
      >>> import regjax as rj
      >>> [round(float(rj.schedules.ps_kd_alpha(epoch, 300)), 4) for epoch in (0, 149, 299)]
      [0.0027, 0.4, 0.8]

    References:
      Kim et al., Self-Knowledge Distillation with Progressive Refinement of Targets, 2020, arXiv 2006.12000.
    """
    name = "schedules.ps_kd_alpha"
    total_epochs = checks.integer(name, "total_epochs", total_epochs, low=1)
    checks.number(name, "alpha_final", alpha_final, low=0.0, high=1.0)
    e = checks.array(name, "epoch", epoch).astype(float)
    return jnp.asarray(alpha_final, float) * jnp.clip((e + 1) / total_epochs, 0, 1)


def sigmoid_rampup(step: Any, length: Any) -> Array:
    r"""A ramp from nearly 0 to 1 in the shape of half a bell.

    Formula:
      .. math:: \exp\left(-5 \left(1 - clip(t / T, 0, 1)\right)^2\right)

      and 1 everywhere for T = 0. It starts at :math:`e^{-5} = 0.0067`, not at 0.

    Args:
      step: t, a number or an array of them, traced or not.
      length: T, the steps until the value is 1: a number of at least 0, or a traced scalar.

    Returns:
      The value, in the shape of ``step``, in float32 (float64 under x64).

    Raises:
      ValueError: if ``length`` is negative or not finite.

    Cost:
      None.

    Use:
      For: unstable training, noisy labels.
      When: The weight of a term whose targets are the model's own, poor at first: consistency, distillation from `ema`, or the
        decay of that average. A length of some tens of epochs is usual.
      Not when: The term must be exactly off at first (it starts at 0.0067), or is a guard that is needed from the first step,
        such as `load_balancing_loss`.
      Badly with: Runs shorter than a few times its length. A learning rate that has decayed when it arrives.

    Example:
      >>> import regjax as rj
      >>> [round(float(rj.schedules.sigmoid_rampup(step, 100)), 4) for step in (0, 50, 100)]
      [0.0067, 0.2865, 1.0]

    References:
      Laine and Aila, Temporal Ensembling for Semi-Supervised Learning, 2016, arXiv 1610.02242; as used in the code of Liu
      et al., Early-Learning Regularization Prevents Memorization of Noisy Labels, 2020, arXiv 2007.00151.
    """
    name = "schedules.sigmoid_rampup"
    t = checks.array(name, "step", step).astype(float)
    length = jnp.asarray(checks.number(name, "length", length, low=0.0), t.dtype)
    done = jnp.clip(jnp.where(length > 0, t / jnp.where(length > 0, length, 1), 1), 0, 1)
    return jnp.exp(-5 * jnp.square(1 - done))
