"""The command line of the catalogue: ``python -m regjax``.

In a terminal it prints tables and pages, coloured unless ``NO_COLOR`` is set; into a pipe or a file, JSON.
"""

import argparse
import dataclasses
import json
import math
import os
import shutil
import sys
from collections.abc import Sequence
from typing import NoReturn

from regjax import catalog, references, terminal
from regjax.catalog import SYMPTOMS, Card

EXAMPLES = """examples:
  python -m regjax list --stage losses            the techniques of one stage
  python -m regjax list --symptom "noisy labels"  what is for noisy labels
  python -m regjax list --max-flops 1.2 --sort flops
  python -m regjax show sam                       one technique: when to use it, formula, arguments, cost, example
  python -m regjax symptoms                       what techniques are for
  python -m regjax cite sam maxsup > papers.bib   the papers as BibTeX
  python -m regjax cite regjax                    this library as BibTeX

Tables and pages in a terminal, JSON into a pipe; --text and --json say which."""


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status, 2 for what is refused."""
    parser = _parser()
    options = parser.parse_args(arguments)
    if options.command is None:
        parser.print_help()
        return 0
    try:
        print({"list": _list, "show": _show, "symptoms": _symptoms, "cite": _cite}[options.command](options))
        sys.stdout.flush()
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


class _Parser(argparse.ArgumentParser):
    """Refuses in one line, as everything here does."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {message}\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="python -m regjax",
        description="The catalogue of regularisation techniques.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND")
    listing = commands.add_parser("list", help="one line for each technique", description="Techniques, one line for each.")
    stages = "only this stage: " + ", ".join(catalog.STAGES)
    listing.add_argument("--stage", metavar="STAGE", help=stages)
    symptom = 'only what is for this, such as "noisy labels"; given several times: for any of them'
    listing.add_argument("--symptom", action="append", default=[], metavar="WORDS", help=symptom)
    for kind, what in (("flops", "FLOPs"), ("bytes", "bytes"), ("memory", "more memory")):
        text = f"only at most X times the {what} of the plain counterpart"
        listing.add_argument(f"--max-{kind}", type=_bound, metavar="X", help=text)
    listing.add_argument("--search", metavar="TEXT", help="only what has all these words in its name, summary or use")
    listing.add_argument("--parts", action="store_true", help="also parts of other techniques, such as apply_cutmix")
    listing.add_argument("--sort", choices=("stage", "flops", "name"), default="stage", help="the order; default: stage")
    showing = commands.add_parser("show", help="the cards of techniques", description="The cards of techniques.")
    showing.add_argument("names", nargs="+", metavar="NAME", help="such as sam or objectives.sam")
    symptoms = commands.add_parser("symptoms", help="what techniques are for", description="What techniques are for.")
    for command in (listing, showing, symptoms):
        form = command.add_mutually_exclusive_group()
        form.add_argument("--json", action="store_true", help="JSON, also in a terminal")
        form.add_argument("--text", action="store_true", help="text, also into a pipe")
    citing = commands.add_parser("cite", help="the papers as BibTeX", description="The papers of techniques as BibTeX.")
    citing.add_argument("names", nargs="*", metavar="NAME", help="such as sam; regjax is the library itself")
    citing.add_argument("--stage", metavar="STAGE", help=stages)
    citing.add_argument("--all", action="store_true", help="the papers of every technique")
    citing.add_argument("--json", action="store_true", help="JSON in place of BibTeX")
    return parser


