"""The penalty on irrelevant weights against a loop, pruning to a performance, and their claim on digits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import regjax as rj

RNG = np.random.default_rng(0)
PARAMS = {"kernel": RNG.normal(size=(5, 4)), "bias": RNG.normal(size=4), "embedding": RNG.normal(size=(3, 2))}
GRADS = jax.tree.map(lambda x: 2 * RNG.normal(size=x.shape), PARAMS)


def gate(g, scale, kind):
    return np.exp(-abs(scale * g)) if kind == "exp" else max(0.0, 1 - abs(scale * g))


@pytest.mark.parametrize("kind", ["exp", "hinge"])
def test_penalty_and_gradient(x64, kind):
    fn = jax.jit(
        jax.value_and_grad(lambda p, g, c: rj.weights.irrelevance_penalty(p, g, gradient_scale=c, gate=kind), argnums=(0, 1))
    )
    for scale in (0.7, 0.0):
        value, (slopes, to_grads) = fn(PARAMS, GRADS, scale)
        want = 0.0
        for name in ("kernel", "embedding"):
            for at in np.ndindex(*PARAMS[name].shape):
                share = gate(GRADS[name][at], scale, kind)
                want += share * PARAMS[name][at] ** 2 / 2
                assert slopes[name][at] == pytest.approx(share * PARAMS[name][at], rel=1e-12)
        assert float(value) == pytest.approx(want, rel=1e-12)
        assert not slopes["bias"].any() and not any(x.any() for x in jax.tree.leaves(to_grads))
    oracle = {"kernel": jnp.array([[1.0, -2.0, 0.5]])}, {"kernel": jnp.array([[0.0, np.log(2), -1.0]])}
    if kind == "exp":
        assert float(rj.weights.irrelevance_penalty(*oracle)) == pytest.approx(1.5459849, abs=1e-7)


@pytest.mark.parametrize("n_bisect", [3, 12])
def test_pruning_ends_at_the_bound(n_bisect):
    """The performance is the share of the sum of magnitudes that stays: it falls with every weight."""
    n = 24
    total = sum(np.abs(PARAMS[k]).sum() for k in ("kernel", "embedding"))
    calls = []

    def evaluate(params):
        calls.append(params)
        return (np.abs(params["kernel"]).sum() + np.abs(params["embedding"]).sum()) / total

    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)
    ordered = np.sort(np.concatenate([np.abs(params[k]).ravel() for k in ("kernel", "embedding")]))
    for bound in (0.95, 0.5, 0.1):
        calls.clear()
        pruned, mask, threshold = rj.weights.prune_to_performance(params, evaluate, bound, n_bisect=n_bisect)
        assert len(calls) <= n_bisect and evaluate(pruned) >= bound
        best = max(k for k in range(n + 2) if ordered[k:].sum() / total >= bound)
        kept = int(mask["kernel"].sum() + mask["embedding"].sum())
        assert n + 2 - best <= kept <= n + 2 - best + (n + 2) // 2**n_bisect + 1
        assert threshold == ordered[n + 2 - kept] if kept < n + 2 else threshold == 0
        for name in ("kernel", "embedding"):
            np.testing.assert_array_equal(mask[name], np.abs(params[name]) >= threshold)
            np.testing.assert_array_equal(pruned[name], np.where(mask[name], params[name], 0))
        np.testing.assert_array_equal(pruned["bias"], params["bias"])
        assert mask["bias"].shape == () and bool(mask["bias"])


def test_pruning_in_rounds_and_at_its_limits():
    params = {"kernel": jnp.array([[4.0, -1.0], [0.0, 2.0]]), "bias": jnp.ones(2)}
    size = lambda p: jnp.abs(p["kernel"]).sum()
    never = rj.weights.prune_to_performance(params, size, 100.0)
    assert never[2] == 0 and never[1]["kernel"].tolist() == [[True, True], [False, True]]
    np.testing.assert_array_equal(never[0]["kernel"], params["kernel"])
    everything = rj.weights.prune_to_performance(params, size, -1.0)
    assert everything[0]["kernel"].tolist() == [[4.0, 0.0], [0.0, 0.0]] and everything[2] == 4
    once = rj.weights.prune_to_performance(params, size, 6.0)
    again = rj.weights.prune_to_performance(once[0], size, 6.0)
    assert once[1]["kernel"].tolist() == again[1]["kernel"].tolist() == [[True, False], [False, True]]
    state = nnx.State(jax.tree.map(nnx.Param, params))
    got = rj.weights.prune_to_performance(
        state, lambda s: size({"kernel": s["kernel"][...]}), 6.0, where=lambda path, leaf: path == ("kernel",)
    )
    np.testing.assert_array_equal(got[0]["kernel"][...], once[0]["kernel"])
    assert rj.weights.prune_to_performance({"bias": jnp.ones(2)}, lambda p: 1.0, 0.0)[2] == 0


@pytest.mark.slow
def test_more_can_be_pruned_than_with_uniform_decay():
    x, y = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    x, y = jnp.asarray(x / 16, jnp.float32), jnp.asarray(y)
    sizes = (64, 64, 10)
    keys = jax.random.split(jax.random.key(0), 2)
    start = [
        {"kernel": jax.random.normal(k, (a, b)) * (2 / a) ** 0.5, "bias": jnp.zeros(b)}
        for k, a, b in zip(keys, sizes, sizes[1:], strict=False)
    ]
    logits = lambda p, x: jax.nn.relu(x @ p[0]["kernel"] + p[0]["bias"]) @ p[1]["kernel"] + p[1]["bias"]
    accuracy = jax.jit(lambda p: jnp.mean(jnp.argmax(logits(p, x[:500]), -1) == y[:500]))

    @jax.jit
    def fit(scale, key):
        tx = rj.gradients.irrelevance_decay(optax.sgd(0.05, momentum=0.9), 3e-3, gradient_scale=scale)

        def step(carry, index):
            params, opt = carry
            loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(logits(p, x[index]), y[index]).mean()
            updates, opt = tx.update(jax.grad(loss)(params), opt, params)
            return (optax.apply_updates(params, updates), opt), None

        index = 500 + jax.random.randint(key, (2000, 64), 0, 1297)
        return jax.lax.scan(step, (start, tx.init(start)), index)[0][0]

    # The mean loss has gradients near 1e-3: a scale of 100 tells relevant weights from the others, 0 decays all alike.
    gains = []
    for seed in (1, 2):
        params = [fit(scale, jax.random.key(seed)) for scale in (100.0, 0.0)]
        bound = min(float(accuracy(p)) for p in params) - 0.01
        masks = [rj.weights.prune_to_performance(p, accuracy, bound)[1] for p in params]
        gains.append(float(rj.weights.density(masks[1]) - rj.weights.density(masks[0])))
    assert min(gains) > 0.03, gains
