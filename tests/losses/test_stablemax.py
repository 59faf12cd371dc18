"""StableMax against loop-written float64 references and the published values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from tests.references import soft_labels


def stablemax(z, present):
    s = [(v + 1 if v >= 0 else 1 / (1 - v)) if here else 0.0 for v, here in zip(z, present, strict=True)]
    return np.array(s) / sum(s)


RNG = np.random.default_rng(0)
LOGITS = 3 * RNG.normal(size=(6, 5))
LABELS = RNG.integers(0, 5, size=6)
SOFT = soft_labels(RNG, 6, 5)
WHERE = RNG.random((6, 5)) < 0.6
WHERE[np.arange(6), LABELS] = True
ALL = np.ones((6, 5), bool)


@functools.partial(jax.jit, static_argnames="axis")
def everything(z, ids, soft, axis=-1, where=None):
    """Probabilities, their logarithms, and both losses with the gradient of their sum."""

    def total(z):
        hard = rj.losses.stablemax_cross_entropy(z, ids, axis=axis, where=where)
        mixed = rj.losses.stablemax_cross_entropy(z, soft, axis=axis, where=where)
        return hard.sum() + mixed.sum(), (hard, mixed)

    gradient, losses = jax.grad(total, has_aux=True)(z)
    p, log_p = (f(z, axis=axis, where=where) for f in (rj.losses.stablemax, rj.losses.log_stablemax))
    return p, log_p, *losses, gradient


@pytest.mark.parametrize("where", [None, WHERE])
def test_equal_their_references(x64, where):
    mask = ALL if where is None else where
    p = np.array([stablemax(z, m) for z, m in zip(LOGITS, mask, strict=True)])
    soft = np.where(mask, SOFT, 0)
    with np.errstate(divide="ignore"):
        log_p = np.log(p)
    got = everything(LOGITS, LABELS, soft, where=where)
    np.testing.assert_allclose(got[0], p, rtol=1e-12)
    np.testing.assert_allclose(got[1], log_p, rtol=1e-12)
    np.testing.assert_allclose(got[2], -log_p[np.arange(6), LABELS], rtol=1e-12)
    np.testing.assert_allclose(got[3], -(soft * np.where(mask, log_p, 0)).sum(-1), rtol=1e-12)
    # d log s / dz = 1 / (1 + |z|), and the rest is softmax's.
    target = np.eye(5)[LABELS] + soft
    np.testing.assert_allclose(
        got[4], (target.sum(-1, keepdims=True) * p - target) / (1 + np.abs(LOGITS)), rtol=1e-10, atol=1e-15
    )


def test_published_values(x64):
    z = np.array([[2.0, 1.0, 0.0]] * 3 + [[1.0, -1.0, 0.0], [0.3, 0.3, 0.3]])
    p, _, loss, _, gradient = everything(z, np.array([0, 1, 2, 0, 2]), np.zeros((5, 3)))
    np.testing.assert_allclose(loss[:3], [0.693147, 1.098612, 1.791759], atol=5e-7)
    np.testing.assert_allclose(gradient[0], [-1 / 6, 1 / 6, 1 / 6], rtol=1e-12)
    np.testing.assert_allclose(p[3], [4 / 7, 1 / 7, 2 / 7], rtol=1e-12)
    np.testing.assert_allclose(loss[4], np.log(3), rtol=1e-12)


def test_extreme_logits_in_float32():
    z = np.array([[1e4, -1e4, 0, 3], [-1e6] * 4, [-np.inf, 1, 0, 0], [1e4, 1e4, 1e4, 1e4]], np.float32)
    _, _, hard, soft, gradient = everything(z, np.full(4, 1), np.eye(4, dtype=np.float32)[[1, 1, 1, 1]])
    for loss in (hard, soft):
        np.testing.assert_allclose(loss, [18.421381, np.log(4), np.log(2), np.log(4)], rtol=1e-6)
    assert np.all(np.isfinite(gradient))
    np.testing.assert_allclose(gradient[1], 2e-6 * np.array([0.25, -0.75, 0.25, 0.25]), rtol=1e-4)


def test_slope_is_one_at_both_zeros():
    z = np.array([[0.0, 2.0, -1.0], [-0.0, 2.0, -1.0]], np.float32)
    p, _, _, _, gradient = everything(z, np.zeros(2, int), np.array([[1.0, 0.0, 0.0]] * 2, np.float32))
    np.testing.assert_allclose(gradient[:, 0], 2 * (p[:, 0] - 1), atol=1e-6)
    jacobian = jax.jit(jax.vmap(jax.jacobian(rj.losses.log_stablemax)))(z)
    # d log p_k / dz_0 = [k = 0] - p_0 with slope 1 at 0.
    np.testing.assert_allclose(jacobian[:, :, 0], np.array([1.0, 0, 0]) - p[:, :1], atol=1e-6)


def test_small_losses_keep_their_digits_where_softmax_stops():
    ours = jax.jit(jax.value_and_grad(rj.losses.stablemax_cross_entropy))
    loss, gradient = ours(np.array([1e5, -1e5, -1e5], np.float32), 0)
    assert loss == pytest.approx(2 / (1e5 + 1) ** 2, rel=1e-5)
    np.testing.assert_allclose(gradient, [-2e-15, 1e-15, 1e-15], rtol=1e-4)
    # The lead of 18 absorbs the other terms of softmax, and the right class is no longer pushed.
    softmax = jax.jit(jax.value_and_grad(optax.softmax_cross_entropy_with_integer_labels))
    loss, gradient = softmax(np.array([18.0, 0.0, 0.0], np.float32), 0)
    assert loss == 0 and gradient[0] == 0
    assert ours(np.array([18.0, 0.0, 0.0], np.float32), 0)[1][0] < -1e-3


def test_not_shift_invariant_but_order_is_kept(x64):
    moved, still = (np.asarray(everything(z, LABELS, SOFT)[0]) for z in (LOGITS + 1.0, LOGITS))
    assert np.abs(moved - still).max() > 0.01
    assert np.array_equal(np.argsort(moved, -1), np.argsort(LOGITS, -1))


def test_axis_and_leading_dimensions(x64):
    z = RNG.normal(size=(2, 5, 3))
    y = np.moveaxis(soft_labels(RNG, 2, 3, 5), -1, 1)
    ids = y.argmax(1)
    log_p = np.log([[stablemax(z[b, :, i], ALL[0]) for i in range(3)] for b in range(2)])
    got = everything(z, ids, y, axis=1)
    np.testing.assert_allclose(got[0], np.exp(np.moveaxis(log_p, -1, 1)), rtol=1e-12)
    np.testing.assert_allclose(got[1], np.moveaxis(log_p, -1, 1), rtol=1e-12)
    np.testing.assert_allclose(got[2], -np.take_along_axis(log_p, ids[..., None], -1)[..., 0], rtol=1e-12)
    np.testing.assert_allclose(got[3], -(np.moveaxis(log_p, -1, 1) * y).sum(1), rtol=1e-12)


def test_masked_classes_get_no_mass_and_no_gradient():
    where = WHERE.copy()
    where[3] = False
    z = np.where(where, LOGITS, np.nan).astype(np.float32)
    p, log_p, hard, soft, gradient = everything(z, LABELS, np.where(where, SOFT, 0).astype(np.float32), where=where)
    assert np.all(np.asarray(gradient)[~where] == 0) and np.all(np.isfinite(gradient))
    assert np.all(np.isfinite(hard)) and np.all(np.isfinite(soft))
    assert np.all(np.asarray(p)[~where] == 0)
    assert hard[3] == 0 and soft[3] == 0 and np.all(np.asarray(log_p)[3] == 0)


def test_wrong_labels_are_seen_and_can_be_masked_out():
    z = jnp.ones((3, 4))
    where = jnp.array([True, False, True, True])
    labels = jnp.array([-1, 1, 4])

    @functools.partial(jax.grad, has_aux=True)
    def kept(z):
        loss = rj.losses.stablemax_cross_entropy(z, labels, where=where)
        return jnp.where(jnp.isfinite(loss), loss, 0).sum(), loss

    gradient, loss = jax.jit(kept)(z)
    assert np.isnan(loss[0]) and loss[1] == jnp.inf and np.isnan(loss[2])
    assert np.all(np.asarray(gradient) == 0)
