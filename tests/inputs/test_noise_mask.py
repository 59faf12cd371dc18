"""Noise masks and their policy's loss against SciPy and loops, the sampler's moments, and what the policy learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.special
import scipy.stats

import regjax as rj

# The tests compile much and run little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)


def enlarge_and_blur(mask, size, kernel_size, sigma):
    grid, half = mask.shape[0], kernel_size // 2
    taps = np.array([np.exp(-0.5 * ((i - half) / sigma) ** 2) for i in range(kernel_size)])
    taps /= taps.sum()
    large = np.array([[mask[y * grid // size[0], x * grid // size[1]] for x in range(size[1])] for y in range(size[0])])
    padded = np.pad(large, half, mode="reflect") if half else large
    out = np.zeros(size)
    for y in range(size[0]):
        for x in range(size[1]):
            for i in range(kernel_size):
                for j in range(kernel_size):
                    out[y, x] += taps[i] * taps[j] * padded[y + i, x + j]
    return out


def test_noise_mask_image_is_the_loop(x64):
    masks = RNG.random((2, 9))
    for size, kernel, sigma in (((6, 9), 5, 1.5), ((7, 10), 13, 6.0), ((3, 3), 1, 6.0), ((2, 8), 3, 0.7)):
        got = rj.inputs.noise_mask_image(masks, image_size=size, kernel_size=kernel, sigma=sigma)
        for i in range(2):
            np.testing.assert_allclose(got[i, ..., 0], enlarge_and_blur(masks[i].reshape(3, 3), size, kernel, sigma), atol=1e-14)
    ones = rj.inputs.noise_mask_image(jnp.ones((1, 16)), image_size=30)
    np.testing.assert_allclose(ones, 1, rtol=1e-14)


def test_published_policy_losses(x64):
    loss = functools.partial(rj.inputs.noise_mask_policy_loss, task_loss=jnp.ones(1))
    zeros = jnp.zeros((1, 25))
    assert float(loss(zeros, zeros, jnp.full((1, 25), 0.3))) == pytest.approx(1)
    assert float(loss(zeros, zeros, jnp.full((1, 25), 0.3), score="log_sum")) == pytest.approx(np.log(25))
    beta = jnp.log(jnp.array([[2.0, 2.0]])), jnp.log(jnp.array([[3.0, 3.0]])), jnp.array([[0.2, 0.5]])
    assert float(loss(*beta, score="log_sum")) == pytest.approx(1.11054086, abs=1e-8)
    assert float(loss(*beta)) == pytest.approx(0.83464676 + 1, abs=3e-8)


def test_policy_loss_is_scipy_and_routes_gradients(x64):
    log_alpha, log_beta, mask, cost = RNG.normal(size=(3, 4)), RNG.normal(size=(3, 4)), RNG.random((3, 4)), RNG.random(3)
    density = scipy.stats.beta.logpdf(mask, np.exp(log_alpha), np.exp(log_beta))
    want = {
        "sum_log": (density.sum(1) * cost + cost).mean(),
        "log_sum": (np.log(np.exp(density).sum(1)) * cost.mean()).mean(),
    }
    to_cost = {"sum_log": np.full(3, 1 / 3), "log_sum": np.full(3, np.log(np.exp(density).sum(1)).mean() / 3)}
    for score, value in want.items():
        fn = functools.partial(rj.inputs.noise_mask_policy_loss, score=score)
        got, gradient = jit(jax.value_and_grad(fn, argnums=(0, 2, 3)))(log_alpha, log_beta, mask, cost)
        np.testing.assert_allclose(got, value, rtol=1e-12)
        assert not np.any(gradient[1])
        np.testing.assert_allclose(gradient[2], to_cost[score], rtol=1e-12)
        for b, j in ((0, 1), (2, 3)):
            # The derivative of log density by alpha, times alpha for its logarithm.
            alpha, beta = np.exp(log_alpha[b, j]), np.exp(log_beta[b, j])
            slope = alpha * (np.log(mask[b, j]) - scipy.special.digamma(alpha) + scipy.special.digamma(alpha + beta))
            weight = cost[b] if score == "sum_log" else cost.mean() * np.exp(density[b, j]) / np.exp(density[b]).sum()
            np.testing.assert_allclose(gradient[0][b, j], slope * weight / 3, rtol=1e-9)


def test_policy_loss_at_the_edges():
    edges = jnp.array([[0.0, 1.0, 0.5, 1.0]])
    for size in (100.0, -100.0):
        fn = lambda a, b: rj.inputs.noise_mask_policy_loss(a, b, edges, jnp.full(1, 1e4))
        value, gradient = jit(jax.value_and_grad(fn, argnums=(0, 1)))(jnp.full((1, 4), size), jnp.full((1, 4), -size))
        assert np.isfinite(value)
        assert np.all(np.isfinite(gradient))


def test_masks_are_beta_variables():
    """Moments, and the distribution itself by Kolmogorov and Smirnov, from very small to large parameters."""
    pairs = np.array([(-5, -5), (-3, 1), (0, 0), (np.log(2), np.log(3)), (1.5, -1), (5, 5), (4, 0), (-9, -5), (0.5, 0.5)])
    count = 5000
    log_alpha, log_beta = (np.broadcast_to(x, (count, 9)).astype(np.float32) for x in pairs.T)
    draw = jit(functools.partial(rj.inputs.sample_noise_mask, image_size=6, grid=3, kernel_size=3, sigma=1.0))
    image, mask = draw(jax.random.key(0), log_alpha, log_beta)
    assert (image.shape, mask.shape) == ((count, 6, 6, 1), (count, 9))
    np.testing.assert_allclose(image, rj.inputs.noise_mask_image(mask, image_size=6, kernel_size=3, sigma=1.0), atol=1e-6)
    alpha, beta = np.exp(np.clip(pairs, -5, 5)).T
    law = scipy.stats.beta(alpha, beta)
    mask = np.asarray(mask, np.float64)
    assert np.all(abs(mask.mean(0) - law.mean()) < 5 * law.std() / np.sqrt(count))
    second = np.square(mask - law.mean())
    assert np.all(abs(second.mean(0) - law.var()) < 5 * second.std(0) / np.sqrt(count) + 1e-9)
    for j in (1, 2, 3, 4, 5, 6, 8):
        assert scipy.stats.kstest(mask[:, j], scipy.stats.beta(alpha[j], beta[j]).cdf).pvalue > 1e-4
    # Cells are independent: of 36 correlations none is large.
    correlation = np.corrcoef(mask[:, [1, 2, 3, 4, 5, 6, 8]].T)
    assert np.all(abs(correlation - np.eye(7)) < 5 / np.sqrt(count))


def test_no_gradient_through_the_draw():
    draw = lambda a: sum(
        x.sum() for x in rj.inputs.sample_noise_mask(jax.random.key(0), a, a, image_size=4, grid=2, kernel_size=3)
    )
    assert not np.any(jit(jax.grad(draw))(jnp.ones((2, 4))))


def test_smooth_policy():
    raw, base = RNG.normal(size=(5, 4)).astype(np.float32), RNG.random((1, 4)).astype(np.float32)
    smooth = jit(rj.inputs.smooth_policy)
    log_param, new = smooth(raw, base)
    np.testing.assert_allclose(log_param, 0.9 * base + 0.1 * raw, rtol=1e-5)
    np.testing.assert_allclose(new, 0.99 * base + 0.01 * raw.mean(0), rtol=1e-5)
    np.testing.assert_array_equal(smooth(raw, base, decay=0.0)[0], raw)
    np.testing.assert_array_equal(smooth(raw, base, base_decay=1.0)[1], base)
    to_raw, to_base = jax.grad(lambda r, b: sum(x.sum() for x in rj.inputs.smooth_policy(r, b)), argnums=(0, 1))(raw, base)
    np.testing.assert_allclose(to_raw, 0.1, rtol=1e-5)
    assert not np.any(to_base)


@pytest.mark.slow
def test_the_policy_learns_which_cells_matter():
    """The claim at small scale: cells of digits whose hiding raises the loss get larger masks."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    x, y = jnp.asarray(data.data / 16, jnp.float32), jnp.asarray(data.target)
    cost = lambda w, x, y: optax.softmax_cross_entropy_with_integer_labels(x @ w, y)

    def fit(w, _):
        return w - 2.0 * jax.grad(lambda w: cost(w, x, y).mean())(w), None

    w = jax.lax.scan(fit, jnp.zeros((64, 10)), length=150)[0]
    harm = jax.lax.map(lambda cell: cost(w, x.at[:, cell].set(0), y).mean(), jnp.arange(64))
    optimiser = optax.adam(0.05)

    def step(carry, key):
        policy, state = carry
        batch_key, mask_key = jax.random.split(key)
        rows = jax.random.randint(batch_key, (128,), 0, len(y))

        def loss(policy):
            alpha, beta = (jnp.broadcast_to(p, (128, 64)) for p in policy)
            image, mask = rj.inputs.sample_noise_mask(mask_key, alpha, beta, image_size=8, grid=8, kernel_size=1)
            return rj.inputs.noise_mask_policy_loss(alpha, beta, mask, cost(w, x[rows] * image.reshape(128, 64), y[rows]))

        updates, state = optimiser.update(jax.grad(loss)(policy), state)
        return (optax.apply_updates(policy, updates), state), None

    policy = (jnp.zeros((1, 64)), jnp.zeros((1, 64)))
    (log_alpha, log_beta), _ = jax.lax.scan(step, (policy, optimiser.init(policy)), jax.random.split(jax.random.key(0), 150))[0]
    expected = jax.nn.sigmoid(log_alpha - log_beta)[0]
    order = np.argsort(np.asarray(harm))
    gain = float(expected[order[-16:]].mean() - expected[order[:32]].mean())
    assert gain > 0.15
    assert scipy.stats.spearmanr(harm, expected).statistic > 0.4
