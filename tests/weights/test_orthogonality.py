"""Orthonormality, soft orthogonality, mutual coherence and restricted isometry, in NumPy loops and by their limits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import regjax as rj

RNG = np.random.default_rng(0)
TALL, WIDE = RNG.normal(size=(6, 4)), RNG.normal(size=(3, 5))
EXAMPLE = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 2.0]])
MATRIX = lambda path, leaf: leaf
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def the_same_numbers_in_every_order():
    RNG.bit_generator.state = START


def difference(w, side="columns"):
    vectors = {"columns": w.T, "rows": w, "auto": w.T if w.shape[0] >= w.shape[1] else w}[side]
    return np.array([[sum(a * b) - float(i == j) for j, b in enumerate(vectors)] for i, a in enumerate(vectors)])


def test_values_and_gradients(x64):
    cases = {
        "tall": TALL,
        "wide": WIDE,
        "example": EXAMPLE,
        "three": np.array([[1.0, 1], [0, 1], [0, 0]]),
        "two": np.diag([1.0, 2]),
    }
    sides, family = ("columns", "rows", "auto"), rj.weights.orthogonality

    @jax.jit
    def run(cases):
        tree = lambda w: {"kernel": w}
        half = {n: [rj.weights.orthonormality(tree(w), side=side) for side in sides] for n, w in cases.items()}
        slope = {n: jax.grad(rj.weights.orthonormality)(tree(w))["kernel"] for n, w in cases.items()}
        kinds = {n: [family(tree(w), kind=kind) for kind in ("so", "dso", "mc")] for n, w in cases.items()}
        smaller = {n: family(tree(w), kind="mc", side="auto") for n, w in cases.items()}
        steep = {n: jax.grad(lambda p: family(p, kind="dso"))(tree(w))["kernel"] for n, w in cases.items()}
        return half, slope, kinds, smaller, steep

    half, slope, kinds, smaller, steep = run(cases)
    for n, w in cases.items():
        squares = {side: np.sum(difference(w, side) ** 2) for side in sides}
        np.testing.assert_allclose(half[n], [squares[side] / 2 for side in sides], rtol=1e-12)
        np.testing.assert_allclose(slope[n], 2 * w @ difference(w), atol=1e-12)
        coherence = max(sum(abs(x) for x in column) for column in difference(w).T)
        np.testing.assert_allclose(kinds[n], [squares["columns"], squares["columns"] + squares["rows"], coherence], rtol=1e-12)
        np.testing.assert_allclose(smaller[n], np.abs(difference(w, "auto")).sum(0).max(), rtol=1e-12)
        np.testing.assert_allclose(steep[n], 4 * w @ difference(w) + 4 * difference(w, "rows") @ w, atol=1e-12)
    # Published values.
    np.testing.assert_allclose([half["three"][0], half["two"][0]], [1.5, 4.5])
    np.testing.assert_allclose(slope["three"], [[2, 4], [2, 2], [0, 0]], atol=1e-15)
    np.testing.assert_allclose(slope["two"], np.diag([0.0, 12]), atol=1e-15)
    np.testing.assert_allclose(kinds["example"], [9.5625, 19.125, 3.0])


def test_trees_sum_over_kernels_of_all_shapes_and_rotations_change_nothing(x64):
    rotation = np.linalg.qr(RNG.normal(size=(6, 6)))[0]
    params = {
        "a": {"kernel": TALL, "bias": np.ones(4)},
        "b": {"kernel": rotation @ TALL},
        "c": {"kernel": RNG.normal(size=(2, 1, 3, 4))},
        "stack": {"kernel": np.stack([WIDE, 2 * WIDE])},
    }
    last = lambda path, leaf: leaf if path[0] == "stack" else rj.weights.as_matrix(leaf)

    @jax.jit
    def run(params):
        kinds = [rj.weights.orthogonality(params, kind=kind, matrix_of=last) for kind in ("so", "dso", "mc")]
        one = rj.weights.orthonormality(params, where=lambda path, leaf: path == ("a", "kernel"))
        other = rj.weights.orthonormality(params, where=lambda path, leaf: path == ("b", "kernel"))
        bias = jax.grad(rj.weights.orthonormality)(params)["a"]["bias"]
        return kinds, one, other, bias

    kinds, one, other, bias = run(params)
    matrices = [TALL, rotation @ TALL, params["c"]["kernel"].reshape(6, 4), WIDE, 2 * WIDE]
    so = sum(np.sum(difference(w) ** 2) for w in matrices)
    dso = so + sum(np.sum(difference(w, "rows") ** 2) for w in matrices)
    np.testing.assert_allclose(kinds, [so, dso, sum(np.abs(difference(w)).sum(0).max() for w in matrices)], rtol=1e-12)
    np.testing.assert_allclose(one, other, rtol=1e-12)
    assert not bias.any()


def test_orthonormal_kernels_have_no_penalty_and_no_gradient(x64):
    params = {"tall": {"kernel": np.linalg.qr(RNG.normal(size=(6, 4)))[0]}, "wide": {"kernel": np.eye(3, 5)}}
    carried = rj.weights.stateful_srip()
    state = carried.init(jax.random.key(0), params)
    fns = [
        lambda p: rj.weights.orthonormality(p, side="auto"),
        lambda p: rj.weights.orthogonality(p, kind="mc", side="auto"),
        lambda p: rj.weights.srip(jax.random.key(0), p),
        lambda p: carried.apply(state, p)[0],
        lambda p: rj.weights.orthonormality(p),
    ]
    results = jax.jit(lambda p: [jax.value_and_grad(fn)(p) for fn in fns])(params)
    values, gradients = zip(*results, strict=True)
    # Five columns in three dimensions: half of what is missing, at a minimum.
    np.testing.assert_allclose(values, [0, 0, 0, 0, 1], atol=1e-12)
    for name in (0, 2, 3, 4):
        np.testing.assert_allclose(np.concatenate([g.ravel() for g in jax.tree.leaves(gradients[name])]), 0, atol=1e-12)
    # Exactly orthonormal: exactly zero, and the carried vector stays.
    exact = {"kernel": jnp.eye(4, 2)}
    first = carried.init(jax.random.key(0), exact)
    value, after = carried.apply(first, exact)
    assert value == 0
    np.testing.assert_array_equal(first.u["kernel"], after.u["kernel"])


def test_restricted_isometry_equals_the_power_step_and_never_exceeds_the_norm(x64):
    np.testing.assert_allclose(rj.weights.srip_matrix(EXAMPLE, np.ones(3)), 8.2886147, atol=5e-8)
    for w in (TALL, WIDE):
        starts = RNG.uniform(size=(10, min(w.shape)))
        many = np.broadcast_to(w, (10, *w.shape))
        both = jax.jit(lambda w, s: (rj.weights.srip_matrix(w, s), jax.jacfwd(lambda w: rj.weights.srip_matrix(w, s[0]))(w[0])))
        got, slope = both(many, starts)
        m = difference(w, "auto")

        def value(w, start):
            m = difference(w, "auto")
            turned = m @ start
            return np.sum((m @ (turned / np.linalg.norm(turned))) ** 2)

        np.testing.assert_allclose(got, [value(w, start) for start in starts], rtol=1e-12)
        assert np.all(got <= np.linalg.norm(m, 2) ** 2)
        # The gradient goes through the direction too.
        for place in np.ndindex(w.shape):
            move = np.zeros_like(w)
            move[place] = 1e-6
            want = (value(w + move, starts[0]) - value(w - move, starts[0])) / 2e-6
            np.testing.assert_allclose(slope[place], want, rtol=1e-6, atol=1e-6)


def test_fresh_starts_differ_by_kernel_and_key_and_carried_ones_converge(x64):
    params = {"a": {"kernel": TALL}, "b": {"kernel": TALL}, "c": {"kernel": WIDE}}
    carried = rj.weights.stateful_srip()

    @jax.jit
    def run(params):
        draws = jax.vmap(lambda key: rj.weights.srip(key, {"a": params["a"]}))(jax.random.split(jax.random.key(0), 50))
        both = jax.vmap(lambda key: rj.weights.srip(key, {n: params[n] for n in "ab"}))(jax.random.split(jax.random.key(0), 50))
        step = lambda state, _: carried.apply(state, params)[::-1]
        state, values = jax.lax.scan(step, carried.init(jax.random.key(0), params), None, 200)
        return draws, both, values, jax.grad(lambda p: carried.apply(state, p)[0])(params)["a"]["kernel"]

    draws, both, values, gradient = run(params)
    assert np.unique(draws).size == 50 and not np.allclose(both, 2 * draws)
    sizes = {n: np.linalg.norm(difference(w["kernel"], "auto"), 2) for n, w in params.items()}
    assert np.all(draws <= sizes["a"] ** 2) and np.max(draws) > 0.8 * sizes["a"] ** 2
    np.testing.assert_allclose(values[-1], sum(s**2 for s in sizes.values()), rtol=1e-6)
    assert np.all(np.diff(values) > -1e-9)
    # Converged, the gradient is that of the squared norm.
    eigenvalues, vectors = np.linalg.eigh(difference(TALL))
    best = np.argmax(np.abs(eigenvalues))
    u = vectors[:, best]
    np.testing.assert_allclose(gradient, 4 * eigenvalues[best] * np.outer(TALL @ u, u), rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_claim_a_deep_plain_network_that_starts_too_small_trains_with_it():
    # A ReLU that keeps the energy. From the right scale the network trains without the penalty too, and as well.
    digits = load_digits()
    images, labels = jnp.asarray(digits.data / 16 - 0.3, jnp.float32), jnp.asarray(digits.target)
    depth, width = 30, 64
    keys = jax.random.split(jax.random.key(0), 2)
    params = {
        "layers": {"kernel": 0.7 * width**-0.5 * jax.random.normal(keys[0], (depth, width, width))},
        "head": {"kernel": width**-0.5 * jax.random.normal(keys[1], (width, 10))},
    }
    layers = lambda path, leaf: path[0] == "layers"

    def forward(params, extra, x):
        """``extra`` is added to every layer's input, so that its gradient is the error there."""
        x, _ = jax.lax.scan(
            lambda x, layer: (2**0.5 * jax.nn.relu((x + layer[1]) @ layer[0]), None), x, (params["layers"]["kernel"], extra)
        )
        return x @ params["head"]["kernel"]

    def train(params, weights):
        extra = jnp.zeros((depth, 128, width))

        def loss(params, extra, rows):
            return optax.softmax_cross_entropy_with_integer_labels(forward(params, extra, images[rows]), labels[rows]).mean()

        def penalised(params, rows):
            return (
                loss(params, extra, rows)
                + weights[0] * rj.weights.orthonormality(params, where=layers, matrix_of=MATRIX)
                + weights[1] * rj.weights.l2(params, where=layers)
            )

        tx = optax.sgd(0.03, momentum=0.9)

        def step(carry, key):
            params, state = carry
            rows = jax.random.choice(key, len(labels), (128,))
            updates, state = tx.update(jax.grad(penalised)(params, rows), state)
            return (optax.apply_updates(params, updates), state), loss(params, extra, rows)

        keys = jax.random.split(jax.random.key(2), 300)
        (params, _), losses = jax.lax.scan(step, (params, tx.init(params)), keys)
        errors = jnp.linalg.norm(jax.grad(loss, 1)(params, extra, jnp.arange(128)), axis=(1, 2))
        return losses[-20:].mean(), errors[0] / errors[-1]

    compiled = jax.jit(train)
    results = {name: compiled(params, jnp.array(w)) for name, w in {"orthonormal": (0.1, 0.0), "l2": (0.0, 1e-4)}.items()}
    (ours, ratio), (plain, vanished) = results["orthonormal"], results["l2"]
    assert ours < 2.1 and plain > 2.3
    assert 0.1 < ratio < 10 and vanished < 1e-3
