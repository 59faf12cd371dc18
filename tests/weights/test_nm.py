"""Masks of n in m, training through them, soft shrinkage, and the penalty on attention, against loops."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

RNG = np.random.default_rng(0)


def reference(scores, n, m, axis):
    """Ranks by two sorts inside each group, as the reference implementation has them: of equal scores the later stays."""
    moved = np.moveaxis(scores, axis, -1)
    out = np.zeros(moved.shape, bool)
    for place in np.ndindex(*moved.shape[:-1]):
        for start in range(0, moved.shape[-1], m):
            group = moved[place][start : start + m]
            rank = np.argsort(np.argsort(group, kind="stable"), kind="stable")
            out[place][start : start + m] = rank >= m - n
    return np.moveaxis(out, -1, axis)


def test_masks_of_n_in_m_equal_the_reference():
    assert rj.weights.nm_mask(jnp.array([1.0, 4.0, 2.0, 3.0]), n=2, m=4).tolist() == [False, True, False, True]
    scores = np.round(RNG.normal(size=(2, 8, 6)), 1)
    cases = [(1, 2, 1), (2, 4, 1), (3, 4, -2), (1, 3, -1), (2, 6, 2), (1, 1, 0), (2, 2, 0)]
    got = jax.jit(lambda s: [rj.weights.nm_mask(s, n=n, m=m, axis=axis) for n, m, axis in cases])(scores)
    for mask, (n, m, axis) in zip(got, cases, strict=True):
        np.testing.assert_array_equal(mask, reference(scores, n, m, axis), f"{n}:{m} on {axis}")
    broken = rj.weights.nm_mask(jnp.array([jnp.nan, 1.0, jnp.nan, jnp.nan]), n=2, m=4)
    assert broken.tolist() == [False, False, True, True]  # NaN stays, in exact number


def test_gradients_reach_all_weights_and_draw_the_others_to_zero():
    w, g = RNG.normal(size=(2, 8, 3)).astype(np.float32), RNG.normal(size=(2, 8, 3)).astype(np.float32)
    mask = reference(np.abs(w), 2, 4, 1)

    @jax.jit
    def both(w, decay):
        fn = lambda w: jnp.sum(g * rj.weights.sr_ste(w, n=2, m=4, decay=decay))
        return rj.weights.sr_ste(w, n=2, m=4, decay=decay), jax.grad(fn)(w)

    for decay in (0.0, 0.3):
        out, gradient = both(w, decay)
        np.testing.assert_array_equal(out, np.where(mask, w, 0))
        np.testing.assert_allclose(gradient, g + decay * np.where(mask, 0, w), rtol=1e-6)
    other = rj.weights.sr_ste(jnp.asarray(w), n=1, m=3, axis=-1)
    np.testing.assert_array_equal(other, np.where(reference(np.abs(w), 1, 3, 2), w, 0))


def shrunk(w, number, ratio):
    """The smallest so many, one after the other."""
    out, left = w.ravel().copy(), list(range(w.size))
    for _ in range(number):
        i = min(left, key=lambda i: (abs(w.ravel()[i]), -i))
        left.remove(i)
        out[i] *= ratio
    return out.reshape(w.shape)


def test_soft_shrinkage_equals_the_reference(x64):
    params = {"a": {"kernel": RNG.normal(size=(4, 3)), "bias": RNG.normal(size=3)}, "b": {"kernel": 2 * RNG.normal(size=(5, 2))}}
    shrink = rj.weights.soft_shrinkage

    @jax.jit
    def run(sparsity, ratio):
        local = shrink(params, sparsity=sparsity, ratio=ratio)
        together = shrink(params, sparsity=sparsity, ratio=ratio, scope="global")
        return local, together

    both = np.concatenate([params["a"]["kernel"].ravel(), params["b"]["kernel"].ravel()])
    for sparsity, ratio in ((0.35, 0.95), (0.999, 0.5), (0.5, 0.0), (0.0, 0.5)):
        local, together = run(sparsity, ratio)
        for name in "ab":
            w = params[name]["kernel"]
            number = min(int(np.ceil(sparsity * w.size)), int(np.floor(0.995 * w.size)))
            np.testing.assert_allclose(local[name]["kernel"], shrunk(w, number, ratio), rtol=1e-14)
        number = min(int(np.ceil(sparsity * both.size)), int(np.floor(0.995 * both.size)))
        got = np.concatenate([together["a"]["kernel"].ravel(), together["b"]["kernel"].ravel()])
        np.testing.assert_allclose(got, shrunk(both, number, ratio), rtol=1e-14)
        np.testing.assert_array_equal(local["a"]["bias"], params["a"]["bias"])
    few = shrink({"kernel": jnp.ones((1, 10))}, sparsity=0.999, ratio=0.5)["kernel"]
    assert float(few.sum()) == 1 + 9 / 2  # one of ten stays
    pattern = shrink(params, n=1, m=2, where=lambda path, leaf: path == ("a", "kernel"))
    kept = reference(np.abs(params["a"]["kernel"]), 1, 2, 0)
    np.testing.assert_allclose(pattern["a"]["kernel"], params["a"]["kernel"] * np.where(kept, 1, 0.95), rtol=1e-14)


def test_attention_penalty_equals_its_values_and_counts_what_counts(x64):
    penalty = rj.weights.attention_log_penalty
    assert penalty(jnp.array([[0.5, 0.25, 0.25]])) == pytest.approx(0.1147976, abs=1e-7)
    assert penalty(jnp.full((2, 3, 4), 1 / 4)) == pytest.approx(np.log(1 + 1 / 16), rel=1e-12)
    assert penalty(jnp.eye(5)) == pytest.approx(np.log(2) / 5, rel=1e-12)
    a = RNG.dirichlet(np.ones(4), size=(2, 3, 4))
    total = lambda keep: np.mean([np.log(1 + x**2) for x in a[keep]])
    everything = np.ones(a.shape, bool)
    blocks = [jnp.eye(5), jnp.asarray(a)]
    assert penalty(a) == pytest.approx(total(everything), rel=1e-12)
    assert penalty(blocks) == pytest.approx(total(everything), rel=1e-12)
    assert penalty(blocks, all_blocks=True) == pytest.approx(np.log(2) / 5 + total(everything), rel=1e-12)
    queries = np.array([[True], [True], [False], [True]])
    padded = np.where(queries, a, np.nan)
    value, gradient = jax.value_and_grad(lambda x: penalty(x, where=queries))(jnp.asarray(padded))
    assert value == pytest.approx(total(np.broadcast_to(queries, a.shape)), rel=1e-12)
    assert np.all(gradient[:, :, 2] == 0) and np.all(np.isfinite(gradient))
    assert float(penalty(padded, where=np.zeros((4, 4), bool))) == 0
