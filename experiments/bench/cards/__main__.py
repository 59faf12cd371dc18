"""``python -m experiments.bench.cards``: holds the bounds in the cards against what XLA counts, writes them, or times them."""

import dataclasses
import importlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from experiments.bench import machine


@dataclasses.dataclass(frozen=True)
class CardsConfig:
    """Which cards, and what to do with them.

    Attributes:
      names: stages or techniques, such as ``losses`` or ``losses.maxsup``; all by default.
      write: puts the sentence of the measurement into the docstrings of the sources, rather than comparing.
      time: runs each technique and its plain counterpart by turns, too, and keeps times and counts as JSON.
      turns: how many, if timed.
      seconds: the least time of each in a turn.
      threads: cores to use, if timed; 0 for all.
      out: the folder for the results.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    write: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    time: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    turns: int = 5
    seconds: float = 0.01
    threads: int = 1
    out: Path = Path("runs/bench")

    def __post_init__(self) -> None:
        """Refuses settings that cannot run."""
        if self.turns < 1 or self.threads < 0 or not self.seconds > 0:
            raise ValueError("CardsConfig: turns must be at least 1, threads at least 0, and seconds above 0")


def chosen(names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """The cases of the given stages or techniques, one after the other: their arrays fill much memory."""
    from experiments.bench import cards
    from regjax import catalog

    known = catalog.techniques()
    if unknown := [name for name in names if name not in known and name not in catalog.STAGES]:
        raise ValueError(f"CardsConfig: names must be stages or techniques, got {', '.join(unknown)}")
    for stage in catalog.STAGES:
        wanted = [name for name in known if name.startswith(f"{stage}.") and (not names or stage in names or name in names)]
        cases = cards.cases(stage) if wanted else {}
        yield from ((name, cases[name]()) for name in wanted if name in cases)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 1 where a card is untrue."""
    config = tyro.cli(CardsConfig, args=arguments, prog="python -m experiments.bench.cards")
    if config.time:
        machine.limit_threads(config.threads)
    sentence, measuring = (importlib.import_module(f"experiments.bench.cards.{name}") for name in ("sentence", "measuring"))
    catalog = importlib.import_module("regjax.catalog")
    untrue, kept = 0, {}
    try:
        for name, case in chosen(config.names):
            counts = sentence.measured(case)
            shown = "  ".join(f"{kind} {value:8.3g}" for kind, value in zip(counts._fields, counts, strict=True))
            if config.time:
                times = measuring.timed(case, turns=config.turns, seconds=config.seconds)
                kept[name] = measuring.entry(case, counts, times)
                shown += f"  time {times['ratio']:8.3g}"
            print(f"{name:<45} {shown}", flush=True)
            if config.write:
                sentence.write(catalog.techniques()[name], sentence.sentence(counts, case.of, case.at))
                continue
            found = sentence.faults(name, catalog.card(name).sections["Cost"], case, counts)
            for fault in found:
                print(f"  {fault}", file=sys.stderr)
            untrue += bool(found)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if config.time:
        described = machine.describe(config.threads)
        results = {"schema": 1, "suite": "cards", "machine": described, "turns": config.turns, "techniques": kept}
        config.out.mkdir(parents=True, exist_ok=True)
        path = config.out / f"cards-{machine.slug(described)}.json"
        importlib.import_module("experiments.writers").write_json(path, results)
        print(f"results: {path}")
    return int(untrue > 0)


if __name__ == "__main__":
    sys.exit(main())
