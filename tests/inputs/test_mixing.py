"""Mixup against a loop, and its sampler: weights, partners, blocks, and a batch sharded over devices."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from jax.sharding import AxisType

import regjax as rj
from regjax.inputs.mixing.pairs import symmetric_beta

# The tests compile much and run little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(6, 3, 2, 2))
LABELS = RNG.dirichlet(np.ones(4), size=6)
PARTNER = np.array([2, 0, 0, 3, 5, 1])
LAM = RNG.random(6)


def mixup(x, lam, partner):
    out = np.zeros_like(x)
    for i in range(len(x)):
        weight = lam if np.ndim(lam) == 0 else lam[i]
        out[i] = weight * x[i] + (1 - weight) * x[partner[i]]
    return out


def draws(count, **options):
    """The weight of each example itself (NaN where it meets itself) and its partner, of several keys: images [B, B] = I."""
    eye = jnp.eye(8)
    mix = jit(functools.partial(rj.inputs.mixup, **options))
    mixed = [mix(key, eye, eye) for key in jax.random.split(jax.random.key(1), count)]
    images = np.array([x for x, _ in mixed])
    np.testing.assert_array_equal(images, [y for _, y in mixed])
    np.testing.assert_allclose(images.sum(-1), 1, rtol=1e-6)
    others = images * (1 - np.eye(8))
    partner = np.where(others.max(-1) > 0, others.argmax(-1), np.arange(8))
    return np.where(partner == np.arange(8), np.nan, np.einsum("nii->ni", images)), partner


@pytest.mark.parametrize("lam", [0.3, LAM])
def test_apply_mixup_is_the_loop(x64, lam):
    images, labels = rj.inputs.apply_mixup(IMAGES, LABELS, lam=lam, partner=PARTNER)
    np.testing.assert_allclose(images, mixup(IMAGES, lam, PARTNER), rtol=1e-12)
    np.testing.assert_allclose(labels, mixup(LABELS, lam, PARTNER), rtol=1e-12)
    np.testing.assert_allclose(labels.sum(-1), 1, rtol=1e-12)
    blocks = np.array([[1, 0], [1, 1], [0, 1]])
    images, labels = rj.inputs.apply_mixup(IMAGES, LABELS, lam=lam, partner=blocks)
    np.testing.assert_allclose(images, mixup(IMAGES, lam, [1, 0, 3, 3, 4, 5]), rtol=1e-12)
    np.testing.assert_allclose(labels, mixup(LABELS, lam, [1, 0, 3, 3, 4, 5]), rtol=1e-12)
    # Both operands carry gradients.
    weights = RNG.normal(size=IMAGES.shape)
    gradient = jax.grad(lambda x: jnp.sum(weights * rj.inputs.apply_mixup(x, LABELS, lam=lam, partner=PARTNER)[0]))(
        jnp.asarray(IMAGES)
    )
    want = np.zeros_like(IMAGES)
    for i in range(6):
        weight = lam if np.ndim(lam) == 0 else lam[i]
        want[i] += weight * weights[i]
        want[PARTNER[i]] += (1 - weight) * weights[i]
    np.testing.assert_allclose(gradient, want, rtol=1e-12)


def test_published_values_and_dtypes():
    x = jnp.array([[1.0, 2.0], [3.0, 5.0]])
    for dtype in (jnp.float32, jnp.bfloat16, jnp.float16):
        images, labels = rj.inputs.apply_mixup(x.astype(dtype), jnp.eye(2), lam=0.25, partner=jnp.array([1, 0]))
        np.testing.assert_array_equal(images.astype(jnp.float32), [[2.5, 4.25], [1.5, 2.75]])
        np.testing.assert_array_equal(labels, [[0.25, 0.75], [0.75, 0.25]])
        assert (images.dtype, labels.dtype) == (dtype, jnp.float32)
    # The weights are float32 also for low-precision images: 1 - lam = 2^-12 is lost in bfloat16.
    images, _ = rj.inputs.apply_mixup(jnp.array([1.0, 4096.0], jnp.bfloat16), x, lam=1 - 2.0**-12, partner=jnp.array([1, 0]))
    assert images[0] == 2


def test_labels_of_any_trailing_shape():
    maps, scores = RNG.random((6, 3, 2, 4)).astype(np.float32), RNG.random(6).astype(np.float32)
    for labels in (maps, scores):
        _, got = rj.inputs.apply_mixup(IMAGES.astype(np.float32), labels, lam=LAM, partner=PARTNER)
        np.testing.assert_allclose(got, mixup(labels, LAM, PARTNER), rtol=1e-5)


def test_strength_zero_changes_nothing():
    images, labels = IMAGES.astype(np.float32), LABELS.astype(np.float32)

    @jit
    def traced(key, alpha, prob):
        mix = functools.partial(rj.inputs.mixup, key, images, labels, alpha=alpha, prob=prob)
        return mix(), mix(per="example"), rj.inputs.mixup(key, images, labels, alpha=0.0), mix(prob=0.0)

    for off in ((0.0, 1.0), (1.0, 0.0)):
        for got in traced(jax.random.key(0), *off):
            np.testing.assert_array_equal(got[0], images)
            np.testing.assert_array_equal(got[1], labels)
    batch, example, *static = traced(jax.random.key(0), 1.0, 1.0)
    assert not np.array_equal(batch[0], images)
    assert not np.array_equal(example[0], images)
    for got in static:
        np.testing.assert_array_equal(got[0], images)


def test_weights_are_shared_as_asked():
    lam, partner = draws(30)
    np.testing.assert_allclose(np.nanmax(lam, -1), np.nanmin(lam, -1), rtol=1e-6)
    assert len(np.unique(np.nanmax(lam, -1))) == 30
    assert np.all(np.sort(partner, -1) == np.arange(8)), "a permutation"
    lam, partner = draws(30, per="example", pairing="roll")
    np.testing.assert_array_equal(partner, np.broadcast_to((np.arange(8) - 1) % 8, (30, 8)))
    assert len(np.unique(lam)) == 30 * 8
    lam, partner = draws(30, per="pair", pairing="reverse")
    np.testing.assert_array_equal(partner, np.broadcast_to(np.arange(8)[::-1], (30, 8)))
    np.testing.assert_array_equal(lam, lam[:, ::-1])
    assert len(np.unique(lam)) == 30 * 4
    lam, partner = draws(30, per="pair", pairing="reverse", within_shard=2)
    np.testing.assert_array_equal(partner, np.broadcast_to([3, 2, 1, 0, 7, 6, 5, 4], (30, 8)))
    np.testing.assert_array_equal(lam, np.take(lam, [3, 2, 1, 0, 7, 6, 5, 4], axis=-1))
    assert len(np.unique(lam)) == 30 * 4


def test_partners_are_uniform_within_their_block():
    for blocks in (None, 2):
        _, partner = draws(400, within_shard=blocks)
        p = (blocks or 1) / 8
        counts = np.array([np.bincount(partner[:, i], minlength=8) for i in range(8)])
        inside = np.kron(np.eye(blocks or 1), np.ones((round(1 / p),) * 2)).astype(bool)
        assert np.all(counts[~inside] == 0)
        assert np.all(abs(counts[inside] - 400 * p) < 5 * np.sqrt(400 * p * (1 - p)))
    # The blocks have permutations of their own: 1 in 24 is the same.
    assert np.mean(np.all(partner[:, :4] == partner[:, 4:] - 4, -1)) < 0.1


def test_the_weights_follow_the_beta_distribution():
    count = 20_000
    sample = jit(functools.partial(symmetric_beta, shape=(count,)))
    for alpha in (0.1, 0.4, 1.0, 2.0, 50.0):
        lam = np.asarray(sample(jax.random.key(3), jnp.float32(alpha)), np.float64)
        for q in (1e-4, 0.01, 0.1, 0.3, 0.5, 0.7, 0.9, 0.99, 1 - 1e-4):
            p = scipy.stats.beta(alpha, alpha).cdf(q)
            assert abs(np.mean(lam <= q) - p) < 5 * np.sqrt(p * (1 - p) / count) + 1e-12
    for alpha in (1e-38, 1e-3, 1e30):
        lam = sample(jax.random.key(4), jnp.float32(alpha))
        assert np.all((lam >= 0) & (lam <= 1))
        assert abs(lam.mean() - 0.5) < 5 * 0.5 / np.sqrt(count)


def test_the_sampler_uses_alpha_and_prob():
    """Examples 0, 1, 0, 1, ... that meet their neighbour: the output tells the weight."""
    count = 20_000
    parity = jnp.arange(count) % 2.0

    def weights(**options):
        mix = jit(functools.partial(rj.inputs.mixup, per="example", pairing="roll", **options))
        mixed, _ = mix(jax.random.key(5), parity, parity)
        return np.where(parity == 1, mixed, 1 - mixed)

    for alpha in (0.4, 3.0):
        lam, variance = weights(alpha=alpha), 1 / (4 * (2 * alpha + 1))
        assert abs(lam.mean() - 0.5) < 5 * np.sqrt(variance / count)
        assert abs(lam.var() - variance) < 5 * variance / np.sqrt(count)
    assert abs(np.mean(weights(prob=0.3) < 1) - 0.3) < 5 * np.sqrt(0.21 / count)
    # With one weight for the batch it is the batch that is left alone: each example then meets itself only.
    mixed = ~np.isnan(draws(400, pairing="roll", prob=0.3)[0])
    assert np.all(mixed.all(-1) | ~mixed.any(-1))
    assert abs(mixed[:, 0].mean() - 0.3) < 5 * np.sqrt(0.21 / 400)


def test_class_ids_are_told_what_to_do():
    with pytest.raises(ValueError, match=r"regjax\.inputs\.mixup: labels .*jax\.nn\.one_hot"):
        rj.inputs.mixup(jax.random.key(0), jnp.ones((4, 2)), jnp.arange(4))


COMMUNICATION = re.compile(r" (all-gather|all-reduce|all-to-all|collective-permute|reduce-scatter)(-start)?\(")


@jit
def mix_within_shards(key, images, labels):
    return (
        rj.inputs.mixup(key, images, labels, per="example", prob=0.5, within_shard=8),
        rj.inputs.cutmix(key, images, labels, per="pair", pairing="reverse", within_shard=8),
        rj.inputs.cutmix(key, images, labels, pairing="roll", within_shard=8),
        rj.inputs.cutout(key, images, labels, length=2, num_holes=2),
    )


@pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit])
def test_a_sharded_batch_mixes_as_on_one_device_and_within_shards_without_communication(kind):
    images = RNG.normal(size=(16, 4, 4, 1)).astype(np.float32)
    labels = RNG.dirichlet(np.ones(3), size=16).astype(np.float32)
    key, mesh = jax.random.key(0), jax.make_mesh((8,), ("data",), axis_types=(kind,))
    rows = jax.NamedSharding(mesh, jax.P("data"))
    with jax.set_mesh(mesh):
        arguments = (key, *jax.device_put((images, labels), rows))
        compiled = mix_within_shards.lower(*arguments).compile()
        got = compiled(*arguments)
        whole = jit(rj.inputs.mixup).lower(*arguments).compile()
    want = mix_within_shards(key, images, labels)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6, atol=1e-6), got, want)
    assert all(x.sharding.is_equivalent_to(rows, x.ndim) for x in jax.tree.leaves(got))
    assert not [line for line in compiled.as_text().splitlines() if COMMUNICATION.search(line)]
    # The search finds the gather of a permutation of the whole batch.
    assert COMMUNICATION.search(whole.as_text())


def test_blocks_that_span_devices_on_an_explicit_mesh():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Explicit,))
    x, key = np.eye(8, dtype=np.float32), jax.random.key(0)
    mix = jit(functools.partial(rj.inputs.mixup, within_shard=2, pairing="reverse"))
    with jax.set_mesh(mesh):
        sharded = jax.device_put(x, jax.P("data"))
        got = mix(key, sharded, sharded)
    np.testing.assert_allclose(got[0], mix(key, x, x)[0], rtol=1e-6)
