"""HyperSparse against loops over the weights, its strict mask, and the search that raises its strength."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
PARAMS = {
    "conv": {"kernel": RNG.normal(size=(2, 2, 3, 4)), "bias": RNG.normal(size=4)},
    "dense": {"kernel": RNG.normal(size=(5, 4)), "bias": RNG.normal(size=4)},
}
KERNELS = np.concatenate([PARAMS["conv"]["kernel"].ravel(), PARAMS["dense"]["kernel"].ravel()])


def gradient(w, rate):
    """The published gradient, weight by weight."""
    t = max(sorted(abs(x) for x in w)[min(int(np.floor(rate * len(w))), len(w) - 1)], 1e-12)
    s = 0.6585 / t
    weight = sum(abs(x) for x in w) / sum(np.tanh(s * abs(x)) for x in w)
    return np.array([np.sign(x) * s * (1 - np.tanh(s * abs(x)) ** 2) * weight for x in w])


@pytest.fixture
def run():
    """The value and the flat gradient of the penalty of one kernel, at a traced rate."""
    fn = jax.jit(jax.value_and_grad(lambda w, rate: rj.weights.hypersparse_penalty({"kernel": w[None]}, prune_rate=rate)))
    return lambda w, rate: tuple(np.asarray(x) for x in fn(jnp.asarray(w, float), rate))


def test_value_and_gradient(x64, run):
    got = run(np.array([1.0, -0.5, 0.25, 0.1]), 0.5)
    assert got[0] == 0
    np.testing.assert_allclose(got[1], [0.3218851, -0.8584021, 1.1575492, 1.2655563], atol=1e-7)
    np.testing.assert_allclose(run(np.full(4, 0.4), 0.5)[1], 0.7603333, atol=1e-6)
    w = RNG.normal(size=40)
    for rate in (0.0, 0.3, 0.9, 1.0):
        value, slopes = run(w, rate)
        assert value == 0
        np.testing.assert_allclose(slopes, gradient(w, rate), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(run(-w, rate)[1], -slopes, rtol=1e-12)
        np.testing.assert_allclose(run(7.5 * w, rate)[1], slopes, rtol=1e-9, atol=1e-12)
    few = np.where(np.arange(40) < 3, w, 0)
    assert np.isfinite(run(few, 0.9)[1]).all() and not run(few, 0.9)[1][3:].any()
    assert not run(np.zeros(40), 0.9)[1].any()


def test_one_threshold_over_the_chosen_leaves(x64):
    got = jax.jit(jax.grad(functools.partial(rj.weights.hypersparse_penalty, prune_rate=0.6)))(PARAMS)
    want = gradient(KERNELS, 0.6)
    np.testing.assert_allclose(np.concatenate([got["conv"]["kernel"].ravel(), got["dense"]["kernel"].ravel()]), want, rtol=1e-9)
    assert not got["conv"]["bias"].any() and not got["dense"]["bias"].any()
    biases = jax.grad(lambda p: rj.weights.hypersparse_penalty(p, where=lambda path, leaf: path[-1] == "bias"))(PARAMS)
    assert biases["dense"]["bias"].all() and not biases["dense"]["kernel"].any()
    mixed = {"a": {"kernel": jnp.float32(KERNELS[:6]).reshape(2, 3)}, "b": {"kernel": KERNELS[6:].reshape(2, -1)}}
    np.testing.assert_allclose(
        jax.grad(lambda p: rj.weights.hypersparse_penalty(p, prune_rate=0.6))(mixed)["b"]["kernel"].ravel(), want[6:], rtol=1e-5
    )


STRICT = jax.jit(lambda params, rate: rj.weights.magnitude_mask_strict(params, prune_rate=rate))


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.9, 0.98, 1.0])
def test_the_strict_mask(rate):
    n, below = KERNELS.size, int(np.floor(rate * KERNELS.size))
    mask = rj.weights.magnitude_mask_strict(PARAMS, prune_rate=rate)
    traced = STRICT(PARAMS, jnp.float32(rate))
    kept = np.concatenate([np.ravel(mask["conv"]["kernel"]), np.ravel(mask["dense"]["kernel"])])
    if rate == 0:
        assert kept.all()
    else:
        assert kept.sum() == max(n - below - 1, 0)
        np.testing.assert_array_equal(kept, np.abs(KERNELS) > np.sort(np.abs(KERNELS))[min(below, n - 1)])
    assert mask["conv"]["bias"].shape == () and bool(mask["conv"]["bias"])
    jax.tree.map(np.testing.assert_array_equal, traced, mask)


def controller(accuracies, dense, warmup, window):
    """The search, as a loop over epochs: the best epoch and the one in which it ends."""
    seen, best, best_epoch = [], -np.inf, -1
    for epoch, accuracy in enumerate(accuracies):
        if epoch < warmup:
            continue
        seen.append(accuracy)
        last = seen[-(2 * window + 1) :]
        if len(last) == 2 * window + 1 and np.mean(last) > best:
            best, best_epoch = np.mean(last), epoch - window
        if best > dense[epoch]:
            return best_epoch, epoch
    return best_epoch, None


@pytest.mark.parametrize(("warmup", "window"), [(0, 0), (2, 1)])
def test_the_search_follows_its_loop(warmup, window):
    rng = np.random.default_rng(warmup)
    epochs = 14
    pruned, dense = np.linspace(0.2, 0.95, epochs) + 0.08 * rng.normal(size=epochs), np.linspace(0.9, 0.7, epochs)
    pruned = np.clip(pruned, 0, 1)
    weights = rng.normal(size=(epochs, 3, 4)).astype(np.float32)
    best_epoch, end = controller(pruned, dense, warmup, window)
    assert end is not None and end < epochs - 1 and best_epoch > 0, "a loop that tests something"

    search = rj.weights.art(0.5, warmup_epochs=warmup, init=0.01, growth=1.5, window=window)
    tree = lambda w: {"kernel": w, "bias": w[0]}

    @jax.jit
    def run():
        def epoch(state, xs):
            strength = search.coefficient(state)
            state = search.update(state, tree(xs[0]), xs[1], xs[2])
            return state, (strength, state.done)

        return jax.lax.scan(epoch, search.init(tree(jnp.asarray(weights[0]))), (weights, dense, pruned))

    state, (strengths, done) = run()
    assert int(state.best_epoch) == best_epoch and list(done) == [e >= end for e in range(epochs)]
    want = [0.0 if e < warmup else 0.01 * 1.5 ** (e - warmup) for e in range(end + 1)]
    np.testing.assert_allclose(strengths[: end + 1], want, rtol=1e-5)
    kept, mask = search.prune(tree(jnp.asarray(weights[best_epoch])))
    jax.tree.map(np.testing.assert_array_equal, state.best, kept)
    jax.tree.map(np.testing.assert_array_equal, state.best_mask, mask)
    assert (np.asarray(kept["kernel"]) != 0).sum() == 5 and kept["bias"].all()


@pytest.mark.slow
def test_pruning_after_the_search_costs_little():
    x, y = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    x, y = jnp.asarray(x / 16, jnp.float32), jnp.asarray(y)
    test, train = slice(0, 360), slice(360, 360 + 11 * 128)
    sizes = (64, 128, 128, 10)
    keys = jax.random.split(jax.random.key(0), 3)
    shapes = zip(keys, sizes, sizes[1:], strict=False)
    start = [{"kernel": jax.random.normal(k, (a, b)) * (2 / a) ** 0.5, "bias": jnp.zeros(b)} for k, a, b in shapes]
    tx = optax.sgd(0.1, momentum=0.9)
    search = rj.weights.art(0.98, warmup_epochs=10, init=5e-5, growth=1.2)

    def logits(params, x):
        for layer in params[:-1]:
            x = jax.nn.relu(x @ layer["kernel"] + layer["bias"])
        return x @ params[-1]["kernel"] + params[-1]["bias"]

    accuracy = lambda params, part: jnp.mean(jnp.argmax(logits(params, x[part]), -1) == y[part])

    @functools.partial(jax.jit, static_argnames="regularised")
    def fit(params, key, regularised):
        def epoch(carry, key):
            params, opt, state = carry
            strength = search.coefficient(state)

            def step(carry, index):
                params, opt = carry

                def loss(p):
                    out = logits(p, x[train][index])
                    ce = optax.softmax_cross_entropy_with_integer_labels(out, y[train][index]).mean()
                    hits = jnp.mean(jnp.argmax(out, -1) == y[train][index])
                    penalty = rj.weights.hypersparse_penalty(p, prune_rate=0.98) if regularised else 0.0
                    return ce + strength * penalty, hits

                grads, hits = jax.grad(loss, has_aux=True)(params)
                updates, opt = tx.update(grads, opt, params)
                return (optax.apply_updates(params, updates), opt), hits

            order = jax.random.permutation(key, 11 * 128).reshape(11, 128)
            (params, opt), hits = jax.lax.scan(step, (params, opt), order)
            state = search.update(state, params, jnp.mean(hits), accuracy(search.prune(params)[0], train))
            return (params, opt, state), None

        return jax.lax.scan(epoch, (params, tx.init(params), search.init(params)), jax.random.split(key, 50))

    (_, _, state), _ = fit(start, jax.random.key(1), True)
    (plain, _, _), _ = fit(start, jax.random.key(1), False)
    with_search, without = float(accuracy(state.best, test)), float(accuracy(search.prune(plain)[0], test))

    assert with_search > without + 0.3 and with_search > 0.85
