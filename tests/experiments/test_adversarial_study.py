"""The adversarial study: its data, its objectives, and the whole of it at a tiny size."""

import json

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import pytest
from flax import nnx

import regjax as rj
from experiments.studies import adversarial, adversarial_training
from experiments.studies.adversarial_training import Data, Programs, make_data

pytestmark = pytest.mark.slow


class Linear(nnx.Module):
    """In place of the network, which takes longer to compile."""

    def __init__(self, width, *, rngs):
        self.linear = nnx.Linear(64, 10, rngs=rngs)

    def __call__(self, x):
        return self.linear(x.reshape(len(x), -1))


def test_patterns_are_planted_by_class():
    plain, made = make_data(3, 100, 50, 0.0), make_data(3, 100, 50, 0.25)
    assert all(np.array_equal(a, b) for a, b in zip(made, make_data(3, 100, 50, 0.25), strict=True))
    assert made.images.shape == (100, 8, 8, 1) and made.test_images.shape == (50, 8, 8, 1)
    assert plain.images.min() == 0 and plain.images.max() == 1 and np.array_equal(plain.labels, made.labels)
    images, labels = (np.concatenate([getattr(made, name), getattr(made, f"test_{name}")]) for name in ("images", "labels"))
    patterns = images - np.concatenate([plain.images, plain.test_images])
    np.testing.assert_allclose(np.abs(patterns), 0.25, atol=1e-6)
    for k in range(10):
        assert np.ptp(patterns[labels == k], axis=0).max() < 1e-6
    rows = {tuple(np.sign(patterns[labels == k][0]).ravel()) for k in range(10)}
    assert len(rows) == 10
    assert not np.array_equal(made.images, make_data(4, 100, 50, 0.25).images)


def test_bad_options_are_named():
    wrong = ({"seeds": 0}, {"batch_size": 2000}, {"train": 1700}, {"every": 7}, {"runs": ("free",)}, {"rise": 0.7, "fall": 0.7})
    for options in wrong:
        with pytest.raises(ValueError, match="AdversarialConfig"):
            adversarial.AdversarialConfig(**options)


def test_objectives_are_those_of_the_library(monkeypatch):
    monkeypatch.setattr(adversarial_training, "Net", Linear)
    config = adversarial.AdversarialConfig(pgd_steps=3)
    programs, key = Programs(config), jax.random.key(1)
    data, weight = make_data(0, 12, 4, config.planted), jnp.float32(70.0)
    params = programs.init(0)[0]
    values = {name: programs.objective(spec)(params, key, *data[:2], weight) for name, spec in adversarial.RUNS.items()}
    elle = rj.objectives.elle(programs.losses, epsilon=config.epsilon, weight=0.0, low=None, high=None, with_info=True)
    plain, info = elle(params, key, *data[:2], weight=0.0)
    # A linear network's loss bends little, and FGSM is PGD's equal.
    assert 0 < info["error"] < 1e-3 and values["fgsm"][0] == pytest.approx(float(plain), rel=1e-5)
    assert values["elle"][0] == pytest.approx(float(plain + config.elle_weight * info["error"]), rel=1e-5)
    assert values["elle_a"][0] == pytest.approx(float(plain + 70 * info["error"]), rel=1e-5)
    assert values["elle_a"][1] == values["elle"][1] == info["error"] and values["aaer"][1] == 0
    assert values["aaer"][0] == pytest.approx(float(values["fgsm_rs"][0]), rel=1e-5), "no example is abnormal"
    assert values["pgd"][0] < 1.1 * values["fgsm"][0] < values["n_fgsm"][0] * 1.2
    assert values["plain_fgsm"][0] == values["fgsm"][0]
    assert programs.trainer(adversarial.RUNS["plain_fgsm"]) is programs.trainer(adversarial.RUNS["fgsm"])


def test_study_runs_and_keeps_earlier_results(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(adversarial_training, "Net", Linear)
    monkeypatch.setattr(jax.random, "permutation", lambda key, num: num - 1 - np.arange(num))  # a sort compiles slowly
    seen = []
    make = lambda *arguments: seen.append(arguments) or Data(*make_data(*arguments))
    monkeypatch.setattr(adversarial, "make_data", make)
    runs = ["fgsm", "elle_a", "fgsm_rs", "aaer", "plain_fgsm"]
    tiny = "--seeds 2 --train 64 --test 32 --epochs 4 --every 2 --batch-size 16 --final-steps 3 --restarts 1 --epsilon 0.1"
    arguments = [*tiny.split(), "--runs", *runs, "--out", str(tmp_path)]
    assert adversarial.main(arguments) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["study"] == "adversarial" and list(results["seeds"]) == ["0", "1"]
    assert seen == [(seed, 64, 32, 0.0 if name == "plain_fgsm" else 0.1) for seed in (0, 1) for name in runs]
    for scores in results["seeds"].values():
        assert list(scores) == runs
        for score in scores.values():
            assert score["epochs"] == [2, 4] and score["step_seconds"] > 0
            assert set(score["history"]) == {"clean", "fgsm", "pgd", "abnormal"}
            assert all(len(values) == 2 and score[name] == values[-1] for name, values in score["history"].items())
            assert score["clean"] >= score["fgsm"] and score["clean"] >= score["robust"] and score["abnormal"] == 0
    assert "AAER adds to its random start" in printed and "ELLE-A prevents it" in (tmp_path / "claims.txt").read_text()
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("# Adversarial\n\n") and "(collapse.png)" in page and "| elle_a |" in page
    assert np.std(plt.imread(tmp_path / "collapse.png")) > 0.05
    assert adversarial.main(arguments) == 2 and "--force" in capsys.readouterr().err


def test_claims_have_a_direction():
    level = {"fgsm": 0.0, "pgd": 0.4, "elle": 0.2}
    score = lambda at, seed: {**dict.fromkeys(adversarial.MEASURES, 0.5 + at * (1 + 0.1 * seed)), "step_seconds": 1 + at}
    seeds = [{name: score(at, seed) for name, at in level.items()} for seed in range(3)]
    scores, claims = adversarial.tables(seeds).values()
    assert [row[-1] for row in scores.rows] == ["1.0", "1.4", "1.2"]
    # More robust is as claimed; that abnormal examples or FGSM accuracy move alike is not.
    assert [row[-1] for row in claims.rows] == ["held", "the opposite", "the opposite", "held", "the opposite"]
