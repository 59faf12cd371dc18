"""VAT against the divergence written out, and its limits."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.objectives.problems import close, step_flops

vat = rj.objectives.vat
RNG = np.random.default_rng(0)
PARAMS = {"hidden": RNG.normal(size=(6, 5)), "out": RNG.normal(size=(5, 3))}
X = RNG.normal(size=(4, 6))
KEY = jax.random.key(0)


def logits(params, x, shift=0.0):
    return jnp.tanh(x @ params["hidden"] + shift) @ params["out"]


def log_p(x):
    z = np.tanh(x @ PARAMS["hidden"]) @ PARAMS["out"]
    return z - np.log(np.exp(z).sum())


def divergence(x, r):
    return float(np.sum(np.exp(log_p(x)) * (log_p(x) - log_p(x + r))))


def test_value_is_near_the_largest_in_the_ball(x64):
    """Many iterations find the leading eigenvector of the divergence's Hessian, which finite differences give."""
    value = jax.jit(lambda p, x: vat(logits, epsilon=1e-3, xi=1e-4, num_power_iterations=60)(p, KEY, x))
    for x in X:
        hessian, h, unit = np.zeros((6, 6)), 1e-4, np.eye(6)
        for i in range(6):
            for j in range(6):
                a, b = h * unit[i], h * unit[j]
                hessian[i, j] = (
                    (divergence(x, a + b) - divergence(x, a - b) - divergence(x, b - a) + divergence(x, -a - b)) / 4 / h**2
                )
        largest = np.linalg.eigvalsh(hessian)[-1]
        np.testing.assert_allclose(value(PARAMS, x[None]), 1e-6 * largest / 2, rtol=5e-3)


def test_gradient_is_that_of_the_perturbed_prediction_alone(x64):
    """From the same key: the direction by its formula, and a constant target and perturbation."""
    params = jax.tree.map(jnp.asarray, PARAMS)
    start = jax.random.normal(KEY, X.shape, jnp.float32).astype(float)
    unit = lambda v: v / jnp.linalg.norm(v, axis=-1, keepdims=True)
    at = lambda params, x: jax.nn.log_softmax(logits(params, x, 0.1))
    clean = at(params, X)
    kl = lambda params, r: jnp.mean(jnp.sum(jnp.exp(clean) * (clean - at(params, X + r)), -1))

    @jax.jit
    def both(params):
        r = 0.7 * unit(jax.grad(kl, argnums=1)(jax.tree.map(jax.lax.stop_gradient, params), 0.01 * unit(start)))
        got = jax.value_and_grad(vat(logits, epsilon=lambda step: 0.1 * step, xi=0.01))(params, KEY, X, 0.1, step=7)
        return got, jax.value_and_grad(kl)(params, jax.lax.stop_gradient(r))

    close(*both(params), rtol=1e-9)


def test_limits(x64):
    @jax.jit
    def values(params, x):
        nothing = jax.value_and_grad(vat(logits, epsilon=jnp.zeros(())))(params, KEY, x)
        constant = jax.value_and_grad(vat(lambda p, x: 0 * x @ p["hidden"], epsilon=1.0))(params, KEY, x)
        random = vat(logits, epsilon=0.5, num_power_iterations=0)(params, KEY, x)
        once, often = (vat(logits, epsilon=0.5, num_power_iterations=n)(params, KEY, x) for n in (1, 8))
        return nothing, constant, random, once, often

    nothing, constant, random, once, often = values(PARAMS, X)
    for value, grads in (nothing, constant):
        assert value == 0 and not any(np.any(g) for g in jax.tree.leaves(grads))
    assert 0 < random < once <= often * 1.05


def test_direction_lies_in_the_row_space_of_a_linear_model(x64):
    """Entries that the weights do not see are not perturbed: adding more of them changes nothing but the random start."""
    seen = []

    def linear(params, x):
        jax.debug.callback(lambda x: seen.append(np.asarray(x)), x)
        return x[:, :3] @ params

    vat(linear, epsilon=0.5)(PARAMS["hidden"][:3], KEY, jnp.asarray(X)).block_until_ready()
    jax.effects_barrier()
    moved = [x - X for x in seen if np.isclose(np.linalg.norm(x - X, axis=-1), 0.5).all()]
    assert len(moved) == 1 and np.abs(moved[0][:, 3:]).max() < 1e-12


def test_float32_finds_what_float64_does():
    """The default step is resolved in float32."""
    x = np.abs(X) / 3
    low = jax.jit(vat(logits, epsilon=0.1))(jax.tree.map(jnp.float32, PARAMS), KEY, jnp.float32(x))
    with jax.enable_x64(True):
        high = jax.jit(vat(logits, epsilon=0.1, xi=1e-6))(PARAMS, KEY, jnp.asarray(x))
    np.testing.assert_allclose(low, high, rtol=2e-2)


def test_cost():
    """A forward pass, one forward and backward pass to the inputs, one to the parameters; no second derivatives."""

    def transform(plain):
        def net(params, x):
            for i, layer in enumerate(params):
                x = x @ layer["kernel"] + layer["bias"]
                x = x if i == len(params) - 1 else jax.nn.relu(x)
            return x

        return lambda params, x, y: vat(net, epsilon=1.0)(params, KEY, x)

    assert step_flops(transform)[0] <= 2.3 * step_flops()[0]
