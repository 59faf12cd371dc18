"""The loss of a masked autoencoder against loops, and a small one on digits."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj

RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(3, 4, 6, 2))
PREDICTIONS = RNG.normal(size=(3, 6, 8))
MASK = np.array([[1, 1, 0, 1, 0, 1], [0, 0, 1, 0, 0, 0], [0] * 6], bool)
loss = jax.jit(rj.losses.masked_patch_loss, static_argnames=("patch_size", "normalize_pixels", "eps", "per_image"))


def targets(image, normalize, eps=1e-6):
    out = []
    for h in range(0, image.shape[0], 2):
        for w in range(0, image.shape[1], 2):
            patch = image[h : h + 2, w : w + 2].reshape(-1)
            if normalize:
                mean = sum(patch) / len(patch)
                variance = sum((v - mean) ** 2 for v in patch) / (len(patch) - 1)
                patch = (patch - mean) / np.sqrt(variance + eps)
            out.append(patch)
    return np.array(out)


def reference(predictions, images, mask, normalize, per_image):
    errors = [
        [np.mean((z - t) ** 2) for z, t, m in zip(zs, targets(image, normalize), ms, strict=True) if m]
        for zs, image, ms in zip(predictions, images, mask, strict=True)
    ]
    if per_image:
        return np.mean([np.mean(e) for e in errors if e])
    return np.mean([e for of_image in errors for e in of_image])


def test_equals_the_loop_and_the_published_value(x64):
    for normalize in (True, False):
        for per_image in (True, False):
            got = loss(PREDICTIONS, IMAGES, MASK, patch_size=2, normalize_pixels=normalize, per_image=per_image)
            assert got == pytest.approx(reference(PREDICTIONS, IMAGES, MASK, normalize, per_image), rel=1e-12)
    patch = np.array([1.0, 2.0, 3.0, 4.0]).reshape(1, 2, 2, 1)
    one = np.ones((1, 1), bool)
    assert loss(np.zeros((1, 1, 4)), patch, one, patch_size=2) == pytest.approx(0.74999955, abs=5e-9)
    want = np.array([-1.16189466, -0.38729822, 0.38729822, 1.16189466])
    assert loss(want.reshape(1, 1, 4), patch, one, patch_size=2) == pytest.approx(0, abs=1e-15)
    assert loss(np.zeros((1, 1, 4)), 7 + 0 * patch, one, patch_size=2) == 0  # a constant patch
    assert loss(np.zeros((1, 4, 1)), patch, np.ones((1, 4), bool), patch_size=1) == 0  # a patch of one number
    # The target is blind to contrast and brightness of each patch.
    assert loss(PREDICTIONS, 3 * IMAGES - 5, MASK, patch_size=2, eps=1e-20) == pytest.approx(
        float(loss(PREDICTIONS, IMAGES, MASK, patch_size=2, eps=1e-20)), rel=1e-12
    )


def test_gradient_is_the_closed_form_and_zero_where_nothing_is_hidden(x64):
    gradient = jax.jit(jax.grad(lambda z, mask: rj.losses.masked_patch_loss(z, IMAGES, mask, patch_size=2)))
    target = np.array([targets(image, True) for image in IMAGES])
    want = np.where(MASK[:, :, None], 2 * (PREDICTIONS - target) / 8 / MASK.sum(), 0)
    got = gradient(jnp.asarray(np.where(MASK[:, :, None], PREDICTIONS, np.nan)), MASK)  # the others may hold anything
    np.testing.assert_allclose(got, want, rtol=1e-12)
    np.testing.assert_array_equal(gradient(jnp.asarray(PREDICTIONS), np.zeros_like(MASK)), np.zeros_like(PREDICTIONS))
    assert loss(PREDICTIONS, IMAGES, np.zeros_like(MASK), patch_size=2) == 0
    assert loss(PREDICTIONS, IMAGES, np.zeros_like(MASK), patch_size=2, per_image=True) == 0


def test_targets_are_in_the_order_of_patchify(x64):
    own = rj.inputs.patchify(IMAGES, 2)
    assert loss(own, IMAGES, np.ones_like(MASK), patch_size=2, normalize_pixels=False) == 0


@pytest.mark.slow
def test_a_small_masked_autoencoder_fills_in_digits():
    """A quarter of the patches says more about the others than the best constant does."""
    from sklearn.datasets import load_digits

    images = jnp.asarray(load_digits().images[..., None] / 16, jnp.float32)
    train, held_out = images[:1500], images[1500:]
    width = 64

    def init(key):
        shapes = {"embed": (4, width), "place": (16, width), "mix": (width, width), "up": (width, width), "out": (width, 64)}
        keys = jax.random.split(key, len(shapes))
        return {n: jax.random.normal(k, s) / s[0] ** 0.5 for k, (n, s) in zip(keys, shapes.items(), strict=True)}

    def objective(p, images, key):
        mask = rj.inputs.random_patch_mask(key, len(images), 16)
        tokens = rj.inputs.keep_tokens(rj.inputs.patchify(images, 2) @ p["embed"] + 4 * p["place"], mask.ids_keep)
        context = jax.nn.relu(jax.nn.relu(tokens) @ p["mix"]).sum(1)
        predictions = (jax.nn.relu(context @ p["up"]) @ p["out"]).reshape(-1, 16, 4)
        return rj.losses.masked_patch_loss(predictions, images, mask.mask, patch_size=2, normalize_pixels=False)

    optimizer = optax.adam(3e-3)

    def step(carry, key):
        p, state = carry
        batch = train[jax.random.randint(key, (64,), 0, len(train))]
        updates, state = optimizer.update(jax.grad(objective)(p, batch, key), state, p)
        return (optax.apply_updates(p, updates), state), None

    @jax.jit
    def run(key):
        p = init(key)
        return jax.lax.scan(step, (p, optimizer.init(p)), jax.random.split(key, 400))[0][0]

    constant = jnp.mean(jnp.square(held_out - train.mean(0)))
    error = objective(run(jax.random.key(0)), held_out, jax.random.key(1))
    assert error < 0.9 * constant, (error, constant)
