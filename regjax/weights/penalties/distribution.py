"""The shape of the distribution of weights: what it is, and what draws it to one that is easily quantised."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, PyTree, Strength, Where
from regjax.weights import groups as grouping


class WeightMoments(NamedTuple):
    """What `kurtosis_skewness` returns."""

    kurtosis: Array
    skewness: Array


def kurtosis_skewness(w: Any) -> WeightMoments:
    r"""The kurtosis and the skewness of the entries of an array.

    Formula:
      .. math:: K = \frac{1}{n} \sum_i z_i^4, \quad Sk = \frac{1}{n} \sum_i z_i^3, \quad z = \frac{w - mean(w)}{std(w)}

      with n - 1 in the standard deviation. Uniform weights have K = 1.8, normal ones 3, and both Sk = 0.

    Args:
      w: float, any shape.

    Returns:
      ``WeightMoments(kurtosis, skewness)``, scalars in float32 or better; both 0, with gradient 0, where all entries are
      equal up to rounding.

    Raises:
      ValueError: if ``w`` is not floating.

    Cost:
      Three passes over the weights forward, two backward.
      XLA at [2048, 512]: at most 28 times the FLOPs and 9.4 times the bytes of a copy of its arguments, and 1.2 times its
      memory more.

    Use:
      Part of: `weight_distribution_penalty`.
      When: To see how a layer's weights are spread before choosing bits: near 1.8 suits uniform rounding, far above 3 means
        outliers for `round_to_nearest` to clip.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> moments = rj.weights.kurtosis_skewness(jnp.array([0.0, 0.0, 0.0, 1.0]))
      >>> round(float(moments.kurtosis), 4), round(float(moments.skewness), 4)
      (1.3125, 0.75)

    References:
      Xu et al., EQ-Net: Elastic Quantization Neural Networks, 2023, arXiv 2308.07650, in the authors' code.
    """
    w = checks.floating("weights.kurtosis_skewness", "w", w)
    x = w.astype(trees.accumulator(w))
    n = max(x.size, 1)
    # Over the largest entry, which changes neither, the fourth powers stay in range.
    top = jnp.max(jnp.abs(jax.lax.stop_gradient(x)), initial=0)
    x = x / jnp.where(top > 0, top, 1)
    centred = x - jnp.sum(x) / n
    squares = jnp.square(centred)
    variance = jnp.sum(squares) / max(n - 1, 1)
    # The mean of equal entries is off by its rounding, and that difference is no distribution.
    spread = variance > (8 * float(jnp.finfo(x.dtype).eps)) ** 2
    inverse = jax.lax.rsqrt(jnp.where(spread, variance, 1))
    # Powers are summed before the division, so that nothing but the weights is kept for the backward pass.
    moment = lambda sums, power: jnp.where(spread, sums / n * inverse**power, jnp.where(jnp.isnan(variance), jnp.nan, 0))
    return WeightMoments(moment(jnp.sum(jnp.square(squares)), 4), moment(jnp.sum(squares * centred), 3))


def weight_distribution_penalty(
    params: PyTree,
    *,
    kurtosis_target: Any = 1.8,
    skewness_target: Any = 0.0,
    kurtosis_weight: Strength = 0.015,
    skewness_weight: Strength = 1.0,
    skip_first: bool = True,
    where: Where = None,
) -> Array:
    r"""Draws the weights of each layer to a uniform distribution, which loses least in rounding to a few equidistant levels.

    Formula:
      .. math:: \lambda_K \, mean_l (K_l - K^*)^2 + \lambda_S \, mean_l (Sk_l - Sk^*)^2

      over the layers l, with the moments of `kurtosis_skewness`. Invariant to the scale of a layer.

    Args:
      params: a parameter tree.
      kurtosis_target: :math:`K^*`, default 1.8, that of a uniform distribution.
      skewness_target: :math:`Sk^*`, default 0.
      kurtosis_weight: at least 0, default 0.015.
      skewness_weight: at least 0, default 1.
      skip_first: whether the first of the chosen leaves in the order of the tree is left out; default True. Dictionaries are
        in the order of their names, which need not be that of the layers: then leave the first layer out by ``where`` and set
        this to False.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans.

    Returns:
      A scalar in float32 or better; 0 where no leaf is left.

    Raises:
      ValueError: if a weight is negative, a number is not finite, ``skip_first`` is not a bool, or ``where`` is wrong.

    Cost:
      Three passes over the weights forward, two backward; no forward pass.
      XLA at 8 times [512, 512]: at most 25 times the FLOPs and 8.3 times the bytes of a copy of its arguments, and 0.97 times
      its memory more.

    Use:
      For: compute budget.
      When: The network will be rounded to few equidistant levels after training: with it three bits cost our digits network
        less accuracy. It has no effect on the scale of a layer.
      Not when: The weights stay in floating point: as a regulariser it did not help on the digits comparison. Or the levels are
        not uniform, as in logarithmic formats.
      Badly with: `weights.l1`, `prune` and all that makes most weights 0, whose kurtosis is far above the target; small leaves,
        whose fourth moment is noise; ``skip_first`` on dictionaries whose first name is not the first layer.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> params = {"kernel": jnp.array([[0.0, 0.0], [0.0, 1.0]])}
      >>> round(float(rj.weights.weight_distribution_penalty(params, skip_first=False)), 4)
      0.5661

    References:
      Xu et al., EQ-Net: Elastic Quantization Neural Networks, 2023, arXiv 2308.07650; means over the layers and coefficients
      as in the authors' code, whose first layer stays as it is.
    """
    name = "weights.weight_distribution_penalty"
    checks.number(name, "kurtosis_target", kurtosis_target)
    checks.number(name, "skewness_target", skewness_target)
    checks.number(name, "kurtosis_weight", kurtosis_weight, low=0.0)
    checks.number(name, "skewness_weight", skewness_weight, low=0.0)
    checks.boolean(name, "skip_first", skip_first)
    leaves = [grouping.accumulated(name, leaf) for leaf in trees.selected(name, params, where)][1 if skip_first else 0 :]
    total = jnp.zeros((), jnp.float32)
    for leaf in leaves:
        moments = kurtosis_skewness(leaf)
        pairs = ((kurtosis_weight, kurtosis_target, moments.kurtosis), (skewness_weight, skewness_target, moments.skewness))
        for weight, target, moment in pairs:
            share = jnp.asarray(weight, moment.dtype) / len(leaves)
            total = total + share * jnp.square(moment - jnp.asarray(target, moment.dtype))
    return total
