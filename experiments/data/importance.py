"""Epochs drawn by importance: positions with replacement, the same on every process and after a restart.

The probabilities come from training, ``regjax.inputs.importance_probabilities``; an epoch is a view of the examples, which the
pipelines read as any other::

    for epoch in range(epochs):
        p = rj.inputs.importance_probabilities(state.scores, mix=epoch / epochs)
        drawn = resample(splits.train, p, seed=seed, epoch=epoch)
        for batch in train_iterator(drawn, batch_size=128, seed=seed, epochs=1):
            ...  # batch["index"] holds the positions in splits.train
"""

import dataclasses
from typing import Any

import jax
import numpy as np

import regjax as rj
from experiments.data import errors
from experiments.data.arrays import Examples


def draw_epoch(p: Any, *, seed: int, epoch: int, num: int | None = None) -> np.ndarray:
    """The positions of one epoch, drawn with replacement.

    Args:
      p: probabilities ``[N]``, finite and not negative; normalised in float64.
      seed: of the run.
      epoch: the number of the epoch: with the seed it decides the draws, whatever was drawn before.
      num: how many; by default N.

    Returns:
      int64 ``[num]``; an example of probability 0 is not among them.

    Raises:
      ValueError: if ``p`` is no vector of probabilities, or a number is out of range.
    """
    owner = "draw_epoch"
    p = np.asarray(p)
    if p.ndim != 1 or p.dtype.kind != "f" or not len(p):
        errors.refuse(owner, "p", "a floating-point vector [N]", p)
    p = p.astype(np.float64)
    if not np.all(np.isfinite(p)) or p.min() < 0 or p.sum() == 0:
        wrong = p[~np.isfinite(p) | (p < 0)]
        errors.refuse(owner, "p", "finite and not negative, with a positive sum", float(wrong[0]) if len(wrong) else 0.0)
    errors.number(owner, "seed", seed, 0, integer=True)
    errors.number(owner, "epoch", epoch, 0, integer=True)
    num = len(p) if num is None else num
    errors.number(owner, "num", num, 1, integer=True)
    edges = np.cumsum(p)
    uniform = np.random.default_rng([int(seed), int(epoch)]).random(int(num))
    return np.searchsorted(edges / edges[-1], uniform, side="right")


@dataclasses.dataclass(frozen=True, eq=False)
class Resampled:
    """Examples at drawn positions, for the pipelines: its batches name examples as the batches of ``examples`` do.

    Attributes:
      examples: a ``Split`` or ``View``.
      positions: integers ``[M]``, positions in it, with repetition.
    """

    examples: Examples
    positions: np.ndarray

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, positions: Any) -> dict[str, Any]:
        """The batch at some of the drawn positions.

        Args:
          positions: integers ``[B]``, of the draws.

        Returns:
          ``image``, ``label``, ``clean_label`` and ``index``, the last of them the position in ``examples``.
        """
        return self.examples.take(self.positions[np.asarray(positions)])


def resample(examples: Examples, p: Any, *, seed: int, epoch: int, num: int | None = None) -> Resampled:
    """One epoch of examples drawn by importance.

    Resuming takes the same ``p``, as a checkpoint of the memory's state gives it, and the iterator's state.

    Args:
      examples: a ``Split`` or ``View`` of N examples. In memory, give `train_iterator` ``threads=0``.
      p: probabilities ``[N]``.
      seed: of the run.
      epoch: the number of the epoch.
      num: how many to draw; by default N.

    Returns:
      What `train_iterator` and `train_batches` take, with ``epochs=1``.

    Raises:
      ValueError: as `draw_epoch`, or if ``p`` is not of N examples.
    """
    if np.shape(p) != (len(examples),):
        errors.refuse("resample", "p", f"one probability for each of {len(examples)} examples", np.asarray(p))
    return Resampled(examples, draw_epoch(p, seed=seed, epoch=epoch, num=num))


def importance_epoch(key: jax.Array, p: Any, batch_size: int) -> jax.Array:
    """The batches of one epoch drawn by importance as positions, for training inside jit, as ``epoch_permutation``.

    Args:
      key: a random key; fold the epoch in for new draws in each.
      p: probabilities ``[N]``.
      batch_size: B, at most N.

    Returns:
      int32 ``[N // B, B]``, with repetition.

    Raises:
      ValueError: if ``batch_size`` is not in [1, N].
    """
    num_examples = np.shape(p)[0]
    errors.number("importance_epoch", "batch_size", batch_size, 1, num_examples, integer=True)
    steps = num_examples // batch_size
    return rj.inputs.sample_indices(key, p, steps * batch_size).reshape(steps, batch_size)
