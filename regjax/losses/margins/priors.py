"""Cross-entropy on logits that are first put on equal terms: a fixed norm, class priors, margins between near classes."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, classes, sharding, trees
from regjax.core.types import Array, Strength


def logit_norm(logits: Any, labels: Any, *, temperature: Strength = 0.04, axis: int = -1, where: Any = None) -> Array:
    r"""Cross-entropy of logits scaled to one norm: longer logits no longer lower the loss, so confidence stops growing.

    Formula:
      .. math:: CE\left( \frac{z}{\tau (\lVert z \rVert + 10^{-7})}, y \right)

      The gradient is orthogonal to z. With K classes the loss cannot fall below
      :math:`\log(1 + (K - 1) \exp(-\sqrt{K / (K - 1)} / \tau))`. For training only: at test the score is the largest
      softmax probability of the plain logits.

    Args:
      logits: float ``[..., K]``, finite, classes on ``axis``. A class that does not exist is named by ``where``: a logit of
        ``-inf`` would leave no norm.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits``.
      temperature: :math:`\tau`, above 0, default 0.04, the paper's for CIFAR-10; larger is a higher floor of the loss.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist, in the norm too.

    Returns:
      The loss of each example, ``[...]``, in float32 or better. A zero vector costs log K, with a gradient
      :math:`10^7 / \tau` times that of cross-entropy: do not start from a last layer of zeros.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``temperature`` is not positive and finite.

    Cost:
      Cross-entropy, and one more pass over the logits each way for the norm.
      XLA at [1024, 1000]: at most 4.4 times the FLOPs and 1.4 times the bytes of cross-entropy, and 0.01 times its memory more.

    Use:
      For: distribution shift, exploding logits.
      When: Inputs from elsewhere shall get low softmax scores without outlier examples. The authors report this on images. Tune
        the temperature on what must be told apart: 0.01 to 1.
      Not when: Calibration or accuracy is the aim: on digits, clean and noisy, it was behind cross-entropy in both, and in
        likelihood after `fit_temperature` too. The last layer starts at zero. Very many classes raise the floor of the loss:
        lower the temperature.
      Badly with: `label_smoothing`, `maxsup` and `spectral_decoupling`, which bound what has no scale left, or shrink it until
        gradients blow up. Decay of the last layer, which then only sets its step size. `logit_adjusted`, whose margin it
        rescales.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.losses.logit_norm(jnp.array([2.0, 1.0, 0.0]), jnp.array(1))), 4)
      11.1804

    References:
      Wei et al., Mitigating Neural Network Overconfidence with Logit Normalization, 2022, arXiv 2205.09310. The temperature
      is the paper's; the authors' class has 1 for default.
    """
    name = "losses.logit_norm"
    checks.number(name, "temperature", temperature, low=0.0, open_low=True)
    x = classes.class_inputs(name, logits, labels, axis=axis, where=where)
    kept = x.logits if x.where is None else jnp.where(x.where, x.logits, -jnp.inf)
    length = trees.safe_norm(x.logits if x.where is None else jnp.where(x.where, x.logits, 0), axis=-1)
    scale = 1 / ((length + 1e-7) * jnp.asarray(temperature, length.dtype))
    top = jax.lax.stop_gradient(jnp.max(kept, axis=-1))
    top = jnp.where(jnp.isfinite(top), top, 0)
    log_total = _log_total(kept, top, scale)
    if x.is_ids:
        own = classes.pick(kept, x.labels) - top
    else:
        own = classes.expected_under(kept - top[..., None], x.labels, False)
        log_total = jnp.sum(x.labels, axis=-1) * log_total
    # A label among the absent classes costs infinity, without a gradient to the scale.
    lost = own == -jnp.inf
    loss = jnp.where(lost, jnp.inf, log_total - scale * jnp.where(lost, 0, own))
    return loss if x.where is None else jnp.where(jnp.any(x.where, axis=-1), loss, 0)


@jax.custom_jvp
def _log_total(logits: Array, top: Array, scale: Array) -> Array:
    """``log sum_k exp(scale (z_k - top))``, 0 if no class exists; ``top`` is a constant that cancels in the loss."""
    total = jnp.sum(jnp.exp(scale[..., None] * (logits - top[..., None])), axis=-1)
    return jnp.log(jnp.where(total > 0, total, 1))


@_log_total.defjvp
def _log_total_jvp(primals: Any, tangents: Any) -> tuple[Array, Array]:
    logits, top, scale = primals
    e = jnp.exp(scale[..., None] * (logits - top[..., None]))
    total = jnp.sum(e, axis=-1)
    total = jnp.where(total > 0, total, 1)
    by_logits = scale * jnp.sum(e * tangents[0], axis=-1)
    # The bound turns 0 * -inf, of an absent class, into 0. The barrier keeps the compiler from writing the differences out to
    # share them with the exponentials.
    apart = jnp.maximum(logits - jax.lax.optimization_barrier(top)[..., None], -1e30)
    return jnp.log(total), (by_logits + tangents[2] * jnp.sum(e * apart, axis=-1)) / total


def logit_adjusted(
    logits: Any, labels: Any, class_counts: Any, *, tau: Strength = 1.0, axis: int = -1, where: Any = None
) -> Array:
    r"""Cross-entropy that gives rare classes a larger margin, in the proportion of the classes' frequencies.

    Formula:
      .. math:: CE(z + \tau \log(\pi + 10^{-12}), y), \quad \pi_k = n_k / \sum_j n_j

      At test the plain logits then rank the classes as if all were equally frequent. Use either this or
      ``regjax.diagnostics.adjust_logits``, which takes the same term from the logits of a model trained without it.

    Args:
      logits: float ``[..., K]``, classes on ``axis``.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits``.
      class_counts: ``[K]``, n, the training examples of each class, or their shares; all 0 counts as uniform. No gradient
        flows to them.
      tau: at least 0, default 1, at which the balanced error is what training minimises; 0 is cross-entropy.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist.

    Returns:
      The loss of each example, ``[...]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``tau`` is negative or not finite.

    Cost:
      None beyond cross-entropy: one pass over the logits each way.
      XLA at [1024, 1000]: at most 3.9 times the FLOPs and 1.1 times the bytes of cross-entropy, and 0 times its memory more.

    Use:
      For: long tails.
      When: Class counts are known and unequal, and all classes shall count alike at test. On long-tailed digits it did most for
        the rarest classes of all single methods tried, at some cost of the frequent ones. Best was a tau of 1 to 1.5.
      Not when: Test examples are as unequal as training ones, which plain cross-entropy fits. The model is trained already:
        `adjust_logits`. Counts are unknown or change, as in a stream.
      Badly with: `adjust_logits` and class-balanced sampling or weights, each a second correction of the same. `logit_norm`, on
        whose scale the margin means something else. `sam` and `imbsam` do combine with it: on long-tailed digits each added to
        it.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> z, counts = jnp.array([2.0, 1.0, 0.0]), jnp.array([70, 20, 10])
      >>> round(float(rj.losses.logit_adjusted(z, jnp.array(2), counts)), 4)
      4.0632

    References:
      Menon et al., Long-tail Learning via Logit Adjustment, 2020, arXiv 2007.07314; the 1e-12, for classes without examples,
      is that of public reimplementations.
    """
    name = "losses.logit_adjusted"
    checks.number(name, "tau", tau, low=0.0)
    x = classes.class_inputs(name, logits, labels, axis=axis, where=where)
    log_share = classes.log_prior(name, class_counts, x.logits)
    return classes.cross_entropy(x._replace(logits=x.logits + jnp.asarray(tau, log_share.dtype) * log_share))


def semantic_margin(
    cosines: Any,
    labels: Any,
    class_embeddings: Any,
    *,
    threshold: Strength,
    temperature: Strength = 0.1,
    axis: int = -1,
    where: Any = None,
) -> Array:
    r"""Cross-entropy of cosine scores in which a class must be beaten by the more the closer its name is to the label's.

    Formula:
      .. math:: - \log \frac{\exp(s_y / \tau)}{\exp(s_y / \tau) + \sum_{j \ne y} \exp((s_j + m_{yj}) / \tau)}

      with the margin :math:`m_{yj} = \cos(t_y, t_j)` where that is above ``threshold``, and 0 elsewhere and for j = y. The
      margins are for training alone: at test the largest s decides.

    Args:
      cosines: float ``[..., K]``, s: the cosines of a feature, projected to the space of the class embeddings, with each of
        them; classes on ``axis``.
      labels: integer class ids ``[...]``.
      class_embeddings: float ``[K, D]``, t, such as the text features of the class names; any norm. No gradient flows to
        them.
      threshold: the cosine of two classes above which a margin counts, at least -1; at 1 and above there is none. The scale
        of cosines differs between encoders, so there is no default.
      temperature: :math:`\tau`, above 0, default 0.1.
      axis: the class axis.
      where: boolean, broadcasts to ``cosines``: the classes that exist.

    Returns:
      The loss of each example, ``[...]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit, ``threshold`` is below -1, or ``temperature`` is not positive and finite.

    Cost:
      Cross-entropy, a product of the class embeddings with themselves, K K D, and one row of it read for each example.
      XLA at [1024, 1000]: at most 290 times the FLOPs and 2.2 times the bytes of cross-entropy, and 0.55 times its memory more.

    Use:
      For: few labels, long tails.
      When: Few-shot classes with names whose text features are at hand, and a head of cosines to them: names that lie close
        must be told apart by more. Look at the cosines of the names before choosing the threshold.
      Not when: Names say nothing of the looks of a class. The threshold is below the cosine of most pairs, as happens with
        encoders whose cosines are all high: then every class is pushed from every other. No training with it was measured here.
      Badly with: Soft labels of `mixup` or `cutmix`: it takes ids. Logits that are not cosines, as margins are at most 1.
        `logit_adjusted`, whose margins differ by class and are in other units.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> names = jnp.array([[1.0, 0.0, 0.0], [0.7, 0.51**0.5, 0.0], [0.0, 0.0, 1.0]])
      >>> loss = rj.losses.semantic_margin(jnp.array([0.8, 0.6, 0.1]), jnp.array(0), names, threshold=0.5)
      >>> round(float(loss), 4)
      5.0067

    References:
      Huang et al., Semantic Enhanced Few-shot Object Detection, 2024, arXiv 2406.13498. Reconstructed from the paper's text,
      without code: the threshold, the temperature, and whether a factor stands before the margin are uncertain.
    """
    name = "losses.semantic_margin"
    checks.number(name, "threshold", threshold, low=-1.0)
    checks.number(name, "temperature", temperature, low=0.0, open_low=True)
    cosines = checks.floating(name, "cosines", cosines, min_ndim=1)
    x = classes.class_inputs(name, cosines, checks.integers(name, "labels", labels), axis=axis, where=where)
    embeddings = checks.floating(name, "class_embeddings", class_embeddings, shape=(x.logits.shape[-1], None))
    margins = _margins(jax.lax.stop_gradient(sharding.replicate(embeddings)), threshold)
    # A wrong id takes some row here, and gives NaN below.
    scores = x.logits + sharding.take_rows(margins, x.labels).astype(x.logits.dtype)
    return classes.cross_entropy(x._replace(logits=scores / jnp.asarray(temperature, scores.dtype)))


def _margins(embeddings: Array, threshold: Any) -> Array:
    """``[K, K]``: the cosines above the threshold off the diagonal, at most 1, so that a threshold of 1 leaves none."""
    embeddings = embeddings.astype(trees.accumulator(embeddings))
    unit = embeddings / jnp.maximum(trees.safe_norm(embeddings, axis=-1, keepdims=True), 1e-12)
    cosine = jnp.clip(jnp.matmul(unit, unit.T, precision=jax.lax.Precision.HIGHEST), -1, 1)
    here = jnp.arange(len(cosine))
    keep = (cosine > jnp.asarray(threshold, cosine.dtype)) & (here[:, None] != here)
    return jnp.where(keep, cosine, 0)
