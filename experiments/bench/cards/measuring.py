"""The wall time of every technique beside its plain counterpart, and the table of all costs."""

import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.bench import timing
from experiments.bench.cards.case import Case
from experiments.bench.cards.sentence import Counts
from regjax import catalog


def timed(case: Case, *, turns: int, seconds: float) -> dict[str, Any]:
    """Runs a case and its counterpart by turns.

    Args:
      case: the case.
      turns: how many.
      seconds: the least time of each in a turn; what overwrites its arguments runs once, on copies made before the clock starts.

    Returns:
      ``ms`` and ``plain_ms``, the medians; and the ``ratio`` of the times of a turn, its median, with its quartiles ``low`` and
      ``high``.
    """
    ours = _runner(case.call, case.args, case.donate, seconds)
    plain = _runner(case.plain, case.plain_args, (), seconds)
    times: dict[str, list[float]] = {"ours": [], "plain": []}
    for turn in range(turns):
        for name, run in (("ours", ours), ("plain", plain)) if turn % 2 else (("plain", plain), ("ours", ours)):
            times[name].append(run())
    middle, low, high = timing.ratio(times["ours"], times["plain"])
    median = lambda values: 1e3 * sorted(values)[len(values) // 2]
    return {"ms": median(times["ours"]), "plain_ms": median(times["plain"]), "ratio": middle, "low": low, "high": high}


def _runner(call: Callable[..., Any], args: tuple[Any, ...], donate: tuple[int, ...], seconds: float) -> Callable[[], float]:
    """A function that runs a call for a turn and returns the seconds that one call took."""
    compiled = jax.jit(call, donate_argnums=donate).lower(*args).compile()
    args = jax.tree.map(_filled, args)

    def once() -> float:
        given = tuple(jax.tree.map(jnp.copy, arg) if i in donate else arg for i, arg in enumerate(args))
        jax.block_until_ready(given)
        began = time.perf_counter()
        jax.block_until_ready(compiled(*given))
        return time.perf_counter() - began

    once()  # the first call takes fresh memory
    repeats = 1 if donate else max(1, min(1000, int(seconds / max(once(), 1e-6))))

    def turn() -> float:
        if donate:
            return once()
        began = time.perf_counter()
        for _ in range(repeats):
            jax.block_until_ready(compiled(*args))
        return (time.perf_counter() - began) / repeats

    return turn


def _filled(leaf: Any) -> Any:
    """Zeros for what a case gives as a shape alone: memories, for the most part."""
    return jnp.zeros(leaf.shape, leaf.dtype) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf


def entry(case: Case, counts: Counts, times: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON holds of a technique."""
    return {"of": case.of, "at": case.at, **counts._asdict(), "time": dict(times)}


HEAD = ("technique", "beside", "at", "time / (quartiles)", "ms", "FLOPs /", "bytes /", "memory more")


def markdown(results: Mapping[str, Any]) -> str:
    """The table of each stage."""
    machine = results["machine"]
    threads = f"{machine['threads']} of {machine['cores']} threads"
    lines = [f"{machine['device']}, {threads}, JAX {machine['jax']}; {results['turns']} turns."]
    found = results["techniques"]
    for stage in catalog.STAGES:
        rows = [(name, row) for name, row in found.items() if name.startswith(f"{stage}.")]
        if rows:
            lines += ["", f"## {stage.capitalize()}", "", _line(HEAD), "| --- | --- | --- |" + " ---: |" * (len(HEAD) - 3)]
            lines += [_line(_cells(name, row)) for name, row in rows]
    return "\n".join(lines)


def _cells(name: str, row: Mapping[str, Any]) -> tuple[str, ...]:
    times = row["time"]
    spread = f"{_short(times['ratio'])} ({_short(times['low'])} to {_short(times['high'])})"
    counts = (_short(row[kind]) for kind in Counts._fields)
    return (f"`{name.split('.')[1]}`", row["of"], row["at"], spread, _short(times["ms"]), *counts)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.2f}" if value >= 0.005 or value == 0 else f"{value:.1g}"


def _line(cells: Any) -> str:
    return "| " + " | ".join(cells) + " |"
