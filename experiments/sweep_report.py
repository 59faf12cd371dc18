"""What a sweep shows: intervals over seeds, the table, the chosen point on test images, and a picture."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

from experiments.plots import bare
from experiments.studies.common import Table, save

SCALES = {"accuracy": (100.0, 1, "accuracy %"), "nll": (1.0, 3, "NLL")}
"""How a measure is shown: its factor, its digits and its name."""


class Interval(NamedTuple):
    """A mean over seeds and its confidence interval; no bounds of a single seed."""

    mean: float
    low: float | None
    high: float | None


def interval(values: Sequence[float], kind: str, confidence: float) -> Interval:
    """The mean of values and its confidence interval.

    Args:
      values: one of each seed; of differences the interval is paired over seeds.
      kind: ``t``, which takes the mean for normal, or ``bca``, the bias-corrected accelerated bootstrap with a fixed seed.
      confidence: the level.

    Returns:
      An `Interval`; values that are all equal give one of no width.
    """
    x = np.asarray(values, np.float64)
    mean = float(x.mean())
    if len(x) < 2 or not np.isfinite(x).all():
        return Interval(mean, None, None)
    if np.ptp(x) == 0:
        return Interval(mean, mean, mean)
    if kind == "t":
        low, high = stats.t.interval(confidence, len(x) - 1, loc=mean, scale=stats.sem(x))
    else:
        options = {"confidence_level": confidence, "method": "BCa", "rng": np.random.default_rng(0)}
        low, high = stats.bootstrap((x,), np.mean, **options).confidence_interval
    return Interval(mean, float(low), float(high))


def judge(results: Mapping[str, Any], by: str, kind: str, confidence: float) -> dict[str, Any]:
    """Adds the intervals to the results of a sweep.

    Args:
      results: ``points``, of which each has the ``validation`` and ``test`` measures of every seed, and the positions
        ``reference`` and ``chosen``.
      by: the measure.
      kind: of the intervals.
      confidence: their level.

    Returns:
      The results; each point with ``on_validation`` (and ``difference``, to the reference at as many epochs, paired over seeds;
      None where the reference was not measured there), and ``final``: the chosen point and the reference on test images.
    """
    points = [dict(point) for point in results["points"]]
    reference, chosen = points[results["reference"]], points[results["chosen"]]
    of = lambda point, split: np.array(point[split][by], np.float64)
    about = lambda x: interval(x, kind, confidence)._asdict()
    for point in points:
        point["on_validation"] = about(of(point, "validation"))
        comparable = point is not reference and point["epochs"] == reference["epochs"]
        point["difference"] = about(of(point, "validation") - of(reference, "validation")) if comparable else None
    final = {"chosen": about(of(chosen, "test")), "reference": about(of(reference, "test"))}
    final["difference"] = about(of(chosen, "test") - of(reference, "test"))
    return {**results, "points": points, "final": final, "by": by, "interval": kind, "confidence": confidence}


def table(results: Mapping[str, Any]) -> Table:
    """The points, those that were trained longest first, the best of them on top."""
    by, names = results["by"], results["names"]
    scale, digits, shown = SCALES[by]
    sign = -1 if by == "accuracy" else 1
    points = results["points"]
    worth = lambda i: sign * points[i]["on_validation"]["mean"]
    # A mean that is not a number comes last.
    order = sorted(range(len(points)), key=lambda i: (-points[i]["epochs"], np.isnan(worth(i)), worth(i)))
    rows = []
    for i in order:
        point = points[i]
        marks = [mark for mark, at in ((" (chosen)", results["chosen"]), (" (reference)", results["reference"])) if at == i]
        values = [f"{point['values'][name]:g}" if name in point["values"] else "" for name in names]
        difference = "" if point["difference"] is None else _text(point["difference"], scale, digits, signed=True)
        measured = _text(point["on_validation"], scale, digits)
        rows.append((point["recipe"] + "".join(marks), *values, str(point["epochs"]), measured, difference))
    return Table(("recipe", *names, "epochs", f"validation {shown}", "to the reference"), rows)


def conclusion(results: Mapping[str, Any]) -> str:
    """What was chosen on validation images, and what it gives on test images."""
    scale, digits, shown = SCALES[results["by"]]
    chosen, reference = results["points"][results["chosen"]], results["points"][results["reference"]]
    final, seeds = results["final"], len(chosen["test"][results["by"]])
    kind = {"t": "t intervals", "bca": "BCa bootstrap intervals"}[results["interval"]]
    what = lambda point: " ".join([point["recipe"], *(f"{name}={value:g}" for name, value in point["values"].items())])
    lines = [
        f"Judged on validation images, {seeds} seeds; in brackets {100 * results['confidence']:g} % {kind}, of differences "
        "paired over seeds.",
        f"Chosen on validation: {what(chosen)}.",
        f"Judged on test: {shown} {_text(final['chosen'], scale, digits)}; the reference, {what(reference)}: "
        f"{_text(final['reference'], scale, digits)}",
    ]
    lines[-1] += "." if chosen is reference else f"; difference {_text(final['difference'], scale, digits, signed=True)}."
    return "\n".join(lines)


def picture(results: Mapping[str, Any]) -> plt.Figure:
    """The measure against the hyperparameter; a map of two; of more, a panel for each with the best of the others as a line."""
    names = results["names"]
    points = [point for point in results["points"] if all(name in point["values"] for name in names)]
    return _map(results, points) if len(names) == 2 else _panels(results, points)


def write(results: Mapping[str, Any], folder: Path) -> str:
    """Writes ``table.md`` and the pictures ``sweep.png`` and ``sweep.svg``.

    Args:
      results: those of `judge`.
      folder: where.

    Returns:
      The table and the conclusion as text.
    """
    made, said = table(results), conclusion(results)
    path = folder / "table.md"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(f"{made.markdown()}\n\n{said}\n", encoding="utf-8")
    temporary.replace(path)
    save(picture(results), folder / "sweep")
    return f"{made.text()}\n\n{said}\n\nresults: {folder}"


def _panels(results: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> plt.Figure:
    scale, _, shown = SCALES[results["by"]]
    names, sign = results["names"], 1 if results["by"] == "accuracy" else -1
    figure, panels = plt.subplots(
        1, len(names), figsize=(max(3.2 * len(names), 5), 3.4), layout="constrained", sharey=True, squeeze=False
    )
    longest = max(point["epochs"] for point in points)
    chosen = results["points"][results["chosen"]]
    for axes, name in zip(panels[0], names, strict=True):
        for point in points:
            of = point["on_validation"]
            bounds = None if of["low"] is None else [[scale * (of["mean"] - of["low"])], [scale * (of["high"] - of["mean"])]]
            fill = "#3b7dd8" if point["epochs"] == longest else "white"
            style = {"fmt": "o", "color": "#3b7dd8", "markerfacecolor": fill, "capsize": 3, "linewidth": 1}
            axes.errorbar([point["values"][name]], [scale * of["mean"]], bounds, **style)
        ends = [point for point in points if point["epochs"] == longest]
        best: dict[float, float] = {}
        for point in ends:
            x, y = point["values"][name], scale * point["on_validation"]["mean"]
            best[x] = max(best.get(x, y), y, key=lambda v: sign * v)
        axes.plot(sorted(best), [best[x] for x in sorted(best)], color="#3b7dd8", linewidth=1, alpha=0.6)
        axes.axvline(chosen["values"][name], color="#444444", linewidth=0.8, linestyle=":", label="chosen on validation")
        _reference_line(axes, results, scale)
        tried = sorted({point["values"][name] for point in points})
        if tried[0] > 0 and tried[-1] >= 8 * tried[0]:
            axes.set_xscale("log")
        axes.set_xlabel(name)
        bare(axes)
    panels[0, 0].set_ylabel(f"validation {shown}")
    figure.suptitle(f"{_level(results)}; hollow: dropped on the way" if len(ends) < len(points) else _level(results), fontsize=9)
    panels[0, 0].legend(fontsize=8, frameon=False)
    return figure


def _map(results: Mapping[str, Any], points: Sequence[Mapping[str, Any]]) -> plt.Figure:
    scale, digits, shown = SCALES[results["by"]]
    across, down = results["names"]
    xs, ys = (sorted({point["values"][name] for point in points}) for name in (across, down))
    figure, axes = plt.subplots(figsize=(1.3 * len(xs) + 2.6, 0.8 * len(ys) + 1.6), layout="constrained")
    grid = np.full((len(ys), len(xs)), np.nan)
    for point in points:
        grid[ys.index(point["values"][down]), xs.index(point["values"][across])] = scale * point["on_validation"]["mean"]
    image = axes.imshow(grid, origin="lower", aspect="auto", cmap="viridis")
    longest = max(point["epochs"] for point in points)
    middle = np.nanmean([np.nanmin(grid), np.nanmax(grid)])
    for point in points:
        x, y, of = xs.index(point["values"][across]), ys.index(point["values"][down]), point["on_validation"]
        text = f"{scale * of['mean']:.{digits}f}"
        text += "" if of["low"] is None else f"\n{scale * of['low']:.{digits}f} to {scale * of['high']:.{digits}f}"
        text += "" if point["epochs"] == longest else f"\n{point['epochs']} epochs"
        axes.text(x, y, text, ha="center", va="center", fontsize=8, color="white" if grid[y, x] < middle else "black")
    chosen = results["points"][results["chosen"]]["values"]
    at = xs.index(chosen[across]) - 0.5, ys.index(chosen[down]) - 0.5
    axes.add_patch(plt.Rectangle(at, 1, 1, fill=False, edgecolor="#d9382e", linewidth=2))
    axes.set(xticks=range(len(xs)), yticks=range(len(ys)), xlabel=across, ylabel=down)
    axes.set_xticklabels([f"{x:g}" for x in xs])
    axes.set_yticklabels([f"{y:g}" for y in ys])
    axes.set_title(f"validation {shown}, {_level(results)}; chosen: framed", fontsize=9)
    figure.colorbar(image, ax=axes)
    return figure


def _reference_line(axes: Any, results: Mapping[str, Any], scale: float) -> None:
    reference = results["points"][results["reference"]]
    of = reference["on_validation"]
    axes.axhline(scale * of["mean"], color="#888888", linewidth=0.8, linestyle="--", label=f"{reference['recipe']} (reference)")
    if of["low"] is not None:
        axes.axhspan(scale * of["low"], scale * of["high"], color="#888888", alpha=0.12, linewidth=0)


def _level(results: Mapping[str, Any]) -> str:
    seeds = len(results["points"][0]["validation"][results["by"]])
    return f"mean and {100 * results['confidence']:g} % interval, {seeds} seeds"


def _text(of: Mapping[str, Any], scale: float, digits: int, *, signed: bool = False) -> str:
    form = f"{'+' if signed else ''}.{digits}f"
    mean = f"{scale * of['mean']:{form}}"
    return mean if of["low"] is None else f"{mean} [{scale * of['low']:{form}}, {scale * of['high']:{form}}]"
