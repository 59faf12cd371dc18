"""The 1,797 handwritten digits that come with scikit-learn, as a TFDS dataset that needs no network and no TensorFlow."""

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

NUM_TRAIN = 1437


def split_ids() -> tuple[list[int], list[int]]:
    """Which images train and which test.

    Returns:
      The positions in scikit-learn's order of the 1,437 training and the 360 test images, in a fixed random order that no
      library version can change: that of the images' hashed numbers.
    """
    order = sorted(range(1797), key=lambda i: hashlib.sha256(f"digits/{i}".encode()).digest())
    return order[:NUM_TRAIN], order[NUM_TRAIN:]


class Digits(tfds.core.GeneratorBasedBuilder):
    """TFDS builder of scikit-learn's digits: 8x8 images of values 0 to 16, ten classes, 1,437 to train and 360 to test."""

    VERSION = tfds.core.Version("1.0.0")
    RELEASE_NOTES = {"1.0.0": "First."}  # noqa: RUF012  (the name and form that TFDS reads)
    # Nothing is downloaded, so there are no checksums to look for beside this file; the search needs importlib_resources,
    # which TFDS 4.9.10 does not install on Python 3.9 and later.
    url_infos = None

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.__doc__,
            homepage="https://scikit-learn.org/stable/datasets/toy_dataset.html",
            citation="Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998, doi 10.24432/C50P49.",
            features=tfds.features.FeaturesDict(
                {
                    # Not `Image`: encoding an array as PNG takes TensorFlow.
                    "image": tfds.features.Tensor(shape=(8, 8, 1), dtype=np.uint8),
                    "label": tfds.features.ClassLabel(num_classes=10),
                    "id": tfds.features.Scalar(dtype=np.int32, doc="position in sklearn.datasets.load_digits()"),
                }
            ),
            supervised_keys=("image", "label"),
            metadata=tfds.core.MetadataDict({"max_value": 16}),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        train, test = split_ids()
        return {"train": self._generate_examples(train), "test": self._generate_examples(test)}

    def _generate_examples(self, ids: list[int]) -> Iterator[tuple[int, dict[str, Any]]]:
        from sklearn.datasets import load_digits  # over a second, and only the first use needs it

        images, labels = load_digits(return_X_y=True)
        images = images.reshape(-1, 8, 8, 1).astype(np.uint8)
        for i in ids:
            yield i, {"image": images[i], "label": int(labels[i]), "id": i}
