"""Datasets for experiments: TFDS without TensorFlow, variants with known true labels, arrays and batches.

``load_arrays(DataConfig())`` is the whole of it for small datasets: three splits of normalised images, labels, true labels and
example numbers. ``load_views`` is the same over files; ``train_iterator`` and ``evaluation_batches`` make batches of either.
"""

from experiments.data.arrays import Examples, Split, Splits, View, epoch_permutation, load_arrays, load_views
from experiments.data.config import DataConfig
from experiments.data.errors import DatasetUnavailable
from experiments.data.pipeline import evaluation_batches, train_batches, train_iterator
from experiments.data.sources import Dataset, Source, available, data_directory, load
from experiments.data.variants import (
    CONFUSIONS,
    asymmetric_noise,
    balanced_subset,
    class_ranks,
    long_tail_counts,
    long_tail_subset,
    stratified_split,
    symmetric_noise,
)

__all__ = [
    "CONFUSIONS",
    "DataConfig",
    "Dataset",
    "DatasetUnavailable",
    "Examples",
    "Source",
    "Split",
    "Splits",
    "View",
    "asymmetric_noise",
    "available",
    "balanced_subset",
    "class_ranks",
    "data_directory",
    "epoch_permutation",
    "evaluation_batches",
    "load",
    "load_arrays",
    "load_views",
    "long_tail_counts",
    "long_tail_subset",
    "stratified_split",
    "symmetric_noise",
    "train_batches",
    "train_iterator",
]
