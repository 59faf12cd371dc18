"""Cards as a terminal shows them: tables and pages, fitted to a width, with or without colours."""

import os
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence

from regjax import catalog, references
from regjax.catalog import Card

_CODES = {"title": "1;36", "head": "1", "name": "36", "symptom": "33", "number": "32", "faint": "2", "warn": "31", "prompt": "32"}


class Style:
    """Colours, or none: ``style("sam", "name")``."""

    def __init__(self, colours: bool) -> None:
        self.colours = colours

    def __call__(self, text: str, kind: str) -> str:
        """The text in the colour of its kind."""
        return f"\033[{_CODES[kind]}m{text}\033[0m" if self.colours and text else text


def wants_colours() -> bool:
    """Whether to colour standard output: never with ``NO_COLOR``, always with ``FORCE_COLOR``, else in a terminal."""
    if os.environ.get("NO_COLOR"):
        return False
    if os.environ.get("FORCE_COLOR", "0") != "0":
        return True
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def table(found: Sequence[Card], width: int, style: Style, by_stage: bool = True) -> str:
    """One line for each card: name, FLOPs, symptoms where there is room, and as much of the summary as fits.

    Args:
      found: the cards in their order.
      width: columns of the terminal.
      style: the colours.
      by_stage: whether the cards stand under the names of their stages; else the stage is part of their names.
    """
    names = [c.name if by_stage else c.full_name for c in found]
    # Names that are longer take the room beside a short number.
    pad = min(max((len(name) for name in names), default=0), 24 if by_stage else max(width // 3, 24))
    room = 0 if width < 100 or not any(c.use.symptoms for c in found) else 24 if width < 140 else 46
    lines = [style("  " + _row("name", "FLOPs", "for" if room else "", "", pad, room).rstrip(), "faint")] if found else []
    stage = None
    for name, c in zip(names, found, strict=True):
        if by_stage and c.stage != stage:
            stage = c.stage
            lines += ["", style(stage, "head")]
        cost = f"{c.cost.flops:,.6g}x" if c.cost else "-"
        symptoms = _some(c.use.symptoms, room)
        plain_row = "  " + _row(name, cost, symptoms, "", pad, room)
        summary = textwrap.shorten(plain(c.summary), max(width - len(plain_row), 12), break_on_hyphens=False, placeholder=" ...")
        painted = _row(name, cost, symptoms, summary, pad, room, style)
        lines.append("  " + painted)
    return "\n".join(lines)


def _row(name: str, cost: str, symptoms: str, summary: str, pad: int, room: int, style: Style | None = None) -> str:
    style = style or Style(False)
    cells = [style(f"{name:<{pad}}", "name"), style(f"{cost:>{max(8 - max(len(name) - pad, 0), 0)}}", "number")]
    if room:
        cells.append(style(f"{symptoms:<{room}}", "symptom"))
    return "  ".join([*cells, summary])


def _some(words: Iterable[str], room: int) -> str:
    """As many of the words as there is room for, and how many there are more."""
    words = tuple(words)
    for count in range(len(words), 0, -1):
        text = ", ".join(words[:count]) + (f" +{len(words) - count}" if count < len(words) else "")
        if len(text) <= room:
            return text
    return ""


def page(c: Card, width: int, style: Style) -> str:
    """A card as a page: what it is for first, then formula, arguments, cost, example and references, and what is near it."""
    width = min(width, 100)
    call = f"regjax.{c.stage}.{c.signature}"
    parts = [style(c.full_name, "title"), _filled(plain(c.summary), width), _signature(call, width, style)]
    if c.description:
        parts.append(_text(c.description, width))
    if any((c.use.symptoms, c.use.part_of, c.use.when, c.use.not_when, c.use.badly_with)):
        parts.append(_use(c, width, style))
    for title in ("Formula", "Args", "Returns", "Raises", "Cost", "Example", "References"):
        if title in c.sections:
            body = c.sections[title].replace("\nXLA at ", "\n\nXLA at ")
            shown = _example(body, style) if title == "Example" else _text(body, width - 2)
            if title in ("Args", "Raises"):
                shown = _entries(body, width - 2, style)
            if title == "References" and references.other_card(body):
                stated = {paper.identity for paper in references.parse(body)}
                taken = [f"- {paper.text}" for paper in c.references if paper.identity not in stated]
                shown = "\n".join([shown, *(_filled(text, width - 2, "  ") for text in taken)])
            if title == "Args" and c.strengths:
                shown += "\n" + _filled(f"May be schedules of the step: {', '.join(c.strengths)}.", width - 2)
            parts.append(_section(title, shown, style))
    near = _near(c)
    if near:
        rows = [_labelled(label, ", ".join(names), 8, width - 2, style, "name") for label, names in near.items()]
        parts.append(_section("See also", "\n".join(rows), style))
    return "\n\n".join(parts)


def symptoms_table(by_symptom: dict[str, list[Card]], width: int, style: Style) -> str:
    """One line for each symptom: how many techniques are for it, and the first of them."""
    lines = []
    for symptom, found in by_symptom.items():
        start = f"{symptom:<24}{len(found):>4}  "
        names = textwrap.shorten(", ".join(c.name for c in found), max(width - len(start), 12), placeholder=" ...")
        lines.append(style(f"{symptom:<24}", "symptom") + style(f"{len(found):>4}", "number") + f"  {names}")
    return "\n".join(lines)


def _section(title: str, body: str, style: Style) -> str:
    return f"{style(title, 'head')}\n{textwrap.indent(body, '  ')}"


def _filled(text: str, width: int, subsequent: str = "") -> str:
    return textwrap.fill(text, max(width, 20), subsequent_indent=subsequent, break_on_hyphens=False, break_long_words=False)


def _text(body: str, width: int) -> str:
    """Paragraphs filled to the width; of formulas, lists and what is indented the lines as they stand."""
    blocks = []
    for block in re.split(r"\n[ \t]*\n", body):
        if ".. math::" in block or block.startswith(" "):
            lines = plain(textwrap.dedent(re.sub(r"\.\. math::[ \t]*\n?", "", block))).splitlines()
            blocks.append("\n".join(_filled(line.rstrip(), width, "    ") for line in lines))
        elif re.match(r"[-*] |\d+\. ", block):
            items = re.split(r"^(?=[-*] |\d+\. )", block, flags=re.MULTILINE)
            blocks.append("\n".join(_filled(plain(" ".join(item.split())), width, "   ") for item in items if item))
        else:
            blocks.append(_filled(plain(block), width))
    return "\n\n".join(block for block in blocks if block.strip())


def _signature(call: str, width: int, style: Style) -> str:
    name, _, arguments = call.partition("(")
    wrapped = textwrap.wrap(
        f"{name}({arguments}", width, subsequent_indent="    ", break_on_hyphens=False, break_long_words=False
    )
    return "\n".join(wrapped).replace(name, style(name, "name"), 1)


_USE_LINES = (
    ("Symptoms", "symptoms"),
    ("Part of", "part_of"),
    ("When", "when"),
    ("Not when", "not_when"),
    ("Badly with", "badly_with"),
)


def _use(c: Card, width: int, style: Style) -> str:
    rows = []
    for title, field in _USE_LINES:
        said = getattr(c.use, field)
        if said:
            text = plain(said) if isinstance(said, str) else ", ".join(said)
            kind = {"symptoms": "symptom", "part_of": "name"}.get(field, "")
            label = "warn" if field in ("not_when", "badly_with") else "head"
            rows.append(_labelled(title, text, 10, width, style, kind, label))
    return "\n".join(rows)


def _labelled(label: str, text: str, pad: int, width: int, style: Style, kind: str = "", of_label: str = "head") -> str:
    """A label, and beside it the text in lines of their own column; below it where the label is too long."""
    lines = textwrap.wrap(text, max(width - pad - 2, 20), break_on_hyphens=False, break_long_words=False) or [""]
    painted = [style(line, kind) if kind else line for line in lines]
    gap = "\n" + " " * (pad + 2)
    start = style(label, of_label) + (gap if len(label) > pad else " " * (pad + 2 - len(label)))
    return start + gap.join(painted)


_ENTRY = re.compile(r"^((?:\*{1,2})?[\w`][\w`, *]*?(?: \([^)]*\))?):\s", re.MULTILINE)


def _entries(body: str, width: int, style: Style) -> str:
    """The arguments of an Args section with their names in a column; what is no list of arguments as text."""
    pieces = _ENTRY.split(body)
    if pieces[0].strip() or len(pieces) == 1:
        return _text(body, width)
    entries = [(plain(name), plain(" ".join(text.split()))) for name, text in zip(pieces[1::2], pieces[2::2], strict=True)]
    pad = min(max(len(name) for name, _ in entries), 16)
    return "\n".join(_labelled(name, text, pad, width, style, of_label="name") for name, text in entries)


def _example(body: str, style: Style) -> str:
    """A doctest with its prompts and results set apart."""
    shown = []
    for line in body.splitlines():
        prompt, code = line[:4], line[4:]
        shown.append(style(prompt, "prompt") + code if prompt.rstrip() in (">>>", "...") else style(line, "faint"))
    return "\n".join(shown)


def _near(c: Card) -> dict[str, list[str]]:
    """What the card is part of, its own parts, and the other techniques of its module."""
    known = catalog.techniques()
    module = known[c.full_name].__module__
    wholes = [catalog.resolve(name, c.stage) for name in c.use.part_of]
    parts = catalog.parts(c.full_name)
    kin = [name for name, fn in known.items() if fn.__module__ == module and name not in (c.full_name, *wholes, *parts)]
    short = lambda names: [name.removeprefix(f"{c.stage}.") for name in names]
    found = {"part of": short(wholes), "parts": short(parts), "kin": short(kin)}
    return {label: names for label, names in found.items() if names}


# Mathematics in braces, innermost first, until nothing changes; then single commands.
_BRACED = (
    (r"\\(?:mathrm|mathit|mathbf|mathcal|text|texttt|operatorname|tilde|hat|bar|overline)\{([^{}]*)\}", r"\1"),
    (r"\\[dt]?frac(?:\s+|(?=\d))(\w)\s*(\w)", r"\1/\2"),
    (r"\\[dt]?frac\{(\\?\w+)\}\{(\\?\w+)\}", r"\1/\2"),
    (r"\\[dt]?frac\{(\\?\w+)\}\{([^{}]*)\}", r"\1/(\2)"),
    (r"\\[dt]?frac\{([^{}]*)\}\{(\\?\w+)\}", r"(\1)/\2"),
    (r"\\[dt]?frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1)/(\2)"),
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
    (r"\\(?:leftarrow|gets)(?![a-z])", "<-"),
    (r"\\(?:to|rightarrow|mapsto)(?![a-z])", "->"),
    (r"\\(?:lVert|rVert|Vert|\|)", "||"),
    (r"\\[lr]vert(?![a-z])", "|"),
    (r"\\langle\s*", "<"),
    (r"\s*\\rangle", ">"),
    (r"\\l(floor|ceil)\s*(.*?)\s*\\r\1", r"\1(\2)"),
    (r"\\sim(?![a-z])", "~"),
    (r"\\(?:ldots|cdots|dots)(?![a-z])", "..."),
    (r"\\notin(?![a-z])", "not in"),
    (r"\\([A-Za-z]+)(?=\\[A-Za-z])", r"\1 "),
    (r"\\([A-Za-z]+)", r"\1"),
    (r"\\ ", " "),
    (r"\\([{}_&%])", r"\1"),
)


def plain(text: str) -> str:
    r"""Mathematics and literals of a docstring as a terminal shows them best: ``\alpha`` is alpha, fractions are a/b."""
    text = text.replace(r"\{", "\1").replace(r"\}", "\2")  # braces that are shown enclose nothing
    before = None
    while text != before:
        before = text
        for pattern, replacement in _BRACED:
            text = re.sub(pattern, replacement, text)
    for pattern, replacement in _COMMANDS:
        text = re.sub(pattern, replacement, text)
    text = text.replace("\1", "{").replace("\2", "}")
    return re.sub(r"(?<=\S) & (?=\S)", "   ", text) if "cases" in (before or "") else text
