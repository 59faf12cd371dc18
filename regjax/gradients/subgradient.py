"""Subgradient steps whose length follows the value of the loss."""

from typing import Any

import jax.numpy as jnp
import optax

from regjax.core import checks, trees
from regjax.core.strength import resolve
from regjax.core.types import Array, PyTree, Strength
from regjax.gradients.updates import StepState, first_step, map_updates


def polyak_subgradient(eta: Strength) -> optax.GradientTransformationExtraArgs:
    r"""Steps along the negative subgradient, as long as the loss is large: for losses with kinks whose minimum is 0.

    Formula:
      .. math:: u = -\frac{\eta_t}{2} f(w) \, g

      A kink keeps a subgradient of constant size, so that steps of a constant rate never settle; these shrink with the loss
      f, and end where it is 0.

    Args:
      eta: :math:`\eta`, a number, at least 0, or a schedule of the step, which is counted from 0. 0 changes nothing.

    Returns:
      An optax optimiser, ``update(updates, state, params=None, *, value)`` with the value of the loss at the weights of the
      gradient, as ``optax.polyak_sgd``. It computes in float32 or better and keeps the dtypes of the updates; updates that
      are no floats pass. ``optax.MultiSteps`` steps by the value of the last small step.

    Raises:
      ValueError: if ``eta`` is negative or not finite; in ``update``, if ``value`` is missing or no floating scalar.

    Cost:
      1 FLOP for each weight; the value is at hand from ``jax.value_and_grad``.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.2 times the FLOPs and 1.2 times the bytes of a plain training
      step, and 0.01 times its memory more.

    Use:
      For: unstable training.
      When: Losses with kinks and a least value of 0 that can be reached: absolute residuals in matrix recovery without noise,
        over-parameterised regression. With `spectral_small_init` it found a low-rank matrix of few measurements.
      Not when: The least loss is above 0, as with outliers or wrong labels: steps never end, so take `geometric_step`.
        Mini-batches, whose values jump. Cross-entropy networks, for which optax's ``polyak_sgd`` or Adam are better.
      Badly with: `add_penalty`, `with_penalty` and `label_smoothing`, which lift the least loss above 0. Losses that are
        negative, as of `elr` or `confidence_penalty`: the step turns round. Loss scaling: the step grows with its square.

    Example:
      >>> import jax.numpy as jnp, optax, regjax as rj
      >>> tx = rj.gradients.polyak_subgradient(0.1)
      >>> params, grads = {"kernel": jnp.array([2.0])}, {"kernel": jnp.array([-3.0])}
      >>> updates, _ = tx.update(grads, tx.init(params), params, value=jnp.array(4.0))
      >>> round(float(updates["kernel"][0]), 4)
      0.6

    References:
      Ma and Fattahi, Global Convergence of Sub-gradient Method for Robust Matrix Recovery: Small Initialization, Noisy
      Measurements, and Over-parameterization, 2023, arXiv 2202.08788 (Algorithm 1). Polyak, Minimization of Unsmooth
      Functionals, 1969, USSR Computational Mathematics and Mathematical Physics 9, divides by the squared norm of the gradient:
      ``optax.polyak_sgd``.
    """
    name = "gradients.polyak_subgradient"
    checks.strength(name, "eta", eta, low=0.0)

    def update(
        updates: PyTree, state: StepState, params: PyTree = None, *, value: Any = None, **extra_args: Any
    ) -> tuple[PyTree, StepState]:
        if value is None:
            checks.fail(name, "value", "given: tx.update(updates, state, params, value=loss)", value)
        loss = checks.floating(name, "value", value, shape=())
        rate = resolve(eta, state.step, name, "eta")

        def leaf(g: Any) -> Any:
            if not trees.is_float(g):
                return g
            g = jnp.asarray(g)
            dtype = trees.accumulator(g)
            length: Array = jnp.asarray(rate, dtype) / 2 * loss.astype(dtype)
            return (-length * g.astype(dtype)).astype(g.dtype)

        return map_updates(leaf, updates), StepState(optax.safe_increment(state.step))

    return optax.GradientTransformationExtraArgs(first_step, update)
