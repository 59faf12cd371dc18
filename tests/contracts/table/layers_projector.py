"""Examples of `regjax.layers`: the ladder of projectors, and masks with a straight-through gradient."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

import regjax as rj
from tests.contracts.example import Example, normal

mask = rj.layers.binary_mask_ste


def ladder(sizes=(4, 4, 3), out=5, **options):
    return rj.layers.LadderProjector(
        sizes, out, **{"hidden_features": 6, "last_hidden_features": 8, "rngs": nnx.Rngs(0), **options}
    )


BLOCKS = [jnp.ones((2, 4)), jnp.ones((2, 4)), jnp.ones((2, 3))]

EXAMPLES = (
    Example(
        name="layers.LadderProjector",
        call=lambda key, blocks: ladder()(blocks),
        arrays={"blocks": [normal(8, 2, 4), normal(8, 2, 4, seed=1), normal(8, 2, 3, seed=2)]},
        rows=("blocks",),
        result="rows",
        wrt=("blocks",),
        singular=({"blocks": [np.zeros((8, 2, 4)), np.zeros((8, 2, 4)), np.zeros((8, 2, 3))]},),
        bad={
            "in_features: a number": lambda: ladder(4),
            "in_features: empty": lambda: ladder([]),
            "in_features: a zero": lambda: ladder([4, 0]),
            "out_features: zero": lambda: ladder(out=0),
            "hidden_features: a float": lambda: ladder(hidden_features=6.0),
            "last_hidden_features: zero": lambda: ladder(last_hidden_features=0),
            "rngs: a number": lambda: ladder(rngs=0),
            "blocks: too few": lambda: ladder()(BLOCKS[:2]),
            "blocks: one array": lambda: ladder()(BLOCKS[0]),
            "blocks: another dimension": lambda: ladder()([*BLOCKS[:2], jnp.ones((2, 4))]),
            "blocks: another batch": lambda: ladder()([*BLOCKS[:2], jnp.ones((3, 3))]),
            "blocks: integers": lambda: ladder()([*BLOCKS[:2], jnp.ones((2, 3), int)]),
            "blocks: a mapping": lambda: ladder()(dict(enumerate(BLOCKS))),
        },
    ),
    Example(
        name="layers.binary_mask_ste",
        call=lambda key, scores, weights: weights * mask(scores),
        arrays={"scores": 0.01 * normal(8, 3), "weights": normal(8, 3, seed=3)},
        rows=("scores", "weights"),
        result="rows",
        dtype="input",
        wrt=("scores", "weights"),
        surrogate=True,
        singular=({"scores": np.zeros((8, 3))}, {"scores": 1e4 * np.sign(normal(8, 3))}, {"scores": np.full((8, 3), 5e-3)}),
        bad={
            "scores: integers": lambda: mask(jnp.ones(3, int)),
            "scores: a text": lambda: mask("scores"),
            "threshold: NaN": lambda: mask(jnp.ones(3), threshold=float("nan")),
            "threshold: a vector": lambda: mask(jnp.ones(3), threshold=jnp.ones(3)),
            "threshold: a string": lambda: mask(jnp.ones(3), threshold="half"),
        },
    ),
)
