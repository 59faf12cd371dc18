"""The dropout inversion attack against a loop, its schedule and its ends, its measures, and the claim it is known for."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

d = rj.diagnostics
KEY = jax.random.key(0)
RATE, HIDDEN = 0.25, 6


def problem(shape=(2, 3, 3, 1), hidden=HIDDEN, classes=4, seed=0, activation=jnp.tanh, scale=1.0):
    """A bias-free network, an input batch with labels, the masks of its dropout, and its gradients."""
    rng = np.random.default_rng(seed)
    size = int(np.prod(shape[1:]))
    params = {"in": scale * rng.normal(size=(size, hidden)), "out": scale * rng.normal(size=(hidden, classes))}
    params = jax.tree.map(jnp.asarray, params)

    def loss(params, x, masks, y):
        h = activation(x.reshape(shape[0], -1) @ params["in"]) * masks["hidden"] / (1 - RATE)
        return -jnp.mean(jnp.sum(jax.nn.log_softmax(h @ params["out"]) * jax.nn.one_hot(y, classes), axis=-1))

    grad_fn = lambda x, masks, y: jax.grad(loss)(params, x, masks, y)
    x = jnp.asarray(rng.random(shape), params["in"].dtype)
    masks = {"hidden": jnp.asarray(rng.random((shape[0], hidden)) < 1 - RATE, x.dtype)}
    y = jnp.asarray(rng.integers(0, classes, shape[0]))
    return grad_fn, x, masks, y, grad_fn(x, masks, y)


def attack(grad_fn, target, y, shape, masks, **options):
    shapes = jax.tree.map(lambda m: m.shape, masks)
    run = jax.jit(
        lambda key: d.dropout_inversion_attack(
            key, grad_fn, target, y, input_shape=shape, mask_shapes=shapes, **{"rate": RATE, **options}
        )
    )
    return run(KEY)


@pytest.mark.parametrize("joint", [True, False])
def test_the_search_equals_a_loop(x64, joint):
    grad_fn, x, masks, y, target = problem()
    options = dict(tv_weight=0.1, mask_weight=0.05, patience=2, learning_rate=0.3, bounds=(0.0, 1.0), sign_gradient=joint)
    options["joint_masks"] = joint
    first = attack(grad_fn, target, y, x.shape, masks, steps=1, **options)
    steps = 40
    got = attack(grad_fn, target, y, x.shape, masks, steps=steps, **options)

    flat = lambda tree: jnp.concatenate([leaf.reshape(-1) for leaf in jax.tree.leaves(tree)])

    @jax.jit
    def objective(x, m):
        a, b = flat(grad_fn(x, {"hidden": m}, y)), flat(target)
        loss = 1 - a @ b / (jnp.sqrt(a @ a) * jnp.sqrt(b @ b) + 1e-8)
        variation = sum(
            jnp.mean(jnp.sqrt((p - q) ** 2 + 1e-300)) for p, q in ((x[:, 1:], x[:, :-1]), (x[:, :, 1:], x[:, :, :-1]))
        )
        return loss + 0.1 * variation + (0.05 * jnp.sqrt((1 - jnp.mean(m) - RATE) ** 2 + 1e-300) if joint else 0)

    gradient = jax.jit(jax.value_and_grad(objective, (0, 1)))
    values = [np.asarray(first.inputs), np.asarray(first.masks["hidden"])]
    moments = [[np.zeros_like(v), np.zeros_like(v)] for v in values]
    rate, best, best_values, stuck, history, falls = 0.3, np.inf, None, 0, [], 0
    for i in range(1, steps + 1):
        loss, gradients = gradient(*values)
        history.append(float(loss))
        stuck += 1
        if loss < best:
            best, best_values, stuck = float(loss), [v.copy() for v in values], 0
        if stuck >= 2:
            rate, stuck, falls = 0.1 * rate, 0, falls + 1
        gradients = [np.sign(gradients[0]) if joint else np.asarray(gradients[0]), np.asarray(gradients[1])]
        for j in range(2 if joint else 1):
            m, v = moments[j]
            m[...] = 0.9 * m + 0.1 * gradients[j]
            v[...] = 0.999 * v + 0.001 * gradients[j] ** 2
            move = m / (1 - 0.9**i) / (np.sqrt(v / (1 - 0.999**i)) + 1e-8)
            values[j] = np.clip(values[j] - rate * move, 0, 1)
    assert falls > 0
    np.testing.assert_allclose(got.history, history, rtol=1e-8)
    np.testing.assert_allclose(got.inputs, best_values[0], rtol=1e-7, atol=1e-12)
    np.testing.assert_allclose(got.masks["hidden"], best_values[1], rtol=1e-7, atol=1e-12)
    if not joint:
        np.testing.assert_array_equal(got.masks["hidden"], 1)


def test_start_bounds_and_ends():
    grad_fn, x, masks, y, target = problem()
    wide = {"hidden": jnp.zeros((2, HIDDEN)), "unused": jnp.zeros((4000,))}
    first = attack(grad_fn, target, y, x.shape, wide, steps=1, rate=0.3)
    assert set(np.unique(first.masks["unused"])) == {0.0, 1.0}
    assert abs(np.mean(first.masks["unused"]) - 0.7) < 5 * np.sqrt(0.21 / 4000)
    low, high = jnp.zeros(1), jnp.full((3, 1, 1), 0.5)
    found = attack(grad_fn, target, y, x.shape, masks, steps=30, bounds=(low, high))
    assert np.min(found.inputs) >= 0 and np.max(found.inputs) <= 0.5
    assert np.min(found.masks["hidden"]) >= 0 and np.max(found.masks["hidden"]) <= 1
    assert np.min(found.masks["hidden"] % 1 + (found.masks["hidden"] == 1) + (found.masks["hidden"] == 0)) > 0
    # The result is that of the least loss, and it is no worse than any.
    assert np.isfinite(found.history).all() and found.history.shape == (30,)
    ended = attack(grad_fn, target, y, x.shape, masks, steps=30, target_loss=10.0)
    assert np.isfinite(ended.history[0]) and np.isnan(ended.history[1:]).all()
    flat = jax.tree.map(jnp.zeros_like, target)
    # A target of zero has distance 1 everywhere: no step is better than the first.
    waits = attack(grad_fn, flat, y, x.shape, masks, steps=30, stop_after=7, tv_weight=0.0, mask_weight=0.0)
    np.testing.assert_array_equal(np.isnan(waits.history), np.arange(30) > 7)
    np.testing.assert_array_equal(waits.history[:8], 1)


def test_one_trace_for_all_keys_strengths_and_targets():
    grad_fn, x, _, y, target = problem()

    @jax.jit
    @chex.assert_max_traces(n=1)
    def run(key, target, rate, weight):
        return d.dropout_inversion_attack(
            key,
            grad_fn,
            target,
            y,
            input_shape=x.shape,
            mask_shapes={"hidden": (2, HIDDEN)},
            rate=rate,
            steps=5,
            tv_weight=weight,
            mask_weight=weight,
            learning_rate=weight,
        )

    a = run(KEY, target, 0.25, 0.1)
    b = run(jax.random.key(1), jax.tree.map(lambda g: 2 * g, target), 0.5, 0.01)
    assert not np.array_equal(a.inputs, b.inputs)


def test_cosine_distance_over_all_parameters():
    distance = d.gradient_cosine_distance
    a = {"x": jnp.array([1.0, -2.0]), "y": jnp.array([[0.5]])}
    b = {"x": jnp.array([0.0, 1.0]), "y": jnp.array([[3.0]])}
    p, q = np.array([1.0, -2, 0.5]), np.array([0.0, 1, 3])
    np.testing.assert_allclose(distance(a, b), 1 - p @ q / np.sqrt((p @ p) * (q @ q)), rtol=1e-6)
    assert abs(float(distance(a, a))) < 1e-6
    np.testing.assert_allclose(distance(jnp.array([1.0, 2]), jnp.array([2.0, 1])), 0.2, rtol=1e-6)
    zero = jax.tree.map(jnp.zeros_like, a)
    assert float(distance(a, zero)) == 1
    assert all(np.all(np.isfinite(g)) for g in jax.tree.leaves(jax.grad(distance)(zero, a)))


def test_total_variation_and_mse_equal_loops(x64):
    rng = np.random.default_rng(0)
    x, r = rng.normal(size=(2, 4, 3, 2)), rng.normal(size=(2, 4, 3, 2))
    down = [abs(x[b, i + 1, j, c] - x[b, i, j, c]) for b in range(2) for i in range(3) for j in range(3) for c in range(2)]
    right = [abs(x[b, i, j + 1, c] - x[b, i, j, c]) for b in range(2) for i in range(4) for j in range(2) for c in range(2)]
    np.testing.assert_allclose(d.total_variation(x), np.mean(down) + np.mean(right), rtol=1e-13)
    assert float(d.total_variation(jnp.array([[0.0, 1.0], [3.0, 2.0]]).reshape(1, 2, 2, 1))) == 3
    assert float(d.total_variation(jnp.ones((1, 1, 1, 3)))) == 0
    # Flat regions stay as they are: the gradient of an absolute value at 0 is 0.
    assert not np.any(jax.grad(d.total_variation)(jnp.ones((1, 3, 3, 1))))
    want = [np.mean([(x[b][i] - r[b][i]) ** 2 for i in np.ndindex(4, 3, 2)]) for b in range(2)]
    np.testing.assert_allclose(d.reconstruction_mse(x, r), want, rtol=1e-13)


@pytest.mark.slow
def test_joint_search_sees_through_dropout():
    """Published direction: without the masks the attack fails, with them it reconstructs about as well as if it knew them."""
    image = np.zeros((8, 8), np.float32)
    image[1:7, 2] = image[1, 2:6] = image[4, 2:6] = image[2:4, 5] = 1.0
    errors = {"joint": [], "ones": [], "true": []}
    for seed in range(2):
        grad_fn, _, masks, y, _ = problem((1, 8, 8, 1), 64, 10, seed, jax.nn.relu, 1 / 8)
        x = jnp.asarray(image).reshape(1, 8, 8, 1)
        target = grad_fn(x, masks, y)
        known = lambda x, _, y, grad_fn=grad_fn, masks=masks: grad_fn(x, masks, y)
        for name, fn in (("joint", grad_fn), ("ones", grad_fn), ("true", known)):
            found = attack(
                fn, target, y, x.shape, masks, steps=1500, bounds=(0.0, 1.0), patience=300, joint_masks=name == "joint"
            )
            errors[name].append(float(d.reconstruction_mse(found.inputs, x)[0]))
    assert np.mean(errors["joint"]) < 0.05 * np.mean(errors["ones"])
    assert np.mean(errors["true"]) < 0.05 * np.mean(errors["ones"])
