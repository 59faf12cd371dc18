"""Datasets on disk and in memory: the true pixels, safe first use, errors that help, batches that resume and shard."""

import dataclasses
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tensorflow_datasets as tfds
from sklearn.datasets import load_digits

from experiments import data
from experiments.data import digits

# Two of these start at once; each says that it is ready, and waits for the other.
FIRST_USE = """
import sys, time
from pathlib import Path
from experiments import data
from experiments.data import digits
import sklearn.datasets
folder, me, other = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
(folder / me).touch()
deadline = time.time() + 60
while not (folder / other).exists() and time.time() < deadline:
    time.sleep(0.005)
config = data.DataConfig(data_dir=folder)
arrays, views = data.load_arrays(config), data.load_views(config)
next(data.train_iterator(views.train, batch_size=8, seed=0))
next(data.evaluation_batches(views.test, batch_size=8))
print("result", len(arrays.train), len(arrays.validation), len(arrays.test), "tensorflow" in sys.modules)
"""


@pytest.fixture(scope="module")
def first_use(tmp_path_factory):
    """A folder in which two processes prepared the digits at once, after a third had died doing it; and what they say."""
    folder = tmp_path_factory.mktemp("datasets")
    dead = folder / "digits" / "incomplete.ABCDEF_1.0.0"
    dead.mkdir(parents=True)
    (dead / "dataset_info.json").write_text("{")
    (folder / ".digits.lock").touch()
    commands = [[sys.executable, "-c", FIRST_USE, str(folder), a, b] for a, b in (("a", "b"), ("b", "a"))]
    both = [subprocess.Popen(c, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for c in commands]
    said = [process.communicate(timeout=120) for process in both]
    return folder, said


@pytest.fixture(scope="module")
def folder(first_use):
    return str(first_use[0])


@pytest.fixture(scope="module")
def arrays(folder):
    return data.load_arrays(data.DataConfig(data_dir=folder))


def test_two_processes_prepare_at_once_without_tensorflow(first_use):
    for out, err in first_use[1]:
        assert "result 1293 144 360 False" in out, err
    assert sum("downloaded and prepared" in out for out, _ in first_use[1]) == 1  # the other waited and read


def test_the_digits_are_those_of_scikit_learn(folder):
    dataset = data.load("digits", folder)
    images, labels = load_digits(return_X_y=True)
    ids = {}
    for part, size in (("train", 1437), ("test", 360)):
        source = getattr(dataset, part)
        records = source.records.__getitems__(list(range(len(source))))
        ids[part] = np.array([r["id"] for r in records])
        assert len(source) == len(set(ids[part])) == size
        np.testing.assert_array_equal(source.images(range(size))[..., 0], images[ids[part]].reshape(-1, 8, 8))
        np.testing.assert_array_equal(source.labels(), labels[ids[part]])
    assert sorted([*ids["train"], *ids["test"]]) == list(range(1797))
    assert [sorted(part) for part in digits.split_ids()] == [sorted(ids["train"]), sorted(ids["test"])]
    # The split is part of every published number: it must not move.
    assert digits.split_ids()[1][:5] == [431, 571, 394, 1225, 46]
    assert (dataset.num_classes, dataset.max_value, dataset.class_names[3]) == (10, 16.0, "3")
    assert dataset.train.images([0]).dtype == np.uint8 and dataset.folder == Path(folder, "digits", "1.0.0")


def test_the_splits_of_a_run_are_disjoint_and_the_test_part_is_never_touched(folder):
    config = data.DataConfig(data_dir=folder, normalise="unit")
    plain = data.load_arrays(config)
    hard = data.load_arrays(dataclasses.replace(config, label_noise=0.3, imbalance=10.0, seed=1))
    seen = [image.tobytes() for part in (plain.train, plain.validation, plain.test) for image in part.images]
    assert len(seen) == 1797 and len(set(seen)) == len({i.tobytes() for i in load_digits().images})
    np.testing.assert_array_equal(plain.test.images, hard.test.images)
    for part in (plain.test, hard.test, hard.validation, plain.train):
        np.testing.assert_array_equal(part.labels, part.clean_labels)
    assert not {i.tobytes() for i in hard.train.images} & {i.tobytes() for i in hard.validation.images}
    for part in (plain.train, hard.train, hard.test, hard.validation):
        assert part.images.dtype == np.float32 and {part.labels.dtype, part.index.dtype} == {np.dtype(np.int32)}
        np.testing.assert_array_equal(part.index, np.arange(len(part)))
    assert hard.train.images.max() == 1.0 and hard.train.images.min() == 0.0
    expected = data.long_tail_counts(np.bincount(plain.train.labels), 10.0)
    np.testing.assert_array_equal(np.bincount(hard.train.clean_labels), expected)
    assert np.sum(hard.train.labels != hard.train.clean_labels) == round(0.3 * len(hard.train))


def test_the_images_of_a_variant_keep_their_true_labels(folder):
    truth = dict(zip((i.tobytes() for i in load_digits().images.astype(np.float32)), load_digits().target, strict=True))
    config = data.DataConfig(
        data_dir=folder, normalise="unit", per_class=30, label_noise=0.5, noise_kind="confusion", validation=0.2
    )
    train = data.load_arrays(config).train
    assert [truth[(16 * i[..., 0]).tobytes()] for i in train.images] == train.clean_labels.tolist()
    np.testing.assert_array_equal(np.bincount(train.clean_labels), [30] * 10)
    table = np.zeros((10, 10), int)
    np.add.at(table, (train.clean_labels, train.labels), 1)
    assert table[2, 7] == table[3, 8] == table[5, 6] == table[6, 5] == table[7, 1] == 15 and np.trace(table) == 225


def test_standardised_by_the_training_images_alone(arrays):
    train = arrays.train.images.astype(np.float64)
    assert abs(train.mean()) < 1e-6 and abs(train.std() - 1) < 1e-6
    assert 1e-4 < abs(arrays.test.images.mean()) < 0.1
    pixels = (arrays.test.images * arrays.std + arrays.mean) * 16
    np.testing.assert_allclose(pixels, np.round(pixels), atol=1e-4)


def test_the_same_config_gives_the_same_arrays_and_another_seed_others(folder, arrays):
    config = data.DataConfig(data_dir=folder, label_noise=0.2)
    again, other = data.load_arrays(config), data.load_arrays(dataclasses.replace(config, seed=1))
    np.testing.assert_array_equal(again.train.images, arrays.train.images)
    np.testing.assert_array_equal(again.train.labels, data.load_arrays(config).train.labels)
    assert again.train.images.shape == other.train.images.shape and np.any(again.train.images != other.train.images)
    empty = data.load_arrays(dataclasses.replace(config, validation=0.0))
    assert empty.validation.images.shape == (0, 8, 8, 1) and len(empty.train) == 1437


def test_views_give_the_batches_of_arrays(folder):
    config = data.DataConfig(data_dir=folder, per_class=20, label_noise=0.4)
    arrays, views = data.load_arrays(config), data.load_views(config)
    positions = np.array([5, 0, 199, 5])
    for part in ("train", "validation", "test"):
        a, b = getattr(arrays, part).take(positions % 100), getattr(views, part).take(positions % 100)
        assert a.keys() == b.keys() == {"image", "label", "clean_label", "index"}
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])
            assert a[name].dtype == b[name].dtype


