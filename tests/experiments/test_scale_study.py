"""The study of size: its images can be learnt, its counts are those of the formulas, its projections those of the arithmetic."""

import json

import jax
import numpy as np
import pytest

from experiments.studies import scale
from experiments.studies.scale_training import CHIPS, METHODS, Chip, Training, chip_of, make_images, program, project


def test_a_step_on_many_chips_by_hand():
    chip = Chip(peak=100e12, network=10e9, host=1e9)
    # 1e12 operations at half of the peak: 20 ms. 1e6 parameters of 4 bytes, twice 3/4 of them: 6e6 bytes, 0.6 ms.
    made = project(1e12, 1_000_000, 50, 4, chip, 0.5)
    assert made.compute == pytest.approx(20) and made.exchange == pytest.approx(0.6)
    assert made.feed == pytest.approx(1e3 * 50 * 3072 / 1e9)
    assert made.images_per_second == pytest.approx((200 / 0.0206, 200 / 0.02)) and made.bottleneck == "arithmetic"
    twice = project(1e12, 1_000_000, 50, 4, chip, 0.5, all_reduces=2.0)
    assert twice.exchange == pytest.approx(1.2)
    assert project(1e9, 1_000_000_000, 50, 4, chip, 0.5).bottleneck == "all-reduce"
    assert project(1e9, 1_000, 5000, 4, chip, 0.5).bottleneck == "input"


def test_data_sheets_are_found_by_name():
    assert chip_of("NVIDIA H100 80GB HBM3") is CHIPS["H100"] and chip_of("TPU v5 lite") is CHIPS["TPU v5 lite"]
    assert chip_of("AMD EPYC") is None


def test_images_are_of_ten_classes_and_of_their_key():
    made = make_images(jax.random.key(0), 40)
    assert made.images.shape == (40, 32, 32, 3) and made.images.dtype == np.uint8
    assert np.bincount(np.asarray(made.labels)).tolist() == [4] * 10
    np.testing.assert_array_equal(made.images, make_images(jax.random.key(0), 40).images)
    assert np.asarray(made.images != make_images(jax.random.key(1), 40).images).mean() > 0.9
    # The spectrum of a class has its peak at the class's frequency: the classes can be told apart.
    grey = np.asarray(made.images, np.float64).mean(-1)
    power = np.abs(np.fft.fft2(grey - grey.mean((1, 2), keepdims=True))) ** 2
    y, x = np.meshgrid(2 * np.pi * np.fft.fftfreq(32), 2 * np.pi * np.fft.fftfreq(32), indexing="ij")
    pitch = np.hypot(y, x)
    strongest = np.array([pitch.ravel()[p.ravel().argmax()] for p in power])
    narrow = np.asarray(made.labels) % 10 >= 5
    assert np.median(strongest[~narrow]) == pytest.approx(0.5, abs=0.1)
    assert np.median(strongest[narrow]) == pytest.approx(0.9, abs=0.1)


@pytest.mark.slow
def test_counted_work_is_that_of_the_formulas():
    """A multiplication and an addition for each tap of each kernel that lies on the image; backward twice as many."""
    forward, before, side = 2 * (3 * 32 - 2) ** 2 * 3 * 16, 16, 32
    for width in (160, 320, 640):
        for block in range(4):
            stride = 2 if width > 160 and not block else 1
            side //= stride
            # Along a side of n: 3 n - 2 taps, for the outermost two lie outside; one of them with stride 2.
            forward += 2 * (3 * side - (2 if stride == 1 else 1)) ** 2 * before * width
            forward += 2 * (3 * side - 2) ** 2 * width * width
            forward += 2 * side**2 * before * width * (before != width)
            before = width
    methods = ("plain", "sam", "saf", "randaugment")
    flops = {name: program(name, Training("wrn_28_10", 4, 40, 4, 0.1, False)).flops / 4 for name in methods}
    assert flops["plain"] == pytest.approx(3 * forward, rel=0.01)
    assert flops["sam"] / flops["plain"] == pytest.approx(2.0, abs=0.01)
    assert flops["saf"] / flops["plain"] < 1.01 and flops["randaugment"] / flops["plain"] < 1.01


@pytest.mark.slow
def test_a_tiny_study(tmp_path, capsys):
    arguments = "--model tiny --batch 8 --examples 40 --held-out 20 --steps 4 --turns 2 --no-bfloat16"
    command = [*arguments.split(), "--out", str(tmp_path / "scale")]
    assert scale.main(command) == 0
    results = json.loads((tmp_path / "scale" / "results.json").read_text())
    assert list(results["methods"]) == list(METHODS)
    for row in results["methods"].values():
        assert len(row["seconds"]) == 2 and min(row["seconds"]) > 0 and np.isfinite(row["losses"]).all()
    text = (tmp_path / "scale" / "README.md").read_text()
    assert "ASSUMED, 40 %" in text and "sam, by chip" in text and "64 H100" in text
    assert scale.main(command) == 2 and "holds results" in capsys.readouterr().err


def test_settings_that_cannot_run_are_refused():
    for field, value, message in (
        ("methods", ("smam",), "methods must be of"),
        ("model", "resnet-9000", "model must be of"),
        ("turns", 3, "turns must divide steps = 200"),
        ("batch", 60_000, "batch must be at most the 50000 examples"),
        ("share", 0.0, "share must be above 0"),
    ):
        with pytest.raises(ValueError, match=message):
            scale.ScaleConfig(**{field: value})
