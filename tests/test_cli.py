"""The command line: lists and their filters, pages, what a terminal and what a pipe gets."""

import fcntl
import json
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import threading

import pytest

from regjax import catalog, cli, terminal
from regjax.catalog import Card, Cost, Use

CARDS = catalog.cards()
SHOWN = [card for card in CARDS if not card.use.part_of]


def run(capsys, *arguments):
    status = cli.main(arguments)
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def names(out):
    return [f"{entry['stage']}.{entry['name']}" for entry in json.loads(out)]


def test_a_pipe_gets_json_and_parts_on_demand(capsys):
    status, out, err = run(capsys, "list")
    assert status == 0 and names(out) == [card.full_name for card in SHOWN]
    assert err == f"{len(CARDS) - len(SHOWN)} parts of other techniques left out; --parts adds them\n"
    status, out, err = run(capsys, "list", "--parts", "--stage", "losses")
    assert (status, err) == (0, "") and names(out) == [name for name in catalog.techniques() if name.startswith("losses.")]
    card = next(entry for entry in json.loads(out) if entry["name"] == "maxsup")
    assert card["strengths"] == ["weight"] and card["references"][0]["arxiv"] == "2502.15798"
    assert card["cost"]["of"] == "cross-entropy" and "2502.15798" in card["sections"]["References"]


def test_filters(capsys):
    having = lambda *symptoms: [card.full_name for card in SHOWN if set(symptoms) & set(card.use.symptoms)]
    assert names(run(capsys, "list", "--symptom", "sharp minima")[1]) == having("sharp minima")
    both = names(run(capsys, "list", "--symptom", "sharp minima", "--symptom", "long tails")[1])
    assert both == having("sharp minima", "long tails") and "objectives.sam" in both and len(both) > len(having("long tails"))
    out = run(capsys, "list", "--search", "SHARPNESS minimisation", "--stage", "objectives")[1]
    assert "objectives.gsam" in names(out) and "objectives.vat" not in names(out)
    _, out, err = run(capsys, "list", "--parts", "--max-flops", "1.2", "--max-memory", "0.5", "--max-bytes", "2")
    within = lambda c: c.cost and c.cost.flops <= 1.2 and c.cost.memory <= 0.5 and c.cost.bytes <= 2
    assert names(out) == [card.full_name for card in CARDS if within(card)]
    assert err == f"{sum(card.cost is None for card in CARDS)} techniques without a counted cost left out\n"


def test_orders(capsys):
    found = json.loads(run(capsys, "list", "--parts", "--sort", "flops")[1])
    flops = [entry["cost"]["flops"] if entry["cost"] else float("inf") for entry in found]
    assert flops == sorted(flops) and len(found) == len(CARDS)
    by_name = [entry["name"].lower() for entry in json.loads(run(capsys, "list", "--sort", "name")[1])]
    assert by_name == sorted(by_name)


def made(name, flops, summary, *symptoms, stage="losses"):
    cost = None if flops is None else Cost(flops, 1.0, 0.0, "a copy", "[1]")
    return Card(name, stage, summary, "", f"{name}(x)", (), Use(symptoms), cost, (), {})


MADE = [
    made("first", 2.2, "Does one thing after the other until all are done, again and again.", "sharp minima"),
    made("a_name_that_is_much_too_long_here", 160000.0, "A ``loss``.", "noisy labels", "delayed generalisation"),
    made("last", None, "Nothing.", stage="weights"),
]


def test_the_table_is_fitted_to_the_width():
    assert (
        terminal.table(MADE, 60, terminal.Style(False))
        == """  name                         FLOPs

losses
  first                         2.2x  Does one thing ...
  a_name_that_is_much_too_long_here  160,000x  A loss.

weights
  last                             -  Nothing."""
    )
    assert terminal.table(MADE[:2], 110, terminal.Style(False), by_stage=False).splitlines() == [
        "  name                                     FLOPs  for",
        "  losses.first                              2.2x  sharp minima              Does one thing after the other ...",
        "  losses.a_name_that_is_much_too_long_here  160,000x  noisy labels +1           A loss.",
    ]


def test_colours_surround_whole_cells():
    row = terminal.table(MADE[:1], 60, terminal.Style(True)).splitlines()[-1]
    assert row == "  \033[36mfirst\033[0m  \033[32m    2.2x\033[0m  Does one thing after the other until ..."


