"""Does label smoothing, and what else claims to, make probabilities honest? Few clean labels, seven losses, two remedies at test.

``python -m experiments.studies.calibration`` writes tables, diagrams and ``results.json`` into ``runs/calibration``.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import matplotlib.pyplot as plt
import numpy as np
from tqdm import tqdm

from experiments import plots
from experiments.compare import make_task
from experiments.data import DataConfig
from experiments.engine import RunConfig, Task, record
from experiments.models import ModelConfig
from experiments.studies import common
from experiments.studies.judging import Judged, Sizes, judge

METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "cross-entropy": ("baseline", {}),
    "label smoothing": ("label_smoothing", {"alpha": 0.2}),
    "MaxSup": ("maxsup", {"weight": 0.2}),
    "confidence penalty": ("confidence_penalty", {"weight": 0.1}),
    "focal": ("focal", {"gamma": 2.0}),
    "PS-KD": ("ps_kd", {"alpha_final": 0.8}),
    "logit norm": ("logit_norm", {"temperature": 0.04}),
}
"""A recipe and its hyperparameters, those of the papers; nothing was tuned."""

BASELINE = "cross-entropy"
VARIANTS = {"plain": "as trained", "scaled": "temperature", "normalised": "best p"}


class Measure(NamedTuple):
    """How a measure is shown: its heading, its scale and its digits."""

    heading: str
    scale: float
    digits: int


MEASURES = {
    "accuracy": Measure("accuracy %", 100, 1),
    "nll": Measure("NLL", 1, 3),
    "brier": Measure("Brier", 1, 3),
    "ece": Measure("ECE %", 100, 1),
    "adaptive_ece": Measure("adaptive ECE %", 100, 1),
    "classwise_ece": Measure("class-wise ECE %", 100, 2),
    "aurc": Measure("AURC x1000", 1000, 1),
    "excess_aurc": Measure("excess AURC x1000", 1000, 1),
}

DATA = DataConfig(name="digits", batch_size=50, validation=0.4, per_class=15)
RUN = RunConfig(model=ModelConfig(width=256), epochs=200, points=2, learning_rate=0.05, seeds_by="map")


@dataclasses.dataclass(frozen=True)
class CalibrationConfig:
    """The study.

    Attributes:
      methods: which of them; cross-entropy is always among them.
      seeds: how many; each has its own split, initialisation and order of examples.
      first_seed: the first of them.
      data: the data set; temperature and norm are chosen on its validation part.
      run: the training.
      num_bins: of the calibration errors and the diagrams.
      out: the folder of results.
      force: replace the results that the folder holds.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    seeds: int = 10
    first_seed: int = 0
    data: DataConfig = DATA
    run: RunConfig = RUN
    num_bins: int = 15
    out: Path = Path("runs/calibration")
    force: bool = False

    def __post_init__(self) -> None:
        """Refuses unknown names and impossible numbers."""
        common.check("CalibrationConfig", "methods", self.methods, METHODS)
        for field in ("seeds", "num_bins"):
            if getattr(self, field) < 1:
                raise ValueError(f"CalibrationConfig: {field} must be at least 1, got {getattr(self, field)}")


def study(config: CalibrationConfig, *, quiet: bool = False) -> str:
    """Trains and judges every method, and writes the folder of results.

    Args:
      config: the study.
      quiet: no progress bar.

    Returns:
      The tables as text, and where the results lie.

    Raises:
      ValueError: if the folder holds something already, or a recipe is unknown.
    """
    common.claim(config.out, config.force)
    task, sizes = make_judged_task(config)
    judge_seeds = jax.jit(jax.vmap(lambda *arrays: judge(*arrays, sizes, task.num_classes, config.num_bins)))
    judged: dict[str, Judged] = {}
    names = tuple(dict.fromkeys((BASELINE, *config.methods)))
    for name in tqdm(names, disable=quiet or not sys.stderr.isatty(), unit="method"):
        recipe, hyperparameters = METHODS[name]
        kept = record(recipe, task, **hyperparameters)
        judged[name] = jax.device_get(judge_seeds(kept.logits, kept.features, task.data.eval_labels))
    return common.publish(
        config.out,
        config,
        {"methods": {name: _short(values) for name, values in judged.items()}},
        tables(judged),
        figures(judged, config.num_bins),
        study="calibration",
        text=_text(config, sizes),
    )


