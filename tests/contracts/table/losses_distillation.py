"""Examples of `regjax.losses`: distillation from the logits of a teacher, of a second pass, or of a weak head."""

import functools

import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal, probabilities
from tests.contracts.table.losses import refusals
from tests.contracts.table.losses_teachers import WHERE

X, Y = jnp.ones((4, 3)), jnp.zeros(4, int)
LARGE = 1e4 * np.sign(normal(8, 5))
LABELS, MIXED = {"labels": ids(8, classes=5)}, {"labels": probabilities(8, 5)}
ABSENT = jnp.arange(5) != 2

nkd, uskd, tes = rj.losses.nkd, rj.losses.uskd, rj.losses.tes
distillation, symmetric_kl, r_drop = rj.losses.distillation, rj.losses.symmetric_kl, rj.losses.r_drop
alpha, adaptive, relation = rj.losses.alpha_divergence, rj.losses.adaptive_alpha_divergence, rj.losses.class_relation_distillation


def two(first: str, second: str) -> dict:
    """The arrays of a loss of two networks, which arguments go by these names."""
    return {first: normal(8, 5), second: normal(8, 5, seed=5)}


def extremes(first: str, second: str) -> tuple:
    same = {first: np.zeros((8, 5)), second: np.zeros((8, 5))}
    return (same, {first: LARGE}, {second: LARGE}, {first: LARGE, second: -LARGE}, {second: normal(8, 5)})


def errors(fn, first: str, second: str, *labels) -> dict:
    """The errors that every ``fn(first, second, *labels, axis, where)`` shares."""
    bad = {
        f"{first}: integers": lambda: fn(jnp.ones((4, 3), int), X, *labels),
        f"{first}: no classes": lambda: fn(jnp.ones((4, 0)), jnp.ones((4, 0)), *labels),
        f"{first}: a scalar": lambda: fn(1.0, 1.0, *labels),
        f"{second}: shape": lambda: fn(X, jnp.ones((4, 2)), *labels),
        f"{second}: to be broadcast": lambda: fn(X, jnp.ones((1, 3)), *labels),
        f"{second}: integers": lambda: fn(X, jnp.ones((4, 3), int), *labels),
        "axis: out of range": lambda: fn(X, X, *labels, axis=2),
        "axis: a float": lambda: fn(X, X, *labels, axis=1.0),
        "where: does not broadcast": lambda: fn(X, X, *labels, where=jnp.ones((4, 2), bool)),
        "where: weights": lambda: fn(X, X, *labels, where=jnp.ones((4, 3))),
    }
    if labels:
        bad["labels: rank"] = lambda: fn(X, X, jnp.zeros((4, 1), int))
        bad["labels: booleans"] = lambda: fn(X, X, jnp.zeros(4, bool))
        bad["labels: of other classes"] = lambda: fn(X, X, jnp.ones((4, 2)))
    return bad


def strengths(fn, *names: str, **limits) -> dict:
    """The wrong values of numbers ``fn(**{name: value})``, a schedule among them."""
    bad = {}
    for name in names:
        bad |= refusals(fn, name, **limits)
        bad[f"{name}: a schedule"] = functools.partial(fn, **{name: lambda step: 0.5})
    return bad


STUDENT = ("student_logits", "teacher_logits")
PASSES = ("logits1", "logits2")
WEAK, TEXT = ("logits", "weak_logits"), ("logits", "text_cosines")
RELATION = {"student_logits": normal(8, 5), "teacher_logits": normal(8, 3, seed=5), "where": WHERE}
known = functools.partial(relation, num_known=2)
Z, T = jnp.ones((4, 3)), jnp.ones((4, 2))

