"""What the consolidation terms share: parameters as a vector, memories with a place for each leaf, and sums over batches."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, PyTree, Where


def flat(name: str, params: PyTree, where: Where) -> tuple[Array, Callable[[Array], PyTree]]:
    """The chosen leaves as one vector in float32 or better, and the way back to a tree with the leaves so widened.

    Leaves that are no floats are never part of it.
    """
    leaves, structure = jax.tree.flatten(params)
    flags = jax.tree.leaves(trees.select(name, params, where))
    chosen = [i for i, flag in enumerate(flags) if flag]
    for i in chosen:
        if not trees.is_float(leaves[i]):
            checks.fail(name, "where", "a choice of floating-point leaves", leaves[i])
    parts = [sharding.replicate(jnp.asarray(leaves[i])).ravel() for i in chosen]
    dtype = trees.accumulator(*parts)
    theta = jnp.concatenate([jnp.zeros((0,), dtype), *(part.astype(dtype) for part in parts)])
    wide = [trees.widen(leaf) for leaf in leaves]
    sizes = [part.size for part in parts]

    def rebuild(theta: Array) -> PyTree:
        new, start = list(wide), 0
        for i, size in zip(chosen, sizes, strict=True):
            new[i] = theta[start : start + size].reshape(jnp.shape(leaves[i]))
            start += size
        return jax.tree.unflatten(structure, new)

    return theta, rebuild


def memory(name: str, params: PyTree, where: Where, make: Callable[[Array], Array]) -> PyTree:
    """A tree with ``make(leaf)`` for each chosen leaf, in float32 or better, and None for every other."""

    def leaf(use: bool, x: Any) -> Any:
        if not use:
            return None
        if not trees.is_float(x):
            checks.fail(name, "where", "a choice of floating-point leaves", x)
        return make(trees.widen(jax.lax.stop_gradient(jnp.asarray(x))))

    return jax.tree.map(leaf, trees.select(name, params, where), params)


def along(name: str, argument: str, tree: PyTree, params: PyTree) -> list[Any]:
    """The leaf of a memory for each leaf of ``params``: None where the memory, or a gradient, has none."""
    structure: Any = jax.tree.structure(params)
    try:
        found = structure.flatten_up_to(tree)
    except (ValueError, TypeError):
        expected = "a tree of the structure of the parameters, with None where a leaf is not consolidated"
        checks.fail(name, argument, expected, jax.tree.structure(tree))
    for i, ((path, leaf), x) in enumerate(zip(jax.tree_util.tree_flatten_with_path(params)[0], found, strict=True)):
        if x is None or not trees.is_float(leaf):
            found[i] = None
        else:
            at = argument + jax.tree_util.keystr(path)
            found[i] = sharding.placed_like(checks.array(name, at, x, shape=jnp.shape(leaf)), jnp.asarray(leaf))
    return found


def both(minimum: list[Any], importance: list[Any]) -> tuple[list[Any], list[Any]]:
    """Two memories of the same leaves: None in both where it is in one."""
    kept = [m is not None and f is not None for m, f in zip(minimum, importance, strict=True)]
    drop = lambda found: [x if keep else None for x, keep in zip(found, kept, strict=True)]
    return drop(minimum), drop(importance)


def diagonal(params: PyTree, minimum: list[Any], importance: list[Any], weight: Any) -> Array:
    """``weight / 2 * sum(importance * (params - minimum)**2)``, the last two constant."""
    total = jnp.zeros((), jnp.float32)
    for w, m, f in zip(jax.tree.leaves(params), minimum, importance, strict=True):
        if m is not None:
            dtype = trees.accumulator(w, m, f)
            m, f = (jax.lax.stop_gradient(x).astype(dtype) for x in (m, f))
            total = total + jnp.sum(f * jnp.square(jnp.asarray(w).astype(dtype) - m))
    return jnp.asarray(weight, total.dtype) / 2 * total


def check_state(name: str, state: Any, kind: Any, init: str) -> None:
    """Refuses what is no state of its kind."""
    if not isinstance(state, kind):
        checks.fail(name, "state", f"the {kind.__name__} that {init} makes", state)


def over_batches(name: str, add: Callable[..., PyTree], params: PyTree, total: PyTree, batches: Any) -> PyTree:
    """``add(params, total, batch)`` over all batches: a scan over a stacked tree, or a loop over an iterable.

    An array, a tuple, a mapping or any other tree is stacked; a list, or another iterable, holds one batch after the other.
    """
    if isinstance(batches, str):
        checks.fail(name, "batches", "a stacked tree of arrays [n_batches, ...] or an iterable of batches", batches)
    if isinstance(batches, (tuple, Mapping, jax.Array, np.ndarray)) or not isinstance(batches, Iterable):
        lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)}
        if len(lengths) != 1 or () in lengths or (0,) in lengths:
            expected = "a stacked tree whose arrays share the number of batches, at least 1, on axis 0, or an iterable of batches"
            checks.fail(name, "batches", expected, [jnp.shape(leaf) for leaf in jax.tree.leaves(batches)])
        # No second derivative through the data is traced, only to be dropped.
        batches = jax.tree.map(lambda x: jax.lax.stop_gradient(x) if trees.is_float(x) else x, batches)
        return jax.lax.scan(lambda total, batch: (add(params, total, batch), None), total, batches)[0]
    step = jax.jit(add, donate_argnums=1)
    seen = False
    for batch in batches:
        total, seen = step(params, total, batch), True
    if not seen:
        checks.fail(name, "batches", "one batch or more", batches)
    return total


def scalar(name: str, argument: str, value: Any) -> Array:
    """The value of the caller's function, which must be a floating scalar, in float32 or better."""
    if not (isinstance(value, (jax.Array, np.ndarray, np.generic, float)) and jnp.shape(value) == () and trees.is_float(value)):
        checks.fail(name, argument, "a function that returns a floating-point scalar", value)
    value = jnp.asarray(value)
    return value.astype(trees.accumulator(value))
