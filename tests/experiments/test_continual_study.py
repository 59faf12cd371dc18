"""The continual study at a tiny setting, and what it is built of."""

import json

import numpy as np
import pytest

from experiments import readme
from experiments.studies import continual, continual_tuning
from experiments.studies import continual_training as training

pytestmark = pytest.mark.slow

CONFIG = continual.ContinualConfig(methods=("fine-tuning", "AQC"), heads=("linear",), seeds=2, per_class=8, features=3, steps=4)
SEEDS = (0, 1)
SIZES = (3, 10)
ADAM = training.Solver("adam", 4, 0.03, 8)


@pytest.fixture(scope="module")
def data():
    return training.load(CONFIG, SEEDS, "validation")


def test_tasks_hold_two_classes_each_in_an_order_of_the_seed(data):
    assert data.inputs.shape == (2, 5, 16, 3) and np.abs(data.inputs).max() <= 1
    for labels in data.labels:
        assert [sorted(np.unique(task).tolist()) for task in labels] == [[2 * t, 2 * t + 1] for t in range(5)]
        assert (np.bincount(labels.ravel()) == 8).all()
    # Renamed alike: a class has the same mean features in training and among the judged, and other classes come first elsewhere.
    for x, y, judged, judged_y in zip(*data, strict=True):
        means = [np.stack([images[labels == k].mean(0) for k in range(10)]) for images, labels in ((x, y), (judged, judged_y))]
        nearest = np.linalg.norm(means[0][:, None] - means[1], axis=-1).argmin(1)
        assert (nearest == np.arange(10)).sum() >= 8
    assert (data.judged_labels[0] != data.judged_labels[1]).any()
    test = training.load(CONFIG, SEEDS, "test")
    orders = [np.random.default_rng(seed).permutation(10) for seed in SEEDS]
    true = [np.argsort(order)[labels] for order, labels in zip(orders, test.judged_labels, strict=True)]
    np.testing.assert_array_equal(*true)  # the same test images in every seed


def test_measures_are_those_of_a_loop():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 10, (2, 80))
    predicted = np.where(rng.random((2, 5, 80)) < 0.5, labels[:, None], rng.integers(0, 10, (2, 5, 80)))
    got = continual.measure(predicted, labels)
    for s in range(2):
        recall = [[np.mean(predicted[s, t][labels[s] == k] == k) for k in range(10)] for t in range(5)]
        tasks = np.array([[np.mean(recall[t][2 * j : 2 * j + 2]) for j in range(5)] for t in range(5)])
        np.testing.assert_allclose(got["tasks"][s], tasks, rtol=1e-12)
        np.testing.assert_allclose(got["curve"][s], [np.mean(recall[t][: 2 * t + 2]) for t in range(5)], rtol=1e-12)
        assert got["accuracy"][s] == pytest.approx(np.mean(recall[4]))
        assert got["forgetting"][s] == pytest.approx(np.mean([tasks[j, j] - tasks[4, j] for j in range(4)]))
        assert got["new"][s] == pytest.approx(np.mean([tasks[j, j] for j in range(5)]))


def test_aqc_is_joint_ridge_regression(data):
    solver, memory = training.Solver("newton", 3), training.memories(training.squared_error)["aqc"]
    points = [{"strength": 1.0, "precision": 1.0}]
    got = training.train(memory, solver, SIZES, data, SEEDS, points, loss=training.squared_error).weights[:, 0]
    for s in range(2):
        for t in range(5):
            x = data.inputs[s, : t + 1].reshape(-1, 3).astype(np.float64)
            x, y = np.c_[np.ones(len(x)), x], np.eye(10)[data.labels[s, : t + 1].ravel()]
            want = np.linalg.solve(x.T @ x + np.eye(4), x.T @ y)  # the bias in row 0, as the leaves are sorted by name
            np.testing.assert_allclose(got[s, t], want.ravel(), atol=1e-4)


def test_all_start_alike_and_equal_what_they_should(data):
    known = training.memories(steps=3, hidden=(4,))
    common = {"strength": 3.0, "precision": 1.0, "xi": 1.0, "radius": 1.0, "rate": 1.0}
    run = lambda name, *points: (
        training.train(known[name], ADAM, SIZES, data, SEEDS, [common | point for point in points]).weights
    )
    plain = run("none", {"strength": 0.0}, {"strength": 0.0, "rate": 0.0})
    # Per image, Fisher information is 1 / 16 of the sum over a task, whose strength is then 16 times less.
    mean = run("ewc_mean", {"precision": 1 / 16, "strength": 48.0}, {"strength": 0.0})
    both = {"none": plain, "ewc_mean": mean, "ewc_sum": run("ewc_sum", {}), "aqc": run("aqc", {}, {"strength": 0.0})}
    both |= {name: run(name, {}) for name in ("l2_sp", "si", "neural")}
    for name, weights in both.items():
        np.testing.assert_allclose(weights[:, 0, 0], plain[:, 0, 0], rtol=1e-4, atol=1e-6, err_msg=name)
        if name != "none":
            assert np.abs(weights[:, 0, -1] - plain[:, 0, -1]).max() > 1e-4, name
    np.testing.assert_allclose(mean[:, 0], both["ewc_sum"][:, 0], rtol=1e-3, atol=1e-5)
    for name in ("aqc", "ewc_mean"):
        np.testing.assert_allclose(both[name][:, 1], plain[:, 0], rtol=1e-4, atol=1e-6)
    # With a rate of 0 after the first task nothing moves.
    np.testing.assert_array_equal(plain[:, 1], np.broadcast_to(plain[:, 1, :1], plain[:, 1].shape))


