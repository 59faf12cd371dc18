"""AugMix against a loop, and its sampler."""

import functools
import math
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from regjax.inputs.augmentation.augmix import _OPS, _sample_plan, symmetric_dirichlet

# The tests compile much and run little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)
OPS = ("rotate", "solarize", "auto_contrast")


def test_apply_augmix_is_the_loop(x64):
    images, chains = RNG.normal(size=(4, 3, 5, 2)), RNG.normal(size=(3, 4, 3, 5, 2))
    weights, m = RNG.dirichlet(np.ones(3), size=4), np.array([0.0, 0.3, 0.8, 1.0])
    apply = jit(rj.inputs.apply_augmix)
    got = apply(images, chains, weights=weights, m=m)
    for b in range(4):
        mixture = np.zeros_like(images[b])
        for i in range(3):
            mixture += weights[b, i] * chains[i, b]
        np.testing.assert_allclose(got[b], (1 - m[b]) * images[b] + m[b] * mixture, rtol=1e-12)
    np.testing.assert_array_equal(got[0], images[0])
    np.testing.assert_allclose(rj.inputs.apply_augmix(images, chains, weights=weights, m=0.3)[1], got[1], rtol=1e-12)


def test_output_lies_between_image_and_chains():
    """Posterised pixels are below those of the image, and not below black."""
    images = jnp.asarray(RNG.uniform(size=(64, 8, 8, 3)), jnp.float32)
    run = jit(functools.partial(rj.inputs.augmix, ops=("posterize",), severity=10, depth=1))
    got = np.asarray(run(jax.random.key(0), images)[0])
    assert np.all(got <= np.asarray(images) + 1e-6)
    assert np.all(got >= 0)
    assert np.abs(got - np.asarray(images)).max() > 0.1


