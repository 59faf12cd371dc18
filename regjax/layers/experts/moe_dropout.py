"""Regularisers of mixtures of experts by masks: of expert and final outputs, and of routing across devices."""

from typing import Any

import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.sharding import along, leading
from regjax.core.types import Array, Key, Strength
from regjax.layers._noise import check_mask, check_rate, drop, is_zero, keep_mask

_RESCALE = ("test", "train")
_MODES = ("gate", "expert")


def apply_output_masking(x: Any, keep: Any, *, rate: Strength, rescale: str = "test") -> Array:
    r"""Expert or final output masking with the kept vectors given.

    Formula:
      .. math:: y_{i} = m_i x_i

      for whole vectors x_i on the last axis; divided by ``1 - rate`` with ``rescale="train"``, and then 0 at rate 1.

    Args:
      x: float ``[..., D]``, expert outputs ``[E, C, D]`` or ``[T, k, D]``, or the output of the layer.
      keep: boolean ``[...]``, the shape of ``x`` without its last axis; True keeps a vector.
      rate: the drop rate in [0, 1], a number or a traced scalar; it scales only, and only with ``rescale="train"``.
      rescale: ``"test"`` (default): kept vectors stay as they are; ``"train"``: they are divided by ``1 - rate``.

    Returns:
      Shape and dtype of ``x``.

    Raises:
      ValueError: if a shape or dtype does not fit, ``rate`` is outside [0, 1] or not finite, or an option is misspelt.

    Cost:
      One read and one write of ``x``.
      XLA at [16, 128, 256]: at most 1.1 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      Part of: `expert_output_masking`, `final_output_masking`.
      When: The kept vectors are given: whole sequences, one task's tokens, or the same ones in two passes.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> outputs, keep = jnp.ones((2, 2)), jnp.array([True, False])
      >>> rj.layers.apply_output_masking(outputs, keep, rate=0.2, rescale="train").tolist()
      [[1.25, 1.25], [0.0, 0.0]]

    References:
      Elbayad et al., Fixing MoE Over-Fitting on Low-Resource Languages in Multilingual Machine Translation, 2022,
      arXiv 2212.07571; see `expert_output_masking`.
    """
    name = "layers.apply_output_masking"
    x = checks.floating(name, "x", x, min_ndim=1)
    keep = check_mask(name, "keep", keep, x.shape[:-1])
    check_rate(name, rate)
    checks.choice(name, "rescale", rescale, _RESCALE)
    return drop(x, along(keep, x)[..., None], rate, rescale == "train")


def expert_output_masking(
    key: Key | None,
    expert_outputs: Any,
    *,
    rate: Strength = 0.2,
    rescale: str = "test",
    deterministic: bool = False,
) -> Array:
    r"""Zeroes whole outputs of experts before they are combined, so that a token may lose its first, second or both experts.

    Formula:
      .. math:: y_{e,c} = m_{e,c} x_{e,c}, \quad m \sim Bernoulli(1 - rate); \quad test: (1 - rate) x_{e,c}

      once for each expert and slot. The weights of the combination are not normalised again.

    Args:
      key: a random key; None will do where ``deterministic``. Inside ``jax.shard_map`` fold the device's index in first.
      expert_outputs: float ``[E, C, D]``, the outputs of E experts for C slots each, or ``[T, k, D]``, those of the k
        experts of T tokens; any ``[..., D]``.
      rate: the drop rate in [0, 1], a number or a traced scalar, default 0.2; 0 is the identity.
      rescale: ``"test"`` (default): training only masks, and test mode multiplies by ``1 - rate``; ``"train"``: training
        divides by ``1 - rate``, and test mode is the identity.
      deterministic: True for test mode.

    Returns:
      Shape, dtype and sharding of ``expert_outputs``.

    Raises:
      ValueError: if ``expert_outputs`` is not floating, ``rate`` is outside [0, 1] or not finite, an option is misspelt, or
        ``key`` is no key.

    Cost:
      One uniform per vector; one read and one write of the outputs.
      XLA at [8, 512, 256]: at most 1.4 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.0066 times its
      memory more.

    Use:
      For: few labels, long tails.
      When: Mixtures of experts that overfit rare tasks or languages while the frequent ones still gain: 0.2, with the default
        scaling at test. Common tokens lose little, as the second expert or the residual carries them.
      Not when: There is no residual around the layer (a token that loses both experts is zero), or the dense layers overfit as
        well: then `dropout` in all of them.
      Badly with: `final_output_masking` at the same rate, which masks the same tokens again. Gates normalised again after
        masking, which undoes it. Training code that scales at train time: choose ``rescale`` once.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> y = rj.layers.expert_output_masking(jax.random.key(0), jnp.ones((4, 25, 1)), rate=0.5)
      >>> sorted(set(y.ravel().tolist()))
      [0.0, 1.0]
      >>> rj.layers.expert_output_masking(None, jnp.ones((1, 1, 2)), rate=0.5, deterministic=True).tolist()
      [[[0.5, 0.5]]]

    References:
      Elbayad et al., Fixing MoE Over-Fitting on Low-Resource Languages in Multilingual Machine Translation, 2022,
      arXiv 2212.07571, and the authors' code: NLLB was trained with rate 0.2. Another published port scales in training.
    """
    return _mask_outputs("layers.expert_output_masking", "expert_outputs", key, expert_outputs, rate, rescale, deterministic)


