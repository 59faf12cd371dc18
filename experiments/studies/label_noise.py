"""Which methods withstand wrong labels? Digits under symmetric and class-dependent noise, many methods, many seeds.

``python -m experiments.studies.label_noise`` writes a table, pictures and ``results.json`` into ``runs/label_noise``.
"""

import dataclasses
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

import regjax as rj
from experiments import plots
from experiments.compare import make_task
from experiments.data import DataConfig
from experiments.engine import Record, RunConfig, Task, record
from experiments.recipes import RecipeFn
from experiments.studies import common
from experiments.studies.twin import TwinTask, co_teaching


class Noise(NamedTuple):
    """A kind of label noise, as in `DataConfig`; ``share`` is that of the wrong labels among all."""

    kind: str
    rate: float
    share: float


NOISES: dict[str, Noise] = {
    "clean": Noise("symmetric", 0.0, 0.0),
    "symmetric 20 %": Noise("symmetric", 0.2, 0.2),
    "symmetric 40 %": Noise("symmetric", 0.4, 0.4),
    "symmetric 60 %": Noise("symmetric", 0.6, 0.6),
    "asymmetric 40 %": Noise("confusion", 0.4, 0.2),
}
SHOWN = "symmetric 40 %"
"""The noise whose memorisation curves are drawn."""


class Method(NamedTuple):
    """A recipe by name or as a function, and its hyperparameters, which may depend on the share of wrong labels."""

    recipe: str | RecipeFn
    hyperparameters: Callable[[float], dict[str, Any]]
    twin: bool = False


def method(recipe: str, **hyperparameters: Any) -> Method:
    """A named recipe with the same hyperparameters under every noise."""
    return Method(recipe, lambda share: hyperparameters)


METHODS: dict[str, Method] = {
    "cross-entropy": method("baseline"),
    "GCE": method("generalized_cross_entropy", q=0.9),
    "SCE": method("symmetric_cross_entropy", alpha=0.01, beta=1.0),
    "bootstrapping": method("bootstrapping", beta=0.3),
    "ELR": method("elr", weight=5.0),
    "co-teaching": Method(co_teaching, lambda share: {"forget_rate": share}, twin=True),
    "PS-KD": method("ps_kd", alpha_final=0.95),
    "nested dropout": method("nested_dropout", scale=0.1),
    "label smoothing": method("label_smoothing", alpha=0.9),
    "MaxSup": method("maxsup", weight=0.7),
    "mixup": method("mixup", alpha=16.0),
}
"""The best points of `experiments.studies.label_noise_tuning`; co-teaching has none to choose."""

BASELINE = "cross-entropy"

CLAIMS: tuple[tuple[str, str, str], ...] = (
    ("ELR keeps what was learnt early", "ELR", "symmetric 40 %"),
    ("ELR keeps what was learnt early", "ELR", "asymmetric 40 %"),
    ("GCE withstands wrong labels", "GCE", "symmetric 40 %"),
    ("GCE withstands wrong labels", "GCE", "asymmetric 40 %"),
    ("SCE withstands wrong labels", "SCE", "symmetric 40 %"),
    ("SCE withstands wrong labels", "SCE", "asymmetric 40 %"),
    ("bootstrapping withstands wrong labels", "bootstrapping", "symmetric 40 %"),
    ("two networks choose for each other", "co-teaching", "symmetric 60 %"),
    ("soft targets of the last epoch help", "PS-KD", "symmetric 40 %"),
    ("few features hold no wrong labels", "nested dropout", "symmetric 40 %"),
    ("mixed labels are not learnt by heart", "mixup", "symmetric 40 %"),
    ("smoothed labels help under noise", "label smoothing", "symmetric 40 %"),
    ("MaxSup withstands them as well as label smoothing", "MaxSup", "symmetric 40 %"),
)
"""What publications say of a method, or their readers would like to know, and the noise under which it is tried."""
RIVALS = {"MaxSup withstands them as well as label smoothing": "label smoothing"}
"""What a claim compares with where that is not cross-entropy."""


DATA = DataConfig(name="digits", batch_size=50, validation=0.3)
RUN = RunConfig(epochs=80, points=80, seeds_by="map")


