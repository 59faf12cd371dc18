"""Gram iteration against singular values by NumPy, explicit convolution matrices, and automatic differentiation."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from sklearn.datasets import load_digits

import regjax as rj

RNG = np.random.default_rng(0)
START = RNG.bit_generator.state


@pytest.fixture(autouse=True)
def the_same_numbers_in_every_order():
    RNG.bit_generator.state = START


def by_hand(w, n_iter):
    """The iteration as published: rows at least as many as columns, log scale apart."""
    g = w.T if w.shape[0] < w.shape[1] else w
    log = 0.0
    for _ in range(n_iter):
        norm = np.sqrt(sum(abs(x) ** 2 for x in g.ravel()))
        g, log = g / norm, 2 * (log + np.log(norm))
        g = g.conj().T @ g
    return np.sqrt(sum(abs(x) ** 2 for x in g.ravel())) ** (2.0**-n_iter) * np.exp(2.0**-n_iter * log)


def conv_matrix(kernel, n, padding):
    """A stride-1 convolution with its first tap on its own position as a matrix, entry by entry; or with zeros around."""
    kh, kw, cin, cout = kernel.shape
    matrix = np.zeros((n, n, cout, n, n, cin))
    for y, x, a, b in itertools.product(range(n), range(n), range(kh), range(kw)):
        i, j = y + a - (kh // 2 if padding == "zero" else 0), x + b - (kw // 2 if padding == "zero" else 0)
        if padding == "circular":
            i, j = i % n, j % n
        if 0 <= i < n and 0 <= j < n:
            matrix[y, x, :, i, j, :] += kernel[a, b].T
    return matrix.reshape(n * n * cout, n * n * cin)


def sigma(matrix):
    return np.linalg.svd(matrix, compute_uv=False)[..., 0]


def test_published_values_and_the_loop(x64):
    cases = [np.eye(2), np.diag([2.0, 1.0]), RNG.normal(size=(5, 3)), RNG.normal(size=(2, 6))]
    got = jax.jit(lambda cases: [[rj.weights.gram_iteration(w, n_iter=t) for w in cases] for t in range(5)])(cases)
    got = np.array(got).T
    np.testing.assert_allclose(got[0], [1.4142136, 1.1892071, 1.0905077, 1.0442738, 1.0218971], atol=5e-8)
    np.testing.assert_allclose(got[1, :4], [2.2360680, 2.0305432, 2.0009749, 2.0000019], atol=5e-8)
    for row, w in zip(got, cases, strict=True):
        np.testing.assert_allclose(row, [by_hand(w, t) for t in range(5)], rtol=1e-12)
        assert np.all(np.diff(row) < 0) and row[-1] >= sigma(w)


def test_gradient_is_that_of_the_iteration_and_nears_the_singular_vectors(x64):
    def plain(w, n_iter):
        g = w.T if w.shape[0] < w.shape[1] else w
        log = 0.0
        for _ in range(n_iter):
            norm = jnp.sqrt(jnp.sum(jnp.abs(g) ** 2))
            g, log = g / norm, 2 * (log + jnp.log(norm))
            g = g.conj().T @ g
        return jnp.sqrt(jnp.sum(jnp.abs(g) ** 2)) ** (2.0**-n_iter) * jnp.exp(2.0**-n_iter * log)

    ours = lambda w, t: rj.weights.gram_iteration(w, n_iter=t)

    @jax.jit
    def gradients(w, v):
        first = [[jax.grad(fn)(w, t) for t in (0, 2)] for fn in (ours, plain)]
        second = [jax.jvp(jax.grad(lambda w, fn=fn: fn(w, 2)), (w,), (v,))[1] for fn in (ours, plain)]
        return first, second, jax.grad(ours)(w, 12), jax.jvp(lambda w: ours(w, 12), (w,), (v,))[1]

    for shape in ((5, 3), (3, 5)):
        w, v = RNG.normal(size=shape), RNG.normal(size=shape)
        first, second, near, forward = gradients(w, v)
        for got, want in zip(*first, strict=True):
            np.testing.assert_allclose(got, want, rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(*second, rtol=1e-8, atol=1e-10)
        left, _, right = np.linalg.svd(w)
        np.testing.assert_allclose(near, np.outer(left[:, 0], right[0]), atol=1e-4)
        np.testing.assert_allclose(forward, np.sum(near * v), rtol=1e-9)


def test_every_scale_and_the_zero_matrix_in_single_precision():
    w = jnp.asarray(RNG.normal(size=(6, 4)), jnp.float32)
    stack = jnp.stack([w, 1e30 * w, 1e-30 * w, 0 * w])
    # Many squarings, whose powers would overflow or vanish unscaled.
    both = jax.jit(jax.vmap(jax.value_and_grad(lambda w: rj.weights.gram_iteration(w, n_iter=12))))
    values, gradients = both(stack)
    left, size, right = np.linalg.svd(np.asarray(w, np.float64))
    np.testing.assert_allclose(values / size[0], [1, 1e30, 1e-30, 0], rtol=1e-3)
    for gradient in gradients[:3]:
        np.testing.assert_allclose(gradient, np.outer(left[:, 0], right[0]), atol=1e-4)
    assert not gradients[3].any()


def test_convolutions_equal_their_matrices(x64):
    square, wide, line = RNG.normal(size=(3, 3, 2, 4)), RNG.normal(size=(2, 3, 3, 2)), RNG.normal(size=(3, 2, 2))
    centre = np.zeros((3, 3, 4, 4))
    centre[1, 1] = -0.7 * np.eye(4)

    @jax.jit
    def run(square, wide, line, centre):
        value = lambda kernel, n, t=12: rj.weights.gram_iteration_conv(kernel, n=n, n_iter=t)
        both = jax.value_and_grad(lambda kernel: value(kernel, 5))(square)
        return both, value(wide, 4), value(line, (6,)), value(centre, 5, 3)

    (got, gradient), *others = run(square, wide, line, centre)
    left, size, right = np.linalg.svd(conv_matrix(square, 5, "circular"))
    np.testing.assert_allclose(got, size[0], rtol=2e-4)
    # The derivative of a simple singular value by each tap; here it is a pair, of which either vector gives the same.
    assert size[0] - size[2] > 1e-2
    want = np.zeros_like(square)
    for place in np.ndindex(square.shape):
        tap = np.zeros_like(square)
        tap[place] = 1
        want[place] = left[:, 0] @ conv_matrix(tap, 5, "circular") @ right[0]
    np.testing.assert_allclose(gradient, want, atol=2e-3)
    circle = np.array([[line[b - a] if 0 <= b - a < 3 else np.zeros((2, 2)) for b in range(6)] for a in range(6)])
    for a, b in ((4, 0), (5, 0), (5, 1)):
        circle[a, b] = line[b - a + 6]
    circle = circle.transpose(0, 3, 1, 2).reshape(12, 12)
    np.testing.assert_allclose(others[0], sigma(conv_matrix(wide, 4, "circular")), rtol=2e-4)
    np.testing.assert_allclose(others[1], sigma(circle), rtol=2e-4)
    np.testing.assert_allclose(others[2], 0.7 * 4 ** (2.0**-4), rtol=1e-12)


def test_bounds_of_random_convolutions_are_tight_and_fall_and_those_of_coarse_grids_hold(x64):
    for n, (cin, cout) in ((9, (4, 6)), (32, (6, 4))):
        kernel = RNG.normal(size=(3, 3, cin, cout))
        true = sigma(np.fft.fft2(kernel, (n, n), axes=(0, 1))).max()
        run = jax.jit(lambda kernel, n=n: [rj.weights.gram_iteration_conv(kernel, n=n, n_iter=t) for t in (1, 3, 5)])
        bounds = np.array(run(kernel)) / true
        assert np.all(np.diff(bounds) < 1e-12) and 1 - 1e-12 <= bounds[-1] <= 1.02
    # The factor of a coarse grid, for kernels whose largest frequency lies between its points, also where it is even.
    for sides, grids in (((3, 3), (3, 5)), ((2, 2), (3,)), ((5, 3), (6,))):
        kernels = RNG.normal(size=(30, *sides, 2, 2))
        true = sigma(np.fft.fft2(kernels, (32, 32), axes=(1, 2))).max((1, 2))
        for grid in grids:
            coarse = jax.jit(jax.vmap(lambda k, g=grid: rj.weights.gram_iteration_conv(k, n=32, n_iter=3, grid=g)))(kernels)
            assert np.all(coarse >= true * (1 - 1e-9))


def correlated(kernel, n_iter):
    """Correlations of all filters with each other over all overlaps, in loops."""
    filters, log = np.transpose(kernel, (3, 2, 0, 1)), 0.0
    for _ in range(n_iter):
        norm = np.sqrt((filters**2).sum())
        filters, log = filters / norm, 2 * (log + np.log(norm))
        out, _, k, _ = filters.shape
        wide = np.pad(filters, ((0, 0), (0, 0), (k - 1, k - 1), (k - 1, k - 1)))
        new = np.zeros((out, out, 2 * k - 1, 2 * k - 1))
        for a, b in itertools.product(range(2 * k - 1), repeat=2):
            new[:, :, a, b] = np.einsum("oiyx,piyx->op", wide[:, :, a : a + k, b : b + k], filters)
        filters = new
    return np.abs(filters).sum((1, 2, 3)) ** (2.0**-n_iter) * np.exp(2.0**-n_iter * log)


def test_zero_padding_bound_equals_the_correlations_and_holds(x64):
    kernel = RNG.normal(size=(3, 3, 4, 3))
    turned = np.swapaxes(kernel, 2, 3)
    sizes = [jax.jit(lambda k, t=t: rj.weights.zero_padding_bound(k, n_iter=t)) for t in (1, 2)]
    got = [[float(fn(k)) for fn in sizes] for k in (kernel, turned)]
    want = [correlated(kernel, t).max() for t in (1, 2)]
    np.testing.assert_allclose(got, [want, want], rtol=1e-10)
    true = sigma(conv_matrix(kernel, 7, "zero"))
    assert np.all(np.diff(want) < 0) and true < want[-1] < 2 * true
    # One tap: exact, with a gradient on this tap alone, although the transforms round.
    tap = np.zeros((3, 3, 2, 2))
    tap[0, 2] = np.diag([3.0, 1.0])
    value, gradient = jax.value_and_grad(rj.weights.zero_padding_bound)(tap)
    np.testing.assert_allclose(value, 3.0, rtol=1e-12)
    only = np.zeros_like(tap)
    only[0, 2, 0, 0] = 1
    np.testing.assert_allclose(gradient, only, atol=1e-10)


def test_rescaled_kernels_are_contractions(x64):
    dense, conv = RNG.normal(size=(6, 4)), RNG.normal(size=(3, 3, 2, 3))
    dense[:, 2] = 0
    orthogonal = np.linalg.qr(RNG.normal(size=(6, 4)))[0]

    @jax.jit
    def run(dense, conv, orthogonal):
        rescale = rj.weights.spectral_rescaling
        return [(rescale(dense, n_iter=t), rescale(conv, n_iter=t), rescale(orthogonal, n_iter=t)) for t in (1, 3)]

    results = run(dense, conv, orthogonal)
    gram = np.abs(dense.T @ dense).sum(0)
    np.testing.assert_allclose(results[0][0], dense / np.sqrt(np.where(gram > 0, gram, 1)), rtol=1e-12)
    np.testing.assert_allclose(results[1][1], conv / correlated(conv, 3), rtol=1e-10)
    for d, c, o in results:
        assert sigma(d) <= 1 and sigma(conv_matrix(np.asarray(c), 6, "zero")) <= 1
        assert sigma(conv_matrix(np.asarray(c), 6, "circular")) <= 1
        np.testing.assert_allclose(o, orthogonal, rtol=1e-12)
    # The largest factor falls with the number of correlations.
    assert correlated(conv, 3).max() < correlated(conv, 2).max() < correlated(conv, 1).max()


def test_penalty_counts_layers_above_the_threshold(x64):
    bound, conv_bound = (functools.partial(fn, n_iter=1) for fn in (rj.weights.gram_iteration, rj.weights.gram_iteration_conv))
    penalty = functools.partial(rj.weights.lipschitz_penalty, n_iter=1)
    large, small = RNG.normal(size=(3, 3, 2, 4)), 0.01 * RNG.normal(size=(3, 3, 4, 4))
    params = {
        "block": {"a": {"kernel": large, "bias": np.ones(4)}, "b": {"kernel": small}},
        "head": {"kernel": RNG.normal(size=(4, 3))},
        "twin": {"kernel": RNG.normal(size=(4, 3))},
    }
    bounds = {"a": conv_bound(large, n=8), "b": conv_bound(small, n=5)}
    bounds |= {name: bound(params[name]["kernel"]) for name in ("head", "twin")}
    assert bounds["b"] < 1 < min(bounds["a"], bounds["head"])

    @jax.jit
    def run(params, threshold):
        by_path = lambda params: penalty(params, {"block": 8, "block/b/kernel": 5}, threshold=threshold)
        in_order = penalty(params, [8, (5, 5), None, None], threshold=threshold)
        convolutions = lambda path, leaf: path[0] == "block" and leaf.ndim == 4
        some = penalty(params, [8, 5], threshold=threshold, where=convolutions)
        return jax.value_and_grad(by_path)(params), in_order, some

    (value, gradient), in_order, some = run(params, 1.0)
    np.testing.assert_allclose(value, bounds["a"] + bounds["head"] + bounds["twin"], rtol=1e-9)
    np.testing.assert_allclose(some, bounds["a"], rtol=1e-9)
    assert value == in_order
    assert not gradient["block"]["b"]["kernel"].any() and not gradient["block"]["a"]["bias"].any()
    want = jax.grad(bound)(jnp.asarray(params["twin"]["kernel"]))
    np.testing.assert_allclose(gradient["twin"]["kernel"], want, rtol=1e-9)
    (all_of_them, _), _, _ = run(params, 0.0)
    np.testing.assert_allclose(all_of_them, sum(bounds.values()), rtol=1e-9)


@pytest.mark.slow
def test_claim_the_penalty_presses_every_layer_towards_one_and_keeps_the_accuracy():
    digits = load_digits()
    images, labels = jnp.asarray(digits.images[..., None] / 16, jnp.float32), jnp.asarray(digits.target)
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"a": (3, 3, 1, 6), "b": (3, 3, 6, 8), "head": (128, 10)}
    scale = lambda shape: (2 / np.prod(shape[:-1])) ** 0.5
    params = {n: {"kernel": scale(s) * jax.random.normal(k, s)} for k, (n, s) in zip(keys, shapes.items(), strict=True)}
    convolutions = lambda path, leaf: path[0] != "head"

    def model(params, x):
        conv = lambda x, name, stride: jax.lax.conv_general_dilated(
            x, params[name]["kernel"], (stride, stride), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        x = jax.nn.relu(conv(jax.nn.relu(conv(x, "a", 1)), "b", 2))
        return x.reshape(len(x), -1) @ params["head"]["kernel"]

    def train(params, strength):
        tx = optax.adam(1e-2)

        def loss(params, key):
            rows = jax.random.choice(key, 1000, (32,))
            data = optax.softmax_cross_entropy_with_integer_labels(model(params, images[rows]), labels[rows]).mean()
            return data + strength * rj.weights.lipschitz_penalty(params, [8, 8], n_iter=3, where=convolutions)

        def step(carry, key):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params, key), state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(jax.random.key(1), 200))
        bounds = jnp.stack([rj.weights.gram_iteration_conv(params[n]["kernel"], n=8) for n in ("a", "b")])
        return bounds, jnp.mean(jnp.argmax(model(params, images[1000:]), -1) == labels[1000:])

    compiled = jax.jit(train)
    (plain, free), (bounds, accuracy) = (compiled(params, strength) for strength in (0.0, 0.1))
    assert np.all(plain > 4) and np.all(bounds < 3)
    assert accuracy > free - 0.02
