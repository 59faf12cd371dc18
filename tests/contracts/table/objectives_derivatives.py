"""Examples of `regjax.objectives` that are no transforms: alignment of domains, penalties on derivatives, symmetries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal
from tests.contracts.table.losses import refusals
from tests.contracts.table.objectives import PARAMS, energy

HEAD = {"head": PARAMS, "x": 0.5 * normal(8, 2, 3, seed=5), "labels": ids(8, 2, classes=2)}
ZERO = jax.tree.map(np.zeros_like, PARAMS)
WHERE = np.array([True, True, True, False, True, True, True, True])
DOMAINS = np.array([0, 1, 0, 1, 1, 0, 0, 1], np.int32)
X, Y, D = jnp.ones((4, 3)), jnp.zeros(4, int), jnp.array([0, 1, 0, 1])


def head_loss(params, x, labels):
    """A smooth loss of any tree and the examples of a domain."""
    return jnp.mean(jnp.tanh(0.3 * energy(params) + jnp.sum(x, -1) + labels) ** 2 + jnp.mean(x, -1) * energy(params))


def aligned(head, x, labels, key=None, loss=head_loss, step=None, probes=None, **options):
    """The objective for a batch with the domains on axis 1, so that the batch is on axis 0."""
    swap = lambda t: jnp.swapaxes(jnp.asarray(t), 0, 1)
    options = {"alpha": 0.3, "beta": 0.5, **options}
    return rj.objectives.hessian_alignment(loss, **options)(head, swap(x), swap(labels), key, probes, step=step)


def alignment(fields=None, **options) -> Example:
    return Example(
        **{
            "name": "objectives.hessian_alignment",
            "call": lambda key, head, x, labels: aligned(head, x, labels, **options),
            "arrays": HEAD,
            "rows": ("x", "labels"),
            "result": "scalar",
            "wrt": ("head", "x"),
            "tree": "head",
            "singular": ({"head": ZERO}, {"x": np.zeros((8, 2, 3))}, {"x": 1e4 * np.sign(HEAD["x"])}),
        }
        | (fields or {})
    )


def two_inputs(params, a, b):
    return jnp.tanh(a @ params["a"] + b @ params["b"] + params["c"])


ENTROPY = {"params": {"a": normal(3, 2), "b": normal(2, 2, seed=1), "c": normal(2, seed=2)}, "a": normal(8, 3), "b": normal(8, 2)}


def entropy(params=None, key=None, modalities=None, noise=None, fn=two_inputs, **options):
    params = jax.tree.map(jnp.asarray, ENTROPY["params"]) if params is None else params
    key = jax.random.key(0) if key is None else key
    modalities = (X, X[:, :2]) if modalities is None else modalities
    return rj.objectives.functional_entropy(fn, **options)(params, key, modalities, noise=noise)


def pair_noise(e, f):
    return {"num_samples": 1, "noise": (e, f)}


def network(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


NETWORK = {"params": {"w": normal(3, 4), "v": normal(4, 2, seed=1)}, "x": normal(8, 3, seed=2)}


def jacobian(fn=network, x=X, key=None, params=None, projections=None, **options):
    params = jax.tree.map(jnp.asarray, NETWORK["params"]) if params is None else params
    return rj.objectives.jacobian_penalty(fn, **options)(params, key, x, projections=projections)


FISHR = rj.objectives.fishr(2, ema=0.5)
FISHR_STATE = FISHR.init(jnp.zeros((3, 5)))._replace(weight=jnp.asarray(0.1 * np.abs(normal(2, 3, 5)), jnp.float32))
FISHR_ARRAYS = {
    "features": normal(8, 5),
    "weight": normal(3, 5, seed=1),
    "bias": normal(3, seed=2),
    "labels": ids(8, classes=3),
    "domains": DOMAINS,
    "where": WHERE,
}


def fishr(
    features=X, weight=None, bias=None, labels=Y, domains=D, where=None, state=None, memory=FISHR, step=None, axis_name=None
):
    weight = jnp.ones((2, 3)) if weight is None else weight
    bias = jnp.ones(2) if bias is None else bias
    state = rj.objectives.fishr(2).init(jnp.zeros((2, 3))) if state is None else state
    return memory.apply(state, features, weight, bias, labels, domains, where=where, step=step, axis_name=axis_name)


def remembered(features, weight, bias, labels, domains, where, axis_name=None):
    return fishr(features, weight, bias, labels, domains, where, state=FISHR_STATE, axis_name=axis_name)[0]


SWAP = np.array([[[0.0, 1.0], [1.0, 0.0]]])
BASIS = np.asarray(rj.weights.group_projector(SWAP, SWAP), np.float64)
BIAS = np.asarray(rj.weights.group_projector(np.ones((1, 1, 1)), SWAP), np.float64)
LAYER = {"params": {"layer": {"kernel": normal(2, 2), "bias": normal(2, seed=1)}}}
PROJECTORS = {"swap": {"layer/kernel": BASIS, "layer/bias": BIAS}, "none": {"layer/kernel": BASIS[:, :0]}}
penalty, penalties, soft = (
    rj.objectives.equivariance_penalty,
    rj.objectives.equivariance_penalties,
    rj.objectives.soft_equivariance,
)
K = jnp.ones((2, 2))


def mapping_errors(fn) -> dict:
    return {
        "projectors: a list": lambda: fn({"w": K}, [BASIS]),
        "projectors: no paths": lambda: fn({"w": K}, {"swap": BASIS}),
        "projectors: no such leaf": lambda: fn({"w": K}, {"swap": {"kernel": BASIS}}),
        "projectors: of another size": lambda: fn({"w": jnp.ones(3)}, {"swap": {"w": BASIS}}),
        "projectors: integers": lambda: fn({"w": K}, {"swap": {"w": BASIS.astype(int)}}),
    }


hgp = functools.partial(rj.objectives.hessian_alignment, head_loss)
irm, vrex = rj.objectives.irm_penalty, rj.objectives.vrex_penalty

EXAMPLES = (
    alignment(
        {
            "surrogate": True,
            "mapped": lambda axis, key, head, x, labels: jax.lax.pmean(aligned(head, x, labels, axis_name=axis), axis)[0],
            "call": lambda key, head, x, labels: aligned(head, x, labels)[0],
            "identity": lambda key, head, x, labels: (
                aligned(head, x, labels, alpha=jnp.zeros(()), beta=jnp.zeros(()))[0],
                jnp.mean(jnp.stack([head_loss(head, x[:, e], labels[:, e]) for e in range(2)])),
            ),
            "bad": {
                "head_loss_fn: no function": lambda: rj.objectives.hessian_alignment(3.0),
                "head_loss_fn: returns no scalar": lambda: aligned(**HEAD, loss=lambda p, x, y: x),
                "method: misspelt": lambda: hgp(method="hgpp"),
                **refusals(hgp, "alpha", negative=-1.0),
                **refusals(hgp, "beta", negative=-1.0),
                "alpha: a schedule without a step": lambda: aligned(**HEAD, alpha=lambda step: 0.1),
                "beta: a schedule below 0": lambda: aligned(**HEAD, beta=lambda step: -0.1, step=0),
                "num_probes: none": lambda: hgp(num_probes=0),
                "stop_mean: a number": lambda: hgp(stop_mean=1),
                "reduce: misspelt": lambda: hgp(reduce="total"),
                "axis_name: a number": lambda: hgp(axis_name=0),
                "features: integers": lambda: hgp()(PARAMS, jnp.ones((2, 4, 3), int), jnp.ones((2, 4))),
                "features: no domain": lambda: hgp()(PARAMS, jnp.ones((0, 4, 3)), jnp.ones((0, 4))),
                "labels: of other domains": lambda: hgp()(PARAMS, jnp.ones((2, 4, 3)), jnp.ones((3, 4))),
                "key: none for hutchinson": lambda: aligned(**HEAD, method="hutchinson"),
                "key: a seed": lambda: aligned(**HEAD, method="hutchinson", key=0),
                "probes: without the mean's": lambda: aligned(
                    **HEAD, method="hutchinson", probes=jax.tree.map(lambda x: jnp.ones((2, 1, *x.shape)), PARAMS)
                ),
            },
        },
    ),
    alignment(
        {
            "call": lambda key, head, x, labels: aligned(
                head, x, labels, key, method="hutchinson", num_probes=2, stop_mean=False, reduce="sum"
            ),
            "random": True,
            "tree": None,
        }
    ),
    Example(
        name="objectives.irm_penalty",
        call=lambda key, logits, labels, domains, where: irm(
            logits, labels, split=False, domains=domains, num_domains=3, where=where
        ),
        mapped=lambda axis, key, logits, labels, domains, where: irm(
            logits, labels, split=False, domains=domains, num_domains=3, where=where, axis_name=axis
        ),
        arrays={"logits": normal(8, 3), "labels": ids(8, classes=3), "domains": DOMAINS, "where": WHERE},
        rows=("logits", "labels", "domains", "where"),
        result="scalar",
        wrt=("logits",),
        singular=(
            {"logits": np.zeros((8, 3))},
            {"logits": 1e4 * np.sign(normal(8, 3))},
            {"where": np.zeros(8, bool)},
            {"domains": np.zeros(8, np.int32)},
        ),
        bad={
            "logits: integers": lambda: irm(jnp.ones((4, 3), int), Y),
            "logits: one example": lambda: irm(jnp.ones(3), jnp.array(0)),
            "logits: domains twice": lambda: irm(X[None], Y[None], domains=D, num_domains=2),
            "labels: another number": lambda: irm(X, jnp.zeros(3, int)),
            "split: a number": lambda: irm(X, Y, split=1),
            "domains: floats": lambda: irm(X, Y, domains=jnp.ones(4), num_domains=2),
            "num_domains: missing": lambda: irm(X, Y, domains=D),
            "num_domains: without domains": lambda: irm(X, Y, num_domains=2),
            "where: weights": lambda: irm(X, Y, where=jnp.ones(4)),
            "axis_name: a number": lambda: irm(X, Y, axis_name=0),
        },
    ),
    Example(
        name="objectives.irm_penalty",
        call=lambda key, logits, labels, domains, where: irm(logits, labels, domains=domains, num_domains=2, where=where),
        mapped=lambda axis, key, logits, labels, domains, where: irm(
            logits, labels, domains=domains, num_domains=2, where=where, axis_name=axis
        ),
        arrays={"logits": normal(8, 3), "labels": ids(8, classes=3), "domains": DOMAINS, "where": WHERE},
        rows=("logits", "labels", "domains", "where"),
        result="other",
        wrt=("logits",),
    ),
    Example(
        name="objectives.vrex_penalty",
        call=lambda key, losses, domains, where: vrex(losses, domains=domains, num_domains=3, where=where),
        mapped=lambda axis, key, losses, domains, where: vrex(
            losses, domains=domains, num_domains=3, where=where, axis_name=axis
        ),
        arrays={"losses": np.abs(normal(8)), "domains": DOMAINS, "where": WHERE},
        rows=("losses", "domains", "where"),
        result="scalar",
        wrt=("losses",),
        singular=({"losses": np.zeros(8)}, {"where": np.zeros(8, bool)}, {"domains": np.zeros(8, np.int32)}),
        bad={
            "domain_losses: integers": lambda: vrex(jnp.ones(3, int)),
            "domain_losses: a scalar": lambda: vrex(jnp.float32(1.0)),
            "domain_losses: domains twice": lambda: vrex(X, domains=D, num_domains=2),
            "domains: another number": lambda: vrex(X[:, 0], domains=D[:3], num_domains=2),
            "num_domains: missing": lambda: vrex(X[:, 0], domains=D),
            "num_domains: without domains": lambda: vrex(X[:, 0], num_domains=2),
            "where: weights": lambda: vrex(jnp.ones(3), where=jnp.ones(3)),
            "axis_name: a number": lambda: vrex(jnp.ones(3), axis_name=0),
        },
    ),
    Example(
        name="objectives.fishr",
        call=lambda key, **arrays: remembered(**arrays),
        mapped=lambda axis, key, **arrays: remembered(**arrays, axis_name=axis),
        arrays=FISHR_ARRAYS,
        rows=("features", "labels", "domains", "where"),
        result="scalar",
        wrt=("features", "weight", "bias"),
        identity=lambda key, **arrays: (
            fishr(**arrays, state=FISHR_STATE, memory=rj.objectives.fishr(2, ema=0.0)),
            fishr(**arrays, state=FISHR.init(jnp.zeros((3, 5)))),
        ),
        singular=(
            {"features": np.zeros((8, 5))},
            {"features": 1e4 * np.sign(normal(8, 5))},
            {"where": np.zeros(8, bool)},
            {"domains": np.ones(8, np.int32)},
        ),
        memory=lambda: (FISHR_STATE, lambda state, key, **arrays: fishr(**arrays, state=state)),
        bad={
            "num_domains: none": lambda: rj.objectives.fishr(0),
            **refusals(functools.partial(rj.objectives.fishr, 2), "ema", **{"above 1": 1.5, "negative": -0.1}),
            "ema: a schedule without a step": lambda: fishr(memory=rj.objectives.fishr(2, ema=lambda step: 0.5)),
            "weight: a vector": lambda: FISHR.init(jnp.ones(3)),
            "weight: integers": lambda: fishr(weight=jnp.ones((2, 3), int)),
            "bias: of other classes": lambda: fishr(bias=jnp.ones(3)),
            "features: another width": lambda: fishr(features=jnp.ones((4, 2))),
            "state: a dictionary": lambda: fishr(state={"weight": 0}),
            "state: of another head": lambda: fishr(state=FISHR_STATE),
            "labels: another number": lambda: fishr(labels=jnp.zeros(3, int)),
            "domains: floats": lambda: fishr(domains=jnp.ones(4)),
            "where: weights": lambda: fishr(where=jnp.ones(4)),
            "axis_name: a number": lambda: fishr(axis_name=0),
        },
    ),
    Example(
        name="objectives.functional_entropy",
        call=lambda key, params, a, b: entropy(params, key, (a, b), num_samples=2, method="min_ent"),
        arrays=ENTROPY,
        rows=("a", "b"),
        result="other",
        wrt=("params", "a", "b"),
        dtype=None,
        random=True,
        singular=(
            {"params": jax.tree.map(np.zeros_like, ENTROPY["params"])},
            {"a": np.zeros((8, 3))},
            {"a": 1e4 * np.sign(normal(8, 3))},
        ),
        bad={
            "apply_fn: no function": lambda: rj.objectives.functional_entropy(3.0),
            "apply_fn: returns no logits": lambda: entropy(fn=lambda params, a, b: a[:, 0]),
            "num_samples: none": lambda: entropy(num_samples=0),
            "norm: below 1": lambda: entropy(norm=0.5),
            "norm: NaN": lambda: entropy(norm=float("nan")),
            "estimation: misspelt": lambda: entropy(estimation="entropy"),
            "method: misspelt": lambda: entropy(method="maxent"),
            "scaling: misspelt": lambda: entropy(scaling="per-example"),
            "detach_target: a number": lambda: entropy(detach_target=1),
            "axis_name: a number": lambda: entropy(axis_name=0),
            "key: a seed": lambda: entropy(key=0),
            "modalities: one array": lambda: entropy(modalities=X),
            "modalities: integers": lambda: entropy(modalities=(X, jnp.ones((4, 2), int))),
            "modalities: another number of examples": lambda: entropy(modalities=(X, jnp.ones((3, 2)))),
            "noise: of other rows": lambda: entropy(noise=(X, X[:, :2])),
        },
    ),
    Example(
        name="objectives.functional_entropy",
        call=lambda key, params, a, b, e, f: entropy(params, None, (a, b), **pair_noise(e, f)),
        mapped=lambda axis, key, params, a, b, e, f: entropy(params, None, (a, b), axis_name=axis, **pair_noise(e, f)),
        arrays={**ENTROPY, "e": normal(8, 3, seed=6), "f": normal(8, 2, seed=7)},
        rows=("a", "b", "e", "f"),
        result="scalar",
        wrt=("params", "a", "b"),
        dtype=None,
        singular=({"params": jax.tree.map(np.zeros_like, ENTROPY["params"])}, {"a": np.zeros((8, 3))}),
    ),
    Example(
        name="objectives.repeat_with_noise",
        call=lambda key, x: rj.objectives.repeat_with_noise(key, x, 2),
        arrays={"x": normal(8, 3)},
        rows=("x",),
        result="other",
        dtype="input",
        wrt=("x",),
        random=True,
        singular=({"x": np.zeros((8, 3))},),
        bad={
            "key: a seed": lambda: rj.objectives.repeat_with_noise(0, X, 2),
            "x: integers": lambda: rj.objectives.repeat_with_noise(jax.random.key(0), X.astype(int), 2),
            "x: no batch": lambda: rj.objectives.repeat_with_noise(jax.random.key(0), jnp.float32(1.0), 2),
            "num_samples: none": lambda: rj.objectives.repeat_with_noise(jax.random.key(0), X, 0),
        },
    ),
    Example(
        name="objectives.jacobian_penalty",
        call=lambda key, params, x: jacobian(x=x, key=key, params=params),
        arrays=NETWORK,
        rows=("x",),
        result="other",
        wrt=("params", "x"),
        dtype=None,
        random=True,
        singular=({"x": np.zeros((8, 3))}, {"params": jax.tree.map(np.zeros_like, NETWORK["params"])}),
        bad={
            "logits_fn: no function": lambda: jacobian(3.0),
            "logits_fn: returns no logits": lambda: jacobian(lambda params, x: x[:, 0], num_projections=-1),
            "num_projections: none": lambda: jacobian(num_projections=0),
            "num_projections: below -1": lambda: jacobian(num_projections=-2),
            "num_projections: a float": lambda: jacobian(num_projections=1.0),
            "key: missing": lambda: jacobian(),
            "x: integers": lambda: jacobian(x=X.astype(int)),
            "projections: another shape": lambda: jacobian(projections=jnp.ones((1, 4, 3))),
            "projections: none": lambda: jacobian(projections=jnp.ones((0, 4, 2))),
        },
    ),
    Example(
        name="objectives.jacobian_penalty",
        call=lambda key, params, x: jacobian(x=x, params=params, num_projections=-1),
        arrays=NETWORK,
        rows=("x",),
        result="scalar",
        wrt=("params", "x"),
        dtype=None,
    ),
    Example(
        name="objectives.equivariance_penalty",
        call=lambda key, weight, projector: penalty(weight, projector),
        # The weight is sharded by its first axis.
        arrays={"weight": normal(8, 2), "projector": np.linalg.qr(normal(16, 3, seed=1))[0]},
        rows=("weight",),
        result="other",
        wrt=("weight",),
        frozen=("projector",),
        singular=({"weight": np.zeros((8, 2))}, {"projector": np.zeros((16, 3))}),
        bad={
            "weight: integers": lambda: penalty(K.astype(int), BASIS),
            "projector: of another size": lambda: penalty(jnp.ones(3), BASIS),
            "projector: a vector": lambda: penalty(K, BASIS[:, 0]),
        },
    ),
    Example(
        name="objectives.equivariance_penalties",
        call=lambda key, params: penalties(params, PROJECTORS),
        arrays=LAYER,
        result="other",
        wrt=("params",),
        singular=({"params": jax.tree.map(np.zeros_like, LAYER["params"])},),
        bad=mapping_errors(penalties),
    ),
    Example(
        name="objectives.soft_equivariance",
        call=lambda key, params, strengths: soft(params, PROJECTORS, strengths),
        arrays={**LAYER, "strengths": np.array([0.3, 0.7])},
        result="other",
        wrt=("params", "strengths"),
        identity=lambda key, params, strengths: (soft(params, PROJECTORS, jnp.zeros(2)), jnp.zeros(())),
        singular=({"params": jax.tree.map(np.zeros_like, LAYER["params"])}, {"strengths": np.zeros(2)}),
        bad=mapping_errors(lambda params, projectors: soft(params, projectors, [1.0]))
        | {
            "strengths: one number": lambda: soft({"w": K}, {"swap": {"w": BASIS}}, 1.0),
            "strengths: of other groups": lambda: soft({"w": K}, {"swap": {"w": BASIS}}, jnp.ones(2)),
            "strengths: negative": lambda: soft({"w": K}, {"swap": {"w": BASIS}}, [-1.0]),
            "strengths: NaN": lambda: soft({"w": K}, {"swap": {"w": BASIS}}, np.array([np.nan])),
        },
    ),
    Example(
        name="objectives.adjust_strengths",
        call=lambda key, strengths, penalties: rj.objectives.adjust_strengths(strengths, penalties),
        arrays={"strengths": np.array([1.0, 2.0, 0.0]), "penalties": np.array([0.5, 0.1, 0.01])},
        result="other",
        frozen=("strengths", "penalties"),
        singular=({"strengths": np.zeros(3)}, {"penalties": np.zeros(3)}, {"penalties": np.array([0.0, 1e4, 1.0])}),
        bad={
            "strengths: negative": lambda: rj.objectives.adjust_strengths([-1.0], [1.0]),
            "strengths: a matrix": lambda: rj.objectives.adjust_strengths(K, K),
            "penalties: of other groups": lambda: rj.objectives.adjust_strengths([1.0], [1.0, 1.0]),
            "penalties: integers": lambda: rj.objectives.adjust_strengths([1.0], jnp.ones(1, int)),
            "power: negative": lambda: rj.objectives.adjust_strengths([1.0], [1.0], power=-1.0),
            "power: NaN": lambda: rj.objectives.adjust_strengths([1.0], [1.0], power=float("nan")),
        },
    ),
)
