"""Explanation-mask losses against loop-written float64 references and the published values."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj
from tests.references import log_softmax, soft_labels

RNG = np.random.default_rng(0)
area, variation, explain = rj.losses.mask_area, rj.losses.mask_variation, rj.losses.explanation_mask_loss


def mask_area(masks, power=0.3, eps=5e-4):
    return np.mean([(m + eps) ** power for m in masks.ravel()])


def mask_variation(masks, power=2.0, border_penalty=0.3):
    batch, height, width = masks.shape[:3]
    total = 0.0
    for b, y, x, c in np.ndindex(masks.shape):
        m = masks[b, y, x, c]
        total += abs(masks[b, y + 1, x, c] - m) ** power if y + 1 < height else 0
        total += abs(masks[b, y, x + 1, c] - m) ** power if x + 1 < width else 0
        sides = (y == 0) + (y == height - 1) + (x == 0) + (x == width - 1)
        total += border_penalty * sides * abs(m) ** power
    return total / (power * batch)


def test_equal_their_references(x64):
    masks, logits = RNG.uniform(size=(3, 4, 5, 2)), RNG.normal(size=(3, 6))
    masks[0, 1, :2] = 0.5
    labels, soft = RNG.integers(0, 6, size=3), soft_labels(RNG, 3, 6)

    @jax.jit
    def got(power, eps, beta, weights):
        named = dict(zip(("weight_ce", "weight_area", "weight_variation"), weights, strict=True))
        return (
            area(masks, power=power, eps=eps),
            variation(masks, power=power + 1, border_penalty=beta),
            variation(masks[:, :1], border_penalty=beta),
            explain(logits, labels, masks, **named),
            explain(logits, soft, masks),
        )

    ce = -np.mean([log_softmax(z)[y] for z, y in zip(logits, labels, strict=True)])
    soft_ce = -np.mean([log_softmax(z) @ y for z, y in zip(logits, soft, strict=True)])
    want = (
        mask_area(masks, 0.5, 0.1),
        mask_variation(masks, 1.5, 0.7),
        mask_variation(masks[:, :1], 2.0, 0.7),
        0.3 * ce + 0.4 * mask_area(masks) + 0.5 * mask_variation(masks),
        1.5 * soft_ce + 2 * mask_area(masks) + 0.01 * mask_variation(masks),
    )
    np.testing.assert_allclose(got(0.5, 0.1, 0.7, (0.3, 0.4, 0.5)), want, rtol=1e-12)


def test_published_values(x64):
    @jax.jit
    def both(m):
        m = m.reshape(1, 3, 3, 1)
        return variation(m), area(m), variation(m, border_penalty=0.0)

    np.testing.assert_allclose(both(jnp.ones(9)), [1.8, 1.000150, 0], atol=5e-7)
    np.testing.assert_allclose(both(jnp.zeros(9)), [0, 0.102257, 0], atol=5e-7)
    np.testing.assert_allclose(both(jnp.arange(9) / 8), [1.153125, 0.733785, 0.468750], atol=5e-7)


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_gradients_are_finite_where_masks_vanish_or_are_flat(power):
    gradient = jax.jit(jax.grad(lambda m, p: variation(m, power=p) + area(m)))
    zeros = np.asarray(gradient(jnp.zeros((1, 3, 3, 1)), power))
    np.testing.assert_allclose(zeros, 0.3 * 5e-4**-0.7 / 9, rtol=1e-5)  # the area's slope alone
    ones = np.asarray(gradient(jnp.ones((1, 3, 3, 1)), power))[0, ..., 0]
    slope = 0.3 * 1.0005**-0.7 / 9
    # Nothing varies, so that the border alone pulls: corners twice, the centre not at all.
    np.testing.assert_allclose(ones - slope, 0.3 * np.array([[2, 1, 2], [1, 0, 1], [2, 1, 2]]), atol=1e-6)


def mlp(params, x):
    for kernel, bias in params[:-1]:
        x = jax.nn.relu(x @ kernel + bias)
    return x @ params[-1][0] + params[-1][1]


def fit(key, sizes, loss, steps, learning_rate):
    """An MLP, trained on the whole batch."""
    keys = jax.random.split(key, len(sizes) - 1)
    layers = zip(keys, sizes[:-1], sizes[1:], strict=True)
    params = [(jax.random.normal(k, (m, n)) * jnp.sqrt(2 / m), jnp.zeros(n)) for k, m, n in layers]
    optimizer = optax.adam(learning_rate)

    def step(carry, _):
        updates, state = optimizer.update(jax.grad(loss)(carry[0]), carry[1])
        return (optax.apply_updates(carry[0], updates), state), None

    return jax.jit(lambda p: jax.lax.scan(step, (p, optimizer.init(p)), None, length=steps)[0][0])(params)


@pytest.mark.slow
def test_learned_masks_keep_the_decision_on_a_small_part_of_a_digit():
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    x = jnp.asarray(digits.data / 16 - digits.data.mean() / 16, jnp.float32)
    seen, new, labels = x[:1000], x[1000:], jnp.asarray(digits.target[:1000])
    keys = jax.random.split(jax.random.key(0), 3)
    entropy = optax.softmax_cross_entropy_with_integer_labels
    network = fit(keys[0], [64, 64, 10], lambda p: entropy(mlp(p, seen), labels).mean(), 150, 3e-3)

    def explain_digits(params, x):
        """The images through the mask of the class that the network gives them."""
        own = mlp(network, x).argmax(-1)
        masks = jax.nn.sigmoid(mlp(params, x)).reshape(-1, 4, 4, 10)
        chosen = jnp.take_along_axis(masks, own[:, None, None, None], -1)[..., 0]
        return own, masks, chosen.repeat(2, 1).repeat(2, 2).reshape(-1, 64)

    def loss(params):
        own, masks, chosen = explain_digits(params, seen)
        return explain(mlp(network, seen * chosen), own, masks)

    own, _, chosen = explain_digits(fit(keys[1], [64, 32, 160], loss, 200, 1e-2), new)
    kept = np.mean(mlp(network, new * chosen).argmax(-1) == own)
    # As much of the image at random, and the masks of other digits.
    anywhere = np.mean(mlp(network, new * (jax.random.uniform(keys[2], new.shape) < chosen.mean())).argmax(-1) == own)
    others = np.mean(mlp(network, new * jnp.roll(chosen, 7, axis=0)).argmax(-1) == own)
    assert chosen.mean() < 0.4 and kept > 0.9
    assert kept > max(anywhere, others) + 0.15
