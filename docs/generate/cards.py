"""The card of each technique as a page."""

import dataclasses
import re
import textwrap
from pathlib import Path

from docs.generate import claims, names, recipes, studies
from docs.generate.benchmarks import measured
from docs.generate.pages import Pages, block, title, words
from regjax import catalog, references

_ENTRY = re.compile(r"^(?P<names>\*{0,2}[\w`][\w`*, .()\[\]/]*?):(?:\s+|$)(?P<text>.*)$")
_ARXIV = re.compile(r"arXiv\s+([a-z-]+/\d{7}|\d{4}\.\d{4,5})")


def write(pages: Pages, root: Path) -> None:
    """Writes a page for every technique."""
    cards = {card.full_name: card for card in catalog.cards()}
    evidence = Evidence(recipes.by_technique(root), studies.by_technique(root), claims.by_technique(root))
    times = measured(root)
    keys = references.keys(paper for card in cards.values() for paper in card.references)
    parts: dict[str, list[str]] = {}
    for full, card in cards.items():
        for whole in card.use.part_of:
            parts.setdefault(catalog.resolve(whole, card.stage), []).append(full)
    for full, card in cards.items():
        pages.write(f"{names.slug(full)}.rst", page(full, card, parts.get(full, []), evidence, times.get(full, []), keys))


@dataclasses.dataclass(frozen=True)
class Evidence:
    """Where each technique is seen at work, by its full name: recipes, studies and claims, as links."""

    recipes: dict[str, list[str]]
    studies: dict[str, list[str]]
    claims: dict[str, list[str]]

    def of(self, full: str) -> str:
        """A list of what there is of one technique."""
        rows = (("Recipes", self.recipes), ("Studies", self.studies), ("Claims tried", self.claims))
        return "\n".join(f":{name}: {', '.join(links[full])}" for name, links in rows if links.get(full))


def page(full: str, card: catalog.Card, parts: list[str], evidence: Evidence, times: list[str], keys: dict[str, str]) -> str:
    """The card in reStructuredText, with its measured times and BibTeX under the given keys."""
    text = card.sections
    pieces = [title(card.name), ".. rst-class:: lead", card.summary, facts(card)]
    pieces += advice(card)
    pieces.append(f".. py:{kind(full)}:: regjax.{full}{card.signature.removeprefix(card.name)}")
    if card.description:
        pieces.append(card.description)
    pieces.append(f"Source: ``{names.source(full)}``")
    pieces += [title("Formula", "-"), text["Formula"]]
    pieces += [title("Arguments", "-"), arguments(text["Args"])]
    if card.strengths:
        may = ", ".join(f"``{name}``" for name in card.strengths)
        pieces.append(f"A number or a schedule of the step: {may}.")
    pieces += [title("Returns", "-"), text["Returns"], title("Errors", "-"), text["Raises"]]
    pieces += [title("Cost", "-"), text["Cost"], *times]
    pieces += [title("Example", "-"), text["Example"]]
    seen = evidence.of(full)
    if seen:
        pieces += [title("Seen at work", "-"), seen]
    pieces += [title("References: paper and code", "-"), _ARXIV.sub(r"`\g<0> <https://arxiv.org/abs/\1>`__", text["References"])]
    if card.references:
        entries = "\n\n".join(references.bibtex(paper, keys[paper.identity]) for paper in card.references)
        pieces.append(block("dropdown", block("code-block", entries, "bibtex"), "BibTeX"))
    if parts:
        pieces += [title("Parts", "-"), "\n".join(f"- `{part}`: {catalog.card(part).summary}" for part in parts)]
    return "\n\n".join(pieces) + "\n"


def kind(full: str) -> str:
    """The directive of Sphinx's Python domain."""
    return "class" if isinstance(catalog.techniques()[full], type) else "function"


def facts(card: catalog.Card) -> str:
    """The line of badges: stage, kin, symptoms."""
    stage, kin = names.kin(card.full_name)
    badges = [f":bdg-ref-primary:`{stage} </techniques/{stage}/index>`"]
    if kin:
        badges.append(f":bdg-ref-primary-line:`{words(kin)} </techniques/{stage}/{kin}/index>`")
    badges += [f":bdg-ref-secondary-line:`{s} </symptoms/{s.replace(' ', '_')}>`" for s in card.use.symptoms]
    return " ".join(badges)


def advice(card: catalog.Card) -> list[str]:
    """When to use it and when not, and what goes badly with it."""
    pieces = []
    if card.use.part_of:
        pieces.append("Part of " + ", ".join(f"`{whole}`" for whole in card.use.part_of) + ".")
    boxes = (("When to use it", card.use.when), ("When not", card.use.not_when), ("Combines badly with", card.use.badly_with))
    items = [block("grid-item-card", body, head) for head, body in boxes if body]
    if items:
        columns = f"1 1 {len(items)} {len(items)}"
        pieces.append(block("grid", "\n\n".join(items), columns, gutter="2", class_container="advice"))
    return pieces


def arguments(text: str) -> str:
    """The Args section as a definition list."""
    if not _ENTRY.match(text.split("\n")[0]):
        return text
    pieces: list[list[str]] = []
    for line in text.split("\n"):
        entry = _ENTRY.match(line)
        if entry:
            pieces.append([entry["names"].replace("`", ""), entry["text"]])
        else:
            pieces[-1].append(line)
    lists = []
    for name, *body in pieces:
        head, rest = body[0], textwrap.dedent("\n".join(body[1:]))
        lists.append(f"``{name}``\n" + textwrap.indent(f"{head}\n{rest}".strip(), "   "))
    return ".. rst-class:: arguments\n\n" + "\n\n".join(lists)