def _bound(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not value >= 0 or math.isinf(value):
        raise argparse.ArgumentTypeError(f"must be a finite number of at least 0, got {text}")
    return value


def _list(options: argparse.Namespace) -> str:
    for symptom in options.symptom:
        if symptom not in SYMPTOMS:
            hint = catalog.nearest(symptom, SYMPTOMS)
            raise ValueError(f"regjax.catalog: no symptom {symptom!r}{hint}; `python -m regjax symptoms` lists them")
    found = catalog.cards(options.stage)
    if options.symptom:
        found = [c for c in found if set(options.symptom) & set(c.use.symptoms)]
    if options.search is not None:
        words = options.search.lower().split()
        found = [c for c in found if all(word in _searched(c) for word in words)]
    hidden = 0
    if not options.parts:
        shown = [c for c in found if not c.use.part_of]
        found, hidden = shown, len(found) - len(shown)
    bounds = {kind: most for kind in ("flops", "bytes", "memory") if (most := getattr(options, f"max_{kind}")) is not None}
    uncounted = 0
    if bounds:
        uncounted = sum(c.cost is None for c in found)
        found = [c for c in found if c.cost and all(getattr(c.cost, kind) <= most for kind, most in bounds.items())]
    if options.sort == "name":
        found.sort(key=lambda c: c.name.lower())
    elif options.sort == "flops":
        found.sort(key=lambda c: (c.cost.flops if c.cost else math.inf, c.name))
    if uncounted:
        print(f"{_number(uncounted, 'technique')} without a counted cost left out", file=sys.stderr)
    if _as_json(options):
        if hidden:
            print(f"{_number(hidden, 'part')} of other techniques left out; --parts adds them", file=sys.stderr)
        return _json(found)
    style, width = terminal.Style(terminal.wants_colours()), _width()
    last = _number(len(found), "technique")
    if hidden:
        last += f"; {_number(hidden, 'part')} of other techniques hidden (--parts)"
    if found:
        last += ". FLOPs: at most so many times those of the plain counterpart, as `show` names it"
    shown_table = terminal.table(found, width, style, by_stage=options.sort == "stage")
    note = terminal._filled(last + ".", width)
    return (shown_table + "\n\n" if found else "") + style(note, "faint")


def _searched(c: Card) -> str:
    return " ".join([c.full_name, c.summary, *c.use.symptoms, c.use.when, c.use.not_when, c.use.badly_with]).lower()


def _show(options: argparse.Namespace) -> str:
    found = _named(options.names)
    if _as_json(options):
        return _json(found)
    style = terminal.Style(terminal.wants_colours())
    return "\n\n\n".join(terminal.page(c, _width(), style) for c in found)


def _symptoms(options: argparse.Namespace) -> str:
    found = [c for c in catalog.cards() if not c.use.part_of]
    by_symptom = {symptom: [c for c in found if symptom in c.use.symptoms] for symptom in SYMPTOMS}
    if _as_json(options):
        return json.dumps({symptom: [c.full_name for c in of] for symptom, of in by_symptom.items()}, indent=2)
    return terminal.symptoms_table(by_symptom, _width(), terminal.Style(terminal.wants_colours()))


def _cite(options: argparse.Namespace) -> str:
    if not (options.names or options.all or options.stage):
        raise ValueError("python -m regjax cite: name techniques, such as `cite sam maxsup`, or give --all or --stage")
    everything = catalog.cards()
    keys = references.keys(paper for c in everything for paper in c.references)
    found = [c for c in everything if options.all] + (catalog.cards(options.stage) if options.stage else [])
    names = [name for name in options.names if name != "regjax"]
    named = _named(names)
    for c in named:
        if not c.references:
            print(f"{c.full_name} is of no paper", file=sys.stderr)
    papers = {keys[paper.identity]: paper for c in found + named for paper in c.references}
    if options.all or options.stage:
        papers = dict(sorted(papers.items()))
    if len(names) < len(options.names):
        papers["regjax"] = references.PROJECT
    if options.json:
        entries = [{"key": key, **dataclasses.asdict(paper)} for key, paper in papers.items()]
        return json.dumps(entries, indent=2, ensure_ascii=False)
    return "\n\n".join(references.bibtex(paper, key) for key, paper in papers.items())


def _named(names: Sequence[str]) -> list[Card]:
    full = dict.fromkeys(full for name in names for full in catalog.matching(name))
    return [catalog.card(name) for name in full]


def _as_json(options: argparse.Namespace) -> bool:
    return options.json or not (options.text or sys.stdout.isatty())


def _json(found: Sequence[Card]) -> str:
    return json.dumps([dataclasses.asdict(c) for c in found], indent=2, ensure_ascii=False)


def _width() -> int:
    return shutil.get_terminal_size((110, 24)).columns


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
