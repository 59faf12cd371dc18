"""The study of self-tuning networks, at its smallest."""

import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from experiments.studies import self_tuning
from experiments.studies import self_tuning_training as training

pytestmark = pytest.mark.slow


def test_layers_answer_and_their_decay_is_that_of_each_example():
    params = jax.tree.map(lambda leaf: leaf[0], training.initialise(6, [3]))
    rng = np.random.default_rng(0)
    hyper, x = jnp.asarray(rng.normal(size=(4, 2)), jnp.float32), jnp.asarray(rng.random((4, 64)), jnp.float32)
    kernels = lambda h: [np.asarray(p.kernel) + np.asarray(p.response_kernel) * (h @ p.gate_kernel) for p in params]
    rows = [kernels(h) for h in np.asarray(hyper)]
    expected = [sum(np.sum(kernel**2) for kernel in row) for row in rows]
    np.testing.assert_allclose(training.squares(params, hyper), expected, rtol=1e-5)
    # The answer of one example is a plain network with the kernels and biases for its values.
    h, key = hyper[1], jax.random.key(0)
    weights = [(kernel, p.bias + (h @ p.gate_bias) * p.response_bias) for kernel, p in zip(rows[1], params, strict=True)]
    together = training.network(training.responsive(params, hyper), x)
    np.testing.assert_allclose(together[1], training.network(training.plain(weights), x)[1], rtol=1e-4, atol=1e-6)
    rates = jnp.array([0.0, 0.5, 0.0, 0.5])
    dropped = training.network(training.responsive(params, hyper), x, key, rates)
    np.testing.assert_allclose(dropped[::2], together[::2], rtol=1e-5, atol=1e-6)
    assert not np.allclose(dropped[1::2], together[1::2], atol=1e-3)
    start = rj.objectives.constrain_hyper(training.raw_start(0.7, 2e-5), ranges=training.RANGES)
    assert np.exp(start[1]) == pytest.approx(2e-5, rel=1e-4) and start[0] == pytest.approx(0.7, abs=1e-5)


def test_the_expected_best_of_random_points_is_that_over_all_draws():
    losses = np.random.default_rng(1).random((2, 5))
    for k, values in enumerate(self_tuning.expected_best(losses).T, start=1):
        drawn = [losses[:, list(draw)].min(axis=1) for draw in itertools.combinations(range(5), k)]
        np.testing.assert_allclose(values, np.mean(drawn, axis=0), rtol=1e-12)


def test_rates_are_alike_only_within_the_margin():
    rates = np.array([0.5, 0.52, 0.48, 0.51])
    assert self_tuning.equivalence(rates + [0.01, -0.01, 0.02, 0.0], rates, 0.1) == "held"
    assert self_tuning.equivalence(rates + [0.3, 0.31, 0.29, 0.32], rates, 0.1) == "the opposite"
    assert self_tuning.equivalence(rates + [0.3, -0.3, 0.2, -0.1], rates, 0.1) == "not shown"
    assert self_tuning.equivalence(rates[:1], rates[:1], 0.1) == "not shown"


def test_the_study_writes_its_folder_and_overwrites_none(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--seeds", "2", "--width", "12", "--cycles", "60", "--warm-up", "10", "--points", "7"]
    arguments += ["--rates", "0", "0.5", "--decays", "1e-4", "1.0", "--batch-size", "20", "--learning-rate", "0.05"]
    assert self_tuning.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "self-tuning, low" in shown and "beats the best of the grid" in shown
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["cycles"][0] == 0 and results["cycles"][-1] == 59 and len(results["cycles"]) == 7
    for name, (rate, decay) in self_tuning.STARTS.items():
        path, end = results["paths"][name], results["starts"][name]
        assert all(row[0] == pytest.approx(rate, rel=1e-3) for row in path["dropout"])
        assert all(row[0] == pytest.approx(decay, rel=1e-3) for row in path["decay"])
        assert [row[-1] for row in path["dropout"]] == end["dropout"] != [rate, rate]
        assert [row[-1] for row in path["decay"]] == end["decay"] == results["plain"][name]["decay"]
        assert len(results["scales"][name]) == 2 and np.isfinite(end["valid_loss"]).all()
    grid = np.array(results["grid"]["valid_loss"])
    assert results["points"] == [[0.0, 1e-4], [0.0, 1.0], [0.5, 1e-4], [0.5, 1.0]] and grid.shape == (2, 4)
    # A decay of 1 leaves nothing but the classes' frequencies; else the network learns.
    assert (np.abs(grid[:, [1, 3]] - np.log(10)) < 0.1).all() and (grid[:, [0, 2]] < 2.2).all()
    best = results["references"]["best"]
    assert best["valid_loss"] == grid.min(axis=1).tolist() and best["decay"] == [1e-4, 1e-4]
    # The default values are a point of this grid.
    assert results["references"]["default"]["test_loss"] == [row[2] for row in results["grid"]["test_loss"]]
    assert (tmp_path / "trajectories.png").stat().st_size > 10_000 and (tmp_path / "grid.png").stat().st_size > 10_000
    assert self_tuning.main(arguments) == 2 and "--force" in capsys.readouterr().err


def test_impossible_settings_are_refused():
    for wrong in ({"seeds": 0}, {"warm_up": 1000}, {"rates": (0.5, 0.2)}, {"decays": (0.0, 0.1)}, {"rates": (0.5, 1.0)}):
        with pytest.raises(ValueError, match=f"SelfTuningConfig: {next(iter(wrong))}"):
            self_tuning.SelfTuningConfig(**wrong)
