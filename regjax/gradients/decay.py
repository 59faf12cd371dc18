"""Decoupled weight decay as in the paper: independent of the gradient, of its scale, and of the learning rate."""

from typing import Any

import optax

from regjax.core import checks, trees
from regjax.core.strength import resolve
from regjax.core.types import PyTree, Schedule, Strength, Where
from regjax.gradients.updates import StepState, first_step, map_chosen, require_params


def decoupled_weight_decay(
    weight_decay: Strength, *, schedule: Strength | None = None, where: Where = None
) -> optax.GradientTransformationExtraArgs:
    r"""Shrinks the weights by a fraction of themselves in every step, whatever the learning rate.

    Formula:
      .. math:: w \leftarrow w + u - \eta_t \lambda_t \, w

      ``u`` is the optimiser's update, learning rate included: this stands after the optimiser in the chain. The decay is
      not multiplied by the learning rate, so its best value does not move with it. With plain SGD it equals an l2 penalty
      of strength ``weight_decay / learning_rate``.

    Args:
      weight_decay: the fraction of a weight lost in a step, at least 0; a number or a schedule. 0 changes nothing.
      schedule: the multiplier :math:`\eta_t` in [0, 1] that also scales the optimiser's learning rate; a number or a
        schedule, None (default) is 1.
      where: which leaves: None (kernels, default), "all" (the authors decay all), a predicate ``(path, leaf) -> bool``, or
        a tree of booleans.

    Returns:
      An optax transformation whose ``update`` needs the parameters; it keeps the dtypes of the updates.

    Raises:
      ValueError: if a number is negative or not finite, ``where`` is none of these, or ``update`` gets no parameters.

    Cost:
      2 FLOPs for each weight; no forward pass.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.2 times the FLOPs and 1.2 times the bytes of a plain training
      step, and 0 times its memory more.

    Use:
      For: few labels, noisy labels, exploding logits.
      When: The first thing to try against overfitting and memorised labels, with any optimiser: on the digits comparison it did
        as well as `add_penalty` of `weights.l2`. Its best value does not move with the learning rate: search 1e-4 to 3e-2 a
        step.
      Not when: A value from ``optax.adamw`` is carried over: that one is multiplied by the learning rate, so this would decay a
        hundred times too much. Long runs, unless it shrinks with their length: `normalized_weight_decay`.
      Badly with: `lawn`, which undoes it. ``optax.adamw``, which decays already. Layers before a normalisation, where it only
        sets the step size. A decaying learning rate without ``schedule``: late on, decay wins. `prune` before it: put it
        inside.

    Example:
      >>> import jax.numpy as jnp, optax, regjax as rj
      >>> tx = optax.chain(optax.sgd(0.1), rj.gradients.decoupled_weight_decay(0.01))
      >>> params, grads = {"kernel": jnp.array([[2.0]])}, {"kernel": jnp.array([[0.0]])}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> round(float(optax.apply_updates(params, updates)["kernel"][0, 0]), 4)
      1.98

    References:
      Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019, arXiv 1711.05101. ``optax.adamw`` and PyTorch
      multiply the decay by the learning rate as well: theirs is ``weight_decay / learning_rate`` of this one.
    """
    name = "gradients.decoupled_weight_decay"
    checks.strength(name, "weight_decay", weight_decay, low=0.0)
    if schedule is not None:
        checks.strength(name, "schedule", schedule, low=0.0)
    return _decay(name, weight_decay, schedule, where)


