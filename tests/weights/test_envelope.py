"""The group sparse envelope: published values, its definition as a minimum, the laws of its kind, and its proximal operator."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import regjax as rj

RNG = np.random.default_rng(0)
wgsef, prox_wgsef = rj.weights.wgsef, rj.weights.prox_wgsef


def row(*norms):
    """A kernel of one input, whose outputs are groups of these norms."""
    return {"kernel": jnp.array([norms])}


def reference(t, k):
    """The closed form for whole k, as it is published: a search for r in a loop."""
    t = np.sort(np.asarray(t, float))[::-1]
    if k >= len(t):
        return 0.5 * np.sum(t**2)
    for r in range(k):
        total = sum(t[k - r - 1 :])
        above = np.inf if r == k - 1 else t[k - r - 2]
        if above > total / (r + 1) >= t[k - r - 1]:
            return 0.5 * (sum(x * x for x in t[: k - r - 1]) + total**2 / (r + 1))
    raise AssertionError("no r fits")


def budgeted(t, k):
    """The minimum over shares, by bisection of the multiplier: u = min(1, t / tau) with sum k."""
    t = np.asarray(t, float)
    if np.sum(t > 0) <= k:
        return 0.5 * np.sum(t**2)
    tau = scipy.optimize.brentq(lambda x: np.minimum(1, t / x).sum() - k, 1e-12, t.sum() / k + 1, xtol=1e-15)
    u = np.minimum(1, t[t > 0] / tau)
    return 0.5 * np.sum(t[t > 0] ** 2 / u)


def prox_reference(norms, lam, k, d):
    """The factors of the groups; alpha by bisection on the whole line, one group at a time."""
    t = np.sqrt(d) * norms

    def shares(alpha):
        return np.array([min(max(alpha * x - lam * w, 0.0), 1.0) for x, w in zip(t, d, strict=True)])

    if np.sum(t > 0) <= k:
        u = np.ones_like(t)
    else:
        u = shares(scipy.optimize.brentq(lambda a: shares(a).sum() - k, 0, np.max((1 + lam * d)[t > 0] / t[t > 0]), xtol=1e-14))
    return u / (u + lam * d)


@pytest.fixture(scope="module")
def value():
    return jax.jit(lambda params, k, d: wgsef(params, k, group_weights=d))


@pytest.fixture(scope="module")
def moved():
    return jax.jit(lambda params, t, k, d: prox_wgsef(params, t, k, group_weights=d))


def test_published_values(x64, value, moved):
    four, three = row(3.0, 1.0, 0.5, 0.2), row(1.0, 1.0, 2.0)
    ones, d = np.ones(4), np.array([1, 2, 0.5])
    got = [value(four, k, ones) for k in (1.0, 2.0, 3.0, 4.0)] + [value(three, k, d) for k in (1.0, 2.0)]
    np.testing.assert_allclose(got, [11.045, 5.945, 5.245, 5.145, 7.3284271, 3.6642136], atol=5e-8)
    for lam, k, want in ((0.5, 2.0, [2, 0.625, 0.125, 0]), (0.5, 1.0, [2, 0, 0, 0]), (2.0, 2.0, [1, 1 / 3, 0, 0])):
        np.testing.assert_allclose(moved(four, lam, k, ones)["kernel"][0], want, atol=1e-12)
    factors = moved(three, 1.0, 1.0, d)["kernel"][0] / np.array([1, 1, 2])
    np.testing.assert_allclose(factors, [0.0343146, 0, 0.6585786], atol=5e-8)


def test_equals_its_definition_for_whole_and_broken_k(x64, value):
    for seed in range(6):
        rng = np.random.default_rng(seed)
        norms, d = np.abs(rng.normal(size=7)) * 10.0 ** rng.integers(-2, 2), rng.uniform(0.2, 3, size=7)
        norms[: seed % 3] = 0
        norms[4:6] = norms[3]
        t = np.sqrt(d) * norms
        for k in (0.4, 1, 2, 2.5, 5, 6.7, 7, 20):
            got = float(value({"kernel": norms[None]}, float(k), d))
            assert got == pytest.approx(budgeted(t, k), rel=1e-9), (seed, k)
            if k == int(k):
                assert got == pytest.approx(reference(t, k), rel=1e-12), (seed, k)


def test_limits_gradient_and_subgradient_equation(x64):
    kernel = RNG.normal(size=(3, 6)) * np.array([3, 2, 1, 0.5, 0.2, 0.1])
    params = {"kernel": kernel}
    d = np.array([1.0, 0.5, 2.0, 1.0, 3.0, 0.7])

    @jax.jit
    def values(params):
        one, all_, lasso, l2 = wgsef(params, 1), wgsef(params, 6), rj.weights.group_lasso(params), rj.weights.l2(params)
        few = {"kernel": params["kernel"] * jnp.array([1, 0, 1, 0, 0, 0])}
        sparse = wgsef(few, 2, group_weights=d), 0.5 * jnp.sum(d * jnp.square(few["kernel"]))
        penalty = lambda p: wgsef(p, 2, group_weights=d)
        value, gradient = jax.value_and_grad(penalty)(params)
        near = prox_wgsef(params, 0.7, 2, group_weights=d)
        shrunk = prox_wgsef(params, 0.7, 6)["kernel"], params["kernel"] / 1.7
        at_zero = jax.grad(penalty)(jax.tree.map(jnp.zeros_like, params))
        return (one, 0.5 * lasso**2), (all_, l2), sparse, shrunk, value, gradient, near, jax.grad(penalty)(near), at_zero

    *pairs, value, gradient, near, at_near, at_zero = values(params)
    for got, want in pairs:
        np.testing.assert_allclose(got, want, rtol=1e-12)
    # Half a square of a norm: homogeneous of degree two.
    assert float(np.sum(gradient["kernel"] * kernel)) == pytest.approx(2 * float(value), rel=1e-12)
    assert not np.any(at_zero["kernel"])
    # x + t dR(x) = p in the groups that are left; the others lie within the subdifferential at 0.
    x, g = near["kernel"], at_near["kernel"]
    left = np.any(x != 0, axis=0)
    assert 2 <= left.sum() < 6
    np.testing.assert_allclose((x + 0.7 * g)[:, left], kernel[:, left], atol=1e-12)
    slopes = np.linalg.norm(g, axis=0) / np.sqrt(d)
    steepest = np.min(slopes[left])
    assert np.all(np.linalg.norm(kernel, axis=0)[~left] <= 0.7 * np.sqrt(d)[~left] * steepest + 1e-12)


def test_prox_equals_its_reference_at_every_scale(x64, moved):
    for seed in range(8):
        rng = np.random.default_rng(seed)
        norms = np.abs(rng.normal(size=7)) * 10.0 ** rng.integers(-8, 4, size=7)
        norms[: seed % 3] = 0
        d = rng.uniform(0.2, 3, size=7)
        for lam, k in ((0.01, 1.0), (0.5, 2.5), (3.0, 4.0), (0.5, 6.0)):
            got = moved({"kernel": norms[None]}, lam, k, d)["kernel"][0]
            np.testing.assert_allclose(got, prox_reference(norms, lam, k, d) * norms, rtol=1e-9, atol=1e-12 * norms.max())


def test_float32_at_extreme_scales_and_step_zero():
    move = jax.jit(lambda params, t, k: prox_wgsef(params, t, k))
    base = np.array([3.0, 1.0, 0.5, 0.2], np.float32)
    for scale in (1e-15, 1.0, 1e15):
        got = move(row(*(scale * base)), 0.5, 2)["kernel"][0]
        np.testing.assert_allclose(got, scale * np.array([2, 0.625, 0.125, 0]), rtol=2e-6, atol=1e-7 * scale)
        np.testing.assert_array_equal(move(row(*(scale * base)), 0.0, 2)["kernel"][0], scale * base)
        for k in (4, 9):
            np.testing.assert_allclose(move(row(*(scale * base)), 0.5, k)["kernel"][0], scale * base / 1.5, rtol=1e-6)
    np.testing.assert_array_equal(move(row(*(0 * base)), 0.5, 2)["kernel"][0], 0 * base)
    equal = move(row(1.0, 1.0, 1.0, 1.0), 0.5, 2)["kernel"][0]
    np.testing.assert_allclose(equal, np.full(4, 0.5), rtol=1e-6)  # u = 1/2 each
    low = jax.eval_shape(partial(prox_wgsef, step=0.1, k=2), {"kernel": jnp.ones((2, 3), jnp.bfloat16)})
    assert low["kernel"].dtype == jnp.bfloat16


def test_who_competes_with_whom_and_weights_as_trees(x64):
    params = {
        "a": {"kernel": RNG.normal(size=(4, 3)), "bias": RNG.normal(size=3)},
        "b": {"kernel": RNG.normal(size=(2, 2, 2, 5))},
        "c": {"kernel": RNG.normal(size=(1, 2))},
    }
    norms = {name: np.sqrt((p["kernel"] ** 2).sum(tuple(range(p["kernel"].ndim - 1)))) for name, p in params.items()}
    ins = [np.linalg.norm(params["a"]["kernel"], axis=1), np.sqrt((params["b"]["kernel"] ** 2).sum((0, 1, 3)))]
    whole = np.array([np.linalg.norm(n) for n in norms.values()])
    spanning = np.array([np.hypot(whole[0], np.linalg.norm(params["a"]["bias"])), np.hypot(whole[1], whole[2])])
    per_leaf = {name: RNG.uniform(0.5, 2, size=len(n)) for name, n in norms.items()}
    tree = {name: {leaf: per_leaf[name] if leaf == "kernel" else 1.0 for leaf in p} for name, p in params.items()}
    groups = [["a"], ["b", "c"]]

    @jax.jit
    def values(params):
        chosen = lambda path, leaf: path[-1] == "kernel" and path[0] != "c"
        return [
            wgsef(params, 2),
            wgsef(params, 1.5, groups="in", where=chosen),
            wgsef(params, 2, groups="leaf"),
            wgsef(params, 1, groups=groups, group_weights=np.array([1.0, 3.0])),
            wgsef(params, 2, group_weights=tree),
            wgsef(params, 2, group_weights=2.0),
        ], [prox_wgsef(params, 0.3, 1, groups=groups), prox_wgsef(params, 0.3, 2, group_weights=tree)]

    got, (spanned, by_leaf) = values(params)
    want = [
        sum(reference(n, 2) for n in norms.values()),
        sum(budgeted(n, 1.5) for n in ins),
        reference(whole, 2),
        reference(spanning * np.sqrt([1, 3]), 1),
        sum(reference(n * np.sqrt(per_leaf[name]), 2) for name, n in norms.items()),
        2 * sum(reference(n, 2) for n in norms.values()),
    ]
    np.testing.assert_allclose(got, want, rtol=1e-9)
    factors = prox_reference(spanning, 0.3, 1, np.ones(2))
    np.testing.assert_allclose(spanned["a"]["bias"], factors[0] * params["a"]["bias"], atol=1e-12)
    np.testing.assert_allclose(spanned["c"]["kernel"], factors[1] * params["c"]["kernel"], atol=1e-12)
    for name, n in norms.items():
        factors = prox_reference(n, 0.3, 2, per_leaf[name])
        np.testing.assert_allclose(by_leaf[name]["kernel"], factors * params[name]["kernel"], atol=1e-12)
    np.testing.assert_array_equal(by_leaf["a"]["bias"], params["a"]["bias"])


def test_derivatives_of_the_step_by_everything_that_may_be_traced(x64):
    kernel, d, probe = RNG.normal(size=(2, 6)), RNG.uniform(0.5, 2, size=6), RNG.normal(size=(2, 6))

    @jax.jit
    def slopes(kernel, t, k, d):
        value = lambda *args: jnp.sum(prox_wgsef({"kernel": args[0]}, args[1], args[2], group_weights=args[3])["kernel"] * probe)
        given = (kernel, t, k, d)
        gradient, out = jax.grad(value, (0, 1, 2, 3))(*given), []
        for i, g in enumerate(gradient):
            move = jnp.cos(1.0 + jnp.arange(g.size, dtype=g.dtype)).reshape(g.shape)
            at = lambda s, i=i, move=move: value(*(x + s * move if j == i else x for j, x in enumerate(given)))
            out.append((jnp.sum(g * move), (at(1e-6) - at(-1e-6)) / 2e-6))
        return out

    for got, want in slopes(kernel, 0.4, 2.0, d):
        assert float(got) == pytest.approx(float(want), rel=1e-6, abs=1e-8)
        assert abs(float(got)) > 1e-3


@pytest.mark.slow
def test_claim_sparser_with_its_strength_at_little_loss():
    """Proximal steps on the first layer of a digits MLP: groups fall with the strength, at an accuracy near group lasso's."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    order = np.random.default_rng(0).permutation(len(digits.target))
    images, labels = digits.data[order] / 16, digits.target[order]
    x, y, x_test, y_test = images[:1078], labels[:1078], images[1078:], labels[1078:]

    def forward(params, x):
        return jax.nn.relu(x @ params["a"]["kernel"] + params["a"]["bias"]) @ params["b"]["kernel"] + params["b"]["bias"]

    def loss_fn(params, x, y):
        return optax.softmax_cross_entropy_with_integer_labels(forward(params, x), y).mean()

    @partial(jax.jit, static_argnums=0)
    @partial(jax.vmap, in_axes=(None, 0, None))
    @partial(jax.vmap, in_axes=(None, None, 0))
    def run(prox, strength, key):
        keys = jax.random.split(key, 3)
        layer = lambda key, m, n: {"kernel": jax.random.normal(key, (m, n)) * np.sqrt(2 / m), "bias": jnp.zeros(n)}
        params = {"a": layer(keys[0], 64, 128), "b": layer(keys[1], 128, 10)}
        rate = 0.1
        tx = optax.chain(optax.sgd(rate, momentum=0.9), rj.gradients.proximal_step(prox, strength, learning_rate=rate))

        def step(carry, key):
            params, state = carry
            batch = jax.random.randint(key, (64,), 0, len(x))
            grads = jax.grad(loss_fn)(params, jnp.asarray(x)[batch], jnp.asarray(y)[batch])
            updates, state = tx.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jax.random.split(keys[2], 400))
        groups = jnp.sum(jnp.any(params["a"]["kernel"] != 0, axis=0))
        return groups, jnp.mean(jnp.argmax(forward(params, x_test), -1) == y_test)

    first = {"a": {"kernel": True, "bias": False}, "b": False}
    envelope = partial(prox_wgsef, k=16, where=lambda path, leaf: path == ("a", "kernel"))
    lasso = partial(rj.weights.prox_group_lasso, where=first)
    seeds = jax.random.split(jax.random.key(0), 3)
    mean = lambda pair: list(zip(*(np.mean(x, axis=1) for x in pair), strict=True))
    ours = mean(run(envelope, jnp.array([0.0, 1e-2, 3e-2, 1e-1]), seeds))
    theirs = mean(run(lasso, jnp.array([3e-2, 5e-2, 1e-1, 2e-1]), seeds))
    counts = [groups for groups, _ in ours]
    print(ours, theirs)
    assert counts[0] == 128 and counts[0] > counts[1] > counts[2] > counts[3]
    for groups, accuracy in ours[1:]:
        nearest = min(theirs, key=lambda pair: abs(pair[0] - groups))
        assert accuracy > nearest[1] - 0.01
