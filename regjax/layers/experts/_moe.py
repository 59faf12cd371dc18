"""What the forms of the mixture of experts share: its parameters, masks and options, and the computation."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Key
from regjax.layers._noise import check_mask, is_zero, keep_mask
from regjax.layers.experts import conditional_moe, moe_dropout
from regjax.layers.experts.moe_gating import top2_gating


class SharedFFN(NamedTuple):
    """The dense layer beside the experts and its gate: ``[D, H]``, ``[H]``, ``[H, D]``, ``[D]``, ``[D, 1]``, ``[1]``."""

    kernel_in: Any
    bias_in: Any
    kernel_out: Any
    bias_out: Any
    gate_kernel: Any
    gate_bias: Any


class MoEParams(NamedTuple):
    """Router ``[D, E]`` and experts ``[E, D, H]``, ``[E, H]``, ``[E, H, D]``, ``[E, D]``; ``shared`` turns CMR on."""

    router: Any
    kernel_in: Any
    bias_in: Any
    kernel_out: Any
    bias_out: Any
    shared: Any = None


class MoEMasks(NamedTuple):
    """The randomness of a call: kept expert outputs ``[E, G, C]``, tokens, gates, and the coin; None does not act."""

    expert: Any = None
    final: Any = None
    gate: Any = None
    dropped: Any = None


class MoEOutput(NamedTuple):
    """The output, the load-balancing loss, and the gates of conditional routing (None without it)."""

    y: Array
    load_balancing: Array
    gates: Array | None


class Settings(NamedTuple):
    """The options that the forms of the layer share."""

    capacity_factor: Any
    eom_rate: Any
    fom_rate: Any
    gate_rate: Any
    gating_rate: Any
    rescale: Any
    gate_rescale: Any
    gating_mode: Any
    activation: Any


RATES = ("eom_rate", "fom_rate", "gate_rate", "gating_rate")


def sample(key: Key, x: Array, params: MoEParams, settings: Settings) -> MoEMasks:
    """Masks at the given rates, None where nothing is to be masked."""
    slots = params.router.shape[1], x.shape[0] if x.ndim == 3 else 1, _capacity(x, params, settings)
    shapes = {"eom_rate": slots, "fom_rate": x.shape[:-1], "gate_rate": x.shape[:-1], "gating_rate": ()}
    keep = [
        None if is_zero(getattr(settings, rate)) else keep_mask(k, getattr(settings, rate), shapes[rate])
        for rate, k in zip(RATES, jax.random.split(key, 4), strict=True)
    ]
    gate = None if params.shared is None else keep[2]
    return MoEMasks(keep[0], keep[1], gate, None if keep[3] is None else ~keep[3])


def run(
    name: str, x: Array, params: MoEParams, masks: MoEMasks | None, s: Settings, local_experts: Any, padding: Any
) -> MoEOutput:
    single = x.ndim == 2
    capacity = _capacity(x, params, s)
    given = MoEMasks() if masks is None else masks
    groups = x[None] if single else x
    wide = trees.accumulator(x)
    # The routing decides what is computed at all: in full precision, as the router is small.
    router = jnp.asarray(params.router).astype(wide)
    logits = jnp.einsum("gsd,de->gse", groups.astype(wide), router, precision=jax.lax.Precision.HIGHEST)
    if given.dropped is not None:
        local = local_experts
        if s.gating_mode == "gate":
            local = check_mask(name, "local_experts", local, logits.shape[1:] if single else logits.shape)
            local = local[None] if single else local
        elif local is not None:
            checks.example_mask(name, "local_experts", local, logits.shape[1:] if single else logits.shape)
        dropped = check_mask(name, "masks.dropped", given.dropped, ())
        logits = moe_dropout.apply_gating_dropout(logits, local, dropped, mode=s.gating_mode)
    blank = None if padding is None else padding[None] if single else padding
    combine, dispatch, balance = top2_gating(logits, capacity=capacity, padding=blank)
    outputs = _experts(_send(dispatch.astype(x.dtype), groups), params, s.activation)
    scaled = {"rescale": s.rescale}
    if given.expert is not None:
        keep = check_mask(name, "masks.expert", given.expert, outputs.shape[:-1])
        outputs = moe_dropout.apply_output_masking(outputs, keep, rate=s.eom_rate, **scaled)
    elif masks is None:
        outputs = moe_dropout.scale_for_test(outputs, s.eom_rate, s.rescale)
    y = _receive(combine, outputs, groups)
    y = y[0] if single else y
    gates = None
    if params.shared is not None:
        gate_mask = None if given.gate is None else check_mask(name, "masks.gate", given.gate, x.shape[:-1])
        y, gates = conditional_moe.apply_conditional_moe_routing(
            x,
            jnp.asarray(params.shared.gate_kernel),
            jnp.asarray(params.shared.gate_bias),
            _dense(x, params.shared, s.activation),
            y,
            gate_mask,
            gate_rate=s.gate_rate,
            gate_rescale=s.gate_rescale,
            padding=padding,
        )
    if given.final is not None:
        keep = check_mask(name, "masks.final", given.final, x.shape[:-1])
        y = moe_dropout.apply_output_masking(y, keep, rate=s.fom_rate, **scaled)
    elif masks is None:
        y = moe_dropout.scale_for_test(y, s.fom_rate, s.rescale)
    return MoEOutput(y, balance, gates)


def _send(dispatch: Array, x: Array) -> Array:
    """The tokens ``[G, S, D]`` in their slots ``[E, G, C, D]``; groups stay on their devices."""
    named = sharding.explicit_sharding(x)
    out = None if named is None else named.update(spec=jax.P(None, named.spec[0], None, None))
    # Each slot holds one token or none, so that any precision of the sum is that of the token; full keeps it unrounded.
    return jnp.einsum("gsec,gsd->egcd", dispatch, x, precision=jax.lax.Precision.HIGHEST, out_sharding=out)


def _receive(combine: Array, outputs: Array, x: Array) -> Array:
    """The slots' outputs ``[E, G, C, D]`` weighted and summed for each token of ``x``, whose sharding and dtype they take."""
    named = sharding.explicit_sharding(x)
    if named is not None:
        outputs = jax.sharding.reshard(outputs, named.update(spec=jax.P(None, named.spec[0], None, None)))
        combine = jax.sharding.reshard(combine, named.update(spec=jax.P(*named.spec[:2], None, None)))
        named = named.update(spec=jax.P(*named.spec[:2], None))
    dtype = trees.accumulator(outputs)
    return jnp.einsum("gsec,egcd->gsd", combine.astype(dtype), outputs.astype(dtype), out_sharding=named).astype(x.dtype)


