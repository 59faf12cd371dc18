"""Nearest neighbours beside a classifier: their vote, a loss weighted by it, and the mean of both predictions."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, sharding, trees
from regjax.core.types import Array, Strength


def knn_probabilities(
    queries: Any,
    keys: Any,
    key_labels: Any,
    *,
    num_classes: int,
    k: int = 20,
    temperature: Strength = 1.0,
    center: bool = True,
    exclude: Any = None,
    where: Any = None,
) -> Array:
    r"""Class probabilities from the labels of the nearest stored features.

    Formula:
      .. math:: p_c = \frac{\sum_{j : y_j = c} w_j}{\sum_j w_j}, \quad w_j = \exp(-\lVert q - x_j \rVert^2 / \tau)

      over the k keys nearest to the query, with q and x the features less the mean of the keys, divided by their norms.

    Args:
      queries: float ``[B, D]``: the features of the examples.
      keys: float ``[N, D]``: the stored features, from one pass over the training set in evaluation mode.
      key_labels: integer class ids ``[N]``. A neighbour of an id outside [0, K) makes the row NaN.
      num_classes: K.
      k: how many neighbours vote, at least 1, default 20; all N where there are fewer.
      temperature: :math:`\tau`, above 0, default 1, a number or a traced scalar; 1e-4 to 10 are worth a search.
      center: subtract the mean of the keys from both, default True.
      exclude: integer ``[B]``: the row of ``keys`` that each query leaves out, itself where the queries are training examples;
        -1 leaves none. Default None. The mean stays that of all keys.
      where: boolean ``[N]``: the keys that count, for a padded store. Default all.

    Returns:
      Probabilities ``[B, K]`` in float32 or better, without gradient to any argument; all 0 where no key counts. A
      feature equal to the mean has no direction: it stays 0.

    Raises:
      ValueError: if a shape or dtype does not fit, a count is not above 0, or ``temperature`` is not positive and finite.

    Cost:
      One product of B x D by D x N, its B N numbers of memory, one pass over them for the largest of every piece of a row, and
      sorts of some 2 (k N)^(1/2) numbers for each query, which the k best pieces hold: give a large set of queries in batches.
      On an Explicit mesh queries sharded over devices stay there, and keys sharded over N do too: each device searches its own,
      and only the queries (B D numbers), the labels and the best k of every device are gathered. On an Auto mesh the compiler
      gathers the B N similarities on every device; ``shard_map`` over the queries avoids it.
      XLA at [50000, 128]: at most 1.2 times the FLOPs and 5.6 times the bytes of the product of both sets, and 1.2 times its
      memory more.

    Use:
      Part of: `interpolate_knn`, `knn_weighted_cross_entropy`, `knn_focal_cross_entropy`.
      When: Call it for a classifier without training on frozen features, or to see whether features separate classes before a
        head is trained.
      Not when: Classes have fewer examples than half of k: the frequent ones outvote them.
      Badly with: Keys of a network that has moved on. Training examples as queries without ``exclude``: each finds itself.
        Large temperatures on centred cosines, at which all neighbours weigh alike: search down to 1e-2.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> keys, labels = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]), jnp.array([0, 1, 1])
      >>> p = rj.losses.knn_probabilities(keys[:1], keys, labels, num_classes=2, k=2, center=False)
      >>> [round(float(x), 4) for x in p[0]]
      [0.8808, 0.1192]

    References:
      Jia et al., Rethinking Nearest Neighbors for Visual Classification, 2021, arXiv 2112.08459. In the authors' code the
      labels of all keys after the one left out are shifted by one place; here they are not.
    """
    name = "losses.knn_probabilities"
    queries = checks.floating(name, "queries", queries, ndim=2)
    keys = checks.floating(name, "keys", keys, shape=(None, queries.shape[1]))
    size = keys.shape[0]
    if not size:
        checks.fail(name, "keys", "an array [N, D] with at least one key", keys)
    key_labels = checks.integers(name, "key_labels", key_labels, shape=(size,))
    checks.integer(name, "num_classes", num_classes, low=1)
    k = min(checks.integer(name, "k", k, low=1), size)
    checks.number(name, "temperature", temperature, low=0.0, open_low=True)
    checks.boolean(name, "center", center)
    counts = checks.example_mask(name, "where", where, (size,))
    if exclude is not None:
        exclude = checks.integers(name, "exclude", exclude, shape=queries.shape[:1])
        exclude = exclude.astype(jnp.promote_types(exclude.dtype, jnp.int32))

    dtype = trees.accumulator(queries, keys)
    q, x = (jax.lax.stop_gradient(v).astype(dtype) for v in (queries, keys))
    if counts is not None:
        counts = sharding.along(counts, x)
        x = jnp.where(counts[:, None], x, 0)  # padding may hold anything
    if center:
        mean = jnp.sum(x, axis=0) / (size if counts is None else jnp.maximum(jnp.sum(counts), 1))
        q, x = q - mean, x - mean
    q, x = trees.unit(q, 1e-12), trees.unit(x, 1e-12)
    if sharding.row_shards(x) > 1:
        q = sharding.replicate(q)
    # The negative squared distance, but for the query's own square, which all keys of a row share.
    closeness = 2 * jnp.einsum("bd,nd->bn", q, x, precision="highest") - jnp.sum(jnp.square(x), axis=-1)
    if counts is not None:
        closeness = jnp.where(sharding.placed_like(jnp.broadcast_to(counts, closeness.shape), closeness), closeness, -jnp.inf)
    if exclude is not None:
        own = jnp.arange(size) == exclude[:, None]
        closeness = jnp.where(sharding.placed_like(own, closeness), -jnp.inf, closeness)
    best, index = _largest(closeness, k, sharding.row_shards(x), queries)

    known = jnp.isfinite(best) | jnp.isnan(best)
    gap = jnp.where(known, best - best[:, :1], -jnp.inf) / jnp.asarray(temperature, dtype)
    weights = jnp.exp(classes.log_softmax(gap, known))
    weights = jnp.where(known, weights, 0)
    labels = sharding.take_rows(sharding.replicate(key_labels.astype(jnp.promote_types(key_labels.dtype, jnp.int32))), index)
    # A compare and a sum, which fuse: no array [B, k, K].
    votes = jnp.sum(jnp.where(labels[..., None] == jnp.arange(num_classes), weights[..., None], 0), axis=1)
    wrong = jnp.any(known & ((labels < 0) | (labels >= num_classes)), axis=1)
    return jax.lax.stop_gradient(jnp.where(wrong[:, None], jnp.nan, votes))


def knn_weighted_cross_entropy(
    logits: Any, knn_probs: Any, labels: Any, *, coefficient: Strength = 0.1, axis: int = -1, where: Any = None
) -> Array:
    r"""Cross-entropy that weighs more where the neighbours of an example contradict its label.

    Formula:
      .. math:: CE(z, y) \, (1 + c \, \min(-\log p_y, 100))

      with p the probabilities of `knn_probabilities`, from all training examples but the example itself (its
      ``exclude``). Of probability labels it is the mean over the classes, each with its own weight.

    Args:
      logits: float ``[..., K]``, z, classes on ``axis``.
      knn_probs: float, of the shape of ``logits``: p, a constant.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits``.
      coefficient: c, at least 0, default 0.1, a number or a traced scalar; the authors use 0.5 on frozen features. 0 is
        cross-entropy.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist.

    Returns:
      The loss of each example, ``[...]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``coefficient`` is negative or not finite.

    Cost:
      Cross-entropy and one more pass over ``knn_probs``; none backward.
      XLA at [1024, 1000]: at most 2.8 times the FLOPs and 0.98 times the bytes of cross-entropy, and 0 times its memory more.

    Use:
      For: few labels, fine-tuning.
      When: Fine-tuning from features frozen beforehand: examples that their neighbours contradict count for more, up to the
        cap. Neighbours are computed once, each example left out of its own.
      Not when: Labels are noisy: wrong ones are those that neighbours contradict, and may weigh many times the others. Features
        say little of the classes: weights are then noise.
      Badly with: `co_teaching` and `generalized_cross_entropy`, which trust such examples less. `focal`, a second such weight.
        Learning rates of cross-entropy at large coefficients: the weight reaches 1 + 100 c. Missing ``exclude``.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> z, p = jnp.array([2.0, 1.0, 0.0]), jnp.array([0.25, 0.5, 0.25])
      >>> round(float(rj.losses.knn_weighted_cross_entropy(z, p, jnp.array(0))), 4)
      0.4641

    References:
      Jia et al., Rethinking Nearest Neighbors for Visual Classification, 2021, arXiv 2112.08459.
    """
    name = "losses.knn_weighted_cross_entropy"
    checks.number(name, "coefficient", coefficient, low=0.0)
    x = classes.class_inputs(name, logits, labels, axis=axis, where=where)
    p = _knn_probs(name, knn_probs, logits, axis)
    c = jnp.asarray(coefficient, x.logits.dtype)
    return _weighted(x, p, lambda p: 1 + c * jnp.minimum(-jnp.log(jnp.maximum(p, 0)), 100))


def knn_focal_cross_entropy(
    logits: Any, knn_probs: Any, labels: Any, *, gamma: Strength = 2.0, axis: int = -1, where: Any = None
) -> Array:
    r"""Cross-entropy that weighs less where the neighbours of an example already agree with its label.

    Formula:
      .. math:: CE(z, y) \, (1 - p_y)^\gamma

      with p the probabilities of `knn_probabilities`, from all training examples but the example itself (its
      ``exclude``). Of probability labels it is the mean over the classes, each with its own weight.

    Args:
      logits: float ``[..., K]``, z, classes on ``axis``.
      knn_probs: float, of the shape of ``logits``: p, a constant.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits``.
      gamma: :math:`\gamma`, at least 0, default 2, a number or a traced scalar. 0 is cross-entropy.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist.

    Returns:
      The loss of each example, ``[...]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``gamma`` is negative or not finite.

    Cost:
      Cross-entropy and one more pass over ``knn_probs``; none backward.
      XLA at [1024, 1000]: at most 2.8 times the FLOPs and 0.98 times the bytes of cross-entropy, and 0 times its memory more.

    Use:
      For: few labels, fine-tuning.
      When: As `knn_weighted_cross_entropy`, where most examples are easy by their neighbours and shall count less, and no
        weight shall exceed 1.
      Not when: Neighbours agree nearly everywhere: hardly a gradient is left, and the learning rate has to grow. Labels are
        noisy: what remains is the wrong ones.
      Badly with: `focal`, which weighs down the easy ones again. `co_teaching` and other choices of small losses. Missing
        ``exclude``: every example then agrees with itself.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> z, p = jnp.array([2.0, 1.0, 0.0]), jnp.array([0.25, 0.5, 0.25])
      >>> round(float(rj.losses.knn_focal_cross_entropy(z, p, jnp.array(0))), 4)
      0.2293

    References:
      Jia et al., Rethinking Nearest Neighbors for Visual Classification, 2021, arXiv 2112.08459.
    """
    name = "losses.knn_focal_cross_entropy"
    checks.number(name, "gamma", gamma, low=0.0)
    x = classes.class_inputs(name, logits, labels, axis=axis, where=where)
    p = _knn_probs(name, knn_probs, logits, axis)
    exponent = jnp.asarray(gamma, x.logits.dtype)
    return _weighted(x, p, lambda p: jnp.maximum(1 - p, 0) ** exponent)


def interpolate_knn(logits: Any, knn_probs: Any, *, coefficient: Strength = 0.1, axis: int = -1, where: Any = None) -> Array:
    r"""The mean of a classifier's prediction and of its neighbours', at test time.

    Formula:
      .. math:: c \, p + (1 - c) \, softmax(z)

    Args:
      logits: float ``[..., K]``, z, classes on ``axis``.
      knn_probs: float, of the shape of ``logits``: p, the probabilities of `knn_probabilities`, a constant.
      coefficient: c in [0, 1], default 0.1, a number or a traced scalar; choose it on held-out examples. 0 is the softmax.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist; the others have probability 0. What ``knn_probs``
        holds there is dropped.

    Returns:
      Probabilities of the shape of ``logits``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``coefficient`` lies outside [0, 1].

    Cost:
      A softmax, and one pass over ``knn_probs``.
      XLA at [1024, 1000]: at most 2 times the FLOPs and 1.4 times the bytes of a softmax, and 0 times its memory more.

    Use:
      For: few labels, long tails.
      When: At test time, with room for the training features: few labels or a head that is weak. On few digits a chosen mix was
        a little ahead of the network alone. Choose k, temperature and coefficient on held-out examples.
      Not when: No held-out examples to choose by: gains are small and a bad mix loses. Training sets of millions without an
        index. The features were trained to the same labels by heart, whose neighbours say the same.
      Badly with: Wrong labels among the keys, which vote. `mixup`-trained features and temperatures of another network.
        `fit_temperature` after the mix: fit the logits first.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> z, p = jnp.array([2.0, 1.0, 0.0]), jnp.array([0.25, 0.5, 0.25])
      >>> [round(float(x), 4) for x in rj.losses.interpolate_knn(z, p, coefficient=0.5)]
      [0.4576, 0.3724, 0.17]

    References:
      Jia et al., Rethinking Nearest Neighbors for Visual Classification, 2021, arXiv 2112.08459.
    """
    name = "losses.interpolate_knn"
    checks.number(name, "coefficient", coefficient, low=0.0, high=1.0)
    x = classes.class_inputs(name, logits, axis=axis, where=where)
    p = _knn_probs(name, knn_probs, logits, axis)
    c = jnp.asarray(coefficient, x.logits.dtype)
    mixed = c * p + (1 - c) * jnp.exp(classes.log_softmax(x.logits, x.where))
    return jnp.moveaxis(mixed if x.where is None else jnp.where(x.where, mixed, 0), -1, axis)


def _largest(values: Array, k: int, shards: int, reference: Array) -> tuple[Array, Array]:
    """The k largest of each row and their columns, rows sharded as ``reference``; columns may be split over ``shards``."""
    if shards == 1:
        return _top_k(values, k)
    # Each device first searches its own columns: only the best of every one are exchanged.
    rows, columns = values.shape
    named = jax.typeof(values).sharding
    own = jnp.reshape(values, (rows, shards, columns // shards), out_sharding=named.update(spec=jax.P(None, named.spec[1])))
    best, index = _top_k(own, min(k, columns // shards))
    index = index + (columns // shards) * jnp.arange(shards, dtype=index.dtype)[:, None]
    best, index = (sharding.rows_like(sharding.replicate(v).reshape(rows, -1), reference) for v in (best, index))
    best, choice = _top_k(best, k)
    return best, jnp.take_along_axis(index, choice, axis=1)


def _top_k(values: Array, k: int) -> tuple[Array, Array]:
    """The k largest on the last axis, on the device that holds the row: the compiler would gather rows that are sharded."""
    largest = lambda v: _top_k_here(v, k)
    named = sharding.leading(values)
    entries = () if named is None else tuple(entry for entry in named.spec if entry is not None)
    if named is None or not entries:
        best, index = largest(values)
    else:
        axes = {axis for entry in entries for axis in (entry if isinstance(entry, tuple) else (entry,))}
        here = jax.shard_map(largest, mesh=named.mesh, in_specs=named.spec, out_specs=named.spec, axis_names=axes)
        best, index = here(values)
    return best, index


def _top_k_here(values: Array, k: int) -> tuple[Array, Array]:
    """The k largest on the last axis, the first of equal ones first, without a sort of long rows.

    They lie in the k pieces of a row with the largest maxima.
    """
    *lead, size = values.shape
    width = math.isqrt(size // k)
    if width < 4:
        best, index = jax.lax.top_k(values, k)
        return best, index
    padded = jnp.pad(values, [*[(0, 0)] * len(lead), (0, -size % width)], constant_values=-jnp.inf)
    pieces = padded.reshape(*lead, -1, width)
    chosen = jnp.sort(jax.lax.top_k(jnp.max(pieces, axis=-1), k)[1], axis=-1)
    near = jnp.take_along_axis(pieces, chosen[..., None], axis=-2).reshape(*lead, k * width)
    best, place = jax.lax.top_k(near, k)
    return best, jnp.take_along_axis(chosen, place // width, axis=-1) * width + place % width


def _knn_probs(name: str, knn_probs: Any, logits: Any, axis: int) -> Array:
    """The neighbours' probabilities with the class axis last, constant."""
    knn_probs = checks.floating(name, "knn_probs", knn_probs, shape=jnp.shape(logits))
    p = jnp.moveaxis(jax.lax.stop_gradient(knn_probs), axis, -1)
    return p.astype(trees.accumulator(p))


def _weighted(x: classes.ClassInputs, p: Array, weight: Any) -> Array:
    """Cross-entropy in which the class of probability p weighs ``weight(p)``."""
    if x.is_ids:
        return classes.cross_entropy(x) * weight(classes.pick(p, x.labels))
    return classes.cross_entropy(x._replace(labels=x.labels * weight(p)))
