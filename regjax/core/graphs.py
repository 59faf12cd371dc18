"""Trees of labels, on the host."""

import numpy as np

from regjax.core import checks


def parents(function: str, argument: str, edges: np.ndarray, num_nodes: int, root: int = 0) -> dict[int, int]:
    """The parent of every node, the root being its own, in an order in which parents come first; refuses what is no tree."""
    neighbours: list[list[int]] = [[] for _ in range(num_nodes)]
    for a, b in edges.tolist():
        neighbours[a].append(b)
        neighbours[b].append(a)
    order, parent = [root], {root: root}
    for node in order:
        for other in neighbours[node]:
            if other not in parent:
                parent[other] = node
                order.append(other)
    if len(order) != num_nodes:
        checks.fail(function, argument, f"the {num_nodes - 1} edges of a tree over nodes 0 to {num_nodes - 1}", edges)
    return parent
