"""A group of low-rank adapters on one layer, kept apart by `regjax.weights.orthogonal_group_penalty`."""

from typing import Any

import jax.numpy as jnp
from flax import nnx

from regjax.core import checks
from regjax.core.types import Array
from regjax.layers.adapters.base import AdaptedLayer, AdapterParam, check_rngs, kaiming_uniform


class LoRAGroup(AdaptedLayer):
    r"""A layer with several low-rank adapters side by side, as a Flax NNX module; for those of a model through `adapt`.

    Formula:
      .. math:: y = x W + \sum_{i=1}^N x \, a_i \, b_i + bias

      without a factor. Alone it is one adapter of rank ``N * rank``; `regjax.weights.orthogonal_group_penalty` in the loss
      makes the members different from each other and from the kernel.

    Args:
      layer: what to adapt, as in `LoRALinear`. The authors take the query and value projections of every block.
      rank: of each member, at least 1, default 4.
      num: N, the number of members, at least 1, default 4; the authors take 2 on a small data set.
      param_dtype: of ``a`` and ``b``, default float32.
      rngs: ``nnx.Rngs``, for the initial ``a``.

    Returns:
      A call ``layer(x)`` gives what the layer gives, and at the start the same. Variables ``a [N, in, rank]``, uniform within
      1 / sqrt(in) of 0, and ``b [N, rank, out]``, 0, both of `AdapterParam`; ``kernel`` and ``bias`` are frozen.
      ``layer.merge()`` is a plain layer again.

    Raises:
      ValueError: if an argument is outside its range, the layer is of another kind, or the input does not fit.

    Cost:
      ``N rank (in + out)`` multiplications for each row and as many trained weights; two matrix products whatever N.
      XLA at [1024, 512]: at most 0.77 times the FLOPs and 2 times the bytes of a dense layer with its gradient, and 0.23 times
      its memory more.

    Use:
      For: distribution shift, fine-tuning.
      When: Fine-tuning on several domains for an unseen one: query and value projections, with `orthogonal_group_penalty` at
        about 1e-3, which keeps the updates off the kernel and off each other. Two members for a small set.
      Not when: Without that penalty, when it is one adapter of rank ``num * rank``. Tests confirm the different directions, not
        yet a gain in accuracy.
      Badly with: Published rates of scaled adapters, as it has no factor alpha / rank. Weight decay, which shrinks the members
        that the penalty spreads.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> group = rj.layers.LoRAGroup(nnx.Linear(6, 3, rngs=nnx.Rngs(0)), rank=2, num=3, rngs=nnx.Rngs(1))
      >>> group.a.shape, group.b.shape, float(rj.weights.orthogonal_group_penalty(group))
      ((3, 6, 2), (3, 2, 3), 0.0)

    References:
      Hu et al., Learn to Preserve and Diversify: Parameter-Efficient Group with Orthogonal Regularization for Domain
      Generalization, 2024, arXiv 2407.15085.
    """

    _name = "layers.LoRAGroup"

    def __init__(self, layer: Any, *, rank: int = 4, num: int = 4, param_dtype: Any = jnp.float32, rngs: nnx.Rngs):
        name = self._name
        super().__init__(layer, deterministic=True, rng_collection="dropout", rngs=check_rngs(name, rngs))
        self.rank = checks.integer(name, "rank", rank, low=1)
        self.num = checks.integer(name, "num", num, low=1)
        inputs, outputs = self._shape
        self.a = AdapterParam(kaiming_uniform(rngs.params(), inputs, (num, inputs, rank), param_dtype))
        self.b = AdapterParam(jnp.zeros((num, rank, outputs), param_dtype))

    def _factors(self) -> tuple[Array, Array]:
        inputs, outputs = self._shape
        # The sum over members is the product along their ranks laid side by side.
        return jnp.moveaxis(self.a[...], 0, 1).reshape(inputs, -1), self.b[...].reshape(-1, outputs)
