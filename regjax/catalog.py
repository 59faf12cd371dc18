"""The catalogue: method cards read from the docstrings of the public techniques.

``python -m regjax`` (`regjax.cli`) prints it.
"""

import dataclasses
import difflib
import functools
import importlib
import inspect
import re
import textwrap
from collections.abc import Callable, Iterable
from typing import Any

from flax import nnx

from regjax import references
from regjax.core.strength import strengths
from regjax.references import Reference

STAGES = ("inputs", "layers", "features", "losses", "objectives", "gradients", "weights", "schedules", "diagnostics")
"""The stages in the order in which data flows through a training step; schedules and diagnostics stand beside it."""

SECTIONS = ("Formula", "Args", "Returns", "Raises", "Cost", "Use", "Example", "References")
"""The sections that every technique's docstring has, in this order."""

SYMPTOMS = (
    "few labels",
    "noisy labels",
    "long tails",
    "poor calibration",
    "distribution shift",
    "exploding logits",
    "loss of plasticity",
    "sparsity budget",
    "adversarial inputs",
    "sharp minima",
    "collapsed features",
    "forgetting",
    "unlearning",
    "fine-tuning",
    "unstable training",
    "delayed generalisation",
    "compute budget",
)
"""What a Use section may say that a technique is for. A diagnostic is for the symptom that it shows."""


@dataclasses.dataclass(frozen=True)
class Use:
    """When to use a technique, as its Use section states it; what a section leaves out is empty.

    Attributes:
      symptoms: what it is for, of `SYMPTOMS`, the most typical first.
      part_of: the techniques that it is a part of, as the section names them.
      when: for which data, model or training.
      not_when: where something else is better.
      badly_with: what it does not combine with.
    """

    symptoms: tuple[str, ...] = ()
    part_of: tuple[str, ...] = ()
    when: str = ""
    not_when: str = ""
    badly_with: str = ""


@dataclasses.dataclass(frozen=True)
class Cost:
    """What XLA counts for a technique, as the last sentence of its Cost section states it.

    Attributes:
      flops: at most so many times the floating-point operations of the plain counterpart.
      bytes: at most so many times its bytes read and written.
      memory: at most so many times its memory in addition.
      of: the plain counterpart.
      at: the size of both.
    """

    flops: float
    bytes: float
    memory: float
    of: str
    at: str


@dataclasses.dataclass(frozen=True)
class Card:
    """The method card of one technique, as its docstring states it.

    Attributes:
      name: the public name within the stage.
      stage: the stage, such as ``losses``.
      summary: the first line.
      description: what stands between the first line and the first section.
      signature: the call as Python prints it.
      strengths: the arguments that may be schedules.
      use: when to use it.
      cost: what XLA counts; None for what is no one compiled call.
      references: the papers; those of another card where the section refers to one.
      sections: the text of each of `SECTIONS`.
    """

    name: str
    stage: str
    summary: str
    description: str
    signature: str
    strengths: tuple[str, ...]
    use: Use
    cost: Cost | None
    references: tuple[Reference, ...]
    sections: dict[str, str]

    @property
    def full_name(self) -> str:
        """Such as ``losses.maxsup``."""
        return f"{self.stage}.{self.name}"


@functools.cache
def _techniques() -> dict[str, Callable[..., Any]]:
    found: dict[str, Callable[..., Any]] = {}
    for stage in STAGES:
        module = importlib.import_module(f"regjax.{stage}")
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value) or (inspect.isclass(value) and not issubclass(value, (tuple, nnx.Variable))):
                found[f"{stage}.{name}"] = value
    return found


def techniques() -> dict[str, Callable[..., Any]]:
    """Every public technique by its full name, ``{"losses.maxsup": <function>, ...}``, stage by stage.

    A technique is a function or a Flax module in the ``__all__`` of a stage; result, state and variable types are none.
    """
    return dict(_techniques())


def card(full_name: str) -> Card:
    """The method card of a technique by its full name; a ValueError names the nearest ones to an unknown name."""
    known = _techniques()
    if full_name not in known:
        raise ValueError(f"regjax.catalog: no technique {full_name!r}{nearest(full_name, known)}")
    stage, name = full_name.split(".")
    fn = known[full_name]
    summary, description, sections = parse(inspect.getdoc(fn) or "")
    return Card(
        name,
        stage,
        summary,
        description,
        _signature(name, fn),
        strengths(fn),
        parse_use(sections.get("Use", "")),
        parse_cost(sections.get("Cost", "")),
        _papers(full_name, sections.get("References", "")),
        sections,
    )


