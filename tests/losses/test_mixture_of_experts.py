"""The likelihood of Gaussian experts, and the lasso on their slopes."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from regjax.losses import moe_gaussian_nll


def _reference(gate, mean, log_sigma, y):
    total = 0.0
    p = np.exp(gate - gate.max())
    p /= p.sum()
    for k in range(len(gate)):
        sigma = np.exp(log_sigma[k])
        total += p[k] * np.exp(-0.5 * ((y - mean[k]) / sigma) ** 2) / (sigma * np.sqrt(2 * np.pi))
    return -np.log(total)


@pytest.mark.usefixtures("x64")
def test_the_sum_over_experts_in_any_axis_and_order():
    rng = np.random.default_rng(0)
    gate, mean = rng.normal(size=(2, 5, 3)), rng.normal(size=(2, 5, 3))
    sigma, y = 0.3 * rng.normal(size=3), rng.normal(size=(2, 5))
    expected = np.array([[_reference(gate[i, j], mean[i, j], sigma, y[i, j]) for j in range(5)] for i in range(2)])
    np.testing.assert_allclose(moe_gaussian_nll(gate, mean, sigma, y), expected, rtol=1e-10)
    first = moe_gaussian_nll(np.moveaxis(gate, -1, 0), np.moveaxis(mean, -1, 0), sigma, y, axis=0)
    np.testing.assert_allclose(first, expected, rtol=1e-10)
    order = np.array([2, 0, 1])
    np.testing.assert_allclose(moe_gaussian_nll(gate[..., order], mean[..., order], sigma[order], y), expected, rtol=1e-10)
    where = np.ones_like(gate, bool)
    where[..., 1] = False
    two = moe_gaussian_nll(gate[..., [0, 2]], mean[..., [0, 2]], sigma[[0, 2]], y)
    np.testing.assert_allclose(moe_gaussian_nll(gate, mean, sigma, y, where=where), two, rtol=1e-10)
    # One expert: a Gaussian of unknown variance.
    one = moe_gaussian_nll(gate[..., :1], mean[..., :1], sigma[:1], y)
    np.testing.assert_allclose(one, -jax.scipy.stats.norm.logpdf(y, mean[..., 0], np.exp(sigma[0])), rtol=1e-10)


@pytest.mark.slow
def test_the_lasso_finds_the_inputs_of_two_experts():
    n, p = 300, 100
    for seed in range(2):
        rng = np.random.default_rng(seed)
        x = jnp.asarray(rng.normal(size=(2 * n, p)), jnp.float32)
        pick = x[:, 0] > 0
        y = jnp.where(pick, 2 * x[:, 1], -2 * x[:, 2]) + 0.3 * jnp.asarray(rng.normal(size=2 * n), jnp.float32)
        params = {
            "gate": {"kernel": 0.01 * jnp.asarray(rng.normal(size=(p, 1)), jnp.float32), "bias": jnp.zeros(1)},
            "experts": {"kernel": 0.3 * jnp.asarray(rng.normal(size=(p, 2)), jnp.float32), "bias": jnp.zeros(2)},
            "log_sigma": jnp.zeros(2),
        }

        def nll(q, x, y):
            gate = jnp.pad(x @ q["gate"]["kernel"] + q["gate"]["bias"], ((0, 0), (0, 1)))
            means = x @ q["experts"]["kernel"] + q["experts"]["bias"]
            return moe_gaussian_nll(gate, means, jnp.maximum(q["log_sigma"], -3), y).mean()

        def fit(params, strength, x=x, y=y):
            # At strength 0 this overfits 2 p slopes to n examples.
            tx = optax.chain(optax.sgd(0.05), rj.gradients.proximal_step(rj.weights.prox_l1, 0.05 * strength))

            def step(carry, _):
                q, state = carry
                updates, state = tx.update(jax.grad(nll)(q, x[:n], y[:n]), state, q)
                return (optax.apply_updates(q, updates), state), None

            q = jax.lax.scan(step, (params, tx.init(params)), None, 1500)[0][0]
            return nll(q, x[n:], y[n:]), q["experts"]["kernel"]

        fits = jax.jit(jax.vmap(fit, in_axes=(None, 0)))(params, jnp.array([0.0, 0.5 * np.sqrt(np.log(p) / n)]))
        (free, lasso), kernels = fits[0], np.asarray(fits[1])
        assert lasso < free
        used = [np.mean(np.abs(k[1:3]).sum()) / np.abs(k).sum() for k in kernels]
        assert used[1] > 2 * used[0]
