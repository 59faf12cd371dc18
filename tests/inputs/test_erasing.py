"""Random erasing against a loop and the published boxes, its sampler, and its cost."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

# The tests compile much and run little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(5, 9, 12, 2))
BOXES = {
    "area_fraction": RNG.uniform(0.05, 0.4, (5, 2)),
    "log_aspect": RNG.uniform(-1, 1, (5, 2)),
    "top": RNG.integers(0, 6, (5, 2)),
    "left": RNG.integers(0, 8, (5, 2)),
}
BOXES["area_fraction"][0, 0], BOXES["log_aspect"][1, 1] = 0, 4.0  # no box, and one higher than the image


def erase(images, area_fraction, log_aspect, top, left, fill):
    out = images.copy()
    _, height, width, _ = images.shape
    for i in range(len(images)):
        for n in range(area_fraction.shape[1]):
            area, ratio = area_fraction[i, n] * height * width, np.exp(log_aspect[i, n])
            h, w = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if h >= height or w >= width:
                continue
            for y in range(top[i, n], min(top[i, n] + h, height)):
                for x in range(left[i, n], min(left[i, n] + w, width)):
                    out[i, y, x] = fill(i, n, y, x)
    return out


def draws(batch=4000, height=12, width=9, **options):
    """Which pixels of ``batch`` images are erased, and the images of ones after it."""
    images = jnp.ones((batch, height, width, 2))
    erased, _ = jit(functools.partial(rj.inputs.random_erasing, **options))(jax.random.key(1), images)
    return np.asarray(erased)[..., 0] != 1, np.asarray(erased)


def sides(mask):
    """Heights and widths of single boxes, after checking that the masks are boxes."""
    tall, wide = mask.any(2).sum(1), mask.any(1).sum(1)
    np.testing.assert_array_equal(tall * wide, mask.sum((1, 2)))
    return tall, wide


def expected_sides(count, height, width, areas, aspects, uniform=False, attempts=10):
    """Sides by a loop over candidates, in the manner of the reference."""
    rng, out = np.random.default_rng(3), []
    for _ in range(count):
        h = w = 0
        for _ in range(attempts):
            area = rng.uniform(*areas) * height * width
            ratio = rng.uniform(*aspects) if uniform else np.exp(rng.uniform(*np.log(aspects)))
            h, w = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
            if h < height and w < width:
                break
            h = w = 0
        out.append((h, w))
    return np.array(out).T


def test_apply_random_erasing_is_the_loop(x64):
    apply = jit(lambda value, **boxes: rj.inputs.apply_random_erasing(IMAGES, **boxes, value=value))
    colours, noise = RNG.normal(size=(5, 2, 2)), RNG.normal(size=IMAGES.shape)
    fills = {
        "number": (0.5, lambda i, n, y, x: 0.5),
        "colours": (colours, lambda i, n, y, x: colours[i, n]),
        "pixels": (noise, lambda i, n, y, x: noise[i, y, x]),
    }
    for value, fill in fills.values():
        np.testing.assert_array_equal(apply(value, **BOXES), erase(IMAGES, **BOXES, fill=fill))
    one = {name: box[:, 1] for name, box in BOXES.items()}
    want = erase(IMAGES, **{k: v[:, None] for k, v in one.items()}, fill=lambda i, n, y, x: colours[i, 1])
    np.testing.assert_array_equal(apply(colours[:, 1], **one), want)


def test_published_box_and_gradient():
    box = {"area_fraction": np.array([0.25]), "log_aspect": np.array([0.3]), "top": np.array([2]), "left": np.array([4])}
    images = jnp.ones((1, 8, 8, 1))
    kept = jax.grad(lambda x: rj.inputs.apply_random_erasing(x, **box).sum())(images)
    want = np.ones((8, 8))
    want[2:7, 4:7] = 0
    np.testing.assert_array_equal(kept[0, :, :, 0], want)
    # An erased pixel is not read, and the dtype stays.
    broken = images.at[0, 3, 5, 0].set(jnp.nan).astype(jnp.bfloat16)
    got = rj.inputs.apply_random_erasing(broken, **box)
    assert got.dtype == jnp.bfloat16
    np.testing.assert_array_equal(got[0, :, :, 0], want)


@pytest.mark.parametrize("aspect", ["log_uniform", "uniform"])
def test_the_sampler_draws_the_reference_distribution(aspect):
    mask, _ = draws(prob=1.0, aspect=aspect, max_area=0.8, min_aspect=0.25)
    tall, wide = sides(mask)
    assert tall.max() < 12
    assert wide.max() < 9
    want = expected_sides(20000, 12, 9, (0.02, 0.8), (0.25, 4.0), aspect == "uniform")
    for got, ref, n in ((tall, want[0], 12), (wide, want[1], 9)):
        p = np.bincount(ref, minlength=n)[:n] / 20000
        counts = np.bincount(got, minlength=n)[:n]
        assert np.all(abs(counts - 4000 * p) < 5 * np.sqrt(4000 * p * (1 - p) * (1 + 4000 / 20000)) + 1)
    for side, start, n in ((tall, mask.any(2).argmax(1), 12), (wide, mask.any(1).argmax(1), 9)):
        place = (start / (n - side))[side > 0]
        assert place.max() == 1
        assert place.min() == 0
        assert abs(place.mean() - 0.5) < 5 * place.std() / np.sqrt(4000)


def test_prob_count_and_attempts():
    mask, _ = draws(prob=0.3)
    touched = mask.any((1, 2)).mean()
    assert abs(touched - 0.3) < 5 * np.sqrt(0.21 / 4000)
    several, _ = draws(batch=3000, height=16, width=16, prob=1.0, min_area=0.3, max_area=0.3, min_aspect=1.0, attempts=1)
    # 0.3 * 256 = 76.8: a square of 9.
    assert np.all(several.sum((1, 2)) == 81)
    images = jnp.ones((500, 16, 16, 1))
    two, _ = jit(functools.partial(rj.inputs.random_erasing, prob=1.0, min_area=0.3, max_area=0.3, min_aspect=1.0, count=2))(
        jax.random.key(0), images
    )
    # Half the area each, squares of 6, which may overlap.
    area = np.asarray(two == 0).sum((1, 2, 3))
    assert area.max() == 72
    assert 36 <= area.min() < 60
    # Boxes that can never fit are given up.
    none, _ = draws(batch=50, prob=1.0, min_area=1.0, max_area=1.0, min_aspect=1.0)
    assert not none.any()


def test_strength_zero_and_traced_probabilities():
    images = IMAGES.astype(np.float32)
    erase_with = jit(lambda prob: rj.inputs.random_erasing(jax.random.key(0), images, np.arange(5), prob=prob, mode="rand"))
    off, labels = erase_with(0.0)
    np.testing.assert_array_equal(off, images)
    np.testing.assert_array_equal(labels, np.arange(5))
    assert not np.array_equal(erase_with(1.0)[0], images)


def test_fills():
    mask, erased = draws(prob=1.0, mode="rand", min_area=0.2, batch=2000)
    first = erased[np.arange(2000), mask.any(2).argmax(1), mask.any(1).argmax(1)]
    np.testing.assert_array_equal(erased, np.where(mask[..., None], first[:, None, None], 1), "one colour for a box")
    assert abs(first.mean()) < 5 / np.sqrt(4000)
    assert abs(first.std() - 1) < 5 / np.sqrt(8000)
    assert abs(np.corrcoef(first.T)[0, 1]) < 5 / np.sqrt(2000), "each channel has its own"
    mask, erased = draws(prob=1.0, mode="pixel", min_area=0.2, batch=300)
    noise = erased[mask].ravel()
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    assert abs(noise.std() - 1) < 5 / np.sqrt(2 * noise.size)
    assert len(np.unique(noise)) > 0.99 * noise.size
    _, erased = draws(prob=1.0, batch=50)
    assert set(np.unique(erased)) == {0.0, 1.0}


@pytest.mark.parametrize("mode", ["const", "rand"])
def test_one_pass_over_the_batch(mode):
    """Bytes that the compiled program reads and writes, beside the batch in and out."""
    images = jax.ShapeDtypeStruct((64, 64, 64, 3), jnp.float32)
    erase_with = functools.partial(rj.inputs.random_erasing, mode=mode)
    key = jax.eval_shape(lambda: jax.random.key(0))
    compiled = jax.jit(lambda key, x: erase_with(key, x)[0]).lower(key, images).compile()
    assert compiled.cost_analysis()["bytes accessed"] < 2.2 * 64 * 64 * 64 * 3 * 4
