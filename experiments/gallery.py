"""``python -m experiments.gallery``: every input transform on two photographs, with its parameters in the captions."""

import argparse
import dataclasses
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np

import regjax as rj

SIDE = 160


@dataclasses.dataclass(frozen=True)
class Entry:
    """A cell of the gallery.

    Attributes:
      name: the technique.
      caption: its parameters.
      fn: ``fn(key, images [B, H, W, 3], labels [B, 4]) -> (images, labels or None)``; the first two images are shown.
      seed: of its key, chosen so that the random draw shows what the technique does.
    """

    name: str
    caption: str
    fn: Callable[..., tuple[Any, Any]]
    seed: int = 0


def photographs() -> tuple[jax.Array, jax.Array]:
    """Four crops of scikit-learn's two photographs, in [0, 1], float ``[4, SIDE, SIDE, 3]``, and their one-hot labels."""
    from PIL import Image
    from sklearn.datasets import load_sample_image

    crops = []
    for left in (110, 0):
        for name in ("china", "flower"):
            square = Image.fromarray(load_sample_image(f"{name}.jpg")[:, left : left + 427])
            crops.append(np.asarray(square.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.float32) / 255)
    return jnp.asarray(np.stack(crops)), jnp.eye(4)


def _unlabelled(fn: Callable[..., Any], **options: Any) -> Callable[..., tuple[Any, Any]]:
    """A transform of images alone."""
    return lambda key, images, labels: (fn(key, images, **options), None)


def _noise_mask(key: Any, images: Any, labels: Any) -> tuple[Any, Any]:
    uniform = jnp.zeros((images.shape[0], 16 * 16))
    mask, _ = rj.inputs.sample_noise_mask(key, uniform, uniform, image_size=(SIDE, SIDE), grid=16, kernel_size=13, sigma=6.0)
    return images * mask, None


def _cam() -> jax.Array:
    """A class activation map with its peak in the middle, ``[4, 10, 10]``."""
    grid = jnp.linspace(-1, 1, 10)
    return jnp.tile(jnp.exp(-2 * (grid[:, None] ** 2 + grid**2)), (4, 1, 1))


def _cam_refill(mask: str, fill: str, threshold: float) -> Callable[..., tuple[Any, Any]]:
    refill = partial(rj.inputs.cam_mask_refill, threshold=threshold, mask=mask, fill=fill)
    return lambda key, images, labels: refill(key, images, labels, cam=_cam())


def _patch_mask(key: Any, images: Any, labels: Any) -> tuple[Any, Any]:
    patches = rj.inputs.patchify(images, 16)
    _, removed, _ = rj.inputs.random_patch_mask(key, *patches.shape[:2], mask_ratio=0.75)
    return rj.inputs.unpatchify(jnp.where(removed[..., None], 0.5, patches), 16), None


def _panorama(key: Any, images: Any, labels: Any) -> tuple[Any, Any]:
    canvas, unknown = rj.inputs.boundary_rearrange(images, pad=24)
    return jnp.where(unknown > 0, 0.5, canvas), None


def _restored(key: Any, images: Any, labels: Any) -> tuple[Any, Any]:
    return rj.inputs.boundary_restore(_panorama(key, images, labels)[0], pad=24), None


def _selmix(key: Any, images: Any, labels: Any) -> tuple[Any, Any]:
    return rj.inputs.selmix_mix(key, images, images[::-1], min_weight=0.6), labels


