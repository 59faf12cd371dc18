"""Layers with weights: beside a dense layer or a convolution, each with its gradient."""

import jax
import jax.numpy as jnp
from flax import nnx

import regjax as rj
from experiments.bench.cards import case as c
from experiments.bench.cards.layers_plain import (
    KEY,
    ROWS,
    WIDTH,
    dense,
    dense_args,
    lay,
    maps,
    module,
    rows,
    split,
    tokens,
    trained,
    weight,
    yes,
)

RANK = 8


# Dropped weights, and several samples.
DROPPED_WEIGHTS = {
    "drop_connect": lambda: trained(
        "dense",
        lambda x, kernel, bias, key: lay.drop_connect(key, x, kernel, bias, rate=0.3),
        *(*dense_args(), KEY),
        wrt=(0, 1, 2),
    ),
    "apply_drop_connect": lambda: trained(
        "dense",
        lambda x, kernel, bias, keep: lay.apply_drop_connect(x, kernel, keep, bias, rate=0.3),
        *(*dense_args(), yes(WIDTH, WIDTH)),
        wrt=(0, 1, 2),
    ),
    "DropConnect": lambda: module("dense", lambda: lay.DropConnect(WIDTH, WIDTH, rate=0.3, rngs=nnx.Rngs(0)), rngs=KEY),
    "drop_connect_moments": lambda: c.beside(
        dense,
        dense_args(),
        "a dense layer",
        lambda x, kernel, bias: lay.drop_connect_moments(x, kernel, bias, rate=0.3),
        *dense_args(),
    ),
    "drop_connect_samples": lambda: c.case(
        lambda key, x, kernel: lay.drop_connect_samples(key, x, kernel, rate=0.3, num_samples=100),
        *(KEY, c.normal(256, 128), weight(128, 100)),
        like="results",
    ),
    "multi_sample_dropout": lambda: beside_head(
        lambda kernel, x, key: lay.multi_sample_dropout(key, lambda h: h @ kernel, x), KEY
    ),
    "apply_multi_sample_dropout": lambda: beside_head(
        lambda kernel, x, keep: lay.apply_multi_sample_dropout(lambda h: h @ kernel, x, keep, rate=0.5), yes(8, 256, WIDTH)
    ),
    "MultiSampleDropout": lambda: beside_head(
        lambda kernel, x, key: lay.MultiSampleDropout(lambda h: h @ kernel)(x, rngs=key), KEY
    ),
    "multi_sample_loss": lambda: c.beside(
        c.with_gradient(rj.losses.label_smoothing, 0),
        (c.normal(256, 1000), c.ids(256, below=1000)),
        "the loss of one sample",
        c.with_gradient(lay.multi_sample_loss(rj.losses.label_smoothing), 0),
        *(c.normal(8, 256, 1000), c.ids(256, below=1000)),
    ),
}


def beside_head(call, *given):
    """Several samples of a head beside one, each with its gradient."""
    args = weight(WIDTH, 1000), c.normal(256, WIDTH)
    plain = c.with_gradient(lambda kernel, x: x @ kernel, (0, 1))
    return c.beside(plain, args, "one head with its gradient", c.with_gradient(call, (0, 1)), *args, *given)


# Adapters.
def adapted(make):
    """An adapted dense layer; the gradient is to what the adapter trains."""
    return module("dense", lambda: make(plain_linear()), only=lay.AdapterParam)


def plain_linear():
    """A dense layer as a module."""
    return nnx.Linear(WIDTH, WIDTH, rngs=nnx.Rngs(0))


def model(make):
    """Four layers, and the call of a function of a model of them on their arrays."""
    return nnx.Sequential(*(make() for _ in range(4)))


def on_model(call, make):
    """``call(model) -> arrays`` beside a copy of the model's weights; its masks are known, as shapes may depend on them."""
    graph, masks, weights = split(lambda: model(make), lambda path, value: value.dtype == bool)
    masks = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, leaf.dtype), masks)
    return c.case(lambda weights: call(nnx.merge(graph, masks, weights, copy=True)), weights)


