"""Averages of the weights: their formulas, schedules, dtypes, what is no float, and the batch statistics that they need."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen

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


def weighted(thetas, decays):
    """The average without the start: every term times the decays of the later ones."""
    weights = [(1 - decays[s]) * np.prod(decays[s + 1 :]) for s in range(len(thetas))]
    return sum(w * theta for w, theta in zip(weights, thetas, strict=True)) / sum(weights)


@pytest.mark.parametrize("warmup", [False, True])
def test_without_bias_the_start_does_not_count(x64, warmup):
    thetas = list(np.random.default_rng(1).normal(size=(6, 3)))
    decays = [min(0.8, (1 + t) / (10 + t)) if warmup else 0.8 for t in range(6)]
    teacher = rj.weights.ema(0.8, debias=True, warmup=warmup)
    biased = rj.weights.ema(0.8, warmup=warmup)
    state, other, want = teacher.init(jnp.full(3, 1e6)), biased.init(jnp.full(3, 10.0)), np.full(3, 10.0)
    step = jax.jit(lambda a, b, theta: (teacher.apply(a, theta), biased.apply(b, theta)))
    for t, theta in enumerate(thetas):
        (average, state), (plain, other) = step(state, other, theta)
        np.testing.assert_allclose(average, weighted(thetas[: t + 1], decays[: t + 1]), rtol=1e-6, atol=1e-7)
        want = decays[t] * want + (1 - decays[t]) * theta
        np.testing.assert_allclose(plain, want, rtol=1e-6, atol=1e-7)
    assert int(state.steps) == 6 and float(state.weight) == pytest.approx(1 - np.prod(decays), rel=1e-6)


def test_limits_of_the_average_without_bias():
    for decay, want in ((0.0, 2.0), (0.9, 2.0), (1.0, 1.0)):
        teacher = rj.weights.ema(decay, debias=True)
        average, _ = teacher.apply(teacher.init(jnp.ones(2)), jnp.full(2, 2.0))
        np.testing.assert_array_equal(average, np.full(2, want))


def test_swa_is_the_mean_of_what_counts_in_one_trace():
    thetas = np.random.default_rng(2).normal(size=(12, 3)).astype(np.float32)
    thetas[:4] = np.nan  # what came before does not matter
    averager, traces = rj.weights.swa(start=4, period=3), []

    @jax.jit
    def update(state, params, step):
        traces.append(1)
        return averager.apply(state, params, step=step)

    state = averager.init({"w": jnp.asarray(thetas[0]), "count": jnp.int32(0)})
    for step, theta in enumerate(thetas):
        average, state = update(state, {"w": theta, "count": jnp.int32(step)}, step)
        chosen = thetas[[t for t in range(4, step + 1) if (t - 4) % 3 == 0]]
        np.testing.assert_allclose(average["w"], np.mean(chosen, 0) if len(chosen) else theta, rtol=1e-5, atol=1e-6)
        assert int(average["count"]) == step and int(state.size) == len(chosen)
    assert len(traces) == 1


def test_swa_of_low_precision_weights_is_kept_in_float32():
    averager = rj.weights.swa()
    state = averager.init(jnp.zeros(1, jnp.bfloat16))
    for step in range(9):
        average, state = averager.apply(state, jnp.asarray([256 + 2 * (step % 2)], jnp.bfloat16), step=step)
    assert average.dtype == jnp.bfloat16 and state.average.dtype == jnp.float32
    assert float(state.average[0]) == pytest.approx(256 + 8 / 9, rel=1e-6)


def test_batch_statistics_are_weighted_by_the_batches_sizes(x64):
    rng = np.random.default_rng(3)
    batches = [rng.normal(size=(n, 4)) for n in (5, 5, 2)]
    apply = jax.jit(lambda w, x: {"mean": jnp.mean(w * x, 0), "var": jnp.var(w * x, 0), "count": jnp.int32(len(x))})
    one = rj.weights.recompute_batch_stats(apply, 2.0, batches[:1])
    np.testing.assert_allclose(one["mean"], 2 * batches[0].mean(0), rtol=1e-13)
    np.testing.assert_allclose(one["var"], 4 * batches[0].var(0), rtol=1e-13)
    got = rj.weights.recompute_batch_stats(apply, 2.0, iter(batches))
    np.testing.assert_allclose(got["mean"], 2 * np.concatenate(batches).mean(0), rtol=1e-12)
    np.testing.assert_allclose(got["var"], 4 * (5 * batches[0].var(0) + 5 * batches[1].var(0) + 2 * batches[2].var(0)) / 12)
    assert int(got["count"]) == 2


def test_batch_statistics_of_a_linen_model():
    norm = linen.BatchNorm(use_running_average=False, momentum=0.0)
    batches = [{"image": jnp.asarray(np.random.default_rng(i).normal(size=(4, 3)), jnp.float32)} for i in range(2)]
    variables = norm.init(jax.random.key(0), batches[0]["image"])

    def apply(params, batch):
        held = {"params": params, "batch_stats": variables["batch_stats"]}
        return norm.apply(held, batch["image"], mutable="batch_stats")[1]["batch_stats"]

    stats = rj.weights.recompute_batch_stats(apply, variables["params"], batches)
    images = np.stack([batch["image"] for batch in batches])
    np.testing.assert_allclose(stats["mean"], images.mean((0, 1)), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(stats["var"], images.var(1).mean(0), rtol=1e-4)
