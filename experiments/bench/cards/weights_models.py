"""The weights of whole models: what anchors, averages and repairs them."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import optax

import regjax as rj
from experiments.bench.cards import case as c
from experiments.bench.cards.case import Case

w = rj.weights
CONV = (3, 3, 64, 64)


def others(seed: int = 8) -> dict[str, Any]:
    """Parameters in the form of the dense layers."""
    return jax.tree.map(lambda x: c.normal(*x.shape, seed=seed), c.kernels())


def masks(seed: int = 9) -> dict[str, Any]:
    """A mask of about half of the weights."""
    return jax.tree.map(lambda x: x > 0, others(seed))


def layers(params: Any, x: jax.Array) -> jax.Array:
    """The network of the dense layers."""
    for i, layer in enumerate(params.values()):
        x = x @ layer["kernel"] + layer["bias"]
        x = jax.nn.relu(x) if i + 1 < len(params) else x
    return x


def product(fn: Callable[..., Any], left: jax.Array, right: jax.Array, *args: Any) -> Case:
    """What multiplies two matrices, beside their product."""
    return c.beside(jnp.matmul, (left, right), "the product of the matrices", fn, left, right, *args)


def averaged(make: Any, **options: Any) -> Case:
    """An average after a step; the memory is overwritten."""
    params = c.kernels()
    return c.case(lambda state, params: make.apply(state, params, **options), jax.eval_shape(make.init, params), params, donate=0)


def head() -> dict[str, jax.Array]:
    """A head on frozen features: what keeps a square matrix or a network of all weights is meant for it."""
    return {"kernel": c.normal(256, 10) / 16, "bias": jnp.zeros(10)}


def head_loss(params: Any, data: Any) -> jax.Array:
    """The summed cross-entropy of the head."""
    x, y = data
    return optax.softmax_cross_entropy_with_integer_labels(head_logits(params, x), y).sum()


def head_logits(params: Any, x: jax.Array) -> jax.Array:
    """The logits of the head."""
    return x @ params["kernel"] + params["bias"]


def of_data(call: Callable[..., Any], *args: Any, batches: int | None = 4) -> Case:
    """What measures the head on data, ``call(params, data, *args)``, beside the gradient of one batch."""
    leading = (256,) if batches is None else (batches, 256)
    data = c.normal(*leading, 256), c.ids(*leading, below=10)
    plain = jax.grad(head_loss), (head(), (c.normal(256, 256), c.ids(256, below=10)))
    return c.beside(*plain, "the gradient of a batch", call, head(), data, *args)


def soup_gradient(weights: Any, models: Any, *data: jax.Array) -> Any:
    """The gradient of an average's weights."""
    return jax.grad(w.learned_soup(models, scaled_loss).apply, has_aux=True)(weights, *data)


def scaled_loss(params: Any, x: jax.Array, y: jax.Array, logit_scale: Any = 1.0) -> jax.Array:
    """The loss of the dense layers."""
    return optax.softmax_cross_entropy_with_integer_labels(logit_scale * layers(params, x), y).mean()


def statistics(params: Any, x: jax.Array) -> dict[str, jax.Array]:
    """What batch normalisation behind the dense layers measures."""
    y = layers(params, x)
    return {"mean": y.mean(0), "var": y.var(0)}


def mlp(params: Any, x: jax.Array) -> jax.Array:
    """The function of an MLP block."""
    return jax.nn.silu(x @ params["up"]) @ params["down"]


