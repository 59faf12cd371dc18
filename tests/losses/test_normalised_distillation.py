"""NKD and USKD: loops, how plain distillation splits into NKD's parts, ranks, mixed labels and gradient routing."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from tests.references import log_softmax

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(size=(6, 5)), 2 * RNG.normal(size=(6, 5))
LABELS = RNG.integers(0, 5, size=6)
WHERE = RNG.random((6, 5)) < 0.6
WHERE[np.arange(6), LABELS] = True
WHERE[2] = np.arange(5) == LABELS[2]  # the target alone
EVERY = np.ones((6, 5), bool)
# Two rows of two classes, one of a single class, one of two equal shares.
MIXED = np.eye(5)[LABELS]
MIXED[0] = [0.0, 0.7, 0.0, 0.3, 0.0]
MIXED[3] = [0.4, 0.0, 0.0, 0.0, 0.6]
MIXED[5] = [0.0, 0.0, 0.5, 0.5, 0.0]


def nkd_loop(s, t, labels, gamma, tau, where=None):
    """The target's part and N of every example."""
    out = []
    for i, y in enumerate(labels):
        present = [k for k in range(s.shape[1]) if where is None or where[i, k]]
        log_s, log_t = (log_softmax(z[i], None if where is None else where[i]) for z in (s, t))
        rest = [k for k in present if k != y]
        others = 0.0
        if rest:
            log_sn, log_tn = (log_softmax(z[i, rest] / tau) for z in (s, t))
            others = -sum(np.exp(a) * b for a, b in zip(log_tn, log_sn, strict=True))
        out.append((-np.exp(log_t[y]) * log_s[y], others))
    target, others = np.array(out).T
    return target + gamma * tau**2 * others, target, others


def padded(row):
    """One example among five that have no class."""
    out = np.full((6, 5), np.nan)
    out[0, : len(row)] = row
    return out


@jax.jit
def nkd(s, t, labels, gamma, tau, where=EVERY):
    return rj.losses.nkd(s, t, labels, gamma=gamma, temperature=tau, where=where)


def test_nkd_equals_the_loop_and_the_published_values(x64):
    for gamma, tau in ((1.5, 1.0), (3.5, 3.0), (0.0, 1.0)):
        got = nkd(STUDENT, TEACHER, LABELS, gamma, tau)
        np.testing.assert_allclose(got, nkd_loop(STUDENT, TEACHER, LABELS, gamma, tau)[0], rtol=1e-11)
    got = nkd(STUDENT, TEACHER, LABELS, 1.5, 2.0, WHERE)
    np.testing.assert_allclose(got, nkd_loop(STUDENT, TEACHER, LABELS, 1.5, 2.0, WHERE)[0], rtol=1e-11, atol=1e-14)
    soft = 0.6 * np.eye(5)[LABELS] + 0.08  # the largest entry is the target
    turned = jax.jit(lambda s, t, y: rj.losses.nkd(s, t, y, axis=0))(STUDENT.T, TEACHER.T, soft.T)
    np.testing.assert_allclose(turned, nkd_loop(STUDENT, TEACHER, LABELS, 1.5, 1.0)[0], rtol=1e-11)
    student, teacher = padded([2.0, 1.0, 0.0]), padded([1.0, 3.0, 0.0])
    for gamma, want in {1.5: 0.587578, 0.0: 0.046547}.items():
        got = nkd(student, teacher, np.zeros(6, int), gamma, 1.0, np.isfinite(student))
        assert got[0] == pytest.approx(want, abs=5e-7) and not got[1:].any()


def test_plain_distillation_splits_into_the_parts_of_nkd(x64):
    target = np.asarray(nkd(STUDENT, TEACHER, LABELS, 0.0, 1.0))
    others = np.asarray(nkd(STUDENT, TEACHER, LABELS, 1.0, 1.0)) - target
    s, t = (np.exp([log_softmax(z) for z in zs])[np.arange(6), LABELS] for zs in (STUDENT, TEACHER))
    np.testing.assert_allclose(target, -t * np.log(s), rtol=1e-11)
    whole = target - (1 - t) * np.log(1 - s) + (1 - t) * others
    np.testing.assert_allclose(jax.jit(rj.losses.teacher_cross_entropy)(STUDENT, TEACHER), whole, rtol=1e-11)
    # The teacher's target logit has no say in N, and N is least, the entropy, where the others agree.
    moved = TEACHER.copy()
    moved[np.arange(6), LABELS] += 5.0
    again = np.asarray(nkd(STUDENT, moved, LABELS, 1.0, 1.0)) - np.asarray(nkd(STUDENT, moved, LABELS, 0.0, 1.0))
    np.testing.assert_allclose(again, others, rtol=1e-10)
    least = np.asarray(nkd(moved, TEACHER, LABELS, 1.0, 1.0)) - np.asarray(nkd(moved, TEACHER, LABELS, 0.0, 1.0))
    assert (least <= others + 1e-12).all()
    np.testing.assert_allclose(least, nkd_loop(TEACHER, TEACHER, LABELS, 1.0, 1.0)[2], rtol=1e-10)


