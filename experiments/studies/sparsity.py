"""How few weights do digits need, and which way leads there? Every sparsifier of the library at 50 to 98 percent.

``python -m experiments.studies.sparsity`` writes tables, pictures and ``results.json`` into ``runs/sparsity``.
"""

import dataclasses
import functools
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

import regjax as rj
from experiments import plots
from experiments.studies import common
from experiments.studies import sparsity_training as training
from experiments.studies.sparsity_training import Outcome, Programs


class Method(NamedTuple):
    """A way to a sparse network.

    Attributes:
      train: one of `experiments.studies.sparsity_training`.
      hyperparameters: the best point of `experiments.studies.sparsity_tuning`.
      panel: of the picture; one of `PANELS`, or "units" for the removal of hidden units.
      counts: how many weights stay, a key of `to_keep`.
    """

    train: Callable[..., Any]
    hyperparameters: Mapping[str, float]
    panel: str
    counts: str = "uniform"


PATTERNS: dict[float, tuple[int, int]] = {0.5: (2, 4), 0.75: (1, 4), 0.875: (1, 8), 0.9375: (1, 16), 0.984375: (1, 64)}
"""By sparsity, how many of every m inputs stay."""

PANELS = {
    "gradual": "a mask that grows during training",
    "cut": "a cut in the middle, regularised before it",
    "start": "from the start, or shrunk all along",
    "scores": "supermasks, and n of every m",
}

p = functools.partial
METHODS: dict[str, Method] = {
    "gradual, uniform": Method(p(training.gradual, distribution="uniform"), {"start": 0.0, "end": 0.7}, "gradual"),
    "gradual, ERK": Method(p(training.gradual, distribution="erk"), {"start": 0.0, "end": 0.7}, "gradual", "erk"),
    "gradual, global": Method(p(training.gradual, distribution="global"), {"start": 0.0, "end": 0.85}, "gradual", "global"),
    "gradual, saliency": Method(p(training.gradual, scores="saliency"), {"start": 0.0, "end": 0.5}, "gradual"),
    "gradual, random": Method(p(training.gradual, scores="random"), {"start": 0.0, "end": 0.5}, "gradual"),
    "one-shot, uniform": Method(p(training.one_shot, distribution="uniform"), {"cut": 0.3}, "cut"),
    "one-shot, global": Method(training.one_shot, {"cut": 0.3}, "cut", "global"),
    "decay": Method(training.irrelevance, {"cut": 0.5, "decay": 0.01, "scale": 0.0}, "cut", "global"),
    "irrelevance decay": Method(training.irrelevance, {"cut": 0.5, "decay": 0.01, "scale": 100.0}, "cut", "global"),
    "L1": Method(p(training.one_shot, before=training.lasso), {"cut": 0.3, "strength": 0.01}, "cut", "global"),
    "proximal L1": Method(p(training.one_shot, after=training.proximal_lasso), {"cut": 0.3, "strength": 0.1}, "cut", "global"),
    "HyperSparse": Method(training.hypersparse, {"cut": 0.5, "strength": 0.03}, "cut", "strict"),
    "ART": Method(training.adaptive, {"cut": 0.5, "init": 0.001, "growth": 1.5}, "cut", "strict"),
    "init, magnitude": Method(p(training.at_init, distribution="uniform"), {}, "start"),
    "init, saliency": Method(p(training.at_init, scores="saliency", distribution="global"), {}, "start", "global"),
    "init, synaptic flow": Method(training.flow_at_init, {}, "start", "floor of all"),
    "ISS-P": Method(training.shrinkage, {"cut": 0.5, "ratio": 0.9}, "start", "ceiling"),
    "hard thresholding": Method(training.shrinkage, {"cut": 0.5, "ratio": 0.0}, "start", "ceiling"),
    "supermask, top scores": Method(training.top_scores, {"factor": 0.03}, "scores", "floor"),
    "supermask, signs": Method(training.signs, {"factor": 1.0}, "scores", "floor of all"),
    "soft subnetwork": Method(training.soft_subnetwork, {"factor": 30.0}, "scores", "ranks"),
    "n:m, one-shot": Method(training.pattern, {"cut": 0.3}, "scores", "pattern"),
    "n:m, SR-STE": Method(training.straight_through, {"decay": 2e-4}, "scores", "pattern"),
    "small network": Method(training.small, {}, "units", "units"),
    "units, one-shot": Method(training.units_one_shot, {"cut": 0.3}, "units", "units"),
    "group lasso": Method(p(training.units_proximal, envelope=False), {"cut": 0.3, "strength": 0.03}, "units", "units"),
    "WGSEF": Method(p(training.units_proximal, envelope=True), {"cut": 0.3, "strength": 0.003}, "units", "units"),
    "DReSS": Method(p(training.units_regularised, chosen="norm"), {"cut": 0.3, "strength": 0.3}, "units", "units"),
    "DReSS, random units": Method(
        p(training.units_regularised, chosen="random"), {"cut": 0.3, "strength": 0.3}, "units", "units"
    ),
}
"""The best points of `experiments.studies.sparsity_tuning`: on validation images and other seeds, one for all sparsities."""

