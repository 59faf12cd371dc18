"""Losses of one-shot diffusion fine-tuning against float64 loops and the published values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

align, denoise, subject = rj.losses.embedding_alignment, rj.losses.masked_denoising, rj.losses.subject_derived
RNG = np.random.default_rng(0)


def test_alignment_is_the_cosine_distance_from_the_mean(x64):
    e, targets = RNG.normal(size=4), RNG.normal(size=(3, 4))
    mean = [sum(t[d] for t in targets) / 3 for d in range(4)]
    dot, norms = sum(a * b for a, b in zip(e, mean, strict=True)), np.linalg.norm(e) * np.linalg.norm(mean)
    value, (to_e, to_targets) = jax.jit(jax.value_and_grad(align, argnums=(0, 1)))(jnp.asarray(e), jnp.asarray(targets))
    assert value == pytest.approx(1 - dot / norms, rel=1e-12)
    unit = e / np.linalg.norm(e)
    want = -(np.array(mean) / np.linalg.norm(mean) - (1 - value) * unit) / np.linalg.norm(e)
    np.testing.assert_allclose(to_e, want, atol=1e-12)
    assert not to_targets.any()
    across = np.array([mean[1], -mean[0], 0.0, 0.0])
    got = jax.jit(jax.vmap(align, in_axes=(0, None)))(np.stack([3 * np.array(mean), np.negative(mean), across]), targets)
    np.testing.assert_allclose(got, [0, 2, 1], atol=1e-12)


def test_denoising_counts_only_pixels_of_the_mask(x64):
    prediction, target = RNG.normal(size=(2, 4, 3, 3, 2))
    mask = np.where(RNG.random((4, 3, 3, 1)) < 0.5, RNG.random((4, 3, 3, 1)), 0)
    mask[1], mask[2] = 0, 1
    target[mask[..., 0] == 0] = np.nan
    want = []
    for p, t, m in zip(prediction, target, mask, strict=True):
        total = sum(m[i, j, 0] for i in range(3) for j in range(3))
        errors = (m[i, j, 0] * (p[i, j, c] - t[i, j, c]) ** 2 for i in range(3) for j in range(3) for c in range(2) if m[i, j, 0])
        want.append(sum(errors) / (2 * total) if total else 0)

    @jax.jit
    def run(*arrays):
        gradient = jax.grad(lambda p, t, m: denoise(p, t, m).sum(), argnums=(0, 1, 2))(*arrays)
        return denoise(*arrays), denoise(*arrays[:2], arrays[2] > 0), gradient

    got, boolean, (to_prediction, to_target, to_mask) = run(prediction, target, mask)
    np.testing.assert_allclose(got, want, rtol=1e-12)
    assert got[2] == pytest.approx(np.mean((prediction[2] - target[2]) ** 2), rel=1e-12)
    assert boolean[2] == got[2] and boolean[1] == 0 and np.isfinite(boolean).all()
    assert np.isfinite(to_prediction).all() and not np.asarray(to_prediction)[mask[..., 0] == 0].any()
    assert not to_target.any() and not to_mask.any() and to_prediction[2].all()


def reference_subject(x, reference, mu_class, mu, variance, batch_mean):
    def squares(a, b):
        return [np.mean([(u - v) ** 2 for u, v in zip(p, q, strict=True)]) for p, q in zip(a, b, strict=True)]

    near, far = squares(x, mu_class), squares(x, mu)
    if batch_mean:
        near, far = [np.mean(near)] * len(x), [np.mean(far)] * len(x)
    known = [
        (a - b) / (2 * v + 1e-6) for a, b, v in zip(squares(reference, mu_class), squares(reference, mu), variance, strict=True)
    ]
    loss = [(a - b) / (2 * v + 1e-6) for a, b, v in zip(near, far, variance, strict=True)]
    return loss, [float(a > b) for a, b in zip(loss, known, strict=True)]


def test_subject_derived_equals_its_reference_with_a_gradient_to_the_subject_alone(x64):
    means = RNG.normal(size=(4, 6, 5))
    variance = np.array([0.1, 1.0, 1e-20, 0.3, 2.0, 0.01])

    @jax.jit
    def run(variance, *means):
        def total(variance, *means):
            loss, gate = subject(*means, variance)
            return jnp.sum(loss * gate)

        return (
            subject(*means, variance),
            subject(*means, variance, batch_mean=True),
            jax.grad(total, argnums=range(5))(variance, *means),
        )

    plain, whole, gradients = run(variance, *means)
    assert 0 < sum(plain[1]) < 6
    for got, batch_mean in ((plain, False), (whole, True)):
        for a, b in zip(got, reference_subject(*means, variance, batch_mean), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-9)
    _, _, mu_class, mu = means
    want = np.asarray(plain[1])[:, None] * 2 * (mu - mu_class) / 5 / (2 * variance + 1e-6)[:, None]
    np.testing.assert_allclose(gradients[1], want, rtol=1e-9)
    assert not any(np.any(g) for g in (gradients[0], *gradients[2:]))


def test_subject_derived_published_values_and_gates(x64):
    x, reference, zero = np.array([[1.0], [0.2], [0.5], [-3.0]]), np.full((4, 1), 0.5), np.zeros((4, 1))
    loss, gate = subject(x, reference, zero, zero + 2, np.full(4, 0.1))
    np.testing.assert_allclose(loss[:2], [0.0, -15.99992], atol=1e-5)
    np.testing.assert_array_equal(gate, [1, 0, 0, 0])
    loss, gate = subject(x, reference, zero + 7, zero + 7, np.full(4, 0.1))
    assert not loss.any() and not gate.any()


def test_the_gated_gradient_moves_the_subject_towards_its_class_until_it_is_typical():
    mu_class, mu, reference = jnp.array([[-1.0, 0.0]]), jnp.array([[1.0, 0.0]]), jnp.array([[-0.5, 0.3]])

    def objective(x):
        loss, gate = subject(x, reference, mu_class, mu, jnp.array([0.5]))
        return jnp.sum(loss * gate)

    x = jax.jit(lambda x: jax.lax.fori_loop(0, 200, lambda _, x: x - 0.05 * jax.grad(objective)(x), x))(jnp.array([[2.0, 1.0]]))
    # It stops where its log-odds reach those of the reference, one step past at most, and keeps what no class mean differs in.
    assert -0.65 < x[0, 0] <= -0.5 and x[0, 1] == 1.0
