"""Neural consolidation: its network against NumPy, the ball it samples, and what it learns."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from regjax.weights.anchors import neural

RNG = np.random.default_rng(0)
init, update, penalty = (
    rj.weights.neural_consolidation_init,
    rj.weights.neural_consolidation_update,
    rj.weights.neural_consolidation,
)


def test_equals_its_network_in_numpy_and_the_prior_before_the_first_task(x64):
    params = {"b": RNG.normal(size=2), "a": RNG.normal(size=(2, 3))}
    theta = np.concatenate([params["a"].ravel(), params["b"]])
    state = init(jax.random.key(0), params, hidden=(5, 4), precision=0.6)
    both = jax.jit(jax.value_and_grad(lambda p, s: penalty(p, s, weight=2.0)))
    value, gradient = both(params, state)
    assert float(value) == pytest.approx(2 * 0.3 * sum(t * t for t in theta), rel=1e-12)
    np.testing.assert_allclose(gradient["b"], 2 * 0.6 * params["b"], rtol=1e-12)

    draw = lambda x: RNG.normal(size=x.shape)
    layers = jax.tree.map(draw, state.layers)

    def network(theta):
        x = list(theta)
        for i, layer in enumerate(layers):
            x = x if i == 0 else [v / (1 + np.exp(-v)) for v in x]
            x = [sum(x[j] * layer["kernel"][j, k] for j in range(len(x))) + layer["bias"][k] for k in range(len(layer["bias"]))]
        return x[0]

    trained = state._replace(layers=layers, tasks=jnp.ones((), jnp.int32))
    value, gradient = both(params, trained)
    assert float(value) == pytest.approx(2 * network(theta), rel=1e-10)
    steps = 1e-6 * np.eye(8)
    want = [(network(theta + d) - network(theta - d)) / 1e-6 for d in steps]
    np.testing.assert_allclose(np.concatenate([gradient["a"].ravel(), gradient["b"]]), want, rtol=1e-6, atol=1e-8)


def test_points_are_uniform_in_the_ball():
    n, dim, radius = 20_000, 3, 2.0
    points = np.asarray(neural.apply_ball(*neural.draw_ball(jax.random.key(0), (n, dim), jnp.float32), radius))
    lengths = np.linalg.norm(points, axis=1)
    assert lengths.max() <= radius * (1 + 1e-6)
    for inner in (0.5, 1.0, 1.5):
        share = (inner / radius) ** dim
        assert abs(np.mean(lengths < inner) - share) < 5 * np.sqrt(share * (1 - share) / n)
    # Each coordinate has mean 0 and variance r^2 / (d + 2).
    deviation = radius / np.sqrt(dim + 2)
    assert np.all(np.abs(points.mean(0)) < 5 * deviation / np.sqrt(n))
    np.testing.assert_allclose(points.std(0), deviation, rtol=0.03)
    exact = neural.apply_ball(jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.array([[0.25], [0.5]]), 2.0)
    np.testing.assert_allclose(exact, [[0.6, 0.8], [0.0, 0.0]], rtol=1e-6)


def test_learns_the_objectives_of_two_tasks_around_the_minimum():
    data = jnp.array([1.0, 3.0])
    objective = lambda w, scale, state: jnp.sum(scale * w**2) / 2 + 3.0 + penalty(w, state, weight=0.5)
    minimum = jnp.array([0.5, -0.5])
    teach = jax.jit(lambda key, state: update(key, state, minimum, objective, data, state, radius=2.0, steps=400))
    points = minimum + neural.apply_ball(*neural.draw_ball(jax.random.key(9), (200, 2), jnp.float32), 2.0)
    over = lambda f: jax.vmap(f)(points)
    at = jax.jit(lambda state: (over(lambda w: penalty(w, state)), over(lambda w: objective(w, data, state))))
    state = init(jax.random.key(0), minimum, hidden=(32, 32))
    for task in range(2):
        target = at(state)[1]
        state = teach(jax.random.key(task + 1), state)
        learned = at(state)[0]
        assert int(state.tasks) == task + 1
        # The Huber loss and the decay of the weights leave an error, far below the spread of the target.
        assert np.mean(np.abs(learned - target)) < 0.1 * np.std(target)


def test_the_network_shrinks_where_there_is_nothing_to_learn():
    state = init(jax.random.key(0), jnp.zeros(2), hidden=(8,))
    size = lambda state: sum(float(jnp.sum(x**2)) for x in jax.tree.leaves(state.layers))
    after = update(jax.random.key(1), state, jnp.zeros(2), lambda w: 0.0 * jnp.sum(w), radius=1.0, steps=200, num_points=4)
    assert size(after) < 0.3 * size(state)
