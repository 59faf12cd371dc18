"""Learning rates for a batch size, and from a spectrum: what random-matrix theory says of the curvature of small batches."""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, Strength


class SpectrumRate(NamedTuple):
    """What `lr_from_spectrum` returns."""

    learning_rate: Array
    momentum: Array


def scale_learning_rate(base: Strength, *, base_batch: Any, batch: Any, rule: Literal["linear", "sqrt"] = "linear") -> Any:
    r"""The learning rate of another batch size: in proportion to it for SGD, to its root for Adam.

    Formula:
      .. math:: \eta \, \frac{B}{B_0} \ (linear), \quad \eta \, \sqrt{B / B_0} \ (sqrt)

      Both hold while the noise of the batch dominates its curvature; `max_learning_rate` says where that ends.

    Args:
      base: :math:`\eta`, that suits ``base_batch``: a number, at least 0, or a schedule.
      base_batch: :math:`B_0`, above 0.
      batch: B, above 0.
      rule: ``"linear"`` (default), for SGD with or without momentum, or ``"sqrt"``, for Adam with a small epsilon.

    Returns:
      The learning rate, a scalar in float32 (float64 under x64); of a schedule, a schedule ``step -> value``.

    Raises:
      ValueError: if a number is out of range or the rule is unknown.

    Cost:
      None.

    Use:
      For: compute budget, unstable training.
      When: The batch size changes and the rate was tuned at another: ``linear`` for SGD, ``sqrt`` for Adam, up to some thousand
        examples and with a warm-up.
      Not when: The batch is past the size where curvature and not noise limits the rate (`max_learning_rate`), or the smaller
        rate was never near its limit.
      Badly with: Decay that is not multiplied by the rate (`sgdw`, `adamw_decoupled`): fewer steps then decay less, so
        normalise it with `normalized_weight_decay`. Averages such as `ema`, whose decay is per step.

    Example:
      >>> import regjax as rj
      >>> rate = lambda rule: rj.schedules.scale_learning_rate(0.1, base_batch=128, batch=512, rule=rule)
      >>> [round(float(rate(rule)), 4) for rule in ("linear", "sqrt")]
      [0.4, 0.2]

    References:
      Granziol et al., Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to Neural Network Training,
      2022, arXiv 2006.09092; Goyal et al., Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour, 2017, arXiv 1706.02677.
    """
    name = "schedules.scale_learning_rate"
    checks.strength(name, "base", base, low=0.0)
    checks.number(name, "base_batch", base_batch, low=0.0, open_low=True)
    checks.number(name, "batch", batch, low=0.0, open_low=True)
    checks.choice(name, "rule", rule, ("linear", "sqrt"))

    def scaled(value: Any) -> Array:
        dtype = _dtype(value)
        ratio = jnp.asarray(batch, dtype) / jnp.asarray(base_batch, dtype)
        return jnp.asarray(value, dtype) * (ratio if rule == "linear" else jnp.sqrt(ratio))

    return (lambda step: scaled(base(step))) if callable(base) else scaled(base)


