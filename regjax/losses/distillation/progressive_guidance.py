"""Training the subnetworks of one supernetwork, each guided by the one before it."""

from typing import Any

import jax.numpy as jnp

from regjax.core import checks, classes
from regjax.core.types import Array, Strength
from regjax.losses._probabilities import weighted
from regjax.losses.distillation._pairs import expectation, pair, softened


def group_progressive_guidance(
    logits: Any,
    teacher_logits: Any,
    labels: Any,
    *,
    alpha: Strength = 0.5,
    temperature: Strength = 1.0,
    axis: int = -1,
    where: Any = None,
) -> Array:
    r"""The loss of a subnetwork that learns from the labels and from the next larger subnetwork.

    Formula:
      .. math:: \alpha T^2 KL(softmax(t / T) \| softmax(z / T)) + (1 - \alpha) CE(z, y)

      Each step has a chain of subnetworks: the largest (of the most bits) with cross-entropy alone; one or more at random; the
      smallest. Each but the first has the logits of the one before it as teacher. The gradients of all are added, then clipped
      by value at 1.

    Args:
      logits: float ``[..., K]``, z, of the subnetwork, classes on ``axis``.
      teacher_logits: float, of the shape of ``logits``: t, of the subnetwork before it. No gradient flows to them.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits``.
      alpha: the teacher's share, in [0, 1], default 0.5, a number or a traced scalar; 0 is cross-entropy.
      temperature: T, above 0, default 1, a number or a traced scalar.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist, for both.

    Returns:
      The loss of each example, ``[...]``, in float32 or better; 0 where no class exists.

    Raises:
      ValueError: if a shape or dtype does not fit, or a strength lies outside its range or is not finite.

    Cost:
      Two softmaxes of the student, one of the teacher; a forward and backward pass for each subnetwork of the chain.
      XLA at [1024, 1000]: at most 7.2 times the FLOPs and 2.1 times the bytes of cross-entropy, and 0.55 times its memory more.

    Use:
      For: compute budget.
      When: One set of weights for several precisions or sizes, trained in a chain from the largest to the smallest: each learns
        from the next larger one, which is nearer to it than the largest is.
      Not when: The sizes lie close, when cross-entropy alone serves. Batch normalisation is shared and not calibrated again for
        each size. Time for three passes a step is missing.
      Badly with: Leaving out the clipping of the summed gradients. `adaptive_alpha_divergence`, another teacher for the same
        networks. A chain out of order, where a small network teaches a larger one.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> student, teacher = jnp.array([2.0, 1.0, 0.0]), jnp.array([1.0, 3.0, 0.0])
      >>> round(float(rj.losses.group_progressive_guidance(student, teacher, jnp.array(0))), 4)
      0.6094

    References:
      Xu et al., EQ-Net: Elastic Quantization Neural Networks, 2023, arXiv 2308.07650, as in the authors' code, with the mean
      over the batch left to the caller. `distillation` is the first term, and
      `regjax.weights.weight_distribution_penalty` is added to the loss of the largest subnetwork.
    """
    name = "losses.group_progressive_guidance"
    checks.number(name, "alpha", alpha, low=0.0, high=1.0)
    checks.number(name, "temperature", temperature, low=0.0, open_low=True)
    arguments = ("logits", "teacher_logits")
    x, teacher = pair(name, logits, teacher_logits, labels, arguments=arguments, axis=axis, where=where)
    student, fixed = softened(x, teacher, temperature)
    divergence = student.log_total - fixed.log_total - expectation(fixed, student.shifted - fixed.shifted)
    divergence = jnp.square(jnp.asarray(temperature, divergence.dtype)) * divergence
    share = jnp.asarray(alpha, divergence.dtype)
    return weighted(share, divergence) + weighted(1 - share, classes.cross_entropy(x))
