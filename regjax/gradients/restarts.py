"""AdamW with warm restarts: cosine annealing whose periods grow, and weight decay normalised to each."""

import math
from typing import Any

import jax.numpy as jnp
import optax

from regjax.core import checks
from regjax.core.periods import period
from regjax.core.strength import resolve
from regjax.core.types import Array, Strength, Where
from regjax.gradients.decay import adam, decoupled


def normalized_weight_decay(value: Strength, *, steps_per_epoch: int, period_epochs: int) -> Any:
    r"""The weight decay of a run from a value that does not depend on its length or batch size.

    Formula:
      .. math:: \lambda = \frac{\lambda_{norm}}{\sqrt{steps\_per\_epoch \cdot period\_epochs}}

    Args:
      value: :math:`\lambda_{norm}`, at least 0; the authors use 0.025 to 0.05.
      steps_per_epoch: steps in an epoch, at least 1.
      period_epochs: epochs of the run, or of the period between two restarts, at least 1.

    Returns:
      The decay for `decoupled_weight_decay`; a number, or a scalar array if ``value`` is one.

    Raises:
      ValueError: if ``value`` is negative or not finite, or a count is no positive integer.

    Cost:
      None.

    Use:
      Part of: `decoupled_weight_decay`, `sgdw`, `adamw_decoupled`.
      When: Call it when runs of several lengths or batch sizes shall share one number, 0.025 to 0.05 for a start.
      Badly with: ``optax.adamw``, whose decay is multiplied by the learning rate: divide by that first. `adamwr`, which
        normalises by itself.

    Example:
      >>> import regjax as rj
      >>> round(rj.gradients.normalized_weight_decay(0.025, steps_per_epoch=391, period_epochs=100), 10)
      0.0001264304

    References:
      Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019, arXiv 1711.05101.
    """
    name = "gradients.normalized_weight_decay"
    checks.number(name, "value", value, low=0.0)
    checks.integer(name, "steps_per_epoch", steps_per_epoch, low=1)
    checks.integer(name, "period_epochs", period_epochs, low=1)
    return value / math.sqrt(steps_per_epoch * period_epochs)


def adamwr(
    learning_rate: Strength,
    *,
    steps_per_epoch: int,
    first_period_epochs: int,
    normalized_weight_decay: Strength = 0.025,
    period_multiplier: int = 2,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    where: Where = None,
) -> optax.GradientTransformationExtraArgs:
    r"""`adamw_decoupled` with cosine annealing, warm restarts, and weight decay normalised to each period.

    Formula:
      .. math:: \eta_t = \tfrac{1}{2} (1 + \cos \pi T_{cur}), \quad \lambda_t = \frac{\lambda_{norm}}{\sqrt{n_i}}

      Period i has ``n_i = steps_per_epoch * first_period_epochs * period_multiplier^i`` steps; :math:`T_{cur}` is the
      fraction of it that is done, the present step included: it starts at ``1 / n_i`` and ends at 1, where the step is 0.

    Args:
      learning_rate: a number, at least 0, or a schedule, which is multiplied by :math:`\eta_t`.
      steps_per_epoch: steps in an epoch, at least 1.
      first_period_epochs: epochs until the first restart, at least 1.
      normalized_weight_decay: :math:`\lambda_{norm}`, at least 0, default 0.025; a number or a schedule.
      period_multiplier: how many times longer each period is than the last, an integer, at least 1, default 2.
      b1: the decay of the first moment in [0, 1), default 0.9.
      b2: the decay of the second moment in [0, 1), default 0.999.
      eps: added to the root of the second moment, default 1e-8, at least 0.
      where: which leaves decay: None (kernels, default), "all" (the authors), a predicate ``(path, leaf) -> bool``, or a
        tree of booleans.

    Returns:
      An optax optimiser whose ``update`` needs the parameters.

    Raises:
      ValueError: if a number is out of range or not finite.

    Cost:
      That of ``optax.adamw``.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.1 times the FLOPs and 1.2 times the bytes of a plain training
      step, and 0.01 times its memory more.

    Use:
      For: few labels, compute budget.
      When: The length of the run is open: every restart ends in a usable model, and decay fits the period's length. Stop at the
        end of a period. Average the ends with `swa`.
      Not when: The length is known: one cosine or `one_cycle`. Judging within a period, when the learning rate is high. On the
        digits comparison restarts of the learning rate alone, `sgdr`, changed nothing.
      Badly with: `one_cycle` or `sgdr` as ``learning_rate``, which are multiplied by its cosine. `prune` with its end just
        before a restart, whose steps disturb the cut. Early stopping by a fixed patience, which ends within a period.

    Example:
      >>> import jax.numpy as jnp, optax, regjax as rj
      >>> tx = rj.gradients.adamwr(0.1, steps_per_epoch=1, first_period_epochs=2)
      >>> params, grads = {"kernel": jnp.array([[2.0]])}, {"kernel": jnp.array([[1.0]])}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> round(float(updates["kernel"][0, 0]), 4)
      -0.0677

    References:
      Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019, arXiv 1711.05101. Loshchilov and Hutter, SGDR:
      Stochastic Gradient Descent with Warm Restarts, 2017, arXiv 1608.03983. As in the authors' code the counter is advanced
      before the multiplier is used; the moments are kept over a restart.
    """
    name = "gradients.adamwr"
    checks.strength(name, "learning_rate", learning_rate, low=0.0)
    checks.strength(name, "normalized_weight_decay", normalized_weight_decay, low=0.0)
    checks.integer(name, "steps_per_epoch", steps_per_epoch, low=1)
    checks.integer(name, "first_period_epochs", first_period_epochs, low=1)
    checks.integer(name, "period_multiplier", period_multiplier, low=1)
    steps = steps_per_epoch * first_period_epochs

    def multiplier(step: Any) -> Array:
        done, _ = period(step, steps, period_multiplier)
        return 0.5 * (1 + jnp.cos(jnp.pi * done))

    def decay(step: Any) -> Array:
        value = resolve(normalized_weight_decay, step, name, "normalized_weight_decay")
        return value / jnp.sqrt(period(step, steps, period_multiplier)[1])

    return decoupled(name, adam(name, b1, b2, eps), learning_rate, decay, multiplier, where)
