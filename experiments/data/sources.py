"""Any image classification dataset of TFDS, prepared on first use and read at random, without TensorFlow."""

import contextlib
import dataclasses
import difflib
import fcntl
import os
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import numpy as np

from experiments.data import errors

BUNDLED = ("digits",)


def data_directory(data_dir: str | os.PathLike | None = None) -> Path:
    """Where prepared datasets lie.

    Args:
      data_dir: a folder; by default the environment variable REGJAX_DATA_DIR, else ``~/.cache/regjax/datasets``.

    Returns:
      The absolute path, which need not exist yet.
    """
    return Path(data_dir or os.environ.get("REGJAX_DATA_DIR") or "~/.cache/regjax/datasets").expanduser().absolute()


def available() -> list[str]:
    """The names of the datasets that `load` knows, bundled and of TFDS.

    Returns:
      Sorted names. Many have configurations (``"cifar10_corrupted/fog_3"``), and not all are of images and classes.
    """
    return sorted({*BUNDLED, *_tfds().list_builders(with_community_datasets=False)})


@dataclasses.dataclass(frozen=True, eq=False)
class Source:
    """One split on disk, read at random.

    Attributes:
      records: a sequence of examples, dicts with at least ``image_key`` and ``label_key``.
      undecoded: the same with the images left as bytes where they are compressed: the fast way to the labels.
      image_key: the name of the image.
      label_key: the name of the label.
    """

    records: Any
    undecoded: Any
    image_key: str
    label_key: str

    def __len__(self) -> int:
        return len(self.records)

    def images(self, positions: Any, resize: Callable[[np.ndarray], np.ndarray] | None = None) -> np.ndarray:
        """Reads some images.

        Args:
          positions: integers ``[B]``.
          resize: a function of one image, for datasets whose images differ in size.

        Returns:
          ``[B, H, W, C]`` in the dtype on disk.

        Raises:
          ValueError: if the images differ in shape.
        """
        images = [example[self.image_key] for example in self.records.__getitems__([int(i) for i in positions])]
        images = [resize(image) for image in images] if resize else images
        shapes = sorted({image.shape for image in images})
        if len(shapes) > 1:
            got = f"images of {shapes[0]} and {shapes[-1]}"
            errors.refuse("load_views", "resize", "a function that gives every image one shape", got, quote=False)
        return np.stack(images)

    def labels(self) -> np.ndarray:
        """Reads all labels, int32 ``[N]``, without decoding the images."""
        chunks = [range(i, min(i + 4096, len(self))) for i in range(0, len(self), 4096)]
        found = [example[self.label_key] for chunk in chunks for example in self.undecoded.__getitems__(list(chunk))]
        return np.asarray(found, np.int32)


class Dataset(NamedTuple):
    """A prepared dataset.

    Attributes:
      name: as asked for.
      folder: where its files lie.
      train: the training split.
      test: the split to measure on.
      num_classes: the number of classes.
      class_names: what they are called.
      max_value: the greatest value that a pixel can have.
    """

    name: str
    folder: Path
    train: Source
    test: Source
    num_classes: int
    class_names: tuple[str, ...]
    max_value: float


def load(name: str = "digits", data_dir: str | os.PathLike | None = None, *, test_split: str = "test") -> Dataset:
    """Opens a dataset, and prepares it where it is not on disk yet.

    Any number of processes may be first at once: one prepares, the others wait. A process that dies leaves nothing behind that
    hinders the next, because the files are written beside their folder, which is renamed when complete.

    Args:
      name: ``"digits"``, or a TFDS name, with a configuration (``"cifar10_corrupted/fog_3"``) and version (``"mnist:3.0.1"``)
        if wanted.
      data_dir: the folder of all datasets, see `data_directory`.
      test_split: the split to measure on; datasets that keep their test labels to themselves have a ``"validation"`` instead.

    Returns:
      A `Dataset`.

    Raises:
      ValueError: if there is no dataset or split of that name, or it has no images with one class each.
      DatasetUnavailable: if it is not on disk and cannot be prepared here, or its files cannot be read; says what to do.
    """
    if not isinstance(name, str):
        errors.refuse("load", "name", "the name of a dataset", name)
    folder = data_directory(data_dir)
    builder = _builder(name, folder)
    if not builder.data_path.exists():
        with _lock(folder, builder.name):
            builder = _builder(name, folder)  # another process may have prepared it while this one waited
            if not builder.data_path.exists():
                _prepare(builder, name, folder)
    return _open(builder, name, test_split)


def _tfds() -> Any:
    # Half a second that importing this package does not take.
    import tensorflow_datasets as tfds

    import experiments.data.digits  # noqa: F401  (enters it in the register of TFDS)

    return tfds


def _builder(name: str, folder: Path) -> Any:
    tfds = _tfds()
    try:
        return tfds.builder(name, data_dir=folder, file_format="array_record")
    except tfds.core.DatasetNotFoundError:
        names = available()
        near = difflib.get_close_matches(str(name).lower(), names, 3, 0.5)
        hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
        expected = f"the name of a dataset ({hint}experiments.data.available() lists all {len(names)})"
        error = ValueError(f"load: name must be {expected}, got {name!r}")
    except ImportError as e:
        raise errors.DatasetUnavailable(f"load: dataset {name!r} needs a package that is not installed: {_brief(e)}") from e
    except (ValueError, AssertionError, TypeError) as e:
        # A name that cannot be parsed, an unknown configuration or version; or files in another format.
        there = folder / re.split("[/:]", name)[0]
        hint = f"\nWhat to do, if the name is right: {_again(there)}" if there.exists() else ""
        error = ValueError(f"load: name {name!r} cannot be opened in {folder}: {_brief(e)}{hint}")
        error.__cause__ = e
    except Exception as e:
        _unreadable(name, folder / re.split("[/:]", name)[0], e)
    raise error


