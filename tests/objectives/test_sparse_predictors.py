"""Sparse predictors against scikit-learn, the conditions of optimality by loops, and finite differences."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.optimize import linear_sum_assignment
from sklearn.linear_model import Lasso

import regjax as rj

RNG = np.random.default_rng(0)
N, D, K = 20, 6, 3
Z = RNG.normal(size=(N, D)) @ (np.eye(D) + 0.3)
Y = Z @ np.array([1.0, -0.7, 0, 0, 0.4, 0]) + 0.3 * RNG.normal(size=N)
LABELS = np.argmax(Z[:, [0, 2, 4]] + 0.5 * RNG.normal(size=(N, K)), -1).astype(np.int32)
lasso = rj.objectives.lasso_predictor
ONE_HOT = np.eye(K)[LABELS]


def largest(z, y):
    return np.max(np.abs(z.T @ y)) / len(y)


def test_published_values_of_the_lasso(x64):
    z, y = np.sqrt(2) * np.eye(2), np.sqrt(2) * np.array([2.0, 0.5])
    run = jax.jit(jax.value_and_grad(lambda z, y, rho: jnp.sum(lasso(z, y, relative_strength=rho) ** 2), argnums=(0, 1)))
    assert run(z, y, 0.5)[0] == pytest.approx(1.0) and run(z, y, 0.1)[0] == pytest.approx(1.8**2 + 0.3**2)
    # The weights (2 - 1, 0): the gradient by y is theirs, sqrt(2) / 2 for the first alone.
    np.testing.assert_allclose(run(z, y, 0.5)[1][1], [np.sqrt(2), 0], rtol=1e-7)
    value, gradient = run(z, y, 1.2)
    assert value == 0 and not any(np.any(g) for g in gradient)
    y = np.sqrt(2) * np.array([2.0, 0.7])
    z = np.array([[1.0, 0.9], [0.0, 0.5]])
    assert run(z, y, 0.0)[0] == pytest.approx(np.sum(np.linalg.solve(z, y) ** 2), rel=1e-9)


def test_the_lasso_equals_scikit_learn(x64):
    run = jax.jit(jax.vmap(lambda rho: lasso(Z, Y, relative_strength=rho)))
    strengths = np.array([0.02, 0.1, 0.3, 0.7])
    zeros = []
    for rho, got in zip(strengths, run(strengths), strict=True):
        other = Lasso(alpha=rho * largest(Z, Y), fit_intercept=False, tol=1e-13, max_iter=100_000).fit(Z, Y)
        np.testing.assert_allclose(got, other.coef_, rtol=1e-8, atol=1e-12)
        zeros.append(int((got == 0).sum()))
    assert zeros == sorted(zeros) and zeros[-1] > zeros[0], "no feature is left out as the strength grows"


def weights(shape):
    return np.cos(1 + np.arange(np.prod(shape))).reshape(shape)


def assert_gradient(value, arguments, seed=0):
    """The gradient by all arguments against central differences in three directions."""
    run = jax.jit(jax.value_and_grad(value, argnums=tuple(range(len(arguments)))))
    gradient = run(*arguments)[1]
    rng = np.random.default_rng(seed)
    for _ in range(3):
        move = [rng.normal(size=a.shape) for a in arguments]
        ends = [float(run(*(a + sign * 1e-5 * m for a, m in zip(arguments, move, strict=True)))[0]) for sign in (1, -1)]
        want = (ends[0] - ends[1]) / 2e-5
        got = sum(float(np.vdot(g, m)) for g, m in zip(gradient, move, strict=True))
        assert got == pytest.approx(want, rel=1e-6, abs=1e-9)


def test_the_gradient_of_the_lasso(x64):
    """At a fixed penalty, as the largest one is a constant; and by the relative strength."""
    top = largest(Z, Y)

    def value(z, y, rho):
        relative = rho * top / jax.lax.stop_gradient(jnp.max(jnp.abs(z.T @ y)) / N)
        return jnp.sum(weights(D) * lasso(z, y, relative_strength=relative))

    assert_gradient(value, (Z, Y, np.array(0.3)))


def group_strength(z, rho):
    return rho * np.max(np.linalg.norm(z.T @ ONE_HOT, axis=1)) / (4 * N)


def test_group_lasso_meets_the_conditions_of_optimality(x64):
    run = jax.jit(lambda rho: rj.objectives.group_lasso_predictor(Z, LABELS, K, relative_strength=rho))
    rows = []
    for rho in (0.05, 0.6, 1.2):
        w, strength = np.asarray(run(rho)), group_strength(Z, rho)
        slope = np.zeros((D, K))
        for i in range(N):
            p = np.exp(Z[i] @ w)
            slope += np.outer(Z[i], p / p.sum() - ONE_HOT[i]) / N
        for j in range(D):
            length = np.linalg.norm(w[j])
            if length:
                np.testing.assert_allclose(slope[j], -strength * w[j] / length, atol=1e-9)
            else:
                assert np.linalg.norm(slope[j]) <= strength
        rows.append(int((np.linalg.norm(w, axis=1) > 0).sum()))
    assert rows[0] == D and 0 < rows[1] < D, rows
    zero = 4 * np.max(np.linalg.norm(Z.T @ (ONE_HOT - 1 / K), axis=1)) / np.max(np.linalg.norm(Z.T @ ONE_HOT, axis=1))
    assert not np.any(run(1.001 * zero)) and np.any(run(0.99 * zero))


def test_the_gradient_of_the_group_lasso(x64):
    scale = group_strength(Z, 0.6)

    def value(z, rho):
        now = jax.lax.stop_gradient(jnp.max(jnp.linalg.norm(z.T @ ONE_HOT, axis=1))) / (4 * N)
        w = rj.objectives.group_lasso_predictor(z, LABELS, K, relative_strength=rho * scale / now)
        return jnp.sum(weights((D, K)) * w)

    assert_gradient(value, (Z, np.array(1.0)))


def to_simplex(v):
    """The nearest point of the simplex by bisection of the level."""
    low, high = v.min() - 1, v.max()
    for _ in range(200):
        level = (low + high) / 2
        low, high = (level, high) if np.maximum(v - level, 0).sum() > 1 else (low, level)
    return np.maximum(v - low, 0)


SVM = {"ridge": 1.0, "dual_ridge": 0.8}


def svm_strength(z, rho):
    share = min(1 / SVM["dual_ridge"], K / (K - 1))
    return rho * np.max(np.linalg.norm(z.T @ (ONE_HOT - 1 / K), axis=1)) * share


def test_group_svm_meets_the_conditions_of_optimality(x64):
    """The weights give the dual, row by row, and the dual gives the weights."""
    run = jax.jit(lambda rho: rj.objectives.group_svm_predictor(Z, LABELS, K, relative_strength=rho, **SVM))
    rows, corners = [], []
    for rho in (0.0, 0.2, 0.7):
        w, strength = np.asarray(run(rho)), svm_strength(Z, rho)
        beta = np.stack([to_simplex(y + (z @ w - y) / SVM["dual_ridge"]) for z, y in zip(Z, ONE_HOT, strict=True)])
        corners.append(int((beta == 0).sum()))
        for j in range(D):
            v = sum(Z[i, j] * (ONE_HOT[i] - beta[i]) for i in range(N))
            length = np.linalg.norm(v)
            np.testing.assert_allclose(w[j], v * max(0, 1 - strength / length) / SVM["ridge"], atol=1e-9)
        rows.append(int((np.linalg.norm(w, axis=1) > 0).sum()))
    assert rows[0] == D > rows[2] > 0 and corners[0] > 0, (rows, corners)
    assert not np.any(run(1.0)) and np.any(run(0.99))


def test_the_gradient_of_the_group_svm(x64):
    scale = svm_strength(Z, 0.2)
    share = min(1 / SVM["dual_ridge"], K / (K - 1))

    def value(z, rho):
        now = jax.lax.stop_gradient(jnp.max(jnp.linalg.norm(z.T @ (ONE_HOT - 1 / K), axis=1))) * share
        w = rj.objectives.group_svm_predictor(z, LABELS, K, relative_strength=rho * scale / now, **SVM)
        return jnp.sum(weights((D, K)) * w)

    assert_gradient(value, (Z, np.array(1.0)))


def test_copies_of_a_feature_share_its_weight_with_finite_gradients():
    z, y = jnp.asarray(np.repeat(Z[:, :3], 2, axis=1), jnp.float32), jnp.asarray(Y, jnp.float32)

    @jax.jit
    def run(z):
        predict = (
            lambda z: lasso(z, y, relative_strength=0.2),
            lambda z: rj.objectives.group_lasso_predictor(z, LABELS, K, relative_strength=0.5),
            lambda z: rj.objectives.group_svm_predictor(z, LABELS, K, relative_strength=0.2),
        )
        with_weights = lambda fit: lambda z: (jnp.sum(fit(z) ** 2), fit(z))
        return [jax.grad(with_weights(fit), has_aux=True)(z)[::-1] for fit in predict]

    found = run(z)
    want = Lasso(alpha=0.2 * largest(Z[:, :3], Y), fit_intercept=False, tol=1e-10).fit(Z[:, :3], Y).coef_
    np.testing.assert_allclose(found[0][0].reshape(3, 2).sum(1), want, rtol=1e-3, atol=1e-4)
    assert all(np.all(np.isfinite(part)) for pair in found for part in pair)


def test_bilevel_is_the_mean_over_tasks_of_what_the_fitted_weights_lose(x64):
    inputs, targets = RNG.normal(size=(3, 9, 4)), RNG.normal(size=(3, 9))
    query, answers = RNG.normal(size=(3, 5, 4)), RNG.normal(size=(3, 5))
    ids = RNG.integers(0, 2, size=(3, 9)).astype(np.int32)
    kernel = RNG.normal(size=(4, 3))
    encoder = lambda params, x: jnp.tanh(x @ params)
    predictor = functools.partial(lasso, relative_strength=lambda step: 0.1 * step)
    classify = functools.partial(rj.objectives.group_lasso_predictor, num_classes=2, relative_strength=0.3)
    make = rj.objectives.sparse_bilevel

    @jax.jit
    def run(params):
        return (
            make(encoder, predictor, l1=0.2, l2=0.3)(params, (inputs, targets), step=3),
            make(encoder, predictor)(params, (inputs, targets, query, answers), step=3),
            make(encoder, classify)(params, (inputs, ids)),
            make(encoder, predictor, loss=lambda p, y: jnp.abs(p - y))(params, (inputs, targets), step=3),
        )

    features = np.tanh(inputs @ kernel)
    at_three = functools.partial(lasso, relative_strength=0.3)
    fit_all = jax.jit(lambda z: (jax.vmap(at_three)(z, targets), jax.vmap(classify)(z, ids)))
    fitted = jax.tree.map(np.asarray, fit_all(features))
    want = np.zeros(4)
    for t in range(3):
        z, w = features[t], fitted[0][t]
        off = z @ w - targets[t]
        want[0] += np.mean(off**2) / 2 + 0.2 * np.abs(w).sum() + 0.15 * (w**2).sum()
        want[1] += np.mean((np.tanh(query[t] @ kernel) @ w - answers[t]) ** 2) / 2
        logits = z @ fitted[1][t]
        want[2] += np.mean(np.log(np.exp(logits).sum(1)) - logits[np.arange(9), ids[t]])
        want[3] += np.mean(np.abs(off))
    np.testing.assert_allclose(run(kernel), want / 3, rtol=1e-10)


@pytest.mark.slow
def test_sparse_predictors_disentangle_where_dense_ones_do_not():
    """Six latents mixed linearly, tasks that use three in ten of them: the mean correlation of features and latents."""
    dim, tasks, shots, steps = 6, 12, 25, 250
    tx = optax.adam(2e-2)
    mix = jax.random.normal(jax.random.key(1), (dim, dim))

    def draw(key):
        keys = jax.random.split(key, 4)
        latents = jax.random.normal(keys[0], (tasks, shots, dim))
        w = jax.random.normal(keys[1], (tasks, dim)) * jax.random.bernoulli(keys[2], 0.3, (tasks, dim))
        targets = jnp.einsum("tnd,td->tn", latents, w) + 0.1 * jax.random.normal(keys[3], (tasks, shots))
        return latents @ mix, targets

    def encoder(params, x):
        h = x @ params
        mean = jax.lax.pmean(h.mean(0), "tasks")
        variance = jax.lax.pmean(((h - mean) ** 2).mean(0), "tasks")
        return (h - mean) / jnp.sqrt(variance + 1e-6)

    def ridge(z, y):
        return jnp.linalg.solve(z.T @ z / shots + 1e-3 * jnp.eye(dim), z.T @ y / shots)

    def train(predictor):
        loss_fn = rj.objectives.sparse_bilevel(encoder, predictor)

        def step(carry, key):
            params, state = carry
            updates, state = tx.update(jax.grad(loss_fn)(params, draw(key)), state, params)
            return (optax.apply_updates(params, updates), state), None

        start = jax.random.normal(jax.random.key(2), (dim, dim)) / dim**0.5
        return jax.lax.scan(step, (start, tx.init(start)), jax.random.split(jax.random.key(3), steps))[0][0]

    def correlation(params):
        latents = np.random.default_rng(0).normal(size=(2000, dim))
        found = latents @ np.asarray(mix) @ np.asarray(params)
        between = np.abs(np.corrcoef(latents.T, found.T)[:dim, dim:])
        return between[linear_sum_assignment(-between)].mean()

    sparse, dense = jax.jit(lambda: (train(functools.partial(lasso, relative_strength=0.3, num_steps=30)), train(ridge)))()
    assert correlation(sparse) > 0.8 > 0.1 + correlation(dense), (correlation(sparse), correlation(dense))
