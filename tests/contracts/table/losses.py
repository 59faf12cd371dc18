"""Examples of `regjax.losses`."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import regjax as rj
from tests.contracts.example import Example, ids, normal, probabilities

EXTREME = (
    {"logits": np.zeros((8, 5))},
    {"logits": 1e4 * np.sign(normal(8, 5))},
)
PROBABILITIES = np.full((8, 5), 0.2)
X, Y = jnp.ones((4, 3)), jnp.zeros(4, int)


def refusals(fn, strength: str, **limits: float) -> dict:
    """Wrong values of a strength: ``fn(**{strength: value})`` with what no number may be, and with each limit's breach."""
    values = {"NaN": float("nan"), "infinite": float("inf"), "a string": "strong", "a vector": jnp.ones(3), **limits}
    return {f"{strength}: {what}": functools.partial(fn, **{strength: value}) for what, value in values.items()}


def logit_errors(fn) -> dict:
    """The errors that every ``fn(logits, *, axis, where)`` shares."""
    return {
        "logits: integers": lambda: fn(jnp.ones((4, 3), int)),
        "logits: no classes": lambda: fn(jnp.ones((4, 0))),
        "axis: out of range": lambda: fn(X, axis=2),
        "axis: a float": lambda: fn(X, axis=1.0),
        "where: does not broadcast": lambda: fn(X, where=jnp.ones((4, 2), bool)),
        "where: weights": lambda: fn(X, where=jnp.ones((4, 3))),
    }


def logit_loss(name: str, *, plain=None, strength: str | None = None, bad=None, **fields) -> Example:
    """The example of a loss ``fn(logits, labels, *, axis, where)``, with the errors that these arguments share.

    ``plain(logits, labels)`` is the loss at strength 0; ``strength`` names the argument.
    """
    fn = getattr(rj.losses, name)
    errors = {
        **logit_errors(lambda logits, **options: fn(logits, jnp.zeros(logits.shape[:1], int), **options)),
        "labels: rank": lambda: fn(X, jnp.zeros((4, 1), int)),
        "labels: booleans": lambda: fn(X, jnp.zeros(4, bool)),
        "labels: probabilities of other classes": lambda: fn(X, jnp.ones((4, 2))),
    }
    if strength:
        fields["identity"] = lambda key, logits, labels: (fn(logits, labels, **{strength: 0.0}), plain(logits, labels))
        errors |= refusals(functools.partial(fn, X, Y), strength)
        errors[f"{strength}: a schedule"] = lambda: fn(X, Y, **{strength: lambda step: 0.1})
    return Example(
        name=f"losses.{name}",
        call=lambda key, logits, labels: fn(logits, labels),
        arrays={"logits": normal(8, 5), "labels": ids(8, classes=5)},
        rows=("logits", "labels"),
        result="rows",
        wrt=("logits",),
        singular=EXTREME + ({"labels": PROBABILITIES},),
        bad=errors | (bad or {}),
        **fields,
    )


def logit_map(name: str, *, singular=EXTREME) -> Example:
    """The example of a function of logits alone, ``fn(logits, *, axis, where)``."""
    fn = getattr(rj.losses, name)
    return Example(
        name=f"losses.{name}",
        call=lambda key, logits: fn(logits),
        arrays={"logits": normal(8, 5)},
        rows=("logits",),
        result="rows",
        wrt=("logits",),
        singular=singular,
        bad=logit_errors(fn),
    )


