"""Sets of evaluated examples: which count, and all of them on every device."""

from typing import Any

import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array


def counted(function: str, where: Any, shape: tuple[int, ...]) -> Array:
    """The checked mask of the examples that count, all of them by default."""
    where = checks.example_mask(function, "where", where, shape)
    return jnp.ones(shape, bool) if where is None else where


def mean(values: Array, where: Array | None, dtype: Any = jnp.float32) -> Array:
    """The mean of the examples that count; 0 if none does."""
    if where is None:
        return jnp.sum(values, dtype=dtype) / max(values.size, 1)
    return jnp.sum(jnp.where(where, values, 0), dtype=dtype) / jnp.maximum(jnp.sum(where), 1).astype(dtype)


def scored(function: str, argument: str, scores: Any, correct: Any) -> tuple[Array, Array]:
    """Checked scores [N] in float32 or better, and whether each example is right as 0 or 1 in the same dtype."""
    scores = checks.floating(function, argument, scores, ndim=1)
    correct = checks.array(function, "correct", correct, shape=scores.shape)
    dtype = trees.accumulator(scores)
    return scores.astype(dtype), correct.astype(dtype)
