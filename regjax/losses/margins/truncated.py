"""The loss of networks that are trained whole and truncated at once."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, classes
from regjax.core.types import Array


def truncated_cross_entropy(logits: Any, full_logits: Any, labels: Any, *, axis: int = -1, where: Any = None) -> Array:
    r"""Cross-entropy of the whole network against the labels, and of the truncated one against the whole network.

    Formula:
      .. math:: CE(z_{full}, y) + CE(z, p), \quad p = softmax(z_{full}) \text{ as a constant}

    Args:
      logits: float ``[..., K]``, of the truncated pass, classes on ``axis``.
      full_logits: float, of the shape of ``logits``, of the whole pass: its gradient is that of the first term.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits``.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist.

    Returns:
      The loss of each example, ``[...]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      A second forward and backward pass, for the whole network. With the truncated pass alone the loss is plain
      cross-entropy, ``label_smoothing(logits, labels, alpha=0.0)``.
      XLA at 2 times [1024, 1000]: at most 4.4 times the FLOPs and 1.5 times the bytes of cross-entropy of each, and 0 times its
      memory more.

    Use:
      For: compute budget.
      When: One network trained to be cut afterwards, `ordered_dense` or `nested_dropout`: the cut pass learns from the whole
        one. Takes both passes of a batch.
      Not when: Time is short: it doubles a step, and the authors' own runs left the second pass out. The whole network is weak
        at first, and teaches noise: begin with plain cross-entropy.
      Badly with: `distillation` from another teacher at the same weight, which contradicts it. Different dropout in the two
        passes: give both the same key. Noisy labels, which the whole network passes on.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> small, full = jnp.array([1.0, 0.0]), jnp.array([2.0, 0.0])
      >>> round(float(rj.losses.truncated_cross_entropy(small, full, jnp.array(0))), 4)
      0.5594

    References:
      Horvath et al., Maestro: Uncovering Low-Rank Structures via Trainable Decomposition, 2024, arXiv 2308.14929: the default
      of the authors' code, which their own runs switch off.
    """
    name = "losses.truncated_cross_entropy"
    full = classes.class_inputs(name, full_logits, labels, axis=axis, where=where)
    small = classes.class_inputs(name, logits, axis=axis, where=where)
    if small.logits.shape != full.logits.shape:
        checks.fail(name, "full_logits", f"of the shape of logits, {list(jnp.shape(logits))}", full_logits)
    target = jnp.exp(classes.log_softmax(jax.lax.stop_gradient(full.logits), full.where))
    if full.where is not None:
        target = jnp.where(full.where, target, 0)
    distilled = classes.cross_entropy(small._replace(labels=target, is_ids=False))
    return classes.cross_entropy(full) + distilled
