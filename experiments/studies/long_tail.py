"""Does sharpness-aware training of the rare classes alone help them? Digits with exponential class sizes, ten methods.

``python -m experiments.studies.long_tail`` writes tables, pictures and ``results.json`` into ``runs/long_tail``.
"""

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from functools import partial
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
from experiments.recipes import RecipeFn, Setting, sgd
from experiments.studies import common

TAIL_THRESHOLD = 20
"""ImbSAM perturbs for classes with fewer examples, as in the paper's experiments."""

Counts = tuple[int, ...]

# Recipes that know how many training examples each class has. Without logit adjustment (tau = 0) the loss is cross-entropy.


def logit_adjustment(s: Setting, counts: Counts, tau: float = 0.0) -> rj.Recipe:
    """Cross-entropy with a larger margin for rare classes."""
    return rj.Recipe(loss=_adjusted(counts, tau), optimizer=sgd(s))


def focal(s: Setting, counts: Counts, gamma: float) -> rj.Recipe:
    """Cross-entropy that counts sure answers less, whatever their class."""
    return rj.Recipe(loss=partial(rj.losses.focal, gamma=gamma), optimizer=sgd(s))


def class_balanced(s: Setting, counts: Counts, beta: float) -> rj.Recipe:
    """Cross-entropy weighted by the inverse effective number of examples, ``(1 - beta^n) / (1 - beta)``, of the class.

    After Cui et al., Class-Balanced Loss Based on Effective Number of Samples, 2019, arXiv 1901.05555: weights of mean 1 over
    classes.
    """
    weights = (1 - beta) / (1 - np.power(beta, counts))
    weights = (weights / weights.mean()).astype(np.float32)

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        return jax.nn.one_hot(labels, len(counts)) @ weights * rj.losses.label_smoothing(logits, labels, alpha=0.0)

    return rj.Recipe(loss=loss, optimizer=sgd(s))


def sam(s: Setting, counts: Counts, rho: float, tau: float = 0.0) -> rj.Recipe:
    """The gradient of all classes at the worst nearby weights."""
    return rj.Recipe(loss=_adjusted(counts, tau), objectives=(partial(rj.objectives.sam, rho=rho),), optimizer=sgd(s))


def gsam(s: Setting, counts: Counts, rho: float) -> rj.Recipe:
    """SAM that also closes the gap between the perturbed and the plain loss."""
    return rj.Recipe(objectives=(partial(rj.objectives.gsam, rho=rho),), optimizer=sgd(s))


def imbsam(s: Setting, counts: Counts, rho: float, tail_weight: float = 1.0, tau: float = 0.0) -> rj.Recipe:
    """The gradient of the rare classes at their worst nearby weights, and that of the others at the weights."""
    objective = partial(
        rj.objectives.imbsam,
        class_counts=np.array(counts),
        tail_threshold=TAIL_THRESHOLD,
        rho=rho,
        tail_weight=tail_weight,
        labels_arg=lambda batch, key: batch["label"],
    )
    return rj.Recipe(loss=_adjusted(counts, tau), objectives=(objective,), optimizer=sgd(s))


def _adjusted(counts: Counts, tau: float) -> Any:
    return partial(rj.losses.logit_adjusted, class_counts=np.array(counts), tau=tau)


class Method(NamedTuple):
    """A recipe that also takes the class counts, and its hyperparameters."""

    recipe: RecipeFn
    hyperparameters: Mapping[str, Any]


METHODS: dict[str, Method] = {
    "cross-entropy": Method(logit_adjustment, {}),
    "focal": Method(focal, {"gamma": 1.0}),
    "class-balanced": Method(class_balanced, {"beta": 0.999}),
    "logit adjustment": Method(logit_adjustment, {"tau": 1.5}),
    "SAM": Method(sam, {"rho": 0.3}),
    "GSAM": Method(gsam, {"rho": 0.2}),
    "ImbSAM": Method(imbsam, {"rho": 0.4}),
    "ImbSAM, doubled tail": Method(imbsam, {"rho": 0.4, "tail_weight": 2.0}),
    "SAM + adjustment": Method(sam, {"rho": 0.2, "tau": 1.5}),
    "ImbSAM + adjustment": Method(imbsam, {"rho": 0.1, "tau": 1.5}),
}
"""The best points of `experiments.studies.long_tail_tuning`: five for each method, on validation images and other seeds.

The tail's weight of 2 is that of the authors' code; both sums with logit adjustment take the tau that is best alone.
"""

