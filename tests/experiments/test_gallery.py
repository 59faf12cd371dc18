"""The gallery shows every input transform, and its cells are images."""

import inspect

import jax
import matplotlib.pyplot as plt
import numpy as np
import pytest

from experiments import gallery
from regjax import catalog


def test_every_transform_of_images_is_shown():
    shown = {entry.name for entry in gallery.TRANSFORMS}
    for name, fn in catalog.techniques().items():
        if name.startswith("inputs.") and list(inspect.signature(fn).parameters)[:2] == ["key", "images"]:
            assert name.removeprefix("inputs.") in shown
    assert len(gallery.OPERATIONS) == 17


@pytest.mark.slow
def test_pictures_are_written(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(gallery, "SIDE", 32)
    images, labels = gallery.photographs()
    assert images.shape == (4, 32, 32, 3) and labels.shape == (4, 4) and 0.1 < float(images.mean()) < 0.9
    for entry in gallery.TRANSFORMS:
        changed, _ = jax.eval_shape(entry.fn, jax.random.key(0), images, labels)
        assert changed.ndim == 4 and changed.shape[-1] == 3, entry.name
    monkeypatch.setattr(gallery, "TRANSFORMS", gallery.TRANSFORMS[:3])
    monkeypatch.setattr(gallery, "OPERATIONS", gallery.OPERATIONS[:2])
    assert gallery.main(["--out", str(tmp_path)]) == 0
    written = capsys.readouterr().out.split()
    assert [plt.imread(path).ndim for path in written] == [3, 3]
    assert np.std(plt.imread(written[0])) > 10
