"""Generated shapes and their wrong annotations, and the segmentation study at a tiny size."""

import json

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest
from flax import nnx

from experiments.data import shapes
from experiments.data.shapes import IGNORE, Corruption, boundary_band, corrupt_annotations, make_shapes
from experiments.studies import segmentation, segmentation_training

pytestmark = pytest.mark.slow


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
        assert segmentation_training.class_iou(predicted, labels)[k] == pytest.approx(hits / either)


def test_the_network_gives_logits_at_the_size_of_its_input():
    run = lambda images: segmentation_training.SegNet(3, 2, rngs=nnx.Rngs(0))(images)
    logits = jax.eval_shape(run, jax.ShapeDtypeStruct((4, 16, 16, 3), float))
    assert logits.shape == (4, 16, 16, 4)


class Pixelwise(nnx.Module):
    """In place of the network, whose compilation takes longest: a linear map of each pixel."""

    def __init__(self, channels, width, *, rngs):
        self.linear = nnx.Linear(channels, 4, kernel_init=nnx.initializers.zeros_init(), rngs=rngs)

    def __call__(self, x):
        return self.linear(x)


def test_study_runs_and_keeps_earlier_results(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(segmentation_training, "SegNet", Pixelwise)
    monkeypatch.setattr(jax.random, "permutation", lambda key, num: num - 1 - np.arange(num))  # a sort compiles slowly too
    runs = ["ce", "adele", "assisted", "student_bpkd_body"]
    tiny = "--seeds 1 --train 4 --test 4 --side 16 --epochs 4 --batch-size 4 --scales 1.0 --detection 0.0 --threshold 0.26"
    arguments = [*tiny.split(), "--runs", *runs, "--out", str(tmp_path)]
    assert segmentation.main(arguments) == 0
    printed = capsys.readouterr().out
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["study"] == "segmentation" and results["config"]["corruption"]["dilated"] == shapes.Corruption().dilated
    assert list(results["seeds"]) == ["0"] and list(results["seeds"]["0"]) == runs
    scores = results["seeds"]["0"]
    for score in scores.values():
        assert 0 <= score["iou"] <= 1 and 0 <= score["boundary_iou"] <= 1 and len(score["fit_history"]) == 4
        # Three points are needed for a fit.
        assert set(score["detected"].values()) <= {3}
    assert scores["ce"]["label_iou"] == scores["ce"]["label_iou_given"]
    assert scores["adele"]["detected"] and scores["adele"]["label_iou"] != scores["adele"]["label_iou_given"]
    assert "student_bpkd_body" in printed and "a teacher that sees annotations" in (tmp_path / "claims.txt").read_text()
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("# Segmentation\n\n") and "(histories.png)" in page and "| adele |" in page
    for name in ("histories", "masks"):
        assert np.std(plt.imread(tmp_path / f"{name}.png")) > 0.05
    assert segmentation.main(arguments) == 2 and "--force" in capsys.readouterr().err


def test_claims_are_tried_on_wrong_and_on_true_masks():
    gains = {"student_ce": 0.0, "student_bpkd": 0.1, "clean_student_ce": 0.0, "clean_student_bpkd": -0.1}
    score = lambda gain, seed: dict.fromkeys(segmentation.MEASURES, 0.5 + gain * (1 + 0.1 * seed))
    seeds = [{name: score(gain, seed) for name, gain in gains.items()} for seed in range(3)]
    claims = next(table for caption, table in segmentation.tables(seeds).items() if caption.startswith("Claims"))
    assert [(row[1], row[-1]) for row in claims.rows] == [("wrong", "held"), ("true", "the opposite")]
