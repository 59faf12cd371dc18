"""CutMix against loops and the published boxes, and its sampler."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

# The tests compile much and run little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)
HEIGHT, WIDTH = 7, 10
IMAGES = RNG.normal(size=(5, HEIGHT, WIDTH, 2))
LABELS = RNG.dirichlet(np.ones(4), size=5)
PARTNER = np.array([2, 0, 0, 3, 1])
LAM = np.array([0.05, 0.31, 0.62, 0.8, 0.97])
CENTRE = np.array([[0, 0], [3, 5], [6, 9], [2, 8], [5, 1]])


def cutmix_box(lam, centre, height, width):
    edges = []
    for n, c in ((height, centre[0]), (width, centre[1])):
        half = math.floor(n * math.sqrt(1 - lam)) // 2
        edges += [min(max(c - half, 0), n), min(max(c + half, 0), n)]
    return edges


def paste(images, labels, boxes, partner, lams=None):
    images_out, labels_out = images.copy(), labels.copy()
    for i, (y1, y2, x1, x2) in enumerate(boxes):
        area = 0
        for y in range(y1, y2):
            for x in range(x1, x2):
                images_out[i, y, x] = images[partner[i], y, x]
                area += 1
        keep = 1 - area / (images.shape[1] * images.shape[2]) if lams is None else lams[i]
        labels_out[i] = keep * labels[i] + (1 - keep) * labels[partner[i]]
    return images_out, labels_out


def draws(count, **options):
    """What is pasted with several keys: partners, masks of the boxes [N, B, H, W], and the labels' own weight."""
    images = jnp.broadcast_to(jnp.arange(8.0)[:, None, None, None], (8, 12, 9, 1))
    mix = jit(functools.partial(rj.inputs.cutmix, **options))
    mixed = [mix(key, images, jnp.eye(8)) for key in jax.random.split(jax.random.key(1), count)]
    images, own = np.array([x[..., 0] for x, _ in mixed]), np.arange(8)[:, None, None]
    mask = images != own
    partner = np.where(mask.any((-1, -2)), np.where(mask, images, 0).max((-1, -2)), np.arange(8)).astype(int)
    np.testing.assert_array_equal(images, np.where(mask, partner[..., None, None], own))
    return partner, mask, np.einsum("nii->ni", np.array([y for _, y in mixed]))


def many(**options):
    """The same of 4000 examples that are 0 and 1 in turn, each with a box of its own and the neighbour for a partner."""
    parity = np.arange(4000) % 2
    images = jnp.broadcast_to(parity[:, None, None, None], (4000, 12, 9, 1)).astype(jnp.float32)
    mix = jit(functools.partial(rj.inputs.cutmix, per="example", pairing="roll", **options))
    images, labels = mix(jax.random.key(2), images, jnp.eye(2)[parity])
    return np.asarray(images)[..., 0] != parity[:, None, None], np.asarray(labels)[np.arange(4000), parity]


@pytest.mark.parametrize("correct_lam", [True, False])
def test_apply_cutmix_is_the_loop(x64, correct_lam):
    apply = jit(functools.partial(rj.inputs.apply_cutmix, IMAGES, LABELS, correct_lam=correct_lam))
    boxes = [cutmix_box(LAM[i], CENTRE[i], HEIGHT, WIDTH) for i in range(5)]
    want = paste(IMAGES, LABELS, boxes, PARTNER, None if correct_lam else LAM)
    for got, ref in zip(apply(lam=LAM, centre=CENTRE, partner=PARTNER), want, strict=True):
        np.testing.assert_allclose(got, ref, rtol=1e-7)
    boxes = [cutmix_box(0.31, (3, 5), HEIGHT, WIDTH)] * 5
    want = paste(IMAGES, LABELS, boxes, PARTNER, None if correct_lam else [0.31] * 5)
    for got, ref in zip(apply(lam=0.31, centre=(3, 5), partner=PARTNER), want, strict=True):
        np.testing.assert_allclose(got, ref, rtol=1e-7)


