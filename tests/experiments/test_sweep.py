"""The sweep: every hyperparameter traces, traced is as constant, one program, halving, resuming, refusing, judging."""

import dataclasses
import inspect
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from experiments import compare, engine, recipes, sweep, sweep_program, sweep_report
from experiments.data import DataConfig
from experiments.models import ModelConfig

DATA = DataConfig(name="digits", batch_size=10, validation=0.1, per_class=4, label_noise=0.25)
MODEL = ModelConfig(width=8, depth=1)
RUN = engine.RunConfig(model=MODEL, epochs=2, points=2)


@pytest.fixture(scope="module")
def task():
    return compare.make_task(DATA, RUN, (0, 1), "validation")


def config_of(out, **changes):
    options = {"over": ("alpha=0.0,0.6,0.9",), "seeds": 2, "data": DATA, "model": MODEL, "epochs": 3, "out": out, **changes}
    return sweep.SweepConfig(options.pop("recipe", "label_smoothing"), **options)


def stepped(task, recipe, values, steps=2):
    """The loss and the parameters after some steps of the first seed."""
    made = sweep_program.pipeline(recipe, task, values)
    params, model_state = jax.tree.map(lambda x: x[0], task.initial)
    state = made.init(jax.random.key(0), params, model_state, labels=task.data.labels[0])
    index = jnp.arange(task.batch_size)
    batch = {"image": task.data.images[0, :10], "label": jnp.asarray(task.data.labels[0, :10]), "index": index}
    state, metrics = jax.lax.scan(lambda state, _: made.step(state, batch), state, None, length=steps)
    return metrics["loss"][-1], state.params


@pytest.mark.parametrize("name", recipes.RECIPES)
def test_every_numeric_hyperparameter_traces(task, name):
    known = sweep.numeric(name, 0.02)
    traced = {key: default for key, default in known.items() if (name, key) not in sweep.STATIC}
    assert set(recipes.GRIDS.get(name, {})) <= set(known)
    shapes = {key: jax.ShapeDtypeStruct((3,), jnp.int32 if isinstance(x, int) else jnp.float32) for key, x in traced.items()}
    loss, _ = jax.eval_shape(jax.vmap(lambda values: stepped(task, name, values, steps=1)), shapes)
    assert loss.shape == (3,)


@pytest.mark.parametrize("name, hyperparameter", sweep.STATIC)
def test_what_is_compiled_in_cannot_be_traced(task, name, hyperparameter):
    kind = jnp.int32 if isinstance(sweep.numeric(name, 0.02)[hyperparameter], int) else jnp.float32
    with pytest.raises((ValueError, TypeError)):
        jax.eval_shape(lambda x: stepped(task, name, {hyperparameter: x}, steps=1), jax.ShapeDtypeStruct((), kind))


