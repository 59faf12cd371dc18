"""Examples of `regjax.weights`: what holds a model near its solutions of earlier tasks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal
from tests.contracts.running import is_float
from tests.contracts.table.losses import refusals
from tests.contracts.table.objectives import energy, loss

TREE = {"kernel": normal(8, 2), "bias": normal(3, seed=1)}
OTHER = {"kernel": normal(8, 2, seed=2), "bias": normal(3, seed=3)}
SQUARES = jax.tree.map(np.square, normal(8, 2, seed=4)), np.square(normal(3, seed=5))
POSITIVE = {"kernel": SQUARES[0], "bias": SQUARES[1]}
ZEROS = jax.tree.map(np.zeros_like, TREE)
P = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
FEWER, WIDER = {"kernel": P["kernel"]}, P | {"bias": jnp.ones(3)}
KEY = jax.random.key(0)
X, Y = jnp.ones((1, 4, 3)), jnp.zeros((1, 4), jnp.int32)
W = rj.weights


def vector(params):
    """The floating leaves as one vector."""
    parts = [jnp.ravel(x) for x in jax.tree.leaves(params) if is_float(x)]
    dtype = jnp.promote_types(jnp.float32, jnp.result_type(*parts)) if parts else jnp.float32
    return jnp.concatenate([jnp.zeros(0, dtype), *(part.astype(dtype) for part in parts)])


def quadratic(params, anchor, **options):
    """The penalty of a dense and symmetric matrix."""
    m = vector(anchor)
    i = jnp.arange(m.size, dtype=m.dtype)
    return W.quadratic_consolidation(params, W.AQCState(m, jnp.cos(i[:, None] * i)), **options)


def logits_fn(params, x):
    """Three logits that depend on any tree."""
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    score = jnp.tanh(0.1 * energy(params)) * jnp.sum(x, -1, keepdims=True)
    return score * jnp.array([1.0, -0.5, 0.2], score.dtype)


def linear(params, x):
    """Logits of `P`."""
    return x[:, :2] @ params["kernel"] + params["bias"]


def after_step(gradients, updates):
    return W.si_step(W.si_init(gradients), gradients, updates)


def after_task(params, path, **options):
    state = W.si_init(jax.tree.map(jnp.zeros_like, params))
    wide = jax.tree.map(lambda x: x.astype(jnp.promote_types(x.dtype, jnp.float32)) if is_float(x) else x, path)
    return W.si_update(state._replace(path=wide), params, **options)


def learned(params, **options):
    """The penalty of a network that counts as trained."""
    state = W.neural_consolidation_init(KEY, params, hidden=(4, 3))
    return W.neural_consolidation(params, state._replace(tasks=jnp.ones((), jnp.int32)), **options)


def taught(key, params, x, **options):
    state = W.neural_consolidation_init(KEY, params, hidden=(4,))
    return W.neural_consolidation_update(key, state, params, loss, x, steps=2, num_points=4, **options)


def wrong_where(call):
    return {
        "where: an unknown word": lambda: call(where="biases"),
        "where: another structure": lambda: call(where={"other": True}),
        "where: an integer leaf": lambda: call(params={"kernel": jnp.ones((2, 2), int)}, where=True),
    }


def wrong_state(call, state):
    """The states that everything refuses: ``call(state=...)`` raises."""
    return {
        "state: a number": lambda: call(state=3),
        "state: of fewer leaves": lambda: call(state=state(FEWER)),
        "state: of another shape": lambda: call(state=state(WIDER)),
    }


def wrong_batches(call, fn):
    """The data that everything refuses: ``call(fn, batches)`` raises."""
    return {
        "batches: none": lambda: call(fn, []),
        "batches: a word": lambda: call(fn, "train"),
        "batches: a number": lambda: call(fn, jnp.ones(())),
        "batches: of two lengths": lambda: call(fn, (X, jnp.ones((2, 4)))),
    }


def aqc(fn=lambda params, batch: energy(params), batches=X, state=None, **options):
    return W.aqc_update(W.aqc_init(P) if state is None else state, P, fn, batches, **options)


def fisher(fn=linear, batches=(X, Y), **options):
    return W.diagonal_fisher(P, fn, batches, **options)


def updated(fn=linear, batches=(X, Y), state=None, **options):
    return W.ewc_update(W.ewc_init(P) if state is None else state, P, fn, batches, **options)


def teach(key=KEY, objective=energy, state=None, **options):
    state = W.neural_consolidation_init(KEY, P, hidden=(2,)) if state is None else state
    return W.neural_consolidation_update(key, state, P, objective, **{"steps": 1, "num_points": 2, **options})


def wrong_fisher(call):
    return {
        **wrong_batches(call, linear),
        "logits_fn: none": lambda: call(3),
        "logits_fn: returns a loss": lambda: call(lambda params, x: jnp.sum(linear(params, x))),
        "batches: no pair": lambda: call(linear, X),
        "batches: labels of another number": lambda: call(linear, (X, Y[:, :2]), fisher="empirical"),
        "batches: no labels": lambda: call(linear, (X, None), fisher="empirical"),
        "fisher: misspelt": lambda: call(fisher="empiric"),
        "reduction: misspelt": lambda: call(reduction="average"),
    }


def penalty(name, call, state, **fields):
    """The example of a penalty with a memory."""
    fn = getattr(W, name)
    fitting = state(P)
    wrong = lambda params=P, state=fitting, **given: fn(params, state, **given)
    return Example(
        name=f"weights.{name}",
        call=lambda key, **arrays: call(**arrays),
        result="scalar",
        wrt=("params",),
        tree="params",
        identity=lambda key, **arrays: (call(**arrays, weight=0.0), jnp.zeros(())),
        bad={
            **refusals(wrong, "weight", negative=-1.0),
            **(wrong_state(wrong, state) if name in ("ewc", "si") else {}),
            **fields.pop("bad", {}),
        },
        **fields,
    )


def beginning(name, **fields):
    """The example of a memory before the first task."""
    fn = getattr(W, name)
    wrong = lambda params=P, **given: fn(params, **given)
    return Example(
        name=f"weights.{name}",
        call=lambda key, params: fn(params),
        arrays={"params": TREE},
        result="scalar",
        frozen=("params",),
        tree="params",
        bad={**refusals(wrong, "precision", negative=-1.0), **wrong_where(wrong), **fields.pop("bad", {})},
        **fields,
    )


DATA = {"params": TREE, "x": 0.5 * normal(8, 3, seed=6)}

EXAMPLES = (
    beginning("aqc_init", bad={"params: too many": lambda: W.aqc_init(jnp.zeros(20_001))}),
    Example(
        name="weights.aqc_update",
        call=lambda key, params, x: W.aqc_update(W.aqc_init(params), params, loss, x[None]),
        arrays=DATA,
        rows=("x",),
        result="scalar",
        frozen=("params", "x"),
        tree="params",
        singular=({"params": ZEROS},),
        tolerance=1e-4,
        bad={
            **wrong_batches(aqc, lambda params, batch: energy(params)),
            **wrong_where(lambda params=P, **given: W.aqc_update(W.aqc_init(P), params, energy, X, **given)),
            "state: none": lambda: aqc(state=3),
            "state: of fewer leaves": lambda: aqc(state=W.aqc_init(FEWER)),
            "nll_sum: none": lambda: aqc(3),
            "nll_sum: per example": lambda: aqc(lambda params, batch: batch[:, 0] * energy(params)),
            "psd: a number": lambda: aqc(psd=1),
            "chunk_size: zero": lambda: aqc(chunk_size=0),
        },
    ),
    penalty(
        "quadratic_consolidation",
        quadratic,
        W.aqc_init,
        arrays={"params": TREE, "anchor": OTHER},
        frozen=("anchor",),
        singular=({"anchor": TREE}, {"params": ZEROS}),
        bad={
            **wrong_where(lambda params=P, **given: W.quadratic_consolidation(params, W.aqc_init(P), **given)),
            "state: none": lambda: W.quadratic_consolidation(P, None),
            "state: of fewer leaves": lambda: W.quadratic_consolidation(P, W.aqc_init(FEWER)),
        },
    ),
    Example(
        name="weights.diagonal_fisher",
        call=lambda key, params, x: W.diagonal_fisher(params, logits_fn, (x[None], None)),
        arrays=DATA,
        rows=("x",),
        result="scalar",
        frozen=("params", "x"),
        tree="params",
        singular=({"params": ZEROS}, {"x": 1e4 * np.sign(normal(8, 3))}),
        bad={
            **wrong_fisher(fisher),
            "where: an unknown word": lambda: fisher(where="biases"),
            "where: another structure": lambda: fisher(where={"other": True}),
        },
    ),
    beginning("ewc_init"),
    Example(
        name="weights.ewc_update",
        call=lambda key, params, x, y: W.ewc_update(
            W.ewc_init(params), params, logits_fn, (x[None], y[None]), fisher="empirical", reduction="sum"
        ),
        arrays={**DATA, "y": ids(8, classes=3)},
        rows=("x", "y"),
        result="scalar",
        frozen=("params", "x"),
        bad={**wrong_fisher(updated), **wrong_state(updated, W.ewc_init)},
    ),
    penalty(
        "ewc",
        lambda params, minimum, fisher, **options: W.ewc(params, W.EWCState(minimum, fisher), **options),
        W.ewc_init,
        arrays={"params": TREE, "minimum": OTHER, "fisher": POSITIVE},
        frozen=("minimum", "fisher"),
        singular=({"minimum": TREE}, {"fisher": ZEROS}),
    ),
    beginning("si_init"),
    Example(
        name="weights.si_step",
        call=lambda key, gradients, updates: after_step(gradients, updates).path,
        arrays={"gradients": TREE, "updates": OTHER},
        result="scalar",
        frozen=("gradients", "updates"),
        tree="gradients",
        memory=lambda: (
            W.si_init(jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), TREE)),
            lambda state, key, gradients, updates: ((), W.si_step(state, gradients, updates)),
        ),
        bad={
            **wrong_state(lambda state: W.si_step(state, P, P), W.si_init),
            "updates: of fewer leaves": lambda: W.si_step(W.si_init(P), P, FEWER),
            "updates: of another shape": lambda: W.si_step(W.si_init(P), P, WIDER),
        },
    ),
    Example(
        name="weights.si_update",
        call=lambda key, params, path: after_task(params, path),
        arrays={"params": TREE, "path": OTHER},
        result="scalar",
        frozen=("params", "path"),
        tree="params",
        singular=({"params": ZEROS},),
        bad={
            **wrong_state(lambda state: W.si_update(state, P), W.si_init),
            **refusals(partial(W.si_update, W.si_init(P), P), "xi", zero=0.0),
            "nonnegative: a number": lambda: after_task(P, P, nonnegative=1),
        },
    ),
    penalty(
        "si",
        lambda params, minimum, importance, **options: W.si(
            params, W.SIState(minimum, importance, minimum, importance), **options
        ),
        W.si_init,
        arrays={"params": TREE, "minimum": OTHER, "importance": POSITIVE},
        frozen=("minimum", "importance"),
        singular=({"minimum": TREE},),
    ),
    Example(
        name="weights.neural_consolidation_init",
        call=lambda key, params: W.neural_consolidation_init(key, params, hidden=(4,)),
        arrays={"params": TREE},
        result="other",
        random=True,
        frozen=("params",),
        tree="params",
        bad={
            **refusals(partial(W.neural_consolidation_init, KEY, P), "precision", negative=-1.0),
            **wrong_where(lambda params=P, **given: W.neural_consolidation_init(KEY, params, **given)),
            "key: a number": lambda: W.neural_consolidation_init(0, P),
            "hidden: a number": lambda: W.neural_consolidation_init(KEY, P, hidden=4),
            "hidden: zero": lambda: W.neural_consolidation_init(KEY, P, hidden=(4, 0)),
        },
    ),
    Example(
        name="weights.neural_consolidation_update",
        call=taught,
        arrays=DATA,
        rows=("x",),
        result="scalar",
        random=True,
        frozen=("params", "x"),
        singular=({"params": ZEROS},),
        bad={
            **refusals(teach, "radius", zero=0.0),
            **refusals(teach, "learning_rate", zero=0.0),
            "where: an unknown word": lambda: teach(where="biases"),
            "key: a number": lambda: teach(key=0),
            "state: none": lambda: teach(state=3),
            "state: of fewer leaves": lambda: teach(state=W.neural_consolidation_init(KEY, FEWER)),
            "objective: none": lambda: teach(objective=3),
            "objective: a vector": lambda: teach(objective=lambda params: params["bias"]),
            "steps: zero": lambda: teach(steps=0),
            "num_points: a fraction": lambda: teach(num_points=1.5),
        },
    ),
    penalty(
        "neural_consolidation",
        learned,
        lambda params: W.neural_consolidation_init(KEY, params, hidden=(2,)),
        arrays={"params": TREE},
        singular=({"params": ZEROS},),
        bad={
            "state: none": lambda: W.neural_consolidation(P, None),
            "state: of fewer leaves": lambda: W.neural_consolidation(P, W.neural_consolidation_init(KEY, FEWER)),
            "where: an unknown word": lambda: W.neural_consolidation(P, W.neural_consolidation_init(KEY, P), where="biases"),
        },
    ),
)