def _both_ways(name: str, magnitude: float) -> Entry:
    """One operation of RandAugment at a magnitude: on the first photograph in its first direction, on the second in its other."""
    table = "timm" if name in ("invert", "solarize_add") else "tpu" if name == "cutout" else "paper"
    arg = float(rj.inputs.randaugment_magnitude(name, magnitude, table=table, side=SIDE))
    other = arg
    if name.startswith(("rotate", "shear", "translate")):
        other = -arg
    elif name in ("color", "contrast", "brightness", "sharpness"):
        other = 2 - arg
    values = f"{arg:.3g} and {other:.3g}" if other != arg else f"{arg:.3g}" if arg else "no argument"
    operate = partial(rj.inputs.randaugment_op, name=name, centre=(SIDE // 2, SIDE // 3))
    return Entry(name, values, lambda key, images, labels: (operate(images, arg=jnp.array([arg, other, arg, other])), None))


TRANSFORMS = (
    Entry("the photographs", "", lambda key, images, labels: (images, labels)),
    Entry("mixup", "alpha=1", partial(rj.inputs.mixup, alpha=1.0, pairing="roll"), 3),
    Entry("cutmix", "alpha=1", partial(rj.inputs.cutmix, alpha=1.0, pairing="roll"), 1),
    Entry(
        "cutmix", "per='example', minmax=(0.2, 0.6)", partial(rj.inputs.cutmix, per="example", minmax=(0.2, 0.6), pairing="roll")
    ),
    Entry(
        "batch_mix",
        "mode='elem', mixup_alpha=0.8, cutmix_alpha=1",
        partial(rj.inputs.batch_mix, mode="elem", mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.0),
        3,
    ),
    Entry("selmix_mix", "min_weight=0.6; the label stays", _selmix, 1),
    Entry("cutout", "length=64", partial(rj.inputs.cutout, length=64, value=0.5)),
    Entry("random_erasing", "prob=1, mode='const'", partial(rj.inputs.random_erasing, prob=1.0)),
    Entry("random_erasing", "prob=1, mode='rand', count=3", partial(rj.inputs.random_erasing, prob=1.0, mode="rand", count=3)),
    Entry("random_erasing", "prob=1, mode='pixel'", partial(rj.inputs.random_erasing, prob=1.0, mode="pixel"), 1),
    Entry("randaugment", "num_ops=2, magnitude=5", partial(rj.inputs.randaugment, magnitude=5), 1),
    Entry("randaugment", "num_ops=2, magnitude=9", partial(rj.inputs.randaugment, magnitude=9), 4),
    Entry("augmix", "width=3, severity=3", rj.inputs.augmix),
    Entry("augmix", "width=3, severity=10", partial(rj.inputs.augmix, severity=10), 2),
    Entry(
        "batch_style",
        "ratio 0.02: style of one image for all",
        partial(rj.inputs.batch_style, min_ratio=0.02, max_ratio=0.02),
        1,
    ),
    Entry("sample_noise_mask", "grid=16, Beta(1, 1)", _noise_mask),
    Entry("cam_mask_refill", "mask='object', fill='single', threshold=0.3", _cam_refill("object", "single", 0.3), 1),
    Entry("cam_mask_refill", "mask='context', fill='multi', threshold=0.3", _cam_refill("context", "multi", 0.3)),
    Entry(
        "random_mask_refill",
        "grid=10, prob=0.5, fill='single'",
        partial(rj.inputs.random_mask_refill, grid=(10, 10), prob=0.5),
        2,
    ),
    Entry("random_patch_mask", "16x16 patches, mask_ratio=0.75", _patch_mask),
    Entry("modality_dropout", "rate=0.5: whole examples", _unlabelled(rj.inputs.modality_dropout, rate=0.5), 1),
    Entry("boundary_rearrange", "pad=24: unknown pixels grey", _panorama),
    Entry("boundary_restore", "of the one before", _restored),
)


OPERATIONS = tuple(
    _both_ways(name, 6.0)
    for name in (
        *("identity", "rotate", "shear_x", "shear_y", "translate_x", "translate_y", "auto_contrast", "equalize", "invert"),
        *("solarize", "solarize_add", "posterize", "color", "contrast", "brightness", "sharpness", "cutout"),
    )
)


def figure(entries: Sequence[Entry], columns: int = 4) -> plt.Figure:
    """The grid of a list of entries: two images a cell, and the labels that they end with."""
    images, labels = photographs()
    rows = -(-len(entries) // columns)
    grid, axes = plt.subplots(rows, columns, figsize=(3.5 * columns, 2.2 * rows), layout="constrained")
    for panel in axes.flat:
        panel.axis("off")
    for panel, entry in zip(axes.flat, entries, strict=False):
        shown, mixed = jax.jit(entry.fn)(jax.random.key(entry.seed), images, labels)
        gap = np.ones((shown.shape[1], 4, 3))
        panel.imshow(np.concatenate([np.clip(shown[0], 0, 1), gap, np.clip(shown[1], 0, 1)], axis=1))
        caption = entry.caption
        if mixed is not None and not np.array_equal(mixed, labels):
            own = "own label " + ", ".join(f"{mixed[i, i]:.2f}" for i in range(2))
            caption = f"{caption}\n{own}"
        panel.set_title(f"{entry.name}\n{caption}".strip(), fontsize=9)
    return grid


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m experiments.gallery", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/gallery"), help="the folder for the pictures")
    folder = parser.parse_args(arguments).out
    folder.mkdir(parents=True, exist_ok=True)
    for name, entries, columns in (("inputs", TRANSFORMS, 4), ("operations", OPERATIONS, 4)):
        picture = figure(entries, columns)
        picture.savefig(folder / f"{name}.jpg", dpi=90, pil_kwargs={"quality": 88})
        plt.close(picture)
        print(folder / f"{name}.jpg")
    return 0


if __name__ == "__main__":
    sys.exit(main())