@dataclasses.dataclass(frozen=True)
class LabelNoiseConfig:
    """The study.

    Attributes:
      methods: which of them; cross-entropy is always among them.
      noises: which of them.
      seeds: how many; each has its own split, label noise, initialisation and order of examples.
      first_seed: the first of them.
      judged_on: ``test``, or ``validation`` for choosing hyperparameters.
      data: the data set; its noise is replaced.
      run: the training.
      out: the folder of results.
      force: replace the results that the folder holds.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    noises: tuple[str, ...] = tuple(NOISES)
    seeds: int = 5
    first_seed: int = 0
    judged_on: str = "test"
    data: DataConfig = DATA
    run: RunConfig = RUN
    out: Path = Path("runs/label_noise")
    force: bool = False

    def __post_init__(self) -> None:
        """Refuses unknown names and impossible numbers."""
        common.check("LabelNoiseConfig", "methods", self.methods, METHODS)
        common.check("LabelNoiseConfig", "noises", self.noises, NOISES)
        common.check("LabelNoiseConfig", "judged_on", (self.judged_on,), ("test", "validation"))
        if self.seeds < 1:
            raise ValueError(f"LabelNoiseConfig: seeds must be at least 1, got {self.seeds}")


def study(config: LabelNoiseConfig, *, quiet: bool = False) -> str:
    """Trains every method under every noise, and writes the folder of results.

    Args:
      config: the study.
      quiet: no progress bar.

    Returns:
      The table as text, and where the results lie.

    Raises:
      ValueError: if the folder holds something already, or a recipe is unknown.
    """
    common.claim(config.out, config.force)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    noisy = lambda noise: dataclasses.replace(config.data, noise_kind=noise.kind, label_noise=noise.rate)
    tasks = common.Tasks(
        {name: make_task(noisy(NOISES[name]), config.run, seeds, config.judged_on) for name in dict.fromkeys(config.noises)}
    )
    measured: dict[str, dict[str, Any]] = {}
    names = tuple(dict.fromkeys((BASELINE, *config.methods)))
    for name in tqdm(names, disable=quiet or not sys.stderr.isatty(), unit="method"):
        measured[name] = measure(METHODS[name], tasks)
    return common.publish(
        config.out,
        config,
        {"epochs": _epochs(config.run), "methods": {name: _short(values) for name, values in measured.items()}},
        tables(measured),
        figures(measured, config.run),
        study="label_noise",
        text=_text(config, next(iter(tasks.by_noise.values())).num_examples),
    )


def measure(method: Method, tasks: common.Tasks) -> dict[str, Any]:
    """Accuracies and curves of one method under every noise.

    Noises for which its hyperparameters are equal run in one compiled program, side by side as seeds do.

    Args:
      method: the method.
      tasks: of every noise.

    Returns:
      For each noise ``accuracy`` [S], and ``curves``: test accuracy, and the shares of wrongly labelled training examples
      predicted as their true label (``correct``), as labelled (``memorized``) and otherwise (``other``), [S, points] each.
    """
    groups: dict[str, list[str]] = {}
    for name in tasks.by_noise:
        groups.setdefault(json.dumps(method.hyperparameters(NOISES[name].share)), []).append(name)
    measured = {}
    for names in groups.values():
        hyperparameters = method.hyperparameters(NOISES[names[0]].share)
        kept = record(method.recipe, tasks.together(tuple(names), TwinTask if method.twin else Task), **hyperparameters)
        for i, name in enumerate(names):
            measured[name] = _judged(kept, tasks.by_noise[name], i)
    return {name: measured[name] for name in tasks.by_noise}


def _judged(kept: Record, task: Task, position: int) -> dict[str, Any]:
    """What the task's own seeds left, which stand at a position of a record."""
    own = slice(position * len(task.seeds), (position + 1) * len(task.seeds))
    shares = jax.jit(jax.vmap(rj.diagnostics.memorization_curves))(kept.predictions[own], task.data.labels, task.data.clean)
    curves = {"accuracy": kept.curves["accuracy"][own], "train_accuracy": kept.curves["train_accuracy"][own]}
    curves |= {name: np.asarray(getattr(shares, name)) for name in ("correct", "memorized", "other")}
    return {"accuracy": curves["accuracy"][:, -1], "memorized": curves["memorized"][:, -1], "curves": curves}


def tables(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, common.Table]:
    """Accuracy with the gain over cross-entropy, and the share of wrong labels learnt by heart."""
    base, noises = measured[BASELINE], list(measured[BASELINE])

    def cell(method: str, noise: str) -> str:
        value = common.statistic(measured[method][noise]["accuracy"], base[noise]["accuracy"])
        gain = "" if method == BASELINE else f" ({common.shown(value, 100, gain=True)})"
        return common.shown(value, 100) + gain

    learnt = [name for name in noises if NOISES[name].share]
    share = lambda method, noise: common.shown(common.statistic(measured[method][noise]["memorized"]), 100, 0)
    made = {
        "Accuracy on test images in percent, and the gain over cross-entropy paired over seeds, ± standard error": common.Table(
            ("method", *noises), [(name, *(cell(name, noise) for noise in noises)) for name in measured]
        )
    }
    claimed = []
    for text, name, noise in CLAIMS:
        rival = RIVALS.get(text, BASELINE)
        if {name, rival} <= set(measured) and noise in noises:
            value = common.statistic(measured[name][noise]["accuracy"], measured[rival][noise]["accuracy"])
            said = text if name in text else f"{name}: {text}"
            claimed.append((said, noise, common.shown(value, 100, gain=True), common.verdict(value, 1)))
    if claimed:
        made["Claims, each tried as a difference of accuracies by the paired t-test at 5 %"] = common.Table(
            ("claim", "noise", "gain", "here"), claimed
        )
    if learnt:
        made["Memorized: wrong labels that the trained model reproduces, in percent"] = common.Table(
            ("method", *learnt), [(name, *(share(name, noise) for noise in learnt)) for name in measured]
        )
    return made


