"""Nested dropout against loop-written references and the published values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import regjax as rj

RNG = np.random.default_rng(0)
X = RNG.normal(size=(3, 5))
KERNEL = RNG.normal(size=(5, 2))


def probabilities(n, distribution, scale=None, mean=0.0):
    weights = []
    for k in range(1, n + 1):
        if distribution == "gaussian":
            weights.append(np.exp(-(((k - mean) / scale) ** 2)))
        elif distribution == "geometric":
            weights.append(np.exp(-1 / scale) ** (k - 1))
        else:
            weights.append(1.0)
    return np.array(weights) / sum(weights)


def test_probabilities_equal_their_reference_and_the_published_ones(x64):
    cases = [
        {"distribution": "gaussian", "scale": 2.0},
        {"distribution": "gaussian", "scale": 3.0, "mean": 2.5},
        {"distribution": "geometric", "scale": 2.0},
        {"distribution": "uniform"},
    ]
    got = jax.jit(lambda: [rj.layers.nested_dropout_probs(4, **options) for options in cases])()
    for p, options in zip(got, cases, strict=True):
        assert p.dtype == jnp.float64
        np.testing.assert_allclose(p, probabilities(4, **options), rtol=1e-12)
    p = np.asarray(got[0])
    np.testing.assert_allclose(p, [0.61303825, 0.28957877, 0.08296571, 0.01441728], atol=5e-9)
    np.testing.assert_allclose(np.cumsum(p[::-1])[::-1], [1, 0.38696175, 0.09738298, 0.01441728], atol=1e-8)
    assert p @ np.arange(1, 5) == pytest.approx(1.49876201, abs=5e-9)


def test_probabilities_at_the_ends_of_the_scale():
    probs = jax.jit(lambda scale, **options: rj.layers.nested_dropout_probs(6, scale=scale, **options))
    np.testing.assert_array_equal(probs(1e-20), [1, 0, 0, 0, 0, 0])
    np.testing.assert_allclose(probs(1e6), np.full(6, 1 / 6), rtol=1e-6)
    np.testing.assert_array_equal(probs(1e-20, mean=4.0), [0, 0, 0, 1, 0, 0])
    geometric = jax.jit(lambda scale: rj.layers.nested_dropout_probs(6, scale=scale, distribution="geometric"))
    np.testing.assert_allclose(geometric(1e6), 1 / 6, rtol=1e-4)
    np.testing.assert_array_equal(geometric(1e-20), [1, 0, 0, 0, 0, 0])


def test_truncation_keeps_the_first_features_unscaled(x64):
    gradient = jax.jit(jax.grad(lambda x, k: jnp.sum(jnp.sin(rj.layers.truncate_features(x, k)))))
    for k in range(1, 6):
        want = np.array([[X[b, i] if i < k else 0.0 for i in range(5)] for b in range(3)])
        np.testing.assert_array_equal(rj.layers.truncate_features(X, k), want)
        np.testing.assert_array_equal(rj.layers.truncate_features(X, jnp.asarray(k)), want)
        got = np.asarray(gradient(jnp.asarray(X), k))
        assert np.all(got[:, k:] == 0)
        np.testing.assert_allclose(got[:, :k], np.cos(X[:, :k]), rtol=1e-12)
    np.testing.assert_array_equal(rj.layers.truncate_features(X, 5), X)


def test_draws_one_length_per_batch_from_the_probabilities():
    n, probs = 20_000, rj.layers.nested_dropout_probs(4, scale=2.0)

    def kept(key):
        y = rj.layers.nested_dropout(key, jnp.ones((3, 4)), probs=probs)
        return jnp.sum(y, axis=-1).astype(int)

    lengths = np.asarray(jax.jit(jax.vmap(kept))(jax.random.split(jax.random.key(0), n)))
    assert np.all(lengths == lengths[:, :1])
    frequency = np.bincount(lengths[:, 0], minlength=5)[1:] / n
    assert np.all(np.abs(frequency - probs) < 5 * np.sqrt(probs * (1 - probs) / n))


def test_probabilities_of_zero_are_never_drawn_and_all_kept_is_the_identity():
    keys = jax.random.split(jax.random.key(0), 200)
    draw = jax.jit(lambda probs: jax.vmap(lambda k: rj.layers.nested_dropout(k, jnp.ones(3), probs=probs))(keys))
    np.testing.assert_array_equal(draw(jnp.array([0.0, 1.0, 0.0])), np.tile([1, 1, 0], (200, 1)))
    np.testing.assert_array_equal(draw(jnp.array([0.0, 0.0, 1.0])), np.ones((200, 3)))
    x = jnp.ones((2, 3))
    assert rj.layers.nested_dropout(None, x, probs=jnp.ones(3) / 3, deterministic=True) is x


def test_several_layers_are_drawn_independently_or_one_at_a_time():
    n = 20_000
    p, q = rj.layers.nested_dropout_probs(3, scale=2.0), rj.layers.nested_dropout_probs(4, distribution="uniform")

    @jax.jit
    @jax.vmap
    def draw(key):
        return [rj.layers.sample_truncations(key, p, q, alternate=alternate) for alternate in (False, True)]

    both, one = map(np.asarray, draw(jax.random.split(jax.random.key(1), n)))
    joint = np.zeros((3, 4))
    np.add.at(joint, (both[:, 0] - 1, both[:, 1] - 1), 1 / n)
    want = np.outer(p, q)
    assert np.all(np.abs(joint - want) < 5 * np.sqrt(want * (1 - want) / n))
    assert np.all((one[:, 0] == 3) | (one[:, 1] == 4))
    # A truncation shows unless all features are drawn: half of the time each layer's turn.
    for layer, (width, probs) in enumerate([(3, p), (4, q)]):
        truncated = (1 - float(probs[-1])) / 2
        assert abs((one[:, layer] < width).mean() - truncated) < 5 * np.sqrt(truncated * (1 - truncated) / n)


def test_truncated_logits_equal_a_pass_per_length(x64):
    bias = RNG.normal(size=2)
    want = np.stack([X[:, :k] @ KERNEL[:k] + bias for k in range(1, 6)])
    np.testing.assert_allclose(rj.layers.truncated_logits(X, KERNEL, bias), want, rtol=1e-12)
    np.testing.assert_allclose(rj.layers.truncated_logits(X, KERNEL), want - bias, rtol=1e-11, atol=1e-14)
    low = rj.layers.truncated_logits(jnp.asarray(X, jnp.bfloat16), jnp.asarray(KERNEL, jnp.bfloat16))
    assert low.dtype == jnp.float32
    weights = RNG.normal(size=want.shape)
    gradient = jax.jit(jax.grad(lambda w: jnp.sum(weights * rj.layers.truncated_logits(X, w))))(KERNEL)
    by_loop = np.zeros_like(KERNEL)
    for k in range(1, 6):
        by_loop[:k] += X[:, :k].T @ weights[k - 1]
    np.testing.assert_allclose(gradient, by_loop, rtol=1e-12)


def test_selected_length_pays_for_its_features():
    accuracy = np.array([0.2, 0.7, 0.700005, 0.700025, 0.6])
    for penalty in (0.0, 1e-5, 1.2e-5):
        want = max(range(1, 6), key=lambda k: (accuracy[k - 1] - penalty * (k - 1), -k))
        assert int(rj.layers.select_truncation(accuracy, penalty=penalty)) == want
    assert int(rj.layers.select_truncation(jnp.array([0.5, 0.5, 0.5]), penalty=0.0)) == 1


def test_sharded_batches_share_one_length():
    x, w = jnp.asarray(RNG.normal(size=(8, 4)), jnp.float32), jnp.asarray(KERNEL[:4], jnp.float32)
    probs = rj.layers.nested_dropout_probs(4, distribution="uniform")
    truncate = jax.jit(lambda key, x: rj.layers.nested_dropout(key, x, probs=probs))
    logits = jax.jit(rj.layers.truncated_logits)
    want = truncate(jax.random.key(3), x), logits(x, w)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
        with jax.set_mesh(mesh):
            both = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data", "model")))
            rows = jax.device_put(x, jax.NamedSharding(mesh, jax.P("data")))
            got = truncate(jax.random.key(3), both), logits(rows, w)
        np.testing.assert_array_equal(got[0], want[0])
        assert got[0].sharding.is_equivalent_to(both.sharding, 2)
        np.testing.assert_allclose(got[1], want[1], rtol=1e-5, atol=1e-6)


@pytest.mark.slow
def test_few_features_resist_noisy_labels():
    """The published direction, on the digits with 40% wrong labels: a short code beats the full width without nesting."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = jnp.asarray(digits.data / 16 - 0.5, jnp.float32), jnp.asarray(digits.target)
    width, tx = 64, optax.adam(2e-3)
    probs = rj.layers.nested_dropout_probs(width, scale=10.0)

    def train(seed, nested):
        keys = jax.random.split(jax.random.key(seed), 6)
        wrong = (labels[:600] + jax.random.randint(keys[4], (600,), 1, 10)) % 10
        noisy = jnp.where(jax.random.uniform(keys[5], (600,)) < 0.4, wrong, labels[:600])
        sizes = [(64, 128), (128, width), (width, 10)]
        params = [jax.random.normal(k, s) * np.sqrt(2 / s[0]) for k, s in zip(keys, sizes, strict=False)]
        features = lambda params, x: jax.nn.relu(jax.nn.relu(x @ params[0]) @ params[1])

        def step(carry, t):
            params, state = carry
            key = jax.random.fold_in(keys[3], t)
            rows = jax.random.randint(key, (50,), 0, 600)

            def loss(params):
                h = rj.layers.nested_dropout(key, features(params, images[rows]), probs=probs, deterministic=not nested)
                return optax.softmax_cross_entropy_with_integer_labels(h @ params[2], noisy[rows]).mean()

            updates, state = tx.update(jax.grad(loss)(params), state)
            return (optax.apply_updates(params, updates), state), None

        (params, _), _ = jax.lax.scan(step, (params, tx.init(params)), jnp.arange(600))

        def accuracies(part):
            logits = rj.layers.truncated_logits(features(params, images[part]), params[2])
            return jnp.mean(logits.argmax(-1) == labels[part], axis=-1)

        k = rj.layers.select_truncation(accuracies(slice(600, 1000)))
        return k, accuracies(slice(1000, None))[k - 1]

    (_, plain), (k, short) = jax.jit(lambda seeds: [jax.vmap(lambda s, n=n: train(s, n))(seeds) for n in (False, True)])(
        jnp.arange(3)
    )
    assert np.all(short > plain + 0.05) and np.all(k < 0.7 * width)
