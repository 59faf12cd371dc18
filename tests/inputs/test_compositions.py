"""Every pair of input transforms, in either order, and all of them in one training step."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

B, H, K = 8, 16, 5
IMAGES = jnp.asarray(np.random.default_rng(0).uniform(size=(B, H, H, 3)), jnp.float32)
LABELS = jax.nn.one_hot(jnp.arange(B) % K, K)
CAM = jnp.asarray(np.random.default_rng(1).uniform(size=(B, 4, 4)), jnp.float32)


def unlabelled(fn, **options):
    return lambda key, images, labels: (fn(key, images, **options), labels)


def noise_mask(key, images, labels):
    logs = jnp.zeros((len(images), 16))
    mask, _ = rj.inputs.sample_noise_mask(key, logs, logs, image_size=images.shape[1:3], grid=4, kernel_size=3, sigma=1.0)
    return images * mask, labels


def patch_mask(key, images, labels):
    patches = rj.inputs.patchify(images, 4)
    hidden = rj.inputs.random_patch_mask(key, *patches.shape[:2], mask_ratio=0.5).mask
    return rj.inputs.unpatchify(jnp.where(hidden[..., None], 0, patches), 4), labels


def panorama(key, images, labels):
    canvas, _ = rj.inputs.boundary_rearrange(images, pad=2)
    return rj.inputs.boundary_restore(canvas, pad=2)[:, :, 2:-2], labels


TRANSFORMS = {
    "mixup": rj.inputs.mixup,
    "cutmix": rj.inputs.cutmix,
    "batch_mix": functools.partial(rj.inputs.batch_mix, mode="elem", cutmix_alpha=1.0),
    "cutout": functools.partial(rj.inputs.cutout, length=6),
    "random_erasing": functools.partial(rj.inputs.random_erasing, prob=1.0, mode="rand"),
    "randaugment": functools.partial(rj.inputs.randaugment, magnitude=6),
    "augmix": rj.inputs.augmix,
    "batch_style": functools.partial(rj.inputs.batch_style, max_ratio=0.3),
    "noise_mask": noise_mask,
    "cam_mask_refill": functools.partial(rj.inputs.cam_mask_refill, cam=CAM),
    "random_mask_refill": functools.partial(rj.inputs.random_mask_refill, grid=(4, 4), fill="multi"),
    "selmix_mix": lambda key, images, labels: (rj.inputs.selmix_mix(key, images, images[::-1]), labels),
    "modality_dropout": unlabelled(rj.inputs.modality_dropout, rate=0.5),
    "patch_mask": patch_mask,
    "panorama": panorama,
}


@functools.cache
def compiled(name):
    return jax.jit(TRANSFORMS[name])


def test_pairs_in_either_order():
    first = {name: compiled(name)(jax.random.key(1), IMAGES, LABELS) for name in TRANSFORMS}
    for a, b in itertools.product(TRANSFORMS, repeat=2):
        images, labels = compiled(b)(jax.random.key(2), *first[a])
        assert images.shape == IMAGES.shape and images.dtype == IMAGES.dtype, (a, b)
        assert np.isfinite(images).all(), (a, b)
        np.testing.assert_allclose(labels.sum(-1), 1, rtol=1e-5, err_msg=f"{a}, {b}")
    changed = [name for name, (images, _) in first.items() if not np.array_equal(images, IMAGES)]
    assert set(TRANSFORMS) - set(changed) == {"panorama"}  # restoring undoes it


@pytest.mark.slow
def test_all_in_one_training_step():
    def apply_fn(params, state, images, *, key, hooks, training):
        features = hooks.mix(0, images).mean((1, 2))
        return rj.Outputs(features @ params["kernel"], features, state)

    draw = functools.partial(rj.inputs.manifold_mixup_weights, layers=(0, 1))
    recipe = rj.Recipe(inputs=tuple(TRANSFORMS.values()), layers=rj.Hooks(manifold=draw))
    train = rj.make_train_step(recipe, apply_fn, num_classes=K)
    state = train.init(jax.random.key(0), {"kernel": jnp.zeros((3, K))})
    step = jax.jit(train.step)
    batch = {"image": IMAGES, "label": jnp.arange(B) % K}
    losses = []
    for _ in range(3):
        state, metrics = step(state, batch)
        losses.append(float(metrics["loss"]))
    assert losses[0] == pytest.approx(np.log(K), rel=1e-5) and np.isfinite(losses).all()
    assert step._cache_size() == 1
