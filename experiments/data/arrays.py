"""The splits of a run: lazily read views of files, or arrays in memory; the batches of an epoch inside jit."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from experiments.data import errors, variants
from experiments.data.config import DataConfig
from experiments.data.sources import Source, load

STATIC = {"static": True}


class Examples(Protocol):
    """What the pipelines read: a number of examples, and the batch at some positions."""

    def __len__(self) -> int: ...

    def take(self, positions: Any) -> dict[str, Any]: ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Split:
    """A split in memory. A pytree: ``jax.device_put`` moves it, jit takes it.

    Attributes:
      images: float32 ``[N, H, W, C]``, normalised.
      labels: int32 ``[N]``, as trained on: with noise in a training split that has some.
      clean_labels: int32 ``[N]``, the true ones.
      index: int32 ``[N]``, ``0 .. N - 1``: the name of each example in memories over examples.
    """

    images: Any
    labels: Any
    clean_labels: Any
    index: Any

    def __len__(self) -> int:
        return self.labels.shape[0]

    def take(self, positions: Any) -> dict[str, Any]:
        """The batch at some positions, inside jit too once the arrays are JAX's.

        Args:
          positions: integers ``[B]``.

        Returns:
          ``image``, ``label``, ``clean_label`` and ``index``, each with a leading axis of B.
        """
        return {
            "image": self.images[positions],
            "label": self.labels[positions],
            "clean_label": self.clean_labels[positions],
            "index": self.index[positions],
        }


@dataclasses.dataclass(frozen=True, eq=False)
class View:
    """A split whose images stay on disk, with the batches that the `Split` of the same configuration has.

    Attributes:
      source: the split of the dataset that it is a part of.
      rows: the positions in ``source`` of its examples, int64 ``[N]``.
      labels: int32 ``[N]``, as trained on.
      clean_labels: int32 ``[N]``, the true ones.
      max_value: what an image is divided by.
      mean: float32 ``[C]``, subtracted then.
      std: float32 ``[C]``, what is divided by last.
      resize: a function of one image, for datasets whose images differ in size.
    """

    source: Source
    rows: np.ndarray
    labels: np.ndarray
    clean_labels: np.ndarray
    max_value: float
    mean: Any
    std: Any
    resize: Callable[[np.ndarray], np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, positions: Any) -> dict[str, np.ndarray]:
        """Reads the batch at some positions.

        Args:
          positions: integers ``[B]``.

        Returns:
          ``image``, ``label``, ``clean_label`` and ``index``, each with a leading axis of B.
        """
        positions = np.asarray(positions)
        return {
            "image": self.images(positions),
            "label": self.labels[positions],
            "clean_label": self.clean_labels[positions],
            "index": positions.astype(np.int32),
        }

    def images(self, positions: Any) -> np.ndarray:
        """Reads and normalises the images at some positions, float32 ``[B, H, W, C]``."""
        images = self.source.images(self.rows[positions], self.resize)
        return (images.astype(np.float32) / np.float32(self.max_value) - self.mean) / self.std


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Splits:
    """The data of a run. A pytree where its splits are `Split`.

    Attributes:
      train: what is trained on.
      validation: for tuning; empty where the configuration asks for none.
      test: looked at once, at the end.
      mean: float32 ``[C]`` and
      std: float32 ``[C]``: an image is ``(pixel / max_value - mean) / std``.
      num_classes: the number of classes.
      image_shape: ``(H, W, C)``.
    """

    train: Any
    validation: Any
    test: Any
    mean: Any
    std: Any
    num_classes: int = dataclasses.field(metadata=STATIC)
    image_shape: tuple[int, ...] = dataclasses.field(metadata=STATIC)


def load_views(config: DataConfig, *, resize: Callable[[np.ndarray], np.ndarray] | None = None) -> Splits:
    """The splits of a configuration as views of the files on disk: for datasets of any size.

    Labels are read at once; images when a batch is taken, but for one pass over the training images where they are
    standardised.

    Args:
      config: the dataset and its variant.
      resize: a function of one image ``[h, w, C]``, for datasets whose images differ in size.

    Returns:
      `Splits` of `View`.

    Raises:
      ValueError: if the dataset has no such name, split or confusion, or has too few examples for the variant.
      DatasetUnavailable: if it cannot be had, see `load`.
    """
    dataset = load(config.name, config.data_dir, test_split=config.test_split)
    train_labels, test_labels = dataset.train.labels(), dataset.test.labels()
    train_rows, validation_rows = variants.stratified_split(train_labels, config.validation, config.seed)
    train_rows = train_rows[_subset(config, train_labels[train_rows])]
    if not len(train_rows):
        errors.refuse("DataConfig", "validation", "small enough to leave a training example", config.validation)
    clean = train_labels[train_rows]
    image_shape = dataset.train.images([0], resize).shape[1:]
    zero, one = np.zeros(image_shape[-1:], np.float32), np.ones(image_shape[-1:], np.float32)

    def view(source: Source, rows: np.ndarray, labels: np.ndarray, clean: np.ndarray, mean: Any = zero, std: Any = one) -> View:
        return View(source, rows, labels, clean, dataset.max_value, mean, std, resize)

    mean, std = zero, one
    if config.normalise == "standard":
        mean, std = _statistics(view(dataset.train, train_rows, clean, clean))
    held_out = train_labels[validation_rows]
    noisy = _noise(config, clean, dataset.num_classes)
    return Splits(
        train=view(dataset.train, train_rows, noisy, clean, mean, std),
        validation=view(dataset.train, validation_rows, held_out, held_out, mean, std),
        test=view(dataset.test, np.arange(len(test_labels)), test_labels, test_labels, mean, std),
        mean=mean,
        std=std,
        num_classes=dataset.num_classes,
        image_shape=image_shape,
    )


def load_arrays(
    config: DataConfig, *, resize: Callable[[np.ndarray], np.ndarray] | None = None, max_megabytes: float = 400.0
) -> Splits:
    """The splits of a configuration in memory: the fast form for small datasets.

    Args:
      config: the dataset and its variant.
      resize: a function of one image ``[h, w, C]``, for datasets whose images differ in size.
      max_megabytes: how large the images may be, as float32.

    Returns:
      `Splits` of `Split`, in NumPy arrays.

    Raises:
      ValueError: as `load_views`, or if the images exceed ``max_megabytes``.
      DatasetUnavailable: if the dataset cannot be had, see `load`.
    """
    views = load_views(config, resize=resize)
    megabytes = 4e-6 * float(np.prod(views.image_shape)) * sum(map(len, (views.train, views.validation, views.test)))
    if megabytes > max_megabytes:
        expected = f"at least {megabytes:.1f} for {config.name} (or read it from disk with load_views)"
        errors.refuse("load_arrays", "max_megabytes", expected, max_megabytes)
    return dataclasses.replace(
        views,
        train=_in_memory(views.train, views.image_shape),
        validation=_in_memory(views.validation, views.image_shape),
        test=_in_memory(views.test, views.image_shape),
    )


def epoch_permutation(key: jax.Array, num_examples: int, batch_size: int) -> jax.Array:
    """The batches of one epoch as positions, for training inside jit: scan over it and `Split.take` each row.

    Args:
      key: a random key; fold the epoch in for a new order in each.
      num_examples: N.
      batch_size: B, at most N.

    Returns:
      int32 ``[N // B, B]``, without repetition: each epoch leaves out another N mod B examples.

    Raises:
      ValueError: if ``batch_size`` is not in [1, N].
    """
    errors.number("epoch_permutation", "batch_size", batch_size, 1, num_examples, integer=True)
    steps = num_examples // batch_size
    order = jax.random.permutation(key, num_examples).astype(jnp.int32)
    return order[: steps * batch_size].reshape(steps, batch_size)


def _subset(config: DataConfig, labels: np.ndarray) -> np.ndarray:
    if config.imbalance > 1:
        return variants.long_tail_subset(labels, config.imbalance, config.seed, config.per_class)
    if config.per_class is not None:
        return variants.balanced_subset(labels, config.per_class, config.seed)
    return np.arange(len(labels))


def _noise(config: DataConfig, labels: np.ndarray, num_classes: int) -> np.ndarray:
    if config.label_noise == 0:
        return labels
    if config.noise_kind == "symmetric":
        return variants.symmetric_noise(labels, num_classes, config.label_noise, config.seed, over=config.noise_over)
    targets = variants.CONFUSIONS[config.name.split(":")[0]] if config.noise_kind == "confusion" else None
    return variants.asymmetric_noise(labels, num_classes, config.label_noise, config.seed, targets=targets)


def _statistics(view: View) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each channel, in one pass and float64."""
    count, total, squares = 0, np.zeros(1), np.zeros(1)
    for start in range(0, len(view), 1024):
        images = view.images(np.arange(start, min(start + 1024, len(view)))).astype(np.float64)
        count += images[..., 0].size
        total = total + images.sum((0, 1, 2))
        squares = squares + np.square(images).sum((0, 1, 2))
    mean = total / count
    std = np.sqrt(np.maximum(squares / count - mean**2, 0))
    return mean.astype(np.float32), np.where(std > 1e-6, std, 1).astype(np.float32)


def _in_memory(view: View, image_shape: tuple[int, ...]) -> Split:
    index = np.arange(len(view), dtype=np.int32)
    images = np.empty((len(view), *image_shape), np.float32)
    for start in range(0, len(view), 1024):
        images[start : start + 1024] = view.images(index[start : start + 1024])
    return Split(images, view.labels, view.clean_labels, index)
