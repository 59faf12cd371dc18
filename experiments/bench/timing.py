"""Times that mean something on a shared machine: what is compared runs in turns, and ratios are taken turn by turn."""

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np


class Subject(NamedTuple):
    """Something to time.

    Attributes:
      run: one call, which returns when its work is done.
      cost: what `cost` gave, or None for what XLA does not compile.
      turns: the most turns to take; for what needs seconds.
    """

    run: Callable[[], Any]
    cost: Mapping[str, float] | None = None
    turns: int | None = None


def alternate(subjects: Mapping[str, Subject], *, turns: int, seconds: float) -> dict[str, list[float]]:
    """Seconds a call of every subject, turn by turn: in each turn every subject runs once, in another order.

    Args:
      subjects: what to time, by name.
      turns: how many turns; a subject with ``turns`` of its own sits out the later ones.
      seconds: the least time that a subject runs in a turn; it is repeated until then.

    Returns:
      The times by name, one a turn.
    """
    repeats = {name: _repeats(subject.run, seconds) for name, subject in subjects.items()}
    times: dict[str, list[float]] = {name: [] for name in subjects}
    names = list(subjects)
    for turn in range(turns):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            subject = subjects[name]
            if subject.turns is not None and turn >= subject.turns:
                continue
            start = time.perf_counter()
            for _ in range(repeats[name]):
                subject.run()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return times


def ratio(times: Sequence[float], reference: Sequence[float]) -> tuple[float, float, float]:
    """The median and the quartiles of the ratios of two subjects over the turns that both took."""
    ratios = [a / b for a, b in zip(times, reference, strict=False)]
    middle, low, high = np.percentile(ratios, [50, 25, 75])
    return float(middle), float(low), float(high)


def cost(fn: Callable[..., Any], *args: Any, donate_argnums: int | tuple[int, ...] = ()) -> dict[str, float]:
    """FLOPs, bytes accessed, and bytes of memory of a function as XLA compiles it; the same on every run."""
    import jax

    compiled = jax.jit(fn, donate_argnums=donate_argnums).lower(*args).compile()
    counted, memory = compiled.cost_analysis() or {}, compiled.memory_analysis()
    return {
        "flops": float(counted.get("flops", 0.0)),
        "bytes": float(counted.get("bytes accessed", 0.0)),
        "temporary": float(getattr(memory, "temp_size_in_bytes", 0) or 0),
        "arguments": float(getattr(memory, "argument_size_in_bytes", 0) or 0),
        "results": float(getattr(memory, "output_size_in_bytes", 0) or 0),
    }


def _repeats(run: Callable[[], Any], seconds: float) -> int:
    """How often to call a subject in a turn, after calls that compile and warm up."""
    start = time.perf_counter()
    run()
    if time.perf_counter() - start < seconds:
        run()
    gc.collect()
    start = time.perf_counter()
    run()
    return max(1, int(np.ceil(seconds / max(time.perf_counter() - start, 1e-7))))
