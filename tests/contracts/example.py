"""The form of the examples from which the contract suite tests every public technique."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Literal

import numpy as np


@dataclasses.dataclass(frozen=True, kw_only=True)
class Example:
    """One call of a public technique, and the laws that it promises.

    Attributes:
      name: the public name without ``regjax.``: ``"losses.maxsup"``.
      call: ``call(key, **arrays) -> pytree of arrays``. Deterministic techniques ignore the key. Factories, modules and
        transformations are built inside the call, so that it is a pure function of its arguments.
      arrays: the arguments, NumPy arrays or trees of them; floats in float64 (the suite casts), at most a few dozen
        entries; batches have 8 examples, so that they divide over 8 devices.
      result: what a permutation of the batch does: ``"rows"``: every output is permuted alike on axis 0;
        ``"scalar"``: nothing changes; ``"other"``: no law (random draws go by position, parameters are no batch).
      rows: the names of the arrays whose axis 0 is the batch.
      dtype: the dtype of floating outputs when the floating arrays are bfloat16: ``"input"`` or ``"float32"``;
        None for outputs of mixed kind.
      wrt: the names by which the gradient equals finite differences in float64.
      frozen: the names by which the gradient is exactly zero (teachers, targets, memories).
      surrogate: the gradient is on purpose not the derivative of the value, so finite differences do not apply.
      random: the key matters: the same key gives the same output, another key another.
      identity: ``identity(key, **arrays) -> (a, b)``: the technique at strength 0 and the plain method, equal bit for bit.
      singular: replacements for some of ``arrays`` at which outputs and gradients stay finite.
      bad: ``{"argument: what is wrong": thunk}``; each thunk raises a ValueError that names function and argument.
      tree: the name of the array that is a parameter tree; the suite gives it every kind of tree.
      memory: for stateful techniques: ``memory() -> (state, apply)`` with ``apply(state, key, **arrays) -> (value, state)``.
      transform: for ``gradients``: a function without arguments that makes the transformation.
      objective: for ``objectives``: ``objective(loss_fn, **options) -> loss_fn`` (options: ``has_aux``).
      flops: the step's FLOPs as a ratio to the plain step, at most (objectives and gradients).
      mapped: for techniques with ``axis_name``: ``mapped(axis_name, key, **arrays)``, called on each device's examples.
      mesh: False where the technique documents that its batch must not be sharded.
      tolerance: relative tolerance in float32 of jit, vmap and sharding against eager.
    """

    name: str
    call: Callable[..., Any]
    arrays: Mapping[str, Any]
    result: Literal["rows", "scalar", "other"]
    rows: tuple[str, ...] = ()
    dtype: Literal["input", "float32"] | None = "float32"
    wrt: tuple[str, ...] = ()
    frozen: tuple[str, ...] = ()
    surrogate: bool = False
    random: bool = False
    identity: Callable[..., tuple[Any, Any]] | None = None
    singular: tuple[Mapping[str, Any], ...] = ()
    bad: Mapping[str, Callable[[], Any]] = dataclasses.field(default_factory=dict)
    tree: str | None = None
    memory: Callable[[], tuple[Any, Callable[..., Any]]] | None = None
    transform: Callable[[], Any] | None = None
    objective: Callable[..., Any] | None = None
    flops: float | None = None
    mapped: Callable[..., Any] | None = None
    mesh: bool = True
    tolerance: float = 1e-5


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    """Fixed standard-normal numbers in float64."""
    return np.random.default_rng(seed).normal(size=shape)


def ids(*shape: int, classes: int, seed: int = 1) -> np.ndarray:
    """Fixed class ids."""
    return np.random.default_rng(seed).integers(0, classes, size=shape).astype(np.int32)


def probabilities(*shape: int, seed: int = 2) -> np.ndarray:
    """Fixed probability vectors on the last axis."""
    x = np.exp(normal(*shape, seed=seed))
    return x / x.sum(-1, keepdims=True)
