"""The catalogue: method cards read from the docstrings of the public techniques.

``python -m regjax list [--stage losses] [--json]`` and ``python -m regjax show sam`` print it.
"""

import argparse
import dataclasses
import difflib
import importlib
import inspect
import json
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from typing import Any

from flax import nnx

from regjax.core.strength import strengths

STAGES = ("inputs", "layers", "features", "losses", "objectives", "gradients", "weights", "schedules", "diagnostics")
"""The stages in the order in which data flows through a training step; schedules and diagnostics stand beside it."""

SECTIONS = ("Formula", "Args", "Returns", "Raises", "Cost", "Example", "References")
"""The sections that every technique's docstring has, in this order."""


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
      sections: the text of each of `SECTIONS`.
    """

    name: str
    stage: str
    summary: str
    description: str
    signature: str
    strengths: tuple[str, ...]
    sections: dict[str, str]


def techniques() -> dict[str, Callable[..., Any]]:
    """Every public technique by its full name, ``{"losses.maxsup": <function>, ...}``, stage by stage.

    A technique is a function or a Flax module in the ``__all__`` of a stage; result, state and variable types are none.
    """
    found: dict[str, Callable[..., Any]] = {}
    for stage in STAGES:
        module = importlib.import_module(f"regjax.{stage}")
        for name in module.__all__:
            value = getattr(module, name)
            if inspect.isfunction(value) or (inspect.isclass(value) and not issubclass(value, (tuple, nnx.Variable))):
                found[f"{stage}.{name}"] = value
    return found


def card(full_name: str) -> Card:
    """The method card of a technique by its full name; a ValueError names the nearest ones to an unknown name."""
    known = techniques()
    if full_name not in known:
        raise ValueError(f"regjax.catalog: no technique {full_name!r}{_nearest(full_name, known)}")
    stage, name = full_name.split(".")
    fn = known[full_name]
    summary, description, sections = parse(inspect.getdoc(fn) or "")
    return Card(name, stage, summary, description, _signature(name, fn), strengths(fn), sections)


def cards(stage: str | None = None) -> list[Card]:
    """All method cards, or those of one stage."""
    if stage is not None and stage not in STAGES:
        raise ValueError(f"regjax.catalog: no stage {stage!r}{_nearest(stage, STAGES)}; the stages are {', '.join(STAGES)}")
    return [card(name) for name in techniques() if stage in (None, name.split(".")[0])]


def parse(docstring: str) -> tuple[str, str, dict[str, str]]:
    """Splits a docstring into its first paragraph, the text after it, and its sections."""
    pieces = re.split(rf"^({'|'.join(SECTIONS)}):[ \t]*\n", docstring, flags=re.MULTILINE)
    summary, _, description = pieces[0].strip().partition("\n\n")
    sections = {title: textwrap.dedent(body).strip("\n ") for title, body in zip(pieces[1::2], pieces[2::2], strict=True)}
    return " ".join(summary.split()), description.strip(), sections


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m regjax", description="The catalogue of regularisation techniques.")
    commands = parser.add_subparsers(dest="command", required=True)
    listing = commands.add_parser("list", help="one line for each technique")
    listing.add_argument("--stage", help="only this stage: " + ", ".join(STAGES))
    listing.add_argument("--json", action="store_true", help="the whole cards as JSON")
    show = commands.add_parser("show", help="the card of one technique: formula, arguments, cost, references, example")
    show.add_argument("name", help="such as sam or objectives.sam")
    show.add_argument("--json", action="store_true", help="the card as JSON")
    options = parser.parse_args(arguments)
    try:
        if options.command == "list":
            found = cards(options.stage)
            print(json.dumps([dataclasses.asdict(c) for c in found], indent=2) if options.json else _table(found))
        else:
            found = [card(name) for name in _matching(options.name)]
            print(
                json.dumps([dataclasses.asdict(c) for c in found], indent=2) if options.json else "\n\n".join(map(_page, found))
            )
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
    return 0


def _matching(name: str) -> list[str]:
    """The full names that a short or full name stands for."""
    known = techniques()
    found = [full for full in known if name in (full, full.split(".")[1])]
    if not found:
        short = {full.split(".")[1] for full in known}
        raise ValueError(f"regjax.catalog: no technique {name!r}{_nearest(name, [*known, *short])}")
    return found


def _nearest(name: str, options: Any) -> str:
    near = difflib.get_close_matches(name, list(options), 3)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _signature(name: str, fn: Callable[..., Any]) -> str:
    """The signature without annotations, which the Args section gives in words."""
    signature = inspect.signature(fn)
    bare = [p.replace(annotation=inspect.Parameter.empty) for p in signature.parameters.values()]
    return f"{name}{signature.replace(parameters=bare, return_annotation=inspect.Signature.empty)}"


def _table(found: list[Card]) -> str:
    """One line for each technique under the name of its stage."""
    width = shutil.get_terminal_size((110, 24)).columns
    pad = max((len(c.name) for c in found), default=0) + 2
    lines: list[str] = []
    for stage in STAGES:
        of_stage = [c for c in found if c.stage == stage]
        if of_stage:
            lines += ["", stage] if lines else [stage]
            lines += [
                f"  {c.name:<{pad}}{textwrap.shorten(c.summary, max(width - pad - 2, 40), placeholder=' ...')}" for c in of_stage
            ]
    return "\n".join(lines)


# Mathematics in braces, innermost first, until nothing changes; then single commands.
_BRACED = (
    (r"\\(?:mathrm|mathit|mathbf|mathcal|text|texttt|operatorname|tilde|hat|bar)\{([^{}]*)\}", r"\1"),
    (r"\\d?frac\{(\w+)\}\{(\w+)\}", r"\1/\2"),
    (r"\\d?frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1)/(\2)"),
    (r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)"),
    (r"([_^])\{(\w)\}", r"\1\2"),
    (r"([_^])\{([^{}]*)\}", r"\1(\2)"),
)
_COMMANDS = (
    (r"\.\. math::[ \t]*\n?[ \t]*", ""),
    (r":math:`([^`]*)`", r"\1"),
    (r"``([^`]*)``", r"\1"),
    (r"\\begin\{cases\}", ""),
    (r"\\end\{cases\}", ""),
    (r"\\\\[ \t]*", "; "),
    (r"\\(?:left|right|displaystyle|,|;|!)(?![a-z])", ""),
    (r"\\q?quad(?![a-z])", "   "),
    (r"\\leq?(?![a-z])", "<="),
    (r"\\geq?(?![a-z])", ">="),
    (r"\\neq?(?![a-z])", "!="),
    (r"\\(?:cdot|odot|times)(?![a-z])", "*"),
    (r"\\(?:to|rightarrow)(?![a-z])", "->"),
    (r"\\(?:leftarrow|gets)(?![a-z])", "<-"),
    (r"\\(?:lVert|rVert|Vert|\|)", "||"),
    (r"\\([A-Za-z]+)", r"\1"),
    (r"\\ ", " "),
    (r"\\([{}_&%])", r"\1"),
)


def plain(text: str) -> str:
    r"""Mathematics and literals of a docstring as a terminal shows them best: ``\alpha`` is alpha, fractions are a/b."""
    before = None
    while text != before:
        before = text
        for pattern, replacement in _BRACED:
            text = re.sub(pattern, replacement, text)
    for pattern, replacement in _COMMANDS:
        text = re.sub(pattern, replacement, text)
    return re.sub(r"(?<=\S) & (?=\S)", "   ", text) if "cases" in (before or "") else text


def _page(c: Card) -> str:
    """A card as a page of text."""
    title = f"{c.stage}.{c.name}"
    parts = [f"{title}\n{'=' * len(title)}", c.summary, "\n".join(textwrap.wrap(c.signature, 100, subsequent_indent="    "))]
    if c.description:
        parts.append(plain(c.description))
    text = {section: body if section == "Example" else plain(body) for section, body in c.sections.items()}
    parts += [f"{section}:\n{textwrap.indent(text[section], '  ')}" for section in SECTIONS if section in text]
    if c.strengths:
        parts.append(f"May be schedules of the step: {', '.join(c.strengths)}")
    return "\n\n".join(parts)
