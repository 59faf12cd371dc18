"""What a run of the benchmark gave, and its tables."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from experiments.bench.timing import Subject, alternate, ratio


class Bound(NamedTuple):
    """A promise: the time of one subject, or what XLA counts for it, is at most so many times that of another."""

    subject: str
    against: str
    at_most: float
    quantity: Literal["time", "bytes", "flops", "temporary"] = "time"


@dataclasses.dataclass(frozen=True)
class Panel:
    """Subjects that take turns, and the bounds between them; with a baseline, all costs are shown as multiples of its own."""

    title: str
    subjects: Mapping[str, Subject]
    bounds: Sequence[Bound]
    baseline: str | None = None


def measure(panel: Panel, *, turns: int, seconds: float) -> dict[str, Any]:
    """Runs a panel; the result is what JSON holds: milliseconds and XLA's counts by subject, ratios by bound."""
    times = alternate(panel.subjects, turns=turns, seconds=seconds)
    subjects = {
        name: {
            "best_ms": 1e3 * min(values),
            "median_ms": 1e3 * sorted(values)[len(values) // 2],
            "cost": panel.subjects[name].cost,
        }
        for name, values in times.items()
    }
    bounds = []
    for bound in panel.bounds:
        if bound.quantity == "time":
            middle, low, high = ratio(times[bound.subject], times[bound.against])
        else:
            middle = low = high = _counted(subjects, bound.subject, bound.quantity) / _counted(
                subjects, bound.against, bound.quantity
            )
        bounds.append({**bound._asdict(), "ratio": middle, "low": low, "high": high, "holds": middle <= bound.at_most})
    against = {} if panel.baseline is None else {"baseline": panel.baseline, "ratios": _ratios(times, panel.baseline)}
    return {"title": panel.title, "subjects": subjects, "bounds": bounds, **against}


def _ratios(times: Mapping[str, Sequence[float]], baseline: str) -> dict[str, float]:
    return {name: ratio(values, times[baseline])[0] for name, values in times.items()}


def _counted(subjects: Mapping[str, Any], name: str, quantity: str) -> float:
    return float(subjects[name]["cost"][quantity])


def markdown(results: Mapping[str, Any]) -> str:
    """The tables of a run: its machine, the bounds with what was measured, and every time."""
    machine = results["machine"]
    threads = f"{machine['threads']} of {machine['cores']} threads"
    lines = [f"### {results['suite'].capitalize()}", ""]
    lines += [f"{machine['device']}, {threads}, JAX {machine['jax']}, Python {machine['python']}; {results['turns']} turns."]
    for panel in results["panels"]:
        lines += ["", f"**{panel['title']}**", ""]
        if panel["bounds"]:
            rows = [(b["subject"], b["against"], b.get("quantity", "time"), _spread(b), *_verdict(b)) for b in panel["bounds"]]
            lines += [*_table(("subject", "against", "of", "ratio (quartiles)", "at most", ""), rows), ""]
        lines += _multiples(panel) if "baseline" in panel else _times(panel)
    return "\n".join(lines)


def _times(panel: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, subject in panel["subjects"].items():
        counted = subject["cost"]
        columns = ["" if counted is None else f"{counted[kind] / 1e6:.1f}" for kind in ("flops", "bytes", "temporary")]
        rows.append((name, f"{subject['best_ms']:.2f}", f"{subject['median_ms']:.2f}", *columns))
    return _table(("", "best ms", "median ms", "XLA: MFLOP", "MB accessed", "MB temporary"), rows)


def _multiples(panel: Mapping[str, Any]) -> list[str]:
    subjects, rows = panel["subjects"], []
    for name, subject in subjects.items():
        kinds = ("flops", "bytes", "temporary")
        counted = [f"{_counted(subjects, name, kind) / _counted(subjects, panel['baseline'], kind):.2f}" for kind in kinds]
        rows.append((name, f"{subject['best_ms']:.2f}", f"{panel['ratios'][name]:.2f}", *counted))
    head = ("", "best ms", f"time / {panel['baseline']}", "FLOPs /", "bytes accessed /", "temporary memory /")
    return _table(head, rows)


def _spread(bound: Mapping[str, Any]) -> str:
    exact = bound["low"] == bound["high"]
    return f"{bound['ratio']:.2f}" + ("" if exact else f" ({bound['low']:.2f} to {bound['high']:.2f})")


def _verdict(bound: Mapping[str, Any]) -> tuple[str, str]:
    return f"{bound['at_most']:.2f}", "holds" if bound["holds"] else f"missed, {bound['ratio'] / bound['at_most']:.2f} times over"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    line = lambda cells: "| " + " | ".join(cells) + " |"
    return [line(head), "| --- |" + " ---: |" * (len(head) - 1), *map(line, rows)]
