"""Examples of `regjax.weights` that average or anchor models, and of what an average depends on."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, normal
from tests.contracts.running import is_float
from tests.contracts.table.losses import refusals
from tests.contracts.table.objectives import energy

TREE = {"kernel": normal(8, 2), "bias": normal(3, seed=1)}
OTHER = {"kernel": normal(8, 2, seed=2), "bias": normal(3, seed=3)}
FISHERS = {"fisher_start": jax.tree.map(np.square, OTHER), "fisher_end": jax.tree.map(np.square, TREE)}
ZEROS = jax.tree.map(np.zeros_like, TREE)
KEEP = jax.tree.map(lambda x: x > 0, OTHER)
P = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
FEWER = {"kernel": P["kernel"]}
WIDER = P | {"bias": jnp.ones(3)}
KEY = jax.random.key(0)
AVERAGE = jax.tree.map(lambda x: jnp.asarray(x, jnp.float32), TREE)
SWA = rj.weights.swa()


def halved(params):
    return jax.tree.map(lambda x: x / 2 if is_float(x) else x, params)


def averaged(stateful, params):
    """The average after halved parameters and the parameters."""
    _, state = stateful.apply(stateful.init(params), halved(params), step=0)
    return stateful.apply(state, params, step=1)[0]


def greedy(x):
    with jax.ensure_compile_time_eval():  # it runs on the host
        models = [jnp.float32(w) for w in (0.2, 1.5, 0.8, 3.0, 1.3)]
        soup = rj.weights.greedy_soup(models, lambda w: -abs(w - 1))
    return x + soup.soup.astype(x.dtype) + soup.indices[1]


def scaled_energy(params, logit_scale):
    return logit_scale**2 * energy(params)


def learned(params, mixing, scale):
    weights = rj.weights.SoupWeights(mixing, scale)
    return rj.weights.learned_soup([params, halved(params)], scaled_energy).apply(weights)


def statistics(params, x):
    x = params * x.astype(jnp.promote_types(x.dtype, jnp.float32))
    return {"mean": jnp.mean(x, axis=0), "var": jnp.var(x, axis=0)}


def recompute(apply=statistics, batches=None):
    return rj.weights.recompute_batch_stats(apply, 1.0, [np.ones((4, 2))] if batches is None else batches)


def other_trees(call, argument):
    """The trees that everything refuses which is given two of a structure."""
    return {
        f"{argument}: another structure": lambda: call(**{argument: FEWER}),
        f"{argument}: another shape": lambda: call(**{argument: WIDER}),
    }


def interpolated(end=P, **options):
    return rj.weights.interpolate(P, end, **options)


def fisher(end=P, fisher_start=P, fisher_end=P, **options):
    return rj.weights.fisher_interpolate(P, end, fisher_start, fisher_end, **options)


def mixout(key=KEY, params=P, anchor=P, **options):
    return rj.weights.mixout(key, params, anchor, **options)


def masked(keep=None, anchor=P, **options):
    return rj.weights.apply_mixout(P, anchor, jax.tree.map(lambda x: x > 0, P) if keep is None else keep, **options)


def l2_sp(params=P, anchor=P, **options):
    return rj.weights.l2_sp(params, anchor, **options)


def is_bias(path, leaf):
    return leaf.ndim == 1


EXAMPLES = (
    Example(
        name="weights.uniform_soup",
        call=lambda key, params, other: rj.weights.uniform_soup([params, other, params]),
        arrays={"params": TREE, "other": OTHER},
        result="other",
        dtype="input",
        wrt=("params", "other"),
        tree="params",
        singular=({"params": ZEROS},),
        identity=lambda key, params, other: (rj.weights.uniform_soup([params] * 3), params),
        bad={
            "models: none": lambda: rj.weights.uniform_soup([]),
            "models: one tree": lambda: rj.weights.uniform_soup(P),
            "models: an array": lambda: rj.weights.uniform_soup(jnp.ones((2, 3))),
            "models: a number": lambda: rj.weights.uniform_soup(3),
            "models: of another structure": lambda: rj.weights.uniform_soup([P, FEWER]),
            "models: of another shape": lambda: rj.weights.uniform_soup(iter([P, WIDER])),
        },
    ),
    Example(
        name="weights.greedy_soup",
        call=lambda key, x: greedy(x),
        arrays={"x": normal(3)},
        result="other",
        dtype="input",
        bad={
            "models: none": lambda: rj.weights.greedy_soup([], energy),
            "models: one tree": lambda: rj.weights.greedy_soup(P, energy),
            "models: of another shape": lambda: rj.weights.greedy_soup([P, WIDER], energy),
            "score_fn: no function": lambda: rj.weights.greedy_soup([P], 1.0),
            "score_fn: returns no number": lambda: rj.weights.greedy_soup([P], lambda params: "good"),
            "score_fn: returns a vector": lambda: rj.weights.greedy_soup([P], lambda params: jnp.ones(2)),
            "score_fn: traced": lambda: jax.jit(lambda params: rj.weights.greedy_soup([params], energy))(P),
            "strict: a number": lambda: rj.weights.greedy_soup([P], energy, strict=1),
        },
    ),
    Example(
        name="weights.learned_soup",
        call=lambda key, params, mixing, scale: learned(params, mixing, scale),
        arrays={"params": TREE, "mixing": normal(2, seed=5), "scale": np.array(1.5)},
        result="other",
        dtype=None,
        wrt=("mixing", "scale"),
        frozen=("params",),
        tree="params",
        singular=({"params": ZEROS}, {"mixing": np.array([1e4, -1e4])}),
        bad={
            "models: none": lambda: rj.weights.learned_soup([], scaled_energy),
            "models: of another shape": lambda: rj.weights.learned_soup([P, WIDER], scaled_energy),
            "loss_fn: no function": lambda: rj.weights.learned_soup([P], 1.0),
            "loss_fn: takes no scale": lambda: rj.weights.learned_soup([P], energy),
            "loss_fn: returns no scalar": lambda: rj.weights.learned_soup([P], lambda p, logit_scale: p["bias"]).apply(
                rj.weights.SoupWeights(jnp.ones(1), jnp.ones(()))
            ),
            "granularity: misspelt": lambda: rj.weights.learned_soup([P], scaled_energy, granularity="layer"),
            "learn_temperature: a number": lambda: rj.weights.learned_soup([P], scaled_energy, learn_temperature=1),
            "weights: a dictionary": lambda: rj.weights.learned_soup([P], scaled_energy).apply({}),
            "weights: without a scale": lambda: learned(P, jnp.ones(2), None),
            "weights.mixing: of other models": lambda: learned(P, jnp.ones(3), jnp.ones(())),
        },
    ),
    Example(
        name="weights.interpolate",
        call=lambda key, params, end, alpha: rj.weights.interpolate(params, end, alpha=alpha),
        arrays={"params": TREE, "end": OTHER, "alpha": np.array(0.3)},
        result="other",
        dtype="input",
        wrt=("params", "end", "alpha"),
        tree="params",
        singular=({"params": ZEROS, "end": ZEROS}, {"alpha": np.array(0.0)}, {"alpha": np.array(1.0)}),
        identity=lambda key, params, end, alpha: (
            [rj.weights.interpolate(params, end, alpha=a) for a in (0.0 * alpha, 0, 1.0)],
            [params, params, end],
        ),
        bad=refusals(interpolated, "alpha", **{"negative": -0.1, "above 1": 1.1}) | other_trees(interpolated, "end"),
    ),
    Example(
        name="weights.fisher_interpolate",
        call=lambda key, params, end, fisher_start, fisher_end, alpha: rj.weights.fisher_interpolate(
            params, end, fisher_start, fisher_end, alpha=alpha
        ),
        arrays={"params": TREE, "end": OTHER, **FISHERS, "alpha": np.array(0.3)},
        result="other",
        dtype="input",
        wrt=("params", "end", "alpha"),
        tree="params",
        singular=(
            {"fisher_start": ZEROS, "fisher_end": ZEROS},
            {"fisher_start": ZEROS, "alpha": np.array(0.0)},
            {"fisher_end": ZEROS, "alpha": np.array(1.0)},
        ),
        identity=lambda key, params, end, fisher_start, fisher_end, alpha: (
            [rj.weights.fisher_interpolate(params, end, fisher_start, fisher_end, alpha=a) for a in (0.0 * alpha, 0, 1.0)],
            [params, params, end],
        ),
        bad=refusals(fisher, "alpha", **{"negative": -0.1, "above 1": 1.1})
        | other_trees(fisher, "end")
        | other_trees(fisher, "fisher_start")
        | other_trees(fisher, "fisher_end")
        | {
            "fisher_floor: negative": lambda: fisher(fisher_floor=-1e-8),
            "fisher_floor: a text": lambda: fisher(fisher_floor="0"),
        },
    ),
    Example(
        name="weights.swa",
        call=lambda key, params: averaged(SWA, params),
        arrays={"params": TREE},
        tree="params",
        result="other",
        dtype="input",
        frozen=("params",),
        identity=lambda key, params: (averaged(rj.weights.swa(start=2), params), params),
        memory=lambda: (SWA.init(AVERAGE), lambda state, key, params: SWA.apply(state, params, step=3)),
        bad={
            "start: negative": lambda: rj.weights.swa(start=-1),
            "start: a fraction": lambda: rj.weights.swa(start=0.75),
            "period: 0": lambda: rj.weights.swa(period=0),
            "state: other parameters": lambda: SWA.apply(SWA.init(P), WIDER, step=0),
            "state: a dictionary": lambda: SWA.apply({}, P, step=0),
            "step: missing": lambda: SWA.apply(SWA.init(P), P, step=None),
        },
    ),
    Example(
        name="weights.ema",
        call=lambda key, params: averaged(rj.weights.ema(0.9, debias=True, warmup=True), params),
        arrays={"params": TREE},
        tree="params",
        result="other",
        dtype="input",
        frozen=("params",),
        bad={
            "decay: NaN": lambda: rj.weights.ema(float("nan"), warmup=True),
            "debias: a number": lambda: rj.weights.ema(debias=1),
            "warmup: a number of steps": lambda: rj.weights.ema(warmup=10),
        },
    ),
    Example(
        name="weights.recompute_batch_stats",
        call=lambda key, x: recompute(batches=[x, x / 2]),
        arrays={"x": normal(8, 3)},
        rows=("x",),
        result="scalar",
        frozen=("x",),
        singular=({"x": np.zeros((8, 3))},),
        bad={
            "apply: no function": lambda: recompute(apply=1.0),
            "apply: other statistics": lambda: recompute(lambda w, x: jnp.mean(x, 0), batches=[np.ones((2, 3)), np.ones((2, 4))]),
            "batches: none": lambda: recompute(batches=[]),
            "batches: one array": lambda: recompute(batches=np.ones((4, 2))),
            "batches: a dictionary": lambda: recompute(batches={"image": np.ones((4, 2))}),
            "batches: without examples": lambda: recompute(batches=[np.ones((0, 2))]),
            "batches: numbers": lambda: recompute(batches=[1.0, 2.0]),
        },
    ),
    Example(
        name="weights.mixout",
        call=lambda key, params, anchor: rj.weights.mixout(key, params, anchor, rate=0.4, mask="all"),
        arrays={"params": TREE, "anchor": OTHER},
        result="other",
        dtype="input",
        wrt=("params",),
        frozen=("anchor",),
        random=True,
        tree="params",
        singular=({"params": ZEROS, "anchor": ZEROS},),
        identity=lambda key, params, anchor: (
            [rj.weights.mixout(key, params, anchor, rate=rate, mask="all") for rate in (0.0, jnp.zeros(()), 1.0)],
            [params, params, anchor],
        ),
        bad=refusals(mixout, "rate", **{"negative": -0.1, "above 1": 1.1})
        | other_trees(mixout, "anchor")
        | {
            "key: a seed": lambda: mixout(key=0),
            "mask: an unknown word": lambda: mixout(mask="biases"),
            "mask: another structure": lambda: mixout(mask={"other": True}),
            "mask: an integer leaf": lambda: mixout(params={"w": jnp.ones(2, int)}, anchor={"w": jnp.ones(2, int)}, mask=True),
            "shared_axis: no axis": lambda: mixout(shared_axis=2),
            "shared_axis: a word": lambda: mixout(shared_axis="out"),
            "reference_gradient: a number": lambda: mixout(reference_gradient=1),
        },
    ),
    Example(
        name="weights.apply_mixout",
        call=lambda key, params, anchor, keep: rj.weights.apply_mixout(params, anchor, keep, rate=0.4),
        arrays={"params": TREE, "anchor": OTHER, "keep": KEEP},
        result="other",
        dtype="input",
        wrt=("params",),
        frozen=("anchor",),
        tree="params",
        singular=({"params": ZEROS, "anchor": ZEROS},),
        bad=refusals(masked, "rate", **{"negative": -0.1, "above 1": 1.1})
        | other_trees(masked, "anchor")
        | {
            "keep: another structure": lambda: masked(keep={"kernel": jnp.ones((2, 2), bool)}),
            "keep: weights": lambda: masked(keep=P),
            "keep: another shape": lambda: masked(keep={"kernel": jnp.ones((2, 3), bool), "bias": None}),
            "reference_gradient: a number": lambda: masked(reference_gradient=1),
        },
    ),
    Example(
        name="weights.l2_sp",
        call=lambda key, params, anchor: rj.weights.l2_sp(params, anchor, new_mask=is_bias),
        arrays={"params": TREE, "anchor": OTHER},
        result="scalar",
        wrt=("params",),
        frozen=("anchor",),
        tree="params",
        singular=({"params": ZEROS, "anchor": ZEROS},),
        identity=lambda key, params, anchor: (rj.weights.l2_sp(params, anchor, alpha=0.0, beta=0.0), jnp.zeros(())),
        bad=refusals(l2_sp, "alpha", negative=-0.1)
        | refusals(l2_sp, "beta", negative=-0.1)
        | other_trees(l2_sp, "anchor")
        | {
            "anchor: none for a shared leaf": lambda: l2_sp(anchor=P | {"bias": None}),
            "new_mask: an unknown word": lambda: l2_sp(new_mask="head"),
            "where: an unknown word": lambda: l2_sp(where="biases"),
            "where: an integer leaf": lambda: l2_sp({"w": jnp.ones(2, int)}, {"w": jnp.ones(2)}, where=True),
        },
    ),
    Example(
        name="diagnostics.confidence_balance",
        call=lambda key, logits_a, logits_b: rj.diagnostics.confidence_balance(logits_a, logits_b),
        arrays={"logits_a": normal(8, 5), "logits_b": 3 * normal(8, 5, seed=1)},
        rows=("logits_a", "logits_b"),
        result="scalar",
        singular=({"logits_a": np.zeros((8, 5))}, {"logits_b": 1e4 * normal(8, 5)}),
        bad={
            "logits_a: integers": lambda: rj.diagnostics.confidence_balance(jnp.ones((2, 3), int), jnp.ones((2, 3))),
            "logits_b: another shape": lambda: rj.diagnostics.confidence_balance(jnp.ones((2, 3)), jnp.ones((2, 4))),
            "axis: out of range": partial(rj.diagnostics.confidence_balance, jnp.ones((2, 3)), jnp.ones((2, 3)), axis=2),
            "where: weights": partial(rj.diagnostics.confidence_balance, jnp.ones((2, 3)), jnp.ones((2, 3)), where=jnp.ones(3)),
        },
    ),
)
