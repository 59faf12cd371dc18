"""Gates: the choice of one of several sub-networks for each example, sharp and balanced."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array


def class_separation(probs: Any, *, where: Any = None) -> Array:
    r"""Makes choices sharp: minus the sum of the distances between the probabilities of an example.

    Formula:
      .. math:: - \frac{1}{B} \sum_b \sum_{i < j} |p_{bi} - p_{bj}|

      0 for a uniform choice, ``-(M - 1)`` for a certain one. The gradient between equal probabilities is 0.

    Args:
      probs: ``[B, M]``, the probabilities of the M sub-networks for each example.
      where: booleans ``[B]``, the examples that count; None (default): all.

    Returns:
      A scalar in float32 or better; 0 where no example counts.

    Raises:
      ValueError: if ``probs`` is no floating array of two dimensions, or ``where`` does not fit.

    Cost:
      ``M^2`` operations for each example, none of them stored; M backward.
      XLA at [8192, 16]: at most 58 times the FLOPs and 3.9 times the bytes of a copy of its arguments, and 0.55 times its
      memory more.

    Use:
      For: compute budget.
      When: A small classifier routes each example to one of a few sub-networks, hard at test but soft in training: this makes
        the soft choice as sharp as the hard one. Always with `class_balance`.
      Not when: Alone, when one sub-network takes all. From the first step, before sub-networks differ, when the first
        preference is frozen: ramp the weight. Experts are many: `top2_gating` with `load_balancing_loss` is made for that.
      Badly with: `confidence_penalty` or `label_smoothing` on the gate. Noise on gates as in `expert_output_masking`. Large
        weights: it is bounded, but certain gates have no gradient left through a softmax.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> float(rj.losses.class_separation(jnp.array([[0.0, 1.0, 0.0]])))
      -2.0

    References:
      Zhou et al., ClassPruning: Speed Up Image Restoration Networks by Dynamic N:M Pruning, 2022, arXiv 2211.05488, whose two
      losses are reconstructed here in the form of Kong et al., ClassSR: A General Framework to Accelerate Super-Resolution
      Networks by Data Characteristic, 2021, arXiv 2103.04039: that they are the same is an assumption.
    """
    p, counts = _inputs("losses.class_separation", probs, where)
    # Each probability counts as often as others lie below it, less those above: no distance is stored for the gradient.
    held = jax.lax.stop_gradient(p)
    ranks = jnp.sum(jnp.sign(held[:, :, None] - held[:, None, :]), axis=2)
    total = jnp.sum(ranks * (p - jnp.mean(held, axis=1, keepdims=True)))  # ranks sum to 0: the mean saves digits alone
    return -total / (max(p.shape[0], 1) if counts is None else jnp.maximum(jnp.sum(counts, dtype=p.dtype), 1))


def class_balance(probs: Any, *, where: Any = None, axis_name: Any = None) -> Array:
    r"""Makes a batch use all sub-networks alike: the distance of their shares from an even one.

    Formula:
      .. math:: \sum_i \left| \sum_b p_{bi} - \frac{B}{M} \right|

      The gradient at an even share is 0.

    Args:
      probs: ``[B, M]``, the probabilities of the M sub-networks for each example.
      where: booleans ``[B]``, the examples that count; None (default): all.
      axis_name: of mapped axes over which the batch lies; default None.

    Returns:
      A scalar in float32 or better, that of the whole batch; it grows with B.

    Raises:
      ValueError: if ``probs`` is no floating array of two dimensions, or ``where`` or ``axis_name`` is wrong.

    Cost:
      One pass over the probabilities.
      XLA at [8192, 16]: at most 1.2 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      For: compute budget, unstable training.
      When: Beside `class_separation`, so that a router of whole sub-networks does not send every example to one. Needs batches
        that hold easy and hard examples.
      Not when: Sub-networks shall not be used alike, as when most examples are easy: it forces an even share. Batches are
        small, or sorted by difficulty: each of them is then evened out by force.
      Badly with: Batch sizes that change: it is a sum and grows with B, so its weight must shrink. Microbatches and shards
        without ``axis_name``, which are evened out part by part. `load_balancing_loss` on the same gate.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> float(rj.losses.class_balance(jnp.tile(jnp.array([1.0, 0.0, 0.0]), (6, 1))))
      8.0

    References:
      Zhou et al., ClassPruning: Speed Up Image Restoration Networks by Dynamic N:M Pruning, 2022, arXiv 2211.05488,
      reconstructed as in `class_separation`; Kong et al., ClassSR: A General Framework to Accelerate Super-Resolution Networks
      by Data Characteristic, 2021, arXiv 2103.04039.
    """
    name = "losses.class_balance"
    p, counts = _inputs(name, probs, where)
    axis_name = checks.axis_name(name, axis_name)
    used = jnp.sum(p, axis=0)
    size = jnp.asarray(p.shape[0], p.dtype) if counts is None else jnp.sum(counts, dtype=p.dtype)
    if axis_name is not None:
        used, size = jax.lax.psum((used, size), axis_name)
    return jnp.sum(trees.absolute(used - size / p.shape[1]))


def _inputs(name: str, probs: Any, where: Any) -> tuple[Array, Array | None]:
    """Probabilities in float32 or better, with 0 where no example counts, and the examples that do."""
    probs = checks.floating(name, "probs", probs, ndim=2)
    if probs.shape[1] == 0:
        checks.fail(name, "probs", "of shape [B, M] with M at least 1", probs)
    p = probs.astype(trees.accumulator(probs))
    counts = checks.example_mask(name, "where", where, probs.shape[:1])
    if counts is None:
        return p, None
    counts = sharding.along(counts, p)
    return jnp.where(counts[:, None], p, 0), counts
