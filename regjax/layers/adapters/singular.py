"""Adapters on the singular value decomposition of a kernel: trained principal vectors, or trained singular values."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from regjax.core import checks
from regjax.core.types import Array, Key, Strength
from regjax.layers.adapters.base import (
    AdaptedLayer,
    AdapterParam,
    FrozenParam,
    check_linear,
    linear_plus,
    low_rank,
)
from regjax.layers.adapters.low_rank import scale_of
from regjax.weights import sorsa_init


def sorsa_apply(
    x: Any,
    residual: Any,
    u: Any,
    s: Any,
    vt: Any,
    bias: Any = None,
    *,
    scale: Strength = 1.0,
    dropout_rate: Strength = 0.0,
    key: Key | None = None,
) -> Array:
    r"""A linear layer whose principal singular values and vectors are trained, and whose rest is frozen.

    Formula:
      .. math:: y = x W_{rest} + scale \cdot dropout(x) \, u \, diag(s) \, v^T + bias

    Args:
      x: float ``[..., in]``.
      residual: float ``[in, out]``, frozen, as of `regjax.weights.sorsa_init`.
      u: float ``[in, rank]``.
      s: float ``[rank]``.
      vt: float ``[rank, out]``.
      bias: float ``[out]``, frozen, or None (default).
      scale: the factor on the product, default 1; a number or a traced scalar.
      dropout_rate: of the entries of ``x`` that the product sees, in [0, 1], default 0; a number or a traced scalar.
      key: a random key where ``dropout_rate`` is not 0.

    Returns:
      ``[..., out]`` in the common dtype of ``x`` and ``residual``; sums are in float32 or better. No gradient flows to
      ``residual`` and ``bias``.

    Raises:
      ValueError: if a shape or dtype does not fit, ``scale`` is not finite, ``dropout_rate`` is outside [0, 1], or ``key`` is
        missing.

    Cost:
      ``rank (in + out)`` multiplications for each row beside the layer's ``in * out``.
      XLA at [1024, 512]: at most 0.77 times the FLOPs and 2 times the bytes of a dense layer with its gradient, and 0.23 times
      its memory more.

    Use:
      Part of: `SORSALinear`.
      When: Outside of Flax NNX, on the factors of `sorsa_init`.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> factors = rj.weights.sorsa_init(jnp.array([[3.0, 1.0], [0.0, 2.0]]), rank=1)
      >>> jnp.round(rj.layers.sorsa_apply(jnp.array([1.0, 1.0]), *factors), 4).tolist()
      [3.0, 3.0]

    References:
      Cao, SORSA: Singular Values and Orthonormal Regularized Singular Vectors Adaptation of Large Language Models, 2024,
      arXiv 2409.00055.
    """
    name = "layers.sorsa_apply"
    checks.number(name, "scale", scale)
    x, residual, bias, noisy = check_linear(name, x, residual, bias, dropout_rate, key, "residual")
    u = checks.floating(name, "u", u, shape=(residual.shape[0], None))
    s = checks.floating(name, "s", s, shape=u.shape[1:])
    vt = checks.floating(name, "vt", vt, shape=(u.shape[1], residual.shape[1]))
    dtype = jnp.promote_types(jnp.float32, jnp.result_type(s, vt))
    added = low_rank(noisy, u, s.astype(dtype)[:, None] * vt.astype(dtype))
    return linear_plus(x, residual, bias, jnp.asarray(scale, added.dtype) * added)


class SORSALinear(AdaptedLayer):
    r"""A layer whose principal singular values and vectors are trained, as a Flax NNX module; through `adapt` for a model.

    Formula:
      That of `sorsa_apply` on the factors of `regjax.weights.sorsa_init`: at the start what the layer computes, up to
      rounding. `regjax.weights.sorsa_orthonormality` in the loss keeps the vectors orthonormal.

    Args:
      layer: what to adapt, as in `LoRALinear`.
      rank: from 1 to min(in, out), default 4.
      alpha: None (default) for a scale of 1, else above 0, and the scale is alpha / rank.
      dropout_rate: of the input of the adapter, in [0, 1], default 0.
      deterministic: True for no dropout; default False. See `Dropout`.
      rng_collection: the stream that the keys of dropout come from, default "dropout".
      param_dtype: of ``u``, ``s`` and ``vt``, default float32.
      rngs: ``nnx.Rngs`` for dropout, or None.

    Returns:
      A call ``layer(x, out_sharding=None, *, deterministic=None, rngs=None)`` gives what the layer gives. Variables ``u``,
      ``s`` and ``vt``, of `AdapterParam`; ``kernel``, the rest, and ``bias`` are frozen. ``layer.merge()`` is a plain layer
      again.

    Raises:
      ValueError: if an argument is outside its range, the layer is of another kind, or the input does not fit.

    Cost:
      That of `sorsa_apply`, and one singular value decomposition at construction.
      XLA at [1024, 512]: at most 0.77 times the FLOPs and 2 times the bytes of a dense layer with its gradient, and 0.23 times
      its memory more.

    Use:
      For: fine-tuning, forgetting.
      When: Fine-tuning with small ranks and few steps: it starts from the principal directions, so it learns at once where ``b
        = 0`` does not. In tests, with `sorsa_orthonormality` at a strong weight, it beat `LoRALinear` of its rank in as many
        steps.
      Not when: The principal directions are what must not change, or kernels are so large that one singular value decomposition
        each is too long. For singular values alone take `SVDLinear`.
      Badly with: Weight decay, which shrinks the vectors that the penalty holds at length 1 and, at 0, removes the principal
        part of the kernel. A penalty clipped with the loss gradient: the authors add it after clipping.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> layer = nnx.Linear(4, 3, rngs=nnx.Rngs(0))
      >>> adapted = rj.layers.SORSALinear(layer, rank=2)
      >>> bool(jnp.allclose(adapted(jnp.ones(4)), layer(jnp.ones(4)), atol=1e-5))
      True

    References:
      Cao, SORSA: Singular Values and Orthonormal Regularized Singular Vectors Adaptation of Large Language Models, 2024,
      arXiv 2409.00055: all projections of attention and feed-forward blocks.
    """

    _name = "layers.SORSALinear"

    def __init__(
        self,
        layer: Any,
        *,
        rank: int = 4,
        alpha: Strength = None,
        dropout_rate: Strength = 0.0,
        deterministic: bool | None = False,
        rng_collection: str = "dropout",
        param_dtype: Any = jnp.float32,
        rngs: nnx.Rngs | None = None,
    ):
        name = self._name
        super().__init__(layer, dropout_rate=dropout_rate, deterministic=deterministic, rng_collection=rng_collection, rngs=rngs)
        self.rank = checks.integer(name, "rank", rank, low=1, high=min(self._shape))
        if alpha is not None:
            checks.number(name, "alpha", alpha, low=0.0, open_low=True)
        self.scale = 1.0 if alpha is None else scale_of(alpha, rank)
        rest, *factors = sorsa_init(self.kernel[...].reshape(self._shape), rank=rank, scale=self.scale)
        self.kernel.set_value(rest.reshape(self.kernel.shape))
        self.u, self.s, self.vt = (AdapterParam(x.astype(param_dtype)) for x in factors)

    def _factors(self) -> tuple[Array, Array]:
        s = self.s[...]
        return self.u[...], (jnp.asarray(self.scale, s.dtype) * s)[:, None] * self.vt[...]


class SVDLinear(AdaptedLayer):
    r"""A layer of which only the singular values are trained, as a Flax NNX module; for those of a model through `adapt`.

    Formula:
      With :math:`W = U \, diag(S) \, V^T`:

      .. math:: y = x \, U \, diag(S + \epsilon) \, V^T + bias = x W + x \, U \, diag(\epsilon) \, V^T + bias

      computed in the second form, so that at :math:`\epsilon = 0` it is the layer itself.

    Args:
      layer: what to adapt, as in `LoRALinear`.
      param_dtype: of ``eps``, default float32.
      rngs: not used; so that `adapt` can give it.

    Returns:
      A call ``layer(x)`` gives what the layer gives, and at the start the same. The variable ``eps [min(in, out)]``, of
      `AdapterParam`, starts at 0; ``kernel``, ``bias``, ``u``, ``s`` and ``vt`` are frozen. ``layer.merge()`` is a plain layer
      again.

    Raises:
      ValueError: if the layer is of another kind or the input does not fit.

    Cost:
      The products with U and V beside the layer's: three times its operations where it is square; memory for U and V. One
      singular value decomposition at construction.
      XLA at [1024, 512]: at most 2.6 times the FLOPs and 2.8 times the bytes of a dense layer with its gradient, and 0.77 times
      its memory more.

    Use:
      For: fine-tuning, few labels.
      When: The fewest weights that still reach every layer: repairs of a pretrained model such as high-norm patch tokens with
        `neighbor_smooth_loss`, or tuning on a handful of examples, as directions cannot change.
      Not when: The task needs new directions (`LoRALinear`), or inference cost counts before `merge`: U and V are two further
        products.
      Badly with: Adam at usual rates on large and small singular values alike: a step of 1e-3 is nothing to the first and
        changes the sign of the last. The authors take SGD.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> layer = rj.layers.SVDLinear(jnp.array([[3.0, 1.0], [0.0, 2.0]]))
      >>> layer(jnp.array([1.0, 1.0])).tolist()
      [3.0, 3.0]
      >>> layer.eps.set_value(-layer.s[...])
      >>> jnp.round(jnp.abs(layer(jnp.array([1.0, 1.0]))), 4).tolist()
      [0.0, 0.0]

    References:
      Wang et al., SINDER: Repairing the Singular Defects of DINOv2, 2024, arXiv 2407.16826, which trains the eps of each
      linear layer, of fused projections that of the value alone, by SGD with learning rate 0.005 and momentum 0.9.
    """

    _name = "layers.SVDLinear"

    def __init__(self, layer: Any, *, param_dtype: Any = jnp.float32, rngs: nnx.Rngs | None = None):
        super().__init__(layer, deterministic=True, rng_collection="dropout", rngs=rngs)
        kernel = self.kernel[...].reshape(self._shape)
        _, u, s, vt = sorsa_init(kernel, rank=min(self._shape))
        self.u, self.s, self.vt = FrozenParam(u), FrozenParam(s), FrozenParam(vt)
        self.eps = AdapterParam(jnp.zeros(s.shape, param_dtype))

    def _factors(self) -> tuple[Array, Array]:
        u, vt = jax.lax.stop_gradient((self.u[...], self.vt[...]))
        return u, self.eps[...].astype(vt.dtype)[:, None] * vt
