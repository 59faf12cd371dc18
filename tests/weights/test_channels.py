"""Channels reconstructed from the others: loops, exact cases, and a network of digits."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
fn = jax.jit(rj.weights.reconstruct_channels, static_argnames="mode")


def folded(kernel, bn, bias, weight, epsilon=1e-5):
    out = kernel.shape[-1]
    scale, beta, mean, var = bn if bn is not None else (np.ones(out), np.zeros(out), np.zeros(out), np.ones(out) - epsilon)
    columns = []
    for i in range(out):
        g = scale[i] / np.sqrt(var[i] + epsilon)
        columns.append([*(g * kernel.reshape(-1, out)[:, i]), np.sqrt(weight) * (beta[i] + g * (bias[i] - mean[i]))])
    return np.array(columns).T


def loop(kernel, bn, following, damaged, weight, ridge, bias, quantized=None):
    """The least squares of each damaged channel apart, by stacked rows for the ridge."""
    whole, out = folded(kernel, bn, bias, weight), kernel.shape[-1]
    rows = np.eye(out)
    for j in np.flatnonzero(damaged):
        if quantized is None:
            used, start = np.flatnonzero(~damaged), np.zeros(out)
            basis = whole[:, used]
        else:
            used, start = np.arange(out), np.eye(out)[j]
            basis = np.where(damaged, folded(quantized, bn, bias, weight), whole)
        left = np.vstack([basis, np.sqrt(ridge) * np.eye(len(used))])
        right = np.concatenate([whole[:, j], np.sqrt(ridge) * start[used]])
        rows[j] = 0
        rows[j, used] = np.linalg.lstsq(left, right, rcond=None)[0]
    new = np.zeros_like(following)
    for j in range(out):
        for i in range(out):
            new[..., i, :] += rows[j, i] * following[..., j, :]
    return new, rows


@pytest.mark.parametrize("mode", ["prune", "quantize"])
def test_equal_the_loop(x64, mode):
    damaged = np.array([False, True, False, True, False])
    bn = (RNG.normal(size=5), RNG.normal(size=5), RNG.normal(size=5), RNG.random(5) + 0.5)
    bias = RNG.normal(size=5)
    for kernel, following in (
        (RNG.normal(size=(3, 3, 2, 5)), RNG.normal(size=(3, 3, 5, 4))),
        (RNG.normal(size=(3, 5)), RNG.normal(size=(5, 2))),
    ):
        quantized = np.round(2 * kernel) / 2 if mode == "quantize" else None
        for norm in (bn, None):
            got = fn(kernel, norm, following, damaged, mode=mode, quantized=quantized, bias=bias, bias_weight=0.7, ridge=0.05)
            want = loop(kernel, norm, following, damaged, 0.7, 0.05, bias, quantized)
            np.testing.assert_allclose(got.kernel_next, want[0], rtol=1e-8, atol=1e-10)
            np.testing.assert_allclose(got.coefficients, want[1], rtol=1e-8, atol=1e-10)


def test_a_combination_of_others_is_found_and_a_linear_network_stays(x64):
    w = RNG.normal(size=(4, 4))
    w[:, 3] = 2 * w[:, 0] - 0.5 * w[:, 2]
    following, damaged, x = RNG.normal(size=(4, 3)), np.array([False, False, False, True]), RNG.normal(size=(6, 4))
    got = fn(w, None, following, damaged, ridge=1e-12)
    np.testing.assert_allclose(got.coefficients[3], [2, 0, -0.5, 0], atol=1e-9)
    np.testing.assert_allclose(x @ np.where(damaged, 0, w) @ got.kernel_next, x @ w @ following, atol=1e-9)
    # A rounded channel that is a multiple of the true one is only rescaled.
    quantized = fn(w, None, following, damaged, ridge=1e-12, mode="quantize", quantized=np.where(damaged, 0.5 * w, w))
    rounded = x @ np.where(damaged, 0.5 * w, w)
    np.testing.assert_allclose(rounded @ quantized.kernel_next, x @ w @ following, atol=1e-9)


def test_limits(x64):
    w, following = RNG.normal(size=(4, 3)), RNG.normal(size=(3, 2))
    damaged = np.array([False, True, False])
    np.testing.assert_array_equal(fn(w, None, following, np.zeros(3, bool)).kernel_next, following)
    plain = fn(w, None, following, damaged, ridge=1e12)
    np.testing.assert_allclose(plain.kernel_next, np.where(damaged[:, None], 0, following), atol=1e-9)
    quantized = fn(w, None, following, damaged, ridge=1e12, mode="quantize", quantized=np.round(w))
    np.testing.assert_allclose(quantized.kernel_next, following, atol=1e-9)
    same = fn(w, None, following, damaged, mode="quantize", quantized=w)
    np.testing.assert_allclose(same.kernel_next, following, atol=1e-12)
    twin = np.stack([w[:, 0], w[:, 0], w[:, 2]], 1)
    np.testing.assert_allclose(fn(twin, None, following, damaged, ridge=1e-10).coefficients[1], [1, 0, 0], atol=1e-8)
    # More channels than entries of a filter: the ridge decides, and all stays finite.
    wide = fn(RNG.normal(size=(2, 9)), None, np.ones((9, 1)), np.arange(9) > 6)
    assert np.isfinite(wide.kernel_next).all() and not wide.kernel_next[7:].any()
    assert not fn(w, None, following, np.ones(3, bool)).kernel_next.any()


@pytest.mark.slow
def test_reconstruction_keeps_more_of_pruned_networks_of_digits():
    """The hidden units of the smallest filters pruned, without data: six dense networks."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images, labels = (images / 16).astype(np.float32), labels.astype(np.int32)

    def init(key):
        one, two = jax.random.split(key)
        w1, w2 = jax.random.normal(one, (64, 24)) / 8, jax.random.normal(two, (24, 10)) / np.sqrt(24)
        return {"w1": w1, "b1": jnp.zeros(24), "w2": w2, "b2": jnp.zeros(10)}

    apply = lambda p, x: jax.nn.relu(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"]
    loss = lambda p: -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(apply(p, images[:1200])), labels[:1200, None], 1))
    accuracy = lambda p: jnp.mean(jnp.argmax(apply(p, images[1200:]), -1) == labels[1200:])

    @jax.jit
    @jax.vmap
    def run(key):
        step = lambda p, _: (jax.tree.map(lambda w, g: w - 0.3 * g, p, jax.grad(loss)(p)), None)
        p = jax.lax.scan(step, init(key), None, length=300)[0]
        norms = jnp.linalg.norm(p["w1"], axis=0)
        out = [accuracy(p)]
        for share in (0.3, 0.5):
            damaged = norms < jnp.quantile(norms, share)
            new = rj.weights.reconstruct_channels(p["w1"], None, p["w2"], damaged, bias=p["b1"])
            out += [accuracy({**p, "w2": jnp.where(damaged[:, None], 0, p["w2"])}), accuracy({**p, "w2": new.kernel_next})]
        every = norms > 0
        rounded = rj.weights.round_to_nearest(p["w1"], bits=2)
        new = rj.weights.reconstruct_channels(
            p["w1"], None, p["w2"], every, bias=p["b1"], mode="quantize", quantized=rounded, ridge=1.0
        )
        return out + [accuracy({**p, "w1": rounded}), accuracy({**p, "w1": rounded, "w2": new.kernel_next})]

    means = [float(jnp.mean(x)) for x in run(jax.random.split(jax.random.key(0), 6))]
    full, without, repaired, without_half, repaired_half, plain, corrected = means
    assert full > repaired > without, (full, without, repaired)
    assert full > repaired_half > without_half + 0.04, (full, without_half, repaired_half)
    assert full > corrected > plain, (full, plain, corrected)
