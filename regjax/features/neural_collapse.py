"""Neural collapse as an aim: features close to the centre of their class, centres at wide angles to each other."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.strength import resolve
from regjax.core.types import Array, Key, Learned, Strength

_VARIANTS = ("mean_min_angle", "min_angle", "cosine")


def within_class_collapse(features: Any, labels: Any, centers: Any, *, where: Any = None, axis_name: Any = None) -> Array:
    r"""The mean over classes of the mean squared distance of a class's features to its centre.

    Formula:
      .. math:: L_W = \frac{1}{K} \sum_k
        \max\left( \frac{\sum_{i: y_i = k} \lVert h_i - \mu_k \rVert^2}{n_k + 10^{-10}},\ 10^{-12} \right)

      with :math:`n_k` the count of class k in the batch. Every class of the batch weighs alike, whether it has one example
      or hundreds: that is the difference from center loss. An absent class adds the floor, and K counts it too. Neither
      side is stop-gradient: features go to their centre, and the centre to them.

    Args:
      features: float ``[B, D]``.
      labels: integer class ids ``[B]`` in [0, K); another id among the counted examples makes the result NaN.
      centers: float ``[K, D]``, usually trained with the model: see `neural_collapse`.
      where: boolean ``[B]``: which examples count; default all.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split under ``shard_map`` or ``pmap``: sums
        and counts are added over it, so that the value is that of the whole batch. Not needed under ``jit`` with sharded
        arrays.

    Returns:
      A scalar in float32 or better, at least 1e-12.

    Raises:
      ValueError: if a shape or dtype does not fit; labels must be class ids, not probabilities.

    Cost:
      O(B D) for the distances and O(B K) for the sums over classes; with ``axis_name``, a sum of 2 K numbers over devices.
      XLA at [1024, 512]: at most 9.4 times the FLOPs and 4.8 times the bytes of a copy of its arguments, and 1.1 times its
      memory more.

    Use:
      Part of: `neural_collapse`.
      When: Alone, as a center loss in which frequent classes do not outvote rare ones, with centres of one's own: fixed ones,
        or means of an earlier network.
      Badly with: Centres trained with it alone and unnormalised features: both shrink to one point. Add `between_class_angle`
        or a classification loss.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> features, centers = jnp.array([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]]), jnp.eye(2)
      >>> round(float(rj.features.within_class_collapse(features, jnp.array([0, 0, 1]), centers)), 4)
      1.5

    References:
      Liu et al., Inducing Neural Collapse in Deep Long-tailed Learning, 2023, arXiv 2302.12453. The paper sums over classes
      without 1/K; this divides as the authors' code does.
    """
    name = "features.within_class_collapse"
    features = checks.floating(name, "features", features, ndim=2)
    centers = checks.floating(name, "centers", centers, shape=(None, features.shape[1]))
    if centers.shape[0] < 1:
        checks.fail(name, "centers", "an array [K, D] with at least one class", centers)
    labels = checks.integers(name, "labels", labels, shape=features.shape[:1])
    where = checks.example_mask(name, "where", where, features.shape[:1])
    checks.axis_name(name, axis_name)
    return _within(features, labels, _wide(centers, features), where, axis_name)


def between_class_angle(centers: Any, *, variant: str = "mean_min_angle") -> Array:
    r"""The negative mean, over classes, of the smallest angle between a centre and the others.

    Formula:
      With the centred directions :math:`u_k = m_k / \lVert m_k \rVert`, :math:`m_k = \mu_k - \frac{1}{K} \sum_j \mu_j`:

      .. math:: L_B = -\frac{1}{K} \sum_k \arccos\left( \max_{j \ne k} u_k \cdot u_j \right)

      the cosine clipped to [-0.99999, 0.99999]. It is least, :math:`-\arccos(-1/(K-1))`, where the directions form a
      simplex equiangular tight frame. ``"min_angle"`` takes the one smallest angle of all pairs. ``"cosine"`` is the
      Frobenius norm of the matrix of cosines with :math:`-1/(K-1)` on its diagonal.

    Args:
      centers: float ``[K, D]``, K at least 2.
      variant: ``"mean_min_angle"`` (default), ``"min_angle"`` or ``"cosine"``. The last is kept for comparison: it pulls
        towards orthogonal directions, not towards the frame.

    Returns:
      A scalar in float32 or better: the loss to be minimised.

    Raises:
      ValueError: if ``centers`` is not a floating ``[K, D]`` with two classes or more, or the variant is unknown.

    Cost:
      One K x K product of the centres, O(K^2 D), whatever the batch.
      XLA at [100, 512]: at most 1.2 times the FLOPs and 3.2 times the bytes of the products of all vectors, and 0.66 times its
      memory more.

    Use:
      Part of: `neural_collapse`.
      When: Alone, to spread the rows of a classifier or any other learned class vectors. ``"mean_min_angle"`` moves every
        class, ``"min_angle"`` one pair in each step.
      Not when: Two vectors start equal: the clipped cosine gives them no push apart. With more than D + 1 classes no simplex
        exists, and the least value is not reached.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.features.between_class_angle(jnp.eye(4))), 4)
      -1.9106

    References:
      Liu et al., Inducing Neural Collapse in Deep Long-tailed Learning, 2023, arXiv 2302.12453: the first two variants are
      the paper's and the authors' code's; ``"cosine"`` is a later loss of that code. The clip stops the gradient of pairs
      that coincide or are opposite: start from random centres, for equal ones stay equal, and two classes are always opposite.
    """
    name = "features.between_class_angle"
    centers = checks.floating(name, "centers", centers, ndim=2)
    if centers.shape[0] < 2:
        checks.fail(name, "centers", "an array [K, D] with two classes or more", centers)
    checks.choice(name, "variant", variant, _VARIANTS)
    return _between(_wide(centers), variant)


def neural_collapse(
    num_classes: int,
    dim: int,
    *,
    lambda_w: Strength = 0.01,
    lambda_b: Strength = 0.1,
    start_step: int = 0,
    center_gradient_scale: Any = None,
    variant: str = "mean_min_angle",
    axis_name: Any = None,
) -> Learned:
    r"""Pulls features to learned class centres and the centres apart, which balances rare and frequent classes.

    Formula:
      .. math:: \lambda_W L_W(h, y, \mu) + \lambda_B L_B(\mu)

      with `within_class_collapse` and `between_class_angle`; 0 before ``start_step``. The centres :math:`\mu` are
      parameters, trained with the model's. The angle acts on them alone, and reaches the features through the distance.
      The value has :math:`\mu` as it is, but the gradient to it is multiplied by ``center_gradient_scale``: with the
      default :math:`1/\lambda_W` plain SGD moves the centres along
      :math:`\nabla L_W + (\lambda_B / \lambda_W) \nabla L_B`.

    Args:
      num_classes: K, at least 2.
      dim: D, the dimension of the features.
      lambda_w: the weight of the distance, at least 0, default 0.01; a number or a schedule of the step.
      lambda_b: the weight of the angle, at least 0, default 0.1; a number or a schedule of the step. The authors take
        (0.01, 0.1) for 10 classes, (0.01, 0.5) for 100 and (0.05, 1) for 1000.
      start_step: the first step at which it acts, default 0; the authors start after half of training for 100 classes or
        more.
      center_gradient_scale: the factor on the gradient to the centres, at least 0; default 1 / ``lambda_w``, or 1 where
        that is 0. Give 1.0 for an adaptive optimiser, or to differentiate the value itself.
      variant: the form of `between_class_angle`.
      axis_name: the mapped axis, or a tuple of them, as in `within_class_collapse`; gradients averaged over it, as a data
        parallel step does, are then those of the whole batch.

    Returns:
      ``Learned(init, loss)``: ``init(key) -> centers [K, D]``, standard normal in float32, and
      ``loss(centers, features, labels, step, *, where=None) -> scalar`` with features ``[B, D]``, class ids ``[B]`` and
      the mask ``where`` ``[B]`` of the examples that count. Train the centres by plain SGD with learning rate 0.5.

    Raises:
      ValueError: if a size, strength or option is out of range, or, by the loss, if a shape or dtype does not fit.

    Cost:
      O(B D + B K + K^2 D), small beside the model; K x D parameters.
      XLA at [1024, 512]: at most 71 times the FLOPs and 6.2 times the bytes of a copy of its arguments, and 1.2 times its
      memory more.

    Use:
      For: long tails, collapsed features.
      When: Classes of very unequal size whose rare means crowd together: every class of the batch pulls alike. Needs class ids,
        at least K - 1 feature dimensions, and batches that hold most classes. The authors retrain the classifier afterwards.
      Not when: Accuracy is wanted from it alone: on the digits comparison it hardly helped. Labels are noisy, as wrong ones are
        drawn to wrong centres. Features shall transfer to finer classes, which collapse erases.
      Badly with: Adam on the centres with the default ``center_gradient_scale``: give 1.0. Mixed or soft labels, which have no
        class id. Small microbatches, where absent classes still divide the distance.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> technique = rj.features.neural_collapse(4, 4)
      >>> centers = technique.init(jax.random.key(0))
      >>> centers.shape
      (4, 4)
      >>> round(float(technique.loss(jnp.eye(4), 2 * jnp.eye(4), jnp.arange(4), 0)), 4)
      -0.1811

    References:
      Liu et al., Inducing Neural Collapse in Deep Long-tailed Learning, 2023, arXiv 2302.12453. The scale of the centres'
      gradient is in the authors' trainer, not in the paper; there the technique stands beside deferred re-weighting and
      classifier re-training.
    """
    name = "features.neural_collapse"
    checks.integer(name, "num_classes", num_classes, low=2)
    checks.integer(name, "dim", dim, low=1)
    checks.strength(name, "lambda_w", lambda_w, low=0.0)
    checks.strength(name, "lambda_b", lambda_b, low=0.0)
    checks.integer(name, "start_step", start_step, low=0)
    if center_gradient_scale is not None:
        checks.number(name, "center_gradient_scale", center_gradient_scale, low=0.0)
    checks.choice(name, "variant", variant, _VARIANTS)
    checks.axis_name(name, axis_name)

    def init(key: Key) -> Array:
        return jax.random.normal(checks.key(name, key), (num_classes, dim), jnp.float32)

    def loss(centers: Any, features: Any, labels: Any, step: Any, *, where: Any = None) -> Array:
        centers = checks.floating(name, "centers", centers, shape=(num_classes, dim))
        features = checks.floating(name, "features", features, shape=(None, dim))
        labels = checks.integers(name, "labels", labels, shape=features.shape[:1])
        where = checks.example_mask(name, "where", where, features.shape[:1])
        checks.number(name, "step", step)
        centers = _wide(centers, features)
        weight_w = jnp.asarray(resolve(lambda_w, step, name, "lambda_w"), centers.dtype)
        weight_b = jnp.asarray(resolve(lambda_b, step, name, "lambda_b"), centers.dtype)
        if center_gradient_scale is None:
            scale = jnp.where(weight_w > 0, 1 / jnp.where(weight_w > 0, weight_w, 1), 1)
        else:
            scale = jnp.asarray(center_gradient_scale, centers.dtype)
        # The difference is exactly 0: the scale is in the gradient alone.
        still = jax.lax.stop_gradient(centers)
        centers = still + scale * (centers - still)
        total = weight_w * _within(features, labels, centers, where, axis_name) + weight_b * _between(centers, variant)
        return jnp.where(jnp.asarray(step) >= start_step, total, 0)

    return Learned(init, loss)


def _wide(centers: Array, *others: Array) -> Array:
    return centers.astype(trees.accumulator(centers, *others))


def _within(features: Array, labels: Array, centers: Array, where: Array | None, axis_name: Any) -> Array:
    num_classes = centers.shape[0]
    labels = labels.astype(jnp.int32)  # uint8 could not hold num_classes
    own = sharding.take_rows(centers, jnp.clip(labels, 0, num_classes - 1))
    difference = features.astype(centers.dtype) - own
    if where is not None:
        # Before the square, so that an example that does not count may hold anything.
        difference = jnp.where(where[:, None], difference, 0)
    squared = jnp.sum(jnp.square(difference), axis=-1)
    wrong = (labels < 0) | (labels >= num_classes)
    squared = jnp.where(wrong if where is None else wrong & where, jnp.nan, squared)
    # A compare and a sum: no segment sum, which a sharded batch refuses, and no product, whose precision varies by device.
    member = labels[:, None] == jnp.arange(num_classes)
    member = member if where is None else member & where[:, None]
    sums = jnp.sum(jnp.where(member | jnp.isnan(squared)[:, None], squared[:, None], 0), axis=0)
    counts = jnp.sum(member, axis=0, dtype=centers.dtype)
    if axis_name is not None:
        sums, counts = jax.lax.psum((sums, counts), axis_name)
    return jnp.mean(jnp.maximum(sums / (counts + 1e-10), 1e-12))


def _between(centers: Array, variant: str) -> Array:
    num_classes = centers.shape[0]
    centred = centers - jnp.mean(centers, axis=0)
    # A centre at the mean has no direction, and no gradient.
    squared = jnp.sum(jnp.square(centred), axis=-1, keepdims=True)
    some = squared > 1e-24
    directions = jnp.where(some, centred * jax.lax.rsqrt(jnp.where(some, squared, 1)), 0)
    with jax.default_matmul_precision("highest"):  # the arccosine is steep at its ends
        cosines = sharding.contract_rows(directions.T, directions.T)
    diagonal = jnp.eye(num_classes, dtype=bool)
    if variant == "cosine":
        return jnp.sqrt(jnp.sum(jnp.square(jnp.where(diagonal, -1 / (num_classes - 1), cosines))))  # never 0
    nearest = jnp.max(jnp.where(diagonal, -1, cosines), axis=1 if variant == "mean_min_angle" else None)
    return -jnp.mean(jnp.arccos(jnp.clip(nearest, -0.99999, 0.99999)))
