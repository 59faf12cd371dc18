"""ELLE's error against a loop and closed values, its training loss against its passes, and the adaptive weight."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from tests.objectives.problems import close, same, step_flops

o = rj.objectives
RNG = np.random.default_rng(0)
PARAMS = {"hidden": RNG.normal(size=(6, 5)), "out": RNG.normal(size=(5, 3))}
X = RNG.uniform(0, 1, size=(4, 6))
Y = np.array([0, 2, 1, 0])
KEY = jax.random.key(0)
A, B, ALPHA = RNG.uniform(-1, 1, (4, 6)), RNG.uniform(-1, 1, (4, 6)), RNG.uniform(0, 1, 4)


def losses(params, x, labels):
    z = jnp.tanh(x @ params["hidden"]) @ params["out"]
    return optax.softmax_cross_entropy_with_integer_labels(z, labels)


def one_loss(x, label):
    z = np.tanh(x @ PARAMS["hidden"]) @ PARAMS["out"]
    return np.log(np.exp(z).sum()) - z[label]


def reference(epsilon):
    total = 0.0
    for i in range(4):
        start, end = X[i] + epsilon * A[i], X[i] + epsilon * B[i]
        between = (1 - ALPHA[i]) * start + ALPHA[i] * end
        total += (one_loss(between, Y[i]) - (1 - ALPHA[i]) * one_loss(start, Y[i]) - ALPHA[i] * one_loss(end, Y[i])) ** 2 / 4
    return total


def test_error_equals_its_loop(x64):
    @jax.jit
    def errors(params, epsilon):
        penalty = o.elle_penalty(losses, epsilon=epsilon)
        given = penalty(params, None, X, Y, noise_a=A, noise_b=B, alpha=ALPHA)
        swapped = penalty(params, None, X, Y, noise_a=B, noise_b=A, alpha=1 - ALPHA)
        channel = o.elle_penalty(losses, epsilon=jnp.full(6, epsilon))(params, None, X, Y, noise_a=A, noise_b=B, alpha=ALPHA)
        soft = lambda p, x, labels: -jnp.sum(labels * jax.nn.log_softmax(jnp.tanh(x @ p["hidden"]) @ p["out"]), -1)
        probabilities = o.elle_penalty(soft, epsilon=epsilon)(params, None, X, np.eye(3)[Y], noise_a=A, noise_b=B, alpha=ALPHA)
        return given, swapped, channel, probabilities

    for epsilon in (0.3, 1.0):
        close(errors(PARAMS, epsilon), (reference(epsilon),) * 4, rtol=1e-9)


def test_published_values_and_gradient(x64):
    square = lambda w, x, labels: jnp.sum(w * x**2, -1)
    x, one = jnp.array([[0.5]]), jnp.ones((1, 1))
    penalty = o.elle_penalty(square, epsilon=0.5)
    for alpha, value in ((0.5, 0.0625), (0.25, 0.03515625)):
        got = jax.value_and_grad(penalty)(1.0, None, x, None, noise_a=-one, noise_b=one, alpha=jnp.array([alpha]))
        close(got, (value, 2 * value), rtol=1e-12)
    affine = o.elle_penalty(lambda w, x, labels: x @ w + 1.0, epsilon=0.5)
    assert affine(jnp.ones(6), KEY, X, Y) < 1e-30
    # No derivative by the inputs.
    assert not np.any(jax.grad(o.elle_penalty(losses, epsilon=0.3), argnums=2)(PARAMS, KEY, jnp.asarray(X), Y))


def test_points_are_uniform_and_shared_with_labels_of_their_example():
    seen = []

    def watch(params, x, labels):
        seen.append((x, labels))
        return jnp.zeros(len(x))

    x, labels = jnp.zeros((2000, 3)) + jnp.array([0.0, 10.0, 20.0]), jnp.arange(2000)
    o.elle_penalty(watch, epsilon=0.5)(None, KEY, x, labels)
    points, ids = seen[0]
    np.testing.assert_array_equal(ids.reshape(2000, 3), np.repeat(np.arange(2000)[:, None], 3, 1))
    start, end, between = np.moveaxis(np.asarray(points - jnp.repeat(x, 3, 0)).reshape(2000, 3, 3), 1, 0)
    for u in (start, end):
        assert np.abs(u).max() <= 0.5 + 1e-5 and abs(u.mean()) < 4 * np.sqrt(1 / 12 / u.size) and abs(u.var() - 1 / 12) < 0.006
    assert abs(np.mean(start * end)) < 4 / 12 / np.sqrt(start.size)
    share = (between[:, 0] - start[:, 0]) / (end[:, 0] - start[:, 0])
    assert share.min() >= -1e-3 and share.max() <= 1 + 1e-3 and abs(share.mean() - 0.5) < 4 * np.sqrt(1 / 12 / 2000)
    np.testing.assert_allclose(between, start + share[:, None] * (end - start), atol=2e-3)


def test_training_loss_is_its_parts(x64):
    params = jax.tree.map(jnp.asarray, PARAMS)
    with_aux = lambda params, x, labels, scale: (scale * losses(params, x, labels), x)

    @jax.jit
    def both(params):
        attack, points = jax.random.split(KEY)
        scaled = lambda p, x, y: 0.5 * losses(p, x, y)
        x_adv = o.fgsm_attack(lambda p, x, y: scaled(p, x, y).mean(), params, X, Y, epsilon=0.3, method="n_fgsm", key=attack)
        parts = lambda p: scaled(p, x_adv, Y).mean() + 7.0 * o.elle_penalty(scaled, epsilon=0.3)(p, points, X, Y)
        settings = dict(epsilon=lambda step: 0.1 * step, method="n_fgsm", has_aux=True, with_info=True)
        full = jax.value_and_grad(o.elle(with_aux, weight=7.0, **settings), has_aux=True)(params, KEY, X, Y, scale=0.5, step=3)
        adaptive = o.elle(with_aux, **settings)(params, KEY, X, Y, 0.5, step=3, weight=jnp.float32(7.0))
        plain = o.elle(losses, epsilon=0.3, weight=0.0)(params, KEY, X, Y)
        fgsm = o.adversarial(lambda *args: losses(*args).mean(), attack="fgsm", epsilon=0.3)(params, KEY, X, Y)
        return full, jax.value_and_grad(parts)(params), adaptive, x_adv, plain, fgsm

    ((value, (aux, info)), gradient), want, adaptive, x_adv, plain, fgsm = both(params)
    close((value, gradient), want, rtol=1e-9, atol=1e-12)
    close(adaptive, (value, (aux, info)), rtol=1e-12)
    close(aux, x_adv)
    assert info["error"] > 0
    close(plain, fgsm)


def adapted(errors, **options):
    method = o.elle_lambda(**options)
    state, used = method.init(), []
    apply = jax.jit(method.apply)
    for error in errors:
        weight, state = apply(state, jnp.asarray(error, float))
        used.append(float(weight))
    return used, float(state.weight)


def loop(errors, max_weight, decay, sensitivity, update, window):
    history, weight, used = [], 0.0, []
    for error in errors:
        before = weight
        kept = history if window is None else history[-window:]
        if len(history) > 2 and error > np.mean(kept) + sensitivity * np.std(kept):
            weight = max_weight
        else:
            weight = decay * weight
        used.append(before if update == "after" else weight)
        history.append(error)
    return used, weight


@pytest.mark.parametrize("window", [None, 4])
def test_weight_equals_its_loop(x64, window):
    errors = np.abs(RNG.normal(size=60)) ** 3 * 1e-6
    for update in ("after", "before"):
        options = dict(max_weight=50.0, decay=0.9, sensitivity=1.0, update=update, window=window)
        got, want = adapted(errors, **options), loop(errors, **options)
        np.testing.assert_allclose(got[0], want[0], rtol=1e-10)
        np.testing.assert_allclose(got[1], want[1], rtol=1e-10)
        assert 5 < np.sum(np.array(got[0]) == 50.0) < 30


def test_published_weights_and_float32():
    errors = [0.1, 0.12, 0.09, 0.11, 0.5, 0.1]
    assert adapted(errors) == ([0, 0, 0, 0, 0, 4000], 3960)
    assert adapted(errors, update="before") == ([0, 0, 0, 0, 4000, 3960], 3960)
    # Without spread any larger error counts, an equal one does not.
    assert adapted([0.1] * 6 + [0.1 + 1e-8] + [0.2])[1] == 4000
    assert adapted([0.1] * 9)[1] == 0
    # Tiny errors, as they are in practice, keep their spread.
    errors = np.abs(np.random.default_rng(1).normal(size=40)) * 1e-9
    want = loop(errors.astype(np.float32).astype(float), 4000.0, 0.99, 2.0, "after", None)
    np.testing.assert_allclose(adapted(errors)[0], want[0], rtol=1e-5)


def test_broken_errors_leave_no_trace():
    used, weight = adapted([0.1, 0.12, 0.09, np.nan, np.inf, 0.1, 0.11])
    assert (used[5] == 4000 and weight == np.float32(4000 * 0.99**2)) or weight == pytest.approx(4000 * 0.99**2)
    assert adapted([0.1, 0.12, 0.09, np.nan, 0.11])[1] == 0
    assert adapted([0.1, 0.12, 0.09, np.inf, 0.5], window=3)[1] == 4000


def test_weight_has_no_gradient_and_takes_schedules():
    method = o.elle_lambda(max_weight=lambda step: 10.0 * step, decay=0.5)
    state = method.init()
    for error in (0.1, 0.1, 0.1):
        _, state = method.apply(state, jnp.float32(error), step=0)
    _, state = method.apply(state, jnp.float32(1.0), step=3)
    assert state.weight == 30
    assert jax.grad(lambda error: method.apply(state, error, step=3)[0])(1.0) == 0
    same(method.apply(state, jnp.float32(0.0), step=3)[1].weight, jnp.float32(15.0))


def test_cost():
    """The error is a step on three times the batch; with the attack and the plain step it adds up. No second derivatives."""

    def per_example(params, x, y):
        for i, layer in enumerate(params):
            x = x @ layer["kernel"] + layer["bias"]
            x = x if i == len(params) - 1 else jax.nn.relu(x)
        return -jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1)[:, 0]

    penalty = lambda plain: lambda params, x, y: o.elle_penalty(per_example, epsilon=0.1)(params, KEY, x, y)
    whole = lambda plain: lambda params, x, y: o.elle(per_example, epsilon=0.1)(params, KEY, x, y)
    assert step_flops(penalty)[0] <= 1.1 * step_flops(batch=384)[0]
    assert step_flops(whole)[0] <= 4.9 * step_flops()[0]
