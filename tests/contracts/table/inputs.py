"""Examples of `regjax.inputs`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal, probabilities

BATCH = {"images": normal(8, 4, 3, 1), "labels": probabilities(8, 3)}
SINGULAR = (
    {"images": np.zeros((8, 4, 3, 1)), "labels": np.zeros((8, 3))},
    {"images": 1e4 * np.sign(BATCH["images"]), "labels": np.eye(3)[np.arange(8) % 3]},
)
LAM = np.array([0.0, 0.1, 0.3, 0.42, 0.5, 0.7, 0.9, 1.0])
PARTNER = np.array([3, 0, 1, 2, 7, 4, 6, 5], np.int32)
CENTRE = np.stack([np.arange(8) % 4, np.arange(8) % 3], -1).astype(np.int32)
EDGES = {
    "y1": np.array([0, 1, 0, 2, 0, 1, 3, 0], np.int32),
    "y2": np.array([4, 3, 0, 4, 1, 2, 4, 2], np.int32),
    "x1": np.array([0, 1, 0, 1, 0, 2, 0, 1], np.int32),
    "x2": np.array([3, 2, 3, 3, 1, 3, 2, 3], np.int32),
}

KEY = jax.random.key(0)
X, Y = jnp.ones((4, 4, 3, 1)), jnp.eye(4)
FLIP = jnp.arange(4)[::-1]


def errors(fn, first=(), **given):
    """The errors that every mixing function has: ``fn(*first, images, labels, **given)``."""
    call = functools.partial(fn, *first, **given)
    return {
        "images: integers": lambda: call(jnp.ones((4, 4, 3, 1), int), Y),
        "images: a text": lambda: call("images", Y),
        "labels: class ids": lambda: call(X, jnp.arange(4)),
        "labels: of other examples": lambda: call(X, jnp.eye(3)),
        "labels: a scalar": lambda: call(X, 1.0),
    }


def sampler_errors(fn):
    """The errors of the options that mixup and cutmix share."""
    call = functools.partial(fn, KEY, X, Y)
    return {
        **errors(fn, (KEY,)),
        "key: a number": lambda: fn(0, X, Y),
        "key: several": lambda: fn(jax.random.split(KEY, 2), X, Y),
        "alpha: negative": lambda: call(alpha=-1.0),
        "alpha: NaN": lambda: call(alpha=float("nan")),
        "alpha: a vector": lambda: call(alpha=jnp.ones(4)),
        "alpha: a schedule": lambda: call(alpha=lambda step: 1.0),
        "prob: above 1": lambda: call(prob=1.5),
        "prob: negative": lambda: call(prob=-0.5),
        "per: misspelt": lambda: call(per="exmaple"),
        "pairing: misspelt": lambda: call(pairing="reversed"),
        "pairing: no involution for pairs": lambda: call(per="pair"),
        "within_shard: does not divide the batch": lambda: call(within_shard=3),
        "within_shard: zero": lambda: call(within_shard=0),
        "within_shard: a fraction": lambda: call(within_shard=2.0),
    }


def partner_errors(fn, **given):
    """The errors of given partners."""
    call = functools.partial(fn, X, Y, **given)
    return {
        **errors(fn, partner=FLIP, **given),
        "partner: of other examples": lambda: call(partner=jnp.arange(3)),
        "partner: floats": lambda: call(partner=jnp.arange(4.0)),
        "partner: rank": lambda: call(partner=FLIP.reshape(2, 2, 1)),
    }


def mixed(name: str, call, *, bad, identity=None, arrays=BATCH, rows=("images", "labels"), wrt=("images", "labels"), **fields):
    """The example of a function that returns mixed images and labels."""
    return Example(
        name=f"inputs.{name}",
        call=call,
        arrays=arrays,
        rows=rows,
        result="other",
        dtype="input",
        wrt=wrt,
        identity=identity,
        singular=SINGULAR,
        bad=bad,
        **fields,
    )


def off(fn, **options):
    """The identity law: strength 0 returns the batch."""
    return lambda key, images, labels, **given: (fn(key, images, labels, **options), (images, labels))


EXAMPLES = (
    mixed(
        "mixup",
        lambda key, images, labels: rj.inputs.mixup(key, images, labels, alpha=0.4, within_shard=4),
        random=True,
        identity=off(rj.inputs.mixup, alpha=0.0, per="example"),
        bad=sampler_errors(rj.inputs.mixup),
    ),
    mixed(
        "mixup",
        lambda key, images, labels: rj.inputs.mixup(key, images, labels, per="example", prob=0.7),
        random=True,
        identity=off(rj.inputs.mixup, prob=0.0),
        bad={},
    ),
    mixed(
        "apply_mixup",
        lambda key, images, labels, lam, partner: rj.inputs.apply_mixup(images, labels, lam=lam, partner=partner),
        arrays={**BATCH, "lam": LAM, "partner": PARTNER},
        rows=("images", "labels", "lam", "partner"),
        wrt=("images", "labels", "lam"),
        identity=lambda key, images, labels, lam, partner: (
            rj.inputs.apply_mixup(images, labels, lam=1.0, partner=partner),
            (images, labels),
        ),
        bad={
            **partner_errors(rj.inputs.apply_mixup, lam=0.5),
            "lam: above 1": lambda: rj.inputs.apply_mixup(X, Y, lam=1.5, partner=FLIP),
            "lam: NaN": lambda: rj.inputs.apply_mixup(X, Y, lam=float("nan"), partner=FLIP),
            "lam: of other examples": lambda: rj.inputs.apply_mixup(X, Y, lam=jnp.ones(3), partner=FLIP),
        },
    ),
    mixed(
        "cutmix",
        lambda key, images, labels: rj.inputs.cutmix(key, images, labels, within_shard=4),
        random=True,
        identity=off(rj.inputs.cutmix, alpha=0.0),
        bad={
            **sampler_errors(rj.inputs.cutmix),
            "images: rank": lambda: rj.inputs.cutmix(KEY, X[..., 0], Y),
            "labels: rank": lambda: rj.inputs.cutmix(KEY, X, jnp.ones(4)),
            "minmax: no box": lambda: rj.inputs.cutmix(KEY, X, Y, minmax=(0.5, 0.5)),
            "minmax: above 1": lambda: rj.inputs.cutmix(KEY, X, Y, minmax=(0.5, 2.0)),
            "minmax: one number": lambda: rj.inputs.cutmix(KEY, X, Y, minmax=0.5),
            "correct_lam: a text": lambda: rj.inputs.cutmix(KEY, X, Y, correct_lam="yes"),
        },
    ),
    mixed(
        "cutmix",
        lambda key, images, labels: rj.inputs.cutmix(key, images, labels, per="pair", pairing="reverse", minmax=(0.3, 1.0)),
        random=True,
        identity=off(rj.inputs.cutmix, prob=0.0, per="example", correct_lam=False),
        bad={},
    ),
    mixed(
        "apply_cutmix",
        lambda key, images, labels, lam, centre, partner: rj.inputs.apply_cutmix(
            images, labels, lam=lam, centre=centre, partner=partner
        ),
        arrays={**BATCH, "lam": LAM, "centre": CENTRE, "partner": PARTNER},
        rows=("images", "labels", "lam", "centre", "partner"),
        identity=lambda key, images, labels, lam, centre, partner: (
            rj.inputs.apply_cutmix(images, labels, lam=1.0, centre=centre, partner=partner),
            (images, labels),
        ),
        bad={
            **partner_errors(rj.inputs.apply_cutmix, lam=0.5, centre=(1, 1)),
            "lam: negative": lambda: rj.inputs.apply_cutmix(X, Y, lam=-0.5, centre=(1, 1), partner=FLIP),
            "centre: floats": lambda: rj.inputs.apply_cutmix(X, Y, lam=0.5, centre=(1.0, 1.0), partner=FLIP),
            "centre: of other examples": lambda: rj.inputs.apply_cutmix(
                X, Y, lam=0.5, centre=jnp.ones((3, 2), int), partner=FLIP
            ),
            "correct_lam: a number": lambda: rj.inputs.apply_cutmix(X, Y, lam=0.5, centre=(1, 1), partner=FLIP, correct_lam=1.0),
        },
    ),
    Example(
        name="inputs.cutmix_box",
        call=lambda key, lam, centre: rj.inputs.cutmix_box(lam, centre, (11, 7)),
        arrays={"lam": LAM, "centre": CENTRE},
        rows=("lam", "centre"),
        result="rows",
        dtype=None,
        bad={
            "lam: above 1": lambda: rj.inputs.cutmix_box(1.5, (1, 1), (4, 4)),
            "lam: of other examples": lambda: rj.inputs.cutmix_box(jnp.ones(3), jnp.ones((4, 2), int), (4, 4)),
            "centre: floats": lambda: rj.inputs.cutmix_box(0.5, (1.0, 1.0), (4, 4)),
            "centre: three numbers": lambda: rj.inputs.cutmix_box(0.5, (1, 1, 1), (4, 4)),
            "shape: one number": lambda: rj.inputs.cutmix_box(0.5, (1, 1), 4),
            "shape: floats": lambda: rj.inputs.cutmix_box(0.5, (1, 1), (4.0, 4.0)),
        },
    ),
    mixed(
        "paste_box",
        lambda key, images, labels, partner, y1, y2, x1, x2: rj.inputs.paste_box(
            images, labels, box=(y1, y2, x1, x2), partner=partner
        ),
        arrays={**BATCH, "partner": PARTNER, **EDGES},
        rows=("images", "labels", "partner", *EDGES),
        bad={
            **partner_errors(rj.inputs.paste_box, box=(0, 1, 0, 1)),
            "box: three edges": lambda: rj.inputs.paste_box(X, Y, box=(0, 1, 0), partner=FLIP),
            "box: floats": lambda: rj.inputs.paste_box(X, Y, box=(0.0, 1.0, 0.0, 1.0), partner=FLIP),
            "box: of other examples": lambda: rj.inputs.paste_box(X, Y, box=(jnp.zeros(3, int), 1, 0, 1), partner=FLIP),
            "lam: above 1": lambda: rj.inputs.paste_box(X, Y, box=(0, 1, 0, 1), partner=FLIP, lam=1.5),
        },
    ),
    Example(
        name="inputs.cutout",
        call=lambda key, images, labels: rj.inputs.cutout(key, images, labels, length=2, num_holes=2),
        arrays=BATCH,
        rows=("images", "labels"),
        result="other",
        dtype="input",
        wrt=("images", "labels"),
        random=True,
        identity=off(rj.inputs.cutout, length=0),
        singular=SINGULAR,
        bad={
            "key: a number": lambda: rj.inputs.cutout(0, X, Y, length=2),
            "images: integers": lambda: rj.inputs.cutout(KEY, X.astype(int), Y, length=2),
            "images: rank": lambda: rj.inputs.cutout(KEY, X[0], Y, length=2),
            "length: negative": lambda: rj.inputs.cutout(KEY, X, Y, length=-1),
            "length: a fraction": lambda: rj.inputs.cutout(KEY, X, Y, length=0.5),
            "length: a schedule": lambda: rj.inputs.cutout(KEY, X, Y, length=lambda step: 2),
            "num_holes: zero": lambda: rj.inputs.cutout(KEY, X, Y, length=2, num_holes=0),
            "value: NaN": lambda: rj.inputs.cutout(KEY, X, Y, length=2, value=float("nan")),
        },
    ),
    Example(
        name="inputs.apply_cutout",
        call=lambda key, images, centres: rj.inputs.apply_cutout(images, length=2, centres=centres),
        arrays={"images": BATCH["images"], "centres": np.stack([CENTRE, CENTRE[::-1]], 1)},
        rows=("images", "centres"),
        result="rows",
        dtype="input",
        wrt=("images",),
        identity=lambda key, images, centres: (rj.inputs.apply_cutout(images, length=1, centres=centres), images),
        singular=({"images": 1e4 * np.sign(BATCH["images"])},),
        bad={
            "images: integers": lambda: rj.inputs.apply_cutout(X.astype(int), length=2, centres=jnp.ones((4, 1, 2), int)),
            "length: negative": lambda: rj.inputs.apply_cutout(X, length=-2, centres=jnp.ones((4, 1, 2), int)),
            "centres: floats": lambda: rj.inputs.apply_cutout(X, length=2, centres=jnp.ones((4, 1, 2))),
            "centres: rank": lambda: rj.inputs.apply_cutout(X, length=2, centres=jnp.ones((4, 2), int)),
            "centres: of other examples": lambda: rj.inputs.apply_cutout(X, length=2, centres=jnp.ones((3, 1, 2), int)),
            "value: a vector": lambda: rj.inputs.apply_cutout(X, length=2, centres=jnp.ones((4, 1, 2), int), value=jnp.ones(3)),
        },
    ),
)
