"""The comparison: every recipe steps, seeds in one program, resuming, refusing, the table and the report."""

import dataclasses
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments import compare, engine, recipes, report
from experiments.data import DataConfig
from experiments.models import ModelConfig

DATA = DataConfig(name="digits", batch_size=10, validation=0.1, per_class=4, label_noise=0.25)
RUN = engine.RunConfig(model=ModelConfig(width=16), epochs=2, points=2)


@pytest.fixture(scope="module")
def task():
    return compare.make_task(DATA, RUN, (0, 1), "validation")


def test_every_seed_has_its_own_subset_and_exact_noise(task):
    assert task.num_examples == 40 and task.steps_per_epoch == 4
    wrong = (task.data.labels != task.data.clean).mean(1)
    np.testing.assert_allclose(wrong, 0.25)
    assert not np.array_equal(task.data.images[0], task.data.images[1])
    for seed in range(2):
        np.testing.assert_array_equal(np.bincount(task.data.clean[seed]), 4)


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_recipe_steps_with_a_stable_state(task, name):
    pipeline = engine.make_pipeline(name, task, {})
    params, model_state = jax.tree.map(lambda x: x[0], task.initial)
    state = jax.eval_shape(pipeline.init, jax.random.key(0), params, model_state, task.data.labels[0])
    batch = {"image": jnp.zeros((10, 8, 8, 1)), "label": jnp.zeros(10, jnp.int32), "index": jnp.arange(10)}
    after, metrics = jax.eval_shape(pipeline.step, state, batch)
    kind = lambda tree: jax.tree.map(lambda x: (x.shape, x.dtype, x.weak_type), tree)
    assert kind(after) == kind(state)
    assert metrics["loss"].shape == ()
    assert inspect.getdoc(recipes.RECIPES[name]).endswith(".")


def test_grids_name_recipes_and_their_arguments():
    for name, grid in recipes.GRIDS.items():
        assert set(grid) <= set(inspect.signature(recipes.RECIPES[name]).parameters), name


@pytest.mark.parametrize("model", ["mlp", pytest.param("resnet", marks=pytest.mark.slow)])
def test_seeds_by_vmap_and_by_map_are_the_same_runs(model):
    small = ModelConfig(name=model, width=4, depth=1)
    results = []
    for seeds_by in ("vmap", "map"):
        config = dataclasses.replace(RUN, model=small, seeds_by=seeds_by)
        results.append(engine.run("dropout", compare.make_task(DATA, config, (0, 1), "validation")))
    np.testing.assert_allclose(results[0].curves["train_loss"], results[1].curves["train_loss"], rtol=1e-4)
    np.testing.assert_allclose(results[0].metrics["nll"], results[1].metrics["nll"], rtol=1e-3)
    assert results[0].epochs == [1, 2] and results[0].flops_per_step > 0


def small(tmp_path, **changes):
    options = {"recipes": ("l2",), "seeds": 2, "data": DATA, "run": RUN, "out": tmp_path / "out", **changes}
    return compare.CompareConfig(**options)


def test_a_comparison_writes_resumes_adds_and_refuses(tmp_path):
    config = small(tmp_path)
    table, page = compare.compare(config, quiet=True)
    first = json.loads((config.out / "results.json").read_text())
    assert set(first["recipes"]) == {"baseline", "l2"} and first["schema"] == compare.SCHEMA
    assert all(len(values) == 2 for values in first["recipes"]["l2"]["metrics"].values())
    assert "l2" in table and "baseline" in table and page.exists()

    # An interrupted one: the baseline is there, l2 is not; a new recipe is asked for. What is there is not run again.
    kept = config.out / "recipes" / "baseline.json"
    marked = {**json.loads(kept.read_text()), "compile_seconds": -1.0}
    kept.write_text(json.dumps(marked))
    (config.out / "recipes" / "l2.json").unlink()
    compare.compare(small(tmp_path, recipes=("l2", "cutout")), quiet=True)
    again = json.loads((config.out / "results.json").read_text())
    assert set(again["recipes"]) == {"baseline", "l2", "cutout"}
    assert again["recipes"]["baseline"]["compile_seconds"] == -1.0
    assert again["recipes"]["l2"]["metrics"] == first["recipes"]["l2"]["metrics"]

    before = (config.out / "results.json").read_bytes()
    with pytest.raises(ValueError, match=r"holds another comparison .*seeds: 2 there, 3 now"):
        compare.compare(small(tmp_path, seeds=3), quiet=True)
    assert (config.out / "results.json").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("text")
    with pytest.raises(ValueError, match="neither empty nor a comparison"):
        compare.compare(small(tmp_path, out=tmp_path / "mine"), quiet=True)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_the_command_line_names_the_nearest(capsys):
    for wrong, text in (
        (["smoke", "--recipes", "mixxup"], "did you mean mixup"),
        (["smoke", "--seedz", "3"], "--seeds"),
        (["smoke", "--seeds", "0"], "seeds must be at least 1, got 0"),
        (["smoek"], "smoke"),
    ):
        with pytest.raises(SystemExit) as stopped:
            compare.main(wrong)
        assert stopped.value.code == 2 and text in capsys.readouterr().err


def made_up():
    rng = np.random.default_rng(0)
    values = {"baseline": rng.normal(0.7, 0.02, 8), "better": rng.normal(0.8, 0.02, 8), "worse<b>": rng.normal(0.6, 0.02, 8)}
    recipe = lambda accuracy, cost: {
        "metrics": {name: accuracy.tolist() for name in ("accuracy", "nll", "ece", "aurc", "memorized")},
        "curves": {name: np.outer(accuracy, [0.5, 1.0]).tolist() for name in ("accuracy", "memorized")},
        "epochs": [1, 2],
        "seconds_per_step": 1e-4 * cost,
        "flops_per_step": 1e6 * cost,
    }
    config = {"seeds": 8, "data": {"name": "digits"}}
    return {"config": config, "recipes": {name: recipe(v, 1 + i) for i, (name, v) in enumerate(values.items())}}, values


def test_the_table_pairs_over_seeds(tmp_path):
    results, values = made_up()
    rows = {row["recipe"]: row for row in report.summarise(results)}
    assert list(rows) == ["better", "baseline", "worse<b>"]
    difference = values["better"] - values["baseline"]
    assert rows["better"]["gain"] == pytest.approx(difference.mean())
    assert rows["better"]["gain_error"] == pytest.approx(difference.std(ddof=1) / np.sqrt(8))
    assert rows["better"]["p_value"] == pytest.approx(stats.ttest_rel(values["better"], values["baseline"]).pvalue)
    assert rows["worse<b>"]["time"] == pytest.approx(3) and rows["baseline"]["gain"] is None
    table, page = report.write_report(results, tmp_path)
    assert len({len(line) for line in table.splitlines()}) == 1
    text = page.read_text()
    assert "worse&lt;b&gt;" in text and "worse<b>" not in text
    assert "http" not in text and text.count("data:image/png;base64,") == 2
    for name in ("bars.png", "curves.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    del results["recipes"]["baseline"]
    report.write_report(results, tmp_path)
    assert report.summarise(results)[0]["time"] is None
