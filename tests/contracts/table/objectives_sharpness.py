"""Examples of `regjax.objectives`: the relatives of SAM, for single examples, rare classes and harmful batches."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import regjax as rj
from tests.contracts.example import Example, ids, normal
from tests.contracts.table.losses import refusals
from tests.contracts.table.objectives import ARRAYS, PARAMS, SINGULAR, W, energy, loss, objective
from tests.contracts.table.schedules import schedule, zero

o = rj.objectives
NAN = float("nan")
COUNTS = np.array([100.0, 3.0, 40.0, 5.0])
LABELS = ids(8, classes=4)


def gsam(loss_fn, **options):
    return o.gsam(loss_fn, **{"rho": 0.05, **options})


def gradient_norm_penalty(loss_fn, **options):
    return o.gradient_norm_penalty(loss_fn, **{"radius": 0.1, "coefficient": 0.05, **options})


def losses(params, x):
    """The terms of `loss`."""
    x = x.astype(jnp.promote_types(jnp.float32, x.dtype))
    return jnp.tanh(0.3 * energy(params) + jnp.sum(x, -1)) ** 2 + jnp.mean(x, -1) * energy(params)


def labelled(params, x, labels):
    return losses(params, x)


def with_aux(params, x):
    return losses(params, x), x


def batch_of_one(transform):
    """A transform of losses per example as one of scalar losses, for the laws of those."""

    def transformed(loss_fn, has_aux=False):
        def one(*args, **kwargs):
            out = loss_fn(*args, **kwargs)
            return (out[0][None], out[1]) if has_aux else out[None]

        return transform(one, has_aux=has_aux)

    return transformed


def esam(loss_fn, **options):
    return o.esam(loss_fn, **{"rho": 0.1, **options})


def esam_fixed(loss_fn, **options):
    return esam(loss_fn, **{"key_arg": lambda *args, **kwargs: jax.random.key(7), **options})


def imbsam(loss_fn, **options):
    return o.imbsam(loss_fn, **{"class_counts": COUNTS, "tail_threshold": 20, "rho": 0.1, **options})


def imbsam_fixed(loss_fn, **options):
    return imbsam(loss_fn, **{"labels_arg": lambda *args, **kwargs: jnp.ones(1, int), **options})


def booster(loss_fn, **options):
    """Another batch as the harmful one: with the same, the compiler would share passes."""
    boosted = o.booster(loss_fn, loss_fn, **{"weight": 0.5, **options})
    flipped = lambda batch: jax.tree.map(lambda x: jnp.flip(x, 0), batch)
    return lambda params, batch, *args, **kwargs: boosted(params, batch, flipped(batch), *args, **kwargs)


def boost(params, x, harmful, **options):
    return o.booster(loss, loss, **options)(params, x, harmful)


def looked(params, x, **options):
    """The values of a step with a second pass and of one without, and the memory."""
    look = o.look_sam(loss, **{"period": 2, **options})
    first, state = look.apply(look.init(params), params, x)
    second, state = look.apply(state, params, x)
    return first, second, state.turn


def look_plain(params, x):
    """Both kinds of step at strength 0, and the plain loss."""
    look = o.look_sam(loss, rho=jnp.zeros(()), period=2)
    state = look.init(params)
    run = jax.value_and_grad(look.apply, argnums=1, has_aux=True)
    (first, state), g1 = run(state, params, x)
    (second, state), g2 = run(state, params, x)
    want = jax.value_and_grad(loss)(params, x)
    return (first, g1, second, g2), want + want


LOOK = o.look_sam(loss, period=2)
FLOATS = jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), PARAMS)
RATE = optax.linear_schedule(1.0, 0.0, 10)


def gsam_rho(learning_rate=RATE, **limits):
    return rj.schedules.gsam_rho(learning_rate, **{"rho_min": 0.02, "rho_max": 0.1, "lr_min": 0.1, "lr_max": 0.8, **limits})


def value_and_grad(fn, params, *args, **kwargs):
    return jax.value_and_grad(fn)(params, *args, **kwargs)


def per_example(fn, *args) -> dict:
    """Wrong losses per example."""
    return {
        "per_example_loss_fn: no function": lambda: fn(3.0),
        "per_example_loss_fn: a scalar": lambda: fn(loss)(PARAMS, *args),
        "per_example_loss_fn: aux unasked": lambda: fn(with_aux)(PARAMS, *args),
        "per_example_loss_fn: no aux": lambda: fn(losses, has_aux=True)(PARAMS, *args),
        "has_aux: no boolean": lambda: fn(losses, has_aux=1),
        "aux_from: misspelt": lambda: fn(losses, aux_from="perturb"),
        "axis_name: no name": lambda: fn(losses, axis_name=0),
        "norm_eps: negative": lambda: fn(losses, norm_eps=-1.0),
        "rho: negative": lambda: fn(losses, rho=-0.1),
        "rho: a schedule without a step": lambda: fn(losses, rho=lambda step: 0.1)(PARAMS, *args),
    } | refusals(functools.partial(fn, losses), "rho")


X = jnp.ones((8, 3))

EXAMPLES = (
    objective(
        "gsam",
        gsam,
        "rho",
        flops=2.03,
        bad=refusals(functools.partial(gsam, loss), "alpha", **{"negative": -0.4})
        | {
            "adaptive: misspelt": lambda: gsam(loss, adaptive="assam"),
            "eta: negative": lambda: gsam(loss, eta=-0.1),
            "scale_mask: misspelt": lambda: gsam(jnp.sum, adaptive="asam", scale_mask="kernel")(W),
            "aux_from: misspelt": lambda: gsam(loss, aux_from="perturb"),
            "with_info: no boolean": lambda: gsam(loss, with_info=1),
            "norm_eps: negative": lambda: gsam(loss, norm_eps=-1e-12),
        },
    ),
    objective(
        "gradient_norm_penalty",
        gradient_norm_penalty,
        "coefficient",
        flops=2.02,
        bad=refusals(functools.partial(gradient_norm_penalty, loss), "radius", **{"zero": 0.0})
        | {
            "aux_from: misspelt": lambda: gradient_norm_penalty(loss, aux_from="perturb"),
            "norm_eps: negative": lambda: gradient_norm_penalty(loss, norm_eps=-1e-12),
        },
    ),
    Example(
        name="objectives.look_sam",
        call=lambda key, params, x: looked(params, x),
        mapped=lambda axis, key, params, x: jax.lax.pmean(looked(params, x, axis_name=axis), axis),
        arrays=ARRAYS,
        rows=("x",),
        result="scalar",
        dtype=None,
        wrt=("params", "x"),
        surrogate=True,
        tree="params",
        singular=SINGULAR,
        identity=lambda key, params, x: look_plain(params, x),
        memory=lambda: (LOOK.init(FLOATS), lambda state, key, params, x: LOOK.apply(state, params, x)),
        bad=refusals(functools.partial(o.look_sam, loss), "rho", **{"negative": -0.1})
        | refusals(functools.partial(o.look_sam, loss), "alpha", **{"negative": -0.1})
        | {
            "loss_fn: no function": lambda: o.look_sam(3.0),
            "loss_fn: returns no scalar": lambda: looked(PARAMS, X, period=1, norm="leaf", has_aux=True),
            "period: 0": lambda: o.look_sam(loss, period=0),
            "norm: misspelt": lambda: o.look_sam(loss, norm="layer"),
            "axis_name: no name": lambda: o.look_sam(loss, axis_name=0),
            "has_aux: no boolean": lambda: o.look_sam(loss, has_aux=1),
            "norm_eps: negative": lambda: o.look_sam(loss, norm_eps=-1.0),
            "state: of other parameters": lambda: LOOK.apply(LOOK.init({"w": W}), FLOATS, X),
            "state: a dictionary": lambda: LOOK.apply({"turn": FLOATS, "step": 0}, FLOATS, X),
        },
    ),
    Example(
        name="objectives.esam",
        call=lambda key, params, x: esam(losses)(params, x, key=key),
        mapped=lambda axis, key, params, x: jax.lax.pmean(esam(losses, axis_name=axis)(params, x, key=key), axis),
        arrays=ARRAYS,
        rows=("x",),
        result="scalar",
        dtype=None,
        random=True,
        wrt=("params", "x"),
        surrogate=True,
        tree="params",
        singular=SINGULAR,
        identity=lambda key, params, x: (
            value_and_grad(esam(losses, rho=jnp.zeros(())), params, x, key=key),
            value_and_grad(loss, params, x),
        ),
        objective=batch_of_one(esam_fixed),
        flops=2.03,
        bad=per_example(esam_fixed, X)
        | refusals(functools.partial(esam, losses), "beta", **{"zero": 0.0, "above 1": 1.5})
        | refusals(functools.partial(esam, losses), "gamma", **{"zero": 0.0, "above 1": 1.5, "a traced number": jnp.ones(())})
        | {
            "key_arg: a float": lambda: esam(losses, key_arg=1.0),
            "key_arg: no key there": lambda: esam(losses)(PARAMS, X),
            "key_arg: no such position": lambda: esam(losses, key_arg=1)(PARAMS, X),
            "key_arg: not a key": lambda: esam(losses, key_arg=0)(PARAMS, X),
        },
    ),
    Example(
        name="objectives.imbsam",
        call=lambda key, params, x, labels: imbsam(labelled)(params, x, labels),
        mapped=lambda axis, key, params, x, labels: jax.lax.pmean(imbsam(labelled, axis_name=axis)(params, x, labels), axis),
        arrays={**ARRAYS, "labels": LABELS},
        rows=("x", "labels"),
        result="scalar",
        dtype=None,
        wrt=("params", "x"),
        surrogate=True,
        tree="params",
        singular=(*SINGULAR, {"labels": np.zeros(8, np.int32)}, {"labels": np.full(8, 9, np.int32)}),
        identity=lambda key, params, x, labels: (
            value_and_grad(imbsam(labelled, rho=jnp.zeros(())), params, x, labels),
            value_and_grad(loss, params, x),
        ),
        objective=batch_of_one(imbsam_fixed),
        flops=2.7,
        bad=per_example(functools.partial(imbsam, labels_arg=lambda x: jnp.zeros(8, int)), X)
        | refusals(functools.partial(imbsam, labelled), "tail_weight", **{"negative": -1.0})
        | {
            "class_counts: a matrix": lambda: imbsam(losses, class_counts=jnp.ones((2, 2))),
            "class_counts: none": lambda: imbsam(losses, class_counts=[]),
            "class_counts: flags": lambda: imbsam(losses, class_counts=[True, False]),
            "tail_threshold: negative": lambda: imbsam(losses, tail_threshold=-1),
            "tail_threshold: NaN": lambda: imbsam(losses, tail_threshold=NAN),
            "labels_arg: a float": lambda: imbsam(losses, labels_arg=1.0),
            "labels_arg: no such position": lambda: imbsam(losses, labels_arg=2)(PARAMS, X),
            "labels_arg: no such name": lambda: imbsam(losses, labels_arg="labels")(PARAMS, X),
            "labels_arg: another batch size": lambda: imbsam(labelled)(PARAMS, X, jnp.zeros(4, int)),
            "labels_arg: other classes": lambda: imbsam(labelled)(PARAMS, X, jnp.zeros((8, 3))),
        },
    ),
    Example(
        name="objectives.booster",
        call=lambda key, params, x, harmful: boost(params, x, harmful),
        mapped=lambda axis, key, params, x, harmful: jax.lax.pmean(boost(params, x, harmful, axis_name=axis), axis),
        arrays={**ARRAYS, "harmful": normal(8, 3, seed=5)},
        rows=("x", "harmful"),
        result="scalar",
        dtype=None,
        wrt=("params", "x", "harmful"),
        surrogate=True,
        tree="params",
        singular=(*SINGULAR, {"harmful": np.zeros((8, 3))}),
        identity=lambda key, params, x, harmful: (
            value_and_grad(o.booster(loss, loss, weight=jnp.zeros(())), params, x, harmful),
            value_and_grad(loss, params, x),
        ),
        objective=booster,
        flops=3.03,
        bad=refusals(functools.partial(booster, loss), "weight", **{"negative": -1.0})
        | refusals(functools.partial(booster, loss), "step_size", **{"negative": -1.0})
        | {
            "loss_fn: no function": lambda: o.booster(3.0, loss),
            "loss_fn: returns no scalar": lambda: o.booster(losses, loss)(PARAMS, X, X),
            "harmful_loss_fn: no function": lambda: o.booster(loss, None),
            "harmful_loss_fn: returns no scalar": lambda: o.booster(loss, losses)(PARAMS, X, X),
            "harmful_loss_fn: no aux": lambda: o.booster(lambda p, x: (loss(p, x), x), lambda p, x: loss(p, x), has_aux=True)(
                PARAMS, X, X
            ),
            "weight: a schedule without a step": lambda: boost(PARAMS, X, X, weight=lambda step: 1.0),
            "axis_name: no name": lambda: o.booster(loss, loss, axis_name=0),
            "has_aux: no boolean": lambda: o.booster(loss, loss, has_aux=1),
            "norm_eps: negative": lambda: o.booster(loss, loss, norm_eps=-1.0),
        },
    ),
    schedule(
        "gsam_rho",
        gsam_rho(),
        identity=lambda step: (gsam_rho(rho_min=0.0, rho_max=0.0)(step), zero(step)),
        bad={
            "step: a text": lambda: gsam_rho()("first"),
            "learning_rate: a number": lambda: gsam_rho(0.1),
            "rho_min: negative": lambda: gsam_rho(rho_min=-0.1),
            "rho_min: NaN": lambda: gsam_rho(rho_min=NAN),
            "rho_max: below rho_min": lambda: gsam_rho(rho_max=0.01),
            "rho_max: a vector": lambda: gsam_rho(rho_max=jnp.ones(2)),
            "lr_min: negative": lambda: gsam_rho(lr_min=-0.1),
            "lr_max: lr_min": lambda: gsam_rho(lr_max=0.1),
        },
    ),
)
