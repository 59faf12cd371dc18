"""Choices between sub-networks: the values of the two losses, their gradients, and the examples that count."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

PROBS = np.random.default_rng(0).dirichlet(np.ones(4), size=6)


def separation(p):
    pairs = [(i, j) for i in range(p.shape[1]) for j in range(i + 1, p.shape[1])]
    return -sum(abs(row[i] - row[j]) for row in p for i, j in pairs) / len(p)


def balance(p):
    return sum(abs(sum(row[i] for row in p) - len(p) / p.shape[1]) for i in range(p.shape[1]))


def test_values_equal_loops_and_the_known_ones(x64):
    assert float(rj.losses.class_separation(jnp.eye(3))) == -2
    assert float(rj.losses.class_separation(jnp.full((5, 3), 1 / 3))) == 0
    assert float(rj.losses.class_balance(jnp.eye(3))) == 0
    assert float(rj.losses.class_balance(jnp.tile(jnp.array([1.0, 0, 0]), (6, 1)))) == 8
    some, none = np.array([True, False, True, True, False, True]), np.zeros(6, bool)
    padded = np.where(some[:, None], PROBS, np.nan)
    for fn, loop in ((rj.losses.class_separation, separation), (rj.losses.class_balance, balance)):
        counted = jax.jit(jax.value_and_grad(lambda p, where, fn=fn: fn(p, where=where)))
        assert fn(PROBS) == pytest.approx(loop(PROBS), rel=1e-12)
        value, gradient = counted(padded, some)
        assert value == pytest.approx(loop(PROBS[some]), rel=1e-12)
        assert np.all(gradient[~some] == 0) and np.all(np.isfinite(gradient))
        assert float(counted(padded, none)[0]) == 0


def test_descent_makes_choices_sharp_and_even():
    def loss(logits):
        probs = jax.nn.softmax(logits)
        return rj.losses.class_separation(probs) + 0.5 * rj.losses.class_balance(probs)

    logits = 0.1 * jax.random.normal(jax.random.key(0), (12, 3)) + jnp.array([0.3, 0, 0])
    step = jax.jit(lambda x: x - 0.5 * jax.grad(loss)(x))
    for _ in range(100):
        logits = step(logits)
    probs = jax.nn.softmax(logits)
    assert float(jnp.mean(jnp.max(probs, 1))) > 0.9
    assert float(rj.losses.class_balance(probs)) < 1.5