REFERENCE = "gradual, uniform"
MARGIN = 0.01
"""How much accuracy a network may lose before it is said to suffer."""


class Claim(NamedTuple):
    """That a method is better than a rival at a sparsity (or no worse than ``allowed``)."""

    text: str
    method: str
    rival: str
    level: float
    measure: str = "accuracy"
    allowed: float = 0.0


def _at(levels: Sequence[float], *claim: Any, **more: Any) -> list[Claim]:
    return [Claim(*claim, level, **more) for level in levels]


CLAIMS: tuple[Claim, ...] = (
    *_at((0.95, 0.98), "gradual pruning beats one-shot", "gradual, uniform", "one-shot, uniform"),
    *_at((0.95, 0.98), "gradual pruning beats one-shot", "gradual, global", "one-shot, global"),
    *_at((0.95, 0.98), "ERK beats uniform", "gradual, ERK", "gradual, uniform"),
    *_at((0.95, 0.98), "global beats uniform", "gradual, global", "gradual, uniform"),
    *_at((0.95, 0.98), "saliency beats magnitude", "gradual, saliency", "gradual, uniform"),
    *_at((0.98,), "magnitude beats random scores", "gradual, uniform", "gradual, random"),
    *_at((0.95, 0.98), "HyperSparse prepares the cut", "HyperSparse", "one-shot, global", measure="pruned"),
    *_at((0.95, 0.98), "HyperSparse beats no regularisation", "HyperSparse", "one-shot, global"),
    *_at((0.95, 0.98), "HyperSparse prepares the cut better than L1", "HyperSparse", "L1", measure="pruned"),
    *_at((0.95, 0.98), "HyperSparse beats L1", "HyperSparse", "L1"),
    *_at((0.98,), "ART prepares the cut", "ART", "one-shot, global", measure="pruned"),
    *_at((0.98,), "ART beats no regularisation", "ART", "one-shot, global"),
    *_at((0.98,), "HyperSparse beats gradual pruning", "HyperSparse", "gradual, global"),
    *_at((0.98,), "L1 beats no regularisation", "L1", "one-shot, global"),
    *_at((0.98,), "the proximal step beats the penalty", "proximal L1", "L1"),
    *_at((0.98,), "irrelevance decay beats no regularisation", "irrelevance decay", "one-shot, global"),
    *_at((0.98,), "irrelevance decay beats plain decay", "irrelevance decay", "decay"),
    *_at((0.95, 0.98), "soft shrinkage beats hard thresholding", "ISS-P", "hard thresholding"),
    *_at((0.95, 0.98), "soft shrinkage beats pruning at the start", "ISS-P", "init, magnitude"),
    *_at((0.95, 0.98), "synaptic flow beats magnitude at the start", "init, synaptic flow", "init, magnitude"),
    *_at((0.98,), "synaptic flow beats saliency at the start", "init, synaptic flow", "init, saliency"),
    *_at(
        (0.95,), "a mask of random weights beats training after pruning at the start", "supermask, top scores", "init, magnitude"
    ),
    *_at((0.5, 0.75), "n of every m lose less than a point", "n:m, one-shot", "dense", allowed=MARGIN),
    *_at((0.875, 0.9375, 0.984375), "SR-STE beats a late pattern", "n:m, SR-STE", "n:m, one-shot"),
    *_at((0.875, 0.984375), "a free mask beats SR-STE", "gradual, uniform", "n:m, SR-STE"),
    *_at((0.8, 0.9), "WGSEF beats group lasso", "WGSEF", "group lasso"),
    *_at((0.8, 0.9), "WGSEF beats no regularisation", "WGSEF", "units, one-shot"),
    *_at((0.8, 0.9), "DReSS prepares the removal", "DReSS", "units, one-shot", measure="pruned"),
    *_at((0.8, 0.9), "DReSS beats no regularisation", "DReSS", "units, one-shot"),
    *_at((0.9,), "DReSS beats a small network", "DReSS", "small network"),
    *_at((0.9,), "chosen units beat random ones", "DReSS", "DReSS, random units"),
)
"""What the publications say, or their readers would like to know."""


