"""Calibrated representations for noisy, long-tailed labels: class Gaussians of inliers, helped by classes with many examples."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Key, Strength

_JITTER = 1e-6


class ClassStatistics(NamedTuple):
    """A Gaussian for each class.

    Attributes:
      means: ``[K, D]``.
      covariances: ``[K, D, D]``.
      counts: ``[K]``, the number of examples behind each, in the dtype of the means.
    """

    means: Array
    covariances: Array
    counts: Array


def robust_class_statistics(
    features: Any, labels: Any, inlier_mask: Any, *, num_classes: int, axis_name: Any = None
) -> ClassStatistics:
    r"""Mean and covariance of the features of each class, among the examples that are no outliers of their class.

    Formula:
      With the inliers :math:`I_k` of class k:

      .. math:: \mu_k = \frac{1}{n_k} \sum_{i \in I_k} h_i, \quad
        \Sigma_k = \frac{1}{n_k - 1} \sum_{i \in I_k} (h_i - \mu_k)(h_i - \mu_k)^T, \quad n_k = |I_k|

    Args:
      features: float ``[N, D]``, best of a network trained without labels.
      labels: integer class ids ``[N]``, the noisy ones; an id outside [0, K) among the inliers makes all results NaN.
      inlier_mask: boolean ``[N]``: the examples that count. The authors ask a local outlier factor within each class, as
        scikit-learn's ``LocalOutlierFactor``. None takes all.
      num_classes: K, at least 1.
      axis_name: the mapped axis, or a tuple of them, over which the examples are split under ``shard_map`` or ``pmap``. Not
        needed under ``jit`` with sharded arrays.

    Returns:
      `ClassStatistics`: means ``[K, D]``, covariances ``[K, D, D]``, counts ``[K]``, in float32 or better. A class of one
      inlier has covariance 0, one of none also mean 0.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      O(N K D^2) operations and O(N D + K D^2) memory, class after class: XLA counts one.
      XLA at [4096, 128]: at most 510 times the FLOPs and 12 times the bytes of a copy of its arguments, and 1.2 times its
      memory more.

    Use:
      Part of: `calibrate_tail_statistics`, `sample_class_gaussians`.
      When: Once on the features of all examples, those of a network trained without labels, with outliers of each noisy class
        masked.
      Not when: Features do not fit in memory at once (`running_class_statistics`), or K D^2 numbers do not: reduce D first.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> features = jnp.array([[0.0, 0.0], [2.0, 0.0], [9.0, 9.0], [4.0, 1.0]])
      >>> inliers = jnp.array([True, True, False, True])
      >>> labels = jnp.array([0, 0, 0, 1])
      >>> means, covariances, counts = rj.features.robust_class_statistics(features, labels, inliers, num_classes=2)
      >>> means.tolist(), covariances[0].tolist(), counts.tolist()
      ([[1.0, 0.0], [4.0, 1.0]], [[2.0, 0.0], [0.0, 0.0]], [2.0, 1.0])

    References:
      Zhang et al., When Noisy Labels Meet Long Tail Dilemmas: A Representation Calibration Method, 2023, arXiv 2211.10955.
      Reconstructed from descriptions of the paper, without code: the divisor n - 1 is a choice.
    """
    name = "features.robust_class_statistics"
    features = checks.floating(name, "features", features, ndim=2)
    labels = checks.integers(name, "labels", labels, shape=features.shape[:1]).astype(jnp.int32)
    inliers = checks.example_mask(name, "inlier_mask", inlier_mask, features.shape[:1])
    num_classes = checks.integer(name, "num_classes", num_classes, low=1)
    checks.axis_name(name, axis_name)
    total = lambda v: v if axis_name is None else jax.lax.psum(v, axis_name)

    h = features.astype(trees.accumulator(features))
    wrong = (labels < 0) | (labels >= num_classes)
    member = labels[:, None] == jnp.arange(num_classes)
    if inliers is not None:
        h, wrong, member = jnp.where(inliers[:, None], h, 0), wrong & inliers, member & inliers[:, None]
    member = member.astype(h.dtype)
    wrong = total(jnp.sum(wrong)) > 0
    counts = jnp.where(wrong, jnp.nan, total(jnp.sum(member, axis=0)))
    means = total(_product(member, h)) / jnp.maximum(counts, 1)[:, None]
    residuals = h - sharding.take_rows(means, jnp.clip(labels, 0, num_classes - 1))

    def scatter(k: Array) -> Array:
        own = jnp.where((labels == k)[:, None], residuals, 0)
        own = own if inliers is None else jnp.where(inliers[:, None], own, 0)
        return _product(own, own)

    covariances = total(jax.lax.map(scatter, jnp.arange(num_classes))) / jnp.maximum(counts - 1, 1)[:, None, None]
    return ClassStatistics(means, covariances, counts)


def calibrate_tail_statistics(
    means: Any, covariances: Any, counts: Any, head_mask: Any, *, top_q: int = 1, gamma: Strength = 0.5, spread: Strength = 0.0
) -> tuple[Array, Array]:
    r"""Moves the Gaussians of rare classes towards those of the nearest frequent classes.

    Formula:
      For a tail class k and the q head classes of nearest mean, :math:`N_k`:

      .. math:: \omega_c = \frac{n_c e^{-\lVert \mu_c - \mu_k \rVert^2}}{\sum_{b \in N_k} n_b e^{-\lVert \mu_b - \mu_k \rVert^2}},
        \quad \mu'_k = \gamma \sum_{c \in N_k} \omega_c \mu_c + (1 - \gamma) \mu_k,

      .. math:: \Sigma'_k = \gamma^2 \sum_{c \in N_k} \omega_c^2 \Sigma_c + (1 - \gamma)^2 \Sigma_k + s 1 1^T

      Head classes stay as they are, and so does a tail class without examples or without a head.

    Args:
      means: float ``[K, D]``, as of `robust_class_statistics`.
      covariances: float ``[K, D, D]``.
      counts: the numbers of examples ``[K]``, integer or float, at least 0; a head of 0 examples helps no class.
      head_mask: boolean ``[K]``: the frequent classes.
      top_q: q, from 1 to K, default 1. Of heads equally near the first are taken.
      gamma: the share of the heads, in [0, 1], default 0.5, a number or a traced scalar. With 0, and ``spread`` 0, nothing
        changes.
      spread: s, added to every entry of a tail class's covariance, at least 0, default 0.

    Returns:
      ``(means [K, D], covariances [K, D, D])``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or a number is out of range.

    Cost:
      O(K^2 D^2), once for a data set.
      XLA at [100, 128, 128]: at most 230 times the FLOPs and 2.9 times the bytes of a copy of its arguments, and 0.55 times its
      memory more.

    Use:
      For: long tails, noisy labels.
      When: Rare classes of a few examples that have a frequent neighbour of like shape: in tests the error of a tail mean falls
        by more than half. Then draw with `sample_class_gaussians` and train the classifier alone.
      Not when: No head is near (the tail mean moves by ``gamma`` whatever the distance), tail classes have dozens of clean
        examples, or features still change.
      Badly with: Features of large scale with ``top_q`` above 1: weights fall with the squared distance, so that one head takes
        all. `logit_adjusted` on the balanced draws, which corrects a second time.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> means, counts = jnp.array([[0.0, 0.0], [4.0, 0.0], [0.0, 1.0]]), jnp.array([100, 80, 5])
      >>> covariances, heads = jnp.array([1.0, 2.0, 0.5])[:, None, None] * jnp.eye(2), jnp.array([True, True, False])
      >>> means, covariances = rj.features.calibrate_tail_statistics(means, covariances, counts, heads)
      >>> means[2].tolist(), covariances[2].tolist()
      ([0.0, 0.5], [[0.375, 0.0], [0.0, 0.375]])

    References:
      Zhang et al., When Noisy Labels Meet Long Tail Dilemmas: A Representation Calibration Method, 2023, arXiv 2211.10955.
      Reconstructed from descriptions of the paper, without code. Uncertain: the exact weights, whether the spread is added to
      all entries or to the diagonal, and whether gamma is squared in the covariance.
    """
    name = "features.calibrate_tail_statistics"
    means, covariances = _gaussians(name, means, covariances)
    num_classes = means.shape[0]
    counts = checks.array(name, "counts", counts, shape=(num_classes,))
    if counts.dtype == jnp.bool_:
        checks.fail(name, "counts", f"an array of numbers of shape [{num_classes}]", counts)
    heads = checks.array(name, "head_mask", head_mask, shape=(num_classes,))
    if heads.dtype != jnp.bool_:
        checks.fail(name, "head_mask", f"a boolean mask of shape [{num_classes}]", heads)
    top_q = checks.integer(name, "top_q", top_q, low=1, high=num_classes)
    checks.number(name, "gamma", gamma, low=0.0, high=1.0)
    checks.number(name, "spread", spread, low=0.0)
    dtype = means.dtype
    counts, gamma, spread = (jnp.asarray(v, dtype) for v in (counts, gamma, spread))

    helps = heads & (counts > 0)
    # Differences, not products: the exponential would magnify what these cancel.
    distances = jnp.sum(jnp.square(means[:, None] - means), axis=-1)
    ranks = jnp.argsort(jnp.argsort(jnp.where(helps, distances, jnp.inf), axis=1), axis=1)
    near = (ranks < top_q) & helps
    scores = jnp.where(near, jnp.log(jnp.where(helps, counts, 1)) - distances, -jnp.inf)
    some = jnp.any(near, axis=1)
    omega = jax.nn.softmax(jnp.where(some[:, None], scores, 0), axis=1)
    moves = ~heads & (counts > 0) & some
    with jax.default_matmul_precision("highest"):
        new_means = gamma * (omega @ means) + (1 - gamma) * means
        borrowed = jnp.einsum("kc,cde->kde", jnp.square(omega), covariances)
    new_covariances = jnp.square(gamma) * borrowed + jnp.square(1 - gamma) * covariances + spread
    return jnp.where(moves[:, None], new_means, means), jnp.where(moves[:, None, None], new_covariances, covariances)


def sample_class_gaussians(key: Key, means: Any, covariances: Any, labels: Any) -> Array:
    r"""Draws a feature from the Gaussian of each label's class, to train a classifier on balanced classes.

    Formula:
      `apply_class_gaussians` with standard normal numbers.

    Args:
      key: a random key.
      means: float ``[K, D]``.
      covariances: float ``[K, D, D]``, symmetric and positive semidefinite; they may be singular.
      labels: integer class ids ``[B]``, one for each feature to draw; balanced ones balance the classes. An id outside [0, K)
        gives a row of NaN.

    Returns:
      The features ``[B, D]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``key`` is no key.

    Cost:
      O(K D^3 + K B D^2) operations and O(B D + D^2) memory, class after class: XLA counts one, and no factorisation.
      XLA at [100, 128, 128]: at most 31 times the FLOPs and 0.96 times the bytes of a copy of its arguments, and 0.18 times its
      memory more.

    Use:
      For: long tails, few labels.
      When: Features are frozen and only the classifier is retrained: draw as many for each class, rare ones with statistics of
        `calibrate_tail_statistics`. It also replays old classes without their images.
      Not when: The body is trained as well, which makes statistics stale at once, or features after a ReLU are mostly 0: a
        Gaussian draws negative ones.
      Badly with: Class weights and `logit_adjusted`, as draws are balanced already. Covariances of fewer examples than
        dimensions: draws stay in the span of these examples, so they add little variety.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> means, covariances = jnp.array([[1.0, 2.0], [5.0, 6.0]]), jnp.zeros((2, 2, 2))
      >>> points = rj.features.sample_class_gaussians(jax.random.key(0), means, covariances, jnp.array([1, 0, 1]))
      >>> points.round(1).tolist()
      [[5.0, 6.0], [1.0, 2.0], [5.0, 6.0]]

    References:
      Zhang et al., When Noisy Labels Meet Long Tail Dilemmas: A Representation Calibration Method, 2023, arXiv 2211.10955.
    """
    name = "features.sample_class_gaussians"
    checks.key(name, key)
    means, covariances = _gaussians(name, means, covariances)
    labels = checks.integers(name, "labels", labels, ndim=1)
    # In float32 whatever the statistics: normals of bfloat16 have 256 levels.
    normals = jax.random.normal(key, (labels.shape[0], means.shape[1]), jnp.float32)
    return apply_class_gaussians(means, covariances, labels, sharding.rows_like(normals, labels))


def apply_class_gaussians(means: Any, covariances: Any, labels: Any, normals: Any) -> Array:
    r"""Features of class Gaussians with the random numbers given: the core of `sample_class_gaussians`.

    Formula:
      .. math:: x_i = \mu_{y_i} + L_{y_i} u_i, \quad L_k L_k^T = \Sigma_k + (10^{-6} + 2 D \epsilon \max_d \Sigma_{k,dd}) I

      with :math:`\epsilon` the machine precision: a covariance of fewer examples than dimensions has no Cholesky factor else.

    Args:
      means: float ``[K, D]``.
      covariances: float ``[K, D, D]``, symmetric and positive semidefinite.
      labels: integer class ids ``[B]``; an id outside [0, K) gives a row of NaN.
      normals: float ``[B, D]``, u.

    Returns:
      The features ``[B, D]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      O(K D^3 + K B D^2) operations and O(B D + D^2) memory, class after class: XLA counts one, and no factorisation.
      XLA at [100, 128, 128]: at most 21 times the FLOPs and 0.29 times the bytes of a copy of its arguments, and 0.049 times
      its memory more.

    Use:
      Part of: `sample_class_gaussians`.
      When: The normal numbers are given: antithetic or stratified draws, or the same ones for two classifiers.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> means, covariances = jnp.array([[1.0, 0.0]]), jnp.array([[[4.0, 0.0], [0.0, 1.0]]])
      >>> points = rj.features.apply_class_gaussians(means, covariances, jnp.array([0]), jnp.ones((1, 2)))
      >>> [round(float(x), 3) for x in points[0]]
      [3.0, 1.0]

    References:
      Zhang et al., When Noisy Labels Meet Long Tail Dilemmas: A Representation Calibration Method, 2023, arXiv 2211.10955.
    """
    name = "features.apply_class_gaussians"
    means, covariances = _gaussians(name, means, covariances)
    labels = checks.integers(name, "labels", labels, ndim=1).astype(jnp.int32)
    num_classes, dim = means.shape
    normals = checks.floating(name, "normals", normals, shape=(labels.shape[0], dim)).astype(means.dtype)
    eps = jnp.finfo(means.dtype).eps

    def add(points: Array, gaussian: tuple[Array, Array, Array]) -> tuple[Array, None]:
        k, mean, covariance = gaussian
        jitter = _JITTER + 2 * dim * eps * jnp.max(jnp.diagonal(covariance), initial=0)
        factor = jnp.linalg.cholesky(covariance + jitter * jnp.eye(dim, dtype=covariance.dtype))
        with jax.default_matmul_precision("highest"):
            drawn = mean + jnp.einsum("bd,ed->be", normals, factor)
        return jnp.where((labels == k)[:, None], drawn, points), None

    # Class after class: a factor for each example would take B D^2 numbers.
    start = jnp.full_like(normals, jnp.nan)
    return jax.lax.scan(add, start, (jnp.arange(num_classes), means, covariances))[0]


def representation_anchor(features: Any, contrastive_features: Any) -> Array:
    r"""The squared distance of features to those of a network trained without labels, which no wrong label has moved.

    Formula:
      .. math:: \lVert f - z \rVert_2^2

      with z a constant for the gradient.

    Args:
      features: float ``[..., D]``, of the network in training.
      contrastive_features: float of the same shape, of the frozen one; no gradient flows to them.

    Returns:
      The distance of each example, ``[...]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      A forward pass of the frozen network, or features stored once; one pass over both.
      XLA at 2 times [1024, 512]: at most 2.2 times the FLOPs and 1.7 times the bytes of a copy of its arguments, and 0.28 times
      its memory more.

    Use:
      For: noisy labels, long tails.
      When: Labels are wrong, and a network was first trained without labels on the same images: tuning on them then cannot move
        features far. The authors use it with mixup in the last stage.
      Not when: There is no label-free pretraining, or it was poor: a network trained on the noisy labels is no anchor. `elr`
        needs none.
      Badly with: `feature_distillation` from the same network, the same pull twice. `mixup` of images only: mix the frozen
        features alike, or pass the mixed images through. A weight from another width: it is a sum over features.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.features.representation_anchor(jnp.array([[1.0, 2.0]]), jnp.array([[0.0, 0.0]])).tolist()
      [5.0]

    References:
      Zhang et al., When Noisy Labels Meet Long Tail Dilemmas: A Representation Calibration Method, 2023, arXiv 2211.10955;
      used there with mixup. Reconstructed from descriptions of the paper, without code.
    """
    name = "features.representation_anchor"
    features = checks.floating(name, "features", features, min_ndim=1)
    anchors = checks.floating(name, "contrastive_features", contrastive_features, shape=features.shape)
    dtype = trees.accumulator(features, anchors)
    return jnp.sum(jnp.square(features.astype(dtype) - jax.lax.stop_gradient(anchors).astype(dtype)), axis=-1)


def _gaussians(name: str, means: Any, covariances: Any) -> tuple[Array, Array]:
    """Checked statistics of at least one class, in float32 or better."""
    means = checks.floating(name, "means", means, ndim=2)
    if means.shape[0] < 1:
        checks.fail(name, "means", "an array [K, D] with at least one class", means)
    covariances = checks.floating(name, "covariances", covariances, shape=(*means.shape, means.shape[1]))
    dtype = trees.accumulator(means, covariances)
    return means.astype(dtype), covariances.astype(dtype)


def _product(a: Array, b: Array) -> Array:
    """``a.T @ b``, summed over examples at full precision."""
    with jax.default_matmul_precision("highest"):
        return sharding.contract_rows(a, b)
