"""Learning from a teacher's logits."""

from typing import Any

import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array, Strength
from regjax.losses.distillation._pairs import expectation, pair, softened


def teacher_cross_entropy(
    logits: Any, teacher_logits: Any, *, temperature: Strength = 1.0, axis: int = -1, where: Any = None
) -> Array:
    r"""Cross-entropy against a teacher's softened probabilities.

    Formula:
      .. math:: - T^2 \sum_k softmax(t / T)_k \log softmax(z / T)_k

      Its gradient, ``T (softmax(z / T) - softmax(t / T))``, is that of the divergence KL(teacher, student), from which it
      differs by the teacher's entropy (`distillation` is the divergence itself); the factor keeps its size as T grows.

    Args:
      logits: float ``[..., K]``, the student's, z, classes on ``axis``.
      teacher_logits: float, of the shape of ``logits``: the teacher's, t. No gradient flows to them.
      temperature: T, above 0, default 1, a number or a traced scalar.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist, for both.

    Returns:
      The loss of each example, ``[...]``, in float32 or better; 0 where no class exists.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``temperature`` is not positive and finite.

    Cost:
      A softmax of each; the teacher's forward pass is the caller's.
      XLA at [1024, 1000]: at most 5.2 times the FLOPs and 1.9 times the bytes of cross-entropy, and 0.55 times its memory more.

    Use:
      For: forgetting, fine-tuning.
      When: As `distillation` at T = 1, where the value shall be a cross-entropy, as of the knowledge that `gradient_dropout`
        guards: the frozen pretrained network is the teacher.
      Not when: The value is to tell how far the student is: its least is the teacher's entropy, not 0. The teacher knows
        nothing of the examples: it guards nothing there.
      Badly with: `distillation` beside it, which is the same gradient twice. `polyak_subgradient` and stopping rules that
        expect a least value of 0.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> loss = rj.losses.teacher_cross_entropy(jnp.array([0.0, 0.0]), jnp.array([2.0, -1.0]), temperature=2.0)
      >>> round(float(loss), 4)
      2.7726

    References:
      Hinton et al., Distilling the Knowledge in a Neural Network, 2015, arXiv 1503.02531. Zheng et al., Regularized Mask
      Tuning: Uncovering Hidden Knowledge in Pre-trained Vision-Language Models, 2023, arXiv 2307.15049: the knowledge loss,
      with T = 1, the mean over the batch and the zero-shot model as teacher.
    """
    name = "losses.teacher_cross_entropy"
    checks.number(name, "temperature", temperature, low=0.0, open_low=True)
    x, teacher = pair(name, logits, teacher_logits, arguments=("logits", "teacher_logits"), axis=axis, where=where)
    student, fixed = softened(x, teacher, temperature)
    loss = student.log_total - expectation(fixed, student.shifted)
    return jnp.square(jnp.asarray(temperature, loss.dtype)) * loss
