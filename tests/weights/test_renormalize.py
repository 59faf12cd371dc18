"""Weights of a fixed length: lengths, directions, references, and training that needs no L2."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj

RNG = np.random.default_rng(0)
PARAMS = {"a": {"kernel": RNG.normal(size=(3, 4)), "bias": np.ones(4)}, "b": {"kernel": np.zeros((2, 2))}, "n": np.arange(3)}
renormalize = jax.jit(rj.weights.renormalize, static_argnames="mask")


def test_lengths_and_directions(x64):
    after = renormalize(PARAMS, norm=2.5)
    kernel = PARAMS["a"]["kernel"]
    np.testing.assert_allclose(after["a"]["kernel"], 2.5 * kernel / np.sqrt(np.sum(kernel**2)), rtol=1e-12)
    np.testing.assert_array_equal(after["a"]["bias"], 1)
    np.testing.assert_array_equal(after["n"], np.arange(3))
    assert not after["b"]["kernel"].any()
    again = renormalize(after, norm=2.5)
    np.testing.assert_allclose(again["a"]["kernel"], after["a"]["kernel"], rtol=1e-14)
    reference = jax.tree.map(lambda x: 3 * np.cos(x), PARAMS)
    after = rj.weights.renormalize(PARAMS, "all", reference=reference)
    for path in (("a", "kernel"), ("a", "bias")):
        got, want = after[path[0]][path[1]], reference[path[0]][path[1]]
        np.testing.assert_allclose(np.linalg.norm(got), np.linalg.norm(want), rtol=1e-12)


def test_tiny_and_huge_weights_and_low_precision():
    for scale in (1e-30, 1e30):
        w = {"kernel": jnp.asarray(scale * RNG.normal(size=(4, 4)), jnp.float32)}
        np.testing.assert_allclose(jnp.linalg.norm(rj.weights.renormalize(w)["kernel"]), 1, rtol=1e-6)
    low = {"kernel": jnp.full((16, 16), 3.0, jnp.bfloat16)}
    after = rj.weights.renormalize(low)["kernel"]
    assert after.dtype == jnp.bfloat16 and np.all(np.asarray(after, np.float32) == 1 / 16)


def test_the_model_behind_a_normalisation_stays_and_the_gradient_scales(x64):
    x = RNG.normal(size=(32, 3))

    def loss(params):
        h = jnp.asarray(x) @ params["a"]["kernel"]
        return jnp.mean(jnp.tanh((h - h.mean(0)) / h.std(0)) ** 3)

    params = {"a": {"kernel": jnp.asarray(PARAMS["a"]["kernel"])}}
    unit = rj.weights.renormalize(params)
    np.testing.assert_allclose(loss(unit), loss(params), rtol=1e-12)
    size = np.linalg.norm(PARAMS["a"]["kernel"])
    want = jax.grad(loss)(params)["a"]["kernel"] * size
    np.testing.assert_allclose(jax.grad(loss)(unit)["a"]["kernel"], want, rtol=1e-9)
