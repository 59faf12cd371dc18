"""Spectral decoupling against loop-written float64 references, the published values and the measured toy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from tests.references import log_softmax, soft_labels


def spectral_decoupling(logits, labels, weight, offset, where=None):
    out = []
    for i, z in enumerate(logits):
        present = [k for k in range(len(z)) if where is None or where[i][k]]
        log_p = log_softmax(z, None if where is None else where[i])
        penalty = sum((z[k] - offset[k]) ** 2 for k in present) / len(present)
        out.append(-log_p[labels[i]] + weight * penalty)
    return np.array(out)


def binary(f, labels, weight, offset, balanced, half, where=None):
    """Labels are the probability of class 1; the mean over examples that count is the authors' objective."""
    use = np.ones(len(f), bool) if where is None else where
    mass = [sum((labels[i] if c else 1 - labels[i]) for i in range(len(f)) if use[i]) for c in (0, 1)]
    out = np.zeros(len(f))
    for i in range(len(f)):
        if not use[i]:
            continue
        for c, share in ((0, 1 - labels[i]), (1, labels[i])):
            sign = 2 * c - 1
            out[i] += share * np.log1p(np.exp(-sign * f[i]))
            scale = sum(use) / mass[c] if balanced and mass[c] else 1
            out[i] += weight * (0.5 if half else 1) * scale * share * (f[i] - offset[c]) ** 2
    return out


multi = jax.jit(rj.losses.spectral_decoupling, static_argnames="axis")
binary_loss = jax.jit(rj.losses.binary_spectral_decoupling, static_argnames=("class_balanced", "half", "axis_name"))
RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 5))
LABELS = RNG.integers(0, 5, size=6)
WHERE = RNG.random((6, 5)) < 0.6
WHERE[np.arange(6), LABELS] = True
SCORES = 2 * RNG.normal(size=8)
CLASSES = np.array([0, 1, 1, 0, 1, 1, 1, 0])


@pytest.mark.parametrize("where", [None, WHERE])
def test_equals_its_reference(x64, where):
    for offset in (1.5, np.arange(5.0)):
        got = multi(LOGITS, LABELS, weight=0.3, offset=offset, where=where)
        want = spectral_decoupling(LOGITS, LABELS, 0.3, np.broadcast_to(offset, 5), where)
        np.testing.assert_allclose(got, want, rtol=1e-12)


def test_published_values(x64):
    loss, gradient = jax.value_and_grad(multi)(np.array([2.0, 1.0, 0.0]), np.array(0), weight=0.1)
    assert loss == pytest.approx(0.574273, abs=5e-7)
    np.testing.assert_allclose(gradient, [-0.201426, 0.311395, 0.090031], atol=5e-7)


def test_weight_zero_is_cross_entropy_and_offset_is_the_minimum(x64):
    z = jnp.asarray(LOGITS)
    want = optax.softmax_cross_entropy_with_integer_labels(z, LABELS)
    np.testing.assert_allclose(multi(z, LABELS, weight=0.0, offset=2.0), want, rtol=1e-12)

    def penalty(z):
        with_it = multi(z, LABELS, weight=1.0, offset=jnp.arange(5.0))
        return (with_it - multi(z, LABELS, weight=0.0)).sum()

    np.testing.assert_allclose(jax.grad(penalty)(jnp.tile(jnp.arange(5.0), (6, 1))), 0, atol=1e-12)


def test_probability_labels_axis_and_leading_dimensions(x64):
    z = RNG.normal(size=(2, 5, 3))
    y = soft_labels(RNG, 2, 3, 5)
    offset = np.arange(5.0)
    got = multi(z, np.moveaxis(y, -1, 1), weight=0.3, offset=offset, axis=1)
    rows = np.moveaxis(z, 1, -1)
    want = -(y * np.array([[log_softmax(r) for r in b] for b in rows])).sum(-1) + 0.3 * ((rows - offset) ** 2).mean(-1)
    np.testing.assert_allclose(got, want, rtol=1e-12)


def test_masked_classes_get_no_gradient():
    where = WHERE.copy()
    where[3] = False
    z = np.where(where, LOGITS, np.inf).astype(np.float32)
    loss = multi(z, LABELS, where=where)
    assert np.all(np.isfinite(loss)) and loss[3] == 0
    gradient = jax.grad(lambda z: multi(z, LABELS, where=where).sum())(z)
    assert np.all(np.asarray(gradient)[~where] == 0) and np.all(np.isfinite(gradient))


