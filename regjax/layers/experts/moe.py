"""A mixture of experts with two experts for each token and fixed shapes, and the places where its regularisers act."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from regjax.core import checks
from regjax.core.types import Array, Key, Strength
from regjax.layers._noise import NoiseLayer, is_zero
from regjax.layers.experts import _moe
from regjax.layers.experts._moe import MoEMasks, MoEOutput, MoEParams, SharedFFN

_KERNELS = "router", "kernel_in", "bias_in", "kernel_out", "bias_out"


def apply_mixture_of_experts(
    x: Any,
    params: MoEParams,
    masks: MoEMasks | None = None,
    *,
    capacity_factor: float = 2.0,
    eom_rate: Strength = 0.0,
    fom_rate: Strength = 0.0,
    gate_rate: Strength = 0.0,
    rescale: str = "test",
    gate_rescale: bool = False,
    gating_mode: str = "gate",
    local_experts: Any = None,
    padding: Any = None,
    activation: Callable[[Array], Array] = jax.nn.relu,
) -> MoEOutput:
    r"""A mixture of experts with the masks of its regularisers given.

    Formula:
      .. math:: y_t = \sum_{e \in top2(t)} w_{t,e} m_{e,c} \left( \phi(x_t W^1_e + b^1_e) W^2_e + b^2_e \right)

      with the weights of `top2_gating`; then `apply_conditional_moe_routing` with the shared layer where there is one, and
      the mask of final outputs. The residual is the caller's.

    Args:
      x: float ``[T, D]``, one group of tokens, or ``[G, S, D]``, G groups with slots of their own.
      params: `MoEParams`; computed in the dtype of ``x``, the router in float32 or better.
      masks: `MoEMasks`, booleans, True keeps: ``expert [E, G, C]`` (G = 1 for ``[T, D]``), ``final`` and ``gate`` of the
        shape of ``x`` without D, and the scalar ``dropped``, True for local routing only. None is test mode.
      capacity_factor: slots as a multiple of the even share, default 2: ``C = ceil(factor S / E)``, at most S.
      eom_rate: the rate at which ``masks.expert`` was drawn, in [0, 1], default 0.
      fom_rate: the rate at which ``masks.final`` was drawn, in [0, 1], default 0.
      gate_rate: the rate at which ``masks.gate`` was drawn, in [0, 1], default 0.
      rescale: where the scaling for masked outputs is, ``"test"`` (default) or ``"train"``: see `expert_output_masking`.
      gate_rescale: whether kept gates are divided by ``1 - gate_rate``; default False.
      gating_mode: the mode of `gating_dropout`, ``"gate"`` (default) or ``"expert"``.
      local_experts: boolean, the shape of the router's logits ``[..., E]``: the experts on the token's device.
      padding: boolean, the shape of ``x`` without D, True where a token is padding; default none.
      activation: the function between the two layers, default relu.

    Returns:
      ``MoEOutput(y, load_balancing, gates)``: y in shape and dtype of ``x``, 0 for tokens without experts.

    Raises:
      ValueError: if a shape or dtype does not fit, a rate is outside [0, 1], or an option is not as stated.

    Cost:
      The FLOPs of ``capacity_factor`` dense layers, and ``4 S C E D`` for each group to distribute and combine. Where the
      experts are sharded, two exchanges between devices.
      XLA at [16, 128, 256]: at most 2.7 times the FLOPs and 4.7 times the bytes of a dense layer with its gradient, and 1.8
      times its memory more.

    Use:
      Part of: `mixture_of_experts`.
      When: The masks are given, or in test mode, where there are none.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> params = rj.layers.MoEParams(jnp.eye(2), jnp.ones((2, 2, 3)), jnp.zeros((2, 3)), jnp.ones((2, 3, 2)), jnp.zeros((2, 2)))
      >>> rj.layers.apply_mixture_of_experts(jnp.ones((4, 2)), params).y[0].tolist()
      [6.0, 6.0]

    References:
      Lepikhin et al., GShard: Scaling Giant Models with Conditional Computation and Automatic Sharding, 2020,
      arXiv 2006.16668. Elbayad et al., Fixing MoE Over-Fitting on Low-Resource Languages in Multilingual Machine
      Translation, 2022, arXiv 2212.07571.
    """
    name = "layers.apply_mixture_of_experts"
    settings = _moe.Settings(capacity_factor, eom_rate, fom_rate, gate_rate, 0.0, rescale, gate_rescale, gating_mode, activation)
    x, padding = _moe.check_call(name, x, params, settings, padding)
    if masks is not None and not isinstance(masks, MoEMasks):
        checks.fail(name, "masks", "a regjax.layers.MoEMasks or None", masks)
    return _moe.run(name, x, params, masks, settings, local_experts, padding)


def mixture_of_experts(
    key: Key | None,
    x: Any,
    params: MoEParams,
    *,
    capacity_factor: float = 2.0,
    eom_rate: Strength = 0.0,
    fom_rate: Strength = 0.0,
    gate_rate: Strength = 0.0,
    gating_rate: Strength = 0.0,
    rescale: str = "test",
    gate_rescale: bool = False,
    gating_mode: str = "gate",
    local_experts: Any = None,
    padding: Any = None,
    activation: Callable[[Array], Array] = jax.nn.relu,
    deterministic: bool = False,
) -> MoEOutput:
    r"""A mixture of experts, two for each token, with expert and final output masking, conditional routing and gating dropout.

    Formula:
      That of `apply_mixture_of_experts`, with masks drawn at the given rates: `gating_dropout` on the router's logits,
      `expert_output_masking` before the outputs are combined, `conditional_moe_routing` where ``params.shared`` is given,
      `final_output_masking` at the end.

    Args:
      key: a random key; None will do where ``deterministic``.
      x: float ``[T, D]``, one group of tokens, or ``[G, S, D]``, G groups with slots of their own.
      params: `MoEParams`; computed in the dtype of ``x``, the router in float32 or better.
      capacity_factor: slots as a multiple of the even share, default 2: ``C = ceil(factor S / E)``, at most S. The number
        of experts loses no token.
      eom_rate: the rate of expert output masking in [0, 1], default 0; the paper's is 0.2.
      fom_rate: the rate of final output masking in [0, 1], default 0.
      gate_rate: the rate at which gates of conditional routing are zeroed, in [0, 1], default 0; the paper's is 0.2.
      gating_rate: the rate of gating dropout in [0, 1], default 0; one coin for the whole batch.
      rescale: where the scaling for masked outputs is, ``"test"`` (default) or ``"train"``: see `expert_output_masking`.
      gate_rescale: whether kept gates are divided by ``1 - gate_rate``; default False.
      gating_mode: the mode of `gating_dropout`, ``"gate"`` (default) or ``"expert"``.
      local_experts: boolean, the shape of the router's logits ``[..., E]``: the experts on the token's device; needed for
        gating dropout with ``"gate"``.
      padding: boolean, the shape of ``x`` without D, True where a token is padding; default none.
      activation: the function between the two layers, default relu.
      deterministic: True for test mode.

    Returns:
      ``MoEOutput(y, load_balancing, gates)``: y in shape and dtype of ``x``, `load_balancing_loss`, and the gates for
      `cmr_budget_loss`, None without a shared layer.

    Raises:
      ValueError: if a shape or dtype does not fit, a rate is outside [0, 1], an option is not as stated, or ``key`` is no
        key.

    Cost:
      The FLOPs of ``capacity_factor`` dense layers, one more with a shared layer, and ``4 S C E D`` for each group to
      distribute and combine. Groups may be sharded over devices, and experts, by the first axis of their parameters: then
      two exchanges between devices. The masks cost one uniform for each slot or token.
      XLA at [16, 128, 256]: at most 2.7 times the FLOPs and 4.8 times the bytes of a dense layer with its gradient, and 1.6
      times its memory more.

    Use:
      For: compute budget, few labels.
      When: Many tokens and tasks of unequal size, where a wider dense layer costs too much. Rare tasks overfit first in it:
        ``eom_rate`` 0.2, or a shared layer with conditional routing, is what its authors add for them.
      Not when: Groups hold so few tokens that a slot more or less decides, or one dense layer of the same FLOPs already
        overfits: experts add weights, not data.
      Badly with: Outputs that must not depend on batch mates, as tokens beyond an expert's slots are lost. `sam`, whose
        perturbation can route tokens elsewhere in the second pass.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> params = rj.layers.MoEParams(jnp.eye(2), jnp.ones((2, 2, 3)), jnp.zeros((2, 3)), jnp.ones((2, 3, 2)), jnp.zeros((2, 2)))
      >>> out = rj.layers.mixture_of_experts(jax.random.key(0), jnp.ones((50, 2)), params, fom_rate=0.2)
      >>> sorted(set(out.y.ravel().tolist()))
      [0.0, 6.0]

    References:
      Lepikhin et al., GShard: Scaling Giant Models with Conditional Computation and Automatic Sharding, 2020,
      arXiv 2006.16668. Elbayad et al., Fixing MoE Over-Fitting on Low-Resource Languages in Multilingual Machine
      Translation, 2022, arXiv 2212.07571, who use the regularisers one at a time.
    """
    name = "layers.mixture_of_experts"
    settings = _moe.Settings(
        capacity_factor, eom_rate, fom_rate, gate_rate, gating_rate, rescale, gate_rescale, gating_mode, activation
    )
    x, padding = _moe.check_call(name, x, params, settings, padding)
    masks = None
    if not checks.boolean(name, "deterministic", deterministic):
        masks = _moe.sample(checks.key(name, key), x, params, settings)
    return _moe.run(name, x, params, masks, settings, local_experts, padding)


class MixtureOfExperts(NoiseLayer):
    r"""A mixture of experts as a Flax NNX module, with the places where its regularisers act.

    Formula:
      That of `mixture_of_experts`.

    Args:
      features: D, the length of the input's last axis.
      hidden: H, the width of an expert.
      num_experts: E.
      capacity_factor: slots as a multiple of the even share, default 2.
      eom_rate: the rate of expert output masking in [0, 1], default 0.
      fom_rate: the rate of final output masking in [0, 1], default 0.
      gate_rate: the rate at which gates of conditional routing are zeroed, in [0, 1], default 0.
      gating_rate: the rate of gating dropout in [0, 1], default 0.
      shared: whether a dense layer of the same width and a gate stand beside the experts (conditional routing);
        default False.
      rescale: where the scaling for masked outputs is, ``"test"`` (default) or ``"train"``.
      gate_rescale: whether kept gates are divided by ``1 - gate_rate``; default False.
      gating_mode: the mode of gating dropout, ``"gate"`` (default) or ``"expert"``.
      activation: the function between the two layers, default relu.
      param_dtype: the dtype of the parameters, default float32.
      deterministic: True for test mode; default False. See `Dropout`.
      rng_collection: the stream of an ``nnx.Rngs`` that keys are taken from, default "dropout".
      rngs: ``nnx.Rngs``, for the parameters from its stream "params", and for a stream forked from it where it has the
        one named ``rng_collection`` or a default. See `Dropout` for keys at the call.

    Returns:
      A call ``layer(x, *, local_experts=None, padding=None, deterministic=None, rngs=None)`` gives a `MoEOutput`.

    Raises:
      ValueError: if an argument is outside its range, a mode is missing, or a key is needed and none is given.

    Cost:
      That of `mixture_of_experts`; ``E (2 D H + H + D) + D E`` parameters, and a dense layer's with ``shared``.
      XLA at [16, 128, 256]: at most 2.7 times the FLOPs and 4.8 times the bytes of a dense layer with its gradient, and 1.6
      times its memory more.

    Use:
      Part of: `mixture_of_experts`.
      When: In place of the feed-forward layer of a Flax NNX block. Add 0.01 times ``load_balancing``, and with ``shared`` 0.1
        times `cmr_budget_loss`, to the loss.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> layer = rj.layers.MixtureOfExperts(4, 8, 2, eom_rate=0.2, shared=True, rngs=nnx.Rngs(0))
      >>> out = layer(jnp.ones((3, 4)), rngs=jax.random.key(0))
      >>> out.y.shape, out.gates.shape
      ((3, 4), (3,))

    References:
      Those of `mixture_of_experts`.
    """

    _name = "layers.MixtureOfExperts"

    def __init__(
        self,
        features: int,
        hidden: int,
        num_experts: int,
        *,
        capacity_factor: float = 2.0,
        eom_rate: Strength = 0.0,
        fom_rate: Strength = 0.0,
        gate_rate: Strength = 0.0,
        gating_rate: Strength = 0.0,
        shared: bool = False,
        rescale: str = "test",
        gate_rescale: bool = False,
        gating_mode: str = "gate",
        activation: Callable[[Array], Array] = jax.nn.relu,
        param_dtype: Any = jnp.float32,
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        rngs: Any,
    ):
        name = self._name
        if not isinstance(rngs, nnx.Rngs) or ("params" not in rngs and "default" not in rngs):
            checks.fail(name, "rngs", "an nnx.Rngs with a stream 'params' or 'default'", rngs)
        silent = isinstance(rng_collection, str) and rng_collection not in rngs and "default" not in rngs
        super().__init__(deterministic=deterministic, rng_collection=rng_collection, rngs=None if silent else rngs)
        d, h, e = (
            checks.integer(name, argument, value, low=1)
            for argument, value in (("features", features), ("hidden", hidden), ("num_experts", num_experts))
        )
        if not jnp.issubdtype(param_dtype, jnp.floating):
            checks.fail(name, "param_dtype", "a floating-point dtype", param_dtype)
        self.capacity_factor, self.rescale, self.gate_rescale = capacity_factor, rescale, gate_rescale
        self.eom_rate, self.fom_rate, self.gate_rate, self.gating_rate = eom_rate, fom_rate, gate_rate, gating_rate
        self.gating_mode, self.activation = gating_mode, activation
        _moe.check_settings(name, self._settings())
        dense, stacked = jax.nn.initializers.lecun_normal(), jax.nn.initializers.lecun_normal(batch_axis=(0,))
        zeros = jax.nn.initializers.zeros

        def param(init: Callable[..., Array], *shape: int) -> nnx.Param:
            return nnx.Param(init(rngs.params(), shape, param_dtype))

        self.router = param(dense, d, e)
        self.kernel_in, self.bias_in = param(stacked, e, d, h), param(zeros, e, h)
        self.kernel_out, self.bias_out = param(stacked, e, h, d), param(zeros, e, d)
        self.shared = checks.boolean(name, "shared", shared)
        if self.shared:
            self.shared_kernel_in, self.shared_bias_in = param(dense, d, h), param(zeros, h)
            self.shared_kernel_out, self.shared_bias_out = param(dense, h, d), param(zeros, d)
            self.gate_kernel, self.gate_bias = param(dense, d, 1), param(zeros, 1)

    def _settings(self) -> _moe.Settings:
        return _moe.Settings(*(getattr(self, name) for name in _moe.Settings._fields))

    def set_view(
        self,
        deterministic: bool | None = None,
        eom_rate: Strength = None,
        fom_rate: Strength = None,
        gate_rate: Strength = None,
        gating_rate: Strength = None,
    ) -> None:
        """Sets the mode and the rates; `flax.nnx.view` calls it.

        Args:
          deterministic: if True, the layer adds no noise.
          eom_rate: the rate of expert output masking, a number or a traced scalar, as are the others.
          fom_rate: the rate of final output masking.
          gate_rate: the rate at which gates of conditional routing are zeroed.
          gating_rate: the rate of gating dropout.
        """
        super().set_view(deterministic)
        for name, rate in zip(_moe.RATES, (eom_rate, fom_rate, gate_rate, gating_rate), strict=True):
            if rate is not None:
                checks.number(self._name, name, rate, low=0.0, high=1.0)
                setattr(self, name, nnx.data(rate) if isinstance(rate, jax.Array) else nnx.static(rate))

    def params(self) -> MoEParams:
        """The parameters as `mixture_of_experts` takes them."""
        ffn = None
        if self.shared:
            names = ("shared_kernel_in", "shared_bias_in", "shared_kernel_out", "shared_bias_out", "gate_kernel", "gate_bias")
            ffn = SharedFFN(*(getattr(self, name)[...] for name in names))
        kernels = (getattr(self, name)[...] for name in _KERNELS)
        return MoEParams(*kernels)._replace(shared=ffn)

    def __call__(
        self, x: Any, *, local_experts: Any = None, padding: Any = None, deterministic: bool | None = None, rngs: Any = None
    ) -> MoEOutput:
        """`mixture_of_experts` with the layer's parameters and settings."""
        name, params, settings = self._name, self.params(), self._settings()
        x, padding = _moe.check_call(name, x, params, settings, padding)
        masks = None
        if not self._is_deterministic(deterministic):
            still = all(is_zero(getattr(settings, rate)) for rate in _moe.RATES if rate != "gate_rate" or self.shared)
            masks = MoEMasks() if still else _moe.sample(self._key(rngs), x, params, settings)
        return _moe.run(name, x, params, masks, settings, local_experts, padding)