def batch_max_eigenvalue(
    eigenvalue: Any,
    *,
    batch_size: Any,
    num_examples: Any = None,
    noise_scale: Any,
    matrix: Literal["hessian", "ggn"] = "hessian",
    num_parameters: Any = None,
) -> Array:
    r"""The largest eigenvalue of a batch's Hessian, from that of the whole data and the noise between examples.

    Formula:
      With the noise of a batch, :math:`\nu = P \sigma^2 (1 / B - 1 / N)`, and the eigenvalue :math:`\lambda` of the whole data:

      .. math:: \lambda' = \lambda + \frac{\nu}{\lambda} \ if \ \lambda > \sqrt{\nu}, \quad else \ 2 \sqrt{\nu}

      the edge of the noise. For the generalised Gauss-Newton matrix, whose noise is positive semi-definite, with
      :math:`\gamma = \nu / \sigma^2`:

      .. math:: \lambda' = \lambda + \frac{\sigma^2}{1 - \nu / \lambda} \ if \ \lambda > \sigma^2 (\gamma + \sqrt{\gamma}), \quad
         else \ \sigma^2 (1 + \sqrt{\gamma})^2

    Args:
      eigenvalue: :math:`\lambda`, a number. For the smallest eigenvalue give minus it, and take minus the result.
      batch_size: B, above 0.
      num_examples: N, at least B; None (default): infinitely many.
      noise_scale: :math:`P \sigma^2`, at least 0, as `regjax.diagnostics.hessian_variance` estimates it. 0 is the eigenvalue.
      matrix: ``"hessian"`` (default) or ``"ggn"``.
      num_parameters: P, above 0; needed for ``"ggn"``, and unused else.

    Returns:
      A scalar in float32 (float64 under x64).

    Raises:
      ValueError: if a number is out of range, ``matrix`` is unknown, or ``num_parameters`` is missing.

    Cost:
      None.

    Use:
      Part of: `max_learning_rate`.
      When: To predict what `top_eigenvalue` gives on small batches from one measurement on all data, or to judge how much of a
        measured one is noise.
      Not when: Noise is not spread evenly over directions, as with few classes or rare outliers: it assumes a random matrix.

    Example:
      >>> import regjax as rj
      >>> top = lambda value: rj.schedules.batch_max_eigenvalue(value, batch_size=128, num_examples=50_000, noise_scale=2.56)
      >>> [round(float(top(value)), 4) for value in (10.0, 1.0, 0.1)]
      [10.002, 1.0199, 0.2825]

    References:
      Granziol et al., Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to Neural Network Training,
      2022, arXiv 2006.09092, theorems 4 and 7. The edge of the Gauss-Newton noise is printed as twice
      :math:`\sigma^2 (1 + P / b)`; simulations agree with the one above.
    """
    name = "schedules.batch_max_eigenvalue"
    checks.number(name, "eigenvalue", eigenvalue)
    checks.choice(name, "matrix", matrix, ("hessian", "ggn"))
    checks.number(name, "noise_scale", noise_scale, low=0.0)
    checks.number(name, "batch_size", batch_size, low=0.0, open_low=True)
    dtype = _dtype(eigenvalue, batch_size, num_examples, noise_scale, num_parameters)
    value, noise = jnp.asarray(eigenvalue, dtype), jnp.asarray(noise_scale, dtype)
    share = 1 / jnp.asarray(batch_size, dtype)
    if num_examples is not None:
        least = 0.0 if isinstance(batch_size, jax.Array) else float(batch_size)
        checks.number(name, "num_examples", num_examples, low=least, open_low=least == 0.0)
        share = share - 1 / jnp.asarray(num_examples, dtype)
    spread = noise * share
    if matrix == "hessian":
        edge = trees.safe_sqrt(spread)
        above = value > edge
        return jnp.where(above, value + spread / jnp.where(above, value, 1), 2 * edge)
    if num_parameters is None:
        checks.fail(name, "num_parameters", "a number above 0 for matrix='ggn'", num_parameters)
    rows = jnp.asarray(checks.number(name, "num_parameters", num_parameters, low=0.0, open_low=True), dtype)
    variance, aspect = noise / rows, rows * share
    root = trees.safe_sqrt(aspect)
    above = value > variance * (aspect + root)
    safe = jnp.where(above, value, 1)
    outlier = value + variance / jnp.where(above, 1 - spread / safe, 1)
    return jnp.where(above, outlier, variance * jnp.square(1 + root))


def max_learning_rate(
    eigenvalue: Any,
    *,
    batch_size: Any,
    num_examples: Any = None,
    noise_scale: Any,
    matrix: Literal["hessian", "ggn"] = "hessian",
    num_parameters: Any = None,
) -> Array:
    r"""The largest learning rate at which SGD with small batches is stable.

    Formula:
      :math:`2 / \lambda'`, with the eigenvalue of `batch_max_eigenvalue`. While the noise dominates it grows with the batch size:
      in proportion to it where the noise is positive semi-definite (``"ggn"``, many parameters for each example), with its
      root where it is symmetric (``"hessian"``). Beyond, the curvature of the whole data holds it constant.

    Args:
      eigenvalue: the largest eigenvalue of the whole data.
      batch_size: as in `batch_max_eigenvalue`, as are the others.
      num_examples: the size of the data.
      noise_scale: the noise between examples, times the number of parameters.
      matrix: ``"hessian"`` (default) or ``"ggn"``.
      num_parameters: needed for ``"ggn"``.

    Returns:
      A scalar in float32 (float64 under x64); infinity where nothing curves upwards and there is no noise.

    Raises:
      ValueError: as `batch_max_eigenvalue`.

    Cost:
      None.

    Use:
      For: unstable training, compute budget.
      When: To see up to which batch size the rate may grow, from `top_eigenvalue` of a full batch and `hessian_variance`. It is
        a bound for plain SGD on a quadratic: with momentum m it is 1 + m times higher.
      Not when: Adam or other preconditioned steps. Long runs at a constant rate, where curvature adapts to the rate, so that
        the bound only says what is in use.
      Badly with: Eigenvalues of another time of training, or of scale-invariant layers after their norm has changed: they grow
        as weights shrink.

    Example:
      >>> import regjax as rj
      >>> round(float(rj.schedules.max_learning_rate(0.1, batch_size=64, noise_scale=16.0)), 4)
      2.0

    References:
      Granziol et al., Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to Neural Network Training,
      2022, arXiv 2006.09092, which derives the linear rule from :math:`\nu / \lambda`; but by its own theorem that term is
      never more than half of the eigenvalue.
    """
    name = "schedules.max_learning_rate"
    checks.number(name, "eigenvalue", eigenvalue)
    try:
        top = batch_max_eigenvalue(
            eigenvalue,
            batch_size=batch_size,
            num_examples=num_examples,
            noise_scale=noise_scale,
            matrix=matrix,
            num_parameters=num_parameters,
        )
    except ValueError as error:
        raise ValueError(str(error).replace("batch_max_eigenvalue", "max_learning_rate")) from None
    some = top > 0
    return jnp.where(some, 2 / jnp.where(some, top, 1), jnp.inf)


