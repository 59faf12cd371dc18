"""Periods between warm restarts, each longer than the last by a factor: where in them a step is."""

from typing import Any

import jax.numpy as jnp
import numpy as np

from regjax.core.types import Array


def period(step: Any, first: int, multiplier: int) -> tuple[Array, Array]:
    """The fraction of its period that is done after a step, in (0, 1], and the period's length in steps."""
    if multiplier == 1:
        return (step % first + 1) / jnp.float32(first), jnp.float32(first)
    # All periods that begin before a 32-bit counter ends; integers, so that restarts are exact.
    starts, lengths = [0], [first]
    while starts[-1] + lengths[-1] < 2**31:
        starts.append(starts[-1] + lengths[-1])
        lengths.append(lengths[-1] * multiplier)
    # The last start and the last length among those begun: without a gather, so that sharded steps need none.
    begun = jnp.asarray(step)[..., None] >= np.array(starts, np.int32)
    start = jnp.max(begun.astype(jnp.int32) * np.array(starts, np.int32), axis=-1)
    length = jnp.max(begun.astype(jnp.float32) * np.array(lengths, np.float32), axis=-1)
    return (step - start + 1) / length, length
