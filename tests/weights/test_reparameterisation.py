"""Weight Compander, the sparse reparameterisation, weight normalisation and the price of hard concrete gates."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import regjax as rj
from regjax.weights import (
    compand,
    companded,
    compander_init,
    join_norm,
    l0_penalty,
    nonzero_probability,
    sparse_reparam,
    sparse_reparam_init,
    split_norm,
    weight_compander,
    weight_norm,
)


def test_compander_at_the_known_values():
    v = jnp.array([-2.0, -0.5, 0.0, 0.1, 1.0])
    np.testing.assert_allclose(
        weight_compander(v, 1.0, 0.5), [-1.3258177, -0.7853982, 0, 0.1973956, 1.1071487], rtol=1e-6, atol=1e-7
    )
    slope = jax.vmap(jax.grad(lambda v: weight_compander(v, 1.0, 0.5)))(v)
    np.testing.assert_allclose(slope, [0.1176471, 1, 2, 1.9230769, 0.4], rtol=1e-6)
    np.testing.assert_allclose(0.5 * jnp.tan(0.3), 0.1546681, rtol=1e-6)
    np.testing.assert_allclose(weight_compander(v, 1.0, 0.5, function="tanh"), np.tanh(np.asarray(v) / 0.5), rtol=1e-6)
    # Very wide, it is the identity; a bound and a scale for each output broadcast.
    np.testing.assert_allclose(weight_compander(v, 1e6, 1e6), v, rtol=1e-5)
    per_output = weight_compander(jnp.ones((2, 3)), jnp.array([1.0, 2.0, 3.0]), jnp.ones(3))
    np.testing.assert_allclose(per_output, np.pi / 4 * np.array([[1, 2, 3]] * 2), rtol=1e-6)


@pytest.mark.parametrize("function", ["arctan", "tanh"])
def test_compander_starts_at_the_kernel_and_trains_its_bound(function):
    kernel = np.random.default_rng(0).standard_t(3, size=(30, 20)).astype(np.float32)
    v, a, b = compander_init(jnp.asarray(kernel), slope=2.0, function=function)
    np.testing.assert_allclose(weight_compander(v, a, b, function=function), kernel, rtol=1e-5, atol=1e-6)
    bound = max(4 * np.sqrt(np.mean(kernel**2)), 1.05 * np.abs(kernel).max())
    np.testing.assert_allclose(a, bound * (2 / np.pi if function == "arctan" else 1), rtol=1e-6)
    np.testing.assert_allclose(a / b, 2.0, rtol=1e-6)

    params = {"kernel": jnp.asarray(kernel), "bias": jnp.ones(20), "steps": jnp.arange(2)}
    free = compand(params, function=function)
    back = jax.jit(lambda free: companded(free, function=function))(free)
    np.testing.assert_allclose(back["kernel"], kernel, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(back["bias"], params["bias"])
    grads = jax.grad(lambda free: jnp.sum(companded(free, function=function)["kernel"] ** 2), allow_int=True)(free)
    assert grads.a_raw[1] != 0 and grads.b_raw[1] != 0
    # Zeros: a bound of 1, and no NaN.
    v, a, b = compander_init(jnp.zeros((2, 2)), function=function)
    np.testing.assert_array_equal(weight_compander(v, a, b, function=function), np.zeros((2, 2)))


def _train(params, loss, steps, rate):
    tx = optax.adam(rate)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return (optax.apply_updates(params, updates), state), None

    return jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), None, steps)[0][0])(params)


@pytest.mark.slow
def test_companded_kernels_have_fewer_small_and_no_extreme_weights():
    x, y = load_digits(return_X_y=True)
    x, y = jnp.asarray(x / 16, jnp.float32), jnp.asarray(y)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(len(x))
        train, test = order[:200], order[200:]
        init = jax.nn.initializers.he_normal()
        keys = jax.random.split(jax.random.key(seed), 2)
        params = [{"kernel": init(k, s), "bias": jnp.zeros(s[1])} for k, s in zip(keys, ((64, 64), (64, 10)), strict=True)]

        def logits(params, x):
            return jax.nn.relu(x @ params[0]["kernel"] + params[0]["bias"]) @ params[1]["kernel"] + params[1]["bias"]

        def loss(params, train=train):
            return optax.softmax_cross_entropy_with_integer_labels(logits(params, x[train]), y[train]).mean()

        plain = _train(params, loss, 300, 3e-3)
        mapped = companded(_train(compand(params), lambda free: loss(companded(free)), 300, 3e-3))

        def shape(params):
            w = np.concatenate([np.ravel(p["kernel"]) for p in params])
            rms = np.sqrt(np.mean(w**2))
            return np.abs(w).max() / rms, np.mean(np.abs(w) < 0.1 * rms)

        (plain_top, plain_small), (top, small) = shape(plain), shape(mapped)
        assert top < plain_top and small < plain_small + 0.002
        accuracy = [np.mean(np.argmax(logits(p, x[test]), -1) == y[test]) for p in (plain, mapped)]
        assert accuracy[1] > accuracy[0] - 0.01


def test_sparse_reparameterisation():
    params = sparse_reparam_init((4,), alpha=0.01)
    np.testing.assert_array_equal(sparse_reparam(*params, lam=0.3), np.zeros(4))
    g = np.array([1.0, -2.0, 3.0, 0.5])
    grads = jax.grad(lambda p: jnp.sum(g * sparse_reparam(*p, lam=0.3)))(params)
    np.testing.assert_allclose(grads.w, 2 * 0.01 * g, rtol=1e-6)
    np.testing.assert_allclose(grads.u, -2 * 0.01 * g, rtol=1e-6)
    np.testing.assert_allclose(grads.v, 0.3 * g, rtol=1e-6)
    # Without the linear part w u is constant to first order in the step.
    rate = 1e-3
    w, u = params.w - rate * grads.w, params.u - rate * grads.u
    np.testing.assert_allclose(w * u, params.w * params.u, rtol=2e-4)


@pytest.mark.slow
def test_the_linear_part_absorbs_the_noise_of_an_interpolator():
    n, d = 60, 300
    for seed in range(3):
        rng = np.random.default_rng(seed)
        x = jnp.asarray(rng.normal(size=(n, d)), jnp.float32)
        truth = jnp.zeros(d).at[:3].set(1.0)
        y = x @ truth + 0.5 * jnp.asarray(rng.normal(size=n), jnp.float32)

        def errors(lam, alpha, x=x, y=y, truth=truth):
            loss = lambda p: 0.5 * jnp.mean((x @ sparse_reparam(*p, lam=lam) - y) ** 2)
            step = lambda p, _: (jax.tree.map(lambda a, g: a - 0.02 * g, p, jax.grad(loss)(p)), None)
            p = jax.lax.scan(step, sparse_reparam_init((d,), alpha=alpha), None, 12_000)[0]
            return jnp.sum((sparse_reparam(*p, lam=lam) - truth) ** 2), loss(p)

        squares, mixed = jax.jit(errors, static_argnums=(0, 1))(0.0, 1e-3), jax.jit(errors, static_argnums=(0, 1))(0.08, 1e-5)
        least = jnp.sum((jnp.linalg.pinv(x) @ y - truth) ** 2)
        assert mixed[0] < least / 2 and squares[0] < least / 2
        assert mixed[1] < 1e-3 and squares[1] < 1e-3


def test_weight_normalisation_separates_direction_and_length():
    rng = np.random.default_rng(0)
    params = {"conv": {"kernel": jnp.asarray(rng.normal(size=(3, 3, 2, 4)), jnp.float32)}, "bias": jnp.ones(4)}
    split = split_norm(params)
    np.testing.assert_allclose(split.g[1], np.sqrt(np.sum(params["conv"]["kernel"] ** 2, (0, 1, 2))), rtol=1e-6)
    np.testing.assert_allclose(join_norm(split)["conv"]["kernel"], params["conv"]["kernel"], rtol=1e-5, atol=1e-6)
    v, g = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32), jnp.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(weight_norm(7 * v, g), weight_norm(v, g), rtol=1e-5)
    target = jnp.asarray(rng.normal(size=(5, 3)), jnp.float32)
    grad = jax.grad(lambda v: jnp.sum(target * weight_norm(v, g)))(v)
    np.testing.assert_allclose(jnp.sum(grad * v, 0), np.zeros(3), atol=1e-5)
    loop = np.stack([float(g[j]) * np.asarray(v[:, j]) / np.linalg.norm(v[:, j]) for j in range(3)], 1)
    np.testing.assert_allclose(weight_norm(v, g), loop, rtol=1e-5)


def test_the_price_of_open_gates():
    log_alpha = jnp.array([0.0, 2.0, -3.0])
    p = nonzero_probability(log_alpha)
    np.testing.assert_allclose(p, [0.8318222, 0.9733667, 0.1975936], rtol=1e-6)
    kernel = np.random.default_rng(0).normal(size=(2, 3, 5))
    expected = {"in": 0.0, "out": 0.0}
    for g in range(3):
        expected["in"] += float(p[g]) * (0.1 * 10 + 0.5 * 0.3 * np.sum(kernel[:, g] ** 2))
    many = np.append(np.asarray(p), [0.8318222, 0.9733667])
    for g in range(5):
        expected["out"] += many[g] * (0.1 * 6 + 0.5 * 0.3 * np.sum(kernel[..., g] ** 2))
    np.testing.assert_allclose(l0_penalty(log_alpha, jnp.asarray(kernel), l0=0.1, l2=0.3), expected["in"], rtol=1e-5)
    wide = jnp.concatenate([log_alpha, log_alpha[:2]])
    out = jax.jit(lambda s: l0_penalty(wide, jnp.asarray(kernel), l0=s, l2=0.3, groups="out"))(0.1)
    np.testing.assert_allclose(out, expected["out"], rtol=1e-5)
    # The probability is that of the gates drawn.
    draws = rj.layers.hard_concrete(jax.random.key(0), log_alpha, shape=(20_000, 3))
    np.testing.assert_allclose(jnp.mean(draws != 0, 0), p, atol=0.012)
