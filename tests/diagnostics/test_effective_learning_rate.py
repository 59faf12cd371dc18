"""Scale-invariant weights: effective learning rates, the error of invariance, and the length that L2 leads to."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj

d = rj.diagnostics
RNG = np.random.default_rng(0)


def test_effective_learning_rate_by_leaf(x64):
    weights = {"a": jnp.asarray(RNG.normal(size=(3, 4))), "b": [jnp.zeros(2), None], "n": jnp.int32(5)}
    for optimizer, power in (("sgd", 2), ("adam", 1)):
        got = jax.jit(lambda rate, o=optimizer: d.effective_learning_rate(rate, weights, optimizer=o))(0.3)
        assert float(got["a"]) == pytest.approx(0.3 / np.sqrt(np.sum(np.asarray(weights["a"]) ** 2)) ** power)
        assert got["b"] == [0, None] and got["n"] == 5


def normalised(params, x):
    h = x @ params["kernel"]
    h = (h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5) * params["scale"]
    return jnp.tanh(h) @ params["out"]["kernel"]


def test_invariance_of_weights_before_a_normalisation():
    draw = lambda *shape: jnp.asarray(RNG.normal(size=shape), jnp.float32)
    params = {"kernel": draw(6, 5), "scale": jnp.ones(5), "out": {"kernel": draw(5, 3)}}
    x = draw(64, 6)
    error = lambda mask, factor=2.0: float(d.scale_invariance_error(normalised, params, mask, x, factor=factor))
    assert error(lambda path, leaf: path == ("kernel",)) < 1e-5
    assert error(None) == pytest.approx(1, abs=1e-5), "the last layer is not normalised"
    assert error("all", 0.5) > 0.1
    # The loss of invariant weights has a gradient orthogonal to them, in inverse proportion to their length.
    loss = lambda p: jnp.mean(normalised(p, x) ** 2)
    gradient = jax.grad(loss)
    long = {**params, "kernel": 3 * params["kernel"]}
    g, w = gradient(params)["kernel"], params["kernel"]
    assert abs(jnp.sum(g * w)) < 1e-4 * jnp.linalg.norm(g) * jnp.linalg.norm(w)
    np.testing.assert_allclose(gradient(long)["kernel"], g / 3, rtol=1e-3, atol=1e-6)
    assert float(d.scale_invariance_error(lambda p: p["bias"], {"bias": jnp.zeros(2)})) == 0


def test_equilibrium_is_that_of_a_simulation(x64):
    """Random gradients orthogonal to the weight, of length 1 over its own: 4,000 steps of SGD with L2, and without."""
    rate, l2 = 0.1, 0.05

    def simulate(l2, w, key):
        def step(w, key):
            g = jax.random.normal(key, w.shape)
            g = g - (g @ w) / (w @ w) * w
            g = g / jnp.linalg.norm(g) / jnp.linalg.norm(w)
            w = w - rate * (g + l2 * w)
            return w, jnp.linalg.norm(w)

        return jax.lax.scan(step, w, jax.random.split(key, 4000))[1]

    run = jax.jit(simulate)
    for start in (0.2, 3.0):
        norms = run(l2, start * jnp.eye(10)[0], jax.random.key(0))
        assert float(norms[-1]) ** 4 == pytest.approx(1.002506266, abs=1e-6)
    got = float(d.predicted_equilibrium_norm(rate, l2, 1.0))
    assert got**4 == pytest.approx(1.002506266, abs=5e-10)
    assert float(d.effective_learning_rate(rate, got * jnp.eye(10)[0])) == pytest.approx(0.099874922, abs=5e-10)
    assert np.all(np.diff(run(0.0, jnp.eye(10)[0], jax.random.key(1))) > 0), "without L2 the weight grows"
    assert d.predicted_equilibrium_norm(rate, 0.0, 1.0) == d.predicted_equilibrium_norm(1.0, 2.0, 1.0) == jnp.inf


@pytest.mark.slow
def test_l2_acts_through_the_effective_learning_rate_alone():
    """Digits, batch normalisation: equal products of rate and L2 end at one effective rate, whatever lengths they lead to."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)

    def logits(params, x):
        h = x @ params["kernel"]
        return jnp.tanh((h - h.mean(0)) / jnp.sqrt(h.var(0) + 1e-5)) @ params["out"]

    loss = lambda params, x, y: optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()

    @jax.jit
    def train(params, rate, l2, batches):
        def step(params, rows):
            g = jax.grad(loss)(params, x[rows], y[rows])
            kernel = params["kernel"] - rate * (g["kernel"] + l2 * params["kernel"])
            return {"kernel": kernel, "out": params["out"] - 0.1 * g["out"]}, None

        params, _ = jax.lax.scan(step, params, batches)
        right = jnp.mean(logits(params, x[1024:]).argmax(-1) == y[1024:])
        return d.effective_learning_rate(rate, params["kernel"]), jnp.linalg.norm(params["kernel"]), right

    rng = np.random.default_rng(0)
    params = {"kernel": rng.normal(size=(64, 32)) / 8, "out": rng.normal(size=(32, 10)) / 6}
    params = jax.tree.map(lambda w: jnp.asarray(w, jnp.float32), params)
    batches = np.concatenate([rng.permutation(1024).reshape(-1, 64) for _ in range(200)])
    pairs = [(0.1, 0.01), (0.4, 0.0025), (0.1, 0.0)]
    effective, lengths, right = np.array([train(params, *pair, batches) for pair in pairs]).T
    assert effective[0] == pytest.approx(effective[1], rel=0.15) and lengths[1] > 1.8 * lengths[0]
    assert right[0] == pytest.approx(right[1], abs=0.02)
    assert effective[2] < 0.1 * effective[0], "without L2 the weights grow and slow themselves down"
