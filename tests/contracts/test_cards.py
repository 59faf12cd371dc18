"""Every public technique has an example, a whole method card, and errors that name what is wrong."""

import inspect
import re

import pytest

from regjax import catalog
from tests.contracts.laws import law

TECHNIQUES = catalog.techniques()


def test_every_public_technique_has_an_example_and_every_example_a_technique(examples):
    assert {e.name for e in examples} == set(TECHNIQUES)


@law()
def test_card_is_whole_and_agrees_with_the_signature(example):
    card = catalog.card(example.name)
    assert list(card.sections) == list(catalog.SECTIONS), "sections are missing or out of order"
    assert card.summary.endswith((".", "?")) and len(card.summary) <= 160, "the first line is one sentence"
    assert all(text for text in card.sections.values()), "a section is empty"
    technique = catalog.techniques()[example.name]
    arguments = [p for p in inspect.signature(technique).parameters if p not in ("self", "args", "kwargs", "extra_args")]
    entries = re.findall(r"^(?:\*\*|\*)?([\w, `*]+?)(?: \([^)]*\))?:", card.sections["Args"], re.MULTILINE)
    documented = {word for entry in entries for word in re.findall(r"\w+", entry)}
    assert set(arguments) <= documented, f"undocumented: {set(arguments) - documented}"
    assert "ValueError" in card.sections["Raises"] or card.sections["Raises"].lower().startswith(("nothing", "none"))
    assert ">>>" in card.sections["Example"], "the example is no doctest"
    assert "rj." in card.sections["Example"], "the example does not call the public name"


def refusal(thunk) -> str:
    """What a call with a bad argument is told."""
    try:
        thunk()
    except ValueError as error:
        return str(error)
    return "it was accepted"


@law(lambda e: e.bad)
def test_bad_arguments_are_named(example):
    for what, thunk in example.bad.items():
        message = refusal(thunk)
        assert f"regjax.{example.name}" in message, f"{what}: {message}"
        assert what.split(":")[0] in message, f"{what}: {message}"
        assert re.search(r"must .*got ", message, re.DOTALL), f"{what}: {message}"


WITH_STRENGTHS = [name for name in TECHNIQUES if catalog.card(name).strengths]


@pytest.mark.parametrize("name", WITH_STRENGTHS)
def test_not_a_number_is_refused_for_every_strength(name, examples):
    refused = {what.split(":")[0] for e in examples if e.name == name for what in e.bad}
    assert set(catalog.card(name).strengths) <= refused, "a strength has no example of a refused value"


@pytest.mark.parametrize("name", TECHNIQUES)
def test_some_bad_argument_is_tried_where_any_can_be_wrong(name, examples):
    parameters = inspect.signature(TECHNIQUES[name]).parameters
    if parameters and not catalog.card(name).sections["Raises"].lower().startswith(("nothing", "none")):
        assert any(e.bad for e in examples if e.name == name)
