"""Agreement of two stochastic passes of one network: the symmetric divergence, and R-Drop."""

from typing import Any

from regjax.core import checks, classes
from regjax.core.types import Array, Strength
from regjax.losses._probabilities import weighted
from regjax.losses.distillation._pairs import expectation, pair


def symmetric_kl(logits1: Any, logits2: Any, *, axis: int = -1, where: Any = None) -> Array:
    r"""The mean of the two Kullback-Leibler divergences between two predictions.

    Formula:
      .. math:: \frac{1}{2} \left( KL(p \| q) + KL(q \| p) \right) = \frac{1}{2} \sum_k (p_k - q_k)(\log p_k - \log q_k),
                \quad p = softmax(z_1), \quad q = softmax(z_2)

      The gradient flows through both predictions.

    Args:
      logits1: float ``[..., K]``, classes on ``axis``.
      logits2: float, of the shape of ``logits1``.
      axis: the class axis.
      where: boolean, broadcasts to ``logits1``: the classes that exist, for both.

    Returns:
      The divergence of each example, ``[...]``, at least 0 up to rounding, in float32 or better; 0 where no class exists.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      A softmax of each.
      XLA at 2 times [1024, 1000]: at most 7.6 times the FLOPs and 2 times the bytes of cross-entropy of each, and 0 times its
      memory more.

    Use:
      Part of: `r_drop`.
      When: Call it for the disagreement alone: on unlabelled examples, between two networks, or beside a loss other than
        cross-entropy.
      Badly with: A teacher that shall not move: the gradient flows to both, so stop it, or take `distillation`.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.losses.symmetric_kl(jnp.array([2.0, 1.0, 0.0]), jnp.array([1.0, 3.0, 0.0]))), 4)
      0.8746

    References:
      Liang, Wu et al., R-Drop: Regularized Dropout for Neural Networks, 2021, arXiv 2106.14448.
    """
    x, second = pair("losses.symmetric_kl", logits1, logits2, arguments=("logits1", "logits2"), axis=axis, where=where)
    return _symmetric(classes.normalise(x.logits, x.where), classes.normalise(second, x.where))


def r_drop(logits1: Any, logits2: Any, labels: Any, *, weight: Strength = 1.0, axis: int = -1, where: Any = None) -> Array:
    r"""Cross-entropy of two passes with different dropout, and a penalty on their disagreement.

    Formula:
      .. math:: \frac{1}{2} \left( CE(z_1, y) + CE(z_2, y) \right)
                + \frac{w}{2} \left( KL(p \| q) + KL(q \| p) \right), \quad p = softmax(z_1), \quad q = softmax(z_2)

      Both passes see the same batch: one forward pass of the batch concatenated with itself draws both masks. No
      stop-gradient.

    Args:
      logits1: float ``[..., K]`` of the first pass, classes on ``axis``.
      logits2: float, of the shape of ``logits1``: of the second.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits1``.
      weight: w, at least 0, default 1, a number or a traced scalar; 1 to 5 for text, 0.3 to 0.6 for images. 0 is the mean of
        the two cross-entropies.
      axis: the class axis.
      where: boolean, broadcasts to ``logits1``: the classes that exist, for both.

    Returns:
      The loss of each example, ``[...]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``weight`` is negative or not finite.

    Cost:
      The network runs twice, forward and backward. The loss itself: a softmax of each pass.
      XLA at 2 times [1024, 1000]: at most 8.7 times the FLOPs and 2.1 times the bytes of cross-entropy of each, and 0.01 times
      its memory more.

    Use:
      For: few labels, noisy labels.
      When: Networks with dropout, above all fine-tuned language models: two passes shall agree. On the digits comparison it
        gained clearly, a little more than `dropout` alone, and memorised fewer wrong labels. Weights 0.3 to 3 there.
      Not when: There is no dropout or other noise: the passes are equal and it only doubles the cost. Compute is short, as a
        step takes twice. Dropout is heavy and the weight large: agreeing on one answer then is the way out, and training on
        digits broke down.
      Badly with: One key for both passes, which makes them equal. `sam`, for four passes a step. Different augmentations of the
        two passes: that is another method, as is `jensen_shannon_consistency`. Authors' weights, which scale otherwise.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> one, two = jnp.array([2.0, 1.0, 0.0]), jnp.array([1.0, 3.0, 0.0])
      >>> round(float(rj.losses.r_drop(one, two, jnp.array(0))), 4)
      2.1633

    References:
      Liang, Wu et al., R-Drop: Regularized Dropout for Neural Networks, 2021, arXiv 2106.14448. The authors' programs scale the
      terms differently. Images: CE1 + CE2 plus 0.3 (KL + KL') summed over the batch. Translation: both cross-entropies plus 5
      times the half-sum, summed over tokens. Here the values are per example with the halves of the authors' own summary, so
      that a weight of theirs translates by the batch's size and by what multiplies the cross-entropies.
    """
    name = "losses.r_drop"
    checks.number(name, "weight", weight, low=0.0)
    x, second = pair(name, logits1, logits2, labels, arguments=("logits1", "logits2"), axis=axis, where=where)
    other = x._replace(logits=second)
    one, two = classes.normalise(x.logits, x.where), classes.normalise(second, x.where)
    loss = 0.5 * (classes.cross_entropy(x, one) + classes.cross_entropy(other, two))
    return loss + weighted(weight, _symmetric(one, two))


def _symmetric(one: classes.Normalised, two: classes.Normalised) -> Array:
    # The two log-totals cancel. Equal logits give exactly 0; classes that neither prediction has add nothing.
    difference = one.shifted - two.shifted
    return 0.5 * (expectation(one, difference) - expectation(two, difference))
