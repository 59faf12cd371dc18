"""``python -m experiments.bench.cards``: holds the bounds in the cards against what XLA counts, or writes them."""

import dataclasses
import sys
from collections.abc import Iterator, Sequence
from typing import Annotated

import tyro

from experiments.bench import cards
from experiments.bench.cards import sentence
from regjax import catalog


@dataclasses.dataclass(frozen=True)
class CardsConfig:
    """Which cards.

    Attributes:
      names: stages or techniques, such as ``losses`` or ``losses.maxsup``; all by default.
      write: puts the sentence of the measurement into the docstrings of the sources, rather than comparing.
    """

    names: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    write: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False


def check(names: Sequence[str], *, write: bool = False) -> Iterator[tuple[str, sentence.Counts, list[str]]]:
    """Each technique of the given stages or names, what XLA counts for it, and what is untrue in its card."""
    known = catalog.techniques()
    for stage in catalog.STAGES:
        chosen = lambda name, stage=stage: not names or stage in names or name in names
        if not any(chosen(name) for name in known if name.startswith(f"{stage}.")):
            continue
        for name, make in cards.cases(stage).items():
            if not chosen(name):
                continue
            case = make()
            counts = sentence.measured(case)
            if write:
                sentence.write(known[name], sentence.sentence(counts, case.of, case.at))
                yield name, counts, []
            else:
                yield name, counts, sentence.faults(name, catalog.card(name).sections["Cost"], case, counts)


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 1 where a card is untrue."""
    config = tyro.cli(CardsConfig, args=arguments, prog="python -m experiments.bench.cards")
    untrue = 0
    for name, counts, found in check(config.names, write=config.write):
        shown = "  ".join(f"{kind} {value:8.3g}" for kind, value in zip(counts._fields, counts, strict=True))
        print(f"{name:<45} {shown}", flush=True)
        for fault in found:
            print(f"  {fault}", file=sys.stderr)
        untrue += bool(found)
    return int(untrue > 0)


if __name__ == "__main__":
    sys.exit(main())
