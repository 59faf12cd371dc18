"""The strength of the l1 penalty while a network unlearns."""

from typing import Any

import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array, Schedule


def unlearning_alpha(*, alpha: Any, epochs: int = 10, no_l1_epochs: int = 0, steps_per_epoch: int = 1) -> Schedule:
    r"""The strength of `regjax.weights.l1` in sparse unlearning: it falls to 0 epoch by epoch.

    Formula:
      .. math:: \alpha_t = \alpha \left(1 - \frac{t}{E - E_0}\right) \;\; (t < E - E_0), \qquad \alpha_t = 0 \;\; (t \ge E - E_0)

      for epochs t from 0; with :math:`E_0 = E` it is constant.

    Args:
      alpha: :math:`\alpha`, at least 0; a number or a traced scalar. Published runs use about 1e-5 to 5e-4, on the sum of the
        absolute values of all parameters.
      epochs: E, the epochs of unlearning, at least 1, default 10.
      no_l1_epochs: :math:`E_0`, the last epochs, without penalty: from 0 (default) to ``epochs``.
      steps_per_epoch: at least 1, default 1: the schedule takes epochs.

    Returns:
      A schedule, ``step -> value``, in float32 (float64 under x64), constant within an epoch.

    Raises:
      ValueError: if ``alpha`` is negative or not finite, or a count is out of range.

    Cost:
      None.

    Use:
      For: unlearning, sparsity budget.
      When: Fine-tuning on the kept data to forget the rest, with `weights.l1` of all parameters: strong first, 0 at the end, so
        that the last epochs mend what the penalty cost.
      Not when: Forgetting must be complete: in the forgetting study the penalty came no nearer to retraining at its best point,
        and `bounded_forgetting` on the data to forget did better.
      Badly with: Weight decay and proximal steps beside it, which shrink the same weights. Steps without ``steps_per_epoch``,
        which ends it after a few batches.

    Example:
      >>> import regjax as rj
      >>> alpha = rj.schedules.unlearning_alpha(alpha=1e-3, epochs=10, no_l1_epochs=2)
      >>> [round(float(alpha(epoch)), 6) for epoch in (0, 4, 8)]
      [0.001, 0.0005, 0.0]

    References:
      Jia et al., Model Sparsity Can Simplify Machine Unlearning, 2023, arXiv 2304.04934; as the authors' code, which fine-tunes
      for 10 epochs on the data to be kept, with SGD at 0.01 and momentum 0.9. The usual strengths are unverified.
    """
    name = "schedules.unlearning_alpha"
    checks.number(name, "alpha", alpha, low=0.0)
    epochs = checks.integer(name, "epochs", epochs, low=1)
    no_l1_epochs = checks.integer(name, "no_l1_epochs", no_l1_epochs, low=0, high=epochs)
    steps_per_epoch = checks.integer(name, "steps_per_epoch", steps_per_epoch, low=1)
    falling = epochs - no_l1_epochs

    def schedule(step: Any) -> Array:
        step = checks.array(name, "step", step)
        epoch = jnp.maximum(step // steps_per_epoch, 0).astype(float)
        left = jnp.clip(1 - epoch / falling, 0, 1) if falling else jnp.ones_like(epoch)
        return jnp.asarray(alpha, left.dtype) * left

    return schedule
