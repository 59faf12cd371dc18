"""What keeps a head from forgetting earlier classes? Digits in five tasks of two classes, ten ways to train one after another.

``python -m experiments.studies.continual`` writes tables, pictures and ``results.json`` into ``runs/continual``. After the paper
of AQC and neural consolidation, 2024, arXiv 2405.16498, with digits in place of its data.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib.pyplot as plt
import numpy as np

from experiments import plots
from experiments.studies import common
from experiments.studies.continual_training import (
    CLASSES,
    TASKS,
    Data,
    Run,
    Solver,
    by_task,
    load,
    memories,
    numbers,
    recalls,
    squared_error,
    train,
)

HEADS: dict[str, tuple[int, ...]] = {"linear": (), "MLP": (16,)}
"""Widths of the hidden layers: softmax regression, and a small network."""


class Method(NamedTuple):
    """A technique.

    Attributes:
      memory: its name among `memories`.
      values: for each head that it is tried with.
      joint: whether it sees all tasks so far.
      psd: whether AQC drops the negative eigenvalues of a hidden layer's Hessians.
    """

    memory: str
    values: Mapping[str, Mapping[str, float]]
    joint: bool = False
    psd: bool = True


METHODS: dict[str, Method] = {
    "fine-tuning": Method("none", {"linear": {"precision": 1.0, "strength": 0.0}, "MLP": {"precision": 1.0, "strength": 0.0}}),
    "fine-tuning, lower rate": Method(
        "none",
        {
            "linear": {"precision": 1.0, "strength": 0.0, "rate": 0.1},
            "MLP": {"precision": 1.0, "strength": 0.0, "rate": 0.03162277660168379},
        },
    ),
    "L2-SP": Method("l2_sp", {"linear": {"precision": 1.0, "strength": 30.0}, "MLP": {"precision": 1.0, "strength": 100.0}}),
    "SI": Method(
        "si", {"linear": {"precision": 1.0, "strength": 3.0, "xi": 1.0}, "MLP": {"precision": 1.0, "strength": 3.0, "xi": 0.1}}
    ),
    "EWC, summed": Method(
        "ewc_sum", {"linear": {"precision": 1.0, "strength": 5.0}, "MLP": {"precision": 1.0, "strength": 20.0}}
    ),
    "EWC, mean": Method(
        "ewc_mean", {"linear": {"precision": 0.01, "strength": 500.0}, "MLP": {"precision": 0.01, "strength": 2000.0}}
    ),
    "EWC, mean, precision 1": Method(
        "ewc_mean", {"linear": {"precision": 1.0, "strength": 30.0}, "MLP": {"precision": 1.0, "strength": 100.0}}
    ),
    "neural consolidation": Method("neural", {"linear": {"precision": 1.0, "strength": 1.0, "radius": 30.0}}),
    "AQC": Method("aqc", {"linear": {"precision": 1.0, "strength": 5.0}, "MLP": {"precision": 1.0, "strength": 10.0}}),
    "AQC, unclipped": Method("aqc", {"MLP": {"precision": 1.0, "strength": 1.0}}, psd=False),
    "joint training": Method(
        "none", {"linear": {"precision": 1.0, "strength": 1.0}, "MLP": {"precision": 1.0, "strength": 1.0}}, joint=True
    ),
}
"""The best points of `experiments.studies.continual_tuning`: twelve for each, on validation images and other seeds."""

REFERENCE = "joint training"
MARGIN = 0.02
"""How much accuracy a method may lose and still be called comparable."""
MILD, STRONG = 10.0, 100.0
"""Strengths at which AQC did well, and was seen to fail, under Adam."""
MEASURES = {"accuracy": "final accuracy", "forgetting": "forgetting", "new": "new task"}
"""What is measured of each seed, and its heading."""


class Claim(NamedTuple):
    """That a measure is higher (or lower, by ``sign``) than a rival's; ``allowed`` is added to it first."""

    text: str
    method: str
    rival: str
    measure: str = "accuracy"
    sign: int = 1
    allowed: float = 0.0


