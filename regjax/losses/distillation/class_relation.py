"""Class discovery: what a novel example has of each known class, taught by the model of the known classes."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, classes
from regjax.core.types import Array, Strength


def class_relation_distillation(
    student_logits: Any,
    teacher_logits: Any,
    *,
    num_known: int,
    temperature: Strength = 0.1,
    distill_temperature: Strength = 4.0,
    axis: int = -1,
    where: Any = None,
    axis_name: Any = None,
) -> Array:
    r"""Distils the known-class predictions of unlabelled novel examples, those most like a known class most.

    Formula:
      .. math:: t^2 \frac{w}{mean_b(w)} \left( -\sum_k p_k \log q_k \right), \quad
                p = softmax(z^{T} / \tau), \quad q = softmax(z_{known} / \tau), \quad \tau = t \, t_0

      over the known classes k, with t the distillation temperature and :math:`t_0` the network's.
      :math:`w = \sum_k softmax(z / \tau)_k` is the mass that the student gives the known classes among all; its mean is over
      the examples that count. The gradient flows through w too, and through its mean. Add it to the discovery loss with the
      weight 0.1, averaged over views and heads.

    Args:
      student_logits: float ``[..., K]``, z, classes on ``axis``: first the known, then the novel ones.
      teacher_logits: float ``[..., num_known]``: those of the frozen model of the known classes for the same view. No
        gradient flows to them.
      num_known: the known classes, from 1 to K.
      temperature: :math:`t_0`, above 0, default 0.1, a number or a traced scalar.
      distill_temperature: t, above 0, default 4, a number or a traced scalar.
      axis: the class axis of both.
      where: boolean ``[...]``, the examples that count: the unlabelled, novel ones. The others cost 0 and leave the mean.
        Default all.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split under ``shard_map`` or ``pmap``, for the
        mean of w. Not needed under ``jit`` with sharded arrays.

    Returns:
      The loss of each example, ``[...]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, ``num_known`` lies outside [1, K], or a temperature is not positive and
        finite.

    Cost:
      A softmax of each; the teacher's forward pass is the caller's. With ``axis_name`` three scalars over devices.
      XLA at [1024, 1000]: at most 7.2 times the FLOPs and 2.4 times the bytes of cross-entropy, and 1.1 times its memory more.

    Use:
      For: few labels, forgetting.
      When: Novel class discovery: labelled known classes, unlabelled new ones, and a frozen model of the known. Added with a
        small weight, 0.1, to the discovery loss, on the novel examples of a batch alone.
      Not when: New classes have nothing in common with known ones: the teacher's answer is arbitrary. Batches hold few novel
        examples: the weights are relative to their mean. No training with it was measured here.
      Badly with: Known examples left in: give ``where``. Another distillation temperature at the same weight: its square is a
        factor. `mixup` of known with novel examples. Student logits whose known classes do not come first.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> student = jnp.array([[0.2, 0.1, 0.0, 0.3], [0.5, -0.5, 0.1, 0.1]])
      >>> teacher = jnp.array([[0.3, 0.1], [0.0, 0.4]])
      >>> loss = rj.losses.class_relation_distillation(student, teacher, num_known=2)
      >>> [round(float(x), 3) for x in loss]
      [9.628, 33.625]

    References:
      Gu et al., Class-relation Knowledge Distillation for Novel Class Discovery, 2023, arXiv 2307.09158. The paper writes a
      divergence; this is the cross-entropy of the authors' code, with the same gradient through q and another through w, and
      with its factor of 16 although the temperature of both softmaxes is 0.4.
    """
    name = "losses.class_relation_distillation"
    checks.number(name, "temperature", temperature, low=0.0, open_low=True)
    checks.number(name, "distill_temperature", distill_temperature, low=0.0, open_low=True)
    checks.axis_name(name, axis_name)
    student = checks.floating(name, "student_logits", student_logits, min_ndim=1)
    axis = checks.integer(name, "axis", axis, low=-student.ndim, high=student.ndim - 1) % student.ndim
    num_classes = student.shape[axis]
    num_known = checks.integer(name, "num_known", num_known, low=1, high=num_classes)
    shape = (*student.shape[:axis], num_known, *student.shape[axis + 1 :])
    teacher = checks.floating(name, "teacher_logits", teacher_logits, shape=shape)
    counts = checks.example_mask(name, "where", where, shape[:axis] + shape[axis + 1 :])

    dtype = jnp.promote_types(jnp.float32, jnp.promote_types(student.dtype, teacher.dtype))
    factor = jnp.asarray(distill_temperature, dtype)
    tau = factor * jnp.asarray(temperature, dtype)
    z = jnp.moveaxis(student, axis, -1).astype(dtype) / tau
    target = jax.nn.softmax(jax.lax.stop_gradient(jnp.moveaxis(teacher, axis, -1).astype(dtype)) / tau, axis=-1)
    loss = classes.cross_entropy(classes.ClassInputs(z[..., :num_known], target, None, False))
    if num_known < num_classes:
        # In logarithms: far from the known classes w underflows, and the whole batch may be there.
        novel, known = (jax.nn.logsumexp(part, axis=-1) for part in (z[..., num_known:], z[..., :num_known]))
        loss = loss * _relative_to_mean(-jax.nn.softplus(novel - known), counts, axis_name)
    loss = jnp.square(factor) * loss
    return loss if counts is None else jnp.where(counts, loss, 0)


def _relative_to_mean(log_w: Array, counts: Array | None, axis_name: Any) -> Array:
    """Positive numbers, given by their logarithms, over the mean of those that count; 0 for the others."""
    kept = log_w if counts is None else jnp.where(counts, log_w, -jnp.inf)
    top = jnp.max(jax.lax.stop_gradient(kept), initial=-jnp.inf)
    top = top if axis_name is None else jax.lax.pmax(top, axis_name)
    w = jnp.exp(kept - jnp.where(jnp.isfinite(top), top, 0))
    sums = jnp.sum(w), jnp.asarray(w.size, w.dtype) if counts is None else jnp.sum(counts, dtype=w.dtype)
    total, count = sums if axis_name is None else jax.lax.psum(sums, axis_name)
    return w * (count / jnp.where(total > 0, total, 1))
