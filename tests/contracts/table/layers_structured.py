"""Examples of gates, butterflies and templates in `regjax.layers`."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

import regjax as rj
from tests.contracts.example import Example, normal

L = rj.layers
MASK = np.array([[True, False], [True, True]])
BLOCKS, X = jnp.ones((3, 2, 2)), jnp.ones((8, 4))
RNGS = nnx.Rngs(0)
C = jnp.ones((4, 2))
T = jnp.ones((2, 2, 3))


def mask(in_features=4, out_features=4, butterfly_size=4, n_factors=1, block=1, **options):
    return L.flat_block_butterfly_mask(
        in_features, out_features, butterfly_size=butterfly_size, n_factors=n_factors, block=block, **options
    )


def butterfly(**options):
    return L.PixelatedButterfly(4, 6, **{"block": 2, "rank": 2, "rngs": nnx.Rngs(0), **options})


def templates(in_features=4, out_features=6, **options):
    return L.TemplateLinear(in_features, out_features, **{"rngs": nnx.Rngs(0), **options})


EXAMPLES = (
    Example(
        name="layers.apply_hard_concrete",
        call=lambda key, log_alpha, uniform: L.apply_hard_concrete(log_alpha, uniform),
        arrays={"log_alpha": normal(4), "uniform": np.random.default_rng(1).uniform(0.3, 0.7, (8, 4))},
        result="rows",
        rows=("uniform",),
        wrt=("log_alpha",),
        singular=({"uniform": np.zeros((8, 4))}, {"uniform": np.ones((8, 4))}, {"log_alpha": np.full(4, 1e4)}),
        bad={
            "log_alpha: integers": lambda: L.apply_hard_concrete(jnp.ones(4, int), jnp.ones(4)),
            "uniform: shape": lambda: L.apply_hard_concrete(jnp.ones(4), jnp.ones(3)),
        },
    ),
    Example(
        name="layers.hard_concrete",
        call=lambda key, log_alpha: L.hard_concrete(key, log_alpha, shape=(8, 4)),
        arrays={"log_alpha": normal(4)},
        result="other",
        random=True,
        bad={
            "log_alpha: integers": lambda: L.hard_concrete(None, jnp.ones(4, int), deterministic=True),
            "shape: does not end in the gates": lambda: L.hard_concrete(None, jnp.ones(4), shape=(4, 8), deterministic=True),
            "key: missing": lambda: L.hard_concrete(None, jnp.ones(4)),
            "deterministic: a number": lambda: L.hard_concrete(None, jnp.ones(4), deterministic=1),
        },
    ),
    Example(
        name="layers.HardConcrete",
        call=lambda key, x: L.HardConcrete(4, rngs=nnx.Rngs(0))(x, rngs=key),
        arrays={"x": normal(8, 4)},
        result="other",
        rows=("x",),
        dtype="input",
        random=True,
        wrt=("x",),
        bad={
            "num: zero": lambda: L.HardConcrete(0, rngs=RNGS),
            "drop_rate: one": lambda: L.HardConcrete(4, drop_rate=1.0, rngs=RNGS),
            "per_example: a number": lambda: L.HardConcrete(4, per_example=1, rngs=RNGS),
            "rngs: a key": lambda: L.HardConcrete(4, rngs=0),
            "x: another width": lambda: L.HardConcrete(4, rngs=nnx.Rngs(0))(jnp.ones((8, 3))),
            "x: integers": lambda: L.HardConcrete(4, rngs=nnx.Rngs(0))(jnp.ones((8, 4), int)),
        },
    ),
    Example(
        name="layers.flat_block_butterfly_mask",
        call=lambda key, x: x * jnp.asarray(mask(), x.dtype),
        arrays={"x": normal(4, 4)},
        result="other",
        dtype="input",
        bad={
            "in_features: zero": lambda: mask(in_features=0),
            "out_features: a float": lambda: mask(out_features=4.0),
            "butterfly_size: no power of 2": lambda: mask(butterfly_size=3),
            "butterfly_size: too large": lambda: mask(butterfly_size=8),
            "n_factors: too many": lambda: mask(n_factors=3),
            "block: zero": lambda: mask(block=0),
            "global_size: negative": lambda: mask(global_size=-1),
        },
    ),
    Example(
        name="layers.block_sparse_apply",
        call=lambda key, x, blocks: L.block_sparse_apply(x, blocks, mask=MASK, out_features=3),
        arrays={"x": normal(8, 4), "blocks": normal(3, 2, 2, seed=1)},
        result="rows",
        rows=("x",),
        dtype="input",
        wrt=("x", "blocks"),
        bad={
            "x: another width": lambda: L.block_sparse_apply(jnp.ones((8, 6)), BLOCKS, mask=MASK, out_features=3),
            "blocks: too few": lambda: L.block_sparse_apply(X, BLOCKS[:2], mask=MASK, out_features=3),
            "mask: numbers": lambda: L.block_sparse_apply(X, BLOCKS, mask=np.ones((2, 2)), out_features=3),
            "out_features: too many": lambda: L.block_sparse_apply(X, BLOCKS, mask=MASK, out_features=5),
        },
    ),
    Example(
        name="layers.PixelatedButterfly",
        call=lambda key, x: butterfly()(x),
        arrays={"x": normal(8, 4)},
        result="rows",
        rows=("x",),
        dtype=None,
        wrt=("x",),
        bad={
            "in_features: zero": lambda: L.PixelatedButterfly(0, 4, rngs=RNGS),
            "butterfly_size: no power of 2": lambda: butterfly(butterfly_size=3),
            "n_factors: too many": lambda: butterfly(n_factors=9),
            "rank: above the sizes": lambda: butterfly(rank=5),
            "rank: a share above 1": lambda: butterfly(rank=1.5),
            "gated: a number": lambda: butterfly(gated=1),
            "rngs: a key": lambda: butterfly(rngs=0),
            "x: another width": lambda: butterfly()(jnp.ones((8, 3))),
        },
    ),
    Example(
        name="layers.combine",
        call=lambda key, templates, coeffs: L.combine(templates, coeffs),
        arrays={"templates": normal(2, 4, 3), "coeffs": normal(2, seed=1)},
        result="other",
        dtype="input",
        wrt=("templates", "coeffs"),
        bad={
            "templates: integers": lambda: L.combine(jnp.ones((2, 3), int), jnp.ones(2)),
            "coeffs: shape": lambda: L.combine(T, jnp.ones(3)),
        },
    ),
    Example(
        name="layers.grow_templates",
        call=lambda key, templates_0, templates_1, coeffs: L.grow_templates(templates_0, templates_1, coeffs),
        arrays={"templates_0": normal(2, 4, 3), "templates_1": normal(2, 4, 3, seed=1), "coeffs": normal(4, 2, seed=2)},
        result="other",
        dtype="input",
        wrt=("templates_0", "templates_1", "coeffs"),
        bad={
            "templates_0: a matrix": lambda: L.grow_templates(T[0], T[0], C),
            "templates_1: shape": lambda: L.grow_templates(T, T[:1], C),
            "coeffs: shape": lambda: L.grow_templates(T, T, C[:2]),
            "members: three": lambda: L.grow_templates(T, T, C, members=(0, 1, 0)),
        },
    ),
    Example(
        name="layers.orthogonal_coefficients",
        call=lambda key, previous: jnp.square(L.orthogonal_coefficients(previous)),
        arrays={"previous": normal(1, 2)},
        result="other",
        frozen=("previous",),
        bad={
            "previous: a vector": lambda: L.orthogonal_coefficients(jnp.ones(2)),
            "scale: NaN": lambda: L.orthogonal_coefficients(C, scale=float("nan")),
        },
    ),
    Example(
        name="layers.TemplateLinear",
        call=lambda key, x: templates()(x),
        arrays={"x": normal(8, 4)},
        result="rows",
        rows=("x",),
        dtype=None,
        wrt=("x",),
        bad={
            "in_features: odd": lambda: templates(in_features=3),
            "out_features: odd": lambda: templates(out_features=3),
            "num_templates: zero": lambda: templates(num_templates=0),
            "members: of a third set": lambda: templates(members=(0, 1, 2, 1)),
            "grows: misspelt": lambda: templates(grows="width"),
            "rngs: a key": lambda: templates(rngs=0),
            "x: another width": lambda: templates()(jnp.ones((8, 2))),
            "member: a third": lambda: templates()(jnp.ones((8, 2)), member=2),
        },
    ),
)
