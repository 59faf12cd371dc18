"""Candidates of a vocabulary: loops, published values, and the distribution of subsets."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
LOGITS, CANDIDATES, TARGETS = RNG.normal(size=(4, 6)), RNG.normal(size=(6, 3, 2)), RNG.normal(size=(4, 3, 2))
WHERE = np.array([True, True, False, True, False, True])


def loop(logits, candidates, targets, sigma):
    out = []
    for z, y in zip(logits, targets, strict=True):
        weights = np.array([np.exp(-sum((c.ravel() - y.ravel()) ** 2) / sigma) for c in candidates])
        q, p = weights / weights.sum(), np.exp(z) / np.exp(z).sum()
        out.append(-sum(q * np.log(p)))
    return np.array(out)


def test_equals_the_loop(x64):
    fn = jax.jit(
        lambda sigma, where: rj.losses.soft_candidate_cross_entropy(LOGITS, CANDIDATES, TARGETS, sigma=sigma, where=where)
    )
    for sigma in (0.5, 3.0):
        np.testing.assert_allclose(fn(sigma, np.ones(6, bool)), loop(LOGITS, CANDIDATES, TARGETS, sigma), rtol=1e-12)
        want = loop(LOGITS[:, WHERE], CANDIDATES[WHERE], TARGETS, sigma)
        np.testing.assert_allclose(fn(sigma, WHERE), want, rtol=1e-12)


def test_published_values():
    logits, candidates, targets = jnp.array([[1.0, 0.0, -1.0]]), jnp.array([0.0, 1.0, 3.0]), jnp.array([0.5])
    loss = jax.jit(rj.losses.soft_candidate_cross_entropy)
    assert float(loss(logits, candidates, targets)[0]) == pytest.approx(0.90761057, abs=1e-6)
    subset = jnp.array([0, 2])
    assert float(loss(logits[:, subset], candidates[subset], targets)[0]) == pytest.approx(0.12694030, abs=1e-6)
    # The gradient is softmax(z) - q.
    gradient = jax.jit(jax.grad(lambda z: loss(z, candidates, targets)[0]))(logits)
    q = np.array([0.49999846, 0.49999846, 0.00000307])
    np.testing.assert_allclose(gradient[0], jax.nn.softmax(logits[0]) - q, atol=1e-6)


def test_near_candidates_are_told_apart_far_from_the_origin():
    """In the squares of coordinates of 300 the distances of a tenth would be lost."""
    centre = np.array([300.0, -200.0])
    near = np.array([[0.1, 0.0], [0.3, 0.1], [-0.2, 0.2], [0.0, 0.4]])
    logits = RNG.normal(size=(1, 4)).astype(np.float32)
    loss = jax.jit(rj.losses.soft_candidate_cross_entropy)
    got = loss(logits, (centre + near).astype(np.float32), centre[None].astype(np.float32), sigma=0.05)
    np.testing.assert_allclose(got, loop(logits, near, np.zeros((1, 2)), 0.05), rtol=1e-3)
    far = loss(logits, near.astype(np.float32), jnp.full((1, 2), 1e6))
    assert np.all(np.isfinite(far)), "however far, the candidates share all the probability"


def test_distances_are_not_stored_by_coordinate():
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((16, 256), (256, 64), (16, 64))]
    gradient = jax.grad(lambda *at: jnp.sum(rj.losses.soft_candidate_cross_entropy(*at)))
    memory = jax.jit(gradient, compiler_options={"xla_backend_optimization_level": 2}).lower(*shapes).compile().memory_analysis()
    assert memory.temp_size_in_bytes < 4 * 16 * 256 * 64 / 4


def test_subsets_are_uniform_without_replacement():
    draw = jax.jit(jax.vmap(lambda key: rj.losses.sample_candidates(key, 9, fraction=0.5)))
    drawn = np.asarray(draw(jax.random.split(jax.random.key(0), 4000)))
    assert drawn.shape == (4000, 4)
    member = (drawn[:, :, None] == np.arange(9)).sum(1)
    assert member.max() == 1, "a candidate came twice"
    p = 4 / 9
    assert np.all(abs(member.mean(0) - p) < 5 * np.sqrt(p * (1 - p) / 4000))
    both, p = member.T @ member / 4000, 4 * 3 / (9 * 8)
    assert np.all(abs(both[~np.eye(9, dtype=bool)] - p) < 5 * np.sqrt(p * (1 - p) / 4000))
    sizes = [
        rj.losses.sample_candidates(jax.random.key(0), v, fraction=f).size for v, f in ((100, 0.29), (3, 0.1), (7, 0.5), (5, 1))
    ]
    assert sizes == [29, 1, 3, 5]


def test_a_loss_sees_its_part_of_the_vocabulary_and_the_rest_gets_no_gradient():
    seen = []

    def loss_fn(candidates, targets, params, *, offset):
        seen.append((candidates["xy"].shape, targets["drivable"].shape))
        logits = candidates["xy"] @ params + offset
        return jnp.mean((logits[None] - targets["drivable"]) ** 2), candidates["number"]

    candidates = {"xy": jnp.asarray(RNG.normal(size=(10, 2)), jnp.float32), "number": jnp.arange(10)}
    targets = {"drivable": jnp.asarray(RNG.normal(size=(3, 10)), jnp.float32)}
    loss = rj.losses.vocabulary_dropout(loss_fn, fraction=0.3)
    gradient = jax.jit(jax.grad(loss, argnums=(1, 3), has_aux=True, allow_int=True))
    (by_candidates, by_params), chosen = gradient(jax.random.key(3), candidates, targets, jnp.ones(2), offset=0.5)
    assert set(seen) == {((3, 2), (3, 3))}
    index = np.asarray(chosen)
    own = jax.grad(lambda p: jnp.mean((candidates["xy"][index] @ p + 0.5 - targets["drivable"][:, index]) ** 2))(jnp.ones(2))
    np.testing.assert_allclose(by_params, own, rtol=1e-5)
    touched = np.any(np.asarray(by_candidates["xy"]), axis=-1)
    np.testing.assert_array_equal(np.flatnonzero(touched), np.sort(index))
    whole, numbers = rj.losses.vocabulary_dropout(loss_fn, fraction=1)(
        jax.random.key(0), candidates, targets, jnp.ones(2), offset=0.5
    )
    assert numbers.tolist() == list(range(10))
    assert float(whole) == float(loss_fn(candidates, targets, jnp.ones(2), offset=0.5)[0])


def test_taking_follows_numpy_and_passes_no_targets():
    index = np.array([4, 0, 4])
    candidates, targets = rj.losses.take_candidates(index, CANDIDATES, LOGITS)
    np.testing.assert_array_equal(candidates, CANDIDATES[index].astype(np.float32))
    np.testing.assert_array_equal(targets, LOGITS[:, index].astype(np.float32))
    assert rj.losses.take_candidates(index, CANDIDATES, None)[1] is None
    loss = functools.partial(rj.losses.soft_candidate_cross_entropy, targets=TARGETS.astype(np.float32))
    order = RNG.permutation(6)
    turned = loss(LOGITS[:, order].astype(np.float32), CANDIDATES[order].astype(np.float32))
    np.testing.assert_allclose(turned, loss(LOGITS.astype(np.float32), CANDIDATES.astype(np.float32)), rtol=1e-5)