@contextlib.contextmanager
def _lock(folder: Path, name: str) -> Iterator[None]:
    """Held by one process at a time, and let go by the system if it dies."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = open(folder / f".{name}.lock", "w")  # noqa: SIM115  (closed below)
    except OSError as e:
        raise errors.DatasetUnavailable(
            f"load: cannot write to {folder}: {_brief(e)}\n"
            "What to do: give a data_dir, or set REGJAX_DATA_DIR, to a folder that can be written."
        ) from e
    with file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _prepare(builder: Any, name: str, folder: Path) -> None:
    try:
        # Only TFRecord files lie on Google's cloud storage: asking there for these would be in vain.
        config = _tfds().download.DownloadConfig(try_download_gcs=False)
        builder.download_and_prepare(download_dir=folder / "downloads", download_config=config)
    except Exception as e:
        raise errors.DatasetUnavailable(_advice(e, builder, name, folder)) from e


def _advice(error: Exception, builder: Any, name: str, folder: Path) -> str:
    missing = next((e.name for e in _chain(error) if isinstance(e, ModuleNotFoundError) and e.name), None)
    if missing and missing.split(".")[0] == "tensorflow":
        why = "preparing it (not reading it) needs TensorFlow, which is not installed"
    elif missing:
        why = f"preparing it needs a package that is not installed; here, first try: pip install {missing}"
    else:
        why = _brief(error)
    call = f"tensorflow_datasets.builder({name!r}, data_dir='datasets', file_format='array_record').download_and_prepare()"
    return (
        f"load: cannot prepare dataset {name!r} in {folder}: {why}\n"
        "What to do: where there is a network connection and TensorFlow, run\n"
        "  pip install tensorflow tensorflow-datasets importlib_resources\n"
        f'  python -c "import tensorflow_datasets; {call}"\n'
        f"and copy the folder datasets/{builder.name} to {folder / builder.name}.\n"
        f"Available without that: {', '.join(_ready(folder))}."
    )


def _ready(folder: Path) -> list[str]:
    """The bundled datasets and those prepared in the folder."""
    inside = [path for path in folder.iterdir() if path.is_dir() and path.name != "downloads"]
    levels = ("*/dataset_info.json", "*/*/dataset_info.json")  # below the version; below configuration and version
    return sorted({*BUNDLED, *(path.name for path in inside if any(any(path.glob(level)) for level in levels))})


def _open(builder: Any, name: str, test_split: str) -> Dataset:
    tfds = _tfds()
    if not (builder.data_path / "dataset_info.json").exists():
        _unreadable(name, builder.data_path, FileNotFoundError("dataset_info.json"))
    features, supervised = builder.info.features, builder.info.supervised_keys
    pair = isinstance(supervised, tuple) and len(supervised) == 2 and all(isinstance(key, str) for key in supervised)
    image_key, label_key = supervised if pair else ("image", "label")
    fields = dict(features.items()) if hasattr(features, "items") else {}
    image, label = fields.get(image_key), fields.get(label_key)
    if image is None or len(image.shape) != 3 or not isinstance(label, tfds.features.ClassLabel) or not label.num_classes:
        errors.refuse(
            "load", "name", "a dataset of images [H, W, C] with one class each", f"{name} of {sorted(fields)}", quote=False
        )
    splits = sorted(builder.info.splits)
    if "train" not in splits:
        errors.refuse("load", "name", "a dataset with the split 'train'", f"{name} with {splits}", quote=False)
    if test_split not in splits:
        errors.refuse("load", "test_split", "one of " + ", ".join(map(repr, splits)), test_split)

    def source(split: str) -> Source:
        records = undecoded = builder.as_data_source(split=split)
        if isinstance(image, tfds.features.Image):
            undecoded = builder.as_data_source(split=split, decoders={image_key: tfds.decode.SkipDecoding()})
        found = Source(records, undecoded, image_key, label_key)
        found.images([0])  # broken files and a missing decoder show here rather than in the first step
        return found

    try:
        train, test = source("train"), source(test_split)
    except ImportError as e:
        raise errors.DatasetUnavailable(
            f"load: reading dataset {name!r} needs a package that is not installed: {_brief(e)}\nWhat to do: pip install pillow"
        ) from e
    except Exception as e:
        _unreadable(name, builder.data_path, e)
    greatest = np.iinfo(image.np_dtype).max if np.issubdtype(image.np_dtype, np.integer) else 1
    max_value = float((builder.info.metadata or {}).get("max_value", greatest))
    return Dataset(name, Path(builder.data_dir), train, test, label.num_classes, tuple(label.names), max_value)


def _unreadable(name: str, folder: Any, error: Exception) -> NoReturn:
    raise errors.DatasetUnavailable(
        f"load: the files of dataset {name!r} in {folder} cannot be read: {_brief(error)}\nWhat to do: {_again(folder)}"
    ) from error


def _again(folder: Any) -> str:
    return f"delete {folder} and run again, or copy it anew; it must be prepared with file_format='array_record'."


def _chain(error: BaseException | None) -> Sequence[BaseException]:
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__ or error.__context__
    return found


def _brief(error: BaseException) -> str:
    """The type and first line of an error: TFDS appends pages."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = lines[0] if lines else ""
    return f"{type(error).__name__}: {text if len(text) <= 300 else text[:297] + '...'}"