def final_output_masking(
    key: Key | None, y: Any, *, rate: Strength = 0.2, rescale: str = "test", deterministic: bool = False
) -> Array:
    r"""Zeroes the combined output of a mixture of experts for whole tokens: the residual alone carries them on.

    Formula:
      .. math:: z_t = m_t y_t, \quad m_t \sim Bernoulli(1 - rate); \quad test: (1 - rate) y_t

      just before the residual is added, ``x + final_output_masking(key, moe(x))``.

    Args:
      key: a random key; None will do where ``deterministic``. Inside ``jax.shard_map`` fold the device's index in first.
      y: float ``[..., D]``, the output of the layer for each token.
      rate: the drop rate in [0, 1], a number or a traced scalar, default 0.2; 0 is the identity and 1 leaves the residual.
      rescale: ``"test"`` (default): training only masks, and test mode multiplies by ``1 - rate``; ``"train"``: training
        divides by ``1 - rate``, and test mode is the identity.
      deterministic: True for test mode.

    Returns:
      Shape, dtype and sharding of ``y``.

    Raises:
      ValueError: if ``y`` is not floating, ``rate`` is outside [0, 1] or not finite, an option is misspelt, or ``key`` is
        no key.

    Cost:
      One uniform per token; one read and one write of ``y``.
      XLA at [16, 128, 256]: at most 1.4 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.0067 times
      its memory more.

    Use:
      For: few labels, long tails.
      When: The experts of a token shall be dispensable together, so that the dense part of the network learns it too. It is
        `drop_path` for each token.
      Not when: Without a residual around the layer, or as a first choice: NLLB was trained with `expert_output_masking`.
      Badly with: `drop_path` on the same branch and `expert_output_masking`, which drop the same output again.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> y = rj.layers.final_output_masking(jax.random.key(0), jnp.ones((100, 2)), rate=0.5)
      >>> sorted(set(map(tuple, y.tolist())))
      [(0.0, 0.0), (1.0, 1.0)]

    References:
      Elbayad et al., Fixing MoE Over-Fitting on Low-Resource Languages in Multilingual Machine Translation, 2022,
      arXiv 2212.07571.
    """
    return _mask_outputs("layers.final_output_masking", "y", key, y, rate, rescale, deterministic)


def apply_gating_dropout(router_logits: Any, local_experts: Any, dropped: Any, *, mode: str = "gate") -> Array:
    r"""Gating dropout with the coin given.

    Formula:
      .. math:: z'_{t,e} = -\infty \text{ where dropped and e is not local to t, else } z_{t,e}

      with ``mode="expert"`` no expert is local.

    Args:
      router_logits: float ``[..., E]``.
      local_experts: boolean, the shape of ``router_logits``: True where an expert is on the token's device; None will do
        with ``mode="expert"``.
      dropped: a boolean scalar: whether routing across devices is off for the whole batch.
      mode: ``"gate"`` (default): tokens may use local experts only; ``"expert"``: none.

    Returns:
      Shape and dtype of ``router_logits``. The gates of a token whose logits are all -inf must be 0, as those of
      `top2_gating` are.

    Raises:
      ValueError: if a shape or dtype does not fit, or an option is misspelt.

    Cost:
      One read and one write of the logits.
      XLA at 2 times [16, 128, 8]: at most 1.7 times the FLOPs and 0.99 times the bytes of a copy of its arguments, and 0 times
      its memory more.

    Use:
      Part of: `gating_dropout`.
      When: The coin is given: thrown on the host, so that a step without the exchange can be compiled apart.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> logits, local = jnp.array([[1.0, 2.0]]), jnp.array([[True, False]])
      >>> rj.layers.apply_gating_dropout(logits, local, True).tolist()
      [[1.0, -inf]]

    References:
      Liu et al., Gating Dropout: Communication-efficient Regularization for Sparsely Activated Transformers, 2022,
      arXiv 2205.14336; see `gating_dropout`.
    """
    name = "layers.apply_gating_dropout"
    logits, local = _check_routing(name, router_logits, local_experts, mode)
    dropped = checks.array(name, "dropped", dropped, shape=())
    if dropped.dtype != jnp.bool_:
        checks.fail(name, "dropped", "a boolean scalar", dropped)
    return jnp.where(dropped & ~local, -jnp.inf, logits)