def test_published_boxes():
    def lam(centre, lam=0.75, side=8):
        y1, y2, x1, x2 = map(int, rj.inputs.cutmix_box(lam, centre, (side, side)))
        return 1 - (y2 - y1) * (x2 - x1) / side**2

    assert [int(e) for e in rj.inputs.cutmix_box(0.75, (4, 4), (8, 8))] == [2, 6, 2, 6]
    assert [lam((4, 4)), lam((0, 0)), lam((7, 7))] == [0.75, 0.9375, 0.859375]
    centres = np.stack(np.meshgrid(np.arange(8), np.arange(8)), -1).reshape(-1, 2)
    y1, y2, x1, x2 = rj.inputs.cutmix_box(0.75, centres, (8, 8))
    assert float(jnp.mean(1 - (y2 - y1) * (x2 - x1) / 64)) == 0.80859375
    # The odd side 5 of H = 6 loses a pixel on either side of the integer half.
    assert [int(e) for e in rj.inputs.cutmix_box(1e-3, (3, 3), (6, 6))] == [1, 5, 1, 5]
    assert lam((3, 3), 1e-3, 6) == pytest.approx(0.5555556)
    assert lam((3, 3), 1.0, 6) == 1
    assert lam((3, 3), 0.0, 6) == 0


def test_paste_box_dtypes_and_own_partner():
    images = IMAGES.astype(jnp.bfloat16)
    box = tuple(np.array([e] * 5) for e in (1, 4, 2, 9))
    apply = jit(rj.inputs.paste_box)
    for blocks in (np.arange(5), np.zeros((5, 1), int)):
        got, labels = apply(images, LABELS.astype(jnp.float16), box=box, partner=blocks)
        assert (got.dtype, labels.dtype) == (jnp.bfloat16, jnp.float16)
        np.testing.assert_array_equal(got, images)
        np.testing.assert_allclose(labels, LABELS.astype(jnp.float16), rtol=1e-3)
    # A pixel that is pasted over is not read: no NaN times zero.
    broken = jnp.asarray(IMAGES, jnp.float32).at[0, 2, 3].set(jnp.nan)
    got, _ = apply(broken, LABELS.astype(np.float32), box=box, partner=np.array([1, 2, 3, 4, 4]))
    assert np.all(np.isfinite(got))


@pytest.mark.parametrize("minmax", [None, (0.2, 0.8)])
def test_strength_zero_changes_nothing(minmax):
    images, labels = IMAGES.astype(np.float32), LABELS.astype(np.float32)

    @jit
    def traced(key, alpha, prob):
        mix = functools.partial(rj.inputs.cutmix, key, images, labels, alpha=alpha, prob=prob, minmax=minmax)
        return mix(), mix(per="example", correct_lam=False)

    for off in ((0.0, 1.0), (1.0, 0.0)):
        for got in traced(jax.random.key(0), *off):
            np.testing.assert_array_equal(got[0], images)
            np.testing.assert_array_equal(got[1], labels)
    assert not np.array_equal(traced(jax.random.key(0), 1.0, 1.0)[1][0], images)


def test_boxes_are_shared_as_asked_and_labels_follow_the_area():
    for per, pairing, blocks in (("batch", "roll", None), ("example", "roll", 2), ("pair", "reverse", None)):
        partner, mask, own = draws(40, per=per, pairing=pairing, within_shard=blocks)
        np.testing.assert_allclose(own, 1 - mask.mean((-1, -2)), rtol=1e-5)
        size = 8 // (blocks or 1)
        local, start = np.arange(8) % size, np.arange(8) // size * size
        want = start + ((local - 1) % size if pairing == "roll" else size - 1 - local)
        assert np.all((partner == want) | (partner == np.arange(8)))
        boxes = {"batch": 1, "example": 8, "pair": 4}[per]
        if per == "batch":
            assert np.all(mask == mask[:, :1])
        if per == "pair":
            assert np.all(mask == mask[:, ::-1])
        distinct = len(np.unique(mask[:, :boxes].reshape(40 * boxes, -1), axis=0))
        assert distinct > 0.5 * 40 * boxes


