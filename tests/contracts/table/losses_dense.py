"""Examples of `regjax.losses`: distillation of maps."""

import functools

import jax.numpy as jnp
import numpy as np
import optax

import regjax as rj
from tests.contracts.example import Example, ids, normal
from tests.contracts.table.losses import refusals

MAPS = {"student_logits": normal(8, 2, 3, 3), "teacher_logits": normal(8, 2, 3, 3, seed=4)}
LABELS = ids(8, 2, 3, classes=3)
LABELS[0, 0, 1] = LABELS[3] = 255
SOME = (normal(8, 2, 3, seed=5) > -0.5) & (np.arange(8) != 2)[:, None, None]
NONE = np.zeros((8, 2, 3), bool)
IGNORED = np.full((8, 2, 3), 255, np.int32)
EXTREME = (
    {"student_logits": np.zeros((8, 2, 3, 3))},
    {"student_logits": 1e4 * np.sign(normal(8, 2, 3, 3)), "teacher_logits": 1e4 * np.sign(normal(8, 2, 3, 3, seed=4))},
    {"teacher_logits": np.zeros((8, 2, 3, 3))},
)
X, Y = jnp.ones((2, 2, 3, 4)), jnp.zeros((2, 2, 3), int)


def pair_errors(fn, first="student_logits", second="teacher_logits") -> dict:
    """The errors that every ``fn(student, teacher, *, where, axis_name)`` shares."""
    return {
        f"{first}: integers": lambda: fn(jnp.ones((2, 2, 3, 4), int), X),
        f"{first}: rank": lambda: fn(X[0, 0, 0], X[0, 0, 0]),
        f"{second}: integers": lambda: fn(X, jnp.ones((2, 2, 3, 4), int)),
        f"{second}: other classes": lambda: fn(X, X[..., :3]),
        "axis_name: a number": lambda: fn(X, X, axis_name=3),
    }


def mask_errors(fn) -> dict:
    """The errors of a mask of pixels."""
    return {
        "where: shape": lambda: fn(X, X, where=jnp.ones((2, 2), bool)),
        "where: weights": lambda: fn(X, X, where=jnp.ones((2, 2, 3))),
    }


# Labels of twice the height and four thirds of the width of the logits.
WIDE = np.repeat(ids(8, 2, 2, classes=3, seed=6), 2, axis=1).repeat(2, axis=2)
WIDE[0, 3, 3] = WIDE[3] = 255
boundary, masks = rj.losses.boundary_distillation, rj.losses.boundary_masks
edges = functools.partial(boundary, kernel_size=3)
cwd, dist = rj.losses.channel_wise_distillation, rj.losses.dist_relation
teach = rj.losses.label_assisted_teacher_loss


def cross_entropies(logits1, logits2, labels):
    """The two mean cross-entropies over labelled pixels."""
    labelled = labels != 255
    safe = jnp.where(labelled, labels, 0)
    one, two = (optax.softmax_cross_entropy_with_integer_labels(z, safe) for z in (logits1, logits2))
    return jnp.sum(jnp.where(labelled, one + two, 0)) / jnp.sum(labelled)


