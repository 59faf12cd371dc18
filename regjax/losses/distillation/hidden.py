"""Hidden states held close to those of a further pre-trained teacher."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array


def hidden_distillation(student_hidden: Any, teacher_hidden: Any, *, axis: int = -1) -> Array:
    r"""The squared distance of hidden states from a teacher's.

    Formula:
      .. math:: \sum_d (s_d - t_d)^2

      with no gradient to t. A sum, not a mean: it grows with the dimension.

    Args:
      student_hidden: float ``[..., D]``, s: that of the class token after the encoder's last norm, on the whole image.
      teacher_hidden: float, of the same shape, t: the frozen teacher's, on the same image.
      axis: the axis of D, default the last.

    Returns:
      The distance of each example, ``[...]``, in float32 or better.

    Raises:
      ValueError: if the two are not floats of one shape, or ``axis`` is out of range.

    Cost:
      A forward pass of the teacher; and one of the student, forward and backward, on the whole image beside that on the
      masked one.
      XLA at 2 times [1024, 512]: at most 2.2 times the FLOPs and 1.7 times the bytes of a copy of its arguments, and 0.28 times
      its memory more.

    Use:
      For: fine-tuning, forgetting.
      When: Further pretraining on target data makes a transformer overfit: the student starts again from the original weights
        and follows the further-trained teacher. Unlabelled data and two trainings of some length are needed.
      Not when: The student starts from the teacher's weights: then there is nothing to shrink. Target data is plenty. The
        widths differ: add a projection. It is a sum over D: rescale its weight for other widths.
      Badly with: `l2_sp` to the original weights, which holds the student there already. Hidden states before the last norm,
        whose scale drifts. Masked inputs for one network and whole ones for the other.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> float(rj.losses.hidden_distillation(jnp.array([1.0, 2.0]), jnp.zeros(2)))
      5.0

    References:
      Lee et al., Self-Distillation for Further Pre-training of Transformers, 2022, arXiv 2210.02871; the authors' code is the
      same. First the pre-trained encoder is trained further on the target data by masked reconstruction: the teacher. Then
      the student, from the original weights and not the teacher's, minimises the same loss plus the mean of this one, weight 1
      (20000 steps each, AdamW with 1.5e-4, weight decay 0.01 and linear decay, three quarters masked). Then it is fine-tuned.
    """
    name = "losses.hidden_distillation"
    student = checks.floating(name, "student_hidden", student_hidden, min_ndim=1)
    teacher = checks.floating(name, "teacher_hidden", teacher_hidden, shape=student.shape)
    axis = checks.integer(name, "axis", axis, low=-student.ndim, high=student.ndim - 1)
    dtype = trees.accumulator(student, teacher)
    gap = student.astype(dtype) - jax.lax.stop_gradient(teacher).astype(dtype)
    return jnp.sum(jnp.square(gap), axis=axis)
