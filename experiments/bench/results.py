"""What a run of the benchmark gave, and its tables."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np

from experiments.bench.timing import Subject, alternate, ratio


class Bound(NamedTuple):
    """A promise: the time of one subject, or what XLA counts for it, is at most so many times that of another.

    Against None the promise is absolute: milliseconds, millions of operations or of bytes. A ``difference`` is the largest
    difference between the results of the two, as the panel gives it, and no ratio.
    """

    subject: str
    against: str | None
    at_most: float
    quantity: Literal["time", "bytes", "flops", "temporary", "difference"] = "time"


UNITS = {"time": "ms", "flops": "MFLOP", "bytes": "MB", "temporary": "MB"}
"""Of absolute promises."""


@dataclasses.dataclass(frozen=True)
class Panel:
    """Subjects that take turns, and the bounds between them; with a baseline, all costs are shown as multiples of its own.

    Attributes:
      title: what is measured, on which shapes.
      subjects: what takes turns, by name.
      bounds: what is promised.
      baseline: the subject of which the others are multiples.
      differences: for pairs of subjects with one result to give, the largest difference between theirs.
      images: the images of one call, for a column of images a second.
    """

    title: str
    subjects: Mapping[str, Subject]
    bounds: Sequence[Bound]
    baseline: str | None = None
    differences: Mapping[tuple[str, str | None], float] = dataclasses.field(default_factory=dict)
    images: int | None = None


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
        middle, low, high = _measured(bound, panel, times, subjects)
        bounds.append({**bound._asdict(), "ratio": middle, "low": low, "high": high, "holds": middle <= bound.at_most})
    against = {} if panel.baseline is None else {"baseline": panel.baseline, "ratios": _ratios(times, panel.baseline)}
    images = {} if panel.images is None else {"images": panel.images}
    return {"title": panel.title, "subjects": subjects, "bounds": bounds, **against, **images}


def _measured(bound: Bound, panel: Panel, times: Mapping[str, Any], subjects: Mapping[str, Any]) -> tuple[float, float, float]:
    """The figure of a bound with its quartiles; what is counted has no spread."""
    if bound.quantity == "difference":
        return (panel.differences[bound.subject, bound.against],) * 3
    if bound.quantity == "time":
        if bound.against is not None:
            return ratio(times[bound.subject], times[bound.against])
        middle, low, high = np.percentile(times[bound.subject], [50, 25, 75])
        return 1e3 * float(middle), 1e3 * float(low), 1e3 * float(high)
    unit = 1e6 if bound.against is None else _counted(subjects, bound.against, bound.quantity)
    return (_counted(subjects, bound.subject, bound.quantity) / unit,) * 3


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
            name = lambda b: (b["subject"], b["against"] or "", b.get("quantity", "time"))
            rows = [(*name(b), _spread(b), *_verdict(b)) for b in panel["bounds"]]
            lines += [*_table(("subject", "against", "of", "ratio (quartiles)", "at most", ""), rows), ""]
        lines += _multiples(panel) if "baseline" in panel else _times(panel)
    return "\n".join(lines)


def _times(panel: Mapping[str, Any]) -> list[str]:
    rows = []
    for name, subject in panel["subjects"].items():
        counted = subject["cost"]
        columns = ["" if counted is None else f"{counted[kind] / 1e6:.1f}" for kind in ("flops", "bytes", "temporary")]
        rows.append((name, f"{subject['best_ms']:.2f}", f"{subject['median_ms']:.2f}", *_speed(panel, subject), *columns))
    speed = ("images/s",) if "images" in panel else ()
    return _table(("", "best ms", "median ms", *speed, "XLA: MFLOP", "MB accessed", "MB temporary"), rows)


def _multiples(panel: Mapping[str, Any]) -> list[str]:
    subjects, rows = panel["subjects"], []
    for name, subject in subjects.items():
        kinds = ("flops", "bytes", "temporary")
        counted = [f"{_counted(subjects, name, kind) / _counted(subjects, panel['baseline'], kind):.2f}" for kind in kinds]
        rows.append((name, f"{subject['best_ms']:.2f}", *_speed(panel, subject), f"{panel['ratios'][name]:.2f}", *counted))
    speed = ("images/s",) if "images" in panel else ()
    head = ("", "best ms", *speed, f"time / {panel['baseline']}", "FLOPs /", "bytes accessed /", "temporary memory /")
    return _table(head, rows)


def _speed(panel: Mapping[str, Any], subject: Mapping[str, Any]) -> tuple[str, ...]:
    return (f"{1e3 * panel['images'] / subject['best_ms']:,.0f}",) if "images" in panel else ()


def _spread(bound: Mapping[str, Any]) -> str:
    exact = bound["low"] == bound["high"]
    return _figure(bound, bound["ratio"]) + ("" if exact else f" ({bound['low']:.2f} to {bound['high']:.2f})")


def _figure(bound: Mapping[str, Any], value: float) -> str:
    quantity = bound.get("quantity", "time")
    if quantity == "difference":
        return f"{value:.0e}"
    return f"{value:.2f}" + (f" {UNITS[quantity]}" if bound["against"] is None else "")


def _verdict(bound: Mapping[str, Any]) -> tuple[str, str]:
    missed = f"missed, {bound['ratio'] / bound['at_most']:.2f} times over"
    return _figure(bound, bound["at_most"]), "holds" if bound["holds"] else missed


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    line = lambda cells: "| " + " | ".join(cells) + " |"
    return [line(head), "| --- |" + " ---: |" * (len(head) - 1), *map(line, rows)]
