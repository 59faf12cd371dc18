"""Relatives of SAM: ESAM, of some leaves and the most sensitive examples, and the gradient-norm penalty that mixes it in."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.sharding import replicate
from regjax.core.strength import accepts
from regjax.core.types import Array, Key, PyTree, Strength
from regjax.objectives._examples import argument, check_place, mean_of_examples
from regjax.objectives.lift import (
    AxisName,
    BoundLoss,
    LossFn,
    attach_gradient,
    freeze,
    is_zero,
    lift,
    shift,
    strength_at,
)
from regjax.objectives.sharpness._perturbations import AUX_FROM, ascent


def esam(
    per_example_loss_fn: LossFn,
    *,
    rho: Strength = 0.05,
    beta: Strength = 0.6,
    gamma: float = 0.5,
    key_arg: int | str | Callable[..., Key] = "key",
    axis_name: AxisName = None,
    has_aux: bool = False,
    aux_from: Literal["clean", "perturbed"] = "clean",
    norm_eps: float = 1e-12,
) -> LossFn:
    r"""SAM that perturbs a random part of the leaves and trains on the examples whose loss this raises most: ESAM.

    Formula:
      .. math:: \frac{1}{|S|} \sum_{i \in S} l_i(w + sg(\epsilon)), \quad
                \epsilon_j = \frac{m_j}{\beta} \, \rho \, \frac{g_j}{\|g\|}, \quad g = \nabla \frac{1}{B} \sum_i l_i(w)

      with :math:`m_j \sim Bernoulli(\beta)` for each leaf j, the norm over all leaves, and S the :math:`\gamma B` examples
      (rounded down, at least one) with the largest increase :math:`l_i(w + \epsilon) - l_i(w)`. Examples that tie with the
      last of them count too, so that with no perturbation all do.

    Args:
      per_example_loss_fn: ``f(params, *args, **kwargs) -> [B]``, the loss of each example, or ``([B], aux)`` with
        ``has_aux=True``. Only floating leaves of ``params`` are perturbed, best in float32.
      rho: the radius, at least 0, default 0.05; a number, or a schedule read at the keyword ``step`` of the call. 0 is the mean
        of the losses.
      beta: the probability that a leaf is perturbed, above 0 and at most 1, default 0.6; a number or a schedule. 1: all leaves.
      gamma: the share of the examples that count, above 0 and at most 1, default 0.5; a Python number. 1: all.
      key_arg: where the random key of the leaves is: a keyword of the call, default ``"key"``, a position among the arguments
        after ``params``, or a function of all these arguments. A keyword goes to ``per_example_loss_fn`` as well if that accepts
        it; its own draws are independent of ours. Not needed where ``beta=1``.
      axis_name: the mapped axis (or axes) of `jax.shard_map` or ``vmap`` whose examples are one batch, for the gradient and for
        the choice of examples; the mean of the results over the axis is the loss. None (default): each device by itself.
      has_aux: whether ``per_example_loss_fn`` returns ``([B], aux)``.
      aux_from: the pass whose aux is returned: ``"clean"`` (default) or ``"perturbed"``.
      norm_eps: added to the norm, at least 0, default 1e-12. At a zero gradient the perturbation is 0 in any case.

    Returns:
      A loss function of the arguments of ``per_example_loss_fn``, which returns a scalar, in float32 or better, or
      ``(scalar, aux)``, and also accepts ``step``.

    Raises:
      ValueError: if a strength or option does not fit, the losses are not ``[B]``, a schedule is called without ``step``, or
        there is no key where ``key_arg`` says.

    Cost:
      One more forward and backward pass: 2.03 times the FLOPs, and one copy of the weights. All shapes are fixed: leaves and
      examples are left out by weights of 0, so the time that the paper saves is not saved. The increases, ``[B]``, are gathered
      from a sharded batch.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 2.3 times the FLOPs and 2.1 times the bytes of a plain training
      step, and 0.01 times its memory more.

    Use:
      For: sharp minima, noisy labels.
      When: SAM is to count only the examples whose loss the perturbation raises most, or the published method is to be
        compared. On the digits it did about as well as `sam`.
      Not when: You hope to save time: shapes are fixed, so nothing is saved. `look_sam` and `saf` do save.
      Badly with: Losses of a whole batch, which have no value for an example. Small batches, of which half is a handful.
        Networks of few or very unequal leaves, where leaving one out changes much.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> losses = lambda w, x: (x @ w) ** 2 / 2
      >>> loss_fn = rj.objectives.esam(losses, rho=0.5, beta=1.0, gamma=0.5)
      >>> x = jnp.array([[1.0, 0.0], [0.0, 2.0]])
      >>> [round(float(g), 4) for g in jax.grad(loss_fn)(jnp.array([1.0, 1.0]), x)]
      [0.0, 5.9403]

    References:
      Du et al., Efficient Sharpness-aware Minimization for Improved Training of Neural Networks, 2022, arXiv 2110.03141. The
      authors' code keeps the examples strictly above the last of the largest increases, so one fewer.
    """
    name = "objectives.esam"
    mean_loss = mean_of_examples(name, per_example_loss_fn, has_aux)
    checks.strength(name, "rho", rho, low=0.0)
    checks.strength(name, "beta", beta, low=0.0, high=1.0, open_low=True)
    if isinstance(gamma, jax.Array):
        checks.fail(name, "gamma", "a Python number: how many examples count is static", gamma)
    checks.number(name, "gamma", gamma, low=0.0, high=1.0, open_low=True)
    check_place(name, "key_arg", key_arg)
    checks.axis_name(name, axis_name)
    checks.choice(name, "aux_from", aux_from, AUX_FROM)
    checks.number(name, "norm_eps", norm_eps, low=0.0)
    passes_key = not isinstance(key_arg, str) or accepts(per_example_loss_fn, key_arg)

    def objective(loss: BoundLoss, params: PyTree, step: Any) -> Any:
        radius = strength_at(name, "rho", rho, step, low=0.0)
        share = strength_at(name, "beta", beta, step, low=0.0, high=1.0, open_low=True)
        every_leaf = not isinstance(share, jax.Array) and float(share) == 1
        key = None
        if not every_leaf and not is_zero(radius):
            key = argument(name, "key_arg", key_arg, loss.args, loss.kwargs, "a random key")
            key = jax.random.fold_in(checks.key(name, key, "key_arg"), 1)
        if not passes_key:
            kwargs = {word: value for word, value in loss.kwargs.items() if word != key_arg}
            loss = dataclasses.replace(loss, kwargs=kwargs)
        if is_zero(radius):
            value, (_, aux) = loss(params)
            return (value, aux) if has_aux else value
        clean = loss.gradient(params, axis_name)
        before, clean_aux = clean.aux
        offset = ascent(clean.gradient, radius, norm_eps)
        if key is not None and offset:
            kept = jax.random.uniform(key, (len(offset),), jnp.float32) < share
            offset = [jnp.where(kept[j], v / jnp.asarray(share, v.dtype), 0) for j, v in enumerate(offset)]
        active = jnp.asarray(radius) != 0
        everyone, (after, aux) = loss(shift(params, offset, active))
        chosen = _largest(jax.lax.stop_gradient(after) - before, gamma, axis_name)
        count = jnp.sum(chosen, dtype=after.dtype)
        # The mean over the devices of sum / (mean count) is the mean over all chosen examples.
        count = count if axis_name is None else jax.lax.pmean(count, axis_name)
        value = jnp.where(active, jnp.sum(jnp.where(chosen, after, 0)) / jnp.where(count > 0, count, 1), everyone)
        aux = clean_aux if aux_from == "clean" else aux
        return (value, aux) if has_aux else value

    return lift(name, mean_loss, True, objective)


def gradient_norm_penalty(
    loss_fn: LossFn,
    *,
    radius: Strength,
    coefficient: Strength,
    axis_name: AxisName = None,
    has_aux: bool = False,
    aux_from: Literal["clean", "perturbed"] = "clean",
    norm_eps: float = 1e-12,
) -> LossFn:
    r"""Penalises the norm of the loss's own gradient, by mixing in the loss at perturbed weights.

    Formula:
      .. math:: (1 - a) f(w) + a f\left(w + sg\left(r \frac{g}{\|g\|}\right)\right) \approx f(w) + c \|g\|, \quad
                a = \frac{c}{r}, \quad g = \nabla f(w)

      with the gradient :math:`(1 - a) g + a (\nabla f)(w + r g / \|g\|)`: the Hessian product of the norm's derivative as a
      difference of gradients. ``coefficient=radius`` is `sam`. The squared norm is `gradient_penalty`.

    Args:
      loss_fn: ``loss_fn(params, *args, **kwargs) -> scalar``, or ``(scalar, aux)`` with ``has_aux=True``. Only floating leaves of
        ``params`` are perturbed, best in float32.
      radius: r, the length of the difference, above 0; a number, or a schedule read at the keyword ``step`` of the call.
      coefficient: c, the weight of the norm, at least 0; a number or a schedule. 0 is ``loss_fn``. Above the radius the plain
        gradient counts with a negative weight.
      axis_name: the mapped axis (or axes) of `jax.shard_map` or ``vmap`` over which g is averaged; None (default): each device
        perturbs by its own examples.
      has_aux: whether ``loss_fn`` returns ``(scalar, aux)``.
      aux_from: the pass whose aux is returned: ``"clean"`` (default) or ``"perturbed"``.
      norm_eps: added to the norm, at least 0, default 1e-12. At a zero gradient the perturbation is 0 in any case.

    Returns:
      A loss function with the signature of ``loss_fn`` that also accepts ``step``. Its value is the mixed loss, which must not be
      differentiated twice.

    Raises:
      ValueError: if a strength or option does not fit, ``loss_fn`` returns no scalar, or a schedule is called without ``step``.

    Cost:
      One more forward and backward pass: 2.02 times the FLOPs, and one copy of the weights.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 2.3 times the FLOPs and 2.4 times the bytes of a plain training
      step, and 0.089 times its memory more.

    Use:
      For: sharp minima, noisy labels.
      When: Between plain training and `sam`: the coefficient sets how much of the perturbed gradient counts, the radius where
        it is taken. On the digits the best coefficient was the radius itself, which is `sam`.
      Not when: The coefficient would exceed the radius: the plain gradient then counts negatively. Batches are the whole set
        and the squared norm is wanted, as SGD has it: `gradient_penalty`.
      Badly with: `sam` or `gradient_penalty` around or inside it, which penalise the same norm again. Second derivatives.
        BatchNorm averages from the perturbed pass.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> loss_fn = lambda w: (w[0] ** 2 + 4 * w[1] ** 2) / 2
      >>> penalised = rj.objectives.gradient_norm_penalty(loss_fn, radius=0.5, coefficient=0.25)
      >>> [round(float(g), 4) for g in jax.grad(penalised)(jnp.array([1.0, 1.0]))]
      [1.0606, 4.9701]

    References:
      Zhao et al., Penalizing Gradient Norm for Efficiently Improving Generalization in Deep Learning, 2022, arXiv 2202.03599.
    """
    name = "objectives.gradient_norm_penalty"
    checks.strength(name, "radius", radius, low=0.0, open_low=True)
    checks.strength(name, "coefficient", coefficient, low=0.0)
    checks.axis_name(name, axis_name)
    checks.choice(name, "aux_from", aux_from, AUX_FROM)
    checks.number(name, "norm_eps", norm_eps, low=0.0)

    def objective(loss: BoundLoss, params: PyTree, step: Any) -> Any:
        length = strength_at(name, "radius", radius, step, low=0.0, open_low=True)
        scale = strength_at(name, "coefficient", coefficient, step, low=0.0)
        if is_zero(scale):
            return loss.result(*loss(params))
        clean = loss.gradient(params, axis_name)
        active = jnp.asarray(scale) != 0
        ahead, aux = loss(shift(params, ascent(clean.gradient, length, norm_eps), active))
        a = jax.lax.stop_gradient(jnp.where(active, scale / length, 0).astype(ahead.dtype))
        # g is known: it is attached rather than differentiated for once more. By the other arguments the loss at w is an
        # ordinary term, whose value the compiler shares with the first pass.
        here, _ = loss(freeze(params))
        known = [((1 - a) * g).astype(g.dtype) for g in clean.gradient]
        value = (1 - a) * here + a * ahead + attach_gradient(jnp.zeros_like(here), known, trees.float_leaves(params))
        return loss.result(value, clean.aux if aux_from == "clean" else aux)

    return lift(name, loss_fn, has_aux, objective)


def _largest(increase: Array, gamma: float, axis_name: AxisName) -> Array:
    """Which entries are among the share ``gamma`` of the largest, those that tie with the least of them included."""
    everywhere = replicate(increase)
    if axis_name is not None:
        everywhere = jax.lax.all_gather(everywhere, axis_name).reshape(-1)
    # The small term: 0.29 * 100 is below 29 in floating point.
    count = max(1, math.floor(gamma * everywhere.size + 1e-9))
    least = jax.lax.top_k(everywhere, count)[0][-1]
    return ~(increase < least)  # NaN counts, so that divergence is seen
