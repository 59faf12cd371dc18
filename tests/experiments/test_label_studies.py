"""The studies of label noise and calibration at a tiny setting, and what they are built of."""

import dataclasses
import json

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from scipy import stats
from scipy.special import softmax

import regjax as rj
from experiments import plots, readme
from experiments.compare import make_task
from experiments.data import DataConfig
from experiments.engine import Record, RunConfig, Task, record
from experiments.models import ModelConfig
from experiments.studies import calibration, common, label_noise, label_noise_tuning
from experiments.studies.twin import TwinTask, co_teaching
from tests.diagnostics.test_calibration import calibration_error, equal_mass_error

pytestmark = pytest.mark.slow

DATA = DataConfig(name="digits", batch_size=20, validation=0.1, per_class=6)
RUN = RunConfig(model=ModelConfig(width=8, depth=1), epochs=2, points=2, seeds_by="map")
NOISES = ("symmetric 20 %", "asymmetric 40 %")
RNG = np.random.default_rng(0)


def test_statistics_pair_over_seeds():
    values, base = RNG.normal(size=6), RNG.normal(size=6)
    got = common.statistic(values, base)
    assert got.gain == pytest.approx(values.mean() - base.mean()) and got.above == (values > base).sum()
    assert got.error == pytest.approx(stats.sem(values)) and got.gain_error == pytest.approx(stats.sem(values - base))
    assert got.p_value == pytest.approx(stats.ttest_rel(values, base).pvalue)
    assert common.statistic(values, values)[2:] == (0.0, 0.0, None, 0)
    assert common.statistic([0.5]) == (0.5, 0.0, None, None, None, None)
    assert common.shown(common.Statistic(0.5, 0.01, -0.2, 0.03), 100) == "50.0 ± 1.0"
    assert common.shown(common.Statistic(0.5, 0.01, -0.2, 0.03), 100, gain=True) == "-20.0 ± 3.0"
    with pytest.raises(ValueError, match="6 seeds"):
        common.statistic(values, base[:1])


def test_a_folder_is_replaced_only_by_force_and_only_a_study(tmp_path):
    table, config = common.Table(("method", "x"), [("a", "1"), ("long name", "22")]), label_noise.LabelNoiseConfig()
    assert len({len(line) for line in table.text().splitlines()}) == 1
    assert table.markdown().splitlines() == ["| method | x |", "| --- | ---: |", "| a | 1 |", "| long name | 22 |"]
    folder = tmp_path / "made" / "here"
    write = lambda: common.publish(folder, config, {"y": np.float32(0.5)}, {"Numbers of x": table}, {}, study="demo", text="Why?")
    common.claim(folder, False)
    write()
    held = json.loads((folder / "results.json").read_text())
    assert held["study"] == "demo" and held["y"] == 0.5 and held["config"]["seeds"] == 5
    assert (folder / "numbers.txt").read_text() == table.text() + "\n"
    assert "# Demo\n\nWhy?\n\nNumbers of x:\n\n| method | x |" in (folder / "README.md").read_text()
    with pytest.raises(ValueError, match="--force"):
        common.claim(folder, False)
    common.claim(folder, True)

    # The README takes a study over, and shows its question, without what stands behind it.
    (folder / "README.md").write_text("# Demo\n\nWhy? On digits.\n\nNumbers.\n\n![One](one.png)\n\n![Two](two.png)\n")
    readme.take_over(folder, tmp_path)
    assert {path.name for path in (tmp_path / readme.STUDIES / "demo").iterdir()} == {"README.md", "results.json"}
    assert readme.studies(tmp_path) == "- [Demo](experiments/results/demo/README.md): Why?"

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("text")
    for forced in (False, True):
        with pytest.raises(ValueError, match="neither empty nor a study's"):
            common.claim(tmp_path / "mine", forced)


def test_plots_show_what_is_measured():
    figure, axes = plt.subplots(1, 3)
    confidences, correct = RNG.random(50), RNG.random(50) < 0.5
    plots.reliability_diagram(axes[0], confidences, correct, num_bins=5, title="name")
    bins = rj.diagnostics.reliability_bins(confidences, correct, num_bins=5)
    np.testing.assert_allclose([bar.get_height() for bar in axes[0].containers[0]], bins.accuracy, rtol=1e-5)
    error = float(rj.diagnostics.expected_calibration_error(confidences, correct, num_bins=5))
    assert axes[0].get_title() == f"name\nECE {100 * error:.1f} %"
    plots.risk_coverage_curve(axes[1], np.stack([confidences, -confidences]), np.stack([correct, correct]))
    x, y = axes[1].lines[0].get_data()
    assert (x[-1], y[-1]) == (100, pytest.approx(100 * (1 - correct.mean()))) and x[0] >= 5
    plots.seed_curve(axes[2], [1, 2], [[0.0, 2.0], [2.0, 2.0]])
    np.testing.assert_allclose(axes[2].lines[0].get_ydata(), [1, 2])
    plt.close(figure)


