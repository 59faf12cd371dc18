"""The benchmark: turns, ratios, XLA's counts, the tables, and a whole run without peers."""

import importlib
import json
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.bench import __main__ as command
from experiments.bench import gradients, inputs, libraries, losses, networks, objectives, peers, results, step, timing
from experiments.bench.peers import cases, formulas, trees


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


def test_bounds_may_be_absolute_or_hold_a_difference():
    sleep = timing.Subject(lambda: time.sleep(0.002), {"flops": 3e6, "bytes": 1e6, "temporary": 0.0})
    bounds = [
        results.Bound("sleep", None, 1.0),
        results.Bound("sleep", None, 4.0, "flops"),
        results.Bound("sleep", "other", 1e-5, "difference"),
    ]
    panel = results.Panel("p", {"sleep": sleep}, bounds, differences={("sleep", "other"): 2e-7}, images=6)
    measured = results.measure(panel, turns=3, seconds=1e-9)
    late, counted, same = measured["bounds"]
    assert not late["holds"] and late["ratio"] == measured["subjects"]["sleep"]["median_ms"] >= 2
    assert counted["holds"] and counted["ratio"] == 3.0 and same["holds"] and same["ratio"] == 2e-7
    machine = {"device": "d", "threads": 1, "cores": 2, "jax": "0", "python": "3"}
    text = results.markdown({"suite": "peers", "machine": machine, "turns": 3, "panels": [json.loads(json.dumps(measured))]})
    assert "| sleep |  | flops | 3.00 MFLOP | 4.00 MFLOP | holds |" in text
    assert "| sleep | other | difference | 2e-07 | 1e-05 | holds |" in text
    assert "| images/s |" in text and f" | {6e3 / measured['subjects']['sleep']['best_ms']:,.0f} | 3.0 |" in text


def test_gradients_cost_a_hundredth_of_a_step():
    network = networks.mlp(*gradients.SHAPES["mlp"])
    base = gradients.BASES["AdamW"]
    makers = gradients.transformations(network[1], base)
    plain = gradients.step(network, base()).cost
    for name in ("orthogonal_gradient", "cautious_weight_decay", "fixed_mask"):
        counted = gradients.step(network, makers[name]()).cost
        assert plain["flops"] < counted["flops"] < gradients.MOST * plain["flops"], name
        assert counted["temporary"] < 1.01 * plain["temporary"], name


@pytest.mark.slow
@pytest.mark.parametrize("shape", ["tiny", "tiny-resnet"])
def test_every_transformation_makes_a_step(shape):
    for panel in gradients.panels(gradients.SHAPES[shape], 1):
        measured = results.measure(panel, turns=1, seconds=1e-9)
        assert set(measured["subjects"]) == set(measured["ratios"]) and "orthogonal_gradient" in measured["subjects"]


def test_the_pipeline_costs_what_the_step_by_hand_does():
    sizes = step.SHAPES["mlp"]
    batch = step.example_batch(sizes)
    hand = step.by_hand(sizes, batch)
    whole = step.recipe_step(step.make_recipe("baseline", step.setting(sizes)), sizes, batch)
    assert whole.cost["flops"] <= step.BOUNDS["baseline"] * hand.cost["flops"]
    assert whole.cost["temporary"] <= step.MEMORY * hand.cost["temporary"]
    for subject in (hand, whole):
        subject.run()


@pytest.mark.slow
def test_every_recipe_and_way_to_call_a_step_has_its_cost():
    first, second = step.panels(step.SHAPES["tiny"], 1)
    measured = results.measure(first, turns=1, seconds=1e-9)
    assert set(step.RECIPES) < set(measured["subjects"]) and measured["ratios"][step.PLAIN] == 1.0
    assert len(results.measure(second, turns=1, seconds=1e-9)["subjects"]) == 4