def make_judged_task(config: CalibrationConfig) -> tuple[Task, Sizes]:
    """The task whose models see, after training, the held-out, the test and the training images."""
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    task = make_task(config.data, config.run, seeds, "test")
    held_out, test = make_task(config.data, config.run, seeds, "validation").data, task.data
    images = held_out.eval_images, test.eval_images, test.images
    labels = held_out.eval_labels, test.eval_labels, test.clean
    joined = test._replace(eval_images=np.concatenate(images, 1), eval_labels=np.concatenate(labels, 1))
    return dataclasses.replace(task, data=joined), Sizes(*(x.shape[1] for x in labels))


def tables(judged: Mapping[str, Judged]) -> dict[str, common.Table]:
    """Probabilities, rankings, features, each with its gain over cross-entropy paired over seeds."""
    base = judged[BASELINE]

    def value(name: str, variant: str, measure: str) -> common.Statistic:
        baseline = None if name == BASELINE else base.measures[variant][measure]
        return common.statistic(judged[name].measures[variant][measure], baseline)

    def line(name: str, variant: str, measures: Sequence[str], gain: bool) -> list[str]:
        shown = [common.shown(value(name, variant, m), *MEASURES[m][1:], gain=gain) for m in measures]
        return [name, VARIANTS[variant], *shown]

    honest = ("accuracy", "nll", "brier", "ece", "adaptive_ece", "classwise_ece")
    ranking = ("aurc", "excess_aurc")
    two, headings = ("plain", "scaled"), lambda names: ["method", "at test", *(MEASURES[m].heading for m in names)]
    others = [name for name in judged if name != BASELINE]
    fitted = lambda name, variant: {
        "plain": "",
        "scaled": f"T = {np.mean(judged[name].temperature):.2f}",
        "normalised": f"p = {np.median(judged[name].p):.0f}",
    }[variant]

    def helped(name: str, variant: str) -> str:
        """By how much the AURC falls short of that of the same models as trained."""
        if variant == "plain":
            return ""
        own = judged[name].measures
        change = common.statistic(own[variant]["aurc"], own["plain"]["aurc"])
        return f"{common.shown(change, 1000, 1, gain=True)} (lower in {int(np.sum(own[variant]['aurc'] < own['plain']['aurc']))})"

    rankings = [
        [*line(name, variant, ranking, False), helped(name, variant), fitted(name, variant)]
        for name in judged
        for variant in VARIANTS
    ]
    variation = [(name, *(_variation(judged[name], base, part) for part in ("train", "test"))) for name in judged]
    made = {
        "Probabilities on test images, ± standard error over seeds": common.Table(
            headings(honest), [line(name, variant, honest, False) for name in judged for variant in two]
        ),
        "Ranking of test images by confidence; change of AURC against the same models as trained": common.Table(
            [*headings(ranking), "change (in seeds)", "fitted"], rankings
        ),
        "Variation of features within classes over that between classes, and the difference to cross-entropy": common.Table(
            ("method", "training images", "test images"), variation
        ),
    }
    claimed = claims(judged)
    if claimed:
        made["Claims, each tried as a paired difference by the t-test at 5 %"] = common.Table(
            ("claim", "measure", "difference", "here"), claimed
        )
    if others:
        made["Gains over cross-entropy treated alike, paired over seeds; negative is better but for accuracy"] = common.Table(
            headings(MEASURES), [line(name, variant, tuple(MEASURES), True) for name in others for variant in two]
        )
    return made


def claims(judged: Mapping[str, Judged]) -> list[tuple[str, ...]]:
    """What publications say of the methods, where both sides of a comparison were run: claim, measure, difference, verdict."""
    ls, ms, ce = "label smoothing", "MaxSup", BASELINE
    of = lambda measure, variant="plain": lambda values: values.measures[variant][measure]
    spread = lambda values: values.variation["train"]
    # Claim, what is measured, of which method, against which, and whether the claim says higher or lower.
    stated = (
        ("label smoothing calibrates", "ECE %, as trained", (ls, of("ece")), (ce, of("ece")), -1, 100, 1),
        ("label smoothing calibrates", "ECE %, temperature", (ls, of("ece", "scaled")), (ce, of("ece", "scaled")), -1, 100, 1),
        ("label smoothing ranks worse", "AURC x1000", (ls, of("aurc")), (ce, of("aurc")), 1, 1000, 1),
        ("its ranking is mended by the p-norm", "AURC x1000", (ls, of("aurc", "normalised")), (ls, of("aurc")), -1, 1000, 1),
        ("that of plain models is hurt by it", "AURC x1000", (ce, of("aurc", "normalised")), (ce, of("aurc")), 1, 1000, 1),
        ("label smoothing collapses classes", "variation, training", (ls, spread), (ce, spread), -1, 1, 3),
        ("MaxSup keeps more variation", "variation, training", (ms, spread), (ls, spread), 1, 1, 3),
        ("MaxSup ranks better", "AURC x1000", (ms, of("aurc")), (ls, of("aurc")), -1, 1000, 1),
        ("the penalty lowers the ECE", "ECE %", ("confidence penalty", of("ece")), (ce, of("ece")), -1, 100, 1),
        ("focal loss calibrates", "ECE %", ("focal", of("ece")), (ce, of("ece")), -1, 100, 1),
        ("PS-KD calibrates", "ECE %", ("PS-KD", of("ece")), (ce, of("ece")), -1, 100, 1),
        ("PS-KD ranks better", "AURC x1000", ("PS-KD", of("aurc")), (ce, of("aurc")), -1, 1000, 1),
    )
    rows = []
    for text, measure, (name, mine), (rival, theirs), sign, scale, digits in stated:
        if {name, rival} <= set(judged):
            value = common.statistic(mine(judged[name]), theirs(judged[rival]))
            against = f"{name} against {rival}" if name != rival else name
            rows.append(
                (f"{text} ({against})", measure, common.shown(value, scale, digits, gain=True), common.verdict(value, sign))
            )
    return rows


