"""Cross-gradient descent: losses minus the logarithm of a sum, seen from elsewhere than where they are evaluated."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from regjax.core import checks, sharding, trees
from regjax.core.types import Array, PyTree
from regjax.objectives.lift import BoundLoss, LossFn, freeze, lift


def cross_gradient(
    log_components_fn: Callable[..., Any], *, weights: Any = None, reference: PyTree = None, has_aux: bool = False
) -> LossFn:
    r"""Minus the logarithm of a sum of components, with a gradient that weighs them as another point would.

    Formula:
      .. math:: F(w) = -\log \sum_s p_s(w), \quad \nabla_\mu F(w) = -\sum_s \mu_s \nabla \log p_s(w)

      Seen from a point :math:`\eta`, :math:`\mu_s = p_s(\eta) / \sum_r p_r(\eta)`; from w itself it is the gradient. Of several
      examples, the mean of F and of their cross-gradients. With log-concave :math:`p_s` and steps
      :math:`\gamma_t = D / (B \sqrt t)`, the average of :math:`F(w_t) - F(\eta)`, weighted by the steps, falls below
      :math:`(\|w_0 - \eta\|^2 + B^2 \sum \gamma_t^2) / (2 \sum \gamma_t)` for every :math:`\eta` that has the weights
      :math:`\mu`. F itself may rise on the way.

    Args:
      log_components_fn: ``f(params, *args, **kwargs) -> [..., S]``, the logarithms of S components for each example, or
        ``([..., S], aux)`` with ``has_aux=True``.
      weights: :math:`\mu`, at least 0 with sum 1 on the last axis: float ``[S]``, or ``[..., S]`` for each example; or a
        function of the arguments of ``log_components_fn`` that returns them. Constants for the gradient.
      reference: :math:`\eta`, parameters like ``params``, in place of ``weights``: exactly one of the two is given.
      has_aux: whether ``log_components_fn`` returns ``([..., S], aux)``; the aux is passed on.

    Returns:
      A loss function with the arguments of ``log_components_fn``, and ``step`` where that takes it, whose value is the mean of
      F over examples. Its gradient is not the derivative of its value, and it must not be differentiated twice. A component
      with :math:`\log p_s = -\infty` has no gradient.

    Raises:
      ValueError: if ``log_components_fn`` is no function or returns no floating ``[..., S]``, if both or neither of ``weights``
        and ``reference`` are given, or ``weights`` do not fit the components, or lie outside the simplex (NumPy arrays and
        lists are read).

    Cost:
      None with ``weights``; with ``reference``, a forward pass at it.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 1.9 times the FLOPs and 1.7 times the bytes of a plain training
      step, and 0.17 times its memory more.

    Use:
      For: unstable training.
      When: The likelihood is a sum of log-concave parts (mixtures, `checkered` regression) and plain descent stays at a saddle,
        as at zero weights. You can say how the parts should share, or have a reference point.
      Not when: The parts are not log-concave in the parameters, as in deep networks: the bound is void. A monotone loss is
        expected: it may rise on the way, and the guarantee is for the average.
      Badly with: Line searches, and `sam`, whose step is then not up the value: its gradient is another function's. Adaptive
        optimisers, if the bound on steps D / (B sqrt t) is to hold.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> both = lambda z: jax.nn.log_sigmoid(jnp.stack([z, -z])).sum(-1)  # the smooth XNOR of z[0] and z[1]
      >>> loss_fn = rj.objectives.cross_gradient(both, weights=[0.9, 0.1])
      >>> value, gradient = jax.value_and_grad(loss_fn)(jnp.zeros(2))
      >>> round(float(value), 4), [round(float(g), 4) for g in gradient]
      (0.6931, [-0.4, -0.4])

    References:
      Achab, Sum-log-concave optimisation, cross-gradient descent and checkered regression, 2023, arXiv 2309.15298, definition 1
      and theorem 4.2. There is no code.
    """
    name = "objectives.cross_gradient"
    checks.function(name, "log_components_fn", log_components_fn)
    if (weights is None) == (reference is None):
        checks.fail(name, "weights", "given, or else reference, and not both", weights)
    if not callable(weights) and reference is None:
        weights = _simplex(name, weights)

    def components(out: Any) -> tuple[Array, PyTree]:
        if has_aux and not (isinstance(out, tuple) and len(out) == 2):
            checks.fail(name, "log_components_fn", "a function that returns ([..., S], aux) where has_aux=True", out)
        value, aux = out if has_aux else (out, None)
        if not isinstance(value, (jax.Array, np.ndarray)) or value.ndim < 1 or not trees.is_float(value) or not value.shape[-1]:
            checks.fail(name, "log_components_fn", "a function that returns a floating-point array [..., S]", value)
        return jnp.asarray(value).astype(trees.accumulator(value)), aux

    def objective(loss: BoundLoss, params: PyTree, step: Any) -> Any:
        log_p, aux = components(loss.loss_fn(params, *loss.args, **loss.kwargs))
        mu = weights
        args, kwargs = freeze((loss.args, loss.kwargs))
        if reference is not None:
            checks.same_structure(name, "reference", reference, params, "params")
            there = components(loss.loss_fn(freeze(reference), *args, **kwargs))[0]
            mu = jax.nn.softmax(there, axis=-1)
        elif callable(weights):
            mu = _simplex(name, weights(freeze(params), *args, **kwargs))
        if mu.shape not in (log_p.shape, log_p.shape[-1:]):
            expected = f"of shape {list(log_p.shape[-1:])} or {list(log_p.shape)}, as the components"
            checks.fail(name, "weights", expected, mu)
        mu = sharding.placed_like(jnp.broadcast_to(jax.lax.stop_gradient(mu).astype(log_p.dtype), log_p.shape), log_p)
        used = (mu != 0) & (log_p > -jnp.inf)
        here = jnp.where(used, log_p, 0)
        change = -jnp.sum(mu * (here - jax.lax.stop_gradient(here)), axis=-1)
        value = jax.lax.stop_gradient(-jax.nn.logsumexp(log_p, axis=-1)) + change
        return loss.result(jnp.mean(value), aux)

    return lift(name, log_components_fn, has_aux, objective)


def _simplex(name: str, weights: Any) -> Array:
    """Weights as an array; those on the host are read."""
    array = checks.floating(name, "weights", weights, min_ndim=1)
    if not isinstance(weights, jax.Array):
        values = np.asarray(weights, np.float64)
        if not (np.all(values >= 0) and np.allclose(values.sum(-1), 1, atol=1e-3)):
            checks.fail(name, "weights", "at least 0 with sum 1 on the last axis", weights)
    return array
