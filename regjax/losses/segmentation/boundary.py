"""Distillation of segmentation that treats object boundaries and the bodies between them apart."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Strength
from regjax.losses.segmentation._dense import divergence, mean

_WORD = 32


def boundary_masks(labels: Any, *, num_classes: int, kernel_size: int = 7, ignore_label: int = 255) -> Array:
    r"""For each class, the pixels near its boundary, on either side.

    Formula:
      .. math:: e_{pk} = \left( \max_{q \in W(p)} [y_q = k] - \min_{q \in W(p)} [y_q = k] \right) v_p

      with W(p) the square of ``kernel_size`` pixels around p, inside the image, and :math:`v_p` 1 where it holds no ignored
      pixel, else 0. A pixel beside a boundary is an edge pixel of both classes.

    Args:
      labels: integer class ids ``[B, H, W]``.
      num_classes: K.
      kernel_size: the side of the window, odd, default 7; 1 gives no edges.
      ignore_label: the id without a class, default 255. Any other id outside [0, K) gives NaN in the windows that hold it,
        so that a wrong label is seen.

    Returns:
      Float32 ``[B, H, W, K]``, 0 or 1.

    Raises:
      ValueError: if labels are no integers ``[B, H, W]``, or a size is out of range.

    Cost:
      2 ``kernel_size`` reads of one 32-bit word for each pixel and 32 classes, and one write of the masks.
      XLA at [8, 64, 64, 21]: at most 14 times the FLOPs and 1.2 times the bytes of a copy of its results, and 0.058 times its
      memory more.

    Use:
      Part of: `boundary_distillation`.
      When: Call it to measure IoU near edges, to weigh a cross-entropy there, or to leave edges of doubtful annotation out.
      Badly with: Labels resized by interpolation, which makes edges of ids that do not exist. Ignore labels along all borders
        of objects, as of PASCAL VOC: windows with them count as no edge.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> edge = rj.losses.boundary_masks(jnp.array([[[0, 0, 0, 1, 1, 1]]]), num_classes=2, kernel_size=3)
      >>> edge[0, 0, :, 0].tolist(), bool((edge[..., 0] == edge[..., 1]).all())
      ([0.0, 0.0, 1.0, 1.0, 0.0, 0.0], True)

    References:
      Liu et al., BPKD: Boundary Privileged Knowledge Distillation for Semantic Segmentation, 2023, arXiv 2306.08075; as in
      an implementation by others, since the authors published evaluation code alone.
    """
    name = "losses.boundary_masks"
    labels = checks.integers(name, "labels", labels, ndim=3)
    checks.integer(name, "num_classes", num_classes, low=1)
    _check_window(name, kernel_size, ignore_label)
    return _masks(labels, num_classes, kernel_size, ignore_label)[0]


def boundary_distillation(
    student_logits: Any,
    teacher_logits: Any,
    labels: Any,
    *,
    kernel_size: int = 7,
    ignore_label: int = 255,
    edge_alpha: Strength = 2.0,
    edge_weight: Strength = 50.0,
    body_weight: Strength = 20.0,
    edge_temperature: Strength = 1.0,
    body_temperature: Strength = 1.0,
    mask_logits: bool = True,
    axis_name: Any = None,
) -> Array:
    r"""Distils a teacher's map near boundaries pixel by pixel, and elsewhere channel by channel.

    Formula:
      .. math:: w_e \, L_e + w_b \, L_b

      .. math::
         L_e = \frac{\alpha}{B} \sum_{b, k}
         \frac{\sum_p e_{bpk} \, T_e^2 \, KL(softmax_k(t_{bp} / T_e), softmax_k(s_{bp} / T_e))}{|\{p: e_{bpk} > 0\}|}, \quad
         L_b = \frac{T_b^2}{B K} \sum_{b, k} KL(softmax_p(t_{b.k} / T_b), softmax_p(s_{b.k} / T_b))

      with e the `boundary_masks`; the body's softmax is over the valid pixels, whose window holds no ignored one.
      ``mask_logits`` multiplies both logits by e in the first part, and by 1 - e in the second. Added to the segmentation's
      cross-entropy.

    Args:
      student_logits: float ``[B, h, w, K]``, s.
      teacher_logits: float, of the shape of ``student_logits``, t. No gradient flows to them.
      labels: integer class ids ``[B, H, W]``, with H >= h and W >= w: the masks of larger labels are averaged over each
        logit's share of the map (adaptive average pooling), and a logit is valid where all of its share is.
      kernel_size: the side of the window at the labels' size, odd, default 7.
      ignore_label: the id without a class, default 255; any other id outside [0, K) gives NaN.
      edge_alpha: at least 0, default 2.
      edge_weight: at least 0, default 50.
      body_weight: at least 0, default 20. Both weights 0 give 0.
      edge_temperature: above 0, default 1.
      body_temperature: above 0, default 1.
      mask_logits: whether the logits are multiplied by the masks (default) before their softmax. Masked zeros among logits
        that are all negative become the surest classes: on generated shapes, at the default weights, students learned far
        less with True than with False.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split under ``shard_map`` or ``pmap``: sums
        and counts are added over it. Gradients averaged over it are then those of the whole batch.

    Returns:
      A scalar in float32 or better; images without a valid pixel leave the means, and 0 where all do.

    Raises:
      ValueError: if a shape or dtype does not fit, or a strength, temperature, size or option is out of range.

    Cost:
      The masks, and two softmaxes of each map; the teacher's forward pass is the caller's.
      XLA at [8, 64, 64, 21]: at most 74 times the FLOPs and 13 times the bytes of cross-entropy, and 7.2 times its memory more.

    Use:
      For: compute budget.
      When: A small segmentation network blurs edges that a larger one draws well: on generated shapes its boundary part added
        much to its body part. Set ``mask_logits=False``, which did far better there.
      Not when: Masks are wrong at their edges: the edge masks are those of the labels. Over plain cross-entropy a gain was not
        shown on shapes, and its body part alone was worse. Objects are thinner than the window.
      Badly with: The default ``mask_logits`` with logits that are all negative. Wide ``kernel_size`` at coarse logits, where
        everything is edge. `channel_wise_distillation`, its body part again.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> labels = jnp.zeros((1, 3, 3), int).at[0, 1, 1].set(1)
      >>> student = jnp.zeros((1, 3, 3, 2)).at[0, 1, 1, 1].set(2.0)
      >>> round(float(rj.losses.boundary_distillation(student, 2 * student, labels, kernel_size=3)), 4)
      1.6179

    References:
      Liu et al., BPKD: Boundary Privileged Knowledge Distillation for Semantic Segmentation, 2023, arXiv 2306.08075; as in
      an implementation by others, since the authors published evaluation code alone. Uncertain: whether the paper
      multiplies logits by the masks, and whether a pixel near an ignored one, which is no edge, belongs to a body; here it
      does not. That implementation gives NaN for ignored pixels.
    """
    name = "losses.boundary_distillation"
    student = checks.floating(name, "student_logits", student_logits, ndim=4)
    teacher = checks.floating(name, "teacher_logits", teacher_logits, shape=student.shape)
    labels = checks.integers(name, "labels", labels, shape=(student.shape[0], None, None))
    batch, height, width, num_classes = student.shape
    if labels.shape[1] < height or labels.shape[2] < width:
        checks.fail(name, "labels", f"no smaller than the logits, [{batch}, {height}, {width}]", labels)
    _check_window(name, kernel_size, ignore_label)
    weights = {"edge_alpha": edge_alpha, "edge_weight": edge_weight, "body_weight": body_weight}
    for argument, value in weights.items():
        checks.number(name, argument, value, low=0.0)
    for argument, value in {"edge_temperature": edge_temperature, "body_temperature": body_temperature}.items():
        checks.number(name, argument, value, low=0.0, open_low=True)
    checks.boolean(name, "mask_logits", mask_logits)
    checks.axis_name(name, axis_name)
    dtype = trees.accumulator(student, teacher)
    alpha, by_edge, by_body = (jnp.asarray(value, dtype) for value in weights.values())
    t_edge, t_body = jnp.asarray(edge_temperature, dtype), jnp.asarray(body_temperature, dtype)

    edge, spoilt = _masks(labels, num_classes, kernel_size, ignore_label)
    edge = sharding.rows_like(_pool(edge.astype(dtype), height, width), student)
    # An average of numbers that are not negative is exactly 0 where all are.
    valid = sharding.rows_like(_pool(spoilt.astype(dtype), height, width) == 0, student)
    images = jnp.any(valid, axis=(1, 2, 3))
    # Ignored pixels may hold anything: their logits are gone before the masks multiply.
    edge = jnp.where(valid, edge, 0)
    s, t = (jnp.where(valid, z.astype(dtype), 0) for z in (student, jax.lax.stop_gradient(teacher)))

    # What a pixel weighs depends on labels alone, so that its divergence is differentiated by a number for each pixel.
    counts = jnp.sum((edge > 0).astype(dtype), axis=(1, 2), keepdims=True)
    weight = jnp.sum(edge / jnp.maximum(counts, 1), axis=-1)
    inner = (s * edge, t * edge) if mask_logits else (s, t)
    apart = jnp.square(t_edge) * divergence(inner[0] / t_edge, inner[1] / t_edge, -1)
    edge_loss = alpha * mean(jnp.sum(weight * apart, axis=(1, 2)), images, axis_name)

    outer = (s * (1 - edge), t * (1 - edge)) if mask_logits else (s, t)
    apart = jnp.square(t_body) * divergence(outer[0] / t_body, outer[1] / t_body, (1, 2), valid)
    body_loss = mean(jnp.mean(apart, axis=-1), images, axis_name)
    return by_edge * edge_loss + by_body * body_loss


def _check_window(name: str, kernel_size: Any, ignore_label: Any) -> None:
    checks.integer(name, "kernel_size", kernel_size, low=1)
    if kernel_size % 2 == 0:
        checks.fail(name, "kernel_size", "an odd integer", kernel_size)
    checks.integer(name, "ignore_label", ignore_label)


def _masks(labels: Array, num_classes: int, kernel_size: int, ignore_label: int) -> tuple[Array, Array]:
    """Edges ``[B, H, W, K]``, and whether a pixel's window holds an ignored one ``[B, H, W, 1]``.

    Each pixel's id is one bit, so that a window's set of ids is the OR of its pixels: a maximum over one-hot labels would
    move 32 times the data. With no ignored pixel around, a class is on the edge where it is present and not alone.
    """
    ids = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))  # a narrow dtype could not hold every id
    ignored = ids == ignore_label
    known = (ids >= 0) & (ids < num_classes)
    # Two bits beyond the classes: ignored, and unknown.
    ids = jnp.where(ignored, num_classes, jnp.where(known, ids, num_classes + 1)).astype(jnp.int32)[..., None]
    words = np.arange(-(-(num_classes + 2) // _WORD), dtype=np.int32)
    bits = jnp.where(ids // _WORD == words, jnp.uint32(1) << (ids % _WORD).astype(jnp.uint32), jnp.uint32(0))
    found = _union(_union(bits, 1, kernel_size), 2, kernel_size)

    def present(ids: np.ndarray) -> Array:
        # A shift by broadcasting for each word: a gather, or a repeat, of the words would cost more than it saves.
        shifts, of_word = (ids % _WORD).astype(np.uint32), (ids // _WORD == words[:, None]).astype(np.uint32)
        bits = [(found[..., w : w + 1] >> shifts) & of_word[w] for w in words if of_word[w].any()]
        return functools.reduce(jnp.bitwise_or, bits) == 1

    spoilt, unknown = present(np.array([num_classes])), present(np.array([num_classes + 1]))
    several = jnp.sum(jax.lax.population_count(found), axis=-1, keepdims=True) > 1
    edge = (present(np.arange(num_classes)) & several & ~spoilt).astype(jnp.float32)
    return jnp.where(unknown, jnp.nan, edge), spoilt


def _union(bits: Array, axis: int, size: int) -> Array:
    """The OR of ``size`` neighbours along an axis; beyond the border there is nothing to add."""
    length = bits.shape[axis]
    reach = min(size // 2, length)
    padding = [(0, 0)] * bits.ndim
    padding[axis] = (reach, reach)
    padded = jnp.pad(bits, padding)
    out = bits
    for start in range(2 * reach + 1):
        out = out | jax.lax.slice_in_dim(padded, start, start + length, axis=axis)
    return out


def _pool(x: Array, height: int, width: int) -> Array:
    """Adaptive average pooling of ``[B, H, W, C]``: cell i averages from floor(i H / h) to ceil((i + 1) H / h)."""
    for axis, cells in ((1, height), (2, width)):
        length = x.shape[axis]
        if length == cells:
            continue
        if length % cells == 0:
            shape = (*x.shape[1:axis], cells, length // cells, *x.shape[axis + 1 :])
            x = jnp.mean(sharding.reshape_rows(x, shape), axis=axis + 1)
        else:
            x = _average(x, axis, cells)
    return x


def _average(x: Array, axis: int, cells: int) -> Array:
    length, first = x.shape[axis], np.arange(cells)
    starts, ends = first * length // cells, -(-(first + 1) * length // cells)
    inside = (np.arange(length) >= starts[:, None]) & (np.arange(length) < ends[:, None])
    weights = jnp.asarray(inside / (ends - starts)[:, None], x.dtype)
    equation = "ih,bhwc->biwc" if axis == 1 else "iw,bhwc->bhic"
    return jnp.einsum(equation, weights, x, precision=jax.lax.Precision.HIGHEST)