BASELINE = "cross-entropy"
EACH = 3
"""How many classes are the head, how many the tail, and how many the worst."""
MEASURES = {
    "accuracy": "all images",
    "head": f"head, {EACH} classes",
    "middle": "middle",
    "tail": f"tail, {EACH} classes",
    "worst": f"worst {EACH} classes",
}
"""What is measured of each seed, and its heading."""

MARGIN = 0.01
"""How much accuracy the head may lose before it is said to suffer."""


class Claim(NamedTuple):
    """That a measure is higher (or lower, by ``sign``) than a rival's; ``allowed`` is added to it first."""

    text: str
    measure: str
    method: str
    rival: str
    sign: int = 1
    allowed: float = 0.0


CLAIMS: tuple[Claim, ...] = (
    Claim("ImbSAM raises the recall of the worst classes over SAM", "worst", "ImbSAM", "SAM"),
    Claim("ImbSAM raises it over cross-entropy", "worst", "ImbSAM", BASELINE),
    Claim("ImbSAM costs head accuracy", "head", "ImbSAM", "SAM", sign=-1),
    Claim("ImbSAM costs head accuracy", "head", "ImbSAM", BASELINE, sign=-1),
    Claim("the head does not suffer: it loses less than a point", "head", "ImbSAM", "SAM", allowed=MARGIN),
    Claim("the head does not suffer: it loses less than a point", "head", "ImbSAM", BASELINE, allowed=MARGIN),
    Claim("ImbSAM raises tail accuracy over SAM", "tail", "ImbSAM", "SAM"),
    Claim("ImbSAM raises accuracy over SAM", "accuracy", "ImbSAM", "SAM"),
    Claim("SAM costs tail accuracy", "tail", "SAM", BASELINE, sign=-1),
    Claim("ImbSAM helps them more than weights of classes", "worst", "ImbSAM", "class-balanced"),
    Claim("a doubled tail, as in the authors' code, helps the worst classes", "worst", "ImbSAM, doubled tail", "ImbSAM"),
    Claim("logit adjustment helps the worst classes", "worst", "logit adjustment", BASELINE),
    Claim("ImbSAM helps them more than logit adjustment", "worst", "ImbSAM", "logit adjustment"),
    Claim("ImbSAM adds to logit adjustment", "worst", "ImbSAM + adjustment", "logit adjustment"),
    Claim("ImbSAM adds more to it than SAM", "worst", "ImbSAM + adjustment", "SAM + adjustment"),
)
"""What the publications say, or their readers would like to know."""

DATA = DataConfig(name="digits", batch_size=32, validation=0.25, per_class=100, imbalance=50.0)
RUN = RunConfig(epochs=100, points=20, seeds_by="map")


