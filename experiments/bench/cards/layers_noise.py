"""Noise, and layers that see visible pixels alone: beside a copy, or what they are without masks."""

import jax
import jax.numpy as jnp
from flax import nnx

from experiments.bench.cards import case as c
from experiments.bench.cards.layers_plain import (
    KEY,
    ROWS,
    WIDTH,
    conv_args,
    convolution,
    dense,
    dense_args,
    lay,
    maps,
    on_maps,
    on_rows,
    rows,
    trained,
    weight,
    yes,
)

# Dropout and noise.
NOISE = {
    "dropout": on_rows(lambda key, x: lay.dropout(key, x, rate=0.3)),
    "apply_dropout": lambda: c.case(lambda x, keep: lay.apply_dropout(x, keep, rate=0.3), rows(), yes(ROWS, WIDTH)),
    "Dropout": on_rows(lambda key, x: lay.Dropout(0.3)(x, rngs=key)),
    "drop_path": on_rows(lambda key, x: lay.drop_path(key, x, rate=0.3)),
    "apply_drop_path": lambda: c.case(lambda x, keep: lay.apply_drop_path(x, keep, rate=0.3), rows(), yes(ROWS)),
    "DropPath": on_rows(lambda key, x: lay.DropPath(0.3)(x, rngs=key)),
    "spatial_dropout": on_maps(lambda key, x: lay.spatial_dropout(key, x, rate=0.3)),
    "apply_spatial_dropout": lambda: c.case(lambda x, keep: lay.apply_spatial_dropout(x, keep, rate=0.3), maps(), yes(64, 64)),
    "SpatialDropout": on_maps(lambda key, x: lay.SpatialDropout(0.3)(x, rngs=key)),
    "drop_block": on_maps(lambda key, x: lay.drop_block(key, x)),
    "apply_drop_block": lambda: c.case(lay.apply_drop_block, maps(), c.uniform(64, 16, 16, 1) < 0.01),
    "DropBlock": on_maps(lambda key, x: lay.DropBlock(0.1)(x, rngs=key)),
    "gaussian_noise": on_rows(lambda key, x: lay.gaussian_noise(key, x, std=0.3)),
    "apply_gaussian_noise": lambda: c.case(lambda x, noise: lay.apply_gaussian_noise(x, noise, std=0.3), rows(), rows(1)),
    "GaussianNoise": on_rows(lambda key, x: lay.GaussianNoise(0.3)(x, rngs=key)),
    "frozen_mask_dropout": lambda: c.case(frozen_mask().apply, jax.eval_shape(frozen_mask().init, KEY), rows()),
    "nested_dropout": lambda: c.case(
        lambda key, x, probs: lay.nested_dropout(key, x, probs=probs), KEY, rows(), c.probabilities(WIDTH)
    ),
    "NestedDropout": on_rows(lambda key, x: lay.NestedDropout(WIDTH, scale=128.0)(x, rngs=key)),
    "nested_dropout_probs": lambda: c.case(
        lambda scale: lay.nested_dropout_probs(WIDTH, scale=scale), jnp.array(128.0), like="results"
    ),
    "truncate_features": lambda: c.case(lay.truncate_features, rows(), jnp.array(100)),
    "sample_truncations": lambda: c.case(lay.sample_truncations, KEY, c.probabilities(WIDTH), c.probabilities(WIDTH, seed=1)),
    "select_truncation": lambda: c.case(lay.select_truncation, c.uniform(WIDTH)),
    "truncated_logits": lambda: c.case(
        lay.truncated_logits, c.normal(128, 128), weight(128, 100), jnp.zeros(100), like="results"
    ),
    "mix_features": lambda: c.case(
        lambda h, lam, partner: lay.mix_features(h, lam=lam, partner=partner), rows(), c.uniform(ROWS), c.ids(ROWS, below=ROWS)
    ),
    "modulate_backward": lambda: trained("dense", lay.modulate_backward(dense, argnum=0, rho=0.9), *dense_args(), wrt=(0, 1, 2)),
    "hard_concrete": lambda: c.case(
        lambda key, log_alpha: lay.hard_concrete(key, log_alpha, shape=(ROWS, WIDTH)), KEY, c.normal(WIDTH), like="results"
    ),
    "apply_hard_concrete": lambda: c.case(lay.apply_hard_concrete, c.normal(WIDTH), c.uniform(ROWS, WIDTH)),
    "HardConcrete": on_rows(lambda key, x: lay.HardConcrete(WIDTH, rngs=nnx.Rngs(0))(x, rngs=key)),
    "sparse_activation": lambda: c.case(lambda x, p: lay.sparse_activation(x, "acon", p), rows(), jnp.ones(3), wrt=(0, 1)),
    "SparseActivation": lambda: activation(*nnx.split(lay.SparseActivation("acon"))),
    "binary_mask_ste": lambda: c.case(lay.binary_mask_ste, 0.01 * weight(WIDTH, WIDTH), wrt=0),
}


def frozen_mask():
    """The masks of a batch."""
    return lay.frozen_mask_dropout((ROWS, WIDTH), rate=0.3)


def activation(graph, params):
    """An activation with its scales."""
    return c.case(lambda params, x: nnx.merge(graph, params)(x), params, rows(), wrt=(0, 1))


# Layers that see the visible pixels alone.
def window(start, combine, x):
    """Pooling over windows of 2."""
    return jax.lax.reduce_window(x, start, combine, (1, 2, 2, 1), (1, 2, 2, 1), "VALID")


def seen():
    """The visible pixels."""
    return c.uniform(64, 16, 16, 1) < 0.5


def masked(plain, name, call):
    """``call(x, mask)`` beside the plain function of the maps."""
    return lambda: c.beside(plain, (maps(),), name, call, maps(), seen())


MASKING = {
    "neighbour_padding": lambda: c.case(lambda x, mask: lay.neighbour_padding(x, mask, iterations=2), maps(), seen()),
    "masked_conv": lambda: c.beside(
        convolution, conv_args(), "a convolution", lay.masked_conv, conv_args()[0], seen(), *conv_args()[1:]
    ),
    "masked_max_pool": masked(
        lambda x: window(-jnp.inf, jax.lax.max, x), "max pooling", lambda x, mask: lay.masked_max_pool(x, mask, 2)
    ),
    "masked_avg_pool": masked(
        lambda x: window(0.0, jax.lax.add, x) / 4, "average pooling", lambda x, mask: lay.masked_avg_pool(x, mask, 2)
    ),
    "masked_global_avg_pool": masked(lambda x: x.mean((1, 2)), "the mean", lay.masked_global_avg_pool),
    "masked_elementwise": masked(jax.nn.gelu, "GELU", lambda x, mask: lay.masked_elementwise(jax.nn.gelu, x, mask)),
    "masked_residual": lambda: c.beside(
        jnp.add, (maps(), maps(1)), "the sum", lay.masked_residual, maps(), seen(), maps(1), ~seen()
    ),
}
