"""Activations for sparse networks against formulas written out in NumPy, their singular places, and the claim at 99% sparsity."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import regjax as rj

act, CANDIDATES = rj.layers.sparse_activation, rj.layers.SAFS_CANDIDATES
sigmoid = lambda z: 1 / (1 + math.exp(-z))
softplus = lambda z: math.log1p(math.exp(-abs(z))) + max(z, 0)
relu = lambda z: max(z, 0.0)
SELU = (1.0507009873554805, 1.6732632423543772)
PLAIN = {
    "relu": relu,
    "relu6": lambda z: min(relu(z), 6.0),
    "hardswish": lambda z: z * min(relu(z + 3), 6.0) / 6,
    "elu": lambda z: z if z > 0 else math.expm1(z),
    "selu": lambda z: SELU[0] * (z if z > 0 else SELU[1] * math.expm1(z)),
    "gelu": lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2,
    "mish": lambda z: z * math.tanh(softplus(z)),
    "tanh": math.tanh,
    "sigmoid": sigmoid,
    "softplus": softplus,
    "logsigmoid": lambda z: -softplus(-z),
    "sin": math.sin,
    "cos": math.cos,
}


def falu(x, p1, p2):
    z = p2 * x
    s = z * sigmoid(z)
    first = lambda a: s + a * sigmoid(z) * (1 - s)
    return first(p1) if p1 < 1 else first(1) + (p1 - 1) * sigmoid(z) * (1 - 2 * first(1))


OWN = {
    "linear": (1, lambda x, a: a * x),
    "swish": (2, lambda x, a, b: a * x * sigmoid(b * x)),
    "acon": (3, lambda x, a, b, c: (a - b) * x * sigmoid(c * (a - b) * x) + b * x),
    "TanhSoft-1": (1, lambda x, a: math.tanh(a * x) * softplus(x)),
    "TanhSoft-2": (2, lambda x, a, b: x * math.tanh(a * math.exp(b * x))),
    "srs": (2, lambda x, a, b: x / (x / a + math.exp(-x / b))),
    "symlog": (2, lambda x, a, b: a * math.copysign(math.log1p(abs(b * x)), b * x)),
    "symexp": (2, lambda x, a, b: a * math.copysign(math.expm1(abs(b * x)), b * x)),
    "FALU": (2, falu),
    "SRelu": (4, lambda x, r, t, a, b: -a * relu(t - x) + relu(x - t) - relu(x - r) + b * relu(x - r)),
}
SIZES = {**dict.fromkeys(PLAIN, 2), **{name: size for name, (size, _) in OWN.items()}}
everything = jax.jit(lambda x, p: {name: act(x, name, p[:size]) for name, size in SIZES.items()})


def test_every_activation_is_its_formula(x64):
    xs = np.concatenate([np.linspace(-4, 4, 17), [7.5, -7.5]])
    for p in ((1.3, 0.7, 1.1, 0.4), (0.6, 1.2, -0.5, 2.0), (1.0, 1.0, 1.0, 1.0)):
        got = everything(xs, np.array(p))
        for name, size in SIZES.items():
            fn = OWN[name][1] if name in OWN else lambda x, a, b, f=PLAIN[name]: a * f(b * x)
            np.testing.assert_allclose(got[name], [fn(x, *p[:size]) for x in xs], rtol=1e-9, atol=1e-12, err_msg=name)
    assert set(CANDIDATES) < set(SIZES) and len(CANDIDATES) == 13


def test_the_oracles_at_zero_and_between_activations(x64):
    at_zero = {name: float(y) for name, y in everything(jnp.zeros(()), jnp.ones(4)).items()}
    # Those that are not 0 at 0: FALU has a step of p1 / 2 there, and SRelu with all ones has its left threshold at 1.
    other = {"sigmoid": 0.5, "softplus": math.log(2), "cos": 1.0, "logsigmoid": -math.log(2), "FALU": 0.5, "SRelu": -1.0}
    for name, value in at_zero.items():
        assert value == pytest.approx(other.get(name, 0.0), abs=1e-12), name

    x = jnp.linspace(-3, 3, 13)
    close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12)
    close(act(x, "acon", jnp.array([1.0, 0.0, 1.0])), act(x, "swish"))
    close(act(x, "FALU", jnp.array([0.0, 1.4])), act(x, "swish", jnp.array([1.4, 1.4])))
    close(act(x, "FALU", jnp.array([1.0, 0.8])), act(x, "FALU", jnp.array([1 - 1e-14, 0.8])))
    close(act(act(x, "symexp"), "symlog"), x)
    close(act(act(x, "symlog"), "symexp"), x)
    # The derivative of the odd functions at 0 is that from both sides.
    for name in ("symlog", "symexp"):
        assert float(jax.grad(lambda x, n=name: act(x, n, jnp.array([2.0, 3.0])))(0.0)) == 6.0


def test_values_and_gradients_are_finite_far_out_at_poles_and_at_zero_scales():
    xs = jnp.array([0.0, -1.0, 1.0, 40.0, -40.0, 1e4, -1e4, 1e30, -1e30])
    names = ("acon", "TanhSoft-1", "TanhSoft-2", "srs", "symlog", "symexp", "FALU", "SRelu")
    total = lambda x, p: sum(jnp.sum(act(x, name, p[: SIZES[name]])) for name in names)
    both = jax.jit(jax.vmap(jax.value_and_grad(total, argnums=(0, 1)), in_axes=(None, 0)))
    scales = jnp.array([[1.0, 1.0, 1.0, 1.0], [1.0, np.e, 1.0, 1.0], [1e-3, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0], [-1, -1, 1, 1]])
    for leaf in jax.tree.leaves(both(xs[:7], scales)):
        assert np.isfinite(leaf).all()
    # The divisor of srs is 0 at x = -e for p = (1, e).
    at_pole = act(jnp.float32(-np.e) + jnp.arange(-50, 50) * 2.4e-7, "srs", jnp.array([1.0, np.e]))
    assert np.isfinite(at_pole).all()
    assert np.isfinite(act(xs, "symexp")).all() and np.isfinite(act(xs, "TanhSoft-2")).all()
    assert float(act(jnp.array(100.0), "symexp")) == pytest.approx(math.expm1(30), rel=1e-5)


def test_module_trains_its_scales_or_holds_them():
    x = jnp.linspace(-2, 2, 5)
    free, held = (rj.layers.SparseActivation("srs", init=(2.0, 0.5), trainable=t) for t in (True, False))
    np.testing.assert_allclose(free(x), act(x, "srs", jnp.array([2.0, 0.5])))
    np.testing.assert_array_equal(held(x), free(x))
    assert jax.tree.leaves(nnx.state(held, nnx.Param)) == []
    gradient = nnx.grad(lambda layer: layer(x).sum())(free)
    assert np.all(np.asarray(gradient["scales"][...]) != 0)
    assert rj.layers.SparseActivation("SRelu").scales[...].tolist() == [1, 1, 1, 1]


@pytest.mark.slow
def test_the_best_candidate_beats_relu_in_a_network_pruned_to_one_percent():
    """Digits: a ReLU network pruned to its largest 1% of weights, then tuned alike with three of the list, over three seeds."""
    from sklearn.datasets import load_digits

    x, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(y))
    x, y = jnp.asarray(x[order] / 16, jnp.float32), jnp.asarray(y[order], jnp.int32)
    shapes = ((64, 256), (256, 128), (128, 10))
    names = ("relu", "tanh", "srs", "symexp")

    def logits(params, x, activation):
        for layer in params[:-1]:
            x = activation(x @ layer["kernel"] + layer["bias"])
        return x @ params[-1]["kernel"] + params[-1]["bias"]

    def train(params, tx, activation, key, steps):
        def step(carry, key):
            params, state = carry
            rows = jax.random.randint(key, (128,), 0, 1200)
            loss = lambda p: optax.softmax_cross_entropy_with_integer_labels(logits(p, x[rows], activation), y[rows]).mean()
            updates, state = tx.update(jax.grad(loss)(params), state, params)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, tx.init(params)), jax.random.split(key, steps))[0][0]

    @jax.jit
    @jax.vmap
    def pruned(key):
        first, second = jax.random.split(key)
        he = jax.nn.initializers.he_normal()
        params = [{"kernel": he(jax.random.fold_in(first, i), s), "bias": jnp.zeros(s[1])} for i, s in enumerate(shapes)]
        params = train(params, optax.adam(2e-3), jax.nn.relu, second, 60)
        # One threshold for all kernels would cut the last layer off.
        mask = rj.weights.topk_mask(jax.tree.map(jnp.abs, params), sparsity=0.99, distribution="erk")
        return jax.tree.map(lambda p, m: jnp.where(m, p, 0), params, mask), mask

    @jax.jit
    def tuned(params, mask, which):
        activation = lambda z: jax.lax.switch(which, [lambda z, n=n: act(z, n) for n in names], z)

        def one(params, mask):
            tx = rj.gradients.train_only(optax.adam(5e-3), mask)
            params = train(params, tx, activation, jax.random.key(1), 80)
            return (logits(params, x[1200:], activation).argmax(-1) == y[1200:]).mean()

        return jax.vmap(one)(params, mask).mean()

    params, mask = pruned(jax.random.split(jax.random.key(0), 3))
    assert float(rj.weights.density(mask)) == pytest.approx(0.01, abs=1e-3)
    accuracy = {name: float(tuned(params, mask, i)) for i, name in enumerate(names)}
    assert max(accuracy[name] for name in names[1:]) > accuracy["relu"] + 0.02
