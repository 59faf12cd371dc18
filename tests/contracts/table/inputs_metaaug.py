"""Examples of `regjax.inputs`: the learned transform of calibration images."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal

KEY = jax.random.key(0)
TEACHER = normal(5, 4, seed=1)
ARRAYS = {
    "params": {"scale": 0.3 * normal(5), "shift": 0.2 * normal(5, seed=2)},
    "x": normal(8, 5, seed=3),
    "x_val": normal(8, 5, seed=4),
    "student": TEACHER + 0.2 * normal(5, 4, seed=5),
}


def transform(params, x):
    return x + params["scale"] * jnp.tanh(x) + params["shift"]


def teacher(x):
    features = jnp.tanh(x.astype(jnp.promote_types(jnp.float32, x.dtype)) @ jnp.asarray(TEACHER, jnp.float32))
    return features, features


def quantise(student, x):
    return x.astype(jnp.promote_types(jnp.float32, x.dtype)) @ jnp.sin(student)


def reconstruction(student, x):
    return jnp.mean((quantise(student, x) - x.astype(jnp.promote_types(jnp.float32, x.dtype)) @ TEACHER) ** 2)


def calibrate(x, student):
    """One step of SGD: smooth, so that finite differences apply."""
    student = student.astype(jnp.promote_types(jnp.float32, student.dtype))
    return student - 0.1 * jax.grad(reconstruction)(student, x)


def objective(transform_fn=transform, student_step_fn=calibrate, student_fn=quantise, teacher_fn=teacher, **options):
    return rj.inputs.meta_augment_objective(transform_fn, student_step_fn, student_fn, teacher_fn, **options)


def loss(params, x, x_val, student, key=KEY, step=None, **options):
    return objective(**options)(params, x, x_val, key, student, step=step)


def valid(**options):
    """The objective at the arrays above, but for what is given."""
    given = {name: options.pop(name) for name in ("x", "x_val", "key") if name in options}
    return loss(**{**jax.tree.map(jnp.asarray, ARRAYS), **given}, **options)


def strength_errors(name, call):
    return {
        f"{name}: negative": lambda: call(**{name: -1.0}),
        f"{name}: NaN": lambda: call(**{name: float("nan")}),
        f"{name}: a text": lambda: call(**{name: "strong"}),
    }


def adam(params, x, count, **options):
    """Adam on a memory that has taken ``count`` steps."""
    step = rj.inputs.adam_student_step(lambda p, x: jnp.mean((p - jnp.tanh(x).astype(p.dtype)) ** 2), **options)
    state = jax.tree.map(lambda leaf: leaf, step.init(params))
    state = (state[0]._replace(count=count, mu=jax.tree.map(lambda p: 0.1 * p, params), nu=0.01 * params**2), *state[1:])
    return step.apply(state, params, x)


inner = rj.inputs.adam_student_step(lambda p, x: jnp.mean((p - x.astype(jnp.float32)) ** 2), learning_rate=0.1)

EXAMPLES = (
    Example(
        name="inputs.meta_augment_objective",
        call=lambda key, **arrays: loss(**arrays, key=key, pkt_weight=30.0, margin=0.4, has_aux=True),
        arrays=ARRAYS,
        rows=("x", "x_val"),
        result="other",
        random=True,
        dtype=None,  # mixed images keep their dtype, and what the teacher sees is rounded
        wrt=("params", "student"),
        singular=(
            {"x": np.zeros((8, 5))},
            {"params": {"scale": np.zeros(5), "shift": np.zeros(5)}},
            {"x_val": np.zeros((8, 5))},
        ),
        identity=lambda key, **arrays: (
            loss(**arrays, key=key, kl_weight=0.0, distance_weight=0.0, pkt_weight=0.0),
            jnp.zeros(()),
        ),
        tolerance=1e-4,
        bad={
            **{
                f"{name}: no function": lambda name=name: objective(**{name: 3.0})
                for name in ("transform_fn", "student_step_fn", "student_fn", "teacher_fn")
            },
            **strength_errors("kl_weight", objective),
            **strength_errors("distance_weight", objective),
            **strength_errors("pkt_weight", objective),
            **strength_errors("margin", objective),
            **strength_errors("temperature", objective),
            "temperature: zero": lambda: objective(temperature=0.0),
            "alpha: zero": lambda: objective(alpha=0.0),
            "eps: zero": lambda: objective(eps=0.0),
            "share_mixup: a number": lambda: objective(share_mixup=1),
            "has_aux: a number": lambda: objective(has_aux=1),
            "kl_weight: a schedule without step": lambda: valid(kl_weight=lambda step: 1.0),
            "x: integers": lambda: valid(x=jnp.ones((8, 5), int)),
            "x_val: a text": lambda: valid(x_val="images"),
            "key: a number": lambda: valid(key=0),
            "transform_fn: another shape": lambda: valid(transform_fn=lambda params, x: x[:, :3]),
            "student_fn: other classes": lambda: valid(student_fn=lambda student, x: x),
            "teacher_fn: no features": lambda: valid(teacher_fn=lambda x: x),
            "teacher_fn: features of other examples": lambda: valid(teacher_fn=lambda x: (x, x[:3])),
        },
    ),
    Example(
        name="inputs.adam_student_step",
        call=lambda key, **arrays: adam(**arrays)[0],
        arrays={"params": normal(5), "x": normal(8, 5, seed=3), "count": np.int32(3)},
        rows=("x",),
        result="scalar",
        dtype="input",
        wrt=("params", "x"),
        identity=lambda key, params, x, count: (adam(params, x, count, learning_rate=0.0)[0], params),
        singular=({"params": np.zeros(5), "x": np.zeros((8, 5))}, {"x": 1e4 * np.ones((8, 5))}),
        bad={
            "loss_fn: no function": lambda: rj.inputs.adam_student_step(3.0),
            "learning_rate: negative": lambda: rj.inputs.adam_student_step(jnp.sum, learning_rate=-1.0),
            "learning_rate: NaN": lambda: rj.inputs.adam_student_step(jnp.sum, learning_rate=float("nan")),
            "b1: one": lambda: rj.inputs.adam_student_step(jnp.sum, b1=1.0),
            "b2: negative": lambda: rj.inputs.adam_student_step(jnp.sum, b2=-0.1),
            "eps: negative": lambda: rj.inputs.adam_student_step(jnp.sum, eps=-1e-8),
            "eps_root: zero": lambda: rj.inputs.adam_student_step(jnp.sum, eps_root=0.0),
        },
        memory=lambda: (
            inner.init(jnp.ones(5)),
            lambda state, key, params, x, count: inner.apply(state, params.astype(jnp.float32), x),
        ),
    ),
)