def test_nkd_at_the_edges():
    fn = jax.jit(jax.value_and_grad(lambda s, t, y, where: jnp.sum(rj.losses.nkd(s, t, y, where=where))))
    every, one = np.array([True, True, True]), np.array([True, False, False])
    s, t = jnp.array([1.0, 0.0, -jnp.inf]), jnp.array([-jnp.inf, 0.0, -jnp.inf])
    value, gradient = fn(s, t, 0, one)
    assert value == 0 and not np.asarray(gradient).any(), "a single class"
    value, gradient = fn(s, t, 0, every)  # a teacher without the target, and one class left
    assert value == 0 and np.isfinite(gradient).all()
    assert np.isnan(fn(s, s, 3, every)[0]), "a label that is no class is seen"
    # The margin of a sure student keeps its digits.
    value, _ = fn(jnp.array([30.0, 0.0, -jnp.inf]), jnp.array([30.0, 0.0, -jnp.inf]), 0, every)
    assert float(value) == pytest.approx(np.exp(-30.0), rel=1e-5)


def uskd_loop(z, weak, shares, alpha, beta, mu, rank_with="log", where=None):
    """Value and gradients by logits and weak logits; ``shares`` are probability labels with one or two classes a row."""
    size, count = z.shape
    where = np.ones_like(z, bool) if where is None else where
    log_s, log_w = (np.array([log_softmax(a, w) for a, w in zip(x, where, strict=True)]) for x in (z, weak))
    s, w = np.exp(log_s), np.exp(log_w)
    picks = [[k for k in np.argsort(-row, kind="stable")[:2] if row[k] > 0] for row in shares]
    weights = np.zeros((size, 2))
    for i in range(2):
        rows = [b for b in range(size) if len(picks[b]) > i]
        q = {b: s[b, picks[b][i]] ** 2 for b in rows}
        for b in rows:
            weights[b, i] = q[b] + shares[b, picks[b][i]] - sum(q.values()) / len(rows)
    values, by_z, by_weak = [], np.zeros_like(z), np.zeros_like(z)
    for b in range(size):
        present = [k for k in range(count) if where[b, k]]
        targets = picks[b]
        value = -alpha * sum(weights[b, i] * log_s[b, k] for i, k in enumerate(targets))
        for i, k in enumerate(targets):
            by_z[b] += alpha * weights[b, i] * (s[b] - np.eye(count)[k])
        length = log_s[b] if rank_with == "log" else s[b]
        first = w[b] / (1 - sum(w[b, k] for k in targets) + 1e-6)
        score = first + length / (1 - sum(length[k] for k in targets) + 1e-6)
        order = sorted(present, key=lambda k: -score[k])
        rest = [k for k in present if k not in targets]
        if rest:
            zipf = np.array([1 / (1 + order.index(k)) for k in rest])
            zipf /= zipf.sum()
            log_n = log_softmax(z[b, rest])
            value -= beta * sum(zipf * log_n)
            by_z[b, rest] += beta * (np.exp(log_n) - zipf)
        soft = {k: 0.9 * shares[b, k] + 0.1 / len(present) for k in present}
        value -= mu * sum(soft[k] * log_w[b, k] for k in present)
        for k in present:
            by_weak[b, k] = mu * (w[b, k] - soft[k])
        values.append(value)
    return np.array(values), by_z, by_weak


@functools.partial(jax.jit, static_argnames="rank_with")
def uskd(z, weak, labels, weights, rank_with="log", where=EVERY):
    alpha, beta, mu = weights

    def total(z, weak):
        value = rj.losses.uskd(z, weak, labels, alpha=alpha, beta=beta, mu=mu, rank_with=rank_with, where=where)
        return jnp.sum(value), value

    gradients, value = jax.grad(total, argnums=(0, 1), has_aux=True)(z, weak)
    return value, *gradients


