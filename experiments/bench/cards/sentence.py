"""The sentence of a card that states what XLA counts: read, written and held against the measurement."""

import inspect
import math
import re
import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from experiments.bench import timing
from experiments.bench.cards.case import Case
from regjax import catalog

WIDTH = 130


class Counts(NamedTuple):
    """Multiples of the plain counterpart.

    Attributes:
      flops: floating-point operations.
      bytes: bytes read and written.
      memory: temporary memory beyond the counterpart's, over its arguments, results and temporary memory.
    """

    flops: float
    bytes: float
    memory: float


class Stated(NamedTuple):
    """What a card says: at most so much, of what, at which size."""

    most: Counts
    of: str
    at: str


def measured(case: Case) -> Counts:
    """What XLA counts for a case; the same on every run of one version on one kind of device."""
    ours = timing.cost(case.call, *case.args, donate_argnums=case.donate)
    plain = timing.cost(case.plain, *case.plain_args)
    over = lambda kind: ours[kind] / max(plain[kind], 1.0)
    whole = plain["temporary"] + plain["arguments"] + plain["results"]
    return Counts(over("flops"), over("bytes"), max(ours["temporary"] - plain["temporary"], 0.0) / max(whole, 1.0))


def bound(value: float) -> float:
    """A tenth more, rounded up to two digits; what is below .005 counts as nothing."""
    if value < 0.005:
        return 0.0 if value == 0 else 0.01
    value *= 1.1
    step = 10.0 ** (math.floor(math.log10(value)) - 1)
    return float(f"{math.ceil(value / step - 1e-9) * step:.6g}")


def sentence(counts: Counts, of: str, at: str) -> str:
    """The sentence for a measurement."""
    flops, touched, memory = (f"{bound(value):,.10g}" for value in counts)
    return (
        f"XLA at {at}: at most {flops} times the FLOPs and {touched} times the bytes of {of}, and {memory} times its memory more."
    )


def stated(cost: str) -> Stated | None:
    """What the Cost section of a card states; None without the sentence."""
    card = catalog.parse_cost(cost)
    return None if card is None else Stated(Counts(card.flops, card.bytes, card.memory), card.of, card.at)


def faults(name: str, cost: str, case: Case, counts: Counts) -> list[str]:
    """What is untrue in a card: a bound that is missed, one too wide to tell anything, or another size."""
    card = stated(cost)
    if card is None:
        return [f"{name}: the Cost section states no bound on what XLA counts"]
    found = []
    if (card.of, card.at) != (case.of, case.at):
        found.append(f"{name}: measured against {case.of} at {case.at}; the card says {card.of} at {card.at}")
    for kind, value, most in zip(Counts._fields, counts, card.most, strict=True):
        if value > most * (1 + 1e-9):
            found.append(f"{name}: {kind} {value:.3g}, the card says at most {most:g}")
        elif most > 1.3 * value + 0.05:
            found.append(f"{name}: {kind} {value:.3g}, the card's bound of {most:g} is too wide")
    return found


def write(technique: Callable[..., Any], text: str) -> bool:
    """Puts the sentence at the end of the Cost section of a technique's source.

    Args:
      technique: the public function or class.
      text: the sentence, in place of one that stands there.

    Returns:
      Whether the file changed.

    Raises:
      ValueError: if its docstring has no Cost section.
    """
    technique = inspect.unwrap(technique)
    path = Path(inspect.getsourcefile(technique) or "")
    lines = path.read_text().split("\n")
    # By name, as the lines that Python has noted are those before anything was written.
    header = re.compile(rf"(def|class) {technique.__name__}\b")
    begin = next(i for i, line in enumerate(lines) if header.match(line))
    try:
        head = next(i for i in range(begin, len(lines)) if lines[i].strip() == "Cost:")
    except StopIteration:
        raise ValueError(f"write: {technique.__name__} must have a Cost section, got none in {path}") from None
    end = next(i for i in range(head, len(lines)) if not lines[i].strip() and lines[i + 1].strip() in _HEADS)
    indent = lines[head + 1][: len(lines[head + 1]) - len(lines[head + 1].lstrip())]
    body = lines[head + 1 : end]
    first = next((i for i, line in enumerate(body) if line.strip().startswith("XLA at ")), len(body))
    filled = textwrap.wrap(text, WIDTH - 2, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False)
    kept = [*body[:first], *filled]
    if kept == body:
        return False
    path.write_text("\n".join([*lines[: head + 1], *kept, *lines[end:]]))
    return True


_HEADS: Mapping[str, None] = dict.fromkeys(("Use:", "Example:", "Examples:", "References:"))
