"""The studies of web noise and of ignored noise, at their smallest."""

import json

import numpy as np
import pytest

from experiments.studies import ignore_noise, web_noise

pytestmark = pytest.mark.slow


def test_web_noise_is_a_share_of_images_with_random_labels():
    for kind in web_noise.NOISES:
        x, y, noise, test_x, test_y = web_noise.noisy_digits(0, 0.3, kind)
        plain, true, none, *_ = web_noise.noisy_digits(0, 1e-9, kind)
        assert noise.sum() == 324 and not none.any() and len(test_x) == len(test_y) == 717
        assert np.array_equal(x[~noise], plain[~noise]) and np.array_equal(y[~noise], true[~noise])
        assert np.abs(x[noise] - plain[noise]).mean() > 0.1 and x.min() >= 0 and x.max() <= 1
        assert abs(np.mean(y[noise] == true[noise]) - 0.1) < 0.07


def test_the_linear_detector_puts_a_hyperplane_between_trusted_sets():
    rng = np.random.default_rng(0)
    side = rng.random(200) < 0.3
    features = rng.normal(size=(200, 5)) + 4 * side[:, None]
    suspects = side ^ (rng.random(200) < 0.1)
    assert np.mean(web_noise.linear_detector(features, suspects, 1.0) == side) > 0.97 > np.mean(suspects == side)
    nobody = np.zeros(200, bool)
    assert web_noise.linear_detector(features, nobody, 1.0) is nobody
    high = web_noise.posterior_of_large_losses(np.array([0.0, 0.1, 5.0, 0.2, 4.8]))
    assert (high > 0.95).tolist() == [False, False, True, False, True]


def test_web_noise_writes_its_folder_and_overwrites_none(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--seeds", "1", "--epochs", "4", "--hidden", "32", "--noises", "photographs"]
    assert web_noise.main(arguments) == 0
    assert "alternating" in capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    runs = {method: seeds[0] for method, seeds in results["runs"]["photographs"].items()}
    assert set(runs) == set(web_noise.METHODS) and (tmp_path / "curves.png").stat().st_size > 10_000
    # The first detection sees the same network: the linear separation is the better one, and the two in turn begin with it.
    first = {method: run["detection"][2] for method, run in runs.items()}
    assert first["all examples"] == 50 and first["true noise"] == 100
    assert first["alternating"] == first["linear"] > first["small loss"] > 60
    assert web_noise.main(arguments) == 2 and "--force" in capsys.readouterr().err
    with pytest.raises(ValueError, match="seeds"):
        web_noise.WebNoiseConfig(seeds=0)


def test_ignore_noise_is_flat_where_signal_is_left(tmp_path, capsys):
    arguments = ["--out", str(tmp_path), "--seeds", "1", "--features", "96", "--iterations", "20"]
    arguments += ["--shares", "0", "0.4", "0.9", "--inverse-penalties", "0.01"]
    assert ignore_noise.main(arguments) == 0
    capsys.readouterr()
    runs = json.loads((tmp_path / "results.json").read_text())["runs"][0]
    (clean, _, none), (some, left, _), (last, nothing, all_lost) = runs["symmetric"]
    assert clean > 90 and some > clean - 10 and last < 25 and none == 0 and all_lost == 100
    assert left == pytest.approx(1 - 0.4 * 10 / 9, abs=1e-3) and nothing == pytest.approx(0, abs=1e-4)
    assert runs["next class"][2][0] < 25 and runs["next class"][1][1] < left
    assert (tmp_path / "accuracy.png").stat().st_size > 10_000
    assert ignore_noise.main(arguments) == 2 and "--force" in capsys.readouterr().err
    with pytest.raises(ValueError, match="shares"):
        ignore_noise.IgnoreNoiseConfig(shares=(1.5,))
