"""The study of sparsity at a tiny setting, and what it is built of."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from experiments import readme
from experiments.studies import sparsity, sparsity_tuning
from experiments.studies import sparsity_training as training
from experiments.studies.sparsity_training import Outcome

pytestmark = pytest.mark.slow

SMALL = {"width": 64, "epochs": 2, "batch_size": 256, "levels": (0.5, 0.98), "unit_levels": (0.5, 0.9)}


@pytest.fixture(scope="module")
def params():
    found = jax.tree.map(lambda leaf: leaf[0], training.initialise(64, [3])).params
    # Biases of a trained network are not 0.
    return jax.tree.map(lambda leaf: leaf + 0.1 * (leaf.ndim == 1), found)


@pytest.mark.parametrize(
    ("counts", "expected"),
    # Of 64 * 128 + 128 * 128 + 128 * 10 = 25856 weights.
    [("uniform", 164 + 328 + 26), ("global", 517), ("strict", 517), ("ceiling", 163 + 327 + 25), ("ceiling of all", 517)]
    + [("floor", 164 + 328 + 26), ("floor of all", 518), ("ranks", 165 + 329 + 27)],
)
def test_what_has_to_stay_is_counted(counts, expected):
    assert sparsity.to_keep(counts, 0.98, 128) == expected


def test_the_counts_are_those_of_the_library(params):
    ours = lambda counts, level: sparsity.to_keep(counts, level, 64)
    kept = lambda mask: sum(int(np.sum(m)) for m in training.kernels(mask))
    level = jnp.float32(0.95)  # as in a study, where it is traced

    @jax.jit
    def masks(level):
        found = {name: rj.weights.topk_mask(params, sparsity=level, distribution=name) for name in ("uniform", "global", "erk")}
        return {**found, "strict": rj.weights.magnitude_mask_strict(params, prune_rate=level)}

    assert {name: kept(mask) for name, mask in masks(level).items()} == {
        name: ours(name, 0.95) for name in ("uniform", "global", "erk", "strict")
    }
    assert abs(ours("erk", 0.95) - 0.05 * (64 * 64 * 2 + 640)) <= 2
    assert ours("pattern", 0.984375) == (64 + 64) * 64 // 64 + 10 and ours("units", 0.9) == 6 * (64 + 6 + 10)


def test_synaptic_flow_keeps_a_way_through_every_layer(params):
    mask = jax.jit(training.synaptic_flow)(params, jnp.float32(0.95))
    counts = [int(np.sum(m)) for m in training.kernels(mask)]
    assert sum(counts) == sparsity.to_keep("floor of all", 0.95, 64) and min(counts) > 20
    assert np.abs(training.network(rj.weights.apply_mask(params, mask), jnp.ones((1, 64)))).max() > 0


def test_masked_units_are_removed_units(params):
    removed = training.smallest(params, 0.75)
    assert [int(r.sum()) for r in removed] == [48, 48]
    first = np.linalg.norm(params["first"]["kernel"], axis=0)
    np.testing.assert_array_equal(removed[0], first < np.sort(first)[48])
    mask = training.unit_mask(params, removed)
    less = rj.weights.remove_structures(params, training.structures([np.asarray(r) for r in removed]))
    assert [w.shape for w in training.kernels(less)] == [(64, 16), (16, 16), (16, 10)]
    x = np.random.default_rng(0).normal(size=(5, 64)).astype(np.float32)
    masked = training.network(rj.weights.apply_mask(params, mask), x)
    np.testing.assert_allclose(masked, training.network(less, x), rtol=1e-4, atol=1e-5)
    kept = sum(int(m.sum()) for m in training.kernels(mask))
    assert kept == 16 * (64 + 16 + 10) and set(map(bool, mask["last"]["bias"])) == {True}


def test_the_course_has_one_rate_and_a_strength_that_grows_to_the_cut():
    config = sparsity.SparsityConfig(**SMALL | {"epochs": 10}, learning_rate=0.2)
    data = training.Data(None, None, None, None, np.zeros((40, 8), np.int32))
    course = training.Course(config, data, cut=0.3)
    assert (course.steps, course.epoch, course.cut) == (40, 4, 12)
    np.testing.assert_allclose([course.rate(step) for step in (0, 20, 30, 40)], [0.2, 0.2, 0.1, 0.0], atol=1e-7)
    assert float(training.Course(config, data, 0.3, 0.5).rate(0)) == 0.5
    np.testing.assert_allclose([course.growing(3.0)(step) for step in (0, 6, 12, 30)], [0.03, 0.3, 3.0, 3.0], rtol=1e-6)


def test_every_method_can_be_trained():
    config = sparsity.SparsityConfig(**SMALL)
    steps = np.zeros((8, 16), np.int32)
    shape = lambda *sizes: jax.ShapeDtypeStruct(sizes, jnp.float32)
    data = training.Data(shape(32, 64), np.zeros(32, np.int32), shape(8, 64), np.zeros(8, np.int32), steps)
    start = jax.tree.map(lambda leaf: leaf[0], training.initialise(64, [0]))
    kinds = {getattr(method.train, "func", method.train): name for name, method in sparsity.METHODS.items()}
    for name in (*kinds.values(), "L1", "HyperSparse"):
        method = sparsity.METHODS[name]
        options = {"n": 1, "m": 4} if method.counts == "pattern" else {}
        hyper = {key: value for key, value in method.hyperparameters.items() if key != "cut"}

        def run(data, level, hyper, method=method, options=options):
            return method.train(training.Course(config, data), start, level, hyper, **options)

        trained = jax.eval_shape(run, data, jnp.float32(0.5), jax.tree.map(jnp.float32, hyper))
        assert jax.tree.map(jnp.shape, trained.params) == jax.tree.map(jnp.shape, start.params), name
        assert (trained.pruned is not None) == ("cut" in method.hyperparameters), name


def test_the_study_writes_its_folder_and_overwrites_none(tmp_path, capsys):
    config = sparsity.SparsityConfig(methods=("ART", "units, one-shot"), seeds=2, out=tmp_path / "out", **SMALL)
    text = sparsity.study(config, quiet=True)
    names = ("sparsity", "after_the_cut", "units")
    files = {f"{name}.{kind}" for name in names for kind in ("png", "svg")} | {"README.md", "results.json"}
    files |= {f"{name}.txt" for name in ("accuracy", "nonzero", "cut", "units")}
    assert {path.name for path in config.out.iterdir()} == files and (config.out / "sparsity.png").stat().st_size > 10_000
    held = json.loads((config.out / "results.json").read_text())
    for level, found in held["methods"]["ART"].items():
        assert [sum(row) for row in found["kept"]] == [held["to_keep"]["ART"][level]] * 2, level
        assert len(found["pruned"]) == 2
    units = held["methods"]["units, one-shot"]["0.9"]
    assert units["units"] == [[6, 6]] * 2 and [sum(row) for row in units["kept"]] == [480, 480]
    assert held["methods"]["ART"]["0.5"]["stopped"] == [1.0, 1.0]  # of two epochs, the cut is after the first
    assert held["methods"]["dense"]["0.0"]["accuracy"][0] > 0.5
    assert "units, one-shot" in text and "n:m" not in text

    assert sparsity.main(["--out", str(config.out)]) == 2 and "--force" in capsys.readouterr().err
    for field, value, message in (
        ("methods", ("ARTT",), r"methods must be of .*, got 'ARTT'"),
        ("judged_on", "train", "judged_on must be of 'test', 'validation', got 'train'"),
        ("epochs", 1, "epochs must be at least 2, got 1"),
        ("levels", (0.9, 0.5), r"levels must be in \(0, 1\), ascending"),
        ("unit_levels", (0.5, 1.0), r"unit_levels must be in \(0, 1\), ascending"),
        ("width", 100, "width must be a multiple of 64"),
    ):
        with pytest.raises(ValueError, match=message):
            sparsity.SparsityConfig(**{field: value})


def test_claims_and_ranks_are_paired_over_seeds():
    rng = np.random.default_rng(0)
    base = 0.9 + 0.02 * rng.random(6)
    nothing = np.full(6, np.nan)

    def outcome(accuracy, counts="global", level=0.98):
        kept = np.tile([sparsity.to_keep(counts, level, 128), 0, 0], (6, 1))
        return Outcome(accuracy, accuracy - 0.5, kept, np.full((6, 2), 128), nothing)

    of = lambda shift, counts="global": {x: outcome(base + shift + 0.001 * rng.random(6), counts, x) for x in (0.95, 0.98)}
    measured = {
        "dense": {0.0: outcome(base + 0.05)},
        "one-shot, global": of(0.0),
        "L1": of(0.02),
        "HyperSparse": of(0.02, "strict"),
    }
    measured["L1"] = {
        x: outcome(measured["HyperSparse"][x].accuracy + 0.01 * np.array([1, -1, 1, -1, 1, -1.0])) for x in (0.95, 0.98)
    }
    made = sparsity.tables(sparsity.SparsityConfig(levels=(0.95, 0.98)), measured)
    claims = {row[1:4]: row for row in made["Claims, each tried as a paired difference by the t-test at 5 %"].rows}
    assert claims["HyperSparse against one-shot, global", "98 %", "in the end"][-2:] == ("6 of 6", "held")
    assert claims["HyperSparse against L1", "98 %", "right after the cut"][-2:] == ("3 of 6", "not shown")
    ranking = next(table for caption, table in made.items() if caption.startswith("Ranking"))
    assert ranking.rows[2][1].startswith("one-shot, global") and "=" not in ranking.rows[2][1] and "=" in ranking.rows[1][1]
    counts = next(table for caption, table in made.items() if caption.startswith("Nonzero"))
    # Global pruning at 95 % keeps 1293; that of L1 above was given the number of 98 %.
    assert counts.rows[0] == ("one-shot, global", "1293 (1293)", "517 (517)") and counts.rows[1][1] == "517 (1293)"


def test_hyperparameters_are_the_best_points_tried():
    tried = json.loads((readme.ROOT / sparsity_tuning.OUT).read_text())
    for name, grid in sparsity_tuning.GRIDS.items():
        assert set(tried[name]) == {json.dumps(point) for point in grid}, name
        assert json.loads(sparsity_tuning.best(tried[name])) == sparsity.METHODS[name].hyperparameters, name
    config = sparsity.SparsityConfig()
    assert float(sparsity_tuning.best(tried["learning rate"])) == config.learning_rate
    assert not set(sparsity_tuning.SEEDS) & set(range(config.first_seed, config.first_seed + config.seeds))