EXAMPLES = (
    Example(
        name="losses.distillation",
        call=lambda key, **arrays: distillation(**arrays, where=ABSENT),
        arrays=two(*STUDENT),
        rows=STUDENT,
        result="rows",
        wrt=STUDENT[:1],
        frozen=STUDENT[1:],
        singular=extremes(*STUDENT),
        identity=lambda key, student_logits, teacher_logits: (
            distillation(student_logits, student_logits),
            jnp.zeros(8),
        ),
        bad={
            **errors(distillation, *STUDENT),
            **strengths(functools.partial(distillation, X, X), "temperature", zero=0.0, negative=-1.0),
            "scale_by_temperature: a number": lambda: distillation(X, X, scale_by_temperature=1),
        },
    ),
    Example(
        name="losses.nkd",
        call=lambda key, **arrays: nkd(**arrays, temperature=2.0),
        arrays=two(*STUDENT) | LABELS,
        rows=(*STUDENT, "labels"),
        result="rows",
        wrt=STUDENT[:1],
        frozen=STUDENT[1:],
        singular=(*extremes(*STUDENT), MIXED),
        # Without the other classes' part their temperature has no say.
        identity=lambda key, **arrays: (nkd(**arrays, gamma=0.0), nkd(**arrays, gamma=0.0, temperature=3.0)),
        bad={
            **errors(nkd, *STUDENT, Y),
            **strengths(functools.partial(nkd, X, X, Y), "temperature", zero=0.0, negative=-1.0),
            **strengths(functools.partial(nkd, X, X, Y), "gamma", negative=-0.1),
        },
    ),
    *(
        Example(
            name="losses.uskd",
            call=lambda key, **arrays: uskd(**arrays, beta=0.5, mu=0.1),
            mapped=lambda axis_name, key, **arrays: uskd(**arrays, beta=0.5, mu=0.1, axis_name=axis_name),
            arrays=two(*WEAK) | labels,
            rows=(*WEAK, "labels"),
            result="rows",
            wrt=WEAK,
            surrogate=True,  # the batch's weights are constants
            singular=extremes(*WEAK),
            identity=lambda key, **arrays: (uskd(**arrays, alpha=0.0, beta=0.0, mu=0.0), jnp.zeros(8)),
            bad={
                **errors(uskd, *WEAK, Y),
                **strengths(functools.partial(uskd, X, X, Y), "alpha", "beta", "mu", negative=-0.1),
                "rank_with: misspelt": lambda: uskd(X, X, Y, rank_with="logs"),
                "axis_name: a number": lambda: uskd(X, X, Y, axis_name=0),
            },
        )
        for labels in (LABELS, MIXED)
    ),
    Example(
        name="losses.alpha_divergence",
        call=lambda key, **arrays: jnp.stack([alpha(**arrays, alpha=a, where=ABSENT) for a in (-0.5, 0.0, 1.0)], axis=-1),
        arrays=two(*STUDENT),
        rows=STUDENT,
        result="rows",
        wrt=STUDENT[:1],
        frozen=STUDENT[1:],
        singular=extremes(*STUDENT),
        bad={
            **errors(functools.partial(alpha, alpha=0.5), *STUDENT),
            **strengths(functools.partial(alpha, X, X), "alpha"),
            **refusals(functools.partial(alpha, X, X, alpha=0.5), "clip", **{"below 1": 0.5}),
        },
    ),
    Example(
        name="losses.adaptive_alpha_divergence",
        call=lambda key, **arrays: adaptive(**arrays),
        arrays=two(*STUDENT),
        rows=STUDENT,
        result="rows",
        wrt=STUDENT[:1],
        frozen=STUDENT[1:],
        surrogate=True,  # where a ratio is clipped
        singular=extremes(*STUDENT),
        bad={
            **errors(adaptive, *STUDENT),
            **strengths(functools.partial(adaptive, X, X), "alpha_min", "alpha_max"),
            **refusals(functools.partial(adaptive, X, X), "clip", **{"below 1": 0.5}),
            "surrogate: a number": lambda: adaptive(X, X, surrogate=1),
        },
    ),
    Example(
        name="losses.symmetric_kl",
        call=lambda key, **arrays: symmetric_kl(**arrays, where=ABSENT),
        arrays=two(*PASSES),
        rows=PASSES,
        result="rows",
        wrt=PASSES,
        singular=extremes(*PASSES),
        bad=errors(symmetric_kl, *PASSES),
    ),
    Example(
        name="losses.r_drop",
        call=lambda key, **arrays: r_drop(**arrays, weight=0.7),
        arrays=two(*PASSES) | LABELS,
        rows=(*PASSES, "labels"),
        result="rows",
        wrt=PASSES,
        singular=(*extremes(*PASSES), MIXED),
        identity=lambda key, logits1, logits2, labels: (
            r_drop(logits1, logits2, labels, weight=0.0),
            0.5 * sum(rj.losses.maxsup(logits, labels, weight=0.0) for logits in (logits1, logits2)),
        ),
        bad={
            **errors(r_drop, *PASSES, Y),
            **strengths(functools.partial(r_drop, X, X, Y), "weight", negative=-0.1),
        },
    ),
    Example(
        name="losses.tes",
        call=lambda key, **arrays: tes(**arrays, temperature=0.5),
        arrays=two(*TEXT) | LABELS,
        rows=(*TEXT, "labels"),
        result="rows",
        wrt=TEXT[:1],  # by the cosines the soft labels are constants
        singular=(*extremes(*TEXT), MIXED),
        identity=lambda key, logits, text_cosines, labels: (
            tes(logits, text_cosines, labels, weight_vision=0.0, weight_text=0.0),
            rj.losses.maxsup(logits, labels, weight=0.0),
        ),
        bad={
            **errors(tes, *TEXT, Y),
            **strengths(functools.partial(tes, X, X, Y), "temperature", zero=0.0, negative=-1.0),
            **strengths(functools.partial(tes, X, X, Y), "weight_vision", negative=-0.1, **{"above 1": 1.1}),
            **strengths(functools.partial(tes, X, X, Y), "weight_text", negative=-0.1),
        },
    ),
    Example(
        name="losses.class_relation_distillation",
        call=lambda key, **arrays: relation(**arrays, num_known=3, temperature=0.5),
        mapped=lambda axis_name, key, **arrays: relation(**arrays, num_known=3, temperature=0.5, axis_name=axis_name),
        arrays=RELATION,
        rows=tuple(RELATION),
        result="rows",
        wrt=STUDENT[:1],
        frozen=STUDENT[1:],
        singular=(
            {"student_logits": np.zeros((8, 5))},
            {"student_logits": LARGE},
            {"student_logits": 1e4 * (np.arange(5) > 2) * np.ones((8, 1))},
            {"teacher_logits": LARGE[:, :3]},
            {"where": np.zeros(8, bool)},
        ),
        bad={
            "student_logits: integers": lambda: known(jnp.ones((4, 3), int), T),
            "student_logits: a scalar": lambda: known(1.0, T),
            "teacher_logits: all classes": lambda: known(Z, Z),
            "teacher_logits: of other examples": lambda: known(Z, jnp.ones((3, 2))),
            "teacher_logits: integers": lambda: known(Z, jnp.ones((4, 2), int)),
            "num_known: none": lambda: relation(Z, jnp.ones((4, 0)), num_known=0),
            "num_known: more than classes": lambda: relation(Z, jnp.ones((4, 4)), num_known=4),
            "num_known: a float": lambda: relation(Z, T, num_known=2.0),
            **strengths(functools.partial(known, Z, T), "temperature", "distill_temperature", zero=0.0, negative=-1.0),
            "axis: out of range": lambda: known(Z, T, axis=2),
            "where: of classes": lambda: known(Z, T, where=jnp.ones((4, 3), bool)),
            "where: weights": lambda: known(Z, T, where=jnp.ones(4)),
            "axis_name: a number": lambda: known(Z, T, axis_name=0),
        },
    ),
)
