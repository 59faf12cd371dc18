"""A computation done twice: by regjax in JAX, and by a formula in PyTorch or another library in JAX, on the same arrays."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.bench import libraries
from experiments.bench.results import Bound, Panel
from experiments.bench.timing import Subject, cost

SAME = 1e-5
"""The largest difference of results in float32 that counts as equal, as a share of the largest number in them."""


class Case(NamedTuple):
    """What regjax computes and what PyTorch computes; both give the same arrays in the same order.

    Attributes:
      ours: ``f(*inputs)`` on JAX arrays, a tree of arrays.
      theirs: ``f(*inputs)`` on tensors, a list of tensors.
      inputs: trees of NumPy arrays.
    """

    ours: Callable[..., Any]
    theirs: Callable[..., Sequence[Any]]
    inputs: tuple[Any, ...]


def difference(ours: Any, theirs: Any) -> float:
    """The largest difference between two lists of arrays, each as a share of the largest number in the second."""
    pairs = zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True)
    return max((_apart(np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs), default=0.0)


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    if a.shape != b.shape:
        raise ValueError(f"results to compare must be of one shape, got {a.shape} and {b.shape}")
    return float(np.max(np.abs(a - b), initial=0.0) / max(float(np.max(np.abs(b), initial=0.0)), 1e-12))


def subject(fn: Callable[..., Any], *inputs: Any, turns: int | None = None) -> tuple[Subject, Any]:
    """A function in JAX, compiled, and its result."""
    arrays = jax.tree.map(jnp.asarray, inputs)
    compiled = jax.jit(fn)
    result = jax.block_until_ready(compiled(*arrays))
    return Subject(lambda: jax.block_until_ready(compiled(*arrays)), cost(fn, *arrays), turns), result


def torch_subject(fn: Callable[..., Any], *inputs: Any, threads: int) -> tuple[Subject, list[np.ndarray]]:
    """A function in PyTorch, and its result."""
    libraries.set_torch_threads(threads)
    tensors = jax.tree.map(_tensor, inputs)
    result = [tensor.detach().numpy() for tensor in fn(*tensors)]
    return Subject(lambda: fn(*tensors)), result


def _tensor(array: Any) -> Any:
    import torch

    tensor = torch.from_numpy(np.array(array))
    return tensor.long() if tensor.dtype == torch.int32 else tensor


def side_by_side(title: str, cases: Mapping[str, Case], threads: int, *, same: float = SAME) -> Panel:
    """Each case by regjax and in PyTorch: equal results, and at most the time."""
    subjects, bounds, differences = {}, [], {}
    torch = libraries.available("torch")
    for name, case in cases.items():
        subjects[name], result = subject(case.ours, *case.inputs)
        if torch:
            other = f"{name}, PyTorch"
            subjects[other], expected = torch_subject(case.theirs, *case.inputs, threads=threads)
            differences[name, other] = difference(result, expected)
            bounds += [Bound(name, other, 1.0), Bound(name, other, same, "difference")]
    return Panel(title, subjects, bounds, differences=differences)


def joined(title: str, *panels: Panel) -> Panel:
    """Panels as one, whose subjects take turns together."""
    subjects: dict[str, Subject] = {}
    differences: dict[Any, float] = {}
    for panel in panels:
        subjects |= panel.subjects
        differences |= panel.differences
    return Panel(title, subjects, [bound for panel in panels for bound in panel.bounds], differences=differences)
