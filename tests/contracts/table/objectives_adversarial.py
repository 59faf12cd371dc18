"""Examples of `regjax.objectives`: attacks on inputs, training on them, and what keeps it from overfitting to one step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from regjax.core import classes
from tests.contracts.example import Example, ids, normal
from tests.contracts.table.losses import refusals

o = rj.objectives
PARAMS = {"kernel": normal(3, 4), "head": normal(4, 3, seed=1)}
IMAGES = np.random.default_rng(2).uniform(0.05, 0.95, size=(8, 3))
LABELS = ids(8, classes=3)
ARRAYS = {"params": PARAMS, "x": IMAGES, "labels": LABELS}
ROWS = ("x", "labels")
ZERO = jax.tree.map(np.zeros_like, PARAMS)
LARGE = {"kernel": PARAMS["kernel"], "head": 1e4 * np.sign(PARAMS["head"])}
SINGULAR = ({"params": ZERO}, {"params": LARGE}, {"x": np.zeros((8, 3))})
P, X, Y, KEY = jax.tree.map(jnp.float32, PARAMS), jnp.float32(IMAGES), jnp.asarray(LABELS), jax.random.key(0)


def logits(params, x):
    wide = lambda v: v.astype(jnp.promote_types(jnp.float32, v.dtype))
    return jnp.tanh(wide(x) @ wide(params["kernel"])) @ wide(params["head"])


def losses(params, x, labels):
    return classes.cross_entropy(classes.class_inputs("tests", logits(params, x), labels))


def loss(params, x, labels):
    return jnp.mean(losses(params, x, labels))


def box_errors(fn) -> dict:
    """The errors of everything with a box; ``fn(**options)`` runs it on `X`."""
    return {
        "low: NaN": lambda: fn(low=float("nan")),
        "low: does not broadcast": lambda: fn(low=jnp.zeros(2)),
        "high: a string": lambda: fn(high="one"),
        "high: below low": lambda: fn(low=1.0, high=0.0),
    }


def size_errors(fn, strength: str) -> dict:
    """Wrong values of what may be an array, by channel."""
    return {what: thunk for what, thunk in refusals(fn, strength, negative=-0.1).items() if not what.endswith("a vector")}


def attack_errors(fn) -> dict:
    """The errors of everything with a radius and a box; ``fn(x, **options)`` runs it."""
    return {
        **size_errors(functools.partial(fn, X), "epsilon"),
        "epsilon: does not broadcast": lambda: fn(X, epsilon=jnp.ones(2)),
        "epsilon: integers": lambda: fn(X, epsilon=jnp.ones(3, int)),
        "x: integers": lambda: fn(jnp.zeros((8, 3), int)),
        "x: a vector": lambda: fn(jnp.zeros(8)),
        **box_errors(functools.partial(fn, X)),
    }


def needs_step(fn, strength: str) -> dict:
    return {
        f"{strength}: a schedule without a step": lambda: fn(**{strength: lambda step: 0.1 * step})(P, KEY, X, Y),
        f"{strength}: a schedule below 0": lambda: fn(**{strength: lambda step: -1.0})(P, KEY, X, Y, step=0),
    }


def pgd(params=P, x=X, labels=Y, **options):
    return o.pgd_attack(loss, params, x, labels, **{"epsilon": 0.1, "step_size": 0.04, "num_steps": 3, **options})


def fgsm(params=P, x=X, labels=Y, **options):
    return o.fgsm_attack(loss, params, x, labels, **{"epsilon": 0.1, **options})


def adversarial(**options):
    return o.adversarial(loss, **{"epsilon": 0.1, "step_size": 0.04, "num_steps": 2, **options})


def evaluate(params=P, key=KEY, x=X, labels=Y, fn=logits, **options):
    settings = {"epsilon": 0.1, "num_steps": 2, "num_restarts": 2, **options}
    return o.pgd_evaluate(fn, params, key, x, labels, **settings)


def free(**options):
    return o.free_adversarial(**{"epsilon": 0.1, "replays": 2, **options})


def replayed(state, params, x, labels, method=None, **options):
    def replay(params, x_adv):
        by_params, by_x = jax.grad(loss, argnums=(0, 1))(params, x_adv, labels)
        return jax.tree.map(lambda w, g: w - (0.1 * g).astype(w.dtype), params, by_params), by_x

    return (method or free()).apply(state, replay, params, x, **options)


def elle(**options):
    return o.elle(losses, **{"epsilon": 0.2, "weight": 3.0, **options})


def elle_penalty(fn=losses, **options):
    return o.elle_penalty(fn, **{"epsilon": 0.5, **options})


def aaer(fn=logits, **options):
    return o.aaer(fn, **{"epsilon": 0.5, **options})


def vat(fn=logits, **options):
    return o.vat(fn, **{"epsilon": 0.5, **options})


BEFORE, AFTER = 2 * normal(8, 3, seed=5), 2 * normal(8, 3, seed=6)


def aaer_loss(before=BEFORE, after=AFTER, labels=LABELS, **options):
    return o.aaer_loss(*(jnp.asarray(z) for z in (before, after)), jnp.asarray(labels), **options)


def grad_at_zero(fn):
    """A penalty and its gradient at radius 0, which a tracer holds, and the zeros that they are."""

    def identity(key, params, x, labels):
        return jax.value_and_grad(fn(jnp.zeros(())))(params, key, x, labels), (
            jnp.zeros(()),
            jax.tree.map(jnp.zeros_like, params),
        )

    return identity


def as_plain(fn):
    """A loss and its gradient at strength 0, which a tracer holds, and those of the plain loss."""

    def identity(key, params, x, labels):
        return jax.value_and_grad(fn(jnp.zeros(())))(params, key, x, labels), jax.value_and_grad(loss)(params, x, labels)

    return identity


EWMA = o.elle_lambda(decay=0.5)
RECENT = o.elle_lambda(window=3, update="before")


def adapted(method, error):
    """The weight after three errors that differ a little and a fourth."""
    state = method.init()
    for earlier in (1.0, 1.1, 0.9, error):
        weight, state = method.apply(state, jnp.asarray(earlier, error.dtype))
    return weight, state.weight


def adaptive(error=None, state=None, method=EWMA, **options):
    return method.apply(method.init() if state is None else state, jnp.float32(1.0) if error is None else error, **options)


random = {"arrays": ARRAYS, "rows": ROWS, "result": "other", "random": True, "singular": SINGULAR}

EXAMPLES = (
    Example(
        name="objectives.pgd_attack",
        call=lambda key, params, x, labels, delta: pgd(params, x, labels, delta_init=delta),
        arrays={**ARRAYS, "delta": 0.1 * normal(8, 3, seed=3)},
        rows=(*ROWS, "delta"),
        result="rows",
        dtype="input",
        frozen=("params", "x", "delta"),
        singular=SINGULAR,
        identity=lambda key, params, x, labels, delta: (pgd(params, x, labels, epsilon=jnp.zeros(()), delta_init=delta), x),
        bad={
            "loss_fn: no function": lambda: o.pgd_attack(3.0, P, X, Y),
            "loss_fn: returns no scalar": lambda: o.pgd_attack(losses, P, X, Y),
            "has_aux: no boolean": lambda: pgd(has_aux="yes"),
            **attack_errors(lambda x, **options: pgd(x=x, **options)),
            **size_errors(pgd, "step_size"),
            "num_steps: negative": lambda: pgd(num_steps=-1),
            "num_steps: a fraction": lambda: pgd(num_steps=2.0),
            "norm: misspelt": lambda: pgd(norm="l-inf"),
            "delta_init: another shape": lambda: pgd(delta_init=jnp.zeros(3)),
            "delta_init: with a key": lambda: pgd(delta_init=X, key=KEY),
            "key: a number": lambda: pgd(key=0),
        },
    ),
    Example(
        name="objectives.pgd_attack",
        call=lambda key, params, x, labels: pgd(params, x, labels, norm="l2", epsilon=jnp.array([0.2, 0.3, 0.0], x.dtype)),
        arrays=ARRAYS,
        rows=ROWS,
        result="rows",
        dtype="input",
        frozen=("params", "x"),
        singular=SINGULAR,
        identity=lambda key, params, x, labels: (pgd(params, x, labels, norm="l2", key=key, epsilon=jnp.zeros(())), x),
    ),
    Example(
        name="objectives.fgsm_attack",
        call=lambda key, params, x, labels: fgsm(params, x, labels, method="fgsm_rs", key=key),
        dtype="input",
        frozen=("params", "x"),
        identity=lambda key, params, x, labels: (fgsm(params, x, labels, method="n_fgsm", key=key, epsilon=jnp.zeros(())), x),
        bad={
            "loss_fn: no function": lambda: o.fgsm_attack(3.0, P, X, Y),
            "loss_fn: returns aux unasked": lambda: o.fgsm_attack(lambda *a: (loss(*a), 1), P, X, Y),
            "has_aux: no boolean": lambda: fgsm(has_aux=1),
            **attack_errors(lambda x, **options: fgsm(x=x, **options)),
            "method: misspelt": lambda: fgsm(method="fgsm-rs"),
            "key: missing": lambda: fgsm(method="n_fgsm"),
        },
        # A gradient near 0 may change its sign with the rounding of bfloat16 inputs; at these none does.
        **random | {"arrays": {**ARRAYS, "x": 1 - IMAGES}},
    ),
    Example(
        name="objectives.adversarial",
        call=lambda key, params, x, labels: adversarial()(params, key, x, labels),
        dtype=None,
        wrt=("params",),
        frozen=("x",),
        identity=as_plain(lambda zero: adversarial(epsilon=zero)),
        bad={
            "loss_fn: no function": lambda: o.adversarial(3.0),
            "loss_fn: returns no scalar": lambda: o.adversarial(losses)(P, KEY, X, Y),
            "loss_fn: returns no aux": lambda: adversarial(has_aux=True)(P, KEY, X, Y),
            "has_aux: no boolean": lambda: adversarial(has_aux=None),
            "attack: misspelt": lambda: adversarial(attack="fgsm-rs"),
            **attack_errors(lambda x, **options: adversarial(**options)(P, KEY, x, Y)),
            **needs_step(adversarial, "epsilon"),
            **size_errors(adversarial, "step_size")
            | {"step_size: a vector": lambda: adversarial(step_size=jnp.ones(2))(P, KEY, X, Y)},
            **needs_step(adversarial, "step_size"),
            "num_steps: negative": lambda: adversarial(num_steps=-1),
            "norm: misspelt": lambda: adversarial(norm="linfinity"),
            "random_start: a number": lambda: adversarial(random_start=1),
            "key: a number": lambda: adversarial()(P, 0, X, Y),
        },
        **random,
    ),
    Example(
        name="objectives.free_adversarial",
        call=lambda key, params, x, labels: replayed(free().init(x), params, x, labels),
        dtype=None,
        identity=lambda key, params, x, labels: (
            replayed(free().init(x), params, x, labels, free(epsilon=jnp.zeros(())))[1].delta,
            jnp.zeros_like(x),
        ),
        memory=lambda: (free().init(X), lambda state, key, params, x, labels: replayed(state, params, x, labels)),
        bad={
            **size_errors(free, "epsilon")
            | {"epsilon: a vector": lambda: replayed(free().init(X), P, X, Y, free(epsilon=jnp.ones(2)))},
            **size_errors(free, "step_size")
            | {"step_size: a vector": lambda: replayed(free().init(X), P, X, Y, free(step_size=jnp.ones(2)))},
            "replays: none": lambda: free(replays=0),
            "low: NaN": lambda: free(low=float("nan")),
            "high: below low": lambda: free(low=1.0, high=0.0),
            "x: integers": lambda: free().init(jnp.zeros((8, 3), int)),
            "state: of another batch": lambda: replayed(free().init(X[:4]), P, X, Y),
            "state: a dictionary": lambda: replayed({"delta": X}, P, X, Y),
            "replay: no function": lambda: free().apply(free().init(X), 3.0, P, X),
            "replay's gradient: another shape": lambda: free().apply(free().init(X), lambda p, x: (p, x[0]), P, X),
            "epsilon: a schedule without a step": lambda: replayed(free().init(X), P, X, Y, free(epsilon=lambda step: 0.1)),
        },
        **random | {"random": False},
    ),
    Example(
        name="objectives.pgd_evaluate",
        call=lambda key, params, x, labels: evaluate(params, key, x, labels),
        dtype=None,
        frozen=("params", "x"),
        identity=lambda key, params, x, labels: (
            evaluate(params, key, x, labels, epsilon=jnp.zeros(())),
            evaluate(params, key, x, labels, num_restarts=0),
        ),
        bad={
            "logits_fn: no function": lambda: evaluate(fn=3.0),
            "logits_fn's result: losses": lambda: evaluate(fn=lambda p, x: x[:, 0]),
            "key: missing": lambda: evaluate(key=None),
            "labels: probabilities": lambda: evaluate(labels=X),
            "labels: of other examples": lambda: evaluate(labels=Y[:4]),
            **attack_errors(lambda x, **options: evaluate(x=x, **options)),
            **size_errors(evaluate, "step_size"),
            "num_steps: negative": lambda: evaluate(num_steps=-1),
            "num_restarts: negative": lambda: evaluate(num_restarts=-1),
            "norm: misspelt": lambda: evaluate(norm="l3"),
        },
        **random,
    ),
    Example(
        name="objectives.elle_penalty",
        call=lambda key, params, x, labels: elle_penalty()(params, key, x, labels),
        wrt=("params",),
        frozen=("x",),
        identity=grad_at_zero(lambda zero: elle_penalty(epsilon=zero)),
        bad={
            "per_example_loss_fn: no function": lambda: elle_penalty(3.0),
            "per_example_loss_fn's result: a mean": lambda: elle_penalty(loss)(P, KEY, X, Y),
            "per_example_loss_fn: returns no aux": lambda: elle_penalty(has_aux=True)(P, KEY, X, Y),
            "has_aux: no boolean": lambda: elle_penalty(has_aux=1),
            **size_errors(elle_penalty, "epsilon")
            | {"epsilon: a vector": lambda: elle_penalty(epsilon=jnp.ones(2))(P, KEY, X, Y)},
            **needs_step(elle_penalty, "epsilon"),
            "x: integers": lambda: elle_penalty()(P, KEY, jnp.zeros((8, 3), int), Y),
            "key: missing": lambda: elle_penalty()(P, None, X, Y),
            "noise_b: missing": lambda: elle_penalty()(P, KEY, X, Y, noise_a=X, alpha=X[:, 0]),
            "noise_a: another shape": lambda: elle_penalty()(P, KEY, X, Y, noise_a=X[0], noise_b=X, alpha=X[:, 0]),
            "alpha: of each entry": lambda: elle_penalty()(P, KEY, X, Y, noise_a=X, noise_b=X, alpha=X),
        },
        **random,
    ),
    Example(
        name="objectives.elle",
        call=lambda key, params, x, labels: elle()(params, key, x, labels),
        dtype=None,
        wrt=("params",),
        frozen=("x",),
        identity=as_plain(lambda zero: elle(epsilon=zero, weight=zero)),
        bad={
            "per_example_loss_fn: no function": lambda: o.elle(3.0),
            "per_example_loss_fn's result: a mean": lambda: o.elle(loss)(P, KEY, X, Y),
            "per_example_loss_fn: returns no aux": lambda: elle(has_aux=True)(P, KEY, X, Y),
            "has_aux: no boolean": lambda: elle(has_aux=1),
            "with_info: no boolean": lambda: elle(with_info=1),
            **size_errors(elle, "epsilon") | {"epsilon: a vector": lambda: elle(epsilon=jnp.ones(2))(P, KEY, X, Y)},
            **needs_step(elle, "epsilon"),
            **refusals(elle, "weight", negative=-0.1),
            **needs_step(elle, "weight"),
            "method: misspelt": lambda: elle(method="nfgsm"),
            "low: NaN": lambda: elle(low=float("nan")),
            "high: below low": lambda: elle(low=1.0, high=0.0),
            "key: missing": lambda: elle()(P, None, X, Y),
        },
        **random,
    ),
    Example(
        name="objectives.elle_lambda",
        call=lambda key, error: (adapted(EWMA, error), adapted(RECENT, error)),
        arrays={"error": np.array(3.0)},
        result="other",
        frozen=("error",),
        singular=({"error": np.array(np.inf)}, {"error": np.array(np.nan)}, {"error": np.array(0.0)}),
        identity=lambda key, error: (adapted(o.elle_lambda(max_weight=0.0), error), (jnp.zeros(()), jnp.zeros(()))),
        memory=lambda: (RECENT.init(), lambda state, key, error: RECENT.apply(state, error)),
        bad={
            **refusals(o.elle_lambda, "max_weight", negative=-1.0),
            **refusals(o.elle_lambda, "decay", negative=-0.1, **{"above 1": 1.1}),
            **refusals(o.elle_lambda, "sensitivity", negative=-1.0),
            "update: misspelt": lambda: o.elle_lambda(update="later"),
            "window: none": lambda: o.elle_lambda(window=0),
            "window: a float": lambda: o.elle_lambda(window=3.0),
            "state: a dictionary": lambda: adaptive(state={"weight": 0.0}),
            "state: of another window": lambda: adaptive(state=o.elle_lambda(window=2).init(), method=RECENT),
            "error: a vector": lambda: adaptive(jnp.ones(2)),
            "error: an integer": lambda: adaptive(jnp.int32(1)),
            "decay: a schedule without a step": lambda: adaptive(method=o.elle_lambda(decay=lambda step: 0.5)),
        },
    ),
    Example(
        name="objectives.elle_lambda",
        call=lambda key, error: adaptive(error)[0],
        arrays={"error": np.array(3.0)},
        result="other",
        memory=lambda: (EWMA.init(), lambda state, key, error: EWMA.apply(state, error)),
    ),
    Example(
        name="objectives.aaer_loss",
        call=lambda key, before, after, labels: aaer_loss(before, after, labels, confidence_gradient=True),
        mapped=lambda axis, key, before, after, labels: aaer_loss(
            before, after, labels, confidence_gradient=True, axis_name=axis
        ),
        arrays={"before": BEFORE, "after": AFTER, "labels": LABELS},
        rows=("before", "after", "labels"),
        result="scalar",
        wrt=("after",),
        frozen=("before",),
        surrogate=True,
        singular=({"after": BEFORE}, {"after": 1e4 * np.sign(AFTER)}, {"before": np.zeros((8, 3)), "after": np.zeros((8, 3))}),
        identity=lambda key, before, after, labels: (
            aaer_loss(before, after, labels, count_weight=jnp.zeros(())),
            jnp.sum(classes.cross_entropy(classes.class_inputs("tests", after, labels))) / 8,
        ),
        bad={
            "logits_after: integers": lambda: aaer_loss(after=np.ones((8, 3), int)),
            "logits_after: a vector": lambda: aaer_loss(after=np.ones(3)),
            "logits_before: of other classes": lambda: aaer_loss(before=np.ones((8, 2))),
            "logits_before: integers": lambda: aaer_loss(before=np.ones((8, 3), int)),
            "labels: of other examples": lambda: aaer_loss(labels=LABELS[:4]),
            **refusals(aaer_loss, "count_weight", negative=-1.0),
            **refusals(aaer_loss, "confidence_weight", negative=-1.0),
            **refusals(aaer_loss, "logit_weight", negative=-1.0),
            "confidence_gradient: a number": lambda: aaer_loss(confidence_gradient=1),
            "axis_name: a number": lambda: aaer_loss(axis_name=0),
        },
    ),
    Example(
        name="objectives.aaer",
        call=lambda key, params, x, labels: aaer(init="n", confidence_gradient=True)(params, key, x, labels),
        dtype=None,
        wrt=("params",),
        frozen=("x",),
        surrogate=True,
        identity=as_plain(lambda zero: lambda *args: aaer(epsilon=zero)(*args)),
        bad={
            "apply_fn: no function": lambda: aaer(3.0),
            "apply_fn's result: a vector": lambda: aaer(lambda p, x: x[:, 0])(P, KEY, X, Y),
            "apply_fn: returns no aux": lambda: aaer(has_aux=True)(P, KEY, X, Y),
            "has_aux: no boolean": lambda: aaer(has_aux=1),
            "with_info: no boolean": lambda: aaer(with_info=1),
            **attack_errors(lambda x, **options: aaer(**options)(P, KEY, x, Y)),
            **needs_step(aaer, "epsilon"),
            "alpha_scale: negative": lambda: aaer(alpha_scale=-1.0),
            "init: misspelt": lambda: aaer(init="random"),
            **refusals(aaer, "count_weight", negative=-1.0),
            **needs_step(aaer, "count_weight"),
            **refusals(aaer, "confidence_weight", negative=-1.0),
            **refusals(aaer, "logit_weight", negative=-1.0),
            "confidence_gradient: a number": lambda: aaer(confidence_gradient=1),
            "axis_name: a number": lambda: aaer(axis_name=0),
            "key: missing": lambda: aaer()(P, None, X, Y),
        },
        **random,
    ),
    Example(
        name="objectives.vat",
        call=lambda key, params, x: vat(num_power_iterations=2)(params, key, x),
        arrays={"params": PARAMS, "x": IMAGES},
        rows=("x",),
        result="other",
        random=True,
        wrt=("params",),
        frozen=("x",),
        surrogate=True,
        # The direction is found from small differences, so that rounding is seen in it.
        tolerance=1e-4,
        singular=SINGULAR,
        identity=lambda key, params, x: grad_at_zero(lambda zero: lambda p, key, x, _: vat(epsilon=zero)(p, key, x))(
            key, params, x, None
        ),
        bad={
            "logits_fn: no function": lambda: vat(3.0),
            "logits_fn's result: a vector": lambda: vat(lambda p, x: x[:, 0])(P, KEY, X),
            **refusals(vat, "epsilon", negative=-0.1),
            "epsilon: a schedule without a step": lambda: vat(epsilon=lambda step: 0.1)(P, KEY, X),
            "xi: 0": lambda: vat(xi=0.0),
            "xi: NaN": lambda: vat(xi=float("nan")),
            "num_power_iterations: negative": lambda: vat(num_power_iterations=-1),
            "x: integers": lambda: vat()(P, KEY, jnp.zeros((8, 3), int)),
            "key: missing": lambda: vat()(P, None, X),
        },
    ),
)
