"""Refilled images against loops, their samplers, and activation maps against loops in float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import regjax as rj

# The tests compile much and run little.
jit = functools.partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)
IMAGES = RNG.normal(size=(6, 7, 10, 2)).astype(np.float32)
HIDDEN = RNG.random((6, 3, 4)) < 0.5


def refill(images, hidden, source):
    """``source(i, row, column)`` is the image that fills a patch."""
    out = images.copy()
    batch, height, width, _ = images.shape
    for i in range(batch):
        for y in range(height):
            for x in range(width):
                patch = y * hidden.shape[1] // height, x * hidden.shape[2] // width
                if hidden[i][patch]:
                    out[i, y, x] = images[source(i, *patch), y, x]
    return out


def sources(count, **options):
    """Which image fills each patch of images that are their own number, -1 where none: [N, B, h, w]."""
    images = jnp.broadcast_to(jnp.arange(8.0)[:, None, None, None], (8, 6, 9, 1))
    fill = lambda key: rj.inputs.random_mask_refill(key, images, grid=(2, 3), **options)[0][..., 0]
    filled = np.asarray(jit(jax.vmap(fill))(jax.random.split(jax.random.key(0), count)))
    patches = filled[:, :, ::3, ::3]
    np.testing.assert_array_equal(filled, patches.repeat(3, 2).repeat(3, 3))
    return np.where(patches == np.arange(8)[:, None, None], -1, patches).astype(int)


def test_apply_mask_refill_is_the_loop():
    apply = jit(rj.inputs.apply_mask_refill)
    partner = np.array([3, 3, 0, 1, 5, 2])
    np.testing.assert_array_equal(apply(IMAGES, HIDDEN, partner=partner), refill(IMAGES, HIDDEN, lambda i, *_: partner[i]))
    shift = RNG.integers(0, 6, HIDDEN.shape)
    want = refill(IMAGES, HIDDEN, lambda i, r, c: (i + shift[i, r, c]) % 6)
    np.testing.assert_array_equal(apply(IMAGES, HIDDEN, shift=shift), want)
    blocks = shift.reshape(2, 3, 3, 4)
    want = refill(IMAGES, HIDDEN, lambda i, r, c: i // 3 * 3 + (i % 3 + shift[i, r, c]) % 3)
    np.testing.assert_array_equal(apply(IMAGES, HIDDEN, shift=blocks), want)
    np.testing.assert_array_equal(apply(IMAGES, HIDDEN, partner=np.arange(6)), IMAGES)
    np.testing.assert_array_equal(apply(IMAGES, ~HIDDEN & False, shift=shift), IMAGES)


def test_cam_masks():
    cam = RNG.random((6, 3, 4)).astype(np.float32) * 5
    cam[2] = 0
    object_mask, context_mask = (np.asarray(rj.inputs.cam_mask(cam, threshold=0.6, mask=m)) for m in ("object", "context"))
    np.testing.assert_array_equal(object_mask, cam / (cam.max((1, 2), keepdims=True) + 1e-8) > 0.6)
    assert not object_mask[2].any()
    assert context_mask[2].all()
    fill = jit(functools.partial(rj.inputs.cam_mask_refill, jax.random.key(0), fill="multi"), static_argnames="mask")
    filled = [np.asarray(fill(IMAGES, cam=cam, threshold=0.6, mask=m)[0]) for m in ("object", "context")]
    # Both at once replace every pixel once.
    changed = np.stack([(x != IMAGES).all(-1) for x in filled])
    assert np.all(changed.sum(0) == 1)
    rows, columns = np.arange(7) * 3 // 7, np.arange(10) * 4 // 10
    np.testing.assert_array_equal(changed[0], object_mask[:, rows][:, :, columns])
    np.testing.assert_array_equal(fill(IMAGES, cam=cam, threshold=1.0, mask="object")[0], IMAGES)


def test_the_samplers():
    single = sources(500, prob=0.4)
    partner = np.where(single >= 0, single, -1).max((2, 3))
    assert np.all((single == -1) | (single == partner[..., None, None])), "one partner for all patches"
    rate = 0.4 * 7 / 8  # an example meets itself once in 8
    assert abs((single >= 0).mean() - rate) < 5 * np.sqrt(0.4 * 7 / 8 / (500 * 8))
    full = sources(500, prob=1.0)[:, :, 0, 0]
    full = np.where(full < 0, np.arange(8), full)
    assert np.all(np.sort(full, 1) == np.arange(8)), "a permutation"
    assert np.all(abs((full[..., None] == np.arange(8)).mean(0) - 1 / 8) < 5 * np.sqrt(7 / 64 / 500))
    multi = sources(500, prob=0.4, fill="multi")
    assert abs((multi >= 0).mean() - 0.4) < 5 * np.sqrt(0.24 / multi.size)
    shift = (multi - np.arange(8)[:, None, None]) % 8
    counts = np.bincount(shift[multi >= 0], minlength=8)
    assert counts[0] == 0
    n = counts.sum()
    assert np.all(abs(counts[1:] - n / 7) < 5 * np.sqrt(n * 6 / 49))
    assert (multi[:, :, 0, 0] != multi[:, :, 1, 1])[(multi >= 0)[:, :, [0, 1], [0, 1]].all(-1)].mean() > 0.7
    for fill in ("single", "multi"):
        inside = sources(100, prob=0.7, fill=fill, within_shard=4)
        assert np.all((inside < 0) | (inside // 2 == (np.arange(8) // 2)[:, None, None]))
        assert (inside >= 0).any()
    assert not (sources(3, prob=0.0) >= 0).any()


def test_one_image():
    one, labels = rj.inputs.random_mask_refill(jax.random.key(0), IMAGES[:1], np.array([3]), grid=2)
    np.testing.assert_array_equal(one, IMAGES[:1])
    assert labels.tolist() == [3]
    with pytest.raises(ValueError, match="images must be two or more"):
        rj.inputs.random_mask_refill(jax.random.key(0), IMAGES[:1], grid=2, fill="multi")


def test_attention_relevance_is_the_loop(x64):
    attention, gradient = RNG.random((3, 2, 4, 5, 5)), RNG.normal(size=(3, 2, 4, 5, 5))
    want = np.zeros((2, 4))
    for b in range(2):
        relevance = np.eye(5)
        for layer in range(3):
            mean = sum(np.maximum(gradient[layer, b, h] * attention[layer, b, h], 0) for h in range(4)) / 4
            relevance = relevance + mean @ relevance
        want[b] = relevance[0, 1:]
    np.testing.assert_allclose(rj.inputs.attention_relevance(attention, gradient), want, rtol=1e-12)
    assert not np.any(rj.inputs.attention_relevance(attention, 0 * gradient))


def test_grad_cam_is_the_loop(x64):
    activations, gradient = RNG.normal(size=(3, 5, 4)), RNG.normal(size=(3, 5, 4))
    for skip in (1, 0):
        want = np.zeros((3, 5 - skip))
        for b in range(3):
            weights = sum(gradient[b, j] for j in range(skip, 5)) / (5 - skip)
            for j in range(skip, 5):
                want[b, j - skip] = max(0, weights @ activations[b, j])
        got = rj.inputs.grad_cam(activations, gradient, class_token=bool(skip))
        np.testing.assert_allclose(got, want, rtol=1e-12)
        assert want.any()


def test_relevance_finds_the_token_that_decides():
    """An attention whose logit is the value of one token: the relevance is there alone."""
    values = jnp.zeros((1, 5, 1)).at[0, 3].set(2.0)

    def logit(zeros):
        attention = jnp.full((1, 1, 5, 5), 0.2) + zeros
        return jnp.einsum("bhts,bsd->btd", attention, values)[0, 0, 0], attention

    gradient, attention = jax.grad(logit, has_aux=True)(jnp.zeros((1, 1, 5, 5)))
    np.testing.assert_allclose(rj.inputs.attention_relevance(attention[None], gradient[None]), [[0, 0, 0.4, 0]], rtol=1e-6)


@pytest.mark.slow
def test_distillation_on_refilled_images_survives_a_flipped_cue():
    """The claim at small scale: digits fine-tuned where a bright pixel tells the class, tested where it tells another."""
    data = pytest.importorskip("sklearn.datasets").load_digits()
    images, labels = jnp.asarray(data.data / 16, jnp.float32).reshape(-1, 8, 8, 1), jnp.asarray(data.target)
    optimiser = optax.adam(3e-3)

    def cue(x, c):
        blank = x.at[:, 0].set(0).at[:, 7].set(0)
        return blank.at[jnp.arange(len(x)), jnp.where(c < 5, 0, 7), c % 5 + 1, 0].set(3.0)

    features = lambda p, x: jnp.tanh(x.reshape(len(x), -1) @ p["hidden"] + p["bias"])
    logits = lambda p, x: features(p, x) @ p["out"]
    cross_entropy = lambda p, x, y: optax.softmax_cross_entropy_with_integer_labels(logits(p, x), y).mean()

    def fit(params, loss, key):
        def step(carry, key):
            params, state = carry
            updates, state = optimiser.update(jax.grad(loss)(params, key), state)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, (params, optimiser.init(params)), jax.random.split(key, 200))[0][0]

    @jax.jit
    @jax.vmap
    def accuracies(key):
        keys = jax.random.split(key, 5)
        order = jax.random.permutation(keys[0], len(labels))
        before, tuning, test = order[:700], order[700:1200], order[1200:]
        params = {
            "hidden": jax.random.normal(keys[1], (64, 64)) / 8,
            "bias": jnp.zeros(64),
            "out": jax.random.normal(keys[2], (64, 10)) / 8,
        }

        def pretraining(params, key):
            rows_key, cue_key = jax.random.split(key)
            rows = jax.random.choice(rows_key, before, (64,))
            return cross_entropy(params, cue(images[rows], jax.random.randint(cue_key, (64,), 0, 10)), labels[rows])

        teacher = fit(params, pretraining, keys[3])

        def tuning_loss(params, key, weight):
            rows_key, fill_key = jax.random.split(key)
            rows = jax.random.choice(rows_key, tuning, (64,))
            x = cue(images[rows], labels[rows])
            filled, _ = rj.inputs.random_mask_refill(fill_key, x, grid=4)
            distance = rj.features.feature_distillation(features(params, filled), features(teacher, filled)).mean()
            return cross_entropy(params, x, labels[rows]) + weight * distance

        tuned = [fit(teacher, functools.partial(tuning_loss, weight=w), keys[4]) for w in (0.0, 30.0)]
        flipped = cue(images[test], (labels[test] + 3) % 10)
        return jnp.stack([jnp.mean(jnp.argmax(logits(p, flipped), 1) == labels[test]) for p in tuned])

    plain, distilled = np.asarray(accuracies(jax.random.split(jax.random.key(0), 3))).mean(0)
    assert distilled > plain + 0.05