@dataclasses.dataclass(frozen=True)
class LongTailConfig:
    """The study.

    Attributes:
      methods: which of them; cross-entropy is always among them.
      seeds: how many; each has its own split, subset, initialisation and order of examples.
      first_seed: the first of them.
      judged_on: ``test``, or ``validation`` for choosing hyperparameters.
      data: the data set; its ``imbalance`` and ``per_class`` give the class sizes.
      run: the training.
      out: the folder of results.
      force: replace the results that the folder holds.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    seeds: int = 20
    first_seed: int = 0
    judged_on: str = "test"
    data: DataConfig = DATA
    run: RunConfig = RUN
    out: Path = Path("runs/long_tail")
    force: bool = False

    def __post_init__(self) -> None:
        """Refuses unknown names and impossible numbers."""
        common.check("LongTailConfig", "methods", self.methods, METHODS)
        common.check("LongTailConfig", "judged_on", (self.judged_on,), ("test", "validation"))
        if self.seeds < 1:
            raise ValueError(f"LongTailConfig: seeds must be at least 1, got {self.seeds}")
        if not self.data.imbalance > 1:
            raise ValueError(f"LongTailConfig: data.imbalance must be above 1, got {self.data.imbalance}")


def study(config: LongTailConfig, *, quiet: bool = False) -> str:
    """Trains every method, and writes the folder of results.

    Args:
      config: the study.
      quiet: no progress bar.

    Returns:
      The tables as text, and where the results lie.

    Raises:
      ValueError: if the folder holds something already, or the classes have too few examples.
    """
    common.claim(config.out, config.force)
    task = make_task(config.data, config.run, range(config.first_seed, config.first_seed + config.seeds), config.judged_on)
    measured: dict[str, dict[str, Any]] = {}
    names = tuple(dict.fromkeys((BASELINE, *config.methods)))
    for name in tqdm(names, disable=quiet or not sys.stderr.isatty(), unit="method"):
        measured[name] = measure(train(METHODS[name], task), task)
    counts, epochs = class_counts(task), _epochs(config.run)
    return common.publish(
        config.out,
        config,
        {"class_counts": counts, "epochs": epochs, "methods": {name: _short(values) for name, values in measured.items()}},
        tables(measured),
        figures(measured, counts, epochs),
        study="long_tail",
        text=_text(config, counts, task.data.eval_labels.shape[1]),
    )


def class_counts(task: Task) -> Counts:
    """How many training examples each class has, the same for every seed."""
    return tuple(np.bincount(task.data.labels[0], minlength=task.num_classes).tolist())


def train(method: Method, task: Task) -> Record:
    """Every seed of a method."""
    return record(method.recipe, task, counts=class_counts(task), **method.hyperparameters)


def measure(kept: Record, task: Task) -> dict[str, Any]:
    """What a method reaches in each seed.

    Args:
      kept: of the task.
      task: the data.

    Returns:
      ``accuracy``, the mean recalls of the ``head``, ``middle`` and ``tail`` classes (the most frequent, the others, the rarest)
      and of the ``worst``, those of lowest recall in that seed, ``[S]`` each; ``recall`` of every class ``[S, K]``; ``curve``,
      the ``tail`` at every point ``[S, points]``.
    """
    labels, order = task.data.eval_labels, np.argsort([-n for n in class_counts(task)], kind="stable")
    of_class = labels[:, :, None] == np.arange(task.num_classes)  # [S, M, K]
    hits = (np.asarray(kept.judged) == labels[:, None]).astype(np.float64)
    recall = np.einsum("spm,smk->spk", hits, of_class) / of_class.sum(1)[:, None]
    final = recall[:, -1]
    return {
        "accuracy": hits[:, -1].mean(1),
        "head": final[:, order[:EACH]].mean(1),
        "middle": final[:, order[EACH:-EACH]].mean(1),
        "tail": final[:, order[-EACH:]].mean(1),
        "worst": np.sort(final, axis=1)[:, :EACH].mean(1),
        "recall": final,
        "curve": recall[:, :, order[-EACH:]].mean(2),
    }


def tables(measured: Mapping[str, Mapping[str, Any]]) -> dict[str, common.Table]:
    """Accuracies with their gains over cross-entropy, and what becomes of the claims."""

    def cell(name: str, part: str) -> str:
        value = common.statistic(measured[name][part], measured[BASELINE][part])
        gain = "" if name == BASELINE else f" ({common.shown(value, 100, gain=True)})"
        return common.shown(value, 100) + gain

    caption = "Accuracy in percent, of all images and as the mean recall of classes, and the gain over cross-entropy paired over"
    made = {
        f"{caption} seeds, ± standard error": common.Table(
            ("method", *MEASURES.values()), [(name, *(cell(name, part) for part in MEASURES)) for name in measured]
        )
    }
    claimed = []
    for claim in CLAIMS:
        if {claim.method, claim.rival} <= set(measured):
            mine, theirs = measured[claim.method][claim.measure], measured[claim.rival][claim.measure]
            value = common.statistic(mine, theirs)
            said = common.verdict(common.statistic(mine + claim.allowed, theirs), claim.sign)
            above = f"{value.above} of {len(mine)}"
            sides = f"{claim.method} against {claim.rival}"
            claimed.append((claim.text, sides, MEASURES[claim.measure], common.shown(value, 100, gain=True), above, said))
    if claimed:
        made["Claims, each tried as a paired difference by the t-test at 5 %"] = common.Table(
            ("claim", "between", "measure", "difference", "seeds above", "here"), claimed
        )
    return made


def figures(measured: Mapping[str, Mapping[str, Any]], counts: Counts, epochs: Sequence[int]) -> dict[str, plt.Figure]:
    """The recall of every class over its number of examples, and the tail's over epochs."""
    made, size, classes = {}, (8.6, 4.2), np.arange(len(counts))
    figure, panel = plt.subplots(figsize=size, layout="constrained")
    sizes = panel.twinx()
    sizes.bar(classes, counts, color="#e4e4e4", width=0.8)
    sizes.set(yscale="log", ylim=(0.8, 40 * max(counts)))
    sizes.axis("off")  # the numbers stand below the bars
    panel.set_zorder(sizes.get_zorder() + 1)
    panel.patch.set_visible(False)
    for i, (name, values) in enumerate(measured.items()):
        mean, error = (100 * np.array([getattr(common.statistic(x), f) for x in values["recall"].T]) for f in ("mean", "error"))
        place = classes + 0.5 * (i / max(len(measured) - 1, 1) - 0.5)  # side by side: their errors overlap
        panel.errorbar(place, mean, error, label=name, marker="o", markersize=3, linewidth=1, elinewidth=0.8, **_style(name))
    labels = [f"{k}\n{n}" for k, n in enumerate(counts)]
    panel.set(xlabel="class, and its training examples", ylabel="recall (%)", xticks=classes, xticklabels=labels, ylim=(0, 102))
    made["recall"] = figure
    figure, later = plt.subplots(figsize=size, layout="constrained")
    for name, values in measured.items():
        plots.seed_curve(later, epochs, 100 * values["curve"], label=name, **_style(name))
    later.set(xlabel="epoch", ylabel=f"accuracy of the {EACH} rarest classes (%)")
    made["tail"] = figure
    for axes in (panel, later):
        axes.figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", fontsize=8, frameon=False)
        plots.bare(axes)
    return made


