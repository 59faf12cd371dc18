"""Does a penalty keep a network able to learn? Streams of random labels and of permuted pixels, six methods, on digits.

``python -m experiments.studies.plasticity`` writes tables, pictures and ``results.json`` into ``runs/plasticity``. After
Lewandowski et al., Learning Continually by Spectral Regularization, 2024, arXiv 2406.06811, with a small network.
"""

import dataclasses
import functools
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

from experiments import plots
from experiments.studies import common
from experiments.studies.plasticity_training import METHODS, STREAMS, Curves, load, make_program

STRENGTHS: Mapping[str, Mapping[str, float]] = {
    "random labels": {
        "none": 0.0,
        "L2": 3e-3,
        "L2 to init": 3e-2,
        "Wasserstein to init": 0.3,
        "orthonormality": 3e-3,
        "spectral": 1e-2,
    },
    "permuted pixels": {
        "none": 0.0,
        "L2": 3e-2,
        "L2 to init": 0.1,
        "Wasserstein to init": 0.1,
        "orthonormality": 0.1,
        "spectral": 3e-2,
    },
}
"""The best points of `experiments.studies.plasticity_tuning`: eight for each method and stream, on other seeds."""

JUDGED = {"random labels": "accuracy", "permuted pixels": "online"}
"""By which curve a stream is judged: permuted digits are learned by heart in every task, some methods are only slower."""

LAST = 5
"""How many tasks at the end are late."""


@dataclasses.dataclass(frozen=True)
class PlasticityConfig:
    """The study.

    Attributes:
      seeds: how many; each has its own split, tasks, initialisation and batches.
      first_seed: the first.
      images: of training.
      tasks: how many in each stream, at least 6: random labels, permuted pixels.
      epochs: of a task in each stream.
      width: of the hidden layers.
      depth: how many hidden layers, at least 2.
      batch_size: of training.
      learning_rate: of Adam, which goes on from task to task.
      out: the folder of results.
      force: replace the results that the folder holds.
    """

    seeds: int = 8
    first_seed: int = 0
    images: int = 512
    tasks: tuple[int, int] = (25, 50)
    epochs: tuple[int, int] = (40, 10)
    width: int = 32
    depth: int = 3
    batch_size: int = 128
    learning_rate: float = 3e-3
    out: Path = Path("runs/plasticity")
    force: bool = False

    def __post_init__(self) -> None:
        """Refuses what cannot run."""
        for field, low in (("seeds", 1), ("images", self.batch_size), ("width", 1), ("depth", 2), ("batch_size", 1)):
            if getattr(self, field) < low:
                raise ValueError(f"PlasticityConfig: {field} must be at least {low}, got {getattr(self, field)}")
        for field, low in (("tasks", LAST + 1), ("epochs", 1)):
            if min(getattr(self, field)) < low:
                raise ValueError(f"PlasticityConfig: {field} must be at least {low}, got {getattr(self, field)}")


def measure(curves: Curves, kind: str) -> dict[str, np.ndarray]:
    """What is judged of the runs of a stream.

    Args:
      curves: ``[S, T]``.
      kind: of `STREAMS`.

    Returns:
      ``first``, the measure of `JUDGED` in the first task, ``late``, its mean over the last `LAST`, and ``change``, their
      difference; the other measures' means over the last tasks, all ``[S]``.
    """
    judged = np.asarray(getattr(curves, JUDGED[kind]), np.float64)
    late = {f"late_{name}": np.asarray(x, np.float64)[:, -LAST:].mean(1) for name, x in curves._asdict().items()}
    first, last = judged[:, 0], judged[:, -LAST:].mean(1)
    return {"first": first, "late": last, "change": last - first, **late}


