"""Neural collapse of class means: NC2, how near they are to a simplex, and NC3, how near the classifier is to them."""

from typing import Any

from regjax.core import checks, sharding
from regjax.core.types import Array
from regjax.diagnostics import _examples
from regjax.diagnostics.geometry import _geometry


def nc2_norm_cv(features: Any, labels: Any, num_classes: int, *, global_mean: str = "class", where: Any = None) -> Array:
    r"""NC2, equal norms: the coefficient of variation of the norms of the centred class means.

    Formula:
      .. math:: \frac{std_c \lVert m_c \rVert}{mean_c \lVert m_c \rVert}

      with the unbiased standard deviation (K - 1).

    Args:
      features: float ``[N, D]``.
      labels: integer class ids ``[N]``.
      num_classes: K, at least 2; a class without examples is dropped from K.
      global_mean: ``"class"`` (default), the mean of the class means, or ``"sample"``, of all examples.
      where: boolean ``[N]``: which examples count; default all.

    Returns:
      A scalar in float32 or better; 0 for equal norms. No gradient flows to the features.

    Raises:
      ValueError: if a shape or dtype does not fit, or an option is unknown.

    Cost:
      O(N K D); examples may be sharded over devices.
      XLA at [1024, 512]: at most 230 times the FLOPs and 4.8 times the bytes of a copy of its arguments, and 0.71 times its
      memory more.

    Use:
      For: collapsed features, long tails.
      When: Unequal classes: whether rare ones have shorter means than frequent ones, before `neural_collapse` or a fixed
        classifier is tried. `nc_metrics` gives it with all others.
      Not when: Angles are the question, or classes have a few examples each: the noise of their means adds to their norms.
      Badly with: Normalised features, whose means have norms by concentration alone. ``sample`` as the global mean under long
        tails, which lies at the frequent classes.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> features = jnp.array([[3.0, 0.0], [0.0, 3.0], [-3.0, -3.0]])
      >>> round(float(rj.diagnostics.nc2_norm_cv(features, jnp.array([0, 1, 2]), 3)), 4)
      0.2101

    References:
      Papyan et al., Prevalence of Neural Collapse during the Terminal Phase of Deep Learning Training, 2020,
      arXiv 2008.08186; the divisor K - 1 is that of released analyses.
    """
    name = "diagnostics.nc2_norm_cv"
    checks.choice(name, "global_mean", global_mean, _geometry.GLOBAL_MEANS)
    g = _geometry.geometry(_geometry.inputs(name, features, labels, num_classes, where))
    return _geometry.norm_variation(g.centred(global_mean), g.present, g.classes)


def nc2_equiangularity(features: Any, labels: Any, num_classes: int, *, global_mean: str = "class", where: Any = None) -> Array:
    r"""NC2, equal angles: how far the cosines between centred class means are from those of a simplex.

    Formula:
      .. math:: \frac{1}{K (K - 1)} \sum_{c \ne c'} \left\lvert \cos(m_c, m_{c'}) + \frac{1}{K - 1} \right\rvert

    Args:
      features: float ``[N, D]``.
      labels: integer class ids ``[N]``.
      num_classes: K, at least 2; a class without examples is dropped from K.
      global_mean: ``"class"`` (default), the mean of the class means, or ``"sample"``, of all examples.
      where: boolean ``[N]``: which examples count; default all.

    Returns:
      A scalar in float32 or better; 0 for a simplex. No gradient flows to the features.

    Raises:
      ValueError: if a shape or dtype does not fit, or an option is unknown.

    Cost:
      O(N K D + K^2 D); examples may be sharded over devices.
      XLA at [1024, 512]: at most 260 times the FLOPs and 5 times the bytes of a copy of its arguments, and 0.71 times its
      memory more.

    Use:
      For: collapsed features, long tails.
      When: Whether some classes have crowded together, as rare ones do: it is the mean over pairs, so look at the cosines where
        it is large.
      Not when: There are more than D + 1 classes: no simplex fits, and 0 is out of reach. Similar classes are meant to be near,
        as in a hierarchy.
      Badly with: Features after ReLU without centring by ``class``, as all then point one way. Classes absent from the batch,
        which leave the simplex of the others.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> features = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
      >>> round(float(rj.diagnostics.nc2_equiangularity(features, jnp.arange(4), 4)), 4)
      0.4444

    References:
      Papyan et al., Prevalence of Neural Collapse during the Terminal Phase of Deep Learning Training, 2020,
      arXiv 2008.08186.
    """
    name = "diagnostics.nc2_equiangularity"
    checks.choice(name, "global_mean", global_mean, _geometry.GLOBAL_MEANS)
    g = _geometry.geometry(_geometry.inputs(name, features, labels, num_classes, where))
    return _geometry.angle_deviation(g.centred(global_mean), g.present, g.classes)


