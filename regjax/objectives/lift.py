"""From loss to loss: the mechanism under every objective, and its two plainest uses, a penalty and an attached gradient.

An objective is a function of a `BoundLoss`, the user's loss with the arguments of one call, and of the parameters. It
evaluates the loss where it likes (`BoundLoss.__call__`, which is differentiated, and `BoundLoss.gradient`, which is a
constant) and returns a scalar; `lift` gives that the signature of the loss it came from.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, sharding, trees
from regjax.core.strength import accepts, at_step, resolve
from regjax.core.types import Array, PyTree, Strength

# ``loss_fn(params, *args, **kwargs) -> scalar``, or ``(scalar, aux)`` with ``has_aux=True``.
LossFn: TypeAlias = Callable[..., Any]

AxisName: TypeAlias = str | tuple[str, ...] | None


class Pass(NamedTuple):
    """What one gradient pass gives; the gradient as the list of the floating leaves."""

    value: Array
    aux: PyTree
    gradient: list[Array]


@dataclasses.dataclass(frozen=True)
class BoundLoss:
    """A loss with the arguments of one call: a function of the parameters alone."""

    name: str
    loss_fn: LossFn
    has_aux: bool
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def __call__(self, params: PyTree) -> tuple[Array, PyTree]:
        """The loss at ``params``, differentiable, and its aux (None without ``has_aux``)."""
        out = self.loss_fn(params, *self.args, **self.kwargs)
        if self.has_aux and not (isinstance(out, tuple) and len(out) == 2):
            checks.fail(self.name, "loss_fn", "a function that returns (loss, aux) where has_aux=True", out)
        value, aux = out if self.has_aux else (out, None)
        return scalar(self.name, "loss_fn", value, "(loss, aux) needs has_aux=True"), aux

    def result(self, value: Array, aux: PyTree) -> Any:
        """What the user's loss would return."""
        return (value, aux) if self.has_aux else value

    def gradient(self, params: PyTree, axis_name: AxisName = None) -> Pass:
        """A gradient pass whose results are constants.

        The inputs are constants too: stopping the outputs alone would make JAX trace a second derivative first.
        """
        args, kwargs = freeze((self.args, self.kwargs))
        frozen = dataclasses.replace(self, args=args, kwargs=kwargs)
        return freeze(frozen.live_gradient(freeze(params), axis_name))

    def live_gradient(self, params: PyTree, axis_name: AxisName = None) -> Pass:
        """A gradient pass that can itself be differentiated."""

        def run(leaves: list[Array]) -> Pass:
            at = lambda leaves: self(trees.with_float_leaves(params, leaves))
            (value, aux), gradient = jax.value_and_grad(at, has_aux=True)(leaves)
            return Pass(value, aux, gradient)

        leaves = trees.float_leaves(params)
        here = run(leaves)
        # jax.shard_map sums the gradient of a replicated parameter over the devices. The gradient of this device's loss is
        # that of its own copy of the parameters; where the loss is the same on all devices, nothing is to be undone.
        if any(sharding.varying(here.value) - sharding.varying(leaf) for leaf in leaves):
            here = run([sharding.varying_like(leaf, here.value) for leaf in leaves])
        return here if axis_name is None else here._replace(gradient=jax.lax.pmean(here.gradient, axis_name))


def lift(name: str, loss_fn: LossFn, has_aux: bool, objective: Callable[[BoundLoss, PyTree, Any], Any]) -> LossFn:
    """Makes ``objective(loss, params, step)`` a loss function with the signature of ``loss_fn``, plus ``step=None``."""
    checks.function(name, "loss_fn", loss_fn)
    checks.boolean(name, "has_aux", has_aux)
    takes_step = accepts(loss_fn, "step")

    def lifted(params: PyTree, *args: Any, step: Any = None, **kwargs: Any) -> Any:
        if takes_step and step is not None:
            kwargs["step"] = step
        return objective(BoundLoss(name, loss_fn, has_aux, args, kwargs), params, step)

    functools.update_wrapper(lifted, loss_fn)
    del lifted.__wrapped__  # type: ignore[attr-defined]  # the signature is that of `lifted`: it accepts step=
    return lifted


