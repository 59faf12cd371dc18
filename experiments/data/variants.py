"""Variants of a labelled training set: noisy labels, long tails, small subsets, a validation part.

Pure functions of integer labels and a seed. All but the labels' noise rest on one mechanism: `class_ranks` gives each example
a random rank within its class, and a variant keeps (or flips) the ranks below a number per class. So counts are exact rather
than expected, and variants of one seed are nested: the flips at rate 0.2 are among those at 0.4, with the same new labels, and
the subset of 10 per class lies in that of 20. What differs between two settings is then the setting, not the draw.

The same seed gives the same variant on one NumPy version (its generators may change between versions).
"""

from typing import Any

import numpy as np

from experiments.data import errors

# Who is mistaken for whom: the class-dependent noise of Patrini et al., Making Deep Neural Networks Robust to Label Noise:
# a Loss Correction Approach, 2017, arXiv 1609.03683. Digits: 2 -> 7, 3 -> 8, 5 <-> 6, 7 -> 1. CIFAR-10: truck -> automobile,
# bird -> airplane, deer -> horse, cat <-> dog.
_DIGITS = (0, 1, 7, 8, 4, 6, 5, 1, 8, 9)
CONFUSIONS: dict[str, tuple[int, ...]] = {
    "digits": _DIGITS,
    "mnist": _DIGITS,
    "cifar10": (0, 1, 0, 5, 7, 3, 6, 7, 8, 1),
}


def class_ranks(labels: Any, seed: int) -> np.ndarray:
    """A random rank of each example within its class.

    Args:
      labels: integer class ids ``[N]``.
      seed: a non-negative integer.

    Returns:
      int64 ``[N]``; over the n_k examples of class k, a permutation of ``0 .. n_k - 1``.

    Raises:
      ValueError: if ``labels`` is not a vector of non-negative integers, or ``seed`` is not a non-negative integer.
    """
    labels = _labels("class_ranks", labels)
    return _ranks(labels, _generator("class_ranks", seed, "ranks"))


