"""Examples of `regjax.inputs`: erasing, styles, noise masks, refilled images and swapped halves."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal, probabilities

KEY, NAN = jax.random.key(0), float("nan")
IMAGES = normal(8, 4, 6, 2)
BATCH = {"images": IMAGES, "labels": probabilities(8, 3)}
SINGULAR = (
    {"images": np.zeros((8, 4, 6, 2)), "labels": np.zeros((8, 3))},
    {"images": 1e4 * np.sign(IMAGES), "labels": np.eye(3)[np.arange(8) % 3]},
)
EXTREME = ({"images": np.zeros((8, 4, 6, 2))}, {"images": 1e4 * np.sign(IMAGES)})
BOXES = {
    "area_fraction": np.array([[0.0, 0.1], [0.1, 0.3], [0.3, 0.9], [0.2, 0.2]] * 2),
    "log_aspect": normal(8, 2, seed=3) / 3,
    "top": (np.arange(16).reshape(8, 2) % 3).astype(np.int32),
    "left": (np.arange(16).reshape(8, 2) % 5).astype(np.int32),
}
CAM = probabilities(8, 6, seed=5).reshape(8, 2, 3)
HIDDEN = normal(8, 2, 3, seed=6) > 0
PARTNER = np.array([3, 0, 1, 2, 7, 4, 6, 5], np.int32)
SHIFT = (np.arange(48).reshape(8, 2, 3) % 7 + 1).astype(np.int32)
POLICY = {"log_alpha": normal(8, 9, seed=7) / 2, "log_beta": normal(8, 9, seed=8) / 2}
ATTENTION = {"attention": probabilities(2, 8, 2, 3, 3, seed=9), "attention_grad": normal(2, 8, 2, 3, 3, seed=10)}

X, Y = jnp.ones((4, 4, 6, 1)), jnp.eye(4)
C4, H4, P4, A4 = jnp.ones((4, 2, 3)), jnp.ones((4, 2, 3), bool), jnp.arange(4), jnp.zeros((4, 9))


def image_errors(call) -> dict:
    """The errors of a sampler's key and images; ``call(key, images)`` is given each."""
    return {
        "key: a number": lambda: call(0, X),
        "images: integers": lambda: call(KEY, X.astype(int)),
        "images: rank": lambda: call(KEY, X[0]),
    }


def prob_errors(call) -> dict:
    """The errors of a probability; ``call(prob=...)`` is given each."""
    return {
        "prob: above 1": lambda: call(prob=1.5),
        "prob: negative": lambda: call(prob=-0.1),
        "prob: NaN": lambda: call(prob=NAN),
        "prob: a schedule": lambda: call(prob=lambda step: 0.5),
        "prob: a vector": lambda: call(prob=jnp.ones(2)),
    }


def fill_errors(call) -> dict:
    """The errors of where patches are filled from."""
    return {
        "fill: misspelt": lambda: call(fill="mutli"),
        "within_shard: does not divide the batch": lambda: call(within_shard=3),
        "within_shard: zero": lambda: call(within_shard=0),
        "images: one in each block": lambda: call(fill="multi", within_shard=4),
    }


def sampler(name: str, call, *, bad, identity=None, arrays=BATCH, rows=("images", "labels"), **fields) -> Example:
    """The example of ``f(key, images, labels) -> (images, labels)``."""
    return Example(
        name=f"inputs.{name}",
        call=call,
        arrays=arrays,
        rows=rows,
        result="other",
        dtype="input",
        wrt=("images", "labels"),
        random=True,
        identity=identity,
        singular=SINGULAR,
        bad=bad,
        **fields,
    )


erasing = functools.partial(rj.inputs.random_erasing, KEY, X)
style = functools.partial(rj.inputs.batch_style, KEY, X)
cam_fill = functools.partial(rj.inputs.cam_mask_refill, KEY, X, cam=C4)
random_fill = functools.partial(rj.inputs.random_mask_refill, KEY, X)
draw = functools.partial(rj.inputs.sample_noise_mask, KEY, A4, A4, image_size=6, grid=3, kernel_size=3)
policy_loss = functools.partial(rj.inputs.noise_mask_policy_loss, A4, A4)


