"""Knowledge in the similarities of examples: probabilistic knowledge transfer."""

from typing import Any

from regjax.core import checks
from regjax.core.neighbours import neighbour_divergence
from regjax.core.types import Array


def probabilistic_knowledge_transfer(
    features: Any, target: Any, *, eps: float = 1e-7, where: Any = None, axis_name: Any = None
) -> Array:
    r"""The divergence between two feature spaces of the probabilities that examples are neighbours: PKT.

    Formula:
      With :math:`u_i = x_i / (\lVert x_i \rVert + \epsilon)` of the features and :math:`v_i` of the target:

      .. math::
         p_{ij} = \frac{1 + u_i \cdot u_j}{\sum_k (1 + u_i \cdot u_k)}, \quad
         q_{ij} = \frac{1 + v_i \cdot v_j}{\sum_k (1 + v_i \cdot v_k)}, \quad
         L = \frac{1}{B^2} \sum_{ij} q_{ij} \log \frac{q_{ij} + \epsilon}{p_{ij} + \epsilon}

      over all pairs, the diagonal too. Lengths do not matter, nor rotations of a space.

    Args:
      features: float ``[B, D]``.
      target: float ``[B, E]``, usually of a teacher, whose dimension may differ; no gradient.
      eps: :math:`\epsilon`, above 0, default 1e-7.
      where: boolean ``[B]``: which examples count; default all. No example gives 0.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split under ``shard_map`` or ``pmap``: the
        similarities are those of the whole batch, and gradients averaged over the axis are too. Not needed under ``jit``
        with sharded arrays.

    Returns:
      A scalar in float32 or better. A zero vector is as far from every other as from its opposite, and has no gradient.

    Raises:
      ValueError: if a shape, dtype or option does not fit.

    Cost:
      O(B^2 (D + E)): two products of matrices and two arrays ``[B, B]``. A sharded batch is gathered on every device, which
      then holds its own rows of the pairs.
      XLA at [1024, 512]: at most 1.5 times the FLOPs and 5.2 times the bytes of the products of all vectors, and 1.5 times its
      memory more.

    Use:
      For: fine-tuning, few labels.
      When: A teacher of another width or another network: only who is near whom is matched, so it needs no projector and no
        labels. Batches of a hundred and more, and a large weight (3e4 in MetaAug), as the mean is over all pairs.
      Not when: Batches are small, or the teacher's cosines are all alike: without a temperature the two distributions are
        nearly uniform and the gradient is faint.
      Badly with: Microbatches, which compare fewer pairs. Other mixing partners for student and teacher, after which pairs do
        not correspond. Losses that need the length of features, which it leaves free.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.features.probabilistic_knowledge_transfer(jnp.eye(2), jnp.ones((2, 2)))), 4)
      0.0294

    References:
      Passalis and Tefas, Learning Deep Representations with Probabilistic Knowledge Transfer, 2018, arXiv 1803.10837. As in the
      code of MetaAug (Pham et al., MetaAug: Meta-Data Augmentation for Post-Training Quantization, 2024, arXiv 2407.14726) the
      pairs are averaged, not summed, and the diagonal counts.
    """
    name = "features.probabilistic_knowledge_transfer"
    features = checks.floating(name, "features", features, ndim=2)
    target = checks.floating(name, "target", target, shape=(features.shape[0], None))
    checks.number(name, "eps", eps, low=0.0, open_low=True)
    where = checks.example_mask(name, "where", where, features.shape[:1])
    checks.axis_name(name, axis_name)
    return neighbour_divergence(features, target, eps=eps, where=where, axis_name=axis_name)