CLAIMS: tuple[Claim, ...] = (
    Claim("AQC beats fine-tuning", "AQC", "fine-tuning"),
    Claim("AQC beats fine-tuning that stops early", "AQC", "fine-tuning, lower rate"),
    Claim("AQC beats weight decay towards the last task's weights", "AQC", "L2-SP"),
    Claim("AQC beats SI", "AQC", "SI"),
    Claim("AQC beats EWC with summed Fisher", "AQC", "EWC, summed"),
    Claim("AQC beats EWC with mean Fisher", "AQC", "EWC, mean"),
    Claim("AQC beats EWC as published beside it", "AQC", "EWC, mean, precision 1"),
    Claim("AQC beats neural consolidation", "AQC", "neural consolidation"),
    Claim(f"AQC is comparable to joint training: less than {100 * MARGIN:g} points below", "AQC", REFERENCE, allowed=MARGIN),
    Claim("AQC needs Hessians without negative eigenvalues", "AQC", "AQC, unclipped"),
    Claim("AQC stays below joint training", "AQC", REFERENCE, sign=-1),
    Claim("AQC forgets less than EWC with summed Fisher", "AQC", "EWC, summed", "forgetting", -1),
    Claim("EWC with summed Fisher beats fine-tuning", "EWC, summed", "fine-tuning"),
    Claim("EWC with summed Fisher beats L2-SP", "EWC, summed", "L2-SP"),
    Claim("EWC as published beside AQC beats L2-SP", "EWC, mean, precision 1", "L2-SP"),
    Claim("neural consolidation beats fine-tuning", "neural consolidation", "fine-tuning"),
)
"""What the publication says, or its readers would like to know."""


@dataclasses.dataclass(frozen=True)
class ContinualConfig:
    """The study.

    Attributes:
      methods: which of them.
      heads: which of them.
      seeds: how many; each has its own training images, order of classes, initialisation and batches.
      first_seed: the first.
      judged_on: ``test``, or ``validation``.
      per_class: training images of each class.
      features: principal components.
      steps: of Adam for each task.
      learning_rate: its peak under a one-cycle schedule.
      batch_size: its images, drawn with replacement.
      neural_steps: with which neural consolidation learns a task.
      neural_width: of the two hidden layers of its network.
      strengths: of AQC, with each solver.
      newton_steps: of a task.
      lbfgs_steps: of a task.
      out: the folder of results.
      force: replace the results that the folder holds.
    """

    methods: tuple[str, ...] = tuple(METHODS)
    heads: tuple[str, ...] = tuple(HEADS)
    seeds: int = 12
    first_seed: int = 0
    judged_on: str = "test"
    per_class: int = 96
    features: int = 16
    steps: int = 500
    learning_rate: float = 0.03
    batch_size: int = 50
    neural_steps: int = 500
    neural_width: int = 128
    strengths: tuple[float, ...] = (0.1, 1.0, 10.0, 100.0, 1000.0)
    newton_steps: int = 20
    lbfgs_steps: int = 100
    out: Path = Path("runs/continual")
    force: bool = False

    def __post_init__(self) -> None:
        """Refuses unknown names and impossible numbers."""
        common.check("ContinualConfig", "methods", self.methods, METHODS)
        common.check("ContinualConfig", "heads", self.heads, HEADS)
        common.check("ContinualConfig", "judged_on", (self.judged_on,), ("test", "validation"))
        for field in ("seeds", "features", "steps", "batch_size", "neural_steps", "neural_width", "newton_steps", "lbfgs_steps"):
            if getattr(self, field) < 1:
                raise ValueError(f"ContinualConfig: {field} must be at least 1, got {getattr(self, field)}")
        if not self.strengths or min(self.strengths) <= 0:
            raise ValueError(f"ContinualConfig: strengths must be one or more above 0, got {self.strengths}")


