"""Mixtures of losses: which examples have a wrong label, seen from the two heaps of their losses."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array

_CLUSTERING_STEPS = 10


class TwoGaussians(NamedTuple):
    """Two Gaussians on a line, that of the smaller mean first.

    Attributes:
      means: ``[2]``.
      variances: ``[2]``.
      weights: ``[2]``, at least 0 with sum 1.
      posteriors: ``[N, 2]``, the probability of each component given the value.
    """

    means: Array
    variances: Array
    weights: Array
    posteriors: Array


def fit_two_gaussians(
    values: Any, *, num_iterations: int = 10, reg: Any = 5e-4, where: Any = None, axis_name: Any = None
) -> TwoGaussians:
    r"""Fits a mixture of two Gaussians to numbers such as losses, and says to which each of them belongs.

    Formula:
      .. math:: \gamma_{ic} = \frac{w_c N(x_i; \mu_c, \sigma_c^2)}{\sum_b w_b N(x_i; \mu_b, \sigma_b^2)}, \quad
        w_c = \frac{1}{N} \sum_i \gamma_{ic}, \quad \mu_c = \frac{\sum_i \gamma_{ic} x_i}{\sum_i \gamma_{ic}}, \quad
        \sigma_c^2 = \epsilon + \frac{\sum_i \gamma_{ic} (x_i - \mu_c)^2}{\sum_i \gamma_{ic}}

      in turn, from the two clusters that ten steps of 2-means find between the least and the greatest value.

    Args:
      values: float ``[N]``, finite. Scale losses to [0, 1] first, ``(x - min) / max(max - min, 1e-8)``: ``reg`` is meant for
        that range.
      num_iterations: how many rounds, at least 0, default 10. A fixed number, so that it compiles.
      reg: :math:`\epsilon`, added to the variances, above 0, default 5e-4.
      where: boolean ``[N]``: the values that count; the others have posteriors 0. Default all.
      axis_name: the mapped axis, or a tuple of them, over which the values are split under ``shard_map`` or ``pmap``. Not
        needed under ``jit`` with sharded arrays.

    Returns:
      `TwoGaussians`: means, variances, weights, each ``[2]`` and the smaller mean first, and posteriors ``[N, 2]``, in
      float32 or better. Equal values give equal means and posteriors of one half. No gradient flows.

    Raises:
      ValueError: if ``values`` is no floating vector, a number is out of range, or the mask does not fit.

    Cost:
      ``num_iterations`` + 10 passes over the values, of which XLA counts two, the bodies of the loops. Three sums of two
      numbers each round with ``axis_name``.
      XLA at [50000]: at most 120 times the FLOPs and 32 times the bytes of a copy of its arguments, and 2.8 times its memory
      more.

    Use:
      For: noisy labels.
      When: Once an epoch over all training losses in evaluation mode, to split clean from wrong when the noise rate is unknown.
        On digits with foreign images it found most of them in the first epochs: warm up for one or a few, no more.
      Not when: Losses make one heap: clean data is split too. Training has gone on: memorised examples join the clean heap, and
        it found fewer of them in the last epoch. Rare classes have large losses of their own.
      Badly with: Losses not scaled to [0, 1], for which ``reg`` is meant. Bounded losses such as `generalized_cross_entropy`,
        whose heaps have no bell shape. Losses of augmented or mixed inputs.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> losses = jnp.array([0.0, 0.1, 0.05, 0.9, 1.0, 0.95])
      >>> fit = rj.losses.fit_two_gaussians(losses)
      >>> [round(float(x), 3) for x in fit.means], (fit.posteriors[:, 1] > 0.95).tolist()
      ([0.05, 0.95], [False, False, False, True, True, True])

    References:
      Albert et al., An Accurate Detection Is Not All You Need to Combat Label Noise in Web-Noisy Datasets, 2024,
      arXiv 2407.05528: a label counts as wrong where the posterior of the larger mean exceeds 0.95. The authors call
      scikit-learn's mixture with at most 10 rounds, which stops when the likelihood gains less than 0.01 and starts from
      randomly seeded 2-means; here the rounds are fixed and the start is not random.
    """
    name = "losses.fit_two_gaussians"
    values = checks.floating(name, "values", values, ndim=1)
    num_iterations = checks.integer(name, "num_iterations", num_iterations, low=0)
    checks.number(name, "reg", reg, low=0.0, open_low=True)
    counts = checks.example_mask(name, "where", where, values.shape)
    checks.axis_name(name, axis_name)
    x = jax.lax.stop_gradient(values).astype(trees.accumulator(values))
    reg = jnp.asarray(reg, x.dtype)

    over = lambda fold, v: v if axis_name is None else fold(v, axis_name)
    total = lambda v: over(jax.lax.psum, jnp.sum(v, axis=0))
    masked = lambda v, other: v if counts is None else jnp.where(counts if v.ndim == 1 else counts[:, None], v, other)
    x = masked(x, 0)
    low = over(jax.lax.pmin, jnp.min(masked(x, jnp.inf), initial=jnp.inf))
    high = over(jax.lax.pmax, jnp.max(masked(x, -jnp.inf), initial=-jnp.inf))
    some = low <= high

    def centres(shares: Array) -> tuple[Array, Array]:
        size = total(shares)
        return size, total(shares * x[:, None]) / jnp.where(size > 0, size, 1)

    def nearest(means: Array) -> Array:
        # Halves for what lies between, so that equal values belong to both alike.
        closer = jnp.abs(x - means[0]) - jnp.abs(x - means[1])
        upper = (jnp.sign(closer) + 1) / 2
        return masked(jnp.stack([1 - upper, upper], axis=1), 0)

    def maximise(shares: Array) -> tuple[Array, Array, Array]:
        size, means = centres(shares)
        spread = total(shares * jnp.square(x[:, None] - means)) / jnp.where(size > 0, size, 1)
        everyone = jnp.sum(size)
        return means, spread + reg, jnp.where(everyone > 0, size / jnp.where(everyone > 0, everyone, 1), 0.5)

    def expect(means: Array, variances: Array, weights: Array) -> Array:
        # The logarithm of a weight of 0 is finite here: no component is lost, and no posterior is 0 / 0.
        heights = jnp.log(jnp.maximum(weights, jnp.finfo(x.dtype).tiny)) - jnp.log(variances) / 2
        return masked(jax.nn.softmax(heights - jnp.square(x[:, None] - means) / (2 * variances), axis=1), 0)

    means = jnp.where(some, jnp.stack([low, high]), 0)
    means = jax.lax.fori_loop(0, _CLUSTERING_STEPS, lambda _, means: centres(nearest(means))[1], means)
    fit = jax.lax.fori_loop(0, num_iterations, lambda _, fit: maximise(expect(*fit)), maximise(nearest(means)))
    swap = fit[0][0] > fit[0][1]
    means, variances, weights = (jnp.where(swap, v[::-1], v) for v in fit)
    return TwoGaussians(means, variances, weights, expect(means, variances, weights))
