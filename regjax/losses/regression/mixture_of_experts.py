"""The likelihood of a mixture of Gaussian experts with a softmax gate."""

import math
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array


def moe_gaussian_nll(gate_logits: Any, means: Any, log_sigma: Any, y: Any, *, axis: int = -1, where: Any = None) -> Array:
    r"""The negative log-likelihood of targets under Gaussian experts that a softmax gate weighs.

    Formula:
      .. math:: -\log \sum_k softmax_k(g) \, N(y; \mu_k, \sigma_k^2)

      as a logsumexp, so that far targets do not underflow.

    Args:
      gate_logits: g, float ``[..., K]``.
      means: the experts' predictions, float of that shape.
      log_sigma: the logarithms of their standard deviations, float ``[K]`` or of the shape of ``gate_logits``.
      y: the targets, float ``[...]``.
      axis: the axis of the experts, default the last.
      where: which experts count, boolean of the shape of ``gate_logits``; None (default): all. Where none does, the loss is 0.

    Returns:
      The loss of each example, ``[...]``, in float32 or better.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      Two logsumexps over the experts.
      XLA at 2 times [8192, 16]: at most 21 times the FLOPs and 7.8 times the bytes of a copy of its arguments, and 0.84 times
      its memory more.

    Use:
      For: few labels, sparsity budget.
      When: Regression with a few regimes or several answers for one input. With `weights.l1` or `prox_l1` on slopes it finds
        the inputs that matter among many: in a test with more candidates than needed the lasso won.
      Not when: One regime: a squared error. Experts of free variance on few points: an expert that fits one exactly sends it to
        0 and the loss to minus infinity, so bound ``log_sigma`` below.
      Badly with: The l1 norm on intercepts and variances: leave them out by ``where``. Equal starts of all experts, which then
        stay equal. `load_balancing_loss`, as the likelihood wants uneven gates. Targets of large scale with ``log_sigma`` at 0.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> nll = rj.losses.moe_gaussian_nll(jnp.zeros(2), jnp.array([0.0, 4.0]), jnp.zeros(2), jnp.array(0.0))
      >>> round(float(nll), 4)
      1.6118

    References:
      Nguyen et al., An l1-oracle Inequality for the Lasso in Mixture-of-Experts Regression Models, 2020, arXiv 2009.10622:
      the mean of this loss plus lambda times the l1 norms of gate and expert slopes (``weights.l1``, or ``weights.prox_l1``
      after each step), intercepts and variances free, one gate fixed at 0, lambda of the order sqrt(log(p) / n).
    """
    name = "losses.moe_gaussian_nll"
    gate_logits = checks.floating(name, "gate_logits", gate_logits, min_ndim=1)
    axis = checks.integer(name, "axis", axis, low=-gate_logits.ndim, high=gate_logits.ndim - 1) % gate_logits.ndim
    means = checks.floating(name, "means", means, shape=gate_logits.shape)
    log_sigma = checks.floating(name, "log_sigma", log_sigma)
    if log_sigma.shape == gate_logits.shape[axis : axis + 1]:
        log_sigma = log_sigma.reshape(-1, *(1,) * (gate_logits.ndim - 1 - axis))
    elif log_sigma.shape != gate_logits.shape:
        checks.fail(name, "log_sigma", f"[{gate_logits.shape[axis]}] or {list(gate_logits.shape)}", log_sigma)
    rest = gate_logits.shape[:axis] + gate_logits.shape[axis + 1 :]
    y = checks.floating(name, "y", y, shape=rest)
    mask = checks.example_mask(name, "where", where, gate_logits.shape)
    dtype = trees.accumulator(gate_logits, means, log_sigma, y)
    g, mu, s, target = (x.astype(dtype) for x in (gate_logits, means, log_sigma, jnp.expand_dims(y, axis)))
    if mask is not None:
        # An expert that does not count may hold anything.
        g, mu = jnp.where(mask, g, 0), jnp.where(mask, mu, target)
    score = g - 0.5 * jnp.square((target - mu) * jnp.exp(-s)) - s - 0.5 * math.log(2 * math.pi)
    if mask is None:
        return jax.nn.logsumexp(g, axis=axis) - jax.nn.logsumexp(score, axis=axis)
    some = mask.any(axis=axis)
    mask = mask | ~jnp.expand_dims(some, axis)
    nll = jax.nn.logsumexp(g, axis=axis, where=mask) - jax.nn.logsumexp(score, axis=axis, where=mask)
    return jnp.where(some, nll, 0)