def _experts(slots: Array, params: MoEParams, activation: Callable[[Array], Array]) -> Array:
    """The experts on their slots. Where an Explicit mesh shards the experts, their slots go to them."""
    kernel_in, bias_in, kernel_out, bias_out = (jnp.asarray(p).astype(slots.dtype) for p in params[1:5])
    there, out = sharding.explicit_sharding(kernel_in), sharding.explicit_sharding(slots)
    if there is not None and out is not None:
        experts, groups = there.spec[0], out.spec[1]
        clash = set(_axes(experts)) & set(_axes(groups))
        out = out.update(spec=jax.P(experts, None if clash else groups, None, None))
        slots = jax.sharding.reshard(slots, out)
    hidden = activation(_product("egcd,edh->egch", slots, kernel_in) + bias_in[:, None, None, :])
    return _product("egch,ehd->egcd", hidden, kernel_out, out) + bias_out[:, None, None, :]


def _dense(x: Array, shared: SharedFFN, activation: Callable[[Array], Array]) -> Array:
    kernel_in, bias_in, kernel_out, bias_out = (jnp.asarray(p).astype(x.dtype) for p in shared[:4])
    hidden = activation(_product("...d,dh->...h", x, kernel_in) + bias_in)
    return _product("...h,hd->...d", hidden, kernel_out) + bias_out


def _product(subscripts: str, a: Array, b: Array, out: Any = None) -> Array:
    """A product of matrices summed in float32 or better, in the dtype of ``a``."""
    return jnp.einsum(subscripts, a, b, preferred_element_type=trees.accumulator(a), out_sharding=out).astype(a.dtype)


def _axes(entry: Any) -> tuple[str, ...]:
    return () if entry is None else entry if isinstance(entry, tuple) else (entry,)


def _capacity(x: Array, params: MoEParams, settings: Settings) -> int:
    tokens, num_experts = x.shape[-2], params.router.shape[1]
    return min(tokens, math.ceil(settings.capacity_factor * tokens / num_experts - 1e-9))


def check_settings(name: str, s: Settings) -> None:
    if isinstance(s.capacity_factor, jax.Array):
        checks.fail(name, "capacity_factor", "a number, as it decides shapes", s.capacity_factor)
    checks.number(name, "capacity_factor", s.capacity_factor, low=0.0, open_low=True)
    for rate in RATES:
        checks.number(name, rate, getattr(s, rate), low=0.0, high=1.0)
    checks.choice(name, "rescale", s.rescale, ("test", "train"))
    checks.boolean(name, "gate_rescale", s.gate_rescale)
    checks.choice(name, "gating_mode", s.gating_mode, ("gate", "expert"))
    checks.function(name, "activation", s.activation)


def check_call(name: str, x: Any, params: Any, settings: Settings, padding: Any) -> tuple[Array, Array | None]:
    check_settings(name, settings)
    x = checks.floating(name, "x", x)
    if x.ndim not in (2, 3) or 0 in x.shape:
        checks.fail(name, "x", "tokens of shape [T, D] or [G, S, D]", x)
    if not isinstance(params, MoEParams):
        checks.fail(name, "params", "a regjax.layers.MoEParams", params)
    d = x.shape[-1]
    e = checks.floating(name, "params.router", params.router, shape=(d, None)).shape[1]
    h = checks.floating(name, "params.kernel_in", params.kernel_in, shape=(e, d, None)).shape[2]
    shapes: dict[str, tuple[int, ...]] = {"bias_in": (e, h), "kernel_out": (e, h, d), "bias_out": (e, d)}
    for field, shape in shapes.items():
        checks.floating(name, f"params.{field}", getattr(params, field), shape=shape)
    if params.shared is not None:
        if not isinstance(params.shared, SharedFFN):
            checks.fail(name, "params.shared", "a regjax.layers.SharedFFN or None", params.shared)
        h = checks.floating(name, "params.shared.kernel_in", params.shared.kernel_in, shape=(d, None)).shape[1]
        shapes = {"bias_in": (h,), "kernel_out": (h, d), "bias_out": (d,), "gate_kernel": (d, 1), "gate_bias": (1,)}
        for field, shape in shapes.items():
            checks.floating(name, f"params.shared.{field}", getattr(params.shared, field), shape=shape)
    return x, checks.example_mask(name, "padding", padding, x.shape[:-1])
