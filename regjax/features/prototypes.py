"""Class prototypes of a model: what its features were, and a pull towards them or, bounded, away from them."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, sharding, trees
from regjax.core.types import Array

_DISTANCES = ("kl", "l2")


def class_prototypes(features: Any, labels: Any, num_classes: int, *, where: Any = None, axis_name: Any = None) -> Array:
    r"""The mean feature of each class.

    Formula:
      .. math:: p_k = \frac{1}{n_k} \sum_{i : y_i = k} h_i

    Args:
      features: float ``[B, D]``, the embeddings of a model in evaluation mode.
      labels: integer class ids ``[B]``; examples of other ids than 0 to K - 1 are left out.
      num_classes: K, at least 1.
      where: boolean ``[B]``: which examples count; default all.
      axis_name: the mapped axis, or a tuple of them, over which the examples are split under ``shard_map`` or ``pmap``. Not
        needed under ``jit`` with sharded arrays.

    Returns:
      ``[K, D]`` in float32 or better; zeros for a class without examples, which `prototype_loss` takes as no prototype.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      One matrix product ``[K, B] [B, D]``; with ``axis_name``, a sum of K (D + 1) numbers over devices.
      XLA at [1024, 512]: at most 230 times the FLOPs and 1.1 times the bytes of a copy of its arguments, and 0.11 times its
      memory more.

    Use:
      Part of: `prototype_loss`.
      When: Once, on features in evaluation mode before the model is adapted. Also for a nearest-mean classifier.
      Not when: A rare class has a few noisy examples: its mean is poor, see `calibrate_tail_statistics`.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> features = jnp.array([[1.0, 2.0], [3.0, 4.0], [5.0, 5.0]])
      >>> rj.features.class_prototypes(features, jnp.array([0, 0, 1]), 2).tolist()
      [[2.0, 3.0], [5.0, 5.0]]

    References:
      Zhao et al., Practical Continual Forgetting for Pre-trained Vision Models, 2025, arXiv 2501.09705.
    """
    name = "features.class_prototypes"
    features, labels, where = _check(name, features, labels, where)
    checks.integer(name, "num_classes", num_classes, low=1)
    checks.axis_name(name, axis_name)
    return classes.class_means(features, labels, num_classes, where, axis_name)


def prototype_loss(
    features: Any, labels: Any, prototypes: Any, *, distance: str = "kl", where: Any = None, axis_name: Any = None
) -> Array:
    r"""How far features are from the prototypes of their classes, on average.

    Formula:
      .. math:: P = \frac{1}{n} \sum_i KL\left( softmax(p_{y_i}) \,\|\, softmax(h_i) \right)
        \quad or \quad \frac{1}{n D} \sum_i \lVert h_i - p_{y_i} \rVert^2

    Args:
      features: float ``[B, D]``.
      labels: integer class ids ``[B]``; an example of a class without prototype is left out.
      prototypes: float ``[K, D]``, as of `class_prototypes` with the model before it was adapted: constants. A row of zeros
        is no prototype.
      distance: ``"kl"`` (default) or ``"l2"``.
      where: boolean ``[B]``: which examples count; default all.
      axis_name: the mapped axis, or a tuple of them, over which the batch is split, as in `class_prototypes`.

    Returns:
      A scalar in float32 or better, at least 0; 0 if no example counts. No gradient flows to the prototypes.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``distance`` is misspelt.

    Cost:
      O((B + K) D).
      XLA at [1024, 512]: at most 19 times the FLOPs and 8.1 times the bytes of a copy of its arguments, and 1.1 times its
      memory more.

    Use:
      For: unlearning, forgetting.
      When: A model is edited or tuned in turns: hold kept classes near their old means, and drive those to forget away through
        `bounded_forgetting`. In the forgetting study this let most blocks stay unchanged when classes were forgotten at once.
      Not when: Classes have several modes, for which a mean is no prototype. With the ``"kl"`` distance: features of unit
        length, whose softmax is nearly uniform, or very long ones, whose softmax is one entry: take ``"l2"``.
      Badly with: A negative weight without a bound, which has no minimum. Prototypes of a network in training mode, or of one
        already adapted. Mixed labels. Margin losses that normalise features, with ``"l2"``.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> prototypes = jnp.array([[1.0, 0.0]])
      >>> round(float(rj.features.prototype_loss(jnp.zeros((1, 2)), jnp.array([0]), prototypes)), 4)
      0.1109

    References:
      Zhao et al., Practical Continual Forgetting for Pre-trained Vision Models, 2025, arXiv 2501.09705, and the authors' code:
      the loss of examples to remember is this times a weight, that of examples to forget is
      ``regjax.objectives.bounded_forgetting`` of it.
    """
    name = "features.prototype_loss"
    features, labels, where = _check(name, features, labels, where)
    prototypes = checks.floating(name, "prototypes", prototypes, shape=(None, features.shape[1]))
    if 0 in prototypes.shape:
        checks.fail(name, "prototypes", "an array [K, D] with at least one class", prototypes)
    checks.choice(name, "distance", distance, _DISTANCES)
    checks.axis_name(name, axis_name)
    dtype = trees.accumulator(features, prototypes)
    prototypes = sharding.replicate(jax.lax.stop_gradient(prototypes.astype(dtype)))
    num_classes = prototypes.shape[0]
    known = (labels >= 0) & (labels < num_classes)
    rows = jnp.where(known, labels, 0)
    own = sharding.take_rows(prototypes, rows)
    counts = known & jnp.any(own != 0, axis=-1)
    counts = counts if where is None else counts & where
    h = jnp.where(counts[:, None], features.astype(dtype), 0)
    if distance == "kl":
        log_p = sharding.take_rows(jax.nn.log_softmax(prototypes, axis=-1), rows)
        shifted, log_total = classes.normalise(h)
        each = jnp.sum(jnp.exp(log_p) * (log_p - shifted), axis=-1) + log_total
    else:
        each = jnp.mean(jnp.square(h - own), axis=-1)
    total, number = jnp.sum(jnp.where(counts, each, 0)), jnp.sum(counts.astype(dtype))
    if axis_name is not None:
        total, number = jax.lax.psum((total, number), axis_name)
    return total / jnp.maximum(number, 1)


def _check(name: str, features: Any, labels: Any, where: Any) -> tuple[Array, Array, Array | None]:
    features = checks.floating(name, "features", features, ndim=2)
    labels = checks.integers(name, "labels", labels, shape=features.shape[:1])
    where = checks.example_mask(name, "where", where, features.shape[:1])
    return features, labels.astype(jnp.promote_types(labels.dtype, jnp.int32)), where
