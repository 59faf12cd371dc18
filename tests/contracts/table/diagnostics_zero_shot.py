"""Examples of `regjax.diagnostics`: trees of labels and zero-shot accuracy, on the host: there are no arrays to trace."""

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj
from tests.contracts.example import Example, ids, normal
from tests.contracts.table.losses_label_metric import EDGES

d = rj.diagnostics
SCORES, LABELS, SEEN = normal(12, 4), ids(12, classes=4), np.array([True, True, True, False])
tree = d.tree_distances


def zero_shot(name: str) -> Example:
    """The example of a function of scores, labels and the seen classes."""
    fn = getattr(d, name)
    run = lambda scores=SCORES, labels=LABELS, seen=SEEN, **options: fn(scores, labels, seen, **options)
    errors = {
        "scores: integers": lambda: run(np.ones((12, 4), int)),
        "scores: rank": lambda: run(np.ones(12)),
        "scores: NaN": lambda: run(SCORES * np.nan),
        "scores: traced": lambda: jax.jit(run)(SCORES),
        "labels: another number of examples": lambda: run(labels=LABELS[:11]),
        "labels: probabilities": lambda: run(labels=np.ones((12, 4))),
        "labels: outside": lambda: run(labels=LABELS + 1),
        "labels: traced": lambda: jax.jit(lambda labels: run(labels=labels))(LABELS),
        "seen_mask: of other classes": lambda: run(seen=SEEN[:3]),
        "seen_mask: weights": lambda: run(seen=np.ones(4)),
        "seen_mask: all seen": lambda: run(seen=np.ones(4, bool)),
        "seen_mask: none seen": lambda: run(seen=np.zeros(4, bool)),
        "absent: misspelt": lambda: run(absent="skipped"),
    }
    if name == "fit_stacking_gamma":
        errors["scores: no example"] = lambda: run(SCORES[:0], LABELS[:0])
    return Example(
        name=f"diagnostics.{name}",
        call=lambda key: jax.tree.map(lambda x: jnp.asarray(np.asarray(x)), run()),
        arrays={},
        result="other",
        dtype=None,
        bad=errors,
    )


EXAMPLES = (
    Example(
        name="diagnostics.tree_distances",
        call=lambda key: tree(EDGES, 8),
        arrays={},
        result="other",
        dtype=None,
        bad={
            "num_nodes: none": lambda: tree(EDGES, 0),
            "num_nodes: a float": lambda: tree(EDGES, 8.0),
            "edges: too few": lambda: tree(EDGES, 9),
            "edges: triples": lambda: tree(np.ones((7, 3), int), 8),
            "edges: floats": lambda: tree(EDGES.astype(float), 8),
            "edges: outside": lambda: tree(EDGES + 1, 8),
            "edges: negative": lambda: tree(EDGES - 1, 8),
            "edges: a cycle and a node apart": lambda: tree([[0, 1], [1, 2], [2, 0]], 4),
            "edges: traced": lambda: jax.jit(lambda e: tree(e, 8))(EDGES),
        },
    ),
    zero_shot("seen_unseen_curve"),
    zero_shot("ausuc"),
    zero_shot("fit_stacking_gamma"),
)