def test_arrays_are_a_pytree_and_an_epoch_runs_inside_jit(arrays):
    @jax.jit
    def epoch(splits, key):
        order = data.epoch_permutation(key, len(splits.train), 100)
        seen = jax.lax.map(lambda positions: splits.train.take(positions), order)
        return order, seen["index"], seen["image"].sum((2, 3, 4)), splits.num_classes * jnp.ones(())

    order, index, sums, classes = epoch(jax.device_put(arrays), jax.random.key(0))
    assert order.shape == (12, 100) and order.dtype == jnp.int32 and classes == 10
    assert len(set(np.ravel(order).tolist())) == 1200 and np.max(order) < 1293
    np.testing.assert_array_equal(index, order)
    np.testing.assert_allclose(sums, arrays.train.images.sum((1, 2, 3))[order], rtol=1e-4, atol=1e-3)
    assert np.any(order != epoch(arrays, jax.random.key(1))[0])
    with pytest.raises(ValueError, match=r"batch_size must be an integer in \[1, 50\], got 51"):
        data.epoch_permutation(jax.random.key(0), 50, 51)


def stream(iterator, steps):
    return [next(iterator) for _ in range(steps)]


def same(a, b):
    return all(a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]) for name in a.keys() | b.keys())


@pytest.mark.parametrize("form", ["arrays", "views"])
def test_an_iterator_resumes_in_mid_epoch_bit_for_bit(folder, form):
    config = data.DataConfig(data_dir=folder, label_noise=0.2)
    examples = getattr(data, f"load_{form}")(config).train
    options = {"batch_size": 100, "seed": 7}
    iterator = data.train_iterator(examples, **options)
    stream(iterator, 17)  # an epoch has 12 steps
    state = json.dumps(iterator.get_state())
    rest = stream(iterator, 10)
    resumed = data.train_iterator(examples, **options)
    resumed.set_state(json.loads(state))
    assert all(same(a, b) for a, b in zip(rest, stream(resumed, 10), strict=True))
    assert same(rest[0], data.train_batches(examples, **options)[17])


