"""Examples of `regjax.losses`: distillation from one teacher and from several."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax

import regjax as rj
from tests.contracts.example import Example, normal

KEY = jax.random.key(0)
NAN = float("nan")
WHERE = np.array([True, False, True, True, True, False, True, True])
# Three teachers and eight examples; the suite has the batch in front.
LOSSES = np.abs(normal(8, 3)) + 0.1
UNIFORMS = np.random.default_rng(4).uniform(size=(8, 3))
L, U, X = jnp.ones((2, 4)), jnp.zeros((2, 4)), jnp.ones((4, 3))
DEGENERATE = ({"losses": np.zeros((8, 3))}, {"losses": 1e4 * LOSSES}, {"where": np.zeros(8, bool)})

dropping, apply_dropping = rj.losses.teacher_dropping, rj.losses.apply_teacher_dropping
unic, cross_entropy = rj.losses.unic_teacher_loss, rj.losses.teacher_cross_entropy
normalizer = functools.partial(rj.losses.teacher_normalizer, momentum=0.1)


def number_errors(fn, argument: str, **limits) -> dict:
    """What every number refuses: ``fn(**{argument: value})``."""
    values = {"negative": -0.1, "NaN": NAN, "a string": "half", "a vector": jnp.ones(2), **limits}
    return {f"{argument}: {what}": functools.partial(fn, **{argument: value}) for what, value in values.items()}


def dropping_errors(fn) -> dict:
    """The errors of ``fn(losses, **options)``."""
    return {
        "losses: integers": lambda: fn(jnp.ones((2, 4), int)),
        "losses: rank": lambda: fn(jnp.ones(4)),
        "losses: no teacher": lambda: fn(jnp.ones((0, 4))),
        **number_errors(functools.partial(fn, L), "drop_prob", **{"above 1": 1.1}),
        "drop_prob: a schedule": lambda: fn(L, drop_prob=lambda step: 0.5),
        "normalize: misspelt": lambda: fn(L, normalize="exmaple"),
        "where: of teachers": lambda: fn(L, where=jnp.ones(2, bool)),
        "where: weights": lambda: fn(L, where=jnp.ones(4)),
        "axis_name: a number": lambda: fn(L, axis_name=0),
    }


def start(mean, std, step=3):
    return rj.losses.TeacherNormalizerState(mean.astype(jnp.float32), std.astype(jnp.float32), jnp.asarray(step, jnp.int32))


def normalized(features, mean, std, **options):
    return normalizer(4, momentum=lambda step: 0.5 / (1 + step), **options).apply(start(mean, std), features)


def statistics(features, mean, std, where, **options):
    memory = normalizer(4, momentum=lambda step: 0.5 / (1 + step), **options)
    state = memory.apply(start(mean, std), features, where=where)[1]
    return state.mean, state.std


def one_normalizer(features=X, state=None, **keywords):
    """One call of a normalizer of three dimensions."""
    memory = normalizer(3)
    return memory.apply(memory.init() if state is None else state, features, **keywords)


FEATURES = {"features": normal(8, 2, 4), "mean": 0.3 * normal(4, seed=6), "std": 0.5 + np.abs(normal(4, seed=7))}

EXAMPLES = (
    Example(
        name="losses.teacher_dropping",
        call=lambda key, losses, where: dropping(key, losses.T, where=where),
        arrays={"losses": LOSSES, "where": WHERE},
        rows=("losses", "where"),
        result="other",
        wrt=("losses",),
        random=True,
        identity=lambda key, losses, where: (
            dropping(key, losses.T, drop_prob=0.0),
            (jnp.sum(losses.T) / 24, jnp.ones((3, 8))),
        ),
        singular=DEGENERATE,
        bad={**dropping_errors(functools.partial(dropping, KEY)), "key: a number": lambda: dropping(0, L)},
    ),
    *(
        Example(
            name="losses.apply_teacher_dropping",
            call=lambda key, losses, uniforms, where, how=how: apply_dropping(losses.T, uniforms.T, normalize=how, where=where)[
                0
            ],
            mapped=lambda axis_name, key, losses, uniforms, where, how=how: apply_dropping(
                losses.T, uniforms.T, normalize=how, where=where, axis_name=axis_name
            )[0],
            arrays={"losses": LOSSES, "uniforms": UNIFORMS, "where": WHERE},
            rows=("losses", "uniforms", "where"),
            result="scalar",
            wrt=("losses",),
            frozen=("uniforms",),
            singular=DEGENERATE,
            bad={
                **dropping_errors(lambda losses, **options: apply_dropping(losses, jnp.zeros(jnp.shape(losses)), **options)),
                "uniforms: shape": lambda: apply_dropping(L, jnp.zeros((2, 3))),
                "uniforms: integers": lambda: apply_dropping(L, jnp.zeros((2, 4), int)),
            },
        )
        for how in ("global", "example")
    ),
    Example(
        name="losses.apply_teacher_dropping",
        call=lambda key, losses, uniforms: apply_dropping(losses.T, uniforms.T)[1].T,
        arrays={"losses": LOSSES, "uniforms": UNIFORMS},
        rows=("losses", "uniforms"),
        result="rows",
        frozen=("losses", "uniforms"),
        identity=lambda key, losses, uniforms: (
            apply_dropping(losses.T, uniforms.T, drop_prob=jnp.zeros(())),
            (jnp.sum(losses.T) / 24, jnp.ones((3, 8))),
        ),
    ),
    Example(
        name="losses.unic_teacher_loss",
        call=lambda key, student, teacher: unic(student, teacher, cosine_weight=0.3, smooth_l1_weight=0.6),
        arrays={"student": 1.5 * normal(8, 2, 4), "teacher": normal(8, 2, 4, seed=5)},
        rows=("student", "teacher"),
        result="rows",
        wrt=("student",),
        frozen=("teacher",),
        identity=lambda key, student, teacher: (
            unic(student, teacher, cosine_weight=jnp.zeros(()), smooth_l1_weight=0.0),
            jnp.zeros(8),
        ),
        singular=(
            {"student": np.zeros((8, 2, 4))},
            {"teacher": np.zeros((8, 2, 4))},
            {"student": np.zeros((8, 2, 4)), "teacher": np.zeros((8, 2, 4))},
            {"student": 1e4 * np.sign(normal(8, 2, 4))},
            {"student": normal(8, 2, 4, seed=5)},
        ),
        bad={
            "student: integers": lambda: unic(jnp.ones((4, 3), int), X),
            "student: rank": lambda: unic(jnp.ones(3), jnp.ones(3)),
            "student: no tokens": lambda: unic(jnp.ones((4, 0, 3)), jnp.ones((4, 0, 3))),
            "teacher: shape": lambda: unic(X, jnp.ones((4, 2))),
            "teacher: integers": lambda: unic(X, jnp.ones((4, 3), int)),
            **number_errors(functools.partial(unic, X, X), "cosine_weight"),
            **number_errors(functools.partial(unic, X, X), "smooth_l1_weight"),
        },
    ),
    Example(
        name="losses.teacher_normalizer",
        call=lambda key, features, mean, std: normalized(features, mean, std)[0],
        arrays=FEATURES,
        rows=("features",),
        result="rows",
        frozen=("features", "mean", "std"),
        identity=lambda key, features, mean, std: (
            normalizer(4, momentum=0.0).apply(start(mean, std), features)[1],
            start(mean, std, 4),
        ),
        singular=({"features": np.zeros((8, 2, 4))}, {"std": np.zeros(4)}, {"features": 1e4 * np.ones((8, 2, 4))}),
        memory=lambda: (
            normalizer(4).init(),
            lambda state, key, features, mean, std: normalizer(
                4, momentum=optax.cosine_decay_schedule(1.0, 10, alpha=0.001)
            ).apply(state, features),
        ),
        bad={
            "dim: none": lambda: normalizer(0),
            "dim: a float": lambda: normalizer(4.0),
            **number_errors(functools.partial(rj.losses.teacher_normalizer, 4), "momentum", **{"above 1": 1.5}),
            **number_errors(functools.partial(normalizer, 4), "eps"),
            "axis_name: a number": lambda: normalizer(4, axis_name=0),
            "state: a dictionary": lambda: one_normalizer(state={"mean": jnp.zeros(3)}),
            "state: another dimension": lambda: one_normalizer(state=normalizer(4).init()),
            "features: another dimension": lambda: one_normalizer(jnp.ones((4, 2))),
            "features: integers": lambda: one_normalizer(jnp.ones((4, 3), int)),
            "features: rank": lambda: one_normalizer(jnp.ones(3)),
            "where: shape": lambda: one_normalizer(where=jnp.ones(3, bool)),
            "where: weights": lambda: one_normalizer(where=jnp.ones(4)),
        },
    ),
    Example(
        name="losses.teacher_normalizer",
        call=lambda key, features, mean, std, where: statistics(features, mean, std, where),
        mapped=lambda axis_name, key, features, mean, std, where: statistics(features, mean, std, where, axis_name=axis_name),
        arrays={**FEATURES, "where": WHERE},
        rows=("features", "where"),
        result="scalar",
        frozen=("features", "mean", "std"),
        singular=({"where": np.zeros(8, bool)}, {"features": np.ones((8, 2, 4))}),
    ),
    Example(
        name="losses.teacher_cross_entropy",
        call=lambda key, logits, teacher: cross_entropy(logits, teacher, temperature=2.0, where=jnp.arange(5) != 2),
        arrays={"logits": normal(8, 5), "teacher": normal(8, 5, seed=5)},
        rows=("logits", "teacher"),
        result="rows",
        wrt=("logits",),
        frozen=("teacher",),
        singular=(
            {"logits": np.zeros((8, 5)), "teacher": np.zeros((8, 5))},
            {"logits": 1e4 * np.sign(normal(8, 5))},
            {"teacher": 1e4 * np.sign(normal(8, 5))},
        ),
        bad={
            "logits: integers": lambda: cross_entropy(jnp.ones((4, 3), int), X),
            "logits: no classes": lambda: cross_entropy(jnp.ones((4, 0)), jnp.ones((4, 0))),
            "teacher_logits: shape": lambda: cross_entropy(X, jnp.ones((4, 2))),
            "teacher_logits: integers": lambda: cross_entropy(X, jnp.ones((4, 3), int)),
            **number_errors(functools.partial(cross_entropy, X, X), "temperature", zero=0.0),
            "temperature: a schedule": lambda: cross_entropy(X, X, temperature=lambda step: 1.0),
            "axis: out of range": lambda: cross_entropy(X, X, axis=2),
            "where: does not broadcast": lambda: cross_entropy(X, X, where=jnp.ones((4, 2), bool)),
            "where: weights": lambda: cross_entropy(X, X, where=jnp.ones((4, 3))),
        },
    ),
)
