"""Every penalty and its proximal step against numerical minimisers; sets against their definition; the three forms are one.

A proximal step minimises ``step * penalty(x) + 1/2 ||x - p||^2``; a projection minimises the distance alone, over its set.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import regjax as rj

W = rj.weights
RNG = np.random.default_rng(0)
POINT = RNG.normal(size=(3, 4))
STEP = 0.6
D = np.array([1.0, 2.0, 0.5, 1.0])

PAIRS = {
    "l1": (W.l1, W.prox_l1),
    "l2": (W.l2, W.prox_l2),
    "elastic_net": tuple(partial(f, l1=0.7, l2=1.5) for f in (W.elastic_net, W.prox_elastic_net)),
    "group_lasso": tuple(partial(f, groups="in", size_weighted=True) for f in (W.group_lasso, W.prox_group_lasso)),
    "sparse_group_lasso": tuple(partial(f, l1=0.4, group=0.8) for f in (W.sparse_group_lasso, W.prox_sparse_group_lasso)),
    "nuclear_norm": (W.nuclear_norm, W.prox_nuclear),
    "wgsef": tuple(partial(f, k=2, group_weights=D) for f in (W.wgsef, W.prox_wgsef)),
    "wgsef of all groups": tuple(partial(f, k=4) for f in (W.wgsef, W.prox_wgsef)),
}
SMOOTH = ("l2", "wgsef of all groups")
SETS = {
    "box": partial(W.project_box, lower=-0.4, upper=0.7),
    "nonnegative": W.project_nonnegative,
    "simplex": partial(W.project_simplex, total=1.0),
    "l1 ball": partial(W.project_l1_ball, radius=1.5),
    "l2 ball": partial(W.project_l2_ball, radius=0.8, groups="out"),
    "spectral ball": partial(W.project_spectral_ball, radius=0.9),
}


def of_kernel(fn):
    return lambda x, *args: fn({"kernel": x}, *args)["kernel"]


@pytest.mark.parametrize("name", PAIRS)
def test_the_step_minimises_its_penalty_and_never_expands(x64, name):
    penalty, prox = PAIRS[name]
    objective = lambda x, p: STEP * penalty({"kernel": x}) + 0.5 * jnp.sum((x - p) ** 2)
    points = np.concatenate([POINT[None], RNG.normal(size=(19, *POINT.shape)) * np.logspace(-1, 0.6, 19)[:, None, None]])

    @jax.jit
    def laws(points, noise):
        moved = jax.vmap(lambda p: of_kernel(prox)(p, STEP))(points)
        near = moved[:, None] + noise
        above = jax.vmap(lambda p, x, near: jax.vmap(objective, (0, None))(near, p) - objective(x, p))(points, moved, near)
        return moved, above - 0.5 * jnp.sum(noise**2, (1, 2))

    noise = RNG.normal(size=(60, *POINT.shape)) * np.logspace(-3, 1, 60)[:, None, None]
    moved, above = laws(points, noise)
    # A 1-strongly convex function lies half a squared distance above its minimum.
    assert np.min(above) > -1e-9
    lengths = lambda x: np.linalg.norm((x[:10] - x[10:]).reshape(10, -1), axis=1)
    assert np.max(lengths(np.asarray(moved)) / lengths(points)) <= 1 + 1e-12

    both = jax.jit(jax.value_and_grad(lambda x: objective(x.reshape(POINT.shape), POINT)))
    fun = lambda x: tuple(np.asarray(out, float) for out in both(x))
    reached = np.asarray(moved[0]).ravel()
    found = [scipy.optimize.minimize(fun, start, jac=True, tol=1e-12) for start in (POINT.ravel(), reached)]
    # Where there are kinks, a search that needs no derivative goes on from both.
    if name not in SMOOTH:
        value = lambda x: float(both(x)[0])
        found += [scipy.optimize.minimize(value, f.x, method="Powell", options={"maxfev": 1500}) for f in found]
    best = min(found, key=lambda f: f.fun)
    assert fun(reached)[0] <= best.fun + 1e-8
    np.testing.assert_allclose(best.x, reached, atol=1e-5 if name in SMOOTH else 2e-2)


def test_hard_thresholds_are_the_best_of_all_supports(x64):
    point = POINT[:2]
    tall = POINT.T

    @jax.jit
    def moves(point, tall):
        polar = of_kernel(W.project_stiefel)(tall)
        each = (W.prox_l0, partial(W.project_top_k, k=3), partial(W.project_top_groups, k=2))
        return [of_kernel(move)(point, 0.3) for move in each], polar, of_kernel(W.project_stiefel)(polar)

    (hard, top, groups), moved, again = moves(point, tall)
    supports = np.array(list(itertools.product([0, 1], repeat=point.size))).reshape(-1, *point.shape)
    costs = 0.5 * np.sum((point * (1 - supports)) ** 2, (1, 2))
    sizes = supports.sum((1, 2))
    zeroed = supports[np.argmin(0.3 * sizes + costs)]
    np.testing.assert_array_equal(hard, point * zeroed)
    assert 0 < zeroed.sum() < point.size
    best = supports[np.argmin(np.where(sizes <= 3, costs, np.inf))]
    np.testing.assert_array_equal(top, point * best)
    columns = np.array([s for s in supports if np.array_equal(s[0], s[1]) and s[0].sum() <= 2])
    nearest = columns[np.argmin(np.sum((point * (1 - columns)) ** 2, (1, 2)))]
    np.testing.assert_array_equal(groups, point * nearest)
    # No orthonormal matrix is nearer than the polar factor, and each is its own.
    moved, others = np.asarray(moved), np.linalg.qr(RNG.normal(size=(500, 4, 3)))[0]
    close = np.linalg.qr(moved + 0.01 * RNG.normal(size=(500, 4, 3)))[0]
    close *= np.sign(np.sum(close * moved, axis=1, keepdims=True))
    assert np.min(np.sum((np.concatenate([others, close]) - tall) ** 2, (1, 2))) >= np.sum((moved - tall) ** 2)
    np.testing.assert_allclose(again, moved, atol=1e-12)


def inside(name, x):
    """How far a kernel is from fulfilling the definition of a set."""
    x = np.asarray(x)
    return {
        "box": lambda: max(np.max(x - 0.7), np.max(-0.4 - x)),
        "nonnegative": lambda: np.max(-x),
        "simplex": lambda: max(np.max(-x), abs(x.sum() - 1)),
        "l1 ball": lambda: np.abs(x).sum() - 1.5,
        "l2 ball": lambda: np.max(np.linalg.norm(x, axis=0)) - 0.8,
        "spectral ball": lambda: np.linalg.norm(x, 2) - 0.9,
    }[name]()


def constrained(name, p):
    """The smallest distance that SciPy finds over a set."""
    flat, n = p.ravel(), p.size
    more = lambda fn: {"type": "ineq", "fun": fn}
    options = {
        "box": {"bounds": [(-0.4, 0.7)] * n},
        "nonnegative": {"bounds": [(0, None)] * n},
        "simplex": {"bounds": [(0, None)] * n, "constraints": [{"type": "eq", "fun": lambda x: x.sum() - 1}]},
        "l2 ball": {"constraints": [more(lambda x: 0.64 - (x.reshape(p.shape) ** 2).sum(0))]},
    }
    distance = lambda x: 0.5 * np.sum((x - flat) ** 2)
    slope = lambda x: x - flat
    if name == "l1 ball":  # as the difference of two positive parts
        both = lambda x: x[:n] - x[n:]
        fun, jac = lambda x: distance(both(x)), lambda x: np.concatenate([slope(both(x)), -slope(both(x))])
        given = {"bounds": [(0, None)] * (2 * n), "constraints": [more(lambda x: 1.5 - x.sum())]}
        return scipy.optimize.minimize(fun, np.full(2 * n, 0.01), jac=jac, method="SLSQP", tol=1e-14, **given).fun
    start = np.full(n, 1 / n)
    return scipy.optimize.minimize(distance, start, jac=slope, method="SLSQP", tol=1e-14, **options[name]).fun


@pytest.mark.parametrize("name", SETS)
def test_projections_reach_the_nearest_point_of_their_set(x64, name):
    points = np.concatenate([POINT[None], RNG.normal(size=(29, *POINT.shape)) * np.logspace(-2, 1, 29)[:, None, None]])

    @jax.jit
    def moves(points):
        move = jax.vmap(of_kernel(SETS[name]))
        moved = move(points)
        # The step of a projection has no effect.
        return moved, move(moved), jax.vmap(lambda x: of_kernel(SETS[name])(x, 3.0))(points)

    moved, again, stepped = map(np.asarray, moves(points))
    np.testing.assert_array_equal(stepped, moved)
    assert max(inside(name, x) for x in moved) <= 1e-12
    np.testing.assert_allclose(again, moved, atol=1e-12)
    lengths = lambda x: np.linalg.norm((x[:15] - x[15:]).reshape(15, -1), axis=1)
    assert np.max(lengths(moved) - lengths(points)) <= 1e-12
    # From the nearest point of a convex set, no other of its points lies towards the one that was projected.
    angles = np.einsum("pij,pqij->pq", points - moved, moved[None] - moved[:, None])
    assert np.max(angles) <= 1e-10
    if name != "spectral ball":  # whose constraint has no derivative that SciPy could follow
        assert 0.5 * np.sum((moved[0] - POINT) ** 2) <= constrained(name, POINT) + 1e-8


def test_moreau_decomposition(x64):
    """The step of a norm and the projection on the ball of its dual norm add up to the identity; sets and their polars too."""
    t = 0.7

    @jax.jit
    def sums(p):
        by = lambda fn, x=p, **options: of_kernel(partial(fn, **options))(x)
        pairs = {
            "l1": by(W.prox_l1, step=t) + by(W.project_box, lower=-t, upper=t),
            "group": by(W.prox_group_lasso, step=t) + by(W.project_l2_ball, radius=t, groups="out"),
            "l2 norm": by(W.prox_group_lasso, step=t, groups="leaf") + by(W.project_l2_ball, radius=t),
            "nuclear": by(W.prox_nuclear, step=t) + by(W.project_spectral_ball, radius=t),
            "positive": by(W.project_nonnegative) - by(W.project_nonnegative, x=-p),
            "l2": by(W.prox_l2, step=t) + t * by(W.prox_l2, x=p / t, step=1 / t),
        }
        # The largest entry's conjugate is the simplex: its step leaves a threshold at the top, by Moreau from the projection.
        top = p - by(W.project_simplex, total=t)
        return pairs, top

    pairs, top = sums(POINT)
    for name, got in pairs.items():
        np.testing.assert_allclose(got, POINT, atol=1e-12, err_msg=name)
    level = np.max(top)
    assert np.sum(POINT - np.minimum(POINT, level)) == pytest.approx(t, rel=1e-12)
    np.testing.assert_allclose(top, np.minimum(POINT, level), atol=1e-12)


def test_the_three_forms_of_a_penalty_are_one(x64):
    """Its gradient in the loss is what `add_penalty` adds; its proximal step after SGD is a proximal gradient step."""
    params = {"kernel": jnp.asarray(POINT), "bias": jnp.ones(4)}
    data = jnp.asarray(RNG.normal(size=(8, 3)))
    rate, strength = 0.3, 0.2

    def loss_fn(params, x):
        return jnp.mean(jnp.sum(jnp.tanh(x @ params["kernel"] + params["bias"]) ** 2, -1))

    @jax.jit
    def forms(params):
        grads, out = jax.grad(loss_fn)(params, data), {}
        for name, (penalty, prox) in PAIRS.items():
            in_loss = jax.grad(rj.objectives.with_penalty(loss_fn, penalty, strength))(params, data)
            tx = rj.gradients.add_penalty(penalty, strength)
            added, _ = tx.update(grads, tx.init(params), params)
            tx = optax.chain(optax.sgd(rate), rj.gradients.proximal_step(prox, strength, learning_rate=rate))
            updates, _ = tx.update(grads, tx.init(params), params)
            stepped = optax.apply_updates(params, updates)
            direct = prox(jax.tree.map(lambda p, g: p - rate * g, params, grads), rate * strength)
            out[name] = (in_loss, added), (stepped, direct)
        return grads, out

    grads, out = forms(params)
    for name, pairs in out.items():
        for got, want in pairs:
            for leaf in ("kernel", "bias"):
                np.testing.assert_allclose(got[leaf], want[leaf], rtol=1e-9, atol=1e-13, err_msg=name)
        assert np.max(np.abs(pairs[0][0]["kernel"] - grads["kernel"])) > 1e-2, f"{name} adds nothing"
