"""What the gradient transformations share: parameters are required, and absent updates pass."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from regjax.core import checks, trees
from regjax.core.types import Array, PyTree, Where


class StepState(NamedTuple):
    """The number of steps so far, at which schedules are read."""

    step: Array


def first_step(params: PyTree) -> StepState:
    """The state before the first update."""
    return StepState(jnp.zeros((), jnp.int32))


def require_params(function: str, params: PyTree) -> None:
    """Refuses an update without parameters."""
    if params is None:
        checks.fail(function, "params", "given: tx.update(updates, state, params)", params)


def require_transformation(function: str, argument: str, value: Any) -> None:
    """Refuses what is no optax transformation."""
    if not (callable(getattr(value, "init", None)) and callable(getattr(value, "update", None))):
        checks.fail(function, argument, "an optax transformation", value)


def is_absent(leaf: Any) -> bool:
    """Whether an update is not there: frozen in the gradient (None) or left out by an optax wrapper."""
    return leaf is None or isinstance(leaf, optax.MaskedNode)


def map_updates(fn: Callable[..., Any], updates: PyTree, *rest: PyTree) -> PyTree:
    """Maps the updates that are there together with other trees of the parameters' structure."""
    return jax.tree.map(lambda u, *others: u if is_absent(u) else fn(u, *others), updates, *rest, is_leaf=is_absent)


def map_chosen(fn: Callable[..., Any], function: str, updates: PyTree, params: PyTree, where: Where) -> PyTree:
    """Maps ``fn(update, parameter)`` over the leaves that ``where`` names; the other updates pass."""
    mask = trees.select(function, params, where)
    return map_updates(lambda u, p, use: fn(u, p) if use else u, updates, params, mask)
