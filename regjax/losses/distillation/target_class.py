"""Distillation with the target class set apart from the others: NKD with a teacher, USKD without one."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, classes
from regjax.core.types import Array, Strength
from regjax.losses._probabilities import weighted
from regjax.losses.distillation._pairs import expectation, pair, probabilities, softened
from regjax.losses.smoothing.soft_targets import label_smoothing


def nkd(
    student_logits: Any,
    teacher_logits: Any,
    labels: Any,
    *,
    gamma: Strength = 1.5,
    temperature: Strength = 1.0,
    axis: int = -1,
    where: Any = None,
) -> Array:
    r"""Normalised knowledge distillation: the target class by its probability, the others by their distribution among them.

    Formula:
      .. math:: -T_y \log S_y + \gamma \tau^2 N, \quad N = -\sum_{k \ne y} \hat T_k \log \hat S_k

      with S and T the softmax of student and teacher over all classes at temperature 1, and :math:`\hat S, \hat T` those over
      the other classes alone at temperature :math:`\tau`. The cross-entropy of plain distillation at temperature 1 is
      :math:`-T_y \log S_y - (1 - T_y) \log(1 - S_y) + (1 - T_y) N`: there a sure teacher takes the weight of N away, here N
      has its own. N is a cross-entropy, whose least value is the entropy of :math:`\hat T`. To be added to the cross-entropy
      of the labels.

    Args:
      student_logits: float ``[..., K]``, classes on ``axis``.
      teacher_logits: float, of the shape of ``student_logits``. No gradient flows to them.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``student_logits``, of which the largest is the
        target y.
      gamma: at least 0, default 1.5 (ImageNet; 1 for DeiT, 3.5 for CIFAR-100), a number or a traced scalar. 0 leaves the
        target's part.
      temperature: :math:`\tau`, above 0, default 1 (3 for CIFAR-100), a number or a traced scalar.
      axis: the class axis.
      where: boolean, broadcasts to ``student_logits``: the classes that exist, for both.

    Returns:
      The loss of each example, ``[...]``, in float32 or better; without a class other than the target N is 0.

    Raises:
      ValueError: if a shape or dtype does not fit, ``gamma`` is negative or ``temperature`` not positive and finite.

    Cost:
      Two exponentials for each logit of both; the teacher's forward pass is the caller's.
      XLA at [1024, 1000]: at most 8.6 times the FLOPs and 2.6 times the bytes of cross-entropy, and 1.7 times its memory more.

    Use:
      For: few labels, compute budget.
      When: As `distillation`, where the teacher is very sure of the target and the other classes would get no weight: they have
        their own. Added to cross-entropy, with labels. On digits both helped a student of few images by points, and neither was
        ahead.
      Not when: Labels are wrong: the class left out is then not the teacher's. There are two classes, for which the second part
        is 0. Gamma and temperature differ much between data sets: search both.
      Badly with: Labels of `mixup` and `cutmix`, of which it sees the larger class alone. `distillation`, the same knowledge
        twice. A teacher of `label_smoothing`, whose other classes are all alike.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> student, teacher = jnp.array([2.0, 1.0, 0.0]), jnp.array([1.0, 3.0, 0.0])
      >>> round(float(rj.losses.nkd(student, teacher, jnp.array(0))), 4)
      0.5876

    References:
      Yang et al., From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and
      Customized Soft Labels, 2023, arXiv 2303.13005; as the authors' code.
    """
    name = "losses.nkd"
    checks.number(name, "gamma", gamma, low=0.0)
    checks.number(name, "temperature", temperature, low=0.0, open_low=True)
    arguments = ("student_logits", "teacher_logits")
    x, teacher = pair(name, student_logits, teacher_logits, labels, arguments=arguments, axis=axis, where=where)
    target = x.labels if x.is_ids else jnp.argmax(x.labels, axis=-1)
    column = jax.lax.broadcasted_iota(target.dtype, x.logits.shape, x.logits.ndim - 1)
    others = column != target[..., None]
    others = others if x.where is None else others & x.where
    confidence = jax.nn.sigmoid(_odds(jax.lax.stop_gradient(teacher), target, others, x.where))
    log_s = jax.nn.log_sigmoid(_odds(x.logits, target, others, x.where))
    # 0 * log 0 = 0; a wrong label is NaN in the confidence, and stays.
    target_part = -confidence * jnp.where(confidence == 0, 0, log_s)

    student, fixed = softened(x._replace(where=others), teacher, temperature)
    rest_part = student.log_total - expectation(fixed, student.shifted)
    tau = jnp.asarray(temperature, rest_part.dtype)
    return target_part + weighted(gamma, jnp.square(tau) * rest_part)


def uskd(
    logits: Any,
    weak_logits: Any,
    labels: Any,
    *,
    alpha: Strength = 1.0,
    beta: Strength = 0.1,
    mu: Strength = 0.005,
    rank_with: str = "log",
    axis: int = -1,
    where: Any = None,
    axis_name: Any = None,
) -> Array:
    r"""Universal self-distillation: soft labels of the network's own making, for the target and by rank for the others.

    Formula:
      .. math:: \alpha P \, (-\log S_y) + \beta \left( -\sum_{k \ne y} n_k \log \hat S_k \right)
                + \mu \left( -\sum_k t_k \log W_k \right)

      S and W are the softmax of the logits and of the weak head's, :math:`\hat S` that of the logits of the classes other
      than y. :math:`P = S_y^2 + 1 - mean_b(S_y^2)`, the mean over the batch. n is Zipf's law, 1 / rank, over the classes
      other than y, divided by its sum; the ranks are those among all K classes of
      :math:`W_k / (1 - W_y + 10^{-6}) + l_k / (1 - l_y + 10^{-6})` with :math:`l = \log S`, largest first.
      :math:`t = 0.9\, onehot(y) + 0.1 / K`. P and n are constants for the gradient, so that the weak head learns from its own
      term alone. To be added to the cross-entropy of the labels.

      Mixed labels: the two largest entries :math:`v_1, v_2` have a target's part each, with
      :math:`P_i = S_{y_i}^2 + v_i - mean_b(S_{y_i}^2)`, both leave the second term, and t is 0.9 times the label plus 0.1 / K.
      A row with a single class is treated as a class id.

    Args:
      logits: float ``[..., K]``, classes on ``axis``.
      weak_logits: float, of the shape of ``logits``: those of a linear head on a pooled intermediate feature (the last stage
        but one).
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits`` (mixup, CutMix).
      alpha: the target's weight, at least 0, default 1 (ImageNet; 0.1 for CIFAR-100), a number or a traced scalar.
      beta: the weight of the other classes, at least 0, default 0.1.
      mu: the weak head's weight, at least 0, default 0.005 (0.1 for CIFAR-100).
      rank_with: ``"log"`` (default), the authors' code, or ``"prob"``, the paper: l = S.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist, for both. Examples without any leave the batch mean.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split under ``shard_map`` or ``pmap``, for the
        batch mean. Not needed under ``jit`` with sharded arrays.

    Returns:
      The loss of each example, ``[...]``, in float32 or better; 0 where no class exists. All weights 0 give 0.

    Raises:
      ValueError: if a shape or dtype does not fit, a weight is negative or not finite, or ``rank_with`` is misspelt.

    Cost:
      Two sorts of the K classes of each example in the forward pass: at 1000 classes on a CPU some hundred times the time of a
      cross-entropy. A linear head.
      XLA at 2 times [1024, 1000]: at most 15 times the FLOPs and 3.1 times the bytes of cross-entropy of each, and 0.66 times
      its memory more.

    Use:
      For: few labels.
      When: Self-distillation without a teacher or memory, for networks in stages to which a linear weak head can be hung.
        Batches large enough for a mean. Gains of about a point are what the authors report on ImageNet.
      Not when: Small networks without stages. On CPUs with a thousand classes: its sorts cost far more than the loss. Labels
        are noisy: the weight of sure targets rises. Ranks of few classes say little.
      Badly with: Labels of three classes and more, as of `mixup` after `label_smoothing`: it keeps the largest two.
        `label_smoothing` of the main loss, which flattens what Zipf's law orders. Microbatches, whose mean is that of a part.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> logits, weak = jnp.array([[2.0, 1.0, 0.0, -1.0]]), jnp.array([[0.0, 0.5, 1.0, 0.0]])
      >>> round(float(rj.losses.uskd(logits, weak, jnp.array([0]))[0]), 4)
      0.5669

    References:
      Yang et al., From Knowledge Distillation to Self-Knowledge Distillation: A Unified Approach with Normalized Loss and
      Customized Soft Labels, 2023, arXiv 2303.13005. The paper ranks with probabilities; the authors' code has overwritten
      them with their logarithms by then, which is the default here. With mixed labels that code removes two classes from
      every row, of one class or two; here as many as the row has, the second's batch mean is over the rows that have one,
      and the ranks' denominators take the two targets together.
    """
    name = "losses.uskd"
    for argument, value in (("alpha", alpha), ("beta", beta), ("mu", mu)):
        checks.number(name, argument, value, low=0.0)
    checks.choice(name, "rank_with", rank_with, ("log", "prob"))
    checks.axis_name(name, axis_name)
    x, weak = pair(name, logits, weak_logits, labels, arguments=("logits", "weak_logits"), axis=axis, where=where)
    targets = _targets(x)
    parts = classes.normalise(x.logits, x.where)

    target_part: Any = 0.0
    column = jax.lax.broadcasted_iota(jnp.int32, x.logits.shape, x.logits.ndim - 1)
    others = column >= 0 if x.where is None else x.where
    for ids, share in targets:
        log_s = classes.pick(parts.shifted, ids) - parts.log_total
        has = share > 0
        counts = has if x.where is None else has & jnp.any(x.where, axis=-1)
        q = jax.lax.stop_gradient(jnp.exp(2 * log_s))
        weight = q + share - _mean(q, counts, axis_name)
        target_part = target_part - jnp.where(has, weight * jnp.where(has, log_s, 0), 0)
        others &= ~((column == ids[..., None]) & has[..., None])

    ranks = _ranks(*jax.lax.stop_gradient((parts, classes.normalise(weak, x.where))), targets, rank_with, x.where)
    zipf = jnp.where(others, 1 / (1 + ranks.astype(weak.dtype)), 0)
    total = jnp.sum(zipf, axis=-1, keepdims=True)
    rest = classes.ClassInputs(x.logits, zipf / jnp.where(total > 0, total, 1), others, False)
    rest_part = classes.cross_entropy(rest)

    weak_part = label_smoothing(weak, x.labels, alpha=0.1, where=x.where)
    loss = weighted(alpha, target_part) + weighted(beta, rest_part) + weighted(mu, weak_part)
    return loss if x.where is None else jnp.where(jnp.any(x.where, axis=-1), loss, 0)


def _odds(logits: Array, target: Array, others: Array, where: Array | None) -> Array:
    """The logarithm of the target's probability over that of the other classes together."""
    own = classes.pick(logits if where is None else jnp.where(where, logits, -jnp.inf), target)
    top = jax.lax.stop_gradient(jnp.max(jnp.where(others, logits, -jnp.inf), axis=-1))
    alone = top == -jnp.inf
    odds = own - jnp.where(alone, 0, top) - classes.normalise(logits, others).log_total
    # Chosen after the subtraction, so that no gradient meets the difference of two infinities.
    return jnp.where(own == -jnp.inf, -jnp.inf, jnp.where(alone, jnp.inf, odds))


