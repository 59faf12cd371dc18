"""Weights in front of a normalisation: what their size does to the learning rate, and where weight decay takes it."""

from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, PyTree, Strength, Where
from regjax.diagnostics.curvature import _vectors


def effective_learning_rate(learning_rate: Strength, weight: PyTree, *, optimizer: Literal["sgd", "adam"] = "sgd") -> PyTree:
    r"""The learning rate that a scale-invariant weight feels: how far a step turns its direction.

    Formula:
      .. math:: \frac{\eta}{\|w\|^2} \ (sgd), \quad \frac{\eta}{\|w\|} \ (adam)

      If f(c w) = f(w) for every c > 0, then :math:`\nabla f(c w) = \nabla f(w) / c`: steps by the gradient turn a weight twice as
      long by a quarter of the angle, steps of fixed length by half of it.

    Args:
      learning_rate: :math:`\eta`, at least 0.
      weight: one weight, an array, or a tree of them: those followed by batch, layer or weight normalisation.
      optimizer: ``"sgd"`` (default), or ``"adam"`` for all whose steps do not grow with the gradient.

    Returns:
      A scalar for each floating leaf, in float32 or better; other leaves are passed on. 0 for a weight of length 0, which
      has no direction.

    Raises:
      ValueError: if ``learning_rate`` is negative or not finite, or ``optimizer`` is unknown.

    Cost:
      One pass over the weights.
      XLA at 8 times [512, 512]: at most 2.3 times the FLOPs and 0.56 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      For: unstable training, loss of plasticity.
      When: Weights in front of batch, layer or weight normalisation, logged over a run: on digits it ended far lower without
        weight decay than with it, and equal products of rate and L2 ended at one value.
      Not when: The weight's size matters to the outputs, as in the last layer: try `scale_invariance_error`. As a reason for
        the size of decay it does not serve without normalisation.
      Badly with: Batch normalisation in fine detail: each unit is invariant by itself, and one number for the kernel hides
        units that have shrunk. `lawn` and `renormalize`, which hold the length: it is then the rate times a constant.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> round(float(rj.diagnostics.effective_learning_rate(0.1, jnp.array([3.0, 4.0]))), 4)
      0.004

    References:
      van Laarhoven, L2 Regularization versus Batch and Weight Normalization, 2017, arXiv 1706.05350.
    """
    name = "diagnostics.effective_learning_rate"
    checks.number(name, "learning_rate", learning_rate, low=0.0)
    checks.choice(name, "optimizer", optimizer, ("sgd", "adam"))

    def leaf(w: Any) -> Any:
        if not trees.is_float(w):
            return w
        w = jnp.asarray(w)
        squared = trees.sum_squares(w)
        some = squared > 0
        safe = jnp.where(some, squared, 1)
        return jnp.where(some, jnp.asarray(learning_rate, safe.dtype) / (safe if optimizer == "sgd" else jnp.sqrt(safe)), 0)

    return jax.tree.map(leaf, weight)


def scale_invariance_error(
    loss_fn: Callable[..., PyTree], params: PyTree, mask: Where = None, *args: Any, factor: Any = 2.0
) -> Array:
    r"""Whether a loss, or the outputs of a model, depend on the size of some weights.

    Formula:
      .. math:: \frac{\max_k |f_k(c w) - f_k(w)|}{\max_k |f_k(w)|}

      over all outputs k, with the chosen leaves of w times c and the others as they are.

    Args:
      loss_fn: ``loss_fn(params, *args)`` returns a floating scalar, array or tree, such as a loss or the logits. A loss alone may
        agree by chance.
      params: the weights w.
      mask: which leaves are multiplied, as ``where`` elsewhere: None (default): kernels.
      *args: the batch and whatever else ``loss_fn`` takes.
      factor: c, above 0, default 2.

    Returns:
      A scalar in float32 or better: about 1e-7 in float32 where the weights' size does not matter. Normalisations
      with an epsilon are invariant only as far as the variances are large beside it.

    Raises:
      ValueError: if ``loss_fn`` is no function or returns no floating arrays, or ``factor`` or ``mask`` does not fit.

    Cost:
      Two forward passes.
      XLA at an MLP [64, 256, 256, 10] with batch 128: at most 2.3 times the FLOPs and 2.8 times the bytes of a forward pass,
      and 0.7 times its memory more.

    Use:
      For: unstable training.
      When: Before `lawn`, `renormalize` or a reading of `effective_learning_rate`: which kernels can be rescaled without a
        change of the logits.
      Not when: Which of several kernels matters is asked of one call: by default all are scaled at once, and the last layer
        alone makes the error large. Test one at a time by ``mask``.
      Badly with: Batch normalisation in evaluation mode, whose running statistics do not follow the scaled weights: use batch
        statistics. Dropout with a new key in each call.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> angle = lambda p: p["kernel"] / jnp.linalg.norm(p["kernel"])
      >>> float(rj.diagnostics.scale_invariance_error(angle, {"kernel": jnp.ones((4, 4))})) < 1e-6
      True

    References:
      van Laarhoven, L2 Regularization versus Batch and Weight Normalization, 2017, arXiv 1706.05350.
    """
    name = "diagnostics.scale_invariance_error"
    checks.function(name, "loss_fn", loss_fn)
    checks.number(name, "factor", factor, low=0.0, open_low=True)
    for leaf in trees.selected(name, params, mask, "mask"):
        if not trees.is_float(leaf):
            checks.fail(name, "mask", "a choice of floating leaves", leaf)
    leaves = _vectors.floats(params)
    used = _vectors.flags(name, params, mask, "mask")
    scaled = [leaf * jnp.asarray(factor, leaf.dtype) if use else leaf for leaf, use in zip(leaves, used, strict=True)]

    def outputs(at: list[Array]) -> list[Array]:
        out = loss_fn(trees.with_float_leaves(params, at), *args)
        found = jax.tree.leaves(out)
        if not found or not all(hasattr(leaf, "dtype") and trees.is_float(leaf) for leaf in found):
            checks.fail(name, "loss_fn", "a function that returns floating-point arrays", out)
        return [jnp.asarray(leaf, trees.accumulator(leaf)) for leaf in found]

    before, after = outputs(leaves), outputs(scaled)
    largest = lambda values: jnp.max(jnp.stack([jnp.max(jnp.abs(v), initial=0) for v in values]))
    change, size = largest([a - b for a, b in zip(after, before, strict=True)]), largest(before)
    # Outputs of 0 have no relative error: then the change itself.
    return change / jnp.where(size > 0, size, 1)


