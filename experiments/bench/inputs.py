"""The suite of input transforms: against copying the batch, and against timm and Keras."""

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from experiments.bench import libraries
from experiments.bench.results import Bound, Panel
from experiments.bench.timing import Subject, cost

SHAPES = {"32": (256, 32, 32, 3), "224": (64, 224, 224, 3), "tiny": (8, 16, 16, 3)}
DEFAULT = ("32", "224")
NUM_CLASSES = 10

COPIES = {
    "mixup": partial(rj.inputs.mixup, alpha=1.0),
    "mixup, a lam each": partial(rj.inputs.mixup, alpha=1.0, per="example"),
    "cutmix": partial(rj.inputs.cutmix, alpha=1.0),
    "cutmix, a box each": partial(rj.inputs.cutmix, alpha=1.0, per="example"),
    "cutout": partial(rj.inputs.cutout, length=8),
    "random_erasing": partial(rj.inputs.random_erasing, prob=0.5),
    "random_erasing, a colour each": partial(rj.inputs.random_erasing, prob=0.5, mode="rand"),
}
"""Transforms that should cost about as much as copying the batch."""


def panels(shape: tuple[int, int, int, int], threads: int) -> Iterator[Panel]:
    """What is measured together, on one batch."""
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    images = jnp.asarray(pixels, jnp.float32) / 255
    labels = jax.nn.one_hot(jnp.arange(shape[0]) % NUM_CLASSES, NUM_CLASSES)
    batch = (jax.random.key(0), images, labels)
    title = "x".join(map(str, shape))

    copied = jax.jit(jnp.copy)
    copy = Subject(lambda: jax.block_until_ready(copied(images)), cost(jnp.copy, images))
    ours = {name: _subject(fn, *batch) for name, fn in COPIES.items()}
    bounds = [Bound(name, "copying the batch", 2.0) for name in COPIES]
    yield Panel(f"{title}: against copying the batch", {"copying the batch": copy, **ours}, bounds)

    subjects, bounds = {}, []
    theirs = libraries.timm_mixup(np.array(images), np.array(labels), NUM_CLASSES, threads)
    for mode in ("batch", "pair", "elem"):
        for kind, alphas in libraries.MIXES.items():
            name = f"batch_mix {mode} {kind}"
            subjects[name] = _subject(partial(rj.inputs.batch_mix, **alphas, mode=mode), *batch)
            bounds += [Bound(name, f"timm Mixup {mode} {kind}", 1.0)] if theirs else []
    yield Panel(f"{title}: batch_mix against timm's Mixup, which overwrites its input", {**subjects, **theirs}, bounds)

    theirs = libraries.keras_mixing(images, labels)
    if theirs:
        kept = {f"batch_mix batch {kind}": subjects[f"batch_mix batch {kind}"] for kind in libraries.MIXES}
        pairs = (("mixup", "MixUp"), ("cutmix", "CutMix"))
        bounds = [Bound(f"batch_mix batch {a}", f"keras {b}{c}", 1 / 3) for a, b in pairs for c in ("", " compiled")]
        yield Panel(f"{title}: batch_mix against Keras on JAX", {**kept, **theirs}, bounds)

    subjects, bounds = {}, []
    pillow, keras = libraries.timm_randaugment(pixels), libraries.keras_randaugment(images)
    for kind in ("nearest", "bilinear"):
        alone = partial(rj.inputs.randaugment, table="timm", interpolation=kind)
        whole = lambda key, pixels, labels, alone=alone: alone(key, pixels.astype(jnp.float32) / 255, labels)
        subjects[f"randaugment {kind}"] = _subject(alone, *batch)
        subjects[f"randaugment {kind}, batch donated"] = _donating(alone, *batch)
        subjects[f"randaugment {kind}, arrays to batch"] = _subject(whole, batch[0], jnp.asarray(pixels), labels)
        if pillow:
            bounds += [Bound(f"randaugment {kind}{how}", f"timm RandAugment {kind}", 1 / 3) for how in ("", ", batch donated")]
            bounds += [Bound(*(f"{name} {kind}, arrays to batch" for name in ("randaugment", "timm RandAugment")), 1 / 3)]
    bounds += [Bound("randaugment bilinear", "keras RandAugment", 1 / 3)] if keras else []
    yield Panel(f"{title}: RandAugment, two operations an image", {**subjects, **pillow, **keras}, bounds)


def _donating(fn: Callable[..., Any], *args: Any) -> Subject:
    """A transform that overwrites its batch, as timm's does: every call takes the one that the call before has made."""
    key, images, labels = args
    compiled, keys = jax.jit(fn, donate_argnums=1), iter(jax.random.split(key, 100_000))
    current = jnp.copy(images)

    def run() -> None:
        nonlocal current
        current, _ = jax.block_until_ready(compiled(next(keys), current, labels))

    return Subject(run, cost(fn, *args))


def _subject(fn: Callable[..., Any], *args: Any) -> Subject:
    """A transform, compiled, with another key in every call."""
    key, *arrays = args
    compiled, keys = jax.jit(fn), iter(jax.random.split(key, 100_000))
    return Subject(lambda: jax.block_until_ready(compiled(next(keys), *arrays)), cost(fn, *args))