def nc2_etf(vectors: Any, *, where: Any = None) -> Array:
    r"""NC2 in one number: the distance of class vectors from a simplex equiangular tight frame.

    Formula:
      .. math:: \left\lVert \frac{A A^T}{\lVert A A^T \rVert_F}
        - \frac{1}{\sqrt{K - 1}} \left( I - \frac{1}{K} 1 1^T \right) \right\rVert_F

      The rows of A are used as they are: centre class means first, or take `nc_metrics`.

    Args:
      vectors: float ``[K, D]``, one row for each class: a classifier's weight (the transpose of a Flax kernel) or centred
        class means; K at least 2.
      where: boolean ``[K]``: the classes that exist; default all.

    Returns:
      A scalar in float32 or better, 0 for a simplex; 0 if fewer than two classes exist. No gradient flows to the vectors.

    Raises:
      ValueError: if a shape or dtype does not fit or there are fewer than two rows.

    Cost:
      O(K^2 D).
      XLA at [100, 512]: at most 230 times the FLOPs and 2.8 times the bytes of a copy of its arguments, and 0.77 times its
      memory more.

    Use:
      For: collapsed features.
      When: Class vectors alone are at hand: the rows of a classifier, prototypes, or text embeddings of classes. Take centred
        rows, unless their common part is to be counted.
      Not when: Features and labels are there: `nc_metrics` centres them. Norms and angles are to be told apart, which one
        number cannot.
      Badly with: A Flax kernel, which must be transposed. Heads of hierarchies or of margins by class, which are meant to be
        unequal.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.diagnostics.nc2_etf(jnp.eye(3))), 4)
      0.6058

    References:
      Zhu et al., A Geometric Analysis of Neural Collapse with Unconstrained Features, 2021, arXiv 2105.02375.
    """
    name = "diagnostics.nc2_etf"
    vectors = _geometry.weights(name, "vectors", vectors, (None, None))
    if len(vectors) < 2:
        checks.fail(name, "vectors", "an array [K, D] with two classes or more", vectors)
    present = sharding.replicate(_examples.counted(name, where, vectors.shape[:1]))
    return _geometry.etf_distance(vectors, present, _geometry.at_least_one(present, vectors.dtype))