def study(config: ContinualConfig, *, quiet: bool = False) -> str:
    """Trains every method with every head, and writes the folder of results.

    Args:
      config: the study.
      quiet: no lines about what was trained.

    Returns:
      The tables as text, and where the results lie.

    Raises:
      ValueError: if the folder holds something already, or a class has too few examples.
    """
    common.claim(config.out, config.force)
    say = (lambda text: None) if quiet else functools.partial(print, flush=True)
    begun = time.perf_counter()
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    data = load(config, seeds, config.judged_on)
    measured: dict[str, dict[str, Any]] = {head: {} for head in config.heads}
    for head in config.heads:
        for name in [name for name in config.methods if head in METHODS[name].values]:
            result = run(config, head, name, data, seeds, [METHODS[name].values[head]])
            measured[head][name] = measure(result.predicted[:, 0], data.judged_labels)
            say(f"{head}, {name}: {time.perf_counter() - begun:.0f} s so far")
    exact = exactness(config, data, seeds)
    solved = solvers(config, data, seeds)
    say(f"exactness and solvers: {time.perf_counter() - begun:.0f} s so far")
    kept = {head: {name: _short(values) for name, values in methods.items()} for head, methods in measured.items()}
    results = {"seconds": time.perf_counter() - begun, "heads": kept, "exactness": exact}
    results["solvers"] = {name: {part: common.rounded(x) for part, x in found.items()} for name, found in solved.items()}
    return common.publish(
        config.out,
        config,
        results,
        tables(config, measured, exact, solved),
        figures(config, measured, solved),
        study="continual",
        text=_text(config, data),
    )


def run(config: ContinualConfig, head: str, name: str, data: Data, seeds: Sequence[int], points: Sequence[Any]) -> Run:
    """Every seed of a method with a head at some points ``[S, P, ...]``."""
    method = METHODS[name]
    known = memories(psd=method.psd and bool(HEADS[head]), steps=config.neural_steps, hidden=(config.neural_width,) * 2)
    solver = Solver("adam", config.steps, config.learning_rate, config.batch_size)
    return train(known[method.memory], solver, _sizes(config, head), data, seeds, points, joint=method.joint)


def measure(predicted: Any, labels: Any) -> dict[str, Any]:
    """What a method reaches in each seed.

    Args:
      predicted: the class of every judged image after each task ``[S, T, M]``.
      labels: the true ones ``[S, M]``.

    Returns:
      ``accuracy``, the mean recall of all classes in the end; ``forgetting``, the mean over all tasks but the last of how much
      less of it is known in the end than when it was learnt; ``new``, the mean accuracy of a task when it was learnt, ``[S]``
      each; ``curve``, the mean recall of all classes so far after each task ``[S, T]``; ``tasks``, the accuracy of each task
      (last axis) after each task ``[S, T, T]``.
    """
    tasks = by_task(recalls(predicted, labels))
    learnt = np.diagonal(tasks, axis1=1, axis2=2)
    final = tasks[:, -1]
    curve = np.stack([tasks[:, t, : t + 1].mean(1) for t in range(TASKS)], axis=1)
    forgetting = (learnt - final)[:, :-1].mean(1)
    return {"accuracy": final.mean(1), "forgetting": forgetting, "new": learnt.mean(1), "curve": curve, "tasks": tasks}


EXACT = {
    "AQC, strength 1": ("aqc", 1.0),
    "diagonal of the Hessian (EWC), strength 1": ("diagonal", 1.0),
    "L2-SP, strength 1": ("l2_sp", 1.0),
    "fine-tuning": ("none", 0.0),
}


