"""Weight Compander: a bounded map from free parameters to weights, by which small weights move fast and large ones slowly."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from regjax.core import checks, trees
from regjax.core.types import Array, PyTree, Where

_FUNCTIONS = ("arctan", "tanh")
_SMALLEST = 1e-6


class CompandedParams(NamedTuple):
    """Parameters of which the chosen leaves are companded: ``v`` in place of the weights, and the raw bound and scale.

    ``a_raw`` and ``b_raw`` have an entry for each leaf in tree order, a scalar for a chosen one and None for another;
    a = softplus(a_raw) and b = softplus(b_raw) + 1e-6.
    """

    v: PyTree
    a_raw: tuple[Array | None, ...]
    b_raw: tuple[Array | None, ...]


def weight_compander(v: Any, a: Any, b: Any, *, function: str = "arctan") -> Array:
    r"""Weights as a bounded function of free parameters: an expansion near zero, a compression far from it.

    Formula:
      .. math:: w = a \arctan(v / b) \quad\text{or}\quad w = a \tanh(v / b)

      The slope at 0 is a / b and the bound a :math:`\pi / 2`, or a. The gradient with arctan is
      :math:`dL/dv = dL/dw \, (a / b) / (1 + (v / b)^2)`.

    Args:
      v: the free parameters, a float array of any shape. Decay and momentum of the optimiser act on them.
      a: the bound, a number or an array that broadcasts to ``v``, above 0.
      b: the scale of the parameters, likewise.
      function: ``"arctan"`` (default) or ``"tanh"``.

    Returns:
      The weights, in the shape and dtype of ``v``; computed in float32 or better.

    Raises:
      ValueError: if ``v`` is no float array, ``a`` or ``b`` does not broadcast to it or is a number that is not positive, or
        ``function`` is unknown.

    Cost:
      One arctan or tanh for each weight and step. The same map in training and test; afterwards the weights can be stored.
      XLA at [2048, 512]: at most 9.9 times the FLOPs and 3.9 times the bytes of a copy of its arguments, and 0 times its memory
      more.

    Use:
      For: few labels.
      When: Training from scratch in which few weights should grow very large: on 200 digits the largest weights were smaller
        and accuracy no more than a point lower. Use `compand` and `companded` for whole models.
      Not when: A gain in accuracy is expected: we saw none. Or weights are to become sparse: it spreads them away from 0.
      Badly with: Weight decay on the bounds and scales; `weights.l1` and magnitude masks taken on the free parameters, whose
        sizes are not the weights'; normalisation behind the kernel, for which bounds mean nothing.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> [round(float(w), 4) for w in rj.weights.weight_compander(jnp.array([-2.0, 0.1, 1.0]), 1.0, 0.5)]
      [-1.3258, 0.1974, 1.1071]

    References:
      Cakaj et al., Weight Compander: A Simple Weight Reparameterization for Regularization, 2023, arXiv 2306.16993.
      Reconstructed from the abstract: that the map is a * arctan(v / b), and whether a and b are of a layer or of the network,
      is uncertain.
    """
    name = "weights.weight_compander"
    checks.choice(name, "function", function, _FUNCTIONS)
    v = checks.floating(name, "v", v)
    dtype = trees.accumulator(v)
    a, b = (_positive(name, which, value, v).astype(dtype) for which, value in (("a", a), ("b", b)))
    squash = jnp.arctan if function == "arctan" else jnp.tanh
    return (a * squash(v.astype(dtype) / b)).astype(v.dtype)


def compander_init(
    kernel: Any, *, slope: float = 1.0, bound_rms: float = 4.0, function: str = "arctan"
) -> tuple[Array, Array, Array]:
    r"""The free parameters, bound and scale at which Weight Compander gives a kernel.

    Formula:
      .. math:: bound = \max(bound\_rms \cdot rms(w), 1.05 \max |w|), \quad a = 2 bound / \pi, \quad b = a / slope, \quad
                v = b \tan(w / a)

      and a = bound, v = b artanh(w / a) for ``function="tanh"``.

    Args:
      kernel: the weights, a float array of any shape.
      slope: dw / dv at 0, above 0, default 1: parameters near zero learn as plain weights do.
      bound_rms: the bound in units of the root mean square of the weights, above 0, default 4.
      function: ``"arctan"`` (default) or ``"tanh"``.

    Returns:
      ``(v, a, b)``: ``v`` in the shape and dtype of the kernel, the others scalars in float32 or better. A kernel of zeros
      has bound 1.

    Raises:
      ValueError: if ``kernel`` is no float array, a number is not positive, or ``function`` is unknown.

    Cost:
      One pass, once.
      XLA at [2048, 512]: at most 6.7 times the FLOPs and 2.3 times the bytes of a copy of its arguments, and 0.01 times its
      memory more.

    Use:
      Part of: `weight_compander`.
      When: For single kernels in layers of your own; `compand` does it for a tree. A smaller ``bound_rms`` binds sooner, but
        never below the largest weight.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> kernel = jnp.array([[0.3, -1.0], [0.5, 0.0]])
      >>> v, a, b = rj.weights.compander_init(kernel)
      >>> bool(abs(rj.weights.weight_compander(v, a, b) - kernel).max() < 1e-6)
      True

    References:
      See `weight_compander`. The initialisation is ours: the paper's was not recovered.
    """
    name = "weights.compander_init"
    return _initial(name, checks.floating(name, "kernel", kernel), slope, bound_rms, function)


def compand(
    params: PyTree, *, slope: float = 1.0, bound_rms: float = 4.0, function: str = "arctan", where: Where = None
) -> CompandedParams:
    r"""The parameters of a model with their kernels companded, each with a learned bound and scale of its own.

    Formula:
      ``compander_init`` of every chosen leaf, with ``a = softplus(a_raw)`` and ``b = softplus(b_raw) + 1e-6``. The model runs
      on ``companded(tree)``.

    Args:
      params: a parameter tree.
      slope: dw / dv at 0, above 0, default 1.
      bound_rms: the bound in units of the root mean square of a leaf, above 0, default 4.
      function: ``"arctan"`` (default) or ``"tanh"``; the same goes to `companded`.
      where: which leaves: None (kernels, default), "all", a predicate ``(path, leaf) -> bool``, or a tree of booleans.

    Returns:
      A `CompandedParams`, which is what to train: ``jax.grad`` by it gives the gradients of ``v``, of the bounds and of the
      scales. Exempt ``a_raw`` and ``b_raw`` from weight decay.

    Raises:
      ValueError: if a number is not positive, ``function`` is unknown, or ``where`` is none of these.

    Cost:
      One pass, once.
      XLA at 8 times [512, 512]: at most 6.6 times the FLOPs and 2.2 times the bytes of a copy of its arguments, and 0.01 times
      its memory more.

    Use:
      Part of: `weight_compander`.
      When: Once, to turn a parameter tree into the one that is trained; keep ``a_raw`` and ``b_raw`` out of weight decay by a
        mask of the optimiser.

    Example:
      >>> import jax.numpy as jnp, regjax as rj
      >>> params = {"kernel": jnp.array([[0.3, -1.0]]), "bias": jnp.zeros(2)}
      >>> free = rj.weights.compand(params)
      >>> bool(abs(rj.weights.companded(free)["kernel"] - params["kernel"]).max() < 1e-6)
      True

    References:
      See `weight_compander`.
    """
    name = "weights.compand"
    mask = trees.select(name, params, where)
    leaves, structure = jax.tree.flatten(params)
    parts: list[tuple[Any, Any, Any]] = []
    for leaf, use in zip(leaves, jax.tree.leaves(mask), strict=True):
        if not use:
            parts.append((leaf, None, None))
            continue
        if not trees.is_float(leaf):
            checks.fail(name, "where", "a choice of floating-point leaves", leaf)
        v, a, b = _initial(name, jnp.asarray(leaf), slope, bound_rms, function)
        parts.append((v, _inverse_softplus(a), _inverse_softplus(b - _SMALLEST)))
    checks.choice(name, "function", function, _FUNCTIONS)
    free, raw_bounds, raw_scales = (tuple(part[i] for part in parts) for i in range(3))
    return CompandedParams(jax.tree.unflatten(structure, free), raw_bounds, raw_scales)


def companded(params: CompandedParams, *, function: str = "arctan") -> PyTree:
    r"""The plain parameters of a model that is trained through Weight Compander.

    Formula:
      ``weight_compander(v, softplus(a_raw), softplus(b_raw) + 1e-6)`` for the leaves that `compand` chose; others pass.

    Args:
      params: what `compand` made.
      function: ``"arctan"`` (default) or ``"tanh"``.

    Returns:
      The parameter tree that the model runs on.

    Raises:
      ValueError: if ``params`` is no `CompandedParams` or ``function`` is unknown.

    Cost:
      One arctan or tanh for each chosen weight.
      XLA at 8 times [512, 512]: at most 16 times the FLOPs and 8.9 times the bytes of a copy of its arguments, and 1.5 times
      its memory more.

    Use:
      Part of: `weight_compander`.
      When: In every forward pass, and once after training to store plain weights; with the ``function`` that `compand` got.

    Example:
      >>> import jax, jax.numpy as jnp, regjax as rj
      >>> free = rj.weights.compand({"kernel": jnp.array([[0.5, -0.5]])})
      >>> grads = jax.grad(lambda free: rj.weights.companded(free)["kernel"].sum())(free)
      >>> bool((grads.v["kernel"] > 0).all())
      True

    References:
      See `weight_compander`.
    """
    name = "weights.companded"
    if not isinstance(params, CompandedParams):
        checks.fail(name, "params", "a CompandedParams, as regjax.weights.compand makes it", params)
    checks.choice(name, "function", function, _FUNCTIONS)
    leaves, structure = jax.tree.flatten(params.v)
    if not len(leaves) == len(params.a_raw) == len(params.b_raw):
        checks.fail(name, "params", "of as many raw bounds and scales as it has leaves", params)

    def leaf(v: Any, a_raw: Any, b_raw: Any) -> Any:
        if a_raw is None:
            return v
        return weight_compander(v, jax.nn.softplus(a_raw), jax.nn.softplus(b_raw) + _SMALLEST, function=function)

    return jax.tree.unflatten(structure, [leaf(*parts) for parts in zip(leaves, params.a_raw, params.b_raw, strict=True)])


def _initial(name: str, kernel: Array, slope: Any, bound_rms: Any, function: str) -> tuple[Array, Array, Array]:
    checks.number(name, "slope", slope, low=0.0, open_low=True)
    checks.number(name, "bound_rms", bound_rms, low=0.0, open_low=True)
    checks.choice(name, "function", function, _FUNCTIONS)
    w = kernel.astype(trees.accumulator(kernel))
    rms = trees.safe_norm(w) / math.sqrt(max(w.size, 1))
    bound = jnp.maximum(bound_rms * rms, 1.05 * jnp.max(jnp.abs(w), initial=0.0))
    bound = jnp.where(bound > 0, bound, 1).astype(w.dtype)
    a = 2 * bound / math.pi if function == "arctan" else bound
    b = a / slope
    v = b * (jnp.tan(w / a) if function == "arctan" else jnp.arctanh(w / a))
    return v.astype(kernel.dtype), a, b


def _inverse_softplus(x: Array) -> Array:
    x = jnp.maximum(x, _SMALLEST)
    return x + jnp.log(-jnp.expm1(-x))


def _positive(name: str, argument: str, value: Any, v: Array) -> Array:
    if jnp.ndim(value) == 0:
        return jnp.asarray(checks.number(name, argument, value, low=0.0, open_low=True))
    value = checks.floating(name, argument, value)
    if value.ndim > v.ndim or any(n not in (1, m) for n, m in zip(value.shape[::-1], v.shape[::-1], strict=False)):
        checks.fail(name, argument, f"a number or an array that broadcasts to {list(v.shape)}", value)
    return value
