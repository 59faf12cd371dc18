"""Cross-gradients: the published values, the weights of a reference point, of each example, and of a function."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from tests.objectives.problems import close

cross_gradient = rj.objectives.cross_gradient
RNG = np.random.default_rng(0)


def xnor(z):
    """The two ways in which the signs of two scores agree."""
    return jax.nn.log_sigmoid(jnp.stack([z, -z])).sum(-1)


def mixture(w, x):
    """Four log-concave components for each example."""
    return -jnp.square(x @ w["kernel"]) / 2 + x[:, :1] * w["bias"]


def mixture_gradient(w, x, mu):
    """The gradient of -mean_i sum_s mu_is log p_is, by loops."""
    gradient = {name: np.zeros_like(leaf) for name, leaf in w.items()}
    for i in range(len(x)):
        for s in range(4):
            projected = x[i] @ w["kernel"][:, s]
            gradient["kernel"][:, s] += mu[i, s] * projected * x[i] / len(x)
            gradient["bias"][s] -= mu[i, s] * x[i, 0] / len(x)
    return gradient


W = {"kernel": RNG.normal(size=(3, 4)), "bias": RNG.normal(size=4)}
ETA = {"kernel": RNG.normal(size=(3, 4)), "bias": RNG.normal(size=4)}
X = RNG.normal(size=(5, 3))


def shares(w):
    p = np.exp(-((X @ w["kernel"]) ** 2) / 2 + X[:, :1] * w["bias"])
    return p / p.sum(-1, keepdims=True), -np.log(p.sum(-1)).mean()


def test_published_values(x64):
    at = lambda mu, z: jax.value_and_grad(cross_gradient(xnor, weights=mu))(jnp.asarray(z))
    value, slope = at([0.5, 0.5], [1.0, 2.0])
    np.testing.assert_allclose(value, -np.log(0.675972863), rtol=1e-8)
    np.testing.assert_allclose(slope, [0.231058579, 0.380797078], rtol=1e-8)
    np.testing.assert_allclose(at([0.9, 0.1], [1.0, 2.0])[1], [-0.168941421, -0.019202922], rtol=1e-7)
    value, slope = at([0.9, 0.1], [0.0, 0.0])
    np.testing.assert_allclose(slope, [-0.4, -0.4], rtol=1e-12)
    np.testing.assert_allclose(value, np.log(2), rtol=1e-12)


def test_gradients_seen_from_a_point_from_weights_and_from_itself(x64):
    (own, value), (there, _) = shares(W), shares(ETA)

    @jax.jit
    def everything(w, eta, mu):
        seen = {
            "point": cross_gradient(mixture, reference=eta),
            "itself": cross_gradient(mixture, reference=w),
            "example": cross_gradient(mixture, weights=mu),
            "shared": cross_gradient(mixture, weights=mu[0]),
            "function": cross_gradient(mixture, weights=lambda w, x: jax.nn.softmax(mixture(w, x) / 2)),
        }
        out = {name: jax.value_and_grad(fn)(w, X) for name, fn in seen.items()}
        ordinary = jax.grad(lambda w: -jax.nn.logsumexp(mixture(w, X), axis=-1).mean())(w)
        frozen = jax.grad(lambda eta, mu: seen["point"](w, X) + cross_gradient(mixture, weights=mu)(w, X), (0, 1))(eta, mu)
        by_eta = jax.grad(lambda eta: cross_gradient(mixture, reference=eta)(w, X))(eta)
        return out, ordinary, frozen, by_eta

    mu = np.abs(RNG.normal(size=(5, 4)))
    mu /= mu.sum(-1, keepdims=True)
    out, ordinary, frozen, by_eta = everything(W, ETA, mu)
    for name in out:
        np.testing.assert_allclose(out[name][0], value, rtol=1e-12, err_msg=name)
    root = np.sqrt(own) / np.sqrt(own).sum(-1, keepdims=True)
    for name, weights in (
        ("point", there),
        ("itself", own),
        ("example", mu),
        ("shared", np.tile(mu[0], (5, 1))),
        ("function", root),
    ):
        close(out[name][1], mixture_gradient(W, X, weights), rtol=1e-11, atol=1e-13)
    close(out["itself"][1], ordinary, rtol=1e-11, atol=1e-13)
    assert not any(leaf.any() for leaf in jax.tree.leaves((frozen, by_eta)))


def test_aux_step_and_absent_components(x64):
    def timed(w, x, step=0):
        return mixture(w, x) - step * jnp.arange(4), {"x": x}

    loss_fn = cross_gradient(timed, weights=np.full(4, 0.25), has_aux=True)
    (value, aux), _ = jax.value_and_grad(loss_fn, has_aux=True)(W, X, step=2)
    np.testing.assert_array_equal(aux["x"], X)
    np.testing.assert_allclose(value, -np.log(np.exp(mixture(W, X) - 2 * np.arange(4)).sum(-1)).mean(), rtol=1e-12)
    absent = lambda w: jnp.stack([w, jnp.where(w > -9, -jnp.inf, w)])
    for mu in ([1.0, 0.0], [0.5, 0.5]):
        value, slope = jax.value_and_grad(cross_gradient(absent, weights=mu))(2.0)
        assert (value, slope) == (-2.0, -mu[0])


@pytest.mark.slow
def test_the_average_of_the_losses_stays_below_the_bound(x64):
    """Theorem 4.2: seen from eta, the steps' losses come near F(eta), though the function is not convex."""
    eta = jnp.array([4.0, 4.0])
    loss_fn = cross_gradient(xnor, reference=eta)
    start, bound = jnp.array([-0.5, 3.0]), np.sqrt(2.0)  # each gradient is in a unit square
    steps = 400
    far = float(jnp.linalg.norm(start - eta))
    rates = far / (bound * np.sqrt(np.arange(1, steps + 1)))

    def step(z, rate):
        value, slope = jax.value_and_grad(loss_fn)(z)
        return z - rate * slope, value

    values = np.asarray(jax.lax.scan(step, start, jnp.asarray(rates))[1])
    average = (rates * values).sum() / rates.sum() - float(loss_fn(eta))
    assert average <= (far**2 + bound**2 * (rates**2).sum()) / (2 * rates.sum())
    assert values[-1] < values[0] / 2
