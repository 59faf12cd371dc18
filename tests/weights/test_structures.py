"""Structures on every kind of network: what is penalised, what is cut, and that a network that held nothing there is the same."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx

import regjax as rj

RNG = np.random.default_rng(0)
Structure = rj.weights.Structure


def normal(*shape):
    return jnp.asarray(RNG.normal(size=shape), jnp.float32)


class ConvNet(linen.Module):
    """A convolution with batch normalisation, its channels flattened into a dense layer."""

    channels: int = 6

    @linen.compact
    def __call__(self, x):
        x = linen.Conv(self.channels, (3, 3), name="conv")(x)
        x = linen.relu(linen.BatchNorm(use_running_average=True, name="bn")(x))
        return linen.Dense(3, name="head")(x.reshape(x.shape[0], -1))


CONV = np.array([True, False, True, False, False, False])
CONV_SPEC = Structure(
    CONV,
    {"conv/kernel": -1, "conv/bias": 0, "bn/scale": 0, "bn/bias": 0, "head/kernel": (0, 16)},
    statistics={"bn/mean": 0, "bn/var": 0},
)


def conv_variables():
    variables = ConvNet().init(jax.random.key(0), jnp.zeros((1, 4, 4, 2)))
    return jax.tree.map(lambda x: 1 + 0.3 * normal(*x.shape), variables)


def silenced(variables, rows):
    """The kernel behind the structures with zeros in the rows that read the removed ones."""
    kernel = variables["params"]["head"]["kernel"]
    head = {**variables["params"]["head"], "kernel": jnp.where(rows[:, None], 0, kernel)}
    return {**variables, "params": {**variables["params"], "head": head}}


def test_linen_convolution_normalisation_and_flattening():
    x = normal(5, 4, 4, 2)
    variables = silenced(conv_variables(), np.tile(CONV, 16))
    small = rj.weights.remove_structures(variables, CONV_SPEC)
    shapes = jax.tree.map(jnp.shape, small)
    assert shapes == jax.tree.map(jnp.shape, ConvNet(channels=4).init(jax.random.key(0), x))
    np.testing.assert_allclose(ConvNet(channels=4).apply(small, x), ConvNet().apply(variables, x), atol=1e-5)
    # The same names serve the parameters alone; statistics are not penalised.
    of_all = rj.weights.structured_removal_penalty(variables, CONV_SPEC)
    assert float(of_all) == pytest.approx(float(rj.weights.structured_removal_penalty(variables["params"], CONV_SPEC)))
    with pytest.raises(ValueError, match="bn/mean"):
        rj.weights.remove_structures(variables["params"], CONV_SPEC)


def test_nnx_attention_heads():
    make = lambda heads: nnx.MultiHeadAttention(heads, 8, qkv_features=2 * heads, decode=False, rngs=nnx.Rngs(0))
    model, heads = make(4), np.array([False, True, False, True])
    to_heads = {f"{name}/{leaf}": axis for name in ("query", "key", "value") for leaf, axis in (("kernel", 1), ("bias", 0))}
    spec = Structure(heads, {**to_heads, "out/kernel": 0})
    graph, state = nnx.split(model, nnx.Param)[0], nnx.state(model, nnx.Param)
    state["out"]["kernel"] = state["out"]["kernel"].replace(jnp.where(heads[:, None, None], 0, state["out"]["kernel"][...]))
    state["query"]["bias"] = state["query"]["bias"].replace(normal(4, 2))
    small = rj.weights.remove_structures(state, spec)
    x = normal(2, 5, 8)
    got = nnx.merge(nnx.graphdef(make(2)), small)(x)
    np.testing.assert_allclose(got, nnx.merge(graph, state)(x), atol=1e-5)
    # Heads merged with their dimensions, and the joint projection of query, key and value, are pairs.
    joint = {"qkv": normal(8, 3, 4, 2), "out": normal(4, 2, 8)}
    merged = {"qkv": joint["qkv"].reshape(8, 24), "out": joint["out"].reshape(8, 8)}
    cut = rj.weights.remove_structures(merged, Structure(heads, {"qkv": (1, 3), "out": (0, 1)}))
    np.testing.assert_array_equal(cut["qkv"], joint["qkv"][:, :, ~heads].reshape(8, 12))
    np.testing.assert_array_equal(cut["out"], joint["out"][~heads].reshape(4, 8))


@pytest.mark.parametrize("p", [2, 1])
def test_the_penalty_counts_every_removed_weight_once(x64, p):
    hidden, width = np.array([True, False, True]), np.array([False, True, False, False])
    params = {
        "up": {"kernel": RNG.normal(size=(4, 3)), "bias": RNG.normal(size=3)},
        "down": {"kernel": RNG.normal(size=(3, 4)), "bias": RNG.normal(size=4)},
        "other": {"kernel": RNG.normal(size=(2, 2))},
    }
    spec = [
        Structure(hidden, {"up/kernel": 1, "up/bias": 0, "down/kernel": -2}),
        Structure(width, {"up/kernel": 0, "down/kernel": 1, "down/bias": -1}),
    ]
    removed = {
        "up": {"kernel": width[:, None] | hidden[None], "bias": hidden},
        "down": {"kernel": hidden[:, None] | width[None], "bias": width},
        "other": {"kernel": np.zeros((2, 2), bool)},
    }
    total = count = 0
    slopes = jax.tree.map(np.zeros_like, params)
    for name, leaves in params.items():
        for leaf, values in leaves.items():
            for at in np.ndindex(*values.shape):
                if removed[name][leaf][at]:
                    total, count = total + abs(values[at]) ** p, count + 1
                    slopes[name][leaf][at] = 2 * values[at] if p == 2 else np.sign(values[at])

    @jax.jit
    def run(params, hidden, width):  # the choice of structures may be traced here
        traced = [spec[0]._replace(remove=hidden), spec[1]._replace(remove=width)]
        fn = functools.partial(rj.weights.structured_removal_penalty, p=p)
        by_kernel = fn(params, traced, where="kernels")
        return jax.value_and_grad(fn)(params, traced), fn(params, traced, reduction="mean"), by_kernel

    (value, gradient), mean, by_kernel = run(params, hidden, width)
    assert float(value) == pytest.approx(total, rel=1e-12) and float(mean) == pytest.approx(total / count, rel=1e-12)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12), gradient, slopes)
    biases = sum((np.abs(params[k]["bias"]) ** p)[removed[k]["bias"]].sum() for k in ("up", "down"))
    assert float(by_kernel) == pytest.approx(total - biases, rel=1e-12)
    (nothing, still), zero, _ = run(params, np.zeros(3, bool), np.zeros(4, bool))
    assert nothing == 0 and zero == 0 and not any(g.any() for g in jax.tree.leaves(still))
    small = rj.weights.remove_structures(params, spec)
    np.testing.assert_array_equal(small["up"]["kernel"], params["up"]["kernel"][~width][:, ~hidden])
    np.testing.assert_array_equal(small["down"]["kernel"], params["down"]["kernel"][~hidden][:, ~width])
    assert small["other"]["kernel"] is params["other"]["kernel"]


def test_choices():
    scores = np.array([0.3, 0.1, 0.2, 0.1, 0.5], np.float32)
    choose = rj.weights.choose_structures
    traced = jax.jit(lambda ratio: choose(scores, 5, ratio=ratio))
    for ratio, want in ((0.0, []), (0.2, [1]), (0.5, [1, 2, 3]), (0.6, [1, 2, 3]), (1.0, [0, 1, 2, 3])):
        assert np.flatnonzero(choose(scores, 5, ratio=ratio)).tolist() == want
        assert np.flatnonzero(traced(jnp.float32(ratio))).tolist() == want
    drawn = np.asarray(jax.vmap(lambda key: choose(key, 10, ratio=0.3))(jax.random.split(jax.random.key(0), 4000)))
    assert (drawn.sum(1) == 3).all()
    assert np.abs(drawn.mean(0) - 0.3).max() < 5 * np.sqrt(0.3 * 0.7 / 4000)
    pairs = np.einsum("ni,nj->ij", drawn.astype(float), drawn.astype(float))[np.triu_indices(10, 1)] / 4000
    assert np.abs(pairs - 3 * 2 / 90).max() < 5 * np.sqrt(1 / 15 / 4000)


def test_paths_end_where_they_are_unique():
    params = {"params": {"a": {"kernel": normal(2, 2)}, "b": {"kernel": normal(2, 2)}, "kernel": normal(2, 2)}}
    first = np.array([True, False])
    cut = lambda path: rj.weights.remove_structures(params, Structure(first, {path: 0}))["params"]
    assert cut("params/b/kernel")["b"]["kernel"].shape == cut("b/kernel")["b"]["kernel"].shape == (1, 2)
    assert cut("params/kernel")["kernel"].shape == (1, 2)
    with pytest.raises(ValueError, match="a/kernel and"):
        cut("kernel")
    with pytest.raises(ValueError, match="such as 'params"):
        cut("a/kernels")


@pytest.mark.slow
def test_units_that_were_regularised_can_leave():
    x, y = pytest.importorskip("sklearn.datasets").load_digits(return_X_y=True)
    x, y = jnp.asarray(x / 16, jnp.float32), jnp.asarray(y)
    keys = jax.random.split(jax.random.key(0), 2)
    start = {
        "up": {"kernel": jax.random.normal(keys[0], (64, 64)) / 6, "bias": jnp.zeros(64)},
        "down": {"kernel": jax.random.normal(keys[1], (64, 10)) / 6, "bias": jnp.zeros(10)},
    }
    spec = Structure(
        np.asarray(rj.weights.choose_structures(jax.random.key(1), 64, ratio=0.75)),
        {"up/kernel": 1, "up/bias": 0, "down/kernel": 0},
    )
    logits = lambda p, x: jax.nn.relu(x @ p["up"]["kernel"] + p["up"]["bias"]) @ p["down"]["kernel"] + p["down"]["bias"]
    accuracy = lambda p: float(jnp.mean(jnp.argmax(logits(p, x[:400]), -1) == y[:400]))

    @functools.partial(jax.jit, static_argnames="steps")
    def fit(params, strength, examples, steps):
        tx = optax.adam(3e-3)

        def step(carry, index):
            params, opt = carry

            def loss(p):
                ce = optax.softmax_cross_entropy_with_integer_labels(logits(p, x[index]), y[index]).mean()
                width = p["down"]["kernel"].shape[0]
                return ce + (strength * rj.weights.structured_removal_penalty(p, spec) if width == 64 else 0.0)

            updates, opt = tx.update(jax.grad(loss)(params), opt, params)
            return (optax.apply_updates(params, updates), opt), None

        index = 400 + jax.random.randint(jax.random.key(1), (steps, 64), 0, examples)
        return jax.lax.scan(step, (params, tx.init(params)), index)[0][0]

    full = fit(start, 0.0, 1397, 600)
    results = []
    for strength in (0.1, 0.0):  # a short run on a quarter of the data
        small = rj.weights.remove_structures(fit(full, strength, 350, 300), spec)
        results.append((accuracy(small), accuracy(fit(small, 0.0, 350, 100))))
    (regularised, tuned), (plain, tuned_plain) = results
    assert regularised > plain + 0.2 and regularised > 0.8
    assert tuned >= tuned_plain - 0.01
