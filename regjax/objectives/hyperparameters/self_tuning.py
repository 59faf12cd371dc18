"""Hyperparameters tuned during training, through layers that answer to them: self-tuning networks.

A pair of objectives, of the training and of the validation examples, that are minimised in turn, and what they need: the
hyperparameters' ranges, their perturbation, and its entropy. The layers are `regjax.layers.HyperDense` and `HyperConv`.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, Key, PyTree, Strength
from regjax.objectives.lift import BoundLoss, LossFn, freeze, is_zero, lift, strength_at


class TunedHyper(NamedTuple):
    """Unconstrained hyperparameters ``hyper [H]``, and ``raw_scale [H]``, whose softplus is how far they are perturbed."""

    hyper: Any
    raw_scale: Any


def constrain_hyper(hyper: Any, *, ranges: Sequence[Any], discrete: Sequence[bool] | None = None) -> Array:
    r"""The values of unconstrained hyperparameters, each in its range, for the regularisers that use them.

    Formula:
      .. math:: l + (u - l) \sigma(h), \quad l + softplus(h), \quad u - softplus(h), \quad h

      for the ranges (l, u), (l, inf), (-inf, u) and none. Discrete ones are rounded down after that.

    Args:
      hyper: float ``[..., H]``, unconstrained.
      ranges: H pairs (low, high) of numbers, with ``-inf`` and ``inf`` where a side is open.
      discrete: H booleans; None (default): none is.

    Returns:
      ``[..., H]`` in the dtype of ``hyper``. It is a constant: hyperparameters learn from the validation loss through the
      layers that answer to them, never through a regulariser, which would only be turned off.

    Raises:
      ValueError: if ``ranges`` or ``discrete`` does not fit ``hyper``, or a range is empty.

    Cost:
      One pass over the hyperparameters.
      XLA at [1024, 16]: at most 4.4 times the FLOPs and 2.2 times the bytes of a copy of its arguments, and 0.55 times its
      memory more.

    Use:
      Part of: `self_tuning`.
      When: Call it inside the training loss, where a regulariser needs the value itself.
      Badly with: Expecting a gradient: it is a constant. Discrete values near the end of their range, which reach high itself.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> h = jnp.array([0.0, 0.0, 2.5])
      >>> ranges = [(0.0, 0.9), (0.0, float("inf")), (0.0, 4.0)]
      >>> values = rj.objectives.constrain_hyper(h, ranges=ranges, discrete=[False, False, True])
      >>> [round(float(x), 4) for x in values]
      [0.45, 0.6931, 3.0]

    References:
      MacKay et al., Self-Tuning Networks: Bilevel Optimization of Hyperparameters using Structured Best-Response Functions,
      2019, arXiv 1903.03088 (the authors' code). At a saturated h a discrete one reaches ``high`` itself.
    """
    name = "objectives.constrain_hyper"
    hyper = checks.floating(name, "hyper", hyper, min_ndim=1)
    size = hyper.shape[-1]
    if not isinstance(ranges, list | tuple) or len(ranges) != size:
        checks.fail(name, "ranges", f"{size} pairs (low, high), one for each of the hyperparameters", ranges)
    flags = (False,) * size if discrete is None else discrete
    if not isinstance(flags, list | tuple) or len(flags) != size:
        checks.fail(name, "discrete", f"{size} booleans or None", discrete)
    wide = jax.lax.stop_gradient(hyper).astype(trees.accumulator(hyper))
    columns = []
    for i, (pair, flag) in enumerate(zip(ranges, flags, strict=True)):
        if not isinstance(pair, list | tuple) or len(pair) != 2:
            checks.fail(name, "ranges", "pairs (low, high) of numbers", pair)
        low, high = _range(name, "ranges", *pair)
        value = _constrained(wide[..., i], low, high)
        columns.append(jnp.floor(value) if checks.boolean(name, "discrete", flag) else value)
    return (jnp.stack(columns, axis=-1) if columns else wide).astype(hyper.dtype)


def stretched_logit(value: Any, *, low: float, high: float) -> Array:
    r"""The unconstrained hyperparameter of a value in a range: the inverse of `constrain_hyper`, for initial values.

    Formula:
      .. math:: \log \frac{v - l}{u - v}

      and with one open side the inverse softplus :math:`x + \log(1 - e^{-x})` of the distance x to the other.

    Args:
      value: a number strictly between ``low`` and ``high``, or a float array of such.
      low: the lower end l, a number or ``-inf``.
      high: the upper end u, a number or ``inf``. ``low=0`` and ``high=inf`` give a ``raw_scale`` or ``raw_sigma``.

    Returns:
      The unconstrained value, in the shape and dtype of ``value``, float32 for a number.

    Raises:
      ValueError: if a number is not inside the range, or the range is empty.

    Cost:
      Two logarithms.

    Use:
      Part of: `self_tuning`, `data_emphasized_elbo`.
      When: Call it for start values, also of raw_scale and raw_sigma, by low=0 and high=inf. Start inside the range: near its
        ends the sigmoid hardly moves.

    Example:
      >>> import regjax as rj
      >>> round(float(rj.objectives.stretched_logit(0.05, low=0.0, high=0.9)), 4)
      -2.8332
      >>> round(float(rj.objectives.stretched_logit(0.5, low=0.0, high=float("inf"))), 4)
      -0.4328

    References:
      MacKay et al., Self-Tuning Networks: Bilevel Optimization of Hyperparameters using Structured Best-Response Functions,
      2019, arXiv 1903.03088 (the authors' code).
    """
    name = "objectives.stretched_logit"
    low, high = _range(name, "low", low, high)
    if not isinstance(value, jax.Array | np.ndarray):
        checks.number(name, "value", value, low=low, high=high, open_low=True, open_high=True)
        value = jnp.asarray(value, jnp.result_type(float))
    value = checks.floating(name, "value", value)
    x = value.astype(trees.accumulator(value))
    if math.isfinite(low) and math.isfinite(high):
        raw = jnp.log(x - low) - jnp.log(high - x)
    elif math.isfinite(low):
        raw = _inverse_softplus(x - low)
    else:
        raw = _inverse_softplus(high - x) if math.isfinite(high) else x
    return raw.astype(value.dtype)


def apply_perturb_hyper(hyper: Any, raw_scale: Any, noise: Any) -> Array:
    r"""Hyperparameters of each example with the noise given.

    Formula:
      .. math:: h_i = h + softplus(r) \epsilon_i

    Args:
      hyper: float ``[H]``, unconstrained.
      raw_scale: float ``[H]``.
      noise: float ``[B, H]``, standard normal.

    Returns:
      ``[B, H]`` in the dtype of ``hyper``.

    Raises:
      ValueError: if a shape or dtype does not fit.

    Cost:
      One pass over ``[B, H]``.
      XLA at [1024, 16]: at most 2.3 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      Part of: `perturb_hyper`.
      When: Call it with given noise, such as the same for two passes.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> h = rj.objectives.apply_perturb_hyper(jnp.zeros(1), jnp.zeros(1), jnp.array([[1.0], [-2.0]]))
      >>> [round(float(x), 4) for x in h[:, 0]]
      [0.6931, -1.3863]

    References:
      Those of `self_tuning`.
    """
    name = "objectives.apply_perturb_hyper"
    hyper, raw_scale = _check_tuned(name, hyper, raw_scale)
    noise = checks.floating(name, "noise", noise, shape=(None, hyper.shape[0]))
    wide = trees.accumulator(hyper, raw_scale)
    scale = jax.nn.softplus(raw_scale.astype(wide))
    return (hyper.astype(wide) + scale * noise.astype(wide)).astype(hyper.dtype)


def perturb_hyper(key: Key, hyper: Any, raw_scale: Any, batch_size: int) -> Array:
    r"""Hyperparameters of its own for each example, normal around the current ones.

    Formula:
      .. math:: h_i = h + softplus(r) \epsilon_i, \quad \epsilon_i \sim N(0, I)

    Args:
      key: a random key.
      hyper: float ``[H]``, unconstrained.
      raw_scale: float ``[H]``; ``stretched_logit(0.5, low=0.0, high=inf)`` is the published initial value.
      batch_size: B; 1, and the row taken, where a whole batch shares its hyperparameters.

    Returns:
      ``[B, H]`` in the dtype of ``hyper``, differentiable by ``hyper`` and ``raw_scale``.

    Raises:
      ValueError: if a shape or dtype does not fit, or ``batch_size`` is no integer above 0.

    Cost:
      B H normal numbers.
      XLA at [1024, 16]: at most 110 times the FLOPs and 8.3 times the bytes of a copy of its results, and 1.7 times its memory
      more.

    Use:
      Part of: `self_tuning`.
      When: Call it in a loop of your own. With batch_size=1 the whole batch shares one draw, as recurrent networks may want.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> h = rj.objectives.perturb_hyper(jax.random.key(0), jnp.ones(3), jnp.full(3, -100.0), 2)
      >>> h.tolist()
      [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]

    References:
      Those of `self_tuning`.
    """
    name = "objectives.perturb_hyper"
    key = checks.key(name, key)
    hyper, raw_scale = _check_tuned(name, hyper, raw_scale)
    batch_size = checks.integer(name, "batch_size", batch_size, low=1)
    noise = jax.random.normal(key, (batch_size, hyper.shape[0]), trees.accumulator(hyper))
    return apply_perturb_hyper(hyper, raw_scale, noise)


def perturbation_entropy(raw_scale: Any) -> Array:
    r"""The entropy of the perturbation, which keeps it from vanishing.

    Formula:
      .. math:: \sum_j \log \left( softplus(r_j) \sqrt{2 \pi e} \right)

    Args:
      raw_scale: float ``[H]``.

    Returns:
      A scalar in float32 or better, finite for every r.

    Raises:
      ValueError: if ``raw_scale`` is no floating vector.

    Cost:
      One pass over ``[H]``.

    Use:
      Part of: `self_tuning`.
      When: Call it in a validation loss of your own. Too little weight and the scales vanish, so that layers no longer learn to
        answer. Too much and they grow.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.objectives.perturbation_entropy(jnp.zeros(1))), 4)
      1.0524

    References:
      Those of `self_tuning`.
    """
    name = "objectives.perturbation_entropy"
    raw = checks.floating(name, "raw_scale", raw_scale, ndim=1)
    raw = raw.astype(trees.accumulator(raw))
    # Far below 0 softplus(r) is exp(r), whose logarithm is r; it would be that of 0.
    far = raw < -30
    logs = jnp.where(far, raw, jnp.log(jax.nn.softplus(jnp.where(far, 0, raw))))
    return jnp.sum(logs + 0.5 * math.log(2 * math.pi * math.e))


def self_tuning(
    train_loss: LossFn,
    valid_loss: LossFn,
    *,
    entropy_weight: Strength = 1e-3,
    tune_scales: bool = True,
    has_aux: bool = False,
) -> tuple[LossFn, LossFn]:
    r"""Two objectives that, minimised in turn, train a network and tune its hyperparameters in one run.

    Formula:
      .. math:: L_T(w) = f_T(w, sg(h_i)), \quad L_V(h, r) = f_V(sg(w), h_i) - c \, H(r), \quad h_i = h + softplus(r) \epsilon_i

      with the entropy H of `perturbation_entropy`. The training loss regularises each example as `constrain_hyper` of its h
      says, and gives h to the layers, which so learn how the best weights answer. The validation loss has no regulariser
      (no dropout, no augmentation): the layers' answer is the only path from it to h. With ``tune_scales=False`` it takes h
      itself, without noise and entropy.

    Args:
      train_loss: ``train_loss(params, hyper [B, H], key, batch) -> scalar``, of a model of `regjax.layers.HyperDense` layers.
      valid_loss: the loss of validation examples, with the same signature.
      entropy_weight: c, at least 0, default 1e-3; a number, or a schedule read at the keyword ``step`` of the call.
      tune_scales: whether the validation objective perturbs h and learns the scale; default True.
      has_aux: whether the losses return ``(scalar, aux)``.

    Returns:
      ``train_objective(params, tuned, key, batch)`` and ``valid_objective(tuned, params, key, batch)``, each to be
      differentiated by its first argument; it is constant in the other. ``tuned`` is a ``TunedHyper(hyper, raw_scale)``. The
      number of examples B is the length of the first axis of the arrays in ``batch``. The published loop: some epochs of
      training steps alone, then two of them for each validation step; SGD for the weights, Adam at 3e-3 for ``tuned``.

    Raises:
      ValueError: if a loss is no function or returns no scalar, ``tuned`` is no `TunedHyper`, the batch has no examples, or
        ``entropy_weight`` is negative or not finite, or a schedule is called without ``step``.

    Cost:
      That of the losses, for B H normal numbers. Of the validation step's backward pass only the path to h is computed.
      XLA at 2 times [256, 256]: at most 1.2 times the FLOPs and 1.2 times the bytes of the gradient of its loss, and 0.01 times
      its memory more.

    Use:
      For: compute budget, few labels.
      When: Continuous hyperparameters (dropout rates, decay, augmentation) are to be found in one run, with a validation set.
        From weak starts it came level with the best of a grid of runs on the digits, at a fraction of their work.
      Not when: The start is strong: from high dropout or decay it ended worse or diverged. Learning rates, or anything that
        acts on the optimiser, as the validation loss does not see it. Layers cannot be `HyperDense` or `HyperConv`.
      Badly with: Free output scales beside a decay that is tuned, which shrink: hold them at 1. Dropout or augmentation in the
        validation loss. `weights.l2` or decay in the optimiser besides the tuned one. Validation data reused as the judge.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> def loss(params, hyper, key, batch):
      ...     return jnp.mean((rj.layers.hyper_dense(params, batch, hyper) - 1) ** 2)
      >>> train, valid = rj.objectives.self_tuning(loss, loss, tune_scales=False)
      >>> params = rj.layers.HyperParams(jnp.ones((2, 1)), jnp.ones((2, 1)), jnp.ones((1, 1)))
      >>> tuned = rj.objectives.TunedHyper(jnp.zeros(1), jnp.zeros(1))
      >>> jax.grad(valid)(tuned, params, jax.random.key(0), jnp.ones((4, 2))).hyper.tolist()
      [4.0]

    References:
      MacKay et al., Self-Tuning Networks: Bilevel Optimization of Hyperparameters using Structured Best-Response Functions,
      2019, arXiv 1903.03088. The weight of the entropy is that of the authors' published command; their program's default is
      1e-5.
    """
    name = "objectives.self_tuning"
    checks.function(name, "train_loss", train_loss)
    checks.function(name, "valid_loss", valid_loss)
    checks.strength(name, "entropy_weight", entropy_weight, low=0.0)
    checks.boolean(name, "tune_scales", tune_scales)

    def train(loss: BoundLoss, params: PyTree, step: Any) -> Any:
        tuned, key, batch, rest = _arguments(loss, "tuned")
        hyper, key = _of_examples(name, freeze(tuned), key, batch, noisy=True)
        loss = dataclasses.replace(loss, args=(hyper, key, batch, *rest))
        return loss.result(*loss(params))

    def valid(loss: BoundLoss, tuned: PyTree, step: Any) -> Any:
        weight = strength_at(name, "entropy_weight", entropy_weight, step, low=0.0)
        params, key, batch, rest = _arguments(loss, "params")
        hyper, key = _of_examples(name, tuned, key, batch, noisy=tune_scales)
        loss = dataclasses.replace(loss, args=(hyper, key, batch, *rest))
        value, aux = loss(freeze(params))
        if tune_scales and not is_zero(weight):
            entropy = perturbation_entropy(tuned.raw_scale)
            value = value - (jnp.asarray(weight, entropy.dtype) * entropy).astype(value.dtype)
        return loss.result(value, aux)

    return lift(name, train_loss, has_aux, train), lift(name, valid_loss, has_aux, valid)


def _arguments(loss: BoundLoss, first: str) -> tuple[Any, Any, Any, tuple[Any, ...]]:
    if len(loss.args) < 3:
        checks.fail(loss.name, first, f"given by position: (..., {first}, key, batch)", loss.args)
    other, key, batch, *rest = loss.args
    return other, key, batch, tuple(rest)


def _of_examples(name: str, tuned: Any, key: Any, batch: PyTree, noisy: bool) -> tuple[Array, Key]:
    """Hyperparameters ``[B, H]``, sharded as the batch is, and the key that is left for the loss."""
    if not isinstance(tuned, TunedHyper):
        checks.fail(name, "tuned", "a regjax.objectives.TunedHyper", tuned)
    hyper, raw_scale = _check_tuned(name, *tuned)
    noise_key, key = jax.random.split(checks.key(name, key))
    leaves = [leaf for leaf in jax.tree.leaves(batch) if isinstance(leaf, jax.Array | np.ndarray) and leaf.ndim]
    sizes = {leaf.shape[0] for leaf in leaves}
    if len(sizes) != 1:
        checks.fail(name, "batch", "arrays with one length of the first axis, that of the examples", batch)
    size = sizes.pop()
    if noisy:
        rows = perturb_hyper(noise_key, hyper, raw_scale, size)
    else:
        rows = jnp.broadcast_to(hyper, (size, hyper.shape[0]))
    return sharding.rows_like(rows, jnp.asarray(leaves[0])), key


def _check_tuned(name: str, hyper: Any, raw_scale: Any) -> tuple[Array, Array]:
    hyper = checks.floating(name, "hyper", hyper, ndim=1)
    return hyper, checks.floating(name, "raw_scale", raw_scale, shape=hyper.shape)


def _range(name: str, argument: str, low: Any, high: Any) -> tuple[float, float]:
    """A range whose ends may be infinite."""
    for end in (low, high):
        if not (isinstance(end, float | np.floating) and math.isinf(end)):
            checks.number(name, argument, end)
            if isinstance(end, jax.Array):
                checks.fail(name, argument, "a number, as the range is static", end)
    if not low < high:
        checks.fail(name, argument, "below the upper end of the range", (low, high))
    return float(low), float(high)


def _constrained(h: Array, low: float, high: float) -> Array:
    if math.isfinite(low) and math.isfinite(high):
        return low + (high - low) * jax.nn.sigmoid(h)
    if math.isfinite(low):
        return low + jax.nn.softplus(h)
    return high - jax.nn.softplus(h) if math.isfinite(high) else h


def _inverse_softplus(x: Array) -> Array:
    return x + jnp.log(-jnp.expm1(-x))
