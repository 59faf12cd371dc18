"""Module robust criticality against a loop with the projection of the authors' code, and its closed form on a quadratic."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from tests.objectives.problems import MLP, X, Y, arrays, mlp_loss

criticality = rj.diagnostics.module_robust_criticality
BATCHES = X.reshape(2, 8, 5), Y.reshape(2, 8, 3)


def loop(epsilon, num_epochs, rate):
    """One kernel at a time: ascend over the batches, project after the epoch, and keep the highest mean loss."""
    gradient, loss = jax.jit(jax.grad(mlp_loss)), jax.jit(mlp_loss)
    mean = lambda params: np.mean([float(loss(params, x, y)) for x, y in zip(*BATCHES, strict=True)])
    found = {}
    for name in ("hidden", "out"):
        params = jax.tree.map(np.array, MLP)
        initial = MLP[name]["kernel"]
        highest = 0.0
        for _ in range(num_epochs):
            for x, y in zip(*BATCHES, strict=True):
                params[name]["kernel"] = params[name]["kernel"] + rate * np.asarray(gradient(params, x, y)[name]["kernel"])
            change = params[name]["kernel"] - initial
            ratio = np.linalg.norm(change) / np.linalg.norm(initial)
            if ratio > epsilon:
                params[name]["kernel"] = initial + change / ratio * epsilon
            highest = max(highest, mean(params))
        found[f"{name}/kernel"] = highest - mean(MLP)
    return found


def test_equals_the_loop(x64):
    run = jax.jit(lambda p, epsilon, rate: criticality(mlp_loss, p, *BATCHES, epsilon=epsilon, num_epochs=3, learning_rate=rate))
    for epsilon, rate in ((0.1, 1.0), (0.5, 0.1), (10.0, 0.05)):
        got, want = run(arrays(MLP), epsilon, rate), loop(epsilon, 3, rate)
        assert got.keys() == want.keys()
        for name, value in want.items():
            assert float(got[name]) == pytest.approx(value, rel=1e-9)
    grown = [run(arrays(MLP), epsilon, 1.0) for epsilon in (0.0, 0.05, 0.1, 0.2)]
    for name in want:
        values = [float(g[name]) for g in grown]
        assert values[0] == 0 and values == sorted(values)


def test_closed_form_of_a_quadratic(x64):
    """The worst case is radial: a ((1 + eps)^2 - 1) |w|^2 / 2. Other leaves do not move, a weight of 0 cannot."""
    params = {"a": {"kernel": jnp.array([[1.0, 2.0]])}, "b": {"kernel": jnp.zeros((2, 2)), "bias": jnp.ones(3)}, "n": 1}
    squares = lambda w: jnp.sum(w**2) / 2
    loss_fn = lambda p, c: c * (squares(p["a"]["kernel"]) + squares(p["b"]["kernel"]) + 5 * squares(p["b"]["bias"]))
    got = criticality(loss_fn, params, jnp.array([2.0, 4.0]), epsilon=0.2, num_epochs=2)
    assert float(got["a/kernel"]) == pytest.approx(3.0 * (1.2**2 - 1) * 5 / 2) and got["b/kernel"] == 0
    chosen = criticality(loss_fn, params, jnp.array([2.0, 4.0]), epsilon=0.2, modules=lambda path, leaf: path[-1] == "bias")
    assert list(chosen) == ["b/bias"] and float(chosen["b/bias"]) == pytest.approx(3.0 * 5 * (1.2**2 - 1) * 3 / 2)


def test_highest_loss_is_at_least_zero():
    """As in the authors' code, where the search starts from a loss of 0."""
    got = criticality(lambda p: jnp.sum(p["kernel"]) - 10.0, {"kernel": jnp.ones((2, 2))}, epsilon=0.1)
    np.testing.assert_allclose(got["kernel"], 6.0)


@pytest.mark.slow
def test_the_least_critical_module_is_fine_tuned_without_loss_of_robustness():
    """Digits, an MLP trained on attacked images, then one kernel on clean ones: the most critical kernel costs robustness."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    x, y = jnp.asarray(images / 16, jnp.float32), jnp.asarray(labels)
    tx, sizes, kernels = optax.sgd(0.1, momentum=0.9), (64, 64, 64, 10), [0, 2, 4]

    def logits(params, x):
        x = jax.nn.relu(x @ params[0] + params[1])
        return jax.nn.relu(x @ params[2] + params[3]) @ params[4] + params[5]

    loss = lambda params, x, y: optax.softmax_cross_entropy_with_integer_labels(logits(params, x), y).mean()

    def attack(params, x, y, epsilon=0.15):
        def step(z, _):
            z = z + epsilon / 4 * jnp.sign(jax.grad(lambda z: loss(params, z, y))(z))
            return jnp.clip(z, jnp.maximum(x - epsilon, 0), jnp.minimum(x + epsilon, 1)), None

        return jax.lax.scan(step, x, length=10)[0]

    def descend(params, batches, flags, attacked):
        def step(carry, rows):
            params, state = carry
            inputs = attack(params, x[rows], y[rows]) if attacked else x[rows]
            updates, state = tx.update(jax.grad(loss)(params, inputs, y[rows]), state)
            return (jax.tree.map(lambda p, u, f: p + f * u, params, updates, flags), state), None

        return jax.lax.scan(step, (params, tx.init(params)), batches)[0][0]

    @jax.jit
    def run(params, batches):
        params = descend(params, batches, [1.0] * 6, True)
        data = attack(params, x[:1024], y[:1024]).reshape(8, 128, 64), y[:1024].reshape(8, 128)
        critical = criticality(loss, params, *data, num_epochs=5)
        flags = [jnp.asarray(np.eye(6, dtype=np.float32)[kernels][:, i]) for i in range(6)]
        tuned = jax.vmap(lambda flags: descend(params, batches[:320], flags, False))(flags)
        right = lambda p, x: jnp.mean(logits(p, x).argmax(-1) == y[1024:])
        robust = lambda p: right(p, attack(p, x[1024:], y[1024:]))
        return jnp.stack([critical[str(i)] for i in kernels]), robust(params), jax.vmap(robust)(tuned)

    for seed in range(2):
        rng = np.random.default_rng(seed)
        params = []
        for a, b in itertools.pairwise(sizes):
            params += [jnp.asarray(rng.normal(size=(a, b)) * np.sqrt(2 / a), jnp.float32), jnp.zeros(b)]
        batches = np.concatenate([rng.permutation(1024).reshape(-1, 64) for _ in range(30)])
        critical, before, after = map(np.asarray, run(params, batches))
        least, most = np.argmin(critical), np.argmax(critical)
        assert after[least] > after[most] + 0.02 and after[least] > before - 0.06, (critical, before, after)
