"""Mixout: its values, mean and gradient, the authors' two variants, and which weights it touches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from regjax.weights import apply_mixout, mixout

RNG = np.random.default_rng(0)
PARAMS = {"kernel": RNG.normal(size=(4, 3)), "bias": RNG.normal(size=3)}
ANCHOR = {"kernel": RNG.normal(size=(4, 3)), "bias": RNG.normal(size=3)}
KEEP = {"kernel": RNG.random((4, 3)) < 0.6, "bias": None}
DIRECTION = RNG.normal(size=(4, 3))


def test_equals_its_formula_and_the_published_values(x64):
    got = jax.jit(lambda rate: apply_mixout(PARAMS, ANCHOR, KEEP, rate=rate))(0.3)
    for i in np.ndindex(4, 3):
        m, w, a = KEEP["kernel"][i], PARAMS["kernel"][i], ANCHOR["kernel"][i]
        assert float(got["kernel"][i]) == pytest.approx((m * w + (1 - m) * a - 0.3 * a) / 0.7, rel=1e-12)
    np.testing.assert_array_equal(got["bias"], PARAMS["bias"])
    kept, replaced = apply_mixout(jnp.array([2.0, 2.0]), jnp.ones(2), jnp.array([True, False]), rate=0.3)
    assert float(kept) == pytest.approx(2.428571429, abs=1e-9) and float(replaced) == 1.0
    assert 0.7 * float(kept) + 0.3 * float(replaced) == pytest.approx(2.0, rel=1e-12)
    # An anchor of 0 is DropConnect; weights at their anchor do not move.
    dropped = apply_mixout(PARAMS["kernel"], jnp.zeros((4, 3)), KEEP["kernel"], rate=0.3)
    np.testing.assert_allclose(dropped, PARAMS["kernel"] * KEEP["kernel"] / 0.7, rtol=1e-14)
    np.testing.assert_array_equal(apply_mixout(PARAMS, PARAMS, KEEP, rate=0.3)["kernel"], PARAMS["kernel"])


def test_gradients_of_the_formula_and_of_the_authors_code(x64):
    def value(params, rate, **options):
        return jnp.sum(DIRECTION * apply_mixout(params, ANCHOR, KEEP, rate=rate, **options)["kernel"])

    @jax.jit
    def gradients(rate):
        own, reference = (jax.grad(value)(PARAMS, rate, reference_gradient=flag) for flag in (False, True))
        return own, reference, value(PARAMS, rate), value(PARAMS, rate, reference_gradient=True)

    for rate in (0.3, 0.9):
        own, reference, a, b = gradients(rate)
        np.testing.assert_allclose(own["kernel"], DIRECTION * KEEP["kernel"] / (1 - rate), rtol=1e-12)
        np.testing.assert_allclose(reference["kernel"], DIRECTION * KEEP["kernel"], rtol=1e-14)
        assert a == b and not np.any(own["bias"])
    own, reference, a, b = gradients(1.0)
    assert not np.any(own["kernel"]) and a == b == pytest.approx(float(np.sum(DIRECTION * ANCHOR["kernel"])), rel=1e-12)


def test_the_share_of_replaced_weights_and_the_mean():
    shape, rate = (200, 100), 0.3
    params, anchor = {"a": jnp.full(shape, 2.0), "b": jnp.full(shape, 2.0)}, {"a": jnp.ones(shape), "b": jnp.ones(shape)}
    run = jax.jit(lambda key, rate: mixout(key, params, anchor, rate=rate))
    mixed = run(jax.random.key(0), rate)
    masks = {name: np.asarray(leaf) > 1 for name, leaf in mixed.items()}
    n = 200 * 100
    for name, kept in masks.items():
        assert abs(kept.mean() - 0.7) < 4 * np.sqrt(0.21 / n)
        assert abs(np.asarray(mixed[name]).mean() - 2) < 4 * np.sqrt(0.21 / n) / 0.7
    # Each leaf, and each key, has draws of its own.
    other = np.asarray(run(jax.random.key(1), rate)["a"]) > 1
    for kept in (masks["b"], other):
        assert abs(np.mean(masks["a"] == kept) - 0.58) < 4 * np.sqrt(0.25 / n)
    for rate, want in ((0.0, 2.0), (1.0, 1.0)):
        assert np.all(np.asarray(run(jax.random.key(0), rate)["a"]) == want)


def test_shared_axis_replaces_whole_inputs():
    params = {"dense": jnp.full((50, 8), 2.0), "conv": jnp.full((3, 3, 5, 6), 2.0, jnp.float32), "scale": jnp.full(40, 2.0)}
    anchor = jax.tree.map(jnp.ones_like, params)

    @jax.jit
    def both(key):
        mix = lambda **options: mixout(key, params, anchor, rate=0.5, **options)
        return mix(mask="all", shared_axis=-1), mix(shared_axis=0)

    mixed, rows = both(jax.random.key(0))
    for name in ("dense", "conv"):
        kept = np.asarray(mixed[name]) > 1
        assert np.array_equal(kept, np.broadcast_to(kept[..., :1], kept.shape)) and 0 < kept.mean() < 1
        assert np.asarray(mixed[name])[kept].min() == 3.0
    assert 0 < np.mean(np.asarray(mixed["scale"]) > 1) < 1
    kept = np.asarray(rows["dense"]) > 1
    assert np.array_equal(kept, np.broadcast_to(kept[:1], kept.shape))


def test_kernels_alone_unless_said_otherwise():
    params, anchor = (jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), t) for t in (PARAMS, ANCHOR))
    changed = lambda **options: {
        name: bool(np.any(np.asarray(leaf) != np.asarray(params[name])))
        for name, leaf in mixout(jax.random.key(0), params, anchor, rate=0.5, **options).items()
    }
    assert changed() == {"kernel": True, "bias": False}
    assert changed(mask="all") == {"kernel": True, "bias": True}
    assert changed(mask=lambda path, leaf: path[-1] == "bias") == {"kernel": False, "bias": True}
    assert changed(mask=False) == {"kernel": False, "bias": False}


def test_low_precision_is_mixed_in_float32():
    w, a = jnp.full(4, 2.0, jnp.bfloat16), jnp.full(4, 1.9921875, jnp.bfloat16)
    got = apply_mixout(w, a, jnp.ones(4, bool), rate=0.7)
    assert got.dtype == jnp.bfloat16 and float(got[0]) == float(jnp.bfloat16(2 + 0.0078125 * 7 / 3))