def exactness(config: ContinualConfig, data: Data, seeds: Sequence[int]) -> dict[str, dict[str, list[float]]]:
    """Linear regression on one-hot labels, every task's objective solved: against ridge regression on all tasks so far.

    Args:
      config: the study.
      data: of the seeds.
      seeds: of the study.

    Returns:
      By method, one a seed: ``distance``, the greatest over tasks of the distance of the weights to those of joint ridge
      regression over the norm of these; ``accuracy``, the mean recall of all classes in the end.
    """
    known = memories(squared_error)
    # One step solves a quadratic; the next ones take off what rounding left.
    solver, sizes = Solver("newton", 3), _sizes(config, "linear")
    solve = lambda memory, **more: train(known[memory], solver, sizes, data, seeds, loss=squared_error, **more)
    joint = solve("none", points=[{"strength": 1.0, "precision": 1.0}], joint=True)
    found = {"joint ridge regression": joint}
    for name, (memory, strength) in EXACT.items():
        found[name] = solve(memory, points=[{"strength": strength, "precision": 1.0}])
    norm = lambda x: np.linalg.norm(np.asarray(x, np.float64)[:, 0], axis=-1)
    return {
        name: {
            "distance": (norm(result.weights - joint.weights) / norm(joint.weights)).max(-1).tolist(),
            "accuracy": common.rounded(recalls(result.predicted[:, 0], data.judged_labels)[:, -1].mean(-1)),
        }
        for name, result in found.items()
    }


def solvers(config: ContinualConfig, data: Data, seeds: Sequence[int]) -> dict[str, dict[str, np.ndarray]]:
    """AQC with the linear head at several strengths, each task's objective minimised in several ways.

    Args:
      config: the study.
      data: of the seeds.
      seeds: of the study.

    Returns:
      By solver, for each seed and strength ``[S, P]``: the measures ``accuracy``, ``forgetting`` and ``new``; ``slope``, the
      norm of the last objective's gradient; ``distance``, that of the final weights to those of Newton's method over their norm.
    """
    adam = Solver("adam", config.steps, config.learning_rate, config.batch_size)
    ways = {
        f"Adam, {adam.steps} steps": adam,
        f"Adam, {4 * adam.steps} steps": adam._replace(steps=4 * adam.steps),
        "L-BFGS": Solver("lbfgs", config.lbfgs_steps),
        "Newton": Solver("newton", config.newton_steps),
    }
    points = [{"strength": strength, "precision": 1.0} for strength in config.strengths]
    runs = {name: train(memories()["aqc"], way, _sizes(config, "linear"), data, seeds, points) for name, way in ways.items()}
    exact = np.asarray(runs["Newton"].weights[:, :, -1], np.float64)
    found = {}
    for name, result in runs.items():
        measured = [measure(result.predicted[:, i], data.judged_labels) for i in range(len(points))]
        found[name] = {part: np.stack([values[part] for values in measured], axis=1) for part in MEASURES}
        found[name]["slope"] = np.asarray(result.slope[:, :, -1])
        apart = np.linalg.norm(result.weights[:, :, -1] - exact, axis=-1)
        found[name]["distance"] = apart / np.linalg.norm(exact, axis=-1)
    return found