def stratified_split(labels: Any, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Carves a part out of a training set, with the same share of every class.

    Args:
      labels: integer class ids ``[N]``.
      fraction: the share carved out, in [0, 1). ``round(fraction * N)`` examples leave; each class gives its share, rounded
        up or down.
      seed: a non-negative integer.

    Returns:
      The positions that stay and those that leave, both increasing; together each of ``0 .. N - 1`` once.

    Raises:
      ValueError: if an argument is out of its range.
    """
    labels = _labels("stratified_split", labels)
    errors.number("stratified_split", "fraction", fraction, 0.0, 1.0, open_high=True)
    ranks = _ranks(labels, _generator("stratified_split", seed, "split"))
    counts = np.bincount(labels)
    leaves = ranks < _apportion(counts, round(fraction * len(labels)))[labels]
    return np.flatnonzero(~leaves), np.flatnonzero(leaves)


def balanced_subset(labels: Any, per_class: int, seed: int) -> np.ndarray:
    """The same number of examples of every class.

    Args:
      labels: integer class ids ``[N]``.
      per_class: how many of each class that occurs, at least 1.
      seed: a non-negative integer.

    Returns:
      The positions kept, increasing.

    Raises:
      ValueError: if an argument is out of its range, or a class has fewer than ``per_class`` examples.
    """
    labels = _labels("balanced_subset", labels)
    errors.number("balanced_subset", "per_class", per_class, 1, integer=True)
    counts = np.bincount(labels)
    least = counts[counts > 0].min(initial=len(labels))
    if per_class > least:
        errors.refuse("balanced_subset", "per_class", f"at most {least}, the size of the smallest class", per_class)
    return np.flatnonzero(_ranks(labels, _generator("balanced_subset", seed, "subset")) < per_class)


def long_tail_counts(counts: Any, ratio: float, largest: int | None = None) -> np.ndarray:
    """The class sizes of an exponential long tail: ``n_k = largest * ratio ** (-k / (K - 1))``, rounded down.

    Class 0 is the head with ``largest`` examples, class K - 1 the tail with ``largest / ratio``.

    Args:
      counts: the sizes ``[K]`` of the classes at hand.
      ratio: head over tail, at least 1; 1 is balanced.
      largest: the size of the head; by default the greatest for which every class has its ``n_k`` examples.

    Returns:
      int64 ``[K]``, each at least 1.

    Raises:
      ValueError: if an argument is out of its range, or a class has too few examples for ``largest``.
    """
    counts = np.asarray(counts)
    if counts.ndim != 1 or not len(counts) or not np.issubdtype(counts.dtype, np.integer) or counts.min() < 1:
        errors.refuse("long_tail_counts", "counts", "a vector of positive integers", counts)
    errors.number("long_tail_counts", "ratio", ratio, 1.0)
    share = float(ratio) ** (-np.arange(len(counts)) / max(len(counts) - 1, 1))
    # The small term keeps a product that is an integer but for rounding (500 / 100 as 4.999...) from losing one.
    if largest is None:
        largest = int(np.floor((counts / share).min() + 1e-9))
    errors.number("long_tail_counts", "largest", largest, 1, integer=True)
    sizes = np.maximum(np.floor(largest * share + 1e-9).astype(np.int64), 1)
    if (sizes > counts).any():
        k = int(np.argmax(sizes > counts))
        errors.refuse(
            "long_tail_counts", "largest", f"small enough for class {k}, which has {counts[k]} of {sizes[k]} examples", largest
        )
    return sizes


def long_tail_subset(labels: Any, ratio: float, seed: int, largest: int | None = None) -> np.ndarray:
    """A subset whose class sizes fall exponentially, see `long_tail_counts`.

    Args:
      labels: integer class ids ``[N]``; every class up to the greatest occurs.
      ratio: head over tail, at least 1.
      seed: a non-negative integer.
      largest: the size of class 0; by default the greatest possible.

    Returns:
      The positions kept, increasing.

    Raises:
      ValueError: if an argument is out of its range, or a class has too few examples.
    """
    labels = _labels("long_tail_subset", labels)
    sizes = long_tail_counts(np.bincount(labels), ratio, largest)
    return np.flatnonzero(_ranks(labels, _generator("long_tail_subset", seed, "subset")) < sizes[labels])


def symmetric_noise(labels: Any, num_classes: int, rate: float, seed: int, *, over: str = "others") -> np.ndarray:
    """Replaces labels by uniformly drawn ones.

    Two conventions are in use. Over the ``"others"``, a chosen example gets one of the K - 1 wrong labels, and exactly
    ``round(rate * N)`` labels are wrong. Over ``"all"``, it gets any of the K labels, its own among them, and a share of about
    ``rate * (K - 1) / K`` is wrong. Each class has its share of the chosen, rounded up or down.

    Args:
      labels: integer class ids ``[N]``.
      num_classes: K, at least 2.
      rate: the share of examples chosen, in [0, 1]. 0 returns the labels as they are.
      seed: a non-negative integer.
      over: ``"others"`` (default) or ``"all"``.

    Returns:
      int32 ``[N]``.

    Raises:
      ValueError: if an argument is out of its range.
    """
    labels = _labels("symmetric_noise", labels, num_classes)
    errors.number("symmetric_noise", "rate", rate, 0.0, 1.0)
    errors.choice("symmetric_noise", "over", over, ("others", "all"))
    generator = _generator("symmetric_noise", seed, "noise")
    chosen = _ranks(labels, generator) < _apportion(np.bincount(labels), round(rate * len(labels)))[labels]
    # Drawn for all examples, chosen or not, so that a higher rate adds flips and changes none.
    draw = generator.random(len(labels))
    if over == "all":
        new = np.floor(draw * num_classes).astype(np.int64)
    else:
        new = (labels + 1 + np.floor(draw * (num_classes - 1)).astype(np.int64)) % num_classes
    return np.where(chosen, new, labels).astype(np.int32)


def asymmetric_noise(labels: Any, num_classes: int, rate: float, seed: int, *, targets: Any = None) -> np.ndarray:
    """Replaces labels by one fixed wrong label per class.

    Args:
      labels: integer class ids ``[N]``.
      num_classes: K, at least 2.
      rate: the share of examples flipped, in [0, 1], of those whose class has another target than itself; exactly
        ``round(rate * N)`` of these N, each class with its share, rounded up or down.
      seed: a non-negative integer.
      targets: the wrong label of each class, integers ``[K]``, as in `CONFUSIONS`; a class that maps to itself keeps its
        labels. By default the next class: ``y -> (y + 1) mod K``.

    Returns:
      int32 ``[N]``.

    Raises:
      ValueError: if an argument is out of its range.
    """
    labels = _labels("asymmetric_noise", labels, num_classes)
    errors.number("asymmetric_noise", "rate", rate, 0.0, 1.0)
    classes = np.arange(num_classes)
    wrong = (classes + 1) % num_classes if targets is None else np.asarray(targets)
    if (
        wrong.shape != (num_classes,)
        or not np.issubdtype(wrong.dtype, np.integer)
        or wrong.min() < 0
        or wrong.max() >= num_classes
    ):
        errors.refuse("asymmetric_noise", "targets", f"{num_classes} class ids below {num_classes}", targets)
    counts = np.bincount(labels, minlength=num_classes) * (wrong != classes)
    ranks = _ranks(labels, _generator("asymmetric_noise", seed, "noise"))
    chosen = ranks < _apportion(counts, round(rate * int(counts.sum())))[labels]
    return np.where(chosen, wrong[labels], labels).astype(np.int32)


_STREAMS = ("ranks", "split", "subset", "noise")


def _generator(owner: str, seed: int, stream: str) -> np.random.Generator:
    """An independent stream for each use of one seed: else the examples kept would be the first to be flipped."""
    errors.number(owner, "seed", seed, 0, integer=True)
    return np.random.default_rng([int(seed), _STREAMS.index(stream)])


def _labels(owner: str, labels: Any, num_classes: int | None = None) -> np.ndarray:
    labels = np.asarray(labels)
    if labels.ndim != 1 or not np.issubdtype(labels.dtype, np.integer) or labels.min(initial=0) < 0:
        errors.refuse(owner, "labels", "a vector of non-negative integers", labels)
    if num_classes is not None:
        errors.number(owner, "num_classes", num_classes, 2, integer=True)
        if labels.max(initial=0) >= num_classes:
            errors.refuse(owner, "labels", f"below num_classes = {num_classes}", int(labels.max()))
    return labels.astype(np.int64)


def _ranks(labels: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    order = np.lexsort((generator.random(len(labels)), labels))
    counts = np.bincount(labels)
    first = np.cumsum(counts) - counts
    ranks = np.empty(len(labels), np.int64)
    ranks[order] = np.arange(len(labels)) - first[labels[order]]
    return ranks


def _apportion(counts: np.ndarray, total: int) -> np.ndarray:
    """Splits ``total`` over the classes in proportion to their sizes, by largest remainders."""
    exact = counts * (total / max(int(counts.sum()), 1))
    parts = np.floor(exact + 1e-9).astype(np.int64)
    order = np.argsort(parts - exact, kind="stable")
    parts[order[: total - int(parts.sum())]] += 1
    return parts
