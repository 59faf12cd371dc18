"""Groups of weights: how the leaves of a tree fall into groups, and the norm of each; shared by penalties and proximal steps."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, PyTree, Where

KINDS = ("out", "in", "kernel_position", "leaf")


class Groups(NamedTuple):
    """The groups of one leaf, or one group of several: their indices in the flat tree, and the axes that a norm sums.

    ``axes`` is None where the whole of the leaves is one group.
    """

    leaves: tuple[int, ...]
    axes: tuple[int, ...] | None


def plan(function: str, params: PyTree, groups: Any, where: Where) -> list[Groups]:
    """Checks ``groups`` and ``where`` and lists the groups of a tree, in the order of its leaves."""
    if isinstance(groups, str):
        checks.choice(function, "groups", groups, KINDS)
        mask = jax.tree.leaves(trees.select(function, params, where))
        leaves = jax.tree.leaves(params)
        return [Groups((i,), _axes(function, groups, leaves[i])) for i, use in enumerate(mask) if use]
    return _named(function, params, groups, where)


def norms(xs: Sequence[Array], axes: tuple[int, ...] | None) -> Array:
    """The norms of the groups in some leaves, of a shape that broadcasts to each leaf; gradient 0 at a zero group."""
    total = sum(jnp.sum(jnp.square(x), axis=axes, keepdims=axes is not None) for x in xs)
    return trees.safe_sqrt(jnp.asarray(total))


def weight(xs: Sequence[Array], group_norms: Array, size_weighted: bool) -> float:
    """The square root of the entries of each group, or 1."""
    return math.sqrt(sum(x.size for x in xs) / max(group_norms.size, 1)) if size_weighted else 1.0


def accumulated(function: str, leaf: Any) -> Array:
    """A chosen leaf in float32 or better."""
    if not trees.is_float(leaf):
        checks.fail(function, "where", "a choice of floating-point leaves", leaf)
    leaf = jnp.asarray(leaf)
    return leaf.astype(trees.accumulator(leaf))


def _axes(function: str, kind: str, leaf: Any) -> tuple[int, ...] | None:
    ndim = jnp.ndim(leaf)
    if kind == "leaf":
        return None
    if kind == "out":
        return tuple(range(ndim - 1))
    if ndim < 2:
        checks.fail(
            function, "groups", f"'out' or 'leaf' where leaves of fewer than two dimensions are chosen, not {kind!r}", leaf
        )
    return (ndim - 2, ndim - 1) if kind == "kernel_position" else (*range(ndim - 2), ndim - 1)


def _named(function: str, params: PyTree, groups: Any, where: Where) -> list[Groups]:
    """Groups written out as lists of key paths; a path names a leaf, or all floating leaves of a subtree."""
    expected = f"one of {', '.join(map(repr, KINDS))}, or a list of groups, each a list of paths ('encoder/kernel')"
    if not isinstance(groups, list | tuple) or not all(isinstance(group, list | tuple) for group in groups):
        checks.fail(function, "groups", expected, groups)
    flat = jax.tree_util.tree_flatten_with_path(params)[0]
    paths = [trees.path_names(path) for path, _ in flat]
    # Written-out groups are themselves the choice of leaves; a `where` narrows it.
    mask = jax.tree.leaves(trees.select(function, params, "all" if where is None else where))
    taken: set[int] = set()
    planned = []
    for group in groups:
        indices: set[int] = set()
        for entry in group:
            if not isinstance(entry, str | list | tuple):
                checks.fail(function, "groups", expected, groups)
            names = tuple(entry.strip("/").split("/")) if isinstance(entry, str) else tuple(map(str, entry))
            found = {i for i, path in enumerate(paths) if path[: len(names)] == names}
            if paths and not found:
                checks.fail(function, "groups", "made of paths in the parameters", "/".join(names))
            indices |= found
        if taken & indices:
            twice = "/".join(paths[min(taken & indices)])
            checks.fail(function, "groups", "disjoint", f"{twice} twice")
        taken |= indices
        planned.append(Groups(tuple(i for i in sorted(indices) if mask[i] and trees.is_float(flat[i][1])), None))
    return [group for group in planned if group.leaves]
