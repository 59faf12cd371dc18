"""Features held close to those of a frozen teacher."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array


def feature_distillation(student: Any, teacher: Any) -> Array:
    r"""The mean squared difference of each example's features to a teacher's.

    Formula:
      .. math:: L_i = \frac{1}{D} \sum_d (s_{id} - t_{id})^2

      with no gradient to t.

    Args:
      student: float ``[B, D]`` or ``[B, ...]``: the features of the model in training.
      teacher: float of the same shape: those of a frozen model on the same input.

    Returns:
      Float ``[B]``, in float32 or better. The authors add 30 times its mean, on images filled by
      ``inputs.cam_mask_refill``, to the cross-entropy on clean images.

    Raises:
      ValueError: if the two are not floats of one shape ``[B, ...]``.

    Cost:
      A forward pass of the teacher, and a forward and backward pass of the student on the changed images.
      XLA at 2 times [1024, 512]: at most 2.2 times the FLOPs and 1.7 times the bytes of a copy of its arguments, and 0.28 times
      its memory more.

    Use:
      For: fine-tuning, distribution shift.
      When: A pretrained model is tuned and shall keep its features, above all on images it is not tuned for: those of
        `cam_mask_refill`, at weight 30 beside cross-entropy on clean ones. Teacher and student see the same input and have the
        same width.
      Not when: Widths differ (`probabilistic_knowledge_transfer` or a projector), or the new task needs other features: held
        ones are then the bottleneck.
      Badly with: `weights.l2_sp` or `mixout`, which hold the same model in its weights. A teacher in training mode, whose
        dropout and batch statistics are noise in the target. Teacher features stored for images that are augmented anew.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.features.feature_distillation(jnp.array([[1.0, 3.0], [0.0, 0.0]]), jnp.ones((2, 2))).tolist()
      [2.0, 1.0]

    References:
      Xiao et al., Masked Images Are Counterfactual Samples for Robust Fine-tuning, 2023, arXiv 2303.03052; its loss is the
      mean of this over the batch.
    """
    name = "features.feature_distillation"
    student = checks.floating(name, "student", student, min_ndim=2)
    teacher = checks.floating(name, "teacher", teacher, shape=student.shape)
    dtype = trees.accumulator(student, teacher)
    gap = student.astype(dtype) - jax.lax.stop_gradient(teacher).astype(dtype)
    return jnp.mean(jnp.square(gap), axis=tuple(range(1, gap.ndim)))