@dataclasses.dataclass(frozen=True)
class SparsityConfig:
    """The study.

    Attributes:
      methods: which of them; the dense network is always trained.
      seeds: how many; each has its own split, initialisation and order of examples.
      first_seed: the first of them.
      judged_on: ``test``, or ``validation`` for choosing hyperparameters.
      validation: the share of training images held out for that.
      width: of the two hidden layers.
      epochs: the budget of every method, fine-tuning included.
      batch_size: of training.
      learning_rate: of SGD with momentum 0.9: constant in the first half of the budget, then along a cosine to 0.
      levels: shares of weights to be removed.
      unit_levels: shares of hidden units to be removed.
      out: the folder of results.
      force: replace the results that the folder holds.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    seeds: int = 8
    first_seed: int = 0
    judged_on: str = "test"
    validation: float = 0.2
    width: int = 128
    epochs: int = 30
    batch_size: int = 64
    learning_rate: float = 0.1
    levels: tuple[float, ...] = (0.5, 0.8, 0.9, 0.95, 0.98)
    unit_levels: tuple[float, ...] = (0.5, 0.8, 0.9)
    out: Path = Path("runs/sparsity")
    force: bool = False

    def __post_init__(self) -> None:
        """Refuses unknown names and impossible numbers."""
        common.check("SparsityConfig", "methods", self.methods, METHODS)
        common.check("SparsityConfig", "judged_on", (self.judged_on,), ("test", "validation"))
        for field, least in (("seeds", 1), ("epochs", 2), ("batch_size", 1)):
            if getattr(self, field) < least:
                raise ValueError(f"SparsityConfig: {field} must be at least {least}, got {getattr(self, field)}")
        for field in ("levels", "unit_levels"):
            values = getattr(self, field)
            if not values or sorted(set(values)) != list(values) or not 0 < values[0] <= values[-1] < 1:
                raise ValueError(f"SparsityConfig: {field} must be in (0, 1), ascending, got {values}")
        if self.width % 64:
            raise ValueError(f"SparsityConfig: width must be a multiple of 64 for n of every m, got {self.width}")


def study(config: SparsityConfig, *, quiet: bool = False) -> str:
    """Trains every method at every sparsity, and writes the folder of results.

    Args:
      config: the study.
      quiet: no progress bar.

    Returns:
      The tables as text, and where the results lie.

    Raises:
      ValueError: if the folder holds something already.
    """
    common.claim(config.out, config.force)
    programs = Programs(config, range(config.first_seed, config.first_seed + config.seeds))
    measured = {"dense": {0.0: _at_level(programs.run(training.dense, (0.0,), {}), 0)}}
    names = tuple(dict.fromkeys(config.methods))
    for name in tqdm(names, disable=quiet or not sys.stderr.isatty(), unit="method"):
        measured[name] = train(programs, name, METHODS[name])
    images = {"train": programs.data.images.shape[1], config.judged_on: programs.data.eval_images.shape[1]}
    return common.publish(
        config.out,
        config,
        {
            "images": images,
            "to_keep": {
                name: {level: to_keep(METHODS[name].counts, level, config.width) for level in measured[name]} for name in names
            },
            "methods": {name: {level: _short(values) for level, values in found.items()} for name, found in measured.items()},
        },
        tables(config, measured),
        figures(config, measured),
        study="sparsity",
        text=_text(config, images, measured),
    )


def train(
    programs: Programs, name: str, method: Method, hyperparameters: Mapping[str, float] | None = None
) -> dict[float, Outcome]:
    """Every seed of a method at every sparsity.

    Args:
      programs: what compiles it.
      name: of the method.
      method: what is trained.
      hyperparameters: in place of the method's.

    Returns:
      By sparsity an `Outcome` of arrays with a leading axis of seeds.
    """
    config = programs.config
    hyper = method.hyperparameters if hyperparameters is None else hyperparameters
    if method.counts == "pattern":
        found = {}
        for level, (n, m) in PATTERNS.items():
            train = functools.partial(method.train, n=n, m=m)
            found[level] = _at_level(programs.run(train, (level,), hyper), 0)
        return found
    levels = config.unit_levels if method.panel == "units" else config.levels
    if name == REFERENCE:
        levels = tuple(sorted({*levels, *PATTERNS}))
    outcome = programs.run(method.train, levels, hyper)
    return {level: _at_level(outcome, i) for i, level in enumerate(levels)}


def _at_level(outcome: Outcome, i: int) -> Outcome:
    return Outcome(*(leaf[i] for leaf in outcome))


def to_keep(counts: str, level: float, width: int) -> int:
    """How many weights have to stay, computed without the library but for the sparsities of ERK.

    Args:
      counts: the rule: ``uniform``, ``erk``, ``global``, ``strict``, ``ceiling``, ``ceiling of all``, ``floor``,
        ``floor of all``, ``ranks``, ``pattern`` or ``units``.
      level: the share to be removed, of weights or of units.
      width: of the hidden layers.

    Returns:
      The number, over all kernels.
    """
    shapes = ((64, width), (width, width), (width, 10))
    sizes = [a * b for a, b in shapes]
    total = sum(sizes)
    product = lambda n: round(n * level, 6)  # exact products of short decimals
    if counts == "erk":
        scores = {name: {"kernel": jnp.zeros(shape)} for name, shape in zip(training.LAYERS, shapes, strict=True)}
        return sum(int(m["kernel"].sum()) for m in rj.weights.topk_mask(scores, sparsity=level, distribution="erk").values())
    if counts == "units":
        left = max(1, round(width * (1 - level)))
        return left * (64 + left + 10)
    if counts == "pattern":
        n, m = PATTERNS[level]
        return total * n // m
    rules: dict[str, Callable[[int], int]] = {
        "uniform": lambda n: max(1, round(n - product(n))),
        "strict": lambda n: n - math.floor(product(n)) - 1,
        "ceiling": lambda n: n - math.ceil(product(n)),
        "floor": lambda n: n - math.floor(product(n)),
        "ranks": lambda n: n - round(level * (n - 1)),
    }
    if counts in ("global", "strict", "ceiling of all", "floor of all"):
        return rules[{"global": "uniform", "strict": "strict"}.get(counts, counts.split()[0])](total)
    return sum(map(rules[counts], sizes))


Measured = Mapping[str, Mapping[float, Outcome]]


def _of(measured: Measured, name: str, level: float, measure: str = "accuracy") -> Any:
    """The values of all seeds, in float64; the dense network has one level."""
    found = measured[name]
    return np.asarray(getattr(found[0.0 if name == "dense" else level], measure), np.float64)


def _percent(level: float) -> str:
    return f"{100 * level:.4g} %"


def tables(config: SparsityConfig, measured: Measured) -> dict[str, common.Table]:
    """Accuracies, counts of weights, the ranking, and what becomes of the claims."""
    made = {}
    groups = {
        panel: [name for name in measured if name != "dense" and METHODS[name].panel == panel] for panel in (*PANELS, "units")
    }
    free = [name for panel in PANELS for name in groups[panel] if METHODS[name].counts != "pattern"]
    patterns = [name for name in groups["scores"] if METHODS[name].counts == "pattern"]
    errors = "mean ± standard error over seeds"
    cell = lambda name, level, measure="accuracy": common.shown(common.statistic(_of(measured, name, level, measure)), 100)
    whole = cell("dense", 0.0)
    if free:
        rows = [("dense", *(whole for _ in config.levels))]
        rows += [(name, *(cell(name, level) for level in config.levels)) for name in free]
        made[f"Accuracy in percent by the share of weights removed, {errors}; the dense network keeps all"] = common.Table(
            ("method", *map(_percent, config.levels)), rows
        )
        made[
            "Nonzero weights of the kernels in the end, over all seeds, and in brackets the number that the method has to keep"
        ] = common.Table(
            ("method", *map(_percent, config.levels)),
            [(name, *(_count(config, measured, name, level) for level in config.levels)) for name in free],
        )
        cut = [name for name in free if np.isfinite(_of(measured, name, config.levels[0], "pruned")).all()]
        if cut:
            rows = [(name, *(cell(name, level, "pruned") for level in config.levels)) for name in cut]
            caption = f"Cut: accuracy in percent right after it, before the network is trained on, {errors}"
            made[caption] = common.Table(("method", *map(_percent, config.levels)), rows)
        if len(free) > 1:
            made["Ranking at the highest sparsities, differences to the first paired over seeds, ± standard error"] = _ranking(
                config.levels[-2:], measured, free
            )
    if patterns:
        header = ("method", *(f"{n}:{m}, {_percent(level)}" for level, (n, m) in PATTERNS.items()))
        shown = [REFERENCE, *patterns] if REFERENCE in measured else patterns
        rows = [
            (name, *(f"{cell(name, level)} [{_count(config, measured, name, level)}]" for level in PATTERNS)) for name in shown
        ]
        caption = "Patterns of n in every m inputs: accuracy in percent, nonzero weights in square brackets"
        made[caption] = common.Table(header, [("dense", *(whole for _ in PATTERNS)), *rows])
    if groups["units"]:
        rows = [("dense", *(whole for _ in config.unit_levels), "")]
        for name in groups["units"]:
            after = _of(measured, name, config.unit_levels[-1], "pruned")
            pruned = cell(name, config.unit_levels[-1], "pruned") if np.isfinite(after).all() else ""
            cells = (f"{cell(name, x)} [{_units(measured, name, x)}]" for x in config.unit_levels)
            rows.append((name, *cells, pruned))
        header = ("method", *map(_percent, config.unit_levels), f"right after the cut, {_percent(config.unit_levels[-1])}")
        caption = "Units: accuracy in percent by the share of hidden units removed, and the units left in each layer"
        made[caption] = common.Table(header, rows)
    claimed = [row for claim in CLAIMS for row in _claimed(measured, claim)]
    if claimed:
        made["Claims, each tried as a paired difference by the t-test at 5 %"] = common.Table(
            ("claim", "between", "sparsity", "measure", "the two, %", "difference", "seeds above", "here"), claimed
        )
    return made


def _claimed(measured: Measured, claim: Claim) -> list[tuple[str, ...]]:
    """The row of a claim, if both of its sides were measured at its sparsity."""
    for name in (claim.method, claim.rival):
        if name not in measured or (name != "dense" and claim.level not in measured[name]):
            return []
    mine, theirs = (_of(measured, name, claim.level, claim.measure) for name in (claim.method, claim.rival))
    value = common.statistic(mine, theirs)
    said = common.verdict(common.statistic(mine + claim.allowed, theirs), 1)
    measure = "right after the cut" if claim.measure == "pruned" else "in the end"
    means = f"{100 * mine.mean():.1f} against {100 * theirs.mean():.1f}"
    difference, above = common.shown(value, 100, gain=True), f"{value.above} of {len(mine)}"
    sides = f"{claim.method} against {claim.rival}"
    return [(claim.text, sides, _percent(claim.level), measure, means, difference, above, said)]


def _ranking(levels: Sequence[float], measured: Measured, names: Sequence[str]) -> common.Table:
    """The methods from best to worst at each level, side by side."""
    columns = []
    for level in levels:
        ranked = sorted(names, key=lambda name: -_of(measured, name, level).mean())
        first = _of(measured, ranked[0], level)
        column = []
        for name in ranked:
            value = common.statistic(_of(measured, name, level), first)
            # One and the same as the best, as far as these seeds can tell.
            alike = "" if value.p_value is not None and value.p_value < 0.05 else " ="
            gain = "" if name == ranked[0] else f" ({common.shown(value, 100, gain=True)}{alike})"
            column.append(f"{name} {100 * value.mean:.1f}{gain}")
        columns.append(column)
    rows = [(str(i + 1), *texts) for i, texts in enumerate(zip(*columns, strict=True))]
    return common.Table(("place", *map(_percent, levels)), rows)


def _count(config: SparsityConfig, measured: Measured, name: str, level: float) -> str:
    """The nonzero weights of all seeds, and those to be kept."""
    found = _of(measured, name, level, "kept").sum(-1).astype(int)
    low, high, target = found.min(), found.max(), to_keep(METHODS[name].counts, level, config.width)
    return f"{low if low == high else f'{low} to {high}'} ({target})"


def _units(measured: Measured, name: str, level: float) -> str:
    found = np.unique(_of(measured, name, level, "units").astype(int))
    return str(found[0]) if len(found) == 1 else f"{found[0]} to {found[-1]}"


def figures(config: SparsityConfig, measured: Measured) -> dict[str, plt.Figure]:
    """Accuracy over sparsity in panels of kindred methods, the same right after the cut, and that over units."""
    made = {}
    if any(METHODS[name].panel != "units" for name in measured if name != "dense"):
        made["sparsity"] = _panels(config, measured, PANELS, config.levels)
    cut = [name for name in measured if name != "dense" and METHODS[name].panel in ("cut", "units")]
    if any(METHODS[name].panel == "cut" for name in cut):
        figure, panel = plt.subplots(figsize=(7.6, 4.0), layout="constrained")
        _lines(panel, measured, [name for name in cut if METHODS[name].panel == "cut"], "pruned")
        _axes(panel, config.levels, "accuracy right after the cut (%)")
        figure.legend(*panel.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
        made["after_the_cut"] = figure
    units = [name for name in cut if METHODS[name].panel == "units"]
    if units:
        figure, panels = plt.subplots(1, 2, figsize=(9.6, 3.8), layout="constrained")
        for panel, measure, title in zip(panels, ("accuracy", "pruned"), ("in the end", "right after the cut"), strict=True):
            _lines(panel, measured, units, measure)
            _axes(panel, config.unit_levels, "accuracy (%)", "hidden units removed (%)")
            panel.set_title(title, fontsize=9)
        panels[0].axhline(100 * _of(measured, "dense", 0.0).mean(), color="#222222", linestyle="--", linewidth=1, label="dense")
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
        made["units"] = figure
    return made


def _panels(config: SparsityConfig, measured: Measured, titles: Mapping[str, str], levels: Sequence[float]) -> plt.Figure:
    figure, panels = plt.subplots(2, 2, figsize=(10.4, 7.6), layout="constrained", sharex=True, sharey=True)
    for panel, (name, title) in zip(panels.flat, titles.items(), strict=True):
        panel.axhline(100 * _of(measured, "dense", 0.0).mean(), color="#222222", linestyle="--", linewidth=1, label="dense")
        if REFERENCE in measured and name != "gradual":
            _lines(panel, measured, [REFERENCE], "accuracy", color="#999999", linestyle="-", linewidth=2.5, zorder=1)
        _lines(panel, measured, [x for x in measured if x != "dense" and METHODS[x].panel == name], "accuracy")
        _axes(panel, levels, "accuracy (%)")
        panel.set_title(title, fontsize=10)
        panel.set_ylim(60, 100)
        panel.legend(fontsize=8, frameon=False, loc="lower left")
        panel.label_outer()
    return figure


def _lines(panel: Any, measured: Measured, names: Sequence[str], measure: str, **style: Any) -> None:
    for i, name in enumerate(names):
        levels = list(measured[name])
        values = [common.statistic(_of(measured, name, level, measure)) for level in levels]
        if not np.isfinite([value.mean for value in values]).all():
            continue
        mean, error = (100 * np.array([getattr(value, field) for value in values]) for field in ("mean", "error"))
        look = {"color": f"C{i}", "marker": "osD^vP*X"[i % 8], "markersize": 4, "linewidth": 1.2, "elinewidth": 0.8, **style}
        panel.errorbar([1 - level for level in levels], mean, error, label=name, **look)


def _axes(panel: Any, levels: Sequence[float], ylabel: str, xlabel: str = "weights removed (%)") -> None:
    """What is left on a logarithmic axis that runs to the right as it shrinks, labelled by what is removed."""
    panel.set_xscale("log")
    panel.minorticks_off()
    panel.set_xticks([1 - level for level in levels], [f"{100 * level:g}" for level in levels])
    panel.set_xlim(1.15 * (1 - levels[0]), (1 - levels[-1]) / 1.4)
    panel.set(xlabel=xlabel, ylabel=ylabel)
    plots.bare(panel)


def _short(outcome: Outcome) -> dict[str, Any]:
    """What JSON keeps of a method at a sparsity, one number a seed; without what it does not have."""
    found = {"accuracy": common.rounded(outcome.accuracy), "kept": outcome.kept, "units": outcome.units}
    more = {"pruned": outcome.pruned, "stopped": outcome.stopped}
    return {**found, **{name: common.rounded(x) for name, x in more.items() if np.isfinite(x).all()}}


def _text(config: SparsityConfig, images: Mapping[str, int], measured: Measured) -> str:
    art = ""
    if "ART" in measured:
        cut = round(METHODS["ART"].hyperparameters["cut"] * config.epochs)
        early = np.mean([found.stopped < cut for found in measured["ART"].values()])
        art = f" The search of ART met its condition before the latest moment, epoch {cut}, in {100 * early:.0f} % of its runs."
    return f"""How few weights do digits need, and which way leads there?

