"""What the calibration study measures of a model: probabilities, rankings and features, as trained and treated at test."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import regjax as rj


class Sizes(NamedTuple):
    """How many images of each part a model is judged on, in this order."""

    held_out: int
    test: int
    train: int


class Judged(NamedTuple):
    """What is measured of a model; every entry with a leading axis of seeds.

    Attributes:
      measures: for each of `VARIANTS` the `MEASURES` that it changes.
      temperature: fitted on held-out images.
      p: the order of the norm with the least AURC on held-out images.
      variation: on the training and on the test images the scatter of the features within classes over that between them.
      confidences: of the test images, as trained and at the temperature ``[M]``.
      scores: by which test images are ranked, as trained and normalised ``[M]``.
      correct: whether the prediction is right ``[M]``.
    """

    measures: Mapping[str, Mapping[str, Any]]
    temperature: Any
    p: Any
    variation: Mapping[str, Any]
    confidences: Mapping[str, Any]
    scores: Mapping[str, Any]
    correct: Any


def judge(logits: Any, features: Any, labels: Any, sizes: Sizes, num_classes: int, num_bins: int) -> Judged:
    """Measures the model of one seed; pure, for jit and vmap.

    Args:
      logits: of the images of a task of `make_judged_task`, ``[M, K]``.
      features: of the same ``[M, D]``.
      labels: their true labels ``[M]``.
      sizes: of its parts.
      num_classes: K.
      num_bins: of the calibration errors.

    Returns:
      `Judged`, without the axis of seeds.
    """
    d = rj.diagnostics
    cuts = sizes.held_out, sizes.held_out + sizes.test
    (held, test, _), (held_y, y, train_y) = jnp.split(logits, cuts), jnp.split(labels, cuts)
    _, test_features, train_features = jnp.split(features, cuts)
    temperature, p = d.fit_temperature(held, held_y), d.search_logit_norm(held, held_y).best_p
    correct = jnp.argmax(test, -1) == y
    ranked = lambda scores: {"aurc": d.aurc(scores, correct), "excess_aurc": d.excess_aurc(scores, correct)}

    def measures(z: Any) -> tuple[dict[str, Any], Any]:
        probs = jax.nn.softmax(z)
        confidence = jnp.max(probs, -1)
        return {
            "accuracy": jnp.mean(correct),
            "nll": jnp.mean(d.negative_log_likelihood(z, y)),
            "brier": jnp.mean(d.brier_score(z, y)),
            "ece": d.expected_calibration_error(confidence, correct, num_bins=num_bins),
            "adaptive_ece": d.adaptive_calibration_error(confidence, correct, num_bins=num_bins),
            "classwise_ece": d.classwise_calibration_error(probs, y, num_bins=num_bins),
            # Saturated probabilities are equal in float32, the gaps behind them are not.
            **ranked(_log_odds(z)),
        }, confidence

    (plain, confidence), (scaled, scaled_confidence) = measures(test), measures(test / temperature)
    normalised = d.normalized_max_logit(test, p=p)
    nc1 = lambda x, c: d.nc1(x, c, num_classes, metric="quotient")
    return Judged(
        {"plain": plain, "scaled": scaled, "normalised": ranked(normalised)},
        temperature,
        p,
        {"train": nc1(train_features, train_y), "test": nc1(test_features, y)},
        {"plain": confidence, "scaled": scaled_confidence},
        {"plain": _log_odds(test), "normalised": normalised},
        correct,
    )


def _log_odds(logits: Any) -> Any:
    """The log of p / (1 - p) for the greatest probability p: ranks examples as p does, without rounding to 1."""
    top = jnp.argmax(logits, -1)
    others = jnp.where(jnp.arange(logits.shape[-1]) == top[:, None], -jnp.inf, logits)
    return jnp.max(logits, -1) - jax.nn.logsumexp(others, axis=-1)