def test_pairs_swap_their_boxes():
    mix = jit(functools.partial(rj.inputs.cutmix, per="pair", pairing="reverse"))
    images, labels = mix(jax.random.key(3), IMAGES.astype(np.float32), LABELS.astype(np.float32))
    assert not np.array_equal(images, IMAGES)
    np.testing.assert_allclose(images + images[::-1], IMAGES + IMAGES[::-1], rtol=1e-5)
    np.testing.assert_allclose(labels + labels[::-1], LABELS + LABELS[::-1], rtol=1e-5)


def test_the_sampler_draws_lam_and_uniform_centres():
    """Against the means over lam of Beta(1, 1), which is uniform, and all centres: of the label, and of each pixel."""
    mask, own = many()
    hidden = np.zeros((12, 9))
    for lam in (np.arange(500) + 0.5) / 500:
        inside = []
        for n in (12, 9):
            half, centre, pixel = int(n * math.sqrt(1 - lam)) // 2, np.arange(n)[:, None], np.arange(n)
            inside.append(((centre - half <= pixel) & (pixel < centre + half)).mean(0))
        hidden += np.outer(*inside) / 500
    assert np.all(abs(mask.mean(0) - hidden) < 5 * np.sqrt(hidden * (1 - hidden) / 4000))
    assert abs(own.mean() - (1 - hidden.mean())) < 5 * own.std() / np.sqrt(4000)
    mask, own = many(correct_lam=False)
    assert abs(own.mean() - 0.5) < 5 * np.sqrt(1 / 12 / 4000)
    assert np.all(own < 1 - mask.mean((-1, -2)) + 1e-6), "the box as cut is never larger than drawn"


def test_minmax_boxes_lie_inside_with_uniform_sides():
    mask, own = many(minmax=(0.25, 0.67), correct_lam=False)
    rows, columns = mask.any(-1).sum(-1), mask.any(-2).sum(-1)
    np.testing.assert_array_equal(rows * columns, mask.sum((-1, -2)))
    np.testing.assert_allclose(own, 1 - rows * columns / 108, rtol=1e-5)
    for side, start, n in ((rows, mask.any(-1).argmax(-1), 12), (columns, mask.any(-2).argmax(-1), 9)):
        values = np.arange(int(0.25 * n), int(0.67 * n))
        counts, p = np.array([(side == v).sum() for v in values]), 1 / len(values)
        assert counts.sum() == 4000
        assert np.all(abs(counts - 4000 * p) < 5 * np.sqrt(4000 * p * (1 - p)))
        # The first row is uniform in 0 .. n - side - 1.
        place = start / (n - side - 1)
        assert place.max() == 1
        assert abs(place.mean() - 0.5) < 5 * place.std() / np.sqrt(4000)


def test_prob_leaves_batches_or_examples_alone():
    _, mask, own = draws(150, pairing="roll", prob=0.3, alpha=50.0)
    touched = mask.any((-1, -2))
    assert np.all(touched == touched[:, :1])
    assert abs(touched[:, 0].mean() - 0.3) < 5 * np.sqrt(0.21 / 150)
    assert np.all(own[~touched] == 1)
    for minmax in (None, (0.5, 0.9)):
        mask, own = many(prob=0.3, minmax=minmax, alpha=50.0)
        touched = mask.any((-1, -2))
        assert abs(touched.mean() - 0.3) < 5 * np.sqrt(0.21 / 4000)
        assert np.all(own[~touched] == 1)


def test_class_ids_are_told_what_to_do():
    with pytest.raises(ValueError, match=r"regjax\.inputs\.cutmix: labels .*jax\.nn\.one_hot"):
        rj.inputs.cutmix(jax.random.key(0), IMAGES, np.arange(5))
