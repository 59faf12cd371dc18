"""Arrays of equal shape as one: a network has many leaves and few shapes, and a call for each shape saves most launches."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import sharding
from regjax.core.types import Array


def stacked(*columns: Sequence[Array]) -> list[tuple[list[int], list[Array]]]:
    """Rows of some columns of arrays, those that are alike stacked: their numbers, and one array ``[rows, ...]`` per column."""
    kinds: dict[Any, list[int]] = {}
    for i, row in enumerate(zip(*columns, strict=True)):
        kinds.setdefault(tuple((x.shape, x.dtype, sharding.explicit_sharding(x)) for x in row), []).append(i)
    return [(rows, [jnp.stack([column[i] for i in rows]) for column in columns]) for rows in kinds.values()]


def map_stacked(fn: Callable[..., Any], *columns: Sequence[Array]) -> list[Any]:
    """``fn`` of each row of the columns, called with stacks of those that are alike; its results have their first axis."""
    out: list[Any] = [None] * len(columns[0])
    for rows, arrays in stacked(*columns):
        results = fn(*arrays)
        for row, i in enumerate(rows):
            out[i] = jax.tree.map(lambda x, row=row: x[row], results)
    return out
