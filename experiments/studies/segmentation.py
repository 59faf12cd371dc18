"""Segmentation with wrong annotations: ADELE's correction of labels, and distillation.

``python -m experiments.studies.segmentation`` trains small networks on the images of `experiments.data.shapes`, whose objects
are annotated too large, too small, displaced or not at all. Scores are taken on test images with their true masks. Runs:

- ``ce``: plain cross-entropy; also the plain teacher.
- ``adele_consistency``: ADELE's losses over three scales, the annotations as given.
- ``adele``: the same, and from the epoch at which the fit to a class's annotations slows down its labels are corrected.
- ``assisted``: a teacher that also sees the annotation as a noisy channel, in the test those of the test images.
- ``student_*``: networks of half the width, trained on the annotations as given: by cross-entropy alone (``ce``), with
  channel-wise distillation (``cwd``), or with boundary distillation (``bpkd``; ``bpkd_body`` without its boundary part).
  The teacher is ``ce``, or the run that the name ends in.
- ``clean_*``: teachers and students on true masks, as distillation was published.

Images, annotations and hyperparameters were chosen on seeds from 100; the defaults report seeds from 0. They show a case for
which correction was made: most errors are of one kind, so that sure predictions are right. Where erosions are as frequent as
dilations (``--corruption.dilated 0.3 --corruption.eroded 0.3 --corruption.shifted 0.2``) it brings the annotations nearer to
the truth and the network farther from it.
"""

import dataclasses
import functools
import json
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
import tyro
from flax import nnx

import regjax as rj
from experiments.data.shapes import CLASSES, IGNORE, Corruption, Shapes, boundary_band, corrupt_annotations, make_shapes

matplotlib.use("Agg")
import matplotlib.pyplot as plt

K = len(CLASSES)

RUNS: dict[str, dict[str, Any]] = {
    "ce": {"kind": "ce"},
    "adele_consistency": {"kind": "adele", "against": "ce"},
    "adele": {"kind": "adele", "correct": True, "against": "adele_consistency"},
    "assisted": {"kind": "assisted", "against": "ce"},
    "student_ce": {},
    "student_cwd": {"teacher": "ce", "cwd": 1.0, "against": "student_ce"},
    "student_cwd_assisted": {"teacher": "assisted", "cwd": 1.0, "against": "student_cwd"},
    "student_cwd_adele": {"teacher": "adele", "cwd": 1.0, "against": "student_cwd"},
    "student_bpkd_body": {"teacher": "ce", "body": 1.0, "against": "student_ce"},
    "student_bpkd": {"teacher": "ce", "body": 1.0, "edge": 1.0, "against": "student_bpkd_body"},
    "clean_ce": {"kind": "ce", "clean": True},
    "clean_assisted": {"kind": "assisted", "clean": True, "against": "clean_ce"},
    "clean_student_ce": {"clean": True},
    "clean_student_cwd": {"clean": True, "teacher": "clean_ce", "cwd": 1.0, "against": "clean_student_ce"},
    "clean_student_cwd_assisted": {"clean": True, "teacher": "clean_assisted", "cwd": 1.0, "against": "clean_student_cwd"},
    "clean_student_bpkd_body": {"clean": True, "teacher": "clean_ce", "body": 1.0, "against": "clean_student_ce"},
    "clean_student_bpkd": {
        **{"clean": True, "teacher": "clean_ce", "body": 1.0, "edge": 1.0},
        "against": "clean_student_bpkd_body",
    },
}
"""The runs, in an order in which teachers come first; ``against``: the run that a table compares with."""


# Logits are not multiplied by the masks: zeros among logits that are all negative would be the surest classes, and students
# then lost a third of their IoU on the seeds from 100.
BPKD = {"kernel_size": 3, "ignore_label": IGNORE, "mask_logits": False}