@pytest.mark.parametrize("balanced", [False, True])
@pytest.mark.parametrize("where", [None, np.array([1, 1, 0, 1, 1, 0, 1, 1], bool)])
def test_binary_equals_its_reference(x64, balanced, where):
    soft = RNG.random(8)
    for labels in (CLASSES, CLASSES.astype(float), soft):
        for half in (False, True):
            got = binary_loss(SCORES, labels, weight=0.3, offset=(0.44, 2.5), class_balanced=balanced, half=half, where=where)
            want = binary(SCORES, labels.astype(float), 0.3, (0.44, 2.5), balanced, half, where)
            np.testing.assert_allclose(got, want, rtol=1e-12, atol=1e-15)


def test_balanced_batch_mean_is_the_sum_of_class_means(x64):
    got = binary_loss(SCORES, CLASSES, weight=0.1, offset=(0.44, 2.5), class_balanced=True).mean()
    nll = np.log1p(np.exp(-(2 * CLASSES - 1) * SCORES)).mean()
    parts = [((SCORES[c == CLASSES] - gamma) ** 2).mean() for c, gamma in ((0, 0.44), (1, 2.5))]
    assert got == pytest.approx(nll + 0.1 * sum(parts), rel=1e-12)


def test_absent_class_single_example_and_nobody():
    @jax.jit
    def run(f, labels, where):
        def total(f):
            loss = rj.losses.binary_spectral_decoupling(f, labels, class_balanced=True, offset=(1.0, 2.0), where=where)
            return loss.sum(), loss

        gradient, loss = jax.grad(total, has_aux=True)(f)
        return loss, gradient

    f, everyone = SCORES.astype(np.float32), np.ones(8, bool)
    loss, gradient = run(f, np.ones(8, int), everyone)
    # Only class 1 is there: B / n = 1, the plain penalty.
    np.testing.assert_allclose(loss, binary(SCORES, np.ones(8), 0.1, (1.0, 2.0), False, False), rtol=1e-6)
    assert np.all(np.isfinite(gradient))
    for scores in (f, 1e4 * np.sign(f), 0 * f):
        assert all(np.all(np.isfinite(x)) for x in run(scores, CLASSES, np.arange(8) == 3))
    assert all(np.all(np.asarray(x) == 0) for x in run(np.full_like(f, np.nan), np.full(8, 255), ~everyone))
    assert np.all(np.isnan(run(f, np.full(8, 2), everyone)[0]))


def test_binary_weight_zero_and_minimisers(x64):
    got = binary_loss(SCORES, CLASSES, weight=0.0, offset=3.0)
    np.testing.assert_allclose(got, optax.sigmoid_binary_cross_entropy(jnp.asarray(SCORES), CLASSES), rtol=1e-12)
    for half, minimum in ((False, 1.177505), (True, 1.633506)):
        near = minimum + np.array([-1e-6, 1e-6])
        slope = jax.grad(lambda f: binary_loss(f, np.ones(2, int), weight=0.1, half=half).sum())(near)  # noqa: B023
        assert slope[0] < 0 < slope[1]


def test_counts_over_a_mapped_axis_equal_those_of_the_whole_batch(x64):
    whole = binary_loss(SCORES, CLASSES, class_balanced=True)
    split = jax.vmap(lambda f, y: binary_loss(f, y, class_balanced=True, axis_name="shard"), axis_name="shard")(
        SCORES.reshape(4, 2), CLASSES.reshape(4, 2)
    )
    np.testing.assert_allclose(split.reshape(-1), whole, rtol=1e-12)


def test_decoupled_logits_do_not_starve(x64):
    """Two examples, one linear mode of strength l and one of strength 2: weight decay starves the second as l grows."""
    root = np.sqrt(0.75)
    modes = jnp.array([[root, -0.5], [0.5, root]])

    def second_mode(strength, decoupled):
        features = modes @ jnp.diag(jnp.stack([strength, jnp.full((), 2.0)]))

        def loss(theta):
            f = features @ theta
            # The weight 0 is the plain logistic loss.
            value = binary_loss(f, jnp.ones(2, int), weight=jnp.where(decoupled, 0.1 / 100, 0.0)).sum()
            return value + jnp.where(decoupled, 0.0, 0.5 / 100) * jnp.sum(theta**2)

        theta = jax.lax.fori_loop(0, 5000, lambda _, theta: theta - 0.05 * jax.grad(loss)(theta), jnp.zeros(2))
        f = features @ theta
        return jnp.abs(modes.T @ f)[1], f

    strengths = jnp.tile(jnp.arange(2.0, 7.0), 2)
    learned, margins = jax.jit(jax.vmap(second_mode))(strengths, jnp.arange(10) >= 5)
    np.testing.assert_allclose(learned[:5], [1.6400, 1.5831, 1.4664, 1.3270, 1.1802], atol=5e-5)
    np.testing.assert_allclose(learned[5:], 1.7075, atol=5e-5)
    np.testing.assert_allclose(margins[5:], 4.6651, atol=5e-5)