def cards(stage: str | None = None) -> list[Card]:
    """All method cards, or those of one stage."""
    if stage is not None and stage not in STAGES:
        raise ValueError(f"regjax.catalog: no stage {stage!r}{nearest(stage, STAGES)}; the stages are {', '.join(STAGES)}")
    return [card(name) for name in _techniques() if stage in (None, name.split(".")[0])]


def matching(name: str) -> list[str]:
    """The full names that a name stands for, in full or without its stage; a ValueError names the nearest to an unknown one."""
    known = _techniques()
    name = name.removeprefix("regjax.").removeprefix("rj.")
    found = [full for full in known if name in (full, full.split(".")[1])]
    if not found:
        short = dict.fromkeys(full.split(".")[1] for full in known)
        raise ValueError(f"regjax.catalog: no technique {name!r}{nearest(name, [*short, *known])}")
    return found


def resolve(name: str, stage: str) -> str:
    """The full name of what a card of a stage calls ``name``: of its own stage before any other."""
    found = matching(name)
    return next((full for full in found if full.split(".")[0] == stage), found[0])


def parse(docstring: str) -> tuple[str, str, dict[str, str]]:
    """Splits a docstring into its first paragraph, the text after it, and its sections."""
    pieces = re.split(rf"^({'|'.join(SECTIONS)}):[ \t]*\n", docstring, flags=re.MULTILINE)
    summary, _, description = pieces[0].strip().partition("\n\n")
    sections = {title: textwrap.dedent(body).strip("\n ") for title, body in zip(pieces[1::2], pieces[2::2], strict=True)}
    return " ".join(summary.split()), description.strip(), sections


_USE = re.compile(r"^(For|Part of|When|Not when|Badly with): ", re.MULTILINE)


def parse_use(section: str) -> Use:
    """What a Use section says."""
    pieces = _USE.split(section)
    said = {title: " ".join(text.split()) for title, text in zip(pieces[1::2], pieces[2::2], strict=True)}
    symptoms = tuple(said["For"].removesuffix(".").split(", ")) if "For" in said else ()
    part_of = tuple(re.findall(r"`([\w.]+)`", said.get("Part of", "")))
    return Use(symptoms, part_of, said.get("When", ""), said.get("Not when", ""), said.get("Badly with", ""))


def parts(full_name: str) -> list[str]:
    """The full names of the techniques that say that they are a part of this one."""
    return [part for part, wholes in _wholes().items() if full_name in wholes]


@functools.cache
def _wholes() -> dict[str, tuple[str, ...]]:
    """What each technique is a part of, in full names."""
    found = {}
    for name, fn in _techniques().items():
        use = parse_use(parse(inspect.getdoc(fn) or "")[2].get("Use", ""))
        found[name] = tuple(resolve(whole, name.split(".")[0]) for whole in use.part_of)
    return found


_COST = re.compile(
    r"XLA at (?P<at>.+?): at most (?P<flops>[\d.,]+) times the FLOPs and (?P<bytes>[\d.,]+) times the bytes of (?P<of>.+?), "
    r"and (?P<memory>[\d.,]+) times its memory more\."
)


def parse_cost(section: str) -> Cost | None:
    """What a Cost section states that XLA counts; None without that sentence."""
    match = _COST.search(" ".join(section.split()))
    if match is None:
        return None
    flops, touched, memory = (float(match[kind].replace(",", "")) for kind in ("flops", "bytes", "memory"))
    return Cost(flops, touched, memory, match["of"], match["at"])


def nearest(name: str, options: Iterable[str]) -> str:
    """The end of an error's text: the options that are most like an unknown name."""
    near = difflib.get_close_matches(name, list(options), 3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _papers(full_name: str, section: str) -> tuple[Reference, ...]:
    """The papers of a References section, and those of the card that it refers to, and of the card that refers to."""
    found: dict[str, Reference] = {}
    seen: set[str] = set()
    while full_name not in seen:
        seen.add(full_name)
        for paper in references.parse(section):
            found.setdefault(paper.identity, paper)
        other = references.other_card(section)
        if other is not None:
            full_name = resolve(other, full_name.split(".")[0])
            section = parse(inspect.getdoc(_techniques()[full_name]) or "")[2].get("References", "")
    return tuple(found.values())


def _signature(name: str, fn: Callable[..., Any]) -> str:
    """The signature without annotations, which the Args section gives in words."""
    signature = inspect.signature(fn)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return f"{name}{signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)}"