def test_epochs_have_each_example_at_most_once_and_their_own_order(arrays):
    batches = data.train_batches(arrays.train, batch_size=100, seed=0, epochs=3)
    assert len(batches) == 36
    epochs = [[i for step in range(12) for i in batches[12 * e + step]["index"].tolist()] for e in range(3)]
    assert all(len(set(epoch)) == 1200 for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] and set(epochs[0]) != set(epochs[1])
    batch = batches[3]
    np.testing.assert_array_equal(batch["image"], arrays.train.images[batch["index"]])
    again, other = (data.train_batches(arrays.train, batch_size=100, seed=s) for s in (0, 1))
    assert same(again[20], batches[20]) and not same(other[20], batches[20])
    assert len(list(data.train_iterator(arrays.train, batch_size=100, seed=0, epochs=2))) == 24


def test_processes_share_a_batch_without_overlap(arrays):
    options = {"batch_size": 100, "seed": 0}
    whole = data.train_batches(arrays.train, **options)
    parts = [data.train_batches(arrays.train, **options, process_index=p, process_count=2) for p in range(2)]
    for step in (0, 11, 12, 100):
        first, second = (part[step]["index"].tolist() for part in parts)
        assert len(first) == len(second) == 50 and not set(first) & set(second)
        # One after the other: what is drawn by the place in the batch falls on the same examples.
        assert first + second == whole[step]["index"].tolist()


@pytest.mark.parametrize("processes", [1, 2, 3])
def test_evaluation_counts_every_example_once_in_batches_of_one_shape(arrays, processes):
    counts = np.zeros(360, int)
    lengths = set()
    for p in range(processes):
        batches = list(data.evaluation_batches(arrays.test, batch_size=102, process_index=p, process_count=processes))
        lengths.add(len(batches))
        for batch in batches:
            assert batch["image"].shape == (102 // processes, 8, 8, 1) and batch["where"].dtype == bool
            np.testing.assert_array_equal(batch["image"], arrays.test.images[batch["index"]])
            np.add.at(counts, batch["index"], batch["where"])
    assert lengths == {4} and np.all(counts == 1)
    nothing = dataclasses.replace(arrays.test, labels=arrays.test.labels[:0])
    assert list(data.evaluation_batches(nothing, batch_size=10)) == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda s: data.train_batches(s, batch_size=361, seed=0),
            "batch_size must be at most the number of examples, 360, got 361",
        ),
        (lambda s: data.train_batches(s, batch_size=0, seed=0), "batch_size must be an integer >= 1, got 0"),
        (lambda s: data.train_batches(s, batch_size=5, seed=-1), "seed must be an integer in [0,"),
        (lambda s: data.train_batches(s, batch_size=5, seed=0, epochs=0), "epochs must be an integer >= 1, got 0"),
        (
            lambda s: data.train_batches(s, batch_size=5, seed=0, process_index=0, process_count=2),
            "batch_size must be a multiple of the number of processes, 2, got 5",
        ),
        (
            lambda s: data.evaluation_batches(s, batch_size=4, process_index=2, process_count=2),
            "evaluation_batches: process_index must be an integer in [0, 1], got 2",
        ),
        (lambda s: data.train_iterator(s, threads=-1, batch_size=5, seed=0), "threads must be an integer >= 0, got -1"),
    ],
)
def test_bad_arguments_of_the_pipeline_are_named(arrays, call, message):
    with pytest.raises(ValueError) as error:
        call(arrays.test)
    assert message in str(error.value)


