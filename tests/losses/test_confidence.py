"""Confidence penalty, focal loss and Poly-1 against float64 loops, optax, and the published values."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from tests.references import log_softmax, soft_labels

penalty, focal, poly1 = rj.losses.confidence_penalty, rj.losses.focal, rj.losses.poly1_cross_entropy

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 5)) * 2
IDS = RNG.integers(0, 5, size=6)
WHERE = RNG.random((6, 5)) < 0.6
WHERE[np.arange(6), IDS] = True
WHERE[:, 0] = True
SOFT = np.where(WHERE, soft_labels(RNG, 6, 5), 0)


def loop(term, logits, labels, where=None):
    """``term(p, y)`` over the classes that exist, for each example, with ``y`` as probabilities."""
    out = []
    for i, z in enumerate(logits):
        mask = np.ones(len(z), bool) if where is None else where[i]
        y = np.eye(len(z))[labels[i]] if np.ndim(labels) == 1 else labels[i]
        p = np.exp(log_softmax(z, mask))
        out.append(sum(term(p[k], y[k]) for k in range(len(z)) if mask[k]))
    return np.array(out)


CASES = (
    (functools.partial(penalty, weight=0.3), lambda p, y: -y * np.log(p) + 0.3 * p * np.log(p)),
    (focal, lambda p, y: -y * (1 - p) ** 2 * np.log(p)),
    (functools.partial(focal, gamma=0.5), lambda p, y: -y * (1 - p) ** 0.5 * np.log(p)),
    (functools.partial(poly1, epsilon=-0.7), lambda p, y: y * (-np.log(p) - 0.7 * (1 - p))),
)


@pytest.mark.parametrize("labels", [IDS, SOFT], ids=["ids", "probabilities"])
def test_equal_their_references_on_any_axis_with_and_without_absent_classes(x64, labels):
    @jax.jit
    def everything(z, y):
        turned = y if y.ndim == 1 else y.T
        return [(fn(z, y), fn(z.T, turned, axis=0, where=WHERE.T)) for fn, _ in CASES]

    for (whole, masked), (_, term) in zip(everything(LOGITS, labels), CASES, strict=True):
        np.testing.assert_allclose(whole, loop(term, LOGITS, labels), rtol=1e-10)
        np.testing.assert_allclose(masked, loop(term, LOGITS, labels, WHERE), rtol=1e-10)


def test_published_values_and_optax(x64):
    z, y = jnp.array([2.0, 1.0, 0.0]), jnp.array(0)
    soft, right = SOFT / SOFT.sum(-1, keepdims=True), IDS > 2

    @jax.jit
    def run(logits):
        values = jnp.stack([penalty(z, y), focal(z, y), poly1(z, y)])
        pairs = []
        for epsilon in (2.0, -1.0):
            for ours, theirs in ((soft, soft), (IDS, jax.nn.one_hot(IDS, 5))):
                want = optax.losses.poly_loss_cross_entropy(logits, theirs, epsilon=epsilon)
                pairs.append((poly1(logits, ours, epsilon=epsilon), want))
        # A softmax over (0, z) is a sigmoid: the binary form, without its class weight.
        two = jnp.stack([jnp.zeros(6), logits[:, 0]], -1)
        want = optax.losses.sigmoid_focal_loss(logits[:, 0], right.astype(float), gamma=1.5)
        pairs.append((focal(two, right.astype(int), gamma=1.5), want))
        return values, pairs

    values, pairs = run(jnp.asarray(LOGITS))
    np.testing.assert_allclose(values, [0.324366, 0.045678, 0.742365], atol=1e-6)
    for got, want in pairs:
        np.testing.assert_allclose(got, want, rtol=1e-10)


def test_gradients_are_the_published_ones_also_at_traced_strengths(x64):
    p = np.exp([log_softmax(z) for z in LOGITS])
    y, own = np.eye(5)[IDS], p[np.arange(6), IDS][:, None]
    entropy = -(p * np.log(p)).sum(-1, keepdims=True)

    @jax.jit
    def gradients(z, strength):
        pairs = ((penalty, "weight"), (focal, "gamma"), (poly1, "epsilon"))
        return [jax.grad(lambda z, fn=fn, name=name: fn(z, IDS, **{name: strength}).sum())(z) for fn, name in pairs]

    for strength in (0.0, 0.7, 2.0):
        want = (
            p - y + strength * p * (np.log(p) + entropy),
            (p - y) * ((1 - own) ** strength - strength * own * (1 - own) ** (strength - 1) * np.log(own)),
            (p - y) * (1 + strength * own),
        )
        for got, expected in zip(gradients(jnp.asarray(LOGITS), strength), want, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-12)


def test_sure_infinite_absent_and_wrong_classes():
    z = jnp.array([[0.0, -jnp.inf, 1.0], [2.0, 1.0, 1e4], [0.0, 0.0, 0.0], [1.0, 2.0, 1e4]])
    where = jnp.array([[True, True, True], [True, True, True], [False, False, False], [True, False, True]])
    soft = jnp.array([[0.5, 0.0, 0.5], [0.5, 0.5, 0.0], [0.2, 0.4, 0.4], [0.0, 0.0, 1.0]])
    fns = (penalty, functools.partial(focal, gamma=0.3), focal, functools.partial(focal, gamma=0.0), poly1)

    @jax.jit
    def values_and_gradients(z, bad):
        out = []
        for y in (jnp.array([0, 0, 0, 2]), soft):
            losses = [lambda z, fn=fn, y=y: fn(z, y, where=where) for fn in fns]
            out.append([(loss(z), jax.grad(lambda z, loss=loss: loss(z).sum())(z)) for loss in losses])
        infinite = jax.grad(lambda z: focal(z, jnp.array([1, 0, 0, 0]), gamma=0.3).sum())(z)
        return out, [fn(z, bad) for fn in fns], infinite

    results, wrong, infinite = values_and_gradients(z, jnp.array([-1, 3, 4, -5]))
    for pairs in results:
        for value, gradient in pairs:
            assert np.isfinite(value).all() and np.isfinite(gradient).all()
            assert value[2] == 0 and not np.asarray(gradient)[2].any() and gradient[3, 1] == 0
    assert all(np.isnan(loss).all() for loss in wrong)
    assert np.isfinite(infinite).all(), "a label of probability 0 costs infinity, with the gradient of cross-entropy"


@pytest.mark.slow
def test_penalised_predictions_on_digits_are_less_overconfident():
    """150 training images: the mean confidence exceeds the accuracy by less, at no loss of accuracy."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    tx = optax.sgd(0.05, momentum=0.9)

    def apply(params, x):
        hidden = jax.nn.relu(x @ params[0] + params[1])
        return jax.nn.relu(hidden @ params[2] + params[3]) @ params[4] + params[5]

    @jax.jit
    def train(weight, params, x, y, batches):
        def step(carry, rows):
            params, state = carry
            grad = jax.grad(lambda p: penalty(apply(p, x[rows]), y[rows], weight=weight).mean())(params)
            updates, state = tx.update(grad, state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), batches)
        p = jax.nn.softmax(apply(params, x[1078:]))
        return p.max(-1).mean(), (p.argmax(-1) == y[1078:]).mean()

    sizes = (64, 256, 256, 10)
    gaps, accuracies = np.empty((2, 3)), np.empty((2, 3))
    for seed in range(3):
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(labels))
        params = []
        for a, b in itertools.pairwise(sizes):
            params += [jnp.asarray(rng.normal(size=(a, b)) * np.sqrt(2 / a), jnp.float32), jnp.zeros(b)]
        batches = np.concatenate([rng.permutation(150).reshape(-1, 50) for _ in range(150)])
        data = jnp.asarray(images[order] / 16, jnp.float32), jnp.asarray(labels[order])
        for i, weight in enumerate((0.0, 0.1)):
            confidence, accuracies[i, seed] = train(weight, params, *data, batches)
            gaps[i, seed] = confidence - accuracies[i, seed]
    assert (gaps[1] < gaps[0]).all() and gaps[1].mean() < 0.9 * gaps[0].mean(), gaps
    assert accuracies[1].mean() > accuracies[0].mean() - 0.005, accuracies
