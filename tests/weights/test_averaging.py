"""The moving average of the weights: its formula, schedules, dtypes, and what is no float."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj


def test_equals_the_recursion_under_a_schedule_in_one_trace():
    decay = lambda step: jnp.minimum(1 - 1 / (step + 1), 0.9)
    teacher = rj.weights.ema(decay)
    random = np.random.default_rng(0)
    trees = [{"kernel": random.normal(size=(2, 3)), "count": np.int32(i)} for i in range(6)]
    state, want, traces = teacher.init(jax.tree.map(jnp.float32, trees[0])), trees[0]["kernel"], []

    @jax.jit
    def step(state, params, i):
        traces.append(1)
        return teacher.apply(state, params, step=i)

    for i, tree in enumerate(trees):
        params = {"kernel": jnp.float32(tree["kernel"]), "count": jnp.int32(tree["count"])}
        if i == 0:
            state = teacher.init(params)
        average, state = step(state, params, i)
        gamma = min(1 - 1 / (i + 1), 0.9)
        want = gamma * want + (1 - gamma) * tree["kernel"]
        np.testing.assert_allclose(average["kernel"], want, rtol=1e-5, atol=1e-6)
        assert int(average["count"]) == i
    assert len(traces) == 1


def test_low_precision_weights_are_averaged_in_float32():
    teacher = rj.weights.ema(0.999)
    state = teacher.init({"w": jnp.zeros(1, jnp.bfloat16)})
    for _ in range(10):
        average, state = teacher.apply(state, {"w": jnp.ones(1, jnp.bfloat16)})
    assert average["w"].dtype == jnp.bfloat16 and state.average["w"].dtype == jnp.float32
    assert float(state.average["w"][0]) == pytest.approx(1 - 0.999**10, rel=1e-4)


def test_no_decay_is_the_parameters_and_full_decay_the_start():
    old, new = {"w": jnp.array([jnp.inf, 2.0])}, {"w": jnp.array([3.0, 4.0])}
    now = rj.weights.ema(0.0)
    np.testing.assert_array_equal(now.apply(now.init(old), new)[0]["w"], new["w"])
    never = rj.weights.ema(1.0)
    np.testing.assert_array_equal(never.apply(never.init(new), old | {"w": jnp.ones(2)})[0]["w"], new["w"])