@pytest.mark.parametrize(
    ("environment", "coloured"),
    [({}, False), ({"FORCE_COLOR": "1"}, True), ({"FORCE_COLOR": "0"}, False), ({"FORCE_COLOR": "1", "NO_COLOR": "1"}, False)],
)
def test_colours_obey_the_environment(capsys, monkeypatch, environment, coloured):
    for name in ("FORCE_COLOR", "NO_COLOR"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ("\033[" in run(capsys, "show", "--text", "sam")[1]) == coloured


def in_terminal(monkeypatch, columns, *arguments):
    """What a command writes to a terminal of so many columns."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
    read = []

    def drain():
        while not b"".join(read).endswith(b"\0"):
            read.append(os.read(master, 65536))

    reader = threading.Thread(target=drain)
    reader.start()
    for name in ("COLUMNS", "NO_COLOR", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with open(slave, "w") as screen, monkeypatch.context() as patched:
        patched.setattr(sys, "stdout", screen)
        patched.setattr(sys, "__stdout__", screen)
        status = cli.main(arguments)
        screen.write("\0")
        screen.flush()
        reader.join()
    os.close(master)
    return status, b"".join(read).decode().replace("\r\n", "\n").rstrip("\0")


def test_a_terminal_gets_coloured_lines_that_fit(monkeypatch):
    known = {card.name for card in SHOWN if card.stage == "objectives"}
    for columns in (60, 120):
        status, out = in_terminal(monkeypatch, columns, "list", "--stage", "objectives")
        text = re.sub(r"\033\[[\d;]*m", "", out)
        assert status == 0 and out != text and text.splitlines()[2] == "objectives"
        rows = [line.split()[0] for line in text.splitlines()[3:] if line.startswith("  ")]
        assert set(rows) == known and max(map(len, text.splitlines())) <= columns
        assert ("sharp minima" in text) == (columns == 120)
        status, out = in_terminal(monkeypatch, columns, "show", "sam")
        text = re.sub(r"\033\[[\d;]*m", "", out)
        assert status == 0 and out.startswith("\033[1;36mobjectives.sam\033[0m\n\n")
        example, code = text.split("\nExample\n")[1].split("\n\nReferences\n")[0], text.split("\nExample\n")
        assert ">>> " in example and max(map(len, "".join([code[0], code[1][len(example) :]]).splitlines())) <= columns


def test_a_page_has_everything_with_use_first(capsys):
    status, out, _ = run(capsys, "show", "--text", "sam", "si_update")
    assert status == 0
    order = ["objectives.sam", "regjax.objectives.sam(loss_fn", "Symptoms    sharp minima", "When        ", "Badly with  "]
    order += ["\nFormula\n", "\nArgs\n  loss_fn     loss_fn(params", "\nReturns\n", "\nRaises\n  ValueError  ", "\nCost\n"]
    order += ["\nExample\n  >>> ", "\nReferences\n  Foret et al.", "\nSee also\n"]
    order += ["\nweights.si_update\n", "Part of     si\n", "See `si`.", "- Zenke et al.", "See also\n  part of   si\n"]
    places = [out.index(text) for text in order]
    assert places == sorted(places)


def test_show_lists_the_parts_of_a_technique(capsys):
    page = run(capsys, "show", "--text", "si")[1].split("\nSee also\n")[1]
    assert re.sub(r"\s+", " ", page).strip().startswith("parts si_init, si_step, si_update")


def test_show_into_a_pipe_is_json(capsys):
    status, out, _ = run(capsys, "show", "sam")
    (card,) = json.loads(out)
    assert status == 0 and card["use"]["symptoms"][0] == "sharp minima" and card["cost"]["of"] == "a plain training step"


def test_symptoms(capsys):
    counts = {symptom: [c.full_name for c in SHOWN if symptom in c.use.symptoms] for symptom in catalog.SYMPTOMS}
    assert json.loads(run(capsys, "symptoms")[1]) == counts
    rows = run(capsys, "symptoms", "--text")[1].splitlines()
    assert [(row[:24].strip(), int(row[24:28])) for row in rows] == [(s, len(of)) for s, of in counts.items()]


def test_formulas_keep_their_lines_and_paragraphs_are_filled():
    body = """.. math::

    a = \\frac{x}{y},
    b = c

A long
paragraph.

1. One
   item.
2. Two."""
    assert terminal._text(body, 80) == "a = x/y,\nb = c\n\nA long paragraph.\n\n1. One item.\n2. Two."


def test_alone_it_prints_help(capsys):
    status, out, _ = run(capsys)
    assert status == 0 and out.startswith("usage: python -m regjax") and "examples:" in out and "cite sam maxsup" in out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["show", "maxsub"], "regjax.catalog: no technique 'maxsub'; did you mean maxsup"),
        (["list", "--stage", "loses"], "regjax.catalog: no stage 'loses'; did you mean losses"),
        (["list", "--symptom", "noisy label"], "regjax.catalog: no symptom 'noisy label'; did you mean noisy labels"),
        (
            ["list", "--max-flops", "-1"],
            "python -m regjax list: argument --max-flops: must be a finite number of at least 0, got -1",
        ),
        (
            ["list", "--max-bytes", "few"],
            "python -m regjax list: argument --max-bytes: must be a finite number of at least 0, got few",
        ),
        (["list", "--json", "--text"], "python -m regjax list: argument --text: not allowed with argument --json"),
        (["shew"], "python -m regjax: argument COMMAND: invalid choice: 'shew'"),
    ],
)
def test_what_is_refused_is_said_in_one_line(capsys, arguments, said):
    try:
        status = cli.main(arguments)
    except SystemExit as stopped:
        status = stopped.code
    captured = capsys.readouterr()
    assert (status, captured.out) == (2, "") and captured.err.startswith(said) and captured.err.count("\n") == 1


def test_a_reader_that_has_seen_enough_is_no_error():
    command = [sys.executable, "-m", "regjax", "list", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as running:
        assert running.stdout.readline() == "[\n"
        running.stdout.close()
        complaints = running.stderr.read()
    assert running.returncode == 0 and "Error" not in complaints
