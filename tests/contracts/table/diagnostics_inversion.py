"""Examples of `regjax.diagnostics`: reconstruction of inputs from gradients."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal

d = rj.diagnostics
KEY, X, NAN = jax.random.key(0), jnp.ones((2, 3, 3, 1)), float("nan")
KERNEL = normal(4, 3, seed=7).astype(np.float32)
GRADS = {"kernel": normal(4, 3, seed=8)}
IMAGES = normal(8, 2, 2, 1)


def loss(kernel, x, masks, y):
    h = x.reshape(x.shape[0], -1) * masks[0] / 0.75
    return -jnp.mean(jnp.sum(jax.nn.log_softmax(jnp.tanh(h @ kernel)) * jax.nn.one_hot(y, 3), axis=-1))


def grad_fn(x, masks, y):
    return {"kernel": jax.grad(loss)(jnp.asarray(KERNEL), x, masks, y)}


def attack(key=KEY, grads=GRADS, labels=(0, 1), fn=grad_fn, **options):
    """Two steps: the first decisions of a search do not hang on the last digit."""
    given = {"input_shape": (2, 2, 2, 1), "mask_shapes": ((2, 4),), "rate": 0.25, "steps": 2, **options}
    return d.dropout_inversion_attack(key, fn, grads, jnp.asarray(labels), **given)


def strength_errors(name: str) -> dict:
    """What a weight refuses."""
    return {
        f"{name}: negative": lambda: attack(**{name: -1.0}),
        f"{name}: NaN": lambda: attack(**{name: NAN}),
        f"{name}: a schedule": lambda: attack(**{name: lambda step: 0.1}),
    }


EXAMPLES = (
    Example(
        name="diagnostics.dropout_inversion_attack",
        call=lambda key, grads, labels: attack(key, grads, labels),
        arrays={"grads": GRADS, "labels": ids(2, classes=3)},
        result="other",
        random=True,
        identity=lambda key, grads, labels: (
            attack(key, grads, labels, tv_weight=jnp.zeros(()), mask_weight=jnp.zeros(())).history[:1],
            d.gradient_cosine_distance(grad_fn(*attack(key, grads, labels, steps=1)[:2], labels), grads)[None],
        ),
        singular=({"grads": {"kernel": np.zeros((4, 3))}},),
        tolerance=1e-4,
        bad={
            **strength_errors("rate"),
            **strength_errors("tv_weight"),
            **strength_errors("mask_weight"),
            "rate: above 1": lambda: attack(rate=1.5),
            "key: a number": lambda: attack(0),
            "grad_fn: gradients": lambda: attack(fn=GRADS),
            "target_grads: structure": lambda: attack(grads=KERNEL),
            "target_grads: shape": lambda: attack(grads={"kernel": jnp.ones((3, 4))}),
            "target_grads: integers": lambda: attack(grads={"kernel": jnp.ones((4, 3), int)}),
            "input_shape: rank": lambda: attack(input_shape=(2, 4)),
            "input_shape: an integer": lambda: attack(input_shape=8),
            "mask_shapes: integers": lambda: attack(mask_shapes=[2, 4]),
            "mask_shapes: a float": lambda: attack(mask_shapes=((2, 4.0),)),
            "steps: zero": lambda: attack(steps=0),
            "learning_rate: zero": lambda: attack(learning_rate=0.0),
            "learning_rate: NaN": lambda: attack(learning_rate=NAN),
            "sign_gradient: a number": lambda: attack(sign_gradient=1),
            "joint_masks: a number": lambda: attack(joint_masks=1),
            "bounds: a number": lambda: attack(bounds=1.0),
            "bounds: shape": lambda: attack(bounds=(0.0, jnp.ones(3))),
            "patience: zero": lambda: attack(patience=0),
            "stop_after: a float": lambda: attack(stop_after=1.5),
            "target_loss: NaN": lambda: attack(target_loss=NAN),
        },
    ),
    Example(
        name="diagnostics.gradient_cosine_distance",
        call=lambda key, a, b: d.gradient_cosine_distance(a, b),
        arrays={
            "a": {"kernel": normal(8, 2), "bias": normal(2, seed=1)},
            "b": {"kernel": normal(8, 2, seed=2), "bias": normal(2, seed=3)},
        },
        tree="a",
        result="other",
        wrt=("a", "b"),
        singular=({"a": {"kernel": np.zeros((8, 2)), "bias": np.zeros(2)}},),
        bad={
            "b: structure": lambda: d.gradient_cosine_distance({"a": X}, {"b": X}),
            "b: shape": lambda: d.gradient_cosine_distance({"a": X}, {"a": X[0]}),
            "a: a text": lambda: d.gradient_cosine_distance({"a": "x"}, {"a": X}),
        },
    ),
    Example(
        name="diagnostics.total_variation",
        call=lambda key, images: d.total_variation(images),
        arrays={"images": IMAGES},
        rows=("images",),
        result="scalar",
        wrt=("images",),
        singular=({"images": np.ones((8, 2, 2, 1))},),
        bad={
            "images: rank": lambda: d.total_variation(X[0]),
            "images: integers": lambda: d.total_variation(jnp.ones((2, 3, 3, 1), int)),
        },
    ),
    Example(
        name="diagnostics.reconstruction_mse",
        call=lambda key, images, reference: d.reconstruction_mse(images, reference),
        arrays={"images": IMAGES, "reference": normal(8, 2, 2, 1, seed=1)},
        rows=("images", "reference"),
        result="rows",
        wrt=("images", "reference"),
        singular=({"images": np.zeros((8, 2, 2, 1))},),
        bad={
            "images: rank": lambda: d.reconstruction_mse(X[0], X[0]),
            "images: integers": lambda: d.reconstruction_mse(jnp.ones((2, 3, 3, 1), int), X),
            "reference: shape": lambda: d.reconstruction_mse(X, X[:1]),
        },
    ),
)
