"""The Jacobian of the logits by the inputs, kept small: robustness to any small change of the input."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, PyTree


def jacobian_penalty(logits_fn: Callable[[PyTree, Array], Array], *, num_projections: int = 1) -> Callable[..., Array]:
    r"""Half the mean squared Frobenius norm of the input-output Jacobian, by random projections.

    Formula:
      With :math:`J_b = \partial z_b / \partial x_b` of the K logits of example b and random unit vectors v:

      .. math:: \frac{1}{2 B} \sum_b \lVert J_b \rVert_F^2
        = E \left[ \frac{K}{2 n B} \sum_b \sum_{j=1}^n \lVert J_b^T v_{bj} \rVert^2 \right]

      The right-hand side is returned, or for ``num_projections=-1`` the left.

    Args:
      logits_fn: ``logits_fn(params, x [B, ...]) -> logits [B, K]``, of each example on its own: in batch normalisation the
        statistics should be frozen.
      num_projections: n, at least 1, default 1; -1 is exact.

    Returns:
      ``f(params, key, x, *, projections=None) -> scalar`` in float32 or better, to be added to the loss with a weight (the
      authors': 0.01). ``x`` is floating ``[B, ...]``; ``projections``, unit vectors ``[n, B, K]``, take the place of the
      draws; without draws ``key`` may be None.

    Raises:
      ValueError: if ``num_projections`` is neither -1 nor at least 1, ``logits_fn`` does not return logits ``[B, K]``, or a shape
        or dtype does not fit.

    Cost:
      For each projection a backward pass and, in the gradient of the penalty, a pass forward and back through it: 2 to 3 times
      the FLOPs of the step for one, 1 to 1.5 times more for each further one, of which -1 takes K. The compiler shares the
      forward pass with the loss.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 2.3 times the FLOPs and 2 times the bytes of a plain training
      step, and 0.27 times its memory more.

    Use:
      For: noisy labels, adversarial inputs, few labels.
      When: Continuous inputs and few or wrong labels: with one projection it was among the best on the noisy digits, at weights
        far above the authors'. It needs no labels and no attack.
      Not when: Probabilities are used as they come: it left them underconfident (mend by `fit_temperature`). Many classes with
        num_projections=-1, which takes a pass for each.
      Badly with: BatchNorm by batch statistics, as examples then are not by themselves. Noise on the inputs (`gaussian_noise`),
        which adds nearly the same penalty where it is small. `spectral_penalty`, which bounds the same slopes.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> w = jnp.array([[1.0, 2.0], [3.0, 4.0]])
      >>> penalty = rj.objectives.jacobian_penalty(lambda w, x: x @ w, num_projections=-1)
      >>> float(penalty(w, None, jnp.ones((5, 2))))
      15.0

    References:
      Hoffman et al., Robust Learning with Jacobian Regularization, 2019, arXiv 1908.02729.
    """
    name = "objectives.jacobian_penalty"
    checks.function(name, "logits_fn", logits_fn)
    checks.integer(name, "num_projections", num_projections, low=-1)
    if num_projections == 0:
        checks.fail(name, "num_projections", "-1 or an integer >= 1", num_projections)

    def penalty(params: PyTree, key: Any, x: Any, *, projections: Any = None) -> Array:
        x = checks.floating(name, "x", x, min_ndim=1)
        logits, pull = jax.vjp(lambda x: logits_fn(params, x), x)
        if not isinstance(logits, jax.Array) or logits.ndim != 2 or logits.shape[0] != x.shape[0] or logits.shape[1] < 1:
            checks.fail(name, "logits_fn", f"a function that returns logits [{x.shape[0]}, K]", logits)
        dtype, (batch, outputs) = trees.accumulator(x, logits), logits.shape
        if projections is not None:
            v = checks.floating(name, "projections", projections, shape=(None, batch, outputs)).astype(dtype)
            if not v.shape[0]:
                checks.fail(name, "projections", "an array [n, B, K] with at least one projection", projections)
        elif num_projections == -1:
            v = jnp.broadcast_to(jnp.eye(outputs, dtype=dtype)[:, None, :], (outputs, batch, outputs))
        else:
            v = jax.random.normal(checks.key(name, key), (num_projections, batch, outputs), dtype)
            length = trees.safe_norm(v, axis=-1, keepdims=True)
            v = v / jnp.where(length > 0, length, 1)

        def squared(v: Array) -> Array:
            (gradient,) = pull(sharding.placed_like(v.astype(logits.dtype), logits))
            return jnp.sum(jnp.square(gradient.astype(dtype)))

        # Of the K basis vectors each is needed once; of random ones the mean estimates 1 / K of the norm.
        weight = 1 if num_projections == -1 and projections is None else outputs / v.shape[0]
        return jnp.sum(jax.vmap(squared)(v)) * weight / (2 * max(batch, 1))

    return penalty
