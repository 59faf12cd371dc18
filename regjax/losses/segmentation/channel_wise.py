"""Distillation of maps: channel by channel over pixels, by correlations, and the training of a label-assisted teacher."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, sharding, trees
from regjax.core.types import Array, Strength
from regjax.losses.segmentation._dense import divergence, mean


def channel_wise_distillation(
    student_logits: Any, teacher_logits: Any, *, temperature: Strength = 4.0, where: Any = None, axis_name: Any = None
) -> Array:
    r"""Divergence of a student's maps from a teacher's, each channel a distribution over the pixels of its image.

    Formula:
      .. math::
         \frac{T^2}{B K} \sum_{b, k} \sum_p t_{bpk} \log \frac{t_{bpk}}{s_{bpk}}

      with s and t the softmax of the logits / T over all pixels p of image b in channel k. Where a channel is high matters,
      not how high: a constant added to a channel changes nothing.

    Args:
      student_logits: float ``[B, H, W, K]``, or ``[B, ..., K]`` with any pixel axes: logits or feature maps.
      teacher_logits: float, of the shape of ``student_logits``. No gradient flows to them.
      temperature: T, above 0, default 4, a number or a traced scalar.
      where: boolean ``[B, ...]``, the pixels that count; default all. An image without any leaves the mean.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split under ``shard_map`` or ``pmap``: sums
        and counts are added over it. Gradients averaged over it are then those of the whole batch.

    Returns:
      A scalar in float32 or better, at least 0 up to rounding; 0 where no pixel counts.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``temperature`` is not positive and finite.

    Cost:
      A softmax of each map; the teacher's forward pass is the caller's.
      XLA at [8, 64, 64, 21]: at most 5.6 times the FLOPs and 2.2 times the bytes of cross-entropy, and 0.63 times its memory
      more.

    Use:
      For: compute budget.
      When: Segmentation or detection from a larger network: where each class map is high counts, not how sure the teacher is.
        Weight 3 beside cross-entropy, temperature 4.
      Not when: The teacher errs as the labels do: on generated shapes a gain over cross-entropy was not shown, neither with
        true nor with wrong masks. A better teacher, `label_assisted_teacher_loss`, did help its student.
      Badly with: Global pooling before it: it needs pixels. Absent classes, whose maps of noise count as much as others. Crops
        that differ between the two networks.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> student, teacher = jnp.array([0.0, 1.0, 2.0, 3.0]), jnp.array([1.0, 0.0, 0.0, 1.0])
      >>> maps = student.reshape(1, 2, 2, 1), teacher.reshape(1, 2, 2, 1)
      >>> round(float(rj.losses.channel_wise_distillation(*maps, temperature=1.0)), 4)
      0.6648

    References:
      Shu et al., Channel-wise Knowledge Distillation for Dense Prediction, 2020, arXiv 2011.13256; as in the authors' code of
      Qiu et al., Make a Strong Teacher with Label Assistance: A Novel Knowledge Distillation Approach for Semantic
      Segmentation, 2024, ECCV, which adds 3 times this to the student's cross-entropy. ``where`` is not theirs.
    """
    name = "losses.channel_wise_distillation"
    checks.number(name, "temperature", temperature, low=0.0, open_low=True)
    student = checks.floating(name, "student_logits", student_logits, min_ndim=3)
    teacher = checks.floating(name, "teacher_logits", teacher_logits, shape=student.shape)
    mask = _pixel_mask(name, where, student)
    checks.axis_name(name, axis_name)
    dtype = trees.accumulator(student, teacher)
    teacher = jax.lax.stop_gradient(teacher)
    return _channel_wise(student.astype(dtype), teacher.astype(dtype), temperature, mask, axis_name)


def label_assisted_teacher_loss(
    logits1: Any,
    logits2: Any,
    labels: Any,
    *,
    weight: Strength = 5.0,
    temperature: Strength = 4.0,
    ignore_label: int = 255,
    where: Any = None,
    axis_name: Any = None,
) -> Array:
    r"""Trains a teacher that sees the labels through noise: two draws of the noise must agree on the map.

    Formula:
      .. math:: CE(z_1, y) + CE(z_2, y) + w \left( CWD(z_1, z_2) + CWD(z_2, z_1) \right)

      with CE the mean over the labelled pixels and CWD the `channel_wise_distillation` over all pixels, whose second
      argument gets no gradient. The logits are the network's on the image with two independent draws of
      ``inputs.noisy_label_channel`` beside it.

    Args:
      logits1: float ``[B, H, W, K]``, or ``[B, ..., K]`` with any pixel axes: from the first draw.
      logits2: float, of the shape of ``logits1``: from the second.
      labels: integer class ids ``[B, H, W]``, as many as pixels of the logits.
      weight: w, at least 0, default 5. 0 is the two cross-entropies.
      temperature: that of the divergence, above 0, default 4.
      ignore_label: the id without a class, default 255: such a pixel leaves the cross-entropy. Any other id outside [0, K)
        gives NaN, so that a wrong label is seen.
      where: boolean ``[B, H, W]``, the pixels that count in both parts; default all.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split under ``shard_map`` or ``pmap``: sums
        and counts are added over it. Gradients averaged over it are then those of the whole batch.

    Returns:
      A scalar in float32 or better; without any labelled pixel the cross-entropies are 0.

    Raises:
      ValueError: if a shape or dtype does not fit, or a strength is out of range.

    Cost:
      Two forward and backward passes of the network (concatenate the draws: one pass at twice the batch); four softmaxes
      over the pixels and two over the classes.
      XLA at 2 times [8, 64, 64, 21]: at most 7.4 times the FLOPs and 2.4 times the bytes of cross-entropy of each, and 0.19
      times its memory more.

    Use:
      For: noisy labels, compute budget.
      When: To train a segmentation teacher that sees the label as a noisy extra channel of `noisy_label_channel`. On shapes
        with wrong masks students of such a teacher did better than those of a plain one.
      Not when: Masks are true: on generated shapes neither teacher nor student was shown to gain. The teacher shall work
        without labels: it needs the channel. Memory for two passes is short.
      Badly with: One draw of noise in both passes, which agree at once. Soft or mixed labels: ids are needed, for the channel
        too. Class values that stay fixed in training, which it copies. Ignored pixels, unless ``where`` leaves them out.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> logits = jnp.zeros((1, 2, 2, 3)).at[..., 0].set(2.0)
      >>> labels = jnp.array([[[0, 0], [1, 255]]])
      >>> round(float(rj.losses.label_assisted_teacher_loss(logits, logits, labels)), 4)
      1.8124

    References:
      Qiu et al., Make a Strong Teacher with Label Assistance: A Novel Knowledge Distillation Approach for Semantic
      Segmentation, 2024, ECCV; as the authors' code, whose divergence counts ignored pixels. Pass ``where=labels != 255`` to
      leave them out of it too.
    """
    name = "losses.label_assisted_teacher_loss"
    checks.number(name, "weight", weight, low=0.0)
    checks.number(name, "temperature", temperature, low=0.0, open_low=True)
    checks.integer(name, "ignore_label", ignore_label)
    logits1 = checks.floating(name, "logits1", logits1, min_ndim=3)
    logits2 = checks.floating(name, "logits2", logits2, shape=logits1.shape)
    labels = checks.integers(name, "labels", labels, shape=logits1.shape[:-1])
    mask = _pixel_mask(name, where, logits1)
    checks.axis_name(name, axis_name)
    dtype = trees.accumulator(logits1, logits2)
    z1, z2 = logits1.astype(dtype), logits2.astype(dtype)

    # A narrow dtype could not hold the ids that are compared with.
    ids = sharding.along(labels.astype(jnp.promote_types(labels.dtype, jnp.int32)), z1)
    labelled = ids != ignore_label
    ids = jnp.where(labelled, ids, 0)
    counted = labelled if mask is None else labelled & mask
    entropies = [classes.cross_entropy(classes.ClassInputs(z, ids, None, True)) for z in (z1, z2)]
    loss = mean(entropies[0] + entropies[1], counted, axis_name)

    one = _channel_wise(z1, jax.lax.stop_gradient(z2), temperature, mask, axis_name)
    other = _channel_wise(z2, jax.lax.stop_gradient(z1), temperature, mask, axis_name)
    return loss + jnp.asarray(weight, dtype) * (one + other)


def dist_relation(
    student_logits: Any,
    teacher_logits: Any,
    *,
    beta: Strength = 1.0,
    gamma: Strength = 1.0,
    where: Any = None,
    axis_name: Any = None,
) -> Array:
    r"""One minus the correlations of a student's probabilities with a teacher's, within examples and within classes.

    Formula:
      .. math::
         \beta \left( 1 - mean_i\, r(S_i, T_i) \right) + \gamma \left( 1 - mean_k\, r(S_{.k}, T_{.k}) \right), \quad
         r(a, b) = \frac{\bar a \cdot \bar b}{\lVert \bar a \rVert \lVert \bar b \rVert + 10^{-8}}

      with S and T the softmax of the logits, all leading axes together the N rows, and :math:`\bar a` the vector a less its
      mean: a teacher of another scale of confidence is matched in its order and proportions alone.

    Args:
      student_logits: float ``[..., K]``, at least one leading axis.
      teacher_logits: float, of the shape of ``student_logits``. No gradient flows to them.
      beta: the weight of the correlations within rows, at least 0, default 1.
      gamma: the weight of those within classes, at least 0, default 1. Both 0 give 0.
      where: boolean, of the shape of the leading axes: the rows that count; default all.
      axis_name: the mapped axis, or a tuple of them, over which the rows are split under ``shard_map`` or ``pmap``: sums
        and counts are added over it. Gradients averaged over it are then those of the whole batch.

    Returns:
      A scalar in float32 or better, from 0 to ``2 (beta + gamma)``; 0 where no row counts.

    Raises:
      ValueError: if a shape or dtype does not fit, or a strength is out of range.

    Cost:
      A softmax of each, and four passes over the probabilities; the teacher's forward pass is the caller's.
      XLA at [8, 64, 64, 21]: at most 11 times the FLOPs and 4 times the bytes of cross-entropy, and 2.6 times its memory more.

    Use:
      For: compute budget.
      When: The teacher is much stronger or surer than the student: correlations match order and proportion, not the scale. Also
        for plain classifiers. Batches large enough for a correlation over rows.
      Not when: Batches of a few rows: correlations within classes are noise. The student starts at uniform predictions, where
        the slope is huge: clip gradients or begin with cross-entropy.
      Badly with: `distillation` at full weight beside it, which forces the scale after all. Microbatches and shards without
        ``axis_name``: correlations of parts. Two classes, whose rows correlate by 1 or -1.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> student = jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 0.0]])
      >>> teacher = jnp.array([[1.0, 2.0, 0.0], [0.0, 3.0, 0.0]])
      >>> round(float(rj.losses.dist_relation(student, teacher)), 4)
      1.1656

    References:
      Huang et al., Knowledge Distillation from A Stronger Teacher, 2022, arXiv 2205.10536; as in the authors' code of Qiu et
      al., Make a Strong Teacher with Label Assistance: A Novel Knowledge Distillation Approach for Semantic Segmentation, 2024,
      ECCV. Correlations of a vector that is nearly constant have a slope as large as it is small: near a student's uniform
      predictions gradients are clipped with profit. ``where`` is not theirs.
    """
    name = "losses.dist_relation"
    checks.number(name, "beta", beta, low=0.0)
    checks.number(name, "gamma", gamma, low=0.0)
    student = checks.floating(name, "student_logits", student_logits, min_ndim=2)
    teacher = checks.floating(name, "teacher_logits", teacher_logits, shape=student.shape)
    mask = _pixel_mask(name, where, student)
    checks.axis_name(name, axis_name)
    dtype = trees.accumulator(student, teacher)

    def probabilities(logits: Array) -> Array:
        # Masked before the softmax: a row that does not count may hold anything.
        z = logits.astype(dtype)
        return jax.nn.softmax(z if mask is None else jnp.where(mask[..., None], z, 0), axis=-1)

    s, t = probabilities(student), probabilities(jax.lax.stop_gradient(teacher))
    rows = tuple(range(s.ndim - 1))
    weights = jnp.ones_like(s[..., 0]) if mask is None else mask.astype(dtype)

    def over_rows(x: Array) -> Array:
        total = jnp.sum(x, axis=rows)
        return total if axis_name is None else jax.lax.psum(total, axis_name)

    count = over_rows(weights)
    share = 1 / s.shape[-1]  # the mean of every row of probabilities
    within_rows = _correlation(s - share, t - share, lambda x: jnp.sum(x, -1))
    s, t = ((x - over_rows(x * weights[..., None]) / jnp.maximum(count, 1)) * weights[..., None] for x in (s, t))
    within_classes = jnp.mean(_correlation(s, t, over_rows))
    apart = over_rows(weights * (1 - within_rows)) / jnp.maximum(count, 1)
    return jnp.asarray(beta, dtype) * apart + jnp.asarray(gamma, dtype) * jnp.where(count > 0, 1 - within_classes, 0)


def _correlation(a: Array, b: Array, total: Any) -> Array:
    """Pearson's correlation of centred vectors, with ``total`` the sum over their entries."""
    norms = trees.safe_sqrt(total(jnp.square(a))) * trees.safe_sqrt(total(jnp.square(b)))
    return total(a * b) / (norms + 1e-8)


def _channel_wise(student: Array, teacher: Array, temperature: Any, mask: Array | None, axis_name: Any) -> Array:
    """Checked `channel_wise_distillation`."""
    t = jnp.asarray(temperature, student.dtype)
    pixels = tuple(range(1, student.ndim - 1))
    apart = divergence(student / t, teacher / t, pixels, None if mask is None else mask[..., None])
    images = None if mask is None else jnp.any(mask, axis=pixels)
    return jnp.square(t) * mean(jnp.mean(apart, axis=-1), images, axis_name)


def _pixel_mask(name: str, where: Any, logits: Array) -> Array | None:
    mask = checks.example_mask(name, "where", where, logits.shape[:-1])
    return None if mask is None else sharding.along(mask, logits)