def sgdw(
    learning_rate: Strength,
    *,
    weight_decay: Strength,
    momentum: float | None = 0.9,
    nesterov: bool = False,
    schedule: Strength | None = None,
    where: Where = None,
) -> optax.GradientTransformationExtraArgs:
    r"""SGD with momentum and decoupled weight decay.

    Formula:
      .. math:: m \leftarrow \mu m + g, \quad w \leftarrow w - \eta_t (lr_t \, m + \lambda_t w)

    Args:
      learning_rate: a number, at least 0, or a schedule.
      weight_decay: :math:`\lambda`, the fraction of a weight lost in a step, at least 0; a number or a schedule.
      momentum: :math:`\mu` in [0, 1), default 0.9; None keeps no momentum.
      nesterov: whether the momentum is Nesterov's, default False.
      schedule: the multiplier :math:`\eta_t` of both terms; a number or a schedule, None (default) is 1.
      where: which leaves decay: None (kernels, default), "all" (the authors), a predicate ``(path, leaf) -> bool``, or a
        tree of booleans.

    Returns:
      An optax optimiser whose ``update`` needs the parameters.

    Raises:
      ValueError: if a number is out of range or not finite.

    Cost:
      That of ``optax.sgd``, and 2 FLOPs for each weight that decays.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.2 times the FLOPs and 1.2 times the bytes of a plain training
      step, and 0 times its memory more.

    Use:
      For: few labels, exploding logits.
      When: SGD with momentum where learning rate and decay shall be searched one by one. ``schedule`` scales both, so that the
        balance of the two stays over the run.
      Not when: Without momentum, when `weights.l2` in the loss is the same. A decay of ``optax`` recipes is copied: there it is
        multiplied by the learning rate.
      Badly with: `add_penalty` of `weights.l2`, the same twice. A schedule as ``learning_rate`` alone: the decay stays and wins
        late. A gradient mask before it, which does not stop the decay: put `train_only` around it. `lawn` around it, which
        wants no decay.

    Example:
      >>> import jax.numpy as jnp, optax, regjax as rj
      >>> tx = rj.gradients.sgdw(0.1, weight_decay=0.01)
      >>> params, grads = {"kernel": jnp.array([[2.0]])}, {"kernel": jnp.array([[1.0]])}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> round(float(updates["kernel"][0, 0]), 4)
      -0.12

    References:
      Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019, arXiv 1711.05101. The multiplier scales the step
      as in the authors' code, not what enters the momentum as in the paper's listing; they agree while it is constant.
    """
    name = "gradients.sgdw"
    checks.strength(name, "learning_rate", learning_rate, low=0.0)
    checks.strength(name, "weight_decay", weight_decay, low=0.0)
    if schedule is not None:
        checks.strength(name, "schedule", schedule, low=0.0)
    if momentum is not None:
        checks.number(name, "momentum", momentum, low=0.0, high=1.0, open_high=True)
    checks.boolean(name, "nesterov", nesterov)
    direction = optax.identity() if momentum is None else optax.trace(decay=momentum, nesterov=nesterov)
    return decoupled(name, direction, learning_rate, weight_decay, schedule, where)


