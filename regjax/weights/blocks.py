"""Blocks of coordinates: which entries of a parameter tree form a block, and sums over each; also for `regjax.gradients`."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, trees
from regjax.core.sharding import placed_like, replicate
from regjax.core.types import Array, PyTree


class Blocks(NamedTuple):
    """The blocks of a tree: the floating leaves' places among all leaves, and the block of each, or of each of its entries."""

    leaves: tuple[int, ...]
    numbers: tuple[np.ndarray, ...]
    total: int


def plan(function: str, tree: PyTree, blocks: Any, *, by_leaf: bool = False) -> Blocks:
    """Checks ``blocks`` and numbers the floating leaves of a tree; ``by_leaf`` refuses blocks that part a leaf.

    ``blocks`` is ``"leaf"``, where each floating leaf is a block, in tree order; or a tree of block numbers, which may be a
    prefix of ``tree``: an integer for all of a leaf or subtree, or an integer array of a leaf's shape.
    """
    leaves = jax.tree.leaves(tree)
    floats = tuple(i for i, leaf in enumerate(leaves) if trees.is_float(leaf))
    if isinstance(blocks, str):
        checks.choice(function, "blocks", blocks, ("leaf",))
        return Blocks(floats, tuple(np.asarray(n) for n in range(len(floats))), len(floats))
    kind = "an integer for each leaf" if by_leaf else "an integer, or an integer array of its shape, for each leaf"
    expected = f"'leaf', or a tree of block numbers from 0, a prefix of the parameters with {kind}"
    try:
        given = jax.tree.leaves(jax.tree.map(lambda n, subtree: jax.tree.map(lambda _: n, subtree), blocks, tree))
    except (ValueError, TypeError):
        checks.fail(function, "blocks", expected, blocks)
    numbers = []
    for i in floats:
        given_i = checks.concrete(function, "blocks", given[i], "as the blocks are part of the program")
        fits = given_i.ndim == 0 or (not by_leaf and given_i.shape == jnp.shape(leaves[i]))
        if not fits or not np.issubdtype(given_i.dtype, np.integer) or np.any(given_i < 0):
            checks.fail(function, "blocks", expected, given_i if given_i.ndim else given[i])
        numbers.append(given_i)
    return Blocks(floats, tuple(numbers), 1 + max((int(n.max()) for n in numbers if n.size), default=-1))


def sums(blocks: Blocks, values: list[Array]) -> Array:
    """The sum of the values in each block ``[total]``; ``values`` are of the shapes of the floating leaves."""
    dtype = trees.accumulator(*values)
    total: Any = jnp.zeros(blocks.total, dtype)
    for numbers, value in zip(blocks.numbers, values, strict=True):
        if numbers.ndim == 0:
            total = total + jnp.sum(value).astype(dtype) * (np.arange(blocks.total) == numbers)
        else:
            total = total.at[numbers.ravel()].add(replicate(value).astype(dtype).ravel())
    return total


def per_block(function: str, argument: str, value: Any, count: int) -> Array:
    """An array with a number for each block."""
    if value is None:
        checks.fail(function, argument, f"an array of a number for each of the {count} blocks", value)
    return checks.floating(function, argument, value, shape=(count,))


def where_chosen(blocks: Blocks, index: Array, chosen: list[Array], others: list[Array]) -> list[Array]:
    """Of each floating leaf the entries of block ``index`` from ``chosen``, the rest from ``others``."""
    out = []
    for numbers, new, old in zip(blocks.numbers, chosen, others, strict=True):
        here = jnp.asarray(numbers) == index
        # A scalar choice takes whole leaves, of whatever sharding both have.
        out.append(jax.lax.select(here, new, old) if numbers.ndim == 0 else jnp.where(placed_like(here, new), new, old))
    return out
