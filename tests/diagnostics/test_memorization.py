"""Memorisation: the fitted epoch against a search by grid and the published value, the curves against counts."""

import jax
import numpy as np
import pytest

import regjax as rj

epoch = rj.diagnostics.memorization_epoch


def curve(a, b, c, x):
    return a * (1 - np.exp(-(np.asarray(x, float) ** b) / c))


def expected(a, b, c, num_epochs, threshold):
    slope = [a * b / c * np.exp(-((e + 1e-6) ** b) / c) * (e + 1e-6) ** (b - 1) for e in range(1, num_epochs)]
    changes = [abs(s - slope[0]) / slope[0] for s in slope]
    return 1 + sum((r if r <= 1 else 0) <= threshold for r in changes)


def test_published_value():
    history = curve(0.6, 1, 1, np.linspace(0, 10, 10))
    assert epoch(history, num_epochs=16) == 4
    assert epoch(history, num_epochs=16, threshold=0.95) == 4 and epoch(history, num_epochs=16, threshold=0.951) == 5
    assert epoch(history, num_epochs=3) == 3 and epoch(history, num_epochs=1) == 1


@pytest.mark.parametrize(("a", "b", "c"), [(0.6, 1.0, 1.0), (0.9, 0.7, 2.0), (0.5, 0.9, 4.0), (0.8, 0.5, 0.8)])
def test_noise_free_curves_are_found(a, b, c):
    found = set()
    for n, points in ((12, 1), (40, 4)):
        history = curve(a, b, c, np.linspace(0, n / points, n))
        for threshold in (0.3, 0.6, 0.9):
            # Thresholds away from the changes themselves, so that the last digits of a fit do not decide.
            got = epoch(history, num_epochs=20, threshold=threshold, iterations_per_point=250, iterations_per_epoch=250 * points)
            assert got == expected(a, b, c, 20, threshold)
            found.add(got)
    assert len(found) >= 2
    assert isinstance(got, int)


def test_noise_moves_the_epoch_little():
    rng = np.random.default_rng(0)
    clean = curve(0.7, 0.9, 2.0, np.linspace(0, 15, 15))
    want = epoch(clean, num_epochs=15, threshold=0.8)
    got = [epoch(np.clip(clean + 0.01 * rng.normal(size=15), 0, 1), num_epochs=15, threshold=0.8) for _ in range(10)]
    assert abs(np.median(got) - want) <= 1


def test_no_correction_without_a_fit():
    for history in ([], [0.1], [0.1, 0.5], np.zeros(8), np.full(8, 0.4)):
        assert epoch(history, num_epochs=9) == 9
    falling = np.linspace(0.9, 0.0, 9)
    assert 1 <= epoch(falling, num_epochs=9) <= 9


def test_a_slow_start_is_left_out_and_added_back():
    rise = curve(0.6, 1, 1, np.linspace(0, 10, 10))
    late = np.concatenate([np.full(3, rise[0]), rise])
    kept = epoch(rise, num_epochs=16)
    assert epoch(rise, num_epochs=16, min_rise=0.1) == kept
    assert epoch(late, num_epochs=16, min_rise=0.1) == kept + 3
    assert epoch(late, num_epochs=6, min_rise=0.1) == 6, "capped"
    half = {"iterations_per_point": 1, "iterations_per_epoch": 2}
    shifted = epoch(late, num_epochs=16, min_rise=0.1, **half) - epoch(rise, num_epochs=16, min_rise=0.1, **half)
    assert shifted == 2, "three points are one epoch and a half"
    assert epoch(rise, num_epochs=16, min_rise=0.9) == 16, "nothing rises so fast"


def test_curves_count():
    rng = np.random.default_rng(0)
    predictions, given, true = rng.integers(0, 3, (5, 40)), rng.integers(0, 3, 40), rng.integers(0, 3, 40)
    where = rng.random(40) < 0.8
    got = jax.jit(rj.diagnostics.memorization_curves)(predictions, given, true, where=where)
    for t in range(5):
        wrong = [i for i in range(40) if where[i] and given[i] != true[i]]
        clean = [i for i in range(40) if where[i] and given[i] == true[i]]
        assert got.correct[t] == pytest.approx(np.mean([predictions[t, i] == true[i] for i in wrong]))
        assert got.memorized[t] == pytest.approx(np.mean([predictions[t, i] == given[i] for i in wrong]))
        other = np.mean([predictions[t, i] not in (true[i], given[i]) for i in wrong])
        assert got.other[t] == pytest.approx(other) and other > 0
        assert got.clean_accuracy[t] == pytest.approx(np.mean([predictions[t, i] == true[i] for i in clean]))


def test_curves_of_no_examples_are_zero():
    labels = np.arange(4)
    got = rj.diagnostics.memorization_curves(labels[None], labels, labels)
    assert [float(x[0]) for x in got] == [0, 0, 0, 1]
    got = rj.diagnostics.memorization_curves(labels[None], labels, labels, where=np.zeros(4, bool))
    assert [float(x[0]) for x in got] == [0, 0, 0, 0]