def _style(name: str) -> dict[str, Any]:
    """A colour for each method; dotted, that of the first, for a sum of two."""
    if name == BASELINE:
        return {"color": "#222222", "linestyle": "--"}
    first, *more = name.split(" + ")
    return {"color": plt.get_cmap("tab10")(list(METHODS).index(first) - 1), "linestyle": ":" if more else "-"}


def _epochs(run: RunConfig) -> list[int]:
    every = run.epochs // run.points
    return list(range(every, run.epochs + 1, every))


def _short(values: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON keeps of a method: every seed's final numbers, and the curve's mean over seeds."""
    return {
        **{part: common.rounded(values[part]) for part in (*MEASURES, "recall")},
        "curve": common.rounded(values["curve"].mean(0)),
    }


def _text(config: LongTailConfig, counts: Counts, judged: int) -> str:
    run = config.run
    sizes = ", ".join(map(str, counts))
    return f"""Does sharpness-aware training of the rare classes alone help them?

Digits, {sum(counts)} training images: {sizes} of the classes 0 to {len(counts) - 1}, the same in every seed. An MLP of
{run.model.depth} hidden layers of {run.model.width} units, {run.epochs} epochs of SGD with momentum 0.9 at rate
{run.learning_rate}, batches of {config.data.batch_size}, {config.seeds} seeds, {judged} {config.judged_on} images of about equal
classes. Head, middle and tail are the {EACH} most frequent classes, the others and the {EACH} rarest; the worst are the {EACH} of
lowest recall in each seed. ImbSAM perturbs for classes with fewer than {TAIL_THRESHOLD} images; it counts them once, as in the
paper, or doubled, as in the authors' code. The strength of every method is the best of 5 points by accuracy on balanced
validation images and other seeds (`python -m experiments.studies.long_tail_tuning`): more labels than the rare classes have for
training. With logit adjustment, SAM and ImbSAM take the tau that is best alone. That the head loses less than a point is tried
with {100 * MARGIN:g} point added to its accuracy."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return common.command_line(study, LongTailConfig, "python -m experiments.studies.long_tail", arguments)


if __name__ == "__main__":
    sys.exit(main())