def tables(
    config: ContinualConfig, measured: Mapping[str, Any], exact: Mapping[str, Any], solved: Mapping[str, Any]
) -> dict[str, common.Table]:
    """What each method reaches with each head, the claims, exactness on linear regression, and the solvers."""
    made: dict[str, common.Table] = {}
    for head, methods in measured.items():
        rows = []
        for name, values in methods.items():
            curve = [f"{100 * x:.1f}" for x in values["curve"].mean(0)[:-1]]
            cells = [common.shown(common.statistic(values[part]), 100) for part in MEASURES]
            rows.append((name, *curve, *cells, f"{_numbers(config, head, name):,}", _values(METHODS[name], head)))
        header = ("method", *(f"after {t}" for t in range(1, TASKS)), *MEASURES.values(), "numbers kept", "values")
        made[f"{head.capitalize() if head.islower() else head} head, percent, mean ± standard error over seeds"] = common.Table(
            header, rows
        )
    claimed = []
    for claim in CLAIMS:
        for head, methods in measured.items():
            if {claim.method, claim.rival} <= set(methods):
                mine, theirs = methods[claim.method][claim.measure], methods[claim.rival][claim.measure]
                value = common.statistic(mine, theirs)
                said = common.verdict(common.statistic(mine + claim.allowed, theirs), claim.sign)
                above = f"{value.above} of {len(mine)}"
                difference = common.shown(value, 100, gain=True)
                claimed.append((claim.text, head, MEASURES[claim.measure], difference, above, said))
    claimed += _fall(config, solved)
    if claimed:
        made["Claims, each tried as a paired difference by the t-test at 5 %"] = common.Table(
            ("claim", "head", "measure", "difference", "seeds above", "here"), claimed
        )
    rows = [
        (name, f"{np.mean(found['distance']):.1e}", common.shown(common.statistic(found["accuracy"]), 100))
        for name, found in exact.items()
    ]
    made["Exactness: linear regression, the weights' relative distance to joint ridge regression (greatest over tasks)"] = (
        common.Table(("method", "distance", "final accuracy"), rows)
    )
    rows = []
    for i, strength in enumerate(config.strengths):
        for name, found in solved.items():
            cells = [common.shown(common.statistic(found[part][:, i]), 100) for part in MEASURES]
            gain = "" if name == "Newton" else common.statistic(found["accuracy"][:, i], solved["Newton"]["accuracy"][:, i])
            paired = common.shown(gain, 100, gain=True) if gain else ""
            ends = [f"{np.mean(found[part][:, i]):.1e}" for part in ("slope", "distance")]
            rows.append((f"{strength:g}, {name}", *cells, paired, *ends))
    header = ("strength, solver", *MEASURES.values(), "against Newton", "gradient norm", "distance to Newton")
    made["Solvers of AQC's objectives, linear head, precision 1"] = common.Table(header, rows)
    return made


