"""``python -m experiments.bench``: measures a suite, prints its tables, and keeps the results as JSON."""

import dataclasses
import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from experiments.bench import machine


@dataclasses.dataclass(frozen=True)
class BenchConfig:
    """What to measure and how.

    Attributes:
      suite: the techniques of which stage; or the whole step, the peers side by side, or many runs at once. What crosses
        between devices is counted by ``python -m experiments.bench.devices``.
      shapes: names of batches, by default those of the suite: for inputs ``32`` is [256, 32, 32, 3], ``224`` [64, 224, 224, 3],
        ``tiny`` [8, 16, 16, 3]; for losses ``1k`` is [8192, 1000], ``32k`` [4096, 32000], ``tiny`` [16, 8];
        for objectives, gradients and step ``mlp``, ``wide``, ``resnet``, ``wrn`` and ``vit`` are networks, as far as a suite has
        them; for weights ``25m`` is a tree of 25 million weights in 60 leaves, ``resnet`` a network, ``norms`` a matrix and a
        convolution; for peers a shape is a topic, such as ``mixing`` or ``losses``, and ``tiny`` all of them.
      threads: cores that every library may use; 0 for all.
      turns: how often every subject runs, in turns.
      seconds: the least time of a subject in a turn.
      out: the folder for the results; a file of an earlier run of the same suite, device and threads is replaced.
      json: prints the results as JSON in place of the tables.
    """

    suite: Literal["inputs", "losses", "objectives", "gradients", "weights", "step", "peers", "sweep"] = "inputs"
    shapes: tuple[str, ...] = ()
    threads: int = 1
    turns: int = 15
    seconds: float = 0.05
    out: Path = Path("runs/bench")
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False

    def __post_init__(self) -> None:
        """Refuses settings that cannot run."""
        if self.turns < 1 or self.threads < 0 or not self.seconds > 0:
            raise ValueError("BenchConfig: turns must be at least 1, threads at least 0, and seconds above 0")


def bench(config: BenchConfig) -> dict[str, Any]:
    """Runs a suite and keeps its results."""
    suite = importlib.import_module(f"experiments.bench.{config.suite}")
    results_module = importlib.import_module("experiments.bench.results")
    described = machine.describe(config.threads)
    panels = []
    shapes = config.shapes or suite.DEFAULT
    unknown = set(shapes) - set(suite.SHAPES)
    if unknown:
        raise ValueError(f"BenchConfig.shapes must be among {', '.join(suite.SHAPES)}, got {', '.join(sorted(unknown))}")
    for shape in shapes:
        for panel in suite.panels(suite.SHAPES[shape], config.threads):
            print(f"{panel.title} ...", file=sys.stderr)
            panels.append(results_module.measure(panel, turns=config.turns, seconds=config.seconds))
    results = {"schema": 1, "suite": config.suite, "machine": described, "turns": config.turns, "panels": panels}
    config.out.mkdir(parents=True, exist_ok=True)
    path = config.out / f"{config.suite}-{machine.slug(described)}.json"
    importlib.import_module("experiments.writers").write_json(path, results)
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    config = tyro.cli(BenchConfig, args=arguments, prog="python -m experiments.bench")
    machine.limit_threads(config.threads)
    try:
        results = bench(config)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    markdown = importlib.import_module("experiments.bench.results").markdown
    print(json.dumps(results) if config.json else markdown(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())
