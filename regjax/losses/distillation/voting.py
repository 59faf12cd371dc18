"""Self-distillation from a vote of a network's own last states."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, trees
from regjax.core.types import Array, Strength


def vote_teachers(probs: Any, *, mode: str = "mean", axis: int = -1, where: Any = None) -> Array:
    r"""One teacher from several: the mean of their probabilities, or the share of them that prefers each class.

    Formula:
      .. math:: P = \frac{1}{M} \sum_m p_m \quad (mean), \qquad
                P_k = \frac{1}{M} \sum_m [k = \arg\max_j p_{mj}] \quad (majority)

      Of equal probabilities a teacher prefers the first. No gradient flows to them.

    Args:
      probs: float ``[M, ..., K]``: the probabilities of M teachers, such as the network after each of the last M steps or
        epochs, on this batch.
      mode: ``"mean"`` (default) or ``"majority"``.
      axis: the class axis of the result, which is that of each ``probs[m]``; default the last.
      where: boolean ``[M]``, or ``[M, ...]`` without the class axis: the teachers that are there, and M counts those alone.
        So a memory of fixed size may still be filling. Default all.

    Returns:
      Probabilities ``[..., K]``, in float32 or better; zeros where there is no teacher, at which `self_distillation` is
      cross-entropy.

    Raises:
      ValueError: if a shape or dtype does not fit, there is no teacher or class, or ``mode`` is misspelt.

    Cost:
      One pass over the probabilities. To keep them takes M B K numbers; to recompute them, M forward passes.
      XLA at [4, 1024, 1000]: at most 1.1 times the FLOPs and 0.69 times the bytes of a copy of its arguments, and 0 times its
      memory more.

    Use:
      Part of: `self_distillation`.
      When: Call it to make one target of several networks or snapshots: ``mean`` for targets that keep doubt, ``majority``
        where some teachers are far too sure.
      Badly with: Logits in place of probabilities, which are averaged without complaint. ``majority`` with one or two teachers,
        which is a hard label.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> probs = jnp.array([[[0.75, 0.25]], [[0.25, 0.75]], [[0.5, 0.5]]])
      >>> rj.losses.vote_teachers(probs).tolist()
      [[0.5, 0.5]]
      >>> [round(float(x), 4) for x in rj.losses.vote_teachers(probs, mode="majority")[0]]
      [0.6667, 0.3333]

    References:
      Zhu et al., Improving Differentiable Architecture Search via Self-Distillation, 2023, arXiv 2302.05629. Reconstructed
      from the paper's description, without its code: how its teachers vote is uncertain.
    """
    name = "losses.vote_teachers"
    probs = checks.floating(name, "probs", probs, min_ndim=2)
    checks.choice(name, "mode", mode, ("mean", "majority"))
    axis = checks.integer(name, "axis", axis, low=1 - probs.ndim, high=probs.ndim - 2) % (probs.ndim - 1)
    if probs.shape[0] < 1 or probs.shape[1 + axis] < 1:
        checks.fail(name, "probs", "an array [M, ..., K] of at least one teacher and one class", probs)
    p = jnp.moveaxis(jax.lax.stop_gradient(probs).astype(trees.accumulator(probs)), 1 + axis, -1)
    if mode == "majority":
        favourite = jnp.argmax(p, axis=-1)
        p = (jax.lax.broadcasted_iota(favourite.dtype, p.shape, p.ndim - 1) == favourite[..., None]).astype(p.dtype)
    if where is None:
        return jnp.moveaxis(jnp.mean(p, axis=0), -1, axis)
    mask = checks.array(name, "where", where)
    if mask.dtype != jnp.bool_ or mask.shape not in (p.shape[:1], p.shape[:-1]):
        checks.fail(name, "where", f"a boolean mask of teachers, {list(p.shape[:1])} or {list(p.shape[:-1])}", mask)
    mask = mask.reshape(mask.shape + (1,) * (p.ndim - mask.ndim))
    # A choice, not a product: the place of a teacher that is not there may hold anything.
    total, count = jnp.sum(jnp.where(mask, p, 0), axis=0), jnp.sum(mask, axis=0)
    return jnp.moveaxis(total / jnp.maximum(count, 1), -1, axis)


def self_distillation(
    logits: Any,
    labels: Any,
    teacher_probs: Any,
    *,
    weight: Strength = 1.0,
    temperature: Strength = 1.0,
    axis: int = -1,
    where: Any = None,
) -> Array:
    r"""Cross-entropy plus the divergence from a teacher's probabilities, such as those of the network's last steps.

    Formula:
      .. math:: CE(z, y) + w T^2 \, KL(P, softmax(z / T)), \quad KL(P, q) = \sum_k P_k (\log P_k - \log q_k)

      No gradient flows to P. The loss of consecutive states differs by about the sharpness at the minimum, so that agreeing
      with them flattens it; in architecture search the steps on the weights use this loss, those on the architecture
      cross-entropy.

    Args:
      logits: float ``[..., K]``, z, classes on ``axis``.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits``.
      teacher_probs: float, of the shape of ``logits``: P, at temperature T, as of `vote_teachers`. Where it is zero
        throughout, as before there is any teacher, the loss is cross-entropy.
      weight: w, at least 0, default 1, a number or a traced scalar. 0 is cross-entropy.
      temperature: T, above 0, default 1, a number or a traced scalar.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist; the teacher's mass on the others is left out.

    Returns:
      The loss of each example, ``[...]``, in float32 or better; 0 where no class exists.

    Raises:
      ValueError: if a shape or dtype does not fit, ``weight`` is negative or not finite, or ``temperature`` is not positive
        and finite.

    Cost:
      One pass over the logits and the teacher's probabilities each way; the probabilities are the caller's.
      XLA at [1024, 1000]: at most 6.9 times the FLOPs and 1.6 times the bytes of cross-entropy, and 0.55 times its memory more.

    Use:
      For: sharp minima, unstable training.
      When: Architecture search with a supernet, in the steps on the weights, or any training that jumps between steps: the
        network's last states teach it. Take the teachers' probabilities at the loss's temperature.
      Not when: States are far apart, as after a restart or at a high learning rate: the old ones hold training back. Labels are
        noisy and training long: the vote agrees on what was memorised. Weight and temperature are guesses: search them.
      Badly with: `sgdr` and `adamwr` across a restart. `ps_kd`, the same idea with one state. Teachers of other augmentations
        of the batch, unless consistency is meant. `dropout` left on in the teachers' passes.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> z, y, past = jnp.array([2.0, 1.0, 0.0]), jnp.array(0), jnp.array([0.5, 0.5, 0.0])
      >>> round(float(rj.losses.self_distillation(z, y, past)), 4)
      0.6221

    References:
      Zhu et al., Improving Differentiable Architecture Search via Self-Distillation, 2023, arXiv 2302.05629. Reconstructed
      from the paper's description, without its code: weight and temperature are uncertain.
    """
    name = "losses.self_distillation"
    checks.number(name, "weight", weight, low=0.0)
    checks.number(name, "temperature", temperature, low=0.0, open_low=True)
    x = classes.class_inputs(name, logits, labels, axis=axis, where=where)
    teacher = checks.floating(name, "teacher_probs", teacher_probs, shape=jnp.shape(logits))
    dtype = trees.accumulator(x.logits, teacher)
    p = jnp.moveaxis(jax.lax.stop_gradient(teacher).astype(dtype), axis, -1)
    p = p if x.where is None else jnp.where(x.where, p, 0)
    parts = classes.normalise(x.logits.astype(dtype), x.where)
    loss = classes.cross_entropy(x, parts)
    t = jnp.asarray(temperature, dtype)
    soft, log_total = parts
    if not (isinstance(temperature, (int, float)) and temperature == 1):  # else the exponentials would be taken twice
        soft = parts.shifted / t
        total = jnp.sum(jnp.exp(soft), axis=-1)
        log_total = jnp.log(jnp.where(total > 0, total, 1))
    # One sum over p (log p - soft): a class of probability 0 adds nothing, however far its logit.
    some = p > 0
    terms = jnp.where(some, p * (jnp.log(jnp.where(some, p, 1)) - jnp.where(some, soft, 0)), 0)
    divergence = jnp.sum(p, axis=-1) * log_total + jnp.sum(terms, axis=-1)
    strength = jnp.asarray(weight, dtype) * jnp.square(t)
    # At weight 0 an infinite divergence, from a logit of -inf, counts for nothing.
    return loss + jnp.where(strength == 0, 0, strength * divergence)
