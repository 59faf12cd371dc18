"""Parameter trees: which leaves a technique touches, and norms with safe gradients.

Everything works on any pytree (dicts, lists, NamedTuples, Linen parameters, `flax.nnx` states); ``None`` leaves and
empty trees pass through.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding
from regjax.core.strength import positional_count
from regjax.core.types import Array, PyTree, Where

_NOT_KERNELS = ("bias", "scale", "gamma", "beta")


def path_names(path: tuple[Any, ...]) -> tuple[str, ...]:
    """A key path as plain names: ``("blocks", "0", "kernel")``. The value wrapper of NNX variables is left out."""
    names = []
    for entry in path:
        for attribute in ("key", "name", "idx"):
            if hasattr(entry, attribute):
                names.append(str(getattr(entry, attribute)))
                break
    if len(names) > 1 and names[-1] == "value" and type(path[-1]).__name__ == "GetAttrKey":
        names.pop()
    return tuple(names)


def is_kernel(path: tuple[str, ...], leaf: Any) -> bool:
    """The default rule: floating leaves of two or more dimensions that are not named bias, scale, gamma or beta.

    The name matters beside the rank, because attention biases have two dimensions.
    """
    named = path[-1] if path else ""
    return jnp.ndim(leaf) >= 2 and is_float(leaf) and not named.endswith(_NOT_KERNELS)


def is_float(leaf: Any) -> bool:
    """Whether a leaf is a floating-point array: not a counter, an index or a random key."""
    return jnp.issubdtype(jnp.result_type(leaf) if not hasattr(leaf, "dtype") else leaf.dtype, jnp.floating)


def select(function: str, tree: PyTree, where: Where = None, argument: str = "where") -> PyTree:
    """The boolean tree of the leaves that ``where`` names: the one rule of the library.

    Args:
      function: the name for error messages.
      tree: the parameters.
      where: ``None`` or ``"kernels"``: `is_kernel`; ``"all"``: every floating leaf; a predicate ``(path, leaf) -> bool``
        with the path as a tuple of names; or a tree of booleans, which may be a prefix of ``tree`` as in
        ``optax.masked``, or a function from parameters to such a tree.
      argument: the argument's name for error messages.

    Returns:
      A tree of Python booleans with the structure of ``tree``.
    """
    expected = (
        "None, 'kernels', 'all', a predicate (path, leaf) -> bool, or a tree of booleans that is a prefix of the parameters"
    )
    if where is None or (isinstance(where, str) and where == "kernels"):
        return _from_predicate(is_kernel, tree)
    if isinstance(where, str):
        if where != "all":
            checks.fail(function, argument, expected, where)
        return _from_predicate(lambda path, leaf: is_float(leaf), tree)
    if isinstance(where, bool):
        return jax.tree.map(lambda _: where, tree)
    if callable(where):
        if positional_count(where) == 1:
            return select(function, tree, where(tree), argument)
        return _from_predicate(where, tree)
    try:
        mask = jax.tree.map(lambda flag, subtree: jax.tree.map(lambda _: flag, subtree), where, tree)
    except ValueError:
        checks.fail(function, argument, expected, checks._Verbatim(str(jax.tree.structure(where))))
    if not all(isinstance(flag, bool) or getattr(flag, "dtype", None) == jnp.bool_ for flag in jax.tree.leaves(mask)):
        checks.fail(function, argument, expected, where)
    return mask


def selected(function: str, tree: PyTree, where: Where = None, argument: str = "where") -> list[Array]:
    """The leaves that ``where`` names, in tree order."""
    mask = select(function, tree, where, argument)
    return [leaf for leaf, use in zip(jax.tree.leaves(tree), jax.tree.leaves(mask), strict=True) if use]


def map_selected(fn: Callable[..., Any], function: str, tree: PyTree, *rest: PyTree, where: Where = None) -> PyTree:
    """Maps the selected leaves, and passes the others of ``tree`` unchanged."""
    mask = select(function, tree, where)
    return jax.tree.map(lambda use, leaf, *others: fn(leaf, *others) if use else leaf, mask, tree, *rest)


def _from_predicate(predicate: Callable[[tuple[str, ...], Any], bool], tree: PyTree) -> PyTree:
    return jax.tree_util.tree_map_with_path(lambda path, leaf: bool(predicate(path_names(path), leaf)), tree)


def accumulator(*leaves: Any) -> Any:
    """The dtype in which sums are kept: float32, or float64 where a leaf has it."""
    return jnp.promote_types(jnp.float32, jnp.result_type(*leaves)) if leaves else jnp.float32


def float_leaves(tree: PyTree) -> list[Array]:
    """The leaves that have a gradient: floating ones. Counters, keys and complex leaves are left alone everywhere."""
    return [jnp.asarray(leaf) for leaf in jax.tree.leaves(tree) if is_float(leaf)]


def with_float_leaves(tree: PyTree, leaves: list[Array]) -> PyTree:
    """``tree`` with other floating leaves."""
    new = iter(leaves)
    return jax.tree.map(lambda leaf: next(new) if is_float(leaf) else leaf, tree)


def widen(tree: PyTree) -> PyTree:
    """A tree with its floating leaves in float32 or better: what averages and small perturbations are kept in."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf).astype(accumulator(leaf)) if is_float(leaf) else leaf, tree)


