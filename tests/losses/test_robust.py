"""Generalised and symmetric cross-entropy and bootstrapping against float64 loops and the published values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from tests.references import log_softmax, soft_labels

gce, sce, boot = rj.losses.generalized_cross_entropy, rj.losses.symmetric_cross_entropy, rj.losses.bootstrapping

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 5)) * 2
IDS = RNG.integers(0, 5, size=6)
SOFT = soft_labels(RNG, 6, 5)
SOFT[:2, 1] = 0
SOFT[2] = np.eye(5)[3]
WHERE = RNG.random((6, 5)) < 0.6
WHERE[np.arange(6), IDS] = True
WHERE[:, 0] = True


def loop(term, logits, labels, where=None):
    """``term(p, y, present)`` of each example, with ``y`` as probabilities and ``p`` zero for absent classes."""
    out = []
    for i, z in enumerate(logits):
        mask = np.ones(len(z), bool) if where is None else where[i]
        y = np.eye(len(z))[labels[i]] if np.ndim(labels) == 1 else labels[i]
        out.append(term(np.exp(log_softmax(z, mask)), y, [k for k in range(len(z)) if mask[k]]))
    return np.array(out)


def ce(p, y, present):
    return -sum(y[k] * np.log(p[k]) for k in present if y[k] > 0)


def reference_gce(p, y, present, q=0.7, truncation=0.0):
    return sum(y[k] * (1 - max(p[k], truncation) ** q) / q for k in present)


def reference_sce(p, y, present, alpha=0.1, beta=1.0, log_zero=-4.0):
    logs = [max(np.log(v), log_zero) if v > 0 else log_zero for v in y]
    return alpha * ce(p, y, present) - beta * sum(p[k] * logs[k] for k in present)


def reference_boot(p, y, present, mode, beta):
    v = p if mode == "soft" else np.eye(len(p))[np.argmax(p)]
    return ce(p, [beta * a + (1 - beta) * b for a, b in zip(y, v, strict=True)], present)


CASES = (
    (functools.partial(gce, q=0.7), reference_gce),
    (functools.partial(gce, q=0.3, truncation=0.2), functools.partial(reference_gce, q=0.3, truncation=0.2)),
    (sce, reference_sce),
    (
        functools.partial(sce, alpha=6.0, beta=0.5, log_zero=-2.0),
        functools.partial(reference_sce, alpha=6, beta=0.5, log_zero=-2),
    ),
    (boot, functools.partial(reference_boot, mode="hard", beta=0.8)),
    (functools.partial(boot, mode="soft"), functools.partial(reference_boot, mode="soft", beta=0.95)),
)


@pytest.mark.parametrize("labels", [IDS, SOFT], ids=["ids", "probabilities"])
def test_equal_their_references_on_any_axis_with_and_without_absent_classes(x64, labels):
    if labels is SOFT:
        labels = np.where(WHERE, SOFT, 0)

    @jax.jit
    def everything(z, y):
        turned = y if y.ndim == 1 else y.T
        return [(fn(z, y), fn(z.T, turned, axis=0, where=WHERE.T)) for fn, _ in CASES]

    for (whole, masked), (_, term) in zip(everything(LOGITS, labels), CASES, strict=True):
        np.testing.assert_allclose(whole, loop(term, LOGITS, labels), rtol=1e-10)
        np.testing.assert_allclose(masked, loop(term, LOGITS, labels, WHERE), rtol=1e-10)


def test_published_values(x64):
    @jax.jit
    def run(z):
        return [
            gce(z, jnp.array(0)),
            gce(z, jnp.array(0), q=1.0),
            gce(z, jnp.array(1), truncation=0.5),
            gce(z, jnp.array(0), truncation=0.5),
            sce(z, jnp.array(0)),
            sce(z, jnp.array(0), log_zero=np.log(1e-4)),
            boot(z, jnp.array(1), mode="soft"),
            boot(z, jnp.array(1)),
            boot(z, jnp.array(0)),
        ]

    want = [0.354614, 0.334759, 0.549183, 0.354614, 1.379797, 3.124005, 1.378845, 1.207606, 0.407606]
    np.testing.assert_allclose(run(jnp.array([2.0, 1.0, 0.0])), want, atol=1e-6)


def test_limits_in_q_are_cross_entropy_and_absolute_error_also_when_traced(x64):
    got = jax.jit(jax.vmap(lambda q, k: gce(LOGITS, IDS, q=q, truncation=k)))(
        jnp.array([0.0, 1e-9, 1.0, 0.0]), jnp.array([0.0, 0.0, 0.0, 0.3])
    )
    plain = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(LOGITS), IDS)
    plain = np.asarray(plain)
    np.testing.assert_allclose(got[0], plain, rtol=1e-12)
    np.testing.assert_allclose(got[1], plain, rtol=1e-7)
    np.testing.assert_allclose(got[2], 1 - np.exp(-plain), rtol=1e-12)
    np.testing.assert_allclose(got[3], np.minimum(plain, -np.log(0.3)), rtol=1e-12)
    # The expected loss of a label drawn from the soft one.
    each, soft = jax.jit(lambda z: (jax.vmap(lambda k: gce(z, jnp.full(6, k)))(jnp.arange(5)), gce(z, SOFT)))(LOGITS)
    np.testing.assert_allclose(soft, (SOFT * np.asarray(each).T).sum(-1), rtol=1e-12)


def test_gradients_are_those_of_cross_entropy_weighted_or_mixed(x64):
    p = np.exp([log_softmax(z) for z in LOGITS])
    y, top = np.eye(5)[IDS], np.eye(5)[LOGITS.argmax(-1)]
    own = p[np.arange(6), IDS][:, None]

    @jax.jit
    def gradients(z):
        losses = (
            gce,
            functools.partial(gce, truncation=0.2),
            sce,
            boot,
            functools.partial(boot, mode="soft"),
            functools.partial(boot, mode="soft", stop_gradient=True),
        )
        return [jax.grad(lambda z, fn=fn: fn(z, IDS).sum())(z) for fn in losses]

    entropy = -(p * np.log(p)).sum(-1, keepdims=True)
    want = [
        own**0.7 * (p - y),
        np.where(own > 0.2, own**0.7, 0) * (p - y),
        (0.1 + 4 * own) * (p - y),
        0.8 * (p - y) + 0.2 * (p - top),
        0.95 * (p - y) - 0.05 * p * (np.log(p) + entropy),
        0.95 * (p - y),
    ]
    assert (own < 0.2).any() and (own > 0.2).any()
    for got, expected in zip(gradients(jnp.asarray(LOGITS)), want, strict=True):
        np.testing.assert_allclose(got, expected, atol=1e-12)


def test_infinite_absent_and_wrong_classes():
    z = jnp.array([[0.0, -jnp.inf, 1.0], [2.0, 1.0, 1e4], [0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    where = jnp.array([[True, True, True], [True, True, True], [False, False, False], [True, False, True]])
    soft = jnp.array([[0.5, 0.0, 0.5], [0.5, 0.5, 0.0], [0.2, 0.4, 0.4], [1.0, 0.0, 0.0]])
    soft_boot = functools.partial(boot, mode="soft")
    fns = (gce, functools.partial(gce, truncation=0.5), functools.partial(gce, q=0.0), sce, boot, soft_boot)

    @jax.jit
    def values_and_gradients(z, bad):
        out = []
        for y in (jnp.array([0, 0, 0, 2]), soft):
            losses = [lambda z, fn=fn, y=y: fn(z, y, where=where) for fn in fns]
            out += [(loss(z), jax.grad(lambda z, loss=loss: loss(z).sum())(z)) for loss in losses]
        return out, [fn(z, bad) for fn in fns], gce(z, jnp.array([1, 0, 0, 0]))

    pairs, wrong, bounded = values_and_gradients(z, jnp.array([-1, 3, 4, -5]))
    for value, gradient in pairs:
        assert np.isfinite(value).all() and np.isfinite(gradient).all()
        assert value[2] == 0 and not np.asarray(gradient)[2].any() and gradient[3, 1] == 0
    assert all(np.isnan(loss).all() for loss in wrong)
    assert bounded[0] == pytest.approx(1 / 0.7)


@pytest.mark.slow
def test_learns_through_wrong_labels_where_cross_entropy_memorises():
    """Digits with 40% of the training labels drawn anew: the bounded loss stays well ahead."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    rng = np.random.default_rng(0)
    order = rng.permutation(len(y))
    x, y = (x[order] / 16).astype(np.float32), y[order].astype(np.int32)
    train, noisy = 1078, y[:1078].copy()
    flip = rng.random(train) < 0.4
    noisy[flip] = (noisy[flip] + rng.integers(1, 10, flip.sum())) % 10
    sizes = (64, 128, 10)
    tx = optax.sgd(0.05, momentum=0.9)

    def apply(params, x):
        return jax.nn.relu(x @ params[0] + params[1]) @ params[2] + params[3]

    def accuracy(loss):
        keys = jax.random.split(jax.random.key(0), 2)
        params = []
        for key, a, b in zip(keys, sizes, sizes[1:], strict=False):
            params += [jax.random.normal(key, (a, b)) * np.sqrt(2 / a), jnp.zeros(b)]

        def step(carry, rows):
            params, state = carry
            grad = jax.grad(lambda p: loss(apply(p, x[rows]), noisy[rows]).mean())(params)
            updates, state = tx.update(grad, state)
            return (optax.apply_updates(params, updates), state), None

        shuffle = np.random.default_rng(1)
        batches = np.concatenate([shuffle.permutation(train).reshape(-1, 49) for _ in range(120)])
        (params, _), _ = jax.jit(lambda c, b: jax.lax.scan(step, c, b))((params, tx.init(params)), batches)
        return float((apply(params, x[train:]).argmax(-1) == y[train:]).mean())

    x, noisy = jnp.asarray(x), jnp.asarray(noisy)
    robust, plain = accuracy(gce), accuracy(functools.partial(gce, q=0.0))
    assert robust > plain + 0.08, (robust, plain)