def test_a_variant_that_the_data_cannot_give_is_refused(folder):
    with pytest.raises(ValueError, match=r"per_class must be at most 1[0-9]+, the size of the smallest class, got 500"):
        data.load_arrays(data.DataConfig(data_dir=folder, per_class=500))
    with pytest.raises(ValueError, match=r"which has 1[0-9]+ of 500 examples, got 500"):
        data.load_arrays(data.DataConfig(data_dir=folder, per_class=500, imbalance=2.0))
    with pytest.raises(ValueError, match=r"max_megabytes must be at least 0\.5 for digits .* load_views"):
        data.load_arrays(data.DataConfig(data_dir=folder), max_megabytes=0.1)
    with pytest.raises(ValueError, match="test_split must be one of 'test', 'train', got 'validation'"):
        data.load_arrays(data.DataConfig(data_dir=folder, test_split="validation"))


def test_an_unknown_name_is_told_the_nearest(tmp_path):
    with pytest.raises(ValueError, match=r"did you mean 'cifar10' or .*data.available.*, got 'cifar1O'"):
        data.load("cifar1O", tmp_path)
    with pytest.raises(ValueError, match="did you mean 'digits'"):
        data.load("digit", tmp_path)
    with pytest.raises(ValueError, match=r"name 'cifar10/foo' cannot be opened .*BuilderConfig foo not found"):
        data.load("cifar10/foo", tmp_path)
    with pytest.raises(ValueError, match="name must be the name of a dataset, got 3"):
        data.load(3, tmp_path)
    assert {"digits", "cifar10", "mnist"} <= set(data.available()) and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("failure", "why"),
    [
        (ConnectionError("no route to host\nand much more"), "ConnectionError: no route to host\n"),
        (ModuleNotFoundError("No module named 'tensorflow'", name="tensorflow"), "needs TensorFlow, which is not installed"),
        (ModuleNotFoundError("No module named 'apache_beam'", name="apache_beam"), "pip install apache_beam"),
    ],
)
def test_what_cannot_be_prepared_says_why_and_what_to_do(folder, monkeypatch, failure, why):
    def fails(self, **_):
        raise failure

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fails)
    with pytest.raises(data.DatasetUnavailable) as error:
        data.load_arrays(data.DataConfig(name="mnist", data_dir=folder))
    said = str(error.value)
    assert said.startswith(f"load: cannot prepare dataset 'mnist' in {folder}: ") and why in said and "much more" not in said
    assert "tensorflow_datasets.builder('mnist', data_dir='datasets', file_format='array_record').download_and_prepare()" in said
    assert f"copy the folder datasets/mnist to {folder}/mnist" in said and said.endswith("Available without that: digits.")


def test_a_failed_preparation_leaves_nothing_in_the_way(tmp_path, monkeypatch):
    whole = digits.Digits._generate_examples

    def breaks(self, ids):
        yield from list(whole(self, ids))[:10]
        raise OSError("disk full")

    monkeypatch.setattr(digits.Digits, "_generate_examples", breaks)
    with pytest.raises(data.DatasetUnavailable, match="disk full"):
        data.load("digits", tmp_path)
    assert not list(tmp_path.glob("digits/*"))
    monkeypatch.undo()
    assert len(data.load("digits", tmp_path).train) == 1437