EXAMPLES = (
    Example(
        name="losses.boundary_masks",
        call=lambda key, labels: masks(labels, num_classes=3, kernel_size=3),
        arrays={"labels": WIDE},
        rows=("labels",),
        result="rows",
        singular=({"labels": np.full((8, 4, 4), 255, np.int32)},),
        bad={
            "labels: floats": lambda: masks(jnp.zeros((2, 3, 3)), num_classes=3),
            "labels: rank": lambda: masks(Y[0], num_classes=3),
            "num_classes: none": lambda: masks(Y, num_classes=0),
            "kernel_size: even": lambda: masks(Y, num_classes=3, kernel_size=4),
            "kernel_size: none": lambda: masks(Y, num_classes=3, kernel_size=-1),
            "ignore_label: a float": lambda: masks(Y, num_classes=3, ignore_label=255.0),
        },
    ),
    Example(
        name="losses.boundary_distillation",
        call=lambda key, labels, **maps: edges(labels=labels, **maps),
        mapped=lambda axis_name, key, labels, **maps: edges(labels=labels, **maps, axis_name=axis_name),
        arrays={**MAPS, "labels": WIDE},
        rows=("student_logits", "teacher_logits", "labels"),
        result="scalar",
        wrt=("student_logits",),
        frozen=("teacher_logits",),
        identity=lambda key, labels, **maps: (
            edges(labels=labels, **maps, edge_weight=0.0, body_weight=0.0),
            jnp.zeros(()),
        ),
        singular=(*EXTREME, {"labels": np.full((8, 4, 4), 255, np.int32)}, {"labels": np.zeros((8, 4, 4), np.int32)}),
        tolerance=2e-5,
        bad={
            **pair_errors(lambda a, b, **options: boundary(a, b, Y, **options)),
            **refusals(functools.partial(boundary, X, X, Y), "edge_alpha", negative=-1.0),
            **refusals(functools.partial(boundary, X, X, Y), "edge_weight", negative=-1.0),
            **refusals(functools.partial(boundary, X, X, Y), "body_weight", negative=-1.0),
            **refusals(functools.partial(boundary, X, X, Y), "edge_temperature", zero=0.0),
            **refusals(functools.partial(boundary, X, X, Y), "body_temperature", zero=0.0),
            "labels: fewer than logits": lambda: boundary(X, X, Y[:, :1]),
            "labels: of another batch": lambda: boundary(X, X, Y[:1]),
            "labels: floats": lambda: boundary(X, X, jnp.zeros((2, 2, 3))),
            "kernel_size: even": lambda: boundary(X, X, Y, kernel_size=4),
            "ignore_label: a float": lambda: boundary(X, X, Y, ignore_label=255.0),
            "mask_logits: a number": lambda: boundary(X, X, Y, mask_logits=1),
        },
    ),
    Example(
        name="losses.channel_wise_distillation",
        call=lambda key, where, **maps: cwd(**maps, temperature=2.0, where=where),
        mapped=lambda axis_name, key, where, **maps: cwd(**maps, temperature=2.0, where=where, axis_name=axis_name),
        arrays={**MAPS, "where": SOME},
        rows=("student_logits", "teacher_logits", "where"),
        result="scalar",
        wrt=("student_logits",),
        frozen=("teacher_logits",),
        singular=(*EXTREME, {"where": NONE}),
        bad={
            **pair_errors(cwd),
            **mask_errors(cwd),
            **refusals(functools.partial(cwd, X, X), "temperature", zero=0.0, negative=-1.0),
            "temperature: a schedule": lambda: cwd(X, X, temperature=lambda step: 1.0),
        },
    ),
    Example(
        name="losses.label_assisted_teacher_loss",
        call=lambda key, where, **maps: teach(**maps, where=where),
        mapped=lambda axis_name, key, where, **maps: teach(**maps, where=where, axis_name=axis_name),
        arrays={"logits1": MAPS["student_logits"], "logits2": MAPS["teacher_logits"], "labels": LABELS, "where": SOME},
        rows=("logits1", "logits2", "labels", "where"),
        result="scalar",
        wrt=("logits1", "logits2"),
        # Each divergence reaches one of the two alone.
        surrogate=True,
        identity=lambda key, where, **maps: (teach(**maps, weight=0.0), cross_entropies(**maps)),
        singular=(
            {"logits1": np.zeros((8, 2, 3, 3)), "logits2": 1e4 * np.sign(normal(8, 2, 3, 3))},
            {"labels": IGNORED},
            {"where": NONE},
        ),
        bad={
            **pair_errors(lambda a, b, **options: teach(a, b, Y, **options), "logits1", "logits2"),
            **mask_errors(lambda a, b, **options: teach(a, b, Y, **options)),
            **refusals(functools.partial(teach, X, X, Y), "weight", negative=-1.0),
            **refusals(functools.partial(teach, X, X, Y), "temperature", zero=0.0),
            "labels: shape": lambda: teach(X, X, Y[0]),
            "labels: floats": lambda: teach(X, X, jnp.zeros((2, 2, 3))),
            "ignore_label: a float": lambda: teach(X, X, Y, ignore_label=255.0),
        },
    ),
    Example(
        name="losses.dist_relation",
        call=lambda key, where, **maps: dist(**maps, gamma=0.5, where=where),
        mapped=lambda axis_name, key, where, **maps: dist(**maps, gamma=0.5, where=where, axis_name=axis_name),
        arrays={**MAPS, "where": SOME},
        rows=("student_logits", "teacher_logits", "where"),
        result="scalar",
        wrt=("student_logits",),
        frozen=("teacher_logits",),
        identity=lambda key, where, **maps: (dist(**maps, beta=0.0, gamma=0.0), jnp.zeros(())),
        singular=(*EXTREME, {"where": NONE}, {"where": np.eye(8, dtype=bool)[:, :2, None] & np.eye(3, dtype=bool)[0]}),
        bad={
            **pair_errors(dist),
            **mask_errors(dist),
            **refusals(functools.partial(dist, X, X), "beta", negative=-1.0),
            **refusals(functools.partial(dist, X, X), "gamma", negative=-1.0),
        },
    ),
)
