"""Examples of `regjax.layers`: mixtures of experts and their regularisers."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import regjax as rj
from tests.contracts.example import Example, normal

KEY, X, INTEGERS = jax.random.key(0), jnp.ones((4, 3)), jnp.ones((4, 3), int)
NAN = float("nan")
ROWS = np.arange(8) % 3 > 0
LOCAL = normal(8, 3, seed=5) > 0
GATE = {
    "x": normal(8, 3),
    "gate_kernel": normal(3, 1, seed=1),
    "gate_bias": normal(1, seed=2),
    "ffn_out": normal(8, 2, seed=3),
    "moe_out": normal(8, 2, seed=4),
}
ROUTED = {"router_logits": normal(8, 3), "padding": ~ROWS}
MOE = {"x": normal(8, 4, 3), "router": normal(3, 3, seed=1), "kernel": normal(3, 3, 4, seed=2), "out": normal(3, 4, 3, seed=3)}
LAYER = rj.layers.MoEParams(jnp.ones((3, 2)), jnp.ones((2, 3, 4)), jnp.ones((2, 4)), jnp.ones((2, 4, 3)), jnp.ones((2, 3)))
cmr, apply_cmr = rj.layers.conditional_moe_routing, rj.layers.apply_conditional_moe_routing
moe, apply_moe = rj.layers.mixture_of_experts, rj.layers.apply_mixture_of_experts


def rate_errors(call, name: str = "rate") -> dict:
    """The wrong values of a rate; ``call(rate)`` is given each."""
    return {
        f"{name}: above 1": lambda: call(1.5),
        f"{name}: negative": lambda: call(-0.1),
        f"{name}: NaN": lambda: call(NAN),
        f"{name}: a string": lambda: call("half"),
        f"{name}: a schedule": lambda: call(lambda step: 0.1),
        f"{name}: a vector": lambda: call(jnp.ones(2)),
    }


def several(draw, key):
    """Many draws of one coin: one alone is often the same under another key."""
    return jnp.concatenate([draw(jax.random.fold_in(key, i)) for i in range(6)], axis=-1)


def masking(name: str, argument: str) -> Example:
    """The example of a masking of whole output vectors."""
    fn = getattr(rj.layers, name)
    return Example(
        name=f"layers.{name}",
        call=lambda key, x: fn(key, x, rate=0.5),
        arrays={"x": normal(8, 2, 3)},
        rows=("x",),
        result="other",
        dtype="input",
        wrt=("x",),
        random=True,
        identity=lambda key, x: (
            fn(key, x, rate=jnp.zeros(())),
            fn(None, x, rate=0.3, rescale="train", deterministic=True),
        ),
        singular=({"x": np.zeros((8, 2, 3))}, {"x": 1e4 * np.sign(normal(8, 2, 3))}),
        bad={
            **rate_errors(lambda rate: fn(KEY, X, rate=rate)),
            f"{argument}: integers": lambda: fn(KEY, INTEGERS),
            f"{argument}: a scalar": lambda: fn(KEY, jnp.ones(())),
            "key: a number": lambda: fn(0, X),
            "rescale: misspelt": lambda: fn(KEY, X, rescale="tests"),
            "deterministic: a string": lambda: fn(KEY, X, deterministic="no"),
        },
    )


def gate_errors(call) -> dict:
    """What both forms of conditional routing refuse; ``call(**changes)`` applies changes to good arguments."""
    return {
        **rate_errors(lambda rate: call(gate_rate=rate), "gate_rate"),
        "gate_rescale: a number": lambda: call(gate_rescale=1),
        "x: integers": lambda: call(x=INTEGERS),
        "gate_kernel: shape": lambda: call(gate_kernel=jnp.ones(3)),
        "gate_bias: shape": lambda: call(gate_bias=jnp.ones(())),
        "ffn_out: rows": lambda: call(ffn_out=jnp.ones((5, 2))),
        "moe_out: another shape": lambda: call(moe_out=jnp.ones((4, 3))),
        "padding: floats": lambda: call(padding=jnp.ones(4)),
    }


GOOD_GATE = {
    "x": X,
    "gate_kernel": jnp.ones((3, 1)),
    "gate_bias": jnp.ones(1),
    "ffn_out": jnp.ones((4, 2)),
    "moe_out": jnp.ones((4, 2)),
}


def moe_params(router, kernel, out, shared: bool = True):
    """Parameters made of few arrays."""
    dense = rj.layers.SharedFFN(kernel[0], kernel[1, 0], out[0], out[1, 0], router[:, :1], router[0, :1]) if shared else None
    return rj.layers.MoEParams(router, kernel, kernel[:, 0], out, out[:, 1], dense)


def moe_call(x, router, kernel, out, **options):
    """The layer with a smooth activation and room for all tokens, so that small steps change no choice."""
    return functools.partial(moe, x=x, params=moe_params(router, kernel, out), activation=jnp.tanh, **options)


def moe_errors(call) -> dict:
    """What both forms of the layer refuse; ``call(x, params, **options)`` calls it."""
    wrong = {
        "params: a dictionary": {},
        "params.router: shape": LAYER._replace(router=jnp.ones((2, 3))),
        "params.kernel_in: shape": LAYER._replace(kernel_in=jnp.ones((3, 3, 4))),
        "params.bias_in: shape": LAYER._replace(bias_in=jnp.ones(4)),
        "params.kernel_out: integers": LAYER._replace(kernel_out=jnp.ones((2, 4, 3), int)),
        "params.bias_out: shape": LAYER._replace(bias_out=jnp.ones((2, 4))),
        "params.shared: a number": LAYER._replace(shared=1),
    }
    rates = {}
    for name in ("eom_rate", "fom_rate", "gate_rate"):
        rates.update(rate_errors(lambda rate, name=name: call(X, LAYER, **{name: rate}), name))
    return {
        **{what: (lambda params=params: call(X, params)) for what, params in wrong.items()},
        **rates,
        "x: integers": lambda: call(INTEGERS, LAYER),
        "x: rank": lambda: call(jnp.ones(3), LAYER),
        "capacity_factor: zero": lambda: call(X, LAYER, capacity_factor=0.0),
        "capacity_factor: an array": lambda: call(X, LAYER, capacity_factor=jnp.ones(())),
        "rescale: misspelt": lambda: call(X, LAYER, rescale="training"),
        "gate_rescale: a number": lambda: call(X, LAYER, gate_rescale=1),
        "gating_mode: misspelt": lambda: call(X, LAYER, gating_mode="gates"),
        "padding: floats": lambda: call(X, LAYER, padding=jnp.ones(4)),
        "activation: a string": lambda: call(X, LAYER, activation="relu"),
    }


def module(**options):
    return rj.layers.MixtureOfExperts(3, 4, 3, **{"rngs": nnx.Rngs(0), **options})


EXAMPLES = (
    masking("expert_output_masking", "expert_outputs"),
    masking("final_output_masking", "y"),
    Example(
        name="layers.apply_output_masking",
        call=lambda key, x, keep, rate: rj.layers.apply_output_masking(x, keep, rate=rate, rescale="train"),
        arrays={"x": normal(8, 3), "keep": ROWS, "rate": np.array(0.3)},
        rows=("x", "keep"),
        result="rows",
        dtype="input",
        wrt=("x", "rate"),
        identity=lambda key, x, keep, rate: (rj.layers.apply_output_masking(x, jnp.ones(8, bool), rate=0 * rate), x),
        singular=({"x": np.zeros((8, 3))}, {"rate": np.array(1.0)}, {"keep": np.zeros(8, bool)}),
        bad={
            **rate_errors(lambda rate: rj.layers.apply_output_masking(X, ROWS[:4], rate=rate)),
            "x: integers": lambda: rj.layers.apply_output_masking(INTEGERS, ROWS[:4], rate=0.3),
            "keep: the shape of x": lambda: rj.layers.apply_output_masking(X, X > 0, rate=0.3),
            "keep: None": lambda: rj.layers.apply_output_masking(X, None, rate=0.3),
            "rescale: misspelt": lambda: rj.layers.apply_output_masking(X, ROWS[:4], rate=0.3, rescale="none"),
        },
    ),
    Example(
        name="layers.conditional_moe_routing",
        call=lambda key, **arrays: cmr(key, gate_rate=0.5, **arrays),
        arrays={**GATE, "padding": ~ROWS},
        rows=("x", "ffn_out", "moe_out", "padding"),
        result="other",
        dtype=None,
        wrt=tuple(GATE),
        random=True,
        identity=lambda key, **arrays: (
            cmr(key, gate_rate=jnp.zeros(()), gate_rescale=True, **arrays),
            cmr(None, gate_rate=0.3, deterministic=True, **arrays),
        ),
        singular=({"x": np.zeros((8, 3))}, {"x": 1e4 * np.sign(normal(8, 3))}, {"padding": np.ones(8, bool)}),
        bad={
            **gate_errors(lambda **changes: cmr(KEY, **{**GOOD_GATE, **changes})),
            "key: a number": lambda: cmr(0, **GOOD_GATE),
            "deterministic: a string": lambda: cmr(KEY, **GOOD_GATE, deterministic="no"),
        },
    ),
    Example(
        name="layers.apply_conditional_moe_routing",
        call=lambda key, gate_rate, **arrays: apply_cmr(gate_rate=gate_rate, gate_rescale=True, **arrays),
        arrays={**GATE, "keep": ROWS, "gate_rate": np.array(0.3)},
        rows=("x", "ffn_out", "moe_out", "keep"),
        result="rows",
        dtype=None,
        wrt=(*GATE, "gate_rate"),
        identity=lambda key, keep, gate_rate, **arrays: (
            apply_cmr(keep=keep | True, gate_rate=0 * gate_rate, gate_rescale=True, **arrays),
            apply_cmr(**arrays),
        ),
        singular=({"x": np.zeros((8, 3))}, {"gate_rate": np.array(1.0)}, {"keep": np.zeros(8, bool)}),
        bad={
            **gate_errors(lambda **changes: apply_cmr(**{**GOOD_GATE, **changes})),
            "keep: floats": lambda: apply_cmr(**GOOD_GATE, keep=jnp.ones(4)),
        },
    ),
    Example(
        name="layers.cmr_budget_loss",
        call=lambda key, gates, padding: rj.layers.cmr_budget_loss(gates, padding, budget=0.3),
        arrays={"gates": np.abs(normal(8, 3)), "padding": LOCAL},
        rows=("gates", "padding"),
        result="scalar",
        wrt=("gates",),
        singular=({"gates": np.zeros((8, 3))}, {"padding": np.ones((8, 3), bool)}, {"gates": np.full((8, 3), 0.3)}),
        bad={
            "gates: integers": lambda: rj.layers.cmr_budget_loss(INTEGERS),
            "gates: no layer": lambda: rj.layers.cmr_budget_loss([]),
            "padding: floats": lambda: rj.layers.cmr_budget_loss(X, X),
            "padding: shape": lambda: rj.layers.cmr_budget_loss(X, jnp.ones(4, bool)),
            "budget: above 1": lambda: rj.layers.cmr_budget_loss(X, budget=1.5),
            "budget: NaN": lambda: rj.layers.cmr_budget_loss(X, budget=NAN),
        },
    ),
    Example(
        name="layers.gating_dropout",
        # Finite in place of -inf, so that all laws of finite outputs can be asked for.
        call=lambda key, logits, local: several(
            lambda k: jnp.maximum(rj.layers.gating_dropout(k, logits, local, rate=0.5), -50), key
        ),
        arrays={"logits": normal(8, 3), "local": LOCAL},
        rows=("logits", "local"),
        result="rows",
        dtype="input",
        wrt=("logits",),
        random=True,
        identity=lambda key, logits, local: (
            rj.layers.gating_dropout(key, logits, local, rate=jnp.zeros(())),
            rj.layers.gating_dropout(None, logits, local, deterministic=True),
        ),
        singular=({"logits": np.zeros((8, 3))}, {"local": np.zeros((8, 3), bool)}),
        bad={
            **rate_errors(lambda rate: rj.layers.gating_dropout(KEY, X, X > 0, rate=rate)),
            "router_logits: integers": lambda: rj.layers.gating_dropout(KEY, INTEGERS, X > 0),
            "local_experts: None": lambda: rj.layers.gating_dropout(KEY, X, None),
            "local_experts: shape": lambda: rj.layers.gating_dropout(KEY, X, jnp.ones(3, bool)),
            "mode: misspelt": lambda: rj.layers.gating_dropout(KEY, X, X > 0, mode="experts"),
            "key: a number": lambda: rj.layers.gating_dropout(0, X, X > 0),
            "deterministic: a string": lambda: rj.layers.gating_dropout(KEY, X, X > 0, deterministic="no"),
        },
    ),
    Example(
        name="layers.apply_gating_dropout",
        call=lambda key, logits, local, dropped: jnp.maximum(rj.layers.apply_gating_dropout(logits, local, dropped), -50),
        arrays={"logits": normal(8, 3), "local": LOCAL, "dropped": np.array(True)},
        rows=("logits", "local"),
        result="rows",
        dtype="input",
        wrt=("logits",),
        identity=lambda key, logits, local, dropped: (rj.layers.apply_gating_dropout(logits, local, jnp.array(False)), logits),
        singular=({"logits": np.zeros((8, 3))}, {"local": np.zeros((8, 3), bool)}),
        bad={
            "router_logits: integers": lambda: rj.layers.apply_gating_dropout(INTEGERS, X > 0, True),
            "local_experts: floats": lambda: rj.layers.apply_gating_dropout(X, X, True),
            "dropped: one per token": lambda: rj.layers.apply_gating_dropout(X, X > 0, jnp.ones(4, bool)),
            "dropped: a number": lambda: rj.layers.apply_gating_dropout(X, X > 0, 1.0),
            "mode: misspelt": lambda: rj.layers.apply_gating_dropout(X, X > 0, True, mode="gates"),
        },
    ),
    Example(
        name="layers.load_balancing_loss",
        call=lambda key, router_logits, padding: rj.layers.load_balancing_loss(router_logits, padding=padding),
        arrays=ROUTED,
        rows=("router_logits", "padding"),
        result="scalar",
        wrt=("router_logits",),
        singular=(
            {"router_logits": np.zeros((8, 3))},
            {"router_logits": 1e4 * np.sign(normal(8, 3))},
            {"router_logits": np.full((8, 3), -np.inf)},
            {"padding": np.ones(8, bool)},
        ),
        bad={
            "router_logits: integers": lambda: rj.layers.load_balancing_loss(INTEGERS),
            "padding: shape": lambda: rj.layers.load_balancing_loss(X, padding=jnp.ones(3, bool)),
        },
    ),
    Example(
        name="layers.top2_gating",
        call=lambda key, router_logits, padding: rj.layers.top2_gating(router_logits, capacity=3, padding=padding),
        arrays=ROUTED,
        rows=("router_logits", "padding"),
        result="other",
        wrt=("router_logits",),
        singular=(
            {"router_logits": np.zeros((8, 3))},
            {"router_logits": 1e4 * np.sign(normal(8, 3))},
            {"router_logits": np.full((8, 3), -np.inf)},
            {"padding": np.ones(8, bool)},
        ),
        bad={
            "router_logits: rank": lambda: rj.layers.top2_gating(jnp.ones(3), capacity=1),
            "router_logits: integers": lambda: rj.layers.top2_gating(INTEGERS, capacity=1),
            "capacity: zero": lambda: rj.layers.top2_gating(X, capacity=0),
            "capacity: a float": lambda: rj.layers.top2_gating(X, capacity=2.0),
            "padding: shape": lambda: rj.layers.top2_gating(X, capacity=2, padding=jnp.ones(3, bool)),
        },
    ),
    Example(
        name="layers.mixture_of_experts",
        call=lambda key, **arrays: moe_call(**arrays)(key, eom_rate=0.2, fom_rate=0.2, gate_rate=0.2),
        arrays=MOE,
        rows=("x",),
        result="other",
        dtype=None,
        wrt=tuple(MOE),
        random=True,
        identity=lambda key, **arrays: (
            moe_call(**arrays)(key, eom_rate=jnp.zeros(()), fom_rate=jnp.zeros(()), gate_rate=jnp.zeros(())),
            moe_call(**arrays)(None, deterministic=True),
        ),
        singular=({"x": np.zeros((8, 4, 3))}, {"x": 1e4 * np.sign(normal(8, 4, 3))}),
        bad={
            **moe_errors(functools.partial(moe, KEY)),
            **rate_errors(lambda rate: moe(KEY, X, LAYER, gating_rate=rate, gating_mode="expert"), "gating_rate"),
            "key: a number": lambda: moe(0, X, LAYER),
            "local_experts: missing": lambda: moe(KEY, X, LAYER, gating_rate=0.3),
            "deterministic: a string": lambda: moe(KEY, X, LAYER, deterministic="no"),
        },
    ),
    Example(
        name="layers.apply_mixture_of_experts",
        call=lambda key, x, kept, **arrays: (
            apply_moe(x, moe_params(**arrays), rj.layers.MoEMasks(final=kept, gate=kept), activation=jnp.tanh).y
        ),
        arrays={**MOE, "kept": normal(8, 4) > 0},
        rows=("x", "kept"),
        result="rows",
        dtype="input",
        wrt=tuple(MOE),
        singular=({"x": np.zeros((8, 4, 3))}, {"x": 1e4 * np.sign(normal(8, 4, 3))}, {"kept": np.zeros((8, 4), bool)}),
        identity=lambda key, x, kept, **arrays: (
            apply_moe(x, moe_params(**arrays), rj.layers.MoEMasks(final=kept | True, gate=kept | True)).y,
            apply_moe(x, moe_params(**arrays)).y,
        ),
        bad={
            **moe_errors(apply_moe),
            "masks: a mask": lambda: apply_moe(X, LAYER, X > 0),
            "masks.expert: shape": lambda: apply_moe(X, LAYER, rj.layers.MoEMasks(expert=X > 0)),
            "masks.final: shape": lambda: apply_moe(X, LAYER, rj.layers.MoEMasks(final=X > 0)),
            "masks.dropped: shape": lambda: apply_moe(
                X, LAYER, rj.layers.MoEMasks(dropped=jnp.ones(2, bool)), gating_mode="expert"
            ),
            "local_experts: missing": lambda: apply_moe(X, LAYER, rj.layers.MoEMasks(dropped=jnp.array(True))),
        },
    ),
    Example(
        name="layers.MixtureOfExperts",
        call=lambda key, x: module(eom_rate=0.3, fom_rate=0.3, shared=True, gate_rate=0.3)(x, rngs=key),
        arrays={"x": MOE["x"]},
        rows=("x",),
        result="other",
        dtype=None,
        random=True,
        identity=lambda key, x: (
            module(shared=True, eom_rate=jnp.zeros(()), gate_rate=jnp.zeros(()))(x, rngs=key),
            module(shared=True)(x),
        ),
        singular=({"x": np.zeros((8, 4, 3))},),
        bad={
            **{
                what: thunk
                for name in ("eom_rate", "fom_rate", "gate_rate", "gating_rate")
                for what, thunk in rate_errors(lambda rate, name=name: module(**{name: rate}), name).items()
            },
            "features: zero": lambda: rj.layers.MixtureOfExperts(0, 4, 3, rngs=nnx.Rngs(0)),
            "hidden: a float": lambda: rj.layers.MixtureOfExperts(3, 4.0, 3, rngs=nnx.Rngs(0)),
            "num_experts: zero": lambda: rj.layers.MixtureOfExperts(3, 4, 0, rngs=nnx.Rngs(0)),
            "rngs: a key": lambda: module(rngs=KEY),
            "rngs: none for the parameters": lambda: module(rngs=nnx.Rngs(dropout=0)),
            "rngs: missing at the call": lambda: module(rngs=nnx.Rngs(params=0), fom_rate=0.3)(X),
            "rngs: a number at the call": lambda: module(fom_rate=0.3)(X, rngs=0),
            "rng_collection: a number": lambda: module(rng_collection=0),
            "capacity_factor: zero": lambda: module(capacity_factor=0),
            "shared: a number": lambda: module(shared=1),
            "param_dtype: integers": lambda: module(param_dtype=int),
            "rescale: misspelt": lambda: module(rescale="Test"),
            "gating_mode: misspelt": lambda: module(gating_mode="skip"),
            "activation: a string": lambda: module(activation="relu"),
            "deterministic: a string": lambda: module(deterministic="no"),
            "deterministic: missing": lambda: module(deterministic=None)(X),
            "x: length": lambda: module()(jnp.ones((4, 2))),
            "padding: shape": lambda: module()(X, padding=jnp.ones(3, bool)),
            "local_experts: missing": lambda: module(gating_rate=0.5)(X, rngs=KEY),
        },
    ),
)
