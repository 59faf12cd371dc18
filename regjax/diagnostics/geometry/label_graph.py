"""Metrics between labels: distances in a tree of classes."""

from typing import Any

import numpy as np

from regjax.core import checks, graphs


def tree_distances(edges: Any, num_nodes: int) -> np.ndarray:
    r"""The number of edges between any two nodes of a tree, such as a hierarchy of classes. On the host.

    Formula:
      :math:`d(i, j)` is the length of the one path from i to j.

    Args:
      edges: integer ``[M - 1, 2]``, concrete: the edges of a tree over nodes 0 to M - 1, in any order and direction.
      num_nodes: M.

    Returns:
      A symmetric NumPy array ``[M, M]`` of 32-bit integers. Its rows of the classes that a model knows are the ``distances``
      of ``losses.frechet_mean_predict``.

    Raises:
      ValueError: if a shape or dtype does not fit, an array is traced, or the edges are no tree over these nodes.

    Cost:
      O(M^2) in NumPy on the host, and 4 M^2 bytes; not for use under ``jit``.

    Use:
      Part of: `frechet_mean_predict`.
      When: Once, outside ``jit``, for a class hierarchy. Pass the rows of the known classes on, with columns for all that may
        be predicted.
      Badly with: Taxonomies with several parents or weighted edges, which are no tree of equal steps: compute their distances
        by other means.

    Example:
      >>> import regjax as rj
      >>> rj.diagnostics.tree_distances([[0, 1], [0, 2], [2, 3]], 4).tolist()
      [[0, 1, 1, 2], [1, 0, 2, 3], [1, 2, 0, 1], [2, 3, 1, 0]]

    References:
      Roberts et al., Geometry-Aware Adaptation for Pretrained Models, 2023, arXiv 2307.12226.
    """
    name = "diagnostics.tree_distances"
    nodes = checks.integer(name, "num_nodes", num_nodes, low=1)
    checks.integers(name, "edges", edges, shape=(nodes - 1, 2))
    pairs = checks.concrete(name, "edges", edges)
    if pairs.size and (pairs.min() < 0 or pairs.max() >= nodes):
        checks.fail(name, "edges", f"ids in [0, {nodes})", pairs[(pairs < 0) | (pairs >= nodes)][0])
    distances, before = np.zeros((nodes, nodes), np.int32), [0]
    for node, parent in list(graphs.parents(name, "edges", pairs, nodes).items())[1:]:
        # One step farther than the parent from all that were reached before.
        row = distances[parent, before] + 1
        distances[node, before] = row
        distances[before, node] = row
        before.append(node)
    return distances