def sum_squares(tree: PyTree) -> Array:
    """The sum of squares over all leaves, accumulated in float32 or better."""
    leaves = jax.tree.leaves(tree)
    dtype = accumulator(*leaves)
    return sharding.total([jnp.zeros((), dtype), *(jnp.square(leaf.astype(dtype)) for leaf in map(jnp.asarray, leaves))])


def safe_sqrt(x: Array) -> Array:
    """The square root with gradient 0 instead of infinity at 0 and below; NaN stays NaN, so that divergence is seen."""
    flat = x <= 0
    return jnp.where(flat, 0, jnp.sqrt(jnp.where(flat, 1, x)))


def absolute(x: Array) -> Array:
    """``|x|`` whose derivative at 0 is 0: that of ``jnp.abs`` is 1 there."""
    return x * jax.lax.stop_gradient(jnp.sign(x))


def safe_norm(x: Array, axis: int | tuple[int, ...] | None = None, keepdims: bool = False) -> Array:
    """The Euclidean norm with gradient 0 instead of NaN at the zero vector."""
    return safe_sqrt(jnp.sum(jnp.square(x), axis=axis, keepdims=keepdims))


def unit(x: Array, eps: float = 1e-8) -> Array:
    """Vectors of length 1 on the last axis; one shorter than ``eps`` has no direction: it gives 0, and no gradient."""
    squared = jnp.sum(jnp.square(x), axis=-1, keepdims=True)
    some = squared > eps**2
    return jnp.where(some, x * jax.lax.rsqrt(jnp.where(some, squared, 1)), 0)


def global_norm(tree: PyTree) -> Array:
    """The Euclidean norm over all leaves, in float32 or better, with gradient 0 at 0."""
    return safe_sqrt(sum_squares(tree))


def vdot(a: PyTree, b: PyTree) -> Array:
    """The inner product of two trees, in float32 or better."""
    leaves = list(zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))
    dtype = accumulator(*(leaf for pair in leaves for leaf in pair))
    return sharding.total([jnp.zeros((), dtype), *(x.astype(dtype) * y.astype(dtype) for x, y in leaves)])


def stop_gradient(tree: PyTree) -> PyTree:
    """``jax.lax.stop_gradient`` on every leaf."""
    return jax.tree.map(jax.lax.stop_gradient, tree)


def add_scaled(tree: PyTree, scale: Any, direction: PyTree) -> PyTree:
    """``tree + scale * direction``, computed in float32 or better and returned in the dtypes of ``tree``."""

    def leaf(x: Array, d: Array) -> Array:
        dtype = accumulator(x, d)
        return (x.astype(dtype) + jnp.asarray(scale, dtype) * d.astype(dtype)).astype(x.dtype)

    return jax.tree.map(leaf, tree, direction)
