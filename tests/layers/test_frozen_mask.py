"""Frozen masks: the same at every step of an episode, anew where one starts, and their statistics."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import regjax as rj

RNG = np.random.default_rng(0)
KEY, OTHER = jax.random.split(jax.random.key(0))
X = RNG.normal(size=(4, 6))


def test_the_same_state_gives_the_same_mask(x64):
    masks = rj.layers.frozen_mask_dropout((4, 6), rate=0.3)
    state = masks.init(KEY)
    kept = np.asarray(state.mask) > 0
    np.testing.assert_allclose(state.mask, np.where(kept, 1 / 0.7, 0), rtol=1e-14)
    want = np.array([[X[b, i] / 0.7 if kept[b, i] else 0.0 for i in range(6)] for b in range(4)])
    for _ in range(2):
        np.testing.assert_allclose(masks.apply(state, X), want, rtol=1e-14)
    np.testing.assert_allclose(masks.apply(state, 2 * X), 2 * want, rtol=1e-14)
    # A sequence at once is its steps one by one.
    sequence = RNG.normal(size=(5, 4, 6))
    steps = np.stack([masks.apply(state, x) for x in sequence])
    np.testing.assert_array_equal(masks.apply(state, sequence), steps)
    weights = RNG.normal(size=(5, 4, 6))
    gradient = jax.jit(jax.grad(lambda x: jnp.sum(weights * masks.apply(state, x))))(sequence)
    np.testing.assert_allclose(gradient, weights * kept / 0.7, rtol=1e-13)
    assert masks.apply(state, jnp.asarray(X), deterministic=True).tolist() == X.tolist()


def test_refresh_draws_where_an_episode_starts():
    masks = rj.layers.frozen_mask_dropout((4, 50), rate=0.5)
    state = masks.init(KEY)
    refresh = jax.jit(lambda when: masks.refresh(state, OTHER, when=when).mask)
    new = np.asarray(masks.init(OTHER).mask)
    np.testing.assert_array_equal(refresh(False), state.mask)
    np.testing.assert_array_equal(refresh(True), new)
    when = np.array([True, False, False, True])
    np.testing.assert_array_equal(refresh(when), np.where(when[:, None], new, state.mask))
    every = rj.layers.frozen_mask_dropout((4, 50), rate=0.5, resample="step")
    np.testing.assert_array_equal(every.refresh(state, OTHER, when=np.zeros(4, bool)).mask, new)


def test_masks_of_higher_rank():
    masks = rj.layers.frozen_mask_dropout((3, 2, 40), rate=0.5, skip_last=3)
    state = masks.init(KEY)
    when = np.array([False, True, False])
    later = masks.refresh(state, OTHER, when=when)
    assert (np.asarray(later.mask) == state.mask).all((1, 2)).tolist() == [True, False, True]
    np.testing.assert_array_equal(later.mask[..., -3:], 1)


def test_keep_rate_expectation_and_actions():
    n, rate = 20_000, 0.3
    masks = rj.layers.frozen_mask_dropout((5,), rate=rate, skip_last=2)
    x = jnp.array([1.0, -2.0, 3.0, 4.0, 5.0])
    draw = jax.vmap(lambda key: masks.apply(masks.init(key), x))
    y = np.asarray(jax.jit(draw)(jax.random.split(KEY, n)), np.float64)
    np.testing.assert_array_equal(y[:, 3:], np.broadcast_to(x[3:], (n, 2)))
    zero = y[:, :3] == 0
    assert np.all(np.abs(zero.mean(0) - rate) < 5 * np.sqrt(rate * (1 - rate) / n))
    sigma = np.abs(x[:3]) * np.sqrt(rate / (1 - rate) / n)
    assert np.all(np.abs(y.mean(0)[:3] - x[:3]) < 5 * sigma)
    assert np.all(np.abs(np.corrcoef(zero.T) - np.eye(3)) < 5 / np.sqrt(n))
    everything = rj.layers.frozen_mask_dropout((5,), rate=0.9, skip_last=5)
    np.testing.assert_array_equal(everything.apply(everything.init(KEY), x), x)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_rate_0_is_the_identity_and_rate_1_is_zero(dtype):
    x = jnp.array([1.5, -0.0, 6e4, 1e-7], dtype)

    @jax.jit
    def call(rate):
        masks = rj.layers.frozen_mask_dropout((4,), rate=rate)
        return masks.apply(masks.init(KEY), x)

    assert call(0.0).dtype == x.dtype
    np.testing.assert_array_equal(np.float32(call(0.0)), np.float32(x))
    np.testing.assert_array_equal(np.float32(call(1.0)), 0)
    dropped = rj.layers.frozen_mask_dropout((4,), rate=1.0)
    np.testing.assert_array_equal(np.float32(dropped.apply(dropped.init(KEY), jnp.full(4, jnp.inf, dtype))), 0)


def test_masks_keep_the_rate_they_were_drawn_at():
    masks = rj.layers.frozen_mask_dropout((2, 200), rate=optax.linear_schedule(0.0, 0.5, 10))
    state = masks.init(KEY, step=0)
    np.testing.assert_array_equal(state.mask, 1)
    later = jax.jit(lambda step: masks.refresh(state, OTHER, when=jnp.array([False, True]), step=step))(10)
    np.testing.assert_array_equal(later.mask[0], 1)
    assert set(np.unique(later.mask[1])) == {0, 2}
    with pytest.raises(ValueError, match="frozen_mask_dropout: step must be given where rate is a schedule"):
        masks.refresh(state, OTHER, when=True)


def test_a_dream_of_several_environments_in_one_scan():
    """Episodes end at times of their own: each keeps its mask from start to end, and no two are the same."""
    length, ends = 12, np.array([3, 4, 6])
    masks = rj.layers.frozen_mask_dropout((40,), rate=0.5)

    def environment(key, end):
        first, rest = jax.random.split(key)

        def step(state, t):
            state = masks.refresh(state, jax.random.fold_in(rest, t), when=(t > 0) & (t % end == 0))
            return state, masks.apply(state, jnp.ones(40))

        return jax.lax.scan(step, masks.init(first), jnp.arange(length))[1]

    y = np.asarray(jax.jit(jax.vmap(environment))(jax.random.split(KEY, 3), ends))
    seen = set()
    for outputs, end in zip(y, ends, strict=True):
        for start in range(0, length, end):
            assert np.all(outputs[start : start + end] == outputs[start])
            seen.add(outputs[start].tobytes())
    assert len(seen) == sum(-(-length // end) for end in ends)


def test_sharded_states():
    x = jnp.asarray(RNG.normal(size=(8, 5)), jnp.float32)
    masks = rj.layers.frozen_mask_dropout((8, 5), rate=0.5)
    state, when = masks.init(KEY), jnp.arange(8) % 3 == 0

    @jax.jit
    def step(state, x, when):
        later = masks.refresh(state, OTHER, when=when)
        return masks.apply(later, x), later

    want = step(state, x, when)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        rows, whole = jax.NamedSharding(mesh, jax.P("data")), jax.NamedSharding(mesh, jax.P())
        for place in (rows, whole):
            with jax.set_mesh(mesh):
                got = step(jax.device_put(state, place), jax.device_put(x, rows), jax.device_put(when, rows))
            jax.tree.map(np.testing.assert_array_equal, got, want)
            assert got[0].sharding.is_equivalent_to(rows, 2)
            if kind is AxisType.Explicit:
                assert got[1].mask.sharding.is_equivalent_to(place, 2)
