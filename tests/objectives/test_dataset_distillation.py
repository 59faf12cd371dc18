"""The trajectory-matching loss against training written out by hand, and its gradient by images and learning rate."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regjax.objectives import trajectory_matching_loss
from regjax.objectives.dataset_distillation import _randomness
from tests.references import log_softmax, soft_labels

RNG = np.random.default_rng(0)
M, D, K = 6, 4, 3
IMAGES = RNG.normal(size=(M, D))
LABELS = RNG.integers(0, K, size=M)
START = {"kernel": RNG.normal(size=(D, K)), "bias": RNG.normal(size=K)}
TARGET = {name: leaf + 0.3 * RNG.normal(size=leaf.shape) for name, leaf in START.items()}


def linear(params, x):
    return x @ params["kernel"] + params["bias"]


def matched(images, labels, learning_rate, num_steps, batches=None):
    """The loss by hand: gradient descent on softmax regression, with one-hot or soft labels."""
    w = {name: leaf.copy() for name, leaf in START.items()}
    for j in range(num_steps):
        rows = range(len(images)) if batches is None else batches[j]
        gradient = {name: np.zeros_like(leaf) for name, leaf in w.items()}
        for i in rows:
            error = np.exp(log_softmax(images[i] @ w["kernel"] + w["bias"])) - labels[i]
            gradient["bias"] += error / len(rows)
            gradient["kernel"] += np.outer(images[i], error) / len(rows)
        w = {name: w[name] - learning_rate * gradient[name] for name in w}
    distance = lambda a, b: sum(np.sum((a[name] - b[name]) ** 2) for name in a)
    return distance(w, TARGET) / distance(START, TARGET)


def loss(images, labels, learning_rate, num_steps=3, **options):
    return trajectory_matching_loss(linear, images, labels, START, TARGET, learning_rate, num_steps=num_steps, **options)


def test_equals_its_reference_with_its_gradients(x64):
    soft = soft_labels(RNG, M, K)
    both = jax.jit(jax.value_and_grad(lambda x, y, lr: loss(x, y, lr), (0, 1, 2)))
    value, (to_images, to_labels, to_rate) = both(IMAGES, soft, 0.7)
    assert float(value) == pytest.approx(matched(IMAGES, soft, 0.7, 3), rel=1e-12)
    move = RNG.normal(size=(M, D))
    tilt = RNG.normal(size=(M, K))
    change = lambda f: (f(1e-5) - f(-1e-5)) / 2e-5
    assert np.vdot(to_images, move) == pytest.approx(change(lambda h: matched(IMAGES + h * move, soft, 0.7, 3)), rel=1e-6)
    assert float(to_rate) == pytest.approx(change(lambda h: matched(IMAGES, soft, 0.7 + h, 3)), rel=1e-6)
    # Labels that no longer sum to 1: cross-entropy weighs the log of the normaliser with their sum.
    tilt -= tilt.mean(1, keepdims=True)
    assert np.vdot(to_labels, tilt) == pytest.approx(change(lambda h: matched(IMAGES, soft + h * tilt, 0.7, 3)), rel=1e-6)
    ids = jax.jit(loss)(IMAGES, LABELS, 0.7)
    assert float(ids) == pytest.approx(matched(IMAGES, np.eye(K)[LABELS], 0.7, 3), rel=1e-12)


def test_published_value_on_a_quadratic(x64):
    # Two logits whose cross-entropy is w^2 / 2.
    apply = lambda w, x: jnp.stack([-jnp.log(jnp.expm1(w**2 / 2)), jnp.zeros(())])[None] * x
    quadratic = functools.partial(trajectory_matching_loss, apply, np.ones((1, 1)), np.zeros(1, int), jnp.float64(1.0))
    assert float(quadratic(jnp.float64(0.5), 0.1, num_steps=2)) == pytest.approx(0.3844, rel=1e-12)
    assert float(quadratic(jnp.float64(0.5), 0.1, num_steps=0)) == 1.0
    assert float(quadratic(jnp.float64(0.81), 0.1, num_steps=2)) == pytest.approx(0.0, abs=1e-25)
    # A target at the start: the distance alone, not divided by 0.
    value, slope = jax.value_and_grad(lambda lr: quadratic(jnp.float64(1.0), lr, num_steps=1))(0.1)
    assert float(value) == pytest.approx(0.01, rel=1e-12) and float(slope) == pytest.approx(0.2, rel=1e-12)


def test_parameters_are_constants(x64):
    def total(start, target):
        return trajectory_matching_loss(linear, IMAGES, LABELS, start, target, 0.5, num_steps=2)

    for tree in jax.jit(jax.grad(total, (0, 1)))(START, TARGET):
        assert not any(np.any(leaf) for leaf in tree.values())


def test_batches_are_shuffled_orders_of_all_images(x64):
    key = jax.random.key(3)
    _, order = _randomness("x", key, 7, 6, False, 2)
    order = np.asarray(order)
    assert order.shape == (7, 2)
    for whole in (order[:3], order[3:6]):
        assert sorted(whole.ravel()) == list(range(6))
    assert not np.array_equal(order[:3], order[3:6])
    # Batches that do not divide: no image twice in one order.
    _, uneven = _randomness("x", key, 4, 5, False, 2)
    for whole in np.asarray(uneven).reshape(2, 4):
        assert len(set(whole)) == 4
    one_hot = np.eye(K)[LABELS]
    got = jax.jit(lambda x: loss(x, LABELS, 0.7, num_steps=7, key=key, batch_size=2))(IMAGES)
    assert float(got) == pytest.approx(matched(IMAGES, one_hot, 0.7, 7, order), rel=1e-12)


def test_augmentation_has_a_key_of_its_own_in_every_step(x64):
    key = jax.random.key(0)
    noise = lambda key, x: x + jax.random.normal(key, x.shape)
    keys, _ = _randomness("x", key, 3, M, True, None)
    assert len({tuple(np.asarray(k)) for k in jax.random.key_data(keys)}) == 3

    @jax.jit
    def both(images):
        w = jax.tree.map(jnp.asarray, START)
        for each in (keys[i] for i in range(3)):
            mean = lambda w, each=each: -jnp.mean(jax.nn.log_softmax(linear(w, noise(each, images)))[jnp.arange(M), LABELS])
            w = jax.tree.map(lambda p, g: p - 0.5 * g, w, jax.grad(mean)(w))
        distance = lambda a: sum(jnp.sum((a[name] - TARGET[name]) ** 2) for name in a)
        by_hand = distance(w) / distance(START)
        return loss(images, LABELS, 0.5, key=key, augment=noise), by_hand

    got, want = both(IMAGES)
    assert float(got) == pytest.approx(float(want), rel=1e-12)


def test_low_precision_parameters_are_kept_in_float32_between_steps():
    start, target = {"w": jnp.ones((2, 2), jnp.bfloat16)}, {"w": jnp.zeros((2, 2), jnp.bfloat16)}
    seen = []

    def apply(params, x):
        seen.append(params["w"].dtype)
        return x @ params["w"].astype(jnp.float32)

    images = jnp.eye(2, dtype=jnp.float32)
    run = lambda lr: trajectory_matching_loss(apply, images, jnp.array([0, 1]), start, target, lr, num_steps=4)
    value = jax.jit(run)(1e-3)
    assert value.dtype == jnp.float32 and seen[0] == jnp.bfloat16
    # Each step moves the weights by lr / 4, which bfloat16 would round away.
    moved = np.ones((2, 2)) + 1e-3 * np.array([[1, -1], [-1, 1]])
    assert float(value) == pytest.approx(np.sum(moved**2) / 4, rel=1e-7) and value != 1


def test_the_backward_pass_keeps_no_activations():
    def memory(steps):
        apply = lambda params, x: jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"]) @ params["c"]
        shape = lambda *n: jax.ShapeDtypeStruct(n, jnp.float32)
        params = {"a": shape(8, 16), "b": shape(16, 16), "c": shape(16, 2)}
        labels = jnp.zeros(512, int)
        fn = lambda x, start, target: trajectory_matching_loss(apply, x, labels, start, target, 0.1, num_steps=steps)
        compiled = jax.jit(jax.grad(fn)).lower(shape(512, 8), params, params).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    parameters = 4 * (8 * 16 + 16 * 16 + 16 * 2)
    # A step's activations are 512 * 2 * 16 floats, 40 times its parameters.
    assert memory(30) - memory(2) < 28 * 4 * parameters