def _fall(config: ContinualConfig, solved: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The claims about AQC at a great strength, where it was tried."""
    if not solved or not {MILD, STRONG} <= set(config.strengths):
        return []
    mild, strong = (config.strengths.index(strength) for strength in (MILD, STRONG))
    adam, newton = (found["accuracy"] for found in (next(iter(solved.values())), solved["Newton"]))
    rows = []
    for text, rival, sign in (
        (f"AQC's fall at strength {STRONG:g} is Adam's: Newton's method beats it there", adam[:, strong], 1),
        (f"AQC's exact minima at strength {STRONG:g} are worse than at {MILD:g}", newton[:, mild], -1),
    ):
        value = common.statistic(newton[:, strong], rival)
        above, difference = f"{value.above} of {len(rival)}", common.shown(value, 100, gain=True)
        rows.append((text, "linear", MEASURES["accuracy"], difference, above, common.verdict(value, sign)))
    return rows


def figures(config: ContinualConfig, measured: Mapping[str, Any], solved: Mapping[str, Any]) -> dict[str, plt.Figure]:
    """Accuracy over tasks, the accuracy of each task after each, and AQC's accuracy over its strength by solver."""
    made = {}
    figure, panels = plt.subplots(
        1, len(measured), figsize=(3.9 * len(measured) + 2.4, 4.0), layout="constrained", sharey=True, squeeze=False
    )
    for panel, (head, methods) in zip(panels[0], measured.items(), strict=True):
        for name, values in methods.items():
            plots.seed_curve(panel, range(1, TASKS + 1), 100 * values["curve"], label=name, marker=".", **_style(name))
        panel.set(xlabel="tasks learnt", xticks=range(1, TASKS + 1), title=f"{head} head")
    panels[0, 0].set_ylabel("accuracy on the classes so far (%)")
    shown = [panel.get_legend_handles_labels() for panel in panels[0]]
    lines = {label: line for handles, labels in shown for line, label in zip(handles, labels, strict=True)}
    figure.legend(lines.values(), lines.keys(), loc="outside right upper", fontsize=8, frameon=False)
    made["accuracy"] = figure

    for head, methods in measured.items():
        names = [name for name in ("AQC", "EWC, summed", "fine-tuning") if name in methods]
        if names:
            figure, panels = plt.subplots(
                1, len(names), figsize=(3.2 * len(names) + 0.8, 3.4), layout="constrained", squeeze=False
            )
            for panel, name in zip(panels[0], names, strict=True):
                image = _heat(panel, 100 * methods[name]["tasks"].mean(0), name)
            panels[0, 0].set_ylabel("after task")
            figure.colorbar(image, ax=panels[0].tolist(), label="accuracy (%)")
            figure.suptitle(f"Accuracy of each task's classes among all ten, {head} head (%)", fontsize=10)
            made[f"tasks_{head.lower()}"] = figure

    figure, panel = plt.subplots(figsize=(6.4, 3.8), layout="constrained")
    for (name, found), (marker, size) in zip(solved.items(), (("o", 9), ("s", 6), ("^", 6), ("x", 6)), strict=True):
        plots.seed_curve(
            panel, config.strengths, 100 * found["accuracy"], label=name, marker=marker, markersize=size, fillstyle="none"
        )
    panel.set(xscale="log", xlabel="strength of AQC", ylabel="final accuracy (%)")
    panel.legend(fontsize=8, frameon=False)
    made["solvers"] = figure
    return made


def _heat(panel: Any, values: np.ndarray, title: str) -> Any:
    """Draws the accuracy of each task (columns) after each task (rows); tasks to come are left out."""
    image = panel.imshow(np.where(np.tri(TASKS), values, np.nan), vmin=0, vmax=100, cmap="viridis")
    for row, column in zip(*np.nonzero(np.tri(TASKS)), strict=True):
        value = values[row, column]
        panel.text(column, row, f"{value:.0f}", ha="center", va="center", fontsize=8, color="white" if value < 60 else "black")
    ticks = range(TASKS), range(1, TASKS + 1)
    panel.set_xticks(*ticks)
    panel.set_yticks(*ticks)
    panel.set(xlabel="task", title=title)
    plots.bare(panel)
    return image


def _style(name: str) -> dict[str, Any]:
    """A colour for each method; the references are black and grey, variants dotted."""
    fixed = {REFERENCE: ("#222222", "--"), "fine-tuning": ("#888888", "-"), "fine-tuning, lower rate": ("#888888", ":")}
    others = [other for other in METHODS if other not in fixed]
    colour = plt.get_cmap("tab10")(others.index(name.removesuffix(", unclipped"))) if name in others else None
    colour, line = fixed.get(name) or (colour, ":" if name.endswith("unclipped") else "-")
    return {"color": colour, "linestyle": line, "linewidth": 2.2 if name.startswith("AQC") else 1.3}


def _sizes(config: ContinualConfig, head: str) -> tuple[int, ...]:
    return config.features, *HEADS[head], CLASSES


def _numbers(config: ContinualConfig, head: str, name: str) -> int:
    """What a method keeps from task to task beside the weights: its state, or all images and labels so far."""
    if METHODS[name].joint:
        return CLASSES * config.per_class * (config.features + 1)
    memory = memories(hidden=(config.neural_width,) * 2)[METHODS[name].memory]
    return numbers(memory, _sizes(config, head))


def _values(method: Method, head: str) -> str:
    """The values that count, as text."""
    values = dict(method.values[head])
    if method.memory in ("none", "l2_sp"):
        values.pop("precision")
    if method.memory == "none":
        values.pop("strength")
    return ", ".join(f"{name} {value:.4g}" for name, value in values.items())


def _short(values: Mapping[str, Any]) -> dict[str, Any]:
    """What JSON keeps of a method: every seed's numbers and curve, and the mean over seeds of the accuracies of tasks."""
    return {
        **{part: common.rounded(values[part]) for part in (*MEASURES, "curve")},
        "tasks": common.rounded(values["tasks"].mean(0)),
    }


FOUND = """**Found on the seeds 0 to 11.** With the linear head AQC is the best of the sequential methods, 1.3 points below joint
training; but SI and EWC, summed or mean with a fitting precision, are each within about a point of it, with 40 to 85 times fewer
numbers. With the MLP the gap is wide: 90.5 % against 73 to 76 %, though 3.7 points below joint training, and only where negative
eigenvalues are dropped. At these sizes AQC's Hessian takes more numbers than the features of all images: who may keep those had
better train on them. EWC with the mean Fisher information and a precision of 1 is hardly more than L2-SP: the precision outweighs
the information. Neural consolidation, smaller than published, does not reach L2-SP. How far fine-tuning falls depends on how
long it trains: with the linear head a tenth of the rate keeps 23 points more.

**AQC falls at a great strength, and not for want of a better solver.** At 100 Newton's method and L-BFGS reach the minimum and
are a little worse than Adam, which stops before it. The minimum forgets nothing and learns next to nothing new: past tasks count
a hundred times."""
"""What the tables of the default configuration show."""


def _text(config: ContinualConfig, data: Data) -> str:
    tasks, images = data.labels.shape[1:]
    hidden = HEADS["MLP"][0]
    return f"""What keeps a head from forgetting earlier classes?

Digits in {tasks} tasks of two classes, one after the other; at test the head chooses among all ten, and nobody says which task an
image is of. {config.features} frozen features: principal components of the {tasks * images} training images, without labels and
of all tasks, each scaled to variance 1, under tanh. Two heads: linear (softmax regression), and an MLP with {hidden} tanh units.
{config.seeds} seeds, each with its own training images, order of classes and batches; the same {data.judged_labels.shape[1]}
{config.judged_on} images. {images} training images a task, {config.steps} steps of Adam on {config.batch_size} images at a rate
of at most {config.learning_rate:g} under a one-cycle schedule. A task's objective is the negative log-likelihood summed over its
images plus the strength times the penalty. The first task is the same for all: the penalty is then half the squared norm of the
weights. Joint training sees the images of all tasks so far, with that prior: what the others would like to reach.

Every method's values are the best of twelve points by final accuracy on validation images and other seeds
(`python -m experiments.studies.continual_tuning`; all points in `tuning.json`), but for fine-tuning and joint training, which
have nothing to choose. The grids of L2-SP, of EWC with precision 1, of neural consolidation and of unclipped AQC had their best
point at an end and were replaced by ones around it; of the two precisions of the others the lower was always the best. Whoever
learns tasks one after another has no validation images of all classes: the tables say what a method can reach with them.

{FOUND}

- `after t` is the accuracy on the classes so far, final accuracy that on all ten: means of recalls. `new task` is a task's
  accuracy when it was learnt, among all ten classes; `forgetting` how much of it was lost in the end, over the first
  {tasks - 1} tasks.
- Numbers kept: what a method takes from task to task beside the weights. For joint training all features and labels.
- EWC with the mean Fisher information and a precision of 1 is that of the code of arXiv 2405.16498; with 0.01 or 0.05, precision
  and information are in about the proportion that they have with the sum. With one over the number of images in a task both are
  the same method.
- SI counts negative importances as 0. AQC drops the negative eigenvalues of the MLP's Hessians, but for `unclipped`. Neural
  consolidation has two layers of {config.neural_width} units and {config.neural_steps} steps for each task (published: 256 units
  and 1000 steps), and the linear head alone: it is the slowest.
- Exactness: linear regression on one-hot labels, whose objectives are quadratics, each solved by Newton's method, precision 1.
- That AQC is less than {100 * MARGIN:g} points below joint training is tried with {100 * MARGIN:g} points added to it."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return common.command_line(study, ContinualConfig, "python -m experiments.studies.continual", arguments)


if __name__ == "__main__":
    sys.exit(main())
