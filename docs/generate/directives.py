"""Directives of the hand-written pages: tables of measured figures, taken from where they were measured."""

import re
from collections.abc import Sequence
from pathlib import Path

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from experiments import readme

ROOT = Path(__file__).resolve().parents[2]


def measured(study: str, number: int) -> list[list[str]]:
    """A table of a study's results page, or of the comparison of all recipes, ``demo``; the first row is its header.

    Args:
      study: the folder of results.
      number: which of the page's tables, from 1.

    Returns:
      The cells of each row.

    Raises:
      ValueError: for a study or a table that is not there.
    """
    page = ROOT / readme.STUDIES / study / "README.md"
    if study != "demo" and not page.exists():
        raise ValueError(f"measured-table: no results of {study!r}")
    text = readme.demo(ROOT / readme.RESULTS) if study == "demo" else page.read_text()
    tables = re.findall(r"(?:^\|.*\|\n?)+", text, re.MULTILINE)
    if not 1 <= number <= len(tables):
        raise ValueError(f"measured-table: {study} has tables 1 to {len(tables)}, got {number}")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables[number - 1].splitlines()]
    return [rows[0], *rows[2:]]


def cut(
    table: Sequence[Sequence[str]],
    rows: Sequence[str] = (),
    columns: Sequence[str] = (),
    only: str = "",
    first: int | None = None,
) -> list[list[str]]:
    """Some rows and columns of a table.

    Args:
      table: the header and the rows.
      rows: the first cells of the rows to take, in this order; none for all as they stand.
      columns: the names of the columns to take, in this order; none for all.
      only: ``column = value``: the rows with that value, before any other choice; empty for all.
      first: at most so many rows; None for all.

    Returns:
      The header and the rows that are left.

    Raises:
      ValueError: for a row, a column or a value that the table lacks, so that a page cannot go stale unseen.
    """
    header, *body = [list(row) for row in table]
    if only:
        column, value = (part.strip() for part in only.split("=", 1))
        body = [row for row in body if row[_index(header, column)] == value]
    chosen = [row for name in rows for row in body if row[0] == name] if rows else body
    if missing := [name for name in rows if name not in {row[0] for row in body}]:
        raise ValueError(f"measured-table: no row {', '.join(missing)}; the rows are {', '.join(row[0] for row in body)}")
    if not chosen:
        raise ValueError(f"measured-table: no row with {only}")
    kept = [_index(header, name) for name in columns] or range(len(header))
    return [[row[i] for i in kept] for row in [header, *chosen[:first]]]


def _index(header: Sequence[str], name: str) -> int:
    if name not in header:
        raise ValueError(f"measured-table: no column {name!r}; the columns are {', '.join(header)}")
    return header.index(name)


def _parts(text: str) -> list[str]:
    return [part.strip() for part in text.split(";")]


class MeasuredTable(SphinxDirective):
    """``measured-table label_noise 1`` in a Markdown page; rows and columns are parted by semicolons."""

    required_arguments = 2
    option_spec = {  # noqa: RUF012
        "rows": _parts,
        "columns": _parts,
        "only": directives.unchanged,
        "first": directives.positive_int,
    }

    def run(self) -> list[nodes.Node]:
        """Writes the table, and below it which study it is from."""
        study, number = self.arguments
        self.env.note_dependency(str(ROOT / readme.STUDIES / study / ("results.json" if study == "demo" else "README.md")))
        try:
            header, *body = cut(measured(study, int(number)), **self.options)
        except ValueError as error:
            raise self.error(str(error)) from error
        source = "All recipes on digits" if study == "demo" else study.replace("_", " ").capitalize()
        lines = [" | ".join(header), " | ".join(["---"] + ["---:"] * (len(header) - 1)), *map(" | ".join, body)]
        text = "\n".join(f"| {line} |" for line in lines).replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")
        found = self.parse_text_to_nodes(
            f"{text}\n\nFrom {{doc}}`{source} </studies/{study}>`, which says how it was measured.\n"
        )
        found[0]["classes"] += ["measured"]
        found[-1]["classes"] += ["measured-from"]
        return found


def setup(app: Sphinx) -> None:
    """Registers the directives."""
    app.add_directive("measured-table", MeasuredTable)
