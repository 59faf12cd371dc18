"""Recipes that change the training batch."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

import regjax as rj
from experiments.recipes.setting import Setting, sgd, tuned


def on_unit_range(transform: Callable[..., Any]) -> Callable[..., Any]:
    """A transform of pixels in [0, 1] for normalised images, which the least and greatest value of their batch bring there."""

    def fn(key: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        low = jnp.min(images)
        scale = jnp.maximum(jnp.max(images) - low, 1e-6)
        moved, labels = transform(key, (images - low) / scale, labels)
        return moved * scale + low, labels

    return fn


@tuned(alpha=(0.5, 1.0, 2.0, 4.0, 8.0))
def mixup(s: Setting, alpha: float = 8.0) -> rj.Recipe:
    """Convex combinations of two images and their labels."""
    return rj.Recipe(inputs=(partial(rj.inputs.mixup, alpha=alpha),), optimizer=sgd(s))


@tuned(alpha=(1.0,), prob=(0.5, 0.75, 1.0))
def cutmix(s: Setting, alpha: float = 1.0, prob: float = 1.0) -> rj.Recipe:
    """A box of another image pasted in, labels mixed by area."""
    return rj.Recipe(inputs=(partial(rj.inputs.cutmix, alpha=alpha, prob=prob),), optimizer=sgd(s))


@tuned(length=(2, 4, 6))
def cutout(s: Setting, length: int = 6) -> rj.Recipe:
    """A square hole in each image."""
    return rj.Recipe(inputs=(partial(rj.inputs.cutout, length=length),), optimizer=sgd(s))


@tuned(mixup_alpha=(1.0, 4.0), cutmix_alpha=(1.0, 4.0))
def batch_mix(s: Setting, mixup_alpha: float = 4.0, cutmix_alpha: float = 4.0) -> rj.Recipe:
    """Mixup and CutMix taken in turn, each pair of images its own."""
    mix = partial(rj.inputs.batch_mix, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha, mode="elem", label_smoothing=0.0)
    return rj.Recipe(inputs=(mix,), optimizer=sgd(s))


@tuned(alpha=(1.0, 2.0, 4.0, 8.0, 16.0))
def manifold_mixup(s: Setting, alpha: float = 16.0) -> rj.Recipe:
    """Mixup of the image or of what enters the first block, one of them drawn in each step."""
    draw = partial(rj.inputs.manifold_mixup_weights, alpha=alpha, layers=(0, 1))
    return rj.Recipe(layers=rj.Hooks(manifold=draw), optimizer=sgd(s))


@tuned(prob=(0.5, 1.0), max_area=(0.33, 0.6))
def random_erasing(s: Setting, prob: float = 1.0, max_area: float = 0.6) -> rj.Recipe:
    """A rectangle of noise in each image."""
    erase = partial(rj.inputs.random_erasing, prob=prob, max_area=max_area, mode="pixel")
    return rj.Recipe(inputs=(erase,), optimizer=sgd(s))


@tuned(magnitude=(1.0, 2.0, 3.0, 5.0))
def randaugment(s: Setting, magnitude: float = 3.0) -> rj.Recipe:
    """Two random operations on each image."""
    augment = on_unit_range(partial(rj.inputs.randaugment, magnitude=magnitude, fill=0.0))
    return rj.Recipe(inputs=(augment,), optimizer=sgd(s))


@tuned(severity=(1.0, 3.0), weight=(1.0, 3.0, 12.0))
def augmix(s: Setting, severity: float = 3.0, weight: float = 12.0) -> rj.Recipe:
    """Each image three times, twice as a mix of chains of operations, and predictions that agree."""
    mix = on_unit_range(partial(rj.inputs.augmix, severity=severity))

    def views(key: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        first, second = jax.random.split(key)
        augmented = [mix(k, images, labels)[0] for k in (first, second)]
        return jnp.concatenate([images, *augmented]), jnp.concatenate([labels] * 3)

    def loss(logits: Any, labels: Any) -> Any:
        clean, *augmented = jnp.split(logits, 3)
        consistency = rj.losses.jensen_shannon_consistency(clean, *augmented, weight=weight)
        return rj.losses.label_smoothing(clean, labels[: len(clean)], alpha=0.0) + consistency

    return rj.Recipe(inputs=(views,), loss=loss, optimizer=sgd(s))


@tuned(max_ratio=(0.05, 0.1, 0.3, 1.0))
def batch_style(s: Setting, max_ratio: float = 0.05) -> rj.Recipe:
    """All images of a batch get the low-frequency amplitudes of one of them."""
    return rj.Recipe(inputs=(partial(rj.inputs.batch_style, max_ratio=max_ratio),), optimizer=sgd(s))


@tuned(concentration=(0.1, 0.3, 1.0, 3.0))
def noise_mask(s: Setting, concentration: float = 0.1) -> rj.Recipe:
    """Each image times a smooth random mask."""

    def mask(key: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        log = jnp.log(concentration) if isinstance(concentration, jax.Array) else math.log(concentration)
        logs = jnp.full((len(images), 16), log)
        drawn, _ = rj.inputs.sample_noise_mask(key, logs, logs, image_size=images.shape[1:3], grid=4, kernel_size=3, sigma=1.0)
        return images * drawn, labels

    return rj.Recipe(inputs=(mask,), optimizer=sgd(s))


@tuned(mask_ratio=(0.25, 0.5, 0.75, 0.85))
def patch_masking(s: Setting, mask_ratio: float = 0.75) -> rj.Recipe:
    """A share of the 2x2 patches of each image hidden, as in a masked autoencoder."""

    def mask(key: Any, images: Any, labels: Any) -> tuple[Any, Any]:
        patches = rj.inputs.patchify(images, 2)
        hidden = rj.inputs.random_patch_mask(key, *patches.shape[:2], mask_ratio=mask_ratio).mask
        return rj.inputs.unpatchify(jnp.where(hidden[..., None], 0, patches), 2, shape=images.shape[1:3]), labels

    return rj.Recipe(inputs=(mask,), optimizer=sgd(s))
