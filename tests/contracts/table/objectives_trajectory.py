"""Examples of `regjax.objectives` on trajectories: a model's own past, and an expert's."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal
from tests.contracts.table.losses import refusals

LOGITS = {"logits": normal(8, 3), "past_logits": normal(8, 3, seed=1)}
INDICES = np.random.default_rng(2).permutation(16)[:8].astype(np.int32)
WHERE = normal(8, seed=4) > -0.5


def memory(**options):
    return rj.objectives.saf(**{"num_examples": 16, "num_classes": 3, "lag": 1, "start_epoch": 0, **options})


SAF = memory()
SEEN = SAF.apply(SAF.init(), jnp.asarray(normal(8, 3, seed=5), jnp.float32), INDICES, 1)[1]


def saf(logits=None, indices=INDICES, epoch=2, *, state=SEEN, step=None, mask=None, **options):
    logits = jnp.ones((8, 3)) if logits is None else logits
    return memory(**options).apply(state, logits, indices, epoch, step=step, mask=mask)[0]


def mesa(params=None, logits=None, ema_logits=None, *, epoch=2, state=None, mask=None, step=None, **options):
    """The penalty and the average after one update."""
    params = {"w": jnp.ones(3)} if params is None else params
    logits = jnp.ones((8, 3)) if logits is None else logits
    ema_logits = jnp.ones((8, 3)) if ema_logits is None else ema_logits
    method = rj.objectives.mesa(**{"start_epoch": 0, "decay": 0.9, **options})
    state = method.init(params) if state is None else state
    penalty = method.apply(state, logits, ema_logits, epoch, step=step, mask=mask)
    doubled = jax.tree.map(lambda x: 2 * x, params)
    return penalty, method.update(state, doubled, step=step).average


def kl(logits=None, past_logits=None, **options):
    ones = jnp.ones((8, 3))
    past_logits = ones if past_logits is None else past_logits
    return rj.objectives.trajectory_kl(ones if logits is None else logits, past_logits, **options)


PARAMS = {"kernel": 0.5 * normal(8, 3), "bias": 0.5 * normal(3, seed=3)}
TARGET = jax.tree.map(lambda x: x + 0.3 * np.cos(5 * x), PARAMS)


def classifier(params, images):
    """Logits from any tree, without a product over axes that may be sharded."""
    floats = [leaf for leaf in jax.tree.leaves(params) if jnp.issubdtype(leaf.dtype, jnp.floating)]
    x = images.astype(jnp.promote_types(jnp.float32, images.dtype))
    sums = [jnp.sum(jnp.sin((i + 1) * leaf.astype(x.dtype))) for i, leaf in enumerate(floats)]
    total = sum(sums, jnp.zeros((), x.dtype))
    return jnp.tanh(x * (1 + total)) * jnp.arange(1.0, 4.0, dtype=x.dtype)


def match(images=None, labels=None, start=None, target=None, learning_rate=0.1, *, apply_fn=classifier, **options):
    images = jnp.ones((8, 3)) if images is None else images
    labels = jnp.zeros(8, int) if labels is None else labels
    start = {"w": jnp.ones(3)} if start is None else start
    target = start if target is None else target
    options = {"num_steps": 2, **options}
    return rj.objectives.trajectory_matching_loss(apply_fn, images, labels, start, target, learning_rate, **options)


def plain(logits):
    return jnp.zeros(()), jnp.zeros_like(logits)


EXAMPLES = (
    Example(
        name="objectives.trajectory_kl",
        call=lambda key, logits, past_logits, where: kl(logits, past_logits, where=where),
        arrays={**LOGITS, "where": WHERE},
        rows=("logits", "past_logits", "where"),
        result="scalar",
        wrt=("logits",),
        frozen=("past_logits",),
        singular=(
            {"logits": 1e4 * LOGITS["logits"]},
            {"past_logits": 1e4 * LOGITS["logits"]},
            {"logits": np.zeros((8, 3)), "past_logits": np.zeros((8, 3))},
            {"where": np.zeros(8, bool)},
        ),
        bad={
            "logits: integers": lambda: kl(jnp.ones((8, 3), int)),
            "past_logits: another shape": lambda: kl(past_logits=jnp.ones((8, 4))),
            "past_logits: integers": lambda: kl(past_logits=jnp.ones((8, 3), int)),
            "where: weights": lambda: kl(where=jnp.ones(8)),
            "where: of classes": lambda: kl(where=jnp.ones((8, 3), bool)),
            **refusals(kl, "temperature", **{"zero": 0.0, "negative": -1.0}),
        },
    ),
    Example(
        name="objectives.saf",
        call=lambda key, logits, indices, mask, memory, epochs: saf(
            logits, indices, mask=mask, state=rj.objectives.SAFState(memory, epochs)
        ),
        arrays={
            "logits": LOGITS["logits"],
            "indices": INDICES,
            "mask": WHERE,
            "memory": np.asarray(SEEN.logits),
            "epochs": np.asarray(SEEN.epochs),
        },
        rows=("logits", "indices", "mask"),
        result="scalar",
        wrt=("logits",),
        frozen=("memory",),
        singular=({"logits": 1e4 * LOGITS["logits"]}, {"logits": np.zeros((8, 3))}, {"mask": np.zeros(8, bool)}),
        identity=lambda key, logits, indices, **others: (
            [jax.value_and_grad(lambda z, w=w: saf(z, indices, weight=w))(logits) for w in (0.0, jnp.zeros(()))],
            [plain(logits), plain(logits)],
        ),
        memory=lambda: (
            SAF.init(),
            lambda state, key, logits, indices, mask, **_: SAF.apply(state, logits, indices, 2, mask=mask),
        ),
        bad={
            "num_examples: none": lambda: memory(num_examples=0),
            "num_classes: a float": lambda: memory(num_classes=3.0),
            "lag: none": lambda: memory(lag=0),
            "start_epoch: negative": lambda: memory(start_epoch=-1),
            "end_epoch: a float": lambda: memory(end_epoch=2.5),
            "dtype: integers": lambda: memory(dtype=jnp.int32),
            "dtype: no dtype": lambda: memory(dtype="half float"),
            "dtype: float64 without x64": lambda: memory(dtype="float64"),
            **refusals(memory, "weight", negative=-0.1),
            **refusals(memory, "temperature", zero=0.0),
            "weight: a schedule without a step": lambda: saf(weight=lambda step: 0.1 * step),
            "weight: a schedule below 0": lambda: saf(weight=lambda step: -1.0, step=0),
            "state: a dictionary": lambda: saf(state={}),
            "state.logits: of other classes": lambda: saf(num_classes=4),
            "logits: of other classes": lambda: saf(jnp.ones((8, 4))),
            "logits: integers": lambda: saf(jnp.ones((8, 3), int)),
            "indices: of another batch": lambda: saf(indices=INDICES[:4]),
            "indices: outside": lambda: saf(indices=INDICES + 8),
            "indices: floats": lambda: saf(indices=jnp.ones(8)),
            "epoch: negative": lambda: saf(epoch=-1),
            "epoch: missing": lambda: saf(epoch=None),
            "mask: weights": lambda: saf(mask=jnp.ones(8)),
        },
    ),
    Example(
        name="objectives.mesa",
        call=lambda key, params, logits, ema_logits, mask: mesa(params, logits, ema_logits, mask=mask),
        arrays={"params": PARAMS, "logits": LOGITS["logits"], "ema_logits": LOGITS["past_logits"], "mask": WHERE},
        rows=("logits", "ema_logits", "mask"),
        result="scalar",
        wrt=("logits",),
        frozen=("params", "ema_logits"),
        tree="params",
        singular=({"logits": 1e4 * LOGITS["logits"]}, {"logits": LOGITS["past_logits"]}, {"mask": np.zeros(8, bool)}),
        identity=lambda key, params, logits, ema_logits, mask: (
            [jax.value_and_grad(lambda z, w=w: mesa(params, z, ema_logits, weight=w)[0])(logits) for w in (0.0, jnp.zeros(()))],
            [plain(logits), plain(logits)],
        ),
        memory=lambda: (
            rj.objectives.mesa().init(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), PARAMS)),
            lambda state, key, params, logits, ema_logits, mask: (
                rj.objectives.mesa().apply(state, logits, ema_logits, 9),
                rj.objectives.mesa().update(state, params),
            ),
        ),
        bad={
            **refusals(mesa, "weight", negative=-0.1),
            **refusals(mesa, "temperature", zero=0.0),
            **refusals(mesa, "decay", **{"negative": -0.1, "above 1": 1.5}),
            "decay: a schedule without a step": lambda: mesa(decay=lambda step: 0.5),
            "start_epoch: a float": lambda: mesa(start_epoch=0.3),
            "state: a dictionary": lambda: mesa(state={}),
            "state: of other parameters": lambda: mesa(state=rj.objectives.mesa().init({"w": jnp.ones(4)})),
            "logits: a vector": lambda: mesa(logits=jnp.ones(3)),
            "ema_logits: another shape": lambda: mesa(ema_logits=jnp.ones((8, 4))),
            "epoch: negative": lambda: mesa(epoch=-1),
            "mask: weights": lambda: mesa(mask=jnp.ones(8)),
        },
    ),
    Example(
        name="objectives.trajectory_matching_loss",
        call=lambda key, params, target, images, labels, learning_rate: match(images, labels, params, target, learning_rate),
        arrays={
            "params": PARAMS,
            "target": TARGET,
            "images": normal(8, 3, seed=6),
            "labels": ids(8, classes=3),
            "learning_rate": np.array(0.2),
        },
        rows=("images", "labels"),
        result="scalar",
        dtype=None,  # the network gets its parameters in their own dtype at every step
        wrt=("images", "learning_rate"),
        frozen=("params", "target"),
        tree="params",
        singular=({"target": PARAMS}, {"images": np.zeros((8, 3))}, {"learning_rate": np.array(0.0)}),
        bad={
            "apply_fn: no function": lambda: match(apply_fn=1.0),
            "apply_fn: returns no logits": lambda: match(apply_fn=lambda params, x: jnp.sum(x)),
            "images: integers": lambda: match(jnp.ones((8, 3), int)),
            "labels: of other images": lambda: match(labels=jnp.zeros(4, int)),
            "labels: other classes": lambda: match(labels=jnp.ones((8, 5))),
            "target_params: another structure": lambda: match(target={"v": jnp.ones(3)}),
            "target_params: another shape": lambda: match(target={"w": jnp.ones(4)}),
            "learning_rate: negative": lambda: match(learning_rate=-0.1),
            "learning_rate: NaN": lambda: match(learning_rate=float("nan")),
            "learning_rate: a vector": lambda: match(learning_rate=jnp.ones(2)),
            "num_steps: negative": lambda: match(num_steps=-1),
            "num_steps: a float": lambda: match(num_steps=2.0),
            "augment: no function": lambda: match(augment="flip", key=jax.random.key(0)),
            "batch_size: zero": lambda: match(batch_size=0, key=jax.random.key(0)),
            "batch_size: above all": lambda: match(batch_size=9, key=jax.random.key(0)),
            "key: missing for batches": lambda: match(batch_size=4),
            "key: missing for augment": lambda: match(augment=lambda key, x: x),
            "key: a seed": lambda: match(batch_size=4, key=0),
        },
    ),
)
