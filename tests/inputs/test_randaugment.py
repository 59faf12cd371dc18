"""RandAugment: the published maps, and its sampler."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from regjax.inputs.augmentation import image_ops, image_plans
from regjax.inputs.augmentation.randaugment import _TABLES as TABLES
from regjax.inputs.augmentation.randaugment import _sample_magnitudes

# The tests compile much and run little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)
ENHANCE = ("color", "contrast", "brightness", "sharpness")


def published(name, table, magnitude, most, side):
    """The maps of the tables, in Python's numbers."""
    m = magnitude / most
    if name == "rotate":
        return 30 * m
    if name in ("shear_x", "shear_y"):
        return 0.3 * m
    if name in ("translate_x", "translate_y"):
        return 100 * m if table == "tpu" else 0.45 * m * side
    if name in ENHANCE:
        return {"paper": 1 + 0.9 * m, "tpu": 0.1 + 1.8 * m, "timm": max(0.1, 1 + 0.9 * m)}[table]
    whole = lambda factor: math.floor(round(factor * magnitude / most, 9))
    if name == "posterize":
        return {"paper": 8 - round(4 * magnitude / most), "tpu": min(whole(4), 8), "timm": 4 - whole(4)}[table]
    if name == "solarize":
        return {"paper": 256 * (1 - m), "tpu": min(whole(256), 256), "timm": 256 - min(256, whole(256))}[table]
    if name == "solarize_add":
        return min(128, whole(110)) if table == "timm" else whole(110)
    return whole(40) if name == "cutout" else 0


def test_lists_of_operations():
    assert {table: len(names) for table, names in TABLES.items()} == {"paper": 14, "tpu": 16, "timm": 15}
    assert all(len(set(names)) == len(names) for names in TABLES.values())
    assert set(TABLES["timm"]) - set(TABLES["paper"]) == {"invert", "solarize_add"}
    assert set(TABLES["paper"]) - set(TABLES["timm"]) == {"identity"}
    assert set(TABLES["tpu"]) - set(TABLES["timm"]) == {"cutout"}


def test_maps_are_the_published_ones():
    for table, names in TABLES.items():
        for most, magnitudes in ((10, (0, 1, 2.5, 3, 5, 7, 9, 10)), (30, (0, 3, 9, 15, 22.5, 28, 30))):
            for name in names:
                got = [rj.inputs.randaugment_magnitude(name, m, table=table, max_magnitude=most, side=32) for m in magnitudes]
                want = [published(name, table, m, most, 32) for m in magnitudes]
                np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5, err_msg=f"{table} {name}")
    # Beyond the end of the authors' scale.
    beyond = {n: float(rj.inputs.randaugment_magnitude(n, 28, table="tpu")) for n in ("posterize", "solarize", "rotate")}
    assert beyond == {"posterize": 8, "solarize": 256, "rotate": 84}


def test_published_arguments_at_nine():
    at = lambda name, table="paper", **options: float(rj.inputs.randaugment_magnitude(name, 9, table=table, **options))
    assert at("rotate") == pytest.approx(27)
    assert at("translate_x", side=40) == pytest.approx(0.405 * 40)
    assert [at("posterize", table) for table in TABLES] == [4, 3, 1]
    assert [at("solarize", table) for table in TABLES] == pytest.approx([25.6, 230, 26])
    assert at("color", "timm") == pytest.approx(1.81)
    assert float(rj.inputs.randaugment_magnitude("brightness", 5, table="tpu")) == pytest.approx(1)


def directions(name, arg, table):
    """The arguments that the sampler may give an operation."""
    if name in image_ops.GEOMETRIC:
        return (arg, -arg)
    return (arg, max(2 - arg, 0.1)) if name in ENHANCE and table != "tpu" else (arg,)


