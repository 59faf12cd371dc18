"""The balance of confidence between two models against a loop, and its limits."""

import jax
import numpy as np
import pytest

from regjax.diagnostics import confidence_balance
from tests.references import log_softmax

RNG = np.random.default_rng(0)
A, B = RNG.normal(size=(40, 4)), 2 * RNG.normal(size=(40, 4))


def reference(a, b, where):
    confidence, disputed, wins = np.zeros(2), 0, 0
    for x, y, here in zip(a, b, where, strict=True):
        confidence += [np.exp(log_softmax(z, here)).max() for z in (x, y)]
        one, two, both = (int(np.argmax(np.where(here, z, -np.inf))) for z in (x, y, (x + y) / 2))
        if one != two:
            disputed += 1
            wins += (both == one) - (both == two)
    mean = confidence / len(a)
    return mean[0], mean[1], mean[0] / mean[1], disputed / len(a), wins / disputed


def test_equals_its_reference(x64):
    where = RNG.random((40, 4)) < 0.7
    where[:, 0] = True
    everything = np.ones((40, 4), bool)
    balance = jax.jit(lambda a, b, where: confidence_balance(a, b, where=where))
    for mask in (where, everything):
        np.testing.assert_allclose(balance(A, B, mask), reference(A, B, mask), rtol=1e-12)
    np.testing.assert_allclose(confidence_balance(A, B), reference(A, B, everything), rtol=1e-12)
    # Any class axis and leading dimensions.
    moved = np.moveaxis(A.reshape(8, 5, 4), -1, 1), np.moveaxis(B.reshape(8, 5, 4), -1, 1)
    np.testing.assert_allclose(confidence_balance(*moved, axis=1), reference(A, B, everything), rtol=1e-12)


def test_limits(x64):
    same = confidence_balance(A, A)
    assert same.ratio == 1 and same.disagreement == 0 and same.dominance == 0
    sure = confidence_balance(A, 100 * B)
    assert sure.ratio < 0.8 and sure.dominance < -0.95 and sure.disagreement > 0.3
    assert confidence_balance(100 * A, B).dominance > 0.95
    # A temperature that makes the second as confident as the first restores the balance.
    assert abs(float(confidence_balance(A, B / 2).dominance)) < abs(float(confidence_balance(A, B).dominance))
    nothing = confidence_balance(A, B, where=np.zeros((1, 4), bool))
    assert list(map(float, nothing)) == [0, 0, 1, 0, 0]


def test_large_logits_do_not_overflow():
    balance = confidence_balance(np.float32([[3e38, 0.0]]), np.float32([[3e38, -3e38]]))
    assert balance.confidence_a == pytest.approx(1.0) and balance.dominance == 0