def nc3_alignment(
    features: Any, labels: Any, num_classes: int, weight: Any, *, global_mean: str = "class", where: Any = None
) -> Array:
    r"""NC3, self-duality: the distance between the classifier and the centred class means, both scaled to norm 1.

    Formula:
      .. math:: \left\lVert \frac{M^T}{\lVert M \rVert_F} - \frac{W}{\lVert W \rVert_F} \right\rVert_F^2

      with the centred class means as the columns of M.

    Args:
      features: float ``[N, D]``.
      labels: integer class ids ``[N]``.
      num_classes: K, at least 2; a class without examples is dropped, from the weight too.
      weight: float ``[K, D]``, the classifier's rows: the transpose of a Flax kernel.
      global_mean: ``"class"`` (default), the mean of the class means, or ``"sample"``, of all examples.
      where: boolean ``[N]``: which examples count; default all.

    Returns:
      A scalar in [0, 4], in float32 or better: 0 where W is a positive multiple of the means, 4 where a negative one. No
      gradient flows to the arguments.

    Raises:
      ValueError: if a shape or dtype does not fit, or an option is unknown.

    Cost:
      O(N K D); examples may be sharded over devices.
      XLA at [1024, 512]: at most 210 times the FLOPs and 4.6 times the bytes of a copy of its arguments, and 0.7 times its
      memory more.

    Use:
      For: collapsed features.
      When: Whether classifier and features agree class by class, at the end of training with weight decay on both, or after
        features were tuned under a frozen head.
      Not when: The features are taken before another projection, whose rotation is free. Heads trained without decay, which
        need not follow the means.
      Badly with: Weights with a common part in all rows, which softmax does not see but the distance does. A Flax kernel, which
        must be transposed.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> features = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
      >>> round(float(rj.diagnostics.nc3_alignment(features, jnp.array([0, 1]), 2, 3 * features)), 4)
      0.0

    References:
      Papyan et al., Prevalence of Neural Collapse during the Terminal Phase of Deep Learning Training, 2020,
      arXiv 2008.08186.
    """
    name = "diagnostics.nc3_alignment"
    checks.choice(name, "global_mean", global_mean, _geometry.GLOBAL_MEANS)
    x = _geometry.inputs(name, features, labels, num_classes, where)
    weight = _geometry.weights(name, "weight", weight, x.weight_shape)
    g = _geometry.geometry(x)
    return _geometry.alignment(g.centred(global_mean), weight, g.present)


def nc3_duality(
    features: Any, labels: Any, num_classes: int, weight: Any, *, global_mean: str = "sample", where: Any = None
) -> Array:
    r"""NC3 through products: the distance of classifier times centred class means from a simplex.

    Formula:
      .. math:: \left\lVert \frac{W M}{\lVert W M \rVert_F}
        - \frac{1}{\sqrt{K - 1}} \left( I - \frac{1}{K} 1 1^T \right) \right\rVert_F

      with the centred class means as the columns of M.

    Args:
      features: float ``[N, D]``.
      labels: integer class ids ``[N]``.
      num_classes: K, at least 2; a class without examples is dropped, from the weight too.
      weight: float ``[K, D]``, the classifier's rows: the transpose of a Flax kernel.
      global_mean: ``"sample"`` (default), the mean of all examples, or ``"class"``, of the class means.
      where: boolean ``[N]``: which examples count; default all.

    Returns:
      A scalar in [0, 2], in float32 or better. No gradient flows to the arguments.

    Raises:
      ValueError: if a shape or dtype does not fit, or an option is unknown.

    Cost:
      O(N K D + K^2 D); examples may be sharded over devices.
      XLA at [1024, 512]: at most 230 times the FLOPs and 4.5 times the bytes of a copy of its arguments, and 0.71 times its
      memory more.

    Use:
      For: collapsed features.
      When: The scores that class means get are asked, not the vectors: they stay a simplex where head and features are
        stretched against each other, which `nc3_alignment` counts as distance.
      Not when: The plain question is whether a row points at its mean: `nc3_alignment` is easier to read, and is 0 for rows
        equal to means that are no simplex.
      Badly with: Comparing with `nc3_alignment`: the default global mean is that of the samples here and of the classes there.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> features = jnp.array([[1.0, 0.0], [-1.0, 0.0]])
      >>> round(float(rj.diagnostics.nc3_duality(features, jnp.array([0, 1]), 2, -features)), 4)
      2.0

    References:
      Zhu et al., A Geometric Analysis of Neural Collapse with Unconstrained Features, 2021, arXiv 2105.02375.
    """
    name = "diagnostics.nc3_duality"
    checks.choice(name, "global_mean", global_mean, _geometry.GLOBAL_MEANS)
    x = _geometry.inputs(name, features, labels, num_classes, where)
    weight = _geometry.weights(name, "weight", weight, x.weight_shape)
    g = _geometry.geometry(x)
    return _geometry.duality(g, weight, global_mean)
