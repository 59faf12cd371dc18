"""Generated shapes and their wrong annotations, and the segmentation study at a tiny size."""

import functools
import json

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments.data import shapes
from experiments.data.shapes import IGNORE, Corruption, boundary_band, corrupt_annotations, make_shapes
from experiments.studies import segmentation


def test_shapes_are_what_they_say_and_repeat():
    made, again, other = make_shapes(60, seed=3), make_shapes(60, seed=3), make_shapes(60, seed=4)
    assert all(np.array_equal(a, b) for a, b in zip(made, again, strict=True))
    assert not np.array_equal(made.images, other.images)
    assert made.images.shape == (60, 32, 32, 3) and made.images.dtype == np.float32
    assert made.objects.sum(1).max() == 1, "no two objects share a pixel"
    rebuilt = np.sum(made.objects * made.classes[:, :, None, None], axis=1)
    np.testing.assert_array_equal(made.masks, rebuilt)
    assert ((made.classes > 0).sum(1) >= 1).all() and set(np.unique(made.classes)) == {0, 1, 2, 3}
    # Objects of all classes have about one area, so that size does not tell the class.
    area = [made.objects[made.classes == k].sum((1, 2)).mean() for k in (1, 2, 3)]
    assert max(area) < 1.15 * min(area)
    # Colours tell classes apart.
    colours = np.array([made.images[made.masks == k].mean(0) for k in range(4)])
    assert min(np.linalg.norm(colours[i] - colours[j]) for i in range(4) for j in range(i)) > 0.4


def test_annotations_go_wrong_as_asked():
    made = make_shapes(60, seed=5)
    none = Corruption(dilated=0, eroded=0, shifted=0, missing=0)
    np.testing.assert_array_equal(corrupt_annotations(made, none, seed=0), made.masks)
    only = lambda **fate: corrupt_annotations(made, Corruption(**{**vars(none), **fate}), seed=0)
    area = (made.masks > 0).sum()
    larger, smaller, moved = only(dilated=1), only(eroded=1), only(shifted=1)
    assert np.all(larger[made.masks > 0] > 0) and 1.2 * area < (larger > 0).sum()
    assert np.all(made.masks[smaller > 0] > 0) and (smaller > 0).sum() < 0.8 * area
    assert (moved > 0).sum() == pytest.approx(area, rel=0.1) and (moved != made.masks).mean() > 0.05
    assert not only(missing=1).any()
    default = corrupt_annotations(made, Corruption(), seed=0)
    np.testing.assert_array_equal(default, corrupt_annotations(made, Corruption(), seed=0))
    assert (default != corrupt_annotations(made, Corruption(), seed=1)).any()
    banded = only(band=1)
    np.testing.assert_array_equal(banded[banded != IGNORE], made.masks[banded != IGNORE])
    assert np.all(boundary_band(made.masks, 1)[banded == IGNORE]) and (banded == IGNORE).any()


def test_bad_options_are_named():
    with pytest.raises(ValueError, match=r"Corruption: missing must be such that"):
        Corruption(dilated=0.5, eroded=0.5)
    with pytest.raises(ValueError, match=r"Corruption: pixels must be"):
        Corruption(pixels=0.0)
    with pytest.raises(ValueError, match=r"make_shapes: side must be"):
        make_shapes(2, side=17)
    with pytest.raises(ValueError, match=r"boundary_band: width must be"):
        boundary_band(np.zeros((1, 16, 16), int), 0)
    for options in ({"train": 10, "batch_size": 4}, {"runs": ("unet",)}, {"runs": ("student_cwd",)}, {"scales": (0.75,)}):
        with pytest.raises(ValueError, match="SegmentationConfig"):
            segmentation.SegmentationConfig(**options)


def test_iou_counts():
    rng = np.random.default_rng(0)
    predicted, labels = rng.integers(0, 4, (2, 5, 5)), rng.integers(0, 3, (2, 5, 5))
    labels[0, 0] = IGNORE
    for k in range(4):
        hits = sum(p == k and y == k for p, y in zip(predicted.flat, labels.flat, strict=True))
        either = sum(y != IGNORE and (p == k or y == k) for p, y in zip(predicted.flat, labels.flat, strict=True))
        assert segmentation.class_iou(predicted, labels)[k] == pytest.approx(hits / either)


def test_every_kind_of_training_has_a_loss():
    config = segmentation.SegmentationConfig(side=16, width=2, scales=(1.0,))
    programs = segmentation.Programs(config)
    of = lambda dtype, *last: jax.ShapeDtypeStruct((4, 16, 16, *last), dtype)
    images, ids, maps = of(float, 3), of(int), of(float, 4)
    batch = {"image": images, "label": ids, "teacher": maps}
    weights = {"cwd": 1.0, "edge": 1.0, "body": 1.0}
    for kind in programs.shapes:
        params = jax.eval_shape(functools.partial(programs.init, kind, 0))[0]
        loss = functools.partial(programs._loss, kind, weights=weights)
        value, predicted = jax.eval_shape(loss, params, batch, jax.random.key(0))
        assert value.shape == () and predicted.shape == (4, 16, 16)


def test_study_runs_and_keeps_earlier_results(tmp_path, capsys):
    tiny = "--seeds 1 --train 8 --test 8 --side 16 --width 2 --epochs 4 --batch-size 4 --scales 1.0 --runs ce adele"
    arguments = [*tiny.split(), "--detection", "0.0", "--threshold", "0.26", "--out", str(tmp_path / "study")]
    assert segmentation.main(arguments) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "study" / "results.json").read_text())
    assert list(results["seeds"]) == ["0"] and results["config"]["corruption"]["dilated"] == shapes.Corruption().dilated
    scores = results["seeds"]["0"]
    assert list(scores) == ["ce", "adele"]
    for score in scores.values():
        assert 0 <= score["iou"] <= 1 and 0 <= score["boundary_iou"] <= 1 and len(score["fit_history"]) == 4
        # Three points are needed for a fit.
        assert set(score["detected"].values()) <= {3}
    assert scores["ce"]["label_iou"] == scores["ce"]["label_iou_given"]
    assert scores["adele"]["detected"] and scores["adele"]["label_iou"] != scores["adele"]["label_iou_given"]
    table = (tmp_path / "study" / "table.txt").read_text()
    assert table.strip() in printed and "adele" in table
    for name in ("histories", "strip"):
        assert np.std(plt.imread(tmp_path / "study" / f"{name}.png")) > 0.05
    assert segmentation.main(arguments) == 2 and "--force" in capsys.readouterr().err


@pytest.mark.slow
def test_correction_brings_annotations_nearer_to_the_truth():
    config = segmentation.SegmentationConfig(train=64, test=64, width=6, epochs=16, scales=(1.0,), runs=("adele",))
    scores, shown = segmentation.run_seed(segmentation.Programs(config), 0, lambda text: None)
    history = shown["histories"]["adele"]
    assert len(history["detected"]) >= 2 and min(history["detected"].values()) > 3
    assert scores["adele"]["label_iou"] > scores["adele"]["label_iou_given"] + 0.03
    # Early on the fit to the truth is the better one, though the annotations are what is trained on.
    first = min(history["detected"].values())
    assert history["truth"][first - 1, 1:].mean() > history["fit"][first - 1, 1:].mean()
