"""Proximal operators: each minimises step * penalty + half the squared distance, and obeys the laws of its kind."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.optimize

import regjax as rj

RNG = np.random.default_rng(0)
GROUPS = [["a", "b"], ["c"]]

PAIRS = {
    "l1": (rj.weights.l1, rj.weights.prox_l1),
    "l2": (rj.weights.l2, rj.weights.prox_l2),
    "elastic_net": tuple(partial(f, l1=0.7, l2=1.5) for f in (rj.weights.elastic_net, rj.weights.prox_elastic_net)),
    "group_lasso": (rj.weights.group_lasso, rj.weights.prox_group_lasso),
    "group_lasso in, size weighted": tuple(
        partial(f, groups="in", size_weighted=True) for f in (rj.weights.group_lasso, rj.weights.prox_group_lasso)
    ),
    "group_lasso kernel": tuple(partial(f, groups="leaf") for f in (rj.weights.group_lasso, rj.weights.prox_group_lasso)),
    "sparse_group_lasso": tuple(
        partial(f, l1=0.4, group=0.8) for f in (rj.weights.sparse_group_lasso, rj.weights.prox_sparse_group_lasso)
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_minimises_its_penalty_and_is_non_expansive(x64, name):
    penalty, prox = PAIRS[name]
    points = RNG.normal(size=(40, 3, 2)) * np.array([0.1, 0.5, 1.0, 3.0]).repeat(10)[:, None, None]
    others = RNG.normal(size=(200, 3, 2))

    @jax.jit
    def laws(points, others, step):
        move = lambda x: prox({"kernel": x}, step)["kernel"]
        objective = lambda x, p: step * penalty({"kernel": x}) + 0.5 * jnp.sum((x - p) ** 2)

        def gap(p):
            # A 1-strongly convex function lies half a squared distance above its minimum; only the minimiser fits them all.
            x = move(p)
            near = x + others * jnp.logspace(-3, 1, len(others))[:, None, None]
            above = jax.vmap(objective, (0, None))(near, p) - objective(x, p)
            return jnp.min(above - 0.5 * jnp.sum((near - x) ** 2, (1, 2)))

        moved = jax.vmap(move)(points)
        distance = lambda a: jnp.sqrt(jnp.sum((a[:20] - a[20:]) ** 2, (1, 2)))
        return jax.vmap(gap)(points), distance(moved) - distance(points), moved

    gaps, stretch, moved = laws(points, others, 0.6)
    assert np.min(gaps) > -1e-9
    assert np.max(stretch) <= 1e-12
    if name not in ("l2",):
        assert np.mean(np.asarray(moved) == 0) > 0.1, "no exact zeros"


@pytest.mark.parametrize("name", PAIRS)
def test_agrees_with_a_numerical_minimiser(x64, name):
    penalty, prox = PAIRS[name]
    point = np.array([[0.9, -0.2], [-1.3, 0.1]])
    value = jax.jit(lambda x: 0.6 * penalty({"kernel": x.reshape(2, 2)}) + 0.5 * jnp.sum((x.reshape(2, 2) - point) ** 2))
    found = point.ravel()
    for _ in range(3):  # a simplex search started anew does not stick at a kink
        found = scipy.optimize.minimize(
            lambda x: float(value(x)), found, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-13, "maxiter": 600}
        ).x
    np.testing.assert_allclose(prox({"kernel": point}, 0.6)["kernel"].ravel(), found, atol=2e-4)


def test_published_values(x64):
    column = lambda *w: {"kernel": jnp.array(w)[:, None]}
    flat = lambda tree: tree["kernel"].ravel()
    np.testing.assert_allclose(flat(rj.weights.prox_group_lasso(column(3.0, 4.0), 2.0)), [1.8, 2.4], rtol=1e-12)
    moved = rj.weights.prox_sparse_group_lasso(column(3.0, 4.0), 1.0, l1=1.0, group=1.0)
    np.testing.assert_allclose(flat(moved), [1.4452998, 2.1679497], atol=5e-8)
    assert float(flat(rj.weights.prox_elastic_net(column(3.0), 1.0, l1=1.0, l2=1.0))[0]) == 1.0
    np.testing.assert_array_equal(flat(rj.weights.prox_l1(column(3.0, -0.5, 0.0), 1.0)), [2.0, 0.0, 0.0])
    np.testing.assert_array_equal(flat(rj.weights.prox_l2(column(3.0, -0.5), 1.0)), [1.5, -0.25])
    weighted = rj.weights.prox_group_lasso(column(3.0, 4.0), 1.0, size_weighted=True)
    np.testing.assert_allclose(flat(weighted), np.array([3.0, 4.0]) * (1 - np.sqrt(2) / 5), rtol=1e-12)


def test_moreau_decomposition(x64):
    """The operator plus that of the conjugate is the identity: projections on balls, and for l2 a shrinkage again."""
    w, t = RNG.normal(size=(5, 3)), 0.8

    @jax.jit
    def moves(w):
        by = lambda prox, w, t: prox({"kernel": w}, t)["kernel"]
        l2 = by(rj.weights.prox_l2, w, t), t * by(rj.weights.prox_l2, w / t, 1 / t)
        return by(rj.weights.prox_l1, w, t), by(rj.weights.prox_group_lasso, w, t), *l2

    l1, group, l2, l2_conjugate = moves(w)
    on_box, on_ball = np.clip(w, -t, t), w * np.minimum(1, t / np.linalg.norm(w, axis=0))
    for prox, conjugate in ((l1, on_box), (group, on_ball), (l2, l2_conjugate)):
        np.testing.assert_allclose(prox + conjugate, w, rtol=1e-12)


def test_groups_across_leaves_shrink_together(x64):
    params = {"a": jnp.array([3.0]), "b": jnp.array([[0.0, 4.0]]), "c": jnp.array([0.5]), "d": jnp.array([9.0])}
    moved = rj.weights.prox_group_lasso(params, 1.0, groups=GROUPS)
    np.testing.assert_allclose(moved["a"], [3.0 * 0.8], rtol=1e-12)
    np.testing.assert_allclose(moved["b"], [[0.0, 4.0 * 0.8]], rtol=1e-12)
    np.testing.assert_array_equal(moved["c"], [0.0])
    assert moved["d"] is params["d"]


@pytest.mark.parametrize("name", PAIRS)
def test_step_zero_keeps_even_the_smallest_weights_and_dtypes_stay(name):
    _, prox = PAIRS[name]
    kernel = jnp.array([[1e-30, -2e-38], [0.0, -0.0], [3.0, -2.0]])
    params = {"kernel": kernel, "bias": jnp.array([7.0])}

    @jax.jit
    def move(params, step):
        return prox(params, step)["kernel"], jax.grad(lambda w: prox({"kernel": w}, step)["kernel"].sum())(params["kernel"])

    for step in (0.0, 0.5, 1e3):
        moved, gradient = move(params, step)
        assert np.all(np.isfinite(gradient))
        if step == 0.0:
            np.testing.assert_array_equal(moved, kernel)
    if name != "l2":
        assert not moved.any(), "a step larger than every weight leaves some"
    for dtype in (jnp.bfloat16, jnp.float16):
        low = jax.eval_shape(prox, {"kernel": kernel.astype(dtype)}, 0.1)
        assert low["kernel"].dtype == dtype


def test_traced_numbers_and_where():
    params = {"kernel": jnp.array([[3.0, -1.0]]), "bias": jnp.array([2.0])}
    moved = jax.jit(lambda t, s: rj.weights.prox_elastic_net(params, t, l1=s, l2=s))(0.5, 1.0)
    np.testing.assert_allclose(moved["kernel"], [[2.5 / 1.5, -0.5 / 1.5]], rtol=1e-6)
    moved = rj.weights.prox_l1(params, 0.5, where=lambda path, leaf: path[-1] == "bias")
    np.testing.assert_array_equal(moved["bias"], [1.5])
    assert moved["kernel"] is params["kernel"]
