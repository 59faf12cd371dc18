"""TeS: loops, where its gradients go, and its limits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from tests.references import log_softmax, soft_labels

RNG = np.random.default_rng(0)
LOGITS, COSINES = RNG.normal(size=(6, 5)), RNG.uniform(-1, 1, size=(6, 5))
LABELS = RNG.integers(0, 5, size=6)
WHERE = RNG.random((6, 5)) < 0.6
WHERE[np.arange(6), LABELS] = True


def loop(z, c, labels, temperature, vision, text, where=None):
    out = []
    for i in range(len(z)):
        present = range(z.shape[1]) if where is None else np.flatnonzero(where[i])
        log_s, log_q = (log_softmax(v, None if where is None else where[i]) for v in (z[i], c[i] / temperature))
        y = np.eye(z.shape[1])[labels[i]] if labels.ndim == 1 else labels[i]
        soft = {k: vision * np.exp(log_q[k]) + (1 - vision) * y[k] for k in present}
        out.append(-sum(soft[k] * log_s[k] for k in present) - text * sum(y[k] * log_q[k] for k in present))
    return np.array(out)


@jax.jit
def tes(z, c, labels, temperature, vision, text, where=True):
    return rj.losses.tes(z, c, labels, temperature=temperature, weight_vision=vision, weight_text=text, where=where)


def test_equals_the_loop_and_the_published_value(x64):
    soft = soft_labels(RNG, 6, 5)
    for numbers in ((0.1, 0.2, 0.4), (0.03, 1.0, 0.0), (0.5, 0.0, 2.0)):
        np.testing.assert_allclose(tes(LOGITS, COSINES, LABELS, *numbers), loop(LOGITS, COSINES, LABELS, *numbers), rtol=1e-11)
        np.testing.assert_allclose(tes(LOGITS, COSINES, soft, *numbers), loop(LOGITS, COSINES, soft, *numbers), rtol=1e-11)
    got = tes(LOGITS, COSINES, LABELS, 0.1, 0.2, 0.4, WHERE)
    np.testing.assert_allclose(got, loop(LOGITS, COSINES, LABELS, 0.1, 0.2, 0.4, WHERE), rtol=1e-11, atol=1e-14)
    turned = jax.jit(lambda z, c, y: rj.losses.tes(z, c, y, axis=0))(LOGITS.T, COSINES.T, LABELS)
    np.testing.assert_allclose(turned, loop(LOGITS, COSINES, LABELS, 0.03, 0.2, 0.4), rtol=1e-11)
    z, c = jnp.array([2.0, 1.0, 0.0]), jnp.array([0.3, 0.1, 0.2])
    assert tes(z, c, jnp.array(0), 0.1, 0.2, 0.4) == pytest.approx(0.686546, abs=5e-7)


def test_each_network_learns_from_its_own_term(x64):
    gradients = jax.jit(jax.grad(lambda z, c, *rest: jnp.sum(tes(z, c, *rest)), argnums=(0, 1)))
    by_logits, by_cosines = gradients(LOGITS, COSINES, LABELS, 0.1, 0.3, 0.7)
    s, q = (np.exp([log_softmax(v) for v in vs]) for vs in (LOGITS, COSINES / 0.1))
    y = np.eye(5)[LABELS]
    np.testing.assert_allclose(by_logits, s - (0.3 * q + 0.7 * y), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(by_cosines, 0.7 * (q - y) / 0.1, rtol=1e-10, atol=1e-14)
    _, none = gradients(LOGITS, COSINES, LABELS, 0.1, 0.3, 0.0)
    assert not np.asarray(none).any(), "soft labels alone teach the projection nothing"


def test_certain_text_is_the_label(x64):
    certain = 2.0 * np.eye(5)[LABELS] - 1
    plain = [-log_softmax(z)[y] for z, y in zip(LOGITS, LABELS, strict=True)]
    for vision in (0.0, 0.2, 1.0):
        np.testing.assert_allclose(tes(LOGITS, certain, LABELS, 1e-3, vision, 0.4), plain, rtol=1e-12)
