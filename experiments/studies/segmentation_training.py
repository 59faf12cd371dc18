"""The networks of the segmentation study, the programs that train them, and the runs on one seed."""

import functools
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import regjax as rj
from experiments.data.shapes import CLASSES, IGNORE, Shapes, boundary_band, corrupt_annotations, make_shapes
from experiments.studies import common

K = len(CLASSES)

# Logits are not multiplied by the masks: zeros among logits that are all negative would be the surest classes, and students
# then lost a third of their IoU on the seeds from 100.
BPKD = {"kernel_size": 3, "ignore_label": IGNORE, "mask_logits": False}


class Conv(nnx.Module):
    """A 3 x 3 convolution as one matrix product over shifted copies: inside a loop several times as fast on a CPU."""

    def __init__(self, before: int, after: int, stride: int = 1, *, rngs: nnx.Rngs):
        self.linear, self.stride = nnx.Linear(9 * before, after, kernel_init=nnx.initializers.he_normal(), rngs=rngs), stride

    def __call__(self, x: jax.Array) -> jax.Array:
        """``[B, H, W, C]`` to ``[B, H / stride, W / stride, after]``."""
        height, width = x.shape[1:3]
        padded = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        shifted = [padded[:, i : i + height : self.stride, j : j + width : self.stride] for i in range(3) for j in range(3)]
        return self.linear(jnp.concatenate(shifted, axis=-1))


