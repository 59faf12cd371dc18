"""The radius that follows the learning rate."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import regjax as rj


def test_the_radius_follows_the_learning_rate_within_its_limits(x64):
    rate = optax.warmup_cosine_decay_schedule(0.0, 0.8, 10, 100, 0.1)
    rho = rj.schedules.gsam_rho(rate, rho_min=0.02, rho_max=0.1, lr_min=0.1, lr_max=0.8)
    steps = np.arange(120)
    want = []
    for step in steps:
        share = (float(rate(step)) - 0.1) / (0.8 - 0.1)
        want.append(0.02 + (0.1 - 0.02) * min(max(share, 0.0), 1.0))
    got = jax.jit(rho)(jnp.asarray(steps))
    np.testing.assert_allclose(got, want, rtol=1e-6)
    np.testing.assert_allclose([got[0], got[10], got[119]], [0.02, 0.1, 0.02], rtol=1e-6)
    traced = jax.jit(lambda most: rj.schedules.gsam_rho(rate, rho_min=0.02, rho_max=most, lr_min=0.1, lr_max=0.8)(30))(0.1)
    np.testing.assert_allclose(traced, want[30], rtol=1e-6)
