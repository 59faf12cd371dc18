"""The rows of a per-example memory [N, K] that a batch reads and writes, under jit and on any mesh."""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from regjax.core import checks, sharding
from regjax.core.types import Array


class Rows(NamedTuple):
    """Where a batch stands in a memory.

    Attributes:
      read: the positions, with 0 in place of those outside the memory.
      write: the positions, with N, which a scatter drops, in place of those that must not be written.
      known: whether a position lies in the memory.
      counts: the examples that count, or None for all.
    """

    read: Array
    write: Array
    known: Array
    counts: Array | None


def shape(function: str, num_examples: Any, num_classes: Any) -> tuple[int, int]:
    """Checks the sizes [N, K] of a memory."""
    num_examples = checks.integer(function, "num_examples", num_examples, low=1)
    return num_examples, checks.integer(function, "num_classes", num_classes, low=1)


def rows(function: str, argument: str, indices: Any, batch: int, num_examples: int, counts: Array | None) -> Rows:
    """Checks dataset positions: by value where they are on the host, else by shape and dtype."""
    array = checks.integers(function, argument, indices, shape=(batch,))
    if isinstance(indices, np.ndarray) and counts is None:
        wrong = indices[(indices < 0) | (indices >= num_examples)]
        if wrong.size:
            checks.fail(function, argument, f"positions in a memory of {num_examples} rows", wrong[0].item())
    array = array.astype(jnp.promote_types(jnp.int32, array.dtype))
    known = (array >= 0) & (array < num_examples)
    written = known if counts is None else known & counts
    return Rows(jnp.where(known, array, 0), jnp.where(written, array, num_examples), known, counts)


def logits(function: str, value: Any, num_classes: int, mask: Any) -> tuple[Array, Array | None]:
    """Checks logits [B, K] and the mask of examples, and blanks the rest."""
    value = checks.floating(function, "logits", value, shape=(None, num_classes))
    counts = checks.example_mask(function, "mask", mask, value.shape[:1])
    return blank(value, counts), counts


def blank(rows: Array, counts: Array | None) -> Array:
    """Rows with 0 where no example counts: padding may hold anything, and its gradient would be 0 * NaN."""
    return rows if counts is None else jnp.where(counts[:, None], rows, 0)


def buffer(function: str, state: Any, kind: Any, num_examples: int, num_classes: int) -> Array:
    """The array of a state that this memory's ``init`` made: ``kind`` is its NamedTuple, of one field."""
    if not isinstance(state, kind):
        checks.fail(function, "state", f"the {kind.__name__} that init() makes", state)
    return checks.floating(function, f"state.{kind._fields[0]}", state[0], shape=(num_examples, num_classes))


def read(memory: Array, where: Rows, dtype: Any) -> Array:
    """The rows of a batch, in the dtype of its computation."""
    return sharding.take_rows(memory, where.read).astype(dtype)


def write(memory: Array, where: Rows, values: Array, past: Array) -> Array:
    """The memory with the rows of a batch replaced; in place where the caller donates it.

    ``past`` are the rows that `read` gave. The compiler writes in place only if it is sure to have read before, so they
    enter the written value, by a choice that it cannot decide.
    """
    return sharding.set_rows(memory, where.write, jnp.where(where.known[:, None], values, past).astype(memory.dtype))


def per_example(loss: Array, *where: Rows) -> Array:
    """The loss with NaN at positions outside the memory, so that a wrong one is seen, and 0 where no example counts."""
    for each in where:
        loss = jnp.where(each.known, loss, jnp.nan)
    counts = where[0].counts
    return loss if counts is None else jnp.where(counts, loss, 0)