@dataclasses.dataclass(frozen=True)
class SegmentationConfig:
    """The study.

    Attributes:
      seeds: how many; each has its own images, annotations, initialisation and order.
      first_seed: the first.
      runs: names from `RUNS`, with the teachers of students.
      train: training images.
      test: test images.
      side: of an image.
      width: channels of the network at full size; students have half.
      epochs: of each run.
      batch_size: a divisor of ``train``.
      learning_rate: of Adam, decaying to 0 along a cosine.
      corruption: of the training annotations.
      scales: of ADELE's inputs, 1 among them; each gives a side that 4 divides.
      detection: the relative change of the slope from which a class is corrected.
      threshold: the confidence from which a prediction replaces a label.
      class_constraint: whether classes stay out of images whose labels lack them.
      from_given: correct the annotations as given anew each epoch, as the authors do on VOC; else those of the epoch before.
      cwd_weight: of channel-wise distillation.
      edge_weight: of boundary distillation's boundary part.
      body_weight: of its body part.
      out: the folder of results.
      force: overwrite results that are there.
    """

    seeds: int = 4
    first_seed: int = 0
    runs: tuple[str, ...] = tuple(RUNS)
    train: int = 96
    test: int = 96
    side: int = 24
    width: int = 8
    epochs: int = 30
    batch_size: int = 8
    learning_rate: float = 1e-2
    corruption: Corruption = dataclasses.field(default_factory=Corruption)
    scales: tuple[float, ...] = (2 / 3, 1.0, 4 / 3)
    detection: float = 0.9
    threshold: float = 0.8
    class_constraint: bool = False
    from_given: bool = True
    cwd_weight: float = 1.0
    edge_weight: float = 50.0
    body_weight: float = 20.0
    out: Path = Path("runs/segmentation")
    force: bool = False

    def __post_init__(self) -> None:
        """Refuses what cannot run."""
        for field in ("seeds", "train", "test", "width", "epochs", "batch_size"):
            if getattr(self, field) < 1:
                raise ValueError(f"SegmentationConfig: {field} must be at least 1, got {getattr(self, field)}")
        if self.train % self.batch_size:
            raise ValueError(f"SegmentationConfig: batch_size must divide train = {self.train}, got {self.batch_size}")
        if 1.0 not in self.scales or any(round(self.side * s) % 4 for s in self.scales):
            raise ValueError(f"SegmentationConfig: scales must contain 1 and give sides that 4 divides, got {self.scales}")
        for name in self.runs:
            if name not in RUNS:
                raise ValueError(f"SegmentationConfig: runs must be among {', '.join(RUNS)}, got {name!r}")
            if RUNS[name].get("teacher", name) not in self.runs:
                raise ValueError(f"SegmentationConfig: runs must hold {name}'s teacher {RUNS[name]['teacher']!r}")


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
      config: the study; its sizes and rates are those of the programs.
    """

    def __init__(self, config: SegmentationConfig):
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


def train_run(name: str, programs: Programs, data: Mapping[str, Any], shapes: Shapes, seed: int) -> tuple[Any, dict[str, Any]]:
    """Trains one run on one seed; returns its parameters and what happened in training."""
    config, spec = programs.config, RUNS[name]
    kind = spec.get("kind", "student")
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


def run_seed(programs: Programs, seed: int, say: Callable[[str], None]) -> tuple[dict[str, Any], dict[str, Any]]:
    """All runs on one seed: their scores, and what the pictures show."""
    config = programs.config
    train = make_shapes(config.train, side=config.side, seed=2 * seed)
    test = make_shapes(config.test, side=config.side, seed=2 * seed + 1)
    labels = corrupt_annotations(train, config.corruption, seed=2 * seed)
    test_labels = corrupt_annotations(test, config.corruption, seed=2 * seed + 1)
    band = boundary_band(test.masks)
    none = np.zeros((*labels.shape, K), np.float32)
    teachers, scores = {}, {}
    shown: dict[str, Any] = {"train": train, "given": labels, "test": test, "predictions": {}, "histories": {}}
    for name in config.runs:
        start = time.perf_counter()
        spec = RUNS[name]
        given, tested_with = (train.masks, test.masks) if spec.get("clean") else (labels, test_labels)
        data = {"image": train.images, "label": given, "teacher": teachers.get(spec.get("teacher"), none)}
        params, history = train_run(name, programs, data, train, seed)
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
            "fit_history": history["fit"].tolist(),
            "truth_history": history["truth"].tolist(),
            "correct_history": history["correct"].tolist(),
            "memorized_history": history["memorized"].tolist(),
            "seconds": time.perf_counter() - start,
        }
        shown["predictions"][name], shown["histories"][name] = predicted, history
        score = scores[name]
        say(f"seed {seed}  {name:<22} IoU {score['iou']:.3f}  boundary {score['boundary_iou']:.3f}  {score['seconds']:.1f} s")
    return scores, shown


HEADER = ("run", "IoU %", "boundary IoU %", "labels' IoU %", "memorized %", "against", "IoU gain", "boundary gain")


def table(scores: Sequence[Mapping[str, Any]]) -> str:
    """The runs as text: mean and standard deviation over seeds, differences paired over seeds with their standard error."""

    def spread(values: np.ndarray) -> str:
        return f"{100 * values.mean():.1f} ± {100 * values.std(ddof=1) if len(values) > 1 else 0:.1f}"

    def gain(field: str, name: str, other: str) -> str:
        gains = np.array([seed[name][field] - seed[other][field] for seed in scores])
        error = gains.std(ddof=1) / np.sqrt(len(gains)) if len(gains) > 1 else 0
        return f"{100 * gains.mean():+.1f} ± {100 * error:.1f}"

    rows = [HEADER]
    for name in scores[0]:
        of = lambda field, name=name: np.array([seed[name][field] for seed in scores])
        other = RUNS[name].get("against", "")
        compared = [gain(field, name, other) if other in scores[0] else "" for field in ("iou", "boundary_iou")]
        columns = [spread(of(field)) for field in ("iou", "boundary_iou", "label_iou", "memorized")]
        rows.append((name, *columns, other, *compared))
    widths = [max(len(row[i]) for row in rows) for i in range(len(HEADER))]
    return "\n".join("  ".join(text.ljust(width) for text, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def draw_histories(histories: Mapping[str, Any], path: Path) -> None:
    """The fit to the annotations and to the true masks by epoch, the detected epochs, and the memorisation curves."""
    names = [name for name in ("ce", "adele_consistency", "adele") if name in histories] or list(histories)[:1]
    figure, axes = plt.subplots(2, len(names), figsize=(4 * len(names), 6), sharex=True, squeeze=False, layout="constrained")
    for name, (upper, lower) in zip(names, axes.T, strict=True):
        history = histories[name]
        epochs = np.arange(1, len(history["fit"]) + 1)
        for k in range(1, K):
            (line,) = upper.plot(epochs, history["fit"][:, k], label=CLASSES[k])
            upper.plot(epochs, history["truth"][:, k], color=line.get_color(), linestyle=":")
            if CLASSES[k] in history["detected"]:
                upper.axvline(history["detected"][CLASSES[k]], color=line.get_color(), linewidth=0.8, linestyle="--")
        upper.set(title=name, ylim=(0, 1))
        lower.plot(epochs, history["correct"], label="predicted as they are")
        lower.plot(epochs, history["memorized"], label="predicted as annotated")
        lower.set(xlabel="epoch", ylim=(0, 1))
    axes[0, 0].set_ylabel("training IoU\nannotations (solid), truth (dotted)")
    axes[1, 0].set_ylabel("share of the wrongly\nannotated pixels")
    axes[0, 0].legend()
    axes[1, 0].legend()
    figure.savefig(path, dpi=100)
    plt.close(figure)


def draw_strip(shown: Mapping[str, Any], path: Path, columns: int = 6) -> None:
    """Training images with true, given and corrected masks; test images with true masks and predictions."""
    train, test = shown["train"], shown["test"]
    # The images with the most wrong pixels say most about a correction.
    worst = np.argsort(-(shown["given"] != train.masks).sum((1, 2)), kind="stable")[:columns]
    rows = [("image", train.images[worst]), ("true", train.masks[worst]), ("annotated", shown["given"][worst])]
    if "adele" in shown["histories"]:
        rows.append(("corrected", shown["histories"]["adele"]["labels"][worst]))
    rows += [("test image", test.images[:columns]), ("true", test.masks[:columns])]
    rows += [(name, shown["predictions"][name][:columns]) for name in ("ce", "adele") if name in shown["predictions"]]
    figure, axes = plt.subplots(len(rows), columns, figsize=(1.4 * columns, 1.4 * len(rows)), squeeze=False, layout="constrained")
    for line, (title, images) in zip(axes, rows, strict=True):
        for panel, image in zip(line, images, strict=False):
            if image.ndim == 3:
                panel.imshow(np.clip(0.4 + 0.4 * image, 0, 1))
            else:
                panel.imshow(np.where(image == IGNORE, np.nan, image), vmin=0, vmax=K - 1, interpolation="nearest")
        line[0].set_ylabel(title, fontsize=8)
        for panel in line:
            panel.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=100)
    plt.close(figure)


def study(config: SegmentationConfig, *, quiet: bool = False) -> str:
    """Runs the study and writes ``results.json``, ``table.txt``, ``histories.png`` and ``strip.png``; returns the table.

    Raises:
      ValueError: if the folder holds something and ``force`` is not set; nothing in it is touched then.
    """
    if config.out.exists() and any(config.out.iterdir()) and not config.force:
        raise ValueError(f"{config.out} is not empty: choose another folder with --out, or overwrite with --force")
    say = (lambda text: None) if quiet else functools.partial(print, flush=True)
    start = time.perf_counter()
    programs = Programs(config)
    scores, first = [], None
    for seed in range(config.first_seed, config.first_seed + config.seeds):
        found, shown = run_seed(programs, seed, say)
        scores.append(found)
        first = first or shown
    text = table(scores)
    seconds = time.perf_counter() - start
    config.out.mkdir(parents=True, exist_ok=True)
    results = {
        "config": json.loads(json.dumps(dataclasses.asdict(config), default=str)),
        "machine": {"device": jax.devices()[0].device_kind, "platform": platform.platform(), "jax": jax.__version__},
        "regjax": rj.__version__,
        "seconds": seconds,
        "seeds": dict(zip(range(config.first_seed, config.first_seed + config.seeds), scores, strict=True)),
    }
    (config.out / "results.json").write_text(json.dumps(results))
    (config.out / "table.txt").write_text(text + "\n")
    draw_histories(first["histories"], config.out / "histories.png")
    draw_strip(first, config.out / "strip.png")
    return f"{text}\n\n{len(scores)} seeds in {seconds:.0f} s; results in {config.out}"


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    try:
        config = tyro.cli(SegmentationConfig, args=arguments, prog="python -m experiments.studies.segmentation")
        print(study(config))
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
