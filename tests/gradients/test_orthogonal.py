"""The orthogonal gradient against a loop-written reference, its geometry, its edges and its cost."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import regjax as rj

RNG = np.random.default_rng(0)
PARAMS = {"kernel": RNG.normal(size=(4, 3)), "bias": RNG.normal(size=3)}
GRADS = {"kernel": RNG.normal(size=(4, 3)), "bias": RNG.normal(size=3)}


def apply(grads, params, **options):
    tx = rj.gradients.orthogonal_gradient(**options)
    return tx.update(grads, tx.init(params), params)[0]


def project(w, g, rescale):
    along = sum(a * b for a, b in zip(w, g, strict=True)) / sum(a * a for a in w)
    out = np.array([b - along * a for a, b in zip(w, g, strict=True)])
    return out * np.sqrt(sum(b * b for b in g) / sum(o * o for o in out)) if rescale else out


def test_equals_its_reference_by_leaf_and_as_a_whole(x64):
    flat = lambda tree: np.concatenate([tree["bias"], tree["kernel"].ravel()])

    @jax.jit
    def values(grads, params):
        pairs = [(granularity, rescale) for granularity in ("leaf", "global") for rescale in (True, False)]
        return [apply(grads, params, granularity=granularity, rescale=rescale) for granularity, rescale in pairs]

    rescaled, plain, whole, paper = values(GRADS, PARAMS)
    for got, rescale in ((rescaled, True), (plain, False)):
        for name in PARAMS:
            want = project(PARAMS[name].ravel(), GRADS[name].ravel(), rescale)
            np.testing.assert_allclose(got[name].ravel(), want, rtol=1e-12)
    for got, rescale in ((whole, True), (paper, False)):
        np.testing.assert_allclose(flat(got), project(flat(PARAMS), flat(GRADS), rescale), rtol=1e-12)


def test_published_values():
    params, grads = {"w": jnp.array([1.0, 2.0, 2.0])}, {"w": jnp.array([3.0, 0.0, 0.0])}
    np.testing.assert_allclose(apply(grads, params, rescale=False)["w"], [2.666666667, -0.666666667, -0.666666667], rtol=1e-6)
    np.testing.assert_allclose(apply(grads, params)["w"], [2.828427125, -0.707106781, -0.707106781], rtol=1e-6)


def test_geometry_in_float32():
    @jax.jit
    def laws(w, g):
        out = apply({"w": g}, {"w": w})["w"]
        grown = jnp.vdot(w - 0.1 * out, w - 0.1 * out) - jnp.vdot(w, w) - 0.01 * jnp.vdot(g, g)
        norms = [jnp.linalg.norm(x) for x in (w, g, out)]
        return jnp.vdot(w, out) / (norms[0] * norms[2]), norms[2] / norms[1] - 1, grown / norms[0] ** 2, out

    w, g = (jnp.asarray(RNG.normal(size=(32, 16)), jnp.float32) for _ in range(2))
    cosine, stretch, grown, out = laws(w, g)
    # Orthogonal, of the gradient's norm, and a step of plain SGD adds exactly its square to that of the weights.
    assert abs(cosine) < 1e-6 and abs(stretch) < 1e-6 and abs(grown) < 1e-6
    np.testing.assert_allclose(laws(100 * w, g)[3], out, atol=1e-5)
    np.testing.assert_allclose(laws(w, 100 * g)[3], 100 * out, rtol=1e-5, atol=1e-4)


def test_edges():
    run = jax.jit(apply, static_argnames="min_size")
    w = jnp.asarray(RNG.normal(size=100), jnp.float32)
    params = {"parallel": w, "one": jnp.array([2.0]), "zeros": jnp.zeros(3), "still": jnp.ones(3), "tiny": jnp.array([1.0, 1.0])}
    grads = {
        "parallel": 3 * w,
        "one": jnp.array([5.0]),
        "zeros": jnp.array([1.0, -2.0, 0.5]),
        "still": jnp.zeros(3),
        "tiny": jnp.array([3e-25, 1e-25]),
    }
    out = run(grads, params)
    np.testing.assert_array_equal(out["parallel"], jnp.zeros(100))  # rounding noise is not scaled up
    np.testing.assert_array_equal(out["one"], grads["one"])  # no direction is orthogonal to one number
    np.testing.assert_allclose(out["zeros"], grads["zeros"], rtol=1e-6)
    np.testing.assert_array_equal(out["still"], jnp.zeros(3))
    # Where squares underflow the projection stands, only the rescaling is left out.
    np.testing.assert_allclose(out["tiny"], [1e-25, -1e-25], rtol=1e-6)
    assert not run(grads, params, min_size=1)["one"].any()
    kept = run(grads, params, min_size=101)
    assert all(np.array_equal(kept[name], grads[name]) for name in grads)


def test_where_kinds_of_trees_and_absent_updates():
    wide = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), (GRADS, PARAMS))
    want = apply(*wide)
    only = apply(*wide, where="kernels")
    np.testing.assert_array_equal(only["kernel"], want["kernel"])
    np.testing.assert_array_equal(only["bias"], wide[0]["bias"])
    state = apply(*(nnx.State(jax.tree.map(nnx.Param, tree)) for tree in wide), where=lambda path, leaf: path == ("kernel",))
    np.testing.assert_array_equal(state["kernel"][...], want["kernel"])
    np.testing.assert_array_equal(state["bias"][...], wide[0]["bias"])
    for absent in (None, optax.MaskedNode()):
        frozen = apply({**wide[0], "bias": absent}, wide[1])
        assert frozen["bias"] == absent
        np.testing.assert_array_equal(frozen["kernel"], want["kernel"])
    low = jax.tree.map(lambda x: x.astype(jnp.bfloat16), wide)
    out = apply(*low)["kernel"]
    assert out.dtype == jnp.bfloat16
    exact = apply(*jax.tree.map(lambda x: x.astype(jnp.float32), low))["kernel"]
    np.testing.assert_array_equal(out, exact.astype(jnp.bfloat16))


def test_injected_hyperparameters():
    tx = optax.inject_hyperparams(rj.gradients.orthogonal_gradient)(guard=lambda step: 1e-6 * (step + 1))
    state = tx.init(PARAMS)
    out, state = jax.jit(tx.update)(GRADS, state, PARAMS)
    np.testing.assert_allclose(out["kernel"], apply(GRADS, PARAMS)["kernel"], rtol=1e-5)
    assert float(state.hyperparams["guard"]) == pytest.approx(1e-6)


def test_flops_of_a_training_step():
    sizes = (64, 256, 256, 10)
    params = [{"kernel": jnp.zeros((a, b)), "bias": jnp.zeros(b)} for a, b in itertools.pairwise(sizes)]

    def loss(params, x, y):
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
        logits = x @ params[-1]["kernel"] + params[-1]["bias"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, y).mean()

    def flops(tx):
        def step(params, state, x, y):
            updates, state = tx.update(jax.grad(loss)(params, x, y), state, params)
            return optax.apply_updates(params, updates), state

        batch = jnp.zeros((256, 64)), jnp.zeros(256, int)
        return jax.jit(step).lower(params, tx.init(params), *batch).compile().cost_analysis()["flops"]

    ratio = flops(optax.chain(rj.gradients.orthogonal_gradient(), optax.adam(1e-3))) / flops(optax.adam(1e-3))
    assert 1 < ratio <= 1.01, ratio


@pytest.mark.slow
def test_it_groks_where_adam_memorises():
    """Sums modulo 23 from 70% of the pairs, full batches, no weight decay: both fit the training pairs, one learns to add."""
    p, steps = 23, 300
    a, b = (grid.ravel() for grid in np.meshgrid(np.arange(p), np.arange(p)))
    x, y = jnp.concatenate([jax.nn.one_hot(a, p), jax.nn.one_hot(b, p)], axis=1), jnp.asarray((a + b) % p)
    order = np.random.default_rng(0).permutation(p * p)
    train, test = np.split(order, [int(0.7 * p * p)])
    shapes = [(2 * p, 64), (64, 64), (64, p)]
    keys = jax.random.split(jax.random.key(0), 3)
    start = [jax.random.normal(key, shape) / shape[0] ** 0.5 for key, shape in zip(keys, shapes, strict=True)]

    def logits(params, x):
        return jax.nn.relu(jax.nn.relu(x @ params[0]) @ params[1]) @ params[2]

    def loss(params):
        return optax.softmax_cross_entropy_with_integer_labels(logits(params, x[train]), y[train]).mean()

    def accuracies(tx):
        def step(carry, _):
            params, state = carry
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (start, tx.init(start)), length=steps)
        right = jnp.argmax(logits(params, x), axis=-1) == y
        return jnp.mean(right[train]), jnp.mean(right[test])

    adam = optax.adam(1e-2, b2=0.99, eps=1e-25)
    chained = optax.chain(rj.gradients.orthogonal_gradient(), adam)
    (fit, learned), (plain_fit, plain_learned) = jax.jit(lambda: (accuracies(chained), accuracies(adam)))()
    assert fit == plain_fit == 1
    assert learned > 0.8 and plain_learned < 0.1, (learned, plain_learned)
