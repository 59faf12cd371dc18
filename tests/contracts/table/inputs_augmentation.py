"""Examples of `regjax.inputs`: RandAugment and AugMix."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal, probabilities

IMAGES = np.random.default_rng(0).uniform(0.05, 0.95, size=(8, 4, 5, 3))
BATCH = {"images": IMAGES, "labels": probabilities(8, 3)}
SINGULAR = ({"images": np.zeros((8, 4, 5, 3))}, {"images": np.full((8, 4, 5, 3), 0.5)}, {"images": 1e4 * normal(8, 4, 5, 3)})
KEY, X = jax.random.key(0), jnp.full((2, 4, 5, 3), 0.5)


def image_errors(call):
    """The errors of images and of the options that all share: ``call(images, **options)``."""
    return {
        "images: integers": lambda: call(X.astype(int)),
        "images: rank": lambda: call(X[0]),
        "images: a text": lambda: call("images"),
        "value_range: one number": lambda: call(X, value_range=1.0),
        "value_range: white is black": lambda: call(X, value_range=(1.0, 1.0)),
        "value_range: NaN": lambda: call(X, value_range=(0.0, float("nan"))),
        "value_range: traced": lambda: call(X, value_range=(jnp.zeros(()), jnp.ones(()))),
        "fill: a vector": lambda: call(X, fill=jnp.ones(3)),
        "fill: NaN": lambda: call(X, fill=float("nan")),
        "interpolation: misspelt": lambda: call(X, interpolation="bilinaer"),
    }


def refusals(call, strength, **limits):
    """Wrong values of a strength."""
    values = {"NaN": float("nan"), "negative": -1.0, "a text": "strong", "a vector": jnp.ones(3), **limits}
    values["a schedule"] = lambda step: 1.0
    return {f"{strength}: {what}": functools.partial(call, **{strength: value}) for what, value in values.items()}


def sampler(name, call, **fields):
    """The example of a technique that returns augmented images and the labels."""
    return Example(
        name=f"inputs.{name}",
        call=call,
        arrays=BATCH,
        rows=("images", "labels"),
        result="other",
        dtype="input",
        wrt=("images", "labels"),
        random=True,
        singular=SINGULAR,
        **fields,
    )


def op(name, arg, *, bad=None, **options):
    """The example of one operation with an argument for each image."""
    fn = functools.partial(rj.inputs.randaugment_op, name=name, **options)
    return Example(
        name="inputs.randaugment_op",
        call=lambda key, images, arg: fn(images, arg=arg),
        arrays={"images": IMAGES, "arg": np.linspace(0.3, 1.0, 8) * arg},
        rows=("images", "arg"),
        result="rows",
        dtype="input",
        wrt=("images",),
        singular=SINGULAR,
        bad=bad or {},
    )


augment = functools.partial(rj.inputs.randaugment, KEY)
augment_x = functools.partial(rj.inputs.randaugment, KEY, X)
one = rj.inputs.randaugment_op
magnitude = rj.inputs.randaugment_magnitude
mix = functools.partial(rj.inputs.augmix, KEY)
mix_x = functools.partial(rj.inputs.augmix, KEY, X)
CHAINS = np.random.default_rng(1).uniform(size=(3, 8, 4, 5, 3))
apply_mix = rj.inputs.apply_augmix
THREE = jnp.ones((3, 2, 4, 5, 3))

# All operations, and all that is drawn.
RANDOM = {"num_ops": 1, "table": "tpu", "prob": 0.9, "magnitude": 12, "magnitude_std": 0.5, "interpolation": "bilinear"}
CHAIN = {"width": 2, "depth": 1, "ops": ("rotate", "posterize", "auto_contrast")}

EXAMPLES = (
    sampler(
        "randaugment",
        lambda key, images, labels: rj.inputs.randaugment(key, images, labels, **RANDOM),
        identity=lambda key, images, labels: (
            jax.jit(functools.partial(rj.inputs.randaugment, prob=0.0))(key, images, labels),
            (images, labels),
        ),
        bad={
            **image_errors(augment),
            **refusals(augment_x, "magnitude", above=11),
            **refusals(augment_x, "prob", above=1.5),
            **refusals(augment_x, "magnitude_std", minus=float("-inf")),
            "key: a number": lambda: rj.inputs.randaugment(0, X),
            "key: several": lambda: rj.inputs.randaugment(jax.random.split(KEY), X),
            "num_ops: zero": lambda: augment_x(num_ops=0),
            "num_ops: a fraction": lambda: augment_x(num_ops=1.5),
            "max_magnitude: zero": lambda: augment_x(magnitude=0, max_magnitude=0),
            "max_magnitude: traced": lambda: augment_x(max_magnitude=jnp.ones(())),
            "magnitude: above its scale": lambda: augment_x(magnitude=28),
            "table: misspelt": lambda: augment_x(table="papre"),
        },
    ),
    op(
        "sharpness",
        1.5,
        bad={
            **image_errors(lambda images, **options: one(images, name="invert", **options)),
            "name: misspelt": lambda: one(X, name="sharpnes"),
            "arg: NaN": lambda: one(X, name="rotate", arg=float("nan")),
            "arg: of other images": lambda: one(X, name="rotate", arg=jnp.ones(3)),
            "arg: integers": lambda: one(X, name="rotate", arg=jnp.ones(2, int)),
            "centre: none for cutout": lambda: one(X, name="cutout", arg=1),
            "centre: floats": lambda: one(X, name="cutout", arg=1, centre=(0.5, 0.5)),
            "centre: of other images": lambda: one(X, name="cutout", arg=1, centre=jnp.ones((3, 2), int)),
        },
    ),
    op("rotate", 40.0, interpolation="bilinear"),
    op("equalize", 0.0),
    Example(
        name="inputs.randaugment_magnitude",
        call=lambda key, magnitude: rj.inputs.randaugment_magnitude("translate_x", magnitude, side=32),
        arrays={"magnitude": np.array(7.0)},
        result="other",
        wrt=("magnitude",),
        identity=lambda key, magnitude: (rj.inputs.randaugment_magnitude("color", 0.0), jnp.float32(1)),
        singular=({"magnitude": np.array(0.0)}, {"magnitude": np.array(10.0)}),
        bad={
            **refusals(functools.partial(magnitude, "rotate"), "magnitude", above=11),
            "name: of another table": lambda: magnitude("cutout", 9),
            "table: misspelt": lambda: magnitude("rotate", 9, table="tmm"),
            "max_magnitude: negative": lambda: magnitude("rotate", 0, max_magnitude=-1),
            "side: missing": lambda: magnitude("translate_y", 9),
            "side: zero": lambda: magnitude("translate_y", 9, side=0),
        },
    ),
    sampler(
        "augmix",
        lambda key, images, labels: rj.inputs.augmix(key, images, labels, **CHAIN),
        identity=lambda key, images, labels: (rj.inputs.augmix(key, images, labels, severity=0.0, **CHAIN), (images, labels)),
        bad={
            **image_errors(mix),
            **refusals(mix_x, "severity", above=11),
            **refusals(mix_x, "alpha", zero=0.0),
            "key: a number": lambda: rj.inputs.augmix(0, X),
            "width: zero": lambda: mix_x(width=0),
            "depth: zero": lambda: mix_x(depth=0),
            "depth: a fraction": lambda: mix_x(depth=1.5),
            "ops: misspelt": lambda: mix_x(ops=("rotat",)),
            "ops: none": lambda: mix_x(ops=()),
            "ops: one name": lambda: mix_x(ops="rotate"),
        },
    ),
    Example(
        name="inputs.apply_augmix",
        call=lambda key, images, one, two, weights, m: apply_mix(images, jnp.stack([one, two]), weights=weights, m=m),
        arrays={
            **{"images": IMAGES, "one": CHAINS[0], "two": CHAINS[1]},
            **{"weights": probabilities(8, 2), "m": np.linspace(0, 1, 8)},
        },
        rows=("images", "one", "two", "weights", "m"),
        result="rows",
        dtype="input",
        wrt=("images", "one", "two", "weights", "m"),
        identity=lambda key, images, one, two, weights, m: (
            apply_mix(images, jnp.stack([one, two]), weights=weights, m=0.0),
            images,
        ),
        singular=({"images": np.zeros((8, 4, 5, 3)), "m": np.zeros(8)},),
        bad={
            "images: integers": lambda: apply_mix(X.astype(int), THREE, weights=jnp.ones((2, 3)), m=0.5),
            "chains: of other images": lambda: apply_mix(X, THREE[:, :1], weights=jnp.ones((2, 3)), m=0.5),
            "chains: none": lambda: apply_mix(X, THREE[:0], weights=jnp.ones((2, 0)), m=0.5),
            "chains: integers": lambda: apply_mix(X, THREE.astype(int), weights=jnp.ones((2, 3)), m=0.5),
            "weights: of other chains": lambda: apply_mix(X, THREE, weights=jnp.ones((2, 2)), m=0.5),
            "m: above 1": lambda: apply_mix(X, THREE, weights=jnp.ones((2, 3)), m=1.5),
            "m: NaN": lambda: apply_mix(X, THREE, weights=jnp.ones((2, 3)), m=float("nan")),
            "m: of other images": lambda: apply_mix(X, THREE, weights=jnp.ones((2, 3)), m=jnp.ones(3)),
        },
    ),
)
