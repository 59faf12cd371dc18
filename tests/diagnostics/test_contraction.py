"""Contraction coefficients against closed forms, and against KL divergences through the layers themselves."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

eta = rj.diagnostics.sdpi_contraction
RNG = np.random.default_rng(0)


def divergence(p, q):
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True) if a > 0)


def test_published_values(x64):
    assert float(eta("dropout", rate=0.5, fan_in=3)) == pytest.approx(0.875, abs=1e-15)
    assert float(eta("drop_connect", rate=0.5, fan_in=2, fan_out=3)) == pytest.approx(0.984375, abs=1e-15)
    assert float(eta("gaussian", std=2.0, bound=1.0, fan_out=4)) == pytest.approx(0.68268949, abs=5e-9)


def test_equal_their_closed_forms(x64):
    for rate, fan_in, fan_out in itertools.product([0.01, 0.3, 0.9], [1, 2, 7], [1, 4]):
        options = {"rate": rate, "fan_in": fan_in, "fan_out": fan_out}
        np.testing.assert_allclose(eta("dropout", **options), 1 - rate**fan_in, rtol=1e-12)
        np.testing.assert_allclose(eta("drop_connect", **options), 1 - rate ** (fan_in * fan_out), rtol=1e-12)
    for std, bound, fan_out in itertools.product([0.1, 1.0, 5.0], [0.5, 1.0], [1, 9]):
        tail = 0.5 * math.erfc(bound * math.sqrt(fan_out) / std / math.sqrt(2))
        np.testing.assert_allclose(eta("gaussian", std=std, bound=bound, fan_out=fan_out), 1 - 2 * tail, rtol=1e-12)


def test_ends():
    for kind in ("dropout", "drop_connect"):
        value = jax.jit(lambda rate, kind=kind: eta(kind, rate=rate, fan_in=5, fan_out=2))
        assert value(0.0) == 1 and value(1.0) == 0 and eta(kind, rate=0, fan_in=5, fan_out=2) == 1
    gaussian = jax.jit(lambda std: eta("gaussian", std=std, bound=1.0, fan_out=3))
    assert gaussian(0.0) == 1 and gaussian(1e20) < 1e-19
    assert eta("gaussian", std=0.5, fan_out=3) == 1  # an unbounded activation
    assert eta("gaussian", std=0.5, bound=0.0, fan_out=3) == 0
    # 1 - rate**n in float32 would have lost 2 of 7 digits.
    rate = np.float32(0.99999)
    assert float(eta("dropout", rate=rate, fan_in=3)) == pytest.approx(1 - float(rate) ** 3, rel=1e-6)


def test_wider_layers_contract_less_and_more_noise_contracts_more():
    widths = [float(eta("dropout", rate=0.5, fan_in=n)) for n in (1, 2, 4, 8)]
    noises = [float(eta("gaussian", std=s, bound=1.0, fan_out=4)) for s in (0.5, 1.0, 2.0)]
    assert widths == sorted(widths) and noises == sorted(noises, reverse=True)
    assert len(set(widths)) == 4 and len(set(noises)) == 3


def outputs_of(layer, inputs, count=40_000):
    """The distribution of a layer's output for each input by Monte Carlo: [inputs, outputs seen]."""
    draws = [np.asarray(jax.jit(jax.vmap(lambda k, x=x: layer(k, x)))(jax.random.split(jax.random.key(i), count)))
             for i, x in enumerate(inputs)]  # fmt: skip
    _, which = np.unique(np.concatenate(draws).round(3), axis=0, return_inverse=True)
    table = np.zeros((len(inputs), which.max() + 1))
    np.add.at(table, (np.repeat(np.arange(len(inputs)), count), which.ravel()), 1 / count)
    return table


def test_divergences_through_the_layers_stay_below_the_coefficient():
    """Inputs from two random distributions on {-1, 1}^n; the layers of the library are the channels."""
    rate, kernel = 0.6, jnp.array([[1.0, 0.5], [0.3, 2.0]])
    inputs = [jnp.array(x) for x in itertools.product([-1.0, 1.0], repeat=2)]
    channels = {
        "dropout": outputs_of(lambda key, x: rj.layers.dropout(key, x, rate=rate), inputs),
        "drop_connect": outputs_of(lambda key, x: rj.layers.drop_connect(key, x, kernel, rate=rate), inputs),
    }
    for kind, table in channels.items():
        coefficient = float(eta(kind, rate=rate, fan_in=2, fan_out=2))
        ratios = []
        for p, q in RNG.dirichlet(np.full(4, 0.3), size=(300, 2)) + 1e-9:
            ratios.append(divergence(p @ table, q @ table) / divergence(p, q))
        # The tables are estimates: a hundredth for their noise.
        assert max(ratios) < coefficient + 0.01
        # Two inputs that differ everywhere come close to it: the bound of dropout is attained.
        p, q = np.array([0.6, 0, 0, 0.4]), np.array([0.4, 0, 0, 0.6])
        attained = divergence(p @ table, q @ table) / divergence(p[[0, 3]], q[[0, 3]])
        assert attained == pytest.approx(coefficient, abs=0.01) if kind == "dropout" else attained < coefficient + 0.01


def test_divergences_through_gaussian_noise_stay_below_the_coefficient():
    grid = np.linspace(-12, 12, 4001)
    for std in (0.5, 1.0, 2.0):
        coefficient = float(eta("gaussian", std=std, bound=1.0, fan_out=1))
        inputs = np.linspace(-1, 1, 5)
        table = np.exp(-(((grid - inputs[:, None]) / std) ** 2) / 2) / (std * math.sqrt(2 * math.pi)) * (grid[1] - grid[0])
        table += 1e-300
        for p, q in RNG.dirichlet(np.full(5, 0.3), size=(40, 2)) + 1e-9:
            a, b = p @ table, q @ table
            assert np.sum(a * np.log(a / b)) / divergence(p, q) < coefficient