def strength_at(name: str, argument: str, value: Strength, step: Any, **limits: Any) -> Any:
    """The checked value of a strength at the step of the call."""
    return checks.number(name, argument, resolve(value, step, name, argument), **limits)


def is_zero(value: Any) -> bool:
    """Whether a strength is known to be 0 when the loss is traced."""
    return not isinstance(value, jax.Array) and float(value) == 0


def scalar(name: str, argument: str, value: Any, hint: str = "") -> Array:
    """The value of a loss or penalty, checked."""
    fits = isinstance(value, (jax.Array, np.ndarray, np.generic, float)) and jnp.shape(value) == () and trees.is_float(value)
    if not fits:
        expected = "a function that returns a floating-point scalar" + (f" ({hint})" if hint else "")
        checks.fail(name, argument, expected, value)
    return jnp.asarray(value)


def freeze(tree: PyTree) -> PyTree:
    """Stops the gradient at the floating arrays of a tree that may hold anything."""
    is_array = lambda leaf: isinstance(leaf, (jax.Array, np.ndarray, np.generic, float)) and trees.is_float(leaf)
    return jax.tree.map(lambda leaf: jax.lax.stop_gradient(leaf) if is_array(leaf) else leaf, tree)


def shift(params: PyTree, offset: list[Array], active: Any) -> PyTree:
    """``params + offset`` on the floating leaves, the offset a constant; ``params`` bit for bit where not ``active``."""
    # x + (-0.0) is x for every x, -0.0 among them; and an offset that overflowed does not count at strength 0.
    offset = [jnp.where(active, jax.lax.stop_gradient(v), jnp.asarray(-0.0, v.dtype)) for v in offset]
    return trees.with_float_leaves(params, trees.add_scaled(trees.float_leaves(params), 1.0, offset))


def attach_gradient(value: Any, direction: PyTree, params: PyTree) -> Array:
    r"""A scalar with a given value whose gradient is a given direction.

    Formula:
      .. math:: sg(v) + \sum_i \langle sg(d_i),\; w_i - sg(w_i) \rangle

      For update directions that are not the gradient of a simple expression: ``jax.grad`` of the result, and whatever is
      built on it, sees the direction.

    Args:
      value: the scalar to return; no gradient flows through it.
      direction: a tree with the structure and shapes of ``params``, a constant. It is ignored where ``params`` has a leaf that is
        not floating.
      params: the parameters by which the result will be differentiated.

    Returns:
      ``value``, in its own dtype. Its gradient by ``params`` is ``direction`` and by everything else 0; second derivatives are 0,
      so that it must not be differentiated twice.

    Raises:
      ValueError: if ``value`` is no floating-point scalar, or ``direction`` does not have the structure and shapes of ``params``.

    Cost:
      One pass over the parameters; no forward or backward pass of the model.
      XLA at 16 times [512, 512]: at most 1.7 times the FLOPs and 1.2 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      Part of: `gsam`, `look_sam`.
      When: Call it to write an objective of your own whose direction is a combination of gradients, such as a projection of one
        task's gradient on another's.
      Badly with: Whatever differentiates twice, such as `gradient_penalty` by 'exact', as its second derivatives are 0. Line
        searches, which expect the value to fall along the direction.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> value, grad = jax.value_and_grad(lambda w: rj.objectives.attach_gradient(3.0, 2.0 * w, w))(jnp.array([1.0, -1.0]))
      >>> float(value), grad.tolist()
      (3.0, [2.0, -2.0])

    References:
      The straight-through form of Bengio et al., Estimating or Propagating Gradients Through Stochastic Neurons for
      Conditional Computation, 2013, arXiv 1308.3432, for a whole direction.
    """
    name = "objectives.attach_gradient"
    value = jnp.asarray(value) if isinstance(value, (float, np.generic, np.ndarray)) else value
    if not isinstance(value, jax.Array) or value.shape != () or not trees.is_float(value):
        checks.fail(name, "value", "a floating-point scalar", value)
    checks.same_structure(name, "direction", direction, params, "params")
    pairs = zip(jax.tree.leaves(direction), jax.tree.leaves(params), strict=True)
    kept = [(jnp.asarray(d), jnp.asarray(p)) for d, p in pairs if trees.is_float(p)]
    linear = trees.vdot([jax.lax.stop_gradient(d) for d, _ in kept], [p - jax.lax.stop_gradient(p) for _, p in kept])
    return jax.lax.stop_gradient(value) + linear.astype(value.dtype)


