"""What a comparison shows: the table, the pictures, and one self-contained page."""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from scipy import stats

HEADER = ("recipe", "accuracy %", "vs baseline", "NLL", "ECE %", "AURC x1000", "memorized %", "time", "FLOPs")


def summarise(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """One row for each recipe, best accuracy first, with differences to the baseline paired over seeds.

    Args:
      results: the contents of ``results.json``: ``{"recipes": {name: RunResult as a dict}}``.

    Returns:
      Rows with means, standard deviations over seeds, the paired difference to the baseline with its standard error and
      its two-sided t-test p-value, and the ratios of time and FLOPs; None where the baseline is not there.
    """
    recipes = results["recipes"]
    base = recipes.get("baseline")
    rows = []
    for name, result in recipes.items():
        accuracy = np.array(result["metrics"]["accuracy"])
        row: dict[str, Any] = {"recipe": name, "seeds": len(accuracy)}
        for metric, values in result["metrics"].items():
            row[metric] = float(np.mean(values))
            row[f"{metric}_std"] = float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        row |= {"gain": None, "gain_error": None, "p_value": None, "time": None, "flops": None}
        if base is not None:
            row["time"] = result["seconds_per_step"] / base["seconds_per_step"]
            row["flops"] = result["flops_per_step"] / base["flops_per_step"]
            if name != "baseline":
                differences = accuracy - np.array(base["metrics"]["accuracy"])
                row["gain"] = float(differences.mean())
                if len(differences) > 1:
                    row["gain_error"] = float(stats.sem(differences))
                    if differences.std() > 0:
                        row["p_value"] = float(stats.ttest_1samp(differences, 0.0).pvalue)
        rows.append(row)
    return sorted(rows, key=lambda row: -row["accuracy"])


def cells(row: Mapping[str, Any]) -> tuple[str, ...]:
    """A row of `summarise` as the texts of the table, under `HEADER`."""
    gain = "" if row["gain"] is None else f"{100 * row['gain']:+.1f}"
    gain += "" if row["gain_error"] is None else f" ± {100 * row['gain_error']:.1f}"
    ratio = lambda x: "" if x is None else f"{x:.2f}x"
    return (
        row["recipe"],
        f"{100 * row['accuracy']:.1f} ± {100 * row['accuracy_std']:.1f}",
        gain,
        f"{row['nll']:.3f}",
        f"{100 * row['ece']:.1f}",
        f"{1000 * row['aurc']:.0f}",
        f"{100 * row['memorized']:.0f}",
        ratio(row["time"]),
        ratio(row["flops"]),
    )


def text_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """The table for a terminal."""
    texts = [HEADER, *map(cells, rows)]
    widths = [max(len(line[i]) for line in texts) for i in range(len(HEADER))]
    fit = lambda text, i: text.ljust(widths[i]) if i == 0 else text.rjust(widths[i])
    aligned = lambda line: "  ".join(fit(text, i) for i, text in enumerate(line))
    rule = "-" * (sum(widths) + 2 * (len(widths) - 1))
    return "\n".join([aligned(HEADER), rule, *(aligned(line) for line in texts[1:])])


def bars(rows: Sequence[Mapping[str, Any]]) -> plt.Figure:
    """Accuracy of every recipe with its standard error, the baseline marked."""
    ordered = list(reversed(rows))
    figure, axes = plt.subplots(figsize=(7.5, 0.6 + 0.27 * len(rows)), layout="constrained")
    errors = [100 * row["accuracy_std"] / np.sqrt(row["seeds"]) for row in ordered]
    colours = ["#888888" if row["recipe"] == "baseline" else _verdict_colour(row) for row in ordered]
    names, means = [row["recipe"] for row in ordered], [100 * row["accuracy"] for row in ordered]
    axes.barh(names, means, xerr=errors, color=colours, height=0.7)
    base = next((100 * row["accuracy"] for row in rows if row["recipe"] == "baseline"), None)
    if base is not None:
        axes.axvline(base, color="#444444", linewidth=0.8, linestyle="--")
    values = [100 * row["accuracy"] for row in rows]
    axes.set_xlim(max(0, min(values) - 5), min(100, max(values) + 2))
    axes.set_xlabel(f"test accuracy (%), mean and standard error over {rows[0]['seeds']} seeds")
    axes.margins(y=0.01)
    axes.spines[["top", "right"]].set_visible(False)
    return figure


def curves(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], shown: int = 6) -> plt.Figure:
    """Learning curves of the baseline and the best recipes: test accuracy, and wrong labels memorised."""
    names = [row["recipe"] for row in rows if row["recipe"] != "baseline"][:shown]
    names = (["baseline"] if "baseline" in results["recipes"] else []) + names
    figure, panels = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    colours = plt.get_cmap("tab10")
    for panel, metric, title in (
        (panels[0], "accuracy", "test accuracy (%)"),
        (panels[1], "memorized", "wrong training labels reproduced (%)"),
    ):
        for i, name in enumerate(names):
            result = results["recipes"][name]
            values = 100 * np.array(result["curves"][metric])
            mean = values.mean(0)
            error = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros_like(mean)
            colour = "#555555" if name == "baseline" else colours(i)
            panel.plot(result["epochs"], mean, label=name, color=colour, linewidth=1.6)
            panel.fill_between(result["epochs"], mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
        panel.set_xlabel("epoch")
        panel.set_title(title, fontsize=10)
        panel.spines[["top", "right"]].set_visible(False)
    panels[1].legend(fontsize=8, frameon=False)
    return figure


def write_report(results: Mapping[str, Any], folder: Path) -> tuple[str, Path]:
    """Writes the pictures and ``report.html`` into a folder.

    Args:
      results: the contents of ``results.json``.
      folder: where to write ``bars.png``, ``curves.png`` and ``report.html``.

    Returns:
      The table as text, and the path of the page.
    """
    rows = summarise(results)
    pictures = {}
    for name, figure in (("bars", bars(rows)), ("curves", curves(results, rows))):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=130)
        plt.close(figure)
        (folder / f"{name}.png").write_bytes(buffer.getvalue())
        pictures[name] = base64.b64encode(buffer.getvalue()).decode()
    page = folder / "report.html"
    page.write_text(_page(results, rows, pictures), encoding="utf-8")
    return text_table(rows), page