def test_operations_and_directions_are_drawn_uniformly():
    """Each result is that of one operation in one direction, and all come up as often as they should."""
    table, count, prob, side = "timm", 1500, 0.9, 17
    image = np.linspace(0.1, 0.9, side)[:, None, None] * RNG.uniform(0.2, 1, size=(side, side, 3))
    image = image.astype(np.float32)
    apply = jit(functools.partial(rj.inputs.randaugment, num_ops=1, magnitude=6, table=table, prob=prob, value_range=(0, 1)))
    got, _ = apply(jax.random.key(0), jnp.broadcast_to(image, (count, *image.shape)))
    names = TABLES[table]
    candidates = [("none", 0)]
    for name in names:
        arg = published(name, table, 6, 10, side)
        candidates += [(name, a) for a in directions(name, arg, table)]
    operation = np.array([[names.index(name) if name != "none" else -1 for name, _ in candidates]])
    args = np.broadcast_to(np.array([a for _, a in candidates], np.float32), (len(names), 1, len(candidates)))
    frame = image_ops.Frame(0.0, 1.0, 0.5, "nearest")
    centre = np.zeros((1, len(candidates), 2), int)

    @jit
    def each(images):
        return image_plans.apply_plan(images, image_plans.make_plan(names, operation, args, centre, side, side), names, frame)

    known = np.asarray(each(jnp.broadcast_to(image, (len(candidates), *image.shape)))).reshape(len(candidates), -1)
    distance = np.abs(np.asarray(got).reshape(count, 1, -1) - known).max(-1)
    assert distance.min(1).max() < 1e-5
    expected = {}
    for i, (name, _) in enumerate(candidates):
        # Operations that happen to agree on this image, as identity and none, are counted together.
        first = int(np.argmin(np.abs(known - known[i]).max(-1) > 1e-5))
        ways = len(directions(name, 1.0, table)) if name != "none" else 1
        expected[first] = expected.get(first, 0) + ((1 - prob) if name == "none" else prob / len(names) / ways)
    assert len(expected) >= len(candidates) - 2
    counts = np.bincount(distance.argmin(1), minlength=len(candidates))
    assert sum(counts[i] for i in expected) == count
    for i, p in expected.items():
        assert abs(counts[i] - count * p) < 5 * math.sqrt(count * p * (1 - p)), candidates[i]


def test_slots_are_drawn_independently():
    """At magnitude 0 twelve of the 14 operations do nothing: an image stays as it is with probability (12/14)^num_ops."""
    images = jnp.asarray(RNG.uniform(0.3, 0.6, size=(3000, 16, 17, 1)), jnp.float32)
    apply = jit(functools.partial(rj.inputs.randaugment, num_ops=2))
    got = apply(jax.random.key(1), images, magnitude=0.0)[0]
    p = (12 / 14) ** 2
    same = np.all(np.asarray(got) == np.asarray(images), axis=(1, 2, 3)).mean()
    assert abs(same - p) < 5 * math.sqrt(p * (1 - p) / 3000)


def test_deviating_magnitudes():
    draw = jit(functools.partial(_sample_magnitudes, most=10.0, shape=(20000,)))
    key = jax.random.key(2)
    np.testing.assert_array_equal(draw(key, 14.0, 0.0), 14.0)
    normal = np.asarray(draw(key, 5.0, 0.5))
    assert abs(normal.mean() - 5) < 5 * 0.5 / math.sqrt(20000)
    assert abs(normal.std() - 0.5) < 5 * 0.5 / math.sqrt(40000)
    clipped = np.asarray(draw(key, 9.0, 2.0))
    assert clipped.max() == 10
    assert abs((clipped == 10).mean() - 0.3085) < 5 * math.sqrt(0.3085 * 0.6915 / 20000)
    uniform = np.asarray(draw(key, 8.0, math.inf))
    assert uniform.min() >= 0 and uniform.max() <= 8
    assert abs(uniform.mean() - 4) < 5 * 8 / math.sqrt(12 * 20000)
    assert abs(uniform.std() - 8 / math.sqrt(12)) < 0.05


def test_strengths_may_be_traced_and_labels_pass():
    images = jnp.asarray(RNG.uniform(size=(6, 9, 8, 3)), jnp.float32)
    labels = {"id": jnp.arange(6), "name": None}
    run = jit(functools.partial(rj.inputs.randaugment, num_ops=1, table="timm"))
    given = {"magnitude": 4.0, "prob": 0.5, "magnitude_std": 0.7}
    traced, same = run(jax.random.key(3), images, labels, **given)
    fixed = functools.partial(rj.inputs.randaugment, num_ops=1, table="timm", **given)
    np.testing.assert_allclose(traced, jit(fixed)(jax.random.key(3), images)[0], atol=1e-6)
    np.testing.assert_array_equal(same["id"], labels["id"])
    assert not np.array_equal(traced, images)
    np.testing.assert_array_equal(run(jax.random.key(3), images, labels, **{**given, "prob": 0.0})[0], images)
    uniform = run(jax.random.key(3), images, labels, **{**given, "magnitude_std": math.inf})[0]
    assert np.all(np.isfinite(uniform))


def test_a_translation_lacks_its_side():
    with pytest.raises(ValueError, match=r"regjax\.inputs\.randaugment_magnitude: side must be the pixels"):
        rj.inputs.randaugment_magnitude("translate_x", 9)
    assert float(rj.inputs.randaugment_magnitude("translate_x", 5, table="tpu")) == 50
