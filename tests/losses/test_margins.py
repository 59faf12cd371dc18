"""Normalised, prior-adjusted and margin cross-entropy against float64 loops and the published values."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from tests.references import log_softmax, soft_labels

logit_norm, logit_adjusted, semantic_margin = rj.losses.logit_norm, rj.losses.logit_adjusted, rj.losses.semantic_margin

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 5)) * 2
COSINES = np.tanh(LOGITS)
IDS = RNG.integers(0, 5, size=6)
WHERE = RNG.random((6, 5)) < 0.6
WHERE[np.arange(6), IDS] = True
WHERE[:, 0] = True
SOFT = np.where(WHERE, soft_labels(RNG, 6, 5), 0)
COUNTS = np.array([50, 20, 0, 7, 3])
EMBEDDINGS = RNG.normal(size=(5, 3))


def loop(scores, logits, labels, where=None):
    """Cross-entropy of ``scores(z, y, present)``, for each example."""
    out = []
    for i, z in enumerate(logits):
        mask = np.ones(len(z), bool) if where is None else where[i]
        y = np.eye(len(z))[labels[i]] if np.ndim(labels) == 1 else labels[i]
        log_p = log_softmax(scores(z, int(np.argmax(y)), np.flatnonzero(mask)), mask)
        out.append(-sum(y[k] * log_p[k] for k in range(len(z)) if y[k] > 0))
    return np.array(out)


def normed(z, y, present, temperature=0.04):
    return z / (np.sqrt(sum(z[k] ** 2 for k in present)) + 1e-7) / temperature


def adjusted(z, y, present, tau=1.0):
    return [z[k] + tau * np.log(COUNTS[k] / sum(COUNTS) + 1e-12) for k in range(5)]


def with_margins(z, y, present, threshold=0.3, temperature=0.1):
    cosine = [EMBEDDINGS[y] @ EMBEDDINGS[j] / np.linalg.norm(EMBEDDINGS[y]) / np.linalg.norm(EMBEDDINGS[j]) for j in range(5)]
    return np.array([z[j] + (cosine[j] if j != y and cosine[j] > threshold else 0) for j in range(5)]) / temperature


def adjust(z, y, **options):
    return logit_adjusted(z, y, COUNTS, **options)


def semantic(z, y, **options):
    return semantic_margin(z, y, EMBEDDINGS, threshold=0.3, **options)


CASES = (
    (logit_norm, normed),
    (functools.partial(logit_norm, temperature=0.7), functools.partial(normed, temperature=0.7)),
    (adjust, adjusted),
    (functools.partial(adjust, tau=0.5), functools.partial(adjusted, tau=0.5)),
    (semantic, with_margins),
    (functools.partial(semantic, temperature=0.5), functools.partial(with_margins, temperature=0.5)),
)


@pytest.mark.parametrize("labels", [IDS, SOFT], ids=["ids", "probabilities"])
def test_equal_their_references_on_any_axis_with_and_without_absent_classes(x64, labels):
    cases = CASES if labels is IDS else CASES[:4]

    @jax.jit
    def everything(z, y):
        turned = y if y.ndim == 1 else y.T
        return [(fn(z, y), fn(z.T, turned, axis=0, where=WHERE.T)) for fn, _ in cases]

    for (whole, masked), (_, scores) in zip(everything(LOGITS, labels), cases, strict=True):
        np.testing.assert_allclose(whole, loop(scores, LOGITS, labels), rtol=1e-10)
        np.testing.assert_allclose(masked, loop(scores, LOGITS, labels, WHERE), rtol=1e-10)


def test_published_values(x64):
    z, cosines, y = jnp.array([2.0, 1.0, 0.0]), jnp.array([0.8, 0.6, 0.1]), jnp.array(0)
    embeddings = jnp.array([[1.0, 0.0, 0.0], [1.4, 2 * 0.51**0.5, 0.0], [0.0, 0.0, 1.0]])

    @jax.jit
    def run(thresholds):
        margins = jax.vmap(lambda t: semantic_margin(cosines, y, embeddings, threshold=t))(thresholds)
        norms = jax.vmap(functools.partial(logit_norm, z))(jnp.array([0, 1]))
        return norms, logit_adjusted(z, jnp.array(2), [0.7, 0.2, 0.1]), margins

    (low, high), adjusted, margins = run(jnp.array([0.5, 0.71, 1.0]))
    assert low == pytest.approx(1.394579e-5, rel=2e-6) and high == pytest.approx(11.180354, abs=1e-6)
    assert adjusted == pytest.approx(4.063197, abs=1e-6)
    np.testing.assert_allclose(margins, [5.006721, 0.127731, 0.127731], atol=1e-6)


def test_normalised_loss_ignores_the_scale_and_ends_at_its_floor(x64):
    best = 10 * jnp.eye(10)[0] - 1

    @jax.jit
    def run(z, best):
        pair = [logit_norm(scale * z, IDS, temperature=1.0) for scale in (1, 3)]
        floors = [logit_norm(best, jnp.array(0), temperature=t) for t in (1.0, 0.04)]
        return pair, floors, jax.grad(lambda z: logit_norm(z, IDS).sum())(z)

    (first, scaled), floors, gradient = run(jnp.asarray(LOGITS), best)
    np.testing.assert_allclose(scaled, first, rtol=1e-6)
    assert np.abs((gradient * LOGITS).sum(-1)).max() < 1e-5 * np.abs(gradient).max()
    assert floors[0] == pytest.approx(1.419869, abs=1e-6)
    assert floors[1] == pytest.approx(9 * np.exp(-np.sqrt(10 / 9) / 0.04), rel=1e-5)


def test_normalised_loss_has_second_derivatives_and_probability_labels_its_gradient(x64):
    """The derivative rule of its normaliser, differentiated again and pushed forward, against plain operations."""

    y = jnp.asarray(soft_labels(RNG, 6, 5))

    def plain(z):
        scaled = z / (jnp.linalg.norm(z, axis=-1, keepdims=True) + 1e-7) / 0.5
        return jnp.sum(optax.softmax_cross_entropy(scaled, y) * optax.softmax_cross_entropy_with_integer_labels(scaled, IDS))

    def ours(z):
        return jnp.sum(logit_norm(z, y, temperature=0.5) * logit_norm(z, IDS, temperature=0.5))

    @jax.jit
    def derivatives(z, direction):
        return [jax.jvp(jax.grad(f), (z,), (direction,)) for f in (ours, plain)]

    for got, want in zip(*derivatives(jnp.asarray(LOGITS), RNG.normal(size=(6, 5))), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-9)


def test_adjusted_loss_and_adjusted_logits_are_two_sides_of_one_term(x64):
    plain = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(LOGITS), IDS)

    @jax.jit
    def run(z, uniform):
        corrected = rj.diagnostics.adjust_logits(z, COUNTS, tau=0.6)
        return jax.vmap(functools.partial(logit_adjusted, z, IDS))(uniform), logit_adjusted(corrected, IDS, COUNTS, tau=0.6)

    same, undone = run(jnp.asarray(LOGITS), jnp.array([[7.0] * 5, [0.0] * 5]))
    np.testing.assert_allclose(same, [plain, plain], rtol=1e-12)
    np.testing.assert_allclose(undone, plain, rtol=1e-12)


def test_margins_only_ever_raise_the_loss_and_leave_the_embeddings_alone(x64):
    @jax.jit
    def run(z, embeddings, threshold):
        fn = functools.partial(semantic_margin, z, IDS, threshold=threshold)
        return fn(embeddings), jax.grad(lambda e: fn(e).sum())(embeddings)

    plain = optax.softmax_cross_entropy_with_integer_labels(jnp.asarray(COSINES) / 0.1, IDS)
    loss, gradient = run(COSINES, EMBEDDINGS, 0.0)
    assert (loss >= plain).all() and (loss > plain + 0.1).any() and not gradient.any()
    same = np.ones((5, 3)) * np.sqrt(7)
    np.testing.assert_allclose(run(COSINES, same, 1.0)[0], plain, rtol=1e-12)
    np.testing.assert_allclose(run(COSINES, np.zeros((5, 3)), 0.0)[0], plain, rtol=1e-12)


def test_extreme_absent_and_wrong_classes():
    z = jnp.array([[0.0, 0.0, 0.0], [2.0, 1.0, 1e4], [0.0, 1.0, 0.0], [1.0, 2.0, 3.0]])
    where = jnp.array([[True, True, True], [True, True, True], [False, False, False], [True, False, True]])
    soft = jnp.array([[0.5, 0.0, 0.5], [0.5, 0.5, 0.0], [0.2, 0.4, 0.4], [0.0, 0.0, 1.0]])
    fns = (
        logit_norm,
        lambda z, y, **options: logit_adjusted(z, y, jnp.array([3.0, 0.0, 1.0]), **options),
        lambda z, y, **options: semantic_margin(z, y, jnp.eye(3), threshold=0.0, **options),
    )

    @jax.jit
    def values_and_gradients(z, bad):
        out = []
        for y in (jnp.array([0, 0, 0, 2]), soft):
            losses = [lambda z, fn=fn, y=y: fn(z, y, where=where) for fn in fns[: 3 if y.ndim == 1 else 2]]
            out += [(loss(z), jax.grad(lambda z, loss=loss: loss(z).sum())(z)) for loss in losses]
        lost = jax.value_and_grad(lambda z: logit_norm(z, jnp.array([0, 0, 0, 1]), where=where).sum())(z)
        return out, [fn(z, bad) for fn in fns], lost

    pairs, wrong, (infinite, finite) = values_and_gradients(z, jnp.array([-1, 3, 4, -5]))
    for value, gradient in pairs:
        assert np.isfinite(value).all() and np.isfinite(gradient).all()
        assert value[2] == 0 and not np.asarray(gradient)[2].any() and gradient[3, 1] == 0
    assert all(np.isnan(loss).all() for loss in wrong)
    assert infinite == np.inf and np.isfinite(finite).all()
