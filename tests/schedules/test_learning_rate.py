"""One cycle against a loop with PyTorch's semantics and against optax; the range test; the estimate from the iterates."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj


def torch_one_cycle(step, total, peak, pct, strategy, div, final_div, three_phase, base, most):
    """Learning rate and momentum of one step, phase after phase."""
    start = peak / div
    final = start / final_div
    if three_phase:
        phases = [
            (pct * total - 1, start, peak, most, base),
            (2 * pct * total - 2, peak, start, base, most),
            (total - 1, start, final, most, most),
        ]
    else:
        phases = [(pct * total - 1, start, peak, most, base), (total - 1, peak, final, base, most)]
    begin = 0.0
    for i, (end, lr0, lr1, m0, m1) in enumerate(phases):
        if step <= end or i == len(phases) - 1:
            f = (step - begin) / (end - begin)
            if strategy == "linear":
                return lr0 + (lr1 - lr0) * f, m0 + (m1 - m0) * f
            left = (1 + math.cos(math.pi * f)) / 2
            return lr1 + (lr0 - lr1) * left, m1 + (m0 - m1) * left
        begin = end
    raise AssertionError


@pytest.mark.parametrize("three_phase", [False, True])
@pytest.mark.parametrize("strategy", ["cos", "linear"])
def test_one_cycle_is_the_loop_of_pytorch(x64, strategy, three_phase):
    for total, pct in ((20, 0.3), (10, 0.05), (11, 0.5)):
        shape = dict(total_steps=total, pct_start=pct, anneal_strategy=strategy, three_phase=three_phase)
        rate = rj.schedules.one_cycle(peak_value=3.0, div_factor=10.0, final_div_factor=100.0, **shape)
        momentum = rj.schedules.one_cycle_momentum(base_momentum=0.8, max_momentum=0.9, **shape)
        steps = np.arange(total)
        want = [torch_one_cycle(t, total, 3.0, pct, strategy, 10.0, 100.0, three_phase, 0.8, 0.9) for t in steps]
        np.testing.assert_allclose(rate(steps), [w[0] for w in want], rtol=1e-10)
        np.testing.assert_allclose(momentum(steps), [w[1] for w in want], rtol=1e-12)
        assert rate(total + 5) == rate(total - 1)
        np.testing.assert_allclose(rate(total - 1), 3.0 / 10 / 100, rtol=1e-12)
        assert rate(-3) == rate(0)


def test_one_cycle_endpoint_optax(x64):
    steps = np.arange(60)
    for total, pct in ((20, 0.3), (50, 0.37)):
        make = functools.partial(rj.schedules.one_cycle, total_steps=total, peak_value=3.0, pct_start=pct, endpoint="optax")
        want = optax.cosine_onecycle_schedule(total, 3.0, pct)
        np.testing.assert_allclose(make()(steps), jax.jit(jax.vmap(want))(steps), rtol=1e-9)
        want = optax.linear_onecycle_schedule(total, 3.0, pct)
        got = make(anneal_strategy="linear", three_phase=True)(steps)
        np.testing.assert_allclose(got, jax.jit(jax.vmap(want))(steps), rtol=1e-9)


def test_one_cycle_published_values():
    rate = rj.schedules.one_cycle(total_steps=20, peak_value=3.0)
    assert (rate(0), rate(5)) == (np.float32(0.12), 3)
    np.testing.assert_allclose(rate(19), 1.2e-5, rtol=1e-6)
    linear = rj.schedules.one_cycle(total_steps=20, peak_value=3.0, anneal_strategy="linear", three_phase=True, endpoint="optax")
    np.testing.assert_allclose([linear(t) for t in (0, 6, 17, 20)], [0.12, 3.0, 0.12, 1.2e-5], rtol=1e-6)
    cosine = rj.schedules.one_cycle(total_steps=20, peak_value=3.0, endpoint="optax")
    np.testing.assert_allclose(cosine(3), 1.56, rtol=1e-6)


def test_one_cycle_is_precise_in_float32_where_it_is_small():
    total = 100_000
    steps = np.arange(total - 500, total)
    got = rj.schedules.one_cycle(total_steps=total, peak_value=3.0)(steps)
    assert got.dtype == jnp.float32
    want = [torch_one_cycle(t, total, 3.0, 0.3, "cos", 25.0, 1e4, False, 0.85, 0.95)[0] for t in steps]
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_one_cycle_without_a_phase():
    """No warm-up starts at the peak; nothing but warm-up ends there."""
    rate = lambda pct, total=10: rj.schedules.one_cycle(total_steps=total, peak_value=1.0, pct_start=pct)
    assert rate(0.1)(0) == 1
    assert rate(1.0)(9) == 1
    for pct in (0.0, 0.3, 1.0):
        assert np.all(np.isfinite(rate(pct, 1)(np.arange(3))))


def test_one_cycle_in_an_optimiser_with_momentum_and_traced_peak():
    tx = optax.inject_hyperparams(optax.sgd)(
        learning_rate=rj.schedules.one_cycle(total_steps=20, peak_value=1.0),
        momentum=rj.schedules.one_cycle_momentum(total_steps=20),
    )
    params = jnp.ones(3)
    _, state = tx.update(params, tx.init(params), params)
    np.testing.assert_allclose(state.hyperparams["learning_rate"], 0.04, rtol=1e-6)
    np.testing.assert_allclose(state.hyperparams["momentum"], 0.95, rtol=1e-6)
    at = jax.jit(lambda peak, step: rj.schedules.one_cycle(total_steps=20, peak_value=peak)(step))
    np.testing.assert_allclose([at(2.0, 5), at(4.0, 5)], [2.0, 4.0])


def test_lr_range_test(x64):
    steps = np.arange(-1, 9)
    f = np.clip(steps / 6, 0, 1)
    got = rj.schedules.lr_range_test(low=1e-5, high=2.0, num_steps=7)(steps)
    np.testing.assert_allclose(got, 1e-5 + (2.0 - 1e-5) * f, rtol=1e-12)
    got = rj.schedules.lr_range_test(low=1e-5, high=2.0, num_steps=7, mode="exp")(steps)
    np.testing.assert_allclose(got, 1e-5 * (2.0 / 1e-5) ** f, rtol=1e-12)
    assert (got[1], got[-1]) == (1e-5, 2.0)
    assert rj.schedules.lr_range_test(low=0.0, high=2.0, num_steps=1)(0) == 0


def test_hessian_free_estimate_of_three_iterates():
    """The published iterates: ratio 2, contribution 0.2, and from 0.1 to 0.11."""
    iterates = [{"a": jnp.array([1.0]), "b": jnp.array([1.0])}, {"a": jnp.array([0.9]), "b": jnp.array([0.8])}]
    iterates.append({"a": jnp.array([0.85]), "b": jnp.array([0.7])})
    estimator = rj.schedules.hessian_free_learning_rate()
    state = estimator.init(iterates[0])
    values = []
    for before, after in itertools.pairwise(iterates):
        value, state = estimator.apply(state, optax.tree.sub(after, before), 0.1)
        values.append(float(value))
    np.testing.assert_allclose(values, [0.1, 0.11], rtol=1e-5)


def test_hessian_free_estimate_is_the_inverse_curvature_of_a_quadratic(x64):
    rng = np.random.default_rng(0)
    w, curvature, rate, decay, estimate = rng.normal(size=4), np.array([0.5, 1.0, 2.0, 4.0]), 0.1, 0.7, 0.1
    estimator = rj.schedules.hessian_free_learning_rate(decay=decay)
    state, apply = estimator.init(jnp.asarray(w)), jax.jit(estimator.apply)
    iterates = [w]
    for _ in range(6):
        iterates.append(iterates[-1] - rate * curvature * iterates[-1])
    for t in range(1, 7):
        value, state = apply(state, iterates[t] - iterates[t - 1], rate)
        if t > 1:
            w1, w2, w3 = iterates[t - 2 : t + 1]
            moved, bent = sum(abs(x) for x in w2 - w1), sum(abs(x) for x in 2 * w2 - w1 - w3)
            estimate = decay * estimate + (1 - decay) * rate * moved / bent
        np.testing.assert_allclose(value, estimate, rtol=1e-9)
    # Along one direction the estimate is 1 / curvature at once.
    estimator = rj.schedules.hessian_free_learning_rate(decay=0.0)
    state = estimator.init(jnp.zeros(1))
    for update in (-0.1 * 4.0 * 2.0, -0.1 * 4.0 * (2.0 - 0.8)):
        value, state = estimator.apply(state, jnp.array([update]), 0.1)
    np.testing.assert_allclose(value, 0.25, rtol=1e-12)


def test_hessian_free_estimate_is_kept_where_nothing_is_known():
    estimator = rj.schedules.hessian_free_learning_rate(init=0.3)
    state = estimator.init(jnp.zeros(2, jnp.bfloat16))
    line = jnp.array([0.1, -0.2])
    for update in (line, line):  # nothing before it; the same again
        value, state = estimator.apply(state, update, 0.1)
        assert value == np.float32(0.3)
    value, state = estimator.apply(state, jnp.zeros(2), 0.1)  # the ratio is 1
    np.testing.assert_allclose(value, 0.9 * 0.3 + 0.1 * 0.1, rtol=1e-6)
    value, _ = estimator.apply(state, line, 0.1)  # after a zero update
    np.testing.assert_allclose(value, 0.28, rtol=1e-6)
    assert state.previous.dtype == jnp.bfloat16
    empty = estimator.init({})
    assert estimator.apply(empty, {}, 0.1)[0] == np.float32(0.3)