def equal(got, want):
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)


def test_uskd_equals_the_loop_with_its_gradients(x64):
    weights = (0.7, 0.4, 0.2)
    one_hot = np.eye(5)[LABELS]
    for rank_with in ("log", "prob"):
        equal(uskd(STUDENT, TEACHER, LABELS, weights, rank_with), uskd_loop(STUDENT, TEACHER, one_hot, *weights, rank_with))
    log, prob = (uskd(STUDENT, TEACHER, LABELS, weights, rank_with) for rank_with in ("log", "prob"))
    different = [np.abs(a - b).max() for a, b in zip(log, prob, strict=True)]
    assert different[0] > 0 and different[2] == 0, "the ranks differ, and no other term"
    equal(uskd(STUDENT, TEACHER, one_hot, weights), uskd(STUDENT, TEACHER, LABELS, weights))
    equal(uskd(STUDENT, TEACHER, MIXED, weights), uskd_loop(STUDENT, TEACHER, MIXED, *weights))
    equal(
        uskd(STUDENT, TEACHER, LABELS, weights, where=WHERE),
        uskd_loop(STUDENT, TEACHER, one_hot, *weights, where=WHERE),
    )


def test_uskd_published_values_and_rows_without_classes(x64):
    z, weak, y = padded([2.0, 1.0, 0.0, -1.0]), padded([0.0, 0.5, 1.0, 0.0]), np.zeros(6, int)
    for weights, want in {
        (1.0, 0.1, 0.005): 0.566942,
        (1.0, 0.0, 0.0): 0.440190,
        (0.0, 1.0, 0.0): 1.176837,
        (0.0, 0.0, 1.0): 1.813629,
    }.items():
        value, by_z, by_weak = uskd(z, weak, y, weights, where=np.isfinite(z))
        assert value[0] == pytest.approx(want, abs=5e-7)
        assert not (value[1:].any() or by_z[1:].any() or by_weak[1:].any())
    where = np.ones((6, 5), bool)
    where[[1, 4]] = False
    kept = where.any(-1)
    got = uskd(STUDENT, TEACHER, LABELS, (1.0, 0.1, 0.1), where=where)
    want = uskd_loop(STUDENT[kept], TEACHER[kept], np.eye(5)[LABELS[kept]], 1.0, 0.1, 0.1)
    equal([g[kept] for g in got], want)
    assert not any(np.asarray(g)[~kept].any() for g in got)
    alone = uskd(z, weak, y, (1.0, 1.0, 1.0), where=np.isfinite(padded([0.0])))
    assert not any(np.asarray(g).any() for g in alone)


@pytest.mark.slow
def test_a_teacher_of_more_images_helps_a_student_of_150():
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(labels))
    images, labels = jnp.asarray(images[order] / 16, jnp.float32), jnp.asarray(labels[order])
    many, few, test = slice(0, 1080), slice(0, 150), slice(1080, None)
    tx = optax.adam(3e-3)

    def net(params, x):
        for w, b in params[:-1]:
            x = jax.nn.relu(x @ w + b)
        return x @ params[-1][0] + params[-1][1]

    def fit(key, sizes, rows, steps, extra):
        keys = jax.random.split(key, len(sizes) - 1)
        shapes = zip(keys, itertools.pairwise(sizes), strict=True)
        params = [(jax.random.normal(k, s) * np.sqrt(2 / s[0]), jnp.zeros(s[1])) for k, s in shapes]

        def loss(params):
            logits = net(params, images[rows])
            return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, labels[rows]) + extra(logits))

        def step(carry, _):
            updates, state = tx.update(jax.grad(loss)(carry[0]), carry[1])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), None, steps)[0][0]

    @jax.jit
    @jax.vmap
    def accuracies(key):
        teacher = fit(key, (64, 128, 10), many, 100, lambda logits: 0.0)
        soft = net(teacher, images[few])
        taught = lambda logits: rj.losses.nkd(logits, soft, labels[few])
        networks = [teacher] + [fit(key, (64, 64, 10), few, 200, extra) for extra in (lambda logits: 0.0, taught)]
        return jnp.stack([jnp.mean(jnp.argmax(net(p, images[test]), 1) == labels[test]) for p in networks])

    teacher, alone, taught = np.asarray(accuracies(jax.random.split(jax.random.key(0), 3))).T
    assert (taught > alone + 0.01).all(), (teacher, alone, taught)
