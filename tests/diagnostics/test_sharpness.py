"""Sharpness in the worst case and on average: closed forms of quadratics, a loop of the ascent, and the ball."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from tests.objectives.problems import MLP, X, Y, arrays, mlp_loss

d = rj.diagnostics
RNG = np.random.default_rng(0)
CURVATURE = np.array([0.5, 1.0, 3.0])


def quadratic(w, shift=0.0):
    return jnp.sum(CURVATURE * (w - shift) ** 2) / 2


def norm(tree):
    return np.sqrt(sum(np.sum(leaf**2) for leaf in jax.tree.leaves(tree)))


def loop(params, batches, rho, num_steps, step_size, adaptive):
    """One batch after the other, each perturbation inside the ball."""
    gradient, rises = jax.jit(jax.value_and_grad(mlp_loss)), []
    for x, y in batches:
        clean = most = float(mlp_loss(params, x, y))
        u = jax.tree.map(np.zeros_like, params)
        for _ in range(num_steps + 1):
            moved = jax.tree.map(lambda w, v: w + (np.abs(w) if adaptive else 1) * v, params, u)
            value, g = gradient(moved, x, y)
            most = max(most, float(value))
            g = jax.tree.map(lambda w, v: np.asarray(v) * (np.abs(w) if adaptive else 1), params, g)
            step = step_size / norm(g)
            u = jax.tree.map(lambda v, s, step=step: v + step * s, u, g)
            factor = min(1, rho / norm(u))
            u = jax.tree.map(lambda v, factor=factor: v * factor, u)
        rises.append(most - clean)
    return np.mean(rises)


@pytest.mark.parametrize("adaptive", [False, True])
def test_equals_the_loop_over_batches(x64, adaptive):
    params = arrays(MLP)
    batches = jnp.asarray(X).reshape(2, 8, 5), jnp.asarray(Y).reshape(2, 8, 3)
    run = jax.jit(
        lambda p, x, y, rho, step_size: d.worst_case_sharpness(
            mlp_loss, p, x, y, rho=rho, num_steps=4, step_size=step_size, adaptive=adaptive
        )
    )
    for step_size in (0.05, 0.5):
        want = loop(MLP, list(zip(*map(np.asarray, batches), strict=True)), 0.3, 4, step_size, adaptive)
        assert float(run(params, *batches, 0.3, step_size)) == pytest.approx(want, rel=1e-10)
    grown = [float(run(params, *batches, rho, 0.1)) for rho in (0.0, 0.05, 0.2, 0.4)]
    assert grown[0] == 0 and grown == sorted(grown)
    # One step of the default length is SAM's perturbation.

    @jax.jit
    def once(params, x, y):
        here = d.worst_case_sharpness(mlp_loss, params, x[None], y[None], rho=0.1, num_steps=1, adaptive=adaptive)
        sam = rj.objectives.sam(mlp_loss, rho=0.1, adaptive=adaptive)
        return here, sam(params, x, y) - mlp_loss(params, x, y)

    assert float((pair := once(params, *(b[0] for b in batches)))[0]) == pytest.approx(float(pair[1]), rel=1e-9)


def test_closed_forms_of_a_quadratic(x64):
    """At a minimum the worst rise is rho^2 times half the top curvature, the mean one rho^2 times half the trace."""
    options = dict(rho=0.3, num_steps=40, step_size=1.0)
    run = jax.jit(lambda start: d.worst_case_sharpness(quadratic, jnp.zeros(3), start=start, **options))
    assert float(run(jnp.array([0.5, 0.5, 0.5]))) == pytest.approx(0.3**2 * 3 / 2, rel=1e-4)
    assert float(run(jnp.zeros(3))) == 0, "where the gradient is 0 the ascent stays"

    def average(w, key, **options):
        shifts = jnp.array([0.0, 0.1])  # two batches
        return d.average_case_sharpness(key, quadratic, w, shifts, rho=0.2, num_samples=4000, **options)

    w = jnp.array([1.0, -2.0, 0.0])
    for adaptive, scales in ((False, np.ones(3)), (True, np.abs(w))):
        got = jax.jit(lambda key, a=adaptive: average(w, key, adaptive=a))(jax.random.key(0))
        rise = 0.2**2 * np.sum(CURVATURE * scales**2) / 2
        variance = np.sum((CURVATURE * scales * 0.2 * (w - 0.05)) ** 2) + np.sum((0.2**2 * CURVATURE * scales**2) ** 2) / 2
        assert float(got) == pytest.approx(rise, abs=4 * np.sqrt(variance / 4000))


def test_only_the_chosen_leaves_move():
    params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2), "step": jnp.int32(3)}
    loss_fn = lambda p: jnp.sum(p["bias"] ** 2) + jnp.sum(p["kernel"] ** 2) * p["step"]
    run = lambda where: d.worst_case_sharpness(loss_fn, params, rho=0.1, num_steps=2, where=where)
    alone = d.worst_case_sharpness(lambda w: 3 * jnp.sum(w**2), jnp.ones((2, 2)), rho=0.1, num_steps=2)
    np.testing.assert_allclose(run("kernels"), alone, rtol=1e-5)
    assert run("all") > run("kernels") > 0
    noise = d.average_case_sharpness(jax.random.key(0), loss_fn, params, num_samples=1, where=lambda path, leaf: False)
    assert noise == 0
    low = jax.tree.map(lambda w: w.astype(jnp.bfloat16) if w.ndim else w, params)
    assert d.worst_case_sharpness(loss_fn, low, rho=1e-3, num_steps=1) > 0, "bfloat16 weights are widened, not rounded back"
