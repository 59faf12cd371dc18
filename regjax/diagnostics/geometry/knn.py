"""How well features separate the classes of new data: the accuracy of a vote among nearest neighbours."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array


def knn_transfer(features: Any, labels: Any, test_features: Any, test_labels: Any, *, k: int = 200) -> Array:
    r"""The accuracy of k nearest neighbours on features of new data: how well a trained network serves a next task.

    Formula:
      .. math:: \frac{1}{M} \sum_j [\, \hat y_j = y_j \,], \quad \hat y_j = \text{the most frequent label among the k features
        nearest to } z_j

      in Euclidean distance. Of equally frequent labels the smallest counts, of equally near features the earlier.

      To start the scores of a next supermask: take features of its first data with the mask of each earlier task, two thirds as
      ``features``, the rest as ``test_features``; start from the scores of the best task if its accuracy is above 1 / classes,
      or from the mean of the scores of all tasks above it, else anew.

    Args:
      features: float ``[N, D]``, those that vote; concrete or traced.
      labels: integer ``[N]``, any class ids.
      test_features: float ``[M, D]``.
      test_labels: integer ``[M]``.
      k: how many neighbours vote, 1 to N; default 200.

    Returns:
      A scalar in [0, 1], in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, an array is empty, or ``k`` is outside 1 to N.

    Cost:
      M N D multiplications and a partial sort of ``[M, N]`` distances. Sharded arrays are gathered: it is a measurement, not part
      of a step. XLA counts the sort as next to nothing.
      XLA at [4096, 128]: at most 1.2 times the FLOPs and 1.8 times the bytes of a product of the two, and 0.95 times its memory
      more.

    Use:
      For: forgetting, fine-tuning.
      When: Features of several networks, masks or layers are compared for a new task without training a head: by it
        `topk_supermask` chooses the scores to start from. Some thousand labelled examples, k well below a class's number.
      Not when: Classes have fewer than about k examples, as with the default 200 on small data: the vote is then that of the
        frequent classes. A linear head will be trained anyway, which finds directions that distance does not.
      Badly with: Features of unequal scale, of which the largest decides: standardise or normalise first. Near-duplicates in
        both halves, such as augmented copies.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> features = jnp.array([[0.0], [0.1], [1.0], [1.1]])
      >>> labels = jnp.array([0, 0, 1, 1])
      >>> float(rj.diagnostics.knn_transfer(features, labels, jnp.array([[0.2], [0.9]]), jnp.array([0, 0]), k=2))
      0.5

    References:
      Yadav and Bansal, Exclusive Supermask Subnetwork Training for Continual Learning, 2022, arXiv 2210.10209: knowledge
      transfer on about 20% of a task's batches, with k = 200 (the authors' code, which calls scikit-learn's classifier).
    """
    name = "diagnostics.knn_transfer"
    features = checks.floating(name, "features", features, ndim=2)
    test_features = checks.floating(name, "test_features", test_features, shape=(None, features.shape[1]))
    for argument, value in (("features", features), ("test_features", test_features)):
        if not value.size:
            checks.fail(name, argument, "an array with at least one example and feature", value)
    labels = checks.integers(name, "labels", labels, shape=features.shape[:1])
    test_labels = checks.integers(name, "test_labels", test_labels, shape=test_features.shape[:1])
    checks.integer(name, "k", k, low=1, high=features.shape[0])
    dtype = trees.accumulator(features, test_features)
    whole, queries = (sharding.replicate(x).astype(dtype) for x in (features, test_features))
    labels, test_labels = sharding.replicate(labels), sharding.replicate(test_labels)
    # Around their mean: the difference of large squares would lose the small distances. |z|^2 is the same for all neighbours.
    centre = jnp.mean(whole, axis=0)
    whole, queries = whole - centre, queries - centre
    products = jnp.matmul(queries, whole.T, precision="highest")
    nearness = products - jnp.sum(jnp.square(whole), axis=1) / 2
    _, indices = jax.lax.top_k(nearness, k)
    votes = jnp.sort(labels[indices], axis=1)
    # The length so far of the run of equal labels at each place: the longest ends at the most frequent label.
    place = jnp.arange(k)
    starts = jnp.concatenate([jnp.ones((votes.shape[0], 1), bool), votes[:, 1:] != votes[:, :-1]], axis=1)
    runs = place - jax.lax.cummax(jnp.where(starts, place, 0), axis=1)
    winner = jnp.take_along_axis(votes, jnp.argmax(runs, axis=1)[:, None], axis=1)[:, 0]
    return jnp.mean((winner == test_labels).astype(dtype))