def lora(layer, rngs=None):
    """A layer with a low-rank adapter."""
    return lay.LoRALinear(layer, rank=RANK, rngs=rngs or nnx.Rngs(0))


ordered = lambda: lay.OrderedDense(WIDTH, WIDTH, rngs=nnx.Rngs(0))

ADAPTERS = {
    "lora_apply": lambda: trained(
        "dense",
        lambda x, a, b, kernel, bias: lay.lora_apply(x, kernel, a, b, bias, scale=2.0),
        *(rows(), weight(WIDTH, RANK), weight(RANK, WIDTH), *dense_args()[1:]),
        wrt=(0, 1, 2),
    ),
    "LoRALinear": lambda: adapted(lora),
    "LoRAGroup": lambda: adapted(lambda layer: lay.LoRAGroup(layer, rank=2, num=4, rngs=nnx.Rngs(0))),
    "sorsa_apply": lambda: trained(
        "dense",
        lambda x, u, s, vt, kernel, bias: lay.sorsa_apply(x, kernel, u, s, vt, bias),
        *(rows(), weight(WIDTH, RANK), jnp.ones(RANK), weight(RANK, WIDTH), *dense_args()[1:]),
        wrt=(0, 1, 2, 3),
    ),
    "SORSALinear": lambda: adapted(lambda layer: lay.SORSALinear(layer, rank=RANK)),
    "SVDLinear": lambda: adapted(lay.SVDLinear),
    "adapt": lambda: on_model(lambda model: nnx.state(lay.adapt(model, lora)), plain_linear),
    "merge": lambda: on_model(lambda model: nnx.state(lay.merge(model)), lambda: lora(plain_linear())),
}

# Ordered low-rank layers.
ORDERED = {
    "ordered_dense": lambda: trained(
        "dense",
        lambda x, u, v, bias, rank: lay.ordered_dense(x, u, v, bias, rank=rank),
        *(rows(), weight(WIDTH, 64), weight(64, WIDTH), jnp.zeros(WIDTH), jnp.array(32)),
        wrt=(0, 1, 2, 3),
    ),
    "ordered_conv": lambda: trained(
        "conv",
        lambda x, u, v, bias, rank: lay.ordered_conv(x, u, v, bias, rank=rank),
        *(maps(), 0.04 * c.normal(3, 3, 64, 16), weight(16, 64), jnp.zeros(64), jnp.array(8)),
        wrt=(0, 1, 2, 3),
    ),
    "OrderedDense": lambda: module("dense", ordered),
    "OrderedConv": lambda: module("conv", lambda: lay.OrderedConv(64, 64, (3, 3), rngs=nnx.Rngs(0))),
    "order_layers": lambda: on_model(lambda model: nnx.state(lay.order_layers(model)), plain_linear),
    "fold_ordered": lambda: on_model(lambda model: nnx.state(lay.fold_ordered(nnx.view(model, rank=64))), ordered),
    "shrink_ordered": lambda: on_model(lambda model: (lay.shrink_ordered(model), nnx.state(model)), ordered),
    "truncate_ordered": lambda: truncated(*split(lambda: model(ordered))),
    "svd_factorize": lambda: c.case(lay.svd_factorize, weight(WIDTH, WIDTH)),
    "rank_pair": lambda: c.case(lay.rank_pair, jnp.array(900), c.ids(64, below=512)),
    "sample_rank": lambda: c.case(lay.sample_rank, KEY, c.ids(64, below=512)),
    "sample_ranks": lambda: c.case(lay.sample_ranks, KEY, c.ids(64, below=512)),
}


def truncated(graph, *state):
    """An ordered model with one layer at a smaller rank, beside the model itself."""
    plain = lambda state, x: nnx.merge(graph, *state)(x)
    call = lambda state, x, rank: lay.truncate_ordered(nnx.merge(graph, *state), rank, layer=1)(x)
    return c.beside(plain, (state, rows()), "the whole model", call, state, rows(), jnp.array(100))


