"""Mixing of hidden features between examples: the layer of manifold mixup."""

from typing import Any

from regjax.core import checks
from regjax.core.partners import check_lam, check_partner, mix_partner
from regjax.core.types import Array, Strength


def mix_features(h: Any, *, lam: Strength, partner: Any) -> Array:
    r"""Mixes the features of each example with those of a partner; at weight 1 nothing changes.

    Formula:
      .. math:: \tilde h_i = \lambda_i h_i + (1 - \lambda_i) h_{p(i)}

      in float32 or better.

    Args:
      h: float ``[B, ...]``: the features of any layer.
      lam: the weight of the example itself, in [0, 1]: a number, a traced scalar, or float ``[B]``. Of manifold mixup the
        entry of ``lam_per_layer`` from `inputs.manifold_mixup_weights` for this layer.
      partner: integer ``[B]``, indices into the batch; or ``[G, B/G]``, indices into each of G contiguous blocks, which a
        batch sharded over G devices takes without communication.

    Returns:
      The mixed features, with the shape and dtype of ``h``. Gradients flow to both operands.

    Raises:
      ValueError: if a shape or dtype does not fit, or a number ``lam`` is out of range.

    Cost:
      One gather: two reads and one write of the features.
      XLA at [1024, 512]: at most 3.3 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0 times its memory
      more.

    Use:
      Part of: `manifold_mixup`.
      When: A network is no list of stages: call it at every candidate place with the weights of `manifold_mixup_weights`, 1 at
        all places but one.
      Badly with: Hard integer labels: mix them with the same weight and partner. Partners across shards, unless given as
        blocks.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> h = jnp.array([[1.0, 2.0], [3.0, 5.0]])
      >>> rj.layers.mix_features(h, lam=0.25, partner=jnp.array([1, 0])).tolist()
      [[2.5, 4.25], [1.5, 2.75]]

    References:
      Verma et al., Manifold Mixup: Better Representations by Interpolating Hidden States, 2018, arXiv 1806.05236.
    """
    name = "layers.mix_features"
    h = checks.floating(name, "h", h, min_ndim=1)
    lam = check_lam(name, lam, h.shape[0])
    return mix_partner(h, lam, check_partner(name, partner, h.shape[0]))
