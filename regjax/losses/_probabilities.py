"""Losses that look at the probability of the right class, and the entropy of a prediction: one pass over the logits."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from regjax.core import classes
from regjax.core.types import Array


def of_likelihood(x: classes.ClassInputs, value: Callable[[Array], Array]) -> Array:
    """``sum_k y_k value(-log p_k)``, that is ``value`` of the cross-entropy for class ids; 0 where no class exists."""
    shifted, log_total = classes.normalise(x.logits, x.where)
    if x.is_ids:
        loss = value(log_total - classes.pick(shifted, x.labels))
    else:
        # A class without mass may have probability 0: its infinity must not reach the derivative of `value`.
        surprise = jnp.where(x.labels != 0, log_total[..., None] - shifted, 0)
        loss = classes.expected_under(value(surprise), x.labels, False)
    return loss if x.where is None else jnp.where(jnp.any(x.where, axis=-1), loss, 0)


def mean_under_prediction(parts: classes.Normalised, values: Array | float) -> Array:
    """``sum_k p_k values_k`` for finite values; 0 where no class exists."""
    # Divided after the sum, so that the derivative by the total needs no second pass.
    return jnp.sum(jnp.exp(parts.shifted) * values, axis=-1) / jnp.exp(parts.log_total)


def entropy(parts: classes.Normalised) -> Array:
    """``- sum_k p_k log p_k``; 0 where no class exists."""
    # The exponential is exactly 0 from far above this bound on, which keeps 0 * -inf out.
    return parts.log_total - mean_under_prediction(parts, jnp.maximum(parts.shifted, -1e3))


def weighted(weight: Any, loss: Array) -> Array:
    """``weight * loss`` that is 0 at weight 0, also where the loss is infinite."""
    weight = jnp.asarray(weight, loss.dtype)
    return jnp.where((weight == 0) & (loss == jnp.inf), 0, weight * loss)
