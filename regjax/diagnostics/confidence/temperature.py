"""Temperature scaling: confidences made honest after training, without changing a prediction."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, classes
from regjax.core.types import Array
from regjax.diagnostics import _examples

_LOW, _HIGH, _START, _MOST_STEPS = math.log(1e-2), math.log(1e2), math.log(1.5), 60


def fit_temperature(logits: Any, labels: Any, *, where: Any = None) -> Array:
    r"""The temperature at which held-out logits are best calibrated, without changing any prediction.

    Formula:
      .. math:: \arg\min_{T \in [0.01, 100]} \frac{1}{N} \sum_i CE(z_i / T, y_i)

      At the minimum the mean logit of the labels equals the mean logit under the prediction,
      :math:`\sum_i z_{i, y_i} = \sum_i \sum_k softmax(z_i / T)_k z_{ik}`. The loss is convex in 1/T, and Newton steps on
      :math:`\log T` inside a shrinking bracket find it. Logits that separate all labels give 0.01; logits that say
      nothing, and no examples at all, give 1.

    Args:
      logits: float ``[N, K]`` of held-out examples; ``-inf`` for classes that do not exist.
      labels: integer class ids ``[N]``.
      where: boolean ``[N]``: which examples count; default all.

    Returns:
      T, a scalar in float32 or better: divide the logits by it. No gradient flows to the logits. An id outside [0, K) among
      the counted examples gives NaN.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      About 10 passes over the logits, about 30 where the result is 0.01 or 100, at most 60; examples may be sharded over devices.
      XLA counts the body of the loop once.
      XLA at [1024, 1000]: at most 30 times the FLOPs and 13 times the bytes of a copy of its arguments, and 2.8 times its
      memory more.

    Use:
      For: poor calibration.
      When: After any training, on held-out labels, before probabilities are used or compared. In the calibration study it
        brought losses of very different calibration errors close together, and improved the ranking of `label_smoothing` and
        `maxsup` too.
      Not when: Each class errs in its own way, as under long tails: one number cannot mend that. Test data are shifted, for
        which the fitted value is mostly too sure. Only training examples are left: fitted ones give too low a value.
      Badly with: `search_logit_norm`, whose score does not see a temperature. Logits of another form than at test, such as
        those of `logit_norm` with and without the norm. Averages of several models: fit after averaging.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> logits, labels = jnp.array([[4.0, 0.0], [4.0, 0.0], [4.0, 0.0], [4.0, 0.0]]), jnp.array([0, 0, 0, 1])
      >>> round(float(rj.diagnostics.fit_temperature(logits, labels)), 4)
      3.641

    References:
      Guo et al., On Calibration of Modern Neural Networks, 2017, arXiv 1706.04599. The authors minimise by L-BFGS from 1.5;
      the minimum is the same.
    """
    name = "diagnostics.fit_temperature"
    checks.integers(name, "labels", labels)
    x = classes.class_inputs(name, checks.floating(name, "logits", logits, ndim=2), labels)
    where = checks.example_mask(name, "where", where, x.labels.shape)
    logits = jax.lax.stop_gradient(x.logits)
    margins = logits - classes.pick(logits, x.labels)[:, None]
    if where is not None:
        margins = jnp.where(where[:, None], margins, 0)

    def slopes(log_t: Array) -> tuple[Array, Array]:
        """The first two derivatives of the mean loss by log T, each divided by 1/T > 0."""
        p = jax.nn.softmax(margins * jnp.exp(-log_t), axis=-1)
        some = p > 0  # 0 * -inf = 0
        mean = jnp.sum(jnp.where(some, p * margins, 0), axis=-1)
        square = jnp.square(jnp.where(some, margins - mean[:, None], 0))
        first = _examples.mean(mean, where, mean.dtype)
        second = _examples.mean(jnp.sum(p * square, axis=-1), where, mean.dtype) * jnp.exp(-log_t)
        return -first, second + first

    def unfinished(state: tuple[Array, ...]) -> Array:
        step, _, _, _, moved = state
        return (step < _MOST_STEPS) & (jnp.abs(moved) > 2 * jnp.finfo(logits.dtype).eps)

    def narrow(state: tuple[Array, ...]) -> tuple[Array, ...]:
        step, log_t, low, high, moved = state
        slope, curve = slopes(log_t)
        # Separated labels whose loss underflows have slope and curve 0: cooler, as before the underflow.
        low, high = jnp.where(slope < 0, log_t, low), jnp.where(slope < 0, high, log_t)
        newton = -slope / jnp.where(curve > 0, curve, 1)
        inside = (log_t + newton >= low) & (log_t + newton <= high)
        good = (curve > 0) & inside & (2 * jnp.abs(newton) < jnp.abs(moved))
        new = jnp.where(good, log_t + newton, (low + high) / 2)
        return step + 1, new, low, high, new - log_t

    start = [jnp.asarray(v, logits.dtype) for v in (_START, _LOW, _HIGH, _HIGH - _LOW)]
    _, log_t, *_ = jax.lax.while_loop(unfinished, narrow, (jnp.zeros((), jnp.int32), *start))
    informative = jnp.any((margins != 0) & (margins > -jnp.inf))
    return jnp.where(jnp.any(jnp.isnan(margins)), jnp.nan, jnp.where(informative, jnp.clip(jnp.exp(log_t), 0.01, 100), 1))
