"""Votes of teachers and self-distillation against loop-written float64 references."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from tests.references import log_softmax, soft_labels

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(4, 5))
LABELS = RNG.integers(0, 5, size=4)
TEACHER = soft_labels(RNG, 4, 5)
PROBS = soft_labels(RNG, 3, 4, 5)
vote, distill = rj.losses.vote_teachers, rj.losses.self_distillation


def voted(probs, mode, where):
    out = np.zeros(probs.shape[1:])
    for b in range(probs.shape[1]):
        there = [m for m in range(len(probs)) if where[m, b]]
        for m in there:
            p = probs[m, b]
            if mode == "majority":
                p = np.eye(len(p))[min(k for k in range(len(p)) if p[k] == max(p))]
            out[b] += p / len(there)
    return out


def distilled(logits, labels, teacher, weight, temperature, where=None):
    out = []
    for b, z in enumerate(logits):
        present = [k for k in range(len(z)) if where is None or where[b, k]]
        log_p = log_softmax(z, None if where is None else where[b])
        log_q = log_softmax(z / temperature, None if where is None else where[b])
        p = teacher[b]
        divergence = sum(p[k] * (np.log(p[k]) - log_q[k]) for k in present if p[k] > 0)
        out.append(-log_p[labels[b]] + weight * temperature**2 * divergence)
    return np.array(out)


@pytest.mark.parametrize("mode", ["mean", "majority"])
def test_votes_equal_the_loop(x64, mode):
    probs = PROBS.copy()
    probs[0, 0] = [0.4, 0.1, 0.4, 0.05, 0.05]  # a tie: the first wins
    everyone = np.ones((3, 4), bool)
    where = np.array([[True, False, True, False], [True, True, False, False], [False, True, True, False]])
    some = np.array([True, False, True])

    @jax.jit
    def run(probs, filled):
        plain, moved = vote(probs, mode=mode), vote(jnp.moveaxis(probs, -1, 1), mode=mode, axis=0)
        return plain, moved.T, vote(filled, mode=mode, where=where), vote(probs, mode=mode, where=some)

    filled = np.where(where[..., None], probs, np.nan)  # what is not there may hold anything
    plain, moved, masked, fewer = run(probs, filled)
    np.testing.assert_allclose(plain, voted(probs, mode, everyone), rtol=1e-12)
    np.testing.assert_allclose(moved, plain, rtol=1e-12)
    np.testing.assert_allclose(masked, voted(probs, mode, where), rtol=1e-12)
    np.testing.assert_allclose(fewer, voted(probs[some], mode, everyone[some]), rtol=1e-12)
    if mode == "mean":
        np.testing.assert_array_equal(vote(np.stack([probs[0]] * 4)), probs[0])


def test_published_votes(x64):
    np.testing.assert_array_equal(vote(np.array([[[1.0, 0.0]], [[0.0, 1.0]]])), [[0.5, 0.5]])
    got = vote(np.array([[0.9, 0.1], [0.6, 0.4], [0.2, 0.8], [0.5, 0.5]]), mode="majority")
    np.testing.assert_array_equal(got, [0.75, 0.25])


def test_the_loss_equals_the_loop_with_traced_strengths_masks_and_axes(x64):
    where = RNG.random((4, 5)) < 0.5
    where[np.arange(4), LABELS] = True
    teacher = TEACHER.copy()
    teacher[0, 1] = 0.0

    @jax.jit
    def several(z, p, weight, temperature):
        options = {"weight": weight, "temperature": temperature}
        return (
            distill(z, LABELS, p, **options),
            distill(z, np.eye(5)[LABELS], p, **options),
            distill(z.T, LABELS, p.T, axis=0, where=where.T, **options),
        )

    got, soft, masked = several(LOGITS, teacher, 0.7, 3.0)
    np.testing.assert_allclose(got, distilled(LOGITS, LABELS, teacher, 0.7, 3.0), rtol=1e-12)
    np.testing.assert_allclose(masked, distilled(LOGITS, LABELS, teacher, 0.7, 3.0, where), rtol=1e-12)
    np.testing.assert_allclose(soft, got, rtol=1e-12)


def test_without_weight_teacher_or_disagreement_it_is_cross_entropy(x64):
    def total(z, teacher, weight):
        return distill(z, LABELS, teacher, weight=weight, temperature=jnp.where(weight == 2, 2.0, 1.0)).sum()

    z, own = jnp.asarray(LOGITS), np.exp([log_softmax(z) for z in LOGITS])
    teachers = jnp.array([TEACHER, np.zeros((4, 5)), own, TEACHER])
    each = jax.jit(jax.vmap(jax.value_and_grad(total), in_axes=(None, 0, 0)))
    values, gradients = each(z, teachers, jnp.array([0.0, 1.0, 1.0, 2.0]))
    cross_entropy = -np.log(own[np.arange(4), LABELS]).sum()
    np.testing.assert_allclose(values[:3], [cross_entropy] * 3, rtol=1e-12)
    plain = own - np.eye(5)[LABELS]
    np.testing.assert_allclose(gradients[:3], [plain] * 3, atol=1e-12)
    # The gradient of the divergence: w T (q - P), whatever the label.
    q = np.exp([log_softmax(z / 2) for z in LOGITS])
    np.testing.assert_allclose(gradients[3] - plain, 4 * (q - TEACHER), atol=1e-12)
    # A class that is out of reach costs infinitely much, but for weight 0 nothing.
    far = z.at[0, (LABELS[0] + 1) % 5].set(-jnp.inf)
    values = each(far, teachers, jnp.array([0.0, 1.0, 1.0, 2.0]))[0]
    assert np.isfinite(values[:2]).all() and np.isinf(values[2:]).all()