CASES: dict[str, Callable[[], Case]] = {
    # What holds a model near its start.
    "l2_sp": lambda: c.case(w.l2_sp, c.kernels(), others(), wrt=0),
    "mixout": lambda: c.case(w.mixout, c.key(), c.kernels(), others(), wrt=1),
    "apply_mixout": lambda: c.case(w.apply_mixout, c.kernels(), others(), masks(), wrt=0),
    "sorted_init": lambda: c.case(w.sorted_init, c.kernels()),
    "wasserstein_to_init": lambda: c.case(w.wasserstein_to_init, c.kernels(), jax.eval_shape(w.sorted_init, others()), wrt=0),
    "ewc_init": lambda: c.case(w.ewc_init, c.kernels(), like="results"),
    "ewc_update": lambda: of_data(
        lambda params, data, state: w.ewc_update(state, params, head_logits, data), jax.eval_shape(w.ewc_init, head())
    ),
    "ewc": lambda: c.case(w.ewc, c.kernels(), w.EWCState(others(), jax.tree.map(jnp.square, others(10))), wrt=0),
    "diagonal_fisher": lambda: of_data(lambda params, data: w.diagonal_fisher(params, head_logits, data)),
    "si_init": lambda: c.case(w.si_init, c.kernels(), like="results"),
    "si_step": lambda: c.case(w.si_step, jax.eval_shape(w.si_init, c.kernels()), c.kernels(), others(), donate=0),
    "si_update": lambda: c.case(w.si_update, jax.eval_shape(w.si_init, c.kernels()), others(), donate=0),
    "si": lambda: c.case(w.si, c.kernels(), jax.eval_shape(w.si_init, others()), wrt=0),
    "aqc_init": lambda: c.case(w.aqc_init, head(), like="results"),
    "aqc_update": lambda: of_data(
        lambda params, data, state: w.aqc_update(state, params, head_loss, data, chunk_size=64),
        jax.eval_shape(w.aqc_init, head()),
    ),
    "quadratic_consolidation": lambda: c.case(w.quadratic_consolidation, head(), jax.eval_shape(w.aqc_init, head()), wrt=0),
    "neural_consolidation_init": lambda: c.case(
        lambda key, params: w.neural_consolidation_init(key, params), c.key(), head(), like="results"
    ),
    "neural_consolidation_update": lambda: of_data(
        lambda params, data, state, key: w.neural_consolidation_update(key, state, params, head_loss, data),
        jax.eval_shape(w.neural_consolidation_init, c.key(), head()),
        c.key(),
        batches=None,
    ),
    "neural_consolidation": lambda: c.case(
        w.neural_consolidation, head(), jax.eval_shape(w.neural_consolidation_init, c.key(), head()), wrt=0
    ),
    # Averages.
    "ema": lambda: averaged(w.ema()),
    "swa": lambda: averaged(w.swa(), step=jnp.int32(3)),
    "recompute_batch_stats": lambda: c.beside(
        lambda params, x: layers(params, x),
        (c.kernels(), c.normal(1024, 512)),
        "a forward pass",
        lambda params, *batches: w.recompute_batch_stats(statistics, params, batches),
        c.kernels(),
        *(c.normal(256, 512, seed=i) for i in range(4)),
    ),
    "uniform_soup": lambda: c.case(lambda *models: w.uniform_soup(models), *(others(i) for i in range(4))),
    "learned_soup": lambda: c.beside(
        jax.grad(scaled_loss),
        (c.kernels(), c.normal(256, 512), c.ids(256, below=512)),
        "a gradient of one model",
        soup_gradient,
        w.SoupWeights(jnp.full(4, 0.25), jnp.ones(())),
        [others(i) for i in range(4)],
        c.normal(256, 512),
        c.ids(256, below=512),
    ),
    "interpolate": lambda: c.case(partial(w.interpolate, alpha=0.3), c.kernels(), others()),
    "fisher_interpolate": lambda: c.case(
        partial(w.fisher_interpolate, alpha=0.3), *(jax.tree.map(jnp.abs, others(i)) for i in range(4))
    ),
    # Repair of trained weights.
    "reconstruct_channels": lambda: c.case(
        w.reconstruct_channels, c.normal(*CONV), tuple(c.uniform(4, 64) + 0.5), c.normal(*CONV, seed=1), c.normal(64) > 1
    ),
    "round_to_nearest": lambda: c.case(w.round_to_nearest, c.normal(2048, 512)),
    "restore_super": lambda: c.case(
        lambda rounded, weights: w.restore_super(rounded, weights, [(1, 2), (30, 40)]),
        c.normal(2048, 512),
        c.normal(2048, 512, seed=1),
        donate=0,
    ),
    "quantize_super_activation": lambda: c.case(lambda x: w.quantize_super_activation(x, (3, 1, 2)), c.normal(64, 64, 256)),
    "attention_linear_map": lambda: product(
        lambda value, proj, scale: w.attention_linear_map(value, proj, scale),
        c.normal(512, 512),
        c.normal(512, 512, seed=1),
        c.normal(512),
    ),
    "linearize_mlp": lambda: c.beside(
        mlp,
        ({"up": c.normal(256, 1024), "down": c.normal(1024, 256)}, c.normal(1000, 256)),
        "the function at as many inputs",
        lambda params, key: w.linearize_mlp(partial(mlp, params), key, 256, num_samples=1000),
        {"up": c.normal(256, 1024), "down": c.normal(1024, 256)},
        c.key(),
    ),
    "singular_defect_directions": lambda: c.case(w.singular_defect_directions, c.normal(12, 256, 256)),
}
