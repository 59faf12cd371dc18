"""Knowledge distillation: the divergence of a student's softened predictions from a teacher's."""

from typing import Any

import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array, Strength
from regjax.losses.distillation._pairs import expectation, pair, softened


def distillation(
    student_logits: Any,
    teacher_logits: Any,
    *,
    temperature: Strength = 4.0,
    scale_by_temperature: bool = True,
    axis: int = -1,
    where: Any = None,
) -> Array:
    r"""The divergence of the student's softened probabilities from the teacher's: Hinton's knowledge distillation.

    Formula:
      .. math:: T^2\, KL(p \| q) = T^2 \sum_k p_k (\log p_k - \log q_k), \quad
                p = softmax(t / T), \quad q = softmax(s / T)

      Its gradient by s is ``T (q - p)``, and for a large T the centred difference of the logits, ``(s - t) / K``: the factor
      keeps its size as T grows. Usual totals are ``(1 - w) CE + w KD`` with w = 0.9, or ``CE + 0.9 KD``.

    Args:
      student_logits: float ``[..., K]``, s, classes on ``axis``.
      teacher_logits: float, of the shape of ``student_logits``: t. No gradient flows to them.
      temperature: T, above 0, default 4, a number or a traced scalar.
      scale_by_temperature: multiply by T squared; default True. Recipes with soft labels computed once, T = 20, go without.
      axis: the class axis.
      where: boolean, broadcasts to ``student_logits``: the classes that exist, for both.

    Returns:
      The divergence of each example, ``[...]``, at least 0 up to rounding, in float32 or better; 0 where no class exists.

    Raises:
      ValueError: if a shape or dtype does not fit, ``temperature`` is not positive and finite, or
        ``scale_by_temperature`` is not a bool.

    Cost:
      A softmax of each; the teacher's forward pass is the caller's.
      XLA at [1024, 1000]: at most 8.3 times the FLOPs and 2.5 times the bytes of cross-entropy, and 0.55 times its memory more.

    Use:
      For: few labels, compute budget.
      When: A better network's logits are at hand for the student's very inputs, augmentation included. Sums with cross-entropy,
        T 2 to 8. On digits of few images a teacher of more lifted the student by points, as much as `nkd` does.
      Not when: The teacher is hardly better, or far more certain than T can soften. Two classes: little is left beside the
        label. Labels are dropped and the teacher errs: the student copies it.
      Badly with: A teacher trained with `label_smoothing`, whose dark knowledge is flattened. `teacher_cross_entropy`, the same
        gradient again. Stored teacher logits with fresh augmentations. `stablemax` students, whose logits mean something else.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> student, teacher = jnp.array([2.0, 1.0, 0.0]), jnp.array([1.0, 3.0, 0.0])
      >>> round(float(rj.losses.distillation(student, teacher, temperature=4.0)), 4)
      0.8812

    References:
      Hinton et al., Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531. Without the factor: Xiao and He,
      Are Large-scale Soft Labels Necessary for Large-scale Dataset Distillation?, 2024, arXiv 2410.15919, in the authors'
      code for ImageNet; that for Tiny-ImageNet has the factor. `teacher_cross_entropy` has the same gradient, and differs by
      the teacher's entropy.
    """
    name = "losses.distillation"
    checks.number(name, "temperature", temperature, low=0.0, open_low=True)
    checks.boolean(name, "scale_by_temperature", scale_by_temperature)
    arguments = ("student_logits", "teacher_logits")
    x, teacher = pair(name, student_logits, teacher_logits, arguments=arguments, axis=axis, where=where)
    student, fixed = softened(x, teacher, temperature)
    # One sum of the differences, which cancel before they are weighed: equal logits give exactly 0.
    loss = student.log_total - fixed.log_total - expectation(fixed, student.shifted - fixed.shifted)
    return jnp.square(jnp.asarray(temperature, loss.dtype)) * loss if scale_by_temperature else loss
