"""The benchmark: turns, ratios, XLA's counts, the tables, and a whole run without peers."""

import importlib
import json
import time

import jax
import jax.numpy as jnp
import pytest

from experiments.bench import __main__ as command
from experiments.bench import inputs, losses, objectives, peers, results, timing


def test_subjects_take_turns_and_ratios_are_taken_turn_by_turn():
    calls = []
    subjects = {name: timing.Subject(lambda n=name: calls.append(n)) for name in "abc"}
    subjects["slow"] = timing.Subject(lambda: (calls.append("slow"), time.sleep(0.002)), turns=2)
    times = timing.alternate(subjects, turns=4, seconds=1e-9)
    assert {name: len(values) for name, values in times.items()} == {"a": 4, "b": 4, "c": 4, "slow": 2}
    in_turns = calls[-(3 * 4 + 2) :]
    assert in_turns == ["a", "b", "c", "slow", "b", "c", "slow", "a", "c", "a", "b", "a", "b", "c"]
    assert min(times["slow"]) >= 0.002
    assert timing.ratio([2.0, 6.0, 9.0, 100.0], [1.0, 2.0, 3.0]) == (3.0, 2.5, 3.0)


def test_costs_are_those_of_the_compiler():
    x, y = jnp.ones((64, 64)), jnp.ones((64, 64))
    counted = timing.cost(jnp.matmul, x, y)
    assert counted["flops"] == pytest.approx(2 * 64**3, rel=0.01)
    assert counted["bytes"] == pytest.approx(3 * x.nbytes, rel=0.01)


@pytest.mark.parametrize("name", inputs.COPIES)
def test_transforms_read_and_write_the_batch_once(name):
    shape = inputs.SHAPES["32"]
    images, labels = jax.ShapeDtypeStruct(shape, jnp.float32), jax.ShapeDtypeStruct((shape[0], 10), jnp.float32)
    counted = timing.cost(inputs.COPIES[name], jax.random.key(0), images, labels)
    batch = 4 * shape[0] * shape[1] * shape[2] * shape[3]
    assert 2 * batch < counted["bytes"] < 2.2 * batch and counted["temporary"] < 0.05 * batch


@pytest.mark.parametrize("name", losses.ONE_NETWORK)
def test_losses_read_the_logits_about_once_each_way(name):
    z, y = jax.ShapeDtypeStruct((8192, 1000), jnp.float32), jax.ShapeDtypeStruct((8192,), jnp.int32)
    counted = timing.cost(jax.value_and_grad(lambda z, y: losses.ONE_NETWORK[name](z, y).mean()), z, y)
    batch = 4 * 8192 * 1000
    # Cross-entropy with a gather and its scatter counts 9 batches.
    assert counted["bytes"] < losses.EXCESS.get(name, 1.5) * 9 * batch


def test_bounds_say_by_how_much_they_are_missed():
    run = timing.Subject(lambda: time.sleep(0.002))
    bounds = [results.Bound("slow", "quick", 1e-6), results.Bound("quick", "slow", 1.0)]
    panel = results.Panel("sleep", {"quick": timing.Subject(lambda: None), "slow": run}, bounds)
    measured = results.measure(panel, turns=3, seconds=1e-9)
    missed, held = measured["bounds"]
    assert not missed["holds"] and held["holds"] and held["ratio"] < 0.5
    machine = {"device": "d", "threads": 1, "cores": 2, "jax": "0", "python": "3"}
    text = results.markdown({"suite": "inputs", "machine": machine, "turns": 3, "panels": [measured]})
    assert "times over" in text and "| holds |" in text and text.count("\n| slow |") == 2


def test_sam_costs_two_plain_steps_and_no_more_than_as_a_wrapper_of_the_optimiser():
    # Without PyTorch's own threads: what XLA counts is enough here.
    panel = next(objectives.panels(objectives.SHAPES["wide"], 1))
    plain, ours, opaque, transparent = (subject.cost for subject in list(panel.subjects.values())[:4])
    assert ours["flops"] <= 2.02 * plain["flops"]
    assert ours["temporary"] <= 1.001 * opaque["temporary"] < 0.5 * transparent["temporary"]
    assert ours["bytes"] <= 1.001 * opaque["bytes"]
    for subject in panel.subjects.values():
        subject.run()


@pytest.mark.slow
def test_every_objective_has_its_cost_beside_the_plain_step():
    panel = list(objectives.panels(objectives.SHAPES["tiny"], 1))[1]
    measured = results.measure(panel, turns=1, seconds=1e-9)
    assert measured["ratios"][objectives.PLAIN] == 1.0
    machine = {"device": "d", "threads": 1, "cores": 2, "jax": "0", "python": "3"}
    text = results.markdown({"suite": "objectives", "machine": machine, "turns": 1, "panels": [measured]})
    assert text.count("\n| sam") == 3 + sum(bound.subject.startswith("sam") for bound in panel.bounds)
    assert "| time / plain step | FLOPs / |" in text and "| plain step | " in text and " | 1.00 | 1.00 | 1.00 | 1.00 |" in text


def test_a_run_without_peers_keeps_its_results(tmp_path, monkeypatch, capsys):
    real = importlib.import_module

    def without_peers(name, *args):
        if name.split(".")[0] in ("torch", "keras"):
            raise ImportError(f"no {name}")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without_peers)
    assert not peers.available("torch")
    arguments = f"--shapes tiny --threads 0 --turns 1 --seconds 1e-9 --out {tmp_path} --json".split()
    assert command.main(arguments) == 0
    output = capsys.readouterr()
    printed = json.loads(output.out)
    (file,) = tmp_path.glob("inputs-*.json")
    assert json.loads(file.read_text()) == printed
    assert "skipped: " in output.err and "pip install .[bench]" in output.err
    titles = [panel["title"] for panel in printed["panels"]]
    assert len(titles) == 3 and all(title.startswith("8x16x16x3: ") for title in titles)
    assert set(inputs.COPIES) < set(printed["panels"][0]["subjects"])
    assert "jax" in printed["machine"]


def test_settings_that_cannot_run_are_refused(capsys):
    with pytest.raises(SystemExit):
        command.main(["--turns", "0"])
    assert "turns must be at least 1" in capsys.readouterr().err
