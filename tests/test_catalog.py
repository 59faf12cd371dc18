"""The catalogue's command line: listing, one card, JSON, and unknown names."""

import json

import pytest

from regjax import catalog


def test_list_has_every_technique_under_its_stage(capsys):
    assert catalog.main(["list"]) == 0
    text = capsys.readouterr().out
    assert [line for line in text.splitlines() if line and not line.startswith(" ")] == list(catalog.STAGES)
    for name in catalog.techniques():
        assert f"  {name.split('.')[1]} " in text


def test_list_one_stage_as_json(capsys):
    assert catalog.main(["list", "--stage", "losses", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {card["stage"] for card in found} == {"losses"}
    card = next(card for card in found if card["name"] == "maxsup")
    assert card["strengths"] == ["weight"] and "2502.15798" in card["sections"]["References"]


def test_show_prints_formula_arguments_cost_references_and_example(capsys):
    assert catalog.main(["show", "sam"]) == 0
    text = capsys.readouterr().out
    assert text.startswith("objectives.sam\n")
    for section in catalog.SECTIONS:
        assert f"\n{section}:\n" in text
    assert "rho" in text and "2010.01412" in text and ">>> " in text
    assert "\\frac" not in text and ":math:" not in text


@pytest.mark.parametrize("name", list(catalog.techniques()))
def test_no_page_shows_raw_markup(name):
    page = catalog._page(catalog.card(name))
    text = page.split("Example:\n")[0]
    assert "math::" not in text and "\\" not in text and ":math:" not in text, text


def test_unknown_names_get_the_nearest(capsys):
    assert catalog.main(["show", "maxsub"]) == 2
    assert "maxsup" in capsys.readouterr().err
    assert catalog.main(["list", "--stage", "loses"]) == 2
    assert "losses" in capsys.readouterr().err
