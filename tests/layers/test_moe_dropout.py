"""Masked expert outputs, conditional routing and gating dropout against loops, published values and their statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 4, 2))
KEEP = RNG.random((3, 4)) < 0.6
KEY = jax.random.key(0)
MASKINGS = [rj.layers.expert_output_masking, rj.layers.final_output_masking]


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


@pytest.mark.parametrize("rescale", ["test", "train"])
def test_masked_outputs_equal_a_loop(x64, rescale):
    want = np.zeros_like(X)
    for e, c in np.ndindex(KEEP.shape):
        if KEEP[e, c]:
            want[e, c] = X[e, c] / (0.7 if rescale == "train" else 1)
    np.testing.assert_allclose(rj.layers.apply_output_masking(X, KEEP, rate=0.3, rescale=rescale), want, rtol=1e-14)
    weights = RNG.normal(size=X.shape)
    by_x = jax.grad(lambda x: jnp.sum(weights * rj.layers.apply_output_masking(x, KEEP, rate=0.3, rescale=rescale)))(X)
    np.testing.assert_allclose(by_x, weights * KEEP[..., None] / (0.7 if rescale == "train" else 1), rtol=1e-13)


@pytest.mark.parametrize("masking", MASKINGS)
def test_whole_vectors_go_at_the_rate_and_test_mode_is_the_expectation(masking):
    n, rate = 20_000, 0.2
    x = jnp.stack([jnp.arange(1.0, n + 1), -jnp.ones(n)], axis=1).reshape(n // 2, 2, 2)
    for rescale, kept in (("test", 1.0), ("train", 1 / (1 - rate))):
        y = np.asarray(jax.jit(lambda key, rate, r=rescale: masking(key, x, rate=rate, rescale=r))(KEY, rate))
        stays = y[..., 1] != 0
        np.testing.assert_array_equal(stays, y[..., 0] != 0)
        np.testing.assert_allclose(y[stays], kept * np.asarray(x)[stays], rtol=1e-6)
        assert abs(stays.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / n)
        # The expectation over keys is the test mode.
        test = np.asarray(masking(None, x, rate=rate, rescale=rescale, deterministic=True))
        np.testing.assert_allclose(test, np.asarray(x) * kept * (1 - rate), rtol=1e-6)
        assert abs(y[..., 1].mean() - test[..., 1].mean()) < 5 * kept * np.sqrt(rate * (1 - rate) / n)
        # The two experts of a token go independently: both with probability rate^2.
        both = (~stays).all(axis=1).mean()
        assert abs(both - rate**2) < 5 * np.sqrt(rate**2 / (n / 2))


@pytest.mark.parametrize("masking", MASKINGS)
def test_ends_of_the_rate(masking):
    x = jnp.asarray(X, jnp.bfloat16)
    for rescale in ("test", "train"):
        for rate in (0, 0.0, jnp.zeros(())):
            for off in (False, True):
                y = masking(KEY, x, rate=rate, rescale=rescale, deterministic=off)
                assert y.dtype == x.dtype and y.tobytes() == x.tobytes()
        for rate in (1, jnp.ones(())):
            for off in (False, rescale == "test"):
                assert not np.any(np.asarray(masking(KEY, x, rate=rate, rescale=rescale, deterministic=off), np.float32))


def reference_cmr(x, kernel, bias, ffn, moe, keep, rate, padding):
    y, gates = np.zeros_like(moe), np.zeros(x.shape[:-1])
    for t in np.ndindex(gates.shape):
        gates[t] = sigmoid(sum(a * b for a, b in zip(x[t], kernel[:, 0], strict=True)) + bias[0])
        gates[t] = gates[t] / (1 - rate) if keep[t] else 0
        if padding[t]:
            gates[t] = 0
        y[t] = (1 - gates[t]) * ffn[t] + gates[t] * moe[t]
    return y, gates


def test_conditional_routing_equals_a_loop(x64):
    kernel, bias, ffn, moe = RNG.normal(size=(2, 1)), RNG.normal(size=1), RNG.normal(size=(3, 4, 5)), RNG.normal(size=(3, 4, 5))
    padding = RNG.random((3, 4)) < 0.3
    call = rj.layers.apply_conditional_moe_routing
    for rescale, rate in ((False, 0.0), (True, 0.25)):
        y, gates = call(X, kernel, bias, ffn, moe, KEEP, gate_rate=0.25, gate_rescale=rescale, padding=padding)
        want_y, want_gates = reference_cmr(X, kernel, bias, ffn, moe, KEEP, rate, padding)
        np.testing.assert_allclose(y, want_y, rtol=1e-12)
        np.testing.assert_allclose(gates, want_gates, rtol=1e-12)
    # Where the gate is 0 the dense branch alone answers, and no gradient reaches the experts or the gate.
    off = ~KEEP | padding
    np.testing.assert_array_equal(np.asarray(y)[off], ffn[off])
    total = lambda x, ffn, moe: jnp.sum(jnp.sin(call(x, kernel, bias, ffn, moe, KEEP, padding=padding)[0]))
    by_x, by_ffn, by_moe = jax.grad(total, (0, 1, 2))(jnp.asarray(X), jnp.asarray(ffn), jnp.asarray(moe))
    assert not np.any(by_x[off]) and not np.any(by_moe[off])
    np.testing.assert_allclose(by_ffn[off], np.cos(ffn[off]), rtol=1e-12)
    # Test mode keeps all gates unscaled.
    y, gates = rj.layers.conditional_moe_routing(
        None, X, kernel, bias, ffn, moe, gate_rate=0.25, gate_rescale=True, deterministic=True
    )
    want_y, want_gates = reference_cmr(X, kernel, bias, ffn, moe, KEEP | True, 0.0, padding & False)
    np.testing.assert_allclose(y, want_y, rtol=1e-12)
    np.testing.assert_allclose(gates, want_gates, rtol=1e-12)


def test_published_gates_budget_and_output():
    x = jnp.array([[0.0], [2.0], [-1.0]])
    ffn, moe = jnp.ones((3, 1)), jnp.full((3, 1), 3.0)
    y, gates = rj.layers.conditional_moe_routing(None, x, jnp.ones((1, 1)), jnp.zeros(1), ffn, moe, deterministic=True)
    np.testing.assert_allclose(gates, [0.5, 0.88079708, 0.26894142], rtol=1e-6)
    np.testing.assert_allclose(y[:, 0], [2, 2.76159416, 1.53788284], rtol=1e-6)
    np.testing.assert_allclose(rj.layers.cmr_budget_loss(gates), 0.25008717, rtol=1e-6)


@pytest.mark.parametrize("rescale", [False, True])
def test_gates_are_zeroed_at_the_rate(rescale):
    n, rate = 20_000, 0.2
    draw = jax.jit(
        lambda key, rate: rj.layers.conditional_moe_routing(
            key, jnp.zeros((n, 1)), jnp.ones((1, 1)), jnp.full(1, 2.0), *jnp.ones((2, n, 1)), gate_rate=rate, gate_rescale=rescale
        )[1]
    )
    gates = np.asarray(draw(KEY, rate))
    assert abs((gates == 0).mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / n)
    # Rescaled gates may exceed 1, as in the authors' code; zeroed ones do not.
    np.testing.assert_allclose(gates[gates != 0], sigmoid(2.0) / (1 - rate if rescale else 1), rtol=1e-6)
    np.testing.assert_allclose(draw(KEY, 0.0), sigmoid(2.0), rtol=1e-6)


def test_budget_counts_tokens_of_all_layers(x64):
    gates = RNG.random((2, 3, 4))
    padding = RNG.random((3, 4)) < 0.4
    total, count = 0.0, 0
    for layer, b, t in np.ndindex(gates.shape):
        if not padding[b, t]:
            total, count = total + gates[layer, b, t], count + 1
    want = abs(total / count - 0.8)
    loss = rj.layers.cmr_budget_loss
    for got in (
        loss(gates, padding),
        loss(list(gates), padding),
        loss(tuple(gates), padding),
        loss(gates, np.stack([padding] * 2)),
    ):
        np.testing.assert_allclose(got, want, rtol=1e-14)
    by_gates = jax.grad(loss)(gates, padding)
    sign = np.sign(total / count - 0.8)
    np.testing.assert_allclose(by_gates, sign * np.broadcast_to(~padding, gates.shape) / count, rtol=1e-14)
    assert float(loss(jnp.ones(5), budget=1.0)) == 0
    assert not np.any(jax.grad(lambda g: loss(g, budget=1.0))(jnp.ones(5)))
    # No token: nothing to bring near the budget.
    value, gradient = jax.value_and_grad(loss)(jnp.ones((2, 3)), jnp.ones(3, bool))
    assert float(value) == pytest.approx(0.8) and not np.any(gradient)


def test_budget_is_summed_in_float32():
    # A float16 sum of 100,000 halves would overflow, a bfloat16 one would stand still.
    for dtype in (jnp.float16, jnp.bfloat16):
        got = rj.layers.cmr_budget_loss(jnp.full(100_000, 0.5, dtype))
        assert got.dtype == jnp.float32 and float(got) == pytest.approx(0.3, rel=1e-5)


def test_gating_dropout_tosses_one_coin_for_the_batch():
    logits = jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)
    local = jnp.asarray(RNG.random((6, 4)) < 0.5)
    banned = np.where(local, logits, -np.inf)
    apply = rj.layers.apply_gating_dropout
    np.testing.assert_array_equal(apply(logits, local, jnp.array(True)), banned)
    np.testing.assert_array_equal(apply(logits, local, jnp.array(False)), logits)
    assert np.all(np.isneginf(apply(logits, None, jnp.array(True), mode="expert")))
    n, rate = 4000, 0.3
    keys = jax.random.split(KEY, n)
    draw = jax.jit(lambda rate: jax.vmap(lambda k: rj.layers.gating_dropout(k, logits, local, rate=rate))(keys))
    drawn = np.asarray(draw(rate))
    off = (drawn == banned).all(axis=(1, 2))
    assert np.all(off | (drawn == np.asarray(logits)).all(axis=(1, 2)))
    assert abs(off.mean() - rate) < 5 * np.sqrt(rate * (1 - rate) / n)
    np.testing.assert_array_equal(draw(0.0), np.broadcast_to(logits, drawn.shape))
    np.testing.assert_array_equal(draw(1.0), np.broadcast_to(banned, drawn.shape))
    assert rj.layers.gating_dropout(None, logits, local, deterministic=True) is logits


def test_low_rates_of_bfloat16_outputs():
    y = rj.layers.final_output_masking(KEY, jnp.ones((100_000, 1), jnp.bfloat16), rate=0.001)
    assert abs(np.mean(np.asarray(y, np.float32) == 0) - 0.001) < 5 * np.sqrt(0.001 / 100_000)
