"""What a run of the benchmark gave, and its tables."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from experiments.bench.timing import Subject, alternate, ratio


class Bound(NamedTuple):
    """A promise: the time of one subject, or the bytes that XLA counts for it, is at most so many times that of another."""

    subject: str
    against: str
    at_most: float
    quantity: Literal["time", "bytes"] = "time"


@dataclasses.dataclass(frozen=True)
class Panel:
    """Subjects that take turns, and the bounds between them."""

    title: str
    subjects: Mapping[str, Subject]
    bounds: Sequence[Bound]


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
            middle = low = high = subjects[bound.subject]["cost"]["bytes"] / subjects[bound.against]["cost"]["bytes"]
        bounds.append({**bound._asdict(), "ratio": middle, "low": low, "high": high, "holds": middle <= bound.at_most})
    return {"title": panel.title, "subjects": subjects, "bounds": bounds}


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
        rows = []
        for name, subject in panel["subjects"].items():
            counted = subject["cost"]
            megabytes = "" if counted is None else f"{counted['bytes'] / 1e6:.1f}"
            temporary = "" if counted is None else f"{counted['temporary'] / 1e6:.1f}"
            rows.append((name, f"{subject['best_ms']:.2f}", f"{subject['median_ms']:.2f}", megabytes, temporary))
        lines += _table(("", "best ms", "median ms", "XLA: MB accessed", "MB temporary"), rows)
    return "\n".join(lines)


def _spread(bound: Mapping[str, Any]) -> str:
    exact = bound["low"] == bound["high"]
    return f"{bound['ratio']:.2f}" + ("" if exact else f" ({bound['low']:.2f} to {bound['high']:.2f})")


def _verdict(bound: Mapping[str, Any]) -> tuple[str, str]:
    return f"{bound['at_most']:.2f}", "holds" if bound["holds"] else f"missed, {bound['ratio'] / bound['at_most']:.2f} times over"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    line = lambda cells: "| " + " | ".join(cells) + " |"
    return [line(head), "| --- |" + " ---: |" * (len(head) - 1), *map(line, rows)]
