"""Examples of objectives that train blocks alone: NoProp and the momentum auxiliary network."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from regjax import objectives
from tests.contracts.example import Example, ids, normal, probabilities
from tests.contracts.table.losses import refusals

T, K, D = 2, 3, 4
ALPHAS = np.array([0.5, 0.8, 0.9])
SCHEDULE = objectives.noprop_schedule(jnp.asarray(ALPHAS, jnp.float32))
TREE = {
    "blocks": 0.5 * normal(T, D + 3, K),
    "head": normal(D, K, seed=1),
    "embedding": normal(K, D, seed=2),
}
ARRAYS = {"params": TREE, "x": normal(8, 3, seed=3), "labels": ids(8, classes=K)}
SINGULAR = (
    {"params": jax.tree.map(np.zeros_like, TREE)},
    {"params": {**TREE, "blocks": 1e4 * TREE["blocks"], "head": 1e4 * TREE["head"]}},
    {"x": np.zeros((8, 3))},
)


def model(params, **more):
    return objectives.NoPropParams(**params, **more)


def wide(x):
    return x.astype(jnp.promote_types(jnp.float32, x.dtype))


def block(w, z, x):
    return jnp.concatenate([z, x.astype(z.dtype)], -1) @ w.astype(z.dtype)


def at_time(w, z, x, t):
    return block(w[0], z, x) * (1 + t[:, None])


def velocity(w, z, x, t):
    """A vector of the embedding's width."""
    return jnp.tanh(z + jnp.sum(wide(x), -1, keepdims=True) * jnp.sum(wide(w), (0, 2))[:D]) * (1 + t[:, None])


def head(w, z):
    return z @ w.astype(z.dtype)


def gamma(w, t):
    return w * (1 - 2 * t)


P = model(jax.tree.map(lambda leaf: jnp.asarray(leaf, jnp.float32), TREE))
PG = P._replace(gamma=jnp.float32(3.0))
KEY, X, Y = jax.random.key(0), jnp.ones((8, 3)), jnp.zeros(8, int)
OPTIONS = {
    "noprop_dt_loss": {"block_apply": block, "head_apply": head, "schedule": SCHEDULE},
    "noprop_sample": {"block_apply": block, "head_apply": head, "schedule": SCHEDULE},
    "noprop_ct_loss": {"block_apply": at_time, "head_apply": head, "gamma_apply": gamma},
    "noprop_flow_loss": {"block_apply": velocity, "head_apply": head},
    "noprop_flow_sample": {"block_apply": velocity, "head_apply": head, "num_steps": 3},
}


def call(name, key=KEY, params=PG, x=X, labels=Y, **options):
    inputs = (params, x) if name.endswith("sample") else (params, x, labels)
    return getattr(objectives, name)(key, *inputs, **{**OPTIONS[name], **options})


def wrong(name, **more) -> dict:
    """What all of them refuse, and more: ``name(**{argument: value})`` raises."""
    values = {
        "key: a seed": {"key": 0},
        "params: a dictionary": {"params": TREE},
        "params.embedding: a vector": {"params": PG._replace(embedding=jnp.ones(3))},
        "x: a number": {"x": 1.0},
        "block_apply: no function": {"block_apply": 1},
        "block_apply: of another shape": {"block_apply": lambda *_: jnp.ones((8, 7))},
        "head_apply: no function": {"head_apply": 1},
    }
    if not name.endswith("sample"):
        values |= {
            "labels: floats": {"labels": jnp.ones(8)},
            "labels: of other examples": {"labels": jnp.ones(7, int)},
            "labels: booleans": {"labels": jnp.ones(8, bool)},
            "head_apply: of another shape": {"head_apply": lambda *_: jnp.ones((8, 7))},
            "learned_embedding: a number": {"learned_embedding": 1},
        }
    values |= more
    return {what: functools.partial(call, name, **options) for what, options in values.items()}


SCHEDULES = {
    "schedule: the alphas": {"schedule": ALPHAS},
    "params.blocks: of other steps": {"params": P._replace(blocks=jnp.ones((3, D + 3, K)))},
}


def noprop(name, *, bad, gamma_params=None, wrt=("params", "x"), **fields) -> Example:
    run = lambda key, params, x, labels, **options: call(name, key, model(params, gamma=gamma_params), x, labels, **options)
    learned = {"learned_embedding": True}
    return Example(
        name=f"objectives.{name}",
        call=functools.partial(run, **learned),
        arrays=ARRAYS,
        rows=("x", "labels"),
        result="other",
        wrt=wrt,
        random=True,
        singular=SINGULAR,
        bad=wrong(name, **bad),
        **fields,
    )


