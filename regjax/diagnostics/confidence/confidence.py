"""Which of two models would dominate their average: the more confident one."""

from typing import Any, NamedTuple

import jax.numpy as jnp

from regjax.core import checks, classes
from regjax.core.types import Array


class ConfidenceBalance(NamedTuple):
    """How confident two models are, and which of them decides where they disagree.

    Attributes:
      confidence_a: the mean of the largest probability of the first model.
      confidence_b: that of the second.
      ratio: ``confidence_a / confidence_b``; 1 is balanced.
      disagreement: the share of examples on which they predict different classes.
      dominance: among those, the share where the mean of the logits predicts as the first, minus the share where it predicts as
        the second; in [-1, 1], 0 is balanced.
    """

    confidence_a: Array
    confidence_b: Array
    ratio: Array
    disagreement: Array
    dominance: Array


def confidence_balance(logits_a: Any, logits_b: Any, *, axis: int = -1, where: Any = None) -> ConfidenceBalance:
    r"""Whether one of two models is so much more confident that it would dominate their average.

    Formula:
      .. math:: ratio = \frac{\sum_i \max_k p^a_{ik}}{\sum_i \max_k p^b_{ik}}, \quad
        dominance = \frac{n_a - n_b}{n}

      where the models disagree on n examples, and the mean of their logits predicts as the first on :math:`n_a` of them and as
      the second on :math:`n_b`.

    Args:
      logits_a: float ``[..., K]``, of the pretrained model, say.
      logits_b: float ``[..., K]`` of the same shape, of the fine-tuned one.
      axis: the class axis.
      where: boolean, broadcasts to the logits: the classes that exist. An example without any does not count.

    Returns:
      ``ConfidenceBalance(confidence_a, confidence_b, ratio, disagreement, dominance)``, scalars in float32 or better; the ratio
      is 1 if no example counts, the dominance 0 if none is in dispute.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      Two softmaxes; no sort, and examples may be sharded over devices.
      XLA at 2 times [1024, 1000]: at most 19 times the FLOPs and 1.7 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      For: fine-tuning, distribution shift, poor calibration.
      When: Before `interpolate` or an ensemble of a pretrained and a fine-tuned model: a ratio far from 1 says that one will
        decide. On shifted digits tuning with `label_smoothing` brought it nearer to 1, and the average got better.
      Not when: The models come from one recipe and seed apart, as for `uniform_soup`, and are about equally sure. It says who
        wins, not who is right: look at accuracy on the disputed examples.
      Badly with: Logits on different scales by design (`logit_norm`, a temperature on one side). Averages of weights far from
        each other, which the mean of logits does not predict.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> modest, sure = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[0.0, 4.0], [0.0, 4.0]])
      >>> [round(float(x), 4) for x in rj.diagnostics.confidence_balance(modest, sure)]
      [0.7311, 0.982, 0.7444, 0.5, -1.0]

    References:
      Lin et al., Spurious Feature Diversification Improves Out-of-Distribution Generalization, 2023, arXiv 2309.17230, on why the
      more confident model dominates an average. There is no code; the measures here are a reconstruction.
    """
    name = "diagnostics.confidence_balance"
    a = _inputs(name, "logits_a", logits_a, axis, where)
    b = _inputs(name, "logits_b", checks.floating(name, "logits_b", logits_b, shape=jnp.shape(logits_a)), axis, where)
    if a.logits.dtype != b.logits.dtype:
        dtype = jnp.promote_types(a.logits.dtype, b.logits.dtype)
        a, b = (x._replace(logits=x.logits.astype(dtype)) for x in (a, b))
    dtype = a.logits.dtype
    one, two, both = (_prediction(z, a.where) for z in (a.logits, b.logits, a.logits / 2 + b.logits / 2))
    counts = one >= 0 if a.where is None else jnp.any(a.where, axis=-1)
    total = jnp.sum(counts, dtype=dtype)
    mean = lambda values: jnp.sum(jnp.where(counts, values, 0), dtype=dtype) / jnp.maximum(total, 1)
    confidence_a, confidence_b = (mean(jnp.exp(-classes.normalise(x.logits, x.where).log_total)) for x in (a, b))
    differ = counts & (one != two)
    disputed = jnp.sum(differ, dtype=dtype)
    wins = jnp.sum(differ & (both == one), dtype=dtype) - jnp.sum(differ & (both == two), dtype=dtype)
    ratio = jnp.where(total > 0, confidence_a / jnp.where(total > 0, confidence_b, 1), 1)
    return ConfidenceBalance(confidence_a, confidence_b, ratio, mean(differ), wins / jnp.maximum(disputed, 1))


def _inputs(name: str, argument: str, logits: Any, axis: int, where: Any) -> classes.ClassInputs:
    return classes.class_inputs(name, checks.floating(name, argument, logits, min_ndim=1), axis=axis, where=where)


def _prediction(logits: Array, where: Array | None) -> Array:
    return jnp.argmax(logits if where is None else jnp.where(where, logits, -jnp.inf), axis=-1)
