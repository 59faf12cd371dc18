"""The few types that several stages share."""

from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, TypeAlias

import jax

Array: TypeAlias = jax.Array
Key: TypeAlias = jax.Array
PyTree: TypeAlias = Any
Schedule: TypeAlias = Callable[[Any], Any]

# A number, a traced scalar, or a schedule ``step -> value``. Parameters annotated with it are the ones that
# `at_step` evaluates and that a recipe may give a schedule for.
Strength: TypeAlias = Annotated[Any, "a number, a scalar array, or a schedule"]

# Which leaves of a parameter tree a technique touches: see `regjax.core.trees.select`.
Where: TypeAlias = Any


class Stateful(NamedTuple):
    """A technique with memory across steps: two pure functions, as in optax.

    ``init(...) -> state`` makes the memory, a pytree of arrays, and ``apply(state, ...) -> (value, state)`` reads it,
    computes the value, and returns the memory of the next step.
    """

    init: Callable[..., PyTree]
    apply: Callable[..., tuple[Any, PyTree]]


class Learned(NamedTuple):
    """A technique with parameters of its own, trained together with the model's.

    ``init(key) -> params`` makes them, and ``loss(params, features, labels, step) -> scalar`` is differentiated by them
    and by the features.
    """

    init: Callable[..., PyTree]
    loss: Callable[..., Any]
