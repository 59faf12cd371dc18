"""Groups of weights that compete for a number of places: their norms as the rows of one table.

The units of a leaf compete with each other, each leaf for itself; whole leaves, and groups written out, all compete together.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, PyTree, Where
from regjax.weights import groups as grouping


class Rivals(NamedTuple):
    """The groups of a tree.

    ``norms [R, M]``: a row for each competition, padded with zeros; ``real [R, M]``: what is no padding. ``leaves``: for each
    entry of the plan of groups, the indices of its leaves, their values, and the norms as they broadcast to them.
    """

    norms: Array
    real: np.ndarray
    leaves: list[tuple[tuple[int, ...], list[Array], Array]]
    together: bool


def find(function: str, params: PyTree, groups: Any, where: Where) -> Rivals | None:
    """The competing groups of a tree, or None where it has none."""
    flat = jax.tree.leaves(params)
    leaves = []
    for indices, axes in grouping.plan(function, params, groups, where):
        xs = [grouping.accumulated(function, flat[i]) for i in indices]
        leaves.append((indices, xs, grouping.norms(xs, axes)))
    if not leaves:
        return None
    together = groups == "leaf" or not isinstance(groups, str)
    dtype = trees.accumulator(*(norms for _, _, norms in leaves))
    rows = [sharding.replicate(norms).ravel().astype(dtype) for _, _, norms in leaves]
    rows = [jnp.concatenate(rows)] if together else rows
    width = max(row.size for row in rows)
    real = np.stack([np.arange(width) < row.size for row in rows])
    return Rivals(jnp.stack([jnp.pad(row, (0, width - row.size)) for row in rows]), real, leaves, together)


def spread(rivals: Rivals, values: Array) -> list[Array]:
    """A table of values for the groups, for each entry of the plan in the shape of its norms."""
    if rivals.together:
        return [values[0, i] for i in range(len(rivals.leaves))]
    shapes = [(norms, values[row, : norms.size]) for row, (_, _, norms) in enumerate(rivals.leaves)]
    return [sharding.placed_like(value.reshape(norms.shape), norms) for norms, value in shapes]


def weights(function: str, rivals: Rivals, params: PyTree, given: Any) -> Array:
    """The weights of the groups as a table, 0 on the padding."""
    dtype, width = rivals.norms.dtype, rivals.real.shape[1]
    if given is None:
        return jnp.asarray(rivals.real, dtype)
    expected = (
        "None, a positive number, an array of one positive number for each group, or a tree of such of the structure of the "
        "parameters"
    )
    if _is_tree(given, params):
        if rivals.together and any(len(indices) != 1 for indices, _, _ in rivals.leaves):
            checks.fail(function, "group_weights", "an array where groups span leaves", given)
        flat = jax.tree.leaves(given)
        rows = [flat[indices[0]] for indices, _, _ in rivals.leaves]
        sizes = [norms.size for _, _, norms in rivals.leaves]
        table = [_row(function, expected, row, size) for row, size in zip(rows, sizes, strict=True)]
        table = [jnp.concatenate(table)] if rivals.together else table
    else:
        table = [_row(function, expected, given, int(size)) for size in rivals.real.sum(1)]
    return jnp.stack([jnp.pad(row.astype(dtype), (0, width - row.size)) for row in table])


def scaled(params: PyTree, rivals: Rivals, factors: Sequence[Array]) -> PyTree:
    """The parameters with every group times its factor, in their dtypes."""
    leaves, structure = jax.tree.flatten(params)
    for (indices, xs, _), factor in zip(rivals.leaves, factors, strict=True):
        for i, x in zip(indices, xs, strict=True):
            leaves[i] = (x * factor.astype(x.dtype)).astype(jnp.asarray(leaves[i]).dtype)
    return jax.tree.unflatten(structure, leaves)


def _is_tree(given: Any, params: PyTree) -> bool:
    structure: Any = jax.tree.structure(params)
    return not hasattr(params, "dtype") and jax.tree.structure(given) == structure


def _row(function: str, expected: str, value: Any, size: int) -> Array:
    if isinstance(value, int | float | np.number) and not isinstance(value, bool):
        checks.number(function, "group_weights", value, low=0.0, open_low=True)
    elif not isinstance(value, jax.Array | np.ndarray | list | tuple):
        checks.fail(function, "group_weights", expected, value)
    row = checks.array(function, "group_weights", value)
    if row.shape not in ((), (size,)) or not jnp.issubdtype(row.dtype, jnp.number):
        checks.fail(function, "group_weights", f"a number or {size} of them, one for each group", row)
    return jnp.broadcast_to(sharding.replicate(row), (size,))
