"""Examples of `regjax.inputs`: the label map as a channel."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal
from tests.contracts.table.losses import refusals

KEY = jax.random.key(0)
LABELS = ids(8, 2, 3, classes=3)
LABELS[0, 0, 1] = LABELS[3] = 255
Y, N, V = jnp.zeros((2, 2, 3), int), jnp.zeros((2, 2, 3)), jnp.zeros(4)
draw, apply = rj.inputs.noisy_label_channel, rj.inputs.apply_noisy_label_channel
drawn = functools.partial(draw, KEY, Y, num_classes=3)
applied = functools.partial(apply, Y, class_values=V, noise=N)


def shared_errors(fn) -> dict:
    """The errors that the sampler and its core share."""
    return {
        **refusals(fn, "pixel_noise", negative=-0.1),
        "pixel_noise: a schedule": lambda: fn(pixel_noise=lambda step: 0.1),
        "scale: NaN": lambda: fn(scale=float("nan")),
        "ignore_label: a float": lambda: fn(ignore_label=255.0),
        "class_values: of other classes": lambda: fn(class_values=jnp.zeros((3, 4))),
        "class_values: integers": lambda: fn(class_values=jnp.zeros(4, int)),
    }


EXAMPLES = (
    Example(
        name="inputs.noisy_label_channel",
        call=lambda key, labels: draw(key, labels, num_classes=3),
        arrays={"labels": LABELS},
        rows=("labels",),
        result="other",
        random=True,
        identity=lambda key, labels: (
            draw(key, labels, num_classes=3, class_values=V + 1.5, pixel_noise=0.0),
            jnp.full((8, 2, 3, 1), 150.0),
        ),
        singular=({"labels": np.full((8, 2, 3), 255, np.int32)},),
        bad={
            **shared_errors(drawn),
            "key: a number": lambda: draw(0, Y, num_classes=3),
            "labels: floats": lambda: draw(KEY, N, num_classes=3),
            "labels: rank": lambda: draw(KEY, Y[0], num_classes=3),
            "num_classes: none": lambda: drawn(num_classes=0),
            "num_classes: a float": lambda: drawn(num_classes=3.0),
            "class_values: without one for ignored pixels": lambda: drawn(class_values=jnp.zeros(3)),
        },
    ),
    Example(
        name="inputs.apply_noisy_label_channel",
        call=lambda key, labels, class_values, noise: apply(labels, class_values=class_values, noise=noise),
        arrays={"labels": LABELS, "class_values": normal(8, 4), "noise": normal(8, 2, 3)},
        rows=("labels", "class_values", "noise"),
        result="rows",
        wrt=("class_values", "noise"),
        identity=lambda key, labels, class_values, noise: (
            apply(labels, class_values=class_values, noise=noise, pixel_noise=0.0),
            apply(labels, class_values=class_values, noise=jnp.zeros_like(noise)),
        ),
        singular=({"labels": np.full((8, 2, 3), 255, np.int32)}, {"class_values": np.zeros((8, 4))}),
        bad={
            **shared_errors(applied),
            "labels: floats": lambda: apply(N, class_values=V, noise=N),
            "labels: rank": lambda: apply(Y[0], class_values=V, noise=N),
            "class_values: one number": lambda: applied(class_values=jnp.zeros(1)),
            "noise: shape": lambda: applied(noise=N[0]),
            "noise: integers": lambda: applied(noise=Y),
        },
    ),
)