Digits, {images["train"]} training and {images[config.judged_on]} {config.judged_on} images, an MLP with two hidden layers of
{config.width} units ({sum(a * b for a, b in ((64, config.width), (config.width, config.width), (config.width, 10)))} weights in
kernels, which alone are pruned), {config.seeds} seeds, each with its own split, initialisation and order. Every method has the
same budget of {config.epochs} epochs, in batches of {config.batch_size}, whatever its phases: SGD with momentum 0.9 at rate
{config.learning_rate}, constant in the first half, then along a cosine to 0. Methods with a cut train to the cut, prune there
exactly, and spend what is left on training under the mask; "right after the cut" is the accuracy between the two. Growing
penalties (L1, proximal L1, HyperSparse, group lasso, WGSEF) rise {training.GROWTH:g}-fold in equal ratios up to the cut.
"Global" compares all weights, "uniform" the weights of each layer; methods of the cut without "uniform" in their name cut
globally. "init" prunes in the first step, by saliency and synaptic flow globally. Supermasks train scores: frozen weights have no
biases, and are divided by the root of the share that stays; a soft subnetwork trains weights too, with its hard mask. "n:m" keeps
n of every m inputs of each unit.
For units, the level is the share of each hidden layer; the first to go are those of the smallest norm.{art}

