"""The policy network: its modes, its statistics, and a step of training with the masks."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import regjax as rj

# The tests compile much and run little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})


def test_policy_network_modes_and_training():
    images = jax.random.normal(jax.random.key(0), (8, 8, 8, 3))
    policy = rj.layers.NoiseMaskPolicy(3, grid=4, features=8, hidden=16, rngs=nnx.Rngs(0))
    # 3 convolutions with batch normalisation; two heads of three layers.
    sizes = 3 * 9 * 2 + 2 * 9 * 4 + 4 * 9 * 8 + 2 * (2 + 4 + 8)
    sizes += 2 * (8 * 16 + 16 * 16 + 16 * 16 + 16 + 4 * 16)
    assert sum(leaf.size for leaf in jax.tree.leaves(nnx.state(policy, nnx.Param))) == sizes
    graph, params, statistics = nnx.split(policy, nnx.Param, ...)

    @jit
    def modes(params):
        model = nnx.merge(graph, params, statistics, copy=True)
        trained = model(images)
        moved = model.norms[0].mean[...]
        model.eval()
        return trained, moved, model(images)[0], model(images[:4])[0], model(images[:4], use_running_average=False)[0]

    (raw_alpha, raw_beta), moved, whole, part, own = modes(params)
    assert raw_alpha.shape == raw_beta.shape == (8, 16)
    assert not np.array_equal(raw_alpha, raw_beta), "two heads of their own"
    assert np.any(moved), "a call in training mode moves the running statistics"
    np.testing.assert_allclose(whole[:4], part, atol=1e-5)
    assert np.abs(own - raw_alpha[:4]).max() > 1e-3, "in training mode the batch matters"

    # One REINFORCE step: the parameters move so that cheap masks grow more probable.
    base = jax.random.uniform(jax.random.key(1), (2, 1, 16))
    mask = jax.random.uniform(jax.random.key(2), (8, 16), minval=0.05, maxval=0.95)
    cost = jnp.where(mask.mean(1) > 0.5, 0.0, 1.0)

    @jit
    @jax.value_and_grad
    def loss(params):
        raw = nnx.merge(graph, params, statistics, copy=True)(images)
        log_alpha, log_beta = (rj.inputs.smooth_policy(r, b)[0] for r, b in zip(raw, base, strict=True))
        return rj.inputs.noise_mask_policy_loss(log_alpha, log_beta, mask, cost)

    before, gradient = loss(params)
    assert optax.tree.norm(gradient) > 0
    after, _ = loss(jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient))
    assert after < before