def lr_from_spectrum(
    ritz_values: Any,
    weights: Any,
    *,
    rule: Literal["polyak", "nesterov", "polyak_printed"] = "polyak",
    drop_bulk: bool = True,
) -> SpectrumRate:
    r"""A learning rate and momentum from the extreme eigenvalues that a few Lanczos steps find.

    Formula:
      With L the largest and :math:`\mu` the smallest positive Ritz value, and the ratio
      :math:`q = (\sqrt L - \sqrt \mu) / (\sqrt L + \sqrt \mu)`:

      .. math:: \eta = \frac{4}{(\sqrt L + \sqrt \mu)^2}, \ m = q^2 \ (polyak), \quad \eta = 1 / L, \ m = q \ (nesterov)

    Args:
      ritz_values: ``[m]``, of `regjax.diagnostics.lanczos_spectrum` of a batch's Hessian or Gauss-Newton matrix.
      weights: ``[m]``; Ritz values of weight 0 do not count.
      rule: ``"polyak"`` (default) for heavy-ball momentum, ``"nesterov"``, or ``"polyak_printed"`` (see the references).
      drop_bulk: whether a Ritz value that carries more than half of the weight is left out (default): the many directions
        without curvature of an over-parametrised network.

    Returns:
      ``SpectrumRate(learning_rate, momentum)``, scalars in float32 or better; both 0 where no Ritz value is positive.

    Raises:
      ValueError: if the arrays are no floating vectors of one length, or an option does not fit.

    Cost:
      A few passes over the Ritz values.
      XLA at 2 times [64]: at most 7.3 times the FLOPs and 3.6 times the bytes of a copy of its arguments, and 0.62 times its
      memory more.

    Use:
      For: unstable training, compute budget.
      When: SGD with momentum where a few Lanczos steps every many epochs are affordable, to set rate and momentum together
        without a search. Average the weights at the end, as the authors do.
      Not when: Rates of minibatch training are limited by noise: it takes the batch's spectrum for that of a quadratic. Adam.
      Badly with: Batch normalisation in training mode during the products, which changes the matrix: fix its statistics. `sam`,
        whose step is not the gradient of that Hessian.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> rate, momentum = rj.schedules.lr_from_spectrum(jnp.array([0.0, 0.1, 10.0]), jnp.array([0.9, 0.06, 0.04]))
      >>> round(float(rate), 4), round(float(momentum), 4)
      (0.3306, 0.6694)

    References:
      Granziol et al., Learning Rates as a Function of Batch Size: A Random Matrix Theory Approach to Neural Network Training,
      2022, arXiv 2006.09092, which estimates them anew every 20 epochs with 20 Lanczos steps. It prints Polyak's rate as
      :math:`2 / (\sqrt L + \sqrt \mu)`, ``"polyak_printed"``, and a Nesterov rate that has no dimension of a learning rate: here
      stand the rules of the textbooks.
    """
    name = "schedules.lr_from_spectrum"
    values = checks.floating(name, "ritz_values", ritz_values, ndim=1)
    weights = checks.floating(name, "weights", weights, shape=values.shape)
    checks.choice(name, "rule", rule, ("polyak", "nesterov", "polyak_printed"))
    checks.boolean(name, "drop_bulk", drop_bulk)
    if values.shape[0] == 0:
        checks.fail(name, "ritz_values", "an array with at least one Ritz value", values)
    dtype = trees.accumulator(values, weights)
    values, weights = values.astype(dtype), weights.astype(dtype)
    counts = (weights > 0) & (values > 0)
    if drop_bulk:
        others = counts & (weights <= jnp.sum(weights) / 2)
        counts = jnp.where(jnp.any(others), others, counts)
    some = jnp.any(counts)
    largest = jnp.max(jnp.where(counts, values, 0))
    smallest = jnp.min(jnp.where(counts, values, jnp.inf))
    high, low = (jnp.sqrt(jnp.where(some, x, 1)) for x in (largest, smallest))
    ratio = (high - low) / (high + low)
    if rule == "nesterov":
        rate, momentum = 1 / jnp.square(high), ratio
    else:
        rate = 4 / jnp.square(high + low) if rule == "polyak" else 2 / (high + low)
        momentum = jnp.square(ratio)
    return SpectrumRate(jnp.where(some, rate, 0), jnp.where(some, momentum, 0))


def _dtype(*values: Any) -> Any:
    """Float32, float64 under x64; better where an array asks for it."""
    arrays = [v for v in values if isinstance(v, jax.Array) and trees.is_float(v)]
    return trees.accumulator(*arrays, jnp.zeros((), float))