def study(config: PlasticityConfig, *, quiet: bool = False) -> str:
    """Trains every method on both streams, and writes the folder of results.

    Args:
      config: the study.
      quiet: no lines about what was trained.

    Returns:
      The tables as text, and where the results lie.

    Raises:
      ValueError: if the folder holds something already.
    """
    common.claim(config.out, config.force)
    say = (lambda text: None) if quiet else functools.partial(print, flush=True)
    seeds = range(config.first_seed, config.first_seed + config.seeds)
    curves: dict[str, dict[str, Curves]] = {}
    seconds: dict[str, dict[str, float]] = {}
    for kind in STREAMS:
        data = jax.device_put(load(config, kind, seeds))
        for method in METHODS:
            begun = time.perf_counter()
            strength = jnp.full(len(seeds), STRENGTHS[kind][method], jnp.float32)
            found = jax.device_get(make_program(config, kind, method)(data, jnp.array(seeds), strength))
            curves.setdefault(kind, {})[method] = found
            seconds.setdefault(kind, {})[method] = time.perf_counter() - begun
            say(f"{kind}, {method}: {seconds[kind][method]:.0f} s with compilation")
    measured = {kind: {name: measure(found, kind) for name, found in methods.items()} for kind, methods in curves.items()}
    kept = {
        kind: {
            name: {
                "strength": STRENGTHS[kind][name],
                **{part: common.rounded(values) for part, values in measured[kind][name].items()},
                "curve": common.rounded(getattr(curves[kind][name], JUDGED[kind]).mean(0)),
            }
            for name in METHODS
        }
        for kind in STREAMS
    }
    return common.publish(
        config.out,
        config,
        {"seconds": seconds, "streams": kept},
        tables(measured),
        figures(curves),
        study="plasticity",
        text=_text(config),
    )


HEADINGS = {
    "first": "first task",
    "late": f"last {LAST} tasks",
    "change": "change",
    "late_test": "test, last",
    "late_rank": "rank, last",
    "late_dead": "dead units, last",
}
"""Measures in percent as the tables show them."""


class Claim(NamedTuple):
    """That a measure of a method is higher (or lower, by ``sign``) than a rival's, in a stream."""

    text: str
    kind: str
    measure: str
    method: str
    rival: str
    sign: int = 1


def _claims() -> tuple[Claim, ...]:
    """What the publication says, or its readers would like to know, on both streams."""
    made = []
    for kind in STREAMS:
        made.append(Claim("the spectral penalty sustains plasticity over no penalty", kind, "late", "spectral", "none"))
        for rival in METHODS[1:-1]:
            made.append(Claim(f"it sustains it better than {rival}", kind, "late", "spectral", rival))
        made.append(Claim("the price is the first task", kind, "first", "spectral", "none", -1))
    return tuple(made)


CLAIMS = _claims()


def tables(measured: Mapping[str, Mapping[str, Mapping[str, np.ndarray]]]) -> dict[str, common.Table]:
    """What every method reaches on each stream, and what becomes of the claims."""
    made = {}
    titles = {
        "random labels": "Labels are random: training accuracy after a task's last epoch",
        "permuted pixels": "Pixels are permuted: training accuracy during a task",
    }
    for kind, methods in measured.items():
        rows = []
        for name, values in methods.items():
            shown = [common.shown(common.statistic(values[part]), 100) for part in HEADINGS]
            norm = common.shown(common.statistic(values["late_norm"]), 1, 2)
            rows.append((name, f"{STRENGTHS[kind][name]:g}", *shown, norm))
        header = ("method", "strength", *HEADINGS.values(), "norm, last")
        made[f"{titles[kind]}, and other measures of the last tasks, in percent, mean ± standard error"] = common.Table(
            header, rows
        )
    rows = []
    for claim in CLAIMS:
        mine, theirs = (measured[claim.kind][name][claim.measure] for name in (claim.method, claim.rival))
        value = common.statistic(mine, theirs)
        above, said = f"{value.above} of {len(mine)}", common.verdict(value, claim.sign)
        sides = f"{claim.method} against {claim.rival}"
        rows.append((claim.text, claim.kind, sides, HEADINGS[claim.measure], common.shown(value, 100, gain=True), above, said))
    for kind, methods in measured.items():
        for name, text in (
            ("none", "without a penalty plasticity is lost"),
            ("spectral", "some is lost with the spectral one too"),
        ):
            value = common.statistic(methods[name]["late"], methods[name]["first"])
            change, above = common.shown(value, 100, gain=True), f"{value.above} of {len(methods[name]['late'])}"
            rows.append(
                (text, kind, f"last {LAST} tasks against first", HEADINGS["change"], change, above, common.verdict(value, -1))
            )
    made["Claims, each tried as a paired difference by the t-test at 5 %"] = common.Table(
        ("claim", "stream", "between", "measure", "difference", "seeds above", "here"), rows
    )
    return made


