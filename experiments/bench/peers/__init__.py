"""The suite of peers: the same work done by regjax and by other libraries, side by side, and regjax held to fixed bars.

What cannot be imported is skipped with a message. A shape is a topic with its sizes.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from experiments.bench.peers import batches, formulas, trees
from experiments.bench.results import Panel


class Topic(NamedTuple):
    """What is compared, and how large it is."""

    name: str
    sizes: tuple[int, ...]


SHAPES: Mapping[str, Topic] = {
    "mixing": Topic("mixing", (256, 32, 32, 3)),
    "mixing-224": Topic("mixing", (128, 224, 224, 3)),
    "randaugment": Topic("randaugment", (256, 32, 32, 3)),
    "dropout": Topic("dropout", (256, 32, 32, 64)),
    "losses": Topic("losses", (1024, 1000)),
    "contrastive": Topic("contrastive", (256, 128)),
    "authors": Topic("authors", (1024, 1000)),
    "sam": Topic("sam", (128, 64, 256, 256, 10)),
    "sam-wide": Topic("sam", (256, 784, 1024, 1024, 10)),
    "steps": Topic("steps", (256, 784, 1024, 1024, 10)),
    "masks": Topic("masks", (1024, 4)),
    "weights": Topic("weights", (1024,)),
}
"""A batch of images or activations; logits or embeddings; batch and layers of a network; the side of a kernel, and how many."""
DEFAULT = tuple(SHAPES)

SMALL: Mapping[str, tuple[int, ...]] = {
    "mixing": (8, 16, 16, 3),
    "randaugment": (8, 16, 16, 3),
    "dropout": (8, 16, 16, 4),
    "losses": (16, 8),
    "contrastive": (8, 4),
    "authors": (16, 8),
    "sam": (8, 8, 8, 3),
    "steps": (8, 8, 8, 3),
    "masks": (16, 2),
    "weights": (16,),
}
SHAPES = {**SHAPES, **{f"tiny-{name}": Topic(name, sizes) for name, sizes in SMALL.items()}, "tiny": Topic("tiny", ())}


def panels(topic: Topic, threads: int) -> Iterator[Panel]:
    """What is measured together."""
    topics: dict[str, Any] = {
        "mixing": batches.mixing,
        "randaugment": batches.randaugment,
        "dropout": batches.dropout,
        "losses": formulas.losses,
        "contrastive": formulas.contrastive,
        "authors": formulas.authors_losses,
        "sam": trees.sam,
        "steps": trees.authors_steps,
        "masks": trees.masks,
        "weights": trees.weights,
    }
    every = SMALL if topic.name == "tiny" else {topic.name: topic.sizes}
    for name, sizes in every.items():
        yield topics[name](sizes, threads)
