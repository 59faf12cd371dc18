"""Files that are written only where they change, and small pieces of reStructuredText."""

import re
import shutil
import textwrap
from collections.abc import Iterable, Sequence
from pathlib import Path


class Pages:
    """The generated files of a source folder.

    Attributes:
      root: the source folder.
      folders: the folders that hold nothing but generated files.
    """

    def __init__(self, root: Path, folders: Sequence[str]):
        """See the class."""
        self.root = root
        self.folders = folders
        self._written: set[Path] = set()

    def write(self, name: str, text: str) -> None:
        """Writes a page, ``techniques/losses/maxsup.rst``, where its text changed."""
        path = self._path(name)
        if not path.exists() or path.read_text() != text:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)

    def copy(self, source: Path, name: str) -> None:
        """Copies a file where it changed."""
        path = self._path(name)
        if not path.exists() or path.read_bytes() != source.read_bytes():
            path.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, path)

    def finish(self) -> None:
        """Removes what lies in the folders and was not written this time."""
        for folder in self.folders:
            for path in sorted((self.root / folder).rglob("*"), reverse=True):
                if path.is_file() and path not in self._written:
                    path.unlink()
                elif path.is_dir() and not any(path.iterdir()):
                    path.rmdir()

    def _path(self, name: str) -> Path:
        path = self.root / name
        if name.split("/")[0] not in self.folders:
            raise ValueError(f"Pages: must lie in one of {', '.join(self.folders)}, got {name}")
        if path in self._written:
            raise ValueError(f"Pages: {name} is written twice")
        self._written.add(path)
        return path


def title(text: str, line: str = "=") -> str:
    """A heading."""
    return f"{text}\n{line * max(len(text), 4)}"


def block(directive: str, body: str, argument: str = "", **options: str) -> str:
    """A directive with its options and its indented content; underscores in options stand for dashes."""
    head = f".. {directive}::{' ' + argument if argument else ''}"
    lines = [f"   :{name.replace('_', '-')}: {value}".rstrip() for name, value in options.items()]
    return "\n".join([head, *lines, "", textwrap.indent(body, "   ")])


def toctree(entries: Iterable[str], **options: str) -> str:
    """A table of contents that only the sidebar shows."""
    return block("toctree", "\n".join(entries), hidden="", **options)


def table(header: Sequence[str], rows: Iterable[Sequence[str]], widths: str = "auto", **options: str) -> str:
    """A list table; a cell may hold several paragraphs."""
    lines = []
    for row in [header, *rows]:
        for i, cell in enumerate(row):
            mark = "* - " if i == 0 else "  - "
            lines.append(mark + textwrap.indent(cell, "    ").lstrip())
    return block("list-table", "\n".join(lines), header_rows="1", widths=widths, **options)


def link(text: str, target: str) -> str:
    """A link to a page by its absolute name, or to an anchor of the site."""
    return f":doc:`{text} <{target}>`"


def words(name: str) -> str:
    """A name of a file or a test in words."""
    return re.sub(r"_+", " ", name).strip()
