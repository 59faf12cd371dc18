"""Boundary masks and their distillation against loop-written float64 references and the published values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj
from tests.references import log_softmax

RNG = np.random.default_rng(0)
TERMS = ((1.0, 0.0), (0.0, 1.0), (50.0, 20.0))
masks = jax.jit(rj.losses.boundary_masks, static_argnames=("num_classes", "kernel_size", "ignore_label"))
distil = jax.jit(rj.losses.boundary_distillation, static_argnames=("kernel_size", "ignore_label", "mask_logits"))


def windows(labels, size):
    for b, y, x in np.ndindex(labels.shape):
        r = size // 2
        yield (b, y, x), labels[b, max(y - r, 0) : y + r + 1, max(x - r, 0) : x + r + 1]


def edges(labels, num_classes, size, ignore=255):
    """Maximum less minimum of the one-hot labels in each window, and whether none is ignored there."""
    edge, valid = np.zeros((*labels.shape, num_classes)), np.zeros(labels.shape, bool)
    for place, window in windows(labels, size):
        valid[place] = not (window == ignore).any()
        for k in range(num_classes):
            here = (window == k) & (window != ignore)
            edge[place][k] = (here.max() - 1.0 * here.min()) * valid[place]
    return edge, valid


def pool(x, h, w):
    """Adaptive average pooling of one [H, W] map."""
    out = np.zeros((h, w))
    for i, j in np.ndindex(h, w):
        rows = slice(i * x.shape[0] // h, -(-(i + 1) * x.shape[0] // h))
        columns = slice(j * x.shape[1] // w, -(-(j + 1) * x.shape[1] // w))
        out[i, j] = x[rows, columns].mean()
    return out


def divergence(s, t, temperature):
    s, t = log_softmax(s / temperature), log_softmax(t / temperature)
    return temperature**2 * sum(np.exp(t) * (t - s))


def reference(student, teacher, labels, size, edge_t, body_t, mask_logits, alpha=2.0, by_edge=50.0, by_body=20.0):
    """Both terms and the weighted total."""
    batch, h, w, classes = student.shape
    edge, valid = edges(labels, classes, size)
    edge_loss, body_loss, images = 0.0, 0.0, 0
    for b in range(batch):
        e = np.stack([pool(edge[b, ..., k], h, w) for k in range(classes)], -1)
        v = pool(valid[b] * 1.0, h, w) == 1
        images += v.any()
        e = e * v[..., None]
        body = (1 - e) * v[..., None]
        inner, outer = [(z[b] * e, z[b] * body) if mask_logits else (z[b], z[b]) for z in (student, teacher)]
        for k in range(classes):
            kl = sum(divergence(inner[0][p], outer[0][p], edge_t) * e[p][k] for p in np.ndindex(h, w) if v[p])
            edge_loss += alpha * kl / max((e[..., k] > 0).sum(), 1)
            if v.any():
                body_loss += divergence(inner[1][v][:, k], outer[1][v][:, k], body_t) / classes
    images = max(images, 1)
    return edge_loss / images, body_loss / images, by_edge * edge_loss / images + by_body * body_loss / images


def blocks(rng, batch, height, width, classes):
    """Label maps with regions rather than noise."""
    small = rng.integers(0, classes, size=(batch, 3, 3))
    return small[:, np.arange(height) * 3 // height][:, :, np.arange(width) * 3 // width]


@pytest.mark.parametrize(("size", "classes"), [(3, 4), (5, 40)])
def test_masks_equal_their_reference(size, classes):
    labels = blocks(np.random.default_rng(1), 3, 8, 11, classes)
    labels[0, 2, 9] = labels[2] = 255
    got = masks(labels, num_classes=classes, kernel_size=size)
    np.testing.assert_array_equal(got, edges(labels, classes, size)[0])
    assert got.dtype == jnp.float32 and 0 < got[0].mean() < 1


def test_masks_published_and_corner_cases():
    spot = np.zeros((1, 5, 5), np.uint8)
    spot[0, 2, 2] = 1
    want = np.zeros((5, 5, 2))
    want[1:4, 1:4] = 1
    np.testing.assert_array_equal(masks(spot, num_classes=2, kernel_size=3)[0], want)
    line = np.array([[[0, 0, 0, 1, 1, 1]]])
    np.testing.assert_array_equal(masks(line, num_classes=2, kernel_size=3)[0, 0, :, 1], [0, 0, 1, 1, 0, 0])
    # A window wider than the image, a window of one pixel, one class, and an ignored id that is a class elsewhere.
    np.testing.assert_array_equal(masks(line, num_classes=2, kernel_size=99), np.ones((1, 1, 6, 2)))
    assert not masks(line, num_classes=2, kernel_size=1).any() and not masks(0 * line, num_classes=1).any()
    assert not masks(line, num_classes=2, kernel_size=3, ignore_label=0).any()
    # Beside an ignored pixel there is no edge; an unknown id is seen.
    np.testing.assert_array_equal(
        masks(np.array([[[0, 255, 0, 1, 1, 1]]]), num_classes=2, kernel_size=3)[0, 0, :, 0], [0, 0, 0, 1, 0, 0]
    )
    np.testing.assert_array_equal(
        np.isnan(masks(np.array([[[9, 0, 0, 1, 1, 1]]]), num_classes=2, kernel_size=3))[0, 0, :, 0], [1, 1, 0, 0, 0, 0]
    )


@pytest.mark.parametrize(("height", "width"), [(12, 9), (14, 15), (6, 5)])
def test_equals_its_reference_at_integer_fractional_and_equal_sizes(x64, height, width):
    student, teacher = RNG.normal(size=(2, 3, 6, 5, 3))
    labels = blocks(np.random.default_rng(height), 3, height, width, 3)
    labels[0, 0, 1] = labels[1] = 255

    options = {"edge_temperature": 2.0, "body_temperature": 3.0, "edge_alpha": 1.5, "kernel_size": 3}
    got = [distil(student, teacher, labels, edge_weight=e, body_weight=b, **options) for e, b in TERMS]
    want = reference(student, teacher, labels, 3, 2.0, 3.0, True, alpha=1.5)
    assert min(want) > 0
    np.testing.assert_allclose(got, want, rtol=1e-10)
    if height == 14:
        got = [distil(student, teacher, labels, edge_weight=e, body_weight=b, **options, mask_logits=False) for e, b in TERMS]
        np.testing.assert_allclose(got, reference(student, teacher, labels, 3, 2.0, 3.0, False, alpha=1.5), rtol=1e-10)


def test_published_values(x64):
    def three(*maps):
        return [distil(*maps, kernel_size=3, edge_weight=e, body_weight=b) for e, b in TERMS]

    labels, student = np.zeros((1, 3, 3), int), np.zeros((1, 3, 3, 2))
    labels[0, 1, 1], student[0, 1, 1, 1] = 1, 2.0
    np.testing.assert_allclose(three(student, 2 * student, labels), [0.0323581, 0, 1.617904], atol=5e-7)
    np.testing.assert_array_equal(three(student, -student, 0 * labels)[0], 0.0)
    student = np.array([[0.13, -0.13], [0.64, 0.1], [-0.54, 0.36], [1.3, 0.95], [-0.7, -1.27], [-0.62, 0.04]])[None, None]
    teacher = np.array([[-2.33, -0.22], [-1.25, -0.73], [-0.54, -0.32], [0.41, 1.04], [-0.13, 1.37], [-0.67, 0.35]])[None, None]
    labels = np.array([[[0, 0, 0, 1, 1, 1]]])
    np.testing.assert_allclose(three(student, teacher, labels), [0.341161, 0.552744, 28.112936], atol=5e-7)
    value, gradient = jax.jit(jax.value_and_grad(lambda z: distil(z, teacher, labels, kernel_size=3)))(teacher)
    assert value == 0 and np.abs(gradient).max() < 1e-13


def test_ignored_pixels_hold_anything_and_padding_changes_nothing():
    rng = np.random.default_rng(3)
    student, teacher = jnp.asarray(rng.normal(size=(2, 2, 5, 5, 3)), jnp.float32)
    labels = blocks(rng, 2, 5, 5, 3)
    labels[0, 0, 0] = 255
    beside = np.zeros((2, 5, 5, 1), bool)
    beside[0, :2, :2] = True
    padded = np.pad(labels, ((0, 3), (0, 0), (0, 0)), constant_values=255).astype(np.uint8)

    @jax.jit
    @jax.value_and_grad
    def total(student, rubbish):
        s, t = (jnp.pad(jnp.where(beside, rubbish, z), ((0, 3), (0, 0), (0, 0), (0, 0))) for z in (student, teacher))
        return distil(s.at[2:].set(rubbish), t, padded, kernel_size=3)

    plain = jax.jit(jax.value_and_grad(lambda z, y: distil(z, teacher, y, kernel_size=3)))
    want, gradient = plain(student, labels)
    for rubbish in (jnp.nan, 1e30):
        value, slope = total(student, rubbish)
        np.testing.assert_allclose(value, want, rtol=1e-6)
        np.testing.assert_allclose(slope, gradient, atol=1e-5)
    assert np.all(gradient[0, :2, :2] == 0) and np.all(np.isfinite(gradient)) and np.any(gradient)
    assert np.isnan(plain(student, np.where(labels == labels[1, 2, 2], 3, labels))[0]), "an unknown id is seen"
