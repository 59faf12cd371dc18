"""Layer masking against loop-written references: filled rings, pooled masks, and hidden pixels that nothing can see."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import regjax as rj

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 5, 6, 4))
MASK = RNG.random(size=(3, 5, 6, 1)) > 0.6
MASK[2] = False  # one image wholly hidden
KERNEL, BIAS = RNG.normal(size=(3, 3, 4, 6)), RNG.normal(size=6)
ALL = np.ones((3, 5, 6, 1), bool)
lay = rj.layers


def around(a, i, j):
    """The 3x3 neighbourhood of a pixel, cut at the border."""
    return a[max(i - 1, 0) : i + 2, max(j - 1, 0) : j + 2]


def filled(x, mask, iterations, eps=1e-5):
    """Rings of hidden pixels filled one after the other, as loops."""
    x, mask = x * mask, mask.astype(float)
    for _ in range(iterations):
        new, known = x.copy(), mask.copy()
        for b in range(x.shape[0]):
            for i in range(x.shape[1]):
                for j in range(x.shape[2]):
                    count = around(mask[b], i, j).sum()
                    if not mask[b, i, j, 0]:
                        new[b, i, j] = around(x[b], i, j).sum((0, 1)) / (count + eps)
                    known[b, i, j, 0] = min(mask[b, i, j, 0] + count, 1)
        x, mask = new, known
    return x


def any_in_window(mask, size, strides, pads):
    """Whether each window has a visible pixel, as loops."""
    padded = np.pad(mask[..., 0], ((0, 0), *pads))
    rows = range(0, padded.shape[1] - size[0] + 1, strides[0])
    columns = range(0, padded.shape[2] - size[1] + 1, strides[1])
    windows = [[padded[:, i : i + size[0], j : j + size[1]].any((1, 2)) for j in columns] for i in rows]
    return np.moveaxis(np.array(windows), -1, 0)[..., None]


def plain_conv(x, kernel, strides=(1, 1), padding="SAME", groups=1):
    numbers = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=numbers, feature_group_count=groups)


def test_published_row():
    x = jnp.array([2.0, 9.0, jnp.nan, 9.0, 6.0]).reshape(1, 1, 5, 1)
    mask = jnp.array([True, False, False, False, True]).reshape(1, 1, 5, 1)
    for iterations, want in ((0, [2, 0, 0, 0, 6]), (1, [2, 1.99998, 0, 5.99994, 6]), (2, [2, 1.99998, 3.99994, 5.99994, 6])):
        got = lay.neighbour_padding(x, mask, iterations=iterations)
        np.testing.assert_allclose(got.ravel(), want, atol=1e-5)


@pytest.mark.parametrize("iterations", [0, 1, 2, 7])
def test_padding_equals_the_reference_and_is_a_constant_in_the_gradient(x64, iterations):
    weight = RNG.normal(size=X.shape)
    value, gradient = jax.value_and_grad(lambda x: jnp.sum(weight * lay.neighbour_padding(x, MASK, iterations=iterations)))(X)
    np.testing.assert_allclose(lay.neighbour_padding(X, MASK, iterations=iterations), filled(X, MASK, iterations), atol=1e-12)
    assert float(value) == pytest.approx(np.sum(weight * filled(X, MASK, iterations)), abs=1e-9)
    np.testing.assert_allclose(gradient, weight * MASK, atol=1e-12)
    np.testing.assert_array_equal(lay.neighbour_padding(X, ALL, iterations=iterations), X)


CONVOLUTIONS = {
    "same": ({}, ((1, 1), (1, 1)), (1, 1), 1),
    "valid and strides": ({"padding": "VALID", "strides": 2}, ((0, 0), (0, 0)), (2, 2), 1),
    "explicit": ({"padding": ((1, 0), (2, 1)), "strides": (1, 2)}, ((1, 0), (2, 1)), (1, 2), 1),
    "groups": ({"feature_group_count": 2}, ((1, 1), (1, 1)), (1, 1), 2),
    "depthwise, unpadded": ({"feature_group_count": 4, "pad_iterations": 0}, ((1, 1), (1, 1)), (1, 1), 4),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolution_equals_padding_then_convolving_then_masking(x64, name):
    options, pads, strides, groups = CONVOLUTIONS[name]
    kernel = RNG.normal(size=(3, 3, 4 // groups, 8))
    bias = RNG.normal(size=8)
    call = jax.jit(lambda x, mask: lay.masked_conv(x, mask, kernel, bias, **options))
    y, seen = call(X, MASK)
    want_mask = any_in_window(MASK, (3, 3), strides, pads)
    plain = plain_conv(filled(X, MASK, options.get("pad_iterations", 3)), kernel, strides, pads, groups) + bias
    np.testing.assert_array_equal(seen, want_mask)
    np.testing.assert_allclose(y, np.where(want_mask, plain, 0), atol=1e-10)
    assert not y[2].any() and want_mask[:2].any()
    y, seen = call(X, ALL)
    np.testing.assert_array_equal(y, jax.jit(lambda x: plain_conv(x, kernel, strides, pads, groups) + bias)(X))
    assert seen.all()


def test_rectangular_kernels_pad_as_many_rings_as_they_are_wide(x64):
    kernel = RNG.normal(size=(1, 2, 4, 2))
    y, seen = lay.masked_conv(X, MASK, kernel, padding="VALID")
    want_mask = any_in_window(MASK, (1, 2), (1, 1), ((0, 0), (0, 0)))
    np.testing.assert_allclose(y, want_mask * plain_conv(filled(X, MASK, 2), kernel, padding="VALID"), atol=1e-10)
    np.testing.assert_array_equal(seen, want_mask)


@pytest.mark.parametrize(("strides", "padding"), [(None, "VALID"), (1, "SAME"), ((2, 1), ((1, 0), (0, 1)))])
def test_pooling_equals_the_reference(x64, strides, padding):
    steps = (2, 3) if strides is None else (1, 1) if strides == 1 else strides
    pads = {"VALID": ((0, 0), (0, 0)), "SAME": ((0, 1), (1, 1))}.get(padding, padding) if isinstance(padding, str) else padding
    zeroed = np.pad(X * MASK, ((0, 0), *pads, (0, 0)), constant_values=np.nan)
    want_mask = any_in_window(MASK, (2, 3), steps, pads)
    most, mean = np.zeros((*want_mask.shape[:3], 4)), np.zeros((*want_mask.shape[:3], 4))
    for b, i, j in np.ndindex(*want_mask.shape[:3]):
        window = zeroed[b, i * steps[0] : i * steps[0] + 2, j * steps[1] : j * steps[1] + 3]
        most[b, i, j] = np.nanmax(window, axis=(0, 1))
        mean[b, i, j] = np.nansum(window, axis=(0, 1)) / 6
    for fn, want in ((lay.masked_max_pool, most), (lay.masked_avg_pool, mean)):
        y, seen = fn(X, MASK, (2, 3), strides=strides, padding=padding)
        np.testing.assert_array_equal(seen, want_mask)
        np.testing.assert_allclose(y, want * want_mask, atol=1e-12)
    assert lay.masked_max_pool(X, ALL, 2)[1].all()
    np.testing.assert_allclose(lay.masked_max_pool(X, ALL, 2)[0], nnx.max_pool(jnp.asarray(X), (2, 2), (2, 2)))
    np.testing.assert_allclose(lay.masked_avg_pool(X, ALL, 2)[0], nnx.avg_pool(jnp.asarray(X), (2, 2), (2, 2)), atol=1e-12)


def test_pixelwise_joins_and_the_global_mean(x64):
    other, other_mask = RNG.normal(size=X.shape), RNG.random(size=MASK.shape) > 0.4
    np.testing.assert_allclose(lay.masked_elementwise(jnp.cos, X, MASK), np.where(MASK, np.cos(X), 0), atol=1e-12)
    y, seen = lay.masked_residual(X, MASK, other, other_mask)
    np.testing.assert_array_equal(seen, MASK & other_mask)
    np.testing.assert_array_equal(y, (X + other) * (MASK & other_mask))
    mean = lay.masked_global_avg_pool(X, MASK)
    assert mean.shape == (3, 1, 1, 4) and not mean[2].any()
    for b in range(2):
        np.testing.assert_allclose(mean[b, 0, 0], X[b][MASK[b, ..., 0]].mean(0), rtol=1e-6)
    np.testing.assert_allclose(lay.masked_global_avg_pool(X, ALL)[:, 0, 0], X.mean((1, 2)), rtol=1e-7)


def network(params, x, mask):
    """Every operation once, in a small residual network."""
    x, mask = lay.masked_conv(x, mask, params["first"], params["bias"])
    branch = lay.masked_elementwise(nnx.relu, x, mask)
    branch, branch_mask = lay.masked_conv(branch, mask, params["second"])
    x, mask = lay.masked_residual(x, mask, branch, branch_mask)
    x, mask = lay.masked_max_pool(lay.masked_elementwise(nnx.relu, x, mask), mask, 2)
    x, mask = lay.masked_avg_pool(x, mask, 2, strides=1)
    return lay.masked_global_avg_pool(x, mask)


def test_hidden_pixels_are_never_seen_by_values_or_gradients():
    params = {"first": KERNEL, "bias": BIAS, "second": RNG.normal(size=(3, 3, 6, 6))}
    params = jax.tree.map(lambda p: jnp.asarray(p, jnp.float32), params)
    run = jax.jit(jax.value_and_grad(lambda params, x, mask: jnp.sum(jnp.sin(network(params, x, mask))), (0, 1)))
    want = run(params, jnp.asarray(X * MASK, jnp.float32), MASK)
    for colour in (1.0, -7.0, 1e30, np.nan, np.inf):
        got = run(params, jnp.asarray(np.where(MASK, X, colour), jnp.float32), MASK)
        jax.tree.map(np.testing.assert_array_equal, got, want)
    assert bool(jnp.all(jnp.where(MASK, True, want[1][1] == 0))) and np.isfinite(want[0])
    assert any(bool(jnp.any(g != 0)) for g in jax.tree.leaves(want[1]))


@pytest.mark.slow
def test_predictions_under_masks_change_less_than_with_black_pixels():
    """The published claim in small: hide random 2x2 blocks of a digit; the prediction stays nearer to the whole one's."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = jnp.asarray(digits.images[..., None] / 16, jnp.float32), jnp.asarray(digits.target)
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = {"first": (3, 3, 1, 12), "second": (3, 3, 12, 24), "head": (24, 10)}
    params = {
        name: jax.random.normal(key, shape) * np.sqrt(2 / np.prod(shape[:-1]))
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }

    def plain(params, x):
        x = nnx.relu(plain_conv(x, params["first"]))
        return nnx.relu(plain_conv(x, params["second"], (2, 2))).mean((1, 2)) @ params["head"]

    def masked_network(params, x, mask):
        x, mask = lay.masked_conv(x, mask, params["first"])
        x, mask = lay.masked_conv(nnx.relu(x), mask, params["second"], strides=2)
        return lay.masked_global_avg_pool(nnx.relu(x), mask)[:, 0, 0] @ params["head"]

    tx = optax.adam(0.02)

    @jax.jit
    def step(params, state, x, y):
        loss = lambda p: jnp.mean(optax.softmax_cross_entropy_with_integer_labels(plain(p, x), y))
        updates, state = tx.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    state = tx.init(params)
    for rows in np.random.default_rng(0).integers(0, 1297, (300, 64)):
        params, state = step(params, state, images[rows], labels[rows])
    test = images[1297:]
    log_p = lambda *images: jax.nn.log_softmax((masked_network if len(images) == 2 else plain)(params, *images))
    clean = log_p(test)
    accuracy = float(jnp.mean(jnp.argmax(clean, -1) == labels[1297:]))
    blocks = jax.random.bernoulli(jax.random.key(2), 0.75, (500, 4, 4, 1))
    mask = jnp.repeat(jnp.repeat(blocks, 2, 1), 2, 2)
    kl = lambda other: float(jnp.mean(jnp.sum(jnp.exp(clean) * (clean - other), -1)))
    masked, black, grey = kl(log_p(test, mask)), kl(log_p(test * mask)), kl(log_p(jnp.where(mask, test, 0.5)))
    assert accuracy > 0.8
    assert masked < black and masked < grey
