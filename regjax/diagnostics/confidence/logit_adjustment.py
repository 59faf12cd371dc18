"""Logits of a trained model, corrected for the class frequencies of its training set."""

from typing import Any

import jax.numpy as jnp

from regjax.core import checks, classes
from regjax.core.types import Array, Strength


def adjust_logits(logits: Any, class_counts: Any, *, tau: Strength = 1.0, axis: int = -1) -> Array:
    r"""Takes the classes' training frequencies out of a model's logits, so that rare classes are no longer passed over.

    Formula:
      .. math:: z - \tau \log(\pi + 10^{-12}), \quad \pi_k = n_k / \sum_j n_j

      For a model trained with plain cross-entropy. One trained with ``regjax.losses.logit_adjusted`` needs no correction.

    Args:
      logits: float ``[..., K]``, classes on ``axis``.
      class_counts: ``[K]``, n, the training examples of each class, or their shares; all 0 counts as uniform.
      tau: at least 0, default 1, at which the balanced error is least if the model is calibrated; 0 changes nothing.
      axis: the class axis.

    Returns:
      The corrected logits, of the shape of ``logits``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``tau`` is negative or not finite.

    Cost:
      One pass over the logits.
      XLA at [1024, 1000]: at most 1.2 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      For: long tails.
      When: A network trained with plain cross-entropy on unequal classes is to be judged by balanced accuracy, and cannot be
        trained again. Search tau on balanced held-out images, as 1 is best only for calibrated models: `fit_temperature` first.
      Not when: Test examples have the shares of the training set. Training can be repeated: `logit_adjusted` has the margin in
        the loss, which of the single methods did most for rare digits in the long-tail study.
      Badly with: `logit_adjusted`, `class_balance` weights and balanced sampling, after which the frequencies are out already:
        rare classes get them twice. Calibration errors of the adjusted logits on unbalanced data.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> z = rj.diagnostics.adjust_logits(jnp.array([2.0, 1.0, 0.0]), jnp.array([70, 20, 10]))
      >>> [round(float(x), 4) for x in z]
      [2.3567, 2.6094, 2.3026]

    References:
      Menon et al., Long-tail Learning via Logit Adjustment, 2020, arXiv 2007.07314; the 1e-12, for classes without examples,
      is that of public reimplementations.
    """
    name = "diagnostics.adjust_logits"
    checks.number(name, "tau", tau, low=0.0)
    x = classes.class_inputs(name, logits, axis=axis)
    log_share = classes.log_prior(name, class_counts, x.logits)
    return jnp.moveaxis(x.logits - jnp.asarray(tau, log_share.dtype) * log_share, -1, axis)
