"""Examples of `regjax.losses`: reconstruction."""

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal

ARRAYS = {
    "predictions": normal(8, 4, 4),
    "images": normal(8, 4, 4, 1, seed=1),
    "mask": np.tile([True, False, True, True, False, True, False], 5)[:32].reshape(8, 4),
}


def loss(predictions=None, images=None, mask=None, **options):
    """The loss of small valid arguments, but for those given."""
    predictions = jnp.ones((2, 4, 4)) if predictions is None else predictions
    images = jnp.ones((2, 4, 4, 1)) if images is None else images
    mask = jnp.ones((2, 4), bool) if mask is None else mask
    return rj.losses.masked_patch_loss(predictions, images, mask, **{"patch_size": 2, **options})


def example(bad, **options) -> Example:
    return Example(
        name="losses.masked_patch_loss",
        call=lambda key, **arrays: loss(**arrays, **options),
        mapped=lambda axis_name, key, **arrays: loss(**arrays, **options, axis_name=axis_name),
        arrays=ARRAYS,
        rows=("predictions", "images", "mask"),
        result="scalar",
        wrt=("predictions", "images"),
        singular=(
            {"mask": np.zeros((8, 4), bool)},
            {"images": np.ones((8, 4, 4, 1))},
            {"images": 1e4 * np.sign(ARRAYS["images"])},
        ),
        bad=bad,
    )


EXAMPLES = (
    example(
        {
            "predictions: integers": lambda: loss(predictions=jnp.ones((2, 4, 4), int)),
            "predictions: of other patches": lambda: loss(predictions=jnp.ones((2, 4, 5))),
            "predictions: rank": lambda: loss(predictions=jnp.ones((2, 16))),
            "images: integers": lambda: loss(images=jnp.ones((2, 4, 4, 1), int)),
            "images: rank": lambda: loss(images=jnp.ones((2, 4, 4))),
            "mask: 0 and 1": lambda: loss(mask=jnp.ones((2, 4))),
            "mask: of other patches": lambda: loss(mask=jnp.ones((2, 3), bool)),
            "mask: none": lambda: rj.losses.masked_patch_loss(jnp.ones((2, 4, 4)), jnp.ones((2, 4, 4, 1)), None, patch_size=2),
            "patch_size: no divisor": lambda: loss(patch_size=3),
            "patch_size: zero": lambda: loss(patch_size=0),
            "normalize_pixels: a number": lambda: loss(normalize_pixels=1),
            "per_image: a number": lambda: loss(per_image=1),
            "eps: zero": lambda: loss(eps=0.0),
            "eps: NaN": lambda: loss(eps=float("nan")),
            "axis_name: a number": lambda: loss(axis_name=0),
        }
    ),
    example({}, per_image=True, normalize_pixels=False),
)