@pytest.fixture(scope="module")
def tasks():
    made = {}
    for name in NOISES:
        noise = label_noise.NOISES[name]
        data = dataclasses.replace(DATA, noise_kind=noise.kind, label_noise=noise.rate)
        made[name] = make_task(data, RUN, (0, 1), "validation")
    return common.Tasks(made)


def test_noises_side_by_side_are_the_runs_of_each(tasks):
    for name, task in tasks.by_noise.items():
        wrong = (task.data.labels != task.data.clean).mean()
        assert wrong == pytest.approx(label_noise.NOISES[name].share, abs=0.04)
    together = tasks.together(NOISES, Task)
    assert together is tasks.together(NOISES, Task)
    plain = record("baseline", together)

    # With nothing forgotten the first of two networks is the plain one, and the pair predicts by its mean.
    pair = tasks.together(NOISES, TwinTask)
    twins = record(co_teaching, pair, forget_rate=0.0)
    np.testing.assert_allclose(twins.features[..., :8], plain.features, rtol=1e-3, atol=1e-4)
    assert np.abs(twins.features[..., 8:] - plain.features).mean() > 0.05

    @jax.jit
    def run(images):
        model = pair.model(jax.random.key(3))
        training = model(images, key=jax.random.key(0), hooks=rj.Hooks(), training=True)[0]
        return model.first(images)[0], model.second(images)[0], model(images, hooks=rj.Hooks())[0], training

    first, second, mean, training = run(together.data.images[0, :5])
    np.testing.assert_allclose(mean, (first + second) / 2, rtol=1e-6)
    np.testing.assert_allclose(training, np.concatenate([first, second], -1), rtol=1e-6)

    # A noise's own runs are found again at its place.
    second = label_noise._judged(plain, tasks.by_noise[NOISES[1]], 1)
    np.testing.assert_allclose(second["memorized"], plain.curves["memorized"][2:, -1], rtol=1e-6)
    labels = together.data.eval_labels[2:]
    np.testing.assert_allclose(second["accuracy"], (plain.logits[2:].argmax(-1) == labels).mean(1), rtol=1e-6)
    curves = second["curves"]
    np.testing.assert_allclose(curves["correct"] + curves["memorized"] + curves["other"], 1, atol=1e-6)
    task = tasks.by_noise[NOISES[1]]
    seen, wrong = plain.predictions[2], task.data.labels[0] != task.data.clean[0]
    np.testing.assert_allclose(curves["correct"][0], (seen == task.data.clean[0])[:, wrong].mean(1), rtol=1e-6)


def test_the_study_of_label_noise_writes_its_folder(tmp_path, monkeypatch, capsys):
    calls = []

    def made_up(method, tasks):
        calls.append(method)
        shares = RNG.dirichlet(np.ones(3), size=(2, 2))
        curves = {name: shares[..., i] for i, name in enumerate(("correct", "memorized", "other"))}
        curves |= {"accuracy": RNG.random((2, 2)), "train_accuracy": RNG.random((2, 2))}
        found = {"accuracy": curves["accuracy"][:, -1], "memorized": curves["memorized"][:, -1], "curves": curves}
        return {name: found for name in tasks.by_noise}

    monkeypatch.setattr(label_noise, "measure", made_up)
    out = tmp_path / "out"
    config = label_noise.LabelNoiseConfig(methods=("GCE",), noises=("clean", *NOISES), seeds=2, data=DATA, run=RUN, out=out)
    text = label_noise.study(config, quiet=True)
    assert calls == [label_noise.METHODS["cross-entropy"], label_noise.METHODS["GCE"]]
    pictures = {f"{name}.{kind}" for name in ("accuracy", "memorization") for kind in ("png", "svg")}
    assert {path.name for path in out.iterdir()} == {
        *pictures,
        "README.md",
        "results.json",
        "accuracy.txt",
        "claims.txt",
        "memorized.txt",
    }
    held = json.loads((out / "results.json").read_text())
    assert held["epochs"] == [1, 2] and list(held["methods"]["GCE"]) == ["clean", *NOISES]
    assert "60 training images" in (out / "README.md").read_text() and "cross-entropy" in text

    assert label_noise.main(["--out", str(out)]) == 2 and "--force" in capsys.readouterr().err
    with pytest.raises(ValueError, match=r"methods must be of .*, got 'GCEE'"):
        label_noise.LabelNoiseConfig(methods=("GCEE",))
    with pytest.raises(ValueError, match="seeds must be at least 1, got 0"):
        label_noise.LabelNoiseConfig(seeds=0)


