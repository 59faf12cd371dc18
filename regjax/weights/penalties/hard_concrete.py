"""The expected number of weights behind hard concrete gates: a differentiable count."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, Strength

# Of the distribution: its temperature, and the ends of the stretched interval. `regjax.layers.hard_concrete` draws from it.
TEMPERATURE = 2 / 3
LOW, HIGH = -0.1, 1.1


def nonzero_probability(log_alpha: Any) -> Array:
    r"""The probability that a hard concrete gate is open at all.

    Formula:
      .. math:: P(z \ne 0) = \sigma(\log\alpha - \beta \log(0.1 / 1.1)), \quad \beta = 2 / 3

      clipped to [1e-6, 1 - 1e-6].

    Args:
      log_alpha: the gates' parameters, a float array of any shape.

    Returns:
      The probabilities, of that shape, in float32 or better.

    Raises:
      ValueError: if ``log_alpha`` is no float array.

    Cost:
      One sigmoid for each gate.
      XLA at [512, 512]: at most 25 times the FLOPs and 3.4 times the bytes of a copy of its arguments, and 0 times its memory
      more.

    Use:
      Part of: `l0_penalty`, `HardConcrete`.
      When: To report the expected number of open gates, or to build a price of your own, such as FLOPs per filter.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> [round(float(p), 4) for p in rj.weights.nonzero_probability(jnp.array([0.0, 2.0, -3.0]))]
      [0.8318, 0.9734, 0.1976]

    References:
      Louizos et al., Learning Sparse Neural Networks through L0 Regularization, 2018, arXiv 1712.01312.
    """
    log_alpha = checks.floating("weights.nonzero_probability", "log_alpha", log_alpha)
    shifted = log_alpha.astype(trees.accumulator(log_alpha)) - TEMPERATURE * jnp.log(-LOW / HIGH)
    return jnp.clip(jax.nn.sigmoid(shifted), 1e-6, 1 - 1e-6)


def l0_penalty(log_alpha: Any, kernel: Any, *, l0: Strength, l2: Strength = 0.0, groups: str = "in") -> Array:
    r"""The expected number of open weights behind hard concrete gates, and the decay of the open ones.

    Formula:
      .. math:: \sum_g P(z_g \ne 0) \left( l0 \, |g| + \frac{l2}{2} \|w_g\|^2 \right)

      :math:`|g|` is the number of weights behind the gate. Divide by the number of training examples next to a mean loss.

    Args:
      log_alpha: the gates' parameters, float ``[gates]``: one for each input or each output of the kernel.
      kernel: the weights behind the gates, float ``[..., in, out]``, of two or more dimensions.
      l0: the price of a weight, at least 0.
      l2: the strength of the decay of open weights, at least 0, default 0.
      groups: ``"in"`` (default): a gate for each input unit, as of dense layers in the paper; ``"out"``: for each output
        filter, as of convolutions.

    Returns:
      A scalar in float32 or better.

    Raises:
      ValueError: if the gates do not fit the kernel, a strength is negative or not finite, or ``groups`` is unknown.

    Cost:
      One pass over the kernel each way where ``l2`` is not 0.
      XLA at [512, 512]: at most 3.4 times the FLOPs and 1.7 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      For: sparsity budget, compute budget.
      When: Whole inputs or filters are to be closed while training, by `HardConcrete` gates, with a price per weight. Divide it
        by the number of training examples beside a mean loss.
      Not when: The model has no gates, or the final sparsity must be exact: the price decides it only through tuning; `prune`
        sets it directly.
      Badly with: Weight decay on ``log_alpha`` and on the gated kernels beside ``l2``, which already is the decay of open ones;
        `dropout` at the same units, noise twice; ``log_alpha`` left unclamped, which drifts until the gate has no gradient.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.weights.l0_penalty(jnp.array([0.0, -3.0]), jnp.ones((2, 5)), l0=1.0)), 4)
      5.1471

    References:
      Louizos et al., Learning Sparse Neural Networks through L0 Regularization, 2018, arXiv 1712.01312. The authors' code
      clamps ``log_alpha`` to [log 0.01, log 100] after each step. The gates themselves: ``regjax.layers.HardConcrete``.
    """
    name = "weights.l0_penalty"
    kernel = checks.floating(name, "kernel", kernel, min_ndim=2)
    checks.choice(name, "groups", groups, ("in", "out"))
    axis = kernel.ndim - (2 if groups == "in" else 1)
    log_alpha = checks.floating(name, "log_alpha", log_alpha, shape=(kernel.shape[axis],))
    checks.number(name, "l0", l0, low=0.0)
    checks.number(name, "l2", l2, low=0.0)
    dtype = trees.accumulator(log_alpha, kernel)
    others = tuple(i for i in range(kernel.ndim) if i != axis)
    squares = jnp.sum(jnp.square(kernel.astype(dtype)), axis=others)
    size = kernel.size // max(kernel.shape[axis], 1)
    price = jnp.asarray(l0, dtype) * size + 0.5 * jnp.asarray(l2, dtype) * squares
    return jnp.sum(nonzero_probability(log_alpha).astype(dtype) * price)
