"""Examples of adapters: low-rank, in groups, on singular values, and on whole models."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import regjax as rj
from tests.contracts.example import Example, normal

lay = rj.layers
KEY, NAN = jax.random.key(0), float("nan")
X, K = jnp.ones((2, 4)), jnp.ones((4, 3))
A, B, S, BIAS = jnp.ones((4, 2)), jnp.ones((2, 3)), jnp.ones(2), jnp.ones(3)
INTEGERS = jnp.ones((2, 4), int)
LINEAR = {"x": normal(8, 4), "kernel": normal(4, 3, seed=1), "bias": normal(3, seed=2)}
LORA = {**LINEAR, "a": normal(4, 2, seed=3), "b": normal(2, 3, seed=4)}
SORSA = {
    "x": normal(8, 4),
    "residual": normal(4, 3, seed=1),
    "u": normal(4, 2, seed=3),
    "s": normal(2, seed=4),
    "vt": normal(2, 3, seed=5),
    "bias": normal(3, seed=2),
}
SIZES = ({"x": np.zeros((8, 4))}, {"x": 1e4 * np.sign(normal(8, 4))})


def rngs():
    return nnx.Rngs(0)


STACKED = nnx.Linear(4, 3, rngs=rngs())
STACKED.kernel = nnx.Param(jnp.ones((2, 4, 3)))


def plain(x, kernel, bias):
    return (jnp.einsum("...i,io->...o", x, kernel, preferred_element_type=jnp.float32) + bias).astype(x.dtype)


def number_errors(call, *names) -> dict:
    """What a factor refuses; ``call(**{name: value})`` raises."""
    values = {"NaN": NAN, "a string": "strong", "a vector": jnp.ones(2)}
    return {f"{name}: {what}": partial(call, **{name: value}) for name in names for what, value in values.items()}


def dropout_errors(call) -> dict:
    """The wrong drop rates; ``call(dropout_rate=...)`` raises."""
    values = {"above 1": 1.5, "negative": -0.1, "NaN": NAN, "a string": "half"}
    return {f"dropout_rate: {what}": partial(call, dropout_rate=value) for what, value in values.items()}


def layer_errors(make, **given) -> dict:
    """What every adapted layer refuses; ``make(layer, **options)`` builds one."""
    grouped = nnx.Conv(4, 4, (3, 3), feature_group_count=2, rngs=rngs())
    return {
        "layer: a normalisation": lambda: make(nnx.LayerNorm(4, rngs=rngs()), **given),
        "layer: a grouped convolution": lambda: make(grouped, **given),
        "layer: stacked for a scan": lambda: make(STACKED, **given),
        "layer: integers": lambda: make(jnp.ones((4, 3), int), **given),
        "layer: a vector": lambda: make(jnp.ones(3), **given),
        "x: integers": lambda: make(K, **given)(INTEGERS),
        "x: other features": lambda: make(K, **given)(jnp.ones((2, 5))),
        "rngs: a number": lambda: make(K, **{**given, "rngs": 0}),
    }


def rank_errors(make) -> dict:
    return {"rank: zero": lambda: make(K, rank=0), "rank: a float": lambda: make(K, rank=2.0)}


LORA_LAYER = lay.LoRALinear(nnx.Linear(4, 3, rngs=rngs()), rank=2, alpha=3.0, rngs=rngs())
GROUP = lay.LoRAGroup(nnx.Linear(4, 3, rngs=rngs()), rank=2, num=2, rngs=rngs())
SORSA_LAYER = lay.SORSALinear(nnx.Linear(4, 3, rngs=rngs()), rank=2, alpha=3.0)
SVD_LAYER = lay.SVDLinear(nnx.Linear(4, 3, rngs=rngs()))
SMALL = partial(lay.LoRALinear, rank=2)


def holding(layer, **values):
    """The layer with other values of its variables."""
    layer = nnx.clone(layer)
    for name, value in values.items():
        getattr(layer, name).set_value(value)
    return layer


def make_lora(layer=K, **options):
    return lay.LoRALinear(layer, **{"rank": 2, "rngs": rngs(), **options})


def make_group(layer=K, **options):
    return lay.LoRAGroup(layer, **{"rank": 2, "rngs": rngs(), **options})


def make_sorsa(layer=K, **options):
    return lay.SORSALinear(layer, **{"rank": 2, **options})


def lora(x=X, kernel=K, a=A, b=B, bias=BIAS, **options):
    return lay.lora_apply(x, kernel, a, b, bias, **{"scale": 0.5, **options})


def sorsa(x=X, residual=K, u=A, s=S, vt=B, bias=BIAS, **options):
    return lay.sorsa_apply(x, residual, u, s, vt, bias, **options)


def with_lora(x, kernel, bias, a, b):
    """A model adapted inside the call, with trained adapters."""
    base = nnx.Linear(4, 3, rngs=rngs())
    base.kernel.set_value(kernel)
    base.bias.set_value(bias)
    model = lay.adapt(nnx.Sequential(base, jnp.tanh), SMALL, rngs=rngs())
    model.layers[0].a.set_value(a)
    model.layers[0].b.set_value(b)
    return model


def model_errors(call) -> dict:
    return {
        "model: no module": lambda: call({"kernel": K}),
        "model: nothing adapted": lambda: call(nnx.Linear(2, 2, rngs=rngs())),
    }


def adapt(model=None, make=SMALL, **options):
    return lay.adapt(nnx.Sequential(nnx.Linear(4, 3, rngs=rngs())) if model is None else model, make, **options)


def tied():
    first, second = nnx.Linear(3, 3, rngs=rngs()), nnx.Linear(3, 3, rngs=rngs())
    second.kernel = first.kernel
    return nnx.Sequential(first, second)


PAIR = {"a": K, "b": K}

EXAMPLES = (
    Example(
        name="layers.lora_apply",
        call=lambda key, x, kernel, a, b, bias: lora(x, kernel, a, b, bias, dropout_rate=0.3, key=key),
        arrays=LORA,
        rows=("x",),
        result="other",
        dtype="input",
        wrt=("x", "a", "b"),
        frozen=("kernel", "bias"),
        random=True,
        identity=lambda key, x, kernel, a, b, bias: (
            lora(x, kernel, a, b, bias, scale=jnp.zeros(()), dropout_rate=jnp.zeros(()), key=key),
            plain(x, kernel, bias),
        ),
        singular=(*SIZES, {"b": np.zeros((2, 3))}),
        bad={
            **number_errors(lora, "scale"),
            **dropout_errors(lora),
            "key: missing": lambda: lora(dropout_rate=0.1),
            "x: integers": lambda: lora(INTEGERS),
            "kernel: shape": lambda: lora(kernel=jnp.ones((3, 3))),
            "a: shape": lambda: lora(a=jnp.ones((3, 2))),
            "b: shape": lambda: lora(b=jnp.ones((3, 3))),
            "bias: shape": lambda: lora(bias=jnp.ones(4)),
        },
    ),
    Example(
        name="layers.LoRALinear",
        call=lambda key, x, **values: holding(LORA_LAYER, **values)(x),
        arrays=LORA,
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x", "a", "b"),
        frozen=("kernel", "bias"),
        identity=lambda key, x, kernel, bias, a, b: (
            holding(LORA_LAYER, kernel=kernel, bias=bias, a=a, b=0 * b)(x),
            holding(nnx.Linear(4, 3, rngs=rngs()), kernel=kernel, bias=bias)(x),
        ),
        singular=SIZES,
        bad={
            **layer_errors(make_lora),
            **rank_errors(make_lora),
            **number_errors(make_lora, "alpha"),
            **dropout_errors(make_lora),
            "alpha: negative": lambda: make_lora(alpha=-1.0),
            "alpha: zero": lambda: make_lora(alpha=0.0, init="pissa"),
            "rank: above the kernel's": lambda: make_lora(rank=4, init="pissa"),
            "init: misspelt": lambda: make_lora(init="pisa"),
            "rngs: missing": lambda: make_lora(rngs=None),
            "rngs: no stream for dropout": lambda: make_lora(dropout_rate=0.1, rngs=nnx.Rngs(params=0)),
            "deterministic: a string": lambda: make_lora(deterministic="no"),
        },
    ),
    Example(
        name="layers.LoRAGroup",
        call=lambda key, x, **values: holding(GROUP, **values)(x),
        arrays={**LINEAR, "a": normal(2, 4, 2, seed=3), "b": normal(2, 2, 3, seed=4)},
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x", "a", "b"),
        frozen=("kernel", "bias"),
        identity=lambda key, x, kernel, bias, a, b: (
            holding(GROUP, kernel=kernel, bias=bias, a=a, b=0 * b)(x),
            holding(nnx.Linear(4, 3, rngs=rngs()), kernel=kernel, bias=bias)(x),
        ),
        singular=SIZES,
        bad={**layer_errors(make_group), **rank_errors(make_group), "num: zero": lambda: make_group(num=0)},
    ),
    Example(
        name="layers.sorsa_apply",
        call=lambda key, **values: sorsa(**values, scale=0.5),
        arrays=SORSA,
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x", "u", "s", "vt"),
        frozen=("residual", "bias"),
        identity=lambda key, x, residual, bias, **factors: (
            sorsa(x, residual, **factors, bias=bias, scale=jnp.zeros(())),
            plain(x, residual, bias),
        ),
        singular=(*SIZES, {"s": np.zeros(2)}),
        bad={
            **number_errors(sorsa, "scale"),
            **dropout_errors(sorsa),
            "key: missing": lambda: sorsa(dropout_rate=0.1),
            "x: integers": lambda: sorsa(INTEGERS),
            "residual: shape": lambda: sorsa(residual=jnp.ones((3, 3))),
            "u: shape": lambda: sorsa(u=jnp.ones((3, 2))),
            "s: shape": lambda: sorsa(s=jnp.ones(3)),
            "vt: shape": lambda: sorsa(vt=jnp.ones((3, 3))),
        },
    ),
    Example(
        name="layers.SORSALinear",
        call=lambda key, x, residual, **values: holding(SORSA_LAYER, kernel=residual, **values)(x),
        arrays=SORSA,
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x", "u", "s", "vt"),
        frozen=("residual", "bias"),
        bad={
            **layer_errors(make_sorsa),
            **rank_errors(make_sorsa),
            **number_errors(make_sorsa, "alpha"),
            **dropout_errors(make_sorsa),
            "alpha: zero": lambda: make_sorsa(alpha=0.0),
            "rank: above the kernel's": lambda: make_sorsa(rank=4),
        },
    ),
    Example(
        name="layers.SVDLinear",
        call=lambda key, x, **values: holding(SVD_LAYER, **values)(x),
        arrays={**LINEAR, "u": normal(4, 3, seed=3), "vt": normal(3, 3, seed=4), "eps": normal(3, seed=5)},
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x", "eps"),
        frozen=("kernel", "bias", "u", "vt"),
        bad=layer_errors(lay.SVDLinear),
    ),
    Example(
        name="layers.adapt",
        call=lambda key, x, **values: with_lora(**{"x": x, **values})(x),
        arrays=LORA,
        rows=("x",),
        result="rows",
        dtype="input",
        wrt=("x", "a", "b"),
        frozen=("kernel", "bias"),
        bad={
            "model: no module": lambda: adapt({"kernel": K}, rngs=rngs()),
            "model: nothing to adapt": lambda: adapt(nnx.Sequential(jnp.tanh), rngs=rngs()),
            "make_adapter: a number": lambda: adapt(make=4, rngs=rngs()),
            "make_adapter: of a plain layer": lambda: adapt(make=lambda layer, rngs: layer, rngs=rngs()),
            "where: a string": lambda: adapt(where="layers/0", rngs=rngs()),
            "where: nothing": lambda: adapt(where=lambda path, layer: False, rngs=rngs()),
            "where: a shared kernel": lambda: adapt(tied(), rngs=rngs()),
            "rngs: a number": lambda: adapt(rngs=0),
        },
    ),
    Example(
        name="layers.merge",
        call=lambda key, x, **values: lay.merge(with_lora(x, **values)).layers[0].kernel[...],
        arrays=LORA,
        result="other",
        dtype="input",
        wrt=("a", "b", "kernel"),
        identity=lambda key, x, kernel, bias, a, b: (
            lay.merge(with_lora(x, kernel, bias, a, 0 * b)).layers[0].kernel[...],
            kernel,
        ),
        bad=model_errors(lay.merge),
    ),
    Example(
        name="layers.adapters_of",
        call=lambda key, **values: lay.adapters_of(with_lora(**values))["layers/0"].a[...],
        arrays=LORA,
        result="other",
        dtype="input",
        wrt=("a",),
        bad=model_errors(lay.adapters_of),
    ),
    Example(
        name="layers.adapter_groups",
        call=lambda key, a, b: rj.weights.group_lasso(
            {"m": {"a": a, "b": b}}, groups=lay.adapter_groups({"m": {"a": a, "b": b}}, 1)
        ),
        arrays={"a": LORA["a"], "b": LORA["b"]},
        result="other",
        wrt=("a", "b"),
        bad={
            "by: zero": lambda: lay.adapter_groups({"m": PAIR}, 0),
            "by: a float": lambda: lay.adapter_groups({"m": PAIR}, 1.5),
            "by: no expression": lambda: lay.adapter_groups({"m": PAIR}, "("),
            "by: nothing found": lambda: lay.adapter_groups({"m": PAIR}, "blocks"),
            "by: no adapters": lambda: lay.adapter_groups({"m": {"kernel": K}}, 1),
        },
    ),
)