def test_strengths_are_the_best_points_tried():
    tried = json.loads((readme.ROOT / label_noise_tuning.OUT).read_text())
    named = {method.recipe: method.hyperparameters(0.4) for method in label_noise.METHODS.values() if not method.twin}
    assert set(named) == set(tried) == set(label_noise_tuning.GRIDS)
    for name, points in tried.items():
        assert {key for point in points for key in json.loads(point)} == set(label_noise_tuning.GRIDS[name])
        assert json.loads(max(points, key=lambda point: np.mean(points[point]))) == named[name], name


def made_up_record(task):
    """Logits that are right a little more often than not, and features."""
    labels = task.data.eval_labels
    logits = 2 * RNG.normal(size=(*labels.shape, 10)) + 2.5 * np.eye(10)[labels]
    return logits.astype(np.float32), RNG.normal(size=(*labels.shape, 3)).astype(np.float32)


def test_the_study_of_calibration_judges_each_part(tmp_path, monkeypatch, capsys):
    config = calibration.CalibrationConfig(
        methods=("label smoothing",), seeds=2, data=dataclasses.replace(DATA, validation=0.2), run=RUN, out=tmp_path / "out"
    )
    task, sizes = calibration.make_judged_task(config)
    assert sizes == (287, 360, 60) and task.data.eval_images.shape[:2] == (2, 707)
    np.testing.assert_array_equal(task.data.eval_images[:, -60:], task.data.images)
    records = {name: Record(*made_up_record(task), None, {}, None) for name in ("baseline", "label_smoothing")}
    monkeypatch.setattr(calibration, "record", lambda recipe, task, **hyperparameters: records[recipe])
    monkeypatch.setattr(calibration, "make_judged_task", lambda config: (task, sizes))
    text = calibration.study(config, quiet=True)
    held = json.loads((config.out / "results.json").read_text())["methods"]
    for name, recipe in (("cross-entropy", "baseline"), ("label smoothing", "label_smoothing")):
        logits, features, *_ = records[recipe]
        got, y = held[name], task.data.eval_labels[1]
        # The fitted temperature meets its first-order condition on the held-out images.
        z, t = logits[1, :287].astype(np.float64), got["temperature"][1]
        p = softmax(z / t, axis=-1)
        assert z[np.arange(287), y[:287]].mean() == pytest.approx((p * z).sum(1).mean(), rel=1e-3)
        for variant, scale in (("plain", 1.0), ("scaled", t)):
            p, labels = softmax(logits[1, 287:647].astype(np.float64) / scale, axis=-1), y[287:647]
            confidence, right = p.max(1), p.argmax(1) == labels
            want = {
                "accuracy": right.mean(),
                "nll": -np.log(p[np.arange(360), labels]).mean(),
                "brier": ((p - np.eye(10)[labels]) ** 2).sum(1).mean(),
                "ece": calibration_error(confidence, right, 15),
                "classwise_ece": np.mean([calibration_error(p[:, k], labels == k, 15) for k in range(10)]),
                "adaptive_ece": equal_mass_error(confidence, right, 15),
                "aurc": area(confidence, right),
            }
            for measure, value in want.items():
                assert got["measures"][variant][measure][1] == pytest.approx(value, abs=2e-4), (variant, measure)
        v = logits[1, 287:647] - logits[1, 287:647].mean(1, keepdims=True)
        score = v.max(1) / np.linalg.norm(v.astype(np.float64), ord=got["p"][1], axis=1)
        assert got["measures"]["normalised"]["aurc"][1] == pytest.approx(area(score, right), abs=2e-4)
        x, labels = features[1, 647:], y[647:]
        means = np.stack([x[labels == k].mean(0) for k in range(10)])
        within = ((x - means[labels]) ** 2).sum(1).mean()
        between = ((means - means.mean(0)) ** 2).sum(1).mean()
        assert got["variation"]["train"][1] == pytest.approx(within / between, rel=1e-4)
    assert "label smoothing" in text and (config.out / "reliability.png").exists() and (config.out / "risk_coverage.svg").exists()
    assert calibration.main(["--out", str(config.out)]) == 2 and "--force" in capsys.readouterr().err
    with pytest.raises(ValueError, match="num_bins must be at least 1, got 0"):
        calibration.CalibrationConfig(num_bins=0)


def area(scores, right):
    """The trapezoid area under the risk-coverage curve."""
    wrong = 1 - right[np.argsort(-scores, kind="stable")]
    risk = np.r_[0, np.cumsum(wrong) / np.arange(1, len(wrong) + 1)]
    return ((risk[1:] + risk[:-1]) / 2).mean()
