"""Selective mixup inside a step: draws of pairs of classes and of their examples, and the mix of their features."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Key, Strength
from regjax.inputs.selection.importance import sample_indices


class ClassIndex(NamedTuple):
    """Where the examples of each class stand in a labelled set.

    Attributes:
      order: the positions ``[N]``, sorted by class; those of no class last.
      starts: the place ``[K]`` in ``order`` of the first example of each class.
      counts: the number ``[K]`` of examples of each class.
    """

    order: Array
    starts: Array
    counts: Array


def class_index(labels: Any, *, num_classes: int, where: Any = None) -> ClassIndex:
    r"""Sorts the positions of a labelled set by class, so that examples of given classes can be drawn inside a step.

    Formula:
      A stable sort of the labels; the examples of class k are ``order[starts[k] : starts[k] + counts[k]]``.

    Args:
      labels: integer ``[N]``: class ids, or pseudo-labels; those outside [0, K) are in no class.
      num_classes: K.
      where: boolean ``[N]``: the examples that may be drawn; None (default) is all.

    Returns:
      A `ClassIndex` for `sample_class_examples`, to be kept until the labels change.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      One sort of the labels, which are gathered to every device; not for the inside of a step.
      XLA at [50000]: at most 26 times the FLOPs and 6.1 times the bytes of a copy of its arguments, and 1.2 times its memory
      more.

    Use:
      Part of: `selmix_refresh`, `sample_class_examples`.
      When: Call it once for labels, and again whenever pseudo-labels change. Also serves class-balanced sampling of any kind.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> index = rj.inputs.class_index(jnp.array([1, 0, 1, 3]), num_classes=3)
      >>> index.order.tolist(), index.starts.tolist(), index.counts.tolist()
      ([1, 0, 2, 3], [0, 1, 3], [1, 2, 0])

    References:
      Ramasubramanian et al., Selective Mixup Fine-Tuning for Optimizing Non-Decomposable Objectives, 2024, ICLR, arXiv
      2403.18301: the authors' sampler of examples by class, in fixed shapes.
    """
    name = "inputs.class_index"
    checks.integer(name, "num_classes", num_classes, low=1)
    labels = checks.integers(name, "labels", labels, ndim=1)
    if labels.shape[0] < 1:
        checks.fail(name, "labels", "of at least one example", labels)
    where = checks.example_mask(name, "where", where, labels.shape)
    wide = labels.astype(jnp.promote_types(labels.dtype, jnp.int32))
    known = (wide >= 0) & (wide < num_classes)
    wide = sharding.replicate(jnp.where(known if where is None else known & where, wide, num_classes))
    order = jnp.argsort(wide, stable=True).astype(jnp.int32)
    ends = jnp.searchsorted(wide[order], jnp.arange(num_classes + 1, dtype=wide.dtype)).astype(jnp.int32)
    return ClassIndex(order, ends[:-1], ends[1:] - ends[:-1])


def sample_class_examples(key: Key, index: ClassIndex, classes: Any) -> tuple[Array, Array]:
    r"""Draws an example of each given class, uniformly and with replacement.

    Formula:
      ``order[starts[k] + floor(u counts[k])]`` with u uniform in [0, 1).

    Args:
      key: a random key.
      index: of `class_index`.
      classes: integer ``[num]``: the class of each draw.

    Returns:
      ``(indices, found)``: positions ``[num]`` in the labelled set, and whether the class has an example, boolean ``[num]``;
      where it has none the position is that of some example of another class, to be masked in the loss.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      Two small gathers.
      XLA at [50000]: at most 0.75 times the FLOPs and 0.65 times the bytes of a copy of its arguments, and 0.021 times its
      memory more.

    Use:
      Part of: `selmix_refresh`.
      When: Call it inside the step with classes from `sample_class_pairs`, or with uniform ones for balanced batches.
      Badly with: Dropping the returned found: a class without examples gives one of another class.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> index = rj.inputs.class_index(jnp.array([1, 0, 1, 1]), num_classes=3)
      >>> indices, found = rj.inputs.sample_class_examples(jax.random.key(0), index, jnp.array([0, 0, 2]))
      >>> indices[:2].tolist(), found.tolist()
      ([1, 1], [True, True, False])

    References:
      Ramasubramanian et al., Selective Mixup Fine-Tuning for Optimizing Non-Decomposable Objectives, 2024, ICLR, arXiv
      2403.18301.
    """
    name = "inputs.sample_class_examples"
    checks.key(name, key)
    if not isinstance(index, ClassIndex):
        checks.fail(name, "index", "the ClassIndex that class_index makes", index)
    classes = checks.integers(name, "classes", classes, ndim=1)
    known = (classes >= 0) & (classes < index.counts.shape[0])
    chosen = jnp.where(known, classes, 0)
    counts = jnp.where(known, sharding.take_rows(index.counts, chosen), 0)
    # An integer below the count: a float32 uniform has too few values for large classes.
    place = jax.random.randint(key, classes.shape, 0, jnp.maximum(counts, 1))
    place = jnp.minimum(sharding.take_rows(index.starts, chosen) + place, index.order.shape[0] - 1)
    return sharding.take_rows(index.order, place), counts > 0


def sample_class_pairs(key: Key, pairs: Any, num: int) -> tuple[Array, Array]:
    r"""Draws pairs of classes from a distribution over all of them.

    Formula:
      .. math:: (y_1, y_2) \sim P: \quad y_1 \sim \sum_j P_{\cdot j}, \quad y_2 \sim P_{y_1 \cdot}

    Args:
      key: a random key.
      pairs: float ``[K, K]``, P of `selmix_distribution`; not negative, of any positive sum.
      num: how many pairs.

    Returns:
      ``(y1, y2)``, integers ``[num]``.

    Raises:
      ValueError: if ``pairs`` is no square float matrix or ``num`` no positive integer.

    Cost:
      num K random numbers, and as many logarithms.
      XLA at [100, 100]: at most 190 times the FLOPs and 23 times the bytes of a copy of its arguments, and 5.7 times its memory
      more.

    Use:
      Part of: `selmix_refresh`.
      When: Call it at each step. An outer product of class frequencies in place of P gives the uniform mixing to compare with.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> y1, y2 = rj.inputs.sample_class_pairs(jax.random.key(0), jnp.array([[0.0, 1.0], [0.0, 0.0]]), 3)
      >>> y1.tolist(), y2.tolist()
      ([0, 0, 0], [1, 1, 1])

    References:
      Ramasubramanian et al., Selective Mixup Fine-Tuning for Optimizing Non-Decomposable Objectives, 2024, ICLR, arXiv
      2403.18301.
    """
    name = "inputs.sample_class_pairs"
    checks.key(name, key)
    pairs = checks.floating(name, "pairs", pairs, ndim=2)
    if pairs.shape[0] < 1 or pairs.shape[0] != pairs.shape[1]:
        checks.fail(name, "pairs", "probabilities of shape [K, K]", pairs)
    checks.integer(name, "num", num, low=1)
    pairs = sharding.replicate(pairs.astype(trees.accumulator(pairs)))
    first_key, second_key = jax.random.split(key)
    first = sample_indices(first_key, jnp.sum(pairs, axis=1), num)
    second = jax.random.categorical(second_key, jnp.log(sharding.take_rows(pairs, first)))
    return first, second.astype(jnp.int32)


def selmix_mix(key: Key, h1: Any, h2: Any, *, min_weight: Strength = 0.6) -> Array:
    r"""Mixes the features of two lists of examples, the first of which lends its label.

    Formula:
      .. math:: h_i = \lambda_i h_{1, i} + (1 - \lambda_i) h_{2, i}, \quad \lambda_i \sim U(min\_weight, 1)

    Args:
      key: a random key.
      h1: float ``[B, ...]``: features of examples of the classes ``y1``, which stay the labels.
      h2: float, of the same shape: features of examples of the classes ``y2``.
      min_weight: the least weight of ``h1``, in [0, 1], default 0.6. At 1 the result is ``h1``.

    Returns:
      The mixed features, with the shape of ``h1`` and the dtype that the two have together.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``min_weight`` is out of range.

    Cost:
      Two reads and one write of the features.
      XLA at 2 times [1024, 512]: at most 1.8 times the FLOPs and 0.84 times the bytes of a copy of its arguments, and 0.01
      times its memory more.

    Use:
      Part of: `selmix_refresh`.
      When: Call it on the features of the two lists and train the head on the label of the first. Keep min_weight at a half or
        more, or the other class prevails under that label.
      Badly with: Another min_weight than the one behind mixing_weight of the gain, which is (1 + min_weight) / 2.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> h = rj.inputs.selmix_mix(jax.random.key(0), jnp.ones((4, 3)), jnp.zeros((4, 3)))
      >>> bool((h >= 0.6).all()), bool((h <= 1).all())
      (True, True)

    References:
      Ramasubramanian et al., Selective Mixup Fine-Tuning for Optimizing Non-Decomposable Objectives, 2024, ICLR, arXiv
      2403.18301. The label is not mixed.
    """
    name = "inputs.selmix_mix"
    checks.key(name, key)
    h1 = checks.floating(name, "h1", h1, min_ndim=1)
    checks.number(name, "min_weight", min_weight, low=0.0, high=1.0)
    least = jnp.asarray(min_weight, jnp.float32)
    lam = least + (1 - least) * jax.random.uniform(key, h1.shape[:1], jnp.float32)
    return _apply(name, h1, h2, lam)


def apply_selmix(h1: Any, h2: Any, *, lam: Any) -> Array:
    r"""Selective mixup of features with given weights: the core of `selmix_mix`.

    Formula:
      .. math:: h_i = \lambda_i h_{1, i} + (1 - \lambda_i) h_{2, i}

      in float32 or better.

    Args:
      h1: float ``[B, ...]``.
      h2: float, of the same shape.
      lam: float ``[B]``, the weights of ``h1``.

    Returns:
      The mixed features, with the shape of ``h1`` and the dtype that the two have together.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      Two reads and one write of the features.
      XLA at 2 times [1024, 512]: at most 1.7 times the FLOPs and 0.83 times the bytes of a copy of its arguments, and 0 times
      its memory more.

    Use:
      Part of: `selmix_mix`.
      When: Call it with given weights, for a test or a rule of your own.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rj.inputs.apply_selmix(jnp.array([[4.0], [8.0]]), jnp.zeros((2, 1)), lam=jnp.array([0.75, 1.0])).tolist()
      [[3.0], [8.0]]

    References:
      Ramasubramanian et al., Selective Mixup Fine-Tuning for Optimizing Non-Decomposable Objectives, 2024, ICLR, arXiv
      2403.18301.
    """
    name = "inputs.apply_selmix"
    h1 = checks.floating(name, "h1", h1, min_ndim=1)
    return _apply(name, h1, h2, checks.floating(name, "lam", lam, shape=h1.shape[:1]))


def _apply(name: str, h1: Array, h2: Any, lam: Array) -> Array:
    h2 = checks.floating(name, "h2", h2, shape=h1.shape)
    dtype = trees.accumulator(h1, h2)
    lam = lam.astype(dtype).reshape(-1, *(1,) * (h1.ndim - 1))
    return (lam * h1.astype(dtype) + (1 - lam) * h2.astype(dtype)).astype(jnp.promote_types(h1.dtype, h2.dtype))
