"""Detection with missing annotations: proposals that look like objects without a box, and what to teach of them."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array


def box_iou(boxes1: Any, boxes2: Any) -> Array:
    r"""The intersection over union of each box of one set with each of another.

    Formula:
      .. math:: J_{ij} = \frac{|A_i \cap B_j|}{\max(|A_i \cup B_j|, 10^{-9})}

    Args:
      boxes1: float ``[..., N, 4]``: x1, y1, x2, y2. A box whose second corner lies before the first has area 0.
      boxes2: float ``[..., M, 4]``, with the same leading axes.

    Returns:
      Float ``[..., N, M]``, in float32 or better, from 0 to 1. Differentiable, with gradient 0 where boxes are disjoint.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      O(N M).
      XLA at [8, 1000, 100]: at most 15 times the FLOPs and 0.58 times the bytes of a copy of its results, and 0 times its
      memory more.

    Use:
      Part of: `pseudo_positive_mask`.
      When: Call it to match boxes to annotations, to suppress duplicates, or to score detections.
      Badly with: Boxes as centre and size: it takes corners. Training by 1 - IoU alone: disjoint boxes have no gradient.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> boxes = jnp.array([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0], [5.0, 5.0, 6.0, 6.0]])
      >>> [round(float(x), 4) for x in rj.losses.box_iou(boxes[:1], boxes)[0]]
      [1.0, 0.1429, 0.0]

    References:
      Suri et al., SparseDet: Improving Sparsely Annotated Object Detection with Pseudo-positive Mining, 2023,
      arXiv 2201.04620.
    """
    name = "losses.box_iou"
    boxes1 = _boxes(name, "boxes1", boxes1)
    boxes2 = _boxes(name, "boxes2", boxes2, boxes1)
    return _iou(boxes1, boxes2)


def pseudo_positive_mask(
    proposals: Any,
    objectness_logits: Any,
    gt_boxes: Any,
    gt_valid: Any,
    *,
    score_threshold: Any = 0.8,
    iou_threshold: Any = 0.2,
    where: Any = None,
) -> Array:
    r"""The proposals that are probably objects without an annotation.

    Formula:
      .. math:: sigmoid(o_i) > \tau_s \quad and \quad \max_{j\, valid}\, IoU(p_i, g_j) \le \tau_u

      Without a valid box the score decides alone. Such proposals leave the detection loss, which would teach them as
      background, and get the `region_consistency` of two views instead.

    Args:
      proposals: float ``[..., N, 4]``: x1, y1, x2, y2, after non-maximum suppression.
      objectness_logits: float ``[..., N]``, o.
      gt_boxes: float ``[..., M, 4]``, the annotated boxes, padded to a fixed number, which may be 0.
      gt_valid: boolean ``[..., M]``, which of them are boxes.
      score_threshold: from 0 to 1, default 0.8; a number or a traced scalar.
      iou_threshold: from 0 to 1, default 0.2; a number or a traced scalar.
      where: boolean ``[..., N]``, which proposals are no padding; default all.

    Returns:
      Boolean ``[..., N]``.

    Raises:
      ValueError: if a shape or dtype does not fit, or a threshold is out of range.

    Cost:
      O(N M).
      XLA at [8, 1000, 4]: at most 310 times the FLOPs and 22 times the bytes of a copy of its arguments, and 11 times its
      memory more.

    Use:
      For: noisy labels, few labels.
      When: Detection with many objects unannotated: proposals that look like objects leave the background loss. Turn it on when
        the proposal network is sound, after about a tenth of the training.
      Not when: Annotations are complete: it takes out the hard background. From the start, when scores are noise. One class in
        a dense scene, where overlap with annotated boxes is common.
      Badly with: `focal` on objectness, which shifts the scores that the threshold reads: choose it again. Proposals before
        non-maximum suppression, which count objects many times. Resampling that refills the background from the same proposals.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> proposals = jnp.array([[0.0, 0.0, 2.0, 2.0], [1.0, 1.0, 3.0, 3.0], [0.0, 0.0, 2.0, 2.0]])
      >>> truth, valid = jnp.array([[1.0, 1.0, 3.0, 3.0]]), jnp.array([True])
      >>> rj.losses.pseudo_positive_mask(proposals, jnp.array([2.0, 2.0, 1.0]), truth, valid).tolist()
      [True, False, False]

    References:
      Suri et al., SparseDet: Improving Sparsely Annotated Object Detection with Pseudo-positive Mining, 2023,
      arXiv 2201.04620; as the authors' code. Their configuration has 0.9 for the score by default, their script 0.8. They
      turn it on after 30000 of 270000 steps.
    """
    name = "losses.pseudo_positive_mask"
    checks.number(name, "score_threshold", score_threshold, low=0.0, high=1.0)
    checks.number(name, "iou_threshold", iou_threshold, low=0.0, high=1.0)
    proposals = _boxes(name, "proposals", proposals)
    scores = checks.floating(name, "objectness_logits", objectness_logits, shape=proposals.shape[:-1])
    truth = _boxes(name, "gt_boxes", gt_boxes, proposals)
    valid = _mask(name, "gt_valid", gt_valid, truth.shape[:-1])
    overlap = jnp.max(jnp.where(valid[..., None, :], _iou(proposals, truth), 0), axis=-1, initial=0)
    probabilities = jax.nn.sigmoid(scores.astype(trees.accumulator(scores)))
    positive = (probabilities > score_threshold) & (overlap <= iou_threshold)
    return positive if where is None else positive & _mask(name, "where", where, positive.shape)


def region_consistency(features_weak: Any, features_strong: Any, weights: Any, *, axis_name: Any = None) -> Array:
    r"""The mean squared difference between the features of the same regions in two views of an image.

    Formula:
      .. math:: \frac{\sum_i w_i \lVert f_i - g_i \rVert^2 / D}{\max(\sum_i w_i, 1)}

      with D the numbers in a region's features. The gradient flows through both views.

    Args:
      features_weak: float ``[N, ...]``, or with more leading axes, ``[..., N, ...]``: the shape of ``weights`` and at least
        one axis more; from the weakly augmented view, f.
      features_strong: float, of the shape of ``features_weak``: from the strongly augmented view, g.
      weights: boolean or float ``[..., N]``, at least 0: 1 for the regions of `pseudo_positive_mask`, 0 for others, which
        may hold anything.
      axis_name: the mapped axis, or a tuple of them, over which the regions are split under ``shard_map`` or ``pmap``: sums
        are added over it. Gradients averaged over it are then those of the whole batch.

    Returns:
      A scalar in float32 or better; 0 without regions.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      One pass over the features each way; a forward and backward pass of the network for the second view.
      XLA at 2 times [1024, 512]: at most 7.2 times the FLOPs and 2.8 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      For: noisy labels, few labels.
      When: For the regions of `pseudo_positive_mask`: without a label they still teach that two views of a region look alike.
        Needs both views in one step, boxes mapped between them.
      Not when: Alone, or with a large weight: features of all regions become equal. Views are flipped or cropped and boxes do
        not follow.
      Badly with: Detached features of one view unless wanted: gradient flows to both. Features that shrink freely: without a
        norm or labelled regions the least is 0. Strong views that hide the object.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> weak, strong = jnp.zeros((3, 2)), jnp.array([[1.0, 3.0], [1.0, 1.0], [9.0, 9.0]])
      >>> float(rj.losses.region_consistency(weak, strong, jnp.array([True, True, False])))
      3.0

    References:
      Suri et al., SparseDet: Improving Sparsely Annotated Object Detection with Pseudo-positive Mining, 2023,
      arXiv 2201.04620; added to the detection losses of both views with weight 1.
    """
    name = "losses.region_consistency"
    weak = checks.floating(name, "features_weak", features_weak, min_ndim=2)
    strong = checks.floating(name, "features_strong", features_strong, shape=weak.shape)
    weights = checks.array(name, "weights", weights, min_ndim=1)
    kind = weights.dtype == jnp.bool_ or jnp.issubdtype(weights.dtype, jnp.floating)
    if not kind or weights.ndim >= weak.ndim or weights.shape != weak.shape[: weights.ndim]:
        checks.fail(name, "weights", f"boolean or float, of the shape of leading axes of features {list(weak.shape)}", weights)
    checks.axis_name(name, axis_name)
    dtype = trees.accumulator(weak, strong)
    weights = sharding.along(weights.astype(dtype), weak)
    inner = tuple(range(weights.ndim, weak.ndim))
    # Before the square, so that a region that does not count may hold anything.
    difference = jnp.where(jnp.expand_dims(weights != 0, inner), weak.astype(dtype) - strong.astype(dtype), 0)
    total, count = jnp.sum(weights * jnp.mean(jnp.square(difference), axis=inner)), jnp.sum(weights)
    if axis_name is not None:
        total, count = jax.lax.psum((total, count), axis_name)
    return total / jnp.maximum(count, 1)


def _boxes(name: str, argument: str, boxes: Any, like: Array | None = None) -> Array:
    """Boxes ``[..., any number, 4]``, with the leading axes of others."""
    boxes = checks.floating(name, argument, boxes, min_ndim=2)
    lead = boxes.shape[:-2] if like is None else like.shape[:-2]
    if boxes.shape[-1] != 4 or boxes.shape[:-2] != lead:
        leading = "..." if like is None else ", ".join(map(str, lead))
        checks.fail(name, argument, f"boxes of shape [{leading + ', ' if leading else ''}any, 4]", boxes)
    return boxes


def _mask(name: str, argument: str, mask: Any, shape: tuple[int, ...]) -> Array:
    checked = checks.example_mask(name, argument, mask, shape)
    if checked is None:
        checks.fail(name, argument, f"a boolean mask of shape {list(shape)}", mask)
    return checked


def _iou(boxes1: Array, boxes2: Array) -> Array:
    dtype = trees.accumulator(boxes1, boxes2)
    a, b = boxes1.astype(dtype)[..., :, None, :], boxes2.astype(dtype)[..., None, :, :]

    def area(low: Array, high: Array) -> Array:
        sides = jnp.maximum(high - low, 0)
        return sides[..., 0] * sides[..., 1]

    shared = area(jnp.maximum(a[..., :2], b[..., :2]), jnp.minimum(a[..., 2:], b[..., 2:]))
    union = area(a[..., :2], a[..., 2:]) + area(b[..., :2], b[..., 2:]) - shared
    return shared / jnp.maximum(union, 1e-9)
