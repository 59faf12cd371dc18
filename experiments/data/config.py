"""What data a run trains on, as one value."""

import dataclasses
import os
from typing import Literal, get_args

from experiments.data import errors, variants

NoiseKind = Literal["symmetric", "asymmetric", "confusion"]
NoiseOver = Literal["others", "all"]
Normalise = Literal["standard", "unit"]


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """A dataset and the variant of it: everything that decides which examples with which labels a run sees.

    The training split of the dataset loses the validation part first, then all but the subset; then its labels get noise. The
    validation and the test part keep all their examples and true labels.

    Args:
      name: ``"digits"`` (bundled, needs no network) or any image classification dataset of TFDS, as ``"cifar10"``,
        ``"cifar10_corrupted/fog_3"`` or ``"mnist:3.0.1"``.
      data_dir: where the prepared files lie; by default the environment variable REGJAX_DATA_DIR, else
        ``~/.cache/regjax/datasets``.
      test_split: the split measured at the end, ``"test"``, or ``"validation"`` for datasets that keep their test labels.
      batch_size: examples per step over all processes.
      seed: of the validation part, the subset, the noise and the order of the batches. Not of the model.
      validation: the share of the training split held out for tuning, in [0, 1), the same of every class.
      label_noise: the share of training labels replaced, in [0, 1].
      noise_kind: ``"symmetric"`` draws the new label uniformly; ``"asymmetric"`` takes the next class; ``"confusion"`` takes
        the class that the true one is likely mistaken for (digits, mnist, cifar10).
      noise_over: whether symmetric noise draws among the ``"others"`` or among ``"all"`` classes.
      imbalance: the size of class 0 over that of the last in an exponential long tail, at least 1; 1 leaves the classes alone.
      per_class: keep so many training examples of each class; with ``imbalance``, of class 0.
      normalise: ``"standard"`` gives each channel mean 0 and standard deviation 1 over the training images, ``"unit"`` divides
        by the greatest possible value.

    Raises:
      ValueError: if a field is out of its range; names the field and the value.
    """

    name: str = "digits"
    data_dir: str | None = None
    test_split: str = "test"
    batch_size: int = 128
    seed: int = 0
    validation: float = 0.1
    label_noise: float = 0.0
    noise_kind: NoiseKind = "symmetric"
    noise_over: NoiseOver = "others"
    imbalance: float = 1.0
    per_class: int | None = None
    normalise: Normalise = "standard"

    def __post_init__(self) -> None:
        owner = "DataConfig"
        for field in ("name", "test_split"):
            value = getattr(self, field)
            if not isinstance(value, str) or not value.strip():
                errors.refuse(owner, field, "a name", value)
        if self.data_dir is not None and (not isinstance(self.data_dir, (str, os.PathLike)) or not os.fspath(self.data_dir)):
            errors.refuse(owner, "data_dir", "a folder or None", self.data_dir)
        errors.number(owner, "batch_size", self.batch_size, 1, integer=True)
        errors.number(owner, "seed", self.seed, 0, integer=True)
        errors.number(owner, "validation", self.validation, 0.0, 1.0, open_high=True)
        errors.number(owner, "label_noise", self.label_noise, 0.0, 1.0)
        errors.choice(owner, "noise_kind", self.noise_kind, get_args(NoiseKind))
        errors.choice(owner, "noise_over", self.noise_over, get_args(NoiseOver))
        errors.number(owner, "imbalance", self.imbalance, 1.0)
        if self.per_class is not None:
            errors.number(owner, "per_class", self.per_class, 1, integer=True)
        errors.choice(owner, "normalise", self.normalise, get_args(Normalise))
        if self.noise_kind == "confusion" and self.name.split(":")[0] not in variants.CONFUSIONS:
            known = ", ".join(variants.CONFUSIONS)
            errors.refuse(owner, "noise_kind", f"'symmetric' or 'asymmetric' but for {known}", self.noise_kind)
