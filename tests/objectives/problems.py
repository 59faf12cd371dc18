"""Small losses that several tests of objectives differentiate."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np

RNG = np.random.default_rng(0)
X = RNG.normal(size=(16, 5))
Y = RNG.normal(size=(16, 3))
MLP = {
    "hidden": {"kernel": RNG.normal(size=(5, 7)) / 2, "bias": RNG.normal(size=7) / 4},
    "out": {"kernel": RNG.normal(size=(7, 3)) / 2, "bias": RNG.normal(size=3) / 4},
}
LINEAR = {"kernel": RNG.normal(size=(5, 3)), "scale": RNG.normal(size=3), "bias": RNG.normal(size=3)}


def arrays(tree, dtype=None):
    """NumPy leaves as JAX arrays."""
    return jax.tree.map(lambda leaf: jnp.asarray(leaf, dtype), tree)


def quadratic(w):
    """The loss of the published values: (w1^2 + 4 w2^2) / 2."""
    return (w[0] ** 2 + 4 * w[1] ** 2) / 2


def hidden(params, x):
    return jnp.tanh(x @ params["hidden"]["kernel"] + params["hidden"]["bias"])


def mlp_loss(params, x, y):
    out = hidden(params, x) @ params["out"]["kernel"] + params["out"]["bias"]
    return jnp.mean((out - y) ** 2)


def dropout_loss(params, key, x, y):
    """The loss under a dropout mask; the aux is the mask."""
    kept = jax.random.bernoulli(key, 0.5, (x.shape[0], 7))
    out = (hidden(params, x) * kept * 2) @ params["out"]["kernel"]
    return jnp.mean((out - y) ** 2), kept


def normalised_loss(params, state, x, y):
    """A loss with batch statistics; the aux is the running mean and an update counter."""
    h = x @ params["hidden"]["kernel"] + params["hidden"]["bias"]
    mean = h.mean(0)
    out = jnp.tanh(h - mean) @ params["out"]["kernel"]
    state = {"mean": 0.9 * state["mean"] + 0.1 * mean, "count": state["count"] + 1}
    return jnp.mean((out - y) ** 2), state


def whole_numbers():
    """Arguments of `linear_loss` in float32 at which every operation is exact, in whatever order it is compiled."""
    rng = np.random.default_rng(1)
    draw = lambda *shape: jnp.asarray(rng.integers(-3, 4, size=shape), jnp.float32)
    w = {"kernel": draw(5, 3), "scale": draw(3), "bias": jnp.array([-0.0, 0.0, 1.0], jnp.float32)}
    return w, draw(16, 5), draw(16, 3)


def linear_gradient(w, x, y):
    """The gradient of mean_i sum_k (s_k (x_i W)_k + b_k - y_ik)^2 / 2, by loops."""
    gradient = {name: np.zeros_like(leaf) for name, leaf in w.items()}
    for i in range(len(x)):
        for k in range(y.shape[1]):
            projected = sum(x[i, d] * w["kernel"][d, k] for d in range(x.shape[1]))
            error = w["scale"][k] * projected + w["bias"][k] - y[i, k]
            gradient["scale"][k] += error * projected / len(x)
            gradient["bias"][k] += error / len(x)
            for d in range(x.shape[1]):
                gradient["kernel"][d, k] += error * w["scale"][k] * x[i, d] / len(x)
    return gradient


def linear_loss(w, x, y):
    """The loss whose gradient is `linear_gradient`."""
    return jnp.mean(jnp.sum((w["scale"] * (x @ w["kernel"]) + w["bias"] - y) ** 2, -1)) / 2


def close(a, b, rtol=1e-12, atol=0.0):
    """Asserts that two trees are equal up to rounding."""
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=rtol, atol=atol), a, b)


def same(a, b):
    """Asserts that two trees are equal bit for bit, signs of zeros included."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert x.dtype == y.dtype
        assert np.asarray(x).tobytes() == np.asarray(y).tobytes()


@functools.cache
def step_flops(transform=None, batch=128, sizes=(64, 256, 256, 10)):
    """FLOPs of the value and gradient of a (transformed) loss of an MLP, and its compiled text."""

    def plain(params, x, y):
        for i, layer in enumerate(params):
            x = x @ layer["kernel"] + layer["bias"]
            x = x if i == len(params) - 1 else jax.nn.relu(x)
        return -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(x), y[:, None], 1))

    shape = lambda *n, dtype=jnp.float32: jax.ShapeDtypeStruct(n, dtype)
    params = [{"kernel": shape(a, b), "bias": shape(b)} for a, b in itertools.pairwise(sizes)]
    arguments = (params, shape(batch, sizes[0]), shape(batch, dtype=jnp.int32))
    compiled = jax.jit(jax.value_and_grad(plain if transform is None else transform(plain))).lower(*arguments).compile()
    return compiled.cost_analysis()["flops"], compiled.as_text()
