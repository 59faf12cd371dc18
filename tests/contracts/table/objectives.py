"""Examples of `regjax.objectives`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal

PARAMS = {"kernel": 0.5 * normal(8, 2), "bias": 0.5 * normal(2, seed=3)}
ARRAYS = {"params": PARAMS, "x": normal(8, 3, seed=4)}
SINGULAR = (
    {"params": {"kernel": np.zeros((8, 2)), "bias": np.zeros(2)}},
    {"params": {"kernel": 1e4 * np.sign(PARAMS["kernel"]), "bias": PARAMS["bias"]}},
    {"x": np.zeros((8, 3))},
)


def energy(params):
    """A penalty on any tree: its floating leaves squared through tanh, each with a weight of its own."""
    floats = [leaf for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    wide = [leaf.astype(jnp.promote_types(jnp.float32, leaf.dtype)) for leaf in floats]
    return sum(((i + 1) * jnp.sum(jnp.tanh(leaf) ** 2) for i, leaf in enumerate(wide)), jnp.zeros((), jnp.float32))


def loss(params, x):
    """A loss of any tree and a batch, with zero gradient at zero parameters."""
    x = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    return jnp.mean(jnp.tanh(0.3 * energy(params) + jnp.sum(x, -1)) ** 2 + jnp.mean(x, -1) * energy(params))


def auxiliary(params, x):
    return loss(params, x), x


def pair(params, x):
    return {"loss": loss(params, x)}


def objective(name: str, transform, strength: str, *, bad, flops: float, axis_name: bool = True, **fields) -> Example:
    """The example of a loss transform ``transform(loss_fn, *, strength, ...)`` with its common errors."""

    def mapped(axis, key, params, x):
        return jax.lax.pmean(transform(loss, axis_name=axis)(params, x), axis)

    def identity(key, params, x):
        # A traced 0: the static one leaves the passes out, and is tested beside each technique.
        nothing = transform(loss, **{strength: jnp.zeros(())})
        return jax.value_and_grad(nothing)(params, x), jax.value_and_grad(loss)(params, x)

    params, x = jax.tree.map(jnp.asarray, (PARAMS, ARRAYS["x"]))
    call = lambda fn=loss, **options: transform(fn, **options)(params, x)
    fields = {"dtype": None, "surrogate": True, "objective": transform} | fields
    return Example(
        name=f"objectives.{name}",
        call=lambda key, params, x: transform(loss)(params, x),
        arrays=ARRAYS,
        rows=("x",),
        result="scalar",
        wrt=("params", "x"),
        tree="params",
        singular=SINGULAR,
        identity=identity,
        flops=flops,
        mapped=mapped if axis_name else None,
        bad={
            "loss_fn: no function": lambda: transform(3.0),
            "loss_fn: returns no scalar": lambda: call(lambda params, x: x),
            "loss_fn: returns a dictionary": lambda: call(pair),
            "loss_fn: returns aux unasked": lambda: call(auxiliary),
            "loss_fn: returns no aux": lambda: call(has_aux=True),
            "has_aux: no boolean": lambda: transform(loss, has_aux="yes"),
            f"{strength}: negative": lambda: transform(loss, **{strength: -0.1}),
            f"{strength}: NaN": lambda: transform(loss, **{strength: float("nan")}),
            f"{strength}: an array": lambda: transform(loss, **{strength: jnp.ones(2)}),
            f"{strength}: a string": lambda: transform(loss, **{strength: "strong"}),
            f"{strength}: a schedule without a step": lambda: call(**{strength: lambda step: 0.1 * step}),
            f"{strength}: a schedule below 0": lambda: transform(loss, **{strength: lambda step: -1.0})(params, x, step=0),
            **({"axis_name: no name": lambda: transform(loss, axis_name=0)} if axis_name else {}),
            **bad,
        },
        **fields,
    )


def sam(loss_fn, **options):
    return rj.objectives.sam(loss_fn, **{"rho": 0.05, **options})


def amp(loss_fn, **options):
    return rj.objectives.amp(loss_fn, **{"epsilon": 0.1, "inner_lr": 0.5, **options})


def gradient_penalty(loss_fn, **options):
    return rj.objectives.gradient_penalty(loss_fn, **{"coefficient": 0.05, **options})


def with_penalty(loss_fn, **options):
    return rj.objectives.with_penalty(loss_fn, **{"penalty": energy, "strength": 0.1, **options})


W = jnp.ones(2)

EXAMPLES = (
    objective(
        "sam",
        sam,
        "rho",
        flops=2.02,
        bad={
            "adaptive: misspelt": lambda: sam(loss, adaptive="assam"),
            "adaptive: a number": lambda: sam(loss, adaptive=1),
            "eta: negative": lambda: sam(loss, eta=-0.1),
            "eta: NaN": lambda: sam(loss, eta=float("nan")),
            "scale_mask: misspelt": lambda: sam(jnp.sum, adaptive="asam", scale_mask="kernel")(W),
            "scale_mask: another structure": lambda: sam(jnp.sum, adaptive="asam", scale_mask=[True, False])(W),
            "num_groups: 0": lambda: sam(loss, num_groups=0),
            "num_groups: no integer": lambda: sam(loss, num_groups=2.0),
            "num_groups: does not divide the batch": lambda: sam(loss, num_groups=3)(PARAMS, jnp.ones((8, 3))),
            "num_groups: no batch": lambda: sam(jnp.sum, num_groups=2)(W),
            "axis_name: no names": lambda: sam(loss, axis_name=()),
            "aux_from: misspelt": lambda: sam(loss, aux_from="perturb"),
            "with_info: no boolean": lambda: sam(loss, with_info=1),
            "split_key: no boolean": lambda: sam(loss, split_key=None),
            "split_key: no key": lambda: sam(jnp.sum, split_key=True)(W),
            "norm_eps: negative": lambda: sam(loss, norm_eps=-1e-12),
        },
    ),
    objective("sam", functools.partial(sam, adaptive="asam", rho=0.5), "rho", flops=2.02, bad={}, objective=None),
    objective(
        "amp",
        amp,
        "epsilon",
        flops=2.02,
        bad={
            "inner_lr: negative": lambda: amp(loss, inner_lr=-1.0),
            "inner_lr: NaN": lambda: amp(loss, inner_lr=float("nan")),
            "inner_steps: negative": lambda: amp(loss, inner_steps=-1),
            "inner_steps: no integer": lambda: amp(loss, inner_steps=1.5),
            "norm: misspelt": lambda: amp(loss, norm="layer"),
            "aux_from: misspelt": lambda: amp(loss, aux_from="cleaned"),
            "clip_norm: 0": lambda: amp(loss, clip_norm=0.0),
            "clip_norm: NaN": lambda: amp(loss, clip_norm=float("nan")),
        },
    ),
    objective("amp", functools.partial(amp, inner_steps=2, norm="global"), "inner_lr", flops=3.03, bad={}, objective=None),
    objective(
        "gradient_penalty",
        gradient_penalty,
        "coefficient",
        flops=2.05,
        bad={
            "method: misspelt": lambda: gradient_penalty(loss, method="forwards"),
            "fd_step: 0": lambda: gradient_penalty(loss, fd_step=0.0),
            "fd_step: NaN": lambda: gradient_penalty(loss, fd_step=float("nan")),
            "extra_direction: another structure": lambda: gradient_penalty(jnp.sum, extra_direction=[W])(W),
            "extra_direction: another shape": lambda: gradient_penalty(jnp.sum, extra_direction=jnp.ones(3))(W),
            "aux_from: misspelt": lambda: gradient_penalty(loss, aux_from="both"),
            "aux_from: of no pass": lambda: gradient_penalty(loss, method="exact", aux_from="perturbed"),
        },
    ),
    objective(
        "gradient_penalty",
        functools.partial(gradient_penalty, method="exact"),
        "coefficient",
        flops=3.0,
        bad={},
        surrogate=False,
    ),
    objective(
        "with_penalty",
        with_penalty,
        "strength",
        flops=1.02,
        axis_name=False,
        dtype="float32",
        surrogate=False,
        bad={
            "penalty: no function": lambda: with_penalty(loss, penalty=0.1),
            "penalty: returns no scalar": lambda: with_penalty(jnp.sum, penalty=lambda w: w)(W),
            "penalty: returns an integer": lambda: with_penalty(jnp.sum, penalty=lambda w: 1)(W),
        },
    ),
    Example(
        name="objectives.attach_gradient",
        call=lambda key, value, direction, params: rj.objectives.attach_gradient(value, direction, params),
        arrays={"value": np.array(1.5), "direction": jax.tree.map(np.cos, PARAMS), "params": PARAMS},
        result="scalar",
        dtype="input",
        wrt=("params",),
        frozen=("value", "direction"),
        surrogate=True,
        tree="params",
        singular=({"params": SINGULAR[0]["params"]}, {"direction": SINGULAR[0]["params"]}),
        bad={
            "value: a vector": lambda: rj.objectives.attach_gradient(W, W, W),
            "value: an integer": lambda: rj.objectives.attach_gradient(jnp.int32(1), W, W),
            "value: a string": lambda: rj.objectives.attach_gradient("one", W, W),
            "direction: another structure": lambda: rj.objectives.attach_gradient(1.0, [W], W),
            "direction: another shape": lambda: rj.objectives.attach_gradient(1.0, jnp.ones(3), W),
        },
    ),
    Example(
        name="objectives.full_batch_gradient",
        # Two blocks: the batch, and it once more at half the size.
        call=lambda key, params, x: rj.objectives.full_batch_gradient(
            loss, params, jnp.stack([x, x / 2]), transform=functools.partial(gradient_penalty, method="exact")
        ),
        arrays=ARRAYS,
        rows=("x",),
        result="scalar",
        dtype=None,
        wrt=("params", "x"),
        tree="params",
        singular=SINGULAR,
        bad={
            "loss_fn: no function": lambda: rj.objectives.full_batch_gradient(3.0, W, W),
            "loss_fn: returns no scalar": lambda: rj.objectives.full_batch_gradient(lambda w, x: w, W, W),
            "loss_fn: returns no aux": lambda: rj.objectives.full_batch_gradient(lambda w, x: x, W, W, has_aux=True),
            "batches: none": lambda: rj.objectives.full_batch_gradient(jnp.sum, W),
            "batches: no block axis": lambda: rj.objectives.full_batch_gradient(jnp.dot, W, jnp.float32(1.0)),
            "batches: different numbers": lambda: rj.objectives.full_batch_gradient(loss, W, W, jnp.ones(3)),
            "transform: no function": lambda: rj.objectives.full_batch_gradient(loss, W, W, transform=0.1),
            "has_aux: no boolean": lambda: rj.objectives.full_batch_gradient(loss, W, W, has_aux=1),
        },
    ),
)
