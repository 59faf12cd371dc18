"""Parameters as vectors: the floating leaves of a tree, in float32 or better, and the batches that a loss is measured on."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Key, PyTree


def floats(tree: PyTree) -> list[Array]:
    """The floating leaves, in float32 or better; counters, keys and complex leaves have no gradient."""
    return trees.widen(trees.float_leaves(tree))


def flags(function: str, tree: PyTree, where: Any, argument: str = "where") -> list[bool]:
    """For each floating leaf, whether ``where`` names it."""
    mask = jax.tree.leaves(trees.select(function, tree, where, argument))
    return [bool(flag) for flag, leaf in zip(mask, jax.tree.leaves(tree), strict=True) if trees.is_float(leaf)]


def normals(key: Key, leaves: list[Array]) -> list[Array]:
    """Standard-normal numbers in the shapes of the leaves, sharded as they are."""
    keys = jax.random.split(key, max(len(leaves), 1))
    draw = lambda k, x: jax.random.normal(k, x.shape, x.dtype, out_sharding=sharding.explicit_sharding(x))
    return [draw(keys[i], leaf) for i, leaf in enumerate(leaves)]


def scale(leaves: list[Array], factor: Any) -> list[Array]:
    """Each leaf times a scalar."""
    return [leaf * jnp.asarray(factor, leaf.dtype) for leaf in leaves]


def unit(leaves: list[Array]) -> list[Array]:
    """The direction of all leaves together; 0 for the zero vector."""
    norm = trees.global_norm(leaves)
    return scale(leaves, jnp.where(norm > 0, 1 / jnp.where(norm > 0, norm, 1), 0))


def shorten(leaves: list[Array], radius: Any) -> list[Array]:
    """The vector of all leaves, shortened to a length of at most ``radius``."""
    norm = trees.global_norm(leaves)
    far = norm > radius
    return scale(leaves, jnp.where(far, radius / jnp.where(far, norm, 1), 1))


def loss_of(function: str, loss_fn: Callable[..., Any], params: PyTree) -> Callable[..., Array]:
    """``loss(leaves, *batch)``: the checked loss in float32 or better, at other floating leaves of the parameters."""
    checks.function(function, "loss_fn", loss_fn)

    def loss(leaves: list[Array], *batch: PyTree) -> Array:
        value = loss_fn(trees.with_float_leaves(params, leaves), *batch)
        if not (isinstance(value, jax.Array) and value.shape == () and trees.is_float(value)):
            checks.fail(function, "loss_fn", "a function that returns a floating-point scalar", value)
        return value.astype(trees.accumulator(value))

    return loss


def over_batches(function: str, fn: Callable[..., Any], batches: tuple[PyTree, ...]) -> Any:
    """``fn`` of each batch, one after the other, stacked; once where there are no arguments besides the parameters."""
    if not batches:
        return jax.tree.map(lambda x: x[None], fn())
    return jax.lax.map(lambda batch: fn(*batch), batches)


def check_batches(function: str, batches: tuple[PyTree, ...]) -> None:
    """Refuses arguments whose leading axes, the batches, differ."""
    lengths = {jnp.shape(leaf)[:1] for leaf in jax.tree.leaves(batches)}
    if batches and (len(lengths) != 1 or () in lengths or (0,) in lengths):
        expected = "arrays that share the number of batches, at least 1, on axis 0"
        checks.fail(function, "batches", expected, [jnp.shape(leaf) for leaf in jax.tree.leaves(batches)])
