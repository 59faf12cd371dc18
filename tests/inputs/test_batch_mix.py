"""The recipe of timm: its core against a loop, its sampler, and a sharded batch without communication."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

import regjax as rj
from regjax.inputs.mixing.pairs import reverse_rows

# The tests compile much and run little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)
HEIGHT, WIDTH, CLASSES = 7, 10, 5


def smooth(label, smoothing):
    off = smoothing / CLASSES
    if np.ndim(label):
        return [(1 - smoothing) * p + off for p in label]
    return [1 - smoothing + off if k == label else off for k in range(CLASSES)]


def batch_mix(images, labels, mode, lam, cut, centres, smoothing, correct_lam, blocks=1, boxes=None):
    """Timm's class as loops over examples, pixels and classes; odd batches and blocks beside it."""
    batch = len(images)
    size = batch // blocks
    mixed, targets = images.copy(), np.zeros((batch, CLASSES))
    for i in range(batch):
        place = i % size
        j = i - place + size - 1 - place
        draw = {"batch": (), "elem": i, "pair": i // size * ((size + 1) // 2) + min(place, size - 1 - place)}[mode]
        weight = lam[draw]
        if cut[draw] and weight < 1:
            if boxes is None:
                edges = []
                for n, c in ((HEIGHT, centres[draw][0]), (WIDTH, centres[draw][1])):
                    half = math.floor(n * math.sqrt(1 - weight)) // 2
                    edges += [min(max(c - half, 0), n), min(max(c + half, 0), n)]
            else:
                edges = boxes[draw]
            area = 0
            for y in range(edges[0], edges[1]):
                for x in range(edges[2], edges[3]):
                    mixed[i, y, x] = images[j, y, x]
                    area += 1
            if correct_lam:
                weight = 1 - area / (HEIGHT * WIDTH)
        else:
            mixed[i] = weight * images[i] + (1 - weight) * images[j]
        own, other = smooth(labels[i], smoothing), smooth(labels[j], smoothing)
        for k in range(CLASSES):
            targets[i, k] = weight * own[k] + (1 - weight) * other[k]
    return mixed, targets


@pytest.mark.parametrize(("mode", "batch", "blocks"), [("batch", 6, 1), ("pair", 6, 2), ("pair", 5, 1), ("elem", 5, 1)])
def test_apply_batch_mix_is_the_loop(x64, mode, batch, blocks):
    images = RNG.normal(size=(batch, HEIGHT, WIDTH, 2))
    shape = {"batch": (), "elem": (batch,), "pair": (blocks * ((batch // blocks + 1) // 2),)}[mode]
    soft, ids = RNG.dirichlet(np.ones(CLASSES), size=batch), RNG.integers(0, CLASSES, batch)

    @functools.partial(jit, static_argnames="correct_lam")
    def apply(lam, cut, centres, box, correct_lam):
        mix = functools.partial(
            rj.inputs.apply_batch_mix, images, mode=mode, lam=lam, use_cutmix=cut, within_shard=blocks, correct_lam=correct_lam
        )
        return mix(ids, centres=centres, num_classes=CLASSES, label_smoothing=0.1), mix(soft, box=box, label_smoothing=0.3)

    for cut in (np.zeros(shape, bool), np.ones(shape, bool), RNG.random(shape) < 0.5):
        lam = RNG.uniform(0.05, 0.95, shape) if shape != (5,) else np.array([0.3, 1.0, 0.0, 0.62, 0.11])
        centres = np.stack([RNG.integers(0, HEIGHT, shape), RNG.integers(0, WIDTH, shape)], -1)
        y1, x1 = RNG.integers(0, 3, shape), RNG.integers(0, 4, shape)
        box = np.stack([y1, y1 + RNG.integers(1, 5, shape), x1, x1 + RNG.integers(1, 7, shape)], -1)
        correct_lam = bool(cut.all())
        got = apply(lam, cut, centres, tuple(box[..., k] for k in range(4)), correct_lam)
        args = (mode, lam, cut, centres)
        want = (
            batch_mix(images, ids, *args, 0.1, correct_lam, blocks),
            batch_mix(images, soft, *args, 0.3, correct_lam, blocks, box),
        )
        jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-7), got, want)


def test_published_labels_and_class_ids_that_do_not_exist():
    draw = dict(lam=0.7, use_cutmix=False, centres=(0, 0))
    apply = jit(functools.partial(rj.inputs.apply_batch_mix, jnp.zeros((2, 4, 4, 1)), **draw), static_argnames="num_classes")
    labels = apply(jnp.array([0, 1]), num_classes=4, label_smoothing=0.1)[1]
    np.testing.assert_allclose(labels[0], [0.655, 0.295, 0.025, 0.025], rtol=1e-6)
    np.testing.assert_allclose(apply(jnp.eye(4)[:2], label_smoothing=0.1)[1], labels, rtol=1e-6)
    for wrong in (-1, 4):
        assert np.all(np.isnan(apply(jnp.array([wrong, 1]), num_classes=4)[1]))
    assert apply(jnp.array([0, 3], jnp.uint8), num_classes=4)[1].dtype == jnp.float32
    images, labels = rj.inputs.apply_batch_mix(
        jnp.ones((2, 4, 4, 1), jnp.bfloat16), jnp.eye(2, dtype=jnp.float16), lam=0.7, use_cutmix=True, centres=(2, 2)
    )
    assert (images.dtype, labels.dtype) == (jnp.bfloat16, jnp.float16)


def test_gradients_go_where_the_pixels_came_from():
    images, weights = RNG.normal(size=(2, 4, 6, 4, 1)).astype(np.float32)
    cut, lam = jnp.array([True, False, True, False]), jnp.array([0.5, 0.3, 1.0, 0.9])
    mix = functools.partial(rj.inputs.apply_batch_mix, mode="elem", lam=lam, use_cutmix=cut, box=(1, 3, 0, 2))
    gradient = jax.grad(lambda x: jnp.sum(weights * mix(x, jnp.eye(4))[0]))(jnp.asarray(images))
    mask = np.zeros((6, 4, 1))
    mask[1:3, 0:2] = 1
    want = np.zeros_like(images)
    for i in range(4):
        other = mask if cut[i] and lam[i] < 1 else np.zeros_like(mask) if cut[i] else np.full_like(mask, 1 - lam[i])
        want[i] += (1 - other) * weights[i]
        want[3 - i] += other * weights[i]
    np.testing.assert_allclose(gradient, want, rtol=1e-5, atol=1e-6)


@functools.cache
def mixing(mode):
    return jit(functools.partial(rj.inputs.batch_mix, mode=mode, num_classes=2, label_smoothing=0.0))


def draws(mode, batch=4096, **options):
    """What is drawn for each example of a large batch: whether CutMix was used, whether anything, and the labels' weight."""
    parity = np.arange(batch) < batch // 2
    images = jnp.broadcast_to(jnp.asarray(parity)[:, None, None, None], (batch, 8, 8, 1)).astype(jnp.float32)
    options = {"cutmix_alpha": 1.0, "mixup_alpha": 1.0, "switch_prob": 0.5, "prob": 1.0, **options}
    images, labels = mixing(mode)(jax.random.key(5), images, jnp.asarray(parity).astype(jnp.int32), **options)
    other = np.abs(np.asarray(images)[..., 0] - parity[:, None, None])
    own = np.asarray(labels)[np.arange(batch), parity.astype(int)]
    pasted = np.all((other == 0) | (other == 1), axis=(1, 2))
    assert np.all(pasted | (np.ptp(other, axis=(1, 2)) < 1e-6)), "neither pasted nor mixed"
    return pasted, np.any(other > 0, axis=(1, 2)), own, other


def test_the_choice_of_methods_and_their_weights():
    n = 4096
    for mode, count in (("elem", n), ("pair", n // 2)):
        pasted, touched, own, _ = draws(mode, mixup_alpha=1.0, cutmix_alpha=1.0, switch_prob=0.3, prob=0.8)
        # An untouched image counts as pasted with an empty box; mixup with lam of Beta(1, 1) is never that.
        mixed = ~pasted
        assert abs(mixed.mean() - 0.8 * 0.7) < 5 * math.sqrt(0.56 * 0.44 / count)
        assert np.all(own[~touched] == 1)
        assert abs(own[mixed].mean() - 0.5) < 5 * math.sqrt(1 / 12 / (0.56 * count))
        if mode == "pair":
            np.testing.assert_array_equal(pasted, pasted[::-1])
            np.testing.assert_array_equal(own, own[::-1])
            assert len(np.unique(own[: n // 2])) > 0.25 * n
        else:
            assert np.mean(own == own[::-1]) < 0.3
    assert draws("elem", mixup_alpha=1.0, cutmix_alpha=1.0, switch_prob=1.0)[0].all()
    assert not draws("elem", mixup_alpha=1.0, cutmix_alpha=1.0, switch_prob=0.0)[0].any()
    # A single positive alpha leaves no choice.
    assert draws("elem", mixup_alpha=0.0, cutmix_alpha=1.0, switch_prob=0.0)[0].all()
    assert not draws("elem", mixup_alpha=1.0, cutmix_alpha=0.0, switch_prob=1.0)[0].any()
    assert not draws("elem", mixup_alpha=0.0, cutmix_alpha=0.0)[1].any()
    # Each has its own Beta: of variance 1 / (4 (2 a + 1)).
    own = draws("elem", mixup_alpha=7.5, cutmix_alpha=1.0, switch_prob=0.0)[2]
    assert own.var() == pytest.approx(1 / 64, rel=0.15)


def test_boxes_and_weights_of_cutmix():
    draw = functools.partial(draws, mixup_alpha=0.0, cutmix_alpha=1.0)
    _, _, own, other = draw("elem")
    np.testing.assert_allclose(own, 1 - other.mean((1, 2)), atol=1e-6)
    n, area = 4096, other.mean((1, 2))
    mix = functools.partial(rj.inputs.batch_mix, num_classes=2, label_smoothing=0.0, mode="elem")
    labels = jnp.arange(n) % 2
    images = jnp.zeros((n, 8, 8, 1))
    drawn = jit(functools.partial(mix, mixup_alpha=0.0, cutmix_alpha=1.0, correct_lam=False))
    own = np.asarray(drawn(jax.random.key(1), images, labels)[1])[np.arange(n), labels]
    assert abs(own.mean() - 0.5) < 5 * math.sqrt(1 / 12 / n), "the drawn lam, of Beta(1, 1)"
    assert area.mean() < 0.45, "boxes are cut at the border"
    inside = jit(functools.partial(mix, mixup_alpha=0.0, cutmix_minmax=(0.25, 0.8), correct_lam=False))
    images = jnp.broadcast_to((jnp.arange(n) < n // 2)[:, None, None, None], (n, 8, 8, 1)).astype(jnp.float32)
    mixed, targets = inside(jax.random.key(2), images, labels=(jnp.arange(n) < n // 2).astype(jnp.int32))
    mask = np.asarray(mixed != images)[..., 0]
    rows, columns = mask.any(2).sum(1), mask.any(1).sum(1)
    np.testing.assert_array_equal(rows * columns, mask.sum((1, 2)))
    for side in (rows, columns):
        counts = np.array([(side == v).sum() for v in range(2, 6)])
        assert counts.sum() == n
        assert np.all(abs(counts - n / 4) < 5 * math.sqrt(n * 3 / 16))
    np.testing.assert_allclose(np.max(targets, 1), np.maximum(1 - mask.mean((1, 2)), mask.mean((1, 2))), atol=1e-6)


def test_one_draw_for_the_batch():
    key = jax.random.key(0)
    images = jnp.asarray(np.arange(6) < 3, jnp.float32)[:, None, None, None] * jnp.ones((6, 8, 8, 1))
    mix = jit(jax.vmap(lambda k: rj.inputs.batch_mix(k, images, jnp.eye(6), cutmix_alpha=1.0, label_smoothing=0.0, prob=0.5)))
    mixed, labels = (np.asarray(x) for x in mix(jax.random.split(key, 400)))
    own = np.einsum("nii->ni", labels)
    assert np.all(own == own[:, :1])
    np.testing.assert_allclose(labels.sum(-1), 1, rtol=1e-6)
    assert abs((own[:, 0] < 1).mean() - 0.5) < 5 * 0.5 / math.sqrt(400) + 0.05, "a box may be empty"
    other = np.abs(mixed[..., 0] - np.asarray(images)[..., 0])
    np.testing.assert_allclose(other, np.broadcast_to(other[:, :1], other.shape), atol=1e-6)
    cut = np.any(other[:, 0] == 1, axis=(1, 2))
    assert 40 < cut.sum() < 160


def test_strengths_may_be_traced_and_zero_changes_nothing():
    images = RNG.normal(size=(5, 6, 4, 1)).astype(np.float32)
    labels = RNG.dirichlet(np.ones(3), size=5).astype(np.float32)
    traces = []

    @jit
    def traced(key, a, b, prob, switch, smoothing):
        traces.append(1)
        options = dict(mixup_alpha=a, cutmix_alpha=b, prob=prob, switch_prob=switch, label_smoothing=smoothing)
        return [rj.inputs.batch_mix(key, images, labels, mode=mode, **options) for mode in ("batch", "pair", "elem")]

    for off in ((0.0, 0.0, 1.0, 0.5, 0.0), (1.0, 1.0, 0.0, 0.5, 0.0)):
        for got in traced(jax.random.key(0), *off):
            np.testing.assert_array_equal(got[0], images)
            np.testing.assert_array_equal(got[1], labels)
    for got in traced(jax.random.key(0), 0.0, 0.0, 1.0, 0.5, 0.3):
        np.testing.assert_allclose(got[1], 0.7 * labels + 0.1, rtol=1e-5)
    assert not np.array_equal(traced(jax.random.key(0), 1.0, 0.0, 1.0, 0.5, 0.0)[0][0], images)
    assert len(traces) == 1


COMMUNICATION = re.compile(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\(")


@jit
def mix_within_shards(key, images, labels):
    mix = functools.partial(rj.inputs.batch_mix, key, images, labels, cutmix_alpha=1.0, num_classes=3, within_shard=8)
    return mix(), mix(mode="pair"), mix(mode="elem", cutmix_minmax=(0.3, 0.9))


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_sharded_batch_mixes_as_on_one_device_and_within_shards_without_communication(kind):
    images = RNG.normal(size=(24, 4, 4, 1)).astype(np.float32)
    labels = RNG.integers(0, 3, 24).astype(np.int32)
    key, mesh = jax.random.key(0), jax.make_mesh((8,), ("data",), axis_types=(kind,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    whole = jit(functools.partial(rj.inputs.batch_mix, num_classes=3))
    with jax.set_mesh(mesh):
        arguments = (key, *jax.device_put((images, labels), rows))
        compiled = mix_within_shards.lower(*arguments).compile()
        got = compiled(*arguments)
        reversed_whole = whole.lower(*arguments).compile()
        spanning = jit(functools.partial(reverse_rows, blocks=2))(arguments[1])
    want = mix_within_shards(key, images, labels)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), got, want)
    assert all(x.sharding.is_equivalent_to(rows, x.ndim) for x in jax.tree.leaves(got))
    assert not [line for line in compiled.as_text().splitlines() if COMMUNICATION.search(line)]
    # The search finds the exchange of a batch reversed as a whole.
    assert COMMUNICATION.search(reversed_whole.as_text())
    np.testing.assert_array_equal(spanning, np.concatenate([images[11::-1], images[:11:-1]]))


def test_one_pass_over_the_batch():
    images, labels = jnp.ones((64, 16, 16, 3)), jnp.zeros(64, int)
    mix = jax.jit(functools.partial(rj.inputs.batch_mix, mode="elem", cutmix_alpha=1.0, num_classes=10))
    compiled = mix.lower(jax.random.key(0), images, labels).compile()
    assert compiled.cost_analysis()["bytes accessed"] < 3.2 * images.nbytes
    assert compiled.memory_analysis().temp_size_in_bytes < 0.1 * images.nbytes
