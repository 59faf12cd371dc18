"""Pseudo-positive proposals and their consistency against loop-written float64 references and the published values."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj

RNG = np.random.default_rng(0)
iou = jax.jit(rj.losses.box_iou)
mask = jax.jit(rj.losses.pseudo_positive_mask)
consistency = jax.jit(rj.losses.region_consistency)


def overlap(a, b):
    width, height = (max(min(a[i + 2], b[i + 2]) - max(a[i], b[i]), 0) for i in (0, 1))
    areas = [max(x[2] - x[0], 0) * max(x[3] - x[1], 0) for x in (a, b)]
    return width * height / max(sum(areas) - width * height, 1e-9)


def boxes(*shape):
    corner = RNG.normal(size=(*shape, 2))
    return np.concatenate([corner, corner + RNG.uniform(0.2, 2.0, size=(*shape, 2))], -1)


def test_equal_their_references(x64):
    proposals, truth, scores = boxes(3, 20), boxes(3, 6), 2 * RNG.normal(size=(3, 20))
    proposals[0, 0, 2:] = proposals[0, 0, :2] - 1  # inverted: no area
    valid, real = RNG.random((3, 6)) < 0.6, RNG.random((3, 20)) < 0.9
    valid[1] = False
    want = np.array([[[overlap(a, b) for b in bs] for a in ps] for ps, bs in zip(proposals, truth, strict=True)])
    np.testing.assert_allclose(iou(proposals, truth), want, rtol=1e-12)
    got = mask(proposals, scores, truth, valid, score_threshold=0.6, iou_threshold=0.1, where=real)
    likely = 1 / (1 + np.exp(-scores)) > 0.6
    free = np.array([[all(want[b, n, m] <= 0.1 for m in range(6) if valid[b, m]) for n in range(20)] for b in range(3)])
    np.testing.assert_array_equal(got, likely & free & real)
    assert 0 < np.sum(got[0]) < np.sum(likely[0] & real[0]) and np.array_equal(got[1], (likely & real)[1])


def test_published_values():
    a, b, far = [0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0], [5.0, 5.0, 6.0, 6.0]
    np.testing.assert_allclose(iou(jnp.array([a, b, far]), jnp.array([a, b, far]))[0], [1, 1 / 7, 0], rtol=1e-6)
    third = [0.0, 0.0, 2.0, 0.6]  # inside a, with 0.3 of its area
    proposals, scores = jnp.array([b, b, third, far]), jnp.array([2.0, 1.0, 2.0, 2.0])
    np.testing.assert_array_equal(mask(proposals, scores, jnp.array([a]), jnp.array([True])), [True, False, False, True])
    np.testing.assert_array_equal(mask(proposals, scores, jnp.array([a]), jnp.array([False])), [True, False, True, True])
    np.testing.assert_array_equal(mask(proposals, scores, jnp.zeros((0, 4)), jnp.zeros(0, bool)), [True, False, True, True])
    # Equal to a threshold: the score must exceed it, the overlap may reach it.
    at = {"score_threshold": 0.5, "iou_threshold": 0.5}
    half = jnp.array([[0.0, 0.0, 2.0, 1.0]])
    assert mask(half, jnp.array([1.0]), jnp.array([a]), jnp.array([True]), **at)[0]
    assert not mask(half, jnp.array([0.0]), jnp.array([a]), jnp.array([True]), **at)[0]


def test_consistency_equals_its_reference_and_moves_both_views(x64):
    weak, strong = RNG.normal(size=(2, 2, 4, 3, 2))
    weights = np.array([[1, 0, 1, 0], [0, 1, 0.5, 0]])
    total = sum(weights[i] * np.mean((weak[i] - strong[i]) ** 2) for i in np.ndindex(2, 4))
    value, (one, other) = jax.jit(jax.value_and_grad(rj.losses.region_consistency, argnums=(0, 1)))(weak, strong, weights)
    np.testing.assert_allclose(value, total / 3.5, rtol=1e-12)
    np.testing.assert_allclose(one, 2 * weights[..., None, None] * (weak - strong) / 6 / 3.5, rtol=1e-12)
    np.testing.assert_array_equal(other, -one)
    # Fewer than one region do not weigh more than their part.
    np.testing.assert_allclose(consistency(weak, strong, weights / 7), total / 7, rtol=1e-12)
    assert consistency(weak, weak, weights) == 0


def test_regions_that_do_not_count_may_hold_anything():
    weak, strong = jnp.asarray(RNG.normal(size=(2, 5, 3)), jnp.float32)
    used = jnp.array([True, False, True, True, False])

    @jax.jit
    @jax.value_and_grad
    def loss(weak, rubbish, used):
        return rj.losses.region_consistency(jnp.where(used[:, None], weak, rubbish), strong, used)

    want = loss(weak, 0.0, used)
    for rubbish in (jnp.nan, jnp.inf):
        for got, value in zip(loss(weak, rubbish, used), want, strict=True):
            np.testing.assert_array_equal(got, value)
    value, gradient = loss(weak, jnp.nan, used & False)
    assert value == 0 and not gradient.any()
