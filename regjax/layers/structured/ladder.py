"""A ladder of projectors: all the blocks of a network together predict a teacher's features."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from regjax.core import checks
from regjax.core.types import Array


class LadderProjector(nnx.Module):
    r"""The sum, over the blocks of a network, of a small network of each block's output, as a Flax NNX module.

    Formula:
      .. math:: \sum_l W'_l \, gelu(W_l h_l + b_l) + b'_l

      Every block takes part in what the teacher is matched with, so each gets a short path for its gradient. It serves in
      training alone and is thrown away. UNIC has one for each teacher, and for class tokens and patch tokens apart.

    Args:
      in_features: the dimension of each block's output, a sequence of integers: ``[384] * 12``.
      out_features: the dimension of the teacher's features.
      hidden_features: the hidden units of each block's network, default 768.
      last_hidden_features: those of the last block's, default 3072.
      rngs: ``nnx.Rngs``, for the initial weights.

    Returns:
      A call ``projector(blocks)`` with the outputs of the blocks, a sequence of float ``[..., D_l]`` alike but for the last
      axis, or one array ``[L, ..., D]``, gives ``[..., out_features]`` in float32 or better.

    Raises:
      ValueError: if a size is below 1, ``rngs`` is missing, or the outputs do not fit.

    Cost:
      For each token ``2 sum_l hidden_l (D_l + out_features)`` FLOPs; with the default sizes, twelve blocks and teachers of
      768 dimensions as much as 2.5 blocks of a ViT-B for each teacher.
      XLA at 4 times [16, 128, 256]: at most 2.9 times the FLOPs and 5.6 times the bytes of one dense layer for each block with
      its gradient, and 1.3 times its memory more.

    Use:
      Part of: `teacher_dropping`, `unic_teacher_loss`.
      When: A deep student is matched with teacher features and the lower blocks get too little gradient: one for each teacher
        and token type, thrown away after training.
      Not when: There is one teacher of the student's own width and few blocks: `feature_distillation` without a projector, or a
        single linear one, is cheaper.
      Badly with: Teacher features that are not standardised (`teacher_normalizer`): the sum of all blocks then chases their
        scale.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> from flax import nnx
      >>> projector = rj.layers.LadderProjector([4] * 3, 6, hidden_features=8, last_hidden_features=16, rngs=nnx.Rngs(0))
      >>> projector([jnp.ones((2, 5, 4))] * 3).shape
      (2, 5, 6)

    References:
      Sariyildiz et al., UNIC: Universal Classification Models via Multi-teacher Distillation, 2024, arXiv 2408.05088. Sizes
      are those of the authors' code; the weights start as those of ``nnx.Linear``, which we did not compare with that code.
    """

    _name = "layers.LadderProjector"

    def __init__(
        self,
        in_features: Sequence[int],
        out_features: int,
        *,
        hidden_features: int = 768,
        last_hidden_features: int = 3072,
        rngs: nnx.Rngs,
    ):
        name = self._name
        if not isinstance(in_features, (list, tuple)) or not in_features:
            checks.fail(name, "in_features", "a sequence of integers, one for each block", in_features)
        sizes = [checks.integer(name, "in_features", size, low=1) for size in in_features]
        out = checks.integer(name, "out_features", out_features, low=1)
        hidden = [checks.integer(name, "hidden_features", hidden_features, low=1)] * (len(sizes) - 1)
        hidden.append(checks.integer(name, "last_hidden_features", last_hidden_features, low=1))
        if not isinstance(rngs, nnx.Rngs):
            checks.fail(name, "rngs", "nnx.Rngs", rngs)
        self.hidden = nnx.List([nnx.Linear(size, units, rngs=rngs) for size, units in zip(sizes, hidden, strict=True)])
        self.out = nnx.List([nnx.Linear(units, out, rngs=rngs) for units in hidden])

    def __call__(self, blocks: Any) -> Array:
        """The projection of the blocks' outputs, the first block's first."""
        name = self._name
        if not isinstance(blocks, (list, tuple, jax.Array)) or jnp.ndim(blocks[0]) < 1 or len(blocks) != len(self.hidden):
            checks.fail(name, "blocks", f"a sequence of the outputs of {len(self.hidden)} blocks", blocks)
        total: Any = 0
        for x, hidden, out in zip(blocks, self.hidden, self.out, strict=True):
            x = checks.floating(name, "blocks", x, shape=(*blocks[0].shape[:-1], hidden.in_features))
            total = total + out(jax.nn.gelu(hidden(x), approximate=False))
        return total