# Sparse and structured layers.
def hyper_params(*kernel):
    """The parameters of a layer with 8 hyperparameters."""
    out = kernel[-1]
    vectors = c.normal(8, out), jnp.zeros(out), jnp.zeros(out), c.normal(8, out), jnp.ones(())
    return lay.HyperParams(0.04 * c.normal(*kernel), 0.04 * c.normal(*kernel, seed=1), *vectors)


def blocks():
    """Which blocks of 32 are kept."""
    return lay.flat_block_butterfly_mask(16, 16, butterfly_size=16, n_factors=4, block=1)


def grown():
    """A layer that has grown."""
    layer = lay.TemplateLinear(WIDTH, WIDTH, rngs=nnx.Rngs(0))
    layer.grow()
    return layer


def ladder():
    """The sum of small networks of blocks of tokens."""
    make = lambda: lay.LadderProjector([256] * 4, 256, hidden_features=256, last_hidden_features=512, rngs=nnx.Rngs(0))
    graph, params, _ = split(make)
    blocks = [tokens(i) for i in range(4)]
    plain = lambda kernels, blocks: sum(x @ kernel for x, kernel in zip(blocks, kernels, strict=True))
    return c.beside(
        c.with_gradient(plain, (0, 1)),
        ([weight(256, 256)] * 4, blocks),
        "one dense layer for each block with its gradient",
        c.with_gradient(lambda params, blocks: nnx.merge(graph, params)(blocks), (0, 1)),
        *(params, blocks),
    )


def policy():
    """The network of noise masks, with its gradient."""
    graph, params, rest = split(lambda: lay.NoiseMaskPolicy(3, rngs=nnx.Rngs(0)))
    call = lambda params, rest, images: nnx.merge(graph, params, rest, copy=True)(images)
    return c.case(call, params, rest, c.uniform(16, 32, 32, 3), wrt=0)


STRUCTURED = {
    "sparse_apply": lambda: trained(
        "dense",
        lambda x, kernel, bias, scores: lay.sparse_apply(x, kernel, scores, density=0.1) + bias,
        *(*dense_args(), weight(WIDTH, WIDTH, seed=1)),
        wrt=(0, 1, 2, 3),
    ),
    "SparseLinear": lambda: module("dense", lambda: lay.SparseLinear(WIDTH, WIDTH, density=0.1, rngs=nnx.Rngs(0))),
    "SparseConv": lambda: module("conv", lambda: lay.SparseConv(64, 64, (3, 3), density=0.1, rngs=nnx.Rngs(0))),
    "hyper_dense": lambda: trained("dense", lay.hyper_dense, hyper_params(WIDTH, WIDTH), rows(), c.normal(ROWS, 8), wrt=(0, 1)),
    "HyperDense": lambda: module("dense", lambda: lay.HyperDense(WIDTH, WIDTH, 8, rngs=nnx.Rngs(0)), c.normal(ROWS, 8)),
    "hyper_conv": lambda: trained("conv", lay.hyper_conv, hyper_params(3, 3, 64, 64), maps(), c.normal(64, 8), wrt=(0, 1)),
    "HyperConv": lambda: module("conv", lambda: lay.HyperConv(64, 64, (3, 3), 8, rngs=nnx.Rngs(0)), c.normal(64, 8)),
    "block_sparse_apply": lambda: trained(
        "dense",
        lambda x, blocks_: lay.block_sparse_apply(x, blocks_, mask=blocks(), out_features=WIDTH),
        *(rows(), weight(int(blocks().sum()), 32, 32)),
        wrt=(0, 1),
    ),
    "PixelatedButterfly": lambda: module("dense", lambda: lay.PixelatedButterfly(WIDTH, WIDTH, rngs=nnx.Rngs(0))),
    "combine": lambda: c.case(lay.combine, c.normal(4, WIDTH, WIDTH), c.normal(4)),
    "grow_templates": lambda: c.case(
        lay.grow_templates, c.normal(2, 256, 256), c.normal(2, 256, 256, seed=1), c.normal(4, 2), like="results"
    ),
    "orthogonal_coefficients": lambda: c.case(lay.orthogonal_coefficients, c.normal(8, 16)),
    "TemplateLinear": lambda: module("dense", grown),
    "LadderProjector": ladder,
    "NoiseMaskPolicy": policy,
}
