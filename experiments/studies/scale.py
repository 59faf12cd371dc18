"""What regularisers cost in a training of size: WRN-28-10 or ViT-S on images of CIFAR's shape, on whatever device is there.

``python -m experiments.studies.scale`` makes 50,000 images, trains with each method by turns, and writes images a second as
ratios to the plain method, the share of the device's bfloat16 peak, and what many chips would do, on paper. On a processor take
``--batch 8 --steps 4 --turns 2 --examples 2000 --held-out 200 --no-bfloat16``.
"""

import dataclasses
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import matplotlib.pyplot as plt
import numpy as np

from experiments.bench import machine
from experiments.studies import common
from experiments.studies.scale_training import (
    CHIPS,
    METHODS,
    MODELS,
    Projection,
    Training,
    chip_of,
    global_norm,
    make_images,
    program,
    project,
)


@dataclasses.dataclass(frozen=True)
class ScaleConfig:
    """The study.

    Attributes:
      methods: which; the plain one is always among them.
      model: ``wrn_28_10``, ``vit_s4``, or ``tiny`` to try the command.
      batch: examples in a step.
      examples: training images.
      held_out: images on which accuracy is measured at the end.
      steps: training steps of each method.
      turns: into how many turns the steps are cut; in each turn every method trains a part.
      learning_rate: of SGD with momentum.
      bfloat16: compute in bfloat16; parameters stay float32.
      paper_batches: examples a chip and step, on paper.
      share: the share of the peak assumed on paper where the device has no data sheet here.
      out: the folder of results.
      force: replace the results that the folder holds.
    """

    methods: tuple[str, ...] = METHODS
    model: str = "wrn_28_10"
    batch: int = 512
    examples: int = 50_000
    held_out: int = 10_000
    steps: int = 200
    turns: int = 5
    learning_rate: float = 0.05
    bfloat16: bool = True
    paper_batches: tuple[int, ...] = (512, 64, 8)
    share: float = 0.4
    out: Path = Path("runs/scale")
    force: bool = False

    def __post_init__(self) -> None:
        """Refuses what cannot run."""
        common.check("ScaleConfig", "methods", self.methods, METHODS)
        common.check("ScaleConfig", "model", (self.model,), MODELS)
        for field in ("batch", "examples", "held_out", "steps", "turns"):
            if getattr(self, field) < 1:
                raise ValueError(f"ScaleConfig: {field} must be at least 1, got {getattr(self, field)}")
        if self.batch > self.examples:
            raise ValueError(f"ScaleConfig: batch must be at most the {self.examples} examples, got {self.batch}")
        if self.steps % self.turns:
            raise ValueError(f"ScaleConfig: turns must divide steps = {self.steps}, got {self.turns}")
        if not self.paper_batches or min(self.paper_batches) < 1:
            raise ValueError(f"ScaleConfig: paper_batches must be integers of at least 1, got {self.paper_batches}")
        if not 0 < self.share <= 1:
            raise ValueError(f"ScaleConfig: share must be above 0 and at most 1, got {self.share}")

    @property
    def names(self) -> tuple[str, ...]:
        """The methods, the plain one first."""
        return tuple(dict.fromkeys(("plain", *self.methods)))


def study(config: ScaleConfig) -> str:
    """Runs it.

    Args:
      config: the study.

    Returns:
      Its tables as text.

    Raises:
      ValueError: if the folder holds results or something else.
    """
    common.claim(config.out, config.force)
    data = make_images(jax.random.key(0), config.examples)
    held_out = make_images(jax.random.key(1), config.held_out)
    training = Training(config.model, config.batch, config.examples, config.steps, config.learning_rate, bool(config.bfloat16))
    programs = {name: program(name, training) for name in config.names}
    states, seconds, losses = {}, {name: [] for name in programs}, {name: [] for name in programs}
    for name, made in programs.items():
        began = time.perf_counter()
        states[name] = made.init(jax.random.key(0), data.labels)
        # The first step compiles; it counts as training and not as time.
        states[name], loss = jax.block_until_ready(made.step(states[name], data))
        losses[name].append(float(loss))
        print(f"{name}: compiled and begun in {time.perf_counter() - began:.0f} s, loss {float(loss):.3f}", file=sys.stderr)
    steps = config.steps // config.turns
    for turn in range(config.turns):
        order = config.names[turn % len(programs) :] + config.names[: turn % len(programs)]
        for name in order:
            began = time.perf_counter()
            for _ in range(steps):
                states[name], loss = programs[name].step(states[name], data)
            losses[name].append(float(jax.block_until_ready(loss)))
            seconds[name].append((time.perf_counter() - began) / steps)
    rows = {
        name: {
            "seconds": seconds[name],
            "losses": losses[name],
            "flops": programs[name].flops,
            "parameters": programs[name].parameters,
            "accuracy": float(programs[name].accuracy(states[name], held_out)),
            "norm": global_norm(states[name].params),
        }
        for name in programs
    }
    return report(config, rows)


