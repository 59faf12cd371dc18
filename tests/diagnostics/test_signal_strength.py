"""Relative signal strength against a loop, the published values, and what it says of noise."""

import jax
import numpy as np
import pytest

import regjax as rj

strength = jax.jit(rj.diagnostics.relative_signal_strength)
RNG = np.random.default_rng(0)


def reference(clean, noisy):
    out = []
    for eta, other in zip(clean, noisy, strict=True):
        ratios = [(max(other) - other[j]) / (max(eta) - eta[j]) for j in range(len(eta)) if eta[j] < max(eta)]
        out.append(min(ratios, default=np.inf))
    return np.array(out)


def symmetric(eta, share):
    num_classes = eta.shape[-1]
    return (1 - share * num_classes / (num_classes - 1)) * eta + share / (num_classes - 1)


def test_equals_its_reference(x64):
    clean, noisy = RNG.dirichlet(np.ones(5), (2, 3, 20)) + np.array([[[[0.0]]], [[[0.1]]]])
    clean[0, 0] = 0.2
    clean[0, 1] = [0.4, 0.4, 0.2, 0, 0]
    noisy[0, 2] = clean[0, 2]
    got = strength(clean, noisy)
    assert got.shape == (3, 20)
    np.testing.assert_allclose(got.ravel(), reference(clean.reshape(-1, 5), noisy.reshape(-1, 5)), rtol=1e-12)
    assert np.isinf(got[0, 0]) and got[0, 2] == pytest.approx(1)


def test_published_values(x64):
    eta = np.array([0.6, 0.3, 0.1])
    assert strength(eta, symmetric(eta, 0.3)) == pytest.approx(0.55, abs=1e-12)
    assert strength(eta, np.array([0.3, 0.6, 0.1])) == 0
    assert strength(eta, np.array([0.5, 0.4, 0.1])) == pytest.approx(1 / 3, abs=1e-12)
    assert strength(eta, eta) == pytest.approx(1)


def test_it_is_zero_exactly_where_noise_may_change_the_likeliest_class(x64):
    clean, noisy = RNG.dirichlet(np.ones(4), 200), RNG.dirichlet(np.ones(4), 200)
    differs = clean.argmax(1) != noisy.argmax(1)
    assert 0 < differs.sum() < 200
    np.testing.assert_array_equal(np.asarray(strength(clean, noisy)) == 0, differs)
    for share in (0.0, 0.4, 0.7):
        np.testing.assert_allclose(strength(clean, symmetric(clean, share)), 1 - share * 4 / 3, rtol=1e-9)


def test_one_class_and_nan():
    assert np.isinf(strength(np.ones((2, 1), np.float32), np.ones((2, 1), np.float32))).all()
    clean = np.array([[0.5, 0.3, 0.2]] * 2, np.float32)
    spoilt = np.array([[0.5, np.nan, 0.2], [0.5, 0.3, 0.2]], np.float32)
    for got in (strength(clean, spoilt), strength(spoilt, clean)):
        assert np.isnan(got[0]) and got[1] == 1