def test_one_chain_taken_whole_is_the_plain_operation(monkeypatch):
    module = sys.modules["regjax.inputs.augmentation.augmix"]
    monkeypatch.setattr(module, "symmetric_beta", lambda key, alpha, shape: jnp.ones(shape))
    images = jnp.asarray(RNG.uniform(size=(60, 6, 6, 1)), jnp.float32)
    run = jit(functools.partial(rj.inputs.augmix, width=1, depth=1, ops=("posterize",), severity=7))
    got = np.asarray(run(jax.random.key(1), images)[0])
    levels, seen = np.asarray(images) * 255, set()
    for image, given in zip(got, levels, strict=True):
        bits = [b for b in (4, 3, 2) if np.allclose(image * 255, given // 2 ** (8 - b) * 2 ** (8 - b), atol=1e-3)]
        assert len(bits) == 1
        seen.add(bits[0])
    assert seen == {4, 3, 2}


def test_chains_are_drawn_as_published():
    ops = (*_OPS, "brightness")
    sample = jit(functools.partial(_sample_plan, ops=ops, sides=(60, 30)), static_argnums=1)
    plan = jax.tree.map(np.asarray, sample(jax.random.key(2), (3, -1, 3000), jnp.float32(7.0)))
    depth = (plan.operation >= 0).sum(1)
    assert np.all((plan.operation >= 0) == (np.arange(3)[:, None] < depth[:, None])), "the first slots are used"
    for d in (1, 2, 3):
        assert abs((depth == d).mean() - 1 / 3) < 5 * math.sqrt(2 / 9 / 9000)
    used = plan.operation[plan.operation >= 0]
    for place in range(10):
        assert abs((used == place).mean() - 0.1) < 5 * math.sqrt(0.09 / used.size)
    arg = {name: plan.arg[plan.operation == place] for place, name in enumerate(ops)}
    assert set(arg["rotate"]) == {s * d for s in (1, -1) for d in range(21)}
    assert set(arg["posterize"]) == {4, 3, 2}
    assert set(arg["translate_x"]) == {s * p for s in (1, -1) for p in range(7)}
    assert set(arg["translate_y"]) == {s * p for s in (1, -1) for p in range(14)}
    assert arg["solarize"].min() == 256 - 179 and arg["solarize"].max() >= 250
    level = np.abs(arg["shear_x"]) / 0.03
    assert level.min() >= 0.1 and level.max() <= 7
    assert abs(level.mean() - 3.55) < 5 * 6.9 / math.sqrt(12 * level.size)
    assert abs((arg["shear_x"] > 0).mean() - 0.5) < 5 * 0.5 / math.sqrt(level.size)
    assert arg["brightness"].min() + 1e-6 >= 0.1 + 0.018 and arg["brightness"].max() <= 0.1 + 1.26
    fixed = sample(jax.random.key(2), (2, 4, 50), jnp.float32(1.0))
    assert fixed.operation.shape == (2, 4, 50) and np.all(np.asarray(fixed.operation) >= 0)


def test_weights_are_dirichlet():
    draw = jit(lambda key, alpha: symmetric_dirichlet(key, alpha, (20000, 3)))
    for alpha in (0.05, 0.5, 1.0, 8.0):
        w = np.asarray(draw(jax.random.key(3), alpha), float)
        np.testing.assert_allclose(w.sum(1), 1, rtol=1e-5)
        assert np.all(np.isfinite(w))
        variance = 2 / (9 * (3 * alpha + 1))
        assert np.all(abs(w.mean(0) - 1 / 3) < 5 * math.sqrt(variance / 20000))
        fourth = ((w - 1 / 3) ** 4).mean(0)
        assert np.all(abs(w.var(0) - variance) < 5 * np.sqrt((fourth - variance**2) / 20000))
        # The marginal is Beta(alpha, 2 alpha): its third moment too.
        a, total = alpha, 3 * alpha
        third = a * (a + 1) * (a + 2) / (total * (total + 1) * (total + 2))
        assert np.all(abs((w**3).mean(0) - third) < 5 * (w**3).std(0) / math.sqrt(20000))


def test_severity_zero_changes_nothing_and_strengths_may_be_traced():
    images = jnp.asarray(RNG.uniform(size=(6, 8, 8, 3)), jnp.float32)
    labels = jnp.arange(6)
    run = jit(functools.partial(rj.inputs.augmix, width=2, depth=1, ops=OPS, interpolation="nearest"))
    plain, same = run(jax.random.key(4), images, labels, severity=0.0, alpha=1.0)
    np.testing.assert_array_equal(plain, images)
    np.testing.assert_array_equal(same, labels)
    got = run(jax.random.key(4), images, labels, severity=5.0, alpha=0.2)[0]
    assert np.all(np.isfinite(got))
    assert not np.array_equal(got, images)
    fixed = jit(functools.partial(rj.inputs.augmix, width=2, depth=1, ops=OPS, interpolation="nearest", severity=5.0, alpha=0.2))
    np.testing.assert_allclose(fixed(jax.random.key(4), images)[0], got, atol=1e-6)


def test_each_image_has_its_own_part_of_the_mixture():
    images = jnp.full((2000, 4, 4, 1), 0.9)
    run = jit(functools.partial(rj.inputs.augmix, ops=("solarize",), severity=10, depth=1, width=1, alpha=2.0))
    got = run(jax.random.key(5), images)[0]
    # A threshold of at most 229, from a level of 27 / 25.6 on, turns 0.9 to 0.1, and m ~ Beta(2, 2) of it is taken.
    changed = np.asarray(got)[:, 0, 0, 0][np.asarray(got)[:, 0, 0, 0] < 0.9 - 1e-6]
    m = (0.9 - changed) / 0.8
    assert abs(len(changed) / 2000 - (10 - 27 / 25.6) / 9.9) < 5 * math.sqrt(0.1 * 0.9 / 2000)
    assert abs(m.mean() - 0.5) < 5 * math.sqrt(0.05 / len(m))
    assert abs(m.var() - 0.05) < 0.01


def test_misspelt_operations_are_told():
    with pytest.raises(ValueError, match=r"ops must be one of .*did you mean 'rotate'"):
        rj.inputs.augmix(jax.random.key(0), jnp.ones((2, 4, 4, 3)), ops=("rotat",))


@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_a_sharded_batch_is_augmented_without_communication(kind):
    """Images of 256 pixels and more, which are equalised too."""
    images = jnp.asarray(RNG.uniform(size=(8, 17, 16, 3)), jnp.float32)
    fn = functools.partial(rj.inputs.augmix, width=2, depth=1, ops=("rotate", "equalize"))
    mesh = jax.make_mesh((8,), ("data",), axis_types=(getattr(jax.sharding.AxisType, kind),))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(images, jax.NamedSharding(mesh, jax.P("data")))
        compiled = jax.jit(fn).lower(jax.random.key(6), sharded).compile()
        got = compiled(jax.random.key(6), sharded)[0]
    assert not re.search("all-gather|all-reduce|all-to-all|collective-permute", compiled.as_text())
    assert got.sharding.spec[0] == "data"
    np.testing.assert_allclose(got, jit(fn)(jax.random.key(6), images)[0], atol=1e-6)
