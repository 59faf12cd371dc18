"""StableMax: a softmax whose numerator grows linearly, so that no logit is ever absorbed."""

from typing import Any

import jax.numpy as jnp

from regjax.core import classes
from regjax.core.types import Array


def log_stablemax(logits: Any, *, axis: int = -1, where: Any = None) -> Array:
    r"""The logarithm of StableMax, evaluated in log space.

    Formula:
      .. math:: \log s(z_k) - \log \sum_j s(z_j), \quad
        s(x) = \begin{cases} x + 1 & x \ge 0 \\ 1 / (1 - x) & x < 0 \end{cases}

      s is once differentiable, with slope 1 at 0. Adding a constant to all logits changes the result, their order never.

    Args:
      logits: float ``[..., K]``, classes on ``axis``.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist; the others get ``-inf``.

    Returns:
      Log-probabilities of the shape of ``logits``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      That of a log-softmax; one logarithm for each logit, and no maximum is subtracted. Exact in float32 for logits of
      magnitude up to 1e37.
      XLA at [1024, 1000]: at most 7.8 times the FLOPs and 1.3 times the bytes of a log-softmax, and 0.01 times its memory more.

    Use:
      Part of: `stablemax_cross_entropy`.
      When: Call it for log-likelihoods, or to build another loss, such as a divergence, on these probabilities.
      Badly with: Differences of two log-probabilities of a class that leads by more than 2^24: there the loss itself keeps
        digits that this rounds away.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> [round(float(x), 4) for x in rj.losses.log_stablemax(jnp.array([2.0, 1.0, 0.0]))]
      [-0.6931, -1.0986, -1.7918]

    References:
      Prieto et al., Grokking at the Edge of Numerical Stability, 2025, arXiv 2501.04697. The authors' code computes in
      float64 and adds 1e-30 to the denominator 1 - x, which is never below 1; this is the same function.
    """
    x = classes.class_inputs("losses.log_stablemax", logits, axis=axis, where=where)
    z = _present(x)
    log_p = _log_s(z) - jnp.log(_total(z))[..., None]
    return jnp.moveaxis(log_p if x.where is None else jnp.where(_some(x.where)[..., None], log_p, 0), -1, axis)


def stablemax(logits: Any, *, axis: int = -1, where: Any = None) -> Array:
    r"""Probabilities that fall off like a power of the logits, not exponentially.

    Formula:
      .. math:: \frac{s(z_k)}{\sum_j s(z_j)}, \quad
        s(x) = \begin{cases} x + 1 & x \ge 0 \\ 1 / (1 - x) & x < 0 \end{cases}

    Args:
      logits: float ``[..., K]``, classes on ``axis``.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist; the others get 0.

    Returns:
      Probabilities of the shape of ``logits``, in float32 or better; 0 everywhere where no class exists.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      That of a softmax, without a maximum or an exponential.
      XLA at [1024, 1000]: at most 5.5 times the FLOPs and 1.2 times the bytes of a softmax, and 0 times its memory more.

    Use:
      Part of: `stablemax_cross_entropy`.
      When: Call it for the probabilities of a model trained with that loss, at test time and for calibration: softmax of the
        same logits would be far too sure.
      Badly with: Models trained with softmax, whose logits mean something else here, and change with a constant added to all.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> [round(float(x), 4) for x in rj.losses.stablemax(jnp.array([1.0, -1.0, 0.0]))]
      [0.5714, 0.1429, 0.2857]

    References:
      Prieto et al., Grokking at the Edge of Numerical Stability, 2025, arXiv 2501.04697.
    """
    x = classes.class_inputs("losses.stablemax", logits, axis=axis, where=where)
    z = _present(x)
    return jnp.moveaxis(_s(z) / _total(z)[..., None], -1, axis)


