"""How well a model forgot some classes and kept the others."""

from typing import Any

import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array


def forgetting_score(drop: Any, acc_remain: Any) -> Array:
    r"""One number for forgetting and remembering: the harmonic mean of the two.

    Formula:
      .. math:: H = \frac{2 \, drop \cdot acc}{drop + acc}

      and 0 where one of the two is not positive.

    Args:
      drop: how far the accuracy on the classes to forget fell, float of any shape; in the unit of the other, 0 to 1 or percent.
      acc_remain: the accuracy on the other classes afterwards, of the same shape.

    Returns:
      An array of that shape in float32 or better.

    Raises:
      ValueError: if an argument is not floating or the shapes differ.

    Cost:
      None.

    Use:
      For: unlearning.
      When: Strengths of `bounded_forgetting` or of a group lasso on adapters are tuned: it is low if either side fails, as
        gradient ascent did in the forgetting study.
      Not when: The aim is a network that never saw the data, which may still guess some of it right: `unlearning_metrics` with
        a retrained one. Methods that all forget completely differ by the kept accuracy alone.
      Badly with: A drop from another start: models whose accuracy was lower before can fall less. A share in one argument and
        percent in the other.

    Example:
      >>> import regjax as rj
      >>> round(float(rj.diagnostics.forgetting_score(60.0, 80.0)), 4)
      68.5714

    References:
      Zhao et al., Continual Forgetting for Pre-trained Vision Models, 2024, arXiv 2403.11530 (the H-mean).
    """
    name = "diagnostics.forgetting_score"
    drop = checks.floating(name, "drop", drop)
    acc_remain = checks.floating(name, "acc_remain", acc_remain, shape=drop.shape)
    dtype = trees.accumulator(drop, acc_remain)
    drop, acc_remain = drop.astype(dtype), acc_remain.astype(dtype)
    both = (drop > 0) & (acc_remain > 0)
    return jnp.where(both, 2 * drop * acc_remain / jnp.where(both, drop + acc_remain, 1), 0)
