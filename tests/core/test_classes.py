"""The conventions of logits and labels: masks, ids out of range, probabilities of zero, leading axes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regjax.core import classes
from tests.references import log_softmax

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(4, 5))


def test_masked_log_softmax_is_that_of_the_rest(x64):
    where = RNG.random((4, 5)) < 0.6
    where[:, 2] = True
    got = classes.log_softmax(jnp.asarray(LOGITS), jnp.asarray(where))
    np.testing.assert_allclose(got, [log_softmax(z, w) for z, w in zip(LOGITS, where, strict=True)], rtol=1e-12)


def test_all_masked_and_infinite_logits_are_finite_in_value_and_gradient():
    none = jnp.zeros((4, 5), bool)
    x = jnp.asarray(LOGITS, jnp.float32)

    def loss(z, where):
        return classes.cross_entropy(classes.class_inputs("f", z, jnp.zeros(4, int), where=where)).sum()

    assert float(loss(x, none)) == 0
    np.testing.assert_array_equal(jax.grad(loss)(x, none), 0)
    infinite = x.at[:, 3].set(-jnp.inf)
    assert np.isfinite(loss(infinite, None)) and np.all(np.isfinite(jax.grad(loss)(infinite, None)))
    np.testing.assert_allclose(loss(infinite, None), loss(x, jnp.arange(5) != 3), rtol=1e-6)
    tangent = jax.jvp(lambda z: loss(z, None), (infinite,), (jnp.ones_like(x),))[1]
    assert np.isfinite(tangent)


def test_an_id_out_of_range_is_seen():
    picked = classes.pick(jnp.asarray(LOGITS), jnp.array([0, 4, 5, -1]))
    np.testing.assert_array_equal(np.isnan(picked), [False, False, True, True])


def test_narrow_label_dtypes_count_all_classes():
    z = jnp.arange(600.0)[None]
    for dtype in (jnp.uint8, jnp.int8):
        x = classes.class_inputs("f", z, jnp.array([5], dtype))
        assert float(classes.pick(x.logits, x.labels)[0]) == 5


def test_probability_zero_times_infinity_is_zero():
    values = jnp.array([[0.0, -jnp.inf]])
    assert float(classes.expected_under(values, jnp.array([[1.0, 0.0]]), False)[0]) == 0


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_class_axis_and_dtypes(axis):
    z = np.moveaxis(RNG.normal(size=(2, 3, 5)), -1, axis)
    x = classes.class_inputs("f", jnp.asarray(z, jnp.bfloat16), jnp.zeros((2, 3), int), axis=axis)
    assert x.logits.shape == (2, 3, 5) and x.logits.dtype == jnp.float32 and x.is_ids
    soft = classes.class_inputs("f", jnp.asarray(z), jnp.full(z.shape, 0.2), axis=axis, where=jnp.ones(z.shape, bool))
    assert soft.labels.shape == soft.where.shape == (2, 3, 5) and not soft.is_ids


def test_class_mean_over_those_that_exist():
    where = jnp.array([[True, False, True], [False, False, False]])
    np.testing.assert_allclose(classes.class_mean(jnp.array([[1.0, 9.0, 3.0], [1.0, 2.0, 3.0]]), where), [2.0, 0.0])


def test_top_shares_its_gradient_among_ties_and_has_second_derivatives():
    x = jnp.asarray([[1.0, 3.0, 3.0, -jnp.inf], [0.0, 0.0, 0.0, 0.0], [1e4, -1e4, 0.0, 2.0]])
    value, gradient = jax.value_and_grad(lambda x: classes.top(x).sum())(x)
    assert float(value) == 3 + 1e4
    np.testing.assert_array_equal(gradient, [[0, 0.5, 0.5, 0], [0.25] * 4, [1, 0, 0, 0]])
    twice = jax.hessian(lambda x: classes.top(x) ** 2)(x[0, :3])
    np.testing.assert_array_equal(twice, [[0, 0, 0], [0, 0.5, 0.5], [0, 0.5, 0.5]])


def test_classes_may_be_sharded():
    z, y = RNG.normal(size=(8, 16)).astype(np.float32), np.arange(8) * 2 % 16

    def loss(z, y):
        x = classes.class_inputs("f", z, y)
        return (classes.cross_entropy(x) + classes.top(x.logits)).sum()

    want = jax.value_and_grad(loss)(z, y)
    for kind in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit):
        mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
        with jax.set_mesh(mesh):
            placed = jax.device_put(z, jax.NamedSharding(mesh, jax.P("data", "model")))
            ids = jax.device_put(y, jax.NamedSharding(mesh, jax.P("data")))
            got = jax.jit(jax.value_and_grad(loss))(placed, ids)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)