def stablemax_cross_entropy(logits: Any, labels: Any, *, axis: int = -1, where: Any = None) -> Array:
    r"""Cross-entropy under StableMax: the loss of a right answer never rounds to 0, so its gradient never stops.

    Formula:
      .. math:: -\sum_k y_k \log \frac{s(z_k)}{\sum_j s(z_j)}, \quad
        s(x) = \begin{cases} x + 1 & x \ge 0 \\ 1 / (1 - x) & x < 0 \end{cases}

      Under softmax a logit that leads by 17 absorbs the others in float32: the loss and the gradient of the right class
      are exactly 0, and training ends before it generalises. Here the loss of a class id keeps its digits however small it
      is. The order of the classes is that of the logits; their probabilities are those of `stablemax`, not of the softmax.

    Args:
      logits: float ``[..., K]``, classes on ``axis``.
      labels: integer class ids ``[...]``, or probabilities of the shape of ``logits``.
      axis: the class axis.
      where: boolean, broadcasts to ``logits``: the classes that exist.

    Returns:
      The loss of each example, ``[...]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      That of cross-entropy, without its exponentials: one pass over the logits each way. Probability labels cost one
      logarithm for each logit. Exact in float32 for logits of magnitude up to 1e18.
      XLA at [1024, 1000]: at most 8 times the FLOPs and 0.74 times the bytes of cross-entropy, and 0 times its memory more.

    Use:
      For: delayed generalisation, unstable training.
      When: Small algorithmic data trained long after it is fitted, in float32 and without weight decay, where
        `softmax_collapse` shows that softmax losses round to 0. `orthogonal_gradient` treats the cause, this the symptom, and
        they go together.
      Not when: Training ends before losses reach rounding error. Probabilities count: confidence grows as a power of the
        logits, so sure predictions need huge ones. On the digits comparison it gained a little.
      Badly with: `fit_temperature`, `distillation` and other softmax tools on its logits: use `stablemax` for probabilities.
        Terms that hold logits small, `spectral_decoupling` or strong weight decay. Low temperatures on cosines: it is not
        invariant to shifts.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.losses.stablemax_cross_entropy(jnp.array([2.0, 1.0, 0.0]), jnp.array(0))), 4)
      0.6931

    References:
      Prieto et al., Grokking at the Edge of Numerical Stability, 2025, arXiv 2501.04697. Their grokking runs use it with
      AdamW at learning rate 0.01 and weight decay 0 on the full batch.
    """
    x = classes.class_inputs("losses.stablemax_cross_entropy", logits, labels, axis=axis, where=where)
    z = _present(x)
    if x.is_ids:
        loss = _loss_of_ids(z, x.labels)
    else:
        mass = jnp.sum(x.labels, axis=-1)
        loss = mass * jnp.log(_total(z)) - classes.expected_under(_log_s(z), x.labels, False)
    return loss if x.where is None else jnp.where(_some(x.where), loss, 0)


def _loss_of_ids(z: Array, ids: Array) -> Array:
    # -log(s_y / sum s) = log1p(sum_{k != y} s_k / s_y): a small loss keeps all its digits, and so does its gradient, where
    # the difference of two logarithms would round to 0 once s_y leads by 2^24.
    own = classes.pick(z, ids)
    others = jnp.sum(jnp.where(jnp.arange(z.shape[-1]) == ids[..., None], 0, _s(z)), axis=-1)
    # 1 / s(z) = s(-z). A label among the missing classes costs infinity and one outside [0, K) NaN, both without gradient.
    usable = own > -jnp.inf
    return jnp.where(usable, jnp.log1p(others * _s(-jnp.where(usable, own, 0))), -own)


def _present(x: classes.ClassInputs) -> Array:
    # At -inf s is 0 with slope 0, so a missing class needs no further care.
    return x.logits if x.where is None else jnp.where(x.where, x.logits, -jnp.inf)


def _some(where: Array) -> Array:
    return jnp.any(where, axis=-1)


def _magnitude(z: Array) -> Array:
    # By `where`: the branch selected at 0, and at -0, has slope 1, where abs would have 0 and a maximum 1/2. All that is
    # computed from a magnitude is finite with finite slope on both branches.
    return jnp.where(z < 0, -z, z)


def _s(z: Array) -> Array:
    a = _magnitude(z)
    return jnp.where(z < 0, 1 / (1 + a), 1 + a)


def _log_s(z: Array) -> Array:
    log = jnp.log1p(_magnitude(z))
    return jnp.where(z < 0, -log, log)


def _total(z: Array) -> Array:
    # s spans 1e-37 to 1e37 in float32 without overflow, so that no maximum is subtracted: one pass less than softmax. The
    # sum is 0 where no class exists.
    total = jnp.sum(_s(z), axis=-1)
    return jnp.where(total > 0, total, 1)