def _verdict_colour(row: Mapping[str, Any]) -> str:
    if row["gain"] is None or row["gain_error"] is None:
        return "#7a9cc6"
    if row["gain"] > row["gain_error"]:
        return "#3b7dd8"
    return "#c9d7ea" if row["gain"] > -row["gain_error"] else "#d98a6a"


def _page(results: Mapping[str, Any], rows: Sequence[Mapping[str, Any]], pictures: Mapping[str, str]) -> str:
    """The page: setting, table, pictures and notes, with nothing outside itself."""
    escape = lambda text: html.escape(str(text))
    head = "".join(f"<th>{escape(title)}</th>" for title in HEADER)
    tag = lambda row: "<tr class=base>" if row["recipe"] == "baseline" else "<tr>"
    body = "".join(tag(row) + "".join(f"<td>{escape(text)}</td>" for text in cells(row)) + "</tr>" for row in rows)
    facts = "".join(f"<tr><td>{escape(key)}</td><td>{escape(value)}</td></tr>" for key, value in _flat(results["config"]))
    beat = [row["recipe"] for row in rows if row["gain_error"] and row["gain"] > row["gain_error"]]
    not_beat = [row["recipe"] for row in rows if row["gain_error"] and row["gain"] <= row["gain_error"]]
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>regjax comparison</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #222; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
td, th {{ padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #e4e4e4; white-space: nowrap; }}
td:first-child, th:first-child {{ text-align: left; }}
tr.base {{ background: #f2f2f2; font-weight: 600; }}
img {{ max-width: 100%; }} .facts td {{ text-align: left; font-size: 13px; }} .scroll {{ overflow-x: auto; }}
</style></head><body>
<h1>regjax comparison</h1>
<p>{len(rows)} recipes, {rows[0]["seeds"]} seeds each; accuracy is mean ± standard deviation over seeds, the difference to the
baseline is paired over seeds, ± its standard error. Time and FLOPs are those of a training step as ratios to the baseline's.</p>
<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>
<p>Above the baseline by more than one standard error: {escape(", ".join(beat) or "none")}.<br>
Not above it: {escape(", ".join(not_beat) or "none")}.</p>
<img alt="accuracy of every recipe" src="data:image/png;base64,{pictures["bars"]}">
<h2>Learning curves</h2>
<img alt="learning curves" src="data:image/png;base64,{pictures["curves"]}">
<h2>Setting</h2>
<table class="facts"><tbody>{facts}</tbody></table>
</body></html>
"""


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for key, value in config.items():
        pairs += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(prefix + key, value)]
    return pairs
