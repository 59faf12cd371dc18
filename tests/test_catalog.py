"""The cards: what is read out of the docstrings, and that it is true of every one of them."""

import re

import pytest

from regjax import catalog, references, terminal
from regjax.catalog import Cost, Use

CARDS = {card.full_name: card for card in catalog.cards()}


def test_techniques_are_those_of_the_stages_in_order():
    assert list(CARDS) == list(catalog.techniques())
    assert list(dict.fromkeys(card.stage for card in CARDS.values())) == list(catalog.STAGES)
    assert [card.full_name for card in catalog.cards("gradients")] == [name for name in CARDS if name.startswith("gradients.")]


def test_a_use_section_is_read_with_its_continued_lines():
    section = """For: few labels, noisy labels.
Part of: `cutmix`,
  `weights.l2`.
When: Small sets,
  as `sam` says: often.
Badly with: BatchNorm."""
    assert catalog.parse_use(section) == Use(
        symptoms=("few labels", "noisy labels"),
        part_of=("cutmix", "weights.l2"),
        when="Small sets, as `sam` says: often.",
        badly_with="BatchNorm.",
    )
    assert catalog.parse_use("") == Use()


@pytest.mark.parametrize("stage", catalog.STAGES)
def test_every_use_speaks_of_known_symptoms_and_techniques(stage):
    for card in catalog.cards(stage):
        assert set(card.use.symptoms) <= set(catalog.SYMPTOMS), card.full_name
        assert card.full_name not in [catalog.resolve(name, stage) for name in card.use.part_of]


@pytest.mark.parametrize("stage", catalog.STAGES)
def test_every_card_says_when_to_use_it_and_what_it_is_part_of(stage):
    for card in catalog.cards(stage):
        use = card.use
        assert use.when, f"{card.full_name} does not say when to use it"
        if not use.part_of:
            assert use.not_when, f"{card.full_name} does not say when not"
            assert use.badly_with or stage in ("diagnostics", "schedules"), (
                f"{card.full_name} names nothing that it goes badly with"
            )
        above, seen = list(use.part_of), {card.full_name}
        while above:  # what is a part leads to what is none
            seen.add(whole := catalog.resolve(above.pop(), stage))
            above += [name for name in catalog.card(whole).use.part_of if catalog.resolve(name, whole.split(".")[0]) not in seen]
        assert not use.part_of or any(not catalog.card(name).use.part_of for name in seen), f"{card.full_name} is part of itself"


def test_a_cost_is_read_from_its_sentence():
    sentence = """One pass. XLA at an MLP [64, 10]: at most 1,200 times
the FLOPs and 1.1 times the bytes of a plain step, and 0.05 times its memory more."""
    assert catalog.parse_cost(sentence) == Cost(1200.0, 1.1, 0.05, "a plain step", "an MLP [64, 10]")
    assert catalog.parse_cost("One pass.") is None


def test_costs_are_read_wherever_they_stand():
    for card in CARDS.values():
        assert (card.cost is None) == ("times its memory more." not in " ".join(card.sections["Cost"].split())), card.full_name
    assert sum(card.cost is not None for card in CARDS.values()) > 500


def test_names_are_found_in_full_and_short_and_in_the_own_stage_first():
    assert catalog.matching("sam") == catalog.matching("rj.objectives.sam") == ["objectives.sam"]
    assert catalog.matching("class_prototypes") == ["inputs.class_prototypes", "features.class_prototypes"]
    assert catalog.resolve("class_prototypes", "features") == "features.class_prototypes"
    assert catalog.resolve("weights.l2", "features") == "weights.l2"
    with pytest.raises(ValueError, match=r"regjax\.catalog: no technique 'maxsub'; did you mean maxsup"):
        catalog.matching("maxsub")


@pytest.mark.parametrize("name", CARDS)
def test_no_page_shows_raw_markup(name):
    page = terminal.page(CARDS[name], 80, terminal.Style(False))
    text = page.split("\nExample\n")[0] + page.split("\nReferences\n")[1]
    assert "math::" not in text and "\\" not in text and ":math:" not in text and "``" not in text, text
    assert not re.search(r"\b[dt]?frac(?![a-z])|\blangle|\brangle|\blfloor", text), text


@pytest.mark.parametrize("stage", catalog.STAGES)
def test_every_card_has_a_paper_or_says_that_there_is_none(stage):
    for card in catalog.cards(stage):
        section = card.sections["References"]
        assert bool(card.references) != section.startswith("None: "), f"{card.full_name}: {section}"
        for paper in card.references:
            assert paper.authors and paper.authors[0] != "others" and 1900 < paper.year < 2100
            assert len(paper.title) > 5 and not re.search(r"\bet al\b|arXiv|, \d{4}\b", paper.title), paper.title


def test_the_parser_leaves_no_paper_behind():
    for card in CARDS.values():
        rest = " ".join(card.sections["References"].split())
        for paper in references.parse(rest):
            rest = rest.replace(paper.text, "")
        assert not re.search(r"et al\.|arXiv|(?<![\d.])(?:19|20)\d\d\b", rest), f"{card.full_name}: {rest}"


def test_a_paper_is_the_same_on_all_of_its_cards():
    told: dict[str, tuple] = {}
    for card in CARDS.values():
        for paper in card.references:
            for sort in (paper.arxiv, paper.title):
                if sort is not None:
                    facts = (paper.authors, paper.title, paper.year, paper.venue, paper.arxiv)
                    assert told.setdefault(sort, facts) == facts, card.full_name


def test_references_follow_other_cards():
    own = CARDS["weights.ewc"].references
    assert {paper.title for paper in own} >= {"Overcoming Catastrophic Forgetting in Neural Networks"}
    assert CARDS["weights.ewc_init"].references == own
    both = CARDS["weights.ewc_update"].references
    assert len(both) == len(own) + 1 and set(both) > set(own) and both[0].authors == ("Huszar",)
    assert references.other_card("Those of `drop_path`.") == "drop_path"
    assert references.other_card("See `regjax.weights.si`. More.") == "weights.si"
    assert references.other_card("Smith, See, 2001. See `si`.") is None
