"""The noisy label channel: its core against a loop, its draws by their statistics."""

import jax
import numpy as np

import regjax as rj

RNG = np.random.default_rng(0)
LABELS = RNG.integers(0, 3, size=(4, 5, 6))
LABELS[0, 0] = LABELS[2] = 255
draw = jax.jit(rj.inputs.noisy_label_channel, static_argnames="num_classes")
apply = jax.jit(rj.inputs.apply_noisy_label_channel, static_argnames="ignore_label")


def channel(labels, values, noise, sigma, scale):
    out = np.zeros((*labels.shape, 1))
    for b, y, x in np.ndindex(labels.shape):
        k = labels[b, y, x]
        out[b, y, x, 0] = scale * (values[b][3 if k == 255 else k] + sigma * noise[b, y, x])
    return out


def test_core_equals_its_reference(x64):
    values, noise = RNG.normal(size=(4, 4)), RNG.normal(size=(4, 5, 6))
    got = apply(LABELS, class_values=values, noise=noise, pixel_noise=0.2, scale=10.0)
    np.testing.assert_allclose(got, channel(LABELS, values, noise, 0.2, 10.0), rtol=1e-12)
    got = apply(LABELS.astype(np.uint8), class_values=values[0], noise=noise)
    np.testing.assert_allclose(got, channel(LABELS, [values[0]] * 4, noise, 0.03, 100.0), rtol=1e-12)


def test_only_classes_and_the_ignored_id_have_a_value():
    labels = np.array([[[0, 1, 2, 3, -1, 255]]])
    got = np.asarray(apply(labels, class_values=np.arange(4.0), noise=np.zeros((1, 1, 6)), scale=1.0)).ravel()
    np.testing.assert_array_equal(got, [0, 1, 2, np.nan, np.nan, 3])
    got = apply(labels, class_values=np.arange(4.0), noise=np.zeros((1, 1, 6)), scale=1.0, ignore_label=-1)
    np.testing.assert_array_equal(np.ravel(got), [0, 1, 2, np.nan, 3, np.nan])


def test_draws():
    labels = np.tile(np.array([[0, 1, 2, 255]]), (4000, 2, 1))
    clean = np.asarray(draw(jax.random.key(0), labels, num_classes=3, pixel_noise=0.0, scale=1.0))[..., 0]
    assert np.array_equal(clean[:, 0], clean[:, 1]), "equal labels share a value without pixel noise"
    values = clean[:, 0]
    # 4000 draws for each class, independent between classes and images: standard errors 1 / sqrt(4000).
    assert np.all(np.abs(values.mean(0)) < 4 / np.sqrt(4000))
    assert np.all(np.abs(np.cov(values.T) - np.eye(4)) < 5 / np.sqrt(2000))
    noisy = np.asarray(draw(jax.random.key(0), labels, num_classes=3, pixel_noise=0.5, scale=100.0))[..., 0]
    noise = noisy / 100 - clean
    assert abs(noise.std() / 0.5 - 1) < 4 / np.sqrt(2 * noise.size) and abs(noise.mean()) < 4 * 0.5 / np.sqrt(noise.size)
    assert np.abs(np.corrcoef(noise.reshape(4000, -1).T) - np.eye(8)).max() < 5 / np.sqrt(4000)
    fixed = np.asarray(draw(jax.random.key(1), labels, num_classes=3, pixel_noise=0.0, class_values=(np.arange(4.0) - 11) / 10))
    np.testing.assert_allclose(fixed[5, 0, :, 0], [-110, -100, -90, -80], rtol=1e-6)
