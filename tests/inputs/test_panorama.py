"""Swapped halves around a gap: the layout, its inverse, and what the gap is good for."""

import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj


def test_the_published_row():
    canvas, mask = rj.inputs.boundary_rearrange(jnp.arange(8.0).reshape(1, 1, 8, 1), pad=2)
    assert jnp.where(mask, -1, canvas).ravel().tolist() == [4, 5, 6, 7, -1, -1, -1, -1, 0, 1, 2, 3]
    assert mask.mean() == pytest.approx(4 / 12)
    painted = jnp.where(mask, jnp.arange(12.0)[None, None, :, None] * 10, canvas)
    assert rj.inputs.boundary_restore(painted, pad=2).ravel().tolist() == [60, 70, 0, 1, 2, 3, 4, 5, 6, 7, 40, 50]


@pytest.mark.parametrize("shape", [(2, 6, 8, 3), (2, 5, 7, 1), (1, 1, 1, 1)])
@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("pad", [0, 1, 3])
def test_layout_and_inverse(shape, axis, pad):
    images = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    canvas, mask = rj.inputs.boundary_rearrange(images, pad=pad, axis=axis)
    edges = [(pad, pad) if d == axis else (0, 0) for d in range(4)]
    wide = np.pad(images, edges)
    shift = -(pad + shape[axis] // 2)
    np.testing.assert_array_equal(canvas, np.roll(wide, shift, axis))
    unknown = np.pad(
        np.zeros((*shape[:3], 1), bool), [(pad, pad) if d == axis else (0, 0) for d in range(4)], constant_values=True
    )
    np.testing.assert_array_equal(mask, np.roll(unknown, shift, axis))
    np.testing.assert_array_equal(rj.inputs.boundary_restore(canvas, pad=pad, axis=axis), wide)


def test_a_gap_between_known_ends_is_easier_to_fill_than_an_end():
    """The claim at small scale: rows of a closed panorama, unknown pixels linear in the known ones within reach on each side."""
    rng, width, pad, reach = np.random.default_rng(0), 28, 2, 2
    places = 2 * np.pi * np.arange(width + 2 * pad) / (width + 2 * pad)
    frequency, phase = np.arange(1, 16), rng.uniform(0, 2 * np.pi, (3000, 15, 1))
    # A spectrum of 1 / f, as natural images have it.
    rows = (rng.normal(size=(3000, 15, 1)) / frequency[:, None] * np.cos(frequency[:, None] * places + phase)).sum(1)
    images = rows[:, None, pad : pad + width, None].astype(np.float32)
    canvas, mask = (np.asarray(x)[..., 0] for x in rj.inputs.boundary_rearrange(images, pad=pad))
    gap = np.flatnonzero(mask[0, 0])
    around = np.r_[gap[0] - reach : gap[0], gap[-1] + 1 : gap[-1] + 1 + reach]
    inside, restored = canvas[:, 0, around], rj.inputs.boundary_restore(jnp.asarray(canvas)[..., None], pad=pad)
    np.testing.assert_array_equal(restored[:, 0, pad:-pad, 0], rows[:, pad:-pad].astype(np.float32))
    ends = np.r_[pad + width : width + 2 * pad, 0:pad]

    def error(features, targets):
        features = np.c_[features, np.ones(len(features))]
        fit = np.linalg.lstsq(features[:2000], targets[:2000], rcond=None)[0]
        return np.square(features[2000:] @ fit - targets[2000:]).mean()

    two_sided = error(inside, rows[:, ends])
    left, right = images[:, 0, :reach, 0], images[:, 0, -reach:, 0]
    one_sided = (error(left, rows[:, :pad]) + error(right, rows[:, -pad:])) / 2
    assert two_sided < 0.9 * one_sided