def blur_errors(call) -> dict:
    """The errors of the blur; ``call(**options)`` is given each."""
    return {
        "image_size: three sides": lambda: call(image_size=(4, 4, 4)),
        "image_size: a fraction": lambda: call(image_size=4.5),
        "kernel_size: even": lambda: call(kernel_size=4),
        "kernel_size: wider than the image reflects": lambda: call(kernel_size=13),
        "sigma: zero": lambda: call(sigma=0.0),
        "sigma: NaN": lambda: call(sigma=NAN),
        "sigma: traced": lambda: call(sigma=jnp.ones(())),
    }


def one_box(**changed):
    """A call of the core of erasing with one argument changed."""
    given = {"area_fraction": jnp.ones(4) / 4, "log_aspect": jnp.zeros(4), "top": P4, "left": P4, **changed}
    return rj.inputs.apply_random_erasing(given.pop("images", X), **given)


EXAMPLES = (
    sampler(
        "random_erasing",
        lambda key, images, labels: rj.inputs.random_erasing(key, images, labels, prob=0.9, mode="pixel", count=2),
        identity=lambda key, images, labels: (rj.inputs.random_erasing(key, images, labels, prob=0.0), (images, labels)),
        bad={
            **image_errors(rj.inputs.random_erasing),
            **prob_errors(erasing),
            "min_area: negative": lambda: erasing(min_area=-0.1),
            "max_area: above 1": lambda: erasing(max_area=1.5),
            "max_area: below the least": lambda: erasing(min_area=0.5, max_area=0.4),
            "min_aspect: zero": lambda: erasing(min_aspect=0.0),
            "min_aspect: above 1 without a largest": lambda: erasing(min_aspect=2.0),
            "max_aspect: below the least": lambda: erasing(min_aspect=0.5, max_aspect=0.4),
            "mode: misspelt": lambda: erasing(mode="pixels"),
            "count: zero": lambda: erasing(count=0),
            "attempts: a fraction": lambda: erasing(attempts=1.5),
            "aspect: misspelt": lambda: erasing(aspect="uniforn"),
        },
    ),
    sampler(
        "random_erasing",
        lambda key, images, labels: rj.inputs.random_erasing(key, images, labels, prob=0.9, mode="rand", aspect="uniform"),
        bad={},
    ),
    Example(
        name="inputs.apply_random_erasing",
        call=lambda key, images, value, **boxes: rj.inputs.apply_random_erasing(images, **boxes, value=value),
        arrays={"images": IMAGES, "value": normal(8, 2, 2, seed=4), **BOXES},
        rows=("images", "value", *BOXES),
        result="rows",
        dtype="input",
        wrt=("images", "value"),
        identity=lambda key, images, value, area_fraction, **boxes: (
            rj.inputs.apply_random_erasing(images, **boxes, area_fraction=0 * area_fraction, value=value),
            images,
        ),
        singular=EXTREME,
        bad={
            "images: integers": lambda: one_box(images=X.astype(int)),
            "area_fraction: rank": lambda: one_box(area_fraction=jnp.ones(())),
            "area_fraction: of other examples": lambda: one_box(area_fraction=jnp.ones(3)),
            "log_aspect: shape": lambda: one_box(log_aspect=jnp.ones((4, 2))),
            "top: floats": lambda: one_box(top=jnp.ones(4)),
            "left: shape": lambda: one_box(left=jnp.arange(3)),
            "value: a vector": lambda: one_box(value=jnp.ones(3)),
            "value: NaN": lambda: one_box(value=NAN),
        },
    ),
    sampler(
        "batch_style",
        lambda key, images, labels: rj.inputs.batch_style(key, images, labels, clip=(-5.0, 2e4)),
        bad={
            **image_errors(rj.inputs.batch_style),
            "images: not that many views": lambda: rj.inputs.batch_style(KEY, X[None], views=2),
            "min_ratio: negative": lambda: style(min_ratio=-0.1),
            "max_ratio: above 1": lambda: style(max_ratio=1.1),
            "max_ratio: below the least": lambda: style(min_ratio=0.5, max_ratio=0.4),
            "views: zero": lambda: style(views=0),
            "clip: one number": lambda: style(clip=1.0),
            "clip: crossed": lambda: style(clip=(1.0, 0.0)),
        },
        tolerance=1e-4,
    ),
    Example(
        name="inputs.apply_batch_style",
        call=lambda key, images, reference_index, ratio: rj.inputs.apply_batch_style(
            images, reference_index=reference_index, ratio=ratio
        ),
        arrays={"images": normal(8, 3, 5, 1), "reference_index": np.array(3, np.int32), "ratio": np.array(0.5)},
        rows=("images",),
        result="other",
        dtype="input",
        wrt=("images",),
        singular=(
            {"images": np.zeros((8, 3, 5, 1))},
            {"images": np.ones((8, 3, 5, 1))},
            {"images": 1e4 * np.sign(normal(8, 3, 5, 1)), "ratio": np.array(0.0)},
        ),
        bad={
            "images: integers": lambda: rj.inputs.apply_batch_style(X.astype(int), reference_index=0, ratio=0.5),
            "images: rank": lambda: rj.inputs.apply_batch_style(X[0], reference_index=0, ratio=0.5),
            "reference_index: a float": lambda: rj.inputs.apply_batch_style(X, reference_index=0.0, ratio=0.5),
            "reference_index: several": lambda: rj.inputs.apply_batch_style(X, reference_index=P4, ratio=0.5),
            "ratio: above 1": lambda: rj.inputs.apply_batch_style(X, reference_index=0, ratio=1.5),
            "ratio: NaN": lambda: rj.inputs.apply_batch_style(X, reference_index=0, ratio=NAN),
            "ratio: a vector": lambda: rj.inputs.apply_batch_style(X, reference_index=0, ratio=jnp.ones(4)),
            "clip: one number": lambda: rj.inputs.apply_batch_style(X, reference_index=0, ratio=0.5, clip=(1.0,)),
        },
        tolerance=1e-4,
    ),
    Example(
        name="inputs.apply_batch_style",
        call=lambda key, images, reference_index, ratio: rj.inputs.apply_batch_style(
            jnp.stack([images, -2 * images]), reference_index=reference_index, ratio=ratio
        ),
        arrays={"images": normal(8, 3, 5, 1), "reference_index": np.array([3, 1], np.int32), "ratio": np.array([0.5, 1.0])},
        rows=("images",),
        result="other",
        dtype="input",
        bad={},
        tolerance=1e-4,
    ),
    sampler(
        "cam_mask_refill",
        lambda key, images, labels, cam: rj.inputs.cam_mask_refill(key, images, labels, cam=cam, threshold=0.5),
        arrays={**BATCH, "cam": CAM},
        rows=("images", "labels", "cam"),
        frozen=("cam",),
        identity=lambda key, images, labels, cam: (
            rj.inputs.cam_mask_refill(key, images, labels, cam=cam, threshold=1.0, fill="multi"),
            (images, labels),
        ),
        bad={
            **image_errors(lambda key, images: rj.inputs.cam_mask_refill(key, images, cam=C4)),
            **fill_errors(cam_fill),
            "cam: of other examples": lambda: cam_fill(cam=C4[:3]),
            "cam: integers": lambda: cam_fill(cam=C4.astype(int)),
            "cam: more patches than pixels": lambda: cam_fill(cam=jnp.ones((4, 8, 3))),
            "threshold: negative": lambda: cam_fill(threshold=-0.1),
            "threshold: NaN": lambda: cam_fill(threshold=NAN),
            "mask: misspelt": lambda: cam_fill(mask="contex"),
        },
    ),
    sampler(
        "random_mask_refill",
        lambda key, images, labels: rj.inputs.random_mask_refill(key, images, labels, grid=(2, 3), fill="multi", within_shard=2),
        identity=lambda key, images, labels: (
            rj.inputs.random_mask_refill(key, images, labels, grid=2, prob=0.0),
            (images, labels),
        ),
        bad={
            **image_errors(lambda key, images: rj.inputs.random_mask_refill(key, images, grid=2)),
            **prob_errors(functools.partial(random_fill, grid=2)),
            **fill_errors(functools.partial(random_fill, grid=2)),
            "grid: zero": lambda: random_fill(grid=0),
            "grid: more patches than pixels": lambda: random_fill(grid=5),
            "grid: three sides": lambda: random_fill(grid=(2, 2, 2)),
            "grid: a fraction": lambda: random_fill(grid=1.5),
        },
    ),
    sampler(
        "random_mask_refill",
        lambda key, images, labels: rj.inputs.random_mask_refill(key, images, labels, grid=3, within_shard=4),
        bad={},
    ),
    Example(
        name="inputs.apply_mask_refill",
        call=lambda key, images, hidden, shift, partner: (
            rj.inputs.apply_mask_refill(images, hidden, shift=shift),
            rj.inputs.apply_mask_refill(images, hidden, partner=partner),
        ),
        arrays={"images": IMAGES, "hidden": HIDDEN, "shift": SHIFT, "partner": PARTNER},
        rows=("images", "hidden", "shift", "partner"),
        result="other",
        dtype="input",
        wrt=("images",),
        identity=lambda key, images, hidden, shift, partner: (
            rj.inputs.apply_mask_refill(images, hidden & False, shift=shift),
            images,
        ),
        singular=EXTREME,
        bad={
            "images: integers": lambda: rj.inputs.apply_mask_refill(X.astype(int), H4, partner=P4),
            "hidden: floats": lambda: rj.inputs.apply_mask_refill(X, C4, partner=P4),
            "hidden: of other examples": lambda: rj.inputs.apply_mask_refill(X, H4[:3], partner=P4),
            "partner: missing": lambda: rj.inputs.apply_mask_refill(X, H4),
            "partner: beside shift": lambda: rj.inputs.apply_mask_refill(X, H4, partner=P4, shift=H4.astype(int)),
            "partner: floats": lambda: rj.inputs.apply_mask_refill(X, H4, partner=jnp.ones(4)),
            "shift: floats": lambda: rj.inputs.apply_mask_refill(X, H4, shift=C4),
            "shift: shape": lambda: rj.inputs.apply_mask_refill(X, H4, shift=jnp.ones((4, 2, 2), int)),
        },
    ),
    Example(
        name="inputs.cam_mask",
        call=lambda key, cam: rj.inputs.cam_mask(cam, threshold=0.5),
        arrays={"cam": CAM},
        rows=("cam",),
        result="rows",
        dtype=None,
        singular=({"cam": np.zeros((8, 2, 3))},),
        bad={
            "cam: rank": lambda: rj.inputs.cam_mask(jnp.ones((4, 6))),
            "threshold: negative": lambda: rj.inputs.cam_mask(C4, threshold=-1.0),
            "mask: misspelt": lambda: rj.inputs.cam_mask(C4, mask="objekt"),
        },
    ),
    Example(
        name="inputs.attention_relevance",
        call=lambda key, attention, attention_grad: rj.inputs.attention_relevance(attention, attention_grad),
        arrays=ATTENTION,
        result="other",
        wrt=("attention", "attention_grad"),
        singular=({"attention_grad": np.zeros((2, 8, 2, 3, 3))},),
        bad={
            "attention: rank": lambda: rj.inputs.attention_relevance(jnp.ones((2, 4, 3, 3)), jnp.ones((2, 4, 3, 3))),
            "attention: not square": lambda: rj.inputs.attention_relevance(jnp.ones((1, 2, 1, 3, 4)), jnp.ones((1, 2, 1, 3, 4))),
            "attention_grad: shape": lambda: rj.inputs.attention_relevance(jnp.ones((1, 2, 1, 3, 3)), jnp.ones((1, 2, 2, 3, 3))),
            "attention_grad: integers": lambda: rj.inputs.attention_relevance(
                jnp.ones((1, 2, 1, 3, 3)), jnp.ones((1, 2, 1, 3, 3), int)
            ),
        },
    ),
    Example(
        name="inputs.attention_relevance",
        call=lambda key, attention, attention_grad: rj.inputs.attention_relevance(
            jnp.moveaxis(attention, 1, 0), jnp.moveaxis(attention_grad, 1, 0)
        ),
        arrays={name: np.moveaxis(x, 1, 0) for name, x in ATTENTION.items()},
        rows=("attention", "attention_grad"),
        result="rows",
        bad={},
    ),
    Example(
        name="inputs.grad_cam",
        call=lambda key, activations, grads: rj.inputs.grad_cam(activations, grads),
        arrays={"activations": normal(8, 4, 3, seed=11), "grads": normal(8, 4, 3, seed=12)},
        rows=("activations", "grads"),
        result="rows",
        wrt=("activations", "grads"),
        singular=({"activations": np.zeros((8, 4, 3)), "grads": np.zeros((8, 4, 3))},),
        bad={
            "activations: rank": lambda: rj.inputs.grad_cam(X, X),
            "activations: the class token alone": lambda: rj.inputs.grad_cam(jnp.ones((2, 1, 3)), jnp.ones((2, 1, 3))),
            "grads: shape": lambda: rj.inputs.grad_cam(jnp.ones((2, 4, 3)), jnp.ones((2, 3, 3))),
            "class_token: a number": lambda: rj.inputs.grad_cam(jnp.ones((2, 4, 3)), jnp.ones((2, 4, 3)), class_token=1),
        },
    ),
    Example(
        name="inputs.boundary_rearrange",
        call=lambda key, images: rj.inputs.boundary_rearrange(images, pad=2),
        arrays={"images": normal(8, 2, 5, 2)},
        rows=("images",),
        result="rows",
        dtype="input",
        wrt=("images",),
        identity=lambda key, images: (rj.inputs.boundary_rearrange(images, pad=0)[0], jnp.roll(images, -2, 2)),
        bad={
            "images: integers": lambda: rj.inputs.boundary_rearrange(X.astype(int), pad=1),
            "pad: negative": lambda: rj.inputs.boundary_rearrange(X, pad=-1),
            "pad: a fraction": lambda: rj.inputs.boundary_rearrange(X, pad=1.5),
            "axis: the batch": lambda: rj.inputs.boundary_rearrange(X, pad=1, axis=0),
        },
    ),
    Example(
        name="inputs.boundary_restore",
        call=lambda key, canvas: rj.inputs.boundary_restore(canvas, pad=1, axis=1),
        arrays={"canvas": normal(8, 5, 2, 2)},
        rows=("canvas",),
        result="rows",
        dtype="input",
        wrt=("canvas",),
        identity=lambda key, canvas: (
            rj.inputs.boundary_restore(rj.inputs.boundary_rearrange(canvas, pad=0)[0], pad=0),
            canvas,
        ),
        bad={
            "canvas: rank": lambda: rj.inputs.boundary_restore(X[0], pad=1),
            "canvas: all gap": lambda: rj.inputs.boundary_restore(X, pad=3),
            "pad: negative": lambda: rj.inputs.boundary_restore(X, pad=-1),
            "axis: a name": lambda: rj.inputs.boundary_restore(X, pad=1, axis="width"),
        },
    ),
    Example(
        name="inputs.sample_noise_mask",
        call=lambda key, log_alpha, log_beta: rj.inputs.sample_noise_mask(
            key, log_alpha, log_beta, image_size=(4, 6), grid=3, kernel_size=3, sigma=1.0
        ),
        arrays=POLICY,
        rows=("log_alpha", "log_beta"),
        result="other",
        frozen=("log_alpha", "log_beta"),
        random=True,
        singular=(
            {"log_alpha": np.full((8, 9), -1e4), "log_beta": np.full((8, 9), -1e4)},
            {"log_alpha": np.full((8, 9), 1e4), "log_beta": np.full((8, 9), -1e4)},
        ),
        bad={
            "key: a number": lambda: rj.inputs.sample_noise_mask(0, A4, A4, image_size=6, grid=3, kernel_size=3),
            "log_alpha: another grid": lambda: draw(grid=2),
            "log_alpha: integers": lambda: rj.inputs.sample_noise_mask(KEY, A4.astype(int), A4, image_size=6, grid=3),
            "log_beta: shape": lambda: rj.inputs.sample_noise_mask(KEY, A4, A4[:3], image_size=6, grid=3),
            "grid: zero": lambda: draw(grid=0),
            **blur_errors(draw),
        },
    ),
    Example(
        name="inputs.noise_mask_image",
        call=lambda key, mask: rj.inputs.noise_mask_image(mask, image_size=(4, 5), kernel_size=5, sigma=1.0),
        arrays={"mask": probabilities(8, 9)},
        rows=("mask",),
        result="rows",
        wrt=("mask",),
        bad={
            "mask: no square": lambda: rj.inputs.noise_mask_image(jnp.ones((2, 8)), image_size=4),
            "mask: rank": lambda: rj.inputs.noise_mask_image(jnp.ones(9), image_size=4),
            **blur_errors(lambda **options: rj.inputs.noise_mask_image(A4, **{"image_size": 6, "kernel_size": 3, **options})),
        },
    ),
    Example(
        name="inputs.noise_mask_policy_loss",
        call=lambda key, log_alpha, log_beta, mask, task_loss: rj.inputs.noise_mask_policy_loss(
            log_alpha, log_beta, mask, task_loss, score="log_sum"
        ),
        arrays={**POLICY, "mask": probabilities(8, 9), "task_loss": np.abs(normal(8, seed=13))},
        rows=("log_alpha", "log_beta", "mask", "task_loss"),
        result="scalar",
        wrt=("log_alpha", "log_beta", "task_loss"),
        frozen=("mask",),
        singular=(
            {"mask": np.zeros((8, 9)), "log_alpha": np.full((8, 9), 1e4)},
            {"mask": np.ones((8, 9)), "log_alpha": np.full((8, 9), -1e4), "task_loss": np.full(8, 1e4)},
        ),
        bad={
            "log_alpha: rank": lambda: rj.inputs.noise_mask_policy_loss(A4[0], A4[0], A4[0], jnp.ones(())),
            "log_beta: shape": lambda: rj.inputs.noise_mask_policy_loss(A4, A4[:3], A4, jnp.ones(4)),
            "mask: shape": lambda: policy_loss(A4[:, :4], jnp.ones(4)),
            "task_loss: a scalar": lambda: policy_loss(A4, jnp.ones(())),
            "score: misspelt": lambda: policy_loss(A4, jnp.ones(4), score="sum-log"),
        },
    ),
    Example(
        name="inputs.noise_mask_policy_loss",
        call=lambda key, log_alpha, log_beta, mask, task_loss: rj.inputs.noise_mask_policy_loss(
            log_alpha, log_beta, mask, task_loss
        ),
        arrays={**POLICY, "mask": probabilities(8, 9), "task_loss": np.abs(normal(8, seed=13))},
        rows=("log_alpha", "log_beta", "mask", "task_loss"),
        result="scalar",
        wrt=("log_alpha", "log_beta"),
        frozen=("mask",),
        bad={},
    ),
    Example(
        name="inputs.smooth_policy",
        call=lambda key, raw, base: rj.inputs.smooth_policy(raw, base, decay=0.7),
        arrays={"raw": normal(8, 3), "base": normal(1, 3, seed=14)},
        rows=("raw",),
        result="other",
        dtype="input",
        wrt=("raw",),
        frozen=("base",),
        surrogate=True,  # the mean in the base is stop-gradient
        identity=lambda key, raw, base: (
            (rj.inputs.smooth_policy(raw, base, decay=0.0)[0], rj.inputs.smooth_policy(raw, base, base_decay=1.0)[1]),
            (raw, base),
        ),
        bad={
            "raw: rank": lambda: rj.inputs.smooth_policy(jnp.ones(3), jnp.ones((1, 3))),
            "base: of each example": lambda: rj.inputs.smooth_policy(A4, A4),
            "decay: above 1": lambda: rj.inputs.smooth_policy(A4, A4[:1], decay=1.5),
            "decay: NaN": lambda: rj.inputs.smooth_policy(A4, A4[:1], decay=NAN),
            "decay: a schedule": lambda: rj.inputs.smooth_policy(A4, A4[:1], decay=lambda step: 0.5),
            "base_decay: negative": lambda: rj.inputs.smooth_policy(A4, A4[:1], base_decay=-0.5),
        },
    ),
)
