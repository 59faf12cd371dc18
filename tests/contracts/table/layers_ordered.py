"""Examples of the ordered low-rank layers."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import regjax as rj
from tests.contracts.example import Example, normal

KEY, NAN = jax.random.key(0), float("nan")
X, IMAGES, INTEGERS = jnp.ones((2, 4)), jnp.ones((2, 3, 3, 2)), jnp.ones((2, 4), int)
U, V = jnp.ones((4, 3)), jnp.ones((3, 5))
CU, CV = jnp.ones((3, 3, 2, 4)), jnp.ones((4, 5))
ALIVE = np.array([True, False, True])
FACTORS = {"u": normal(4, 3, seed=1), "v": normal(3, 5, seed=2), "bias": normal(5, seed=3)}
DENSE = {"x": normal(8, 4), **FACTORS}
CONV = {"x": normal(8, 3, 3, 2), "u": normal(2, 2, 2, 3, seed=1), "v": normal(3, 2, seed=2), "bias": normal(2, seed=3)}
RANKS = np.array([3, 0, 9, 12], np.int32)

lay = rj.layers
dense, conv = lay.ordered_dense, lay.ordered_conv


def truncation_errors(call) -> dict:
    """The wrong truncations; ``call(**options)`` is given each."""
    return {
        "fraction: above 1": lambda: call(fraction=1.5),
        "fraction: negative": lambda: call(fraction=-0.1),
        "fraction: NaN": lambda: call(fraction=NAN),
        "fraction: a string": lambda: call(fraction="half"),
        "rank: negative": lambda: call(rank=-1),
        "rank: above R": lambda: call(rank=9),
        "rank: a float": lambda: call(rank=1.0),
        "rank: a float array": lambda: call(rank=jnp.ones(())),
        "rank: beside a fraction": lambda: call(rank=1, fraction=0.5),
    }


def window_errors(call) -> dict:
    """The wrong options of a convolution; ``call(**options)`` is given each."""
    return {
        "strides: zero": lambda: call(strides=0),
        "strides: three": lambda: call(strides=(1, 1, 1)),
        "dilation: a float": lambda: call(dilation=1.5),
        "padding: misspelt": lambda: call(padding="same"),
        "padding: one number": lambda: call(padding=1),
        "padding: numbers": lambda: call(padding=(1, 1)),
        "padding: negative": lambda: call(padding=((-1, 0), (0, 0))),
    }


def make_dense(**options):
    return lay.OrderedDense(4, 3, **{"rngs": nnx.Rngs(0), **options})


def make_conv(**options):
    return lay.OrderedConv(2, 4, (3, 3), **{"rngs": nnx.Rngs(0), **options})


def with_arrays(layer, u, v, bias):
    """The layer with other parameters; it keeps its mask of living ranks, which is concrete inside a trace too."""
    layer = nnx.clone(layer)
    for variable, value in ((layer.u, u), (layer.v, v), (layer.bias, bias)):
        variable.set_value(value)
    return layer


DENSE_LAYER = lay.OrderedDense(3, 5, rngs=nnx.Rngs(0))
CONV_LAYER = lay.OrderedConv(2, 3, (2, 2), strides=(1, 2), rngs=nnx.Rngs(0))


def model_of(u, v, bias):
    return nnx.Sequential(with_arrays(DENSE_LAYER, u, v, bias), jnp.tanh)


def errors_of_models(call) -> dict:
    """What everything on ordered models refuses; ``call(model)`` is given each."""
    return {
        "model: no module": lambda: call({"u": U}),
        "model: without ordered layers": lambda: call(nnx.Linear(2, 2, rngs=nnx.Rngs(0))),
    }


# A model of three inputs, so that the factors [3, 3] and [3, 5] have all their ranks.
MODEL = {"x": normal(8, 3), "u": normal(3, 3, seed=1), "v": FACTORS["v"], "bias": FACTORS["bias"]}
SIZES = ({"x": np.zeros((8, 4))}, {"u": np.zeros((4, 3)), "v": np.zeros((3, 5))})


def factored(kernel):
    layer = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
    layer.kernel.set_value(kernel)
    return lay.order_layers(nnx.Sequential(layer, jnp.tanh))


def shrunk(u, v, bias, threshold):
    model = model_of(u, v, bias)
    count = lay.shrink_ordered(model, threshold=threshold)
    return count, model.layers[0].alive[...]


def folded(x, u, v, bias):
    small = lay.fold_ordered(nnx.view(model_of(u, v, bias), rank=1))
    assert [layer.kernel.shape for layer in small.layers[0].layers] == [(3, 1), (1, 5)]
    return small(x)


EXAMPLES = (
    Example(
        name="layers.svd_factorize",
        call=lambda key, kernel: lay.svd_factorize(kernel),
        arrays={"kernel": normal(2, 1, 3, 4)},
        result="other",
        dtype="input",
        singular=({"kernel": np.zeros((2, 1, 3, 4))},),
        tolerance=1e-4,
        bad={
            "kernel: a vector": lambda: lay.svd_factorize(jnp.ones(3)),
            "kernel: integers": lambda: lay.svd_factorize(jnp.ones((3, 3), int)),
        },
    ),
    Example(
        name="layers.ordered_dense",
        call=lambda key, x, u, v, bias: (
            dense(x, u, v, bias, rank=1),
            dense(x, u, v, bias, fraction=0.5, alive=ALIVE),
            dense(x, u, v),
        ),
        arrays=DENSE,
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x", "u", "v", "bias"),
        identity=lambda key, x, u, v, bias: (dense(x, u, v, bias, fraction=1.0), dense(x, u, v, bias)),
        singular=SIZES,
        bad={
            **truncation_errors(lambda **options: dense(X, U, V, **options)),
            "x: integers": lambda: dense(INTEGERS, U, V),
            "u: shape": lambda: dense(X, U.T, V),
            "v: shape": lambda: dense(X, U, V.T),
            "bias: shape": lambda: dense(X, U, V, jnp.ones(3)),
            "alive: shape": lambda: dense(X, U, V, alive=np.ones(4, bool)),
            "alive: floats": lambda: dense(X, U, V, alive=jnp.ones(3)),
        },
    ),
    Example(
        name="layers.ordered_conv",
        call=lambda key, x, u, v, bias: (conv(x, u, v, bias, rank=2), conv(x, u, v, strides=2, padding="VALID", alive=ALIVE)),
        arrays=CONV,
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x", "u", "v", "bias"),
        identity=lambda key, x, u, v, bias: (conv(x, u, v, bias, fraction=1.0), conv(x, u, v, bias)),
        singular=({"x": np.zeros((8, 3, 3, 2))},),
        bad={
            **truncation_errors(lambda **options: conv(IMAGES, CU, CV, **options)),
            **window_errors(lambda **options: conv(IMAGES, CU, CV, **options)),
            "x: integers": lambda: conv(jnp.ones((2, 3, 3, 2), int), CU, CV),
            "x: rank": lambda: conv(X, CU, CV),
            "x: four spatial axes": lambda: conv(jnp.ones((1,) * 6), CU, CV),
            "u: shape": lambda: conv(IMAGES, CU[0], CV),
            "v: shape": lambda: conv(IMAGES, CU, CV.T),
            "bias: shape": lambda: conv(IMAGES, CU, CV, jnp.ones(4)),
            "alive: shape": lambda: conv(IMAGES, CU, CV, alive=np.ones(3, bool)),
        },
    ),
    Example(
        name="layers.OrderedDense",
        call=lambda key, x, u, v, bias: model_of(u, v, bias).layers[0](x, fraction=0.5),
        arrays=MODEL,
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x", "u", "v", "bias"),
        identity=lambda key, x, u, v, bias: (
            nnx.view(model_of(u, v, bias), fraction=1.0).layers[0](x),
            model_of(u, v, bias).layers[0](x),
        ),
        singular=({"x": np.zeros((8, 3))},),
        bad={
            **truncation_errors(lambda **options: make_dense()(X, **options)),
            "fraction: in a view": lambda: nnx.view(make_dense(), fraction=2.0),
            "rank: in a view": lambda: nnx.view(make_dense(), rank=9),
            "x: integers": lambda: make_dense()(INTEGERS),
            "x: length": lambda: make_dense()(jnp.ones((2, 3))),
            "in_features: zero": lambda: lay.OrderedDense(0, 3, rngs=nnx.Rngs(0)),
            "out_features: a float": lambda: lay.OrderedDense(3, 3.0, rngs=nnx.Rngs(0)),
            "use_bias: a number": lambda: make_dense(use_bias=1),
            "kernel_init: no function": lambda: make_dense(kernel_init=0),
            "rngs: a number": lambda: make_dense(rngs=0),
        },
    ),
    Example(
        name="layers.OrderedConv",
        call=lambda key, x, u, v, bias: with_arrays(CONV_LAYER, u, v, bias)(x, rank=2),
        arrays={**CONV, "v": normal(3, 3, seed=2), "bias": normal(3, seed=3)},
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x", "u", "v", "bias"),
        singular=({"x": np.zeros((8, 3, 3, 2))},),
        bad={
            **truncation_errors(lambda **options: make_conv()(IMAGES, **options)),
            **window_errors(make_conv),
            "x: rank": lambda: make_conv()(X),
            "x: channels": lambda: make_conv()(IMAGES[..., :1]),
            "kernel_size: four": lambda: lay.OrderedConv(2, 4, (1, 1, 1, 1), rngs=nnx.Rngs(0)),
            "kernel_size: zero": lambda: lay.OrderedConv(2, 4, (0, 1), rngs=nnx.Rngs(0)),
            "in_features: zero": lambda: lay.OrderedConv(0, 4, (3, 3), rngs=nnx.Rngs(0)),
            "out_features: zero": lambda: lay.OrderedConv(2, 0, (3, 3), rngs=nnx.Rngs(0)),
            "use_bias: a number": lambda: make_conv(use_bias=1),
            "rngs: None": lambda: make_conv(rngs=None),
        },
    ),
    Example(
        name="layers.order_layers",
        call=lambda key, x, kernel: factored(kernel)(x),
        arrays={"x": normal(8, 4), "kernel": normal(4, 3, seed=1)},
        rows=("x",),
        result="rows",
        dtype=None,
        wrt=("x",),
        tolerance=1e-4,
        bad={
            "model: no module": lambda: lay.order_layers(X),
            "model: nothing to order": lambda: lay.order_layers(nnx.LayerNorm(3, rngs=nnx.Rngs(0))),
            "where: no function": lambda: lay.order_layers(nnx.Linear(2, 2, rngs=nnx.Rngs(0)), where="layers"),
            "where: chooses nothing": lambda: lay.order_layers(
                nnx.Linear(2, 2, rngs=nnx.Rngs(0)), where=lambda path, layer: False
            ),
        },
    ),
    Example(
        name="layers.ordered_layers",
        call=lambda key, x, u, v, bias: [layer(x) for layer in lay.ordered_layers(model_of(u, v, bias)).values()],
        arrays=MODEL,
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x",),
        bad={"model: no module": lambda: lay.ordered_layers(X)},
    ),
    Example(
        name="layers.truncate_ordered",
        call=lambda key, x, u, v, bias, rank: (
            lay.truncate_ordered(model_of(u, v, bias), rank, layer=jnp.zeros((), int))(x),
            lay.truncate_ordered(model_of(u, v, bias), rank[None] + 1)(x),
        ),
        arrays={**MODEL, "rank": np.array(1, np.int32)},
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x", "u", "v", "bias"),
        identity=lambda key, x, u, v, bias, rank: (
            lay.truncate_ordered(model_of(u, v, bias), 3, layer=0)(x),
            model_of(u, v, bias)(x),
        ),
        singular=({"rank": np.array(0, np.int32)},),
        bad={
            **errors_of_models(lambda model: lay.truncate_ordered(model, 1, layer=0)),
            "rank: above R": lambda: lay.truncate_ordered(make_dense(), 4, layer=0),
            "rank: a float": lambda: lay.truncate_ordered(make_dense(), 1.0, layer=0),
            "rank: one number for all": lambda: lay.truncate_ordered(make_dense(), 1),
            "rank: two for one layer": lambda: lay.truncate_ordered(make_dense(), jnp.ones(2, int)),
            "layer: out of range": lambda: lay.truncate_ordered(make_dense(), 1, layer=1),
            "layer: a float array": lambda: lay.truncate_ordered(make_dense(), 1, layer=jnp.ones(())),
        },
    ),
    Example(
        name="layers.shrink_ordered",
        call=lambda key, u, v, bias, threshold: shrunk(u, v, bias, threshold),
        arrays={"u": MODEL["u"], "v": MODEL["v"], "bias": MODEL["bias"], "threshold": np.array(4.0)},
        result="other",
        identity=lambda key, u, v, bias, threshold: (shrunk(u, v, bias, 0 * threshold)[1], jnp.ones(3, bool)),
        singular=({"u": np.zeros((3, 3))},),
        bad={
            **errors_of_models(lay.shrink_ordered),
            "threshold: negative": lambda: lay.shrink_ordered(make_dense(), threshold=-1.0),
            "threshold: NaN": lambda: lay.shrink_ordered(make_dense(), threshold=NAN),
            "hierarchical: a number": lambda: lay.shrink_ordered(make_dense(), hierarchical=1),
        },
    ),
    Example(
        name="layers.fold_ordered",
        call=lambda key, x, u, v, bias: folded(x, u, v, bias),
        arrays=MODEL,
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x", "u", "v", "bias"),
        bad={
            **errors_of_models(lay.fold_ordered),
            "model: traced": lambda: jax.jit(lambda rank: lay.fold_ordered(nnx.view(make_dense(), rank=rank))(X))(1),
        },
    ),
    Example(
        name="layers.rank_pair",
        call=lambda key, index, ranks: lay.rank_pair(index, ranks),
        arrays={"index": np.array(5, np.int32), "ranks": RANKS},
        result="other",
        singular=({"ranks": np.zeros(4, np.int32)},),
        bad={
            "index: negative": lambda: lay.rank_pair(-1, RANKS),
            "index: a float": lambda: lay.rank_pair(1.0, RANKS),
            "index: a vector": lambda: lay.rank_pair(jnp.arange(2), RANKS),
            "ranks: floats": lambda: lay.rank_pair(1, jnp.ones(3)),
            "ranks: a scalar": lambda: lay.rank_pair(1, jnp.ones((), int)),
            "ranks: empty": lambda: lay.rank_pair(1, jnp.zeros(0, int)),
        },
    ),
    Example(
        name="layers.sample_rank",
        call=lambda key, ranks: lay.sample_rank(key, ranks),
        arrays={"ranks": RANKS},
        result="other",
        random=True,
        singular=({"ranks": np.zeros(4, np.int32)},),
        bad={
            "key: a number": lambda: lay.sample_rank(0, RANKS),
            "ranks: floats": lambda: lay.sample_rank(KEY, jnp.ones(3)),
            "ranks: empty": lambda: lay.sample_rank(KEY, jnp.zeros(0, int)),
        },
    ),
    Example(
        name="layers.sample_ranks",
        call=lambda key, ranks: lay.sample_ranks(key, ranks),
        arrays={"ranks": RANKS},
        result="other",
        random=True,
        singular=({"ranks": np.zeros(4, np.int32)},),
        bad={
            "key: a number": lambda: lay.sample_ranks(0, RANKS),
            "ranks: a matrix": lambda: lay.sample_ranks(KEY, jnp.ones((2, 2), int)),
            "ranks: floats": lambda: lay.sample_ranks(KEY, jnp.ones(3)),
        },
    ),
)
