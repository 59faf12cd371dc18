"""Forgetting by a bound: the loss of what is to be forgotten rises until it is large enough, and no further."""

from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks
from regjax.core.types import Array, PyTree, Strength
from regjax.objectives.lift import BoundLoss, lift, strength_at


def bounded_forgetting(loss_forget: Any, *, bound: Strength, has_aux: bool = False) -> Any:
    r"""The loss of examples to forget, turned round and cut off: it is 0 once they are forgotten.

    Formula:
      .. math:: \max(0,\ bound - L_{forget})

      so that gradient descent raises the loss up to the bound, and what lies beyond has no gradient.

    Args:
      loss_forget: the loss of the examples to forget: a floating scalar, such as the mean cross-entropy of their batch or
        `regjax.features.prototype_loss`; or a loss function ``loss_fn(params, *args, **kwargs)`` of them.
      bound: the loss to reach, a finite number, a traced scalar, or for a loss function a schedule. The authors take 10 for a
        plain softmax, some 105 for a margin softmax, 50 for prototypes.
      has_aux: whether a loss function returns ``(scalar, aux)``; default False.

    Returns:
      A scalar in the dtype of the loss; or a loss function with the signature of ``loss_forget`` that also accepts ``step``.

    Raises:
      ValueError: if ``loss_forget`` is no floating scalar and no function of one, or ``bound`` is not finite.

    Cost:
      None beside the loss's: a step has one forward and backward pass for the examples to forget and one for the others.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.2 times the FLOPs and 1.2 times the bytes of a plain training
      step, and 0 times its memory more.

    Use:
      For: unlearning, forgetting.
      When: Classes or examples are to be forgotten by fine-tuning, beside the ordinary loss of kept ones. It forgot two digits
        wholly and kept the others, in adapters or all weights, where plain gradient ascent found no rate that does both.
      Not when: No kept data are at hand: the loss alone destroys the rest. The bound lies below the loss of a uniform guess, ln
        K, so that it stops too early.
      Badly with: `group_lasso` on adapters from the first step, which zeroes them before anything is forgotten, as a sure
        network's gradient is tiny: warm up first. Momentum, which carries on past the bound.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> float(rj.objectives.bounded_forgetting(jnp.float32(3.0), bound=10.0))
      7.0
      >>> loss_fn = rj.objectives.bounded_forgetting(lambda w, x: jnp.mean(w * x), bound=10.0)
      >>> float(loss_fn(2.0, jnp.array([6.0])))
      0.0

    References:
      Zhao et al., Continual Forgetting for Pre-trained Vision Models, 2024, arXiv 2403.11530: the loss of the remaining
      examples plus 0.15 to 0.4 times this.
    """
    name = "objectives.bounded_forgetting"
    checks.boolean(name, "has_aux", has_aux)
    if not callable(loss_forget):
        checks.number(name, "bound", bound)
        return _below(checks.floating(name, "loss_forget", loss_forget, shape=()), bound)
    checks.strength(name, "bound", bound)

    def objective(loss: BoundLoss, params: PyTree, step: Any) -> Any:
        limit = strength_at(name, "bound", bound, step)
        value, aux = loss(params)
        return loss.result(_below(value, limit), aux)

    return lift(name, loss_forget, has_aux, objective)


def _below(loss: Array, bound: Any) -> Array:
    return jax.nn.relu(jnp.asarray(bound, loss.dtype) - loss)
