"""Papers as BibTeX: read from prose, keyed, escaped, and understood by a BibTeX parser."""

import json
from pathlib import Path

import pybtex.database
import pytest
import yaml

from regjax import __version__, catalog, cli, references
from regjax.references import Reference

PAPERS = {paper.identity: paper for card in catalog.cards() for paper in card.references}


def run(capsys, *arguments):
    status = cli.main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def facts(text):
    return [(p.authors, p.title, p.year, p.venue, p.arxiv) for p in references.parse(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "As used by Zhou et al., MaxSup: Overcoming Collapse, 2025, arXiv 2502.15798. Paper and code agree (0.2, or 0.1989).",
            [(("Zhou", "others"), "MaxSup: Overcoming Collapse", 2025, None, "2502.15798")],
        ),
        (
            "Rudin, Osher and Fatemi, Total Variation Based, Noise Removal, 1992, Physica D 60, and van den Oord et al., "
            "What (s)?, 2018,\n  ICML, arXiv math/0307152; see `f`.",
            [
                (("Rudin", "Osher", "Fatemi"), "Total Variation Based, Noise Removal", 1992, "Physica D 60", None),
                (("van den Oord", "others"), "What (s)?", 2018, "ICML", "math/0307152"),
            ],
        ),
        (
            "The hinge: Abad Rocamora et al., fast, 2024, arXiv 2401.11618 (Nguyen and O'Connor, Posterior, 2015): weight 1 "
            "before step 2000, then Good, Rational Decisions, 1952, Journal of the Society B 14: more.",
            [
                (("Abad Rocamora", "others"), "fast", 2024, None, "2401.11618"),
                (("Nguyen", "O'Connor"), "Posterior", 2015, None, None),
                (("Good",), "Rational Decisions", 1952, "Journal of the Society B 14", None),
            ],
        ),
        ("See `si`, in 2019, and Figure 3.", []),
    ],
)
def test_papers_are_read_out_of_prose(text, expected):
    assert facts(text) == expected


def test_bibtex_of_each_kind():
    preprint = Reference(("Foret", "others"), "Sharpness & 100% of_it", 2021, None, "2010.01412", "")
    assert (
        references.bibtex(preprint, "foret2021sharpness")
        == r"""@misc{foret2021sharpness,
  author        = {Foret and others},
  title         = {{Sharpness \& 100\% of\_it}},
  year          = {2021},
  eprint        = {2010.01412},
  archivePrefix = {arXiv},
}"""
    )
    proceedings = Reference(("van den Oord", "Wan"), "DropConnect", 2013, "ICML", None, "")
    assert (
        references.bibtex(proceedings, "k")
        == """@inproceedings{k,
  author    = {{van den Oord} and Wan},
  title     = {{DropConnect}},
  year      = {2013},
  booktitle = {International Conference on Machine Learning},
}"""
    )
    article = Reference(("Rudin",), "Noise ~ ^ {x}", 1992, "Physica D 60", None, "")
    assert (
        references.bibtex(article, "k")
        == r"""@article{k,
  author  = {Rudin},
  title   = {{Noise \textasciitilde{} \textasciicircum{} \{x\}}},
  year    = {1992},
  journal = {Physica D},
  volume  = {60},
}"""
    )


def test_keys_are_unique_and_take_more_words_only_where_they_must():
    paper = lambda title, arxiv: Reference(("Zhu", "others"), title, 2023, None, arxiv, "")
    papers = [paper("Improving the Search", "1"), paper("Improving a Net", "2"), paper("On Towards", "3"), paper("A Net", "4")]
    assert references.keys(papers) == {
        "1": "zhu2023improvingsearch",
        "2": "zhu2023improvingnet",
        "3": "zhu2023",
        "4": "zhu2023net",
    }
    keys = references.keys(PAPERS.values())
    assert len(set(keys.values())) == len(keys) == len(PAPERS) > 250
    assert all(key.isascii() and key.isalnum() and key == key.lower() for key in keys.values())


def test_cite_names_each_paper_once(capsys):
    status, out, _ = run(capsys, "cite", "maxsup", "sam", "max_suppression")
    assert status == 0
    assert [line for line in out.splitlines() if line.startswith("@")] == [
        "@misc{zhou2025maxsup,",
        "@misc{foret2021sharpness,",
        "@misc{kwon2021asam,",
    ]


def test_all_of_it_parses_with_authors_titles_and_years(capsys):
    status, out, _ = run(capsys, "cite", "--all", "regjax")
    parsed = pybtex.database.parse_string(out, "bibtex").entries
    keys = references.keys(PAPERS.values())
    assert status == 0 and set(parsed) == {*keys.values(), "regjax"}
    for identity, paper in PAPERS.items():
        entry = parsed[keys[identity]]
        names = [" ".join([*person.prelast_names, *person.last_names]).strip("{}") for person in entry.persons["author"]]
        assert names == list(paper.authors) and not any(person.first_names for person in entry.persons["author"])
        assert entry.fields["title"].strip("{}").replace("\\", "") == paper.title
        assert entry.fields["year"] == str(paper.year)
        assert (entry.fields.get("eprint"), "archivePrefix" in entry.fields) == (paper.arxiv, paper.arxiv is not None)


def test_one_stage_and_json(capsys):
    status, out, _ = run(capsys, "cite", "--stage", "schedules", "--json")
    found = json.loads(out)
    expected = {paper.identity for card in catalog.cards("schedules") for paper in card.references}
    assert status == 0 and {entry["arxiv"] for entry in found} == expected
    assert [entry["key"] for entry in found] == sorted(entry["key"] for entry in found)
    assert found[0]["authors"] and found[0]["title"] and found[0]["year"]


def test_the_library_itself(capsys):
    status, out, err = run(capsys, "cite", "regjax", "kernel_matrix")
    assert (status, err) == (0, "weights.kernel_matrix is of no paper\n")
    assert (
        out
        == f"""@misc{{regjax,
  author = {{{{The regjax developers}}}},
  title  = {{{{regjax: regularisation for JAX}}}},
  year   = {{2026}},
  note   = {{Version {__version__}, licence Apache-2.0}},
}}
"""
    )


def test_the_citation_file_agrees():
    text = yaml.safe_load((Path(__file__).parent.parent / "CITATION.cff").read_text())
    project = references.PROJECT
    assert (text["title"], text["version"], text["license"]) == (project.title, __version__, "Apache-2.0")
    assert [author["name"] for author in text["authors"]] == list(project.authors)


def test_what_is_refused(capsys):
    status, out, err = run(capsys, "cite")
    assert (status, out) == (2, "") and err == (
        "python -m regjax cite: name techniques, such as `cite sam maxsup`, or give --all or --stage\n"
    )
    status, out, err = run(capsys, "cite", "sma")
    assert (status, out) == (2, "") and err.startswith("regjax.catalog: no technique 'sma'; did you mean ") and "sam" in err
