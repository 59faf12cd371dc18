"""Differences of gradient directions against loops over pairs, the published values, and their invariances."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AxisType

import regjax as rj

RNG = np.random.default_rng(0)
GRADS = RNG.normal(size=(5, 7))
GRADS[3] = 0
variance, error = jax.jit(rj.diagnostics.gradient_direction_variance), jax.jit(rj.diagnostics.gradient_direction_error)


def distance(a, b):
    norms = np.sqrt(sum(x * x for x in a)) * np.sqrt(sum(x * x for x in b))
    cosine = sum(x * y for x, y in zip(a, b, strict=True)) / norms if norms else 0.0
    return (1 - cosine) / 2


def by_pairs(grads):
    return np.mean([distance(grads[i], grads[j]) for j in range(len(grads)) for i in range(j)])


def as_tree(g):
    return {"w": g[..., :6].reshape(*g.shape[:-1], 2, 3), "b": {"scale": g[..., 6]}}


def test_equal_the_loops_over_pairs_in_every_form(x64):
    full = RNG.normal(size=7)
    want = by_pairs(GRADS), np.mean([distance(g, full) for g in GRADS])
    stacked, trees = as_tree(GRADS), [as_tree(g) for g in GRADS]
    for grads, target in ((GRADS, full), (stacked, as_tree(full)), (trees, as_tree(full)), (tuple(trees), as_tree(full))):
        got = jax.jit(lambda g, t: (variance(g), error(g, t)))(grads, target)
        np.testing.assert_allclose(got, want, rtol=1e-12)
    # Counters and other leaves that are no floats, and empty ones, are left out.
    counted = [{"g": g, "count": jnp.int32(i), "none": None, "empty": jnp.zeros((0, 2))} for i, g in enumerate(GRADS)]
    np.testing.assert_allclose(variance(counted), want[0], rtol=1e-12)
    np.testing.assert_allclose(error(counted, {**counted[0], "g": full}), want[1], rtol=1e-12)
    states = [nnx.State({"g": nnx.Param(g)}) for g in GRADS]
    np.testing.assert_allclose(variance(states), want[0], rtol=1e-12)


def test_published_values(x64):
    grads = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    assert float(variance(grads)) == pytest.approx(0.26429774, abs=5e-9)
    assert float(error(grads, grads.mean(0))) == pytest.approx(0.09763107, abs=5e-9)


def test_ends():
    g = jnp.asarray(GRADS[0], jnp.float32)
    same = jnp.stack([g] * 4)
    assert variance(same) == 0 and error(same, g) == 0
    assert variance(jnp.stack([g, -g])) == pytest.approx(1, abs=1e-6) and error(-same, g) == pytest.approx(1, abs=1e-6)
    assert variance(jnp.eye(4)) == pytest.approx(0.5, abs=1e-6)
    zeros = jnp.zeros((3, 7))
    assert variance(zeros) == error(zeros, g) == error(same, jnp.zeros(7)) == error(zeros, jnp.zeros(7)) == 0.5
    assert jnp.isnan(variance(same.at[1, 2].set(jnp.nan)))
    assert error(g[None], g) == 0


def test_the_length_of_a_gradient_does_not_matter():
    grads = jnp.asarray(GRADS, jnp.float32)
    sizes = jnp.array([1e-30, 1e30, 2.0, 1.0, 1e-3])[:, None]
    np.testing.assert_allclose(variance(sizes * grads), by_pairs(GRADS), rtol=1e-5)
    np.testing.assert_allclose(error(sizes * grads, 1e-25 * grads[0]), np.mean([distance(g, GRADS[0]) for g in GRADS]), rtol=1e-5)


def test_nearly_equal_gradients_do_not_cancel():
    base = jnp.ones(1000)
    grads = jnp.stack([base, base.at[0].add(1e-3)])
    want = 1e-6 / 1000 / 4 * (1 - 1 / 1000)  # a quarter of the squared angle; float32 cosines are 1 up to 6e-8
    assert float(variance(grads)) == pytest.approx(want, rel=0.01)
    assert float(error(grads[1:], base)) == pytest.approx(want, rel=0.01)


def test_gradients_of_a_model_on_a_mesh():
    """The gradients of several batches, one per device, as ``vmap`` of ``grad`` gives them."""
    w, x = jnp.asarray(RNG.normal(size=(4, 3)), jnp.float32), jnp.asarray(RNG.normal(size=(8, 5, 4)), jnp.float32)

    @jax.jit
    def measure(w, x):
        grads = jax.vmap(jax.grad(lambda w, x: jnp.sum(jnp.tanh(x @ w))), (None, 0))({"w": w}["w"], x)
        return variance(grads), error(grads, jnp.mean(grads, 0))

    want = measure(w, x)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            got = measure(w, jax.device_put(x, jax.NamedSharding(mesh, jax.P("data"))))
        np.testing.assert_allclose(got, want, rtol=1e-5)
