"""Batches of images and activations: mixing, RandAugment and dropout beside other libraries."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import regjax as rj
from experiments.bench import libraries
from experiments.bench.results import Bound, Panel
from experiments.bench.timing import Subject, cost

NUM_CLASSES = 10
RATE = 0.5


def mixing(shape: tuple[int, ...], threads: int) -> Panel:
    """Mixup and CutMix beside a plain line of JAX, torchvision's transforms, and timm's on a copy of the batch."""
    images = np.random.default_rng(0).random(shape, np.float32)
    labels = np.eye(NUM_CLASSES, dtype=np.float32)[np.arange(shape[0]) % NUM_CLASSES]
    batch = (jax.random.key(0), jnp.asarray(images), jnp.asarray(labels))
    subjects = {
        "mixup": keyed(partial(rj.inputs.mixup, alpha=1.0), *batch),
        "plain mixup": keyed(plain_mixup, *batch),
        "cutmix": keyed(partial(rj.inputs.cutmix, alpha=1.0), *batch),
        "plain cutmix": keyed(plain_cutmix, *batch),
    }
    theirs = libraries.timm_mixing(images, labels, NUM_CLASSES, threads)
    theirs |= libraries.torchvision_mixing(images, labels, NUM_CLASSES, threads)
    bounds = []
    for kind in libraries.MIXES:
        bounds += [Bound(kind, f"plain {kind}", 1.15, quantity) for quantity in ("time", "bytes")]
        bounds += [Bound(kind, name, 1.0) for name in theirs if name.endswith(kind)]
    title = "x".join(map(str, shape))
    return Panel(f"{title}: mixing beside a plain line, timm and torchvision", {**subjects, **theirs}, bounds, images=shape[0])


def plain_mixup(key: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mixup as one writes it in a line: one weight, a permuted partner."""
    weight, order = jax.random.split(key)
    lam, partner = jax.random.beta(weight, 1.0, 1.0), jax.random.permutation(order, len(x))
    return lam * x + (1 - lam) * x[partner], lam * y + (1 - lam) * y[partner]


def plain_cutmix(key: Any, x: jax.Array, y: jax.Array) -> tuple[jax.Array, jax.Array]:
    """CutMix in a few lines: one box, a permuted partner, labels by the area of the box as clipped."""
    weight, place, order = jax.random.split(key, 3)
    height, width = x.shape[1:3]
    size = jnp.sqrt(1 - jax.random.beta(weight, 1.0, 1.0))
    row, column = jax.random.uniform(place, (2,)) * jnp.array([height, width])
    inside = jnp.abs(jnp.arange(height) + 0.5 - row)[:, None] < size * height / 2
    inside &= jnp.abs(jnp.arange(width) + 0.5 - column)[None] < size * width / 2
    partner, lam = jax.random.permutation(order, len(x)), 1 - inside.mean()
    return jnp.where(inside[None, ..., None], x[partner], x), lam * y + (1 - lam) * y[partner]


def randaugment(shape: tuple[int, ...], threads: int) -> Panel:
    """Two operations on each image: within 40 ms, and faster than Keras' layer."""
    images = jnp.asarray(np.random.default_rng(0).random(shape, np.float32))
    ours = {kind: f"randaugment {kind}" for kind in ("nearest", "bilinear")}
    subjects = {
        name: keyed(lambda key, x, kind=kind: rj.inputs.randaugment(key, x, interpolation=kind)[0], jax.random.key(0), images)
        for kind, name in ours.items()
    }
    theirs = libraries.keras_randaugment(images)
    bounds = [Bound(ours["nearest"], None, 40.0)]
    bounds += [Bound(name, other, 1.0) for name in ours.values() for other in theirs]
    title = "x".join(map(str, shape))
    return Panel(f"{title}: RandAugment of two operations", {**subjects, **theirs}, bounds, images=shape[0])


def dropout(shape: tuple[int, ...], threads: int) -> Panel:
    """Dropout with JAX's two generators beside Flax NNX's layer and PyTorch's function."""
    x = jnp.ones(shape)
    layer = nnx.Dropout(RATE)
    ours = partial(rj.layers.dropout, rate=RATE)
    subjects = {
        "dropout": keyed(ours, jax.random.key(0), x),
        "dropout, generator rbg": keyed(ours, jax.random.key(0, impl="rbg"), x),
        "nnx.Dropout": keyed(lambda key, x: layer(x, rngs=nnx.Rngs(dropout=key)), jax.random.key(0), x),
        "drop_path": keyed(partial(rj.layers.drop_path, rate=RATE), jax.random.key(0), x),
        "twice the array": keyed(lambda key, x: x * 2, jax.random.key(0), x),
    }
    theirs = libraries.torch_dropout(shape, RATE, threads)
    bounds = [Bound("dropout", "nnx.Dropout", 1.0, quantity) for quantity in ("time", "flops", "bytes", "temporary")]
    bounds += [Bound("dropout", name, 1.0) for name in theirs]
    bounds.append(Bound("drop_path", "twice the array", 1.15))
    return Panel(f"{'x'.join(map(str, shape))}: dropout", {**subjects, **theirs}, bounds)


def keyed(fn: Any, key: Any, *arrays: jax.Array) -> Subject:
    """A random function, compiled, with another key in every call."""
    compiled, keys = jax.jit(fn), iter(jax.random.split(key, 100_000))
    return Subject(lambda: jax.block_until_ready(compiled(next(keys), *arrays)), cost(fn, key, *arrays))
