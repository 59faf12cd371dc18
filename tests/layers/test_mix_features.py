"""Mixing of features against a loop, and its equality with the mixing of inputs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import regjax as rj

RNG = np.random.default_rng(0)
H = RNG.normal(size=(6, 3, 2))
PARTNER = np.array([2, 0, 0, 3, 5, 1])
BLOCKS = np.array([[1, 0], [1, 1], [0, 1]])


@pytest.mark.parametrize("lam", [0.3, RNG.random(6)])
def test_mix_features_is_the_loop_and_equals_mixup(x64, lam):
    weights = RNG.normal(size=H.shape)
    for partner, rows in ((PARTNER, PARTNER), (BLOCKS, [1, 0, 3, 3, 4, 5])):
        mix = functools.partial(rj.layers.mix_features, lam=lam, partner=partner)
        want, gradient = np.zeros_like(H), np.zeros_like(H)
        for i in range(6):
            weight = lam if np.ndim(lam) == 0 else lam[i]
            want[i] = weight * H[i] + (1 - weight) * H[rows[i]]
            gradient[i] += weight * weights[i]
            gradient[rows[i]] += (1 - weight) * weights[i]
        np.testing.assert_allclose(mix(H), want, rtol=1e-12)
        np.testing.assert_array_equal(mix(H), rj.inputs.apply_mixup(H, H, lam=lam, partner=partner)[0])
        np.testing.assert_allclose(jax.vjp(mix, jnp.asarray(H))[1](weights)[0], gradient, rtol=1e-12)


def test_weight_one_and_own_partner_are_exact():
    h = H.astype(jnp.bfloat16)
    assert rj.layers.mix_features(h, lam=0.3, partner=PARTNER).dtype == jnp.bfloat16
    np.testing.assert_array_equal(jax.jit(rj.layers.mix_features)(h, lam=1.0, partner=PARTNER), h)
    np.testing.assert_allclose(rj.layers.mix_features(H, lam=0.3, partner=np.arange(6)), H, rtol=1e-6)


def test_blocks_on_an_explicit_mesh():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    h = np.arange(16.0, dtype=np.float32)[:, None]
    for blocks in (2, 8):
        partner = np.broadcast_to(np.arange(16 // blocks)[::-1], (blocks, 16 // blocks))
        mix = jax.jit(lambda h, p=partner: rj.layers.mix_features(h, lam=0.25, partner=p))
        with jax.set_mesh(mesh):
            got = mix(jax.device_put(h, jax.P("data")))
        np.testing.assert_allclose(got, mix(h), rtol=1e-6)
