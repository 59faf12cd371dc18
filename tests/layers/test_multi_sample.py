"""Multi-sample dropout against its loop and the published values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType

import regjax as rj

RNG = np.random.default_rng(0)
H = RNG.normal(size=(3, 4))
W = RNG.normal(size=(4, 2))
MASKS = RNG.random((5, 3, 4)) < 0.6
KEY = jax.random.key(0)


def cross_entropy(logits, labels):
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels)


def loop(features, masks, rate, head, flip=False):
    out = []
    for m, mask in enumerate(masks, start=1):
        h = features[:, :, ::-1] if flip and m % 2 == 0 else features
        out.append(head(h * mask / (1 - rate)))
    return np.stack(out)


def test_equals_one_pass_of_the_head_per_mask(x64):
    head, core = lambda h: h @ W, rj.layers.apply_multi_sample_dropout
    got = jax.jit(lambda h: [core(head, h, MASKS, rate=0.3, reduce=reduce) for reduce in (None, "logits")])(H)
    want = loop(H, MASKS, 0.3, head)
    np.testing.assert_allclose(got[0], want, rtol=1e-12)
    np.testing.assert_allclose(got[1], want.mean(0), rtol=1e-12)


def test_flips_every_second_sample(x64):
    maps, masks = RNG.normal(size=(2, 3, 4, 2)), RNG.random((3, 2, 3, 4, 2)) < 0.5
    head = lambda h: h.reshape(h.shape[0], -1) @ np.arange(48.0).reshape(24, 2)
    got = rj.layers.apply_multi_sample_dropout(head, maps, masks, rate=0.5, flip=True)
    np.testing.assert_allclose(got, loop(maps, masks, 0.5, head, flip=True), rtol=1e-12)
    same = rj.layers.multi_sample_dropout(None, head, maps, flip=True, deterministic=True)
    np.testing.assert_allclose(same[0], head(maps), rtol=1e-12)


def test_published_losses(x64):
    masks = np.array([[1, 0], [0, 1], [1, 1], [1, 0]], bool)[:, None]
    outputs = rj.layers.apply_multi_sample_dropout(lambda h: h, np.array([[1.0, 2.0]]), masks, rate=0.5)
    labels = jnp.array([0])
    losses = jax.jit(jax.vmap(cross_entropy, (0, None)))(outputs, labels)
    np.testing.assert_allclose(losses[:, 0], [0.12692801, 4.01814993, 2.12692801, 0.12692801], atol=5e-9)
    mean = jax.jit(rj.layers.multi_sample_loss(cross_entropy))(outputs, labels)
    np.testing.assert_allclose(mean, [1.59973349], atol=5e-9)
    np.testing.assert_allclose(jax.jit(cross_entropy)(outputs.mean(0), labels), [0.97407698], atol=5e-9)


def test_gradient_is_the_mean_of_the_samples_gradients(x64):
    labels = jnp.array([0, 1, 1])

    def loss(w, h):
        outputs = rj.layers.apply_multi_sample_dropout(lambda h: h @ w, h, MASKS, rate=0.3)
        averaged = cross_entropy(outputs.mean(0), labels).mean()
        return rj.layers.multi_sample_loss(cross_entropy)(outputs, labels).mean(), averaged

    def single(w, h, mask):
        return cross_entropy((h * mask / 0.7) @ w, labels).mean()

    (value, averaged), got = jax.jit(jax.value_and_grad(loss, (0, 1), has_aux=True))(W, H)
    values, singles = jax.jit(jax.vmap(jax.value_and_grad(single, (0, 1)), (None, None, 0)))(W, H, MASKS)
    np.testing.assert_allclose(value, np.mean(values), rtol=1e-12)
    for part in (0, 1):
        np.testing.assert_allclose(got[part], np.mean(singles[part], axis=0), rtol=1e-11)
    assert value > averaged


def test_one_sample_is_ordinary_dropout():
    h = jnp.asarray(H, jnp.float32)

    @jax.jit
    def both(key):
        one = rj.layers.multi_sample_dropout(key, jnp.sin, h, num_samples=1, rate=0.5)
        return one[0], jnp.sin(rj.layers.dropout(jax.random.split(key, 1)[0], h, rate=0.5))

    np.testing.assert_allclose(*both(KEY), rtol=1e-6)


@pytest.mark.parametrize("rate", [0, jnp.zeros(())])
def test_at_rate_0_all_samples_are_the_plain_head(rate):
    h = jnp.asarray(H, jnp.float32)
    got = rj.layers.multi_sample_dropout(KEY, lambda h: {"y": 2 * h}, h, num_samples=3, rate=rate)
    np.testing.assert_array_equal(got["y"], np.stack([2 * h] * 3))


def test_test_mode_is_one_pass_without_a_key():
    h = jnp.asarray(H, jnp.float32)
    call = lambda **options: rj.layers.multi_sample_dropout(None, lambda h: 2 * h, h, deterministic=True, **options)
    np.testing.assert_array_equal(call(), 2 * h[None])
    np.testing.assert_array_equal(call(reduce="logits"), 2 * h)
    loss = rj.layers.multi_sample_loss(lambda y, scale: jnp.sum(scale * y, axis=-1))(call(), 3.0)
    np.testing.assert_allclose(loss, (6 * H).sum(-1), rtol=1e-5)


def test_variance_of_the_head_gradient_falls_with_the_samples():
    h, labels = jnp.asarray(H, jnp.float32), jnp.array([0, 1, 1])

    def gradient(key, num_samples):
        def loss(w):
            outputs = rj.layers.multi_sample_dropout(key, lambda h: h @ w, h, num_samples=num_samples)
            return rj.layers.multi_sample_loss(cross_entropy)(outputs, labels).mean()

        return jax.grad(loss)(jnp.asarray(W, jnp.float32))

    keys = jax.random.split(KEY, 2000)
    one, eight = jax.jit(lambda keys: [jax.vmap(lambda key, m=m: gradient(key, m))(keys) for m in (1, 8)])(keys)
    assert np.asarray(eight).var(0).sum() == pytest.approx(np.asarray(one).var(0).sum() / 8, rel=0.15)


def test_dropout_inside_the_head_has_masks_of_its_own():
    head = lambda h: rj.layers.dropout(jax.random.key(1), h, rate=0.5)
    outputs = jax.jit(lambda h: rj.layers.multi_sample_dropout(KEY, head, h, num_samples=3, rate=0.0))(jnp.ones((4, 50)))
    assert len(np.unique(np.asarray(outputs).reshape(12, 50), axis=0)) == 12


def test_sharded_batches():
    h, w = jnp.asarray(RNG.normal(size=(8, 4)), jnp.float32), jnp.asarray(W, jnp.float32)
    call = jax.jit(lambda key, h: rj.layers.multi_sample_dropout(key, lambda h: h @ w, h, num_samples=3))
    want = call(KEY, h)
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        with jax.set_mesh(mesh):
            got = call(KEY, jax.device_put(h, jax.NamedSharding(mesh, jax.P("data"))))
        np.testing.assert_allclose(got, want, rtol=1e-5)
        assert got.sharding.is_equivalent_to(jax.NamedSharding(mesh, jax.P(None, "data")), 3)


@pytest.mark.slow
def test_more_samples_reach_a_lower_training_loss_in_the_same_steps():
    """The published direction, on the digits: the mean clean training loss of the later steps over eight seeds."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = jnp.asarray(digits.data[:600] / 16 - 0.5, jnp.float32), jnp.asarray(digits.target[:600])
    tx = optax.sgd(0.1)

    def train(seed, num_samples):
        keys = jax.random.split(jax.random.key(seed), 3)
        params = [jax.random.normal(k, s) * np.sqrt(2 / 64) for k, s in zip(keys, [(64, 64), (64, 10)], strict=False)]

        def step(carry, t):
            (body, head), state = carry
            key = jax.random.fold_in(keys[2], t)
            rows = jax.random.randint(key, (50,), 0, 600)

            def loss(params):
                features = jax.nn.relu(images[rows] @ params[0])
                outputs = rj.layers.multi_sample_dropout(
                    key, lambda h: h @ params[1], features, num_samples=num_samples, rate=0.8
                )
                return rj.layers.multi_sample_loss(cross_entropy)(outputs, labels[rows]).mean()

            updates, state = tx.update(jax.grad(loss)([body, head]), state)
            clean = cross_entropy(jax.nn.relu(images @ body) @ head, labels).mean()
            return (optax.apply_updates([body, head], updates), state), clean

        return jnp.mean(jax.lax.scan(step, (params, tx.init(params)), jnp.arange(120))[1][60:])

    one, eight = jax.jit(lambda seeds: [jax.vmap(lambda s, m=m: train(s, m))(seeds) for m in (1, 8)])(jnp.arange(8))
    gain = np.asarray(one - eight)
    assert gain.mean() > 2 * gain.std() / np.sqrt(8)
