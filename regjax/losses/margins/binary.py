"""Binary cross-entropies over the classes of a softmax."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import classes
from regjax.core.types import Array


def softmax_binary_cross_entropy(logits: Any, labels: Any, *, axis: int = -1, where: Any = None) -> Array:
    r"""The binary cross-entropy of each class's softmax probability, averaged over the classes.

    Formula:
      .. math:: -\frac{1}{K} \sum_k \left( t_k \log p_k + (1 - t_k) \log(1 - p_k) \right), \quad p = softmax(z)

      The mean over a batch of its values is the loss of the manifold-mixup authors.

    Args:
      logits: float ``[..., K]``, classes on ``axis``.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits`` (mixed labels).
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist; the others leave the softmax and the mean.

    Returns:
      The loss of each example, ``[...]``, in float32 or better; 0 where no class exists.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      One more maximum and sum over the classes than cross-entropy.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> loss = rj.losses.softmax_binary_cross_entropy(jnp.array([2.0, 0.0, -1.0]), jnp.array([0.25, 0.75, 0.0]))
      >>> round(float(loss), 5)
      1.04517

    References:
      Verma et al., Manifold Mixup: Better Representations by Interpolating Hidden States, 2018, arXiv 1806.05236. The paper
      writes cross-entropy; this is what the authors' supervised code minimises. There ``p`` is rounded before the
      logarithms, which are cut at -100; here they are exact, so that sure mistakes keep a gradient, and -100 stands for
      the logarithm of 0 alone.
    """
    x = classes.class_inputs("losses.softmax_binary_cross_entropy", logits, labels, axis=axis, where=where)
    kept = x.logits if x.where is None else jnp.where(x.where, x.logits, -jnp.inf)
    column = jax.lax.broadcasted_iota(jnp.int32, kept.shape, kept.ndim - 1)
    targets: Any = column == x.labels[..., None] if x.is_ids else x.labels
    targets = targets.astype(kept.dtype)

    # 1 - p cancels for the largest class only: there it is the sum of the others, relative to the largest of them.
    top = column == jnp.argmax(kept, axis=-1, keepdims=True)
    shifted, log_total = classes.normalise(x.logits, x.where)
    log_p = shifted - log_total[..., None]
    best_other = jax.lax.stop_gradient(jnp.max(jnp.where(top, -jnp.inf, kept), axis=-1, keepdims=True))
    best_other = jnp.where(jnp.isfinite(best_other), best_other, 0)
    others = jnp.sum(jnp.where(top, 0, jnp.exp(jnp.where(top, 0, kept - best_other))), axis=-1, keepdims=True)
    best = jax.lax.stop_gradient(jnp.max(kept, axis=-1, keepdims=True))
    log_others = jnp.log(jnp.where(others > 0, others, 1)) + best_other - jnp.where(jnp.isfinite(best), best, 0)
    log_rest = jnp.where(top, log_others - log_total[..., None], jnp.log1p(-jnp.exp(jnp.where(top, -1, log_p))))
    # The logarithm of 0: a class of logit -inf, or the only one there is.
    log_p = jnp.where(jnp.isfinite(log_p), log_p, -100)
    log_rest = jnp.where(top & (others <= 0), -100, log_rest)
    loss = -classes.class_mean(targets * log_p + (1 - targets) * log_rest, x.where)
    if not x.is_ids:
        return loss
    # A class id outside [0, K) is seen.
    return jnp.where((x.labels >= 0) & (x.labels < kept.shape[-1]), loss, jnp.nan)