class SegNet(nnx.Module):
    """A small U-shaped network: full, half and quarter size, and back to full size beside the finest features."""

    def __init__(self, channels: int, width: int, *, rngs: nnx.Rngs):
        self.fine = Conv(channels, width, rngs=rngs)
        self.half = Conv(width, 2 * width, 2, rngs=rngs)
        self.quarter = Conv(2 * width, 3 * width, 2, rngs=rngs)
        self.deep = Conv(3 * width, 3 * width, rngs=rngs)
        self.up = Conv(5 * width, 2 * width, rngs=rngs)
        self.mix = nnx.Linear(3 * width, 2 * width, kernel_init=nnx.initializers.he_normal(), rngs=rngs)
        self.head = nnx.Linear(2 * width, K, rngs=rngs)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Logits ``[B, H, W, K]``."""
        grow = lambda x: jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
        fine = nnx.relu(self.fine(x))
        half = nnx.relu(self.half(fine))
        quarter = nnx.relu(self.quarter(half))
        quarter = quarter + nnx.relu(self.deep(quarter))
        half = nnx.relu(self.up(jnp.concatenate([half, grow(quarter)], axis=-1)))
        return self.head(nnx.relu(self.mix(jnp.concatenate([fine, grow(half)], axis=-1))))


def cross_entropy(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """The mean over the labelled pixels."""
    valid = labels != IGNORE
    losses = rj.losses.label_smoothing(logits, jnp.where(valid, labels, 0), alpha=0.0)
    return jnp.sum(jnp.where(valid, losses, 0)) / jnp.maximum(jnp.sum(valid), 1)


class Programs:
    """The compiled functions of the study: an epoch of each kind of training, and predictions.

    Args:
      config: a `SegmentationConfig`; its sizes and rates are those of the programs.
    """

    def __init__(self, config: Any):
        self.config = config
        steps = config.epochs * (config.train // config.batch_size)
        self.optimizer = optax.adam(optax.cosine_decay_schedule(config.learning_rate, steps))
        wide, narrow = config.width, max(config.width // 2, 2)
        self.shapes = {"ce": (3, wide), "adele": (3, wide), "assisted": (4, wide), "student": (3, narrow)}
        self.graphs = {kind: nnx.split(self._model(kind, 0))[0] for kind in self.shapes}
        self.epochs = {kind: jax.jit(functools.partial(self._epoch, kind), donate_argnums=(0, 1)) for kind in self.shapes}
        self.predict = jax.jit(self._forward, static_argnums=0)
        self.channel = jax.jit(self._channel)
        self.correct = jax.jit(self._correct)
        self.curves = jax.jit(rj.diagnostics.memorization_curves)

    def _model(self, kind: str, seed: int) -> SegNet:
        channels, width = self.shapes[kind]
        return SegNet(channels, width, rngs=nnx.Rngs(seed))

    def init(self, kind: str, seed: int) -> tuple[Any, Any]:
        """Parameters and the optimiser's state."""
        params = {"net": nnx.split(self._model(kind, seed))[1], "scale_weights": jnp.ones(len(self.config.scales))}
        return params, self.optimizer.init(params)

    def _forward(self, kind: str, params: Any, images: jax.Array) -> jax.Array:
        return nnx.merge(self.graphs[kind], params["net"])(images)

    def _scales(self, kind: str, params: Any, images: jax.Array) -> jax.Array:
        """Logits at every scale, at the size of the images."""
        side = images.shape[1]
        resize = lambda x, to: jax.image.resize(x, (len(x), to, to, x.shape[-1]), "bilinear", antialias=False)
        sides = [round(side * scale) for scale in self.config.scales]
        return jnp.stack([resize(self._forward(kind, params, resize(images, to)), side) for to in sides])

    def _loss(self, kind: str, params: Any, batch: Mapping[str, jax.Array], key: Any, weights: Mapping[str, Any]) -> Any:
        """The loss of a batch, and the classes predicted in training."""
        images, labels = batch["image"], batch["label"]
        if kind == "adele":
            logits = self._scales(kind, params, images)
            terms = rj.losses.adele_multiscale(logits, labels, params["scale_weights"], ignore_label=IGNORE)
            return sum(terms) / len(logits), jnp.argmax(jnp.mean(jax.nn.softmax(logits), axis=0), axis=-1)
        if kind == "assisted":
            views = [jnp.concatenate([images, self._noisy_labels(k, labels)], axis=-1) for k in jax.random.split(key)]
            first, second = (self._forward(kind, params, view) for view in views)
            loss = rj.losses.label_assisted_teacher_loss(first, second, labels, ignore_label=IGNORE)
            return loss, jnp.argmax(first, axis=-1)
        logits = self._forward(kind, params, images)
        loss = cross_entropy(logits, labels)
        if kind == "student":
            teacher = batch["teacher"]
            loss += weights["cwd"] * rj.losses.channel_wise_distillation(logits, teacher)
            body = functools.partial(rj.losses.boundary_distillation, logits, teacher, labels, **BPKD)
            loss += weights["edge"] * body(edge_weight=1.0, body_weight=0.0)
            loss += weights["body"] * body(edge_weight=0.0, body_weight=1.0)
        return loss, jnp.argmax(logits, axis=-1)

    def _noisy_labels(self, key: Any, labels: jax.Array, **options: Any) -> jax.Array:
        return rj.inputs.noisy_label_channel(key, labels, num_classes=K, scale=1.0, ignore_label=IGNORE, **options)

    def _channel(self, key: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        """Images with their annotations at fixed values, as the assisted teacher sees them after its training."""
        values = jnp.linspace(-1, 1, K + 1)
        return jnp.concatenate([images, self._noisy_labels(key, labels, pixel_noise=0.02, class_values=values)], axis=-1)

    def _epoch(
        self, kind: str, params: Any, state: Any, data: Mapping[str, jax.Array], key: Any, weights: Mapping[str, Any]
    ) -> tuple[Any, Any, jax.Array]:
        """One pass over the training images in random order; also what was predicted for each when it was seen."""
        num, size = len(data["image"]), self.config.batch_size
        order = jax.random.permutation(key, num).reshape(-1, size)

        def step(carry: Any, xs: Any) -> Any:
            params, state = carry
            rows, key = xs
            batch = jax.tree.map(lambda x: x[rows], data)
            grads, predicted = jax.grad(functools.partial(self._loss, kind), has_aux=True)(params, batch, key, weights)
            updates, state = self.optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), predicted.astype(jnp.uint8)

        (params, state), predicted = jax.lax.scan(step, (params, state), (order, jax.random.split(key, len(order))))
        flat = predicted.reshape(num, *predicted.shape[2:])
        return params, state, jnp.zeros_like(flat).at[order.reshape(-1)].set(flat)

    def _correct(self, params: Any, images: jax.Array, labels: jax.Array, active: jax.Array) -> jax.Array:
        """The labels after ADELE's correction of the active classes."""
        logits = self._scales("adele", params, images)
        # As on VOC, with the mean over scales divided by their number: the cross-entropy, in which the weights of the scales
        # multiply the logits, leaves the logits themselves too sure.
        probs = jax.nn.softmax(jnp.mean(logits, axis=0) / len(logits))
        options = {"threshold": self.config.threshold, "class_constraint": self.config.class_constraint}
        return rj.losses.adele_correct_labels(labels, probs, active, **options)


def class_iou(predictions: np.ndarray, labels: np.ndarray, where: np.ndarray | None = None) -> np.ndarray:
    """The intersection over union of each class over all labelled pixels, ``[K]``; 0 for a class that is nowhere."""
    counted = labels != IGNORE if where is None else where & (labels != IGNORE)
    joint = np.bincount(K * labels[counted].astype(int) + predictions[counted], minlength=K * K).reshape(K, K)
    hits = np.diag(joint)
    return hits / (joint.sum(0) + joint.sum(1) - hits + 1e-10)


