"""Batch styles standardization against NumPy's FFT, the book's limits, and its sampler."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

# The tests compile much and run little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)


def restyle(images, reference, ratio):
    out = np.empty_like(images)
    _, height, width, channels = images.shape
    a, b = int(height * np.sqrt(ratio) / 2), int(width * np.sqrt(ratio) / 2)
    for i in range(len(images)):
        for c in range(channels):
            spectrum, style = np.fft.fft2(images[i, :, :, c]), np.fft.fft2(images[reference, :, :, c])
            for y in range(height):
                for x in range(width):
                    ky, kx = min(y, height - y), min(x, width - x)
                    if ky <= a and kx <= b:
                        spectrum[y, x] = abs(style[y, x]) * np.exp(1j * np.angle(spectrum[y, x]))
            back = np.fft.ifft2(spectrum)
            assert abs(back.imag).max() < 1e-12
            out[i, :, :, c] = back.real
    return out


@pytest.mark.parametrize("shape", [(6, 8), (7, 5), (1, 4)])
def test_apply_batch_style_is_the_loop(x64, shape):
    images = RNG.normal(size=(4, *shape, 2))
    apply = jit(rj.inputs.apply_batch_style)
    for reference, ratio in ((0, 0.0), (2, 0.11), (3, 0.3), (1, 0.7), (2, 1.0)):
        got = apply(images, reference_index=reference, ratio=ratio)
        np.testing.assert_allclose(got, restyle(images, reference, ratio), atol=1e-12)


def test_laws(x64):
    images = RNG.normal(size=(4, 6, 9, 2))
    apply = jit(rj.inputs.apply_batch_style)
    spectrum = lambda x: np.fft.fft2(np.asarray(x), axes=(1, 2))
    for ratio in (0.0, 0.4, 1.0):
        got = np.asarray(apply(images, reference_index=2, ratio=ratio))
        np.testing.assert_array_equal(got[2], images[2], "the reference keeps its style")
        phases = spectrum(got) / abs(spectrum(got))
        np.testing.assert_allclose(phases, spectrum(images) / abs(spectrum(images)), atol=1e-10)
        if ratio == 0:
            mean = images.mean((1, 2))
            np.testing.assert_allclose(got.mean((1, 2)), abs(mean[2]) * np.sign(mean), atol=1e-13)
            np.testing.assert_allclose(got - got.mean((1, 2), keepdims=True), images - mean[:, None, None], atol=1e-13)
        if ratio == 1:
            np.testing.assert_allclose(abs(spectrum(got)), np.broadcast_to(abs(spectrum(images)[2]), got.shape), atol=1e-10)
    same = np.broadcast_to(images[:1], images.shape)
    np.testing.assert_allclose(apply(same, reference_index=3, ratio=0.6), same, atol=1e-14)


def test_flat_images_take_the_style_with_phase_zero():
    """Frequencies that a constant image lacks: their phase is 0, not that of rounding errors."""
    images = RNG.normal(size=(2, 8, 6, 1)).astype(np.float32)
    images[1] = 0.7
    got = jit(rj.inputs.apply_batch_style)(images, reference_index=0, ratio=1.0)
    want = np.fft.ifft2(abs(np.fft.fft2(images[0, :, :, 0]))).real
    np.testing.assert_allclose(got[1, :, :, 0], want, atol=1e-5)


def test_views_have_styles_of_their_own_and_clip(x64):
    images = RNG.normal(size=(2, 3, 5, 6, 1))
    reference, ratio = np.array([2, 0]), np.array([0.5, 1.0])
    got = jit(functools.partial(rj.inputs.apply_batch_style, clip=(-1.0, 0.8)))(images, reference_index=reference, ratio=ratio)
    want = np.stack([restyle(images[v], reference[v], ratio[v]) for v in range(2)])
    np.testing.assert_allclose(got, np.clip(want, -1, 0.8), atol=1e-12)


def test_the_sampler():
    """Of images that are waves of amplitude 1..5, the style of all shows the reference; its size shows the ratio."""
    waves = np.cos(2 * np.pi * np.arange(16) * np.arange(9)[:, None] / 16).sum(0)
    images = jnp.asarray(np.arange(1, 6)[:, None, None, None] * waves[:, None, None] * np.ones((1, 1, 2, 1)), jnp.float32)
    views = jnp.broadcast_to(images, (3, *images.shape))
    mix = lambda key: rj.inputs.batch_style(key, views, min_ratio=0.2, max_ratio=0.9, views=3)[0]
    styled = np.asarray(jit(jax.vmap(mix))(jax.random.split(jax.random.key(0), 600)))
    amplitudes = abs(np.fft.fft(styled[..., 0, 0], axis=-1))[..., :9] / abs(np.fft.fft(waves))[:9]
    # The reference's amplitude below the limit, the image's own above.
    reference = np.round(amplitudes[:, :, 0, 0]).astype(int)
    reach = np.isclose(amplitudes[:, :, 0], reference[..., None], rtol=1e-3) & (reference > 1)[..., None]
    counts = np.bincount(reference.ravel(), minlength=6)[1:]
    assert np.all(abs(counts - 360) < 5 * np.sqrt(1800 * 0.16))
    reach = reach.sum(-1)[reference > 1] - 1
    want = np.floor(8 * np.sqrt(np.linspace(0.2, 0.9, 100001)))
    for k in range(3, 8):
        p = (want == k).mean()
        assert abs((reach == k).mean() - p) < 5 * np.sqrt(p * (1 - p) / reach.size)
    assert len({tuple(row) for row in reference}) > 50, "views draw their own"
    one, labels = rj.inputs.batch_style(jax.random.key(1), images.astype(jnp.bfloat16), np.arange(5))
    assert one.dtype == jnp.bfloat16
    np.testing.assert_array_equal(labels, np.arange(5))


def test_a_sharded_batch_sends_one_row():
    """No gather of the batch, which an FFT would need."""
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    place = jax.NamedSharding(mesh, jax.P("data"))
    images = jax.ShapeDtypeStruct((16, 4, 6, 1), jnp.float32)
    with jax.set_mesh(mesh):
        apply = jax.jit(lambda x: rj.inputs.apply_batch_style(x, reference_index=3, ratio=0.5), in_shardings=place)
        text = apply.lower(images).compile().as_text()
    assert "all-gather" not in text
    assert "all-reduce" in text