def _targets(x: classes.ClassInputs) -> list[tuple[Array, Array]]:
    """The target classes with their shares: the class id with share 1, or the two largest probabilities."""
    if x.is_ids:
        return [(x.labels, jnp.ones_like(x.labels, x.logits.dtype))]
    labels = jax.lax.stop_gradient(x.labels).astype(x.logits.dtype)
    first = jnp.argmax(labels, axis=-1)
    column = jax.lax.broadcasted_iota(first.dtype, labels.shape, labels.ndim - 1)
    others = jnp.where(column == first[..., None], 0, labels)
    return [(first, jnp.max(labels, axis=-1)), (jnp.argmax(others, axis=-1), jnp.max(others, axis=-1))]


def _mean(values: Array, counts: Array, axis_name: Any) -> Array:
    """The mean over the whole batch of the examples that count."""
    sums = jnp.sum(jnp.where(counts, values, 0)), jnp.sum(counts, dtype=values.dtype)
    total, count = sums if axis_name is None else jax.lax.psum(sums, axis_name)
    return total / jnp.maximum(count, 1)


def _ranks(
    strong: classes.Normalised, weak: classes.Normalised, targets: list[tuple[Array, Array]], rank_with: str, where: Array | None
) -> Array:
    """The position of each class, from 0, among all, largest mixed score first; of equal ones the first class."""
    score: Any = 0.0
    for parts, log in ((weak, False), (strong, rank_with == "log")):
        values = parts.shifted - parts.log_total[..., None] if log else probabilities(parts)
        of_targets: Any = sum(jnp.where(share > 0, classes.pick(values, ids), 0) for ids, share in targets)
        score = score + values / (1 - of_targets + 1e-6)[..., None]
    # Absent classes come last, where they take no rank from the others.
    score = score if where is None else jnp.where(where, score, -jnp.inf)
    return jnp.argsort(jnp.argsort(-score, axis=-1, stable=True), axis=-1)
