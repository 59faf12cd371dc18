"""Batches for a training loop over several processes: in an order of one seed, resumable to the bit, without loss."""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from experiments.data import errors
from experiments.data.arrays import Examples, Split


def train_batches(
    examples: Examples,
    *,
    batch_size: int,
    seed: int,
    epochs: int | None = None,
    process_index: int | None = None,
    process_count: int | None = None,
) -> Any:
    """The part of one process in every batch of a run, by the number of the step.

    Every epoch has its own order, drawn over all processes together: the parts of a step, one after the other, are the batch that
    one process alone would have had. An example is in an epoch at most once; the N mod ``batch_size`` left over
    are others in each.

    Args:
      examples: a `Split` or `View`.
      batch_size: B, over all processes.
      seed: of the order.
      epochs: how many; endless by default.
      process_index: which process this is; by default ``jax.process_index()``.
      process_count: of how many; by default ``jax.process_count()``.

    Returns:
      A ``grain.MapDataset``: ``[step]`` is a dict of ``image``, ``label``, ``clean_label`` and ``index``, each with a leading
      axis of ``batch_size // process_count``; an epoch has N // B steps.

    Raises:
      ValueError: if the batch is larger than the examples, or does not divide over the processes.
    """
    import grain  # a second that importing this package does not take

    owner, num_examples = "train_batches", len(examples)
    process_index, process_count = _processes(owner, batch_size, process_index, process_count)
    errors.number(owner, "seed", seed, 0, 2**32 - 1, integer=True)
    if epochs is not None:
        errors.number(owner, "epochs", epochs, 1, integer=True)
    if batch_size > num_examples:
        errors.refuse(owner, "batch_size", f"at most the number of examples, {num_examples}", batch_size)
    # Positions are shuffled and batched; a process reads the images of its block of the batch, a batch at a time.
    order = grain.MapDataset.range(num_examples).seed(int(seed)).shuffle()
    batches = order[: num_examples // batch_size * batch_size].repeat(epochs).batch(batch_size, drop_remainder=True)
    size = batch_size // process_count
    return batches.map(lambda positions: examples.take(positions[process_index * size : (process_index + 1) * size]))


def train_iterator(examples: Examples, *, threads: int | None = None, **options: Any) -> Any:
    """`train_batches` one after the other, read ahead where the images lie on disk.

    ``iterator.get_state()`` is a small dict that JSON can hold, and ``set_state`` continues an iterator of the same arguments
    with the very next batch, bit for bit.

    Args:
      examples: a `Split` or `View`.
      threads: how many batches are read at a time ahead of the step; by default 0 in memory, where there is nothing to wait
        for, and 4 from disk. Threads rather than processes: those of grain 0.2.18 end in noise, and for small images are slower.
      **options: those of `train_batches`.

    Returns:
      A ``grain.DatasetIterator``.

    Raises:
      ValueError: as `train_batches`, or if ``threads`` is negative.
    """
    import grain

    if threads is None:
        threads = 0 if isinstance(examples, Split) else 4
    errors.number("train_iterator", "threads", threads, 0, integer=True)
    # The buffer counts batches, not examples.
    read = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=2 * threads)
    return iter(train_batches(examples, **options).to_iter_dataset(read))


def evaluation_batches(
    examples: Examples, *, batch_size: int, process_index: int | None = None, process_count: int | None = None
) -> Iterator[dict[str, Any]]:
    """Every example once, in batches of one shape: the compiled step serves them all.

    The last batch is filled up with its last example, and ``where`` says which entries count: average over those.

    Args:
      examples: a `Split` or `View`.
      batch_size: B, over all processes.
      process_index: which process this is; by default ``jax.process_index()``.
      process_count: of how many; by default ``jax.process_count()``.

    Returns:
      An iterator of dicts as in `train_batches`, with a boolean ``where``; of equally many batches on every process, none for no
      examples.

    Raises:
      ValueError: if the batch does not divide over the processes.
    """
    process_index, process_count = _processes("evaluation_batches", batch_size, process_index, process_count)

    def batches() -> Iterator[dict[str, Any]]:
        for start in range(0, len(examples), batch_size):
            positions = np.arange(start, start + batch_size)[process_index::process_count]
            yield {**examples.take(np.minimum(positions, len(examples) - 1)), "where": positions < len(examples)}

    return batches()


def _processes(owner: str, batch_size: int, index: int | None, count: int | None) -> tuple[int, int]:
    errors.number(owner, "batch_size", batch_size, 1, integer=True)
    count = jax.process_count() if count is None else count
    errors.number(owner, "process_count", count, 1, integer=True)
    index = jax.process_index() if index is None else index
    errors.number(owner, "process_index", index, 0, count - 1, integer=True)
    if batch_size % count:
        errors.refuse(owner, "batch_size", f"a multiple of the number of processes, {count}", batch_size)
    return int(index), int(count)
