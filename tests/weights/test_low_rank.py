"""The lasso of ordered ranks, their importance and their removal, against loop-written references."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import regjax as rj

RNG = np.random.default_rng(0)
U, V = RNG.normal(size=(4, 3)), RNG.normal(size=(3, 5))
CONV_U, CONV_V = RNG.normal(size=(2, 3, 2, 4)), RNG.normal(size=(4, 6))
PARAMS = {"dense": {"u": U, "v": V, "bias": RNG.normal(size=5)}, "conv": {"u": CONV_U, "v": CONV_V}, "kernel": U}
# The numbers of the published code on one small pair.
BOOK_U, BOOK_V = np.array([[3.0, 0.0], [4.0, 1.0]]), np.array([[1.0, 2.0], [2.0, 0.0]])


def tails(u, v, hierarchical):
    """Norms of columns and rows, or of what begins at them, as loops."""
    flat = u.reshape(-1, u.shape[-1])
    left, right = [], []
    for i in range(flat.shape[1]):
        ranks = range(i, flat.shape[1]) if hierarchical else [i]
        left.append(np.sqrt(sum(flat[a, r] ** 2 for a in range(flat.shape[0]) for r in ranks)))
        right.append(np.sqrt(sum(v[r, b] ** 2 for b in range(v.shape[1]) for r in ranks)))
    return np.array(left), np.array(right)


@pytest.mark.parametrize("hierarchical", [True, False])
def test_values_equal_the_references_in_every_form(x64, hierarchical):
    left, right = tails(U, V, hierarchical)
    left_conv, right_conv = tails(CONV_U, CONV_V, hierarchical)
    dense, conv = left.sum() + right.sum(), left_conv.sum() + right_conv.sum()
    one = functools.partial(rj.weights.low_rank_group_lasso, hierarchical=hierarchical)
    state = nnx.State(jax.tree.map(nnx.Param, PARAMS))
    by_name = lambda path, leaf: "conv" not in path
    got = jax.jit(lambda p: (one(p["dense"]), one(p), one((p["dense"]["u"], p["dense"]["v"])), one(p, where=by_name)))(PARAMS)
    np.testing.assert_allclose(got, [dense, dense + conv, dense, dense], rtol=1e-12)
    np.testing.assert_allclose(one([(U, V), (CONV_U, CONV_V)]), dense + conv, rtol=1e-12)
    np.testing.assert_allclose(one([(U, V), (CONV_U, CONV_V)], where=[(True, True), (True, False)]), dense, rtol=1e-12)
    np.testing.assert_allclose(one(state), dense + conv, rtol=1e-12)
    stacked = {"u": jnp.stack([U, 2 * U]), "v": jnp.stack([V, 2 * V])}
    np.testing.assert_allclose(one(stacked), 3 * dense, rtol=1e-12)
    np.testing.assert_allclose(rj.weights.rank_importance(U, V, hierarchical=hierarchical), left * right, rtol=1e-12)
    conv_importance = rj.weights.rank_importance(CONV_U, CONV_V, hierarchical=hierarchical)
    np.testing.assert_allclose(conv_importance, left_conv * right_conv, rtol=1e-12)
    both = rj.weights.rank_importance(**stacked, hierarchical=hierarchical)
    np.testing.assert_allclose(both, [left * right, 4 * left * right], rtol=1e-12)


def test_published_numbers_and_gradient(x64):
    pair = (jnp.asarray(BOOK_U), jnp.asarray(BOOK_V))
    value, gradient = jax.value_and_grad(rj.weights.low_rank_group_lasso)(pair)
    assert value == pytest.approx(11.09901951, abs=1e-8)
    np.testing.assert_allclose(gradient[0][:, 1], [0, 1.19611614], atol=1e-8)
    np.testing.assert_allclose(rj.weights.rank_importance(*pair), [15.29705854, 2], atol=1e-8)
    assert rj.weights.low_rank_group_lasso(pair, hierarchical=False) == pytest.approx(5 + 1 + 2.23606798 + 2, abs=1e-8)


def test_zero_tails_have_gradient_zero_and_what_precedes_them_its_own(x64):
    u, v = U * [1, 0, 0], V * np.array([1, 0, 0])[:, None]
    for hierarchical in (True, False):
        gradient = jax.grad(lambda p, h=hierarchical: rj.weights.low_rank_group_lasso(p, hierarchical=h))(
            (jnp.asarray(u), jnp.asarray(v))
        )
        np.testing.assert_allclose(gradient[0], u / np.linalg.norm(u[:, 0]), atol=1e-12)
        np.testing.assert_allclose(gradient[1], v / np.linalg.norm(v[0]), atol=1e-12)


def test_a_small_tail_does_not_drown_in_float32():
    u = jnp.array([[1e4, 1e-3], [0.0, 0.0]])
    np.testing.assert_allclose(rj.weights.rank_importance(u, jnp.ones((2, 1))), [1e4 * 2**0.5, 1e-3], rtol=1e-6)


def test_other_trees_have_no_pairs():
    for tree in ({}, {"u": U}, [U, V], {"a": {"u": U}, "b": {"v": V}}, {"u": jnp.arange(3), "v": V}):
        assert float(rj.weights.low_rank_group_lasso(tree)) == 0
    with pytest.raises(ValueError, match=r"low_rank_group_lasso: v at glu must be of shape \[4, 3, 'outputs'\]|v at glu"):
        rj.weights.low_rank_group_lasso({"glu": {"u": jnp.ones((4, 3)), "v": jnp.ones((4, 3))}})


def test_as_a_penalty_of_an_objective_it_is_that_of_the_gradient_transform(x64):
    params = {"u": jnp.asarray(U), "v": jnp.asarray(V)}
    loss = lambda p: jnp.sum(jnp.square(p["u"] @ p["v"] - 1))
    lifted = jax.grad(rj.objectives.with_penalty(loss, rj.weights.low_rank_group_lasso, 0.1))(params)
    tx = rj.gradients.add_penalty(rj.weights.low_rank_group_lasso, 0.1)
    added, _ = tx.update(jax.grad(loss)(params), tx.init(params), params)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), lifted, added)


def test_the_lasso_kills_the_last_ranks_first():
    # A target of rank 1 and factors of four balanced ranks.
    target = jnp.outer(jnp.arange(1.0, 5), jnp.ones(4)) / 5
    start = jax.random.normal(jax.random.key(0), (2, 4, 4)) * 0.5
    tx = optax.adam(3e-3)
    loss = lambda p: jnp.sum(jnp.square(p[0] @ p[1] - target)) + 0.1 * rj.weights.low_rank_group_lasso((p[0], p[1]))

    @jax.jit
    def run(params):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), None, length=2000)[0][0]

    u, v = run(start)
    alive = rj.weights.shrink_ranks(u, v, threshold=1e-3)
    assert alive.tolist() == [True, False, False, False]
    assert float(jnp.max(jnp.abs(u[:, :1] @ v[:1] - target))) < 0.3


def test_shrinking_compares_with_the_threshold_and_takes_a_traced_one():
    u, v = jnp.diag(jnp.array([2.0, 1.0, 0.1])), jnp.eye(3)
    shrink = jax.jit(lambda t: rj.weights.shrink_ranks(u, v, threshold=t, hierarchical=False))
    assert shrink(1.0).tolist() == [True, True, False]
    assert shrink(1.5).tolist() == [True, False, False]
    assert shrink(0.0).all()


def test_folding_keeps_the_product_and_never_grows(x64):
    for u, v in ((U, V), (CONV_U, CONV_V)):
        size = u.shape[-1]
        dense_size = u.size // size * v.shape[-1]
        kinds = set()
        for count in (0, 1, size - 1, size):
            alive = np.arange(size)[::-1] < count
            kernels = rj.weights.fold_ranks(u, v, alive)
            product = kernels[0] if len(kernels) == 1 else kernels[0] @ kernels[1]
            np.testing.assert_allclose(product, (u * alive) @ v, atol=1e-12)
            kept = sum(kernel.size for kernel in kernels)
            assert kept <= dense_size or not count
            kinds.add(len(kernels))
            dense = (dense_size // v.shape[-1] + v.shape[-1]) * count >= dense_size
            assert (len(kernels) == 1) == (dense and count > 0)
        assert kinds == {1, 2}
    assert [k.shape for k in rj.weights.fold_ranks(U, V, np.zeros(3, bool))] == [(4, 1), (1, 5)]