def train_run(
    spec: Mapping[str, Any], programs: Programs, data: Mapping[str, Any], shapes: Shapes, seed: int
) -> tuple[Any, dict[str, Any]]:
    """Trains one run, of which ``spec`` says what `RUNS` does, on one seed; returns its parameters and what happened."""
    config, kind = programs.config, spec.get("kind", "student")
    weights = {
        "cwd": config.cwd_weight * spec.get("cwd", 0.0),
        "edge": config.edge_weight * spec.get("edge", 0.0),
        "body": config.body_weight * spec.get("body", 0.0),
    }
    params, state = programs.init(kind, seed)
    labels = given = data["label"]
    active = np.zeros(K, bool)
    fits, truths, predictions, detected = [], [], [], {}
    for epoch in range(1, config.epochs + 1):
        key = jax.random.fold_in(jax.random.key(seed), epoch)
        params, state, predicted = programs.epochs[kind](params, state, {**data, "label": labels}, key, weights)
        predicted = np.asarray(predicted)
        predictions.append(predicted)
        fits.append(class_iou(predicted, labels))
        truths.append(class_iou(predicted, shapes.masks))
        for k in range(1, K):
            turn = rj.diagnostics.memorization_epoch(np.array(fits)[:, k], num_epochs=config.epochs, threshold=config.detection)
            if k not in detected and turn <= epoch < config.epochs:
                detected[k] = epoch
                active[k] = spec.get("correct", False)
        if active.any():
            labels = np.asarray(programs.correct(params, data["image"], given if config.from_given else labels, active))
    flat = np.stack(predictions).reshape(config.epochs, -1)
    curves = programs.curves(
        flat.astype(np.int32), given.reshape(-1), shapes.masks.reshape(-1), where=given.reshape(-1) != IGNORE
    )
    history = {
        "fit": np.array(fits),
        "truth": np.array(truths),
        "detected": {CLASSES[k]: epoch for k, epoch in detected.items()},
        "correct": np.asarray(curves.correct),
        "memorized": np.asarray(curves.memorized),
        "labels": labels,
        "kind": kind,
    }
    return params, history


def run_seed(
    programs: Programs, runs: Mapping[str, Mapping[str, Any]], seed: int, say: Callable[[str], None]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """All runs on one seed, teachers before their students: their scores, and what the pictures show."""
    config = programs.config
    train = make_shapes(config.train, side=config.side, seed=2 * seed)
    test = make_shapes(config.test, side=config.side, seed=2 * seed + 1)
    labels = corrupt_annotations(train, config.corruption, seed=2 * seed)
    test_labels = corrupt_annotations(test, config.corruption, seed=2 * seed + 1)
    band = boundary_band(test.masks)
    none = np.zeros((*labels.shape, K), np.float32)
    teachers, scores = {}, {}
    shown: dict[str, Any] = {"train": train, "given": labels, "test": test, "predictions": {}, "histories": {}}
    for name, spec in runs.items():
        start = time.perf_counter()
        given, tested_with = (train.masks, test.masks) if spec.get("clean") else (labels, test_labels)
        data = {"image": train.images, "label": given, "teacher": teachers.get(spec.get("teacher"), none)}
        params, history = train_run(spec, programs, data, train, seed)
        kind, seen, tested = history["kind"], train.images, test.images
        if kind == "assisted":
            keys = jax.random.split(jax.random.key(seed))
            seen, tested = programs.channel(keys[0], seen, given), programs.channel(keys[1], tested, tested_with)
        temperature = len(config.scales) if kind == "adele" else 1  # at which its cross-entropy saw the logits
        teachers[name] = np.asarray(programs.predict(kind, params, seen)) / temperature
        predicted = np.asarray(programs.predict(kind, params, tested)).argmax(-1)
        iou = class_iou(predicted, test.masks)
        scores[name] = {
            "iou": float(iou.mean()),
            "class_iou": iou.tolist(),
            "boundary_iou": float(class_iou(predicted, test.masks, band).mean()),
            "label_iou_given": float(class_iou(train.masks, given).mean()),
            "label_iou": float(class_iou(train.masks, history["labels"]).mean()),
            "memorized": float(history["memorized"][-1]),
            "detected": history["detected"],
            "fit_history": common.rounded(history["fit"], 4),
            "truth_history": common.rounded(history["truth"], 4),
            "correct_history": common.rounded(history["correct"], 4),
            "memorized_history": common.rounded(history["memorized"], 4),
            "seconds": time.perf_counter() - start,
        }
        shown["predictions"][name], shown["histories"][name] = predicted, history
        score = scores[name]
        say(f"seed {seed}  {name:<22} IoU {score['iou']:.3f}  boundary {score['boundary_iou']:.3f}  {score['seconds']:.1f} s")
    return scores, shown