def figures(measured: Mapping[str, Mapping[str, Any]], run: RunConfig) -> dict[str, plt.Figure]:
    """Accuracy against noise, and what becomes of the wrongly labelled examples epoch by epoch."""
    made = {"accuracy": _accuracy_figure(measured)}
    shown = SHOWN if SHOWN in measured[BASELINE] else next((name for name in measured[BASELINE] if NOISES[name].share), None)
    if shown:
        curves = {name: values[shown]["curves"] for name, values in measured.items()}
        made["memorization"] = plots.memorization_panels(_epochs(run), curves, title=f"{shown}, by epoch")
    return made


def _accuracy_figure(measured: Mapping[str, Mapping[str, Any]]) -> plt.Figure:
    noises = list(measured[BASELINE])
    symmetric = [name for name in noises if NOISES[name].kind == "symmetric"]
    others = [name for name in noises if name not in symmetric]
    figure, panels = plt.subplots(
        1,
        1 + len(others),
        figsize=(6 + 3.4 * len(others), 4),
        layout="constrained",
        squeeze=False,
        width_ratios=[6] + [3.4] * len(others),
    )
    colours, panels = plt.get_cmap("tab10"), panels[0]
    for i, (name, values) in enumerate(measured.items()):
        style = {
            "color": "#222222" if name == BASELINE else colours((i - 1) % 10),
            "linestyle": "--" if name == BASELINE else "-",
        }
        points = [common.statistic(values[noise]["accuracy"]) for noise in symmetric]
        means, errors = (100 * np.array([getattr(point, part) for point in points]) for part in ("mean", "error"))
        panels[0].errorbar(
            [100 * NOISES[noise].rate for noise in symmetric],
            means,
            errors,
            label=name,
            marker="o",
            markersize=3,
            capsize=2,
            **style,
        )
    panels[0].set(xlabel="symmetric label noise (%)", ylabel="test accuracy (%)")
    panels[0].legend(fontsize=8, frameon=False)
    for panel, noise in zip(panels[1:], others, strict=True):
        points = {name: common.statistic(values[noise]["accuracy"]) for name, values in reversed(measured.items())}
        shades = ["#888888" if name == BASELINE else "#3b7dd8" for name in points]
        means, errors = ([100 * getattr(point, part) for point in points.values()] for part in ("mean", "error"))
        panel.barh(list(points), means, xerr=errors, color=shades, height=0.7)
        panel.axvline(points[BASELINE].mean * 100, color="#444444", linewidth=0.8, linestyle="--")
        panel.set(xlabel=f"test accuracy (%), {noise}", xlim=(max(0, min(means) - 5), 100))
    for panel in panels:
        plots.bare(panel)
    return figure


def _epochs(run: RunConfig) -> list[int]:
    every = run.epochs // run.points
    return list(range(every, run.epochs + 1, every))


def _short(values: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON keeps of a method: every seed's final numbers, and the curves' means over seeds."""
    finals, kept = ("accuracy", "memorized", "train_accuracy"), ("accuracy", "correct", "memorized")
    return {
        noise: {
            **{name: common.rounded(found["curves"][name][:, -1]) for name in finals},
            "curves": {name: common.rounded(found["curves"][name].mean(0), 3) for name in kept},
        }
        for noise, found in values.items()
    }


def _text(config: LabelNoiseConfig, size: int) -> str:
    run = config.run
    return f"""Which methods withstand wrong labels?

Digits, {size:,} training images of which a share is wrongly labelled, an MLP of two hidden layers of {run.model.width} units,
{run.epochs} epochs of SGD with momentum 0.9 at rate {run.learning_rate}, {config.seeds} seeds; the same for every method, and
long enough for cross-entropy to learn wrong labels by heart. Symmetric noise draws one of the nine other digits; asymmetric
noise replaces 40 % of the digits 2, 3, 5, 6 and 7 by the one they are mistaken for (7, 8, 6, 5, 1), a fifth of all labels.
Co-teaching is told the share of wrong labels and trains two networks, whose mean is judged: without noise it is an ensemble of
two. The strength of every other method is the best of 3 to 8 points at 40 % symmetric noise on validation images and other seeds
(`python -m experiments.studies.label_noise_tuning`), and stays the same under every noise: with clean labels it may be too
much."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return common.command_line(study, LabelNoiseConfig, "python -m experiments.studies.label_noise", arguments)


if __name__ == "__main__":
    sys.exit(main())