@pytest.mark.parametrize(
    "name, values",
    [
        ("early_dropout", {"rate": 0.5, "until": 0.5}),
        ("late_dropout", {"rate": 0.5, "start": 0.125}),
        ("noise_mask", {"concentration": 0.3}),
        ("proximal_l1", {"strength": 0.3, "learning_rate": 0.05}),
        ("lawn", {"free_epochs": 0}),
        ("sam", {"rho": 0.3}),
    ],
)
def test_traced_is_as_constant(task, name, values):
    constant = jax.jit(lambda: stepped(task, name, values))()
    traced = jax.jit(lambda values: stepped(task, name, values))(values)
    for a, b in zip(jax.tree.leaves(traced), jax.tree.leaves(constant), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)
    other = jax.jit(lambda values: stepped(task, name, values))({**values, next(iter(values)): 1})
    assert not np.allclose(jax.tree.leaves(other[1])[1], jax.tree.leaves(traced[1])[1], rtol=1e-4)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A sweep without halving: its configuration and results."""
    config = config_of(tmp_path_factory.mktemp("whole") / "out", against="baseline")
    text = sweep.sweep(config, quiet=True)
    return config, json.loads((config.folder / "results.json").read_text()), text


def test_a_sweep_gives_what_single_runs_give(whole):
    config, results, _ = whole
    single = compare.make_task(config.data, config.run, (0, 1), "validation")
    for i, alpha in ((0, 0.0), (2, 0.9)):
        alone = engine.record("label_smoothing", single, alpha=alpha)
        point = results["points"][i]
        assert point["values"] == {"alpha": alpha} and point["epochs"] == 3
        np.testing.assert_allclose(point["validation"]["accuracy"], alone.curves["accuracy"][:, -1], atol=1e-6)
        np.testing.assert_allclose(point["train"]["loss"], alone.curves["train_loss"][:, -1], rtol=1e-4)
        np.testing.assert_allclose(point["train"]["memorized"], alone.curves["memorized"][:, -1], atol=1e-6)
    on_test = compare.make_task(config.data, config.run, (0, 1), "test")
    accuracy = engine.run("label_smoothing", on_test, alpha=0.9).metrics["accuracy"]
    np.testing.assert_allclose(results["points"][2]["test"]["accuracy"], accuracy, atol=1e-6)
    assert results["points"][results["reference"]]["recipe"] == "baseline"
    # Label smoothing of strength 0 is the baseline.
    np.testing.assert_allclose(results["points"][3]["validation"]["nll"], results["points"][0]["validation"]["nll"], rtol=1e-4)


def test_a_sweep_writes_its_results_and_refuses_others(whole):
    config, results, text = whole
    assert "Chosen on validation: label_smoothing alpha=" in text and "Judged on test" in text
    assert (config.folder / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert results["schema"] == sweep.SCHEMA and "to the reference" in (config.folder / "table.md").read_text()
    before = (config.folder / "results.json").read_bytes()
    with pytest.raises(ValueError, match=r"another configuration \(seeds: 2 there, 1 now\)"):
        sweep.sweep(dataclasses.replace(config, seeds=1), quiet=True)
    assert (config.folder / "results.json").read_bytes() == before
    # Another kind of interval runs nothing again.
    sweep.sweep(dataclasses.replace(config, interval="bca", confidence=0.9), quiet=True)
    again = json.loads((config.folder / "results.json").read_text())
    assert again["interval"] == "bca" and [p["test"] for p in again["points"]] == [p["test"] for p in results["points"]]


def test_halving_goes_on_from_the_states_and_resumes(whole, tmp_path, monkeypatch):
    config = dataclasses.replace(whole[0], out=tmp_path / "halving", halving=3, against="default")
    sweep.sweep(config, quiet=True)
    results = json.loads((config.folder / "results.json").read_text())
    assert [rung["epochs"] for rung in results["rungs"]] == [1, 3]
    first = results["rungs"][0]
    assert first["scores"] == {str(i): pytest.approx(first["scores"][str(i)]) for i in range(3)}
    winner = max(range(3), key=lambda i: (first["scores"][str(i)], -i))
    assert first["kept"] == sorted({winner, 1}) and results["chosen"] == winner and results["reference"] == 1
    for i in range(3):
        assert results["points"][i]["epochs"] == (3 if i in first["kept"] else 1)
    # Whoever went on is where it would be without a rung between.
    for i in first["kept"]:
        for measure, values in results["points"][i]["validation"].items():
            np.testing.assert_allclose(values, whole[1]["points"][i]["validation"][measure], rtol=1e-4, atol=1e-5)
    assert not list(config.folder.glob("rung*/states"))

    # The same, stopped after the first point of the last rung: it goes on there, to the same numbers.
    stopped, write, calls = dataclasses.replace(config, out=tmp_path / "stopped"), sweep.write_json, []

    def failing(path, content):
        calls.append(path)
        if path.parent.name == "rung1":
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(sweep, "write_json", failing)
    with pytest.raises(KeyboardInterrupt):
        sweep.sweep(stopped, quiet=True)
    assert not (stopped.folder / "results.json").exists() and len(list(stopped.folder.glob("rung0/states/*.npz"))) == 3
    calls.clear()
    monkeypatch.setattr(sweep, "write_json", lambda path, content: (calls.append(path), write(path, content)))
    sweep.sweep(stopped, quiet=True)
    assert {path.parent.name for path in calls} == {"rung1", "stopped"}
    again = json.loads((stopped.folder / "results.json").read_text())
    assert [again[key] for key in ("points", "rungs", "final")] == [results[key] for key in ("points", "rungs", "final")]


def test_calls_are_small_where_memory_is_and_give_the_same(task):
    alphas = {"alpha": np.array([0.0, 0.3, 0.6, 0.9, 0.95], np.float32)}
    options = {"keep": True, "at_once": 0}
    make = lambda **changes: sweep_program.Program(
        "label_smoothing", task, 10, sweep_program.Values({}, alphas), range(1), **{**options, "memory": 2**33, **changes}
    )
    small, large = make(memory=1.0), make(at_once=100)
    assert small.points == small.mesh.shape["points"] and large.points >= 5
    count = min(small.points, 5)
    some = small({"alpha": alphas["alpha"][:count]}, [])
    every = large(alphas, [])
    for a, b in zip(jax.tree.leaves(some), jax.tree.leaves(every), strict=True):
        np.testing.assert_allclose(a, b[:, :count], rtol=1e-4, atol=1e-5)
    assert every.measures["test"]["accuracy"].shape == (2, 5)


def test_shapes_split_the_grid_into_programs():
    config = sweep.SweepConfig("drop_block", over=("rate=0.1,0.5", "block_size=2,3"), data=DATA)
    points, reference = sweep.make_points(config)
    groups = list(sweep._groups(points, range(len(points))))
    assert [[points[i].values["block_size"] for i in group] for group in groups] == [[2, 2, 2], [3, 3]]
    assert points[reference].values == {"rate": 0.7, "block_size": 2} and not points[reference].on_grid


@pytest.mark.parametrize(
    "points, seeds, devices, expected",
    [
        (8, 8, 1, (1, 1)),
        (8, 8, 2, (2, 1)),
        (8, 8, 8, (8, 1)),
        (5, 3, 8, (1, 5)),
        (4, 6, 8, (2, 4)),
        (1, 3, 2, (1, 1)),
        (7, 1, 4, (1, 4)),
    ],
)
def test_runs_lie_evenly_on_the_devices(points, seeds, devices, expected):
    assert sweep_program.layout(points, seeds, devices) == expected


def test_rungs_are_geometric():
    assert sweep.rungs(9, 90, 3) == [(10, 3), (30, 1), (90, 1)]
    assert sweep.rungs(10, 100, 2) == [(6, 5), (12, 3), (25, 2), (50, 1), (100, 1)]
    assert sweep.rungs(100, 4, 2) == [(1, 50), (2, 25), (4, 25)]
    assert sweep.rungs(5, 7, 0) == [(7, 5)] and sweep.rungs(1, 7, 3) == [(7, 1)]


def test_intervals_are_those_of_the_t_distribution_and_the_bootstrap():
    x = np.random.default_rng(0).normal(0.7, 0.05, 8)
    half = stats.t.ppf(0.95, 7) * x.std(ddof=1) / np.sqrt(8)
    assert sweep_report.interval(x, "t", 0.9) == pytest.approx((x.mean(), x.mean() - half, x.mean() + half))
    mean, low, high = sweep_report.interval(x, "bca", 0.9)
    assert low < mean < high and high - low == pytest.approx(2 * half, rel=0.4)
    assert sweep_report.interval([0.5], "t", 0.9) == (0.5, None, None)
    assert sweep_report.interval([0.5, 0.5], "bca", 0.9) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("names", [("a",), ("a", "b"), ("a", "b", "c")])
def test_the_choice_is_judged_on_test_and_differences_pair_over_seeds(tmp_path, names):
    rng = np.random.default_rng(0)
    drawn = lambda: {"accuracy": rng.normal(0.7, 0.1, 8).tolist()}
    measures = lambda: {"validation": drawn(), "test": drawn()}
    rows = ((0.1, 1.0, 2.0), (1.0, 2.0, 1.0), (0.1, 2.0, 3.0), (1.0, 1.0, 2.0))[: 2 if len(names) == 1 else 4]
    values = [dict(zip(names, row, strict=False)) for row in rows]
    points = [{"recipe": "r", "values": row, "epochs": 9 - 3 * (i == 1), **measures()} for i, row in enumerate(values)]
    points.append({"recipe": "baseline", "values": {}, "epochs": 9, **measures()})
    results = {"points": points, "chosen": 0, "reference": len(points) - 1, "names": list(names)}
    judged = sweep_report.judge(results, "accuracy", "t", 0.95)
    gain = np.array(points[0]["test"]["accuracy"]) - points[-1]["test"]["accuracy"]
    expected = stats.ttest_1samp(gain, 0.0).confidence_interval(0.95)
    assert judged["final"]["difference"] == pytest.approx({"mean": gain.mean(), "low": expected.low, "high": expected.high})
    on_validation = np.array(points[0]["validation"]["accuracy"]) - points[-1]["validation"]["accuracy"]
    assert judged["points"][0]["difference"]["mean"] == pytest.approx(on_validation.mean())
    assert judged["points"][1]["difference"] is None and judged["points"][-1]["difference"] is None
    text = sweep_report.write(judged, tmp_path)
    assert f"difference {100 * gain.mean():+.1f} [{100 * expected.low:+.1f}, {100 * expected.high:+.1f}]" in text
    shown = [line.split()[0] for line in (tmp_path / "table.md").read_text().replace("| ", "").splitlines()[2:5]]
    assert "r" in shown and (tmp_path / "sweep.svg").exists()


def test_wrong_settings_are_refused_by_name(tmp_path, capsys):
    for wrong, text in (
        (["samm"], "did you mean sam"),
        (["sam", "--over", "roh=0.1"], "recipe 'sam' has no numeric hyperparameter 'roh'; did you mean rho"),
        (["sam", "--over", "rho=0.1,big"], "rho must be a number, got 'big'"),
        (["sam", "--over", "rho"], "of the form name=value,value, got 'rho'"),
        (["sam", "--over", "rho=inf"], "rho must be finite, got 'inf'"),
        (["drop_block", "--over", "block_size=2.5"], "block_size must be an integer, got '2.5'"),
        (["baseline"], "over must be given, as recipe 'baseline' has no grid"),
        (["sam", "--halving", "1"], "halving must be 0 (off) or at least 2, got 1"),
        (["sam", "--seeds", "0"], "seeds must be at least 1, got 0"),
        (["sam", "--data.validation", "0"], "data.validation must be above 0"),
    ):
        assert sweep.main([*wrong, "--no-program-cache"]) == 2
        assert text in capsys.readouterr().err
    # Traced values pass every check of the techniques: they are tried before, as numbers.
    for over, text in (("rate=0.1,1.5", "rate must be a finite number"), ("learning_rate=0", "must be positive")):
        with pytest.raises(ValueError, match=text):
            sweep.sweep(config_of(tmp_path / "none", recipe="dropout", over=(over,)), quiet=True)
    assert not (tmp_path / "none").exists()
    assert inspect.signature(recipes.RECIPES["sam"]).parameters["rho"].default == sweep.numeric("sam", 0.02)["rho"]