def _variation(judged: Judged, base: Judged, part: str) -> str:
    value = common.statistic(judged.variation[part], base.variation[part])
    gain = "" if judged is base else f" ({common.shown(value, 1, 3, gain=True)})"
    return common.shown(value, 1, 3) + gain


def figures(judged: Mapping[str, Judged], num_bins: int) -> dict[str, plt.Figure]:
    """Reliability diagrams before and after temperature scaling, and risk-coverage curves."""
    diagrams, panels = plt.subplots(
        2, len(judged), figsize=(1.75 * len(judged), 4.4), layout="constrained", squeeze=False, sharex=True, sharey=True
    )
    for column, (name, values) in zip(panels.T, judged.items(), strict=True):
        for panel, variant in zip(column, ("plain", "scaled"), strict=True):
            confidences = np.ravel(values.confidences[variant])
            plots.reliability_diagram(panel, confidences, np.ravel(values.correct), num_bins=num_bins, title=name)
            panel.set(xticks=(0, 0.5, 1), yticks=(0, 0.5, 1))
            panel.tick_params(labelsize=7)
    for panel, variant in zip(panels[:, 0], ("plain", "scaled"), strict=True):
        panel.set_ylabel(f"accuracy, {VARIANTS[variant]}", fontsize=8)
    diagrams.supxlabel("confidence; dark bars: share of the images; those of all seeds together", fontsize=8)

    coverage, panels = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained", sharey=True)
    for panel, variant, title in zip(panels, ("plain", "normalised"), ("by softmax", "by normalised logit, best p"), strict=True):
        for i, (name, values) in enumerate(judged.items()):
            style = {"color": "#222222" if name == BASELINE else plt.get_cmap("tab10")(i), "linewidth": 1.3}
            plots.risk_coverage_curve(panel, values.scores[variant], values.correct, label=name, **style)
        panel.set_title(title, fontsize=9)
    panels[1].set_ylabel("")
    panels[0].legend(fontsize=8, frameon=False)
    return {"reliability": diagrams, "risk_coverage": coverage}


def _short(values: Judged) -> dict[str, Any]:
    """What JSON keeps: the numbers of every seed."""
    kept = {variant: {name: common.rounded(x) for name, x in found.items()} for variant, found in values.measures.items()}
    variation = {part: common.rounded(x) for part, x in values.variation.items()}
    return {"measures": kept, "temperature": common.rounded(values.temperature), "p": values.p, "variation": variation}


def _text(config: CalibrationConfig, sizes: Sizes) -> str:
    run = config.run
    return f"""Which losses make probabilities honest, and what is left of them after temperature scaling?

Digits, {sizes.train} training images with true labels, an MLP of two hidden layers of {run.model.width} units, {run.epochs}
epochs of SGD with momentum 0.9 at rate {run.learning_rate}, {config.seeds} seeds. Judged on {sizes.test} test images as trained,
with the logits divided by the temperature that fits {sizes.held_out} other images best, and ranked by the logit over its p-norm
with the p of least AURC on those: more held-out labels than most would spend beside {sizes.train} for training. Hyperparameters
are the papers'. Logit norm is trained on normalised logits and judged on the raw ones. The variation of features is the trace of
their covariance within classes over that of the class means."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return common.command_line(study, CalibrationConfig, "python -m experiments.studies.calibration", arguments)


if __name__ == "__main__":
    sys.exit(main())
