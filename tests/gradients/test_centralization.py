"""Gradient centralization: its loop, its laws, and which leaves it leaves alone."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import regjax as rj

RNG = np.random.default_rng(0)
GRADS = {
    "dense": {"kernel": RNG.normal(size=(5, 3)), "bias": RNG.normal(size=3)},
    "conv": {"kernel": RNG.normal(size=(2, 3, 4, 5))},
    "attention": RNG.normal(size=(4, 2, 3)),
}


def apply(grads, **options):
    tx = rj.gradients.centralize_gradient(**options)
    return tx.update(grads, tx.init(grads))[0]


def reference(g, axis):
    out = np.array(g)
    for k in range(g.shape[axis]):
        at = (*[slice(None)] * (axis % g.ndim), k)
        out[at] = g[at] - np.mean(g[at])
    return out


def test_equals_its_reference_and_laws(x64):
    @jax.jit
    def run(grads):
        last = apply(grads)
        constant = apply(jax.tree.map(lambda g: jnp.full_like(g, 0.7), grads))
        return (
            last,
            apply(last),
            constant,
            apply(grads, output_axis=0),
            apply(grads, conv_only=True),
            apply(grads, where="kernels"),
        )

    last, twice, constant, first, conv, kernels = run(GRADS)
    for axis, got in ((-1, last), (0, first)):
        for name in ("conv", "dense"):
            g = GRADS[name]["kernel"]
            np.testing.assert_allclose(got[name]["kernel"], reference(g, axis), rtol=1e-12, atol=1e-14)
        np.testing.assert_allclose(got["attention"], reference(GRADS["attention"], axis), rtol=1e-12, atol=1e-14)
        np.testing.assert_array_equal(got["dense"]["bias"], GRADS["dense"]["bias"])
    np.testing.assert_allclose(np.sum(last["conv"]["kernel"], (0, 1, 2)), 0, atol=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-14), twice, last)
    np.testing.assert_allclose(constant["conv"]["kernel"], 0, atol=1e-15)
    np.testing.assert_array_equal(conv["dense"]["kernel"], GRADS["dense"]["kernel"])
    np.testing.assert_array_equal(conv["attention"], GRADS["attention"])
    np.testing.assert_array_equal(conv["conv"]["kernel"], last["conv"]["kernel"])
    np.testing.assert_array_equal(kernels["dense"]["kernel"], last["dense"]["kernel"])


def test_dtypes_and_absent_updates():
    low = jnp.asarray(1000 + RNG.normal(size=(64, 4)), jnp.bfloat16)
    out = apply({"k": low, "none": None, "masked": optax.MaskedNode(), "ids": jnp.ones((2, 2), int)})
    assert out["k"].dtype == jnp.bfloat16 and out["none"] is None and out["masked"] == optax.MaskedNode()
    want = np.asarray(low, np.float32) - np.asarray(low, np.float32).mean(0)
    np.testing.assert_array_equal(out["k"], jnp.asarray(want, jnp.bfloat16))
    np.testing.assert_array_equal(out["ids"], 1)
    injected = optax.inject_hyperparams(rj.gradients.centralize_gradient)(conv_only=False)
    assert np.array_equal(injected.update({"k": low}, injected.init({"k": low}), {"k": low})[0]["k"], out["k"])