def head_alone(key, params, x, labels):
    """NoProp in discrete time at eta 0: the head's loss on the label's embedding under the last noise."""
    p = params["embedding"].shape
    noise = jax.random.normal(key, (T + 1, 8, p[1]))[-1]
    u = params["embedding"][labels]
    z = jnp.sqrt(SCHEDULE.abar[-1]) * u + jnp.sqrt(1 - SCHEDULE.abar[-1]) * noise
    log_p = jax.nn.log_softmax(head(params["head"], z))
    return -jnp.mean(jnp.take_along_axis(log_p, labels[:, None], 1))


MAN = objectives.momentum_auxiliary(decay=0.9)
STATE = MAN.init(jnp.ones((3, 4)))


def layer(w, x):
    return jnp.tanh(wide(x) @ wide(w))


def local(learned, ema, x, labels, aux, images, **options):
    """The local loss of a block, with images reconstructed from as many features."""
    state = objectives.MomentumAuxiliaryState(learned, ema)
    return MAN.apply(state, layer, lambda y: y @ aux, x, labels, decoder=lambda y: y[:, :3], images=images, **options)


def man(state=STATE, layer=layer, aux_head=lambda y: y, features=X, labels=Y, **options):
    return MAN.apply(state, layer, aux_head, features, labels, **options)


def remembered(state, key, learned, ema, x, labels, aux, images):
    loss = MAN.apply(state, layer, lambda y: y @ aux, x, labels)
    return loss, MAN.update(state, learned)


