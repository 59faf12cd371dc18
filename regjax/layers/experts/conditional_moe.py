"""Conditional MoE routing: a gate between a shared dense layer and the experts, and the budget of its gates."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.sharding import along, leading
from regjax.core.types import Array, Key, Strength
from regjax.layers._noise import check_mask, drop, is_zero, keep_mask


def apply_conditional_moe_routing(
    x: Any,
    gate_kernel: Any,
    gate_bias: Any,
    ffn_out: Any,
    moe_out: Any,
    keep: Any = None,
    *,
    gate_rate: Strength = 0.2,
    gate_rescale: bool = False,
    padding: Any = None,
) -> tuple[Array, Array]:
    r"""Conditional routing with the kept gates given.

    Formula:
      .. math:: g_t = m_t \sigma(x_t \cdot w + b), \quad y_t = (1 - g_t) FFN(x_t) + g_t MoE(x_t)

      with ``gate_rescale`` the kept gates are divided by ``1 - gate_rate``; 0 on padding.

    Args:
      x: float ``[..., D]``, the input of both branches.
      gate_kernel: float ``[D, 1]``.
      gate_bias: float ``[1]``.
      ffn_out: float ``[..., M]``, the output of the dense branch for each token.
      moe_out: float, the shape of ``ffn_out``: the output of the experts.
      keep: boolean ``[...]``, True keeps a gate; None keeps all, without rescaling: test mode.
      gate_rate: the rate at which ``keep`` was drawn, in [0, 1], default 0.2; used with ``gate_rescale`` only.
      gate_rescale: whether kept gates are divided by ``1 - gate_rate``; default False.
      padding: boolean ``[...]``, True where a token is padding; default none.

    Returns:
      ``(y, gates)``: y in shape and dtype of ``moe_out``, the gates ``[...]`` in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``gate_rate`` is outside [0, 1] or not finite.

    Cost:
      One product with a vector per token, and one pass over the two outputs.
      XLA at 3 times [16, 128, 256]: at most 1.9 times the FLOPs and 0.74 times the bytes of a copy of its arguments, and 0
      times its memory more.

    Use:
      Part of: `conditional_moe_routing`.
      When: The kept gates are given, or none for test mode.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> x, ffn, moe = jnp.array([[0.0], [2.0]]), jnp.ones((2, 1)), jnp.full((2, 1), 3.0)
      >>> y, gates = rj.layers.apply_conditional_moe_routing(x, jnp.ones((1, 1)), jnp.zeros(1), ffn, moe)
      >>> [round(float(v), 4) for v in y[:, 0]]
      [2.0, 2.7616]

    References:
      Elbayad et al., Fixing MoE Over-Fitting on Low-Resource Languages in Multilingual Machine Translation, 2022,
      arXiv 2212.07571; see `conditional_moe_routing`.
    """
    name = "layers.apply_conditional_moe_routing"
    _check_gate_rate(name, gate_rate)
    checks.boolean(name, "gate_rescale", gate_rescale)
    x, ffn_out, moe_out, logits, padding = _gate_logits(name, x, gate_kernel, gate_bias, ffn_out, moe_out, padding)
    if keep is not None:
        keep = along(check_mask(name, "keep", keep, x.shape[:-1]), x)
    return _blend(logits, ffn_out, moe_out, keep, gate_rate, gate_rescale, padding)


def conditional_moe_routing(
    key: Key | None,
    x: Any,
    gate_kernel: Any,
    gate_bias: Any,
    ffn_out: Any,
    moe_out: Any,
    *,
    gate_rate: Strength = 0.2,
    gate_rescale: bool = False,
    padding: Any = None,
    deterministic: bool = False,
) -> tuple[Array, Array]:
    r"""Conditional MoE routing: a gate decides for each token between a shared dense layer and the experts.

    Formula:
      .. math:: g_t = m_t \sigma(x_t \cdot w + b), \quad m_t \sim Bernoulli(1 - gate\_rate), \quad
        y_t = (1 - g_t) FFN(x_t) + g_t MoE(x_t)

      The gate is 0 on padding. Add `cmr_budget_loss` of the gates, else the model is free to use the experts always.

    Args:
      key: a random key; None will do where ``deterministic``. Inside ``jax.shard_map`` fold the device's index in first.
      x: float ``[..., D]``, the input of both branches.
      gate_kernel: float ``[D, 1]``.
      gate_bias: float ``[1]``.
      ffn_out: float ``[..., M]``, the output of the shared dense branch for each token.
      moe_out: float, the shape of ``ffn_out``: the output of the experts.
      gate_rate: the rate in [0, 1] at which gates are zeroed, a number or a traced scalar, default 0.2; a token without a
        gate takes the dense branch.
      gate_rescale: whether kept gates are divided by ``1 - gate_rate``; default False. With True they reach
        ``1 / (1 - gate_rate)``, and the dense branch a negative weight.
      padding: boolean ``[...]``, True where a token is padding; default none.
      deterministic: True for test mode: all gates are kept as they are.

    Returns:
      ``(y, gates)``: y in shape and dtype of ``moe_out``, the gates ``[...]`` in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, ``gate_rate`` is outside [0, 1] or not finite, or ``key`` is no key.

    Cost:
      The dense branch, which the caller computes, one product with a vector per token, and one pass over the two outputs.
      XLA at 3 times [16, 128, 256]: at most 2 times the FLOPs and 0.75 times the bytes of a copy of its arguments, and 0.01
      times its memory more.

    Use:
      For: few labels, long tails, compute budget.
      When: Rare tasks shall share a dense layer and frequent ones use the experts, and the model shall decide for each token.
        ``gate_rate`` keeps the dense branch trained.
      Not when: The FLOPs of a dense layer more are too many: both branches are computed for each token, whatever the gate.
        Without `cmr_budget_loss` the gate may open for all.
      Badly with: ``gate_rescale=True``, the form of the release, where gates pass 1 and the dense branch gets a negative
        weight. `final_output_masking` on the sum, which masks the shared branch too.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> x, ffn, moe = jnp.array([[0.0], [-1.0]]), jnp.ones((2, 1)), jnp.full((2, 1), 3.0)
      >>> y, gates = rj.layers.conditional_moe_routing(None, x, jnp.ones((1, 1)), jnp.zeros(1), ffn, moe, deterministic=True)
      >>> [round(float(v), 4) for v in gates]
      [0.5, 0.2689]

    References:
      Elbayad et al., Fixing MoE Over-Fitting on Low-Resource Languages in Multilingual Machine Translation, 2022,
      arXiv 2212.07571. The text zeroes gates, and so does this; the authors' code rescales those it keeps
      (``gate_rescale=True``).
    """
    name = "layers.conditional_moe_routing"
    _check_gate_rate(name, gate_rate)
    checks.boolean(name, "gate_rescale", gate_rescale)
    x, ffn_out, moe_out, logits, padding = _gate_logits(name, x, gate_kernel, gate_bias, ffn_out, moe_out, padding)
    keep = None
    if not checks.boolean(name, "deterministic", deterministic):
        key = checks.key(name, key)
        if not is_zero(gate_rate):
            keep = keep_mask(key, gate_rate, x.shape[:-1], leading(x))
    return _blend(logits, ffn_out, moe_out, keep, gate_rate, gate_rescale, padding)


def cmr_budget_loss(gates: Any, padding: Any = None, *, budget: Any = 0.8) -> Array:
    r"""Holds the share of expert computation that conditional routing uses near a budget.

    Formula:
      .. math:: \left| \frac{1}{n} \sum_{l, t} g_{l,t} - budget \right|

      over the n pairs of layer l and token t that is no padding, all layers together.

    Args:
      gates: float ``[...]``, or a list or tuple of such arrays, one for each layer with conditional routing.
      padding: boolean, True where a token is padding: the shape of one layer's gates, or the last dimensions of that shape
        (gates ``[layers, T]`` with padding ``[T]``); default none.
      budget: the wanted mean gate in [0, 1], default 0.8; a number or a traced scalar.

    Returns:
      A scalar in float32 or better. The paper adds it with weight 0.1. Without tokens it is ``budget``, with gradient 0.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``budget`` is outside [0, 1] or not finite.

    Cost:
      One pass over the gates.
      XLA at [16, 128]: at most 1.2 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0 times its memory
      more.

    Use:
      Part of: `conditional_moe_routing`.
      When: Always beside conditional routing, with the gates of all layers in one call: the budget is their common mean, and
        layers may differ.
      Badly with: One call for each layer, which forces the budget on every one. Padding left out, whose gates of 0 count as
        cheap tokens.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> gates = jax.nn.sigmoid(jnp.array([0.0, 2.0, -1.0]))
      >>> round(float(rj.layers.cmr_budget_loss(gates)), 4)
      0.2501

    References:
      Elbayad et al., Fixing MoE Over-Fitting on Low-Resource Languages in Multilingual Machine Translation, 2022,
      arXiv 2212.07571.
    """
    name = "layers.cmr_budget_loss"
    checks.number(name, "budget", budget, low=0.0, high=1.0)
    layers = gates if isinstance(gates, (list, tuple)) else (gates,)
    if not layers:
        checks.fail(name, "gates", "an array, or one array or more, one for each layer", gates)
    layers = [checks.floating(name, "gates", layer) for layer in layers]
    dtype = trees.accumulator(*layers)
    total, count = jnp.zeros((), dtype), jnp.zeros((), dtype)
    for layer in layers:
        if padding is None:
            total, count = total + jnp.sum(layer, dtype=dtype), count + layer.size
            continue
        mask = checks.array(name, "padding", padding)
        if mask.dtype != jnp.bool_ or mask.ndim > layer.ndim or mask.shape != layer.shape[layer.ndim - mask.ndim :]:
            checks.fail(name, "padding", f"a boolean mask of the shape {list(layer.shape)} of gates or its last dimensions", mask)
        total = total + jnp.sum(jnp.where(mask, 0, layer), dtype=dtype)
        count = count + jnp.sum(~mask, dtype=dtype) * (layer.size // max(mask.size, 1))
    over = total / jnp.maximum(count, 1e-5) - jnp.asarray(budget, dtype)
    # Not `jnp.abs`, whose gradient at 0 is 1: at the budget nothing should move.
    return over * jax.lax.stop_gradient(jnp.sign(over))


def _check_gate_rate(name: str, rate: Any) -> None:
    checks.number(name, "gate_rate", rate, low=0.0, high=1.0)


def _gate_logits(name: str, x: Any, kernel: Any, bias: Any, ffn_out: Any, moe_out: Any, padding: Any) -> tuple[Any, ...]:
    """Checked inputs and the gate's logits, in float32 or better."""
    x = checks.floating(name, "x", x, min_ndim=1)
    kernel = checks.floating(name, "gate_kernel", kernel, shape=(x.shape[-1], 1))
    bias = checks.floating(name, "gate_bias", bias, shape=(1,))
    ffn_out = checks.floating(name, "ffn_out", ffn_out, shape=(*x.shape[:-1], None))
    moe_out = checks.floating(name, "moe_out", moe_out, shape=ffn_out.shape)
    padding = checks.example_mask(name, "padding", padding, x.shape[:-1])
    dtype = trees.accumulator(x, kernel, bias)
    # A sum rather than a product of matrices: exact float32 on every device, and the features may be sharded.
    logits = jnp.sum(x.astype(dtype) * kernel[:, 0].astype(dtype), axis=-1) + bias[0].astype(dtype)
    return x, ffn_out, moe_out, logits, padding


def _blend(
    logits: Array, ffn_out: Array, moe_out: Array, keep: Any, rate: Any, rescale: bool, padding: Any
) -> tuple[Array, Array]:
    gates = jax.nn.sigmoid(logits)
    if keep is not None:
        gates = drop(gates, keep, rate, rescale)
    if padding is not None:
        gates = jnp.where(padding, 0, gates)
    dtype = trees.accumulator(ffn_out, moe_out, gates)
    g = gates[..., None].astype(dtype)
    y = (1 - g) * ffn_out.astype(dtype) + g * moe_out.astype(dtype)
    return y.astype(moe_out.dtype), gates
