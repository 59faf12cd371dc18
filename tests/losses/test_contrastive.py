"""InfoNCE against loops, its laws, and its gradient over devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
Q, K = RNG.normal(size=(8, 5)), RNG.normal(size=(8, 5))
WHERE = np.array([True, False, True, True, True, False, True, True])


def loop(q, k, temperature, symmetric, counted):
    def cosine(a, b):
        return a @ b / (np.sqrt(a @ a) * np.sqrt(b @ b))

    out = np.zeros(len(q))
    for i in counted:
        losses = []
        for own, others in ((q, k), (k, q))[: 1 + symmetric]:
            scores = [cosine(own[i], others[j]) / temperature for j in counted]
            losses.append(np.log(np.sum(np.exp(scores))) - cosine(q[i], k[i]) / temperature)
        out[i] = np.mean(losses)
    return out


def test_equals_the_loop_with_any_temperature_and_mask(x64):
    for symmetric in (True, False):
        fn = jax.jit(
            lambda t, where, symmetric=symmetric: rj.losses.info_nce(Q, K, temperature=t, symmetric=symmetric, where=where)
        )
        for temperature, where in ((0.07, np.ones(8, bool)), (0.5, WHERE)):
            want = loop(Q, K, temperature, symmetric, np.flatnonzero(where))
            np.testing.assert_allclose(fn(temperature, where), want, rtol=1e-12, atol=1e-13)


def test_published_value_and_laws():
    info_nce = jax.jit(rj.losses.info_nce, static_argnames="symmetric")
    np.testing.assert_allclose(info_nce(jnp.eye(2), jnp.array([[0.8, 0.6], [0.6, 0.8]]), temperature=0.1), 0.12692801, rtol=1e-5)
    q, k = Q.astype(np.float32), K.astype(np.float32)
    plain = info_nce(q, k)
    np.testing.assert_allclose(info_nce(q * np.arange(1, 9)[:, None], 1e-3 * k), plain, rtol=1e-5)
    np.testing.assert_allclose(info_nce(k, q), plain, rtol=1e-5)
    one_way = [info_nce(*pair, symmetric=False) for pair in ((q, k), (k, q))]
    np.testing.assert_allclose(plain, (one_way[0] + one_way[1]) / 2, rtol=1e-5)
    np.testing.assert_allclose(info_nce(np.ones((8, 5), np.float32), np.ones((8, 5), np.float32)), np.log(8), rtol=1e-5)
    np.testing.assert_allclose(info_nce(np.zeros((8, 5), np.float32), k), np.log(8), rtol=1e-5)
    assert float(jnp.max(info_nce(np.eye(8, dtype=np.float32), np.eye(8, dtype=np.float32), temperature=0.01))) < 1e-6
    assert float(info_nce(q[:1], k[:1])[0]) == 0


def test_pairs_that_do_not_count_may_hold_anything():
    q, k = (x.astype(np.float32) for x in (Q, K))
    broken = np.where(WHERE[:, None], q, np.nan), np.where(WHERE[:, None], k, np.inf)
    loss = lambda q, k, where: jnp.sum(rj.losses.info_nce(q, k, where=where) ** 2)
    gradient = jax.jit(jax.value_and_grad(loss, (0, 1)))
    value, gradients = gradient(*broken, WHERE)
    want, few = gradient(q[WHERE], k[WHERE], None)
    assert float(value) == pytest.approx(float(want), rel=1e-5)
    for got, expected in zip(gradients, few, strict=True):
        np.testing.assert_allclose(got[WHERE], expected, rtol=1e-4, atol=1e-6)
        assert not np.any(got[~WHERE])


def test_averaged_gradients_over_devices_are_those_of_the_whole_batch():
    weights = RNG.normal(size=(5, 4)).astype(np.float32)
    q, k = Q.astype(np.float32), K.astype(np.float32)

    def loss(weights, q, k, where, **options):
        return jnp.mean(rj.losses.info_nce(q @ weights, jnp.tanh(k @ weights), where=where, **options))

    want = jax.jit(jax.grad(loss))(weights, q, k, WHERE)
    mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(jax.sharding.AxisType.Auto,) * 2)
    for axes in ("data", ("data", "model")):
        on_device = lambda *at, axes=axes: jax.lax.pmean(jax.grad(functools.partial(loss, axis_name=axes))(*at), axes)
        rows = jax.P(axes)
        over = jax.shard_map(on_device, mesh=mesh, in_specs=(jax.P(), rows, rows, rows), out_specs=jax.P(), check_vma=False)
        np.testing.assert_allclose(jax.jit(over)(weights, q, k, WHERE), want, rtol=1e-4, atol=1e-6)


def test_one_matrix_product():
    text = str(jax.make_jaxpr(rj.losses.info_nce)(Q.astype(np.float32), K.astype(np.float32)))
    assert text.count("dot_general[") == 1
