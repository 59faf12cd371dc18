"""Projections and hard thresholds against sorting references; singular values against NumPy's; derivatives at equal ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
KERNEL = RNG.normal(size=(2, 3, 4, 5))
W = rj.weights


def on_simplex(v, total):
    """By sorting, in a loop over how many entries stay positive."""
    falling, found = sorted(v, reverse=True), None
    for n in range(1, len(v) + 1):
        tau = (sum(falling[:n]) - total) / n
        if falling[n - 1] > tau:
            found = tau
    return np.array([max(x - found, 0.0) for x in v])


def in_l1_ball(v, radius):
    return v if np.abs(v).sum() <= radius else np.sign(v) * on_simplex(np.abs(v), radius)


def in_l2_ball(v, radius):
    norm = np.sqrt(sum(x * x for x in v))
    return v if norm <= radius else v * (radius / norm)


AXES = {"out": (0, 1, 2), "in": (0, 1, 3), "kernel_position": (2, 3), "leaf": (0, 1, 2, 3)}


def by_groups(fn, kernel, kind, size):
    """A reference of vectors, group by group."""
    axes = AXES[kind]
    rest = tuple(i for i in range(4) if i not in axes)
    turned = kernel.transpose(rest + axes)
    rows = turned.reshape(int(np.prod([kernel.shape[i] for i in rest])), -1)
    moved = np.stack([fn(row, size) for row in rows]).reshape(turned.shape)
    return moved.transpose(np.argsort(rest + axes))


@pytest.mark.parametrize("kind", AXES)
def test_vector_sets_equal_their_references_group_by_group(x64, kind):
    size = {"out": 1.5, "in": 2.0, "kernel_position": 2.5, "leaf": 4.0}[kind]

    @jax.jit
    def moved(kernel, size):
        tree = {"kernel": kernel}
        return [
            W.project_simplex(tree, total=size, groups=kind)["kernel"],
            W.project_l1_ball(tree, radius=size, groups=kind)["kernel"],
            W.project_l2_ball(tree, radius=size, groups=kind)["kernel"],
        ]

    for got, fn in zip(moved(KERNEL, size), (on_simplex, in_l1_ball, in_l2_ball), strict=True):
        np.testing.assert_allclose(got, by_groups(fn, KERNEL, kind, size), atol=1e-13)
    # Every group within the balls: not a bit changes.
    for got in moved(KERNEL, 1e3)[1:]:
        np.testing.assert_array_equal(got, KERNEL)


def test_vector_sets_equal_those_of_optax_and_groups_span_leaves(x64):
    params = {"a": {"kernel": RNG.normal(size=(3, 2))}, "b": {"bias": RNG.normal(size=4)}, "c": {"kernel": np.ones((2, 2))}}
    groups = [["a", "b/bias"]]

    @jax.jit
    def both(params):
        pair = (params["a"]["kernel"], params["b"]["bias"])
        ours = [
            W.project_simplex(params, total=1.5, groups=groups),
            W.project_l1_ball(params, radius=1.5, groups=groups),
            W.project_l2_ball(params, radius=0.5, groups=groups),
        ]
        theirs = [
            optax.projections.projection_simplex(pair, 1.5),
            optax.projections.projection_l1_ball(pair, 1.5),
            optax.projections.projection_l2_ball(pair, 0.5),
        ]
        return ours, theirs

    for ours, theirs in zip(*both(params), strict=True):
        np.testing.assert_allclose(ours["a"]["kernel"], theirs[0], atol=1e-13)
        np.testing.assert_allclose(ours["b"]["bias"], theirs[1], atol=1e-13)
        np.testing.assert_array_equal(ours["c"]["kernel"], params["c"]["kernel"])


def test_vector_sets_at_extreme_sizes_in_float32():
    @jax.jit
    def moved(v, size):
        tree = {"kernel": v}
        simplex = lambda v: W.project_simplex({"kernel": v}, total=size)["kernel"]
        return simplex(v), W.project_l1_ball(tree, radius=size)["kernel"], jax.jacobian(simplex)(v)[0]

    large = jnp.array([[1e6, 1e6 - 0.25, 1e6 - 2.0]])
    simplex, ball, slope = moved(large, 1.0)
    np.testing.assert_allclose(simplex, [[0.625, 0.375, 0.0]], atol=1e-6)
    np.testing.assert_allclose(ball, [[0.625, 0.375, 0.0]], atol=1e-6)
    np.testing.assert_allclose(slope[0], [[0.5, -0.5, 0.0]], atol=1e-6)
    tiny, _, _ = moved(1e-30 * jnp.array([[3.0, 1.0, -5.0]]), 1e-30)
    np.testing.assert_allclose(tiny, [[1e-30, 0.0, 0.0]], rtol=1e-5)
    equal, _, _ = moved(jnp.zeros((1, 3)), 1.0)
    np.testing.assert_allclose(equal, [[1 / 3] * 3], rtol=1e-6)
    for x in moved(jnp.array([[2.0, -1.0, 0.5]]), 0.0)[:2]:
        np.testing.assert_array_equal(x, [[0.0, 0.0, 0.0]])
    low = jax.eval_shape(partial(W.project_l1_ball, radius=1.0), {"kernel": jnp.ones((2, 2), jnp.bfloat16)})
    assert low["kernel"].dtype == jnp.bfloat16


def keep_largest(v, k):
    kept = np.zeros(v.size, bool)
    kept[np.argsort(-np.abs(v.ravel()), kind="stable")[:k]] = True
    return np.where(kept.reshape(v.shape), v, 0)


def test_top_k_keeps_exactly_k_of_each_leaf_or_of_all():
    params = {
        "a": {"kernel": np.array([[3, -1, 1], [0.5, 1, -2]], np.float32), "bias": np.ones(3, np.float32)},
        "b": {"kernel": np.array([[1, 1, -1], [1, 1, 1]], np.float32)},
        "c": {"kernel": np.array([[4, -5]], np.float32)},
    }
    top = jax.jit(lambda params, k: (W.project_top_k(params, k=k), W.project_top_k(params, k=k, scope="all")))
    names = ("a", "b", "c")
    for k in (0, 1, 3, 5, 100):
        each, together = top(params, k)
        joined = keep_largest(np.concatenate([params[n]["kernel"].ravel() for n in names]), k)
        parts = np.split(joined, [6, 12])
        for name, part in zip(names, parts, strict=True):
            kernel = params[name]["kernel"]
            np.testing.assert_array_equal(each[name]["kernel"], keep_largest(kernel, k))
            np.testing.assert_array_equal(together[name]["kernel"], part.reshape(kernel.shape))
        np.testing.assert_array_equal(each["a"]["bias"], params["a"]["bias"])
    low = W.project_top_k({"kernel": jnp.ones((5, 5), jnp.bfloat16)}, k=7)["kernel"]
    assert low.dtype == jnp.bfloat16 and float(low.astype(jnp.float32).sum()) == 7


def test_top_groups_keeps_exactly_k_groups():
    params = {
        "a": {"kernel": np.array([[3, 0, 1, 0], [0, 3, 2, 0.5]], np.float32)},
        "b": {"kernel": np.array([[1, -np.inf]], np.float32), "bias": np.array([9.0, 0.0], np.float32)},
    }

    @jax.jit
    def moved(params, k):
        return {
            "out": W.project_top_groups(params, k=k),
            "in": W.project_top_groups(params, k=k, groups="in"),
            "leaf": W.project_top_groups(params, k=k, groups="leaf", where="all"),
            "named": W.project_top_groups(params, k=k, groups=[["a"], ["b/bias"]]),
        }

    a, b = params["a"]["kernel"], params["b"]["kernel"]
    got = moved(params, 1)
    np.testing.assert_array_equal(got["out"]["a"]["kernel"], a * [[1, 0, 0, 0]])  # the first of two equal norms
    np.testing.assert_array_equal(got["out"]["b"]["kernel"], [[0, -np.inf]])
    np.testing.assert_array_equal(got["in"]["a"]["kernel"], a * [[0], [1]])
    np.testing.assert_array_equal(got["in"]["b"]["kernel"], b)
    np.testing.assert_array_equal(got["leaf"]["a"]["kernel"], 0 * a)
    np.testing.assert_array_equal(got["leaf"]["b"]["bias"], [0, 0])
    np.testing.assert_array_equal(got["leaf"]["b"]["kernel"], b)
    np.testing.assert_array_equal(got["named"]["a"]["kernel"], 0 * a)
    np.testing.assert_array_equal(got["named"]["b"]["bias"], [9, 0])
    assert got["named"]["b"]["kernel"].shape == b.shape
    for name, kept in (("out", [[1, 1, 1, 0]]), ("in", 1), ("leaf", 1), ("named", 1)):
        np.testing.assert_array_equal(moved(params, 3)[name]["a"]["kernel"], a * kept)
    assert not any(np.any(x[layer]["kernel"]) for x in [moved(params, 0)["out"]] for layer in "ab")


def test_published_and_plain_values():
    row = lambda *w: {"kernel": jnp.array([w])}

    @jax.jit
    def values(a, b, tiny, diagonal):
        moved = [
            W.project_box(a, upper=1.0),
            W.project_box(a, lower=0.0),
            W.project_nonnegative(a),
            W.prox_l0(b, 0.5),
            W.prox_l0(tiny, 0.0),
            W.prox_nuclear(diagonal, 1.5),
            W.prox_nuclear(diagonal, 1e3),
        ]
        return [x["kernel"] for x in moved]

    tiny = row(1e-30, 0.0, -2.0)
    got = values(row(3.0, -0.5), row(3.0, -1.0, 1.01), tiny, {"kernel": jnp.diag(jnp.array([3.0, 1.0]))})
    want = ([[1, -0.5]], [[3, 0]], [[3, 0]], [[3, 0, jnp.float32(1.01)]], tiny["kernel"], [[1.5, 0], [0, 0]], np.zeros((2, 2)))
    for x, exact in zip(got, want, strict=True):
        np.testing.assert_allclose(x, exact, rtol=1e-6 if x.shape == (2, 2) else 0)


def mapped(matrix, f):
    u, s, vt = np.linalg.svd(matrix, full_matrices=False)
    return (u * f(s)[..., None, :]) @ vt


def test_singular_values_of_kernels_as_matrices(x64):
    """Convolutions, attention, grouped convolutions as stacks, two kernels of one shape, and a bias that stays."""
    params = {
        "conv": {"kernel": RNG.normal(size=(2, 2, 1, 6)), "bias": np.ones(6)},
        "query": {"kernel": RNG.normal(size=(4, 2, 3))},
        "dense": {"kernel": RNG.normal(size=(4, 6))},
    }
    views = {"conv": lambda x: x.reshape(4, 6), "query": lambda x: x.reshape(4, 6), "dense": lambda x: x}

    @jax.jit
    def moved(params):
        return [
            W.prox_nuclear(params, 0.8),
            W.project_spectral_ball(params, radius=1.7),
            W.project_stiefel(params),
            W.project_stiefel(params, method="newton_schulz"),
            W.nuclear_norm(params),
        ]

    *got, norm = moved(params)
    maps = (lambda s: np.maximum(s - 0.8, 0), lambda s: np.minimum(s, 1.7), np.ones_like, np.ones_like)
    for tree, f in zip(got, maps, strict=True):
        for name, view in views.items():
            np.testing.assert_allclose(view(tree[name]["kernel"]), mapped(view(params[name]["kernel"]), f), atol=1e-10)
        np.testing.assert_array_equal(tree["conv"]["bias"], params["conv"]["bias"])
    want = sum(np.linalg.svd(view(params[name]["kernel"]), compute_uv=False).sum() for name, view in views.items())
    assert float(norm) == pytest.approx(want, rel=1e-12)

    blocks = lambda path, leaf: W.as_matrix(leaf, groups=2)
    kernel = params["conv"]["kernel"]
    got = W.project_stiefel({"kernel": kernel}, matrix_of=blocks)["kernel"].reshape(4, 2, 3).swapaxes(0, 1)
    np.testing.assert_allclose(got, mapped(kernel.reshape(4, 2, 3).swapaxes(0, 1), np.ones_like), atol=1e-12)


def test_orthonormal_columns_or_rows_whatever_the_rank():
    tall, wide, plane = jnp.ones((4, 2)), jnp.zeros((2, 4)), jnp.eye(3)[:, :2]

    @jax.jit
    def moved(tall, wide, sizes):
        both = W.project_stiefel({"a": {"kernel": tall}, "b": {"kernel": wide}})
        iterate = lambda size: W.project_stiefel({"kernel": size * plane}, method="newton_schulz")["kernel"]
        return both["a"]["kernel"], both["b"]["kernel"], jax.vmap(iterate)(sizes)

    a, b, each = moved(tall, wide, jnp.array([0.0, 1e-25, 1e25]))
    np.testing.assert_allclose(a.T @ a, np.eye(2), atol=1e-6)
    np.testing.assert_allclose(b @ b.T, np.eye(2), atol=1e-6)
    # The iteration leaves what is zero at zero, and does not under- or overflow.
    np.testing.assert_allclose(each, plane * np.array([0, 1, 1])[:, None, None], atol=1e-6)


def test_derivatives_at_equal_and_zero_singular_values(x64):
    """Where the maps are smooth at equal singular values, finite differences agree; everywhere derivatives are finite."""
    rng = np.random.default_rng(1)
    q = np.linalg.qr(rng.normal(size=(4, 4)))[0]
    equal = 2.0 * q[:, :3]
    mixed = q[:, :3] @ np.diag([3.0, 3.0, 0.5])
    deficient = q[:, :3] @ np.diag([3.0, 0.0, 0.0])
    move, probe = rng.normal(size=(2, 4, 3))

    def soft(w, t):
        return W.prox_nuclear(w, t)

    def clip(w, t):
        return W.project_spectral_ball(w, radius=t)

    def polar(w, t):
        return W.project_stiefel(w) * t

    @jax.jit
    def slopes(w, t):
        out = []
        for fn in (soft, clip, polar):
            value = lambda w, t, fn=fn: jnp.sum(fn(w, t) * probe)
            gw, gt = jax.grad(value, (0, 1))(w, t)
            steps = 1e-5 * jnp.array([1.0, -1.0, 0.0, 0.0])
            up_w, down_w, up_t, down_t = jax.vmap(value)(w + steps[:, None, None] * move, t + steps[::-1])
            out.append((jnp.sum(gw * move), (up_w - down_w) / 2e-5, gt, (down_t - up_t) / 2e-5))
        return out

    for w in (equal, mixed):
        for along_w, by_w, along_t, by_t in slopes(w, 1.0):
            assert float(along_w) == pytest.approx(float(by_w), rel=1e-7, abs=1e-8)
            assert float(along_t) == pytest.approx(float(by_t), rel=1e-7, abs=1e-8)
    assert all(np.isfinite(x) for w in (deficient, 0 * equal) for row in slopes(w, 1.0) for x in row)
    # A wide matrix is its transpose, derivative included.
    slope = lambda w, probe: jax.grad(lambda w: jnp.sum(soft(w, 1.0) * probe))(w)
    one, other = jax.jit(lambda w: (slope(w, probe), slope(w.T, probe.T)))(mixed)
    np.testing.assert_allclose(one, other.T, atol=1e-12)


def test_nuclear_norm_and_its_derivatives(x64):
    value = jax.jit(jax.value_and_grad(W.nuclear_norm))
    norm, gradient = value(jnp.diag(jnp.array([3.0, 1.0])))
    assert float(norm) == pytest.approx(4.0, rel=1e-14)
    np.testing.assert_allclose(gradient, np.eye(2), atol=1e-14)
    for w, want in ((2 * np.eye(2), np.eye(2)), (np.zeros((2, 2)), np.zeros((2, 2))), (np.ones((2, 2)), np.full((2, 2), 0.5))):
        np.testing.assert_allclose(value(w)[1], want, atol=1e-14)
    # At equal singular values the Hessian exists and is finite: by finite differences of the gradient.
    w, move = 2 * np.eye(2) + 0.0, RNG.normal(size=(2, 2))
    second = jax.jit(lambda w: jax.jvp(jax.grad(W.nuclear_norm), (w,), (move,))[1])(w)
    np.testing.assert_allclose(second, (value(w + 1e-5 * move)[1] - value(w - 1e-5 * move)[1]) / 2e-5, atol=1e-8)


def test_nuclear_norm_of_masked_kernels_and_low_precision(x64):
    params = {"a": {"kernel": RNG.normal(size=(4, 3)), "bias": np.ones(3)}, "b": {"kernel": RNG.normal(size=(3, 3))}}
    kept = RNG.random((4, 3)) > 0.4
    mask = {"a": {"kernel": kept, "bias": True}, "b": {"kernel": True}}
    norm, gradient = jax.jit(jax.value_and_grad(partial(W.nuclear_norm, mask=mask)))(params)
    masked = np.where(kept, params["a"]["kernel"], 0)
    sums = [np.linalg.svd(x, compute_uv=False).sum() for x in (masked, params["b"]["kernel"])]
    assert float(norm) == pytest.approx(sum(sums), rel=1e-12)
    np.testing.assert_allclose(gradient["a"]["kernel"], np.where(kept, mapped(masked, np.ones_like), 0), atol=1e-12)
    np.testing.assert_allclose(gradient["b"]["kernel"], mapped(params["b"]["kernel"], np.ones_like), atol=1e-12)
    assert not np.any(gradient["a"]["bias"])
    # An array alone, where its mask is an array.
    assert float(W.nuclear_norm(params["a"]["kernel"], mask=kept)) == pytest.approx(sums[0], rel=1e-12)
    assert W.nuclear_norm(jnp.eye(3, dtype=jnp.bfloat16)).dtype == jnp.float32


def test_projections_follow_an_optimiser_with_scheduled_sizes():
    """In `gradients.proximal_step` a projection takes the prox's place; its size may be a schedule, its strength is idle."""
    params = {"kernel": jnp.array([[3.0, 0.1], [4.0, 0.2]]), "bias": jnp.array([7.0])}
    grads = jax.tree.map(jnp.zeros_like, params)
    shrinking = partial(W.project_l2_ball, radius=lambda step: 2.0 / (1 + step), groups="out")
    top = partial(W.project_top_k, k=2)

    @jax.jit
    def trained(params, strength):
        ends = []
        for prox in (shrinking, top):
            tx = optax.chain(optax.sgd(0.1), rj.gradients.proximal_step(prox, strength))
            state, moved = tx.init(params), params
            for _ in range(2):
                updates, state = tx.update(grads, state, moved)
                moved = optax.apply_updates(moved, updates)
                ends.append(moved)
        return ends

    for strength in (0.0, 5.0):
        first, second, kept, _ = trained(params, strength)
        np.testing.assert_allclose(first["kernel"], [[1.2, 0.1], [1.6, 0.2]], rtol=1e-6)
        np.testing.assert_allclose(second["kernel"], [[0.6, 0.1], [0.8, 0.2]], rtol=1e-6)
        np.testing.assert_array_equal(kept["kernel"], [[3.0, 0.0], [4.0, 0.0]])
        np.testing.assert_array_equal(second["bias"], params["bias"])
