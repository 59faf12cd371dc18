"""Predictions over a metric between labels, among them labels without training examples: Loki."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, graphs, trees
from regjax.core.types import Array


def frechet_scores(probs: Any, distances: Any) -> Array:
    r"""How far each candidate label lies from a prediction: the expected squared distance.

    Formula:
      .. math:: s_j = \sum_i p_i \, d(i, j)^2

      over the K classes that the model knows, for each of M candidates, which may be more.

    Args:
      probs: float ``[..., K]``: a softmax, or one-vs-rest probabilities, which need not sum to 1.
      distances: ``[K, M]``, integers or floats: the distances d, NOT squared, of the K classes to the M labels. Of a tree
        ``diagnostics.tree_distances(edges, M)[known]``, or distances between embeddings of the labels.

    Returns:
      The scores ``[..., M]``, in float32 or better; lower is nearer.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      One product of K x M for each example.
      XLA at [1024, 1000]: at most 1.2 times the FLOPs and 1.5 times the bytes of their product, and 0.22 times its memory more.

    Use:
      Part of: `frechet_mean_predict`.
      When: Call it to rank candidates, to take the nearest few, or as a loss in which a near miss costs less than a far one.
      Badly with: Distances that are squared already. Reading scores as logits without a sign: lower is nearer.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> distances = jnp.array([[0, 2, 1], [2, 0, 1]])
      >>> rj.losses.frechet_scores(jnp.array([0.5, 0.5]), distances).tolist()
      [2.0, 2.0, 1.0]

    References:
      Roberts et al., Geometry-Aware Adaptation for Pretrained Models, 2023, arXiv 2307.12226.
    """
    return _scores("losses.frechet_scores", probs, distances)


def frechet_mean_predict(probs: Any, distances: Any) -> Array:
    r"""The label in the middle of a prediction: what replaces the argmax at test time, without training.

    Formula:
      .. math:: \arg\min_j \sum_i p_i \, d(i, j)^2

      The lowest of equal labels. It may be a label that the model has no output for. With distance 1 between any two
      different labels it is the argmax; the unit of the distances does not matter.

    Args:
      probs: float ``[..., K]``, as in `frechet_scores`.
      distances: ``[K, M]``, not squared, as in `frechet_scores`.

    Returns:
      Integer labels ``[...]`` in [0, M).

    Raises:
      ValueError: if a shape or dtype does not fit, or there are no labels.

    Cost:
      One product of K x M for each example.
      XLA at [1024, 1000]: at most 1.2 times the FLOPs and 2.2 times the bytes of their product, and 0.74 times its memory more.

    Use:
      For: distribution shift, few labels.
      When: A trained model knows only some classes, and distances between all are known: a tree, or embeddings of names. Errors
        then land nearer the truth: on digits those on unseen classes did, with about the same accuracy on seen ones.
      Not when: Only exact hits count and all classes have outputs: the argmax is better. The metric has nothing to do with what
        the model confuses. Few unseen labels can win: see `loki_locus`.
      Badly with: Distances that are squared already. Overconfident probabilities, which leave only the argmax:
        `fit_temperature` first. `calibrated_stacking`, which has no score for labels without an output.

    Example:
      >>> import jax.numpy as jnp, numpy as np, regjax as rj
      >>> edges = np.array([[0, 1], [0, 2], [1, 3], [1, 4], [2, 5], [2, 6], [6, 7]])
      >>> distances = rj.diagnostics.tree_distances(edges, 8)[[3, 4, 5]]
      >>> rj.losses.frechet_mean_predict(jnp.array([[0.5, 0.5, 0.0], [0.1, 0.1, 0.8]]), distances).tolist()
      [1, 2]

    References:
      Roberts et al., Geometry-Aware Adaptation for Pretrained Models, 2023, arXiv 2307.12226. The probabilities of their
      CLIP are the softmax of 100 times the cosines.
    """
    return jnp.argmin(_scores("losses.frechet_mean_predict", probs, distances, some=True), axis=-1)


def frechet_straight_through(probs: Any, distances: Any) -> Array:
    r"""The predicted label one-hot, with the gradient of the scores: fine-tuning through `frechet_mean_predict`.

    Formula:
      The value is the one-hot label of :math:`\arg\min_j s_j`, the gradient that of :math:`-s`, with the scores s of
      `frechet_scores`: what comes back to label j reaches :math:`p_i` times :math:`-d(i, j)^2`.

    Args:
      probs: float ``[..., K]``, as in `frechet_scores`.
      distances: ``[K, M]``, not squared, as in `frechet_scores`; a constant here.

    Returns:
      One-hot labels ``[..., M]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or there are no labels.

    Cost:
      One product of K x M for each example each way.
      XLA at [1024, 1000]: at most 1.2 times the FLOPs and 1.9 times the bytes of their product, and 0.22 times its memory more.

    Use:
      Part of: `frechet_mean_predict`.
      When: Call it to fine-tune through the prediction, when labels of classes without an output are at hand after all.
      Not when: Prediction alone is wanted: the main published results train nothing.
      Badly with: Losses that take a logarithm of the one-hot result. Large distances, whose squares are the gradient's scale:
        divide them by their largest.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> distances, p = jnp.array([[0, 2, 1], [2, 0, 1]]), jnp.array([0.5, 0.5])
      >>> rj.losses.frechet_straight_through(p, distances).tolist()
      [0.0, 0.0, 1.0]
      >>> jax.grad(lambda p: rj.losses.frechet_straight_through(p, distances)[2])(p).tolist()
      [-1.0, -1.0]

    References:
      Roberts et al., Geometry-Aware Adaptation for Pretrained Models, 2023, arXiv 2307.12226. Optional there too: their
      main results need no training.
    """
    scores = _scores("losses.frechet_straight_through", probs, distances, some=True, fixed=True)
    label = jax.nn.one_hot(jnp.argmin(scores, axis=-1), scores.shape[-1], dtype=scores.dtype)
    # The difference first: it is exactly 0, so that the value is exactly one-hot.
    return label + (jax.lax.stop_gradient(scores) - scores)


def loki_locus(edges: Any, observed: Any) -> np.ndarray:
    r"""The labels of a tree that `frechet_mean_predict` can ever give, with outputs for some of them. On the host.

    Formula:
      The union of the paths between all pairs of observed nodes: the tree without the leaves that are not observed,
      taken away again and again.

    Args:
      edges: integer ``[M - 1, 2]``, concrete: the edges of a tree over nodes 0 to M - 1, in any order and direction.
      observed: integer ``[K]``, concrete, at least one: the nodes that the model has outputs for.

    Returns:
      The nodes in rising order, a NumPy array of integers.

    Raises:
      ValueError: if a shape or dtype does not fit, an array is traced, the edges are no tree, or a node is not in it.

    Cost:
      O(M) on the host, in NumPy and Python; not for use under ``jit``.

    Use:
      Part of: `frechet_mean_predict`, `loki_next_class`.
      When: Call it before training data is collected: it says which labels of a tree can be predicted at all with the classes
        at hand.
      Not when: The metric is no tree, such as embeddings: there the reachable labels must be found by trial.

    Example:
      >>> import regjax as rj
      >>> edges = [[0, 1], [0, 2], [1, 3], [1, 4], [2, 5], [2, 6], [6, 7]]
      >>> rj.losses.loki_locus(edges, [3, 5]).tolist()
      [0, 1, 2, 3, 5]

    References:
      Roberts et al., Geometry-Aware Adaptation for Pretrained Models, 2023, arXiv 2307.12226.
    """
    name = "losses.loki_locus"
    checks.integers(name, "edges", edges, shape=(None, 2))
    checks.integers(name, "observed", observed, ndim=1)
    pairs, chosen = checks.concrete(name, "edges", edges), checks.concrete(name, "observed", observed)
    nodes = len(pairs) + 1
    _check_nodes(name, "edges", pairs, nodes)
    if not chosen.size:
        checks.fail(name, "observed", "at least one node", chosen)
    _check_nodes(name, "observed", chosen, nodes)

    # From an observed root, a node lies on a path if an observed one hangs below it.
    parent = graphs.parents(name, "edges", pairs, nodes, root=int(chosen[0]))
    inside = np.zeros(nodes, bool)
    inside[chosen] = True
    for node in reversed(parent):
        inside[parent[node]] |= inside[node]
    return np.flatnonzero(inside)


def loki_next_class(distances: Any, locus: Any) -> int:
    r"""The class to collect examples of next: the one farthest from all that can be predicted. On the host.

    Formula:
      .. math:: \arg\max_{j \notin L} \min_{l \in L} d(j, l)

      The lowest of equal classes.

    Args:
      distances: ``[M, M]``, concrete, integers or floats at least 0: the distances between all labels.
      locus: integer ``[L]``, concrete, at least one: the labels that can be predicted, of `loki_locus`; not all of them.

    Returns:
      The class, a Python integer.

    Raises:
      ValueError: if a shape or dtype does not fit, an array is traced, a distance is negative or NaN, or the locus is empty,
        outside [0, M), or holds every class.

    Cost:
      M L comparisons in NumPy on the host; not for use under ``jit``.

    Use:
      Part of: `frechet_mean_predict`, `loki_locus`.
      When: Call it in turn with `loki_locus` when classes, not examples, are dear to label: it names the one that widens the
        reach most.
      Not when: Classes differ in how often they occur or in what they cost: it looks at distances alone.

    Example:
      >>> import regjax as rj
      >>> edges = [[0, 1], [0, 2], [1, 3], [1, 4], [2, 5], [2, 6], [6, 7]]
      >>> rj.losses.loki_next_class(rj.diagnostics.tree_distances(edges, 8), rj.losses.loki_locus(edges, [3, 4]))
      7

    References:
      Roberts et al., Geometry-Aware Adaptation for Pretrained Models, 2023, arXiv 2307.12226.
    """
    name = "losses.loki_next_class"
    _metric(name, distances, ndim=2)
    checks.integers(name, "locus", locus, ndim=1)
    d, known = checks.concrete(name, "distances", distances), checks.concrete(name, "locus", locus)
    if d.shape[0] != d.shape[1]:
        checks.fail(name, "distances", "a square array [M, M]", d)
    if not np.all(d >= 0):
        checks.fail(name, "distances", "at least 0", d)
    _check_nodes(name, "locus", known, len(d))
    free = np.ones(len(d), bool)
    free[known] = False
    if not known.size or not free.any():
        checks.fail(name, "locus", f"some of the {len(d)} classes, not none or all", known)
    return int(np.argmax(np.where(free, d[:, known].min(axis=1), -1)))


def _scores(name: str, probs: Any, distances: Any, some: bool = False, fixed: bool = False) -> Array:
    probs = checks.floating(name, "probs", probs, min_ndim=1)
    distances = _metric(name, distances, shape=(probs.shape[-1], None))
    if some and not distances.shape[1]:
        checks.fail(name, "distances", "an array [K, M] with at least one label", distances)
    distances = jax.lax.stop_gradient(distances) if fixed else distances
    dtype = trees.accumulator(probs, distances)
    # In full precision: the scores of neighbouring labels lie close together.
    return jnp.einsum("...k,km->...m", probs.astype(dtype), jnp.square(distances.astype(dtype)), precision="highest")


def _metric(name: str, distances: Any, **shape: Any) -> Array:
    distances = checks.array(name, "distances", distances, **shape)
    if distances.dtype == jnp.bool_ or not jnp.issubdtype(distances.dtype, jnp.number):
        checks.fail(name, "distances", "an array of numbers", distances)
    return distances


def _check_nodes(name: str, argument: str, ids: np.ndarray, nodes: int) -> None:
    wrong = ids[(ids < 0) | (ids >= nodes)]
    if wrong.size:
        checks.fail(name, argument, f"ids in [0, {nodes})", wrong[0])
