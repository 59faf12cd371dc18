"""The fit to the labels of each class, gathered over an epoch and kept for all of them."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array, Stateful


class IoUHistory(NamedTuple):
    """The memory of `iou_history`.

    Attributes:
      overlap: float32 ``[K]``, the pixels since the last point that are of a class in prediction and label.
      either: float32 ``[K]``, those that are in one of them.
      history: float32 ``[P, K]``, the intersections over unions of the points so far, 0 for those to come.
      points: int32 ``[]``, their number.
      active: boolean ``[K]``, the classes whose labels are being corrected: set by the user, and kept.
    """

    overlap: Array
    either: Array
    history: Array
    points: Array
    active: Array


def iou_history(num_classes: int, num_points: int) -> Stateful:
    r"""Intersections over unions of training predictions and given labels, as ADELE watches them to see memorisation begin.

    Formula:
      .. math:: IoU_k = \frac{|\hat Y_k \cap Y_k|}{|\hat Y_k \cup Y_k| + 10^{-10}}

      with the pixels predicted and labelled as class k in all batches since the last point.

    Args:
      num_classes: K, at least 1.
      num_points: P, at least 1: the points to keep, for instance one an epoch. Later ones are not kept.

    Returns:
      ``init() -> IoUHistory``, and ``apply(state, predictions, labels, *, close=False, ignore_label=255, axis_name=None) ->
      (iou [K], state)``: integer ``predictions`` and ``labels`` of one shape; ``close``, a bool or a traced one: write this
      point and begin the next; ``axis_name``, the mapped axis, or a tuple of them, over which the batch is split. The value
      is that of the point so far, float32; a class that occurs in neither has 0. At the end of an epoch,
      ``memorization_epoch(state.history[:n, k], ...)`` says on the host whether class k is to be corrected, and
      ``state._replace(active=state.active | ...)`` keeps that, to be passed to `losses.adele_correct_labels`.

    Raises:
      ValueError: if a size is below 1; in ``apply``, if the state is not of this K and P, or a shape or dtype does not fit.

    Cost:
      One pass over the pixels for each class; 4 P K bytes. Counts beyond 2^24 in a point are rounded to 7 digits.
      XLA at 2 times [8, 64, 64]: at most 9.2 times the FLOPs and 2.7 times the bytes of a copy of its arguments, and 0.61 times
      its memory more.

    Use:
      Part of: `memorization_epoch`, `adele_correct_labels`.
      When: During training on noisy masks: predictions of the training passes against the labels as given, one point an epoch,
        and ``close=True`` at its end.
      Badly with: Points from evaluation mode among points from training passes, which lie on two curves. Classes of few pixels,
        whose curve is noise.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> memory = rj.diagnostics.iou_history(num_classes=2, num_points=16)
      >>> predictions, labels = jnp.array([[0, 1, 1, 1]]), jnp.array([[0, 0, 1, 255]])
      >>> iou, state = memory.apply(memory.init(), predictions, labels, close=True)
      >>> iou.tolist(), int(state.points)
      ([0.5, 0.5], 1)

    References:
      Liu et al., Adaptive Early-Learning Correction for Segmentation from Noisy Annotations, 2021, arXiv 2110.03740; as the
      authors' code, which counts over an epoch and takes a point at its end.
    """
    name = "diagnostics.iou_history"
    num_classes = checks.integer(name, "num_classes", num_classes, low=1)
    num_points = checks.integer(name, "num_points", num_points, low=1)

    def init() -> IoUHistory:
        zeros = jnp.zeros(num_classes, jnp.float32)
        history = jnp.zeros((num_points, num_classes), jnp.float32)
        return IoUHistory(zeros, zeros, history, jnp.zeros((), jnp.int32), jnp.zeros(num_classes, bool))

    def apply(
        state: IoUHistory, predictions: Any, labels: Any, *, close: Any = False, ignore_label: int = 255, axis_name: Any = None
    ) -> tuple[Array, IoUHistory]:
        if not isinstance(state, IoUHistory) or jnp.shape(state.history) != (num_points, num_classes):
            checks.fail(
                name, "state", f"the IoUHistory that init() makes for {num_points} points of {num_classes} classes", state
            )
        predictions = checks.integers(name, "predictions", predictions)
        labels = checks.integers(name, "labels", labels, shape=predictions.shape)
        checks.integer(name, "ignore_label", ignore_label)
        checks.axis_name(name, axis_name)
        close = checks.array(name, "close", close, shape=())
        if close.dtype != jnp.bool_:
            checks.fail(name, "close", "a bool, or a boolean scalar", close)
        valid = labels.astype(jnp.promote_types(labels.dtype, jnp.int32)) != ignore_label

        def counts(k: Array) -> tuple[Array, Array]:
            predicted, labelled = valid & (predictions == k), valid & (labels == k)
            return jnp.sum(predicted & labelled, dtype=jnp.float32), jnp.sum(predicted | labelled, dtype=jnp.float32)

        batch = jax.lax.map(counts, jnp.arange(num_classes))
        batch = batch if axis_name is None else jax.lax.psum(batch, axis_name)
        overlap, either = state.overlap + batch[0], state.either + batch[1]
        iou = overlap / (either + 1e-10)
        here = close & (jnp.arange(num_points) == state.points)
        history = jnp.where(here[:, None], iou, state.history)
        points = jnp.minimum(state.points + close, num_points).astype(jnp.int32)
        overlap, either = (jnp.where(close, 0, total) for total in (overlap, either))
        return iou, IoUHistory(overlap, either, history, points, state.active)

    return Stateful(init, apply)
