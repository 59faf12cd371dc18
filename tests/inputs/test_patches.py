"""Patch masks against loops and the published counts, and patches as images."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
random_patch_mask = jax.jit(rj.inputs.random_patch_mask, static_argnames=("batch", "num_patches", "mask_ratio"))


def patch_mask(noise, kept):
    """Keep, mask and restore of one image."""
    order = sorted(range(len(noise)), key=lambda j: (noise[j], j))
    mask, restore = [True] * len(noise), [0] * len(noise)
    for rank, j in enumerate(order):
        restore[j] = rank
        mask[j] = rank >= kept
    return order[:kept], mask, restore


def patches(image, side):
    out = []
    for h in range(image.shape[0] // side):
        for w in range(image.shape[1] // side):
            pixels = [image[h * side + p, w * side + q] for p in range(side) for q in range(side)]
            out.append(np.concatenate(pixels))
    return np.array(out)


def test_masks_equal_the_loop_also_at_ties():
    noise = np.concatenate([RNG.uniform(size=(5, 12)), RNG.integers(0, 3, (5, 12)) / 4, np.zeros((1, 12))])
    for ratio, kept in ((0.75, 3), (0.5, 6), (0.0, 12), (0.9, 1)):
        got = rj.inputs.apply_patch_mask(jnp.asarray(noise, jnp.float32), mask_ratio=ratio)
        want = [patch_mask(row, kept) for row in noise]
        for have, expected in zip(got, zip(*want, strict=True), strict=True):
            np.testing.assert_array_equal(have, expected)
        assert (got.mask.dtype, got.ids_keep.dtype, got.ids_restore.dtype) == (jnp.bool_, jnp.int32, jnp.int32)


def test_the_number_of_kept_patches_is_exact():
    kept = lambda length, ratio: jax.eval_shape(
        functools.partial(rj.inputs.apply_patch_mask, mask_ratio=ratio), jax.ShapeDtypeStruct((1, length), jnp.float32)
    ).ids_keep.shape[1]
    assert (kept(196, 0.75), kept(10, 0.9), kept(10, 0.7), kept(1, 0.0)) == (49, 1, 3, 1)
    for length in (7, 10, 49, 64, 100, 196):
        for percent in range(0, 100, 7):
            want = math.floor(length * (1 - Fraction(percent, 100)))
            if want:
                assert kept(length, percent / 100) == want


def test_every_patch_is_as_likely_and_every_order():
    keep, mask, restore = map(np.asarray, random_patch_mask(jax.random.key(0), 20000, 8, mask_ratio=0.75))
    assert np.all(mask.sum(1) == 6)
    np.testing.assert_array_equal(np.sort(restore, 1), np.tile(np.arange(8), (20000, 1)))
    np.testing.assert_array_equal(np.take_along_axis(restore, keep, 1), np.tile(np.arange(2), (20000, 1)))
    # The 56 ordered pairs of kept patches.
    counts = np.bincount(keep[:, 0] * 8 + keep[:, 1], minlength=64).reshape(8, 8)
    assert not counts.diagonal().any()
    off = counts[~np.eye(8, dtype=bool)]
    assert np.all(np.abs(off - 20000 / 56) < 5 * math.sqrt(20000 / 56))
    # Images are independent: neighbours share a first patch once in eight.
    same = np.mean(keep[1:, 0] == keep[:-1, 0])
    assert abs(same - 1 / 8) < 5 * math.sqrt(7 / 64 / 20000)


def test_kept_tokens_return_to_their_places():
    tokens, token = RNG.normal(size=(6, 12, 3)), RNG.normal(size=3)
    mask = random_patch_mask(jax.random.key(1), 6, 12, mask_ratio=0.75)

    def run(tokens, token):
        kept = rj.inputs.keep_tokens(tokens, mask.ids_keep)
        return kept, rj.inputs.restore_tokens(kept, mask.ids_restore, token)

    kept, restored = jax.jit(run)(jnp.asarray(tokens, jnp.float32), jnp.asarray(token, jnp.float32))
    assert kept.shape == (6, 3, 3)
    want = np.where(np.asarray(mask.mask)[:, :, None], token, tokens)
    np.testing.assert_allclose(restored, want, rtol=1e-6)
    # As the authors: the mask tokens appended, then one gather.
    appended = np.concatenate([np.asarray(kept), np.tile(token, (6, 9, 1))], 1)
    np.testing.assert_allclose(restored, np.take_along_axis(appended, np.asarray(mask.ids_restore)[:, :, None], 1), rtol=1e-6)
    # Each kept token has its gradient, the mask token that of every hidden patch.
    by_tokens, by_token = jax.jit(jax.grad(lambda *a: run(*a)[1].sum(), argnums=(0, 1)))(
        jnp.asarray(tokens, jnp.float32), jnp.asarray(token, jnp.float32)
    )
    np.testing.assert_array_equal(by_tokens, np.broadcast_to(~np.asarray(mask.mask)[:, :, None], tokens.shape))
    np.testing.assert_allclose(by_token, np.full(3, 54.0))
    ids = jnp.asarray(RNG.normal(size=(6, 12)), jnp.float32)  # tokens may have any shape behind
    np.testing.assert_array_equal(rj.inputs.keep_tokens(ids, mask.ids_keep), np.take_along_axis(ids, mask.ids_keep, 1))


def test_patches_equal_the_loop_and_return_to_images():
    images = jnp.asarray(RNG.normal(size=(2, 6, 9, 2)), jnp.float32)
    got = rj.inputs.patchify(images, 3)
    np.testing.assert_array_equal(got, [patches(np.asarray(image), 3) for image in images])
    np.testing.assert_array_equal(rj.inputs.unpatchify(got, 3, shape=(6, 9)), images)
    square = images[:, :, :6]
    np.testing.assert_array_equal(rj.inputs.unpatchify(rj.inputs.patchify(square, 2), 2), square)
    np.testing.assert_array_equal(rj.inputs.patchify(square, 6)[:, 0], square.reshape(2, -1))
    np.testing.assert_array_equal(rj.inputs.patchify(square, 1), square.reshape(2, 36, 2))


def test_sharded_batches_keep_their_sharding():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    images = jnp.asarray(RNG.normal(size=(8, 4, 4, 1)), jnp.float32)

    @jax.jit
    def run(key, images):
        tokens = rj.inputs.patchify(images, 2)
        mask = rj.inputs.random_patch_mask(key, 8, 4, mask_ratio=0.5)
        kept = rj.inputs.keep_tokens(tokens, mask.ids_keep)
        out = rj.inputs.restore_tokens(kept, mask.ids_restore, jnp.zeros(4))
        return rj.inputs.unpatchify(out, 2), rj.losses.masked_patch_loss(out, images, mask.mask, patch_size=2)

    want = run(jax.random.key(0), images)
    with jax.set_mesh(mesh):
        sharded = jax.device_put(images, jax.NamedSharding(mesh, jax.P("data")))
        got = run(jax.random.key(0), sharded)
        text = run.lower(jax.random.key(0), sharded).compile().as_text()
    assert got[0].sharding.spec[0] == "data"
    assert "all-gather" not in text and "all-to-all" not in text  # only the loss is summed over devices
    np.testing.assert_allclose(got[0], want[0])
    assert float(got[1]) == pytest.approx(float(want[1]), rel=1e-6)
