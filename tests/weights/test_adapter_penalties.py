"""Penalties on adapters and the split of a kernel along its singular directions, against loops and the numbers of the papers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

w = rj.weights


def test_orthonormality_of_given_vectors():
    u, vt = jnp.array([[2.0, 0], [0, 1], [0, 0]]), jnp.array([[1.0, 0, 0], [0.6, 0.8, 0]])
    pair = {"u": u, "vt": vt, "s": jnp.ones(2)}
    assert float(w.sorsa_orthonormality([pair])) == pytest.approx((3 + 0.8485281) / 2, rel=1e-6)
    assert float(w.sorsa_orthonormality([pair], squared=True)) == pytest.approx((9 + 0.72) / 2, rel=1e-6)
    angle = 0.7
    turn = jnp.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned = {**pair, "u": u @ turn}
    assert float(w.sorsa_orthonormality([turned])) == pytest.approx(float(w.sorsa_orthonormality([pair])), rel=1e-6)
    # What stands beside does not count: frozen vectors, biases, other ranks in other layers do.
    other = {"u": jnp.ones((4, 1)), "vt": jnp.ones((1, 2))}
    tree = {"x": pair, "y": other, "bias": jnp.ones(3), "svd": {**pair, "eps": jnp.ones(2)}}
    assert float(w.sorsa_orthonormality(tree)) == pytest.approx((3 + 0.8485281 + 3 + 1) / 4, rel=1e-6)
    assert float(w.sorsa_orthonormality({})) == 0


def test_gradient_of_orthonormality(x64):
    rng = np.random.default_rng(0)
    u, vt = rng.normal(size=(5, 2)), rng.normal(size=(2, 4))
    grad = jax.jit(jax.grad(w.sorsa_orthonormality))
    grads = grad({"u": u, "vt": vt})
    gram = u.T @ u - np.eye(2)
    np.testing.assert_allclose(grads["u"], 2 * u @ gram / np.linalg.norm(gram) / 2, rtol=1e-9)
    gram = vt @ vt.T - np.eye(2)
    np.testing.assert_allclose(grads["vt"], 2 * gram @ vt / np.linalg.norm(gram) / 2, rtol=1e-9)
    assert not any(g.any() for g in jax.tree.leaves(grad({"u": np.eye(5, 2), "vt": np.eye(2, 4)})))
    start = w.sorsa_init(jnp.array(rng.normal(size=(5, 4))), rank=2)
    at_start = grad({"u": start.u, "vt": start.vt})
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(at_start))


def looped(kernel, a, b, contract):
    """The formula, entry by entry of the list of members."""
    members = [x @ y for x, y in zip(a, b, strict=True)]
    product = (lambda x, y: x.T @ y) if contract == "input" else (lambda x, y: x @ y.T)
    total = 0.0
    for i, d in enumerate(members):
        total += np.abs(product(kernel, d)).sum()
        for e in members[i + 1 :]:
            total += np.abs(product(d, e)).sum()
    return total


def test_the_group_penalty(x64):
    kernel = np.array([[1.0, 0], [2, 1]])
    a, b = [np.array([[1.0], [0]]), np.array([[1.0], [1]])], [np.array([[1.0, 1]]), np.array([[1.0, -1]])]
    assert looped(kernel, a, b, "input") == 14
    given = {"kernel": kernel, "a": a, "b": b}
    stacked = {**given, "a": np.stack(a), "b": np.stack(b)}
    cases = {
        "lists": ([given], 14),
        "two adapters": ([stacked, {"x": stacked}], 28),
        "one member has no others to differ from": ({"kernel": kernel, "a": a[0], "b": b[0]}, 2),
        "the start": ({**stacked, "b": 0 * stacked["b"]}, 0),
        "orthogonal": (
            {"kernel": np.array([[1.0, 2], [0, 0], [0, 0]]), "a": np.eye(3)[1:, :, None], "b": np.ones((2, 1, 2))},
            0,
        ),
    }
    values = jax.jit(lambda trees: {k: w.orthogonal_group_penalty(v) for k, v in trees.items()})(
        {k: v for k, (v, _) in cases.items()}
    )
    for case, (_, want) in cases.items():
        assert float(values[case]) == want, case


def test_the_group_penalty_of_many_members(x64):
    """Eleven, so that their names as a list do not sort as text; a kernel of heads; both contractions, and gradients."""
    rng = np.random.default_rng(2)
    kernel, a, b = rng.normal(size=(3, 2, 2)), rng.normal(size=(11, 3, 2)), rng.normal(size=(11, 2, 4))
    order = rng.permutation(11)

    @jax.jit
    def both(kernel, a, b):
        out = {}
        for contract in ("input", "output"):
            penalty = lambda kernel, a, b, c=contract: w.orthogonal_group_penalty({"kernel": kernel, "a": a, "b": b}, contract=c)
            lists = w.orthogonal_group_penalty(
                {"kernel": kernel, "a": [a[i] for i in order], "b": [b[i] for i in order]}, contract=contract
            )
            out[contract] = *jax.value_and_grad(penalty, argnums=(0, 1, 2))(kernel, a, b), lists
        return out

    move_a, move_b, step = rng.normal(size=a.shape), rng.normal(size=b.shape), 1e-6
    matrix = kernel.reshape(3, 4)
    for contract, (value, (to_kernel, to_a, to_b), lists) in both(kernel, a, b).items():
        assert float(value) == pytest.approx(looped(matrix, a, b, contract), rel=1e-12)
        assert float(lists) == pytest.approx(float(value), rel=1e-12)
        assert not to_kernel.any()
        shifted = [looped(matrix, a + s * step * move_a, b + s * step * move_b, contract) for s in (1, -1)]
        got = np.vdot(to_a, move_a) + np.vdot(to_b, move_b)
        assert got == pytest.approx((shifted[0] - shifted[1]) / (2 * step), rel=1e-6)


def test_the_split_of_a_kernel(x64):
    kernel = np.random.default_rng(2).normal(size=(5, 3))
    u, s, vt = np.linalg.svd(kernel, full_matrices=False)
    principal = (u[:, :2] * s[:2]) @ vt[:2]

    @jax.jit
    def split(kernel, scale):
        sorsa = w.sorsa_init(kernel, rank=2, scale=scale)
        return sorsa, w.pissa_init(kernel, rank=2, scale=scale), w.sorsa_merge(*sorsa, scale=scale)

    for scale in (1.0, 0.25):
        sorsa, pissa, merged = jax.tree.map(np.asarray, split(kernel, scale))
        np.testing.assert_allclose(sorsa.s, s[:2], rtol=1e-12)
        np.testing.assert_allclose((sorsa.u * sorsa.s) @ sorsa.vt, principal, atol=1e-12)
        np.testing.assert_allclose(sorsa.residual, kernel - scale * principal, atol=1e-12)
        np.testing.assert_allclose(merged, kernel, atol=1e-12)
        np.testing.assert_allclose(scale * pissa.a @ pissa.b, principal, atol=1e-12)
        np.testing.assert_allclose(pissa.residual, kernel - principal, atol=1e-12)
        np.testing.assert_allclose(np.sum(pissa.a**2, 0), np.sum(pissa.b**2, 1), rtol=1e-12)
    np.testing.assert_allclose(w.sorsa_init(jnp.array(kernel), rank=3).residual, 0, atol=1e-12)


def test_factors_are_kept_in_float32_beside_a_kernel_of_low_precision():
    kernel = jnp.array(np.random.default_rng(3).normal(size=(4, 3)), jnp.bfloat16)
    factors = w.sorsa_init(kernel, rank=1)
    assert factors.residual.dtype == jnp.bfloat16 and {x.dtype for x in factors[1:]} == {jnp.dtype(jnp.float32)}
    np.testing.assert_allclose(np.float32(w.sorsa_merge(*factors)), np.float32(kernel), atol=0.02)