EXAMPLES = (
    Example(
        name="objectives.noprop_schedule",
        call=lambda key, alphas: objectives.noprop_schedule(alphas),
        arrays={"alphas": np.array([0.5, 0.8, 0.7, 0.9])},
        result="other",
        wrt=("alphas",),
        singular=({"alphas": np.ones(4)}, {"alphas": np.full(4, 0.01)}),
        bad={
            "alphas: one": lambda: objectives.noprop_schedule([0.5]),
            "alphas: 1": lambda: objectives.noprop_schedule([0.5, 1.0]),
            "alphas: NaN": lambda: objectives.noprop_schedule([0.5, float("nan")]),
            "alphas: a matrix": lambda: objectives.noprop_schedule(jnp.ones((2, 2)) / 2),
            "alphas: integers": lambda: objectives.noprop_schedule(jnp.ones(2, int)),
        },
    ),
    Example(
        name="objectives.noprop_block_loss",
        call=lambda key, w, z, x, u, embedding: objectives.noprop_block_loss(block, w, z, x, u, weight=0.5, embedding=embedding),
        arrays={
            "w": normal(D + 3, K),
            "z": normal(8, D),
            "x": normal(8, 3),
            "u": normal(8, D, seed=5),
            "embedding": normal(K, D),
        },
        rows=("z", "x", "u"),
        result="scalar",
        wrt=("w", "z", "x", "u", "embedding"),
        singular=({"z": np.zeros((8, D)), "u": np.zeros((8, D))}, {"w": 1e4 * normal(D + 3, K)}),
        identity=lambda key, w, z, x, u, embedding: (
            objectives.noprop_block_loss(block, w, z, x, u, weight=0.0, embedding=embedding),
            jnp.zeros(()),
        ),
        bad=refusals(
            lambda weight: objectives.noprop_block_loss(lambda w, z, x: z, None, X, X, X, weight=weight), "weight", negative=-1.0
        )
        | {
            "block_apply: no function": lambda: objectives.noprop_block_loss(1, None, X, X, X),
            "block_apply: of another shape": lambda: objectives.noprop_block_loss(lambda w, z, x: z[:2], None, X, X, X),
            "z_prev: integers": lambda: objectives.noprop_block_loss(lambda w, z, x: z, None, Y, X, X),
            "u_y: of another width": lambda: objectives.noprop_block_loss(lambda w, z, x: z, None, X, X, jnp.ones((8, 2))),
            "embedding: of another width": lambda: objectives.noprop_block_loss(
                lambda w, z, x: z, None, X, X, X, embedding=jnp.ones((3, 2))
            ),
        },
    ),
    noprop(
        "noprop_dt_loss",
        identity=lambda key, params, x, labels: (
            call("noprop_dt_loss", key, model(params), x, labels, eta=0.0),
            head_alone(key, params, x, labels),
        ),
        bad={
            **SCHEDULES,
            "remat: a number": {"remat": 1},
            **{f"eta: {what}": {"eta": v} for what, v in (("negative", -1.0), ("NaN", float("nan")), ("a word", "strong"))},
        },
    ),
    noprop(
        "noprop_ct_loss",
        gamma_params=3.0,
        bad={
            "gamma_apply: no function": {"gamma_apply": 1},
            "gamma_apply: of another shape": {"gamma_apply": lambda w, t: t[0]},
            **{f"eta: {what}": {"eta": v} for what, v in (("negative", -1.0), ("NaN", float("nan")), ("a word", "strong"))},
        },
    ),
    noprop(
        "noprop_flow_loss",
        bad={
            "head_apply: none for a learned embedding": {"head_apply": None, "learned_embedding": True},
            **{f"sigma: {what}": {"sigma": v} for what, v in (("negative", -1.0), ("NaN", float("nan")), ("a word", "strong"))},
        },
    ),
    Example(
        name="objectives.noprop_sample",
        call=lambda key, params, x: call("noprop_sample", key, model(params), x),
        arrays={"params": TREE, "x": ARRAYS["x"]},
        rows=("x",),
        result="other",
        random=True,
        wrt=("params", "x"),
        singular=SINGULAR,
        bad=wrong("noprop_sample", **SCHEDULES),
    ),
    Example(
        name="objectives.noprop_flow_sample",
        call=lambda key, params, x: call("noprop_flow_sample", key, model(params), x),
        arrays={"params": TREE, "x": ARRAYS["x"]},
        rows=("x",),
        result="other",
        random=True,
        wrt=("params", "x"),
        singular=SINGULAR,
        bad=wrong("noprop_flow_sample", **{"num_steps: none": {"num_steps": 0}, "num_steps: a float": {"num_steps": 2.0}}),
    ),
    Example(
        name="objectives.momentum_auxiliary",
        call=lambda key, **arrays: local(**arrays, weight_ce=0.5, weight_rec=2.0),
        arrays={
            "learned": normal(3, 4),
            "ema": normal(3, 4, seed=1),
            "x": normal(8, 3, seed=2),
            "labels": ids(8, classes=3),
            "aux": normal(4, 3, seed=3),
            "images": probabilities(8, 3),
        },
        rows=("x", "labels", "images"),
        result="scalar",
        wrt=("learned", "x", "aux"),
        frozen=("ema",),
        singular=({"x": np.zeros((8, 3))}, {"aux": 1e4 * normal(4, 3)}, {"learned": np.zeros((3, 4)), "ema": np.zeros((3, 4))}),
        identity=lambda key, **arrays: (
            local(**arrays, weight_rec=0.0),
            man(
                objectives.MomentumAuxiliaryState(arrays["learned"], arrays["ema"]),
                aux_head=lambda y: y @ arrays["aux"],
                features=arrays["x"],
                labels=arrays["labels"],
            ),
        ),
        memory=lambda: (MAN.init(jnp.ones((3, 4))), remembered),
        bad=refusals(objectives.momentum_auxiliary, "decay", **{"above 1": 1.5, "negative": -0.1})
        | refusals(man, "weight_ce", negative=-1.0)
        | refusals(man, "weight_rec", negative=-1.0)
        | {
            "state: a dictionary": lambda: man({"learned": X}),
            "state.ema: of another layer": lambda: man(STATE._replace(ema=X)),
            "layer_apply: no function": lambda: man(layer=1),
            "aux_head: no function": lambda: man(aux_head=1),
            "labels: of other examples": lambda: man(labels=jnp.zeros(7, int)),
            "decoder: no function": lambda: man(decoder=1, images=X),
            "images: without decoder": lambda: man(images=X),
            "images: of another shape": lambda: man(decoder=lambda y: y, images=X),
            "neighbour: of another shape": lambda: MAN.update(STATE, X),
            "neighbour: of another structure": lambda: MAN.update(STATE, [X]),
            "decay: a schedule without a step": lambda: objectives.momentum_auxiliary(decay=lambda step: 0.5).update(
                STATE, jnp.ones((3, 4))
            ),
            "decay: a schedule above 1": lambda: objectives.momentum_auxiliary(decay=lambda step: 2.0).update(
                STATE, jnp.ones((3, 4)), step=0
            ),
        },
    ),
    Example(
        name="objectives.local_loss_weights",
        call=lambda key: tuple(map(jnp.float32, objectives.local_loss_weights(1, 4))),
        arrays={},
        result="other",
        bad={
            "block: the last": lambda: objectives.local_loss_weights(3, 4),
            "block: a float": lambda: objectives.local_loss_weights(0.0, 4),
            "num_blocks: one": lambda: objectives.local_loss_weights(0, 1),
            "reconstruction: a number": lambda: objectives.local_loss_weights(0, 4, reconstruction=5.0),
            "cross_entropy: negative": lambda: objectives.local_loss_weights(0, 4, cross_entropy=(0.5, -1.0)),
        },
    ),
)