def figures(curves: Mapping[str, Mapping[str, Curves]]) -> dict[str, plt.Figure]:
    """The measure that each stream is judged by, over its tasks."""
    figure, panels = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    heights = {"accuracy": "training accuracy after the last epoch (%)", "online": "training accuracy during the task (%)"}
    for panel, (kind, methods) in zip(panels, curves.items(), strict=True):
        for i, (name, found) in enumerate(methods.items()):
            values = 100 * np.asarray(getattr(found, JUDGED[kind]))
            style = {"color": "#222222", "linestyle": "--"} if name == "none" else {"color": f"C{i - 1}"}
            plots.seed_curve(panel, np.arange(1, values.shape[1] + 1), values, label=name, **style)
        panel.set(xlabel="task", ylabel=heights[JUDGED[kind]])
        panel.set_title(kind, fontsize=10)
    panels[0].set_ylim(0, None)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=8, frameon=False)
    return {"tasks": figure}


def _text(config: PlasticityConfig) -> str:
    (label_tasks, pixel_tasks), (label_epochs, pixel_epochs) = config.tasks, config.epochs
    shape = "-".join(map(str, [64, *[config.width] * config.depth, 10]))
    return f"""Does a penalty keep a network able to learn task after task?

Digits, {config.images} training images, a {shape} ReLU network, Adam at rate {config.learning_rate:g} on batches of
{config.batch_size}, {config.seeds} seeds. Network and optimiser go on from task to task. Two streams: {label_tasks} tasks of
{label_epochs} epochs with new random labels, and {pixel_tasks} tasks of {pixel_epochs} epochs with a new order of the pixels. The
first small version of this experiment had twice the width and twice the images; half of both keeps it within minutes.

**Found on the seeds 0 to 7.** Without a penalty the network soon learns next to nothing of a new task; with the spectral one it
goes on as it began, and with permuted pixels it gets better at it. Its rivals do so too once their strengths are searched as far:
with random labels the distance to the initial weights is 4.5 points ahead of it and orthonormality level with it, with permuted
pixels orthonormality is 8.5 points ahead. The price is the first task, of which it learns 20 and 9 points less.

- Random labels are judged by the training accuracy after a task's last epoch: how much the network can still learn by heart.
  The test accuracy means nothing there.
- Permuted pixels are judged by the accuracy of the batches before each step on them, the mean over the task: every method ends
  near 100 % of the training images, so only the speed of learning shows. Test accuracy is that on 360 other digits in the task's
  order of pixels.
- The change is that from the first task to the last {LAST}. The norm is the largest singular value of the kernels between
  hidden layers, the geometric mean. The rank is the share of the middle layer's singular values, on all training images, that
  hold 99 % of their sum. Dead units answer no training image.
- Penalties: `l2` on all weights (half the sum of squares), `l2_sp` to the initial weights with alpha 1 (half the sum of squares),
  `wasserstein_to_init` with `sorted_init` (the sum of squares), `orthonormality` of kernels with the smaller Gram matrix, and
  `stateful_spectral_penalty` with its defaults (k = 2).

The strength of every method is the best of its grid on each stream by the mean over the last {LAST} tasks, on the seeds 100 to
102 (`python -m experiments.studies.plasticity_tuning`, `tuning.json`): eight points from 1e-4 to 0.3. One best point is the last
of its grid: Wasserstein to init with random labels."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return common.command_line(study, PlasticityConfig, "python -m experiments.studies.plasticity", arguments)


if __name__ == "__main__":
    sys.exit(main())