def with_penalty(loss_fn: LossFn, penalty: Callable[[PyTree], Array], strength: Strength, *, has_aux: bool = False) -> LossFn:
    r"""Adds a penalty on the parameters to a loss.

    Formula:
      .. math:: f(w) + s \, R(w)

      Its gradient is what ``regjax.gradients.add_penalty(penalty, strength)`` adds in front of the optimiser. Here the penalty
      is part of the loss, so that transforms around it see it: in ``sam(with_penalty(...))`` it shapes the perturbation.

    Args:
      loss_fn: ``loss_fn(params, *args, **kwargs) -> scalar``, or ``(scalar, aux)`` with ``has_aux=True``.
      penalty: ``f(params) -> scalar``, such as `regjax.weights.spectral_penalty`, or a ``functools.partial`` of one, whose own
        strengths may be schedules.
      strength: a finite number, at least 0, or a schedule, read at the keyword ``step`` of the call. 0 is ``loss_fn``.
      has_aux: whether ``loss_fn`` returns ``(scalar, aux)``; the aux is passed on.

    Returns:
      A loss function with the signature of ``loss_fn`` that also accepts ``step``, and keeps the dtype of the loss.

    Raises:
      ValueError: if ``loss_fn`` or ``penalty`` is no function or returns no scalar, ``strength`` is negative or not finite, or a
        schedule is called without ``step``.

    Cost:
      The penalty's, once forward and once backward; no extra pass of the model.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.2 times the FLOPs and 1.3 times the bytes of a plain training
      step, and 0 times its memory more.

    Use:
      For: few labels, exploding logits, loss of plasticity.
      When: A penalty on the parameters is to be seen by the transforms around the loss, as in `sam` of it, or to be part of the
        value that is logged. By itself it equals `add_penalty` before the optimiser.
      Not when: The optimiser is adaptive and the penalty should not be divided by its second moments: take
        `decoupled_weight_decay`. Exact zeros are wanted, which a subgradient never reaches: take `proximal_step`.
      Badly with: The same penalty in `add_penalty` too. `esam` and `imbsam` around it, which want losses per example: put it
        outside them. Norm penalties on layers before a normalisation, where they only change the effective learning rate.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> loss_fn = lambda w, x: jnp.sum(w * x)
      >>> penalised = rj.objectives.with_penalty(loss_fn, lambda w: jnp.sum(w**2), 0.5)
      >>> jax.grad(penalised)(jnp.array([1.0, 2.0]), jnp.array([3.0, 3.0])).tolist()
      [4.0, 5.0]

    References:
      Tikhonov, Solution of Incorrectly Formulated Problems and the Regularization Method, 1963, Soviet Mathematics Doklady 4.
    """
    name = "objectives.with_penalty"
    checks.function(name, "penalty", penalty)
    checks.strength(name, "strength", strength, low=0.0)

    def objective(loss: BoundLoss, params: PyTree, step: Any) -> Any:
        scale = strength_at(name, "strength", strength, step, low=0.0)
        value, aux = loss(params)
        if not is_zero(scale):
            at_this_step = penalty if step is None else at_step(penalty, step)
            extra = scalar(name, "penalty", at_this_step(params))
            value = value + (jnp.asarray(scale, extra.dtype) * extra).astype(value.dtype)
        return loss.result(value, aux)

    return lift(name, loss_fn, has_aux, objective)
