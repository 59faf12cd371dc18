"""Cutout against a loop and the published fractions, and its sampler."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj

# The tests compile much and run little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(4, 6, 9, 2)).astype(np.float32)


def cutout(images, length, centres, value):
    out = images.copy()
    _, height, width, _ = images.shape
    for i, holes in enumerate(centres):
        for row, column in holes:
            for y in range(max(row - length // 2, 0), min(row + length // 2, height)):
                for x in range(max(column - length // 2, 0), min(column + length // 2, width)):
                    out[i, y, x] = value
    return out


def test_apply_cutout_is_the_loop():
    centres = np.stack([RNG.integers(0, 6, (4, 3)), RNG.integers(0, 9, (4, 3))], -1)
    traced = jit(lambda length, value: rj.inputs.apply_cutout(IMAGES, length=length, centres=centres, value=value))
    for length in (0, 1, 3, 4, 30):
        want = cutout(IMAGES, length, centres, 0.5)
        np.testing.assert_array_equal(traced(length, 0.5), want)
        np.testing.assert_array_equal(traced(float(length), 0.5), want)
        if length < 2:
            np.testing.assert_array_equal(want, IMAGES)
    np.testing.assert_array_equal(rj.inputs.apply_cutout(IMAGES, length=4, centres=centres), cutout(IMAGES, 4, centres, 0))


def test_published_fractions():
    """The mean over all centres: sides of 14 of 16 at 32 x 32, and 19.140625% hidden."""
    for side, length in ((32, 16), (8, 4)):
        centres = np.stack(np.meshgrid(np.arange(side), np.arange(side)), -1).reshape(-1, 1, 2)
        cut = jit(functools.partial(rj.inputs.apply_cutout, length=length))
        hidden = np.asarray(cut(np.ones((side**2, side, side, 1), np.float32), centres=centres)) == 0
        assert hidden.mean() == 0.19140625
        assert hidden.any(2).sum() / side**2 == 14 * side / 32
    corner = rj.inputs.apply_cutout(jnp.ones((1, 6, 6, 1)), length=4, centres=np.zeros((1, 1, 2), int))[0, :, :, 0] == 0
    np.testing.assert_array_equal(corner, np.pad(np.ones((2, 2), bool), ((0, 4), (0, 4))))


def test_hidden_pixels_get_no_gradient():
    centres = np.array([[[2, 3]]] * 4)
    gradient = jax.grad(lambda x: rj.inputs.apply_cutout(x, length=4, centres=centres).sum())(IMAGES)
    want = cutout(np.ones_like(IMAGES), 4, centres, 0)
    np.testing.assert_array_equal(gradient, want)


def test_the_sampler():
    images, labels = jnp.ones((3000, 32, 32, 2), jnp.bfloat16), jnp.arange(3000)
    cut, same = jit(functools.partial(rj.inputs.cutout, length=16))(jax.random.key(0), images, labels)
    assert cut.dtype == jnp.bfloat16
    np.testing.assert_array_equal(same, labels)
    hidden = np.asarray(cut == 0)
    fraction = hidden[..., 0].mean((1, 2))
    assert abs(fraction.mean() - 0.19140625) < 5 * fraction.std() / np.sqrt(3000)
    # Centres are uniform: each row is hidden as often as the centres around it say.
    rows = hidden[..., 0].any(2).mean(0)
    want = np.array([sum(c - 8 <= y < c + 8 for c in range(32)) / 32 for y in range(32)])
    assert np.all(abs(rows - want) < 5 * np.sqrt(want * (1 - want) / 3000) + 1e-9)
    # Examples and holes have centres of their own.
    few, none = jit(functools.partial(rj.inputs.cutout, length=8, num_holes=2))(jax.random.key(1), images[:8])
    assert none is None
    assert len(np.unique(np.asarray(few, np.float32).reshape(8, -1), axis=0)) == 8
    assert 64 < (np.asarray(few) == 0).mean() * 32 * 32 <= 128
