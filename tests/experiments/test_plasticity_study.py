"""The study of plasticity at a tiny setting, and what it is built of."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from experiments import readme
from experiments.studies import plasticity, plasticity_tuning
from experiments.studies import plasticity_training as training

pytestmark = pytest.mark.slow

TINY = {"images": 40, "tasks": (6, 6), "epochs": (2, 2), "width": 6, "depth": 2, "batch_size": 20, "seeds": 2}


def test_streams_change_labels_or_pixels_alone():
    config = plasticity.PlasticityConfig(**TINY)
    labels, pixels = (training.load(config, kind, (3, 4)) for kind in training.STREAMS)
    assert labels.images.shape == (2, 40, 64) and labels.orders.shape == (2, 6, 64) and labels.labels.shape == (2, 6, 40)
    np.testing.assert_array_equal(labels.images, pixels.images)
    assert (labels.orders == np.arange(64)).all() and not np.array_equal(labels.labels[0, 0], labels.labels[0, 1])
    assert (pixels.labels == pixels.labels[:, :1]).all() and (np.sort(pixels.orders) == np.arange(64)).all()
    assert not np.array_equal(pixels.orders[0, 0], pixels.orders[0, 1])
    assert not np.array_equal(pixels.orders[0], pixels.orders[1])


def test_penalties_are_those_of_the_library():
    params = training.initialise(jax.random.key(0), 5, 2)
    moved = jax.tree.map(lambda x: x + 0.1, params)
    value = {}
    for method in training.METHODS:
        penalty = training.make_penalty(method)
        # The spectral one's memory is directions, found where they are used; the others' the initial weights.
        start = penalty.init(jax.random.key(1), moved if method == "spectral" else params)
        value[method] = float(penalty.apply(start, moved)[0])
    flat = np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(moved)]).astype(np.float64)
    assert value["none"] == 0 and value["L2"] == pytest.approx(np.sum(flat**2) / 2, rel=1e-5)
    assert value["L2 to init"] == pytest.approx(0.005 * flat.size, rel=1e-4)
    assert value["Wasserstein to init"] == pytest.approx(0.01 * flat.size, rel=1e-4)  # a shift keeps the order
    assert value["spectral"] == pytest.approx(float(rj.weights.spectral_penalty(moved, exact=True)), rel=0.05)
    assert value["orthonormality"] == pytest.approx(float(rj.weights.orthonormality(moved, side="auto")), rel=1e-5)
    with pytest.raises(ValueError, match=r"method must be of .*, got 'decay'"):
        training.make_penalty("decay")


def test_measures_of_late_tasks():
    of = np.arange(12.0).reshape(2, 6) / 20
    curves = training.Curves(of, of + 0.1, of, of, of, of)
    labels, pixels = (plasticity.measure(curves, kind) for kind in training.STREAMS)
    np.testing.assert_allclose(labels["first"], [0, 0.3])
    np.testing.assert_allclose(labels["late"], [0.15, 0.45])
    np.testing.assert_allclose(pixels["late"], [0.25, 0.55])
    np.testing.assert_allclose(pixels["change"], [0.15, 0.15])


def test_a_run_learns_and_its_strength_counts():
    config = plasticity.PlasticityConfig(**TINY | {"epochs": (1, 60)})
    data = training.load(config, "permuted pixels", (0, 0))
    program = training.make_program(config, "permuted pixels", "L2")
    found = jax.device_get(program(data, jnp.array([0, 0]), jnp.array([0.0, 10.0])))
    assert found.accuracy.shape == (2, 6) and found.accuracy[0, 0] > 0.45 > 0.35 > found.accuracy[1, -1]
    assert found.norm[1, -1] < found.norm[0, -1] and found.online[0, 0] < found.accuracy[0, 0]
    # Strength 0 of any penalty is training without one.
    none = training.make_program(config, "permuted pixels", "none")(data, jnp.array([0, 0]), jnp.zeros(2))
    np.testing.assert_allclose(none.accuracy[0], found.accuracy[0], atol=0.05)


def test_the_study_writes_its_folder_and_overwrites_none(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(plasticity, "METHODS", ("none", "spectral"))
    monkeypatch.setattr(plasticity, "CLAIMS", tuple(c for c in plasticity.CLAIMS if c.rival == "none"))
    config = plasticity.PlasticityConfig(**TINY, out=tmp_path)
    assert "some is lost with the spectral one too" in plasticity.study(config, quiet=True)
    results = json.loads((tmp_path / "results.json").read_text())
    for kind in training.STREAMS:
        found = results["streams"][kind]
        assert list(found) == ["none", "spectral"] and len(found["none"]["curve"]) == 6
        np.testing.assert_allclose(
            found["spectral"]["late"], np.add(found["spectral"]["first"], found["spectral"]["change"]), atol=3e-5
        )
    assert (tmp_path / "tasks.png").stat().st_size > 10_000
    assert plasticity.main(["--out", str(tmp_path)]) == 2 and "--force" in capsys.readouterr().err
    for wrong in ({"seeds": 0}, {"tasks": (5, 50)}, {"depth": 1}, {"images": 100}):
        with pytest.raises(ValueError, match=f"PlasticityConfig: {next(iter(wrong))}"):
            plasticity.PlasticityConfig(**wrong)


def test_strengths_are_the_best_points_tried():
    tried = json.loads((readme.ROOT / plasticity_tuning.OUT).read_text())
    assert tuple(tried) == training.STREAMS
    for kind, methods in tried.items():
        assert set(methods) == set(training.METHODS)
        for method, points in methods.items():
            assert {float(point) for point in points} == set(plasticity_tuning.GRIDS[method])
            best = max(points, key=lambda point: np.mean(points[point]))
            assert float(best) == plasticity.STRENGTHS[kind][method], (kind, method)
