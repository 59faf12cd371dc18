"""Neural collapse, measured: NC1 variability, NC4 nearest mean, and the report of all measures."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array
from regjax.diagnostics.geometry import _geometry

_METRICS = ("pinv", "quotient")


class NCMetrics(NamedTuple):
    """All measures of neural collapse, each 0 at full collapse; None for what needs the weight or the logits.

    Attributes:
      nc1: `nc1` with the pseudo-inverse.
      nc1_quotient: `nc1` as a quotient of traces.
      nc2_norm_cv: `nc2_norm_cv`.
      nc2_equiangularity: `nc2_equiangularity`.
      nc2_etf: `nc2_etf` of the centred class means.
      nc2_weight_norm_cv: the coefficient of variation of the norms of the classifier's rows.
      nc2_weight_etf: `nc2_etf` of the classifier's rows.
      nc3_alignment: `nc3_alignment`.
      nc3_duality: `nc3_duality`.
      nc4_mismatch: `nc4_mismatch`.
    """

    nc1: Array
    nc1_quotient: Array
    nc2_norm_cv: Array
    nc2_equiangularity: Array
    nc2_etf: Array
    nc2_weight_norm_cv: Array | None = None
    nc2_weight_etf: Array | None = None
    nc3_alignment: Array | None = None
    nc3_duality: Array | None = None
    nc4_mismatch: Array | None = None


def nc1(
    features: Any, labels: Any, num_classes: int, *, metric: str = "pinv", global_mean: str = "class", where: Any = None
) -> Array:
    r"""NC1, variability collapse: the scatter within classes relative to that between them.

    Formula:
      With class means :math:`\mu_c`, centred :math:`m_c = \mu_c - \mu_G`,
      :math:`\Sigma_W = \frac{1}{N} \sum_i (h_i - \mu_{y_i})(h_i - \mu_{y_i})^T` and
      :math:`\Sigma_B = \frac{1}{K} \sum_c m_c m_c^T`:

      .. math:: pinv = \frac{1}{K} tr(\Sigma_W \Sigma_B^+), \quad quotient = \frac{tr \Sigma_W}{tr \Sigma_B}

    Args:
      features: float ``[N, D]``; a shift, rotation or scale of all changes nothing.
      labels: integer class ids ``[N]``; an id outside [0, K) among the counted examples makes the result NaN.
      num_classes: K, at least 2; a class without examples is dropped from K.
      metric: ``"pinv"`` (default) or ``"quotient"``, which needs no eigendecomposition and weighs large directions more.
      global_mean: ``"class"`` (default), the mean of the class means, or ``"sample"``, of all examples.
      where: boolean ``[N]``: which examples count; default all.

    Returns:
      A scalar in float32 or better; 0 where all examples equal their class mean. Where all class means coincide, one class
      alone included, there is no scatter between classes to compare with: both forms are 0 by definition of the
      pseudo-inverse. No gradient flows to the features.

    Raises:
      ValueError: if a shape or dtype does not fit, or an option is unknown.

    Cost:
      O(N K D + K^3), without a D x D matrix; examples may be sharded over devices. XLA counts the decomposition of a K x K matrix
      as next to nothing.
      XLA at [1024, 512]: at most 500 times the FLOPs and 6.7 times the bytes of a copy of its arguments, and 1.3 times its
      memory more.

    Use:
      For: collapsed features.
      When: How far classes have contracted, on training features over epochs or on test features between losses. ``quotient``
        for small sets: in the calibration study it rose under `label_smoothing` and `maxsup`, against the published direction.
      Not when: Classes have one or two examples each, whose scatter around their own mean is too small or 0. A value of 0 may
        also mean that all class means coincide.
      Badly with: Mixed labels (`mixup`, `cutmix`), which have no class. Features before and after ReLU, or of different layers,
        compared with each other. Long tails, under which the scatter within is that of the frequent classes.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> features = jnp.array([[2.0, 0.1], [2.0, -0.1], [-2.0, 0.2], [-2.0, -0.2]])
      >>> round(float(rj.diagnostics.nc1(features, jnp.array([0, 0, 1, 1]), 2, metric="quotient")), 5)
      0.00625

    References:
      Papyan et al., Prevalence of Neural Collapse during the Terminal Phase of Deep Learning Training, 2020,
      arXiv 2008.08186. Tirer et al., Perturbation Analysis of Neural Collapse, 2023, arXiv 2210.16658 (quotient). Some code
      leaves out 1/K. Eigenvalues below K eps of the largest count as 0 in the pseudo-inverse.
    """
    name = "diagnostics.nc1"
    checks.choice(name, "metric", metric, _METRICS)
    checks.choice(name, "global_mean", global_mean, _geometry.GLOBAL_MEANS)
    g = _geometry.geometry(_geometry.inputs(name, features, labels, num_classes, where))
    return _geometry.variability(g, metric, global_mean)


def nc4_mismatch(features: Any, labels: Any, num_classes: int, logits: Any, *, where: Any = None) -> Array:
    r"""NC4: the share of examples that the classifier and the nearest class mean decide differently.

    Formula:
      .. math:: \frac{1}{N} \sum_i \left[ \arg\max_c z_{ic} \ne \arg\min_c \lVert h_i - \mu_c \rVert \right]

      The label enters through the class means alone.

    Args:
      features: float ``[N, D]``.
      labels: integer class ids ``[N]``, from which the class means come.
      num_classes: K, at least 2; a class without examples has no mean, and its prediction is a mismatch.
      logits: float ``[N, K]``.
      where: boolean ``[N]``: which examples count; default all.

    Returns:
      A scalar in [0, 1], in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      O(N K D); examples may be sharded over devices.
      XLA at [1024, 512]: at most 380 times the FLOPs and 4.5 times the bytes of a copy of its arguments, and 0.6 times its
      memory more.

    Use:
      For: collapsed features.
      When: Whether a nearest-mean classifier could replace the head, as for classes that are added later. Means come from the
        features that are given, so give those of training.
      Not when: Accuracy is asked: both may agree on a wrong class. Class means of small sets, which lean to their own examples.
      Badly with: Heads with large biases, and `adjust_logits`, which shift the logits away from distances on purpose.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> features, labels = jnp.array([[2.0], [1.0], [-1.0], [-2.0]]), jnp.array([0, 0, 1, 1])
      >>> logits = jnp.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0], [0.0, 1.0]])
      >>> float(rj.diagnostics.nc4_mismatch(features, labels, 2, logits))
      0.25

    References:
      Papyan et al., Prevalence of Neural Collapse during the Terminal Phase of Deep Learning Training, 2020,
      arXiv 2008.08186.
    """
    name = "diagnostics.nc4_mismatch"
    x = _geometry.inputs(name, features, labels, num_classes, where)
    logits = checks.floating(name, "logits", logits, shape=x.logits_shape)
    return _mismatch(_geometry.geometry(x), logits, x.where)


def nc_metrics(
    features: Any, labels: Any, num_classes: int, *, weight: Any = None, logits: Any = None, where: Any = None
) -> NCMetrics:
    r"""The report of neural collapse: all measures, from one pass over the class means.

    Formula:
      Each measure is the function of its name with its defaults; `nc2_etf` is that of the centred class means.

    Args:
      features: float ``[N, D]``.
      labels: integer class ids ``[N]``; an id outside [0, K) among the counted examples makes the results NaN.
      num_classes: K, at least 2; a class without examples is dropped from K.
      weight: float ``[K, D]``, the classifier's rows (the transpose of a Flax kernel), for NC2 of the weight and NC3.
      logits: float ``[N, K]``, for NC4.
      where: boolean ``[N]``: which examples count; default all.

    Returns:
      `NCMetrics`, scalars in float32 or better, None for those whose argument is missing. No gradient flows through it.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      O(N K D + K^3) once for all of them, without a D x D matrix; examples may be sharded over devices. XLA counts the
      decomposition of a K x K matrix as next to nothing.
      XLA at [1024, 512]: at most 620 times the FLOPs and 7.5 times the bytes of a copy of its arguments, and 1.2 times its
      memory more.

    Use:
      For: collapsed features.
      When: A report every few epochs on one set of features in evaluation mode, for runs trained beyond a perfect fit, with
        ``weight`` and ``logits`` from the same weights.
      Not when: Training is far from a fit, when collapse is not to be expected. Collapse is no score: in the calibration study
        `logit_norm` had the least variation, and less accuracy than smoothing, which had the most.
      Badly with: Mixed labels, which have no class. Single batches, in which classes are absent or have one example: collect a
        pass over the data.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> features, labels = jnp.concatenate([1.2 * jnp.eye(3), 0.8 * jnp.eye(3)]), jnp.array([0, 1, 2, 0, 1, 2])
      >>> report = rj.diagnostics.nc_metrics(features, labels, 3, weight=jnp.eye(3))
      >>> round(float(report.nc1), 5), round(float(report.nc2_weight_etf), 5), report.nc4_mismatch
      (0.02667, 0.60581, None)

    References:
      Papyan et al., Prevalence of Neural Collapse during the Terminal Phase of Deep Learning Training, 2020,
      arXiv 2008.08186. Tirer et al., Perturbation Analysis of Neural Collapse, 2023, arXiv 2210.16658.
    """
    name = "diagnostics.nc_metrics"
    x = _geometry.inputs(name, features, labels, num_classes, where)
    if weight is not None:
        weight = _geometry.weights(name, "weight", weight, x.weight_shape)
    if logits is not None:
        logits = checks.floating(name, "logits", logits, shape=x.logits_shape)
    g = _geometry.geometry(x)
    means = g.centred("class")
    report = NCMetrics(
        nc1=_geometry.variability(g, "pinv", "class"),
        nc1_quotient=_geometry.variability(g, "quotient", "class"),
        nc2_norm_cv=_geometry.norm_variation(means, g.present, g.classes),
        nc2_equiangularity=_geometry.angle_deviation(means, g.present, g.classes),
        nc2_etf=_geometry.etf_distance(means, g.present, g.classes),
    )
    if weight is not None:
        report = report._replace(
            nc2_weight_norm_cv=_geometry.norm_variation(weight, g.present, g.classes),
            nc2_weight_etf=_geometry.etf_distance(weight, g.present, g.classes),
            nc3_alignment=_geometry.alignment(means, weight, g.present),
            nc3_duality=_geometry.duality(g, weight, "sample"),
        )
    return report if logits is None else report._replace(nc4_mismatch=_mismatch(g, logits, x.where))


def _mismatch(g: _geometry.Geometry, logits: Array, where: Array) -> Array:
    differs = jnp.argmax(jax.lax.stop_gradient(logits), axis=1) != _geometry.nearest_mean(g)
    return jnp.sum(differs & where, dtype=g.examples.dtype) / g.examples
