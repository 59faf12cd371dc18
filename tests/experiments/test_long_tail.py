"""The study of long tails at a tiny setting, and what it is built of."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import readme
from experiments.compare import make_task
from experiments.data import DataConfig, long_tail_counts
from experiments.engine import Record, RunConfig, make_pipeline
from experiments.models import ModelConfig
from experiments.studies import long_tail, long_tail_tuning

pytestmark = pytest.mark.slow

DATA = DataConfig(name="digits", batch_size=8, validation=0.1, per_class=24, imbalance=12.0)
RUN = RunConfig(model=ModelConfig(width=8, depth=1), epochs=2, points=2, seeds_by="map")
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def task():
    return make_task(DATA, RUN, (0, 1), "validation")


def test_a_measure_is_the_recall_of_its_classes(task):
    counts = long_tail.class_counts(task)
    assert counts == tuple(long_tail_counts(np.full(10, 24), 12.0)) and counts[0] == 24 and counts[9] == 2
    labels = task.data.eval_labels
    guess = RNG.integers(0, 10, (2, 2, labels.shape[1]))
    judged = np.where(RNG.random(guess.shape) < 0.5, guess, labels[:, None])
    got = long_tail.measure(Record(None, None, None, {}, judged), task)
    for s in range(2):
        recall = [[np.mean(judged[s, t][labels[s] == k] == k) for k in range(10)] for t in range(2)]
        np.testing.assert_allclose(got["recall"][s], recall[1], rtol=1e-12)
        np.testing.assert_allclose(got["curve"][s], [np.mean(r[7:]) for r in recall], rtol=1e-12)
        final = recall[1]
        want = [np.mean(judged[s, 1] == labels[s]), *(np.mean(final[part]) for part in (slice(3), slice(3, 7), slice(7, 10)))]
        np.testing.assert_allclose([got[name][s] for name in long_tail.MEASURES], [*want, np.mean(sorted(final)[:3])], rtol=1e-12)
    # The rarest classes need not be the last ones.
    turned = dataclasses.replace(task, data=task.data._replace(labels=9 - task.data.labels, eval_labels=9 - labels))
    again = long_tail.measure(Record(None, None, None, {}, 9 - judged), turned)
    for name in (*long_tail.MEASURES, "curve"):
        np.testing.assert_allclose(again[name], got[name], rtol=1e-12)


def test_recipes_know_the_class_counts(task):
    counts = long_tail.class_counts(task)
    params, model_state = jax.tree.map(lambda x: x[0], task.initial)
    # A batch of frequent classes, with 20 images or more, and one with a rare class too.
    labels = np.stack([np.full(8, 0), np.r_[np.full(6, 0), 9, 9]])
    images = task.data.images[0, :8]

    @jax.jit
    def updates(labels):
        found = {}
        for name in ("cross-entropy", "ImbSAM", "ImbSAM, doubled tail", "class-balanced", "logit adjustment"):
            method = long_tail.METHODS[name]
            pipeline = make_pipeline(method.recipe, task, {"counts": counts, **method.hyperparameters})
            state = pipeline.init(jax.random.key(0), params, model_state)
            _, metrics = pipeline.step(state, {"image": images, "label": labels, "index": jnp.arange(8)})
            found[name] = metrics["loss"], metrics["grad_norm"]
        return found

    frequent, mixed = (updates(labels[i]) for i in range(2))
    np.testing.assert_allclose(frequent["ImbSAM"], frequent["cross-entropy"], rtol=1e-5)
    assert abs(float(mixed["ImbSAM"][0] - mixed["cross-entropy"][0])) > 1e-3
    assert float(mixed["ImbSAM, doubled tail"][0]) > float(mixed["ImbSAM"][0])
    # Cross-entropy by hand: weights of the inverse effective numbers, and margins of the log shares.
    pipeline = make_pipeline(long_tail.METHODS["cross-entropy"].recipe, task, {"counts": counts})
    z = np.asarray(pipeline.predict(pipeline.init(jax.random.key(0), params, model_state), images).logits, np.float64)
    losses = lambda z: (np.log(np.exp(z).sum(-1)) - z[np.arange(8), labels[1]]).astype(np.float64)
    beta = long_tail.METHODS["class-balanced"].hyperparameters["beta"]
    weights = np.array([1 / sum(beta**i for i in range(n)) for n in counts])
    weights *= 10 / weights.sum()
    np.testing.assert_allclose(mixed["class-balanced"][0], np.mean(weights[labels[1]] * losses(z)), rtol=1e-4)
    tau = long_tail.METHODS["logit adjustment"].hyperparameters["tau"]
    np.testing.assert_allclose(
        mixed["logit adjustment"][0], losses(z + tau * np.log(np.array(counts) / sum(counts))).mean(), rtol=1e-4
    )


def test_every_method_makes_a_step_of_its_own(task):
    params, model_state = jax.tree.map(lambda x: x[0], task.initial)
    batch = {"image": task.data.images[0, :8], "label": task.data.labels[0, :8], "index": np.arange(8)}
    for name, method in long_tail.METHODS.items():
        hyperparameters = {"counts": long_tail.class_counts(task), **method.hyperparameters}
        pipeline = make_pipeline(method.recipe, task, hyperparameters)
        state = jax.eval_shape(lambda p=pipeline: p.init(jax.random.key(0), params, model_state))
        after, metrics = jax.eval_shape(pipeline.step, state, batch)
        assert jax.tree.map(jnp.shape, after) == jax.tree.map(jnp.shape, state) and metrics["loss"].shape == (), name


def test_the_study_writes_its_folder_and_overwrites_none(tmp_path, capsys):
    config = long_tail.LongTailConfig(methods=("ImbSAM",), seeds=2, data=DATA, run=RUN, out=tmp_path / "out")
    text = long_tail.study(config, quiet=True)
    pictures = {f"{name}.{kind}" for name in ("recall", "tail") for kind in ("png", "svg")}
    files = {*pictures, "README.md", "results.json", "accuracy.txt", "claims.txt"}
    assert {path.name for path in config.out.iterdir()} == files and (config.out / "recall.png").stat().st_size > 10_000
    held = json.loads((config.out / "results.json").read_text())
    assert held["class_counts"][0] == 24 and held["epochs"] == [1, 2] and list(held["methods"]) == ["cross-entropy", "ImbSAM"]
    for found in held["methods"].values():
        assert np.shape(found["recall"]) == (2, 10) and len(found["curve"]) == 2
        np.testing.assert_allclose(found["tail"], np.mean(found["recall"], axis=1, where=np.arange(10) >= 7), atol=2e-5)
        assert found["curve"][-1] == pytest.approx(np.mean(found["tail"]), abs=2e-5)
    page = (config.out / "README.md").read_text()
    assert "24, 18, 13" in page and "ImbSAM against cross-entropy" in text and "against SAM" not in text

    assert long_tail.main(["--out", str(config.out)]) == 2 and "--force" in capsys.readouterr().err
    for field, value, message in (
        ("methods", ("ImbSAMM",), r"methods must be of .*, got 'ImbSAMM'"),
        ("seeds", 0, "seeds must be at least 1, got 0"),
        ("judged_on", "train", "judged_on must be of 'test', 'validation', got 'train'"),
        ("data", dataclasses.replace(DATA, imbalance=1.0), "imbalance must be above 1, got 1.0"),
    ):
        with pytest.raises(ValueError, match=message):
            long_tail.LongTailConfig(**{field: value})


def test_claims_are_tried_with_what_they_allow():
    base = np.array([0.9, 0.8, 0.85, 0.95])
    values = {part: base for part in long_tail.MEASURES}
    little = values | {"head": base - 0.002 * np.array([1, 2, 1, 3]), "worst": base + 0.1 + 0.01 * np.arange(4)}
    table = long_tail.tables({"cross-entropy": values, "SAM": values, "ImbSAM": little})
    claims = table["Claims, each tried as a paired difference by the t-test at 5 %"].rows
    rows = [row[2:] for row in claims if row[1] == "ImbSAM against SAM"]
    of = lambda measure: [row[1:] for row in rows if row[0] == long_tail.MEASURES[measure]]
    assert of("worst") == [("+11.5 ± 0.6", "4 of 4", "held")]
    # The head loses, but less than a point.
    assert of("head") == [("-0.4 ± 0.1", "0 of 4", "held")] * 2
    assert [row[-1] for row in of("tail")] == ["not shown"]
    worse = long_tail.tables({"cross-entropy": values, "SAM": values, "ImbSAM": values | {"head": base - 0.02 + 0.01 * base}})
    said = [row[-1] for row in list(worse.values())[1].rows if row[2] == long_tail.MEASURES["head"]]
    assert said == ["held", "held", "the opposite", "the opposite"]


def test_strengths_are_the_best_points_tried():
    tried = json.loads((readme.ROOT / long_tail_tuning.OUT).read_text())
    assert list(tried) == list(long_tail_tuning.GRIDS) == list(long_tail.METHODS)
    for name, points in tried.items():
        assert len(points) == (1 if name == long_tail.BASELINE else 5)
        best = max(points, key=lambda point: np.mean(points[point]))
        assert json.loads(best) == long_tail.METHODS[name].hyperparameters, name
        assert {key for point in points for key in json.loads(point)} == set(long_tail_tuning.GRIDS[name])
