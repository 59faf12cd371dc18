"""Learning rates for a batch size: the published values, simulated random matrices, and the rules of two momenta."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj

s = rj.schedules


def test_scaling_of_numbers_and_schedules(x64):
    scale = lambda base, rule: s.scale_learning_rate(base, base_batch=64, batch=256, rule=rule)
    assert float(scale(0.1, "linear")) == pytest.approx(0.4) and float(scale(0.1, "sqrt")) == pytest.approx(0.2)
    warm = scale(optax.linear_schedule(0.0, 1.0, 10), "sqrt")
    np.testing.assert_allclose([warm(t) for t in (0, 5, 10)], [0, 1, 2])
    grown = jax.jit(lambda b: s.scale_learning_rate(0.1, base_batch=64, batch=b))
    np.testing.assert_allclose([grown(32), grown(128)], [0.05, 0.2])


def test_published_values(x64):
    top = lambda value, **options: float(
        s.batch_max_eigenvalue(value, batch_size=128, num_examples=50_000, noise_scale=2.56, **options)
    )
    assert top(10.0) == pytest.approx(10.001994880, abs=1e-9)
    assert top(1.0) == pytest.approx(1.019948800, abs=1e-9)
    edge = 0.141240
    assert top(edge - 1e-4) == top(-3.0) == pytest.approx(0.282480, abs=1e-6)
    assert top(edge + 1e-4) == pytest.approx(0.282480, abs=1e-6)
    # All examples are no noise; and the rate is 2 over the eigenvalue.
    whole = dict(batch_size=50, num_examples=50, noise_scale=2.56)
    assert s.batch_max_eigenvalue(0.3, **whole) == 0.3 and s.max_learning_rate(0.5, **whole) == 4
    assert s.max_learning_rate(-0.5, **whole) == jnp.inf
    assert float(s.max_learning_rate(1.0, batch_size=128, noise_scale=2.56)) == pytest.approx(2 / 1.02)


def test_simulated_spectra():
    """Matrices with one large eigenvalue, plus symmetric noise, plus noise of positive semi-definite batches."""
    rng, size, batch = np.random.default_rng(0), 500, 100
    draw = rng.normal(size=(size, size))
    wigner = (draw + draw.T) / np.sqrt(2 * size)  # P sigma^2 / B = 1
    half = rng.normal(size=(size, batch))
    gauss = half @ half.T / batch  # sigma^2 = 1, gamma = 5
    direction = rng.normal(size=size)
    direction /= np.linalg.norm(direction)
    top = lambda noise, value: np.linalg.eigvalsh(value * np.outer(direction, direction) + noise)[-1]
    for value in (3.0, 0.5):
        want = s.batch_max_eigenvalue(value, batch_size=batch, noise_scale=float(batch))
        np.testing.assert_allclose(top(wigner, value), want, rtol=0.04)
    for value in (20.0, 2.0):
        want = s.batch_max_eigenvalue(value, batch_size=batch, noise_scale=float(size), matrix="ggn", num_parameters=size)
        np.testing.assert_allclose(top(gauss, value), want, rtol=0.04)


def test_rates_grow_with_the_batch_while_the_noise_dominates(x64):
    """With the root of the batch for symmetric noise, in proportion for semi-definite noise; then the curvature holds them."""
    rate = lambda b, **kind: float(s.max_learning_rate(1e-3, batch_size=b, noise_scale=1e4, **kind))
    assert rate(64) / rate(16) == pytest.approx(2)
    ggn = dict(matrix="ggn", num_parameters=1e8)
    assert rate(64, **ggn) / rate(16, **ggn) == pytest.approx(4, rel=1e-2)
    limit = [float(s.max_learning_rate(5.0, batch_size=b, noise_scale=1.0)) for b in (1e3, 1e4, 1e5)]
    np.testing.assert_allclose(limit, 0.4, rtol=1e-4)


def test_rates_of_a_spectrum(x64):
    ritz = jnp.array([-0.5, 0.0, 0.1, 3.0, 10.0, 10.0])
    weights = jnp.array([0.01, 0.9, 0.03, 0.03, 0.03, 0.0])
    run = jax.jit(s.lr_from_spectrum, static_argnames=("rule", "drop_bulk"))
    np.testing.assert_allclose(run(ritz, weights), (0.330578512, 0.669421488), atol=5e-10)
    np.testing.assert_allclose(run(ritz, weights, rule="nesterov"), (0.1, 0.818181818), atol=5e-10)
    np.testing.assert_allclose(run(ritz, weights, rule="polyak_printed"), (0.574959575, 0.669421488), atol=5e-10)
    heavy = jnp.array([0.01, 0.03, 0.9, 0.03, 0.03, 0.0])  # the bulk is positive: left out, or the smallest
    assert float(run(ritz, heavy, rule="nesterov").momentum) == pytest.approx((10**0.5 - 3**0.5) / (10**0.5 + 3**0.5))
    assert float(run(ritz, heavy, rule="nesterov", drop_bulk=False).momentum) == pytest.approx(0.818181818)
    # One value is kept though it has all the weight; without a positive one there is no rate; padding does not count.
    np.testing.assert_allclose(run(jnp.array([4.0, 4.0]), jnp.array([1.0, 0.0])), (0.25, 0))
    np.testing.assert_array_equal(run(-ritz[2:], weights[2:]), (0, 0))
    np.testing.assert_allclose(run(jnp.array([1.0, 100.0]), jnp.array([0.5, 0.0])), (1, 0))


def test_polyaks_rate_is_the_fastest_heavy_ball(x64):
    """On a quadratic the error falls by the root of the momentum in each step."""
    curvature = jnp.array([0.1, 1.0, 10.0])
    rate, momentum = s.lr_from_spectrum(curvature, jnp.ones(3) / 3)

    def step(carry, _):
        w, before = carry
        return (w - rate * curvature * w + momentum * (w - before), w), None

    (w, _), _ = jax.lax.scan(step, (jnp.ones(3), jnp.ones(3)), length=100)
    assert jnp.log(jnp.linalg.norm(w)) / 100 == pytest.approx(float(jnp.log(jnp.sqrt(momentum))), rel=0.3)