def memory_loss(name: str, make, state, apply, *, off, strengths, teachers=None, bad=None, **fields) -> Example:
    """The example of a loss with a memory: ``make(num_examples, num_classes, **options) -> Stateful``.

    ``apply(memory, state, logits, labels, indices, **teachers, **keywords)`` completes the call with the loss's own
    arguments; ``off`` are the options of strength 0, and ``teachers`` arrays of the batch that get no gradient.
    """
    memory = make(16, 5)
    start = state(jnp.asarray(0.7 * probabilities(16, 5), jnp.float32))
    # Even positions: a partner at an odd one is never in the batch.
    indices = 2 * np.random.default_rng(3).permutation(8).astype(np.int32)
    teachers = teachers or {}

    def run(memory, past, **arrays):
        return apply(memory, state(past), **arrays)[0]

    valid = {"logits": jnp.ones((8, 5)), "labels": jnp.zeros(8, int), "indices": indices, **teachers}

    def wrong(**replaced):
        return lambda: apply(memory, **{"state": start} | valid | replaced)

    outside = np.append(indices[:7], 16)
    errors = {
        "num_examples: none": lambda: make(0, 5),
        "num_examples: a float": lambda: make(16.0, 5),
        "num_classes: none": lambda: make(16, 0),
        "state: a dictionary": wrong(state={"targets": start[0]}),
        "state: another number of examples": wrong(state=make(17, 5).init()),
        "logits: other classes": wrong(logits=jnp.ones((8, 4))),
        "logits: integers": wrong(logits=jnp.ones((8, 5), int)),
        "labels: rank": wrong(labels=jnp.zeros((8, 1), int)),
        "indices: floats": wrong(indices=jnp.ones(8)),
        "indices: length": wrong(indices=indices[:7]),
        "indices: outside the memory": wrong(indices=outside),
        "indices: negative": wrong(indices=-outside),
        "mask: length": wrong(mask=jnp.ones(7, bool)),
        "mask: weights": wrong(mask=jnp.ones(8)),
        "where: does not broadcast": wrong(where=jnp.ones((8, 4), bool)),
    }
    for strength in strengths:
        errors |= refusals(functools.partial(make, 16, 5), strength, negative=-0.1)
        scheduled = make(16, 5, **{strength: lambda step: 0.5})
        errors[f"{strength}: a schedule without step"] = functools.partial(run, scheduled, start[0], **valid)
    return Example(
        name=f"losses.{name}",
        call=lambda key, **arrays: run(memory, **arrays),
        arrays={
            "logits": normal(8, 5),
            "labels": ids(8, classes=5),
            "indices": indices,
            "past": 0.7 * probabilities(16, 5),
            **teachers,
        },
        rows=("logits", "labels", "indices", *teachers),
        result="rows",
        wrt=("logits",),
        frozen=("past", *teachers),
        identity=lambda key, **arrays: (run(make(16, 5, **off), **arrays), cross_entropy(arrays["logits"], arrays["labels"])),
        singular=EXTREME + ({"labels": PROBABILITIES}, {"past": np.zeros((16, 5))}),
        memory=lambda: (memory.init(), lambda s, key, past, **arrays: apply(memory, s, **arrays)),
        bad=errors | (bad or {}),
        **fields,
    )


cross_entropy = functools.partial(rj.losses.label_smoothing, alpha=0.0)


def elr_plus_apply(memory, state, logits, labels, indices, ema_logits, mix_indices=None, mix_weight=0.7, **keywords):
    """ELR+ on a batch mixed with the rows' neighbours in the memory."""
    mix_indices = indices + 1 if mix_indices is None else mix_indices
    return memory.apply(state, logits, ema_logits, labels, indices, mix_indices, mix_weight, **keywords)


def elr_plus(**options):
    """One call of ELR+: ``apply``'s arguments by name, the others for the factory."""
    call = {"ema_logits": X, "mix_indices": jnp.arange(4), "mix_weight": 0.5, "step": None}
    call |= {name: options.pop(name) for name in call if name in options}
    memory = rj.losses.elr_plus(16, 3, **options)
    return memory.apply(memory.init(), X, labels=Y, indices=jnp.arange(4), **call)


def ps_kd_epoch(epoch):
    """One call of PS-KD in this epoch."""
    memory = rj.losses.ps_kd(16, 3, total_epochs=4)
    return memory.apply(memory.init(), X, Y, jnp.arange(4), epoch=epoch)


F, C = jnp.ones(4), jnp.array([0, 1, 1, 0])
binary = functools.partial(rj.losses.binary_spectral_decoupling, offset=(0.4, 2.5), class_balanced=True)
elr_targets, elr_penalty, ps_kd_targets = rj.losses.elr_targets, rj.losses.elr_penalty, rj.losses.ps_kd_targets
ps_kd = functools.partial(rj.losses.ps_kd, total_epochs=4)