def numpy_reference(name, case):
    """The value of a case, or the new weights, in float64."""
    inputs = jax.tree.map(lambda x: np.asarray(x, np.float64) if np.issubdtype(x.dtype, np.floating) else x, case.inputs)
    log_softmax = lambda z: z - np.log(np.exp(z).sum(-1, keepdims=True))
    own = lambda x, y: np.take_along_axis(x, y[:, None], -1)[:, 0]
    if name in ("orthogonal_gradient", "lawn"):
        weights, grads = inputs[:2]
        out = []
        for w, g in zip(weights, grads, strict=True):
            left = g - np.sum(w * g) / np.sum(w * w) * w
            if name == "lawn":  # the first step of momentum is plain
                moved = w - trees.RATE * left
                out.append(np.linalg.norm(w) / np.linalg.norm(moved) * moved)
            else:
                out.append(left * np.linalg.norm(g) / np.linalg.norm(left))
        return out
    if name == "hypersparse_penalty":
        flat = np.concatenate([w.ravel() for w in inputs[0]])
        s = 0.6585 / np.sort(np.abs(flat))[int(0.9 * flat.size)]
        squashed = np.tanh(s * np.abs(flat))
        return [np.sign(flat) * s * (1 - squashed**2) * np.abs(flat).sum() / squashed.sum()]
    if name == "stateful_spectral_penalty":
        total = 0.0
        for w, b, u in zip(*inputs, strict=True):
            v = w @ u / np.linalg.norm(w @ u)
            total += (np.linalg.norm(w.T @ v) ** 2 - 1) ** 2 + np.sum(b * b) ** 2
        return [total]
    if name == "imbsam":
        weights, x, y, rare = inputs

        def losses(flat):
            h = x
            for i in range(0, len(flat), 2):
                h = (np.maximum(h, 0) if i else h) @ flat[i + 1] + flat[i]
            return -own(log_softmax(h), y)

        slopes = []
        for i, w in enumerate(weights):  # the gradient of the rare classes by central differences
            slope = np.zeros_like(w)
            for place in np.ndindex(*w.shape):
                ends = []
                for sign in (1, -1):
                    moved = [v.copy() for v in weights]
                    moved[i][place] += sign * 1e-6
                    ends.append(np.mean(losses(moved) * rare))
                slope[place] = (ends[0] - ends[1]) / 2e-6
            slopes.append(slope)
        norm = np.sqrt(sum(np.sum(s * s) for s in slopes))
        at = [w + trees.RHO * s / norm for w, s in zip(weights, slopes, strict=True)]
        return [np.mean(losses(weights) * ~rare) + np.mean(losses(at) * rare)]
    if name == "info_nce":
        q, k = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in inputs)
        cosines = q @ k.T / 0.07
        return [-np.mean(np.diag(log_softmax(cosines)) + np.diag(log_softmax(cosines.T))) / 2]
    z, *rest = inputs
    log_p = log_softmax(z)
    if name == "saf":
        log_q, log_p = (log_softmax(x / 5.0) for x in (rest[0], z))
        return [25.0 * np.sum(np.exp(log_q) * (log_q - log_p)) / len(z)]
    if name == "nkd":
        t, y = rest
        others = np.arange(z.shape[1]) != y[:, None]
        kept = lambda x: log_softmax(x[others].reshape(len(x), -1))
        rest_part = -np.sum(np.exp(kept(t)) * kept(z), -1)
        return [np.mean(-own(np.exp(log_softmax(t)) * log_p, y) + 1.5 * rest_part)]
    y = rest[0]
    surprise, p = -own(log_p, y), own(np.exp(log_p), y)
    if name == "elr":
        clipped = np.clip(np.exp(log_p), 1e-4, 1 - 1e-4)
        t = 0.7 * rest[1] + 0.3 * clipped / clipped.sum(-1, keepdims=True)
        return [np.mean(surprise + 3.0 * np.log(1 - np.sum(t * clipped, -1)))]
    s = np.where(z < 0, 1 / (1 - z), z + 1)
    return [
        np.mean(
            {
                "cross-entropy": surprise,
                "label_smoothing": 0.9 * surprise - 0.1 * log_p.mean(-1),
                "focal": (1 - p) ** 2 * surprise,
                "poly1_cross_entropy": surprise + 1 - p,
                "maxsup": surprise + 0.1 * (z.max(-1) - z.mean(-1)),
                "generalized_cross_entropy": (1 - p**0.7) / 0.7,
                "symmetric_cross_entropy": 0.1 * surprise - np.log(1e-4) * (1 - p),
                "stablemax_cross_entropy": -np.log(own(s / s.sum(-1, keepdims=True), y)),
            }[name]
        )
    ]


COMPARED = {
    "losses": formulas.library_cases,
    "authors": formulas.authors_cases,
    "contrastive": formulas.contrastive_cases,
    "steps": trees.step_cases,
}


@pytest.mark.parametrize("topic", COMPARED)
def test_what_is_compared_is_the_same(topic):
    # In PyTorch too, with all gradients, where it is installed: the suite does the same before it times anything.
    torch = libraries.available("torch")
    for name, case in COMPARED[topic](peers.SMALL[topic]).items():
        result = [np.asarray(x) for x in jax.tree.leaves(jax.jit(case.ours)(*case.inputs))]
        expected = numpy_reference(name, case)
        ours = [np.concatenate([x.ravel() for x in result])] if name == "hypersparse_penalty" else result[: len(expected)]
        assert cases.difference(ours, expected) < cases.SAME, name
        if torch:
            _, theirs = cases.torch_subject(case.theirs, *case.inputs, threads=1)
            assert cases.difference(result, theirs) < cases.SAME, name


def test_nt_xent_by_one_product_is_optax_s_and_reads_less():
    shape = (32, 8)
    panel = formulas.contrastive(shape, 1)
    names = ("NT-Xent by label_smoothing", "optax.losses.ntxent")
    ours, theirs = (panel.subjects[name].cost for name in names)
    assert panel.differences[names] < cases.SAME
    assert ours["bytes"] < 0.5 * theirs["bytes"] and ours["temporary"] < 0.5 * theirs["temporary"]


def test_masks_projections_and_norms_are_those_of_their_peers():
    for panel in (trees.masks(peers.SMALL["masks"], 1), trees.weights(peers.SMALL["weights"], 1)):
        held = [bound for bound in panel.bounds if bound.quantity == "difference"]
        assert len(held) >= 2
        for bound in held:
            assert panel.differences[bound.subject, bound.against] <= bound.at_most, bound


@pytest.mark.slow
def test_every_topic_of_peers_can_be_measured():
    panels = list(peers.panels(peers.SHAPES["tiny"], 1))
    assert len(panels) == len(peers.SMALL)
    for panel in panels:
        assert results.measure(panel, turns=1, seconds=1e-9)["subjects"]


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


@pytest.mark.slow
def test_a_run_without_peers_keeps_its_results(tmp_path, monkeypatch, capsys):
    real = importlib.import_module

    def without_peers(name, *args):
        if name.split(".")[0] in ("torch", "keras"):
            raise ImportError(f"no {name}")
        return real(name, *args)

    monkeypatch.setattr(importlib, "import_module", without_peers)
    assert not libraries.available("torch")
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
