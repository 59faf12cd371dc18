"""The data-emphasised bound against a loop-written float64 reference and its published values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import regjax as rj

RNG = np.random.default_rng(0)
TREE = {"kernel": RNG.normal(size=(3, 2)), "bias": RNG.normal(size=2)}
PRIOR = {"kernel": RNG.normal(size=(3, 2)), "bias": RNG.normal(size=2)}
SIGMAS = {"kernel": RNG.uniform(0.1, 2, size=(3, 2)), "bias": RNG.uniform(0.1, 2, size=2)}
kl = rj.objectives.gaussian_kl_profiled


def flat(tree):
    return np.concatenate([tree["bias"], tree["kernel"].ravel()])


def full_divergence(m, mu, sigmas, tau):
    """Between independent normal distributions, parameter by parameter."""
    total = 0.0
    for a, b, s in zip(m, mu, sigmas, strict=True):
        total += 0.5 * (s**2 / tau + (a - b) ** 2 / tau - 1 + np.log(tau) - np.log(s**2))
    return total


def test_published_values(x64):
    ones = jnp.ones(2)
    assert float(kl(ones, 1.0)) == pytest.approx(0.693147181, abs=5e-10)
    assert float(kl(ones, 0.5)) == pytest.approx(1.609437912, abs=5e-10)
    assert float(rj.objectives.implied_l2_strength(ones, 1.0, num_examples=10, kappa=0.5)) == pytest.approx(0.1)
    raw = rj.objectives.stretched_logit(1e-4, low=0.0, high=float("inf"))
    assert float(jax.nn.softplus(raw)) == pytest.approx(1e-4, rel=1e-12)


def test_the_divergence_is_the_smallest_over_the_priors_variance(x64):
    m, mu = flat(TREE), flat(PRIOR)
    run = jax.jit(lambda params, sigma: kl(params, sigma, prior_mean=PRIOR))
    for given, sigmas in ((0.3, np.full(8, 0.3)), (SIGMAS, flat(SIGMAS))):
        tau = (np.sum((m - mu) ** 2) + np.sum(sigmas**2)) / 8
        got = float(run(TREE, given))
        assert got == pytest.approx(full_divergence(m, mu, sigmas, tau), rel=1e-12)
        assert all(got < full_divergence(m, mu, sigmas, factor * tau) for factor in (0.9, 1.1))


def test_gradients_by_mean_and_sigma(x64):
    """dKL/dm = (m - mu) / tau and dKL/dsigma_j = sigma_j / tau - 1 / sigma_j, tau at its optimum."""
    m, mu = flat(TREE), flat(PRIOR)

    @jax.jit
    def run(params, sigma, all_sigma):
        value = lambda p, s: kl(p, s, prior_mean=PRIOR)
        return jax.grad(value, argnums=(0, 1))(params, sigma), jax.grad(value, argnums=1)(params, all_sigma)

    (by_mean, by_sigma), by_one = run(TREE, SIGMAS, 0.3)
    tau = (np.sum((m - mu) ** 2) + np.sum(flat(SIGMAS) ** 2)) / 8
    np.testing.assert_allclose(flat(by_mean), (m - mu) / tau, rtol=1e-12)
    np.testing.assert_allclose(flat(by_sigma), flat(SIGMAS) / tau - 1 / flat(SIGMAS), rtol=1e-11)
    tau = (np.sum((m - mu) ** 2) + 8 * 0.09) / 8
    assert float(by_one) == pytest.approx(8 * (0.3 / tau - 1 / 0.3), rel=1e-12)
    strength = rj.objectives.implied_l2_strength(TREE, 0.3, prior_mean=PRIOR, num_examples=50, kappa=8 / 50)
    assert float(strength) == pytest.approx(1 / (8 * tau), rel=1e-12), "the gradient of KL / (kappa N) is that strength's"


def test_laws(x64):
    m, mu = flat(TREE), flat(PRIOR)
    turn = np.linalg.qr(RNG.normal(size=(8, 8)))[0]
    values = jax.jit(lambda a, b, s: kl(a, s, prior_mean=b))
    assert float(values(turn @ (m - mu), np.zeros(8), 0.3)) == pytest.approx(float(values(m, mu, 0.3)), rel=1e-12)
    assert all(float(values(m, m, sigma)) == 0 for sigma in (1e-8, 0.3, 100.0))
    assert float(values(m, mu, np.full(8, 0.3))) == pytest.approx(float(values(m, mu, 0.3)), rel=1e-12)
    elbo = rj.objectives.data_emphasized_elbo
    assert float(elbo(1.5, 40.0, num_examples=20, kappa=1.0)) == pytest.approx(3.5)
    assert float(elbo(1.5, 40.0, num_examples=20, kappa=8 / 20)) == pytest.approx(1.5 + 40 / 8)
    assert float(elbo(1.5, 40.0, num_examples=20, kappa=1e12)) == pytest.approx(1.5, rel=1e-10)


def test_small_sigmas_lose_nothing_in_float32():
    m = jnp.full(1000, 1e-3, jnp.float32)
    got = float(kl(m, jnp.float32(1e-4)))
    assert got == pytest.approx(500 * np.log(101), rel=1e-6)
    low = kl(m.astype(jnp.bfloat16), jnp.float32(1e-4))
    assert low.dtype == jnp.float32 and float(low) == pytest.approx(got, rel=1e-3)


def test_draws_have_the_mean_and_the_standard_deviation(x64):
    params = {"kernel": jnp.full((50, 40), 2.0), "bias": jnp.full(3, -1.0), "count": jnp.arange(3)}
    raw = jnp.asarray(-0.5)
    draw = jax.jit(lambda key: rj.objectives.sample_posterior(key, params, raw))(jax.random.key(0))
    sigma = np.log1p(np.exp(-0.5))
    noise = (np.asarray(draw["kernel"]) - 2) / sigma
    assert abs(noise.mean()) < 5 / 2000**0.5 and abs(noise.std() - 1) < 5 / 4000**0.5
    np.testing.assert_array_equal(draw["count"], np.arange(3))
    assert len(np.unique(np.concatenate([noise.ravel(), (np.asarray(draw["bias"]) + 1) / sigma]))) == 2003
    each = {"kernel": jnp.full((50, 40), -20.0), "bias": jnp.zeros(3), "count": jnp.arange(3)}
    noise = {"kernel": jnp.ones((50, 40)), "bias": jnp.ones(3), "count": jnp.arange(3)}
    core = rj.objectives.apply_sample_posterior(params, each, noise)
    np.testing.assert_allclose(core["bias"], -1 + np.log(2), rtol=1e-12)
    np.testing.assert_allclose(core["kernel"], 2 + np.exp(-20.0), rtol=1e-12)


@pytest.mark.slow
def test_the_learned_decay_is_as_good_as_the_best_of_a_grid():
    """Digits with 60 features of noise, 100 training images, a linear classifier; started at sigma 0.01, two splits.

    The strength that the data-emphasised bound finds in one run, against 20 runs of L2; the plain bound's underfits.
    """
    digits = load_digits()
    count, dim, steps = 100, 124 * 10, 600
    tx = optax.adam(0.02)

    def split(seed):
        rng = np.random.default_rng(seed)
        x = np.concatenate([digits.data / 16 - 0.3, 0.5 * rng.normal(size=(len(digits.data), 60))], 1)
        order = rng.permutation(len(x))
        return [(x[rows].astype(np.float32), digits.target[rows]) for rows in (order[:count], order[count:])]

    train, test = jax.tree.map(lambda *parts: np.stack(parts), split(0), split(1))

    def nll(w, x, y):
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(x @ w, y))

    def minimise(loss, params):
        def step(carry, key):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, key), state, params)
            return (optax.apply_updates(params, updates), state), None

        keys = jax.random.split(jax.random.key(0), steps)
        return jax.lax.scan(step, (params, tx.init(params)), keys)[0][0]

    @jax.jit
    @jax.vmap
    def run(train, test):
        start = 0.1 * jax.random.normal(jax.random.key(1), (124, 10))

        def bound(kappa):
            def loss(params, key):
                w = rj.objectives.sample_posterior(key, params["mean"], params["raw"])
                divergence = kl(params["mean"], jax.nn.softplus(params["raw"]))
                return rj.objectives.data_emphasized_elbo(nll(w, *train), divergence, num_examples=count, kappa=kappa)

            raw = rj.objectives.stretched_logit(0.01, low=0.0, high=float("inf"))
            found = minimise(loss, {"mean": start, "raw": raw})
            sigma = jax.nn.softplus(found["raw"])
            return rj.objectives.implied_l2_strength(found["mean"], sigma, num_examples=count, kappa=kappa)

        def penalised(strength):
            return nll(minimise(lambda w, key: nll(w, *train) + strength / 2 * jnp.sum(w**2), start), *test)

        learned = jax.vmap(bound)(jnp.array([dim / count, 1.0]))
        return learned, jax.vmap(penalised)(jnp.concatenate([learned, jnp.logspace(-6, 0, 20)]))

    _, losses = jax.tree.map(np.asarray, run(train, test))
    best = losses[:, 2:].min(1)
    assert np.all(losses[:, 0] < 1.05 * best), "the emphasised bound"
    assert np.all(losses[:, 1] > 1.05 * best), "the plain bound does not underfit"
