"""How many features to keep after nested dropout: the logits of every length in one pass, and the choice."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, Strength


def truncated_logits(features: Any, kernel: Any, bias: Any = None) -> Array:
    r"""The logits of a linear classifier for every number of leading features, in one pass.

    Formula:
      .. math:: z_k = \sum_{i \le k} x_i W_i + bias, \quad k = 1, \ldots, N

    Args:
      features: float ``[B, N]``; the batch may be sharded.
      kernel: float ``[N, K]``.
      bias: float ``[K]`` or None.

    Returns:
      ``[N, B, K]``, entry ``k - 1`` for k features, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      A multiplication and two additions for each of the ``N * B * K`` logits, instead of N heads, and the memory of two
      results: go through a validation set in batches. XLA counts more, as it computes entries anew where it interleaves
      them.
      XLA at [128, 128, 100]: at most 19 times the FLOPs and 5.6 times the bytes of a copy of its results, and 0.69 times its
      memory more.

    Use:
      Part of: `nested_dropout`.
      When: To get the accuracy of every length in one pass over validation features, for a linear classifier.
      Not when: The head is not linear in the features: run it once for each k.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> logits = rj.layers.truncated_logits(jnp.array([[1.0, 2.0]]), jnp.array([[1.0, 0.0], [0.0, 3.0]]))
      >>> logits.tolist()
      [[[1.0, 0.0]], [[1.0, 6.0]]]
      >>> (logits.argmax(-1) == jnp.array([1])).mean(-1).tolist()  # the accuracies for select_truncation
      [0.0, 1.0]

    References:
      Chen et al., Compressing Features for Learning with Noisy Labels, 2022, arXiv 2206.13140, evaluates every k by a
      pass of its own; the sums are the same.
    """
    name = "layers.truncated_logits"
    features = checks.floating(name, "features", features, ndim=2)
    kernel = checks.floating(name, "kernel", kernel, shape=(features.shape[1], None))
    if bias is not None:
        bias = checks.floating(name, "bias", bias, shape=kernel.shape[1:])
    dtype = trees.accumulator(features, kernel)
    terms = features.astype(dtype).T[:, :, None] * kernel.astype(dtype)[:, None, :]
    logits = jax.lax.associative_scan(jnp.add, terms, axis=0)  # on a CPU 25 times as fast as `jnp.cumsum`
    return logits if bias is None else logits + bias.astype(dtype)


def select_truncation(accuracy_per_k: Any, *, penalty: Strength = 1e-5) -> Array:
    r"""The number of features to keep at test, from validation accuracies.

    Formula:
      .. math:: \arg\max_{k = 1, \ldots, N} \left[ acc_k - penalty\,(k - 1) \right]

      the smallest such k.

    Args:
      accuracy_per_k: float ``[N]``: the accuracy with the first 1, ..., N features.
      penalty: the accuracy that a further feature must bring, at least 0, default 1e-5.

    Returns:
      k, an int32 scalar from 1 to N.

    Raises:
      ValueError: if ``accuracy_per_k`` is no floating vector, or ``penalty`` is negative or not finite.

    Cost:
      One pass over N numbers.
      XLA at [512]: at most 13 times the FLOPs and 0.56 times the bytes of a copy of its arguments, and 0.022 times its memory
      more.

    Use:
      Part of: `nested_dropout`.
      When: After training, on clean validation accuracies. A larger ``penalty`` buys a shorter code.
      Not when: The accuracies are of noisy labels or of the test set: the choice then rewards memorising, or leaks.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> int(rj.layers.select_truncation(jnp.array([0.5, 0.9, 0.9, 0.8])))
      2

    References:
      Chen et al., Compressing Features for Learning with Noisy Labels, 2022, arXiv 2206.13140 (the authors' code).
    """
    name = "layers.select_truncation"
    accuracy = checks.floating(name, "accuracy_per_k", accuracy_per_k, ndim=1)
    if accuracy.shape[0] < 1:
        checks.fail(name, "accuracy_per_k", "the accuracies of at least one k", accuracy)
    checks.number(name, "penalty", penalty, low=0.0)
    dtype = trees.accumulator(accuracy)
    cost = jnp.asarray(penalty, dtype) * jnp.arange(accuracy.shape[0], dtype=dtype)
    return 1 + jnp.argmax(accuracy.astype(dtype) - cost).astype(jnp.int32)