def report(config: ScaleConfig, rows: dict[str, dict[str, Any]]) -> str:
    """Writes the folder of a study."""
    described = machine.describe(0)
    device = described["device"]
    chip = chip_of(device)
    plain = np.array(rows["plain"]["seconds"])
    lines, shares = [], {}
    for name, row in rows.items():
        times = np.array(row["seconds"])
        slower = times / plain
        done = row["flops"] / np.median(times)
        shares[name] = done / chip.peak if chip else None
        lines.append(
            (
                name,
                f"{config.batch / np.median(times):,.1f}",
                f"{np.median(slower):.2f} ({slower.min():.2f} to {slower.max():.2f})",
                f"{row['flops'] / rows['plain']['flops']:.3f}",
                f"{done / 1e12:,.2f}",
                f"{100 * shares[name]:.1f} %" if chip else "no data sheet",
                f"{row['losses'][0]:.2f} to {row['losses'][-1]:.2f}",
                f"{100 * row['accuracy']:.1f} %",
            )
        )
    header = (
        *("method", "images/s", "time / plain (range of turns)", "FLOPs / plain", "TFLOP/s", "of the bf16 peak"),
        *("training loss", "held-out accuracy"),
    )
    tables = {"speed": common.Table(header, lines)}
    measured = shares["plain"]
    tables["paper"] = common.Table(PAPER_HEADER, list(_paper(config, rows, measured or config.share)))
    of_peak = f"measured here, {100 * measured:.0f} %" if measured else f"ASSUMED, {100 * config.share:.0f} %, not measured"
    text = (
        f"What do regularisers cost in a training of size? {config.model}, {rows['plain']['parameters'] / 1e6:.1f} million "
        f"parameters, {config.examples:,} generated images of 32x32, batch {config.batch}, {config.steps} steps, "
        f"{'bfloat16 with float32 parameters' if config.bfloat16 else 'float32'}; {device}, JAX {described['jax']}. "
        f"The methods take turns, {config.turns} of them; FLOPs are those of the formulas, before XLA optimises.\n\n"
        "The second table is on paper: data-parallel training in which each chip has the same batch and reaches the same share "
        f"of its peak ({of_peak}), with the makers' figures for networks. `sam` exchanges gradients twice, `sam, by chip` "
        "perturbs by the examples of each chip (m-SAM) and exchanges once. Images/s: with nothing, and with all of the exchange "
        "hidden behind the arithmetic."
    )
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    medians = [float(np.median(np.array(row["seconds"]) / plain)) for row in rows.values()]
    flops = [row["flops"] / rows["plain"]["flops"] for row in rows.values()]
    places = np.arange(len(rows))
    axes.barh(places - 0.2, medians, 0.4, label="time")
    axes.barh(places + 0.2, flops, 0.4, label="FLOPs")
    axes.set_yticks(places, list(rows))
    axes.invert_yaxis()
    axes.set_xlabel("multiples of the plain step")
    axes.legend(frameon=False)
    return common.publish(
        config.out, config, {"methods": rows, "device": described}, tables, {"scale": figure}, study="scale", text=text
    )


PAPER_HEADER = ("chips", "method", "batch a chip", "arithmetic ms", "all-reduce ms", "input ms", "thousand images/s", "longest")
FLEETS = (("TPU v5 lite", 256, "v5e-256"), ("H100", 64, "64 H100"))


def _paper(config: ScaleConfig, rows: dict[str, dict[str, Any]], share: float) -> Any:
    """The rows of the table on paper."""
    for chip, count, title in FLEETS:
        for batch in config.paper_batches:
            for name, exchanges in (("plain", 1.0), ("sam", 2.0), ("sam, by chip", 1.0)):
                row = rows.get(name.split(",")[0])
                if row is None:
                    continue
                flops = row["flops"] * batch / config.batch
                made: Projection = project(flops, row["parameters"], batch, count, CHIPS[chip], share, all_reduces=exchanges)
                speeds = " to ".join(f"{speed / 1e3:,.0f}" for speed in made.images_per_second)
                times = (f"{value:.2f}" for value in (made.compute, made.exchange, made.feed))
                yield (title, name, str(batch), *times, speeds, made.bottleneck)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    return common.command_line(study, ScaleConfig, "python -m experiments.studies.scale", arguments)


if __name__ == "__main__":
    sys.exit(main())
