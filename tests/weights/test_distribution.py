"""Moments of weights and the penalty on them against loops and published values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
moments = jax.jit(rj.weights.kurtosis_skewness)
penalty = jax.jit(rj.weights.weight_distribution_penalty, static_argnames=("skip_first", "where"))


def loop(w):
    flat = np.ravel(w)
    mean = sum(flat) / len(flat)
    std = np.sqrt(sum((x - mean) ** 2 for x in flat) / (len(flat) - 1))
    z = [(x - mean) / std for x in flat]
    return sum(x**4 for x in z) / len(z), sum(x**3 for x in z) / len(z)


def test_published_values_and_the_loop(x64):
    np.testing.assert_allclose(moments(np.array([1.0, 2, 3, 4])), [0.9225, 0], atol=1e-12)
    np.testing.assert_allclose(moments(np.array([0.0, 0, 0, 1])), [1.3125, 0.75], rtol=1e-12)
    w = RNG.normal(size=(3, 2, 4)) ** 3
    np.testing.assert_allclose(moments(w), loop(w), rtol=1e-11)
    np.testing.assert_allclose(moments(7 * w - 3), moments(w), rtol=1e-9)
    tree = {"kernel": np.array([[1.0, 2], [3, 4]])}
    assert penalty(tree, skip_first=False, kurtosis_weight=1.0) == pytest.approx(0.7700063, abs=1e-7)
    spike = {"kernel": np.array([[0.0, 0], [0, 1]])}
    assert penalty(spike, skip_first=False, kurtosis_weight=1.0, skewness_weight=0.0) == pytest.approx(0.2376563, abs=1e-7)
    assert penalty(spike, skip_first=False, kurtosis_weight=0.0) == pytest.approx(0.5625, abs=1e-12)


def test_penalty_is_the_mean_over_the_layers_but_the_first(x64):
    tree = {name: {"kernel": RNG.normal(size=(4, 3)) ** 3, "bias": RNG.normal(size=3)} for name in ("a", "b", "c")}
    parts = [(loop(tree[name]["kernel"])) for name in ("a", "b", "c")]
    terms = [0.2 * (k - 2.5) ** 2 + 0.7 * (s - 0.1) ** 2 for k, s in parts]
    options = dict(kurtosis_weight=0.2, skewness_weight=0.7, kurtosis_target=2.5, skewness_target=0.1)
    assert penalty(tree, **options) == pytest.approx(np.mean(terms[1:]), rel=1e-11)
    assert penalty(tree, skip_first=False, **options) == pytest.approx(np.mean(terms), rel=1e-11)
    but_c = lambda path, leaf: path == ("c", "kernel") or path == ("a", "kernel")
    assert penalty(tree, where=but_c, **options) == pytest.approx(terms[2], rel=1e-11)
    gradient = jax.jit(jax.grad(lambda t: rj.weights.weight_distribution_penalty(t, **options)))(tree)
    assert not gradient["a"]["kernel"].any() and not gradient["b"]["bias"].any() and gradient["b"]["kernel"].any()
    # The penalty does not see the scale: its gradient has no part along the weights.
    assert np.sum(gradient["b"]["kernel"] * tree["b"]["kernel"]) == pytest.approx(0, abs=1e-10)
    assert penalty({"kernel": np.ones((2, 2))}) == 0


def test_equal_weights_and_large_ones_stay_finite():
    both = jax.jit(jax.value_and_grad(lambda w: sum(rj.weights.kurtosis_skewness(w))))
    for w in (np.full((5, 7), 0.1, np.float32), np.full((5, 7), 1e4 / 3, np.float32), np.zeros((5, 7), np.float32)):
        value, gradient = both(w)
        assert value == 0 and not gradient.any()
    assert np.isfinite(moments(jnp.asarray(1e4 * RNG.normal(size=50), jnp.bfloat16))).all()
    assert np.isnan(moments(np.float32([1, np.nan, 2]))).all(), "divergence is seen"
    uniform = np.linspace(-1, 1, 10_001, dtype=np.float32)
    np.testing.assert_allclose(moments(uniform), [1.8, 0], atol=1e-3)


@pytest.mark.slow
def test_penalty_makes_the_weights_uniform_and_three_bits_enough():
    """Digits: the kurtosis tends to 1.8, and rounding to three bits costs less accuracy than without the penalty."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    images, labels = (images / 16).astype(np.float32), labels.astype(np.int32)

    def init(key):
        keys = jax.random.split(key, 3)
        shapes = ((64, 32), (32, 32), (32, 10))
        return {
            f"layer{i}": {"kernel": jax.random.normal(k, s) * np.sqrt(2 / s[0]), "bias": jnp.zeros(s[1])}
            for i, (k, s) in enumerate(zip(keys, shapes, strict=True))
        }

    def apply(p, x):
        for i in range(3):
            x = x @ p[f"layer{i}"]["kernel"] + p[f"layer{i}"]["bias"]
            x = jax.nn.relu(x) if i < 2 else x
        return x

    def loss(p, weight):
        logits = jax.nn.log_softmax(apply(p, images[:600]))
        shape = rj.weights.weight_distribution_penalty(p, skip_first=False)
        return -jnp.mean(jnp.take_along_axis(logits, labels[:600, None], 1)) + weight * shape

    @jax.jit
    @jax.vmap
    def run(p, weight):
        tx = optax.adam(3e-3)

        def step(carry, _):
            p, state = carry
            updates, state = tx.update(jax.grad(loss)(p, weight), state)
            return (optax.apply_updates(p, updates), state), None

        p = jax.lax.scan(step, (p, tx.init(p)), None, length=300)[0][0]
        three = {n: {**layer, "kernel": rj.weights.round_to_nearest(layer["kernel"], bits=3)} for n, layer in p.items()}
        kurtosis = jnp.stack([rj.weights.kurtosis_skewness(layer["kernel"]).kurtosis for layer in p.values()])
        return jnp.mean(kurtosis), jnp.mean(jnp.argmax(apply(three, images[1200:]), -1) == labels[1200:])

    keys = jax.random.split(jax.random.key(0), 6)
    measured = run(jax.vmap(init)(jnp.concatenate([keys, keys])), jnp.repeat(jnp.array([0.0, 1.0]), 6))
    kurtosis, accuracy = (np.asarray(x).reshape(2, 6).mean(1) for x in measured)
    assert kurtosis[0] > 2.5 > 2.1 > kurtosis[1], kurtosis
    assert accuracy[1] > accuracy[0] + 0.02, accuracy