Every method has one point for all sparsities: of those with a strength or a schedule the best of 3 to 12 by the mean accuracy
over them on validation images and other seeds (`python -m experiments.studies.sparsity_tuning`); some lie at the edge of their
grid. Methods without a strength have 2 or 3, the moments of the cut; pruning at the start and the small network have nothing to
choose; one-shot patterns take the cut of one-shot uniform, SR-STE the library's default decay, and DReSS of random units the
point of DReSS. The learning rate is the best of 5 for the plainest methods. A verdict is that of the paired t-test over seeds at
5 %, one for each line, without a correction for their number. In the ranking, = marks what these seeds cannot tell from the
first; the first is chosen by the same figures, so its lead is a little flattered.

What the figures do not say alone: proximal L1 leaves fewer weights than asked where its steps have emptied whole units, which get
no gradient any more. The moment of the cut is part of what each method chose, so "right after the cut" compares networks after 30
or 50 % of the budget. The top scores of a supermask train at the rate that is best on the mean of all sparsities: at 10 times the
common rate they reached 98.2 % at 50 % sparsity on validation images, and 14.8 % at 98 %. In patterns of 1 in 64 a unit of the
first hidden layer has one input left. In the picture, accuracies below 60 % are cut off."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return common.command_line(study, SparsityConfig, "python -m experiments.studies.sparsity", arguments)


if __name__ == "__main__":
    sys.exit(main())