def test_a_copied_folder_is_read_and_a_broken_one_is_named(folder, tmp_path, monkeypatch):
    monkeypatch.setenv("REGJAX_DATA_DIR", str(tmp_path))
    shutil.copytree(Path(folder, "digits"), tmp_path / "digits")
    inside = tmp_path / "digits" / "1.0.0"
    before = inside.stat().st_mtime_ns
    assert data.load().folder == inside and inside.stat().st_mtime_ns == before and data.data_directory() == tmp_path
    info = inside / "dataset_info.json"
    text = info.read_text()
    info.write_text(text.replace("array_record", "tfrecord"))
    with pytest.raises(ValueError, match=r"(?s)already set to .*TFRECORD.*prepared with file_format='array_record'"):
        data.load()
    info.write_text(text[:100])
    with pytest.raises(data.DatasetUnavailable, match=rf"(?s){inside.parent} cannot be read: ParseError.*and run again"):
        data.load()
    info.write_text(text)
    for file in ("digits-test.array_record-00000-of-00001", "dataset_info.json"):
        (inside / file).unlink()
        with pytest.raises(data.DatasetUnavailable, match=rf"(?s){inside} cannot be read: .*delete {inside} and run again"):
            data.load()
    (tmp_path / "file").touch()
    with pytest.raises(data.DatasetUnavailable, match=r"(?s)cannot write to .*REGJAX_DATA_DIR"):
        data.load("digits", tmp_path / "file")


class RegjaxColours(tfds.core.GeneratorBasedBuilder):
    """Compressed images of two sizes, as most of TFDS has them."""

    VERSION = tfds.core.Version("1.0.0")
    url_infos = None

    def _info(self):
        image = tfds.features.Image(shape=(None, None, 3))
        features = {"picture": image, "class": tfds.features.ClassLabel(names=["red", "blue"])}
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features), supervised_keys=("picture", "class")
        )

    def _split_generators(self, dl_manager):
        return {"train": self._generate_examples(20), "validation": self._generate_examples(4)}

    def _generate_examples(self, n):
        from PIL import Image

        for i in range(n):
            file = io.BytesIO()
            pixels = np.zeros((4, 5 + i % 2, 3), np.uint8)
            pixels[..., 2 * (i // 2 % 2)] = 200 + i
            Image.fromarray(pixels).save(file, "PNG")
            yield i, {"picture": file.getvalue(), "class": i // 2 % 2}


def test_compressed_images_are_decoded_without_tensorflow(tmp_path):
    config = data.DataConfig(
        name="regjax_colours", data_dir=str(tmp_path), test_split="validation", validation=0.2, normalise="unit"
    )
    with pytest.raises(
        ValueError, match=r"resize must be a function that gives every image one shape, got images of \(4, 5, 3\) and \(4, 6, 3\)"
    ):
        data.load_arrays(config)
    arrays = data.load_arrays(config, resize=lambda image: image[:, :5])
    assert arrays.image_shape == (4, 5, 3) and arrays.num_classes == 2
    assert (len(arrays.train), len(arrays.validation), len(arrays.test)) == (16, 4, 4)
    for part in (arrays.train, arrays.validation, arrays.test):
        red, blue = part.images[..., 0] > 0, part.images[..., 2] > 0
        np.testing.assert_array_equal(red.all((1, 2)), part.labels == 0)
        np.testing.assert_array_equal(blue.all((1, 2)), part.labels == 1)
    values = sorted({round(float(v) * 255) for v in np.unique(arrays.test.images) if v})
    assert values == [200, 201, 202, 203]
    with pytest.raises(ValueError, match="test_split must be one of 'train', 'validation', got 'test'"):
        data.load("regjax_colours", tmp_path)
    undecoded = data.load("regjax_colours", tmp_path, test_split="validation").train.undecoded[0]["picture"]
    assert isinstance(undecoded, bytes)
