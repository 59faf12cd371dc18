"""Examples of `regjax.losses`: agreement of several views."""

import functools

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal

VIEWS = {name: normal(8, 5, seed=seed) for seed, name in enumerate(("logits_clean", "logits_aug1", "logits_aug2"))}
X = jnp.ones((4, 3))
loss = functools.partial(rj.losses.jensen_shannon_consistency, X, X, X)
of = rj.losses.jensen_shannon_consistency

EXAMPLES = (
    Example(
        name="losses.jensen_shannon_consistency",
        call=lambda key, **views: of(**views),
        arrays=VIEWS,
        rows=tuple(VIEWS),
        result="rows",
        wrt=tuple(VIEWS),
        identity=lambda key, **views: (of(**views, weight=0.0), jnp.zeros(8)),
        singular=(
            {name: np.zeros((8, 5)) for name in VIEWS},
            {name: 1e4 * np.sign(view) for name, view in VIEWS.items()},
        ),
        bad={
            "logits_clean: integers": lambda: of(X.astype(int), X, X),
            "logits_clean: a scalar": lambda: of(jnp.ones(()), X, X),
            "logits_aug1: of other images": lambda: of(X, X[:2], X),
            "logits_aug2: integers": lambda: of(X, X, X.astype(int)),
            "logits: no classes": lambda: of(X[:, :0], X[:, :0], X[:, :0]),
            "weight: negative": lambda: loss(weight=-1.0),
            "weight: NaN": lambda: loss(weight=float("nan")),
            "weight: a vector": lambda: loss(weight=jnp.ones(3)),
            "weight: a schedule": lambda: loss(weight=lambda step: 1.0),
            "axis: out of range": lambda: loss(axis=2),
            "where: does not broadcast": lambda: loss(where=jnp.ones((4, 2), bool)),
            "where: weights": lambda: loss(where=jnp.ones((4, 3))),
        },
    ),
)
