"""Low-rank adaptation: a product of two small factors beside a frozen kernel."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from regjax.core import checks
from regjax.core.types import Array, Key, Strength
from regjax.layers.adapters.base import (
    AdaptedLayer,
    AdapterParam,
    check_linear,
    check_rngs,
    kaiming_uniform,
    linear_plus,
    low_rank,
)
from regjax.weights import pissa_init


def lora_apply(
    x: Any,
    kernel: Any,
    a: Any,
    b: Any,
    bias: Any = None,
    *,
    scale: Strength,
    dropout_rate: Strength = 0.0,
    key: Key | None = None,
) -> Array:
    r"""A frozen linear layer plus a low-rank product that is trained.

    Formula:
      .. math:: y = x W + scale \cdot dropout(x) \, a \, b + bias

    Args:
      x: float ``[..., in]``.
      kernel: float ``[in, out]``, frozen.
      a: float ``[in, rank]``.
      b: float ``[rank, out]``; 0 at the start, so that training starts from the frozen layer.
      bias: float ``[out]``, frozen, or None (default).
      scale: the factor on the product, usually alpha / rank; a number or a traced scalar.
      dropout_rate: of the entries of ``x`` that the product sees, in [0, 1], default 0; a number or a traced scalar.
      key: a random key where ``dropout_rate`` is not 0.

    Returns:
      ``[..., out]`` in the common dtype of ``x`` and ``kernel``; sums are in float32 or better. No gradient flows to
      ``kernel`` and ``bias``.

    Raises:
      ValueError: if a shape or dtype does not fit, ``scale`` is not finite, ``dropout_rate`` is outside [0, 1], or ``key`` is
        missing.

    Cost:
      ``rank (in + out)`` multiplications for each row beside the layer's ``in * out``; a frozen kernel needs no gradient.
      XLA at [1024, 512]: at most 0.77 times the FLOPs and 2.1 times the bytes of a dense layer with its gradient, and 0.23
      times its memory more.

    Use:
      Part of: `LoRALinear`.
      When: Outside of Flax NNX, on arrays of one's own. It stops the gradient of kernel and bias itself.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> a, b = jnp.array([[1.0], [1.0]]), jnp.array([[1.0, -1.0]])
      >>> rj.layers.lora_apply(jnp.array([1.0, 2.0]), jnp.eye(2), a, b, scale=0.5).tolist()
      [2.5, 0.5]

    References:
      Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv 2106.09685.
    """
    name = "layers.lora_apply"
    checks.number(name, "scale", scale)
    x, kernel, bias, noisy = check_linear(name, x, kernel, bias, dropout_rate, key)
    a = checks.floating(name, "a", a, shape=(kernel.shape[0], None))
    b = checks.floating(name, "b", b, shape=(a.shape[1], kernel.shape[1]))
    added = low_rank(noisy, a, b)
    return linear_plus(x, kernel, bias, jnp.asarray(scale, added.dtype) * added)


class LoRALinear(AdaptedLayer):
    r"""A layer with a low-rank adapter, as a Flax NNX module; for all layers of a model through `adapt`.

    Formula:
      That of `lora_apply` with :math:`scale = \alpha / rank`. Of an attention projection the kernel is taken as a matrix; of
      a convolution too, so that the first factor is a convolution into ``rank`` channels and the second one of width 1.

    Args:
      layer: what to adapt: an ``nnx.Linear``, an ``nnx.LinearGeneral`` without batch axes, an ``nnx.Conv`` without groups and
        mask, or a float kernel ``[in, out]``. It is not changed.
      rank: of the product, at least 1, default 8.
      alpha: the numerator of the scale; None (default): 1 with ``init="lora"``, a scale of 1 / rank, where much published
        code takes 16; ``rank`` with ``"pissa"``, a scale of 1.
      init: ``"lora"`` (default): ``a`` uniform within 1 / sqrt(in) of 0 and ``b`` 0, so that the layer computes what it did;
        ``"pissa"``: the principal singular directions, taken out of the kernel by `regjax.weights.pissa_init`, so that it
        does up to rounding, and ``rank`` is at most min(in, out).
      dropout_rate: of the input of the adapter, in [0, 1], default 0.
      deterministic: True for no dropout; default False. See `Dropout`.
      rng_collection: the stream that the keys of dropout come from, default "dropout".
      param_dtype: of ``a`` and ``b``, default float32, also beside a kernel in lower precision.
      rngs: ``nnx.Rngs``: for the initial ``a`` with ``init="lora"``, and for dropout where it is on.

    Returns:
      A call ``layer(x, out_sharding=None, *, deterministic=None, rngs=None)`` gives what the layer gives. Variables ``a`` and
      ``b``, of `AdapterParam`, and ``kernel`` and ``bias``, which are frozen and no ``nnx.Param``. ``layer.merge()`` is a plain
      layer again.

    Raises:
      ValueError: if an argument is outside its range, the layer is of another kind, or the input does not fit.

    Cost:
      That of `lora_apply`; ``rank (in + out)`` trained weights. With ``"pissa"`` one singular value decomposition.
      XLA at [1024, 512]: at most 0.77 times the FLOPs and 2 times the bytes of a dense layer with its gradient, and 0.23 times
      its memory more.

    Use:
      For: fine-tuning, compute budget, forgetting.
      When: A pretrained model, few labels or little memory for the optimiser: ranks 4 to 16 on attention and feed-forward
        layers, at a higher rate than full tuning. ``"pissa"`` starts along the kernel's principal directions, and its authors
        report faster learning at equal rank.
      Not when: The new task is far from the old one and data are plenty, where all weights learn more. In the forgetting study
        adapters forgot and kept as well as all weights did, but not better.
      Badly with: `group_lasso` or decay from the first step: ``b`` starts at 0 and is held there. `weights.l2_sp` and `ewc` of
        frozen kernels, which are no parameters. Published rates for alpha = 16: the default scale is 1 / rank.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> layer = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
      >>> adapted = rj.layers.LoRALinear(layer, rank=2, rngs=nnx.Rngs(1))
      >>> bool((adapted(jnp.ones(4)) == layer(jnp.ones(4))).all())
      True

    References:
      Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, 2021, arXiv 2106.09685; Meng et al., PiSSA: Principal
      Singular Values and Singular Vectors Adaptation of Large Language Models, 2024, arXiv 2404.02948. Group-sparse forgetting,
      Zhao et al., Continual Forgetting for Pre-trained Vision Models, 2024, arXiv 2403.11530, takes rank 8 and alpha 1 on the
      dense layers of the feed-forward blocks.
    """

    _name = "layers.LoRALinear"

    def __init__(
        self,
        layer: Any,
        *,
        rank: int = 8,
        alpha: Strength = None,
        init: str = "lora",
        dropout_rate: Strength = 0.0,
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        name = self._name
        super().__init__(layer, dropout_rate=dropout_rate, deterministic=deterministic, rng_collection=rng_collection, rngs=rngs)
        checks.choice(name, "init", init, ("lora", "pissa"))
        inputs, outputs = self._shape
        checks.integer(name, "rank", rank, low=1, high=min(inputs, outputs) if init == "pissa" else None)
        if alpha is not None:
            checks.number(name, "alpha", alpha, low=0.0, open_low=init == "pissa")
        self.rank = rank
        self.scale = scale_of(alpha if alpha is not None else (1.0 if init == "lora" else rank), rank)
        if init == "pissa":
            rest, a, b = pissa_init(self.kernel[...].reshape(self._shape), rank=rank, scale=self.scale)
            self.kernel.set_value(rest.reshape(self.kernel.shape))
            a, b = a.astype(param_dtype), b.astype(param_dtype)
        else:
            a = kaiming_uniform(check_rngs(name, rngs).params(), inputs, (inputs, rank), param_dtype)
            b = jnp.zeros((rank, outputs), param_dtype)
        self.a, self.b = AdapterParam(a), AdapterParam(b)

    def _factors(self) -> tuple[Array, Array]:
        b = self.b[...]
        return self.a[...], jnp.asarray(self.scale, b.dtype) * b


def scale_of(alpha: Any, rank: int) -> Any:
    """``alpha / rank``, held as a module holds a number or an array."""
    return nnx.data(alpha / rank) if hasattr(alpha, "dtype") else float(alpha) / rank
