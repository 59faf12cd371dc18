"""Importance of blocks and sub-layers against loops, and the plans made of it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

d = rj.diagnostics
RNG = np.random.default_rng(0)


def cosine(x, y):
    return x @ y / (np.linalg.norm(x) * np.linalg.norm(y))


def mean_cosine(x, y, where):
    return np.mean([cosine(x[t], y[t]) for t in np.ndindex(where.shape) if where[t]])


def test_equal_the_loops(x64):
    h = RNG.normal(size=(5, 2, 3, 4))
    where = np.array([[True, False, True], [True, True, False]])

    @jax.jit
    def measured(h, where):
        x, y = h[:-1], h[1:]
        layers = [d.layer_importance(x, y, residual=residual, where=where) for residual in (True, False)]
        return d.block_importance(h, where=where), d.gap_similarity(h, where=where), *layers

    for mask in (np.ones((2, 3), bool), where):
        blocks, gaps, with_residual, without = measured(h, mask)
        for layer in range(4):
            x, y = h[layer], h[layer + 1]
            assert blocks[layer] == pytest.approx(1 - mean_cosine(x, y, mask), rel=1e-11)
            assert without[layer] == pytest.approx(float(blocks[layer]), rel=1e-11)
            assert with_residual[layer] == pytest.approx(1 - mean_cosine(x, x + y, mask), rel=1e-11)
            for gap in range(1, 5):
                inside = layer + gap <= 4
                want = mean_cosine(x, h[layer + gap], mask) if inside else -np.inf
                np.testing.assert_allclose(gaps[layer, gap - 1], want, rtol=1e-10)
    np.testing.assert_allclose(d.gap_similarity(h)[:, 0], 1 - d.block_importance(h), rtol=1e-10)


def test_published_values_scale_and_vectors_without_direction():
    fn = jax.jit(d.block_importance)
    states = np.float32([[[1, 0]], [[1, 1]], [[1, 1]], [[-1, -1]], [[-5, -5]], [[0, 0]], [[0, 0]]])
    np.testing.assert_allclose(fn(states), [0.2928932, 0, 2, 0, 1, 1], atol=1e-6)
    scaled = states * np.float32([1e-4, 1e4, 1, 1e4, 1, 1, 1])[:, None, None]
    np.testing.assert_allclose(fn(scaled), fn(states), atol=1e-6)


def test_plans_drop_the_smallest_and_earlier_ones_among_equals():
    plan = jax.jit(d.drop_plan)
    attn, mlp = np.float32([0.2, 0.1, 0.3]), np.float32([0.1, 0.5, 0.05])
    order = [(1, 2), (0, 1), (1, 0), (0, 0), (0, 2), (1, 1)]
    for num in range(7):
        kept = np.ones((2, 3), bool)
        for place in order[:num]:
            kept[place] = False
        np.testing.assert_array_equal(plan(attn, mlp, jnp.asarray(num)), kept)
    never = plan(attn, np.full(2, np.inf, np.float32), jnp.asarray(3))
    assert not never.attn_mask.any() and never.mlp_mask.all()


def test_the_best_run_is_the_one_that_changes_least():
    h = RNG.normal(size=(7, 20, 8)).astype(np.float32)
    h[4], h[5] = 2 * h[2] + 0.01 * h[4], 3 * h[2] + 0.01 * h[5]  # blocks 2 and 3 together do nothing, nor do 2, 3 and 4
    gaps = d.gap_similarity(h)
    for num, start in ((2, 2), (3, 2), (1, 4), (6, 0)):
        run = d.best_gap(gaps, num)
        assert int(run.start) == start and run.similarity == gaps[start, num - 1]
        np.testing.assert_array_equal(run.mask, [not start <= i < start + num for i in range(6)])


@pytest.mark.slow
def test_dropping_the_least_important_block_costs_less():
    """Residual blocks on digits: the block of the least importance is missed less than that of the largest."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images, labels = (images / 16).astype(np.float32), labels.astype(np.int32)
    blocks, width = 4, 32
    keys = jax.random.split(jax.random.key(0), 4)
    params = {
        "in": jax.random.normal(keys[0], (64, width)) / 8,
        "up": jax.random.normal(keys[1], (blocks, width, width)) / 6,
        "down": jax.random.normal(keys[2], (blocks, width, width)) / 6,
        "out": jax.random.normal(keys[3], (width, 10)) / 6,
    }

    def apply(p, x, kept):
        def block(h, ws):
            up, down, keep = ws
            norm = h / jnp.sqrt(jnp.mean(h**2, -1, keepdims=True) + 1e-6)
            new = h + keep * (jax.nn.relu(norm @ up) @ down)
            return new, new

        first = x @ p["in"]
        last, states = jax.lax.scan(block, first, (p["up"], p["down"], kept))
        return last @ p["out"], jnp.concatenate([first[None], states])

    def loss(p):
        logits, _ = apply(p, images[:600], jnp.ones(blocks))
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(logits), labels[:600, None], 1))

    @jax.jit
    def train(p):
        step = lambda p, _: (jax.tree.map(lambda w, g: w - 0.1 * g, p, jax.grad(loss)(p)), None)
        return jax.lax.scan(step, p, None, length=200)[0]

    params = train(params)
    importance = d.block_importance(jax.jit(apply)(params, images[:200], jnp.ones(blocks))[1])
    accuracy = jax.jit(lambda kept: jnp.mean(jnp.argmax(apply(params, images[1200:], kept)[0], -1) == labels[1200:]))
    least, most = (float(accuracy(jnp.ones(blocks).at[i].set(0))) for i in (jnp.argmin(importance), jnp.argmax(importance)))
    assert least > most, (least, most, importance)
