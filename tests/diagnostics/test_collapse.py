"""Softmax collapse and the decomposition of label smoothing against published values and slow references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
ROWS = np.array([[30, 0, 0], [20, 0, 0], [12, 0, 0], [5, 1, 0], [9, 0, 0], [17.5, 0, 0], [40, 0, 1]])
collapse = jax.jit(rj.diagnostics.softmax_collapse, static_argnames=("axis", "dtype"))
decompose = jax.jit(rj.diagnostics.label_smoothing_decomposition, static_argnames="axis")


def test_published_fractions(x64):
    for dtype, want in (("float16", 6), (jnp.float32, 4), (np.float64, 1)):
        assert collapse(ROWS, dtype=dtype) == pytest.approx(want / 7)
        # The default is the dtype that the logits have.
        assert collapse(jnp.asarray(ROWS, dtype)) == pytest.approx(want / 7)


def test_without_float64_the_fractions_of_the_narrow_dtypes_are_the_same():
    logits = ROWS.astype(np.float32)
    assert collapse(logits) == pytest.approx(4 / 7) and collapse(logits, dtype="float16") == pytest.approx(6 / 7)
    # bfloat16 has 8 bits: 2 exp(-6) = 0.005 is above half of 2^-7, and 2 exp(-7) = 0.0018 below.
    edges = np.float32([[5.0, 0, 0], [7.0, 0, 0]])
    assert collapse(edges, dtype="bfloat16") == 0.5
    with pytest.raises(ValueError, match=r"regjax\.diagnostics\.softmax_collapse: dtype must be .*x64"):
        rj.diagnostics.softmax_collapse(logits, dtype=jnp.float64)


def test_collapse_agrees_with_the_gradient_that_stops():
    logits = np.float32([[25.0, 0, 0], [10.0, 0, 0], [3.0, 3.0, 0], [18.0, 0, -5.0]])
    labels = jnp.zeros(4, int)
    loss = lambda z: rj.diagnostics.negative_log_likelihood(z, labels)
    losses, gradient = jax.jit(lambda z: (loss(z), jax.grad(lambda z: loss(z).sum())(z)))(logits)
    stopped = np.asarray(gradient)[:, 0] == 0
    assert stopped.tolist() == [True, False, False, True]
    assert collapse(logits) == stopped.mean() == rj.diagnostics.zero_loss_fraction(losses)


def test_two_top_logits_infinite_logits_and_large_ones():
    assert collapse(np.float32([[5e4, 5e4, 0]])) == 0
    assert collapse(np.float32([[1e5, 0, 0]]), dtype="float16") == 1  # infinite in float16
    assert collapse(np.float32([[0.0, -np.inf, -np.inf], [1.0, 0.5, -np.inf]])) == 0.5
    assert collapse(np.float32([[3.0]])) == 1


def test_axis_and_the_examples_that_count():
    logits = ROWS.astype(np.float32)
    assert collapse(logits.T, axis=0) == pytest.approx(4 / 7)
    where = np.array([True, False, True, False, False, True, False])
    assert collapse(logits, where=where) == pytest.approx(2 / 3)
    assert collapse(logits, where=np.zeros(7, bool)) == 0
    losses = np.float32([0.0, 1.0, 0.0, 2.0])
    assert rj.diagnostics.zero_loss_fraction(losses) == 0.5
    assert rj.diagnostics.zero_loss_fraction(losses, where=np.array([True, True, False, True])) == pytest.approx(1 / 3)
    assert rj.diagnostics.zero_loss_fraction(losses, where=np.zeros(4, bool)) == 0


def test_decomposition_equals_its_reference(x64):
    logits, labels = RNG.normal(size=(6, 5)), RNG.integers(0, 5, size=6)
    where = RNG.random((6, 5)) < 0.6
    where[np.arange(6), labels] = True
    for mask in (np.ones((6, 5), bool), where):
        got = decompose(logits, labels, alpha=0.3, where=mask)
        for i, (z, y) in enumerate(zip(logits, labels, strict=True)):
            leads = [z[y] - z[m] for m in range(5) if mask[i][m]]
            assert got.regularization[i] == pytest.approx(0.3 / len(leads) * sum(v for v in leads if v > 0), rel=1e-12)
            assert got.error_enhancement[i] == pytest.approx(0.3 / len(leads) * sum(v for v in leads if v < 0), rel=1e-12)


def test_decomposition_adds_up_to_what_label_smoothing_adds(x64):
    logits, labels = RNG.normal(size=(8, 5)), RNG.integers(0, 5, size=8)
    got = decompose(logits, labels, alpha=0.2)
    smoothing = jax.jit(rj.losses.label_smoothing)
    plain, smooth = (smoothing(logits, labels, alpha=a) for a in (0.0, 0.2))
    np.testing.assert_allclose(got.regularization + got.error_enhancement, smooth - plain, rtol=1e-10)
    # Where the prediction is right there is no error enhancement, and the rest is MaxSup's penalty.
    top = logits.argmax(1)
    right = decompose(logits, top, alpha=0.2)
    assert not right.error_enhancement.any()
    np.testing.assert_allclose(right.regularization, 0.2 * rj.losses.max_suppression(logits), rtol=1e-12)
    assert not any(part.any() for part in decompose(logits, labels, alpha=0.0))
    assert all(jnp.isnan(part[0]) for part in decompose(logits, np.where(np.arange(8) == 0, 5, labels)))
