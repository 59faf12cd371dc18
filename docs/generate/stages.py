"""The pages of the stages, their kin, the symptoms, the types, and the table of all techniques."""

import importlib
import inspect
import json
from pathlib import Path

from docs.generate import names
from docs.generate.pages import Pages, block, link, table, title, toctree, words
from regjax import catalog, terminal

_FILTER = """
<form class="filter" onsubmit="return false">
<input type="search" name="text" placeholder="Search names, summaries, advice" aria-label="Search techniques">
<select name="stage" aria-label="Stage"><option value="">every stage</option></select>
<select name="symptom" aria-label="Symptom"><option value="">every symptom</option></select>
<select name="flops" aria-label="Cost"><option value="">any cost</option></select>
<label><input type="checkbox" name="parts" value="1"> parts of others too</label>
<output></output>
</form>
<noscript>This table needs JavaScript; the stages list the same techniques without.</noscript>
<table class="table techniques"><colgroup><col style="width: 30%"><col style="width: 52%"><col style="width: 18%"></colgroup>
<thead><tr><th>technique</th><th>what it does, and for what</th><th>FLOPs</th></tr></thead><tbody></tbody></table>"""


def write(pages: Pages, root: Path) -> None:
    """Writes the pages."""
    cards = catalog.cards()
    for stage in catalog.STAGES:
        _stage(pages, stage, [c for c in cards if c.stage == stage])
    _symptoms(pages, cards)
    _index(pages, cards)


def _stage(pages: Pages, stage: str, cards: list[catalog.Card]) -> None:
    """A stage: what its techniques have in common, and its kin."""
    by_kin: dict[str | None, list[catalog.Card]] = {}
    for card in cards:
        by_kin.setdefault(names.kin(card.full_name)[1], []).append(card)
    parts = [title(stage), inspect.getdoc(importlib.import_module(f"regjax.{stage}")) or ""]
    entries = []
    for kin in sorted(k for k in by_kin if k):
        doc = inspect.getdoc(importlib.import_module(f"regjax.{stage}.{kin}")) or ""
        page = [title(words(kin).capitalize()), doc, overview(by_kin[kin]), _hidden(by_kin[kin])]
        pages.write(f"techniques/{stage}/{kin}/index.rst", "\n\n".join(page) + "\n")
        parts += [title(words(kin).capitalize(), "-"), f"{doc}", overview(by_kin[kin])]
        entries.append(f"/techniques/{stage}/{kin}/index")
    alone = by_kin.get(None, [])
    if alone:
        parts += [*([title("Others", "-")] if entries else []), overview(alone)]
        entries += [f"/{names.slug(card.full_name)}" for card in alone]
    if names.types(stage):
        entries.append(f"/techniques/{stage}/types")
        made = [block(_directive(value), "", f"regjax.{stage}.{name}").rstrip() for name, value in names.types(stage).items()]
        page = [title("Types"), f"The states, results and constants of ``regjax.{stage}``.", *made]
        pages.write(f"techniques/{stage}/types.rst", "\n\n".join(page) + "\n")
        parts.append(
            f"The states, results and constants stand on a page of their own: {link('types', f'/techniques/{stage}/types')}."
        )
    pages.write(f"techniques/{stage}/index.rst", "\n\n".join([*parts, toctree(entries)]) + "\n")


def _directive(value: object) -> str:
    return "autoclass" if inspect.isclass(value) else "autodata"


def _hidden(cards: list[catalog.Card]) -> str:
    return toctree(f"/{names.slug(card.full_name)}" for card in cards)


def overview(cards: list[catalog.Card]) -> str:
    """A table of techniques; those that are parts of others come last."""
    rows = []
    for card in sorted(cards, key=lambda c: bool(c.use.part_of)):
        cost = f"{card.cost.flops:g}x\n\n.. rst-class:: symptoms\n\n{card.cost.of}" if card.cost else ""
        symptoms = ", ".join(_symptom(s) for s in card.use.symptoms)
        what = card.summary + (f"\n\n.. rst-class:: symptoms\n\n{symptoms}" if symptoms else "")
        rows.append([f"`{card.full_name}`", what, cost])
    return table(("technique", "what it does, and for what", "FLOPs"), rows, widths="30 52 18", **{"class": "techniques"})


def _symptom(symptom: str) -> str:
    return link(symptom, f"/symptoms/{symptom.replace(' ', '_')}")


def _symptoms(pages: Pages, cards: list[catalog.Card]) -> None:
    """A page for each symptom: its techniques, by stage."""
    for symptom in catalog.SYMPTOMS:
        parts = [title(symptom.capitalize()), "All techniques whose card names this symptom, the most typical first."]
        for stage in catalog.STAGES:
            of_stage = [c for c in cards if c.stage == stage and symptom in c.use.symptoms]
            of_stage.sort(key=lambda c: c.use.symptoms.index(symptom))
            if of_stage:
                parts += [title(stage, "-"), overview(of_stage)]
        pages.write(f"symptoms/{symptom.replace(' ', '_')}.rst", "\n\n".join(parts) + "\n")
    counts = [f"- {_symptom(s)}: {sum(s in c.use.symptoms for c in cards)} techniques" for s in catalog.SYMPTOMS]
    tree = toctree(s.replace(" ", "_") for s in catalog.SYMPTOMS)
    intro = "Every technique by what it is for. :doc:`/guide/symptoms` says where to begin, with measured figures."
    pages.write("symptoms/index.rst", "\n\n".join([title("By symptom"), intro, "\n".join(counts), tree]) + "\n")


def _index(pages: Pages, cards: list[catalog.Card]) -> None:
    """The table of all techniques with its filter, and the catalogue as JSON for it."""
    rows = [
        {
            "name": card.name,
            "stage": card.stage,
            "page": names.slug(card.full_name).removeprefix("techniques/") + ".html",
            "summary": terminal.plain(card.summary),
            "symptoms": card.use.symptoms,
            "part": bool(card.use.part_of),
            "flops": card.cost.flops if card.cost else None,
            "of": card.cost.of if card.cost else None,
            "text": card.use.when,
        }
        for card in cards
    ]
    script = '<script type="application/json" id="{}">{}</script>'
    safe = lambda value: json.dumps(value).replace("<", "\\u003c")
    data = [script.format("catalogue", safe(rows)), script.format("symptoms", safe(catalog.SYMPTOMS))]
    stages = ", ".join(f":doc:`{s} </techniques/{s}/index>` ({sum(c.stage == s for c in cards)})" for s in catalog.STAGES)
    parts = [
        title("Techniques"),
        f"{len(cards)} public techniques, by the place of a training step at which they act: {stages}.",
        "FLOPs are at most so many times those of the plain counterpart that the card names.",
        block("raw", "\n".join([*data, _FILTER]), "html"),
        toctree((f"{stage}/index" for stage in catalog.STAGES), titlesonly=""),
    ]
    pages.write("techniques/index.rst", "\n\n".join(parts) + "\n")