def test_memories_count_their_numbers():
    size = lambda name, head: continual._numbers(continual.ContinualConfig(), head, name)
    for head, parameters in (("linear", 17 * 10), ("MLP", 17 * 16 + 17 * 10)):
        assert size("fine-tuning", head) == 0 and size("L2-SP", head) == parameters
        assert size("EWC, summed", head) == 2 * parameters and size("SI", head) == 4 * parameters
        assert size("AQC", head) == parameters**2 + parameters
        network = 128 * (parameters + 1) + 128 * 129 + 129
        assert size("neural consolidation", head) == network + 2  # and the precision and the number of tasks
        assert size("joint training", head) == 960 * 17


def test_the_study_writes_its_folder_and_overwrites_none(tmp_path, capsys):
    arguments = [
        "--out",
        str(tmp_path / "out"),
        "--methods",
        *CONFIG.methods,
        "--heads",
        "linear",
        "--seeds",
        "2",
        "--per-class",
        "8",
    ]
    arguments += ["--features", "3", "--steps", "4", "--strengths", "1", "100", "--newton-steps", "8", "--lbfgs-steps", "60"]
    assert continual.main(arguments) == 0
    shown = capsys.readouterr().out
    assert "AQC beats fine-tuning" in shown and "100, L-BFGS" in shown and "AQC beats SI" not in shown
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["heads"]["linear"]) == list(CONFIG.methods)
    for found in results["heads"]["linear"].values():
        assert np.shape(found["curve"]) == (2, 5) and np.shape(found["tasks"]) == (5, 5)
        assert [row[-1] for row in found["curve"]] == found["accuracy"]
        assert np.mean(found["tasks"][-1]) == pytest.approx(np.mean(found["accuracy"]), abs=2e-5)
    exact = results["exactness"]
    assert max(exact["AQC, strength 1"]["distance"]) < 1e-4
    assert min(min(exact[name]["distance"]) for name in continual.EXACT if "AQC" not in name) > 0.05
    assert exact["AQC, strength 1"]["accuracy"] == exact["joint ridge regression"]["accuracy"]
    # Both exact solvers find the same minimum, and four steps of Adam do not.
    newton, lbfgs, adam = (results["solvers"][name] for name in ("Newton", "L-BFGS", "Adam, 4 steps"))
    assert np.shape(newton["accuracy"]) == (2, 2) and newton["distance"] == [[0.0, 0.0]] * 2
    assert np.max([newton["slope"], lbfgs["slope"]]) < 0.02 and np.max(lbfgs["distance"]) < 2e-3 < np.min(adam["distance"])
    pictures = {path.name for path in (tmp_path / "out").glob("*.png")}
    assert pictures == {"accuracy.png", "tasks_linear.png", "solvers.png"}
    assert continual.main(arguments) == 2 and "--force" in capsys.readouterr().err
    for wrong in ({"seeds": 0}, {"methods": ("AQCC",)}, {"heads": ("deep",)}, {"strengths": (0.0,)}, {"judged_on": "train"}):
        with pytest.raises(ValueError, match=f"ContinualConfig: {next(iter(wrong))} must be"):
            continual.ContinualConfig(**wrong)


def test_claims_are_tried_with_what_they_allow():
    base = np.array([0.9, 0.8, 0.85, 0.95])
    blank = {"forgetting": base, "new": base, "curve": np.tile(base[:, None], 5), "tasks": np.zeros((4, 5, 5))}
    methods = {
        "joint training": blank | {"accuracy": base},
        "AQC": blank | {"accuracy": base - 0.01 * np.array([1, 1.2, 1, 0.9])},
    }
    made = continual.tables(continual.ContinualConfig(), {"linear": methods}, {}, {})
    claims = made["Claims, each tried as a paired difference by the t-test at 5 %"]
    assert [row[3:] for row in claims.rows] == [("-1.0 ± 0.1", "0 of 4", "held")] * 2
    # Newton's method is no better than Adam at 100, where both fall.
    exactly = np.stack([base, base - 0.5 + 0.02 * np.arange(4)], axis=1)
    names = dict.fromkeys((*continual.MEASURES, "slope", "distance"), exactly)
    solved = {"Adam": names | {"accuracy": exactly + np.outer([1, 1.2, 1, 0.8], [0, 0.01])}, "Newton": names}
    config = continual.ContinualConfig(strengths=(10.0, 100.0))
    said = continual.tables(config, {}, {}, solved)["Claims, each tried as a paired difference by the t-test at 5 %"].rows
    assert [row[3:] for row in said] == [("-1.0 ± 0.1", "0 of 4", "the opposite"), ("-47.0 ± 1.3", "0 of 4", "held")]


def test_strengths_are_the_best_points_tried():
    tried = json.loads((readme.ROOT / continual_tuning.OUT).read_text())
    assert list(tried) == list(continual.HEADS) and list(continual_tuning.GRIDS) == list(continual.METHODS)
    for head, methods in tried.items():
        assert list(methods) == [name for name, method in continual.METHODS.items() if head in method.values]
        for name, points in methods.items():
            assert len(points) == (1 if name in ("fine-tuning", "joint training") else 12)
            assert [json.loads(point) for point in points] == continual_tuning.points(name)
            best = max(points, key=lambda point: np.mean(points[point]))
            assert json.loads(best) == continual.METHODS[name].values[head], (head, name)
