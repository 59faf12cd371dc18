"""Channel-wise and relational distillation against loop-written float64 references and the published values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from tests.references import log_softmax

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(2, 3, 2, 4, 5))
LABELS = RNG.integers(0, 5, size=(3, 2, 4))
LABELS[0, 0] = LABELS[2] = 255
WHERE = RNG.random((3, 2, 4)) < 0.6
WHERE[1] = False

cwd, dist = jax.jit(rj.losses.channel_wise_distillation), jax.jit(rj.losses.dist_relation)
teach = jax.jit(rj.losses.label_assisted_teacher_loss)


def channel_wise(student, teacher, temperature, where):
    total, images = 0.0, 0
    for b in range(len(student)):
        pixels = [p for p in np.ndindex(where[b].shape) if where[b][p]]
        images += bool(pixels)
        for k in range(student.shape[-1]):
            if pixels:
                s, t = (log_softmax([x[b][p][k] / temperature for p in pixels]) for x in (student, teacher))
                total += sum(np.exp(t[p]) * (t[p] - s[p]) for p in range(len(pixels)))
    return temperature**2 * total / (images * student.shape[-1])


def teacher_loss(logits1, logits2, labels, weight, temperature, where):
    losses = []
    for p in np.ndindex(labels.shape):
        if labels[p] != 255 and where[p]:
            losses.append(-log_softmax(logits1[p])[labels[p]] - log_softmax(logits2[p])[labels[p]])
    pair = [channel_wise(a, b, temperature, where) for a, b in ((logits1, logits2), (logits2, logits1))]
    return np.mean(losses) + weight * sum(pair)


def pearson(a, b):
    a, b = a - a.mean(), b - b.mean()
    return a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b) + 1e-8)


def relation(student, teacher, beta, gamma, where):
    rows = [p for p in np.ndindex(where.shape) if where[p]]
    s, t = (np.array([np.exp(log_softmax(x[p])) for p in rows]) for x in (student, teacher))
    within = np.mean([1 - pearson(a, b) for a, b in zip(s, t, strict=True)])
    return beta * within + gamma * np.mean([1 - pearson(a, b) for a, b in zip(s.T, t.T, strict=True)])


ALL = np.ones_like(WHERE)


@pytest.mark.parametrize("where", [None, WHERE])
def test_equal_their_references(x64, where):
    @jax.jit
    def got(student, teacher, t, w, beta):
        return (
            cwd(student, teacher, temperature=t, where=where),
            teach(student, teacher, LABELS, weight=w, temperature=t, where=where),
            dist(student, teacher, beta=beta, gamma=w, where=where),
        )

    used = ALL if where is None else where
    want = (
        channel_wise(STUDENT, TEACHER, 3.0, used),
        teacher_loss(STUDENT, TEACHER, LABELS, 0.7, 3.0, used),
        relation(STUDENT, TEACHER, 0.4, 0.7, used),
    )
    np.testing.assert_allclose(got(STUDENT, TEACHER, 3.0, 0.7, 0.4), want, rtol=1e-11)


def test_published_values(x64):
    maps = np.array([0.0, 1.0, 2.0, 3.0]).reshape(1, 2, 2, 1), np.array([1.0, 0.0, 0.0, 1.0]).reshape(1, 2, 2, 1)
    assert cwd(*maps, temperature=1.0) == pytest.approx(0.664839, abs=5e-7)
    assert cwd(*maps) == pytest.approx(0.743583, abs=5e-7)
    # The gradient of tau^2 KL by the student is tau (s - t).
    s, t = (np.exp(log_softmax(x.ravel() / 4)) for x in maps)
    np.testing.assert_allclose(jax.jit(jax.grad(cwd))(*maps).ravel(), 4 * (s - t), atol=1e-14)


def test_laws(x64):
    rng = np.random.default_rng(1)
    channel, row = rng.normal(size=(1, 1, 1, 5)), rng.normal(size=(3, 2, 4, 1))

    @jax.jit
    def got(student, teacher):
        lines = [x.reshape(3, 8, 5)[:, ::-1] for x in (student, teacher)]
        return (
            # A constant in a channel moves no pixel's share; a constant in a row no class's.
            (cwd(student + channel, teacher - channel), cwd(student, teacher)),
            (dist(student + row, teacher - row), dist(student, teacher)),
            # Pixels have no order, and any number of axes.
            (cwd(*lines), cwd(student, teacher)),
            (teach(*lines, jnp.asarray(LABELS).reshape(3, 8)[:, ::-1]), teach(student, teacher, LABELS)),
        ), [jax.value_and_grad(fn)(teacher, teacher) for fn in (cwd, dist)]

    pairs, done = got(STUDENT, TEACHER)
    for one, other in pairs:
        np.testing.assert_allclose(one, other, rtol=1e-12)
    for (value, gradient), eps in zip(done, (1e-12, 1e-4), strict=True):
        assert abs(value) < eps and np.abs(gradient).max() < eps, "a student that equals the teacher is done"
    assert dist(2 * TEACHER, -TEACHER) > 1, "an inverted order correlates negatively"


def test_each_draw_of_the_teacher_learns_from_the_other_as_a_constant(x64):
    z1, z2 = jnp.asarray(STUDENT), jnp.asarray(TEACHER)
    pair = jax.jit(jax.grad(lambda a, b, w: teach(a, b, LABELS, weight=w), argnums=(0, 1)))
    plain, both, one = pair(z1, z2, 0.0), pair(z1, z2, 2.0), jax.jit(jax.grad(cwd))
    np.testing.assert_allclose(both[0] - plain[0], 2 * one(z1, z2), atol=1e-14)
    np.testing.assert_allclose(both[1] - plain[1], 2 * one(z2, z1), atol=1e-14)


def test_pixels_that_do_not_count_may_hold_anything():
    student, teacher = jnp.asarray(STUDENT, jnp.float32), jnp.asarray(TEACHER, jnp.float32)
    where = jnp.asarray(WHERE)

    @jax.jit
    @jax.value_and_grad
    def total(student, rubbish):
        s, t = (jnp.where(where[..., None], x, rubbish) for x in (student, teacher))
        return cwd(s, t, where=where) + dist(s, t, where=where) + cwd(s[1:2], t[1:2], where=where[1:2])

    want = total(student, 0.0)
    for rubbish in (jnp.nan, jnp.inf, 1e30):
        np.testing.assert_array_equal(total(student, rubbish)[0], want[0])
        np.testing.assert_array_equal(total(student, rubbish)[1], want[1])
    assert np.isfinite(want[0]) and np.all(np.asarray(want[1])[~WHERE] == 0) and np.any(want[1])


def test_an_unknown_label_is_seen_and_an_ignored_image_is_not():
    wrong = LABELS.copy()
    wrong[1, 0, 0] = 7
    assert np.isnan(teach(STUDENT, TEACHER, wrong))
    # Padding: images without labels, masked out.
    padded = np.pad(LABELS, ((0, 2), (0, 0), (0, 0)), constant_values=255)
    z1, z2 = (np.pad(x, ((0, 2), (0, 0), (0, 0), (0, 0))) for x in (STUDENT, TEACHER))
    got = teach(z1, z2, padded.astype(np.uint8), where=np.arange(5)[:, None, None] < np.full((5, 2, 4), 3))
    np.testing.assert_allclose(got, teach(STUDENT, TEACHER, LABELS), rtol=1e-6)
