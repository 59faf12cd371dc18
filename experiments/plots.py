"""Reliability diagrams, risk-coverage curves, memorisation curves, spectra and means over seeds."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

import regjax as rj

_bins = jax.jit(rj.diagnostics.reliability_bins, static_argnames="num_bins")
_curves = jax.jit(jax.vmap(rj.diagnostics.risk_coverage))
_density = jax.jit(rj.diagnostics.spectral_density)


def reliability_diagram(axes: Any, confidences: Any, correct: Any, *, num_bins: int = 15, title: str = "") -> None:
    """Draws accuracy against confidence in bins of equal width, the gaps to the diagonal, and where the examples are.

    Args:
      axes: matplotlib axes.
      confidences: the probability of the predicted class ``[N]``; examples of several seeds may be put together.
      correct: whether the prediction is right ``[N]``.
      num_bins: as in `regjax.diagnostics.reliability_bins`.
      title: above the diagram; the calibration error follows it.
    """
    confidences, correct = np.asarray(confidences, np.float32), np.asarray(correct)
    bins = jax.device_get(_bins(confidences, correct, num_bins=num_bins))
    error = float(np.sum(bins.weight * np.abs(bins.confidence - bins.accuracy)))
    left, width, full = np.arange(num_bins) / num_bins, 1 / num_bins, bins.weight > 0
    draw = {"align": "edge", "width": 0.92 * width}
    axes.bar(left[full], bins.accuracy[full], color="#3b7dd8", **draw)
    gaps = (bins.confidence - bins.accuracy)[full]
    axes.bar(left[full], gaps, bottom=bins.accuracy[full], color="#d98a6a", alpha=0.55, **draw)
    axes.bar(left[full], bins.weight[full], color="#222222", alpha=0.75, align="edge", width=0.3 * width)
    axes.plot([0, 1], [0, 1], color="#444444", linewidth=0.8, linestyle="--")
    axes.set(xlim=(0, 1), ylim=(0, 1), aspect="equal")
    axes.set_title(f"{title}\nECE {100 * error:.1f} %".strip(), fontsize=9)
    bare(axes)


def risk_coverage_curve(axes: Any, scores: Any, correct: Any, *, label: str = "", **style: Any) -> None:
    """Draws the share of errors among the most confident examples against how many are answered, in percent.

    Args:
      axes: matplotlib axes.
      scores: larger is more confident ``[N]``, or of several seeds ``[S, N]``, whose curves are averaged.
      correct: whether the prediction is right, of the same shape.
      label: in the legend.
      **style: of matplotlib's ``plot``.
    """
    scores, correct = (np.atleast_2d(np.asarray(x)) for x in (scores, correct))
    curve = jax.device_get(_curves(scores, correct))
    # The first few examples decide the risk by one error: nothing to see there.
    shown = curve.coverage[0] >= 0.05
    axes.plot(100 * curve.coverage[0][shown], 100 * curve.risk.mean(0)[shown], label=label, **style)
    axes.set(xlabel="coverage (%)", ylabel="errors among the answered (%)", xlim=(5, 100))
    bare(axes)


def seed_curve(axes: Any, x: Any, values: Any, *, label: str = "", **style: Any) -> None:
    """Draws the mean over seeds of ``values [S, T]`` against ``x [T]``, with a band of one standard error."""
    values = np.asarray(values, np.float64)
    mean = values.mean(0)
    error = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros_like(mean)
    (line,) = axes.plot(x, mean, label=label, **style)
    axes.fill_between(x, mean - error, mean + error, color=line.get_color(), alpha=0.15, linewidth=0)
    bare(axes)


def memorization_panels(epochs: Sequence[int], curves: Mapping[str, Mapping[str, Any]], *, title: str = "") -> plt.Figure:
    """Draws, a panel for each method, what becomes of wrongly labelled training examples, and the test accuracy above it.

    Args:
      epochs: of the points ``[T]``.
      curves: by method the shares ``correct``, ``other`` and ``memorized`` of `regjax.diagnostics.memorization_curves`, and the
        test ``accuracy``, each ``[S, T]`` over seeds.
      title: what they have in common.

    Returns:
      The figure.
    """
    across = min(4, len(curves))
    down = -(-len(curves) // across)
    figure, panels = plt.subplots(
        down, across, figsize=(2.7 * across, 2.0 * down + 0.6), layout="constrained", sharex=True, sharey=True, squeeze=False
    )
    style = {"colors": ("#7fbf7b", "#dddddd", "#d98a6a"), "labels": ("as their true label", "otherwise", "as labelled")}
    drawn = slice(None, None, -(-len(epochs) // 40))  # more points than this make large files and look the same
    for panel, (name, values) in zip(panels.flat, curves.items(), strict=False):
        values = {part: 100 * values[part][:, drawn] for part in ("correct", "other", "memorized", "accuracy")}
        panel.stackplot(epochs[drawn], [values[part].mean(0) for part in ("correct", "other", "memorized")], **style)
        seed_curve(panel, epochs[drawn], values["accuracy"], color="#222222", linewidth=1.4, label="test accuracy")
        panel.set(ylim=(0, 100), xlim=(epochs[0], max(epochs[drawn][-1], epochs[0] + 1)))
        panel.set_title(name, fontsize=9)
    for panel in panels.flat[len(curves) :]:
        panel.set_visible(False)
    handles, labels = panels.flat[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.supylabel("percent", fontsize=9)
    figure.suptitle(f"Wrongly labelled training images, predicted ... ({title})", fontsize=10)
    return figure


def spectral_density(axes: Any, ritz_values: Any, weights: Any, *, num_rows: int, label: str = "", **style: Any) -> None:
    """Draws how many eigenvalues of a curvature matrix lie where, on a logarithmic scale, and marks the Ritz values.

    Args:
      axes: matplotlib axes.
      ritz_values: of `regjax.diagnostics.stochastic_lanczos` ``[k, m]``, or of one probe ``[m]``.
      weights: of the same shape.
      num_rows: of the matrix, the number of parameters: the curve is the density times it, so that its area counts eigenvalues.
      label: in the legend.
      **style: of matplotlib's ``plot``.
    """
    values, weights = (np.atleast_2d(np.asarray(x, np.float32)) for x in (ritz_values, weights))
    grid, density = jax.device_get(_density(values, weights))
    (line,) = axes.plot(grid, num_rows * density, label=label, **style)
    # Below a hundredth of an eigenvalue there is nothing but the tails of the Gaussians.
    axes.set(xlabel="eigenvalue", ylabel="eigenvalues per unit", yscale="log", ylim=(0.01, None))
    for row, kept in zip(values, weights > 0, strict=True):
        axes.plot(row[kept], np.full(kept.sum(), 0.03), "|", color=line.get_color(), markersize=8)
    bare(axes)


def bare(axes: Any) -> None:
    """Without the frame's upper and right side."""
    axes.spines[["top", "right"]].set_visible(False)
