"""Scores of classes with and without training examples on one scale: calibrated stacking."""

from typing import Any

import jax.numpy as jnp

from regjax.core import checks, classes
from regjax.core.types import Array, Strength


def calibrated_stacking(scores: Any, seen_mask: Any, gamma: Strength, *, axis: int = -1) -> Array:
    r"""Scores with a constant subtracted from the classes that had training examples, at test time.

    Formula:
      .. math:: s_c - \gamma \, 1[c\ seen]

      and the prediction is its argmax. A zero-shot classifier prefers the classes it was trained on; the constant undoes
      it. ``diagnostics.fit_stacking_gamma`` finds it on a validation split of the classes.

    Args:
      scores: float ``[..., K]``, classes on ``axis``: logits, cosines or probabilities of seen and unseen classes alike.
      seen_mask: boolean ``[K]``: the classes with training examples.
      gamma: :math:`\gamma`, any finite number or a traced scalar; large values leave the unseen classes alone, large
        negative ones the seen. 0 changes nothing.
      axis: the class axis.

    Returns:
      The adjusted scores, of the shape of ``scores``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``gamma`` is not finite.

    Cost:
      One pass over the scores.
      XLA at [1024, 1000]: at most 1.1 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      For: distribution shift.
      When: A zero-shot classifier must choose among seen and unseen classes at test: without it the unseen ones hardly ever
        win. Choose gamma by `fit_stacking_gamma` on classes held out as unseen, and report `ausuc`.
      Not when: Unseen classes have examples for validation only in the test set: gamma must not be chosen there. It is known
        which kind a test example is of: then mask the others.
      Badly with: Scores of other scale than those gamma was chosen on, as after a new temperature. `logit_adjusted` or
        `adjust_logits` that already treat unseen classes as rare. Probabilities read from the result.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> scores = rj.losses.calibrated_stacking(jnp.array([0.6, 0.3, 0.5]), jnp.array([True, True, False]), 0.25)
      >>> [round(float(s), 4) for s in scores], int(scores.argmax())
      ([0.35, 0.05, 0.5], 2)

    References:
      Chao et al., An Empirical Study and Analysis of Generalized Zero-Shot Learning for Object Recognition in the Wild,
      2016, arXiv 1605.04253.
    """
    name = "losses.calibrated_stacking"
    scores = checks.floating(name, "scores", scores, min_ndim=1)
    x = classes.class_inputs(name, scores, axis=axis).logits
    seen = checks.array(name, "seen_mask", seen_mask, shape=x.shape[-1:])
    if seen.dtype != jnp.bool_:
        checks.fail(name, "seen_mask", f"a boolean mask of {x.shape[-1]} classes", seen)
    gamma = jnp.asarray(checks.number(name, "gamma", gamma), x.dtype)
    return jnp.moveaxis(x - gamma * seen.astype(x.dtype), -1, axis)