EXAMPLES = (
    logit_loss(
        "label_smoothing",
        strength="alpha",
        plain=functools.partial(rj.losses.maxsup, weight=0.0),
        bad={
            "alpha: above 1": lambda: rj.losses.label_smoothing(X, Y, alpha=1.5),
            "off_target_only: one class": lambda: rj.losses.label_smoothing(jnp.ones((4, 1)), Y, off_target_only=True),
            "off_target_only: a number": lambda: rj.losses.label_smoothing(X, Y, off_target_only=1),
        },
    ),
    logit_loss(
        "maxsup",
        strength="weight",
        plain=cross_entropy,
        bad={"weight: negative": lambda: rj.losses.maxsup(X, Y, weight=-0.1)},
    ),
    logit_map("max_suppression"),
    logit_map("stablemax", singular=EXTREME + ({"logits": np.full((8, 5), -1e6)},)),
    logit_map("log_stablemax", singular=EXTREME + ({"logits": np.full((8, 5), -1e6)},)),
    logit_loss("stablemax_cross_entropy"),
    logit_loss(
        "spectral_decoupling",
        strength="weight",
        plain=cross_entropy,
        bad={
            "weight: negative": lambda: rj.losses.spectral_decoupling(X, Y, weight=-0.1),
            "offset: NaN": lambda: rj.losses.spectral_decoupling(X, Y, offset=float("nan")),
            "offset: a NaN among them": lambda: rj.losses.spectral_decoupling(X, Y, offset=(0.0, float("nan"), 0.0)),
            "offset: of other classes": lambda: rj.losses.spectral_decoupling(X, Y, offset=jnp.ones(4)),
            "offset: a string": lambda: rj.losses.spectral_decoupling(X, Y, offset="mean"),
        },
    ),
    Example(
        name="losses.binary_spectral_decoupling",
        call=lambda key, logits, labels: binary(logits, labels),
        mapped=lambda axis_name, key, logits, labels: binary(logits, labels, axis_name=axis_name),
        arrays={"logits": normal(8), "labels": ids(8, classes=2)},
        rows=("logits", "labels"),
        result="rows",
        wrt=("logits",),
        identity=lambda key, logits, labels: (
            binary(logits, labels, weight=0.0),
            optax.sigmoid_binary_cross_entropy(logits, labels),
        ),
        singular=(
            {"logits": np.zeros(8)},
            {"logits": 1e4 * np.sign(normal(8))},
            {"labels": np.zeros(8, np.int32)},
            {"labels": np.full(8, 0.5)},
        ),
        bad={
            **refusals(functools.partial(binary, F, C), "weight", negative=-0.1),
            "weight: a schedule": lambda: binary(F, C, weight=lambda step: 0.1),
            "logits: integers": lambda: binary(jnp.ones(4, int), C),
            "labels: shape": lambda: binary(F, jnp.zeros((4, 1), int)),
            "labels: booleans": lambda: binary(F, jnp.zeros(4, bool)),
            "offset: three": lambda: binary(F, C, offset=(1.0, 2.0, 3.0)),
            "offset: NaN": lambda: binary(F, C, offset=(1.0, float("nan"))),
            "class_balanced: a number": lambda: binary(F, C, class_balanced=1),
            "half: a number": lambda: binary(F, C, half=0.5),
            "where: shape": lambda: binary(F, C, where=jnp.ones(3, bool)),
            "where: weights": lambda: binary(F, C, where=jnp.ones(4)),
        },
    ),
    Example(
        name="losses.elr_targets",
        call=lambda key, targets, logits: elr_targets(targets, logits, beta=0.9),
        arrays={"targets": 0.7 * probabilities(8, 5), "logits": normal(8, 5)},
        rows=("targets", "logits"),
        result="rows",
        frozen=("targets", "logits"),
        identity=lambda key, targets, logits: (elr_targets(targets, logits, beta=1.0), targets),
        singular=EXTREME + ({"targets": np.zeros((8, 5))},),
        bad={
            **logit_errors(lambda logits, **options: elr_targets(jnp.ones(logits.shape), logits, **options)),
            **refusals(functools.partial(elr_targets, X, X), "beta", negative=-0.1, **{"above 1": 1.1}),
            "beta: a schedule": lambda: elr_targets(X, X, beta=lambda step: 0.1),
            "clip: one half": lambda: elr_targets(X, X, clip=0.5),
            "clip: NaN": lambda: elr_targets(X, X, clip=float("nan")),
            "targets: shape": lambda: elr_targets(X[:2], X),
            "targets: integers": lambda: elr_targets(jnp.ones((4, 3), int), X),
        },
    ),
    Example(
        name="losses.elr_penalty",
        call=lambda key, logits, targets: elr_penalty(logits, targets),
        arrays={"logits": normal(8, 5), "targets": 0.7 * probabilities(8, 5)},
        rows=("logits", "targets"),
        result="rows",
        wrt=("logits",),
        frozen=("targets",),
        singular=EXTREME + ({"targets": np.zeros((8, 5))}, {"targets": np.ones((8, 5))}),
        bad={
            **logit_errors(lambda logits, **options: elr_penalty(logits, jnp.ones(logits.shape), **options)),
            "clip: one half": lambda: elr_penalty(X, X, clip=0.5),
            "clip: negative": lambda: elr_penalty(X, X, clip=-0.1),
            "targets: shape": lambda: elr_penalty(X, X[:2]),
            "targets: integers": lambda: elr_penalty(X, jnp.ones((4, 3), int)),
        },
    ),
    # The memory that enters the penalty already holds this prediction, as a constant: finite differences see it move.
    memory_loss(
        "elr",
        rj.losses.elr,
        rj.losses.ELRState,
        lambda memory, state, logits, labels, indices, **keywords: memory.apply(state, logits, labels, indices, **keywords),
        off={"weight": 0.0},
        strengths=("beta", "weight"),
        surrogate=True,
        bad={
            "beta: above 1": lambda: rj.losses.elr(16, 5, beta=1.1),
            "clip: one half": lambda: rj.losses.elr(16, 5, clip=0.5),
        },
    ),
    memory_loss(
        "elr_plus",
        rj.losses.elr_plus,
        rj.losses.ELRState,
        elr_plus_apply,
        off={"weight": 0.0},
        strengths=("beta", "weight"),
        teachers={"ema_logits": normal(8, 5, seed=4)},
        bad={
            "beta: above 1": lambda: rj.losses.elr_plus(16, 5, beta=1.1),
            "clip: one half": lambda: rj.losses.elr_plus(16, 5, clip=0.5),
            "ramp_steps: negative": lambda: rj.losses.elr_plus(16, 5, ramp_steps=-1),
            "ramp_steps: a float": lambda: rj.losses.elr_plus(16, 5, ramp_steps=10.0),
            "reweight_labels: a number": lambda: rj.losses.elr_plus(16, 5, reweight_labels=1),
            "step: missing for a ramp": lambda: elr_plus(ramp_steps=10),
            "step: negative": lambda: elr_plus(ramp_steps=10, step=-1),
            "ema_logits: shape": lambda: elr_plus(ema_logits=jnp.ones((3, 3))),
            "ema_logits: integers": lambda: elr_plus(ema_logits=jnp.ones((4, 3), int)),
            "mix_weight: missing": lambda: elr_plus(mix_weight=None),
            "mix_weight: without mix_indices": lambda: elr_plus(mix_indices=None),
            "mix_weight: above 1": lambda: elr_plus(mix_weight=1.5),
            "mix_weight: a string": lambda: elr_plus(mix_weight="half"),
            "mix_weight: length": lambda: elr_plus(mix_weight=jnp.ones(3)),
            "mix_indices: length": lambda: elr_plus(mix_indices=jnp.arange(3)),
            "mix_indices: outside the memory": lambda: elr_plus(mix_indices=np.arange(13, 17)),
        },
    ),
    Example(
        name="losses.ps_kd_targets",
        call=lambda key, labels, previous: ps_kd_targets(labels, previous, 0.4),
        arrays={"labels": ids(8, classes=5), "previous": probabilities(8, 5)},
        rows=("labels", "previous"),
        result="rows",
        frozen=("previous",),
        identity=lambda key, labels, previous: (
            ps_kd_targets(labels, previous, 0.0),
            jax.nn.one_hot(labels, 5, dtype=jnp.float32),
        ),
        singular=({"previous": np.zeros((8, 5))}, {"labels": PROBABILITIES}),
        bad={
            **refusals(lambda alpha: ps_kd_targets(Y, X, alpha), "alpha", negative=-0.1, **{"above 1": 1.1}),
            "alpha: a schedule": lambda: ps_kd_targets(Y, X, lambda step: 0.1),
            "labels: rank": lambda: ps_kd_targets(jnp.zeros((4, 1), int), X, 0.4),
            "labels: probabilities of other classes": lambda: ps_kd_targets(jnp.ones((4, 2)), X, 0.4),
            "previous: integers": lambda: ps_kd_targets(Y, jnp.ones((4, 3), int), 0.4),
            "previous: a number": lambda: ps_kd_targets(jnp.array(0), 0.5, 0.4),
            "axis: out of range": lambda: ps_kd_targets(Y, X, 0.4, axis=2),
        },
    ),
    memory_loss(
        "ps_kd",
        ps_kd,
        rj.losses.PSKDState,
        lambda memory, state, logits, labels, indices, **keywords: memory.apply(
            state, logits, labels, indices, **{"epoch": 1} | keywords
        ),
        off={"alpha_final": 0.0},
        strengths=("alpha_final",),
        bad={
            "alpha_final: above 1": lambda: ps_kd(16, 5, alpha_final=1.1),
            "total_epochs: none": lambda: rj.losses.ps_kd(16, 5, total_epochs=0),
            "total_epochs: a float": lambda: rj.losses.ps_kd(16, 5, total_epochs=10.0),
            "dtype: integers": lambda: ps_kd(16, 5, dtype=jnp.int32),
            "dtype: misspelt": lambda: ps_kd(16, 5, dtype="bflot16"),
            "labels: of another set": lambda: ps_kd(16, 5).init(jnp.zeros(15, int)),
            "epoch: negative": lambda: ps_kd_epoch(-1),
            "epoch: a string": lambda: ps_kd_epoch("first"),
        },
    ),
)
