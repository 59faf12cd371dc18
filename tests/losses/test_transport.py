"""Transport with a sum of norms, against known plans, linear programming and a generic solver."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import linprog

from regjax.losses import sum_of_norms_ot

LINE = np.abs(np.arange(3.0)[:, None] - np.arange(3.0))
UNIFORM = np.full(3, 1 / 3)


def _objective(plan, cost, reg, r=None, s=None):
    n, m = plan.shape
    total = np.sum(cost * plan)
    for left in range(n):
        for right in range(left + 1, n):
            total += reg * (1 if r is None else r[left, right]) * np.linalg.norm(plan[left] - plan[right])
    for left in range(m):
        for right in range(left + 1, m):
            total += reg * (1 if s is None else s[left, right]) * np.linalg.norm(plan[:, left] - plan[:, right])
    return total


def test_known_plans_and_the_gradient_by_the_cost():
    solve = jax.jit(
        lambda cost, reg: sum_of_norms_ot(cost, jnp.asarray(UNIFORM, jnp.float32), jnp.asarray(UNIFORM, jnp.float32), reg=reg)
    )
    cost = jnp.asarray(LINE, jnp.float32)
    for reg, value in ((0.0, 0.0), (0.05, 0.1414214), (0.2, 0.5656854), (0.35, 0.8651213), (1.0, 0.8888889)):
        got = solve(cost, reg)
        np.testing.assert_allclose(got.value, value, atol=2e-6)
        np.testing.assert_allclose(got.value, _objective(np.asarray(got.plan, float), LINE, reg), atol=2e-6)
    np.testing.assert_allclose(solve(cost, 1.0).plan, np.full((3, 3), 1 / 9), atol=1e-6)
    plan = solve(cost, 0.35).plan
    np.testing.assert_allclose(np.diag(plan), [0.2432403, 0.1531472, 0.2432403], atol=1e-5)
    np.testing.assert_allclose([plan[0, 1], plan[1, 2]], [0.0900930] * 2, atol=1e-5)
    grads = jax.grad(lambda cost, reg: solve(cost, reg).value, argnums=(0, 1))(cost, 0.35)
    np.testing.assert_allclose(grads[0], plan, atol=1e-6)
    np.testing.assert_allclose(0.35 * grads[1], solve(cost, 0.35).value - jnp.sum(cost * plan), rtol=1e-5)
    # Costs and masses in other units give the plan in those units.
    scaled = sum_of_norms_ot(100 * cost, jnp.full(3, 5.0), jnp.full(3, 5.0), reg=35.0)
    np.testing.assert_allclose(scaled.plan, 15 * plan, atol=1e-4)


def test_without_a_regulariser_it_is_the_linear_program():
    rng = np.random.default_rng(0)
    cost, a, b = rng.uniform(size=(6, 5)), rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(5))
    a[2] = 0
    b = b * a.sum() / b.sum()
    rows = [np.kron(np.eye(6)[i], np.ones(5)) for i in range(6)] + [np.kron(np.ones(6), np.eye(5)[j]) for j in range(5)]
    best = linprog(cost.ravel(), A_eq=np.array(rows), b_eq=np.concatenate([a, b])).fun
    got = sum_of_norms_ot(*(jnp.asarray(x, jnp.float32) for x in (cost, a, b)), reg=0.0, num_iters=4000)
    np.testing.assert_allclose(got.value, best, rtol=1e-4)
    np.testing.assert_allclose(got.plan.sum(1), a, atol=1e-6)
    np.testing.assert_allclose(got.plan.sum(0), b, atol=1e-4)
    assert jnp.all(got.plan >= 0) and jnp.all(got.plan[2] == 0)


def test_no_feasible_plan_nearby_is_better_and_weights_choose_the_pairs():
    rng = np.random.default_rng(1)
    cost = rng.uniform(size=(4, 5))
    a, b = np.full(4, 0.25), np.full(5, 0.2)
    r = np.zeros((4, 4))
    r[0, 1] = r[1, 0] = 2.0
    s = rng.uniform(size=(5, 5))
    args = [jnp.asarray(x, jnp.float32) for x in (cost, a, b)]
    for weights in ((None, None), (r, s)):
        got = sum_of_norms_ot(*args, reg=0.1, row_weights=weights[0], col_weights=weights[1], num_iters=6000)
        plan = np.asarray(got.plan, float)
        value = _objective(plan, cost, 0.1, *weights)
        np.testing.assert_allclose(got.value, value, rtol=1e-5)
        for _ in range(200):
            # A loop of four entries keeps all sums.
            (i, k), (j, m) = rng.choice(4, 2, False), rng.choice(5, 2, False)
            t = 0.01 * rng.uniform(-1, 1)
            moved = plan.copy()
            moved[[i, k], [j, m]] += t
            moved[[i, k], [m, j]] -= t
            if moved.min() >= 0:
                assert _objective(moved, cost, 0.1, *weights) > value - 1e-5
    # Traced weights are those of the program's constants.
    traced = jax.jit(lambda r, s: sum_of_norms_ot(*args, reg=0.1, row_weights=r, col_weights=s, num_iters=6000))(
        jnp.asarray(r), jnp.asarray(s)
    )
    np.testing.assert_allclose(traced.value, got.value, rtol=1e-4)


@pytest.mark.slow
def test_classes_keep_their_mass_better_than_with_an_entropy():
    """More than plain transport keeps it only where the classes of both sides are known, and not on every draw."""
    labels = np.repeat([0, 1], 12)
    same = (labels[:, None] == labels).astype(np.float64)
    turn = np.array([[np.cos(0.9), -np.sin(0.9)], [np.sin(0.9), np.cos(0.9)]])
    mass = jnp.full(24, 1 / 24)
    solve = jax.jit(lambda cost, reg, r, s: sum_of_norms_ot(cost, mass, mass, reg=reg, row_weights=r, col_weights=s).plan)
    shares = []
    for seed in range(3):
        rng = np.random.default_rng(seed)
        centres = np.where(labels[:, None] == 0, -1.2, 1.2)
        source, target = rng.normal(size=(24, 2)) * 0.9 + centres, (rng.normal(size=(24, 2)) * 0.9 + centres) @ turn.T + 0.8
        cost = ((source[:, None] - target) ** 2).sum(-1)
        kernel, u = np.exp(-cost / 2), np.ones(24)
        for _ in range(2000):
            v = 1 / (24 * kernel.T @ u)
            u = 1 / (24 * kernel @ v)
        entropic = u[:, None] * kernel * v
        plans = [solve(jnp.asarray(cost, jnp.float32), *options) for options in ((0.0, same, same), (0.5, same, same))]
        shares.append([float(np.sum(np.asarray(plan) * same)) for plan in (entropic, *plans)])
    entropic, plain, norms = np.mean(shares, axis=0)
    assert norms > plain > entropic
