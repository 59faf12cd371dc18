"""The papers of the References sections: read from their text, and written as BibTeX.

A paper stands in a section as ``Authors, Title, Year, Venue, arXiv ID``, the last two where there are such, with any prose
around it: ``Foret et al., Sharpness-Aware Minimization for Efficiently Improving Generalization, 2021, arXiv 2010.01412``.
"""

import collections
import dataclasses
import re
from collections.abc import Iterable

from regjax._version import __version__

# The conferences by the names that the docstrings use. Any other venue is a journal with its volume.
_PROCEEDINGS = {
    "ACC": "American Control Conference",
    "COLT": "Conference on Learning Theory",
    "CVPR": "IEEE/CVF Conference on Computer Vision and Pattern Recognition",
    "ECCV": "European Conference on Computer Vision",
    "ICLR": "International Conference on Learning Representations",
    "ICML": "International Conference on Machine Learning",
    "NeurIPS": "Advances in Neural Information Processing Systems",
}

_WORD = r"[A-Z][^\W\d_]*(?:['-][^\W\d_]+)*"
_NAME = rf"(?:(?:van den|van der|van|von|de) )?{_WORD}(?: {_WORD})*"
_PAPER = re.compile(
    rf"\b(?P<authors>{_NAME}(?:(?:, {_NAME})* and {_NAME}|(?:, {_NAME})* et al\.)?), "
    r"(?P<title>(?:(?!et al\.|\. |;)[^()]|\([^()]*\)|\([^()]*\([^()]*\)[^()]*\))+?), "
    r"(?P<year>(?:19|20)\d\d)\b"
    rf"(?:, (?P<venue>(?:{'|'.join(_PROCEEDINGS)})\b|[A-Z]\w+(?: (?:of|the|and|in|on|[A-Z]\w*))* \d+\b))?"
    r"(?:, arXiv (?P<arxiv>[a-z-]+/\d{7}|\d{4}\.\d{4,5})\b)?"
)
_OTHER_CARD = re.compile(r"(?:See|Those of) `(?:regjax\.)?([\w.]+)`")

# Words of titles that tell nothing in a key.
_SMALL_WORDS = re.compile(r"(?:an?|the|and|or|of|on|in|to|by|for|from|with|via|towards?|its?|is|are|we|can|not|how|what)(?!\w)")


@dataclasses.dataclass(frozen=True)
class Reference:
    """One paper.

    Attributes:
      authors: surnames as the text has them; the last is ``others`` for "et al.".
      title: the title.
      year: the year.
      venue: the conference, or the journal with its volume; None for a preprint and where it is not said.
      arxiv: the arXiv identifier; None where there is none.
      text: the paper as the section writes it.
    """

    authors: tuple[str, ...]
    title: str
    year: int
    venue: str | None
    arxiv: str | None
    text: str

    @property
    def identity(self) -> str:
        """What makes two mentions the same paper: the arXiv identifier, else authors, title and year."""
        return self.arxiv or f"{' '.join(self.authors)}, {self.title}, {self.year}"


PROJECT = Reference(("The regjax developers",), "regjax: regularisation for JAX", 2026, None, None, "")
"""The library itself, for who cites it."""


def parse(section: str) -> tuple[Reference, ...]:
    """The papers of a References section in their order, each once."""
    found: dict[str, Reference] = {}
    for match in _PAPER.finditer(" ".join(section.split())):
        authors = tuple(re.split(r", | and ", match["authors"].removesuffix(" et al.")))
        if match["authors"].endswith(" et al."):
            authors += ("others",)
        paper = Reference(authors, match["title"], int(match["year"]), match["venue"], match["arxiv"], match[0])
        found.setdefault(paper.identity, paper)
    return tuple(found.values())


def other_card(section: str) -> str | None:
    """The technique whose references a section takes over, "See `sam`." or "Those of `sam`."; None where it names none."""
    match = _OTHER_CARD.match(" ".join(section.split()))
    return match[1] if match else None


def keys(papers: Iterable[Reference]) -> dict[str, str]:
    """BibTeX keys by the papers' identities: author, year and as many words of the title as tell them apart.

    ``foret2021sharpness`` is unique among all cards only if the papers of all cards are given.
    """
    unique = {paper.identity: paper for paper in papers}
    chosen = {identity: _key(paper, 1) for identity, paper in unique.items()}
    for words in range(2, 10):
        count = collections.Counter(chosen.values())
        chosen = {identity: key if count[key] == 1 else _key(unique[identity], words) for identity, key in chosen.items()}
    return chosen


def _key(paper: Reference, words: int) -> str:
    surname = re.sub(r"[^a-z]", "", paper.authors[0].lower())
    return f"{surname}{paper.year}{''.join(_title_words(paper)[:words])}"


def _title_words(paper: Reference) -> list[str]:
    return [word for word in re.findall(r"[a-z0-9]{2,}", paper.title.lower().replace("'s ", " ")) if not _SMALL_WORDS.match(word)]


def bibtex(paper: Reference, key: str) -> str:
    """The BibTeX entry of a paper."""
    kind = "misc"
    authors = " and ".join(_name(author) for author in paper.authors)
    fields = {"author": authors, "title": f"{{{_escaped(paper.title)}}}", "year": str(paper.year)}
    if paper.venue:
        if paper.venue in _PROCEEDINGS:
            kind, fields["booktitle"] = "inproceedings", _PROCEEDINGS[paper.venue]
        else:
            kind, (fields["journal"], fields["volume"]) = "article", paper.venue.rsplit(" ", 1)
    if paper.arxiv:
        fields |= {"eprint": paper.arxiv, "archivePrefix": "arXiv"}
    if paper is PROJECT:
        fields["note"] = f"Version {__version__}, licence Apache-2.0"
    pad = max(map(len, fields))
    return "\n".join([f"@{kind}{{{key},", *(f"  {name:<{pad}} = {{{value}}}," for name, value in fields.items()), "}"])


def _name(author: str) -> str:
    """A surname of several words in braces, so that none of them is taken for a first name."""
    return f"{{{_escaped(author)}}}" if " " in author else _escaped(author)


_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {c: f"\\{c}" for c in "&%$#_{}"}


def _escaped(text: str) -> str:
    """Text with LaTeX's special characters written out."""
    return "".join(_SPECIAL.get(c, c) for c in text)
