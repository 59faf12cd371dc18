"""Self-sustaining representation expansion against a loop-written float64 reference and the published value."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from tests.references import log_softmax

RNG = np.random.default_rng(0)
LOGITS, LABELS = RNG.normal(size=(4, 5)), RNG.integers(0, 5, size=4)
FEATURES, OLD, PROTOTYPES = RNG.normal(size=(4, 3)), RNG.normal(size=(4, 3)), RNG.normal(size=(2, 3))
FEATURES[3] = -PROTOTYPES.sum(0)  # far from both prototypes: a negative weight
ssre = rj.losses.ssre


def weights(features):
    cosine = lambda a, b: a @ b / np.sqrt((a @ a) * (b @ b))
    return np.array([max(cosine(f, c) for c in PROTOTYPES) for f in features])


def reference(rows, temperature, reduction, w):
    task = np.mean([(1 - w[b]) * -log_softmax(LOGITS[b] / temperature)[LABELS[b]] for b in rows])
    distances = [w[b] * np.linalg.norm(FEATURES[b] - OLD[b]) for b in rows]
    return task + (np.sum(distances) if reduction == "sum" else np.mean(distances))


def test_equals_the_loop_with_a_traced_temperature_and_a_mask(x64):
    where = np.array([True, False, True, True])
    spoilt = np.where(where[:, None], FEATURES, np.nan)  # what does not count may hold anything

    @jax.jit
    def several(temperature):
        call = lambda features, labels, **options: ssre(
            LOGITS, labels, features, OLD, PROTOTYPES, temperature=temperature, **options
        )
        return (
            call(FEATURES, LABELS),
            call(FEATURES, np.eye(5)[LABELS], distill_reduction="mean"),
            call(spoilt, LABELS, where=where),
            call(spoilt, LABELS, where=where, distill_reduction="mean"),
        )

    w = weights(FEATURES)
    assert (w < 0).any() and (w > 0).any()
    want = [reference(rows, 0.3, how, w) for rows in (range(4), (0, 2, 3)) for how in ("sum", "mean")]
    np.testing.assert_allclose(several(0.3), want, rtol=1e-12)


def test_published_value_and_the_first_step_of_a_task(x64):
    z, y = np.array([[0.2, 0.1, 0.0]]), np.array([2])
    features, prototypes = jnp.array([[1.0, 0.0]]), np.array([[3.0, 4.0]])
    assert jax.jit(ssre)(z, y, features, np.zeros((1, 2)), prototypes) == pytest.approx(1.563042, abs=5e-7)
    # Features that equal the old ones: the task's part alone, and a gradient that is finite.
    value, gradient = jax.jit(jax.value_and_grad(lambda f: ssre(z, y, f, features, prototypes)))(features)
    assert value == pytest.approx(0.4 * 2.407606, abs=5e-7)
    # Only through the weight: -CE times the derivative of the cosine, (0.6, 0.8) less its part along f.
    np.testing.assert_allclose(gradient, [[0.0, -2.407606 * 0.8]], atol=1e-6)


def test_gradient_flows_through_the_weights_unless_stopped(x64):
    def gradient(stop):
        loss = lambda f: ssre(LOGITS, LABELS, f, OLD, PROTOTYPES, temperature=0.3, stop_gradient_weights=stop)
        return np.asarray(jax.jit(jax.grad(loss))(jnp.asarray(FEATURES)))

    w = weights(FEATURES)
    distances = np.linalg.norm(FEATURES - OLD, axis=1)
    held = w[:, None] * (FEATURES - OLD) / distances[:, None]
    np.testing.assert_allclose(gradient(True), held, rtol=1e-10)
    # The rest is the derivative of the weight, here by finite differences, times the difference of the two losses.
    costs = np.array([-log_softmax(z / 0.3)[y] for z, y in zip(LOGITS, LABELS, strict=True)])
    slope = np.zeros((4, 3))
    for d in range(3):
        step = 1e-6 * np.eye(3)[d]
        slope[:, d] = (weights(FEATURES + step) - weights(FEATURES - step)) / 2e-6
    np.testing.assert_allclose(gradient(False) - held, slope * (distances - costs / 4)[:, None], rtol=1e-6, atol=1e-8)


@pytest.mark.slow
def test_old_classes_outlive_a_second_task():
    """Digits 0 to 4, then 5 to 9 with replayed prototypes: old classes keep more accuracy.

    At the price of new classes that are learned far more slowly, and only at a small learning rate: at ten times this one the
    distillation, summed over the batch, is unstable, and old classes are lost altogether.
    """
    x, y = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = (x[order] / 16).astype(np.float32), y[order]
    train, test = np.arange(len(y)) < 1078, np.arange(len(y)) >= 1078
    tasks = [(jnp.asarray(x[rows]), jnp.asarray(y[rows])) for rows in (train & (y < 5), train & (y >= 5))]
    held_out = jnp.asarray(x[test & (y < 5)]), jnp.asarray(y[test & (y < 5)])
    features = lambda p, x: jax.nn.relu(jax.nn.relu(x @ p[0]) @ p[1])
    cross_entropy = lambda z, y: optax.softmax_cross_entropy_with_integer_labels(z / 0.1, y).mean()

    def fit(params, task, key, loss, rate):
        tx = optax.sgd(rate, momentum=0.9)

        def step(carry, key):
            rows = jax.random.randint(key, (64,), 0, len(task[1]))
            updates, state = tx.update(jax.grad(loss)(carry[0], task[0][rows], task[1][rows], key), carry[1])
            return (optax.apply_updates(carry[0], updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), jax.random.split(key, 300))[0][0]

    @jax.jit
    @jax.vmap
    def run(key):
        keys = jax.random.split(key, 5)
        shapes = ((64, 128), (128, 64), (64, 10))
        old = [jax.random.normal(k, s) * (2 / s[0]) ** 0.5 for k, s in zip(keys, shapes, strict=False)]
        old = fit(old, tasks[0], keys[3], lambda p, x, y, key: cross_entropy(features(p, x) @ p[2][:, :5], y), 2e-3)
        here = tasks[0][1][:, None] == jnp.arange(5)
        prototypes = here.T.astype(jnp.float32) @ features(old, tasks[0][0]) / here.sum(0)[:, None]

        def replay(p, key):
            chosen = jax.random.randint(key, (64,), 0, 5)
            return 10 * cross_entropy(prototypes[chosen] @ p[2], chosen)

        def plain(p, x, y, key):
            return cross_entropy(features(p, x) @ p[2], y) + replay(p, key)

        def expanded(p, x, y, key):
            f = features(p, x)
            return ssre(f @ p[2], y, f, features(old, x), prototypes) + replay(p, key)

        right = lambda p: jnp.mean(jnp.argmax(features(p, held_out[0]) @ p[2], axis=-1) == held_out[1])
        return [right(fit(old, tasks[1], keys[4], loss, 2e-4)) for loss in (plain, expanded)]

    plain, expanded = run(jax.random.split(jax.random.key(0), 3))
    assert np.all(expanded > plain + 0.1), (plain, expanded)
