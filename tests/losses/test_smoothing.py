"""Label smoothing and MaxSup against loop-written float64 references and the published values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from tests.references import log_softmax, soft_labels


def label_smoothing(logits, labels, alpha, where=None, off_target_only=False):
    out = []
    for i, z in enumerate(logits):
        present = [k for k in range(len(z)) if where is None or where[i][k]]
        target = np.zeros(len(z))
        for k in present:
            if off_target_only:
                target[k] = 1 - alpha if k == labels[i] else alpha / (len(present) - 1)
            else:
                target[k] = (1 - alpha) * (k == labels[i]) + alpha / len(present)
        log_p = log_softmax(z, None if where is None else where[i])
        out.append(-sum(target[k] * log_p[k] for k in present))
    return np.array(out)


def maxsup(logits, labels, weight, where=None):
    out = []
    for i, z in enumerate(logits):
        present = [k for k in range(len(z)) if where is None or where[i][k]]
        top, mean = max(z[k] for k in present), sum(z[k] for k in present) / len(present)
        out.append(-log_softmax(z, None if where is None else where[i])[labels[i]] + weight * (top - mean))
    return np.array(out)


RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 5))
LABELS = RNG.integers(0, 5, size=6)
WHERE = RNG.random((6, 5)) < 0.6
WHERE[np.arange(6), LABELS] = True
WHERE[:, 0] = True


@pytest.mark.parametrize("where", [None, WHERE])
def test_equal_their_references(x64, where):
    got = rj.losses.label_smoothing(LOGITS, LABELS, alpha=0.3, where=where)
    np.testing.assert_allclose(got, label_smoothing(LOGITS, LABELS, 0.3, where), rtol=1e-12)
    got = rj.losses.maxsup(LOGITS, LABELS, weight=0.3, where=where)
    np.testing.assert_allclose(got, maxsup(LOGITS, LABELS, 0.3, where), rtol=1e-12)
    got = rj.losses.label_smoothing(LOGITS, LABELS, alpha=0.3, where=where, off_target_only=True)
    np.testing.assert_allclose(got, label_smoothing(LOGITS, LABELS, 0.3, where, off_target_only=True), rtol=1e-12)


def test_published_values(x64):
    z = jnp.array([2.0, 1.0, 0.0])
    assert rj.losses.label_smoothing(z, jnp.array(0), alpha=0.1) == pytest.approx(0.507606, abs=5e-7)
    assert rj.losses.label_smoothing(z, jnp.array(0), alpha=0.2) == pytest.approx(0.607606, abs=5e-7)
    assert rj.losses.label_smoothing(z, jnp.array(0), off_target_only=True) == pytest.approx(0.557606, abs=5e-7)
    assert rj.losses.label_smoothing(z, jnp.array(1), alpha=0.1) == pytest.approx(1.407606, abs=5e-7)
    assert rj.losses.maxsup(z, jnp.array(0), weight=0.1) == pytest.approx(0.507606, abs=5e-7)
    assert rj.losses.maxsup(z, jnp.array(1), weight=0.1) == pytest.approx(1.507606, abs=5e-7)
    gradient = jax.grad(lambda z: rj.losses.maxsup(z, jnp.array(1), weight=0.1))(z)
    np.testing.assert_allclose(gradient, [0.731908, -0.788605, 0.056697], atol=5e-7)
    gradient = jax.grad(lambda z: rj.losses.label_smoothing(z, jnp.array(0), alpha=0.1))(z)
    np.testing.assert_allclose(gradient, [-0.268092, 0.211395, 0.056697], atol=5e-7)


def test_agree_with_optax_and_with_each_other_where_the_prediction_is_right(x64):
    smooth = optax.smooth_labels(jax.nn.one_hot(LABELS, 5), 0.2)
    want = optax.softmax_cross_entropy(jnp.asarray(LOGITS), smooth)
    np.testing.assert_allclose(rj.losses.label_smoothing(LOGITS, LABELS, alpha=0.2), want, rtol=1e-12)
    top = LOGITS.argmax(-1)
    got = rj.losses.maxsup(LOGITS, top, weight=0.2)
    np.testing.assert_allclose(got, rj.losses.label_smoothing(LOGITS, top, alpha=0.2), rtol=1e-12)


def test_probability_labels_axis_and_leading_dimensions(x64):
    z = RNG.normal(size=(2, 5, 3))
    y = soft_labels(RNG, 2, 3, 5)
    got = rj.losses.maxsup(z, np.moveaxis(y, -1, 1), weight=0.3, axis=1)
    rows = np.moveaxis(z, 1, -1)
    want = -(y * np.array([[log_softmax(r) for r in b] for b in rows])).sum(-1) + 0.3 * (rows.max(-1) - rows.mean(-1))
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_masked_classes_get_no_mass_and_no_gradient():
    def total(z):
        return rj.losses.label_smoothing(z, LABELS, where=WHERE).sum() + rj.losses.maxsup(z, LABELS, where=WHERE).sum()

    z = jnp.asarray(LOGITS, jnp.float32)
    gradient = jax.grad(total)(z)
    assert np.all(np.asarray(gradient)[~WHERE] == 0)
    assert total(jnp.where(WHERE, z, 1e30)) == total(z)
