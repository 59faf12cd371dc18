"""A label map as one more channel of the image, through noise: what a label-assisted teacher sees."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Key, Strength


def noisy_label_channel(
    key: Key,
    labels: Any,
    *,
    num_classes: int,
    pixel_noise: Strength = 0.03,
    scale: Any = 100.0,
    ignore_label: int = 255,
    class_values: Any = None,
) -> Array:
    r"""A channel that tells which pixels share a label, but in a code that changes with every image and step.

    Formula:
      .. math:: x_p = s \left( v_{y_p} + \sigma n_p \right), \quad v_k, n_p \sim N(0, 1)

      with one v for each image and class, one more for ignored pixels, and one n for each pixel: the network can use the
      labels' outlines, and cannot read the class.

    Args:
      key: a random key.
      labels: integer class ids ``[B, H, W]``.
      num_classes: K.
      pixel_noise: :math:`\sigma`, at least 0, default 0.03. 0 gives equal labels equal values.
      scale: s, default 100: for images of range 0 to 255 less their mean. Near 1 for images of unit variance.
      ignore_label: the id without a class, default 255; it takes the last value. Any other id outside [0, K) gives NaN, so
        that a wrong label is seen.
      class_values: ``[K + 1]`` or ``[B, K + 1]``, to fix the v: when the teacher is distilled the authors take
        ``(k - 11) / 10`` for the 22 ids of VOC and ``pixel_noise=0.02``. By default they are drawn.

    Returns:
      Float32 ``[B, H, W, 1]``, to concatenate to the images of the teacher; the student gets zeros instead, and the
      teacher at ``pixel_noise=0.0`` with fixed values is deterministic.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``num_classes`` or ``pixel_noise`` is out of range.

    Cost:
      One number drawn for each pixel; one more channel of the input.
      XLA at [8, 128, 128]: at most 130 times the FLOPs and 8.9 times the bytes of a copy of its arguments, and 1.7 times its
      memory more.

    Use:
      For: noisy labels.
      When: The teacher of a segmentation student may see the annotations: their outlines, in a random code, and not their
        classes. On wrong annotations students of such a teacher beat those of a plain one. Use `label_assisted_teacher_loss`.
      Not when: The network must serve without annotations: only a student can. With true masks a gain was not shown. For
        classification there is no outline to give.
      Badly with: Crops, flips or `mixup` of the images alone, after which the outlines do not fit. A scale of 100 beside
        normalised images: near 1 there. Fixed class_values in training, from which the class can be read.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> labels = jnp.array([[[0, 0, 1], [1, 255, 0]]])
      >>> channel = rj.inputs.noisy_label_channel(jax.random.key(0), labels, num_classes=2, pixel_noise=0.0)
      >>> channel.shape, bool(channel[0, 0, 0, 0] == channel[0, 1, 2, 0]), len(set(channel.ravel().tolist()))
      ((1, 2, 3, 1), True, 3)

    References:
      Qiu et al., Make a Strong Teacher with Label Assistance: A Novel Knowledge Distillation Approach for Semantic
      Segmentation, 2024, ECCV; as the authors' code, which was read, not run, for this channel.
    """
    name = "inputs.noisy_label_channel"
    checks.key(name, key)
    labels = checks.integers(name, "labels", labels, ndim=3)
    checks.integer(name, "num_classes", num_classes, low=1)
    value_key, noise_key = jax.random.split(key)
    batch = labels.shape[0]
    if class_values is None:
        class_values = sharding.rows_like(jax.random.normal(value_key, (batch, num_classes + 1), jnp.float32), labels)
    values = checks.floating(name, "class_values", class_values)
    if values.shape not in ((num_classes + 1,), (batch, num_classes + 1)):
        text = f"an array of shape {[num_classes + 1]} or {[batch, num_classes + 1]}: one value for each class and one for"
        checks.fail(name, "class_values", text + " ignored pixels", values)
    noise = jax.random.normal(noise_key, labels.shape, jnp.float32)
    return _channel(name, labels, values, noise, pixel_noise, scale, ignore_label)


def apply_noisy_label_channel(
    labels: Any,
    *,
    class_values: Any,
    noise: Any,
    pixel_noise: Strength = 0.03,
    scale: Any = 100.0,
    ignore_label: int = 255,
) -> Array:
    r"""The label channel from given values and noise: the core of `noisy_label_channel`.

    Formula:
      .. math:: x_p = s \left( v_{y_p} + \sigma n_p \right)

    Args:
      labels: integer class ids ``[B, H, W]``.
      class_values: float ``[K + 1]`` or ``[B, K + 1]``, v; the last is that of ignored pixels.
      noise: float ``[B, H, W]``, n, standard normal.
      pixel_noise: :math:`\sigma`, at least 0, default 0.03. 0 leaves the noise out.
      scale: s, default 100.
      ignore_label: the id without a class, default 255; any other id outside [0, K) gives NaN.

    Returns:
      ``[B, H, W, 1]`` in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``pixel_noise`` is out of range.

    Cost:
      One look-up for each pixel.
      XLA at 2 times [8, 128, 128]: at most 9.9 times the FLOPs and 0.83 times the bytes of a copy of its arguments, and 0 times
      its memory more.

    Use:
      Part of: `noisy_label_channel`.
      When: Call it with fixed values and zeros for the noise, where a teacher is to be deterministic in distillation.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> labels, values = jnp.array([[[0, 1, 255]]]), jnp.array([0.5, -0.5, 0.0])
      >>> rj.inputs.apply_noisy_label_channel(labels, class_values=values, noise=jnp.zeros((1, 1, 3))).ravel().tolist()
      [50.0, -50.0, 0.0]

    References:
      Qiu et al., Make a Strong Teacher with Label Assistance: A Novel Knowledge Distillation Approach for Semantic
      Segmentation, 2024, ECCV.
    """
    name = "inputs.apply_noisy_label_channel"
    labels = checks.integers(name, "labels", labels, ndim=3)
    values = checks.floating(name, "class_values", class_values, min_ndim=1)
    if values.ndim > 2 or values.shape[-1] < 2 or values.shape[:-1] not in ((), labels.shape[:1]):
        checks.fail(name, "class_values", f"an array of shape [K + 1] or [{labels.shape[0]}, K + 1]", values)
    noise = checks.floating(name, "noise", noise, shape=labels.shape)
    return _channel(name, labels, values, noise, pixel_noise, scale, ignore_label)


def _channel(name: str, labels: Array, values: Array, noise: Array, pixel_noise: Any, scale: Any, ignore_label: Any) -> Array:
    checks.number(name, "pixel_noise", pixel_noise, low=0.0)
    checks.number(name, "scale", scale)
    checks.integer(name, "ignore_label", ignore_label)
    dtype = trees.accumulator(values, noise)
    num_classes = values.shape[-1] - 1
    ids = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))  # a narrow dtype could not hold every id
    ignored = ids == ignore_label
    known = ignored | ((ids >= 0) & (ids < num_classes))
    ids = jnp.where(known, jnp.where(ignored, num_classes, ids), 0).astype(jnp.int32)
    values = jnp.broadcast_to(values.astype(dtype), (labels.shape[0], num_classes + 1))
    flat = sharding.reshape_rows(ids, (ids.shape[1] * ids.shape[2],))
    own = jnp.take_along_axis(sharding.rows_like(values, labels), flat, axis=1)
    own = jnp.where(known, sharding.reshape_rows(own, labels.shape[1:]), jnp.nan)
    noise = sharding.rows_like(noise.astype(dtype), labels)
    return (jnp.asarray(scale, dtype) * (own + jnp.asarray(pixel_noise, dtype) * noise))[..., None]
