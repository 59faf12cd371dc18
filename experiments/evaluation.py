"""Accuracy, NLL, ECE and AURC: of logits in one piece, or over padded batches of which only some entries count."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import regjax as rj


class Scores(NamedTuple):
    """What the measures need of each example, all ``[B]``.

    Attributes:
      confidence: the probability of the predicted class.
      correct: whether the prediction is right.
      nll: the negative log-likelihood of the label.
      where: whether the example counts.
    """

    confidence: Any
    correct: Any
    nll: Any
    where: Any


def score(logits: jax.Array, labels: jax.Array, where: jax.Array | None = None) -> Scores:
    """The scores of each example.

    Args:
      logits: ``[B, K]``; of bfloat16 too the scores are float32.
      labels: class ids ``[B]``.
      where: boolean ``[B]``: which examples count; all by default.

    Returns:
      `Scores`.
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    correct = jnp.argmax(logits, -1) == labels
    nll = rj.diagnostics.negative_log_likelihood(logits, labels)
    return Scores(jnp.max(jax.nn.softmax(logits), -1), correct, nll, jnp.ones_like(correct) if where is None else where)


def summarise(scores: Scores) -> dict[str, jax.Array]:
    """The measures of a set of examples; pure, for jit and vmap.

    Args:
      scores: those of each example.

    Returns:
      The scalars ``accuracy``, ``nll``, ``ece`` and ``aurc`` over the examples that count; 0 if none does.
    """
    confidence, correct, nll, where = scores
    mean = lambda x: jnp.sum(jnp.where(where, x, 0)) / jnp.maximum(jnp.sum(where), 1)
    return {
        "accuracy": mean(correct),
        "nll": mean(nll),
        "ece": rj.diagnostics.expected_calibration_error(confidence, correct, where=where),
        "aurc": rj.diagnostics.aurc(confidence, correct, where=where),
    }


def measure(logits: jax.Array, labels: jax.Array, where: jax.Array | None = None) -> dict[str, jax.Array]:
    """The measures of logits in one piece; pure, for jit and vmap.

    Args:
      logits: ``[B, K]``.
      labels: class ids ``[B]``.
      where: boolean ``[B]``: which examples count; all by default.

    Returns:
      The scalars ``accuracy``, ``nll``, ``ece`` and ``aurc``.
    """
    return summarise(score(logits, labels, where))


_summarise = jax.jit(summarise)


def evaluate(score_batch: Callable[[Mapping[str, Any]], Scores], batches: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The measures over all batches of a split.

    Args:
      score_batch: the compiled `score` of a model's logits of a batch; returns the whole batch's scores to every process.
      batches: those of `experiments.data.evaluation_batches`: all of one shape, with a boolean ``where``.

    Returns:
      ``accuracy``, ``nll``, ``ece`` and ``aurc``; nothing at all if there are no batches.
    """
    parts: list[Scores] = []
    for batch in batches:
        parts.append(score_batch(batch))
        if len(parts) > 2:  # the device has its next batch already; more would only fill its memory
            parts[-3] = jax.device_get(parts[-3])
    if not parts:
        return {}
    scores = Scores(*map(np.concatenate, zip(*jax.device_get(parts), strict=True)))
    values = _summarise(scores)
    return {name: float(values[name]) for name in ("accuracy", "nll", "ece", "aurc")}  # jit has sorted them by name