def adamw_decoupled(
    learning_rate: Strength,
    *,
    weight_decay: Strength,
    b1: float = 0.9,
    b2: float = 0.999,
    eps: float = 1e-8,
    schedule: Strength | None = None,
    where: Where = None,
) -> optax.GradientTransformationExtraArgs:
    r"""Adam with weight decay that is decoupled from the learning rate too.

    Formula:
      .. math:: w \leftarrow w - \eta_t \left( lr_t \frac{\hat m}{\sqrt{\hat v} + \epsilon} + \lambda_t w \right)

    Args:
      learning_rate: a number, at least 0, or a schedule.
      weight_decay: :math:`\lambda`, the fraction of a weight lost in a step, at least 0; a number or a schedule.
      b1: the decay of the first moment in [0, 1), default 0.9.
      b2: the decay of the second moment in [0, 1), default 0.999.
      eps: added to the root of the second moment, default 1e-8, at least 0.
      schedule: the multiplier :math:`\eta_t` of both terms; a number or a schedule, None (default) is 1.
      where: which leaves decay: None (kernels, default), "all" (the authors), a predicate ``(path, leaf) -> bool``, or a
        tree of booleans.

    Returns:
      An optax optimiser whose ``update`` needs the parameters.

    Raises:
      ValueError: if a number is out of range or not finite.

    Cost:
      That of ``optax.adamw``.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.1 times the FLOPs and 1.2 times the bytes of a plain training
      step, and 0 times its memory more.

    Use:
      For: few labels, exploding logits.
      When: Adam, when the decay found for one learning rate shall hold for others, as in sweeps. A decay of ``optax.adamw``
        becomes this one times its learning rate.
      Not when: Published ``adamw`` settings are to be repeated as they stand: take ``optax.adamw``. Fine-tuning, where decay
        towards 0 forgets: `l2_sp` or `mixout`.
      Badly with: `add_penalty` of `weights.l2`, which Adam rescales beside it. A warm-up in ``learning_rate`` alone: at the
        start decay is all that moves, so give it as ``schedule``. `lawn` around it, which wants no decay.

    Example:
      >>> import jax.numpy as jnp, optax, regjax as rj
      >>> tx = rj.gradients.adamw_decoupled(0.1, weight_decay=0.01)
      >>> params, grads = {"kernel": jnp.array([[2.0]])}, {"kernel": jnp.array([[1.0]])}
      >>> updates, _ = tx.update(grads, tx.init(params), params)
      >>> round(float(updates["kernel"][0, 0]), 4)
      -0.12

    References:
      Loshchilov and Hutter, Decoupled Weight Decay Regularization, 2019, arXiv 1711.05101. ``optax.adamw`` with
      ``weight_decay / learning_rate`` and the learning rate ``learning_rate * schedule`` takes the same steps. The authors'
      code adds ``eps`` to the root before the bias correction; this is Adam's own form.
    """
    name = "gradients.adamw_decoupled"
    checks.strength(name, "learning_rate", learning_rate, low=0.0)
    checks.strength(name, "weight_decay", weight_decay, low=0.0)
    if schedule is not None:
        checks.strength(name, "schedule", schedule, low=0.0)
    return decoupled(name, adam(name, b1, b2, eps), learning_rate, weight_decay, schedule, where)


def decoupled(
    name: str, direction: optax.GradientTransformation, learning_rate: Any, weight_decay: Any, schedule: Any, where: Where
) -> optax.GradientTransformationExtraArgs:
    """``w - schedule * (learning_rate * direction + weight_decay * w)``."""
    rate = _product(name, learning_rate, schedule)
    return optax.chain(
        direction,
        optax.scale_by_schedule(lambda step: -rate(step)),
        _decay(name, weight_decay, schedule, where),
    )


def _decay(name: str, weight_decay: Any, schedule: Any, where: Where) -> optax.GradientTransformationExtraArgs:
    def update(updates: PyTree, state: StepState, params: PyTree = None, **extra_args: Any) -> tuple[PyTree, StepState]:
        require_params(name, params)
        rate = _product(name, weight_decay, schedule)(state.step)
        updates = map_chosen(lambda u, p: trees.add_scaled(u, -rate, p), name, updates, params, where)
        return updates, StepState(optax.safe_increment(state.step))

    return optax.GradientTransformationExtraArgs(first_step, update)


def adam(name: str, b1: float, b2: float, eps: float) -> optax.GradientTransformation:
    """The checked direction of Adam, without a learning rate."""
    checks.number(name, "b1", b1, low=0.0, high=1.0, open_high=True)
    checks.number(name, "b2", b2, low=0.0, high=1.0, open_high=True)
    checks.number(name, "eps", eps, low=0.0)
    return optax.scale_by_adam(b1=b1, b2=b2, eps=eps)


def _product(name: str, strength: Strength, schedule: Strength | None) -> Schedule:
    """The schedule of a strength times an optional multiplier."""

    def value(step: Any) -> Any:
        rate = resolve(strength, step, name, "strength")
        return rate if schedule is None else rate * resolve(schedule, step, name, "schedule")

    return value
