"""Examples of `regjax.losses`: classification by the words of a caption."""

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal
from tests.contracts.table.losses import EXTREME

MEMORY = rj.losses.superclass(5)
START = MEMORY.init()


def run(logits, token_ids, mask, frequency, **options):
    state = rj.losses.SuperClassState(frequency.astype(jnp.float32), jnp.float32(3))
    return MEMORY.apply(state, logits, token_ids, mask=mask, **options)[0]


def once(logits=None, token_ids=None, state=START, **options):
    logits = jnp.ones((4, 5)) if logits is None else logits
    return MEMORY.apply(state, logits, jnp.zeros((4, 2), int) if token_ids is None else token_ids, **options)


EXAMPLES = (
    Example(
        name="losses.superclass",
        call=lambda key, **arrays: run(**arrays),
        mapped=lambda axis_name, key, **arrays: run(**arrays, axis_name=axis_name),
        arrays={
            "logits": normal(8, 5),
            "token_ids": ids(8, 4, classes=5),
            "mask": normal(8, 4, seed=4) > -1,
            "frequency": np.linspace(0.1, 2.9, 5),
        },
        rows=("logits", "token_ids", "mask"),
        result="rows",
        wrt=("logits",),
        frozen=("frequency",),
        singular=(
            *EXTREME,
            {"mask": np.zeros((8, 4), bool)},
            {"token_ids": np.full((8, 4), 2, np.int32)},
            {"frequency": np.zeros(5)},
            {"frequency": np.full(5, 3.0), "token_ids": np.zeros((8, 4), np.int32), "mask": np.ones((8, 4), bool)},
        ),
        memory=lambda: (START, lambda s, key, logits, token_ids, mask, frequency: MEMORY.apply(s, logits, token_ids, mask=mask)),
        bad={
            "vocab_size: none": lambda: rj.losses.superclass(0),
            "vocab_size: a float": lambda: rj.losses.superclass(5.0),
            "state: a dictionary": lambda: once(state={"steps": 0}),
            "state: of another vocabulary": lambda: once(state=rj.losses.superclass(4).init()),
            "logits: of another vocabulary": lambda: once(jnp.ones((4, 4))),
            "logits: integers": lambda: once(jnp.ones((4, 5), int)),
            "token_ids: floats": lambda: once(token_ids=jnp.ones((4, 2))),
            "token_ids: rank": lambda: once(token_ids=jnp.zeros(4, int)),
            "token_ids: another number of captions": lambda: once(token_ids=jnp.zeros((3, 2), int)),
            "mask: of captions": lambda: once(mask=jnp.ones(4, bool)),
            "mask: weights": lambda: once(mask=jnp.ones((4, 2))),
            "axis_name: a number": lambda: once(axis_name=0),
        },
    ),
)
