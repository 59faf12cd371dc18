"""Smooth tokens against loops in NumPy, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import regjax as rj

smooth = rj.features.neighbor_smooth_loss
RNG = np.random.default_rng(0)
BLUR = {
    3: np.array([[1, 2, 1], [2, 4, 2], [1, 2, 1]]) / 16,
    5: np.array([[1, 4, 7, 4, 1], [4, 16, 26, 16, 4], [7, 26, 41, 26, 7], [4, 16, 26, 16, 4], [1, 4, 7, 4, 1]]) / 273,
}


def reference(tokens, direction, threshold, temperature, size, min_count):
    height, width, _ = tokens.shape
    margin = size // 2
    logits = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            product = tokens[i, j] @ direction / np.linalg.norm(tokens[i, j]) / np.linalg.norm(direction)
            logits[i, j] = -abs(product)
    limit = logits.mean() - threshold * logits.std(ddof=1)
    mask, lengths, errors, gradient = np.zeros((height, width), bool), [], [], np.zeros_like(tokens)
    for i in range(margin, height - margin):
        for j in range(margin, width - margin):
            lengths.append(np.linalg.norm(tokens[i, j]))
            if logits[i, j] >= limit:
                continue
            mask[i, j] = True
            window = np.s_[i - margin : i + margin + 1, j - margin : j + margin + 1]
            weights = np.exp(logits[window] / temperature)
            weights = weights / weights.sum() * BLUR[size]
            weights = weights / weights.sum()
            target = sum(weights[a, b] * tokens[window][a, b] for a in range(size) for b in range(size))
            error = tokens[i, j] - target
            errors.append(np.linalg.norm(error))
            gradient[i, j] = error / np.linalg.norm(error)
    if len(errors) < min_count:
        return 0.0, mask, np.zeros_like(tokens)
    return np.mean(errors) / np.mean(lengths), mask, gradient / len(errors) / np.mean(lengths)


@pytest.mark.parametrize("size", [3, 5])
def test_equals_its_loops(x64, size):
    tokens = 0.5 * RNG.normal(size=(6, 9, 7, 4)) + np.array([0.0, 1.0, 1.0, 0.0])
    direction = np.array([2.0, 0.3, 0.0, 0.5])
    tokens[:, 3, 3] += 4 * direction
    tokens[:3, 5, 2] += 3 * direction
    options = {"mask_threshold": 1.2, "temperature": 0.3, "kernel_size": size, "min_count": 2}
    one = lambda x, u: smooth(x, u, **options)
    both = jax.jit(jax.vmap(jax.value_and_grad(one, has_aux=True), in_axes=(0, None)))
    (losses, masks), gradients = both(tokens, direction)
    counts = set()
    for i, image in enumerate(tokens):
        want, mask, gradient = reference(image, direction, 1.2, 0.3, size, 2)
        assert float(losses[i]) == pytest.approx(want, rel=1e-10)
        np.testing.assert_array_equal(masks[i], mask)
        np.testing.assert_allclose(gradients[i], gradient, rtol=1e-9, atol=1e-12)
        counts.add(int(mask.sum()))
    assert len(counts) > 1
    # Neither the sign nor the length of the direction matters.
    (turned, same), _ = both(tokens, -7 * direction)
    np.testing.assert_allclose(turned, losses, rtol=1e-10)
    np.testing.assert_array_equal(same, masks)


def test_published_value_and_images_without_defects():
    tokens = jnp.zeros((5, 5, 2)).at[..., 1].set(1.0).at[2, 2].set(jnp.array([10.0, 0.0]))
    direction = jnp.array([1.0, 0.0])
    both = jax.jit(jax.value_and_grad(smooth, has_aux=True), static_argnames="min_count")
    (loss, mask), gradient = both(tokens, direction, min_count=1, temperature=0.1)
    assert float(loss) == pytest.approx(5.0248618, rel=1e-6)
    np.testing.assert_array_equal(np.argwhere(mask), [[2, 2]])
    assert np.count_nonzero(np.any(np.asarray(gradient) != 0, axis=-1)) == 1
    # At a temperature near 0 only the smoothest neighbours count.
    (loss, _), gradient = both(tokens, direction, min_count=1, temperature=1e-6)
    assert float(loss) == pytest.approx(np.sqrt(101) / 2, rel=1e-6) and np.all(np.isfinite(gradient))
    flat = jnp.ones((5, 5, 2)) * jnp.linspace(0.1, 3.0, 25).reshape(5, 5, 1)
    for image in (flat, tokens.at[2, 2].set(jnp.array([0.0, 1.0])), jnp.zeros((5, 5, 2))):
        (loss, mask), gradient = both(image, direction, min_count=1, temperature=0.1)
        assert loss == 0 and not mask.any() and not gradient.any()
    (loss, mask), gradient = both(tokens, direction, min_count=3, temperature=0.1)
    assert loss == 0 and mask.sum() == 1 and not gradient.any()
