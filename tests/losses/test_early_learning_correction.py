"""ADELE's losses and label correction against loop-written float64 references and the published values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from tests.references import log_softmax, soft_labels

RNG = np.random.default_rng(0)
# Images of different confidence.
LOGITS = RNG.normal(size=(3, 4, 3, 2, 3)) * np.array([2.5, 0.7, 1.0, 1.6])[:, None, None, None]
LABELS = RNG.integers(0, 3, size=(4, 3, 2))
LABELS[0, 0] = 255
WEIGHTS = np.array([0.5, 1.0, -0.3])


def multiscale(logits, labels, scale_weights, confidence, ignore=255):
    scales, batch, height, width, _ = logits.shape
    w = np.exp(scale_weights) / np.exp(scale_weights).sum()
    cross_entropy = consistency = 0.0
    for b in range(batch):
        divergence, surest = 0.0, 0.0
        for i in range(height):
            for j in range(width):
                logs = [log_softmax(logits[s, b, i, j]) for s in range(scales)]
                m = np.clip(sum(w[s] * np.exp(logs[s]) for s in range(scales)), 1e-3, 1 - 1e-3)
                divergence += sum(np.sum(np.exp(log) * (log - np.log(m))) for log in logs)
                if labels[b, i, j] != ignore:
                    surest = max(surest, m.max())
                    for s in range(scales):
                        cross_entropy -= log_softmax(w[s] * logits[s, b, i, j])[labels[b, i, j]]
        consistency += divergence * (surest >= confidence)
    return np.array([cross_entropy, consistency]) / (batch * height * width)


both = jax.jit(lambda z, y, w, c: jnp.stack(rj.losses.adele_multiscale(z, y, w, confidence=c)))


def test_multiscale_equals_its_reference_at_every_confidence(x64):
    gates = set()
    for confidence in (0.0, 0.65, 0.7, 0.8, 0.9, 1.0):
        want = multiscale(LOGITS, LABELS, WEIGHTS, confidence)
        np.testing.assert_allclose(both(LOGITS, LABELS, WEIGHTS, confidence), want, rtol=1e-12)
        gates.add(want[1])
    assert len(gates) >= 4 and 0 in gates
    other = rj.losses.adele_multiscale(LOGITS, np.where(LABELS == 255, -1, LABELS), WEIGHTS, confidence=0.7, ignore_label=-1)
    np.testing.assert_allclose(other, multiscale(LOGITS, LABELS, WEIGHTS, 0.7), rtol=1e-12)
    narrow = rj.losses.adele_multiscale(LOGITS, LABELS.astype(np.uint8), WEIGHTS, confidence=0.7)
    np.testing.assert_allclose(narrow, other, rtol=1e-12)


def test_published_values_and_equal_scales(x64):
    one = jnp.array([[3.0, 0.0, 0.0], [2.0, 1.0, 0.0], [1.0, 0.0, 2.0]]).reshape(3, 1, 1, 1, 3)
    label = jnp.zeros((1, 1, 1), int)
    np.testing.assert_allclose(both(one, label, jnp.ones(3), 0.5), [2.488735, 0.721277], atol=5e-7)
    np.testing.assert_allclose(both(one, label, jnp.ones(3), 0.9), [2.488735, 0], atol=5e-7)
    same = np.broadcast_to(LOGITS[:1], LOGITS.shape)
    assert both(same, LABELS, WEIGHTS, 0.0)[1] == pytest.approx(0, abs=1e-12)


def test_gradients_go_through_mixture_predictions_and_weights(x64):
    direction = [RNG.normal(size=LOGITS.shape), RNG.normal(size=3)]
    grads = jax.jit(jax.jacobian(both, (0, 2)))(LOGITS, LABELS, WEIGHTS, 0.7)
    h = 1e-6
    shifted = [multiscale(LOGITS + h * s * direction[0], LABELS, WEIGHTS + h * s * direction[1], 0.7) for s in (1, -1)]
    got = np.tensordot(grads[0], direction[0], 5) + grads[1] @ direction[1]
    np.testing.assert_allclose(got, (shifted[0] - shifted[1]) / (2 * h), rtol=1e-7)
    # Ignored pixels give cross-entropy no gradient, images below the gate none to the consistency.
    assert not grads[0][0, :, 0, 0].any() and grads[0][1, :, 0, 0].any()
    alone = np.array([multiscale(LOGITS[:, b : b + 1], LABELS[b : b + 1], WEIGHTS, 0.7)[1] for b in range(4)])
    np.testing.assert_array_equal(jnp.any(grads[0][1] != 0, axis=(0, 2, 3, 4)), alone > 0)
    assert 0 < (alone > 0).sum() < 4


def test_gradients_of_whole_images_in_float32():
    """Fused differently from those of a few pixels: sums of products over scales, written out, came out wrong on a CPU."""
    rng = np.random.default_rng(2)
    z, labels = rng.normal(size=(3, 4, 24, 24, 4)), rng.integers(0, 4, (4, 24, 24))
    direction, h = rng.normal(size=z.shape), 1e-4
    low = lambda x: jnp.asarray(x, jnp.float32)
    got = jax.jvp(lambda z: both(z, labels, low(WEIGHTS), 0.0), (low(z),), (low(direction),))[1]
    back = [
        jnp.vdot(jax.jit(jax.grad(lambda z, i=i: both(z, labels, low(WEIGHTS), 0.0)[i]))(low(z)), low(direction)) for i in (0, 1)
    ]
    with jax.enable_x64(True):
        want = (both(z + h * direction, labels, WEIGHTS, 0.0) - both(z - h * direction, labels, WEIGHTS, 0.0)) / (2 * h)
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(back, want, rtol=1e-3, atol=1e-5)


def test_odd_inputs_stay_finite_and_wrong_labels_are_seen():
    for logits in (np.full_like(LOGITS, -1e4), np.where(LOGITS > 0, 1e4, -1e4)):
        assert np.isfinite(both(logits.astype(np.float32), LABELS, WEIGHTS.astype(np.float32), 0.5)).all()
    never = LOGITS.astype(np.float32)
    never[..., 2] = -np.inf
    labels = np.minimum(LABELS, 1)
    value, grad = jax.value_and_grad(lambda z: jnp.sum(both(z, labels, WEIGHTS.astype(np.float32), 0.5)))(never)
    assert np.isfinite(value) and np.isfinite(grad).all()
    assert not both(LOGITS, np.full_like(LABELS, 255), WEIGHTS, 0.0)[0]
    assert np.isnan(both(LOGITS, np.full_like(LABELS, 3), WEIGHTS, 0.5)[0])


def correct(labels, probs, active, threshold, constraint=True, background=0, variant="segthor"):
    out = labels.copy()
    batch, height, width, classes = probs.shape
    on = {c for c in range(classes) if active[c] and c != background}
    for b in range(batch):
        there = {c for c in range(classes) if (labels[b] == c).any()}
        for i in range(height):
            for j in range(width):
                y, k = labels[b, i, j], int(np.argmax(probs[b, i, j]))
                ok = probs[b, i, j, k] > threshold and k in on | {background}
                ok = ok and (not constraint or k in there | {background})
                if variant == "segthor":
                    ok = ok and y in on | {background} and bool(there & on)
                else:
                    ok = ok and bool(on) and 0 <= y < classes
                if ok:
                    out[b, i, j] = k
        if variant == "voc":
            known = (labels[b] >= 0) & (labels[b] < classes)
            before, after = ((x[b][known] != background).sum() for x in (labels, out))
            if after < 0.5 * before and known.sum() - after > 0.95 * known.sum():
                out[b] = labels[b]
    return out


@pytest.mark.parametrize("variant", ["segthor", "voc"])
def test_correction_equals_its_reference(variant):
    rng = np.random.default_rng(1)
    labels = rng.integers(0, 4, size=(40, 4, 6)) * (rng.random((40, 4, 6)) < rng.random((40, 1, 1)))
    labels[:3] = 0
    labels[rng.random(labels.shape) < 0.05] = 255
    probs = soft_labels(rng, 40, 4, 6, 4) ** 2
    probs[20:, ..., 0] += 2 * rng.random((20, 1, 1))  # images that would be emptied
    probs /= probs.sum(-1, keepdims=True)
    fn = jax.jit(
        rj.losses.adele_correct_labels, static_argnames=("class_constraint", "background", "variant")
    )  # the threshold is traced
    changed = []
    for constraint, background in ((True, 0), (False, 2)):
        for active in ([0, 1, 1, 1], [1, 0, 1, 0], [0, 0, 0, 1], [0, 0, 0, 0]):
            active = np.array(active, bool)
            got = fn(labels, probs, active, threshold=0.45, class_constraint=constraint, background=background, variant=variant)
            np.testing.assert_array_equal(got, correct(labels, probs, active, 0.45, constraint, background, variant))
            changed.append(int((got != labels).sum()))
    assert changed[3] == 0 and changed[0] > changed[2] > 0
    assert fn(labels.astype(np.uint8), probs, active, variant=variant).dtype == np.uint8


def test_voc_keeps_images_that_would_be_emptied():
    labels = np.zeros((2, 5, 5), int)
    labels[0, 2, 1:4], labels[1, 1:4, 1:4] = 1, 1
    background = np.zeros((2, 5, 5, 2))
    background[..., 0] = 1
    background[1, 1:3, 1:4] = (0, 1)  # of nine pixels six stay
    active = np.array([False, True])
    got = rj.losses.adele_correct_labels(labels, background, active, variant="voc")
    np.testing.assert_array_equal(got[0], labels[0])
    np.testing.assert_array_equal(got[1], np.argmax(background[1], -1))
    assert not rj.losses.adele_correct_labels(labels, background, active)[0].any(), "the other variant empties it"