def predicted_equilibrium_norm(learning_rate: Strength, l2: Strength, grad_norm: Any) -> Array:
    r"""The length that a scale-invariant weight settles at under SGD with L2 regularisation.

    Formula:
      .. math:: \|w\|^4 = \frac{\eta \, \tilde g^2}{2 \lambda - \eta \lambda^2}

      from :math:`\|w\|^2 \leftarrow (1 - \eta \lambda)^2 \|w\|^2 + \eta^2 \|g\|^2` with a gradient orthogonal to w of length
      :math:`\|g\| = \tilde g / \|w\|`. The effective learning rate is then
      :math:`\eta / \|w\|^2 = \sqrt{\eta (2 \lambda - \eta \lambda^2)} / \tilde g`: L2 has no other effect.

    Args:
      learning_rate: :math:`\eta`, at least 0, of :math:`w \leftarrow w - \eta (g + \lambda w)`.
      l2: :math:`\lambda`, at least 0.
      grad_norm: :math:`\tilde g`, the gradient's length at weights of length 1, at least 0: the root of its mean square.

    Returns:
      :math:`\|w\|`, a scalar in float32 (float64 under x64). Infinity where there is no equilibrium: without L2 the
      weight grows forever, and with :math:`\eta \lambda \ge 2` it oscillates.

    Raises:
      ValueError: if a number is negative or not finite.

    Cost:
      None.

    Use:
      For: unstable training.
      When: Plain SGD with L2 on scale-invariant weights: whether the rate in use has reached its equilibrium, and which pairs
        of rate and L2 are the same run. On digits such pairs ended at equal accuracy.
      Not when: The run is short beside one over rate times L2 steps, within which the length has not settled. Schedules move
        the equilibrium faster than weights follow.
      Badly with: Momentum, Adam and `decoupled_weight_decay`, which obey other equations. Gradients that are not orthogonal to
        the weight: test by `scale_invariance_error`.

    Example:
      >>> import regjax as rj
      >>> round(float(rj.diagnostics.predicted_equilibrium_norm(0.1, 0.05, 1.0)), 4)
      1.0006

    References:
      van Laarhoven, L2 Regularization versus Batch and Weight Normalization, 2017, arXiv 1706.05350, which gives the update of
      the norm; the equilibrium is derived from it here and held against a simulation.
    """
    name = "diagnostics.predicted_equilibrium_norm"
    given = {"learning_rate": learning_rate, "l2": l2, "grad_norm": grad_norm}
    for argument, value in given.items():
        checks.number(name, argument, value, low=0.0)
    dtype = trees.accumulator(*(v for v in given.values() if isinstance(v, jax.Array)), jnp.zeros((), float))
    rate, decay, norm = (jnp.asarray(v, dtype) for v in given.values())
    damping = decay * (2 - rate * decay)
    settles = damping > 0
    fourth = jnp.where(settles, rate * jnp.square(norm) / jnp.where(settles, damping, 1), jnp.inf)
    return jnp.where(settles, trees.safe_sqrt(trees.safe_sqrt(jnp.where(settles, fourth, 1))), jnp.inf)