def gating_dropout(
    key: Key | None,
    router_logits: Any,
    local_experts: Any,
    *,
    rate: Strength = 0.3,
    mode: str = "gate",
    deterministic: bool = False,
) -> Array:
    r"""Now and then lets no token leave its device: one coin for the whole batch.

    Formula:
      .. math:: d \sim Bernoulli(rate); \quad z'_{t,e} = -\infty \text{ where d = 1 and e is not local to t, else } z_{t,e}

      with ``mode="expert"`` no expert is local, so that the layer is skipped and the residual carries all tokens on.

    Args:
      key: a random key, the same on all devices, as they must agree; None will do where ``deterministic``.
      router_logits: float ``[..., E]``.
      local_experts: boolean, the shape of ``router_logits``: True where an expert is on the token's device; None will do
        with ``mode="expert"``.
      rate: the probability in [0, 1] that the coin falls so, a number or a traced scalar, default 0.3; 0 is the identity.
      mode: ``"gate"`` (default): tokens may use local experts only; ``"expert"``: none.
      deterministic: True for test mode, the identity.

    Returns:
      Shape and dtype of ``router_logits``. The gates of a token whose logits are all -inf must be 0, as those of
      `top2_gating` are.

    Raises:
      ValueError: if a shape or dtype does not fit, ``rate`` is outside [0, 1] or not finite, or an option is misspelt.

    Cost:
      One uniform; one read and one write of the logits. Fixed shapes: the exchange between devices takes place all the same,
      with empty slots. The saving that the paper is after needs a step of its own that leaves the exchange out.
      XLA at 2 times [16, 128, 8]: at most 1.7 times the FLOPs and 1 times the bytes of a copy of its arguments, and 0.0065
      times its memory more.

    Use:
      For: few labels.
      When: Experts lie on several devices, and each device's shall learn to serve any token: ``"gate"`` routes to local
        experts, ``"expert"`` skips the layer, which needs a residual.
      Not when: All experts are on one device, or time is the reason: under fixed shapes the exchange takes place all the same.
      Badly with: Keys that differ between devices, which then disagree on the coin. Gates that are not 0 for a token without
        experts. `expert_output_masking` in steps whose tokens are already short of experts.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> logits, local = jnp.array([[1.0, 2.0]]), jnp.array([[True, False]])
      >>> rj.layers.gating_dropout(jax.random.key(0), logits, local, rate=1.0).tolist()
      [[1.0, -inf]]

    References:
      Liu et al., Gating Dropout: Communication-efficient Regularization for Sparsely Activated Transformers, 2022, arXiv
      2205.14336; a baseline of Elbayad et al., Fixing MoE Over-Fitting on Low-Resource Languages in Multilingual Machine
      Translation, 2022, arXiv 2212.07571. The paper's rates are uncertain here.
    """
    name = "layers.gating_dropout"
    check_rate(name, rate)
    logits, local = _check_routing(name, router_logits, local_experts, mode)
    if checks.boolean(name, "deterministic", deterministic):
        return logits
    key = checks.key(name, key)
    if is_zero(rate):
        return logits
    return jnp.where(~keep_mask(key, rate, ()) & ~local, -jnp.inf, logits)


def _mask_outputs(name: str, argument: str, key: Any, x: Any, rate: Any, rescale: Any, deterministic: Any) -> Array:
    x = checks.floating(name, argument, x, min_ndim=1)
    check_rate(name, rate)
    checks.choice(name, "rescale", rescale, _RESCALE)
    if checks.boolean(name, "deterministic", deterministic):
        return scale_for_test(x, rate, rescale)
    key = checks.key(name, key)
    if is_zero(rate):
        return x
    keep = keep_mask(key, rate, x.shape[:-1], leading(x))
    return drop(x, keep[..., None], rate, rescale == "train")


def scale_for_test(x: Array, rate: Any, rescale: str) -> Array:
    """What masking at ``rate`` is in test mode: its expectation."""
    if rescale == "train" or is_zero(rate):
        return x
    dtype = trees.accumulator(x)
    return (x.astype(dtype) * (1 - jnp.asarray(rate, dtype))).astype(x.dtype)


def _check_routing(name: str, logits: Any, local: Any, mode: Any) -> tuple[Array, Array]:
    logits = checks.floating(name, "router_logits", logits, min_ndim=1)
    checks.choice(name, "mode", mode, _MODES)
    if local is not None or mode == "gate":
        local = check_mask(name, "local_experts", local, logits.shape)
    return logits, (along(local, logits) if mode == "gate" else jnp.zeros(logits.shape[-1], bool))
