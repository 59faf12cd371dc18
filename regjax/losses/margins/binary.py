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
      A softmax, one more maximum, a sum of exponentials and a sum of logarithms over the classes, and their gradient.
      XLA at [1024, 1000]: at most 15 times the FLOPs and 3.4 times the bytes of cross-entropy, and 1.1 times its memory more.

    Use:
      For: few labels.
      When: To reproduce `manifold_mixup` as its authors trained it, or for mixed labels that shall also be punished for each
        wrong class by itself.
      Not when: Classes are many: the mean over K divides the gradient by K, so that a learning rate of cross-entropy is too
        small. Labels are noisy: a sure mistake pays for the right class and the wrong one.
      Badly with: Comparisons with cross-entropy at one learning rate. Independent labels, which need a sigmoid for each, not a
        softmax. `focal` and `distillation` weights that were tuned for cross-entropy.

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
    under = lambda values: classes.expected_under(values, x.labels, x.is_ids)
    shifted, log_total = classes.normalise(x.logits, x.where)
    log_p = shifted - log_total[..., None]

    # 1 - p cancels for a sure class only, and there is one at most: there it is the sum of the others, relative to the
    # largest of them.
    sure = log_p > -0.5
    others = jnp.where(sure, -jnp.inf, shifted)
    best = jax.lax.stop_gradient(jnp.max(others, axis=-1))
    best = jnp.where(jnp.isfinite(best), best, 0)
    rest = jnp.sum(jnp.exp(others - best[..., None]), axis=-1)
    # The logarithm of 0, here and below: a class of logit -inf, or the only one there is.
    log_rest = jnp.where(rest > 0, jnp.log(jnp.where(rest > 0, rest, 1)) + best - log_total, -100)
    of_rest = (jnp.any(sure, axis=-1) - under(sure.astype(log_p.dtype))) * log_rest

    # Sums over all classes, less the labels' own: a product with one-hot labels would be an array more to read.
    complement = _log_complement(jnp.where(sure, -jnp.inf, log_p))
    log_p = jnp.where(jnp.isfinite(log_p), log_p, -100)
    log_p = log_p if x.where is None else jnp.where(x.where, log_p, 0)
    count = log_p.shape[-1] if x.where is None else jnp.maximum(jnp.sum(x.where, axis=-1), 1)
    return -(under(log_p) + jnp.sum(complement, axis=-1) - under(complement) + of_rest) / count


@jax.custom_jvp
def _log_complement(log_p: Array) -> Array:
    """``log(1 - p)``, with a derivative that computes p anew: kept, it would be written and read."""
    return jnp.log1p(-jnp.exp(log_p))


@_log_complement.defjvp
def _log_complement_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    p = jnp.exp(primals[0])
    return _log_complement(*primals), -p / (1 - p) * tangents[0]
